//! Headers that a configuration adds to calls, with formats in their values. Compiled on the control thread, written on workers.

use http::{HeaderName, HeaderValue};
use nuncio_core::Headers;
use nuncio_core::addr::Address;
use nuncio_core::diag::{At, Report};
use nuncio_core::info::{ConnectionInfo, StreamInfo};
use nuncio_format::{FormatContext, Formatter};
use nuncio_proto::envoy::config::core::v3::HeaderValue as Proto;
use std::fmt;
use std::rc::Rc;

enum Value {
    Fixed(HeaderValue),
    Format(Formatter),
}

impl fmt::Debug for Value {
    /// Credentials of the proxy's own are given this way.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// A list of `core.v3.HeaderValue`: `GrpcService.initial_metadata`, `headers_to_add` of ext_authz.
#[derive(Debug, Default)]
pub struct AddedHeaders(Box<[(HeaderName, Value)]>);

impl AddedHeaders {
    /// Compiles `list`; none means refused.
    pub fn compile(list: &[Proto], at: &At<'_>, report: &mut Report) -> Option<Self> {
        let errors = report.errors();
        let all = list.iter().enumerate().filter_map(|(i, header)| Self::one(header, &at.index(i), report)).collect();
        (report.errors() == errors).then_some(Self(all))
    }
    fn one(header: &Proto, at: &At<'_>, report: &mut Report) -> Option<(HeaderName, Value)> {
        let Ok(name) = HeaderName::from_bytes(header.key.as_bytes()) else {
            report.error(&at.field("key"), format!("{:?}", header.key), "give a valid header name");
            return None;
        };
        let fixed = |bytes: &[u8], at: &At<'_>, report: &mut Report| match HeaderValue::from_bytes(bytes) {
            Ok(value) => Some(Value::Fixed(value)),
            Err(_) => {
                // Not quoted: it may be a secret with a line break at its end.
                report.error(at, format!("{} bytes that no header can carry", bytes.len()), "give a valid header value");
                None
            }
        };
        if header.value.is_empty() && !header.raw_value.is_empty() {
            return Some((name, fixed(&header.raw_value, &at.field("raw_value"), report)?));
        }
        let at = at.field("value");
        let format = Formatter::header(&header.value, &at, report)?;
        let value = match format.literal() {
            Some(text) => fixed(text.as_bytes(), &at, report)?,
            None => Value::Format(format),
        };
        Some((name, value))
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    /// Appends the headers to `headers`. Without a stream (`cx`), operators find nothing.
    pub fn append(&self, cx: Option<&FormatContext<'_>>, headers: &mut Headers) {
        self.each(cx, |name, value| headers.append(name.clone(), value));
    }
    /// Sets the headers in `headers`: what is there of the same name goes, even if there is nothing to write, and they come last.
    pub fn set(&self, cx: Option<&FormatContext<'_>>, headers: &mut Headers) {
        for (name, _) in &self.0 {
            headers.remove(name);
        }
        self.each(cx, |name, value| {
            headers.remove(name);
            headers.append(name.clone(), value);
        });
    }
    fn each(&self, cx: Option<&FormatContext<'_>>, mut put: impl FnMut(&HeaderName, HeaderValue)) {
        for (name, value) in &self.0 {
            match (value, cx) {
                (Value::Fixed(value), _) => put(name, value.clone()),
                (Value::Format(format), Some(cx)) => write(format, cx, |value| put(name, value)),
                (Value::Format(format), None) => {
                    let nobody = Address::Pipe("".into());
                    let info = StreamInfo::new(Rc::new(ConnectionInfo::plain(nobody.clone(), nobody, "".into())), None);
                    write(format, &FormatContext::new(&info), |value| put(name, value));
                }
            }
        }
    }
}

/// A value that no header can carry is left out, as the formatter leaves out what has no value.
fn write(format: &Formatter, cx: &FormatContext<'_>, put: impl FnOnce(HeaderValue)) {
    let mut bytes = Vec::new();
    format.write(cx, &mut bytes);
    if let Ok(value) = HeaderValue::try_from(bytes) {
        put(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Method;
    use nuncio_core::RequestHead;
    use nuncio_core::test_kit as kit;

    fn header(key: &str, value: &str) -> Proto {
        Proto { key: key.into(), value: value.into(), ..Proto::default() }
    }

    #[test]
    fn nobody_shows_a_value() {
        let mut report = Report::new();
        let added = AddedHeaders::compile(&[header("authorization", "Bearer hunter2")], &At::Root, &mut report).unwrap();
        assert!(!format!("{added:?}").contains("hunter2"));
        assert!(AddedHeaders::compile(&[header("authorization", "Bearer hunter2\n")], &At::Root, &mut report).is_none());
        assert!(report.has_errors() && !report.summary().contains("hunter2"));
    }

    #[test]
    fn what_is_set_is_what_the_format_says() {
        let list = [header("x-user", "%REQ(x-name)%"), header("x-team", "%REQ(x-name)%")];
        let added = AddedHeaders::compile(&list, &At::Root, &mut Report::new()).unwrap();
        let mut ex = kit::exchange(RequestHead::new(Method::GET, "shop", "/"));
        let name = HeaderValue::from_bytes("Zo\u{eb}".as_bytes()).unwrap();
        ex.request.headers.append(HeaderName::from_static("x-name"), name.clone());
        let mut headers = Headers::new();
        headers.append(HeaderName::from_static("x-user"), HeaderValue::from_static("admin"));
        added.set(Some(&FormatContext::exchange(&ex)), &mut headers);
        assert_eq!(headers.get_all(&HeaderName::from_static("x-user")).collect::<Vec<_>>(), [&name]);
    }
}
