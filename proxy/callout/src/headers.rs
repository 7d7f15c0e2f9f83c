//! Headers that a configuration adds to calls, with formats in their values. Compiled on the control thread, written on workers.

use http::{HeaderName, HeaderValue};
use nuncio_core::Headers;
use nuncio_core::addr::Address;
use nuncio_core::diag::{At, Report};
use nuncio_core::info::{ConnectionInfo, StreamInfo};
use nuncio_format::{FormatContext, Formatter};
use nuncio_proto::envoy::config::core::v3::HeaderValue as Proto;
use std::rc::Rc;

#[derive(Debug)]
enum Value {
    Fixed(HeaderValue),
    Format(Formatter),
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
                report.error(at, format!("{:?}", String::from_utf8_lossy(bytes)), "give a valid header value");
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
    /// Sets the headers in `headers`: what is there of the same name goes, and they come last.
    pub fn set(&self, cx: Option<&FormatContext<'_>>, headers: &mut Headers) {
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
    let mut text = String::new();
    format.format(cx, &mut text);
    if let Ok(value) = HeaderValue::from_str(&text) {
        put(value);
    }
}
