//! Values that are written in one go: scalars, and the untyped values of `google.protobuf.Struct`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use prost_types::value::Kind as ValueKind;
use prost_types::{ListValue, Struct, Value};

use super::jwks;
use super::number::{put_double, put_float};
use super::schema::{Descriptors, Field, Kind, TypeId, WellKnown};
use super::wire::{unzigzag, varint};
use super::write::{newline, write_string};

/// What stands for a secret; in base64 where the field is bytes.
pub(crate) const REDACTED: &str = "[redacted]";

/// Writes one scalar that lies at the start of `bytes`, and gives how many bytes it takes; 0 if it is malformed.
pub(crate) fn put_scalar(d: &Descriptors, kind: Kind, bytes: &[u8], out: &mut Vec<u8>) -> usize {
    let fixed64 = || bytes.get(..8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
    let fixed32 = || bytes.get(..4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
    match kind {
        Kind::String => {
            write_string(out, &String::from_utf8_lossy(bytes));
            bytes.len()
        }
        Kind::Bytes => {
            put_base64(bytes, out);
            bytes.len()
        }
        Kind::Double => fixed64().map_or(0, |v| {
            put_double(out, f64::from_bits(v));
            8
        }),
        Kind::Float => fixed32().map_or(0, |v| {
            put_float(out, f32::from_bits(v));
            4
        }),
        Kind::Fixed64 => fixed64().map_or(0, |v| {
            put_quoted(out, v);
            8
        }),
        Kind::Sfixed64 => fixed64().map_or(0, |v| {
            put_quoted(out, v as i64);
            8
        }),
        Kind::Fixed32 => fixed32().map_or(0, |v| {
            put_plain(out, v);
            4
        }),
        Kind::Sfixed32 => fixed32().map_or(0, |v| {
            put_plain(out, v as i32);
            4
        }),
        Kind::Message(_) => 0,
        _ => {
            let Some((v, used)) = varint(bytes) else { return 0 };
            match kind {
                Kind::Int64 => put_quoted(out, v as i64),
                Kind::Uint64 => put_quoted(out, v),
                Kind::Sint64 => put_quoted(out, unzigzag(v)),
                Kind::Sint32 => put_plain(out, unzigzag(v) as i32),
                Kind::Int32 => put_plain(out, v as i32),
                Kind::Uint32 => put_plain(out, v as u32),
                Kind::Bool => out.extend_from_slice(if v != 0 { b"true" } else { b"false" }),
                Kind::Enum(id) => {
                    let descriptor = d.enumeration(id);
                    match descriptor.name_of(v as i32) {
                        _ if descriptor.is_null_value() => out.extend_from_slice(b"null"),
                        Some(name) => write_string(out, name),
                        None => put_plain(out, v as i32),
                    }
                }
                _ => {}
            }
            used
        }
    }
}

/// As [`put_scalar`]; if secrets are to be hidden, without symmetric keys that are written as JSON.
pub(crate) fn put_shown(d: &Descriptors, kind: Kind, bytes: &[u8], redact: bool, out: &mut Vec<u8>) -> usize {
    let json = matches!(kind, Kind::String | Kind::Bytes).then(|| std::str::from_utf8(bytes).ok()).flatten();
    match json.filter(|_| redact).and_then(jwks::redacted) {
        Some(shown) => {
            put_scalar(d, kind, shown.as_bytes(), out);
            bytes.len()
        }
        None => put_scalar(d, kind, bytes, out),
    }
}

/// The default of a field without presence.
pub(crate) fn put_default(d: &Descriptors, kind: Kind, out: &mut Vec<u8>) {
    match kind {
        Kind::String | Kind::Bytes => out.extend_from_slice(b"\"\""),
        Kind::Message(_) => out.extend_from_slice(b"{}"),
        _ => {
            put_scalar(d, kind, &[0; 8], out);
        }
    }
}

/// Whether the scalar at `bytes` is the default of its kind.
pub(crate) fn is_default(kind: Kind, bytes: &[u8]) -> bool {
    match kind {
        Kind::String | Kind::Bytes => bytes.is_empty(),
        Kind::Message(_) => false,
        _ => bytes.iter().all(|b| *b & 0x7f == 0) && (kind.wire_type() == 0 || bytes.iter().all(|b| *b == 0)),
    }
}

/// What is written in place of a sensitive scalar; false if the field is left out instead, which is what Envoy does to numbers.
pub(crate) fn put_redacted(kind: Kind, out: &mut Vec<u8>) -> bool {
    match kind {
        Kind::String => write_string(out, REDACTED),
        Kind::Bytes => put_base64(REDACTED.as_bytes(), out),
        _ => return false,
    }
    true
}

pub(crate) fn put_base64(bytes: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    out.extend_from_slice(STANDARD.encode(bytes).as_bytes());
    out.push(b'"');
}

fn put_plain(out: &mut Vec<u8>, v: impl std::fmt::Display) {
    use std::io::Write;
    // Writing to a Vec does not fail.
    let _ = write!(out, "{v}");
}

fn put_quoted(out: &mut Vec<u8>, v: impl std::fmt::Display) {
    out.push(b'"');
    put_plain(out, v);
    out.push(b'"');
}

/// Writes untyped values. prost has limited their depth.
pub(crate) struct Untyped<'a> {
    pub d: &'a Descriptors,
    pub compact: bool,
    pub redact: bool,
}

/// What the type that a TypedStruct names says about a place in it.
#[derive(Clone, Copy, Default)]
pub(crate) struct Typing<'a> {
    pub message: Option<TypeId>,
    pub field: Option<&'a Field>,
    pub sensitive: bool,
    /// The next object is a map: its keys are no field names.
    pub map: bool,
}

impl Untyped<'_> {
    pub fn put_struct(&self, fields: &Struct, typing: Typing<'_>, level: usize, out: &mut Vec<u8>) {
        // An Any in a TypedStruct names the type of the fields beside its name.
        let named = fields.fields.get("@type").and_then(|v| match &v.kind {
            Some(ValueKind::StringValue(url)) => self.d.find(url.rsplit('/').next().unwrap_or_default()),
            _ => None,
        });
        let message = named.or(typing.message);
        out.push(b'{');
        let mut first = true;
        for (key, value) in &fields.fields {
            let typing = self.typing_of(message, key, typing);
            if self.left_out(value, typing) {
                continue;
            }
            self.separate(&mut first, level + 1, out);
            write_string(out, key);
            out.push(b':');
            if !self.compact {
                out.push(b' ');
            }
            self.put_value(value, typing, level + 1, out);
        }
        self.close(first, b'}', level, out);
    }

    pub fn put_list(&self, list: &ListValue, typing: Typing<'_>, level: usize, out: &mut Vec<u8>) {
        out.push(b'[');
        let mut first = true;
        for value in &list.values {
            if self.left_out(value, typing) {
                continue;
            }
            self.separate(&mut first, level + 1, out);
            self.put_value(value, typing, level + 1, out);
        }
        self.close(first, b']', level, out);
    }

    pub fn put_value(&self, value: &Value, typing: Typing<'_>, level: usize, out: &mut Vec<u8>) {
        match &value.kind {
            None | Some(ValueKind::NullValue(_)) => out.extend_from_slice(b"null"),
            Some(ValueKind::BoolValue(b)) => out.extend_from_slice(if *b { b"true" } else { b"false" }),
            Some(ValueKind::NumberValue(f)) => put_double(out, *f),
            Some(ValueKind::StringValue(_)) if typing.sensitive && self.redact => {
                if !typing.field.is_some_and(|f| put_redacted(f.kind, out)) {
                    write_string(out, REDACTED);
                }
            }
            Some(ValueKind::StringValue(s)) => write_string(out, jwks::redacted(s).filter(|_| self.redact).as_deref().unwrap_or(s)),
            Some(ValueKind::StructValue(fields)) => self.put_struct(fields, typing, level, out),
            Some(ValueKind::ListValue(list)) => self.put_list(list, typing, level, out),
        }
    }

    fn typing_of<'t>(&'t self, message: Option<TypeId>, key: &str, outer: Typing<'t>) -> Typing<'t> {
        if outer.map {
            return Typing { map: false, ..outer };
        }
        let field = message.filter(|_| self.redact).and_then(|id| self.d.message(id).by_name(key));
        let Some(field) = field else {
            return Typing { sensitive: outer.sensitive, ..Typing::default() };
        };
        let sensitive = outer.sensitive || field.sensitive;
        match self.d.map_entry(field) {
            Some((_, value)) => Typing { message: inner(self.d, value), field: Some(value), sensitive, map: true },
            None => Typing { message: inner(self.d, field), field: Some(field), sensitive, map: false },
        }
    }

    /// Sensitive numbers and booleans are left out.
    fn left_out(&self, value: &Value, typing: Typing<'_>) -> bool {
        self.redact && typing.sensitive && matches!(value.kind, Some(ValueKind::BoolValue(_) | ValueKind::NumberValue(_)))
    }

    fn separate(&self, first: &mut bool, level: usize, out: &mut Vec<u8>) {
        if !*first {
            out.push(b',');
        }
        *first = false;
        if !self.compact {
            newline(out, level);
        }
    }

    fn close(&self, empty: bool, bracket: u8, level: usize, out: &mut Vec<u8>) {
        if !empty && !self.compact {
            newline(out, level);
        }
        out.push(bracket);
    }
}

fn inner(d: &Descriptors, field: &Field) -> Option<TypeId> {
    match field.kind {
        Kind::Message(id) if d.message(id).well_known == WellKnown::No => Some(id),
        _ => None,
    }
}
