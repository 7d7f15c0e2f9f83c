//! The PROXY header, versions 1 and 2, as bytes: no I/O, nothing kept. Read by `envoy.filters.listener.proxy_protocol` on workers. Hostile
//! input: a length is believed only as far as bytes arrive, and never beyond 64 KiB, which is the most that the format can say.
//! Source: haproxy's proxy-protocol.txt; Envoy's `proxy_protocol.cc` for what is refused.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const SIGNATURE_V2: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
const HEADER_V2: usize = 16;
const SIGNATURE_V1: &[u8] = b"PROXY ";
/// The longest line of version 1, its end included.
const MAX_V1: usize = 108;
/// The longest header of version 2.
pub const MAX: usize = HEADER_V2 + u16::MAX as usize;

/// What a header says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Source and destination; none for LOCAL and UNKNOWN.
    pub addresses: Option<(SocketAddr, SocketAddr)>,
    /// Bytes of the header.
    pub len: usize,
    /// Where TLVs begin in it.
    pub tlvs: usize,
    /// 0 is version 1, 1 is version 2.
    pub version: usize,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Parsed {
    NeedMore,
    /// No PROXY header.
    Absent,
    /// A header of this version that is broken.
    Bad(usize),
    Header(Header),
}

/// What `bytes`, the first ones of a connection, begin with.
pub fn parse(bytes: &[u8]) -> Parsed {
    let begins = |signature: &[u8]| {
        let n = bytes.len().min(signature.len());
        bytes.get(..n) == signature.get(..n)
    };
    if begins(SIGNATURE_V2) {
        if bytes.len() >= SIGNATURE_V2.len() { v2(bytes) } else { Parsed::NeedMore }
    } else if begins(SIGNATURE_V1) {
        if bytes.len() >= SIGNATURE_V1.len() { v1(bytes) } else { Parsed::NeedMore }
    } else {
        Parsed::Absent
    }
}

fn v1(bytes: &[u8]) -> Parsed {
    let window = bytes.get(..bytes.len().min(MAX_V1)).unwrap_or_default();
    let Some(end) = window.windows(2).position(|w| w == b"\r\n") else {
        return if bytes.len() >= MAX_V1 { Parsed::Bad(0) } else { Parsed::NeedMore };
    };
    let len = end + 2;
    let Some(line) = bytes.get(SIGNATURE_V1.len()..end).and_then(|l| std::str::from_utf8(l).ok()) else { return Parsed::Bad(0) };
    let header = |addresses| Parsed::Header(Header { addresses, len, tlvs: len, version: 0 });
    if line == "UNKNOWN" || line.starts_with("UNKNOWN ") {
        return header(None);
    }
    let parts: Vec<&str> = line.split(' ').collect();
    let [family, source, destination, source_port, destination_port] = parts.as_slice() else { return Parsed::Bad(0) };
    let port = |text: &str| if text.bytes().all(|b| b.is_ascii_digit()) { text.parse::<u16>().ok() } else { None };
    let ip = |text: &str| match *family {
        "TCP4" => text.parse().ok().map(IpAddr::V4),
        "TCP6" => text.parse().ok().map(IpAddr::V6),
        _ => None,
    };
    match (ip(source), ip(destination), port(source_port), port(destination_port)) {
        (Some(s), Some(d), Some(sp), Some(dp)) => header(Some((SocketAddr::new(s, sp), SocketAddr::new(d, dp)))),
        _ => Parsed::Bad(0),
    }
}

fn v2(bytes: &[u8]) -> Parsed {
    let Some((head, rest)) = bytes.split_first_chunk::<HEADER_V2>() else { return Parsed::NeedMore };
    let (command, family) = (head[12], head[13]);
    let len = usize::from(u16::from_be_bytes([head[14], head[15]]));
    if command >> 4 != 2 || command & 0xf > 1 {
        return Parsed::Bad(1);
    }
    let local = command & 0xf == 0;
    // The address part; LOCAL may carry one, which is not looked at.
    let size = match (family >> 4, family & 0xf) {
        (1, 1) => 12,
        (2, 1) => 36,
        _ if local => 0,
        _ => return Parsed::Bad(1),
    };
    if len < size {
        return Parsed::Bad(1);
    }
    let Some(body) = rest.get(..len) else { return Parsed::NeedMore };
    let addresses = if local { None } else { addresses(body, family >> 4 == 2) };
    if !local && addresses.is_none() {
        return Parsed::Bad(1);
    }
    // Behind a LOCAL of unknown family nobody can say where TLVs begin.
    let tlvs = if local && size == 0 { HEADER_V2 + len } else { HEADER_V2 + size };
    Parsed::Header(Header { addresses, len: HEADER_V2 + len, tlvs, version: 1 })
}

fn addresses(body: &[u8], v6: bool) -> Option<(SocketAddr, SocketAddr)> {
    fn split<const IP: usize>(body: &[u8]) -> Option<([u8; IP], [u8; IP], u16, u16)> {
        let (source, rest) = body.split_first_chunk::<IP>()?;
        let (destination, rest) = rest.split_first_chunk::<IP>()?;
        let (source_port, rest) = rest.split_first_chunk::<2>()?;
        let (destination_port, _) = rest.split_first_chunk::<2>()?;
        Some((*source, *destination, u16::from_be_bytes(*source_port), u16::from_be_bytes(*destination_port)))
    }
    if v6 {
        let (s, d, sp, dp) = split::<16>(body)?;
        return Some((SocketAddr::new(Ipv6Addr::from(s).into(), sp), SocketAddr::new(Ipv6Addr::from(d).into(), dp)));
    }
    let (s, d, sp, dp) = split::<4>(body)?;
    Some((SocketAddr::new(Ipv4Addr::from(s).into(), sp), SocketAddr::new(Ipv4Addr::from(d).into(), dp)))
}

/// Type and value of each TLV in `bytes`; the last one is none if a length does not fit.
pub fn tlvs(mut bytes: &[u8]) -> impl Iterator<Item = Option<(u8, &[u8])>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let next = bytes.split_first_chunk::<3>().and_then(|(head, rest)| {
            let (value, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes([head[1], head[2]])))?;
            Some((head[0], value, rest))
        });
        bytes = next.map(|(_, _, rest)| rest).unwrap_or_default();
        Some(next.map(|(kind, value, _)| (kind, value)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn v2_header(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        [&SIGNATURE_V2[..], &[command, family], &(body.len() as u16).to_be_bytes(), body].concat()
    }
    fn found(bytes: &[u8]) -> Option<(String, String)> {
        match parse(bytes) {
            Parsed::Header(h) => h.addresses.map(|(s, d)| (s.to_string(), d.to_string())),
            other => panic!("{other:?}"),
        }
    }
    fn pair(a: &str, b: &str) -> Option<(String, String)> {
        Some((a.to_string(), b.to_string()))
    }

    #[test]
    fn version_1() {
        assert_eq!(found(b"PROXY TCP4 1.2.3.4 5.6.7.8 1000 80\r\nGET"), pair("1.2.3.4:1000", "5.6.7.8:80"));
        assert_eq!(found(b"PROXY TCP6 ::1 2001:db8::2 1000 80\r\n"), pair("[::1]:1000", "[2001:db8::2]:80"));
        assert_eq!(found(b"PROXY UNKNOWN\r\n"), None);
        assert_eq!(found(b"PROXY UNKNOWN ffff:f...f:ffff 65535\r\n"), None);
        for bad in [
            &b"PROXY TCP4 1.2.3.4 5.6.7.8 1000\r\n"[..],
            b"PROXY TCP4 ::1 ::2 1 2\r\n",
            b"PROXY TCP4 1.2.3.4 5.6.7.8 99999 80\r\n",
            b"PROXY TCP4 1.2.3.4 5.6.7.8 +1 80\r\n",
            b"PROXY TCP4  1.2.3.4 5.6.7.8 1 80\r\n",
            b"PROXY UDP4 1.2.3.4 5.6.7.8 1 80\r\n",
            b"PROXY \xff\xff\r\n",
            &[&b"PROXY TCP4 "[..], &[b'1'; 200]].concat(),
        ] {
            assert_eq!(parse(bad), Parsed::Bad(0), "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn version_2() {
        let v4 = [1, 2, 3, 4, 5, 6, 7, 8, 0x03, 0xe8, 0, 80];
        assert_eq!(found(&v2_header(0x21, 0x11, &v4)), pair("1.2.3.4:1000", "5.6.7.8:80"));
        let v6 = [&[0u8; 15][..], &[1], &[0; 15], &[2], &[0x03, 0xe8, 0, 80]].concat();
        assert_eq!(found(&v2_header(0x21, 0x21, &v6)), pair("[::1]:1000", "[::2]:80"));
        assert_eq!(found(&v2_header(0x20, 0, &[])), None);
        assert_eq!(found(&v2_header(0x20, 0x11, &v4)), None);
        for (command, family, body) in
            [(0x21, 0x11, &v4[..11]), (0x31, 0x11, &v4[..]), (0x22, 0x11, &v4), (0x21, 0x12, &v4), (0x21, 0x31, &v4), (0x21, 0x00, &v4)]
        {
            assert_eq!(parse(&v2_header(command, family, body)), Parsed::Bad(1));
        }
    }

    #[test]
    fn an_ipv4_header_with_long_tlvs_stays_ipv4() {
        let body = [&[1, 2, 3, 4, 5, 6, 7, 8, 0x03, 0xe8, 0, 80][..], &[0xea, 0, 30], &[b'x'; 30]].concat();
        assert_eq!(found(&v2_header(0x21, 0x11, &body)), pair("1.2.3.4:1000", "5.6.7.8:80"));
    }

    #[test]
    fn every_prefix_needs_more() {
        for whole in [v2_header(0x21, 0x11, &[9; 40]), b"PROXY TCP4 1.2.3.4 5.6.7.8 1000 80\r\n".to_vec()] {
            for len in 0..whole.len() {
                assert_eq!(parse(&whole[..len]), Parsed::NeedMore, "{len}");
            }
        }
        assert_eq!(parse(b"GET / HTTP/1.1"), Parsed::Absent);
        assert_eq!(parse(b"PRI"), Parsed::Absent);
        assert_eq!(parse(&[0x16, 3, 1]), Parsed::Absent);
    }

    proptest! {
        #[test]
        fn never_beyond_what_is_there(tail in proptest::collection::vec(any::<u8>(), 0..300), second in any::<bool>()) {
            let bytes = [if second { &SIGNATURE_V2[..] } else { SIGNATURE_V1 }, &tail].concat();
            if let Parsed::Header(h) = parse(&bytes) {
                prop_assert!(h.len <= bytes.len() && h.tlvs <= h.len);
            }
        }
    }
}
