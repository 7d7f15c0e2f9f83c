//! Filter-chain match: an index compiled once per listener, level by level in Envoy's order (`filter_chain_manager_impl.cc`):
//! destination port, destination IP, server name, transport protocol, application protocol, direct source IP, source type, source IP,
//! source port. At each level the most specific entry wins, and there is no way back: if it holds no match further down, the
//! listener's default chain is taken.

use hashbrown::HashMap;
use nuncio_core::diag::{At, Report};
use nuncio_matcher::Cidr;
use nuncio_proto::envoy::config::listener::v3::FilterChainMatch;
use nuncio_proto::envoy::config::listener::v3::filter_chain_match::ConnectionSourceType;
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};

type Map<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// What a connection is matched by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts<'a> {
    /// Destination after original_dst; none for a Unix socket.
    pub local: Option<SocketAddr>,
    /// Lower-case SNI, empty if none.
    pub server_name: &'a str,
    /// `tls` or `raw_buffer`, or what a filter detected.
    pub transport: &'a str,
    pub protocols: &'a [String],
    /// The socket's peer; none for a Unix socket.
    pub direct_remote: Option<SocketAddr>,
    /// The peer after proxy_protocol.
    pub remote: Option<SocketAddr>,
}

/// One level: exact keys, and the entry of those that do not care.
#[derive(Debug)]
struct Level<K, V> {
    exact: Map<K, V>,
    any: Option<Box<V>>,
}
impl<K, V> Default for Level<K, V> {
    fn default() -> Self {
        Self { exact: Map::default(), any: None }
    }
}
impl<K: Hash + Eq, V: Default> Level<K, V> {
    fn entry(&mut self, key: Option<K>) -> &mut V {
        match key {
            Some(key) => self.exact.entry(key).or_default(),
            None => self.any.get_or_insert_default(),
        }
    }
}

/// A level by IP prefix: one map per prefix length that occurs, longest first.
#[derive(Debug)]
struct Prefixes<V> {
    lengths: Vec<(u8, Map<Cidr, V>)>,
    any: Option<Box<V>>,
}
impl<V> Default for Prefixes<V> {
    fn default() -> Self {
        Self { lengths: Vec::new(), any: None }
    }
}
impl<V: Default> Prefixes<V> {
    fn entry(&mut self, range: Option<Cidr>) -> &mut V {
        let Some(range) = range else { return self.any.get_or_insert_default() };
        let length = range.length();
        let at = self.lengths.partition_point(|(l, _)| *l > length);
        if self.lengths.get(at).is_none_or(|(l, _)| *l != length) {
            self.lengths.insert(at, (length, Map::default()));
        }
        // The index was just made sure of.
        #[allow(clippy::indexing_slicing)]
        self.lengths[at].1.entry(range).or_default()
    }
    fn find(&self, ip: Option<IpAddr>) -> Option<&V> {
        if let (Some(ip), false) = (ip, self.lengths.is_empty()) {
            let ip = ip.to_canonical();
            for (length, ranges) in &self.lengths {
                if let Some(found) = Cidr::new(ip, *length).and_then(|range| ranges.get(&range)) {
                    return Some(found);
                }
            }
        }
        self.any.as_deref()
    }
}

type SourcePorts = Level<u16, Option<usize>>;
type SourceIps = Prefixes<SourcePorts>;
#[derive(Debug, Default)]
struct SourceTypes {
    any: Option<Box<SourceIps>>,
    local: Option<Box<SourceIps>>,
    external: Option<Box<SourceIps>>,
}
type DirectSources = Prefixes<SourceTypes>;
type Protocols = Level<Box<str>, DirectSources>;
type Transports = Level<Box<str>, Protocols>;
/// Exact names, and wildcards as `.example.com`.
type Names = Level<Box<str>, Transports>;
type DestinationIps = Prefixes<Names>;

/// The index of a listener's chains.
#[derive(Debug, Default)]
pub(crate) struct ChainIndex {
    ports: Level<u16, DestinationIps>,
    default: Option<usize>,
}

impl ChainIndex {
    /// Builds the index of chains 0.. from their matches; `names` are for messages. `default` is the index of `default_filter_chain`.
    pub(crate) fn compile(
        matches: &[Option<&FilterChainMatch>],
        names: &[&str],
        default: Option<usize>,
        at: &At<'_>,
        report: &mut Report,
    ) -> Option<Self> {
        let mut index = Self { default, ..Self::default() };
        let before = report.errors();
        let empty = FilterChainMatch::default();
        let label = |i: usize| names.get(i).filter(|n| !n.is_empty()).map_or_else(|| format!("filter_chains[{i}]"), |n| format!("`{n}`"));
        for (i, proto) in matches.iter().enumerate() {
            let proto = proto.unwrap_or(&empty);
            let here = at.index(i);
            let here = here.field("filter_chain_match");
            let same = matches.iter().take(i).position(|other| other.unwrap_or(&empty) == proto);
            if let Some(first) = same {
                let found = format!("filter chain {} has the same matching rules defined as {}", label(i), label(first));
                report.error(&here, found, "let each filter chain match something of its own");
                continue;
            }
            if let Some(first) = index.add(proto, i, &here, report) {
                let found = format!("filter chain {} has matching rules that overlap with those of {}", label(i), label(first));
                report.error(&here, found, "let each combination of criteria occur in one filter chain");
            }
        }
        (report.errors() == before).then_some(index)
    }

    /// Adds one chain; gives a chain that has the same combination of criteria, if there is one.
    fn add(&mut self, proto: &FilterChainMatch, chain: usize, at: &At<'_>, report: &mut Report) -> Option<usize> {
        let fields = Fields::compile(proto, at, report)?;
        let mut taken = None;
        for range in &fields.destinations {
            for name in &fields.names {
                for transport in &fields.transports {
                    for protocol in &fields.protocols {
                        for direct in &fields.direct {
                            for source in &fields.sources {
                                for port in &fields.source_ports {
                                    let names = self.ports.entry(fields.port).entry(*range).entry(name.clone());
                                    let types = names.entry(transport.clone()).entry(protocol.clone()).entry(*direct);
                                    let ips = match fields.source_type {
                                        ConnectionSourceType::Any => &mut types.any,
                                        ConnectionSourceType::SameIpOrLoopback => &mut types.local,
                                        ConnectionSourceType::External => &mut types.external,
                                    };
                                    let leaf = ips.get_or_insert_default().entry(*source).entry(*port);
                                    match leaf {
                                        Some(other) => taken = Some(*other),
                                        None => *leaf = Some(chain),
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
        taken
    }

    /// The chain of a connection; none if it is to be closed (`no_filter_chain_match`).
    pub(crate) fn find(&self, facts: &Facts<'_>) -> Option<usize> {
        self.find_matching(facts).or(self.default)
    }

    fn find_matching(&self, facts: &Facts<'_>) -> Option<usize> {
        let ports = facts.local.and_then(|a| self.ports.exact.get(&a.port())).or(self.ports.any.as_deref())?;
        let names = ports.find(facts.local.map(|a| a.ip()))?;
        let transports = by_name(names, facts.server_name)?;
        let protocols = transports.exact.get(facts.transport).or(transports.any.as_deref())?;
        let direct = facts.protocols.iter().find_map(|p| protocols.exact.get(p.as_str())).or(protocols.any.as_deref())?;
        let types = direct.find(facts.direct_remote.map(|a| a.ip()))?;
        let special = match types.local.is_some() || types.external.is_some() {
            false => None,
            true if same_ip_or_loopback(facts) => types.local.as_deref(),
            true => types.external.as_deref(),
        };
        let ports = special.or(types.any.as_deref())?.find(facts.remote.map(|a| a.ip()))?;
        let exact = facts.remote.and_then(|a| ports.exact.get(&a.port()));
        *exact.or(ports.any.as_deref())?
    }
}

fn by_name<'a>(names: &'a Names, server_name: &str) -> Option<&'a Transports> {
    if !server_name.is_empty() && !names.exact.is_empty() {
        if let Some(found) = names.exact.get(server_name) {
            return Some(found);
        }
        // `.example.com`, then `.com` of `www.example.com`.
        for (dot, _) in server_name.match_indices('.').filter(|(i, _)| *i > 0 && i + 1 < server_name.len()) {
            if let Some(found) = server_name.get(dot..).and_then(|suffix| names.exact.get(suffix)) {
                return Some(found);
            }
        }
    }
    names.any.as_deref()
}

/// Envoy's `Utility::isSameIpOrLoopback`; a Unix socket is local.
fn same_ip_or_loopback(facts: &Facts<'_>) -> bool {
    match (facts.remote, facts.local) {
        (None, _) => true,
        (Some(remote), local) => {
            let remote = remote.ip().to_canonical();
            remote.is_loopback() || local.is_some_and(|l| l.ip().to_canonical() == remote)
        }
    }
}

/// The criteria of one match; "does not care" is one `None`.
struct Fields {
    port: Option<u16>,
    destinations: Vec<Option<Cidr>>,
    names: Vec<Option<Box<str>>>,
    transports: Vec<Option<Box<str>>>,
    protocols: Vec<Option<Box<str>>>,
    direct: Vec<Option<Cidr>>,
    source_type: ConnectionSourceType,
    sources: Vec<Option<Cidr>>,
    source_ports: Vec<Option<u16>>,
}

impl Fields {
    fn compile(proto: &FilterChainMatch, at: &At<'_>, report: &mut Report) -> Option<Self> {
        let before = report.errors();
        if !proto.address_suffix.is_empty() {
            report.unsupported(&at.field("address_suffix"), "address_suffix (Envoy neither)");
        }
        if proto.suffix_len.is_some() {
            report.unsupported(&at.field("suffix_len"), "suffix_len (Envoy neither)");
        }
        let port = |n: u32, field: &At<'_>, report: &mut Report| match u16::try_from(n) {
            Ok(n) if n > 0 => Some(n),
            _ => {
                report.error(field, n.to_string(), "give a port of 1 to 65535");
                None
            }
        };
        let destination = proto.destination_port.and_then(|n| port(n, &at.field("destination_port"), report));
        let mut names = Vec::new();
        let field = at.field("server_names");
        for (i, name) in proto.server_names.iter().enumerate() {
            let name = name.to_ascii_lowercase();
            // `*.example.com` is kept as its suffix, dot included.
            let key = name.strip_prefix('*').filter(|suffix| suffix.starts_with('.')).unwrap_or(&name);
            if key.contains('*') || key.is_empty() {
                report.error(&field.index(i), format!("`{name}`"), "partial wildcards are not supported; give an exact name or *.suffix");
            }
            names.push(Some(key.into()));
        }
        let mut ranges = |all: &[_], name: &'static str| {
            let field = at.field(name);
            let all = all.iter().enumerate().filter_map(|(i, range)| Cidr::compile(range, &field.index(i), report));
            all.map(Some).collect::<Vec<_>>()
        };
        let destinations = ranges(&proto.prefix_ranges, "prefix_ranges");
        let direct = ranges(&proto.direct_source_prefix_ranges, "direct_source_prefix_ranges");
        let sources = ranges(&proto.source_prefix_ranges, "source_prefix_ranges");
        let field = at.field("source_ports");
        let source_ports: Vec<_> = proto.source_ports.iter().enumerate().map(|(i, n)| port(*n, &field.index(i), report)).collect();
        let Ok(source_type) = ConnectionSourceType::try_from(proto.source_type) else {
            report.error(&at.field("source_type"), proto.source_type.to_string(), "give ANY, SAME_IP_OR_LOOPBACK or EXTERNAL");
            return None;
        };
        let text = |s: &str| (!s.is_empty()).then(|| Box::from(s));
        (report.errors() == before).then(|| Self {
            port: destination,
            destinations: caring(destinations),
            names: caring(names),
            transports: vec![text(&proto.transport_protocol)],
            protocols: caring(proto.application_protocols.iter().map(|p| text(p)).collect()),
            direct: caring(direct),
            source_type,
            sources: caring(sources),
            source_ports: caring(source_ports),
        })
    }
}

/// An empty list cares for nothing. Repeated elements are one, as in Envoy's maps.
fn caring<T: PartialEq>(list: Vec<Option<T>>) -> Vec<Option<T>> {
    if list.is_empty() {
        return vec![None];
    }
    list.into_iter().fold(Vec::new(), |mut all, item| {
        if !all.contains(&item) {
            all.push(item);
        }
        all
    })
}

/// Whether a chain's match needs what tls_inspector finds; Envoy then adds the filter if it is missing.
pub(crate) fn needs_tls_inspector(proto: &FilterChainMatch) -> bool {
    proto.transport_protocol == "tls"
        || (proto.transport_protocol.is_empty() && (!proto.server_names.is_empty() || !proto.application_protocols.is_empty()))
}

#[cfg(test)]
#[path = "chain_match_tests.rs"]
mod tests;
