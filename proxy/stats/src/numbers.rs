//! Numbers as C++ prints them, for output that is compared with Envoy's.

use std::fmt::Write;

fn exponent_form(out: &mut String, mantissa: &str, exponent: i32) {
    let sign = if exponent < 0 { '-' } else { '+' };
    let _ = write!(out, "{mantissa}e{sign}{:02}", exponent.abs());
}

fn split(text: &str) -> (&str, i32) {
    let (mantissa, exponent) = text.split_once('e').unwrap_or((text, "0"));
    (mantissa, exponent.parse().unwrap_or(0))
}

/// `%.{precision}g`.
pub(crate) fn general(out: &mut String, value: f64, precision: usize) {
    if value.is_nan() {
        out.push_str("nan");
        return;
    }
    let precision = precision.max(1);
    let scientific = format!("{value:.*e}", precision - 1);
    let (mantissa, exponent) = split(&scientific);
    let trim = |s: &str| if s.contains('.') { s.trim_end_matches('0').trim_end_matches('.').to_string() } else { s.to_string() };
    if exponent < -4 || exponent >= precision as i32 {
        exponent_form(out, &trim(mantissa), exponent);
    } else {
        let decimals = (precision as i32 - 1 - exponent).max(0) as usize;
        out.push_str(&trim(&format!("{value:.decimals$}")));
    }
}

/// The shortest text that reads back as `value`, as fmt's `{}`: exponents from 1e16 up and below 1e-4.
pub(crate) fn shortest(out: &mut String, value: f64) {
    if value.is_nan() {
        out.push_str("nan");
    } else if value != 0.0 && !(1e-4..1e16).contains(&value.abs()) {
        let scientific = format!("{value:e}");
        let (mantissa, exponent) = split(&scientific);
        exponent_form(out, mantissa, exponent);
    } else {
        let _ = write!(out, "{value}");
    }
}

/// The shorter of the plain and the exponent form, plain if equal, as `std::to_chars`; `null` for NaN.
pub(crate) fn json(out: &mut String, value: f64) {
    if !value.is_finite() {
        out.push_str("null");
        return;
    }
    let plain = value.to_string();
    let mut scientific = String::new();
    let text = format!("{value:e}");
    let (mantissa, exponent) = split(&text);
    exponent_form(&mut scientific, mantissa, exponent);
    out.push_str(if scientific.len() < plain.len() { &scientific } else { &plain });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(f: impl Fn(&mut String)) -> String {
        let mut s = String::new();
        f(&mut s);
        s
    }

    #[test]
    fn forms() {
        assert_eq!(with(|s| general(s, 1_800_000.0, 6)), "1.8e+06");
        assert_eq!(with(|s| general(s, 300_000.0, 6)), "300000");
        assert_eq!(with(|s| general(s, 0.5, 6)), "0.5");
        assert_eq!(with(|s| general(s, 1_800_000.0, 32)), "1800000");
        assert_eq!(with(|s| general(s, 0.0, 32)), "0");
        assert_eq!(with(|s| general(s, 80.496_894_409_937_9, 32)), "80.496894409937894465656427200884");
        assert_eq!(with(|s| shortest(s, 1033.3333333333333)), "1033.3333333333333");
        assert_eq!(with(|s| shortest(s, 2.5e17)), "2.5e+17");
        assert_eq!(with(|s| json(s, 300_000.0)), "3e+05");
        assert_eq!(with(|s| json(s, 1_800_000.0)), "1800000");
        assert_eq!(with(|s| json(s, f64::NAN)), "null");
    }
}
