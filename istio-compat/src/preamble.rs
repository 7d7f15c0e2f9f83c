//! The preamble of TCP metadata exchange: magic and length, both in network order, then a serialised `Any` that holds a
//! `Struct`. Written and read by `tcp_mx` on workers. Source: Envoy contrib `istio/filters/network/metadata_exchange`.

use crate::http_mx::{PEER_METADATA, PEER_METADATA_ID};
use crate::peer::{Peer, object};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use nuncio_proto::{Any, Struct, Value};
use prost::Message;
use prost_types::value::Kind;

/// First four bytes.
pub const MAGIC: u32 = 0x3D23_0467;
/// Magic and length.
const HEADER: usize = 8;
/// Longest announced preamble that is waited for. Envoy believes the peer up to 4 GiB; metadata of a pod is some hundred bytes.
pub const MAX: usize = 256 * 1024;
const STRUCT: &str = "type.googleapis.com/google.protobuf.Struct";

/// What is at the beginning of a connection's bytes.
#[derive(Debug, PartialEq, Eq)]
pub enum Preamble {
    /// More bytes are needed.
    Incomplete,
    /// The peer sends none: the bytes are the application's, untouched.
    Absent,
    /// A preamble was there, and taken out; the metadata in it could not be read.
    Unreadable,
    /// A preamble was there, and taken out. None if it does not name the peer.
    Peer(Option<Box<Peer>>),
    /// It announces more than [`MAX`]; no way to find the application's bytes behind it.
    TooLong(u32),
}

/// Encodes our own preamble.
pub fn encode(local: &Peer, node_id: &str) -> Bytes {
    let mut data = Struct::default();
    data.fields.insert(PEER_METADATA.as_str().to_string(), Value { kind: Some(Kind::StructValue(local.to_struct())) });
    if !node_id.is_empty() {
        data.fields.insert(PEER_METADATA_ID.as_str().to_string(), Value { kind: Some(Kind::StringValue(node_id.to_string())) });
    }
    let any = Any { type_url: STRUCT.to_string(), value: data.encode_to_vec() }.encode_to_vec();
    let mut out = BytesMut::with_capacity(HEADER + any.len());
    out.put_u32(MAGIC);
    out.put_u32(u32::try_from(any.len()).unwrap_or(u32::MAX));
    out.put_slice(&any);
    out.freeze()
}

/// Reads and takes a preamble off the front of `data`, keeping peer labels named in `additional`.
/// Bytes that cannot be the beginning of one are told at once, where Envoy waits for eight bytes.
pub fn take(data: &mut BytesMut, additional: &[String]) -> Preamble {
    let magic = MAGIC.to_be_bytes();
    let seen = data.len().min(magic.len());
    if data.get(..seen) != magic.get(..seen) {
        return Preamble::Absent;
    }
    let Some(mut length) = data.get(magic.len()..HEADER) else { return Preamble::Incomplete };
    let announced = length.get_u32();
    let length = announced as usize;
    if length > MAX {
        return Preamble::TooLong(announced);
    }
    if data.len() - HEADER < length {
        data.reserve(length);
        return Preamble::Incomplete;
    }
    data.advance(HEADER);
    let any = data.split_to(length);
    let Some(metadata) = Any::decode(any.as_ref()).ok().filter(|a| a.type_url.ends_with("google.protobuf.Struct")) else {
        return Preamble::Unreadable;
    };
    let Ok(metadata) = Struct::decode(metadata.value.as_slice()) else { return Preamble::Unreadable };
    let peer = metadata.fields.get(PEER_METADATA.as_str()).and_then(object);
    Preamble::Peer(peer.map(|p| Box::new(Peer::from_struct(p, additional))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn peer() -> Peer {
        Peer { workload: "shop".into(), namespace: "demo".into(), ..Peer::default() }
    }

    #[test]
    fn goes_round_in_any_pieces() {
        let wire = encode(&peer(), "sidecar~1");
        assert_eq!(wire.get(..4), Some(&[0x3d, 0x23, 0x04, 0x67][..]));
        let mut data = BytesMut::new();
        for byte in &wire[..wire.len() - 1] {
            data.put_u8(*byte);
            assert_eq!(take(&mut data, &[]), Preamble::Incomplete);
        }
        data.put_u8(wire[wire.len() - 1]);
        data.put_slice(b"hello");
        assert_eq!(take(&mut data, &[]), Preamble::Peer(Some(Box::new(peer()))));
        assert_eq!(data, b"hello"[..]);
    }

    #[test]
    fn a_peer_without_preamble_passes_at_once() {
        for bytes in [&b"G"[..], b"GET / HTTP/1.1", &[0x3d, 0x00]] {
            let mut data = BytesMut::from(bytes);
            assert_eq!(take(&mut data, &[]), Preamble::Absent);
            assert_eq!(data, bytes);
        }
    }

    #[test]
    fn lengths_are_not_believed() {
        let mut data = BytesMut::new();
        data.put_u32(MAGIC);
        data.put_u32(u32::MAX);
        assert_eq!(take(&mut data, &[]), Preamble::TooLong(u32::MAX));
        let mut data = BytesMut::new();
        data.put_u32(MAGIC);
        data.put_u32(3);
        data.put_slice(b"\xff\xff\xffrest");
        assert_eq!(take(&mut data, &[]), Preamble::Unreadable);
        assert_eq!(data, b"rest"[..]);
    }

    proptest! {
        #[test]
        fn never_panics_and_never_makes_bytes(prefix in any::<bool>(), bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut data = BytesMut::new();
            if prefix {
                data.put_u32(MAGIC);
            }
            data.put_slice(&bytes);
            let before = data.len();
            let _ = take(&mut data, &[]);
            prop_assert!(data.len() <= before);
        }
    }
}
