//! Metadata of the stream, route, cluster, host and listener, and filter state.

use super::Written;
use crate::FormatContext;
use crate::json;
use nuncio_core::views::filter_metadata;
use nuncio_matcher::metadata::value_at;
use nuncio_proto::Struct;
use prost_types::value::Kind;

/// Whose metadata.
#[derive(Clone, Copy, Debug)]
pub(crate) enum MetadataOf {
    Dynamic,
    Cluster,
    Route,
    UpstreamHost,
    Listener,
    FilterChain,
    VirtualHost,
}

impl MetadataOf {
    pub fn write(self, cx: &FormatContext<'_>, namespace: &str, path: &[Box<str>], out: &mut Vec<u8>) -> Written {
        let info = cx.info;
        let upstream = info.upstream.as_deref();
        let found = match self {
            Self::Dynamic => match info.metadata(namespace) {
                Some(found) => Some(found),
                // What listener filters left belongs to a TCP stream; Envoy does not show it to requests.
                None if cx.request.is_none() => {
                    return info.connection.metadata.borrow().get(namespace).map_or(Written::Missing, |s| show(s, path, out));
                }
                None => None,
            },
            Self::Cluster => filter_metadata(upstream.and_then(|u| u.cluster.as_ref()?.metadata()), namespace),
            Self::Route => filter_metadata(cx.route.and_then(|r| r.metadata()), namespace),
            Self::VirtualHost => filter_metadata(cx.route.and_then(|r| r.virtual_host_metadata()), namespace),
            Self::UpstreamHost => filter_metadata(upstream.and_then(|u| u.host.as_ref()?.metadata()), namespace),
            Self::Listener => filter_metadata(info.connection.listener_metadata.as_deref(), namespace),
            Self::FilterChain => filter_metadata(info.connection.filter_chain_metadata.as_deref(), namespace),
        };
        found.map_or(Written::Missing, |s| show(s, path, out))
    }
}

/// Strings appear as they are, everything else as JSON.
fn show(fields: &Struct, path: &[Box<str>], out: &mut Vec<u8>) -> Written {
    if path.is_empty() {
        json::object(out, fields);
        return Written::Json;
    }
    let Some(value) = value_at(fields, path) else { return Written::Missing };
    match &value.kind {
        None | Some(Kind::NullValue(_)) => Written::Missing,
        Some(Kind::StringValue(text)) => {
            out.extend_from_slice(text.as_bytes());
            Written::Text
        }
        Some(_) => {
            json::value(out, value);
            Written::Json
        }
    }
}

/// How `%FILTER_STATE%` is written.
#[derive(Clone, Debug)]
pub(crate) enum StateForm {
    Typed,
    Plain,
    Field(Box<str>),
}

impl StateForm {
    pub fn write(&self, cx: &FormatContext<'_>, upstream: bool, key: &str, out: &mut Vec<u8>) -> Written {
        let connection;
        let object = if upstream {
            cx.info.upstream.as_deref().and_then(|u| u.filter_state.get(key))
        } else if let Some(found) = cx.info.filter_state.get(key) {
            Some(found)
        } else {
            connection = cx.info.connection.filter_state.borrow();
            connection.get(key)
        };
        let Some(object) = object else { return Written::Missing };
        let (text, written) = match self {
            Self::Plain => (object.as_string(), Written::Text),
            Self::Field(name) => (object.field(name), Written::Text),
            Self::Typed => (object.as_json(), Written::Json),
        };
        match (text, self) {
            (Some(text), _) => {
                out.extend_from_slice(text.as_bytes());
                written
            }
            // A string is a JSON string.
            (None, Self::Typed) => match object.as_string() {
                Some(text) => {
                    json::string(out, text.as_bytes());
                    Written::Json
                }
                None => Written::Missing,
            },
            (None, _) => Written::Missing,
        }
    }
}
