//! `envoy.filters.listener.proxy_protocol`: the PROXY header, versions 1 and 2, of a load balancer in front. The header is taken off the
//! socket; the addresses in it become the connection's. Hostile input: a length is believed only as far as bytes arrive, and never
//! beyond 64 KiB, which is the most that the format can say.
//! Source: haproxy's proxy-protocol.txt; Envoy's `proxy_protocol.cc` for what is refused.

use super::peek::More;
use super::{Accepted, Peeked, Verdict};
use base64::Engine;
use nuncio_core::Address;
use nuncio_core::diag::{At, Report};
use nuncio_core::proxy_protocol::{PassTlvs, ProxyTlvs};
use nuncio_core::registry::Server;
use nuncio_proto::Value;
use nuncio_proto::envoy::extensions::filters::listener::proxy_protocol::v3::ProxyProtocol as Proto;
use nuncio_proto::envoy::extensions::filters::listener::proxy_protocol::v3::proxy_protocol::{
    TlvLocation, key_value_pair::ValueStringEncoding,
};
use nuncio_stats::{Counter, Scope};
use nuncio_tls::Transport;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use tokio::io::AsyncReadExt;

const SIGNATURE_V2: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
const HEADER_V2: usize = 16;
const SIGNATURE_V1: &[u8] = b"PROXY ";
/// The longest line of version 1, its end included.
const MAX_V1: usize = 108;
/// Namespace of rules that name none.
const NAMESPACE: &str = "envoy.filters.listener.proxy_protocol";

#[derive(Debug)]
struct Rule {
    tlv: u8,
    namespace: String,
    key: String,
    base64: bool,
}

#[derive(Debug)]
struct VersionStats {
    found: Counter,
    disallowed: Counter,
    error: Counter,
}
impl VersionStats {
    fn new(scope: &Scope, version: &str) -> Self {
        let scope = scope.scope(&format!("versions.{version}."));
        Self { found: scope.counter("found"), disallowed: scope.counter("disallowed"), error: scope.counter("error") }
    }
}

#[derive(Debug)]
pub(super) struct ProxyProtocol {
    rules: Vec<Rule>,
    /// `pass_through_tlvs`: what upstream connections may tell.
    pass: PassTlvs,
    optional: bool,
    /// By version, 1 and 2.
    disallowed: [bool; 2],
    stats: [VersionStats; 2],
    not_found_allowed: Counter,
    not_found_disallowed: Counter,
    /// Envoy's older name for errors of any version.
    error: Counter,
}

/// What a header says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Header {
    /// Source and destination; none for LOCAL and UNKNOWN.
    addresses: Option<(SocketAddr, SocketAddr)>,
    /// Bytes of the header.
    len: usize,
    /// Where TLVs begin in it.
    tlvs: usize,
    version: usize,
}

#[derive(Debug, PartialEq, Eq)]
enum Parsed {
    NeedMore,
    /// No PROXY header.
    Absent,
    /// A header of this version that is broken.
    Bad(usize),
    Header(Header),
}

impl ProxyProtocol {
    pub(super) fn compile(proto: &Proto, server: &Arc<Server>, at: &At<'_>, report: &mut Report) -> Option<Self> {
        let before = report.errors();
        if proto.tlv_location != TlvLocation::DynamicMetadata as i32 {
            report.unsupported(&at.field("tlv_location"), "tlv_location FILTER_STATE");
        }
        let pass = PassTlvs::compile(proto.pass_through_tlvs.as_ref(), &at.field("pass_through_tlvs"), report);
        let mut rules = Vec::new();
        let field = at.field("rules");
        for (i, rule) in proto.rules.iter().enumerate() {
            let at = field.index(i);
            let Ok(tlv) = u8::try_from(rule.tlv_type) else {
                report.error(&at.field("tlv_type"), rule.tlv_type.to_string(), "give 0 to 255");
                continue;
            };
            let Some(pair) = &rule.on_tlv_present else { continue };
            if pair.key.is_empty() {
                report.error(&at.field("on_tlv_present").field("key"), "it is empty", "give a key");
                continue;
            }
            let namespace = if pair.metadata_namespace.is_empty() { NAMESPACE } else { &pair.metadata_namespace };
            let base64 = pair.value_string_encoding == ValueStringEncoding::Base64 as i32;
            rules.push(Rule { tlv, namespace: namespace.to_string(), key: pair.key.clone(), base64 });
        }
        let disallowed = [proto.disallowed_versions.contains(&0), proto.disallowed_versions.contains(&1)];
        if disallowed == [true, true] && !proto.allow_requests_without_proxy_protocol {
            report.error(&at.field("disallowed_versions"), "no version is left", "allow V1, V2 or requests without");
        }
        let suffix = if proto.stat_prefix.is_empty() { String::new() } else { format!("{}.", proto.stat_prefix) };
        let scope = server.stats.root().scope(&format!("proxy_proto.{suffix}"));
        (report.errors() == before).then(|| Self {
            rules,
            pass,
            optional: proto.allow_requests_without_proxy_protocol,
            disallowed,
            stats: [VersionStats::new(&scope, "v1"), VersionStats::new(&scope, "v2")],
            not_found_allowed: scope.counter("not_found_allowed"),
            not_found_disallowed: scope.counter("not_found_disallowed"),
            error: server.stats.root().counter("downstream_cx_proxy_proto_error"),
        })
    }

    pub(super) async fn run(&self, io: &mut Transport, peeked: &mut Peeked, accepted: &mut Accepted) -> Verdict {
        let header = loop {
            match parse(peeked.bytes()) {
                Parsed::NeedMore => match peeked.more(io, HEADER_V2 + usize::from(u16::MAX)).await {
                    Ok(More::Bytes) => {}
                    Ok(More::End | More::Full) => return Verdict::RemoteClosed,
                    Err(_) => return Verdict::Error,
                },
                Parsed::Absent if self.optional => {
                    self.not_found_allowed.inc();
                    return Verdict::Continue;
                }
                Parsed::Absent => {
                    self.not_found_disallowed.inc();
                    self.error.inc();
                    return Verdict::Close("proxy_protocol_not_found");
                }
                Parsed::Bad(version) => {
                    self.failed(version);
                    return Verdict::Close("proxy_protocol_error");
                }
                Parsed::Header(header) => break header,
            }
        };
        if self.disallowed.get(header.version).is_some_and(|d| *d) {
            self.version(header.version, |s| s.disallowed.inc());
            // With requests without a header allowed, what looks like a disallowed one is data, as in Envoy.
            return if self.optional { Verdict::Continue } else { Verdict::Close("proxy_protocol_disallowed") };
        }
        // All of it is in the socket's queue: this does not wait.
        let mut taken = vec![0; header.len];
        if io.read_exact(&mut taken).await.is_err() {
            return Verdict::Error;
        }
        peeked.reset();
        if !self.tlvs(taken.get(header.tlvs..).unwrap_or_default(), accepted) {
            self.failed(header.version);
            return Verdict::Close("proxy_protocol_error");
        }
        self.version(header.version, |s| s.found.inc());
        if let Some((source, destination)) = header.addresses {
            accepted.remote = Address::Ip(source);
            if accepted.local != Address::Ip(destination) {
                accepted.local = Address::Ip(destination);
                accepted.restored = true;
            }
        }
        Verdict::Continue
    }

    fn failed(&self, version: usize) {
        self.error.inc();
        self.version(version, |s| s.error.inc());
    }
    fn version(&self, version: usize, count: impl Fn(&VersionStats)) {
        if let Some(stats) = self.stats.get(version) {
            count(stats);
        }
    }

    /// Keeps what the rules want; false if a length does not fit.
    fn tlvs(&self, mut bytes: &[u8], accepted: &mut Accepted) -> bool {
        let mut passed = Vec::new();
        while let Some((head, rest)) = bytes.split_first_chunk::<3>() {
            let len = usize::from(u16::from_be_bytes([head[1], head[2]]));
            let Some((value, rest)) = rest.split_at_checked(len) else { return false };
            if self.pass.passes(head[0]) {
                passed.push((head[0], value.to_vec()));
            }
            for rule in self.rules.iter().filter(|r| r.tlv == head[0]) {
                let text = match rule.base64 {
                    true => base64::engine::general_purpose::STANDARD.encode(value),
                    false => sanitized(value),
                };
                let value = Value { kind: Some(prost_types::value::Kind::StringValue(text)) };
                let namespace = accepted.metadata.entry(rule.namespace.clone()).or_default();
                namespace.fields.insert(rule.key.clone(), value);
            }
            bytes = rest;
        }
        // Even without any: tcp_proxy then knows that TLVs come from here.
        accepted.filter_state.set(ProxyTlvs::KEY, Arc::new(ProxyTlvs(passed)));
        bytes.is_empty()
    }
}

/// Bytes that are not UTF-8 become `!`, as Envoy's `sanitizeUtf8String`.
fn sanitized(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        out.push_str(chunk.valid());
        out.extend(chunk.invalid().iter().map(|_| '!'));
    }
    out
}

fn parse(bytes: &[u8]) -> Parsed {
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

    #[test]
    fn invalid_utf8_is_marked() {
        assert_eq!(sanitized(b"a\xffb\xc3"), "a!b!");
    }
}
