//! Values of CEL at run time: borrowed from the stream where they can be. Workers only.

use crate::peer::Peer;
use nuncio_core::filter_state::{FilterState, StateObject};
use nuncio_core::{Headers, RequestHead, ResponseHead};
use nuncio_proto::Struct;
use nuncio_proto::envoy::config::core::v3::{Metadata, Node};
use prost_types::value::Kind;
use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::rc::Rc;
use std::sync::Arc;

use super::attributes::{Attributes, Root};
use super::time;

/// A value.
#[derive(Clone, Debug)]
pub enum Value<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    Str(Cow<'a, str>),
    Bytes(Cow<'a, [u8]>),
    /// Nanoseconds.
    Duration(i128),
    /// Nanoseconds since 1970.
    Time(i128),
    List(Vec<Value<'a>>),
    Map(Map<'a>),
    /// The type of a value, by its name.
    Type(&'static str),
}

/// A map that is read in place.
#[derive(Clone, Debug)]
pub enum Map<'a> {
    Root(Root),
    Request(&'a RequestHead),
    Response(&'a ResponseHead),
    Trailers(&'a Headers),
    Struct(&'a Struct),
    /// A `Metadata` message: its one field that matters is `filter_metadata`.
    Metadata(&'a Metadata),
    FilterMetadata(&'a BTreeMap<String, Struct>),
    /// Dynamic metadata as the message `Metadata`.
    Dynamic(&'a BTreeMap<String, Struct>),
    Node(&'a Node),
    /// Filter state of a stream and of what is behind it.
    State(&'a FilterState),
    Peer(Arc<Peer>),
    PeerLabels(Arc<Peer>),
    Object(Object),
    /// A map literal: no key is there twice.
    Literal(Rc<Vec<(Value<'a>, Value<'a>)>>),
}

/// Any other object of filter state.
#[derive(Clone)]
pub struct Object(Arc<dyn StateObject>);
impl std::fmt::Debug for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Object")
    }
}

/// An expression failed: a key is missing, or a type is wrong.
#[derive(Debug)]
pub struct Failed;

impl<'a> Value<'a> {
    /// Text that is borrowed.
    pub fn text(s: &'a str) -> Self {
        Self::Str(Cow::Borrowed(s))
    }
    /// Header bytes: text if they are UTF-8.
    pub fn header(bytes: Cow<'a, [u8]>) -> Self {
        match bytes {
            Cow::Borrowed(b) => std::str::from_utf8(b).map_or(Self::Bytes(Cow::Borrowed(b)), |s| Self::Str(Cow::Borrowed(s))),
            Cow::Owned(b) => String::from_utf8(b).map_or_else(|e| Self::Bytes(Cow::Owned(e.into_bytes())), |s| Self::Str(Cow::Owned(s))),
        }
    }
    /// A protobuf value.
    pub fn json(value: &'a nuncio_proto::Value) -> Self {
        match &value.kind {
            None | Some(Kind::NullValue(_)) => Self::Null,
            Some(Kind::BoolValue(b)) => Self::Bool(*b),
            Some(Kind::NumberValue(n)) => Self::Double(*n),
            Some(Kind::StringValue(s)) => Self::text(s),
            Some(Kind::StructValue(s)) => Self::Map(Map::Struct(s)),
            Some(Kind::ListValue(l)) => Self::List(l.values.iter().map(Self::json).collect()),
        }
    }
    /// Equality; values of different kinds differ, but numbers compare by value.
    pub fn equals(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Null, Self::Null) => true,
            (Self::Bool(a), Self::Bool(b)) => a == b,
            (Self::Str(a), Self::Str(b)) => a == b,
            (Self::Bytes(a), Self::Bytes(b)) => a == b,
            (Self::List(a), Self::List(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.equals(b)),
            (Self::Type(a), Self::Type(b)) => a == b,
            (Self::Map(a), Self::Map(b)) => a.equals(b),
            _ => self.order(other) == Some(Ordering::Equal),
        }
    }
    /// Order; none if these cannot be ordered.
    pub fn order(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Bool(a), Self::Bool(b)) => Some(a.cmp(b)),
            (Self::Str(a), Self::Str(b)) => Some(a.cmp(b)),
            (Self::Bytes(a), Self::Bytes(b)) => Some(a.cmp(b)),
            (Self::Duration(a), Self::Duration(b)) => Some(a.cmp(b)),
            (Self::Time(a), Self::Time(b)) => Some(a.cmp(b)),
            (Self::Double(a), _) => a.partial_cmp(&other.number()?),
            (_, Self::Double(b)) => self.number()?.partial_cmp(b),
            _ => Some(self.integer()?.cmp(&other.integer()?)),
        }
    }
    fn number(&self) -> Option<f64> {
        match self {
            Self::Int(v) => Some(*v as f64),
            Self::Uint(v) => Some(*v as f64),
            Self::Double(v) => Some(*v),
            _ => None,
        }
    }
    fn integer(&self) -> Option<i128> {
        match self {
            Self::Int(v) => Some(i128::from(*v)),
            Self::Uint(v) => Some(i128::from(*v)),
            _ => None,
        }
    }
    /// The name of its type.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Null => "null_type",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Uint(_) => "uint",
            Self::Double(_) => "double",
            Self::Str(_) => "string",
            Self::Bytes(_) => "bytes",
            Self::Duration(_) => "google.protobuf.Duration",
            Self::Time(_) => "google.protobuf.Timestamp",
            Self::List(_) => "list",
            Self::Map(_) => "map",
            Self::Type(_) => "type",
        }
    }
    /// What a copy of it costs: bytes of a text, or elements of a list.
    pub fn length(&self) -> usize {
        match self {
            Self::Str(s) => s.len(),
            Self::Bytes(b) => b.len(),
            Self::List(list) => list.len().saturating_mul(size_of::<Value<'_>>()),
            _ => 0,
        }
    }
    /// The text that Envoy's `Expr::print` gives.
    pub fn print(&self, out: &mut String) {
        let _ = match self {
            Self::Null => out.write_str("NULL"),
            Self::Bool(v) => write!(out, "{v}"),
            Self::Int(v) => write!(out, "{v}"),
            Self::Uint(v) => write!(out, "{v}"),
            Self::Double(v) => out.write_str(&general(*v)),
            Self::Str(v) => out.write_str(v),
            Self::Bytes(v) => out.write_str(&String::from_utf8_lossy(v)),
            Self::Duration(v) => out.write_str(&time::print_span(*v)),
            Self::Time(v) => out.write_str(&time::print_time(*v)),
            Self::List(_) => out.write_str("CelList value"),
            Self::Map(_) => out.write_str("CelMap value"),
            Self::Type(_) => out.write_str("CelType value"),
        };
    }
}

impl<'a> Map<'a> {
    /// The value of `key`; a failure if there is none.
    pub fn get(&self, key: &str, attributes: &Attributes<'a>) -> Result<Value<'a>, Failed> {
        let header = |headers: &'a Headers| {
            let name = http::HeaderName::from_bytes(key.as_bytes()).map_err(|_| Failed)?;
            nuncio_core::message::joined(headers, &name).map(Value::header).ok_or(Failed)
        };
        match self {
            Self::Root(root) => attributes.get(super::attributes::attribute(*root, key).ok_or(Failed)?),
            Self::Request(head) => {
                let key = nuncio_core::HeaderKey::parse(key).ok_or(Failed)?;
                head.header(&key).map(Value::header).ok_or(Failed)
            }
            Self::Response(head) => match key {
                ":status" => Ok(Value::Str(Cow::Owned(head.status.as_str().to_string()))),
                _ => header(&head.headers),
            },
            Self::Trailers(headers) => header(headers),
            Self::Struct(fields) => fields.fields.get(key).map(Value::json).ok_or(Failed),
            Self::Metadata(metadata) if key == "filter_metadata" => Ok(Value::Map(Map::FilterMetadata(&metadata.filter_metadata))),
            Self::Metadata(_) => Err(Failed),
            Self::Dynamic(all) if key == "filter_metadata" => Ok(Value::Map(Map::FilterMetadata(all))),
            Self::Dynamic(_) => Err(Failed),
            Self::FilterMetadata(all) => all.get(key).map(|s| Value::Map(Map::Struct(s))).ok_or(Failed),
            Self::Node(node) => match key {
                "id" => Ok(Value::text(&node.id)),
                "cluster" => Ok(Value::text(&node.cluster)),
                "metadata" => node.metadata.as_ref().map(|m| Value::Map(Map::Struct(m))).ok_or(Failed),
                _ => Err(Failed),
            },
            Self::State(state) => {
                let object = state.get(key).cloned().or_else(|| attributes.info.connection.filter_state.borrow().get(key).cloned());
                object.map(state_value).ok_or(Failed)
            }
            Self::Peer(peer) if key == "labels" => Ok(Value::Map(Map::PeerLabels(peer.clone()))),
            Self::Peer(peer) => match peer.get(key).filter(|v| !v.is_empty()) {
                Some(value) => Ok(Value::Str(Cow::Owned(value.to_string()))),
                None => Err(Failed),
            },
            Self::PeerLabels(peer) => peer.label(key).map(|v| Value::Str(Cow::Owned(v.to_string()))).ok_or(Failed),
            Self::Literal(_) => self.find(&Value::Str(Cow::Owned(key.to_string())), attributes),
            Self::Object(object) => object.0.field(key).map(|v| Value::Str(Cow::Owned(v))).ok_or(Failed),
        }
    }
    /// The value of `key`, of whatever type; a failure if there is none.
    pub fn find(&self, key: &Value<'a>, attributes: &Attributes<'a>) -> Result<Value<'a>, Failed> {
        match (self, key) {
            (Self::Literal(entries), key) => entries.iter().find(|(k, _)| k.equals(key)).map(|(_, v)| v.clone()).ok_or(Failed),
            (_, Value::Str(key)) => self.get(key, attributes),
            _ => Err(Failed),
        }
    }
    /// Its entries, where they can be told.
    pub fn entries(&self) -> Option<Vec<(Value<'a>, Value<'a>)>> {
        Some(match self {
            Self::Literal(entries) => entries.to_vec(),
            Self::Struct(fields) => fields.fields.iter().map(|(k, v)| (Value::text(k), Value::json(v))).collect(),
            Self::FilterMetadata(all) => all.iter().map(|(k, v)| (Value::text(k), Value::Map(Map::Struct(v)))).collect(),
            Self::PeerLabels(peer) => {
                let text = |s: &str| Value::Str(Cow::Owned(s.to_string()));
                peer.labels.iter().map(|(k, v)| (text(k), text(v))).collect()
            }
            _ => return None,
        })
    }
    /// Equality of what is in them.
    fn equals(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Request(a), Self::Request(b)) => std::ptr::eq(*a, *b),
            (Self::Response(a), Self::Response(b)) => std::ptr::eq(*a, *b),
            (Self::Trailers(a), Self::Trailers(b)) => std::ptr::eq(*a, *b),
            (Self::Struct(a), Self::Struct(b)) => a == b,
            _ => match (self.entries(), other.entries()) {
                (Some(a), Some(b)) => {
                    a.len() == b.len() && a.iter().all(|(key, value)| b.iter().any(|(k, v)| k.equals(key) && v.equals(value)))
                }
                _ => false,
            },
        }
    }
    /// Number of entries, where it can be told.
    pub fn size(&self) -> Option<usize> {
        match self {
            Self::Request(head) => Some(head.headers.len()),
            Self::Response(head) => Some(head.headers.len()),
            Self::Trailers(headers) => Some(headers.len()),
            Self::Literal(entries) => Some(entries.len()),
            Self::Struct(fields) => Some(fields.fields.len()),
            Self::FilterMetadata(all) => Some(all.len()),
            Self::PeerLabels(peer) => Some(peer.labels.len()),
            _ => None,
        }
    }
}

fn state_value(object: Arc<dyn StateObject>) -> Value<'static> {
    if let Some(peer) = object.as_any().downcast_ref::<crate::peer::PeerState>() {
        return Value::Map(Map::Peer(peer.0.clone()));
    }
    match object.as_string() {
        Some(text) => Value::Str(Cow::Owned(text)),
        None => Value::Map(Map::Object(Object(object))),
    }
}

/// C's `%g`: six significant digits without trailing zeros.
fn general(value: f64) -> String {
    if !value.is_finite() {
        return if value.is_nan() {
            "nan".into()
        } else if value > 0.0 {
            "inf".into()
        } else {
            "-inf".into()
        };
    }
    let scientific = format!("{value:.5e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    let trim = |s: &str| if s.contains('.') { s.trim_end_matches('0').trim_end_matches('.').to_string() } else { s.to_string() };
    if (-4..6).contains(&exponent) {
        let decimals = usize::try_from(5 - exponent).unwrap_or_default();
        trim(&format!("{value:.decimals$}"))
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        format!("{}e{sign}{:02}", trim(mantissa), exponent.abs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_print_as_in_c() {
        for (value, text) in
            [(0.0, "0"), (1.5, "1.5"), (200.0, "200"), (1e21, "1e+21"), (0.00001, "1e-05"), (123456.7, "123457"), (-2.25, "-2.25")]
        {
            assert_eq!(general(value), text);
        }
    }
}
