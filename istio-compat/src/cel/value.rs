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
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::attributes::{Attributes, Root};

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
    Duration(Duration),
    Time(SystemTime),
    List(Vec<Value<'a>>),
    Map(Map<'a>),
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
    /// The text that Envoy's `Expr::print` gives.
    pub fn print(&self, out: &mut String) {
        let _ = match self {
            Self::Null => out.write_str("null_type value"),
            Self::Bool(v) => write!(out, "{v}"),
            Self::Int(v) => write!(out, "{v}"),
            Self::Uint(v) => write!(out, "{v}"),
            Self::Double(v) => out.write_str(&general(*v)),
            Self::Str(v) => out.write_str(v),
            Self::Bytes(v) => out.write_str(&String::from_utf8_lossy(v)),
            Self::Duration(v) => out.write_str(&duration(*v)),
            Self::Time(v) => out.write_str(&time(*v)),
            Self::List(_) => out.write_str("list value"),
            Self::Map(_) => out.write_str("map value"),
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
            Self::Object(object) => object.0.field(key).map(|v| Value::Str(Cow::Owned(v))).ok_or(Failed),
        }
    }
    /// Number of entries, where it can be told.
    pub fn size(&self) -> Option<usize> {
        match self {
            Self::Request(head) => Some(head.headers.len()),
            Self::Response(head) => Some(head.headers.len()),
            Self::Trailers(headers) => Some(headers.len()),
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

/// As absl's `FormatDuration`: `1h2m3.5s`, `10ms`, `0`.
fn duration(value: Duration) -> String {
    let nanos = value.as_nanos();
    let part = |unit: u128, name: &str| {
        let text = format!("{}.{:09}", nanos / unit, (nanos % unit) * 1_000_000_000 / unit);
        format!("{}{name}", text.trim_end_matches('0').trim_end_matches('.'))
    };
    match nanos {
        0 => "0".to_string(),
        1..1_000 => part(1, "ns"),
        1_000..1_000_000 => part(1_000, "us"),
        1_000_000..1_000_000_000 => part(1_000_000, "ms"),
        _ => {
            let seconds = value.as_secs();
            let mut out = String::new();
            if seconds >= 3600 {
                let _ = write!(out, "{}h", seconds / 3600);
            }
            if seconds % 3600 >= 60 {
                let _ = write!(out, "{}m", seconds % 3600 / 60);
            }
            let rest = Duration::new(seconds % 60, value.subsec_nanos());
            if !rest.is_zero() {
                let text = format!("{}.{:09}", rest.as_secs(), rest.subsec_nanos());
                let _ = write!(out, "{}s", text.trim_end_matches('0').trim_end_matches('.'));
            }
            out
        }
    }
}

/// RFC 3339 in UTC with as many fractional digits as there are.
fn time(value: SystemTime) -> String {
    let since = value.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (days, seconds) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // Days to civil date, counted in eras of 400 years that begin in March.
    let z = days + 719_468;
    let era = z / 146_097;
    let day_of_era = z % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let fraction = format!(".{:09}", since.subsec_nanos());
    let fraction = fraction.trim_end_matches('0').trim_end_matches('.');
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}{fraction}+00:00", seconds / 3600, seconds % 3600 / 60, seconds % 60)
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

    #[test]
    fn times_print_as_in_envoy() {
        assert_eq!(duration(Duration::from_millis(10)), "10ms");
        assert_eq!(duration(Duration::from_micros(3_661_500_000)), "1h1m1.5s");
        assert_eq!(duration(Duration::from_secs(3600)), "1h");
        assert_eq!(duration(Duration::ZERO), "0");
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(1_709_210_096_250);
        assert_eq!(time(at), "2024-02-29T12:34:56.25+00:00");
    }
}
