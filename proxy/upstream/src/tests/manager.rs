//! The manager: warming, replacing, removing, DNS.

use super::*;
use crate::manager::Applied;
use std::sync::Mutex;
use std::time::Duration;

fn apply(m: &Arc<ClusterManager>, yaml: &str) -> Applied {
    let mut report = Report::new();
    m.apply(&proto(yaml), true, &mut report).unwrap_or_else(|| panic!("{}", report.summary()))
}

const EDS: &str = "type: EDS\neds_cluster_config: {eds_config: {ads: {}}, service_name: svc}";

fn cla(ip: &str) -> ClusterLoadAssignment {
    assignment(&format!(
        "cluster_name: svc\nendpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: {ip}, port_value: 80}}}}}}}}]}}]"
    ))
}

#[test]
fn clusters_warm_up() {
    let m = manager("{}");
    let slot = m.slots().slot("a");
    let changes = Arc::new(AtomicUsize::new(0));
    let count = changes.clone();
    m.on_change(Box::new(move || {
        count.fetch_add(1, Ordering::SeqCst);
    }));
    assert_eq!(apply(&m, &format!("name: a\n{EDS}")), Applied::Warming);
    assert!(slot.get().is_none() && m.get("a").is_none());
    assert_eq!(m.eds_wanted().iter().map(|w| w.name.to_string()).collect::<Vec<_>>(), ["svc"]);
    m.update_endpoints("svc", Some(&cla("10.0.0.1"))).unwrap();
    assert_eq!(slot.get().unwrap().name().as_ref(), "a");
    assert!(m.warming().is_empty());
    assert_eq!(changes.load(Ordering::SeqCst), 2);
    // The same again.
    assert_eq!(apply(&m, &format!("name: a\n{EDS}")), Applied::Unchanged);
    assert_eq!(apply(&m, "name: b\ntype: STATIC"), Applied::Active);
    assert_eq!(m.active().len(), 2);
}

#[test]
fn replacing_keeps_hosts() {
    let m = manager("{}");
    apply(&m, &format!("name: a\n{EDS}"));
    m.update_endpoints("svc", Some(&cla("10.0.0.1"))).unwrap();
    let old = m.get("a").unwrap();
    let host = old.hosts()[0].clone();
    assert_eq!(apply(&m, &format!("name: a\nconnect_timeout: 1s\n{EDS}")), Applied::Active, "the hosts are known");
    let new = m.get("a").unwrap();
    assert!(old.is_retired() && !new.is_retired() && new.hosts()[0].same(&host));
    assert!(!host.is_removed());
    // Another assignment must come first.
    assert_eq!(apply(&m, "name: a\ntype: EDS\neds_cluster_config: {eds_config: {ads: {}}, service_name: other}"), Applied::Warming);
    assert!(Arc::ptr_eq(&m.get("a").unwrap(), &new));
    m.update_endpoints("svc", Some(&cla("10.0.0.9"))).unwrap();
    assert_eq!(new.hosts()[0].address().to_string(), "10.0.0.9:80");
    m.endpoints_timeout("other");
    assert!(m.get("a").unwrap().hosts().is_empty() && new.is_retired());
}

#[test]
fn a_second_cluster_of_an_assignment_has_it_at_once() {
    let m = manager("{}");
    apply(&m, &format!("name: a\n{EDS}"));
    m.update_endpoints("svc", Some(&cla("10.0.0.1"))).unwrap();
    assert_eq!(apply(&m, &format!("name: b\n{EDS}")), Applied::Active);
    let (a, b) = (m.get("a").unwrap(), m.get("b").unwrap());
    assert!(!a.hosts()[0].same(&b.hosts()[0]), "each counts for itself");
    m.update_endpoints("svc", Some(&cla("10.0.0.2"))).unwrap();
    assert_eq!(a.hosts()[0].address(), b.hosts()[0].address());
}

#[test]
fn removing() {
    let m = manager("{}");
    let mut report = Report::new();
    m.apply(&proto("name: boot"), false, &mut report).unwrap();
    assert!(!m.remove("boot") && !m.remove("unknown"));
    assert_eq!(m.apply(&proto("name: boot\nconnect_timeout: 1s"), true, &mut report), Some(Applied::Unchanged));
    assert!(report.items.iter().any(|i| i.found == "boot") && !report.has_errors());
    apply(&m, &format!("name: a\n{EDS}"));
    assert!(m.remove("a"));
    assert!(m.eds_wanted().is_empty() && m.warming().is_empty());
    assert!(m.update_endpoints("svc", Some(&cla("10.0.0.1"))).is_ok());
}

#[test]
fn one_bad_cluster_harms_no_other() {
    let m = manager("{}");
    apply(&m, "name: a\nconnect_timeout: 1s");
    let mut report = Report::new();
    assert!(m.apply(&proto("name: a\nconnect_timeout: 0s"), true, &mut report).is_none());
    assert!(report.has_errors());
    assert_eq!(m.get("a").unwrap().connect_timeout(), Duration::from_secs(1));
}

#[test]
fn the_gauges_follow_every_change() {
    let server = server();
    let m = manager_of(server.clone(), "{}");
    let root = server.stats.root();
    let shown = || (root.gauge("cluster_manager.active_clusters").value(), root.gauge("cluster_manager.warming_clusters").value());
    apply(&m, &format!("name: a\n{EDS}"));
    apply(&m, &format!("name: b\n{EDS}"));
    assert_eq!((shown(), m.is_warming()), ((0, 2), true));
    m.update_endpoints("svc", Some(&cla("10.0.0.1"))).unwrap();
    assert_eq!((shown(), m.is_warming()), ((2, 0), false));
    // Another generation warms while the one before serves; then it is replaced by one that need not wait.
    apply(&m, "name: a\ntype: EDS\neds_cluster_config: {eds_config: {ads: {}}, service_name: other}");
    assert_eq!((shown(), m.is_warming()), ((2, 1), true));
    apply(&m, "name: a\ntype: STATIC");
    assert_eq!((shown(), m.is_warming()), ((2, 0), false));
    assert!(m.remove("a") && m.remove("b"));
    assert_eq!((shown(), m.is_warming()), ((0, 0), false));
}

/// A name server that answers A questions from a list; everything else does not exist.
struct NameServer {
    port: u16,
    answers: Arc<Mutex<Vec<[u8; 4]>>>,
    queries: Arc<AtomicUsize>,
    broken: Arc<std::sync::atomic::AtomicBool>,
}

impl NameServer {
    async fn start(ttl: u32) -> Self {
        let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let port = socket.local_addr().unwrap().port();
        let this = Self { port, answers: Arc::default(), queries: Arc::default(), broken: Arc::default() };
        let (answers, queries, broken) = (this.answers.clone(), this.queries.clone(), this.broken.clone());
        tokio::task::spawn_local(async move {
            let mut buf = [0; 1500];
            while let Ok((n, from)) = socket.recv_from(&mut buf).await {
                queries.fetch_add(1, Ordering::SeqCst);
                let query = &buf[..n];
                // Header 12 bytes, then labels up to a zero, then type and class.
                let end = 12 + query[12..].iter().position(|b| *b == 0).unwrap() + 5;
                let is_a = query[end - 4..end - 2] == [0, 1];
                let list = if is_a { answers.lock().unwrap().clone() } else { Vec::new() };
                let code = if broken.load(Ordering::SeqCst) { 2 } else { 0 };
                let list = if code == 0 { list } else { Vec::new() };
                let mut out = query[..2].to_vec();
                out.extend([0x85, 0x80 | code, 0, 1, 0, list.len() as u8, 0, 0, 0, 0]);
                out.extend(&query[12..end]);
                for ip in list {
                    out.extend([0xc0, 12, 0, 1, 0, 1]);
                    out.extend(ttl.to_be_bytes());
                    out.extend([0, 4]);
                    out.extend(ip);
                }
                let _ = socket.send_to(&out, from).await;
            }
        });
        this
    }
    fn cluster(&self, kind: &str, more: &str) -> String {
        format!(
            "name: d\ntype: {kind}\n{more}\ndns_lookup_family: V4_ONLY\ntyped_dns_resolver_config: {{name: c, typed_config: {{'@type': type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig, resolvers: [{{socket_address: {{address: 127.0.0.1, port_value: {}}}}}], dns_resolver_options: {{no_default_search_domain: true}}, query_tries: 1}}}}\nload_assignment: {{cluster_name: d, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: some.name.test, port_value: 80}}}}}}}}]}}]}}",
            self.port
        )
    }
}

fn addresses(m: &Arc<ClusterManager>) -> Vec<String> {
    m.get("d").map(|c| c.hosts().iter().map(|h| h.address().to_string()).collect()).unwrap_or_default()
}

#[test]
fn strict_dns_follows_the_name() {
    run(async {
        let dns = NameServer::start(300).await;
        *dns.answers.lock().unwrap() = vec![[10, 1, 1, 1], [10, 1, 1, 2]];
        let m = manager("{}");
        tokio::task::spawn_local(m.clone().run());
        assert_eq!(apply(&m, &dns.cluster("STRICT_DNS", "dns_refresh_rate: 0.02s")), Applied::Warming);
        until("the first answer", || addresses(&m) == ["10.1.1.1:80", "10.1.1.2:80"]).await;
        let c = m.get("d").unwrap();
        assert_eq!(c.hosts()[0].hostname(), "some.name.test");
        let first = c.hosts()[0].clone();
        *dns.answers.lock().unwrap() = vec![[10, 1, 1, 3], [10, 1, 1, 1]];
        until("the second answer", || addresses(&m) == ["10.1.1.3:80", "10.1.1.1:80"]).await;
        assert!(c.hosts()[1].same(&first));
        // A name server that fails takes nothing away.
        dns.broken.store(true, Ordering::SeqCst);
        until("a failure", || c.endpoint_stats().counter("update_failure").value() > 0).await;
        assert_eq!(addresses(&m).len(), 2);
        assert_eq!(c.dns_errors()[0].0, "some.name.test");
        dns.broken.store(false, Ordering::SeqCst);
        dns.answers.lock().unwrap().clear();
        until("an empty answer", || addresses(&m).is_empty()).await;
    });
}

#[test]
fn ttls_are_respected_if_asked() {
    run(async {
        let dns = NameServer::start(300).await;
        *dns.answers.lock().unwrap() = vec![[10, 1, 1, 1]];
        let m = manager("{}");
        tokio::task::spawn_local(m.clone().run());
        apply(&m, &dns.cluster("STRICT_DNS", "dns_refresh_rate: 0.01s\nrespect_dns_ttl: true"));
        until("an answer", || !addresses(&m).is_empty()).await;
        let asked = dns.queries.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(dns.queries.load(Ordering::SeqCst), asked);
    });
}

#[test]
fn logical_dns_keeps_its_host() {
    run(async {
        let dns = NameServer::start(300).await;
        *dns.answers.lock().unwrap() = vec![[10, 1, 1, 1], [10, 1, 1, 2]];
        let m = manager("{}");
        tokio::task::spawn_local(m.clone().run());
        apply(&m, &dns.cluster("LOGICAL_DNS", "dns_refresh_rate: 0.02s"));
        until("an answer", || addresses(&m) == ["10.1.1.1:80"]).await;
        let c = m.get("d").unwrap();
        let host = c.hosts()[0].clone();
        assert_eq!(host.additional.len(), 1);
        *dns.answers.lock().unwrap() = vec![[10, 1, 1, 9]];
        until("another answer", || addresses(&m) == ["10.1.1.9:80"]).await;
        assert!(c.hosts()[0].same(&host) && !host.is_removed(), "connections to the former address live on");
        dns.answers.lock().unwrap().clear();
        let empty = c.endpoint_stats().counter("update_empty").value();
        until("an empty answer", || c.endpoint_stats().counter("update_empty").value() > empty).await;
        assert_eq!(addresses(&m), ["10.1.1.9:80"]);
    });
}

#[test]
fn the_hosts_file_goes_first() {
    run(async {
        let path = std::env::temp_dir().join(format!("nuncio-hosts-{}", std::process::id()));
        std::fs::write(&path, "10.2.2.2 some.name.test other # comment\n::1 some.name.test\n").unwrap();
        let service = crate::dns::DnsService::new(path.clone());
        let spec = crate::dns::ResolverSpec::default();
        let ask = async |name: &str, family| {
            let answer = service.resolve(name, family, &spec).await.unwrap();
            answer.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        use crate::dns::Family;
        assert_eq!(ask("SOME.name.test.", Family::V4Only).await, "10.2.2.2");
        assert_eq!(ask("some.name.test", Family::Auto).await, "::1");
        assert_eq!(ask("some.name.test", Family::All).await, "::1 10.2.2.2");
        assert_eq!(ask("other", Family::V4Preferred).await, "10.2.2.2");
        assert_eq!(ask("192.0.2.7", Family::V6Only).await, "192.0.2.7");
        tokio::time::sleep(Duration::from_millis(20)).await;
        std::fs::write(&path, "10.3.3.3 some.name.test\n").unwrap();
        assert_eq!(ask("some.name.test", Family::V4Only).await, "10.3.3.3");
        std::fs::remove_file(&path).unwrap();
    });
}

#[test]
fn removed_clusters_close_their_connections() {
    run(async {
        let server = TestServer::start(Manner::KeepAlive).await;
        let m = manager("{}");
        Upstreams::install(m.worker_feed());
        apply(&m, &static_cluster("", &[(&server.address.to_string(), "")]));
        let c = m.get("test").unwrap();
        fetch(&c).await.unwrap();
        assert_eq!(c.stats().traffic.upstream_cx_active.value(), 1);
        m.remove("test");
        until("the connection is closed", || c.stats().traffic.upstream_cx_active.value() == 0).await;
    });
}

#[test]
fn replaced_clusters_serve_from_the_new_one() {
    run(async {
        let server = TestServer::start(Manner::KeepAlive).await;
        let m = manager("{}");
        Upstreams::install(m.worker_feed());
        apply(&m, &static_cluster("", &[(&server.address.to_string(), "")]));
        let old = m.get("test").unwrap();
        let busy = open(&old, &old.hosts()[0].clone()).await.unwrap();
        apply(&m, &static_cluster("connect_timeout: 2s", &[(&server.address.to_string(), "")]));
        let new = m.get("test").unwrap();
        assert!(new.hosts()[0].same(&old.hosts()[0]), "counters go on");
        fetch(&new).await.unwrap();
        assert!(finish(busy).await.is_ok());
        until("the old connection is closed", || new.stats().traffic.upstream_cx_active.value() == 1).await;
    });
}
