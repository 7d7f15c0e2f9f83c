//! The PROXY protocol on upstream connections: whom a connection is made for, and the header that tells it. Keys are made when a
//! connection is asked for, headers when it is up; both on the worker that connects. Source: Envoy's `ProxyProtocolUpstreamTransport`,
//! `core.v3.PerHostConfig`.

use crate::cluster::Cluster;
use crate::host::Host;
use crate::spec::ProxySocket;
use nuncio_core::info::UpstreamInfo;
use nuncio_core::proxy_protocol::ProxyTlvs;
use nuncio_core::views::{ClusterView, HostView};
use nuncio_core::{Address, ConnectionInfo, StreamInfo};
use nuncio_format::FormatContext;
use nuncio_proto::envoy::config::core::v3::PerHostConfig;
use nuncio_proto::typed::unpack_as;
use nuncio_tls::Transport;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

/// Bytes of a header of version 2 before its addresses.
const HEADER_V2: usize = 16;
/// Typed metadata of endpoints that holds a `PerHostConfig`.
const PER_HOST: &str = "envoy.transport_sockets.proxy_protocol";
/// Counts headers that some TLVs did not fit in.
const EXCEEDED: &str = "upstream.proxyprotocol.v2_tlvs_exceed_max_length";

/// Types and values.
type Tlvs = Vec<(u8, Vec<u8>)>;

/// For whom a connection is made. Part of the pool's key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Proxied {
    source: SocketAddr,
    destination: SocketAddr,
    /// TLVs of the client's own header that go on (version 2).
    passed: Tlvs,
}

impl Proxied {
    /// What `socket` tells of `downstream`; none if that has no IP addresses.
    pub(crate) fn new(socket: &ProxySocket, downstream: &ConnectionInfo) -> Option<Self> {
        let (source, destination) = (downstream.remote.socket()?, downstream.local.socket()?);
        let state = downstream.filter_state.borrow();
        let known = state.get_as::<ProxyTlvs>(ProxyTlvs::KEY).filter(|_| socket.v2);
        let passed = known.into_iter().flat_map(|k| &k.0).filter(|(kind, _)| socket.pass.passes(*kind)).cloned().collect();
        Some(Self { source, destination, passed })
    }
}

/// A connection that is about to tell whom it is for.
#[derive(Clone, Copy)]
pub(crate) struct Told<'a> {
    pub proxied: &'a Proxied,
    pub cluster: &'a Arc<Cluster>,
    pub host: &'a Arc<Host>,
}

/// The header that begins the connection `io`. Without `told` it is nobody's but the proxy's (health checks).
pub(crate) fn header_of(socket: &ProxySocket, told: Option<Told<'_>>, io: &Transport) -> Vec<u8> {
    let Some(told) = told else {
        // Version 1 has no way to say so.
        let end = |address: io::Result<Address>| address.ok().and_then(|a| a.socket()).filter(|_| !socket.v2);
        return proxy_header(socket.v2, end(io.local_addr()).zip(end(io.peer_addr())));
    };
    let mut header = proxy_header(socket.v2, Some((told.proxied.source, told.proxied.destination)));
    if socket.v2 {
        let ends = io.peer_addr().ok().zip(io.local_addr().ok());
        if !append(&mut header, &all(socket, &told, ends)) {
            log::warn!("cluster {}: TLVs of the PROXY protocol are too long, some are left out", ClusterView::name(told.cluster.as_ref()));
            told.cluster.endpoint_stats().counter(EXCEEDED).inc();
        }
    }
    header
}

/// TLVs of the host, then those of the configuration whose types the host has not, then the client's whose types neither has.
fn all(socket: &ProxySocket, told: &Told<'_>, ends: Option<(Address, Address)>) -> Tlvs {
    let mut all = of_host(told.host);
    let kept = |all: &Tlvs, kind: u8| !all.iter().any(|(k, _)| *k == kind);
    let stream = ends.filter(|_| socket.added.has_formats()).map(|(peer, local)| {
        // As in Envoy, formats see the upstream connection itself: its two ends, and the host.
        let mut info = StreamInfo::new(Rc::new(ConnectionInfo::plain(peer, local, "".into())), None);
        info.upstream = Some(Box::new(UpstreamInfo { host: Some(told.host.clone()), ..UpstreamInfo::default() }));
        info
    });
    let mut added = socket.added.values(stream.as_ref().map(FormatContext::new).as_ref());
    added.retain(|(kind, value)| !value.is_empty() && kept(&all, *kind));
    all.extend(added);
    let passed: Tlvs = told.proxied.passed.iter().filter(|(kind, _)| kept(&all, *kind)).cloned().collect();
    all.extend(passed);
    all
}

/// TLVs in the host's metadata. What is not a `PerHostConfig` is left out, as in Envoy.
fn of_host(host: &Host) -> Tlvs {
    let Some(any) = HostView::metadata(host).and_then(|m| m.typed_filter_metadata.get(PER_HOST)) else { return Tlvs::new() };
    match unpack_as::<PerHostConfig>(any) {
        // Envoy cuts the type down to a byte, and knows no formats here.
        Ok(config) => config.added_tlvs.into_iter().map(|tlv| ((tlv.r#type & 0xff) as u8, tlv.value)).collect(),
        Err(why) => {
            log::warn!("{}: metadata {PER_HOST} has no TLVs that can be told: {why}", host.address());
            Tlvs::new()
        }
    }
}

/// The PROXY protocol header that tells `addresses` (client, server); `UNKNOWN`/LOCAL if there are none.
pub fn proxy_header(v2: bool, addresses: Option<(SocketAddr, SocketAddr)>) -> Vec<u8> {
    // Both ends must be of one family; an IPv4 beside an IPv6 is told as mapped.
    let addresses = addresses.map(|(a, b)| match (a, b) {
        (SocketAddr::V4(x), SocketAddr::V6(_)) => (SocketAddr::new(x.ip().to_ipv6_mapped().into(), x.port()), b),
        (SocketAddr::V6(_), SocketAddr::V4(y)) => (a, SocketAddr::new(y.ip().to_ipv6_mapped().into(), y.port())),
        _ => (a, b),
    });
    if !v2 {
        return match addresses {
            None => b"PROXY UNKNOWN\r\n".to_vec(),
            Some((a, b)) => {
                let family = if a.is_ipv4() { "TCP4" } else { "TCP6" };
                format!("PROXY {family} {} {} {} {}\r\n", a.ip(), b.ip(), a.port(), b.port()).into_bytes()
            }
        };
    }
    let mut out = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    match addresses {
        None => out.extend([0x20, 0x00, 0x00, 0x00]),
        Some((SocketAddr::V4(a), SocketAddr::V4(b))) => {
            out.extend([0x21, 0x11, 0x00, 12]);
            out.extend(a.ip().octets());
            out.extend(b.ip().octets());
            out.extend(a.port().to_be_bytes());
            out.extend(b.port().to_be_bytes());
        }
        Some((SocketAddr::V6(a), SocketAddr::V6(b))) => {
            out.extend([0x21, 0x21, 0x00, 36]);
            out.extend(a.ip().octets());
            out.extend(b.ip().octets());
            out.extend(a.port().to_be_bytes());
            out.extend(b.port().to_be_bytes());
        }
        // Made alike above.
        Some(_) => out.extend([0x20, 0x00, 0x00, 0x00]),
    }
    out
}

/// Puts TLVs behind `header` of version 2; false if some did not fit and were left out.
fn append(header: &mut Vec<u8>, tlvs: &Tlvs) -> bool {
    let mut fit = true;
    for (kind, value) in tlvs {
        let length = header.len().saturating_sub(HEADER_V2) + 3 + value.len();
        let (Ok(total), Ok(own)) = (u16::try_from(length), u16::try_from(value.len())) else {
            fit = false;
            continue;
        };
        header.push(*kind);
        header.extend(own.to_be_bytes());
        header.extend_from_slice(value);
        if let Some(place) = header.get_mut(HEADER_V2 - 2..HEADER_V2) {
            place.copy_from_slice(&total.to_be_bytes());
        }
    }
    fit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tlvs_follow_addresses() {
        let pair = Some(("10.0.0.1:1000".parse().unwrap(), "10.0.0.2:80".parse().unwrap()));
        let mut header = proxy_header(true, pair);
        assert!(append(&mut header, &vec![(2, b"x".to_vec()), (3, Vec::new())]));
        assert_eq!((&header[14..16], &header[28..]), (&[0, 19][..], &[2, 0, 1, b'x', 3, 0, 0][..]));
        let mut header = proxy_header(true, pair);
        // One too long, one that just fits.
        assert!(!append(&mut header, &vec![(1, vec![0; 65_521]), (2, vec![0; 65_520])]));
        assert_eq!((header.len(), header[28]), (16 + 65_535, 2));
    }
    #[test]
    fn proxy_headers() {
        let pair = Some(("10.0.0.1:1000".parse().unwrap(), "10.0.0.2:80".parse().unwrap()));
        assert_eq!(proxy_header(false, pair), b"PROXY TCP4 10.0.0.1 10.0.0.2 1000 80\r\n");
        assert_eq!(proxy_header(false, None), b"PROXY UNKNOWN\r\n");
        assert_eq!(proxy_header(true, pair)[12..], [0x21, 0x11, 0, 12, 10, 0, 0, 1, 10, 0, 0, 2, 3, 232, 0, 80]);
        let mixed = Some(("[2001:db8::1]:1".parse().unwrap(), "10.0.0.2:80".parse().unwrap()));
        assert_eq!(proxy_header(false, mixed), b"PROXY TCP6 2001:db8::1 ::ffff:10.0.0.2 1 80\r\n");
        assert_eq!(proxy_header(true, mixed).len(), 16 + 36);
    }
}
