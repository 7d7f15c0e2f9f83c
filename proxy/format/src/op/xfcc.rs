//! `%XFCC_VALUE(KEY)%`: a value of the request's x-forwarded-client-cert, of the leftmost element that has the key. Elements are separated
//! by commas, pairs by semicolons; inside double quotes neither counts, and `\"` is a quote. Source: Envoy's documentation of the operator.

use crate::FormatContext;
use http::HeaderName;
use nuncio_core::message::joined;

/// Keys of an element, in lower case.
const KEYS: [&str; 7] = ["by", "hash", "cert", "chain", "subject", "uri", "dns"];

const XFCC: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

/// One of [`KEYS`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct XfccKey(&'static str);

impl XfccKey {
    pub fn parse(argument: &str) -> Result<Self, String> {
        if argument.is_empty() {
            return Err("XFCC_VALUE command requires a subcommand".to_string());
        }
        let known = KEYS.into_iter().find(|key| key.eq_ignore_ascii_case(argument));
        known.map(Self).ok_or_else(|| format!("XFCC_VALUE command does not support subcommand: {}", argument.to_ascii_lowercase()))
    }
    /// Appends the value; false if there is none.
    pub fn write(self, cx: &FormatContext<'_>, out: &mut Vec<u8>) -> bool {
        let Some(header) = cx.request.and_then(|r| joined(&r.headers, &XFCC)) else { return false };
        let mut elements = Parts { rest: Some(&header), separator: b',' };
        let found = elements.by_ref().map_while(|part| part).find_map(|element| {
            let mut pairs = Parts { rest: Some(element), separator: b';' };
            pairs.by_ref().map_while(|part| part).find_map(|pair| {
                let (key, value) = pair.iter().position(|b| *b == b'=').and_then(|at| pair.split_at_checked(at)).unwrap_or((pair, b"="));
                let value = value.get(1..).unwrap_or_default();
                key.trim_ascii().eq_ignore_ascii_case(self.0.as_bytes()).then(|| value.trim_ascii())
            })
        });
        let Some(value) = found else { return false };
        let quoted = value.strip_prefix(b"\"").and_then(|v| v.strip_suffix(b"\""));
        unescape(quoted.unwrap_or(value), out);
        true
    }
}

/// Appends `value` with `\"` and `\\` resolved.
fn unescape(value: &[u8], out: &mut Vec<u8>) {
    let mut rest = value;
    while let Some((&first, tail)) = rest.split_first() {
        match tail.split_first() {
            Some((&next @ (b'"' | b'\\'), after)) if first == b'\\' => {
                out.push(next);
                rest = after;
            }
            _ => {
                out.push(first);
                rest = tail;
            }
        }
    }
}

/// Parts between separators outside of quotes; `None` inside for a part whose quotes do not end.
struct Parts<'a> {
    rest: Option<&'a [u8]>,
    separator: u8,
}

impl<'a> Iterator for Parts<'a> {
    type Item = Option<&'a [u8]>;
    fn next(&mut self) -> Option<Self::Item> {
        let text = self.rest.take()?;
        let (mut quoted, mut escaped) = (false, false);
        for (at, byte) in text.iter().enumerate() {
            match byte {
                b'"' if !escaped => quoted = !quoted,
                b if *b == self.separator && !quoted => {
                    self.rest = text.get(at + 1..);
                    return Some(text.get(..at));
                }
                _ => {}
            }
            escaped = *byte == b'\\' && !escaped;
        }
        Some((!quoted).then_some(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nuncio_core::RequestHead;
    use nuncio_core::test_kit::stream_info;

    fn value(header: &str, key: &str) -> Option<String> {
        let mut request = RequestHead::new(http::Method::GET, "h", "/");
        request.headers.append(XFCC, header.parse().unwrap());
        let info = stream_info();
        let mut out = Vec::new();
        XfccKey::parse(key).unwrap().write(&FormatContext::request(&info, &request), &mut out).then(|| String::from_utf8(out).unwrap())
    }

    #[test]
    fn values_are_found_and_unquoted() {
        let header = r#"By=spiffe://a;Hash=1;Subject="CN=x;,\"q\" \\";URI=,By=b;DNS=one;DNS=two;=odd"#;
        for (key, found) in [
            ("by", Some("spiffe://a")),
            ("HASH", Some("1")),
            ("Subject", Some("CN=x;,\"q\" \\")),
            ("uri", Some("")),
            ("dns", Some("one")),
            ("cert", None),
        ] {
            assert_eq!(value(header, key).as_deref(), found, "{key}");
        }
        assert_eq!(value(r#"Subject="open;URI=x"#, "uri"), None);
        assert_eq!(value(r#"URI=x,Subject="open"#, "uri").as_deref(), Some("x"));
        assert_eq!(value("uri", "uri").as_deref(), Some(""));
        assert!(XfccKey::parse("").is_err() && XfccKey::parse("x").is_err());
    }
}
