//! The fields of one message on the wire, in the order in which JSON shows them. Holds places, no copies.

use super::schema::Message;
use super::wire::{Fields, Malformed};

/// One occurrence of a known field: its index in [`Message::fields`] and where the value lies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub field: u32,
    pub start: u32,
    pub end: u32,
    pub wire_type: u8,
}

/// Occurrences of known fields sorted by field number, wire order within a field; of a oneof only the last member that is
/// there. Unknown fields are passed over. On malformed bytes gives what came before them, and `false`.
pub(crate) fn scan(message: &Message, data: &[u8]) -> (Vec<Entry>, bool) {
    use super::wire::Raw;
    let mut entries: Vec<Entry> = Vec::new();
    let mut whole = u32::try_from(data.len()).is_ok();
    let mut sorted = true;
    let mut chosen: Vec<(u32, u32)> = Vec::new();
    for field in Fields::new(if whole { data } else { &[] }) {
        let field = match field {
            Ok(field) => field,
            Err(Malformed) => {
                whole = false;
                break;
            }
        };
        let Some((index, descriptor)) = message.by_number(field.number) else { continue };
        let wire_type = match field.raw {
            Raw::Varint(_) => 0,
            Raw::Fixed64(_) => 1,
            Raw::Len(_) => 2,
            Raw::Fixed32(_) => 5,
        };
        let expected = descriptor.kind.wire_type();
        if wire_type != expected && !(wire_type == 2 && descriptor.repeated && descriptor.kind.packable()) {
            continue;
        }
        let index = index as u32;
        if let Some(oneof) = descriptor.oneof {
            chosen.retain(|(o, _)| *o != oneof);
            chosen.push((oneof, index));
        }
        sorted &= entries.last().is_none_or(|last| last.field <= index);
        entries.push(Entry { field: index, start: field.start as u32, end: field.end as u32, wire_type });
    }
    if !chosen.is_empty() {
        entries.retain(|e| {
            let oneof = message.fields.get(e.field as usize).and_then(|f| f.oneof);
            oneof.is_none_or(|o| chosen.contains(&(o, e.field)))
        });
    }
    if !sorted {
        entries.sort_by_key(|e| e.field);
    }
    (entries, whole)
}
