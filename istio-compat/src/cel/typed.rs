//! Values of CEL as JSON, for `%TYPED_CEL(..)%` in JSON formats: as protobuf's JSON mapping has them. Called by workers.

use super::time::print_time;
use super::value::{Map, Value};
use base64::Engine;
use nuncio_core::Headers;
use nuncio_proto::Struct;
use serde_json::{Number, Value as Json, json};
use std::collections::BTreeMap;

/// Lists and maps inside each other; what is deeper is null.
const DEPTH: usize = 32;

const SECOND: i128 = 1_000_000_000;

/// `value` as JSON; none if it has no such form.
pub fn json(value: &Value<'_>) -> Option<Json> {
    within(value, DEPTH)
}

fn within(value: &Value<'_>, depth: usize) -> Option<Json> {
    let depth = depth.checked_sub(1)?;
    Some(match value {
        Value::Null => Json::Null,
        Value::Bool(v) => Json::Bool(*v),
        Value::Int(v) => json!(v),
        Value::Uint(v) => json!(v),
        Value::Double(v) => number(*v),
        Value::Str(v) => Json::String(v.to_string()),
        Value::Bytes(v) => Json::String(base64::engine::general_purpose::STANDARD.encode(v)),
        Value::Duration(nanos) => {
            let sign = if *nanos < 0 { "-" } else { "" };
            Json::String(format!("{sign}{}{}s", nanos.abs() / SECOND, fraction(nanos.abs())))
        }
        Value::Time(nanos) => {
            let whole = print_time(nanos.div_euclid(SECOND) * SECOND);
            Json::String(format!("{}{}Z", whole.trim_end_matches("+00:00"), fraction(nanos.rem_euclid(SECOND))))
        }
        Value::List(items) => Json::Array(items.iter().map(|item| within(item, depth).unwrap_or_default()).collect()),
        Value::Map(map) => Json::Object(entries(map, depth)?.into_iter().collect()),
        Value::Type(_) => return None,
    })
}

fn number(value: f64) -> Json {
    // Whole numbers are written without a point.
    let whole = (value.fract() == 0.0 && value.abs() < 9e15).then_some(value as i64);
    whole.map_or_else(|| Number::from_f64(value).map_or(Json::Null, Json::Number), |whole| json!(whole))
}

/// The fraction of a second with 0, 3, 6 or 9 digits.
fn fraction(nanos: i128) -> String {
    match nanos % SECOND {
        0 => String::new(),
        n if n % 1_000_000 == 0 => format!(".{:03}", n / 1_000_000),
        n if n % 1000 == 0 => format!(".{:06}", n / 1000),
        n => format!(".{n:09}"),
    }
}

/// Members, which are told in the order of their names.
type Members = BTreeMap<String, Json>;

fn fields(all: &Struct, depth: usize) -> Json {
    Json::Object(all.fields.iter().map(|(name, value)| (name.clone(), within(&Value::json(value), depth).unwrap_or_default())).collect())
}

fn headers(all: &Headers, out: &mut Members) {
    for (name, value) in all.iter() {
        let value = String::from_utf8_lossy(value.as_bytes());
        match out.get_mut(name.as_str()) {
            Some(Json::String(before)) => {
                before.push(',');
                before.push_str(&value);
            }
            _ => {
                out.insert(name.as_str().to_string(), Json::String(value.into_owned()));
            }
        }
    }
}

/// The entries of a map that can be told one by one.
fn entries(map: &Map<'_>, depth: usize) -> Option<Members> {
    let mut out = Members::new();
    let mut pseudo = |name: &str, value: &str| {
        if !value.is_empty() {
            out.insert(name.to_string(), Json::String(value.to_string()));
        }
    };
    match map {
        Map::Request(head) => {
            pseudo(":authority", &head.authority);
            pseudo(":path", &head.path);
            pseudo(":method", head.method.as_str());
            pseudo(":scheme", &head.scheme);
            pseudo(":protocol", head.protocol.as_deref().unwrap_or_default());
            headers(&head.headers, &mut out);
        }
        Map::Response(head) => {
            pseudo(":status", head.status.as_str());
            headers(&head.headers, &mut out);
        }
        Map::Trailers(all) => headers(all, &mut out),
        Map::Struct(all) => {
            out.extend(all.fields.iter().map(|(name, v)| (name.clone(), within(&Value::json(v), depth).unwrap_or_default())))
        }
        Map::Metadata(metadata) => filter_metadata(&metadata.filter_metadata, &mut out, depth),
        Map::Dynamic(all) => filter_metadata(all, &mut out, depth),
        Map::FilterMetadata(all) => out.extend(all.iter().map(|(name, all)| (name.clone(), fields(all, depth)))),
        Map::Literal(all) => {
            for (key, value) in all.iter() {
                let mut name = String::new();
                key.print(&mut name);
                out.insert(name, within(value, depth).unwrap_or_default());
            }
        }
        // What is read in place only.
        Map::Root(_) | Map::Node(_) | Map::State(_) | Map::Peer(_) | Map::PeerLabels(_) | Map::Object(_) => return None,
    }
    Some(out)
}

/// The message `Metadata`: without fields if there is nothing in it.
fn filter_metadata(all: &BTreeMap<String, Struct>, out: &mut Members, depth: usize) {
    if !all.is_empty() {
        let all = all.iter().map(|(name, all)| (name.clone(), fields(all, depth)));
        out.insert("filterMetadata".to_string(), Json::Object(all.collect()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_as_protobuf_has_them() {
        for (value, expected) in [
            (Value::Null, "null"),
            (Value::Int(-2), "-2"),
            (Value::Double(2.5), "2.5"),
            (Value::Double(3.0), "3"),
            (Value::text("a\"b"), r#""a\"b""#),
            (Value::Bytes(b"abc".as_slice().into()), r#""YWJj""#),
            (Value::Duration(1_000_250_000), r#""1.000250s""#),
            (Value::Duration(-SECOND), r#""-1s""#),
            (Value::Time(1_709_210_096_250 * 1_000_000), r#""2024-02-29T12:34:56.250Z""#),
            (Value::List(vec![Value::Int(1), Value::text("a")]), r#"[1,"a"]"#),
        ] {
            assert_eq!(json(&value).unwrap().to_string(), expected);
        }
    }
}
