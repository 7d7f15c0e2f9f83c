//! JSON output: escaping as Envoy's sanitizer does it, and protobuf `Value`s.

use nuncio_proto::{Struct, Value};
use prost_types::value::Kind;
use std::io::Write;

fn plain(b: u8) -> bool {
    (0x20..0x7f).contains(&b) && b != b'"' && b != b'\\'
}

/// Escapes what was appended to `out` since `start`. Text that is not UTF-8 gets `\u00XX` for every byte that is not plain.
pub(crate) fn escape_from(out: &mut Vec<u8>, start: usize) {
    let Some(tail) = out.get(start..) else { return };
    if tail.iter().all(|b| plain(*b)) {
        return;
    }
    let raw = out.split_off(start);
    escape(out, &raw);
}

/// Appends `raw` escaped, without quotes.
pub(crate) fn escape(out: &mut Vec<u8>, raw: &[u8]) {
    let valid = std::str::from_utf8(raw).is_ok();
    for &b in raw {
        let _ = match b {
            b if plain(b) || (valid && b >= 0x80) => out.write_all(&[b]),
            b'"' if valid => out.write_all(b"\\\""),
            b'\\' if valid => out.write_all(b"\\\\"),
            b'\n' if valid => out.write_all(b"\\n"),
            b'\r' if valid => out.write_all(b"\\r"),
            b'\t' if valid => out.write_all(b"\\t"),
            0x08 if valid => out.write_all(b"\\b"),
            0x0c if valid => out.write_all(b"\\f"),
            b => write!(out, "\\u{b:04x}"),
        };
    }
}

/// Appends a quoted string.
pub(crate) fn string(out: &mut Vec<u8>, text: &[u8]) {
    out.push(b'"');
    escape(out, text);
    out.push(b'"');
}

/// Appends a number: integers without point, what no 64 bit integer can hold as `1e+19`.
pub(crate) fn number(out: &mut Vec<u8>, n: f64) {
    let _ = if !n.is_finite() {
        out.write_all(b"null")
    } else if n.fract() == 0.0 && n.abs() < i64::MAX as f64 {
        write!(out, "{}", n as i64)
    } else if n.abs() >= 1e17 || n.abs() < 1e-5 {
        let text = format!("{n:e}");
        match text.split_once("e-") {
            Some((digits, exponent)) => write!(out, "{digits}e-{exponent:0>2}"),
            None => write!(out, "{}", text.replace('e', "e+")),
        }
    } else {
        write!(out, "{n}")
    };
}

/// Appends `value` as JSON.
pub(crate) fn value(out: &mut Vec<u8>, value: &Value) {
    match &value.kind {
        None | Some(Kind::NullValue(_)) => out.extend_from_slice(b"null"),
        Some(Kind::BoolValue(b)) => out.extend_from_slice(if *b { b"true" } else { b"false" }),
        Some(Kind::NumberValue(n)) => number(out, *n),
        Some(Kind::StringValue(s)) => string(out, s.as_bytes()),
        Some(Kind::StructValue(s)) => object(out, s),
        Some(Kind::ListValue(list)) => {
            out.push(b'[');
            for (i, item) in list.values.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                self::value(out, item);
            }
            out.push(b']');
        }
    }
}

/// Appends a JSON object, keys sorted.
pub(crate) fn object(out: &mut Vec<u8>, fields: &Struct) {
    out.push(b'{');
    for (i, (name, item)) in fields.fields.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        string(out, name.as_bytes());
        out.push(b':');
        value(out, item);
    }
    out.push(b'}');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_those_of_envoy() {
        for (raw, expected) in [
            (&b"plain"[..], "plain"),
            (b"a\"b\\c\td", "a\\\"b\\\\c\\td"),
            ("caf\u{e9}\tq\u{1f600}".as_bytes(), "caf\u{e9}\\tq\u{1f600}"),
            (b"caf\xe9", "caf\\u00e9"),
            (b"d\"\\/<\x80", "d\\u0022\\u005c/<\\u0080"),
            (b"\x01\x7f", "\\u0001\\u007f"),
        ] {
            let mut out = b"x".to_vec();
            out.extend_from_slice(raw);
            escape_from(&mut out, 1);
            assert_eq!(std::str::from_utf8(&out).unwrap().get(1..).unwrap(), expected);
        }
    }
}
