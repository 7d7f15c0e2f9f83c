//! A compiled format: text, or a JSON object. Compiled on the control thread, run on workers.

use crate::FormatContext;
use crate::json;
use crate::op::{self, Extensions, Limited, Written};
use crate::parse::{Token, parse};
use crate::value::{self, ValueSource};
use nuncio_core::diag::{At, Report};
use nuncio_proto::envoy::config::core::v3::substitution_format_string::Format;
use nuncio_proto::envoy::config::core::v3::{DataSource, SubstitutionFormatString, TypedExtensionConfig, data_source::Specifier};
use nuncio_proto::typed;
use nuncio_proto::{Struct, Value};
use prost_types::value::Kind;
use std::cell::RefCell;

/// Envoy's default access log format, newline included.
pub const DEFAULT_FORMAT: &str = concat!(
    "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% %RESPONSE_FLAGS% ",
    "%BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" ",
    "\"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\"\n"
);

/// Text or an operator.
#[derive(Debug)]
enum Segment {
    Text(Box<[u8]>),
    Op(Limited),
}

/// A value of a JSON format.
#[derive(Debug)]
enum Node {
    /// JSON that is always the same.
    Raw(Box<[u8]>),
    Null,
    /// One operator alone: typed.
    Op(Limited),
    /// A string of text (escaped already) and operators.
    Concat(Box<[Segment]>),
    /// Members, each behind its `"key":`.
    Object(Box<[(Box<[u8]>, Node)]>),
    Array(Box<[Node]>),
}

#[derive(Debug)]
enum Body {
    Text(Box<[Segment]>),
    Json(Node),
}

/// A compiled format: text or JSON. Shared by all workers.
#[derive(Debug)]
pub struct Formatter {
    body: Body,
    omit_empty: bool,
    content_type: Box<str>,
    literal: Option<Box<str>>,
}

/// Compiles text into segments, constants merged into the text around them. `escape` makes text JSON.
fn segments(format: &str, extensions: Extensions<'_>, escape: bool) -> Result<Vec<Segment>, String> {
    let mut all: Vec<Segment> = Vec::new();
    let push_text = |all: &mut Vec<Segment>, text: &str| {
        let mut bytes = match all.pop() {
            Some(Segment::Text(before)) => before.into_vec(),
            Some(other) => {
                all.push(other);
                Vec::new()
            }
            None => Vec::new(),
        };
        if escape {
            json::escape(&mut bytes, text.as_bytes())
        } else {
            bytes.extend_from_slice(text.as_bytes())
        }
        all.push(Segment::Text(bytes.into()));
    };
    for token in parse(format)? {
        match token {
            Token::Text(text) => push_text(&mut all, text),
            Token::Command(command) => {
                let limited = op::compile(&command, extensions)?;
                match limited.op.constant() {
                    Some(text) if limited.length.is_none() => push_text(&mut all, text),
                    _ => all.push(Segment::Op(limited)),
                }
            }
        }
    }
    Ok(all)
}

/// Formatter extensions as configured.
#[derive(Default)]
struct Named {
    req_without_query: bool,
    sources: Vec<Box<dyn ValueSource>>,
}

impl Named {
    fn extensions(&self) -> Extensions<'_> {
        Extensions { req_without_query: self.req_without_query, sources: &self.sources }
    }
}

/// Compiles formatter extensions; those that are unknown here are refused.
fn named(configs: &[TypedExtensionConfig], at: &At<'_>, report: &mut Report) -> Option<Named> {
    let mut found = Named::default();
    let mut complete = true;
    for (i, config) in configs.iter().enumerate() {
        let at = at.index(i);
        let unpacked = match config.typed_config.as_ref().map(typed::unpack) {
            Some(Ok(unpacked)) => unpacked,
            Some(Err(e)) => {
                report.error(&at, e, "correct the typed_config");
                complete = false;
                continue;
            }
            None => {
                report.error(&at, format!("formatter {:?} without typed_config", config.name), "give its configuration");
                complete = false;
                continue;
            }
        };
        match unpacked.name.as_ref() {
            "envoy.extensions.formatter.req_without_query.v3.ReqWithoutQuery" => found.req_without_query = true,
            // METADATA and CEL are built in.
            "envoy.extensions.formatter.metadata.v3.Metadata" | "envoy.extensions.formatter.cel.v3.Cel" => {}
            other => match value::factory(other) {
                Some(factory) => match factory.compile(other, unpacked.value.as_ref(), &at, report) {
                    Some(source) => found.sources.push(source),
                    None => complete = false,
                },
                None => {
                    report.unsupported(&at, format_args!("formatter {:?} ({other})", config.name));
                    complete = false;
                }
            },
        }
    }
    complete.then_some(found)
}

/// The text of `source`; problems are reported.
fn source_text(source: &DataSource, at: &At<'_>, report: &mut Report) -> Option<String> {
    let found = match &source.specifier {
        Some(Specifier::InlineString(text)) => Ok(text.clone()),
        Some(Specifier::InlineBytes(bytes)) => String::from_utf8(bytes.clone()).map_err(|_| "inline_bytes that are not UTF-8".to_string()),
        Some(Specifier::Filename(path)) => std::fs::read_to_string(path).map_err(|e| format!("filename {path:?}: {e}")),
        Some(Specifier::EnvironmentVariable(name)) => std::env::var(name).map_err(|e| format!("environment_variable {name:?}: {e}")),
        None => Err("no source".to_string()),
    };
    if source.watched_directory.is_some() {
        report.warning(
            &at.field("watched_directory"),
            "the format is read once",
            "send the configuration again to change it; Envoy does not watch it either",
        );
    }
    found.map_err(|e| report.error(at, e, "give inline_string, inline_bytes, filename or environment_variable that can be read")).ok()
}

fn invalid(report: &mut Report, at: &At<'_>, error: String) {
    report.error(at, error, "correct the format; %% is a percent sign");
}

impl Node {
    fn compile(value: &Value, extensions: Extensions<'_>, at: &At<'_>, report: &mut Report) -> Option<Self> {
        let raw = |value: &Value| {
            let mut bytes = Vec::new();
            json::value(&mut bytes, value);
            Some(Self::Raw(bytes.into()))
        };
        match &value.kind {
            None | Some(Kind::NullValue(_)) => Some(Self::Null),
            Some(Kind::BoolValue(_) | Kind::NumberValue(_)) => raw(value),
            Some(Kind::StringValue(format)) => Self::string(format, extensions).map_err(|e| invalid(report, at, e)).ok(),
            Some(Kind::StructValue(fields)) => Self::object(fields, extensions, at, report),
            Some(Kind::ListValue(list)) => {
                let items: Vec<_> =
                    list.values.iter().enumerate().filter_map(|(i, v)| Self::compile(v, extensions, &at.index(i), report)).collect();
                (items.len() == list.values.len()).then(|| Self::Array(items.into()))
            }
        }
    }
    fn string(format: &str, extensions: Extensions<'_>) -> Result<Self, String> {
        let mut tokens = parse(format)?;
        if let (1, Some(Token::Command(command))) = (tokens.len(), tokens.pop()) {
            return Ok(Self::Op(op::compile(&command, extensions)?));
        }
        let segments = segments(format, extensions, true)?;
        Ok(match segments.as_slice() {
            [] => Self::Raw(Box::from(*b"\"\"")),
            [Segment::Text(text)] => Self::Raw([b"\"", text.as_ref(), b"\""].concat().into()),
            _ => Self::Concat(segments.into()),
        })
    }
    fn object(fields: &Struct, extensions: Extensions<'_>, at: &At<'_>, report: &mut Report) -> Option<Self> {
        let mut members = Vec::with_capacity(fields.fields.len());
        for (name, value) in &fields.fields {
            let mut key = Vec::new();
            json::string(&mut key, name.as_bytes());
            key.push(b':');
            if let Some(node) = Self::compile(value, extensions, &at.key(name), report) {
                members.push((key.into_boxed_slice(), node));
            }
        }
        (members.len() == fields.fields.len()).then(|| Self::Object(members.into()))
    }
    /// Appends the value. With `omit`, what is missing, null or empty is left out: false, and nothing was appended.
    fn write(&self, cx: &FormatContext<'_>, omit: bool, out: &mut Vec<u8>) -> bool {
        let start = out.len();
        match self {
            Self::Raw(bytes) => out.extend_from_slice(bytes),
            Self::Null if omit => return false,
            Self::Null => out.extend_from_slice(b"null"),
            Self::Op(op) => {
                out.push(b'"');
                match op.write_json(cx, out) {
                    Written::Text => {
                        json::escape_from(out, start + 1);
                        out.push(b'"');
                    }
                    Written::Json => {
                        out.remove(start);
                    }
                    Written::Missing => {
                        out.truncate(start);
                        if omit {
                            return false;
                        }
                        out.extend_from_slice(b"null");
                    }
                }
            }
            Self::Concat(segments) => {
                out.push(b'"');
                for segment in segments {
                    match segment {
                        Segment::Text(text) => out.extend_from_slice(text),
                        Segment::Op(op) => {
                            let from = out.len();
                            if op.write(cx, out) == Written::Missing && !omit {
                                out.push(b'-');
                            }
                            json::escape_from(out, from);
                        }
                    }
                }
                out.push(b'"');
            }
            Self::Object(members) => {
                out.push(b'{');
                let inside = out.len();
                for (key, node) in members {
                    let mark = out.len();
                    if mark > inside {
                        out.push(b',');
                    }
                    out.extend_from_slice(key);
                    if !node.write(cx, omit, out) {
                        out.truncate(mark);
                    }
                }
                if omit && out.len() == inside {
                    out.truncate(start);
                    return false;
                }
                out.push(b'}');
            }
            Self::Array(items) => {
                out.push(b'[');
                let inside = out.len();
                for node in items {
                    let mark = out.len();
                    if mark > inside {
                        out.push(b',');
                    }
                    if !node.write(cx, omit, out) {
                        out.truncate(mark);
                    }
                }
                if omit && out.len() == inside {
                    out.truncate(start);
                    return false;
                }
                out.push(b']');
            }
        }
        true
    }
}

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Formatter {
    /// Compiles a text format such as `%REQ(:PATH)% %RESPONSE_CODE%`. `%%` is a percent sign. Missing values become `-`.
    /// An unknown operator or a wrong argument is an error at `at`.
    pub fn text(format: &str, at: &At<'_>, report: &mut Report) -> Option<Self> {
        Self::text_with(format, &[], false, at, report)
    }
    /// As [`Self::text`], with formatter extensions, and missing values empty if `omit_empty`.
    pub fn text_with(
        format: &str,
        formatters: &[TypedExtensionConfig],
        omit_empty: bool,
        at: &At<'_>,
        report: &mut Report,
    ) -> Option<Self> {
        let named = named(formatters, &at.field("formatters"), report)?;
        let segments = segments(format, named.extensions(), false).map_err(|e| invalid(report, at, e)).ok()?;
        let literal = match segments.as_slice() {
            [] => Some("".into()),
            [Segment::Text(text)] => std::str::from_utf8(text).ok().map(Into::into),
            _ => None,
        };
        Some(Self { body: Body::Text(segments.into()), omit_empty, content_type: "text/plain".into(), literal })
    }
    /// Compiles a JSON format, whose output ends with a newline. Values are typed: numbers stay numbers, missing values are null.
    pub fn json(format: &Struct, formatters: &[TypedExtensionConfig], omit_empty: bool, at: &At<'_>, report: &mut Report) -> Option<Self> {
        let named = named(formatters, &at.field("formatters"), report)?;
        let node = Node::object(format, named.extensions(), at, report)?;
        Some(Self { body: Body::Json(node), omit_empty, content_type: "application/json".into(), literal: None })
    }
    /// Compiles a format of local replies, direct responses and access logs.
    #[allow(deprecated)]
    pub fn compile(config: &SubstitutionFormatString, at: &At<'_>, report: &mut Report) -> Option<Self> {
        // JSON keys are always sorted here, so json_format_options.sort_properties is fulfilled.
        let mut formatter = match &config.format {
            Some(Format::TextFormat(text)) => {
                Self::text_with(text, &config.formatters, config.omit_empty_values, &at.field("text_format"), report)
            }
            Some(Format::TextFormatSource(source)) => {
                let at = at.field("text_format_source");
                let text = source_text(source, &at, report)?;
                Self::text_with(&text, &config.formatters, config.omit_empty_values, &at, report)
            }
            Some(Format::JsonFormat(fields)) => {
                Self::json(fields, &config.formatters, config.omit_empty_values, &at.field("json_format"), report)
            }
            None => {
                report.error(at, "no format", "give text_format, text_format_source or json_format");
                None
            }
        }?;
        if !config.content_type.is_empty() {
            formatter.content_type = config.content_type.as_str().into();
        }
        Some(formatter)
    }
    /// Compiles a header value of `headers_to_add`: as [`Self::text`], but missing values are empty.
    pub fn header(format: &str, at: &At<'_>, report: &mut Report) -> Option<Self> {
        Self::text_with(format, &[], true, at, report)
    }
    /// Appends the result to `out`, as bytes because header values may hold any.
    pub fn write(&self, cx: &FormatContext<'_>, out: &mut Vec<u8>) {
        match &self.body {
            Body::Text(segments) => {
                for segment in segments {
                    match segment {
                        Segment::Text(text) => out.extend_from_slice(text),
                        Segment::Op(op) => {
                            if op.write(cx, out) == Written::Missing && !self.omit_empty {
                                out.push(b'-');
                            }
                        }
                    }
                }
            }
            Body::Json(node) => {
                if !node.write(cx, self.omit_empty, out) {
                    out.extend_from_slice(b"{}");
                }
                out.push(b'\n');
            }
        }
    }
    /// Appends the result to `out`; bytes that are not UTF-8 become U+FFFD.
    pub fn format(&self, cx: &FormatContext<'_>, out: &mut String) {
        SCRATCH.with_borrow_mut(|bytes| {
            bytes.clear();
            self.write(cx, bytes);
            out.push_str(&String::from_utf8_lossy(bytes));
        });
    }
    /// The text, if the format has no operator.
    pub fn literal(&self) -> Option<&str> {
        self.literal.as_deref()
    }
    /// Content type that the format asks for: `SubstitutionFormatString.content_type`, else `application/json` for JSON, else `text/plain`.
    pub fn content_type(&self) -> &str {
        &self.content_type
    }
}
