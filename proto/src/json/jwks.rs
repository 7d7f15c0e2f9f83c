//! Symmetric keys in JSON texts: a JWKS in a configuration (`JwtProvider.local_jwks`) is an ordinary string to the API, but a key of type
//! `oct` in it is a secret. What is shown of a configuration has `[redacted]` in its place, and is unchanged otherwise. Control thread.

use super::value::REDACTED;
use std::ops::Range;

/// `text` without the values of symmetric keys; none if there is no such key in it.
pub(crate) fn redacted(text: &str) -> Option<String> {
    // Escapes may hide a name or a type; without either of them there is no key.
    if !(text.contains("oct") || text.contains('\\')) || !text.contains('{') {
        return None;
    }
    let mut secrets = secrets(text);
    if secrets.is_empty() {
        return None;
    }
    secrets.sort_by_key(|range| range.start);
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    for range in secrets {
        out.push_str(text.get(at..range.start).unwrap_or_default());
        out.push('"');
        out.push_str(REDACTED);
        out.push('"');
        at = range.end.max(at);
    }
    out.push_str(text.get(at..).unwrap_or_default());
    Some(out)
}

/// An object that is open.
#[derive(Default)]
struct Object {
    /// The name whose value comes next.
    name: Option<String>,
    symmetric: bool,
    secrets: Vec<Range<usize>>,
}

/// Where the values of symmetric keys are, quotes included. Text that is no JSON is read as far as it resembles it.
fn secrets(text: &str) -> Vec<Range<usize>> {
    let bytes = text.as_bytes();
    let (mut found, mut open, mut at) = (Vec::new(), Vec::<Option<Object>>::new(), 0);
    let mut end = |object: Option<Object>| {
        if let Some(object) = object.filter(|o| o.symmetric) {
            found.extend(object.secrets);
        }
    };
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'{' => open.push(Some(Object::default())),
            b'[' => open.push(None),
            b'}' | b']' => end(open.pop().flatten()),
            b',' => {
                if let Some(Some(object)) = open.last_mut() {
                    object.name = None;
                }
            }
            b'"' => {
                let stop = string_end(bytes, at);
                if let Some(Some(object)) = open.last_mut() {
                    let value = text.get(at..stop).and_then(|token| serde_json::from_str::<String>(token).ok()).unwrap_or_default();
                    match object.name.as_deref() {
                        None => object.name = Some(value),
                        Some("kty") => object.symmetric |= value == "oct",
                        Some("k") => object.secrets.push(at..stop),
                        Some(_) => {}
                    }
                }
                at = stop;
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    // What is cut off is no less secret.
    open.into_iter().for_each(end);
    found
}

/// The place after the string that begins at `at`.
fn string_end(bytes: &[u8], at: usize) -> usize {
    let mut at = at + 1;
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_symmetric_keys_go() {
        let text = r#"{ "keys" : [ {"kty":"RSA","n":"abc","k":"no secret"},
  {"k" : "c2VjcmV0\u0041", "kid":"a", "kty":"oct"}, {"kty":"EC","x":"1"},{"\u006bty":"\u006fct","k":"eA"} ] }"#;
        let shown = r#"{ "keys" : [ {"kty":"RSA","n":"abc","k":"no secret"},
  {"k" : "[redacted]", "kid":"a", "kty":"oct"}, {"kty":"EC","x":"1"},{"\u006bty":"\u006fct","k":"[redacted]"} ] }"#;
        assert_eq!(redacted(text).as_deref(), Some(shown));
        assert_eq!(redacted(r#"{"kty":"oct","k":"x","#).as_deref(), Some(r#"{"kty":"oct","k":"[redacted]","#), "cut off");
        for same in ["", "oct", r#"{"a":"oct"}"#, r#"{"kty":"RSA","k":"x"}"#, r#"{"k":"x"},{"kty":"oct"}"#, "{\"a\\", "é{\"oct"] {
            assert_eq!(redacted(same), None, "{same}");
        }
    }
}
