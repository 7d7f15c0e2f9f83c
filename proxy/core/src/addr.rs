//! Addresses as Envoy names them: IP with port, Unix socket (pipe), internal listener.

use nuncio_proto::envoy::config::core::v3 as core;
use std::{fmt, net::SocketAddr, sync::Arc};

/// Where a socket is bound or connects to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    Ip(SocketAddr),
    /// Unix domain socket path; a leading `@` is Linux's abstract namespace.
    Pipe(Arc<str>),
    /// `envoy_internal_address`: listener name and endpoint id.
    Internal(Arc<str>, Arc<str>),
}

impl Address {
    /// The address in Envoy's API.
    pub fn to_proto(&self) -> core::Address {
        use core::address::Address as Kind;
        use core::envoy_internal_address::AddressNameSpecifier;
        let kind = match self {
            Self::Ip(socket) => Kind::SocketAddress(core::SocketAddress {
                address: socket.ip().to_string(),
                port_specifier: Some(core::socket_address::PortSpecifier::PortValue(u32::from(socket.port()))),
                ..Default::default()
            }),
            Self::Pipe(path) => Kind::Pipe(core::Pipe { path: path.to_string(), mode: 0 }),
            Self::Internal(listener, endpoint_id) => Kind::EnvoyInternalAddress(core::EnvoyInternalAddress {
                endpoint_id: endpoint_id.to_string(),
                address_name_specifier: Some(AddressNameSpecifier::ServerListenerName(listener.to_string())),
            }),
        };
        core::Address { address: Some(kind) }
    }
    /// The IP address and port, if it is one.
    pub fn socket(&self) -> Option<SocketAddr> {
        match self {
            Self::Ip(a) => Some(*a),
            _ => None,
        }
    }
    /// The IP in text without port; the path of a pipe.
    pub fn without_port(&self) -> String {
        match self {
            Self::Ip(a) => a.ip().to_string(),
            other => other.to_string(),
        }
    }
}
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(a) => fmt::Display::fmt(a, f),
            Self::Pipe(p) => f.write_str(p),
            Self::Internal(l, e) => write!(f, "envoy://{l}/{e}"),
        }
    }
}
