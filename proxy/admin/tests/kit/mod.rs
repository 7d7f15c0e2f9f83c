//! A backend whose data is what Envoy showed, and a raw client.

#![allow(dead_code)] // Each test binary uses a part.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use nuncio_admin::*;
use nuncio_core::Address;
use nuncio_proto::Message;
use nuncio_proto::envoy::admin::v3::{self, Certificate, Certificates, ClustersConfigDump, ListenersConfigDump, Memory, RoutesConfigDump};
use nuncio_proto::envoy::admin::v3::{EndpointsConfigDump, SecretsConfigDump, ServerInfo};
use nuncio_proto::json::{self, UnknownFields};
use nuncio_proto::{Any, Name, Timestamp, typed};
use nuncio_stats::Store;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

pub fn reference(file: &str) -> String {
    std::fs::read_to_string(format!("{}/../../proto/tests/data/{file}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

pub fn parse<T: Message + Name + Default>(text: &str) -> T {
    json::parse(&serde_json::from_str(text).unwrap(), UnknownFields::Refuse).unwrap_or_else(|e| panic!("{e}")).value
}

/// Resources by kind, and what was asked of the process.
pub struct Fake {
    pub resources: Vec<(ResourceKind, Resource)>,
    pub bootstrap: Bytes,
    pub loaded: SystemTime,
    pub version: String,
    pub clusters: Vec<ClusterStatus>,
    pub listeners: Vec<ListenerStatus>,
    pub stats: Store,
    pub state: RefCell<State>,
    pub levels: RefCell<Vec<(String, &'static str)>>,
    pub asked: RefCell<Vec<String>>,
}

impl Default for Fake {
    fn default() -> Self {
        Self {
            resources: Vec::new(),
            bootstrap: Bytes::new(),
            loaded: UNIX_EPOCH,
            version: String::new(),
            clusters: Vec::new(),
            listeners: Vec::new(),
            stats: Store::new(),
            state: RefCell::new(State::Live),
            levels: RefCell::new(vec![("admin".into(), "info"), ("http".into(), "info")]),
            asked: RefCell::default(),
        }
    }
}

fn time(at: &Option<Timestamp>) -> SystemTime {
    at.as_ref().map_or(UNIX_EPOCH, |t| UNIX_EPOCH + Duration::new(t.seconds as u64, t.nanos as u32))
}

fn version(version_info: &str, any: &Option<Any>, at: &Option<Timestamp>) -> Version {
    let any = any.clone().unwrap();
    Version { version_info: version_info.into(), last_updated: time(at), type_url: any.type_url.as_str().into(), value: any.value.into() }
}

pub fn resource(name: &str, is_static: bool, active: Version) -> Resource {
    Resource { name: name.into(), is_static, active: Some(active), warming: None, draining: None, error: None }
}

impl Fake {
    /// What the reference config_dump was made of.
    pub fn reference() -> Self {
        let mut fake = Self::default();
        let dump: v3::ConfigDump = parse(&reference("config_dump_include_eds.json"));
        for any in &dump.configs {
            let add = |fake: &mut Self, kind, resource| fake.resources.push((kind, resource));
            if let Ok(section) = typed::unpack_as::<v3::BootstrapConfigDump>(any) {
                fake.loaded = time(&section.last_updated);
                fake.bootstrap = section.bootstrap.unwrap().encode_to_vec().into();
            } else if let Ok(section) = typed::unpack_as::<ClustersConfigDump>(any) {
                fake.version = section.version_info;
                for c in &section.static_clusters {
                    add(&mut fake, ResourceKind::Cluster, resource("static", true, version("", &c.cluster, &c.last_updated)));
                }
                for c in &section.dynamic_active_clusters {
                    let version = version(&c.version_info, &c.cluster, &c.last_updated);
                    let cluster: nuncio_proto::envoy::config::cluster::v3::Cluster = typed::unpack_as(c.cluster.as_ref().unwrap()).unwrap();
                    add(&mut fake, ResourceKind::Cluster, resource(&cluster.name, false, version));
                }
            } else if let Ok(section) = typed::unpack_as::<EndpointsConfigDump>(any) {
                for e in &section.static_endpoint_configs {
                    add(&mut fake, ResourceKind::Endpoint, resource("e", true, version("", &e.endpoint_config, &e.last_updated)));
                }
                for e in &section.dynamic_endpoint_configs {
                    add(&mut fake, ResourceKind::Endpoint, resource("e", false, version("7", &e.endpoint_config, &e.last_updated)));
                }
            } else if let Ok(section) = typed::unpack_as::<ListenersConfigDump>(any) {
                for l in &section.static_listeners {
                    add(&mut fake, ResourceKind::Listener, resource("l", true, version("", &l.listener, &l.last_updated)));
                }
                for l in &section.dynamic_listeners {
                    let state = l.active_state.as_ref().unwrap();
                    let version = version(&state.version_info, &state.listener, &state.last_updated);
                    add(&mut fake, ResourceKind::Listener, resource(&l.name, false, version));
                }
            } else if let Ok(section) = typed::unpack_as::<RoutesConfigDump>(any) {
                for r in &section.static_route_configs {
                    add(&mut fake, ResourceKind::Route, resource("r", true, version("", &r.route_config, &r.last_updated)));
                }
                for r in &section.dynamic_route_configs {
                    let version = version(&r.version_info, &r.route_config, &r.last_updated);
                    add(&mut fake, ResourceKind::Route, resource("http.8080", false, version));
                }
            } else if let Ok(section) = typed::unpack_as::<SecretsConfigDump>(any) {
                for s in &section.dynamic_active_secrets {
                    let version = version(&s.version_info, &s.secret, &s.last_updated);
                    add(&mut fake, ResourceKind::Secret, resource(&s.name, false, version));
                }
            }
        }
        fake
    }

    fn note(&self, what: impl Into<String>) {
        self.asked.borrow_mut().push(what.into());
    }
}

impl Backend for Fake {
    fn stats(&self) -> Store {
        self.stats.clone()
    }
    fn bootstrap(&self) -> (Bytes, SystemTime) {
        (self.bootstrap.clone(), self.loaded)
    }
    fn version_info(&self, _: ResourceKind) -> String {
        self.version.clone()
    }
    fn resources(&self, kind: ResourceKind) -> Box<dyn Iterator<Item = Resource>> {
        Box::new(self.resources.iter().filter(|(k, _)| *k == kind).map(|(_, r)| r.clone()).collect::<Vec<_>>().into_iter())
    }
    fn clusters(&self) -> Box<dyn Iterator<Item = ClusterStatus>> {
        Box::new(self.clusters.clone().into_iter())
    }
    fn listeners(&self) -> Vec<ListenerStatus> {
        self.listeners.clone()
    }
    fn server_info(&self) -> ServerInfo {
        parse(&reference("server_info.json"))
    }
    fn certificates(&self) -> Vec<Certificate> {
        parse::<Certificates>(&reference("certs.json")).certificates
    }
    fn unready_targets(&self) -> Vec<UnreadyTargets> {
        if *self.state.borrow() == State::Live {
            return Vec::new();
        }
        let entry = |name: &str, target: &str, listener| UnreadyTargets { name: name.into(), targets: vec![target.into()], listener };
        vec![
            entry("init manager Server", "CDS", false),
            entry("init manager Listener-init-manager l", "RdsRouteConfigSubscription r", true),
        ]
    }
    fn state(&self) -> State {
        *self.state.borrow()
    }
    fn not_ready_because(&self) -> Vec<String> {
        vec!["waiting for the first CDS response".into()]
    }
    fn runtime(&self) -> Runtime {
        let entry = RuntimeEntry { key: "a\"b".into(), final_value: "7".into(), layer_values: vec!["1".into(), "7".into()] };
        Runtime { layers: vec!["static".into(), "admin".into()], entries: vec![entry] }
    }
    fn modify_runtime(&self, changes: &[(String, String)]) -> Result<(), String> {
        self.note(format!("runtime {changes:?}"));
        if changes.iter().any(|(k, _)| k == "refused") { Err("No admin layer specified".into()) } else { Ok(()) }
    }
    fn log_levels(&self) -> Vec<(String, &'static str)> {
        self.levels.borrow().clone()
    }
    fn set_log_level(&self, component: Option<&str>, level: &str) {
        let level = LOG_LEVELS.into_iter().find(|l| *l == level).unwrap();
        for (name, current) in self.levels.borrow_mut().iter_mut() {
            if component.is_none_or(|c| c == name) {
                *current = level;
            }
        }
    }
    fn fail_health_checks(&self, fail: bool) {
        self.note(format!("health {fail}"));
    }
    fn drain_listeners(&self, how: Drain) {
        self.note(format!("{how:?}"));
    }
    fn quit(&self) {
        self.note("quit");
    }
    fn reopen_logs(&self) {
        self.note("reopen");
    }
    fn memory(&self) -> Memory {
        parse(&reference("memory.json"))
    }
}

/// Runs `test` against a server over `fake`.
pub fn with_admin<F: Future<Output = ()>>(fake: Rc<Fake>, test: impl FnOnce(Address) -> F) {
    with_options(fake, AdminOptions::open(), test);
}

pub fn with_options<F: Future<Output = ()>>(fake: Rc<Fake>, options: AdminOptions, test: impl FnOnce(Address) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let server = AdminServer::bind(&Address::Ip("127.0.0.1:0".parse().unwrap()), 0).unwrap();
        let address = server.local_address().clone();
        tokio::select! {
            () = server.run(fake, options) => unreachable!("the server does not end"),
            () = test(address) => {}
        }
    });
}

/// An answer with its body put together.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

/// Sends `text` and reads until the peer closes.
pub async fn raw(address: &Address, text: &str) -> String {
    let mut io = tokio::net::TcpStream::connect(address.socket().unwrap()).await.unwrap();
    io.write_all(text.as_bytes()).await.unwrap();
    let mut out = Vec::new();
    io.read_to_end(&mut out).await.unwrap();
    String::from_utf8(out).unwrap()
}

/// One request with `target` as it is.
pub async fn send(address: &Address, method: &str, target: &str) -> Answer {
    answer_of(&raw(address, &format!("{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).await)
}

pub fn answer_of(text: &str) -> Answer {
    let (head, rest) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let mut body = String::new();
    if head.contains("transfer-encoding: chunked") {
        let mut rest = rest;
        while let Some((size, after)) = rest.split_once("\r\n") {
            let size = usize::from_str_radix(size, 16).unwrap();
            body.push_str(&after[..size]);
            rest = &after[size + 2..];
        }
    } else {
        body.push_str(rest);
    }
    Answer { status, head: head.to_string(), body }
}

pub async fn get(address: &Address, target: &str) -> Answer {
    send(address, "GET", target).await
}

pub async fn post(address: &Address, target: &str) -> Answer {
    send(address, "POST", target).await
}

/// A cluster resource of about `size` bytes.
#[allow(dead_code)]
pub fn cluster(name: &str, value: Bytes) -> Resource {
    let type_url: Arc<str> = "type.googleapis.com/envoy.config.cluster.v3.Cluster".into();
    resource(name, false, Version { version_info: "1".into(), last_updated: UNIX_EPOCH, type_url, value })
}
