//! TypedStruct: an extension's configuration as untyped JSON with a type name beside it. Istio's bootstrap and EnvoyFilter
//! use it. Called for every extension that is unpacked, on the control thread.

use std::borrow::Cow;

use prost::Message;
use prost_types::value::Kind;
use serde_json::{Map, Number, Value};

use super::read::{UnknownFields, from_json};
use crate::typed::Typed;

/// The message that the wire bytes of a `xds.type.v3.TypedStruct` or `udpa.type.v1.TypedStruct` stand for. Fields that the
/// message does not have are ignored, as Envoy does; values of the wrong type and unknown types are errors that say which.
/// Hold [`super::Descriptors::shared`] around a batch of calls.
pub fn typed_struct(bytes: &[u8]) -> Result<Typed<'static>, String> {
    // Both TypedStruct messages have the same fields.
    let typed = crate::xds::r#type::v3::TypedStruct::decode(bytes).map_err(|e| format!("TypedStruct cannot be decoded: {e}"))?;
    let name = typed.type_url.rsplit('/').next().unwrap_or_default();
    if name.is_empty() {
        return Err("TypedStruct names no type: set type_url".to_string());
    }
    let value = typed.value.map_or_else(|| Value::Object(Map::new()), object);
    let read = from_json(name, &value, UnknownFields::Ignore).map_err(|problems| format!("TypedStruct of {name}: {problems}"))?;
    Ok(Typed { name: name.to_string(), value: Cow::Owned(read.value) })
}

/// prost has limited the depth.
fn object(fields: prost_types::Struct) -> Value {
    Value::Object(fields.fields.into_iter().map(|(key, value)| (key, plain(value))).collect())
}

fn plain(value: prost_types::Value) -> Value {
    match value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(b)) => Value::Bool(b),
        Some(Kind::StringValue(s)) => Value::String(s),
        Some(Kind::NumberValue(f)) => Number::from_f64(f).map_or(Value::Null, Value::Number),
        Some(Kind::StructValue(fields)) => object(fields),
        Some(Kind::ListValue(list)) => Value::Array(list.values.into_iter().map(plain).collect()),
    }
}
