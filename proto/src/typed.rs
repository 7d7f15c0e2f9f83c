//! Unpacking of `Any` extension configuration, TypedStruct included. Called by every compile function on the control thread.

use crate::Any;
use std::borrow::Cow;

/// Prefix of type URLs.
pub const PREFIX: &str = "type.googleapis.com/";

/// An extension's configuration: message name without prefix, and its wire bytes.
#[derive(Debug)]
pub struct Typed<'a> {
    pub name: String,
    pub value: Cow<'a, [u8]>,
}

/// Unpacks `any`. A `xds.type.v3.TypedStruct` or `udpa.type.v1.TypedStruct` becomes the message that it stands for,
/// unknown fields ignored. Errors name the type and what is wrong with it.
pub fn unpack(any: &Any) -> Result<Typed<'_>, String> {
    let name = any.type_url.rsplit('/').next().unwrap_or_default();
    match name {
        "xds.type.v3.TypedStruct" | "udpa.type.v1.TypedStruct" => crate::json::typed_struct(&any.value),
        _ => Ok(Typed { name: name.to_string(), value: Cow::Borrowed(&any.value) }),
    }
}

/// Unpacks `any` as a `T`; an error names the type that was found instead, or what is wrong with the bytes.
pub fn unpack_as<T: prost::Message + prost::Name + Default>(any: &Any) -> Result<T, String> {
    let typed = unpack(any)?;
    if typed.name != T::full_name() {
        return Err(format!("type {} where {} is expected", typed.name, T::full_name()));
    }
    T::decode(typed.value.as_ref()).map_err(|e| format!("{} cannot be decoded: {e}", typed.name))
}

/// Packs a message.
pub fn pack<T: prost::Message + prost::Name>(message: &T) -> Any {
    Any { type_url: T::type_url(), value: message.encode_to_vec() }
}
