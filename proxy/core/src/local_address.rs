//! The address by which others know this machine: what `x-forwarded-for` says of clients on the loopback interface, and of
//! requests that the proxy itself makes. Any thread. Source: Envoy's `LocalInfo::address`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

static IPV6: AtomicBool = AtomicBool::new(false);

/// Makes it an IPv6 address (`--local-address-ip-version v6`). To be called before anybody asks.
pub fn use_ipv6() {
    IPV6.store(true, Ordering::Relaxed);
}

/// The source address of the default route; the loopback address where there is none. Looked up once.
pub fn local_address() -> IpAddr {
    static ADDRESS: OnceLock<IpAddr> = OnceLock::new();
    *ADDRESS.get_or_init(|| {
        let (unspecified, target, loopback): (IpAddr, IpAddr, IpAddr) = match IPV6.load(Ordering::Relaxed) {
            true => (Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(), Ipv6Addr::LOCALHOST.into()),
            false => (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(198, 51, 100, 1).into(), Ipv4Addr::LOCALHOST.into()),
        };
        routed_address(unspecified, target).unwrap_or(loopback)
    })
}

/// Connecting a datagram socket chooses the source address and sends nothing. Targets are documentation addresses (RFC 5737, 3849).
fn routed_address(unspecified: IpAddr, target: IpAddr) -> Option<IpAddr> {
    let socket = UdpSocket::bind((unspecified, 0)).ok()?;
    socket.connect((target, 9)).ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_unspecified())
}
