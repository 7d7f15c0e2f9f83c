//! Names as the dynamic forward proxy keys them: `host:port`. Any thread.

use std::net::IpAddr;

/// Host (without brackets) and port of an authority.
pub(super) fn split(authority: &str) -> (&str, Option<u16>) {
    if let Some(rest) = authority.strip_prefix('[')
        && let Some((host, after)) = rest.split_once(']')
    {
        return (host, after.strip_prefix(':').and_then(|p| p.parse().ok()));
    }
    match authority.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') => match port.parse() {
            Ok(port) => (host, Some(port)),
            Err(_) => (authority, None),
        },
        _ => (authority, None),
    }
}

/// `host:port`, with `default` for authorities without port. Source: Envoy's `normalizeHostForDfp`.
pub(super) fn key(authority: &str, default: u16) -> String {
    match split(authority) {
        (_, Some(_)) => authority.to_string(),
        (host, None) if host.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6()) => format!("[{host}]:{default}"),
        (host, None) => format!("{host}:{default}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities_are_split() {
        for (authority, host, port, name) in [
            ("a.test", "a.test", None, "a.test:80"),
            ("a.test:8080", "a.test", Some(8080), "a.test:8080"),
            ("[::1]", "::1", None, "[::1]:80"),
            ("[::1]:443", "::1", Some(443), "[::1]:443"),
            ("::1", "::1", None, "[::1]:80"),
            ("a.test:99999", "a.test:99999", None, "a.test:99999:80"),
            ("a.test:", "a.test:", None, "a.test::80"),
            ("", "", None, ":80"),
        ] {
            assert_eq!((split(authority), key(authority, 80).as_str()), ((host, port), name), "{authority}");
        }
    }
}
