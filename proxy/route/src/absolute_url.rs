//! The URLs that redirects lead to. Parsed on workers when the proxy follows a redirect, on the control thread where one is configured.

use nuncio_core::ByteStr;

/// An absolute URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AbsoluteUrl {
    /// In lower case.
    pub scheme: ByteStr,
    /// Host and port, without a user.
    pub authority: ByteStr,
    /// Path and query; `/` if there is none.
    pub path: ByteStr,
}

impl AbsoluteUrl {
    /// None: no URL of this kind. The fragment is left out.
    pub fn parse(location: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(location).ok().filter(|text| text.bytes().all(|b| b.is_ascii_graphic()))?;
        let (scheme, rest) = text.split_once("://")?;
        if scheme.is_empty() || !scheme.bytes().all(|b| b.is_ascii_alphabetic()) {
            return None;
        }
        let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        let port = match authority.rfind(']') {
            Some(end) => authority.get(end + 1..).map(|port| port.strip_prefix(':')).unwrap_or_default(),
            None => authority.split_once(':').map(|(_, port)| port),
        };
        let host = authority.len() - port.map_or(0, |port| port.len() + 1);
        if host == 0 || port.is_some_and(|port| port.parse::<u16>().is_err()) {
            return None;
        }
        // The fragment is the client's.
        let path = path.split('#').next().unwrap_or_default();
        let path = if path.is_empty() { "/" } else { path };
        Some(Self { scheme: scheme.to_ascii_lowercase().into(), authority: authority.into(), path: path.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(location: &str) -> Option<(String, String, String)> {
        let AbsoluteUrl { scheme, authority, path } = AbsoluteUrl::parse(location.as_bytes())?;
        Some((scheme.to_string(), authority.to_string(), path.to_string()))
    }

    #[test]
    fn targets_are_absolute() {
        let all = |s: &str, a: &str, p: &str| Some((s.to_string(), a.to_string(), p.to_string()));
        assert_eq!(target("http://h/p?q=1#frag"), all("http", "h", "/p?q=1"));
        assert_eq!(target("HTTPS://h:8443"), all("https", "h:8443", "/"));
        assert_eq!(target("http://user:pass@[::1]:80/x"), all("http", "[::1]:80", "/x"));
        assert_eq!(target("ftp://h/"), all("ftp", "h", "/"), "the policy decides");
        for bad in ["", "/relative", "//host/p", "http://", "http:///p", "http://h:x/", "http://h:99999/", "http://h /", "h/p"] {
            assert_eq!(target(bad), None, "{bad:?}");
        }
    }
}
