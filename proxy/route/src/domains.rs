//! Which virtual host a host name belongs to: exact, longest suffix wildcard, longest prefix wildcard, `*`. Names are compared
//! without ASCII case; a lookup in a table of any size is a few hash lookups and allocates nothing.
//! Source: VirtualHost.domains, Envoy's `RouteMatcher::findVirtualHost`.

use crate::cx::RouteCx;
use hashbrown::HashMap;
use nuncio_core::diag::At;
use smallvec::SmallVec;

type Names = HashMap<Box<str>, u32, foldhash::fast::RandomState>;

/// Domains of every virtual host of a table.
#[derive(Debug, Default)]
pub(crate) struct DomainIndex {
    exact: Names,
    /// `*.example.com` without the star.
    suffixes: Wildcards,
    /// `example.*` without the star.
    prefixes: Wildcards,
    default: Option<u32>,
}

#[derive(Debug, Default)]
struct Wildcards {
    names: Names,
    /// Lengths that occur, longest first.
    lengths: Vec<usize>,
}

impl Wildcards {
    fn insert(&mut self, name: &str, host: u32) -> bool {
        if let Err(at) = self.lengths.binary_search_by(|l| name.len().cmp(l)) {
            self.lengths.insert(at, name.len());
        }
        self.names.insert(name.into(), host).is_none()
    }
    /// The longest wildcard for which `part(length)` of the host is known; a star stands for at least one character.
    fn find<'h>(&self, host: &'h str, part: impl Fn(usize) -> Option<&'h str>) -> Option<u32> {
        self.lengths.iter().filter(|l| **l < host.len()).find_map(|l| self.names.get(part(*l)?).copied())
    }
}

impl DomainIndex {
    /// Adds one domain of virtual host `host`. A domain that another one has refuses the table.
    pub fn insert(&mut self, domain: &str, host: u32, at: &At<'_>, cx: &mut RouteCx<'_>) -> Option<()> {
        let lower = domain.to_ascii_lowercase();
        let fresh = if lower == "*" {
            self.default.replace(host).is_none()
        } else if let Some(suffix) = lower.strip_prefix('*') {
            self.suffixes.insert(suffix, host)
        } else if let Some(prefix) = lower.strip_suffix('*') {
            self.prefixes.insert(prefix, host)
        } else {
            self.exact.insert(lower.as_str().into(), host).is_none()
        };
        if fresh {
            return Some(());
        }
        cx.refuse(at, format!("domain \"{domain}\" is there twice"), "a domain may be in one virtual host of the table only, and once")
    }
    /// The virtual host of `host` (the authority, its port removed where the table ignores ports).
    pub fn find(&self, host: &str) -> Option<u32> {
        if self.exact.is_empty() && self.suffixes.names.is_empty() && self.prefixes.names.is_empty() {
            return self.default;
        }
        if host.is_empty() {
            return None;
        }
        if !host.bytes().any(|b| b.is_ascii_uppercase()) {
            return self.find_lower(host);
        }
        let mut lower: SmallVec<[u8; 128]> = SmallVec::from_slice(host.as_bytes());
        lower.make_ascii_lowercase();
        self.find_lower(std::str::from_utf8(&lower).unwrap_or(host))
    }
    fn find_lower(&self, host: &str) -> Option<u32> {
        let suffix = |length: usize| host.get(host.len().checked_sub(length)?..);
        self.exact
            .get(host)
            .copied()
            .or_else(|| self.suffixes.find(host, suffix))
            .or_else(|| self.prefixes.find(host, |length| host.get(..length)))
            .or(self.default)
    }
}

/// An authority's host and what stands behind its last colon: `a:80`, `[::1]:80`; `[::1]` has none. Whether that is a port is the
/// caller's question. Source: Envoy's `HeaderUtility::getPortStart`.
pub fn split_port(authority: &str) -> (&str, Option<&str>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (authority, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(domains: &[&str]) -> DomainIndex {
        let mut index = DomainIndex::default();
        crate::testing::with_cx(|cx| {
            for (i, domain) in domains.iter().enumerate() {
                index.insert(domain, i as u32, &At::Root, cx).unwrap();
            }
        });
        index
    }

    #[test]
    fn the_order_is_envoys() {
        let domains = ["www.foo.com", "*.foo.com", "*-bar.foo.com", "www.foo.*", "www.*", "*", "[::1]:80", "FOO.example", "a.com:8080"];
        let index = index(&domains);
        for (host, wanted) in [
            ("www.foo.com", "www.foo.com"),
            ("WWW.Foo.com", "www.foo.com"),
            ("a.foo.com", "*.foo.com"),
            ("a.b.foo.com", "*.foo.com"),
            ("baz-bar.foo.com", "*-bar.foo.com"),
            // The star is at least one character.
            (".foo.com", "*"),
            ("-bar.foo.com", "*.foo.com"),
            ("www.foo.org", "www.foo.*"),
            ("www.foo.", "www.*"),
            ("www.bar", "www.*"),
            ("foo.EXAMPLE", "FOO.example"),
            ("[::1]:80", "[::1]:80"),
            ("a.com", "*"),
            ("a.com:8080", "a.com:8080"),
            ("other", "*"),
        ] {
            assert_eq!(index.find(host).map(|i| domains[i as usize]), Some(wanted), "{host}");
        }
        assert_eq!(index.find(""), None);
    }

    #[test]
    fn a_lone_star_needs_no_host() {
        assert_eq!(index(&["*"]).find(""), Some(0));
        assert_eq!(index(&["a"]).find("b"), None);
    }

    #[test]
    fn duplicates_are_refused() {
        for domains in [["a", "A"], ["*", "*"], ["*.a", "*.A"], ["a.*", "a.*"]] {
            let report = crate::testing::with_cx(|cx| {
                let mut index = DomainIndex::default();
                index.insert(domains[0], 0, &At::Root, cx).unwrap();
                assert!(index.insert(domains[1], 1, &At::Root, cx).is_none());
            });
            assert!(report.summary().contains("twice"));
        }
    }

    #[test]
    fn ports() {
        for (host, wanted) in [("a:80", "a"), ("a", "a"), ("[::1]:80", "[::1]"), ("[::1]", "[::1]"), ("a:", "a"), (":80", "")] {
            assert_eq!(split_port(host).0, wanted);
        }
    }

    #[test]
    fn ten_thousand_hosts_cost_a_few_lookups() {
        let domains: Vec<String> = (0..10_000)
            .map(|i| ["svc-@.ns.svc.cluster.local", "*.team-@.example", "shop-@.*"][i % 3].replace('@', &i.to_string()))
            .collect();
        let index = index(&domains.iter().map(String::as_str).collect::<Vec<_>>());
        // One hash lookup for exact names, and one for each length that wildcards have.
        assert!(index.suffixes.lengths.len() <= 4 && index.prefixes.lengths.len() <= 4, "{index:?}");
        for (i, host) in [
            (9_999, "svc-9999.ns.svc.cluster.local"),
            (4_000, "a.team-4000.example"),
            (8_000, "shop-8000.org"),
            (0, "svc-0.ns.svc.cluster.local"),
        ] {
            assert_eq!(index.find(host), Some(i), "{host}");
        }
        assert_eq!(index.find("svc-1.ns.svc.cluster.local"), None);
    }
}
