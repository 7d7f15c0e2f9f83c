//! The preamble of TCP metadata exchange: nothing panics, splits do not matter, and the application's bytes behind it are those
//! that were sent.
use bytes::BytesMut;
use nuncio_istio::preamble::{self, Preamble};

/// What was found, and the bytes that were left.
fn run<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Preamble, BytesMut) {
    let (mut data, mut found) = (BytesMut::new(), Preamble::Incomplete);
    for piece in pieces {
        data.extend_from_slice(piece);
        if found == Preamble::Incomplete {
            found = preamble::take(&mut data, &["role".to_string()]);
        }
    }
    (found, data)
}

/// The target.
pub fn check(data: &[u8]) {
    let Some((&first, bytes)) = data.split_first() else { return };
    // Half of the inputs begin as a preamble must, so that what comes after the magic is reached.
    let mut wire = if first & 1 == 1 { preamble::MAGIC.to_be_bytes().to_vec() } else { Vec::new() };
    wire.extend_from_slice(bytes);
    let whole = run(std::iter::once(wire.as_slice()));
    assert!(wire.ends_with(&whole.1));
    assert_eq!(whole, run(wire.chunks(usize::from(first) + 1)));
    if matches!(whole.0, Preamble::Absent | Preamble::Incomplete | Preamble::TooLong(_)) {
        assert_eq!(whole.1.len(), wire.len());
    }
}
