//! gRPC's framing: a flag, a length, a message. Used by calls and streams, on a worker.

use crate::grpc::GrpcError;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;

/// A flag and a length.
const PREFIX: usize = 5;

/// `message` with its prefix.
pub fn encode(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut out = BytesMut::with_capacity(PREFIX + length);
    out.put_u8(0);
    // A message of more than 4 GiB cannot be held, so it cannot come here.
    out.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    message.encode_raw(&mut out);
    out.freeze()
}

/// Takes messages out of bytes as they arrive.
#[derive(Debug)]
pub struct Decoder {
    buffer: BytesMut,
    max: usize,
}

impl Decoder {
    /// A decoder of messages of at most `max` bytes.
    pub fn new(max: usize) -> Self {
        Self { buffer: BytesMut::new(), max }
    }
    /// Adds bytes. Call [`Self::next_message`] until it gives none before adding more: the buffer then holds less than one message.
    pub fn push(&mut self, data: &[u8]) {
        self.buffer.extend_from_slice(data);
    }
    /// The next complete message.
    pub fn next_message<M: Message + Default>(&mut self) -> Result<Option<M>, GrpcError> {
        let Some(prefix) = self.buffer.first_chunk::<PREFIX>() else { return Ok(None) };
        let [flag, a, b, c, d] = *prefix;
        if flag != 0 {
            return Err(GrpcError::internal("compressed message"));
        }
        let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        if length > self.max {
            return Err(GrpcError::new(GrpcError::RESOURCE_EXHAUSTED, "message is larger than allowed"));
        }
        if self.buffer.len() - PREFIX < length {
            return Ok(None);
        }
        self.buffer.advance(PREFIX);
        let message = self.buffer.split_to(length).freeze();
        M::decode(message).map(Some).map_err(|_| GrpcError::internal("message cannot be decoded"))
    }
    /// Whether bytes of an incomplete message are left.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nuncio_proto::Duration;

    #[test]
    fn messages_in_pieces() {
        let message = Duration { seconds: 7, nanos: 8 };
        let wire = encode(&message);
        let mut decoder = Decoder::new(100);
        for byte in wire.iter().chain(&wire[..3]) {
            assert!(decoder.buffer.len() < wire.len());
            decoder.push(&[*byte]);
            if decoder.buffer.len() == wire.len() {
                assert_eq!(decoder.next_message::<Duration>().unwrap(), Some(message));
            }
            assert_eq!(decoder.next_message::<Duration>().unwrap(), None);
        }
        assert!(!decoder.is_empty());
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for (bytes, code) in [(&[1u8, 0, 0, 0, 0][..], 13), (&[0, 0xff, 0xff, 0xff, 0xff], 8), (&[0, 0, 0, 0, 1, 0xff], 13)] {
            let mut decoder = Decoder::new(100);
            decoder.push(bytes);
            assert_eq!(decoder.next_message::<Duration>().unwrap_err().code, code, "{bytes:?}");
        }
    }
}
