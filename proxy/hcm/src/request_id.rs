//! `x-request-id`: UUIDs whose 15th character carries the trace sampling decision. Called once per request on a worker.
//! Source: `envoy/extensions/request_id/uuid/v3/uuid.proto` and Envoy's UUIDRequestIDExtension.

use bytes::Bytes;
use http::HeaderValue;

/// Why a request is traced, packed into the UUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceReason {
    NotTraced,
    Sampled,
    Client,
    Forced,
}

/// How request ids are made and packed.
#[derive(Clone, Copy, Debug)]
pub struct RequestIdPolicy {
    /// `pack_trace_reason`, default true.
    pub pack_trace_reason: bool,
    /// `use_request_id_for_trace_sampling`, default true.
    pub use_for_sampling: bool,
}

const TRACE_BYTE: usize = 14;

/// A random version 4 UUID.
pub fn generate() -> HeaderValue {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let random = fastrand::u128(..);
    let mut text = [b'-'; 36];
    let mut shift = 0;
    for (i, byte) in text.iter_mut().enumerate() {
        if matches!(i, 8 | 13 | 18 | 23) {
            continue;
        }
        let nibble = ((random >> shift) & 15) as usize;
        shift += 4;
        let nibble = match i {
            14 => 4,
            19 => 8 | (nibble & 3),
            _ => nibble,
        };
        *byte = HEX.get(nibble).copied().unwrap_or(b'0');
    }
    HeaderValue::from_maybe_shared(Bytes::copy_from_slice(&text)).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// The reason packed into `id`; none if it is not a UUID of 36 characters.
pub fn trace_reason(id: &HeaderValue) -> Option<TraceReason> {
    let bytes = id.as_bytes();
    if bytes.len() != 36 {
        return None;
    }
    Some(match bytes.get(TRACE_BYTE)? {
        b'9' => TraceReason::Sampled,
        b'b' => TraceReason::Client,
        b'a' => TraceReason::Forced,
        _ => TraceReason::NotTraced,
    })
}

/// `id` with `reason` packed in; none if it is not a UUID of 36 characters or says so already.
pub fn pack(id: &HeaderValue, reason: TraceReason) -> Option<HeaderValue> {
    let byte = match reason {
        TraceReason::NotTraced => b'4',
        TraceReason::Sampled => b'9',
        TraceReason::Client => b'b',
        TraceReason::Forced => b'a',
    };
    let bytes = id.as_bytes();
    if bytes.len() != 36 || bytes.get(TRACE_BYTE) == Some(&byte) {
        return None;
    }
    let mut text = bytes.to_vec();
    *text.get_mut(TRACE_BYTE)? = byte;
    HeaderValue::from_maybe_shared(Bytes::from(text)).ok()
}

/// The number that sampling by request id takes modulo a range: the first eight hex digits.
pub fn sampling_number(id: &HeaderValue) -> Option<u64> {
    let head = std::str::from_utf8(id.as_bytes().get(..8)?).ok()?;
    u64::from_str_radix(head, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_version_4_uuids() {
        for _ in 0..100 {
            let id = generate();
            let text = id.to_str().unwrap();
            assert_eq!(text.len(), 36);
            assert_eq!(&text[14..15], "4");
            assert!(matches!(&text[19..20], "8" | "9" | "a" | "b"), "{text}");
            assert!(text.chars().all(|c| c == '-' || c.is_ascii_hexdigit()));
        }
        assert_ne!(generate(), generate());
    }

    #[test]
    fn reason_round_trips() {
        let id = generate();
        assert_eq!(trace_reason(&id), Some(TraceReason::NotTraced));
        for reason in [TraceReason::Sampled, TraceReason::Client, TraceReason::Forced] {
            let packed = pack(&id, reason).unwrap();
            assert_eq!(trace_reason(&packed), Some(reason));
        }
        assert!(pack(&HeaderValue::from_static("not-a-uuid"), TraceReason::Sampled).is_none());
    }
}
