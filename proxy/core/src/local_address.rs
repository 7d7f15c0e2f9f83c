//! The address by which others know this machine: what `x-forwarded-for` says of clients on the loopback interface, and of
//! requests that the proxy itself makes. Any thread. Source: Envoy's `LocalInfo::address`.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::OnceLock;

/// The source address of the default route; the loopback address where there is none. Looked up once.
pub fn local_address() -> IpAddr {
    static ADDRESS: OnceLock<IpAddr> = OnceLock::new();
    *ADDRESS.get_or_init(|| routed_address().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)))
}

/// Connecting a datagram socket chooses the source address and sends nothing. The target is a documentation address (RFC 5737).
fn routed_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((Ipv4Addr::new(198, 51, 100, 1), 9)).ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_unspecified())
}
