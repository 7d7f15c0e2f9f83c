//! `HeaderParser`: headers to add and to remove, with `%OPERATORS%` in values. Used by routes, filters, tcp_proxy and the
//! connection manager. A static value is a shared `HeaderValue`; only values with operators are formatted.
//! Source: `envoy/config/core/v3/base.proto` HeaderValueOption, Envoy's `router/header_parser.cc`.

use http::{HeaderName, HeaderValue};
use nuncio_core::diag::{At, Report};
use nuncio_core::views::RouteView;
use nuncio_core::{Headers, RequestHead, ResponseHead, StreamInfo};
use nuncio_format::{FormatContext, Formatter};
use nuncio_proto::envoy::config::core::v3::HeaderValueOption;
use nuncio_proto::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use smallvec::SmallVec;

/// Compiled header mutations: first removals, then overwrites, then additions. All values are computed from the headers as they are
/// after the removals.
#[derive(Debug, Default)]
pub struct HeaderParser {
    add: Box<[Addition]>,
    remove: Box<[HeaderName]>,
}

#[derive(Debug)]
struct Addition {
    name: HeaderName,
    value: Value,
    action: HeaderAppendAction,
    keep_empty: bool,
}

#[derive(Debug)]
enum Value {
    Static(HeaderValue),
    Format(Formatter),
}

/// Values that wait until all are computed.
type Pending<'a> = SmallVec<[(&'a Addition, HeaderValue); 4]>;

/// Whether configuration may add, change or remove the header. Pseudo-headers and `host` have fields of their own.
pub fn is_modifiable(name: &str) -> bool {
    !name.starts_with(':') && !name.eq_ignore_ascii_case("host")
}

impl HeaderParser {
    /// Compiles `*_headers_to_add` and `*_headers_to_remove`, given with their places.
    pub fn compile(add: &[HeaderValueOption], at_add: &At<'_>, remove: &[String], at_remove: &At<'_>, report: &mut Report) -> Option<Self> {
        let before = report.errors();
        let mut additions = Vec::with_capacity(add.len());
        for (i, option) in add.iter().enumerate() {
            additions.extend(Addition::compile(option, &at_add.index(i), report));
        }
        let mut removals = Vec::with_capacity(remove.len());
        for (i, name) in remove.iter().enumerate() {
            removals.extend(header_name(name, &at_remove.index(i), report));
        }
        (report.errors() == before).then(|| Self { add: additions.into(), remove: removals.into() })
    }
    /// One header to add.
    pub(crate) fn addition(option: &HeaderValueOption, at: &At<'_>, report: &mut Report) -> Option<Self> {
        Some(Self { add: [Addition::compile(option, at, report)?].into(), remove: Box::default() })
    }
    /// One header to remove.
    pub(crate) fn removal(name: &str, at: &At<'_>, report: &mut Report) -> Option<Self> {
        Some(Self { add: Box::default(), remove: [header_name(name, at, report)?].into() })
    }
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.add.is_empty() && self.remove.is_empty()
    }
    /// Mutates a request's headers.
    pub fn apply_request(&self, request: &mut RequestHead, info: &StreamInfo, route: Option<&dyn RouteView>) {
        self.remove_from(&mut request.headers);
        if !self.add.is_empty() {
            let pending = self.evaluate(&request.headers, || Some(FormatContext { route, ..FormatContext::request(info, request) }));
            write(pending, &mut request.headers);
        }
    }
    /// Mutates a response's headers; `request` is there for `%REQ(..)%`.
    pub fn apply_response(
        &self,
        response: &mut ResponseHead,
        request: Option<&RequestHead>,
        info: &StreamInfo,
        route: Option<&dyn RouteView>,
    ) {
        self.remove_from(&mut response.headers);
        if !self.add.is_empty() {
            let cx = || Some(FormatContext { route, request, response: Some(response), ..FormatContext::new(info) });
            let pending = self.evaluate(&response.headers, cx);
            write(pending, &mut response.headers);
        }
    }
    /// Mutates headers that are in neither head of `cx` (a new CONNECT request, trailers).
    pub fn apply(&self, headers: &mut Headers, cx: &FormatContext<'_>) {
        self.remove_from(headers);
        if !self.add.is_empty() {
            let pending = self.evaluate(headers, || Some(*cx));
            write(pending, headers);
        }
    }
    /// The same with values computed now, for headers that come when `cx` is out of reach: [`Self::apply_resolved`].
    pub(crate) fn resolved(&self, cx: &FormatContext<'_>) -> Self {
        let mut buffer = Vec::new();
        let add = self.add.iter().filter_map(|addition| {
            let value = match &addition.value {
                Value::Static(value) => value.clone(),
                Value::Format(format) => {
                    buffer.clear();
                    format.write(cx, &mut buffer);
                    HeaderValue::from_bytes(&buffer).ok()?
                }
            };
            let (name, action, keep_empty) = (addition.name.clone(), addition.action, addition.keep_empty);
            Some(Addition { name, value: Value::Static(value), action, keep_empty })
        });
        Self { add: add.collect(), remove: self.remove.clone() }
    }
    /// Mutates `headers` by what [`Self::resolved`] gave.
    pub(crate) fn apply_resolved(&self, headers: &mut Headers) {
        self.remove_from(headers);
        let pending = self.evaluate(headers, || None);
        write(pending, headers);
    }
    fn remove_from(&self, headers: &mut Headers) {
        for name in &self.remove {
            headers.remove(name);
        }
    }
    /// Values that are formatted are left out where there is no context.
    fn evaluate<'a, 'c>(&'a self, headers: &Headers, cx: impl Fn() -> Option<FormatContext<'c>>) -> Pending<'a> {
        let mut pending = Pending::new();
        let mut buffer = Vec::new();
        for addition in &self.add {
            match addition.action {
                HeaderAppendAction::AddIfAbsent if headers.contains(&addition.name) => continue,
                HeaderAppendAction::OverwriteIfExists if !headers.contains(&addition.name) => continue,
                _ => {}
            }
            let value = match &addition.value {
                Value::Static(value) => value.clone(),
                Value::Format(format) => {
                    buffer.clear();
                    let Some(cx) = cx() else { continue };
                    format.write(&cx, &mut buffer);
                    // A value that HTTP forbids cannot be sent; Envoy's codec would drop the stream.
                    let Ok(value) = HeaderValue::from_bytes(&buffer) else { continue };
                    value
                }
            };
            if !value.is_empty() || addition.keep_empty {
                pending.push((addition, value));
            }
        }
        pending
    }
    /// Names that are removed.
    pub fn removals(&self) -> &[HeaderName] {
        &self.remove
    }
}

fn write(pending: Pending<'_>, headers: &mut Headers) {
    use HeaderAppendAction as Action;
    let overwrites = |addition: &Addition| matches!(addition.action, Action::OverwriteIfExists | Action::OverwriteIfExistsOrAdd);
    for (addition, value) in pending.iter().filter(|(a, _)| overwrites(a)) {
        // What is overwritten moves to the end.
        headers.remove(&addition.name);
        headers.append(addition.name.clone(), value.clone());
    }
    for (addition, value) in pending.into_iter().filter(|(a, _)| !overwrites(a)) {
        headers.append(addition.name.clone(), value);
    }
}

impl Addition {
    #[allow(deprecated)]
    fn compile(option: &HeaderValueOption, at: &At<'_>, report: &mut Report) -> Option<Self> {
        let Some(header) = &option.header else {
            report.error(&at.field("header"), "nothing", "set key and value");
            return None;
        };
        let at_header = at.field("header");
        let name = header_name(&header.key, &at_header.field("key"), report)?;
        let Ok(action) = HeaderAppendAction::try_from(option.append_action) else {
            report.error(&at.field("append_action"), option.append_action.to_string(), "use a value of HeaderAppendAction");
            return None;
        };
        let action = match option.append {
            None => action,
            Some(_) if option.append_action != 0 => {
                report.error(&at.field("append"), "append beside append_action", "keep append_action only");
                return None;
            }
            Some(true) => HeaderAppendAction::AppendIfExistsOrAdd,
            Some(false) => HeaderAppendAction::OverwriteIfExistsOrAdd,
        };
        if !header.value.is_empty() && !header.raw_value.is_empty() {
            report.error(&at_header.field("raw_value"), "raw_value beside value", "keep one of them");
            return None;
        }
        let (field, bytes) =
            if header.value.is_empty() { ("raw_value", header.raw_value.as_slice()) } else { ("value", header.value.as_bytes()) };
        let value = value(bytes, &at_header.field(field), report)?;
        Some(Self { name, value, action, keep_empty: option.keep_empty_value })
    }
}

fn value(bytes: &[u8], at: &At<'_>, report: &mut Report) -> Option<Value> {
    let fixed = |bytes: &[u8], report: &mut Report| match HeaderValue::from_bytes(bytes) {
        Ok(value) => Some(Value::Static(value)),
        Err(_) => {
            report.error(at, format!("\"{}\"", bytes.escape_ascii()), "remove the bytes that a header value cannot hold");
            None
        }
    };
    match std::str::from_utf8(bytes) {
        Ok(text) if text.contains('%') => {
            let format = Formatter::header(text, at, report)?;
            match format.literal() {
                Some(literal) => fixed(literal.as_bytes(), report),
                None => Some(Value::Format(format)),
            }
        }
        _ => fixed(bytes, report),
    }
}

fn header_name(name: &str, at: &At<'_>, report: &mut Report) -> Option<HeaderName> {
    if !is_modifiable(name) {
        report.error(
            at,
            format!("\"{name}\""),
            "pseudo-headers and host cannot be changed here; use host_rewrite or prefix_rewrite of the route",
        );
        return None;
    }
    let parsed = HeaderName::from_bytes(name.as_bytes()).ok();
    if parsed.is_none() {
        report.error(at, format!("\"{name}\""), "give a valid header name");
    }
    parsed
}
