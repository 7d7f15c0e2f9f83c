//! Protobuf JSON by descriptor: reading (bootstrap, TypedStruct, file sources) and streamed writing (config_dump).
//! Both go straight between JSON and wire bytes. The descriptors are embedded compressed, read lazily for the types at hand,
//! and dropped after use ([`Descriptors::shared`]). Called on the control thread and by tools; nothing here blocks on I/O.

mod jwks;
mod mask;
mod number;
mod problem;
mod read;
mod render;
mod scan;
mod schema;
mod text;
mod time;
mod typed_struct;
mod value;
mod wire;
mod write;

pub use mask::Mask;
pub use problem::{Problem, Problems};
pub use read::{Read, UnknownFields, from_json, parse, parse_text};
pub use render::{Options, Renderer, to_json, write_json};
pub use schema::Descriptors;
pub use text::to_value;
pub use typed_struct::typed_struct;
pub use write::{Pretty, write_string};

/// Lays `over` over `base` as protobuf merges messages: scalars are replaced, messages merged, repeated fields appended, map
/// entries replaced by key. Both are wire bytes of the same message type; that is what `--config-yaml` does to `-c`.
pub fn merge(base: &mut Vec<u8>, over: &[u8]) {
    base.extend_from_slice(over);
}
