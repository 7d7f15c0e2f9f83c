//! Numbers of protobuf JSON: what is accepted as one, and how one is written.

use serde_json::Value;

use super::schema::Kind;

/// Bounds of an integer kind.
pub(crate) fn range(kind: Kind) -> (i128, i128) {
    match kind {
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => (i128::from(i32::MIN), i128::from(i32::MAX)),
        Kind::Uint32 | Kind::Fixed32 => (0, i128::from(u32::MAX)),
        Kind::Uint64 | Kind::Fixed64 => (0, i128::from(u64::MAX)),
        _ => (i128::from(i64::MIN), i128::from(i64::MAX)),
    }
}

/// A whole number: 5, 5.0, "5", "5.0", "5e3". A leading zero is octal as in YAML 1.1 (`mode: 0644`), `0x` hexadecimal.
pub(crate) fn integer(value: &Value) -> Option<i128> {
    match value {
        Value::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(i), _) => Some(i.into()),
            (None, Some(u)) => Some(u.into()),
            (None, None) => whole(n.as_f64()?),
        },
        Value::String(s) => {
            let digits = s.strip_prefix(['-', '+']).unwrap_or(s);
            if let Some(octal) = digits.strip_prefix('0').filter(|o| !o.is_empty() && o.bytes().all(|b| (b'0'..=b'7').contains(&b))) {
                let n = i128::from_str_radix(octal, 8).ok()?;
                return Some(if s.starts_with('-') { -n } else { n });
            }
            s.parse::<i128>().ok().or_else(|| whole(decimal(s)?))
        }
        _ => None,
    }
}

fn whole(f: f64) -> Option<i128> {
    const EXACT: f64 = 1e19;
    (f.fract() == 0.0 && f.abs() < EXACT).then_some(f as i128)
}

/// Text that starts as a decimal number does; Rust would also take `inf` and `nan`.
fn decimal(s: &str) -> Option<f64> {
    s.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'+' | b'-' | b'.' | b'e' | b'E')).then(|| s.parse().ok())?
}

/// A floating-point number, its three names included.
pub(crate) fn float(value: &Value) -> Option<f64> {
    match value {
        Value::Number(n) => n.as_f64(),
        Value::String(s) => match s.as_str() {
            "NaN" => Some(f64::NAN),
            "Infinity" => Some(f64::INFINITY),
            "-Infinity" => Some(f64::NEG_INFINITY),
            other => decimal(other).filter(|f| f.is_finite()),
        },
        _ => None,
    }
}

/// Writes a double as C++ protobuf does: shortest digits, exponent from 1e15 on and below 1e-4, names in quotes.
pub(crate) fn put_double(out: &mut Vec<u8>, f: f64) {
    put(out, f, f.is_nan(), f.is_infinite(), &format!("{f:e}"), 15);
}

/// The same for a float.
pub(crate) fn put_float(out: &mut Vec<u8>, f: f32) {
    put(out, f64::from(f), f.is_nan(), f.is_infinite(), &format!("{f:e}"), 6);
}

fn put(out: &mut Vec<u8>, f: f64, nan: bool, infinite: bool, scientific: &str, precision: i32) {
    use std::io::Write;
    if nan {
        out.extend_from_slice(b"\"NaN\"");
        return;
    }
    if infinite {
        out.extend_from_slice(if f > 0.0 { b"\"Infinity\"" } else { b"\"-Infinity\"" });
        return;
    }
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    let digits = mantissa.bytes().filter(u8::is_ascii_digit).count() as i32;
    // Writing to a Vec does not fail.
    let _ = if exponent < -4 || exponent >= precision.max(digits) {
        write!(out, "{mantissa}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
    } else if precision > 6 {
        write!(out, "{f}")
    } else {
        write!(out, "{}", f as f32)
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn whole_numbers() {
        assert_eq!(integer(&json!(5.0)), Some(5));
        assert_eq!(integer(&json!("32768")), Some(32768));
        assert_eq!(integer(&json!("1e3")), Some(1000));
        assert_eq!(integer(&json!("0644")), Some(0o644));
        assert_eq!(integer(&json!(u64::MAX)), Some(i128::from(u64::MAX)));
        assert_eq!(integer(&json!(5.5)), None);
        assert_eq!(integer(&json!("inf")), None);
        assert_eq!(integer(&json!("")), None);
        assert_eq!(float(&json!("inf")), None);
        assert_eq!(float(&json!("-Infinity")), Some(f64::NEG_INFINITY));
    }

    fn double(f: f64) -> String {
        let mut out = Vec::new();
        put_double(&mut out, f);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn doubles_as_cpp_writes_them() {
        for (f, text) in [
            (0.0, "0"),
            (-1.0, "-1"),
            (15021.0, "15021"),
            (0.5, "0.5"),
            (1e14, "100000000000000"),
            (1e15, "1e+15"),
            (1e20, "1e+20"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (1234567890123456.0, "1234567890123456"),
            (f64::NAN, "\"NaN\""),
            (f64::NEG_INFINITY, "\"-Infinity\""),
        ] {
            assert_eq!(double(f), text);
        }
        let mut out = Vec::new();
        put_float(&mut out, 0.1);
        assert_eq!(out, b"0.1");
    }
}
