//! Addresses as Envoy names them: IP with port, Unix socket (pipe), internal listener.

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
