//! The upstream host by name, and the hosts that were tried.

use super::address;
use crate::FormatContext;
use nuncio_core::views::HostView;
use std::slice;
use std::sync::Arc;

/// Which hosts, and what of them.
#[derive(Clone, Copy, Debug)]
pub(crate) enum HostsOf {
    Name,
    NameWithoutPort,
    Addresses,
    AddressesWithoutPort,
    Names,
    NamesWithoutPort,
}

/// The name, or the address of a host that has none.
fn name(out: &mut Vec<u8>, host: &dyn HostView, with_port: bool) {
    match host.hostname() {
        "" if with_port => address::full(out, host.address()),
        "" => address::without_port(out, host.address()),
        name => {
            let port = name.rsplit_once(':').filter(|(_, p)| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()));
            let bare = port.map_or(name, |(host, _)| host);
            out.extend_from_slice(if with_port { name } else { bare }.as_bytes());
        }
    }
}

impl HostsOf {
    /// Appends names or addresses, joined by commas; false if there are none.
    pub fn write(self, cx: &FormatContext<'_>, out: &mut Vec<u8>) -> bool {
        let upstream = cx.info.upstream.as_deref();
        let tried = upstream.map_or(&[][..], |u| u.attempted.as_slice());
        let hosts: &[Arc<dyn HostView>] = match self {
            Self::Name | Self::NameWithoutPort => upstream.and_then(|u| u.host.as_ref()).map_or(&[], slice::from_ref),
            // A request's attempts have an upstream info each, of which Envoy shows the last, and that only once it had a connection.
            _ if cx.info.protocol.is_some() => {
                let connected = upstream.is_some_and(|u| u.connection_id.is_some());
                tried.last().filter(|_| connected).map_or(&[], slice::from_ref)
            }
            _ => tried,
        };
        for (i, host) in hosts.iter().enumerate() {
            if i > 0 {
                out.push(b',');
            }
            match self {
                Self::Addresses => address::full(out, host.address()),
                Self::AddressesWithoutPort => address::without_port(out, host.address()),
                Self::Name | Self::Names => name(out, host.as_ref(), true),
                Self::NameWithoutPort | Self::NamesWithoutPort => name(out, host.as_ref(), false),
            }
        }
        !hosts.is_empty()
    }
}
