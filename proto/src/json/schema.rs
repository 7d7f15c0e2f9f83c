//! Message and enum descriptors, read lazily out of the embedded FileDescriptorSet. The whole set is 0.8 MB of bytes and an
//! index; a message's fields are parsed when a value of that type is met. Loaded on demand and dropped after use.

use std::{
    collections::HashMap,
    io::Read,
    sync::{Arc, Mutex, OnceLock, PoisonError, Weak},
};

use super::wire::{Fields, Raw};

static PACKED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.binpb.gz"));
static CACHE: Mutex<Weak<Descriptors>> = Mutex::new(Weak::new());

/// `udpa.annotations.sensitive`, an extension of FieldOptions.
const SENSITIVE: u32 = 76_569_463;

/// Every message and enum type that Istio can put into xDS. Get it with [`Descriptors::shared`]; holding the `Arc` during
/// a batch of conversions avoids unpacking again (some milliseconds, about 1.2 MB while held).
#[derive(Debug)]
pub struct Descriptors {
    raw: Vec<u8>,
    messages: HashMap<Arc<str>, TypeId>,
    message_slots: Vec<Slot<Message>>,
    enums: HashMap<Arc<str>, TypeId>,
    enum_slots: Vec<Slot<Enum>>,
}

/// Index of a type in [`Descriptors`].
pub(crate) type TypeId = u32;

#[derive(Debug)]
struct Slot<T> {
    name: Arc<str>,
    start: u32,
    end: u32,
    proto3: bool,
    parsed: OnceLock<T>,
}

/// JSON forms that differ from a plain object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WellKnown {
    No,
    Any,
    Duration,
    Timestamp,
    FieldMask,
    Struct,
    Value,
    ListValue,
    Wrapper,
    /// `xds.type.v3.TypedStruct` and `udpa.type.v1.TypedStruct`: a plain object, but redacted by the type it names.
    TypedStruct,
}

#[derive(Debug)]
pub(crate) struct Message {
    pub name: String,
    /// Sorted by number, which is the order in which they are written.
    pub fields: Vec<Field>,
    pub well_known: WellKnown,
    map_entry: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Double,
    Float,
    Int64,
    Uint64,
    Int32,
    Fixed64,
    Fixed32,
    Bool,
    String,
    Bytes,
    Uint32,
    Sfixed32,
    Sfixed64,
    Sint32,
    Sint64,
    Enum(TypeId),
    Message(TypeId),
}

#[derive(Debug)]
pub(crate) struct Field {
    pub name: Box<str>,
    pub json: Box<str>,
    pub number: u32,
    pub kind: Kind,
    pub repeated: bool,
    /// Absence can be told from the default value.
    pub presence: bool,
    pub oneof: Option<u32>,
    pub sensitive: bool,
}

#[derive(Debug)]
pub(crate) struct Enum {
    pub name: String,
    pub values: Vec<(i32, Box<str>)>,
}

impl Enum {
    pub fn name_of(&self, number: i32) -> Option<&str> {
        self.values.iter().find(|(n, _)| *n == number).map(|(_, name)| &**name)
    }
    pub fn number_of(&self, name: &str) -> Option<i32> {
        self.values.iter().find(|(_, n)| &**n == name).map(|(n, _)| *n)
    }
    pub fn is_null_value(&self) -> bool {
        self.name == "google.protobuf.NullValue"
    }
}

impl Kind {
    /// Whether repeated values may be packed into one length-delimited field.
    pub fn packable(self) -> bool {
        !matches!(self, Self::String | Self::Bytes | Self::Message(_))
    }
    pub fn wire_type(self) -> u8 {
        match self {
            Self::Double | Self::Fixed64 | Self::Sfixed64 => 1,
            Self::Float | Self::Fixed32 | Self::Sfixed32 => 5,
            Self::String | Self::Bytes | Self::Message(_) => 2,
            _ => 0,
        }
    }
}

impl Message {
    /// The field of this number, and its place in `fields`.
    pub fn by_number(&self, number: u32) -> Option<(usize, &Field)> {
        let i = self.fields.binary_search_by_key(&number, |f| f.number).ok()?;
        Some((i, self.fields.get(i)?))
    }
    /// The field of this proto or lowerCamel name.
    pub fn by_name(&self, name: &str) -> Option<&Field> {
        self.fields.iter().find(|f| &*f.name == name).or_else(|| self.fields.iter().find(|f| &*f.json == name))
    }
}

impl Descriptors {
    /// The descriptors, unpacked now unless somebody still holds them.
    pub fn shared() -> Arc<Self> {
        let mut cache = CACHE.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = cache.upgrade() {
            return held;
        }
        let mut raw = Vec::with_capacity(900 << 10);
        // The bytes are part of this binary; were they broken, every type would be reported as unknown.
        let _ = flate2::read::GzDecoder::new(PACKED).read_to_end(&mut raw);
        let all = Arc::new(Self::index(raw));
        *cache = Arc::downgrade(&all);
        all
    }

    /// Whether a message type of this full name is known.
    pub fn knows(&self, message: &str) -> bool {
        self.messages.contains_key(message)
    }

    pub(crate) fn message_names(&self) -> impl Iterator<Item = &str> {
        self.messages.keys().map(AsRef::as_ref)
    }

    pub(crate) fn find(&self, message: &str) -> Option<TypeId> {
        self.messages.get(message).copied()
    }

    pub(crate) fn message(&self, id: TypeId) -> &Message {
        static NOTHING: Message = Message { name: String::new(), fields: Vec::new(), well_known: WellKnown::No, map_entry: false };
        let Some(slot) = self.message_slots.get(id as usize) else { return &NOTHING };
        slot.parsed.get_or_init(|| self.parse_message(slot))
    }

    pub(crate) fn enumeration(&self, id: TypeId) -> &Enum {
        static NOTHING: Enum = Enum { name: String::new(), values: Vec::new() };
        let Some(slot) = self.enum_slots.get(id as usize) else { return &NOTHING };
        slot.parsed.get_or_init(|| self.parse_enum(slot))
    }

    /// Key and value of a map entry type, if `field` is a map.
    pub(crate) fn map_entry(&self, field: &Field) -> Option<(&Field, &Field)> {
        let Kind::Message(id) = field.kind else { return None };
        if !field.repeated {
            return None;
        }
        let entry = self.message(id);
        if !entry.map_entry {
            return None;
        }
        Some((entry.by_number(1)?.1, entry.by_number(2)?.1))
    }

    fn index(raw: Vec<u8>) -> Self {
        let mut all = Self {
            raw: Vec::new(),
            messages: HashMap::with_capacity(2048),
            message_slots: Vec::with_capacity(2048),
            enums: HashMap::with_capacity(512),
            enum_slots: Vec::with_capacity(512),
        };
        for file in Fields::new(&raw).flatten().filter(|f| f.number == 1) {
            let Raw::Len(bytes) = file.raw else { continue };
            let proto3 = string(bytes, 12) == "proto3";
            all.index_types(bytes, file.start, string(bytes, 2), proto3, 4, 5);
        }
        // The older name of the same message, which Istio uses, is not among the descriptors.
        if let Some(id) = all.find("xds.type.v3.TypedStruct") {
            all.messages.entry("udpa.type.v1.TypedStruct".into()).or_insert(id);
        }
        all.raw = raw;
        all
    }

    /// Notes where the messages (field `messages`) and enums (field `enums`) of a file or message lie.
    fn index_types(&mut self, bytes: &[u8], base: usize, prefix: &str, proto3: bool, messages: u32, enums: u32) {
        for field in Fields::new(bytes).flatten() {
            let Raw::Len(inner) = field.raw else { continue };
            if field.number != messages && field.number != enums {
                continue;
            }
            let name: Arc<str> = match prefix {
                "" => string(inner, 1).into(),
                _ => format!("{prefix}.{}", string(inner, 1)).into(),
            };
            let (start, end) = ((base + field.start) as u32, (base + field.end) as u32);
            if field.number == messages {
                self.index_types(inner, base + field.start, &name, proto3, 3, 4);
                self.messages.insert(name.clone(), self.message_slots.len() as TypeId);
                self.message_slots.push(Slot { name, start, end, proto3, parsed: OnceLock::new() });
            } else {
                self.enums.insert(name.clone(), self.enum_slots.len() as TypeId);
                self.enum_slots.push(Slot { name, start, end, proto3, parsed: OnceLock::new() });
            }
        }
    }

    fn bytes<T>(&self, slot: &Slot<T>) -> &[u8] {
        self.raw.get(slot.start as usize..slot.end as usize).unwrap_or_default()
    }

    fn parse_message(&self, slot: &Slot<Message>) -> Message {
        let bytes = self.bytes(slot);
        let mut message = Message { name: slot.name.to_string(), fields: Vec::new(), well_known: WellKnown::No, map_entry: false };
        for field in Fields::new(bytes).flatten() {
            match (field.number, field.raw) {
                (2, Raw::Len(inner)) => message.fields.extend(self.parse_field(inner, slot.proto3)),
                (7, Raw::Len(options)) => message.map_entry = number(options, 7) == 1,
                _ => {}
            }
        }
        message.fields.sort_by_key(|f| f.number);
        message.well_known = match message.name.as_str() {
            "google.protobuf.Any" => WellKnown::Any,
            "google.protobuf.Duration" => WellKnown::Duration,
            "google.protobuf.Timestamp" => WellKnown::Timestamp,
            "google.protobuf.FieldMask" => WellKnown::FieldMask,
            "google.protobuf.Struct" => WellKnown::Struct,
            "google.protobuf.Value" => WellKnown::Value,
            "google.protobuf.ListValue" => WellKnown::ListValue,
            "xds.type.v3.TypedStruct" => WellKnown::TypedStruct,
            name if name.starts_with("google.protobuf.") && name.ends_with("Value") => WellKnown::Wrapper,
            _ => WellKnown::No,
        };
        message
    }

    fn parse_field(&self, bytes: &[u8], proto3: bool) -> Option<Field> {
        let (mut kind, mut label, mut optional, mut oneof, mut sensitive) = (0, 0, false, None, false);
        let (mut name, mut json, mut type_name, mut place) = ("", "", "", 0);
        for field in Fields::new(bytes).flatten() {
            match (field.number, field.raw) {
                (1, Raw::Len(b)) => name = text(b),
                (3, Raw::Varint(v)) => place = u32::try_from(v).ok()?,
                (4, Raw::Varint(v)) => label = v,
                (5, Raw::Varint(v)) => kind = v,
                (6, Raw::Len(b)) => type_name = text(b).trim_start_matches('.'),
                (8, Raw::Len(b)) => sensitive = number(b, SENSITIVE) == 1,
                (9, Raw::Varint(v)) => oneof = u32::try_from(v).ok(),
                (10, Raw::Len(b)) => json = text(b),
                (17, Raw::Varint(v)) => optional = v == 1,
                _ => {}
            }
        }
        let kind = match kind {
            1 => Kind::Double,
            2 => Kind::Float,
            3 => Kind::Int64,
            4 => Kind::Uint64,
            5 => Kind::Int32,
            6 => Kind::Fixed64,
            7 => Kind::Fixed32,
            8 => Kind::Bool,
            9 => Kind::String,
            11 => Kind::Message(self.find(type_name)?),
            12 => Kind::Bytes,
            13 => Kind::Uint32,
            14 => Kind::Enum(self.enums.get(type_name).copied()?),
            15 => Kind::Sfixed32,
            16 => Kind::Sfixed64,
            17 => Kind::Sint32,
            18 => Kind::Sint64,
            _ => return None,
        };
        let repeated = label == 3;
        let json = if json.is_empty() { lower_camel(name) } else { json.to_string() };
        Some(Field {
            name: name.into(),
            json: json.into(),
            number: place,
            kind,
            repeated,
            presence: !repeated && (!proto3 || optional || oneof.is_some() || matches!(kind, Kind::Message(_))),
            oneof: oneof.filter(|_| !optional),
            sensitive,
        })
    }

    fn parse_enum(&self, slot: &Slot<Enum>) -> Enum {
        let values = Fields::new(self.bytes(slot)).flatten().filter_map(|field| match (field.number, field.raw) {
            (2, Raw::Len(value)) => Some((number(value, 2) as i32, string(value, 1).into())),
            _ => None,
        });
        Enum { name: slot.name.to_string(), values: values.collect() }
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}

fn string(bytes: &[u8], field: u32) -> &str {
    Fields::new(bytes)
        .flatten()
        .find_map(|f| match f.raw {
            Raw::Len(b) if f.number == field => Some(text(b)),
            _ => None,
        })
        .unwrap_or_default()
}

fn number(bytes: &[u8], field: u32) -> u64 {
    Fields::new(bytes)
        .flatten()
        .find_map(|f| match f.raw {
            Raw::Varint(v) if f.number == field => Some(v),
            _ => None,
        })
        .unwrap_or_default()
}

/// protoc's `json_name`.
pub(crate) fn lower_camel(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    let mut upper = false;
    for c in name.chars() {
        if c == '_' {
            upper = true;
        } else if upper {
            out.push(c.to_ascii_uppercase());
            upper = false;
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_shared_while_held_and_dropped_after() {
        let a = Descriptors::shared();
        let b = Descriptors::shared();
        assert!(Arc::ptr_eq(&a, &b));
    }

    #[test]
    fn knows_fields_presence_maps_and_annotations() {
        let d = Descriptors::shared();
        let cluster = d.message(d.find("envoy.config.cluster.v3.Cluster").unwrap());
        assert_eq!(cluster.name, "envoy.config.cluster.v3.Cluster");
        let name = cluster.by_name("name").unwrap();
        assert!(!name.presence && name.kind == Kind::String && name.number == 1);
        assert!(cluster.by_name("connectTimeout").unwrap().presence);
        let options = cluster.by_name("typed_extension_protocol_options").unwrap();
        assert_eq!(d.map_entry(options).unwrap().0.kind, Kind::String);
        assert!(d.map_entry(cluster.by_name("transport_socket_matches").unwrap()).is_none());
        let Kind::Enum(lb) = cluster.by_name("lb_policy").unwrap().kind else { panic!("an enum") };
        assert_eq!(d.enumeration(lb).name_of(1), Some("LEAST_REQUEST"));
        let tls = d.message(d.find("envoy.extensions.transport_sockets.tls.v3.TlsCertificate").unwrap());
        assert!(tls.by_name("private_key").unwrap().sensitive && !tls.by_name("certificate_chain").unwrap().sensitive);
        let stats = d.message(d.find("stats.PluginConfig").unwrap());
        assert!(stats.by_name("metrics").unwrap().repeated);
        assert!(!d.knows("no.such.Type"));
    }
}
