//! Resolving names: the hosts file, then DNS servers by hickory, or the system's resolver. Control thread.

use super::{Family, ResolverSpec};
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts, ServerOrderingStrategy};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::RecordType;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

/// What a name resolved to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Answer {
    pub addresses: Vec<IpAddr>,
    /// Least TTL of the records; none if the answer has none (hosts file, literals).
    pub ttl: Option<Duration>,
}

/// Resolvers by specification, and the hosts file.
#[derive(Debug)]
pub(crate) struct DnsService {
    hosts: HostsFile,
    resolvers: Mutex<HashMap<ResolverSpec, Arc<TokioResolver>>>,
}

impl Default for DnsService {
    fn default() -> Self {
        Self::new(PathBuf::from("/etc/hosts"))
    }
}

impl DnsService {
    /// A service that reads names from `hosts` first.
    pub(crate) fn new(hosts: PathBuf) -> Self {
        Self { hosts: HostsFile { path: hosts, known: Mutex::default() }, resolvers: Mutex::default() }
    }
    /// Resolves `name`. An empty answer means that the name exists not, or without addresses of the family.
    pub(crate) async fn resolve(&self, name: &str, family: Family, spec: &ResolverSpec) -> Result<Answer, String> {
        if let Ok(ip) = name.parse::<IpAddr>() {
            return match (family, ip.is_ipv4()) {
                (Family::V4Only, false) => Err("address of another family".to_string()),
                _ => Ok(Answer { addresses: vec![ip], ttl: None }),
            };
        }
        let (v4, v6) = self.hosts.lookup(name);
        if !v4.is_empty() || !v6.is_empty() {
            let local = |family: Family| match family {
                Family::V4Only => v4.clone(),
                Family::V6Only => v6.clone(),
                Family::Auto if v6.is_empty() => v4.clone(),
                Family::Auto => v6.clone(),
                Family::V4Preferred if v4.is_empty() => v6.clone(),
                Family::V4Preferred => v4.clone(),
                Family::All => v6.iter().chain(&v4).copied().collect(),
            };
            let addresses = local(family);
            if !addresses.is_empty() {
                return Ok(Answer { addresses, ttl: None });
            }
        }
        if spec.system {
            return system(name, family).await;
        }
        let resolver = self.resolver(spec)?;
        let ask = |kind| lookup(&resolver, name, kind);
        match family {
            Family::V4Only => ask(RecordType::A).await,
            Family::V6Only => ask(RecordType::AAAA).await,
            Family::Auto => or_else(ask(RecordType::AAAA).await, ask(RecordType::A)).await,
            Family::V4Preferred => or_else(ask(RecordType::A).await, ask(RecordType::AAAA)).await,
            Family::All => both(ask(RecordType::AAAA).await, ask(RecordType::A).await),
        }
    }
    fn resolver(&self, spec: &ResolverSpec) -> Result<Arc<TokioResolver>, String> {
        let mut resolvers = self.resolvers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = resolvers.get(spec) {
            return Ok(known.clone());
        }
        let resolver = Arc::new(build(spec)?);
        resolvers.insert(spec.clone(), resolver.clone());
        Ok(resolver)
    }
}

fn build(spec: &ResolverSpec) -> Result<TokioResolver, String> {
    let system = hickory_resolver::system_conf::read_system_conf();
    let own = |_| {
        let connection = |port: u16, tcp: bool| {
            let mut connection = if tcp { ConnectionConfig::tcp() } else { ConnectionConfig::udp() };
            connection.port = port;
            connection
        };
        let server = |s: &SocketAddr| {
            let kinds =
                if spec.tcp { vec![connection(s.port(), true)] } else { vec![connection(s.port(), false), connection(s.port(), true)] };
            NameServerConfig::new(s.ip(), true, kinds)
        };
        ResolverConfig::from_parts(None, Vec::new(), spec.servers.iter().map(server).collect())
    };
    let (config, mut options) = match (spec.servers.is_empty() || spec.fallback, system) {
        (true, Ok((config, options))) if !config.name_servers().is_empty() => (config, options),
        (_, Ok((config, options))) if !spec.servers.is_empty() => {
            // Search domains are the system's, servers ours.
            let ours = own(());
            let (domain, search, _) = config.into_parts();
            let (_, _, servers) = ours.into_parts();
            (ResolverConfig::from_parts(domain, search, servers), options)
        }
        (_, Err(_)) if !spec.servers.is_empty() => (own(()), ResolverOpts::default()),
        (_, Err(e)) => return Err(format!("no DNS servers: {e}")),
        _ => return Err("no DNS servers".to_string()),
    };
    let config = match (spec.no_search, spec.tcp) {
        (false, false) => config,
        (no_search, tcp) => {
            let (domain, search, mut servers) = config.into_parts();
            if tcp {
                for server in &mut servers {
                    let port = server.connections.first().map_or(53, |c| c.port);
                    let mut only = ConnectionConfig::tcp();
                    only.port = port;
                    server.connections = vec![only];
                }
            }
            let (domain, search) = if no_search { (None, Vec::new()) } else { (domain, search) };
            ResolverConfig::from_parts(domain, search, servers)
        }
    };
    // The cluster keeps what it resolved; a cache would only make TTLs shorter than they are.
    options.cache_size = 0;
    options.use_hosts_file = ResolveHosts::Never;
    options.timeout = spec.timeout;
    options.attempts = spec.tries.saturating_sub(1);
    options.server_ordering_strategy =
        if spec.rotate { ServerOrderingStrategy::RoundRobin } else { ServerOrderingStrategy::UserProvidedOrder };
    if let Some(size) = spec.edns_payload {
        options.edns0 = true;
        options.edns_payload_len = size;
    }
    let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    *builder.options_mut() = options;
    builder.build().map_err(|e| e.to_string())
}

async fn lookup(resolver: &TokioResolver, name: &str, kind: RecordType) -> Result<Answer, String> {
    match resolver.lookup(name, kind).await {
        Ok(found) => {
            let mut answer = Answer::default();
            for record in found.answers() {
                let Some(ip) = record.data.ip_addr() else { continue };
                answer.addresses.push(ip);
                let ttl = Duration::from_secs(u64::from(record.ttl));
                answer.ttl = Some(answer.ttl.map_or(ttl, |least| least.min(ttl)));
            }
            Ok(answer)
        }
        Err(e) if e.is_no_records_found() => Ok(Answer::default()),
        Err(e) => Err(e.to_string()),
    }
}

/// The second answer if the first is empty or failed; the first failure if both fail.
async fn or_else(first: Result<Answer, String>, second: impl Future<Output = Result<Answer, String>>) -> Result<Answer, String> {
    match first {
        Ok(answer) if !answer.addresses.is_empty() => Ok(answer),
        Ok(_) => second.await,
        Err(why) => second.await.map_err(|_| why),
    }
}

fn both(a: Result<Answer, String>, b: Result<Answer, String>) -> Result<Answer, String> {
    match (a, b) {
        (Ok(mut a), Ok(b)) => {
            a.addresses.extend(b.addresses);
            a.ttl = [a.ttl, b.ttl].into_iter().flatten().min();
            Ok(a)
        }
        (Ok(one), Err(why)) | (Err(why), Ok(one)) => {
            if one.addresses.is_empty() {
                Err(why)
            } else {
                Ok(one)
            }
        }
        (Err(why), Err(_)) => Err(why),
    }
}

/// The system's resolver; it gives no TTLs.
async fn system(name: &str, family: Family) -> Result<Answer, String> {
    let all: Vec<IpAddr> = tokio::net::lookup_host((name, 0)).await.map_err(|e| e.to_string())?.map(|a| a.ip()).collect();
    let only = |v4: bool| -> Vec<IpAddr> { all.iter().filter(|ip| ip.is_ipv4() == v4).copied().collect() };
    let addresses = match family {
        Family::V4Only => only(true),
        Family::V6Only => only(false),
        Family::All => all,
        Family::Auto if all.iter().any(IpAddr::is_ipv6) => only(false),
        Family::V4Preferred if all.iter().any(IpAddr::is_ipv4) => only(true),
        Family::Auto | Family::V4Preferred => all,
    };
    Ok(Answer { addresses, ttl: None })
}

type Names = HashMap<String, (Vec<IpAddr>, Vec<IpAddr>)>;

/// A hosts file, read again when it changes.
#[derive(Debug)]
struct HostsFile {
    path: PathBuf,
    known: Mutex<(Option<SystemTime>, Names)>,
}

impl HostsFile {
    /// IPv4 and IPv6 addresses of `name`.
    fn lookup(&self, name: &str) -> (Vec<IpAddr>, Vec<IpAddr>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = std::fs::metadata(&self.path).and_then(|m| m.modified()).ok();
        if changed != known.0 {
            let text = std::fs::read_to_string(&self.path).unwrap_or_default();
            *known = (changed, parse_hosts(&text));
        }
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        known.1.get(&name).cloned().unwrap_or_default()
    }
}

fn parse_hosts(text: &str) -> Names {
    let mut names = Names::new();
    for line in text.lines() {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        let Some(ip) = words.next().and_then(|w| w.parse::<IpAddr>().ok()) else { continue };
        for name in words {
            let entry = names.entry(name.trim_end_matches('.').to_ascii_lowercase()).or_default();
            let list = if ip.is_ipv4() { &mut entry.0 } else { &mut entry.1 };
            if !list.contains(&ip) {
                list.push(ip);
            }
        }
    }
    names
}
