//! What tells one pool from another: host, transport socket, protocol, and whatever else changes the handshake.

use crate::cluster::Cluster;
use crate::context::{OpenOptions, RoutingPriority};
use crate::host::Host;
use crate::pool::proxy::Proxied;
use crate::spec::{ProtocolMode, Socket};
use hashbrown::Equivalent;
use nuncio_core::filter_state::{ApplicationProtocols, OriginalSource};
use nuncio_core::{HttpVersion, RequestHead};
use std::borrow::Cow;
use std::hash::{Hash, Hasher};
use std::net::IpAddr;

/// Protocol that a pool's connections speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Speaks {
    H1,
    H2,
    /// What ALPN says.
    Auto,
}

/// A key in pieces that are borrowed from a request.
#[derive(Clone, Debug)]
pub(crate) struct KeyRef<'a> {
    pub host: u64,
    pub transport: u16,
    pub speaks: Speaks,
    pub priority: RoutingPriority,
    pub alpn: Option<&'a ApplicationProtocols>,
    pub sni: Option<Cow<'a, str>>,
    pub sans: Option<Cow<'a, [String]>>,
    pub proxied: Option<Proxied>,
    /// Where connections are to come from (original_src).
    pub origin: Option<OriginalSource>,
    /// `connection_pool_per_downstream_connection`.
    pub downstream: u64,
}

/// A key in the pool map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    pub host: u64,
    pub transport: u16,
    pub speaks: Speaks,
    pub priority: RoutingPriority,
    pub alpn: Option<Box<[Vec<u8>]>>,
    pub sni: Option<Box<str>>,
    pub sans: Option<Box<[String]>>,
    pub proxied: Option<Proxied>,
    pub origin: Option<OriginalSource>,
    pub downstream: u64,
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // What differs in practice; the rest is compared.
        (self.host, self.transport, self.speaks, self.downstream).hash(state);
        self.sni.as_deref().hash(state);
    }
}
impl Hash for KeyRef<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.host, self.transport, self.speaks, self.downstream).hash(state);
        self.sni.as_deref().hash(state);
    }
}

impl Equivalent<Key> for KeyRef<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        let same_alpn = match (self.alpn, &key.alpn) {
            (None, None) => true,
            (Some(a), Some(b)) => a.0.len() == b.len() && a.0.iter().zip(b).all(|(a, b)| a.as_bytes() == b.as_slice()),
            _ => false,
        };
        self.host == key.host
            && self.transport == key.transport
            && self.speaks == key.speaks
            && self.priority == key.priority
            && same_alpn
            && self.sni.as_deref() == key.sni.as_deref()
            && self.sans.as_deref() == key.sans.as_deref()
            && self.proxied == key.proxied
            && self.origin == key.origin
            && self.downstream == key.downstream
    }
}

impl<'a> KeyRef<'a> {
    /// The key of a connection that is not pooled (tcp_proxy): the transport socket's own ALPN, no codec.
    pub(crate) fn raw(cluster: &Cluster, host: &Host, options: &OpenOptions<'a>) -> Self {
        Self::with(cluster, host, Speaks::Auto, None, options)
    }
    /// The key of an HTTP request.
    pub(crate) fn http(cluster: &Cluster, host: &Host, request: &'a RequestHead, options: &OpenOptions<'a>) -> Self {
        let speaks = match cluster.spec.http.mode {
            ProtocolMode::H1 => Speaks::H1,
            ProtocolMode::H2 => Speaks::H2,
            ProtocolMode::Auto => Speaks::Auto,
            ProtocolMode::UseDownstream => match options.downstream_protocol {
                Some(HttpVersion::Http2 | HttpVersion::Http3) => Speaks::H2,
                _ => Speaks::H1,
            },
        };
        Self::with(cluster, host, speaks, Some(request), options)
    }
    fn with(cluster: &Cluster, host: &Host, speaks: Speaks, request: Option<&'a RequestHead>, options: &OpenOptions<'a>) -> Self {
        let mut key = Self {
            host: host.id,
            transport: host.transport,
            speaks,
            priority: options.priority,
            alpn: None,
            sni: None,
            sans: None,
            proxied: None,
            origin: options.downstream.and_then(|d| d.filter_state.borrow().get_as::<OriginalSource>(OriginalSource::KEY).copied()),
            downstream: 0,
        };
        if cluster.spec.pool_per_downstream {
            key.downstream = options.downstream.map_or(0, |d| d.id);
        }
        let Some(socket) = cluster.spec.transports.get(usize::from(host.transport)).map(|t| &t.socket) else { return key };
        if matches!(socket, Socket::Raw) {
            return key;
        }
        if let Socket::Proxy(proxy) = socket {
            key.proxied = options.downstream.and_then(|d| Proxied::new(proxy, d));
        }
        if socket.tls().is_some() {
            key.alpn = options.alpn;
            key.sni = options.sni.map(Cow::Borrowed);
            key.sans = options.sans.map(Cow::Borrowed);
            if let Some(request) = request {
                key.automatic(cluster, request);
            }
        }
        key
    }
    /// `auto_sni` and `auto_san_validation`. Source: Envoy's router, `decodeHeaders`.
    fn automatic(&mut self, cluster: &Cluster, request: &'a RequestHead) {
        let http = &cluster.spec.http;
        if !http.auto_sni && !http.auto_san {
            return;
        }
        let named: Cow<'a, str> = match &http.auto_sni_header {
            None => Cow::Borrowed(request.authority.as_str()),
            Some(header) => match request.header(header) {
                Some(value) => Cow::Owned(String::from_utf8_lossy(&value).into_owned()),
                None => Cow::Borrowed(request.authority.as_str()),
            },
        };
        let (name, is_ip) = host_of(&named);
        if name.is_empty() {
            return;
        }
        let range = named.find(name).unwrap_or(0);
        let name: Cow<'a, str> = match &named {
            Cow::Borrowed(text) => Cow::Borrowed(text.get(range..range + name.len()).unwrap_or_default()),
            Cow::Owned(_) => Cow::Owned(name.to_string()),
        };
        if http.auto_san && self.sans.is_none() {
            self.sans = Some(Cow::Owned(vec![name.to_string()]));
        }
        if http.auto_sni && !is_ip && self.sni.is_none() {
            self.sni = Some(name);
        }
    }
    /// The key to keep.
    pub(crate) fn to_owned(&self) -> Key {
        Key {
            host: self.host,
            transport: self.transport,
            speaks: self.speaks,
            priority: self.priority,
            alpn: self.alpn.map(|a| a.0.iter().map(|p| p.as_bytes().to_vec()).collect()),
            sni: self.sni.as_deref().map(Into::into),
            sans: self.sans.as_deref().map(Into::into),
            proxied: self.proxied.clone(),
            origin: self.origin,
            downstream: self.downstream,
        }
    }
}

/// The host of an authority without port, and whether it is an IP address.
fn host_of(authority: &str) -> (&str, bool) {
    if let Some(rest) = authority.strip_prefix('[') {
        return (rest.split(']').next().unwrap_or_default(), true);
    }
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !host.contains(':') => host,
        _ => authority,
    };
    (host, host.parse::<IpAddr>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::host_of;

    #[test]
    fn hosts_of_authorities() {
        for (authority, host, ip) in [
            ("example.com", "example.com", false),
            ("example.com:8080", "example.com", false),
            ("10.0.0.1:80", "10.0.0.1", true),
            ("[2001:db8::1]:443", "2001:db8::1", true),
            ("2001:db8::1", "2001:db8::1", true),
            ("", "", false),
        ] {
            assert_eq!(host_of(authority), (host, ip), "{authority}");
        }
    }
}
