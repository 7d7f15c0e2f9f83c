//! Wire bytes to protobuf JSON by descriptor, laid out as Envoy's admin endpoints print it, in pieces: the renderer keeps its
//! place on a stack of its own, so that a large resource is never held as text. Runs on the control thread, whose owner writes
//! a piece out, waits for the peer, and asks for the next.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;

use super::scan::{Entry, scan};
use super::schema::{Descriptors, Field, Kind, TypeId, WellKnown};
use super::time::{put_duration, put_timestamp};
use super::value::{REDACTED, Typing, Untyped, is_default, put_base64, put_default, put_redacted, put_scalar, put_shown};
use super::wire::{Fields, Raw};
use super::write::{newline, write_string};

/// How to write.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Write scalars and lists that have their default too (`always_print_primitive_fields`; server_info, certs, memory).
    pub defaults: bool,
    /// Replace what the API marks as sensitive (`udpa.annotations.sensitive`) by `[redacted]`, inside Any and TypedStruct too.
    pub redact: bool,
    /// No line breaks and spaces.
    pub compact: bool,
    /// Levels that the value is nested in an outer document.
    pub indent: usize,
}

/// Containers that are open at once; what is nested deeper is shown as `{}`. Common JSON readers follow 128 levels.
const DEPTH: usize = 100;

/// Writes one message.
#[derive(Debug)]
pub struct Renderer {
    d: Arc<Descriptors>,
    options: Options,
    start: Option<Start>,
    stack: Vec<Frame>,
}

#[derive(Debug)]
enum Start {
    Message(TypeId, Bytes),
    Any(String, Bytes),
}

#[derive(Debug)]
enum Frame {
    Message(Object),
    /// Elements of a repeated message field; the frame below holds the entries.
    List(Elements),
    Map(Elements),
}

#[derive(Debug)]
struct Object {
    id: TypeId,
    data: Bytes,
    entries: Vec<Entry>,
    next: usize,
    /// The field that comes next if defaults are written.
    cursor: u32,
    empty: bool,
    sensitive: bool,
    /// For a TypedStruct: the type that it names.
    stands_for: Option<TypeId>,
}

#[derive(Debug)]
struct Elements {
    id: TypeId,
    data: Bytes,
    entries: Vec<Entry>,
    next: usize,
    sensitive: bool,
    stands_for: Option<TypeId>,
}

impl Renderer {
    /// Writes `wire`, a message of full name `name`. `None` if the type is not known.
    pub fn message(d: Arc<Descriptors>, name: &str, wire: Bytes, options: Options) -> Option<Self> {
        let start = Some(Start::Message(d.find(name)?, wire));
        Some(Self { d, options, start, stack: Vec::new() })
    }

    /// Writes an Any: an object with `@type`. Unknown types are shown with their bytes in base64.
    pub fn any(d: Arc<Descriptors>, type_url: &str, value: Bytes, options: Options) -> Self {
        Self { d, options, start: Some(Start::Any(type_url.to_string(), value)), stack: Vec::new() }
    }

    /// Appends text to `out` until it holds `until` bytes or more, or all is written; true when all is written. A scalar or an
    /// untyped Struct is written in one piece, so that `out` can grow beyond `until` by its size.
    pub fn fill(&mut self, out: &mut Vec<u8>, until: usize) -> bool {
        let d = self.d.clone();
        match self.start.take() {
            Some(Start::Message(id, data)) => self.begin(&d, id, data, false, Typing::default(), out),
            Some(Start::Any(url, value)) => self.begin_any(&d, &url, value, false, out),
            None => {}
        }
        while let Some(frame) = self.stack.pop() {
            if out.len() >= until {
                self.stack.push(frame);
                return false;
            }
            match frame {
                Frame::Message(object) => self.field(&d, object, out),
                Frame::List(elements) => self.element(&d, elements, out),
                Frame::Map(elements) => self.map_entry(&d, elements, out),
            }
        }
        true
    }

    fn level(&self) -> usize {
        self.options.indent + self.stack.len()
    }

    fn separate(&self, first: bool, out: &mut Vec<u8>) {
        if !first {
            out.push(b',');
        }
        if !self.options.compact {
            newline(out, self.level());
        }
    }

    fn key(&self, first: bool, name: &str, out: &mut Vec<u8>) {
        self.separate(first, out);
        write_string(out, name);
        self.colon(out);
    }

    fn colon(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(if self.options.compact { b":" } else { b": " });
    }

    /// Closes a container that is no longer on the stack.
    fn close(&self, bracket: u8, empty: bool, out: &mut Vec<u8>) {
        if !empty && !self.options.compact {
            newline(out, self.level());
        }
        out.push(bracket);
    }

    /// Writes a message value: at once if its form is short, else what opens it, and leaves its frame on the stack.
    fn begin(&mut self, d: &Descriptors, id: TypeId, data: Bytes, sensitive: bool, typing: Typing<'_>, out: &mut Vec<u8>) {
        let message = d.message(id);
        let hidden = sensitive && self.options.redact;
        let untyped = Untyped { d, compact: self.options.compact, redact: self.options.redact };
        let typing = Typing { sensitive: sensitive || typing.sensitive, ..typing };
        if self.stack.len() >= DEPTH {
            out.extend_from_slice(b"{}");
            return;
        }
        match message.well_known {
            WellKnown::Any => {
                let (mut url, mut value) = ("", Bytes::new());
                for field in Fields::new(&data).flatten() {
                    match (field.number, field.raw) {
                        (1, Raw::Len(b)) => url = std::str::from_utf8(b).unwrap_or_default(),
                        (2, Raw::Len(_)) => value = data.slice(field.start..field.end),
                        _ => {}
                    }
                }
                self.begin_any(d, url, value, sensitive, out);
            }
            WellKnown::Duration => {
                let (seconds, nanos) = if hidden { (0, 0) } else { seconds_and_nanos(&data) };
                put_duration(out, seconds, nanos);
            }
            WellKnown::Timestamp => {
                let (seconds, nanos) = if hidden { (0, 0) } else { seconds_and_nanos(&data) };
                put_timestamp(out, seconds, nanos);
            }
            WellKnown::FieldMask => {
                let paths = prost_types::FieldMask::decode(data).unwrap_or_default().paths;
                write_string(out, &paths.iter().map(|p| super::schema::lower_camel(p)).collect::<Vec<_>>().join(","));
            }
            WellKnown::Struct => {
                let value = prost_types::Struct::decode(data).unwrap_or_default();
                untyped.put_struct(&value, typing, self.level(), out);
            }
            WellKnown::Value => {
                let value = prost_types::Value::decode(data).unwrap_or_default();
                untyped.put_value(&value, typing, self.level(), out);
            }
            WellKnown::ListValue => {
                let value = prost_types::ListValue::decode(data).unwrap_or_default();
                untyped.put_list(&value, typing, self.level(), out);
            }
            WellKnown::Wrapper => {
                let Some((_, field)) = message.by_number(1) else { return out.extend_from_slice(b"null") };
                let (entries, _) = scan(message, &data);
                let value = entries.last().map(|e| slice(&data, *e));
                match value {
                    Some(_) if hidden && put_redacted(field.kind, out) => {}
                    Some(value) if !hidden && put_shown(d, field.kind, &value, self.options.redact, out) > 0 => {}
                    _ => put_default(d, field.kind, out),
                }
            }
            WellKnown::No | WellKnown::TypedStruct => {
                out.push(b'{');
                let (entries, _) = scan(message, &data);
                self.push_object(d, id, data, entries, true, sensitive);
            }
        }
    }

    fn push_object(&mut self, d: &Descriptors, id: TypeId, data: Bytes, entries: Vec<Entry>, empty: bool, sensitive: bool) {
        let named = self.options.redact && d.message(id).well_known == WellKnown::TypedStruct;
        let stands_for =
            if named { string_field(&data, 1).and_then(|url| d.find(url.rsplit('/').next().unwrap_or_default())) } else { None };
        let object = Object { id, data, entries, next: 0, cursor: 0, empty, sensitive, stands_for };
        self.stack.push(Frame::Message(object));
    }

    fn begin_any(&mut self, d: &Descriptors, url: &str, value: Bytes, sensitive: bool, out: &mut Vec<u8>) {
        out.push(b'{');
        if url.is_empty() && value.is_empty() {
            out.push(b'}');
            return;
        }
        // An object without entries: closes itself once what is written here is done.
        let nothing = |id| Object {
            id,
            data: Bytes::new(),
            entries: Vec::new(),
            next: 0,
            cursor: u32::MAX,
            empty: false,
            sensitive: false,
            stands_for: None,
        };
        let known = d.find(url.rsplit('/').next().unwrap_or_default());
        self.stack.push(Frame::Message(nothing(known.unwrap_or_default())));
        self.key(true, "@type", out);
        write_string(out, url);
        let Some(id) = known else {
            self.key(false, "value", out);
            return put_base64(if sensitive && self.options.redact { REDACTED.as_bytes() } else { &value }, out);
        };
        let message = d.message(id);
        if !matches!(message.well_known, WellKnown::No | WellKnown::TypedStruct) {
            self.key(false, "value", out);
            return self.begin(d, id, value, sensitive, Typing::default(), out);
        }
        let (entries, whole) = scan(message, &value);
        if whole {
            self.stack.pop();
            return self.push_object(d, id, value, entries, false, sensitive);
        }
        // The bytes are no message of their type: show them, unless they may hold a secret.
        self.key(false, "value", out);
        put_base64(if self.options.redact { REDACTED.as_bytes() } else { &value }, out);
    }

    /// Writes the next field of an object, or closes it.
    fn field(&mut self, d: &Descriptors, mut object: Object, out: &mut Vec<u8>) {
        let message = d.message(object.id);
        let upcoming = object.entries.get(object.next).map(|e| e.field);
        let index = if self.options.defaults && (object.cursor as usize) < message.fields.len() {
            object.cursor
        } else {
            let Some(index) = upcoming else { return self.close(b'}', object.empty, out) };
            index
        };
        object.cursor = if object.cursor == u32::MAX { u32::MAX } else { index + 1 };
        let from = object.next;
        while object.entries.get(object.next).is_some_and(|e| e.field == index) {
            object.next += 1;
        }
        let Some(field) = message.fields.get(index as usize) else {
            self.stack.push(Frame::Message(object));
            return;
        };
        let group: Vec<Entry> = object.entries.get(from..object.next).unwrap_or_default().to_vec();
        let sensitive = object.sensitive || field.sensitive;
        let (data, first, stands_for) = (object.data.clone(), object.empty, object.stands_for);
        object.empty = false;
        self.stack.push(Frame::Message(object));
        let written = match (group.last(), field.repeated) {
            (Some(_), true) => {
                let elements = Elements { id: message_id(field), data, entries: group, next: 0, sensitive, stands_for };
                self.repeated(d, field, elements, first, out)
            }
            (None, true) if self.options.defaults => {
                self.key(first, &field.name, out);
                out.extend_from_slice(if d.map_entry(field).is_some() { b"{}" } else { b"[]" });
                true
            }
            (Some(last), false) => self.singular(d, field, &data, &group, *last, sensitive, stands_for, first, out),
            (None, false) if self.options.defaults && !field.presence => {
                self.key(first, &field.name, out);
                put_default(d, field.kind, out);
                true
            }
            _ => false,
        };
        if !written && let Some(Frame::Message(object)) = self.stack.last_mut() {
            object.empty = first;
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn singular(
        &mut self,
        d: &Descriptors,
        field: &Field,
        data: &Bytes,
        group: &[Entry],
        last: Entry,
        sensitive: bool,
        stands_for: Option<TypeId>,
        first: bool,
        out: &mut Vec<u8>,
    ) -> bool {
        let bytes = slice(data, last);
        if let Kind::Message(id) = field.kind {
            self.key(first, &field.name, out);
            let bytes = if group.len() == 1 {
                bytes
            } else {
                // Occurrences of a message field are merged, and concatenation is merging.
                group.iter().flat_map(|e| slice(data, *e)).collect()
            };
            let typing = Typing { message: stands_for, sensitive, ..Typing::default() };
            self.begin(d, id, bytes, sensitive, typing, out);
            return true;
        }
        let hidden = sensitive && self.options.redact;
        if !field.presence && is_default(field.kind, &bytes) || hidden && field.kind.packable() {
            if self.options.defaults && !field.presence {
                self.key(first, &field.name, out);
                put_default(d, field.kind, out);
                return true;
            }
            return false;
        }
        self.key(first, &field.name, out);
        if !(hidden && put_redacted(field.kind, out)) {
            put_shown(d, field.kind, &bytes, self.options.redact, out);
        }
        true
    }

    /// Opens a list or map of messages; writes a list of scalars at once.
    fn repeated(&mut self, d: &Descriptors, field: &Field, elements: Elements, first: bool, out: &mut Vec<u8>) -> bool {
        let hidden = elements.sensitive && self.options.redact;
        if d.map_entry(field).is_some() {
            self.key(first, &field.name, out);
            out.push(b'{');
            let entries = last_of_each_key(d, field, &elements);
            self.stack.push(Frame::Map(Elements { entries, ..elements }));
            return true;
        }
        if let Kind::Message(_) = field.kind {
            self.key(first, &field.name, out);
            out.push(b'[');
            self.stack.push(Frame::List(elements));
            return true;
        }
        if hidden && field.kind.packable() {
            return false;
        }
        self.key(first, &field.name, out);
        out.push(b'[');
        let level = self.level() + 1;
        let mut first = true;
        let redact = self.options.redact;
        let mut one = |bytes: &[u8], out: &mut Vec<u8>| {
            if !first {
                out.push(b',');
            }
            first = false;
            if !self.options.compact {
                newline(out, level);
            }
            if hidden && put_redacted(field.kind, out) { bytes.len() } else { put_shown(d, field.kind, bytes, redact, out) }
        };
        for entry in &elements.entries {
            let bytes = slice(&elements.data, *entry);
            let packed = field.kind.packable() && entry.wire_type == 2;
            if !packed {
                one(&bytes, out);
                continue;
            }
            let mut rest: &[u8] = &bytes;
            while !rest.is_empty() && complete(field.kind, rest) {
                let used = one(rest, out);
                rest = rest.get(used.max(1)..).unwrap_or_default();
            }
        }
        if !first && !self.options.compact {
            newline(out, self.level());
        }
        out.push(b']');
        true
    }

    fn element(&mut self, d: &Descriptors, mut elements: Elements, out: &mut Vec<u8>) {
        let Some(entry) = elements.entries.get(elements.next).copied() else {
            return self.close(b']', elements.next == 0, out);
        };
        let first = elements.next == 0;
        elements.next += 1;
        let (id, bytes, sensitive) = (elements.id, slice(&elements.data, entry), elements.sensitive);
        let typing = Typing { message: elements.stands_for, sensitive, ..Typing::default() };
        self.stack.push(Frame::List(elements));
        self.separate(first, out);
        self.begin(d, id, bytes, sensitive, typing, out);
    }

    fn map_entry(&mut self, d: &Descriptors, mut elements: Elements, out: &mut Vec<u8>) {
        let Some(entry) = elements.entries.get(elements.next).copied() else {
            return self.close(b'}', elements.next == 0, out);
        };
        let first = elements.next == 0;
        elements.next += 1;
        let (id, data, sensitive) = (elements.id, slice(&elements.data, entry), elements.sensitive);
        self.stack.push(Frame::Map(elements));
        let descriptor = d.message(id);
        let (Some((key_index, key)), Some((value_index, value))) = (descriptor.by_number(1), descriptor.by_number(2)) else { return };
        let (entries, _) = scan(descriptor, &data);
        let of = |index: usize| entries.iter().rev().find(|e| e.field as usize == index).map(|e| slice(&data, *e));
        self.separate(first, out);
        put_key(d, key, of(key_index).as_deref(), out);
        self.colon(out);
        match (value.kind, of(value_index)) {
            (Kind::Message(id), bytes) => {
                let typing = Typing { sensitive, ..Typing::default() };
                self.begin(d, id, bytes.unwrap_or_default(), sensitive, typing, out);
            }
            (kind, Some(_)) if sensitive && self.options.redact => {
                if !put_redacted(kind, out) {
                    put_default(d, kind, out);
                }
            }
            (kind, Some(bytes)) => {
                put_shown(d, kind, &bytes, self.options.redact, out);
            }
            (kind, None) => put_default(d, kind, out),
        }
    }
}

fn message_id(field: &Field) -> TypeId {
    match field.kind {
        Kind::Message(id) => id,
        _ => TypeId::MAX,
    }
}

fn slice(data: &Bytes, entry: Entry) -> Bytes {
    let (start, end) = (entry.start as usize, entry.end as usize);
    if start <= end && end <= data.len() { data.slice(start..end) } else { Bytes::new() }
}

/// Whether a packed scalar lies at the start of `bytes`, as far as that can be told from its length.
fn complete(kind: Kind, bytes: &[u8]) -> bool {
    match kind.wire_type() {
        1 => bytes.len() >= 8,
        5 => bytes.len() >= 4,
        _ => super::wire::varint(bytes).is_some(),
    }
}

/// Map keys are strings in JSON, whatever they are in protobuf.
fn put_key(d: &Descriptors, key: &Field, bytes: Option<&[u8]>, out: &mut Vec<u8>) {
    let mut text = Vec::new();
    match bytes {
        Some(bytes) => {
            put_scalar(d, key.kind, bytes, &mut text);
        }
        None => put_default(d, key.kind, &mut text),
    }
    if text.first() == Some(&b'"') {
        out.extend_from_slice(&text);
    } else {
        out.push(b'"');
        out.extend_from_slice(&text);
        out.push(b'"');
    }
}

/// A key that is given twice counts with its last value.
fn last_of_each_key(d: &Descriptors, field: &Field, elements: &Elements) -> Vec<Entry> {
    let Some((key, _)) = d.map_entry(field) else { return Vec::new() };
    let mut seen = std::collections::HashSet::new();
    let mut kept: Vec<Entry> = elements
        .entries
        .iter()
        .rev()
        .filter(|e| {
            let data = slice(&elements.data, **e);
            let mut text = Vec::new();
            let bytes = Fields::new(&data).flatten().filter(|f| f.number == 1).last().map(|f| data.slice(f.start..f.end));
            put_key(d, key, bytes.as_deref(), &mut text);
            seen.insert(text)
        })
        .copied()
        .collect();
    kept.reverse();
    kept
}

fn string_field(data: &[u8], number: u32) -> Option<&str> {
    Fields::new(data).flatten().find_map(|f| match f.raw {
        Raw::Len(b) if f.number == number => std::str::from_utf8(b).ok(),
        _ => None,
    })
}

/// Fields 1 and 2 of Duration and Timestamp.
fn seconds_and_nanos(data: &[u8]) -> (i64, i32) {
    let mut parts = (0, 0);
    for field in Fields::new(data).flatten() {
        match (field.number, field.raw) {
            (1, Raw::Varint(v)) => parts.0 = v as i64,
            (2, Raw::Varint(v)) => parts.1 = v as i32,
            _ => {}
        }
    }
    parts
}

/// The whole message as a string; for small messages. `None` if the type is not known.
pub fn to_json(name: &str, wire: impl Into<Bytes>, options: Options) -> Option<String> {
    let mut renderer = Renderer::message(Descriptors::shared(), name, wire.into(), options)?;
    let mut out = Vec::new();
    renderer.fill(&mut out, usize::MAX);
    Some(String::from_utf8(out).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
}

/// The whole message into a writer, in pieces of about 16 KB. An unknown type is an error of kind `InvalidInput`.
pub fn write_json(name: &str, wire: impl Into<Bytes>, options: Options, to: &mut impl io::Write) -> io::Result<()> {
    const PIECE: usize = 16 << 10;
    let unknown = || io::Error::new(io::ErrorKind::InvalidInput, format!("the message type {name} is not known"));
    let mut renderer = Renderer::message(Descriptors::shared(), name, wire.into(), options).ok_or_else(unknown)?;
    let mut out = Vec::with_capacity(PIECE);
    loop {
        let done = renderer.fill(&mut out, PIECE);
        to.write_all(&out)?;
        out.clear();
        if done {
            return Ok(());
        }
    }
}
