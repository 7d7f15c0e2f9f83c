//! ClientHello: nothing panics, more bytes never change a verdict, and the verdict of a prefix is that of the whole or "more".
use nuncio_tls::client_hello::{MAX_CLIENT_HELLO, Parsed, parse};

/// The target.
pub fn check(bytes: &[u8]) {
    let whole = parse(bytes);
    if let Parsed::Hello(hello) = &whole {
        // To the end of the record in which it ends, which need not have come; each byte of it may be a record of its own.
        assert!(hello.len <= MAX_CLIENT_HELLO * 6 + (1 << 15));
        assert!(hello.sni.as_ref().is_none_or(|s| !s.is_empty() && s.len() <= 255));
    }
    for len in [bytes.len() / 3, bytes.len() / 2, bytes.len().saturating_sub(1)] {
        let prefix = parse(&bytes[..len]);
        assert!(prefix == Parsed::NeedMore || prefix == whole, "{prefix:?} then {whole:?}");
    }
}
