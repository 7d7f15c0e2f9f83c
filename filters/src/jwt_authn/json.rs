//! JSON objects of tokens, read straight into the `Struct` that dynamic metadata holds. Stricter than plain JSON where a lax reader
//! can be fooled: a name that comes twice is refused, and so is nesting that goes too deep. Workers.

use nuncio_proto::{Struct, Value};
use prost_types::{ListValue, value::Kind};
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;

/// Nesting that is followed, protobuf's own limit.
const DEPTH: u8 = 100;

/// An object and nothing after it; none if the text is anything else.
pub fn object(text: &[u8]) -> Option<Struct> {
    let mut reader = serde_json::Deserializer::from_slice(text);
    let value = Seed(DEPTH).deserialize(&mut reader).ok()?;
    reader.end().ok()?;
    match value.kind {
        Some(Kind::StructValue(object)) => Some(object),
        _ => None,
    }
}

/// Compact JSON of a value. Numbers without a fraction are written without one.
pub fn text(value: &Value) -> String {
    to_json(value).to_string()
}

fn to_json(value: &Value) -> serde_json::Value {
    match &value.kind {
        None | Some(Kind::NullValue(_)) => serde_json::Value::Null,
        Some(Kind::BoolValue(b)) => (*b).into(),
        // 2^53: up to here a double says exactly which integer it is.
        Some(Kind::NumberValue(n)) if n.fract() == 0.0 && n.abs() <= 9_007_199_254_740_992.0 => (*n as i64).into(),
        Some(Kind::NumberValue(n)) => (*n).into(),
        Some(Kind::StringValue(s)) => s.as_str().into(),
        Some(Kind::ListValue(list)) => list.values.iter().map(to_json).collect(),
        Some(Kind::StructValue(object)) => object.fields.iter().map(|(k, v)| (k.clone(), to_json(v))).collect(),
    }
}

struct Seed(u8);

impl<'de> DeserializeSeed<'de> for Seed {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_any(self)
    }
}

fn value<E>(kind: Kind) -> Result<Value, E> {
    Ok(Value { kind: Some(kind) })
}

impl<'de> Visitor<'de> for Seed {
    type Value = Value;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        value(Kind::NullValue(0))
    }
    fn visit_bool<E>(self, b: bool) -> Result<Value, E> {
        value(Kind::BoolValue(b))
    }
    fn visit_u64<E>(self, n: u64) -> Result<Value, E> {
        value(Kind::NumberValue(n as f64))
    }
    fn visit_i64<E>(self, n: i64) -> Result<Value, E> {
        value(Kind::NumberValue(n as f64))
    }
    fn visit_f64<E>(self, n: f64) -> Result<Value, E> {
        value(Kind::NumberValue(n))
    }
    fn visit_str<E>(self, s: &str) -> Result<Value, E> {
        value(Kind::StringValue(s.to_string()))
    }
    fn visit_string<E>(self, s: String) -> Result<Value, E> {
        value(Kind::StringValue(s))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let depth = self.0.checked_sub(1).ok_or_else(|| A::Error::custom("nested too deep"))?;
        let mut values = Vec::new();
        while let Some(item) = items.next_element_seed(Seed(depth))? {
            values.push(item);
        }
        value(Kind::ListValue(ListValue { values }))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let depth = self.0.checked_sub(1).ok_or_else(|| A::Error::custom("nested too deep"))?;
        let mut fields = BTreeMap::new();
        while let Some(name) = entries.next_key::<String>()? {
            let item = entries.next_value_seed(Seed(depth))?;
            match fields.entry(name) {
                Entry::Vacant(free) => free.insert(item),
                Entry::Occupied(_) => return Err(A::Error::custom("a name comes twice")),
            };
        }
        value(Kind::StructValue(Struct { fields }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_only() {
        assert_eq!(object(br#"{"a":1,"b":["x",null,true],"c":{"d":-1.5}}"#).map(|s| s.fields.len()), Some(3));
        for bad in [
            "",
            "[]",
            "1",
            "{",
            r#"{"a":1}x"#,
            r#"{"a":1,"a":2}"#,
            r#"{"a":{"b":1,"b":1}}"#,
            "{'a':1}",
            "{\"a\":\"\u{1}\"}",
            "{\"a\":1e999}",
        ] {
            assert_eq!(object(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(object(b"{\"a\":\"\xff\"}"), None);
    }

    #[test]
    fn nesting_is_bounded() {
        let nested = |n: usize| format!("{{\"a\":{}{}}}", "[".repeat(n), "]".repeat(n));
        assert!(object(nested(99).as_bytes()).is_some());
        assert!(object(nested(100).as_bytes()).is_none());
        assert!(object(nested(100_000).as_bytes()).is_none());
    }

    #[test]
    fn writes_compactly() {
        let source = r#"{"a":[1,2.5,"x"],"b":{"c":null}}"#;
        assert_eq!(text(&Value { kind: object(source.as_bytes()).map(Kind::StructValue) }), source);
    }
}
