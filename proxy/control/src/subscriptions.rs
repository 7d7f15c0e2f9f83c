//! Which resources are subscribed to, from where: wildcard and named, over the aggregated stream, streams of their own, or files.
//! [`Subscriptions::sync`] takes the whole set of wanted names of a kind and changes only what differs. Control thread.

use crate::control::Control;
use crate::needs::Need;
use crate::source::{self, Grpc, Source};
use crate::stats::{ControlPlaneStats, SubscriptionStats};
use futures_util::future::LocalBoxFuture;
use nuncio_core::diag::{At, Report};
use nuncio_proto::Message;
use nuncio_proto::envoy::config::core::v3::ConfigSource;
use nuncio_proto::envoy::service::discovery::v3::DiscoveryResponse;
use nuncio_proto::json::{self, UnknownFields};
use nuncio_stats::Scope;
use nuncio_xds::transport::{self, Client, Handler, Options};
use nuncio_xds::{Refused, Session, Update, file, types};
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

/// Kinds of resources that are subscribed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Cluster,
    Endpoint,
    Listener,
    Route,
    Secret,
    Extension,
    Scope,
    VirtualHost,
}

impl Kind {
    /// The order of the first requests on a stream.
    pub const ALL: [Self; 8] =
        [Self::Cluster, Self::Endpoint, Self::Listener, Self::Scope, Self::Route, Self::VirtualHost, Self::Secret, Self::Extension];
    /// With `type.googleapis.com/`.
    pub fn type_url(self) -> &'static str {
        match self {
            Self::Cluster => types::CLUSTER,
            Self::Endpoint => types::ENDPOINT,
            Self::Listener => types::LISTENER,
            Self::Route => types::ROUTE,
            Self::Secret => types::SECRET,
            Self::Extension => types::EXTENSION,
            Self::Scope => types::SCOPED_ROUTE,
            Self::VirtualHost => types::VIRTUAL_HOST,
        }
    }
    /// The kind of a type URL.
    pub fn of(type_url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|k| k.type_url() == type_url)
    }
    /// What logs call it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Cluster => "CDS",
            Self::Endpoint => "EDS",
            Self::Listener => "LDS",
            Self::Route => "RDS",
            Self::Secret => "SDS",
            Self::Extension => "ECDS",
            Self::Scope => "SRDS",
            Self::VirtualHost => "VHDS",
        }
    }
}

/// The name under which a wildcard subscription is kept.
pub const ALL: &str = "*";

/// A task that ends with what owns it.
#[derive(Debug)]
pub struct Task(JoinHandle<()>);
impl Task {
    /// Spawns on the control thread.
    pub fn spawn(future: impl Future<Output = ()> + 'static) -> Self {
        Self(tokio::task::spawn_local(future))
    }
}
impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// One name of one source.
#[derive(Debug)]
pub struct Watch {
    pub source: Arc<ConfigSource>,
    resolved: Rc<Source>,
    /// Whether an answer came, a removal or a refusal included.
    pub received: Cell<bool>,
    /// Whether `initial_fetch_timeout` fired.
    pub timed_out: Cell<bool>,
    pub stats: Option<Box<SubscriptionStats>>,
    /// Of a stream of its own.
    client: Option<Rc<Client>>,
    _task: Option<Task>,
}

type Names = HashMap<Arc<str>, Vec<Watch>, foldhash::fast::RandomState>;

/// All subscriptions.
#[derive(Default)]
pub struct Subscriptions {
    kinds: [RefCell<Names>; 8],
    ads: RefCell<Option<(Rc<Client>, Task)>>,
    /// Sources by their wire bytes, so that thousands of names share one.
    known: RefCell<HashMap<Vec<u8>, Option<Rc<Source>>>>,
}

impl Subscriptions {
    /// Opens the aggregated stream of the bootstrap, and keeps it open.
    pub fn start_ads(&self, control: &Rc<Control>, grpc: &Grpc) {
        let client = Client::new(session(control, grpc));
        // Types that come later are asked for in the order in which they are first subscribed to: clusters before listeners.
        let stats = ControlPlaneStats::new(&control.server.stats.root());
        let handler = Rc::new(Stream { control: Rc::downgrade(control), stats: Some(stats), watch: None, connected: Cell::new(false) });
        let options = options(control, grpc, transport::ads_method(grpc.delta));
        let task = Task::spawn(transport::run(client.clone(), options, handler));
        *self.ads.borrow_mut() = Some((client, task));
    }
    /// Subscribes to all resources of a kind. The source was checked with the bootstrap.
    pub fn subscribe_all(&self, control: &Rc<Control>, kind: Kind, source: &ConfigSource) {
        let Some(resolved) = self.resolve(source) else { return };
        let source = Arc::new(source.clone());
        if *resolved == Source::Ads
            && let Some((client, _)) = &*self.ads.borrow()
        {
            client.subscribe_all(kind.type_url());
        }
        let scope = scope(control, kind, ALL, "");
        let watch = self.watch(control, kind, ALL.into(), source.clone(), resolved, scope);
        self.of(kind).borrow_mut().insert(ALL.into(), vec![watch]);
        self.arm(control, kind, source::fetch_timeout(&source), vec![ALL.into()]);
    }
    /// Makes `wanted` the names of `kind` that are subscribed to. Returns the names that are not wanted any more.
    pub fn sync(&self, control: &Rc<Control>, kind: Kind, wanted: Vec<Need>) -> Vec<Arc<str>> {
        let mut by_name: HashMap<Arc<str>, Vec<Need>, foldhash::fast::RandomState> = HashMap::default();
        for need in wanted {
            let all = by_name.entry(need.name.clone()).or_default();
            if all.iter().all(|n| !same(&n.source, &need.source)) {
                all.push(need);
            }
        }
        let names = self.of(kind);
        let mut gone = Vec::new();
        let mut unsubscribe = Vec::new();
        names.borrow_mut().retain(|name, watches| {
            if **name == *ALL && kind != Kind::Scope {
                return true;
            }
            let had = watches.iter().any(Watch::is_ads);
            let wanted = by_name.get(name);
            watches.retain(|w| wanted.is_some_and(|all| all.iter().any(|n| same(&n.source, &w.source))));
            if had && !watches.iter().any(Watch::is_ads) {
                unsubscribe.push(name.clone());
            }
            if watches.is_empty() {
                gone.push(name.clone());
            }
            !watches.is_empty()
        });
        let mut subscribe = Vec::new();
        let mut timers: HashMap<Duration, Vec<Arc<str>>> = HashMap::new();
        for (name, needs) in by_name {
            for need in needs {
                if names.borrow().get(&name).is_some_and(|all| all.iter().any(|w| same(&w.source, &need.source))) {
                    continue;
                }
                let Some(resolved) = self.resolve(&need.source) else { continue };
                if *resolved == Source::Ads {
                    subscribe.push(name.clone());
                }
                if let Some(timeout) = source::fetch_timeout(&need.source) {
                    timers.entry(timeout).or_default().push(name.clone());
                }
                let scope = scope(control, kind, &name, &need.stat_prefix);
                let watch = self.watch(control, kind, name.clone(), need.source, resolved, scope);
                names.borrow_mut().entry(name.clone()).or_default().push(watch);
            }
        }
        if let Some((client, _)) = &*self.ads.borrow() {
            unsubscribe.retain(|n| !subscribe.contains(n));
            if !unsubscribe.is_empty() {
                client.unsubscribe(kind.type_url(), unsubscribe);
            }
            if subscribe.iter().any(|n| **n == *ALL) {
                client.subscribe_all(kind.type_url());
            } else if !subscribe.is_empty() {
                client.subscribe(kind.type_url(), subscribe);
            }
        }
        for (timeout, names) in timers {
            self.arm(control, kind, Some(timeout), names);
        }
        gone
    }
    /// Asks for `alias` too, wherever `name` comes from; false if it comes from nowhere.
    pub fn demand(&self, kind: Kind, name: &str, alias: Arc<str>) -> bool {
        let names = self.of(kind).borrow();
        let Some(watch) = names.get(name).and_then(|all| all.first()) else { return false };
        let ads = self.ads.borrow();
        let Some(client) = watch.client.as_ref().or_else(|| ads.as_ref().map(|(client, _)| client)) else { return false };
        client.subscribe(kind.type_url(), [alias]);
        true
    }
    /// Gives up what was asked for by [`Self::demand`].
    pub fn forget(&self, kind: Kind, aliases: impl IntoIterator<Item = Arc<str>> + Clone) {
        let names = self.of(kind).borrow();
        let ads = self.ads.borrow();
        let own = names.values().flatten().filter_map(|w| w.client.as_ref());
        for client in own.chain(ads.as_ref().map(|(client, _)| client)) {
            client.unsubscribe(kind.type_url(), aliases.clone());
        }
    }
    /// Calls `each` for every watch of `name`.
    pub fn each(&self, kind: Kind, name: &str, mut each: impl FnMut(&Watch)) {
        for watch in self.of(kind).borrow().get(name).into_iter().flatten() {
            each(watch);
        }
    }
    /// Calls `each` for every watch of a kind.
    pub fn each_of(&self, kind: Kind, mut each: impl FnMut(&Watch)) {
        for watch in self.of(kind).borrow().values().flatten() {
            each(watch);
        }
    }
    /// Whether nothing is still awaited for `name`: it was answered, timed out, or is not subscribed to.
    pub fn settled(&self, kind: Kind, name: &str) -> bool {
        self.of(kind).borrow().get(name).is_none_or(|all| all.iter().all(|w| w.received.get() || w.timed_out.get()))
    }
    /// Whether waiting for `name` was given up.
    pub fn timed_out(&self, kind: Kind, name: &str) -> bool {
        self.of(kind).borrow().get(name).is_some_and(|all| all.iter().any(|w| w.timed_out.get()))
    }
    /// Whether `name` was answered.
    pub fn received(&self, kind: Kind, name: &str) -> bool {
        self.of(kind).borrow().get(name).is_some_and(|all| all.iter().any(|w| w.received.get()))
    }
    /// Sources of `name` that came by `key`: the aggregated stream (none), or this source alone.
    pub fn sources(&self, kind: Kind, name: &str, key: Option<&Arc<ConfigSource>>) -> Vec<Arc<ConfigSource>> {
        let names = self.of(kind).borrow();
        let watches = names.get(name).into_iter().flatten();
        watches.filter(|w| w.is_from(key)).map(|w| w.source.clone()).collect()
    }

    fn of(&self, kind: Kind) -> &RefCell<Names> {
        let [cluster, endpoint, listener, route, secret, extension, scope, virtual_host] = &self.kinds;
        match kind {
            Kind::Cluster => cluster,
            Kind::Endpoint => endpoint,
            Kind::Listener => listener,
            Kind::Route => route,
            Kind::Secret => secret,
            Kind::Extension => extension,
            Kind::Scope => scope,
            Kind::VirtualHost => virtual_host,
        }
    }
    fn resolve(&self, source: &ConfigSource) -> Option<Rc<Source>> {
        let key = source.encode_to_vec();
        if let Some(known) = self.known.borrow().get(&key) {
            return known.clone();
        }
        let mut report = Report::new();
        let resolved = source::resolve(source, &At::Root, &mut report).map(Rc::new);
        if resolved.is_none() {
            log::warn!(target: "config", "a subscription is not made: {}", report.summary());
        }
        self.known.borrow_mut().insert(key, resolved.clone());
        resolved
    }
    fn watch(
        &self,
        control: &Rc<Control>,
        kind: Kind,
        name: Arc<str>,
        source: Arc<ConfigSource>,
        resolved: Rc<Source>,
        scope: Option<Scope>,
    ) -> Watch {
        let mut client = None;
        let task = match &*resolved {
            Source::Ads => {
                if self.ads.borrow().is_none() {
                    log::warn!(target: "config", "{} of '{name}' is to come by ADS, but the bootstrap has no ads_config", kind.label());
                }
                None
            }
            Source::Grpc(grpc) => own_stream(control, kind, &name, &source, grpc).map(|(own, task)| {
                client = Some(own);
                task
            }),
            Source::File(_) => Some(Task::spawn(follow(Rc::downgrade(control), kind, name, source.clone(), resolved.clone()))),
        };
        Watch {
            source,
            resolved,
            received: Cell::new(false),
            timed_out: Cell::new(false),
            stats: scope.map(|s| Box::new(SubscriptionStats::new(&s))),
            client,
            _task: task,
        }
    }
    /// Starts the clock of `initial_fetch_timeout`, one for all `names`.
    fn arm(&self, control: &Rc<Control>, kind: Kind, timeout: Option<Duration>, names: Vec<Arc<str>>) {
        let Some(timeout) = timeout else { return };
        let control = Rc::downgrade(control);
        tokio::task::spawn_local(async move {
            tokio::time::sleep(timeout).await;
            let Some(control) = control.upgrade() else { return };
            let mut late = Vec::new();
            for name in names {
                control.subscriptions.each(kind, &name, |w| {
                    if !w.received.get() && !w.timed_out.replace(true) {
                        late.push(name.clone());
                        if let Some(stats) = &w.stats {
                            stats.timed_out();
                        }
                    }
                });
            }
            if !late.is_empty() {
                control.fetch_timed_out(kind, &late);
            }
        });
    }
}

impl Watch {
    /// Whether updates of `key` are for it: the aggregated stream (none), or this source alone.
    pub fn is_from(&self, key: Option<&Arc<ConfigSource>>) -> bool {
        key.map_or_else(|| self.is_ads(), |k| same(k, &self.source))
    }
    fn is_ads(&self) -> bool {
        *self.resolved == Source::Ads
    }
}

fn same(a: &Arc<ConfigSource>, b: &Arc<ConfigSource>) -> bool {
    Arc::ptr_eq(a, b) || a == b
}

/// Where a subscription counts; endpoints count under their cluster instead.
fn scope(control: &Rc<Control>, kind: Kind, name: &str, stat_prefix: &str) -> Option<Scope> {
    let root = control.server.stats.root();
    Some(root.scope(&match kind {
        Kind::Cluster => "cluster_manager.cds.".to_string(),
        Kind::Listener => "listener_manager.lds.".to_string(),
        Kind::Route => format!("http.{stat_prefix}.rds.{name}."),
        Kind::Secret => format!("sds.{name}."),
        Kind::Extension => format!("extension_config_discovery.http_filter.{name}."),
        // The prefix names the scoped routes too.
        Kind::Scope => format!("http.{stat_prefix}."),
        Kind::VirtualHost => format!("http.{stat_prefix}.vhds.{name}."),
        Kind::Endpoint => return None,
    }))
}

fn session(control: &Control, grpc: &Grpc) -> Session {
    let node = control.server.node.clone();
    if grpc.delta {
        return Session::delta(node);
    }
    let mut session = nuncio_xds::SotwSession::new(node);
    session.node_on_first_only = grpc.node_on_first_only;
    Session::Sotw(session)
}

fn options(control: &Control, grpc: &Grpc, method: &'static str) -> Options {
    Options {
        connector: Rc::new(crate::connector::ClusterConnector { clusters: control.clusters.clone(), name: grpc.cluster.as_str().into() }),
        authority: grpc.authority.clone(),
        method,
        metadata: grpc.metadata.clone(),
        rate_limit: grpc.rate_limit.map(|(max, fill)| (max, fill as f64 / 1000.0)),
        backoff: grpc.backoff(),
    }
}

/// A stream for one name alone, as Envoy opens for sources other than ADS; pilot-agent's SDS server demands it.
fn own_stream(control: &Rc<Control>, kind: Kind, name: &Arc<str>, source: &Arc<ConfigSource>, grpc: &Grpc) -> Option<(Rc<Client>, Task)> {
    let method = transport::service_method(kind.type_url(), grpc.delta)?;
    let client = Client::new(session(control, grpc));
    if **name == *ALL {
        client.subscribe_all(kind.type_url());
    } else {
        client.subscribe(kind.type_url(), [name.clone()]);
    }
    let watch = Some((kind, name.clone(), source.clone()));
    let handler = Rc::new(Stream { control: Rc::downgrade(control), stats: None, watch, connected: Cell::new(false) });
    let task = Task::spawn(transport::run(client.clone(), options(control, grpc, method), handler));
    Some((client, task))
}

/// Consumer of one stream.
struct Stream {
    control: Weak<Control>,
    /// `control_plane.*` of the aggregated stream.
    stats: Option<ControlPlaneStats>,
    /// The one subscription of a stream that is not aggregated.
    watch: Option<(Kind, Arc<str>, Arc<ConfigSource>)>,
    connected: Cell<bool>,
}

impl Handler for Stream {
    fn on_update(&self, update: Update) -> LocalBoxFuture<'_, Vec<Refused>> {
        Box::pin(async move {
            let (Some(control), Some(kind)) = (self.control.upgrade(), Kind::of(&update.type_url)) else { return Vec::new() };
            if let Some(stats) = &self.stats {
                stats.identifier.set(&update.control_plane);
            }
            control.update(kind, update, self.watch.as_ref().map(|(_, _, source)| source.clone())).await
        })
    }
    fn on_connected(&self, connected: bool) {
        if let Some(stats) = &self.stats {
            stats.connected.set(i64::from(connected));
        }
        self.connected.set(connected || self.connected.get());
    }
    fn on_failure(&self, reason: &str) {
        let what = self.watch.as_ref().map_or_else(|| "ADS".to_string(), |(kind, name, _)| format!("{} of '{name}'", kind.label()));
        // Agents close streams on purpose; what matters is that it comes back, which the gauge shows.
        if self.connected.get() {
            log::info!(target: "config", "{what}: stream ended: {reason}; reconnecting");
        } else {
            log::warn!(target: "config", "{what}: cannot connect: {reason}; trying again");
        }
        let Some(control) = self.control.upgrade() else { return };
        match &self.watch {
            Some((kind, name, _)) => control.subscriptions.each(*kind, name, |w| w.stats.iter().for_each(|s| s.failed())),
            None => {
                for kind in [Kind::Cluster, Kind::Listener] {
                    control.subscriptions.each(kind, ALL, |w| w.stats.iter().for_each(|s| s.failed()));
                }
            }
        }
    }
    fn on_pending(&self, requests: usize) {
        if let Some(stats) = &self.stats {
            stats.pending.set(i64::try_from(requests).unwrap_or(i64::MAX));
        }
    }
    fn on_rate_limited(&self) {
        if let Some(stats) = &self.stats {
            stats.rate_limited.inc();
        }
    }
}

/// Loads a file, and again whenever it changes, for as long as the subscription lives.
async fn follow(control: Weak<Control>, kind: Kind, name: Arc<str>, source: Arc<ConfigSource>, resolved: Rc<Source>) {
    let Source::File(file) = &*resolved else { return };
    let watched = file.directory.iter().map(|d| d.as_path()).chain([file.path.as_path()]);
    let mut watch = file::Watch::new(watched);
    loop {
        {
            let Some(control) = control.upgrade() else { return };
            match read_response(&file.path) {
                Ok(response) => {
                    let held: HashSet<Arc<str>> = control.raw(kind).borrow().dynamic().cloned().collect();
                    let mut update = file::update(response, kind.type_url(), &held);
                    if *name != *ALL {
                        update.resources.retain(|r| r.name == name);
                    }
                    control.update(kind, update, Some(source.clone())).await;
                }
                Err(reason) => {
                    log::warn!(target: "config", "{} file {}: {reason}", kind.label(), file.path.display());
                    control.subscriptions.each(kind, &name, |w| w.stats.iter().for_each(|s| s.failed()));
                }
            }
        }
        loop {
            tokio::time::sleep(file.poll.unwrap_or(file::POLL)).await;
            if watch.changed() {
                break;
            }
        }
    }
}

/// Reads a DiscoveryResponse: binary (`.pb`), else JSON or YAML.
pub fn read_response(path: &Path) -> Result<DiscoveryResponse, String> {
    let bytes = std::fs::read(path).map_err(|e| format!("cannot be read: {e}"))?;
    match path.extension().and_then(|e| e.to_str()) {
        Some("pb") => DiscoveryResponse::decode(bytes.as_slice()).map_err(|e| format!("is no DiscoveryResponse: {e}")),
        Some("pb_text") => Err("protobuf text is not supported by Nuncio; write YAML, JSON or binary (.pb)".to_string()),
        _ => {
            let text = String::from_utf8(bytes).map_err(|_| "is not UTF-8 text; binary files end in .pb".to_string())?;
            let value = json::to_value(&text).map_err(|e| e.to_string())?;
            // As Envoy: a file that is empty, or being written, does not say that there are no resources; `{}` does.
            if !value.is_object() || text.trim().is_empty() {
                return Err("holds no DiscoveryResponse; write {} if there are no resources".to_string());
            }
            json::parse(&value, UnknownFields::Refuse).map(|read| read.value).map_err(|e| e.to_string())
        }
    }
}
