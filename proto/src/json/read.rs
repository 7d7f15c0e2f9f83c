//! Protobuf JSON to wire bytes by descriptor, as lenient as Envoy's reader: snake_case and lowerCamel names mixed, numbers as
//! strings, enums by name or number. Finds every problem at once, each with its path. Called on the control thread for
//! bootstraps, file sources and TypedStruct.

use base64::Engine;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use prost::{Message, Name};
use serde_json::{Map, Value};

use super::number;
use super::problem::{Place, Problem, Problems, nearest, shown};
use super::schema::{Descriptors, Enum, Field, Kind, Message as Descriptor, TypeId, WellKnown};
use super::wire::{put_len, put_tag, put_varint, zigzag};
use super::{text, time};

/// What to do with fields (and enum names) that the message does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnknownFields {
    /// They are problems.
    Refuse,
    /// They are left out and listed in [`Read::unknown`] (`--allow-unknown-static-fields`, TypedStruct).
    Ignore,
}

/// A message that was read, and what was left out.
#[derive(Clone, Debug, PartialEq)]
pub struct Read<T> {
    pub value: T,
    /// Full paths of fields that the message does not have; empty with [`UnknownFields::Refuse`].
    pub unknown: Vec<String>,
}

/// Nesting that is followed; protobuf's own limit.
const DEPTH: usize = 100;

/// Either alphabet is read, as protobuf JSON says.
fn base64(text: &str) -> Option<Vec<u8>> {
    const LENIENT: GeneralPurposeConfig = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    const STANDARD: GeneralPurpose = GeneralPurpose::new(&base64::alphabet::STANDARD, LENIENT);
    const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&base64::alphabet::URL_SAFE, LENIENT);
    STANDARD.decode(text).or_else(|_| URL_SAFE.decode(text)).ok()
}

/// Reads `value` as the message `name` (full name without prefix) and gives its wire bytes.
pub fn from_json(name: &str, value: &Value, unknown: UnknownFields) -> Result<Read<Vec<u8>>, Problems> {
    let descriptors = Descriptors::shared();
    let Some(id) = descriptors.find(name) else {
        return Err(Problem {
            path: String::new(),
            found: format!("the message type {name} is not known"),
            expected: "use a type of Envoy or Istio".to_string(),
        }
        .into());
    };
    let mut reader = Reader { d: &descriptors, policy: unknown, problems: Vec::new(), unknown: Vec::new() };
    let mut wire = Vec::new();
    reader.message(id, value, &Place::Root, 0, &mut wire);
    if reader.problems.is_empty() { Ok(Read { value: wire, unknown: reader.unknown }) } else { Err(Problems { items: reader.problems }) }
}

/// Reads `value` as a `T`.
pub fn parse<T: Message + Name + Default>(value: &Value, unknown: UnknownFields) -> Result<Read<T>, Problems> {
    let read = from_json(&T::full_name(), value, unknown)?;
    let message = T::decode(read.value.as_slice()).map_err(|e| Problem {
        path: String::new(),
        found: format!("{} cannot be decoded: {e}", T::full_name()),
        expected: "nest it less, or report a bug of Nuncio".to_string(),
    })?;
    Ok(Read { value: message, unknown: read.unknown })
}

/// Reads JSON or YAML text as a `T`.
pub fn parse_text<T: Message + Name + Default>(content: &str, unknown: UnknownFields) -> Result<Read<T>, Problems> {
    parse(&text::to_value(content)?, unknown)
}

struct Reader<'d> {
    d: &'d Descriptors,
    policy: UnknownFields,
    problems: Vec<Problem>,
    unknown: Vec<String>,
}

impl Reader<'_> {
    fn problem(&mut self, at: &Place<'_>, found: impl Into<String>, expected: impl Into<String>) {
        self.problems.push(Problem { path: at.to_string(), found: found.into(), expected: expected.into() });
    }

    fn wrong(&mut self, at: &Place<'_>, value: &Value, expected: impl Into<String>) {
        self.problem(at, format!("found {}", shown(value)), expected);
    }

    /// Appends the fields of the message (without its length).
    fn message(&mut self, id: TypeId, value: &Value, at: &Place<'_>, depth: usize, out: &mut Vec<u8>) {
        if depth > DEPTH {
            return self.problem(at, format!("messages are nested deeper than {DEPTH} levels"), "nest them less");
        }
        let d = self.d;
        let descriptor = d.message(id);
        match descriptor.well_known {
            WellKnown::Any => self.any(value, at, depth, out),
            WellKnown::Duration => match value {
                Value::String(s) => match time::parse_duration(s) {
                    Some((seconds, nanos)) => put_time(seconds, nanos, out),
                    None => self.wrong(at, value, "expected a duration in seconds such as \"0.25s\""),
                },
                Value::Object(fields) => self.fields(descriptor, fields, at, depth, out),
                _ => self.wrong(at, value, "expected a duration in seconds such as \"0.25s\""),
            },
            WellKnown::Timestamp => match value {
                Value::String(s) => match time::parse_timestamp(s) {
                    Some((seconds, nanos)) => put_time(seconds, nanos, out),
                    None => self.wrong(at, value, "expected a time such as \"2026-11-21T06:03:54Z\""),
                },
                Value::Object(fields) => self.fields(descriptor, fields, at, depth, out),
                _ => self.wrong(at, value, "expected a time such as \"2026-11-21T06:03:54Z\""),
            },
            WellKnown::FieldMask => match value {
                Value::String(s) => {
                    for path in s.split(',').map(str::trim).filter(|p| !p.is_empty()) {
                        put_len(out, 1, snake(path).as_bytes());
                    }
                }
                Value::Object(fields) => self.fields(descriptor, fields, at, depth, out),
                _ => self.wrong(at, value, "expected field names in a string, separated by commas"),
            },
            WellKnown::Struct => match value {
                Value::Object(fields) => self.structure(fields, at, depth, out),
                _ => self.wrong(at, value, "expected an object"),
            },
            WellKnown::Value => self.any_value(value, at, depth, out),
            WellKnown::ListValue => match value {
                Value::Array(items) => self.list(items, at, depth, out),
                _ => self.wrong(at, value, "expected a list"),
            },
            WellKnown::Wrapper => match (value, descriptor.by_number(1)) {
                (Value::Object(fields), _) => self.fields(descriptor, fields, at, depth, out),
                (_, Some((_, field))) => self.singular(field, value, at, depth, out, true),
                (_, None) => {}
            },
            WellKnown::No | WellKnown::TypedStruct => match value {
                Value::Object(fields) => self.fields(descriptor, fields, at, depth, out),
                _ => self.wrong(at, value, format!("expected an object ({})", descriptor.name)),
            },
        }
    }

    fn fields(&mut self, descriptor: &Descriptor, fields: &Map<String, Value>, at: &Place<'_>, depth: usize, out: &mut Vec<u8>) {
        let mut seen: Vec<(u32, Option<u32>)> = Vec::with_capacity(fields.len());
        for (key, value) in fields {
            let here = Place::Field(at, key);
            let Some(field) = descriptor.by_name(key) else {
                if key != "@type" {
                    self.unknown_field(descriptor, key, &here);
                }
                continue;
            };
            if value.is_null() && !self.takes_null(field) {
                continue;
            }
            if seen.iter().any(|(number, _)| *number == field.number) {
                self.problem(&here, "the field is given twice, in snake_case and lowerCamel", "give it once");
            } else if let Some(oneof) = field.oneof
                && let Some((other, _)) = seen.iter().find(|(_, o)| *o == Some(oneof))
            {
                let other = descriptor.by_number(*other).map_or("another", |(_, f)| &*f.name).to_string();
                self.problem(&here, format!("{} and {other} exclude each other", field.name), "give one of them");
            }
            seen.push((field.number, field.oneof));
            self.field(field, value, &here, depth, out);
        }
    }

    fn unknown_field(&mut self, descriptor: &Descriptor, key: &str, at: &Place<'_>) {
        if self.policy == UnknownFields::Ignore {
            return self.unknown.push(at.to_string());
        }
        let names = descriptor.fields.iter().map(|f| &*f.name);
        let expected = match nearest(key, names) {
            Some(name) => format!("did you mean {name}?"),
            None => "remove it, or pass --allow-unknown-static-fields".to_string(),
        };
        self.problem(at, format!("{} has no field {key:?}", descriptor.name), expected);
    }

    /// `null` means absent, except where null is a value.
    fn takes_null(&self, field: &Field) -> bool {
        match field.kind {
            Kind::Message(id) => !field.repeated && self.d.message(id).well_known == WellKnown::Value,
            Kind::Enum(id) => !field.repeated && self.d.enumeration(id).is_null_value(),
            _ => false,
        }
    }

    fn field(&mut self, field: &Field, value: &Value, at: &Place<'_>, depth: usize, out: &mut Vec<u8>) {
        let d = self.d;
        if let Some((key_field, value_field)) = d.map_entry(field) {
            let Value::Object(entries) = value else {
                return self.wrong(at, value, "expected an object (a map)");
            };
            for (key, value) in entries {
                let here = Place::Key(at, key);
                let mut entry = Vec::new();
                self.map_key(key_field, key, &here, &mut entry);
                self.singular(value_field, value, &here, depth + 1, &mut entry, true);
                put_len(out, field.number, &entry);
            }
        } else if field.repeated {
            let Value::Array(items) = value else {
                return self.wrong(at, value, "expected a list");
            };
            if !field.kind.packable() {
                for (i, item) in items.iter().enumerate() {
                    self.singular(field, item, &Place::Index(at, i), depth, out, true);
                }
                return;
            }
            let mut packed = Vec::new();
            for (i, item) in items.iter().enumerate() {
                self.scalar(field, item, &Place::Index(at, i), &mut packed);
            }
            if !packed.is_empty() {
                put_len(out, field.number, &packed);
            }
        } else {
            self.singular(field, value, at, depth, out, field.presence);
        }
    }

    fn map_key(&mut self, field: &Field, key: &str, at: &Place<'_>, out: &mut Vec<u8>) {
        match field.kind {
            Kind::Bool => match key {
                "true" | "false" => {
                    put_tag(out, 1, 0);
                    out.push(u8::from(key == "true"));
                }
                _ => self.problem(at, format!("the key is {key:?}"), "expected true or false"),
            },
            _ => self.singular(field, &Value::String(key.to_string()), at, 0, out, true),
        }
    }

    /// One value with its tag. `explicit`: written even if it is the default.
    fn singular(&mut self, field: &Field, value: &Value, at: &Place<'_>, depth: usize, out: &mut Vec<u8>, explicit: bool) {
        match field.kind {
            Kind::Message(id) => {
                let mut inner = Vec::new();
                self.message(id, value, at, depth + 1, &mut inner);
                put_len(out, field.number, &inner);
            }
            Kind::String => match value {
                Value::String(s) => {
                    if explicit || !s.is_empty() {
                        put_len(out, field.number, s.as_bytes());
                    }
                }
                Value::Bool(_) | Value::Number(_) => self.wrong(at, value, format!("expected a string: quote it, \"{value}\"")),
                _ => self.wrong(at, value, "expected a string"),
            },
            Kind::Bytes => match value.as_str().and_then(base64) {
                Some(bytes) => {
                    if explicit || !bytes.is_empty() {
                        put_len(out, field.number, &bytes);
                    }
                }
                None => self.wrong(at, value, "expected bytes in base64"),
            },
            kind => {
                let mut scalar = Vec::with_capacity(10);
                self.scalar(field, value, at, &mut scalar);
                if !scalar.is_empty() && (explicit || scalar.iter().any(|b| *b != 0)) {
                    put_tag(out, field.number, kind.wire_type());
                    out.extend_from_slice(&scalar);
                }
            }
        }
    }

    /// A number, bool or enum without tag; nothing if it is refused or ignored.
    fn scalar(&mut self, field: &Field, value: &Value, at: &Place<'_>, out: &mut Vec<u8>) {
        match field.kind {
            Kind::Bool => match truth(value) {
                Some(b) => out.push(u8::from(b)),
                None => self.wrong(at, value, "expected true or false"),
            },
            Kind::Double | Kind::Float => match number::float(value) {
                Some(f) if field.kind == Kind::Double => out.extend_from_slice(&f.to_le_bytes()),
                Some(f) if f.is_finite() && f.abs() > f64::from(f32::MAX) => self.wrong(at, value, "expected a number that fits a float"),
                Some(f) => out.extend_from_slice(&(f as f32).to_le_bytes()),
                None => self.wrong(at, value, "expected a number"),
            },
            Kind::Enum(id) => {
                let d = self.d;
                if let Some(n) = self.enum_number(d.enumeration(id), value, at) {
                    put_varint(out, i64::from(n) as u64);
                }
            }
            kind => {
                let (min, max) = number::range(kind);
                match number::integer(value) {
                    Some(i) if i >= min && i <= max => match kind {
                        Kind::Fixed32 | Kind::Sfixed32 => out.extend_from_slice(&(i as u32).to_le_bytes()),
                        Kind::Fixed64 | Kind::Sfixed64 => out.extend_from_slice(&(i as u64).to_le_bytes()),
                        Kind::Sint32 | Kind::Sint64 => put_varint(out, zigzag(i as i64)),
                        _ => put_varint(out, i as u64),
                    },
                    _ => self.wrong(at, value, format!("expected a whole number from {min} to {max}")),
                }
            }
        }
    }

    fn enum_number(&mut self, descriptor: &Enum, value: &Value, at: &Place<'_>) -> Option<i32> {
        if descriptor.is_null_value() && value.is_null() {
            return Some(0);
        }
        if let Some(name) = value.as_str()
            && let Some(n) = descriptor.number_of(name)
        {
            return Some(n);
        }
        if let Some(n) = number::integer(value).and_then(|n| i32::try_from(n).ok()) {
            return Some(n);
        }
        if self.policy == UnknownFields::Ignore && value.is_string() {
            self.unknown.push(format!("{at}: {}", shown(value)));
            return None;
        }
        const MANY: usize = 20;
        let mut names: Vec<&str> = descriptor.values.iter().take(MANY).map(|(_, name)| &**name).collect();
        if descriptor.values.len() > MANY {
            names.push("..");
        }
        self.wrong(at, value, format!("expected one of {}", names.join(", ")));
        None
    }

    fn any(&mut self, value: &Value, at: &Place<'_>, depth: usize, out: &mut Vec<u8>) {
        let Value::Object(fields) = value else {
            return self.wrong(at, value, "expected an object with \"@type\"");
        };
        let Some(kind) = fields.get("@type") else {
            if !fields.is_empty() {
                self.wrong(at, value, "name its type: \"@type\": \"type.googleapis.com/...\"");
            }
            return;
        };
        let d = self.d;
        let here = Place::Field(at, "@type");
        let Some(url) = kind.as_str() else {
            return self.wrong(&here, kind, "expected a type URL in a string");
        };
        let name = url.rsplit('/').next().unwrap_or_default();
        let Some(id) = d.find(name) else {
            let expected = match nearest(name, d.message_names()) {
                Some(known) => format!("did you mean {known}?"),
                None => "use a type of Envoy or Istio".to_string(),
            };
            return self.problem(&here, format!("the type {name:?} is not known"), expected);
        };
        let descriptor = d.message(id);
        let mut inner = Vec::new();
        if matches!(descriptor.well_known, WellKnown::No | WellKnown::TypedStruct) && descriptor.by_name("@type").is_none() {
            let only_value = descriptor.fields.is_empty() && fields.keys().all(|k| k == "@type" || k == "value");
            if !only_value {
                self.fields(descriptor, fields, at, depth + 1, &mut inner);
            }
        } else if let Some(inner_value) = fields.get("value") {
            self.message(id, inner_value, &Place::Field(at, "value"), depth + 1, &mut inner);
        } else {
            self.wrong(at, value, format!("a {name} in an Any is written in the field \"value\""));
        }
        put_len(out, 1, url.as_bytes());
        if !inner.is_empty() {
            put_len(out, 2, &inner);
        }
    }

    fn structure(&mut self, fields: &Map<String, Value>, at: &Place<'_>, depth: usize, out: &mut Vec<u8>) {
        for (key, value) in fields {
            let mut entry = Vec::new();
            put_len(&mut entry, 1, key.as_bytes());
            let mut inner = Vec::new();
            self.any_value(value, &Place::Key(at, key), depth + 1, &mut inner);
            put_len(&mut entry, 2, &inner);
            put_len(out, 1, &entry);
        }
    }

    fn list(&mut self, items: &[Value], at: &Place<'_>, depth: usize, out: &mut Vec<u8>) {
        for (i, item) in items.iter().enumerate() {
            let mut inner = Vec::new();
            self.any_value(item, &Place::Index(at, i), depth + 1, &mut inner);
            put_len(out, 1, &inner);
        }
    }

    /// `google.protobuf.Value`.
    fn any_value(&mut self, value: &Value, at: &Place<'_>, depth: usize, out: &mut Vec<u8>) {
        if depth > DEPTH {
            return self.problem(at, format!("values are nested deeper than {DEPTH} levels"), "nest them less");
        }
        match value {
            Value::Null => {
                put_tag(out, 1, 0);
                out.push(0);
            }
            Value::Number(n) => {
                put_tag(out, 2, 1);
                out.extend_from_slice(&n.as_f64().unwrap_or_default().to_le_bytes());
            }
            Value::String(s) => put_len(out, 3, s.as_bytes()),
            Value::Bool(b) => {
                put_tag(out, 4, 0);
                out.push(u8::from(*b));
            }
            Value::Object(fields) => {
                let mut inner = Vec::new();
                self.structure(fields, at, depth, &mut inner);
                put_len(out, 5, &inner);
            }
            Value::Array(items) => {
                let mut inner = Vec::new();
                self.list(items, at, depth, &mut inner);
                put_len(out, 6, &inner);
            }
        }
    }
}

/// The words that YAML 1.1 has for booleans reach this as strings.
fn truth(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(b) => Some(*b),
        Value::String(s) => match s.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" | "y" => Some(true),
            "false" | "no" | "off" | "n" => Some(false),
            _ => None,
        },
        _ => None,
    }
}

/// Duration and Timestamp have the same fields.
fn put_time(seconds: i64, nanos: i32, out: &mut Vec<u8>) {
    if seconds != 0 {
        put_tag(out, 1, 0);
        put_varint(out, seconds as u64);
    }
    if nanos != 0 {
        put_tag(out, 2, 0);
        put_varint(out, i64::from(nanos) as u64);
    }
}

/// Field masks are written in lowerCamel; snake_case is taken as it is.
fn snake(path: &str) -> String {
    let mut out = String::with_capacity(path.len() + 4);
    for c in path.chars() {
        if c.is_ascii_uppercase() {
            out.push('_');
        }
        out.push(c.to_ascii_lowercase());
    }
    out
}
