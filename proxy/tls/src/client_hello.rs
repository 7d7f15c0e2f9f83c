//! SNI and ALPN of a ClientHello that was peeked from a socket. Hostile input: every length is checked against what is there, and
//! nothing is copied but the names that are wanted. Called by the tls_inspector listener filter on the workers.

use std::borrow::Cow;

/// Most bytes of a ClientHello (records included) that are looked at. Envoy: `TLS_MAX_CLIENT_HELLO`, 64 KiB.
pub const MAX_CLIENT_HELLO: usize = 64 * 1024;

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const RECORD_HEADER: usize = 5;
/// RFC 8446 5.1: the most that a plaintext record holds.
const MAX_RECORD: usize = 16 * 1024;

/// What the bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// So far a ClientHello; more bytes are needed.
    NeedMore,
    /// Not TLS, or a ClientHello that breaks its own lengths.
    NotTls,
    Hello(ClientHello),
}

/// The parts of a ClientHello that filter-chain match needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientHello {
    /// Lower-case server name; none if the client sent none or it is not a host name.
    pub sni: Option<String>,
    /// Offered protocols in the client's order; those that are not UTF-8 are left out, because no configuration can name them.
    pub alpn: Vec<String>,
    /// Bytes to the end of the record in which the hello ends, headers included; they need not all have come.
    pub len: usize,
}

/// Reads as much of a ClientHello as `bytes` hold, from the first byte of the connection. Never looks beyond [`MAX_CLIENT_HELLO`]; a
/// hello that claims to be larger is `NotTls`.
pub fn parse(bytes: &[u8]) -> Parsed {
    match message(bytes) {
        Err(end) => end,
        Ok((body, len)) => hello(&body, len).map_or(Parsed::NotTls, Parsed::Hello),
    }
}

/// The handshake message's body, put together from its records if there are several, and the bytes that it took.
fn message(bytes: &[u8]) -> Result<(Cow<'_, [u8]>, usize), Parsed> {
    let mut joined: Vec<u8> = Vec::new();
    let mut at = 0;
    loop {
        let rest = bytes.get(at..).unwrap_or_default();
        // Refuse as soon as a byte is wrong: plaintext protocols must not wait for five bytes.
        if rest.first().is_some_and(|t| *t != HANDSHAKE) || rest.get(1).is_some_and(|major| *major != 3) {
            return Err(Parsed::NotTls);
        }
        let Some((header, rest)) = rest.split_first_chunk::<RECORD_HEADER>() else { return Err(Parsed::NeedMore) };
        let len = usize::from(u16::from_be_bytes([header[3], header[4]]));
        if len == 0 || len > MAX_RECORD {
            return Err(Parsed::NotTls);
        }
        let have = rest.get(..len).unwrap_or(rest);
        let whole = have.len() == len;
        let first = at == 0;
        at += RECORD_HEADER + len;
        if !first || !whole {
            joined.extend_from_slice(have);
        }
        let current: &[u8] = if first && whole { have } else { &joined };
        if current.first().is_some_and(|t| *t != CLIENT_HELLO) {
            return Err(Parsed::NotTls);
        }
        if let Some((head, body)) = current.split_first_chunk::<4>() {
            let len = usize::from(head[1]) << 16 | usize::from(head[2]) << 8 | usize::from(head[3]);
            if len + 4 > MAX_CLIENT_HELLO {
                return Err(Parsed::NotTls);
            }
            if body.len() >= len {
                return match first && whole {
                    true => Ok((Cow::Borrowed(have.get(4..4 + len).unwrap_or_default()), at)),
                    false => {
                        joined.drain(..4);
                        joined.truncate(len);
                        Ok((Cow::Owned(joined), at))
                    }
                };
            }
        }
        if !whole {
            return Err(if bytes.len() >= MAX_CLIENT_HELLO { Parsed::NotTls } else { Parsed::NeedMore });
        }
        if first {
            joined.extend_from_slice(have);
        }
        if at >= MAX_CLIENT_HELLO {
            return Err(Parsed::NotTls);
        }
    }
}

/// A cursor over bytes with TLS's length prefixes.
struct Reader<'a>(&'a [u8]);
impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(head)
    }
    fn u8(&mut self) -> Option<usize> {
        self.take(1)?.first().map(|b| usize::from(*b))
    }
    fn u16(&mut self) -> Option<usize> {
        let b: [u8; 2] = self.take(2)?.try_into().ok()?;
        Some(usize::from(u16::from_be_bytes(b)))
    }
    fn vec8(&mut self) -> Option<Reader<'a>> {
        let n = self.u8()?;
        self.take(n).map(Reader)
    }
    fn vec16(&mut self) -> Option<Reader<'a>> {
        let n = self.u16()?;
        self.take(n).map(Reader)
    }
}

/// RFC 8446 4.1.2. None if a length does not fit.
fn hello(body: &[u8], len: usize) -> Option<ClientHello> {
    let mut r = Reader(body);
    r.take(2 + 32)?; // legacy_version, random
    r.vec8()?; // session id
    r.vec16()?; // cipher suites
    r.vec8()?; // compression methods
    let mut out = ClientHello { len, ..ClientHello::default() };
    if r.0.is_empty() {
        return Some(out); // TLS 1.2 without extensions
    }
    let mut extensions = r.vec16()?;
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let mut data = extensions.vec16()?;
        match kind {
            0 => {
                // RFC 6066: a list of typed names; only host_name (0) exists, and at most one.
                let mut list = data.vec16()?;
                while !list.0.is_empty() {
                    let kind = list.u8()?;
                    let name = list.vec16()?;
                    if kind == 0 && out.sni.is_none() {
                        out.sni = host_name(name.0);
                    }
                }
            }
            16 => {
                let mut list = data.vec16()?;
                while !list.0.is_empty() {
                    let name = list.vec8()?;
                    if let Ok(name) = std::str::from_utf8(name.0) {
                        out.alpn.push(name.to_string());
                    }
                }
            }
            _ => {}
        }
    }
    Some(out)
}

fn host_name(name: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(name).ok()?;
    let fits = !text.is_empty() && text.len() <= 255 && text.bytes().all(|b| b.is_ascii_graphic());
    fits.then(|| text.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn vec16(body: &[u8]) -> Vec<u8> {
        [&(body.len() as u16).to_be_bytes()[..], body].concat()
    }
    fn extension(kind: u16, body: &[u8]) -> Vec<u8> {
        [kind.to_be_bytes().to_vec(), vec16(body)].concat()
    }
    /// A ClientHello with SNI and ALPN and `pad` bytes of an unknown extension, cut into records of at most `record` bytes.
    fn sample(sni: &str, alpn: &[&str], pad: usize, record: usize) -> Vec<u8> {
        let mut extensions = extension(0xfafa, &vec![0; pad]);
        if !sni.is_empty() {
            extensions.extend(extension(0, &vec16(&[&[0][..], &vec16(sni.as_bytes())].concat())));
        }
        if !alpn.is_empty() {
            let list: Vec<u8> = alpn.iter().flat_map(|p| [&[p.len() as u8][..], p.as_bytes()].concat()).collect();
            extensions.extend(extension(16, &vec16(&list)));
        }
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.push(0);
        body.extend(vec16(&[0x13, 0x01]));
        body.extend([1, 0]);
        body.extend(vec16(&extensions));
        let mut message = vec![1, (body.len() >> 16) as u8, (body.len() >> 8) as u8, body.len() as u8];
        message.extend(body);
        message.chunks(record).flat_map(|c| [&[22, 3, 1][..], &vec16(c)].concat()).collect()
    }

    #[test]
    fn sni_and_alpn() {
        let bytes = sample("A.Example.com", &["h2", "http/1.1"], 0, 16384);
        let Parsed::Hello(hello) = parse(&bytes) else { panic!() };
        assert_eq!(hello, ClientHello { sni: Some("a.example.com".into()), alpn: vec!["h2".into(), "http/1.1".into()], len: bytes.len() });
    }

    #[test]
    fn every_prefix_needs_more() {
        for record in [16384, 50] {
            let bytes = sample("outbound_.80_._.a.ns.svc.cluster.local", &["istio"], 300, record);
            for len in 0..bytes.len() {
                assert_eq!(parse(&bytes[..len]), Parsed::NeedMore, "{len}");
            }
            assert!(matches!(parse(&bytes), Parsed::Hello(_)));
        }
    }

    #[test]
    fn plaintext_is_known_at_the_first_byte() {
        assert_eq!(parse(b"G"), Parsed::NotTls);
        assert_eq!(parse(b"PRI * HTTP/2.0"), Parsed::NotTls);
        assert_eq!(parse(&[22, 2]), Parsed::NotTls);
        assert_eq!(parse(&[22, 3, 1, 0, 0]), Parsed::NotTls);
        assert_eq!(parse(&[22, 3, 1, 0, 1, 2]), Parsed::NotTls);
        assert_eq!(parse(&[]), Parsed::NeedMore);
    }

    #[test]
    fn size_is_bounded() {
        assert_eq!(parse(&[22, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff]), Parsed::NotTls);
        assert!(matches!(parse(&sample("a.b", &[], 60_000, 16384)), Parsed::Hello(_)));
        // One byte per record makes the framing six times the message.
        assert_eq!(parse(&sample("a.b", &[], 20_000, 1)), Parsed::NotTls);
    }

    #[test]
    fn lying_lengths_are_refused() {
        let good = sample("a.example.com", &["h2"], 0, 16384);
        for at in 9..good.len() {
            let mut bad = good.clone();
            bad[at] = 0xff;
            // Whatever it is taken for, it must not be read beyond its end.
            let _any = parse(&bad);
        }
        assert_eq!(host_name(b"a\0b"), None);
        assert_eq!(host_name(b""), None);
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..600), cut in 1usize..200) {
            let _any = parse(&bytes);
            let mut framed = vec![22, 3, 1];
            framed.extend(vec16(&[&[1, 0, 1, 0][..], &bytes].concat()));
            framed.truncate(cut.max(5));
            let _any = parse(&framed);
        }
    }
}
