//! Custom tags of log entries. Compiled on the control thread, written on workers.
//! Source: `envoy/type/tracing/v3/custom_tag.proto`.

use nuncio_core::diag::{At, Report};
use nuncio_format::{FormatContext, Formatter};
use nuncio_proto::envoy::r#type::metadata::v3::{metadata_key::path_segment::Segment, metadata_kind::Kind};
use nuncio_proto::envoy::r#type::tracing::v3::{CustomTag, custom_tag::Type};

#[derive(Debug)]
struct Tag {
    name: String,
    value: Formatter,
    default: String,
}

/// Compiled tags.
#[derive(Debug, Default)]
pub struct Tags(Box<[Tag]>);

impl Tags {
    /// Compiles `tags`; none means refused.
    pub fn compile(tags: &[CustomTag], at: &At<'_>, report: &mut Report) -> Option<Self> {
        let compiled: Box<[_]> = tags.iter().enumerate().filter_map(|(i, t)| Tag::compile(t, &at.index(i), report)).collect();
        (compiled.len() == tags.len()).then_some(Self(compiled))
    }
    /// Calls `put` with each tag that has a value.
    pub fn write(&self, cx: &FormatContext<'_>, mut put: impl FnMut(&str, String)) {
        for tag in &self.0 {
            let mut text = String::new();
            tag.value.format(cx, &mut text);
            if text.is_empty() {
                text.clone_from(&tag.default);
            }
            if !text.is_empty() {
                put(&tag.name, text);
            }
        }
    }
}

/// Text that means itself in a format.
fn literal(text: &str) -> String {
    text.replace('%', "%%")
}

impl Tag {
    fn compile(tag: &CustomTag, at: &At<'_>, report: &mut Report) -> Option<Self> {
        if tag.tag.is_empty() {
            report.error(&at.field("tag"), "an empty name", "name the tag");
            return None;
        }
        let (format, default) = match &tag.r#type {
            Some(Type::Literal(l)) => (literal(&l.value), String::new()),
            Some(Type::Environment(e)) => {
                let value = std::env::var(&e.name).ok().filter(|v| !v.is_empty());
                (literal(value.as_ref().unwrap_or(&e.default_value)), String::new())
            }
            Some(Type::RequestHeader(h)) => (format!("%REQ({})%", h.name), h.default_value.clone()),
            Some(Type::Value(format)) => (format.clone(), String::new()),
            Some(Type::Metadata(m)) => {
                let operator = match m.kind.as_ref().and_then(|k| k.kind.as_ref()) {
                    Some(Kind::Request(_)) => "DYNAMIC_METADATA(",
                    Some(Kind::Route(_)) => "METADATA(ROUTE:",
                    Some(Kind::Cluster(_)) => "METADATA(CLUSTER:",
                    Some(Kind::Host(_)) => "METADATA(UPSTREAM_HOST:",
                    None => {
                        report.error(&at.field("metadata").field("kind"), "nothing", "say whose metadata it is");
                        return None;
                    }
                };
                let key = m.metadata_key.clone().unwrap_or_default();
                let mut path = key.key;
                for segment in key.path {
                    match segment.segment {
                        Some(Segment::Key(name)) if !name.contains([':', ')']) => {
                            path.push(':');
                            path.push_str(&name);
                        }
                        other => {
                            report.unsupported(&at.field("metadata").field("metadata_key"), format_args!("path segment {other:?}"));
                            return None;
                        }
                    }
                }
                (format!("%{operator}{path})%"), m.default_value.clone())
            }
            None => {
                report.error(at, "a tag without value", "set literal, environment, request_header, metadata or value");
                return None;
            }
        };
        Some(Self { name: tag.tag.clone(), value: Formatter::header(&format, at, report)?, default })
    }
}
