//! What happens to the authority before routing. Source: `strip_matching_host_port`, `strip_any_host_port`,
//! `strip_trailing_host_dot` of HttpConnectionManager.

use nuncio_core::{ByteStr, ConnectionInfo};

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
        let (host, port) = split_port(authority);
        let mut host = host;
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

/// Host and port of an authority; IPv6 literals keep their brackets.
pub fn split_port(authority: &str) -> (&str, Option<&str>) {
    match authority.rsplit_once(':') {
        Some((host, port))
            if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) && (!host.contains(':') || host.ends_with(']')) =>
        {
            (host, Some(port))
        }
        _ => (authority, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_found() {
        assert_eq!(split_port("a:80"), ("a", Some("80")));
        assert_eq!(split_port("a"), ("a", None));
        assert_eq!(split_port("[::1]:80"), ("[::1]", Some("80")));
        assert_eq!(split_port("[::1]"), ("[::1]", None));
        assert_eq!(split_port("::1"), ("::1", None));
        assert_eq!(split_port("a:"), ("a:", None));
    }
}
