//! `codec_type: AUTO` on plaintext: the HTTP/2 preface decides. Called by nuncio-hcm before either codec.

/// The client preface of HTTP/2 (RFC 9113, section 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What the first bytes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detect {
    H1,
    H2,
    /// Every byte so far is of the preface; read more (at most [`PREFACE`]'s length is needed).
    NeedMore,
}

/// Tells the codec of a connection from its first bytes, which stay where they are.
pub fn detect(bytes: &[u8]) -> Detect {
    if bytes.starts_with(PREFACE) {
        Detect::H2
    } else if PREFACE.starts_with(bytes) {
        Detect::NeedMore
    } else {
        Detect::H1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn preface_is_told_at_the_first_byte_that_differs() {
        assert_eq!(detect(b""), Detect::NeedMore);
        assert_eq!(detect(b"P"), Detect::NeedMore);
        assert_eq!(detect(b"PO"), Detect::H1);
        assert_eq!(detect(b"PRI * HTTP/2.0\r\n\r\n"), Detect::NeedMore);
        assert_eq!(detect(PREFACE), Detect::H2);
        assert_eq!(detect(b"GET / HTTP/1.1\r\n"), Detect::H1);
    }
}
