//! Chain match: tables, and a property test against a matcher that scans.

use super::*;
use nuncio_proto::envoy::config::core::v3::CidrRange;
use proptest::prelude::*;

fn range(text: &str) -> CidrRange {
    let (address, len) = text.split_once('/').unwrap();
    CidrRange { address_prefix: address.into(), prefix_len: Some(len.parse().unwrap()) }
}
fn strings(all: &[&str]) -> Vec<String> {
    all.iter().map(|s| s.to_string()).collect()
}
fn compile(matches: &[FilterChainMatch], default: Option<usize>) -> Result<ChainIndex, String> {
    let mut report = Report::new();
    let refs: Vec<_> = matches.iter().map(Some).collect();
    let names = vec![""; refs.len()];
    ChainIndex::compile(&refs, &names, default, &At::Root, &mut report).ok_or_else(|| report.summary())
}
fn facts<'a>(local: &str, server_name: &'a str, transport: &'a str, protocols: &'a [String]) -> Facts<'a> {
    let remote = Some("192.0.2.1:1000".parse().unwrap());
    Facts { local: Some(local.parse().unwrap()), server_name, transport, protocols, direct_remote: remote, remote }
}

#[test]
fn server_names_exact_then_longest_wildcard_then_none() {
    let name = |n: &[&str]| FilterChainMatch { server_names: strings(n), ..Default::default() };
    let index = compile(
        &[name(&["www.example.com", "WWW.Example.ORG"]), name(&["*.example.com"]), name(&["*.com"]), FilterChainMatch::default()],
        None,
    )
    .unwrap();
    for (sni, want) in [
        ("www.example.com", 0),
        ("www.example.org", 0),
        ("a.example.com", 1),
        ("a.b.example.com", 1),
        ("example.com", 2),
        ("com", 3),
        (".example.com", 1),
        ("a.net", 3),
        ("", 3),
    ] {
        assert_eq!(index.find(&facts("10.0.0.1:443", sni, "tls", &[])), Some(want), "{sni}");
    }
}

#[test]
fn istios_permissive_inbound_chains() {
    let chain = |port: u32, transport: &str, protocols: &[&str]| FilterChainMatch {
        destination_port: Some(port),
        transport_protocol: transport.into(),
        application_protocols: strings(protocols),
        ..Default::default()
    };
    let index = compile(
        &[
            chain(8080, "tls", &["istio-http/1.0", "istio-http/1.1", "istio-h2"]),
            chain(8080, "raw_buffer", &["http/1.1", "h2c"]),
            chain(8080, "tls", &["istio-peer-exchange", "istio"]),
            chain(8080, "raw_buffer", &[]),
            chain(8080, "tls", &[]),
            FilterChainMatch { transport_protocol: "tls".into(), ..Default::default() },
        ],
        Some(9),
    )
    .unwrap();
    let find = |local: &str, transport: &str, protocols: &[&str]| index.find(&facts(local, "", transport, &strings(protocols)));
    assert_eq!(find("10.0.0.1:8080", "tls", &["istio-http/1.1", "istio", "http/1.1"]), Some(0));
    assert_eq!(find("10.0.0.1:8080", "tls", &["istio", "istio-http/1.1"]), Some(2));
    assert_eq!(find("10.0.0.1:8080", "raw_buffer", &["h2c"]), Some(1));
    assert_eq!(find("10.0.0.1:8080", "raw_buffer", &["http/1.0"]), Some(3));
    assert_eq!(find("10.0.0.1:8080", "tls", &["h2"]), Some(4));
    assert_eq!(find("10.0.0.1:9090", "tls", &["h2"]), Some(5));
    assert_eq!(find("10.0.0.1:9090", "raw_buffer", &[]), Some(9), "nothing matches: the default chain");
}

#[test]
fn no_way_back_from_a_more_specific_entry() {
    // The port has an entry, whose only chain wants another name: the portless chain is not looked at.
    let index = compile(
        &[
            FilterChainMatch { destination_port: Some(443), server_names: strings(&["a.org"]), ..Default::default() },
            FilterChainMatch { server_names: strings(&["b.org"]), ..Default::default() },
            FilterChainMatch { prefix_ranges: vec![range("10.0.0.0/8")], ..Default::default() },
            FilterChainMatch { prefix_ranges: vec![range("10.1.0.0/16")], transport_protocol: "tls".into(), ..Default::default() },
        ],
        None,
    )
    .unwrap();
    assert_eq!(index.find(&facts("192.0.2.9:443", "b.org", "tls", &[])), None);
    assert_eq!(index.find(&facts("192.0.2.9:80", "b.org", "tls", &[])), Some(1));
    assert_eq!(index.find(&facts("10.2.0.1:80", "x", "tls", &[])), Some(2));
    assert_eq!(index.find(&facts("10.1.0.1:80", "x", "raw_buffer", &[])), None, "the longer prefix wins, and wants tls");
    assert_eq!(index.find(&facts("[::ffff:10.1.0.1]:80", "x", "tls", &[])), Some(3), "mapped addresses are IPv4");
}

#[test]
fn sources() {
    let kind = |t: ConnectionSourceType| FilterChainMatch { source_type: t as i32, ..Default::default() };
    let index = compile(
        &[
            kind(ConnectionSourceType::SameIpOrLoopback),
            FilterChainMatch { source_prefix_ranges: vec![range("192.0.2.0/24")], ..kind(ConnectionSourceType::External) },
            FilterChainMatch {
                source_prefix_ranges: vec![range("192.0.2.0/24")],
                source_ports: vec![7, 7],
                ..kind(ConnectionSourceType::External)
            },
            FilterChainMatch { direct_source_prefix_ranges: vec![range("203.0.113.0/24")], ..Default::default() },
        ],
        None,
    )
    .unwrap();
    let find = |direct: &str, remote: &str| {
        let mut f = facts("10.0.0.1:80", "", "raw_buffer", &[]);
        (f.direct_remote, f.remote) = (Some(direct.parse().unwrap()), Some(remote.parse().unwrap()));
        index.find(&f)
    };
    assert_eq!(find("127.0.0.1:5", "127.0.0.1:5"), Some(0));
    assert_eq!(find("10.0.0.1:5", "10.0.0.1:5"), Some(0));
    assert_eq!(find("192.0.2.5:5", "192.0.2.5:5"), Some(1));
    assert_eq!(find("192.0.2.5:7", "192.0.2.5:7"), Some(2));
    assert_eq!(find("203.0.113.1:5", "1.1.1.1:5"), Some(3));
    assert_eq!(find("1.1.1.1:5", "1.1.1.1:5"), None);
    let pipe = Facts { local: None, direct_remote: None, remote: None, ..facts("1.1.1.1:1", "", "raw_buffer", &[]) };
    assert_eq!(index.find(&pipe), Some(0), "a Unix socket is local");
}

#[test]
fn duplicates_and_nonsense_are_refused() {
    let name = |n: &[&str]| FilterChainMatch { server_names: strings(n), ..Default::default() };
    assert!(compile(&[name(&["a"]), name(&["a"])], None).unwrap_err().contains("same matching rules"));
    assert!(compile(&[name(&["a", "b"]), name(&["b", "c"])], None).unwrap_err().contains("overlap"));
    assert!(compile(&[name(&["w*.a.org"])], None).unwrap_err().contains("partial wildcards"));
    assert!(compile(&[name(&["*"])], None).unwrap_err().contains("partial wildcards"));
    assert!(compile(&[FilterChainMatch { destination_port: Some(70_000), ..Default::default() }], None).is_err());
    assert!(compile(&[FilterChainMatch { address_suffix: "x".into(), ..Default::default() }], None).is_err());
    assert!(compile(&[FilterChainMatch { prefix_ranges: vec![range("10.0.0.0/33")], ..Default::default() }], None).is_err());
}

/// Scans all chains level by level, keeping those that hold the most specific entry.
fn naive(matches: &[FilterChainMatch], f: &Facts<'_>) -> Option<usize> {
    let all: Vec<(usize, &FilterChainMatch)> = matches.iter().enumerate().collect();
    /// Keeps the chains with the best (lowest) rank; `None` is no match.
    fn keep(all: Vec<(usize, &FilterChainMatch)>, rank: impl Fn(&FilterChainMatch) -> Option<usize>) -> Vec<(usize, &FilterChainMatch)> {
        let best = all.iter().filter_map(|(_, m)| rank(m)).min();
        all.into_iter().filter(|(_, m)| rank(m).is_some() && rank(m) == best).collect()
    }
    let prefix = |ranges: &[CidrRange], ip: IpAddr| {
        if ranges.is_empty() {
            return Some(1000);
        }
        let fits = |r: &CidrRange| {
            Cidr::compile(r, &At::Root, &mut Report::new()).filter(|c| c.contains(ip)).map(|c| 200 - usize::from(c.length()))
        };
        ranges.iter().filter_map(fits).min()
    };
    let local = f.local.unwrap();
    let remote = f.remote.unwrap();
    let all = keep(all, |m| match m.destination_port {
        None => Some(1),
        Some(p) => (p == u32::from(local.port())).then_some(0),
    });
    let all = keep(all, |m| prefix(&m.prefix_ranges, local.ip()));
    let all = keep(all, |m| {
        if m.server_names.is_empty() {
            return Some(1000);
        }
        let rank = |n: &String| match n.strip_prefix('*') {
            Some(suffix) => (f.server_name.ends_with(suffix) && f.server_name.len() > suffix.len()).then(|| 500 - suffix.len()),
            None => (n == f.server_name && !n.is_empty()).then_some(0),
        };
        m.server_names.iter().filter_map(rank).min()
    });
    let all = keep(all, |m| if m.transport_protocol.is_empty() { Some(1) } else { (m.transport_protocol == f.transport).then_some(0) });
    let all = keep(all, |m| {
        if m.application_protocols.is_empty() {
            return Some(1000);
        }
        f.protocols.iter().position(|p| m.application_protocols.contains(p))
    });
    let all = keep(all, |m| prefix(&m.direct_source_prefix_ranges, f.direct_remote.unwrap().ip()));
    let loopback = remote.ip().is_loopback() || remote.ip() == local.ip();
    let all = keep(all, |m| match m.source_type {
        0 => Some(1),
        1 => loopback.then_some(0),
        _ => (!loopback).then_some(0),
    });
    let all = keep(all, |m| prefix(&m.source_prefix_ranges, remote.ip()));
    let all =
        keep(all, |m| if m.source_ports.is_empty() { Some(1) } else { m.source_ports.contains(&u32::from(remote.port())).then_some(0) });
    all.first().map(|(i, _)| *i)
}

fn some_match() -> impl Strategy<Value = FilterChainMatch> {
    let names = prop::sample::subsequence(vec!["a.x.org", "b.x.org", "*.x.org", "*.org", "x.org"], 0..3);
    let ranges = || prop::sample::subsequence(vec!["10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32", "0.0.0.0/0"], 0..2);
    let protocols = prop::sample::subsequence(vec!["h2", "http/1.1", "istio"], 0..3);
    let ports = prop::sample::subsequence(vec![80u32, 443], 0..2);
    (
        prop::option::of(prop::sample::select(vec![80u32, 443])),
        ranges(),
        names,
        prop::sample::select(vec!["", "tls", "raw_buffer"]),
        protocols,
        ranges(),
        0..3i32,
        ranges(),
        ports,
    )
        .prop_map(|(port, destination, names, transport, protocols, direct, source_type, sources, ports)| FilterChainMatch {
            destination_port: port,
            prefix_ranges: destination.into_iter().map(range).collect(),
            server_names: strings(&names),
            transport_protocol: transport.into(),
            application_protocols: strings(&protocols),
            direct_source_prefix_ranges: direct.into_iter().map(range).collect(),
            source_type,
            source_prefix_ranges: sources.into_iter().map(range).collect(),
            source_ports: ports,
            ..Default::default()
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn agrees_with_a_scan(
        candidates in prop::collection::vec(some_match(), 1..12),
        probes in prop::collection::vec((0usize..4, 0usize..3, 0usize..5, any::<bool>(), 0usize..4, 0usize..4, 0usize..4), 20),
    ) {
        // Chains that overlap are refused: keep those that may stand together.
        let mut matches: Vec<FilterChainMatch> = Vec::new();
        for candidate in candidates {
            matches.push(candidate);
            if compile(&matches, None).is_err() {
                matches.pop();
            }
        }
        let index = compile(&matches, None).unwrap();
        let ips = ["10.1.2.3", "10.1.9.9", "10.9.9.9", "127.0.0.1"];
        let names = ["a.x.org", "c.x.org", "x.org", "a.net", ""];
        for (ip, port, name, tls, protocol, direct, remote) in probes {
            let protocols = [strings(&["h2", "http/1.1"]), strings(&["istio"]), strings(&[]), strings(&["http/1.1", "istio", "h2"])];
            let address = |i: usize, p: usize| format!("{}:{}", ips[i], [80, 443, 8080][p]).parse().ok();
            let probe = Facts {
                local: address(ip, port),
                server_name: names[name],
                transport: if tls { "tls" } else { "raw_buffer" },
                protocols: &protocols[protocol],
                direct_remote: address(direct, port),
                remote: address(remote, (port + 1) % 3),
            };
            prop_assert_eq!(index.find(&probe), naive(&matches, &probe), "{:?} {:?}", matches, probe);
        }
    }
}
