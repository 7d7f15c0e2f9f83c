//! PROXY headers of both versions: nothing panics, more bytes never change a verdict, and neither header nor TLVs go beyond what is there.
use nuncio_listener::proxy_header::{MAX, Parsed, parse, tlvs};

/// The target.
pub fn check(bytes: &[u8]) {
    let whole = parse(bytes);
    if let Parsed::Header(header) = &whole {
        assert!(header.tlvs <= header.len && header.len <= bytes.len() && header.len <= MAX);
        let mut left = header.len - header.tlvs;
        for tlv in tlvs(&bytes[header.tlvs..header.len]) {
            let Some((_, value)) = tlv else { break };
            left = left.checked_sub(3 + value.len()).unwrap();
        }
        // What follows is the client's, whatever it is.
        assert_eq!(parse(&[&bytes[..header.len], b"PROXY \r\n\0"].concat()), whole);
    }
    for len in [bytes.len() / 3, bytes.len() / 2, bytes.len().saturating_sub(1)] {
        let prefix = parse(&bytes[..len]);
        assert!(prefix == Parsed::NeedMore || prefix == whole, "{prefix:?} then {whole:?}");
    }
}
