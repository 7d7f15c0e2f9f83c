//! The preamble of TCP metadata exchange, in pieces: never a panic, never bytes that were not sent, and the application's bytes
//! behind it untouched.

#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use nuncio_istio::preamble::{self, Preamble};

fuzz_target!(|input: (bool, u8, Vec<u8>)| {
    let (with_magic, cut, bytes) = input;
    let mut wire = if with_magic { preamble::MAGIC.to_be_bytes().to_vec() } else { Vec::new() };
    wire.extend_from_slice(&bytes);
    let mut data = BytesMut::new();
    for piece in wire.chunks(usize::from(cut).max(1)) {
        data.extend_from_slice(piece);
        match preamble::take(&mut data, &["app".to_string()]) {
            Preamble::Incomplete => {}
            Preamble::Absent => assert!(wire.starts_with(&data)),
            _ => assert!(data.len() <= wire.len()),
        }
        if !matches!(data.first(), Some(0x3d) | None) {
            break;
        }
    }
});
