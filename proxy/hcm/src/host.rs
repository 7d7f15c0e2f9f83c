//! What happens to the authority before routing. Source: `strip_matching_host_port`, `strip_any_host_port`,
//! `strip_trailing_host_dot` of HttpConnectionManager.

use nuncio_core::{ByteStr, ConnectionInfo};
use nuncio_route::split_port;

/// Which port is taken off the authority.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StripPort {
    #[default]
    None,
    /// The listener's own port.
    Matching,
    Any,
}

/// Authority policy.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostPolicy {
    pub strip_port: StripPort,
    pub strip_trailing_dot: bool,
}

impl HostPolicy {
    /// The authority to use instead, none if it stays.
    pub fn apply(&self, authority: &ByteStr, connection: &ConnectionInfo) -> Option<ByteStr> {
        if self.strip_port == StripPort::None && !self.strip_trailing_dot {
            return None;
        }
        let (mut host, port) = match split_port(authority) {
            (host, Some(port)) if port.parse::<u32>().is_ok() => (host, Some(port)),
            _ => (authority.as_str(), None),
        };
        let mut kept = port;
        if self.strip_trailing_dot {
            host = host.strip_suffix('.').unwrap_or(host);
        }
        if let Some(port) = port {
            let matches = connection.local.socket().is_some_and(|a| a.port().to_string() == port);
            if self.strip_port == StripPort::Any || (self.strip_port == StripPort::Matching && matches) {
                kept = None;
            }
        }
        let new = match kept {
            Some(port) => format!("{host}:{port}"),
            None => host.to_string(),
        };
        (new != authority.as_str()).then(|| new.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_stripped() {
        let policy = HostPolicy { strip_port: StripPort::Any, strip_trailing_dot: true };
        let connection = nuncio_core::test_kit::stream_info().connection;
        let stripped = |host: &str| policy.apply(&host.into(), &connection).map(|h| h.to_string());
        for (host, wanted) in [("a:80", "a"), ("a.:80", "a"), ("[::1]:80", "[::1]")] {
            assert_eq!(stripped(host).as_deref(), Some(wanted), "{host}");
        }
        for host in ["a", "[::1]", "a:", "a:x"] {
            assert_eq!(stripped(host), None, "{host}");
        }
    }
}
