//! VHDS: virtual hosts that come apart from their route table, all at once or when a request asks for one; and what requests
//! wait for. Control thread.

use crate::control::{Control, reason};
use crate::needs::Need;
use crate::source::Source;
use crate::subscriptions::Kind;
use nuncio_admin::Resource as Shown;
use nuncio_core::diag::{At, Report};
use nuncio_hcm::on_demand::{Demand, Missing};
use nuncio_proto::Message;
use nuncio_proto::envoy::config::core::v3::ConfigSource;
use nuncio_proto::envoy::config::core::v3::api_config_source::ApiType;
use nuncio_proto::envoy::config::route::v3::{RouteConfiguration, VirtualHost};
use nuncio_xds::{Refused, Update};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// Hosts that may be asked for at the same time; what more requests miss is not asked for.
const MAX_ASKED: usize = 4096;

/// Requests that may wait for one thing; more go on without it.
const MAX_WAITING: usize = 4096;

/// Tables whose virtual hosts may come by VHDS, and what requests wait for.
#[derive(Default)]
pub struct Discovered {
    tables: BTreeMap<Arc<str>, Table>,
    /// By `<table>/<host>`.
    hosts: HashMap<Arc<str>, Vec<oneshot::Sender<()>>>,
    /// By RDS name.
    scopes: HashMap<Arc<str>, Vec<oneshot::Sender<()>>>,
}

/// A virtual host by its resource name; none if it is gone.
type Change = (Arc<str>, Option<VirtualHost>);

struct Table {
    /// As RDS gave it.
    base: RouteConfiguration,
    source: Arc<ConfigSource>,
    hosts: BTreeMap<Arc<str>, VirtualHost>,
}

impl Discovered {
    /// Whether no table has.
    pub fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }
    /// Whether a table has virtual hosts by VHDS.
    pub fn has(&self, table: &str) -> bool {
        self.tables.contains_key(table)
    }
    /// The table of a virtual host's resource name.
    fn table_of(&self, resource: &str) -> Option<&Arc<str>> {
        let of = |table: &&Arc<str>| resource.strip_prefix(&***table).is_some_and(|rest| rest.starts_with('/'));
        self.tables.keys().filter(of).max_by_key(|t| t.len())
    }
}

impl Control {
    /// `proto` with the virtual hosts that are known of it, and checks where they come from.
    pub(crate) fn with_discovered(&self, mut proto: RouteConfiguration, report: &mut Report) -> RouteConfiguration {
        let Some(vhds) = &proto.vhds else { return proto };
        let root = At::Root;
        let at = root.field("vhds");
        let at = at.field("config_source");
        match &vhds.config_source {
            None => report.error(&at, "not set", "say where the virtual hosts come from"),
            Some(source) => match crate::source::resolve(source, &at, report) {
                Some(resolved) if !self.is_delta(&resolved) => {
                    report.error(&at, "a state-of-the-world source", "virtual hosts come by delta xDS only: use DELTA_GRPC")
                }
                _ => {}
            },
        }
        if let Some(table) = self.discovered.borrow().tables.get(proto.name.as_str()) {
            proto.virtual_hosts.extend(table.hosts.values().cloned());
        }
        proto
    }

    /// A route table as the dump shows it: with the virtual hosts that came by VHDS.
    pub(crate) fn with_hosts_shown(&self, mut shown: Shown) -> Shown {
        let discovered = self.discovered.borrow();
        let table = discovered.tables.get(&shown.name).filter(|t| !t.hosts.is_empty());
        if let (Some(table), Some(active)) = (table, &mut shown.active) {
            let mut merged = table.base.clone();
            merged.virtual_hosts.extend(table.hosts.values().cloned());
            active.value = merged.encode_to_vec().into();
        }
        shown
    }

    fn is_delta(&self, source: &Source) -> bool {
        match source {
            Source::Ads => {
                let ads = self.bootstrap.dynamic_resources.as_ref().and_then(|d| d.ads_config.as_ref());
                ads.is_some_and(|a| a.api_type == ApiType::DeltaGrpc as i32)
            }
            Source::Grpc(grpc) => grpc.delta,
            Source::File(_) => false,
        }
    }

    /// A table from RDS was accepted.
    pub(crate) fn note_table(&self, name: &Arc<str>, base: RouteConfiguration) {
        let mut discovered = self.discovered.borrow_mut();
        let Some(source) = base.vhds.as_ref().and_then(|v| v.config_source.clone()) else {
            discovered.tables.remove(name);
            return;
        };
        let table = discovered.tables.entry(name.clone()).or_insert_with(|| Table {
            base: RouteConfiguration::default(),
            source: Arc::default(),
            hosts: BTreeMap::new(),
        });
        table.base = base;
        table.source = Arc::new(source);
    }

    /// Subscribes to the virtual hosts of tables that want some. `prefixes` has the stat prefix of each table in use.
    pub(crate) fn sync_virtual_hosts(self: &Rc<Self>, prefixes: &HashMap<Arc<str>, Arc<str>>) {
        let needs: Vec<Need> = {
            let mut discovered = self.discovered.borrow_mut();
            discovered.tables.retain(|name, _| prefixes.contains_key(name));
            let need = |(name, table): (&Arc<str>, &Table)| {
                let stat_prefix = prefixes.get(name)?.clone();
                Some(Need { name: name.clone(), source: table.source.clone(), stat_prefix, waits: true })
            };
            discovered.tables.iter().filter_map(need).collect()
        };
        for table in self.subscriptions.sync(self, Kind::VirtualHost, needs) {
            let mut raw = self.raw(Kind::VirtualHost).borrow_mut();
            let space = format!("{table}/");
            let gone: Vec<_> = raw.dynamic().filter(|n| n.starts_with(&space)).cloned().collect();
            gone.iter().for_each(|name| raw.remove(name));
        }
    }

    pub(crate) async fn update_virtual_hosts(self: &Rc<Self>, update: &Update) -> Vec<Refused> {
        let mut refused = Vec::new();
        let mut changes: BTreeMap<Arc<str>, Vec<Change>> = BTreeMap::new();
        let bad = |name: &Arc<str>, reason: &str| Refused { name: name.clone(), reason: reason.to_string() };
        for resource in &update.resources {
            let Some(table) = self.discovered.borrow().table_of(&resource.name).cloned() else {
                refused.push(bad(&resource.name, "belongs to no route table that is in use; name it <route configuration>/<virtual host>"));
                continue;
            };
            match VirtualHost::decode(resource.value.as_ref()) {
                Ok(host) => changes.entry(table).or_default().push((resource.name.clone(), Some(host))),
                Err(why) => refused.push(bad(&resource.name, &format!("is no valid VirtualHost: {why}"))),
            }
        }
        for name in &update.removed {
            if let Some(table) = self.discovered.borrow().table_of(name).cloned() {
                changes.entry(table).or_default().push((name.clone(), None));
            }
        }
        for (table, changes) in changes {
            tokio::task::yield_now().await;
            let Some((base, mut hosts)) = self.discovered.borrow().tables.get(&table).map(|t| (t.base.clone(), t.hosts.clone())) else {
                continue;
            };
            let names: Vec<_> = changes.iter().filter(|(_, host)| host.is_some()).map(|(name, _)| name.clone()).collect();
            for (name, host) in changes {
                match host {
                    Some(host) => drop(hosts.insert(name, host)),
                    None => drop(hosts.remove(&name)),
                }
            }
            let mut merged = base;
            merged.virtual_hosts.extend(hosts.values().cloned());
            let mut report = Report::new();
            let compiled = self.compile_table(&merged, &table, &At::Root, &mut report);
            match Self::findings(Kind::VirtualHost, &table, report).and_then(|()| compiled.ok_or_else(Report::new)) {
                Ok(compiled) => {
                    self.shared.routes.slot(&table).set(Some(compiled));
                    if let Some(table) = self.discovered.borrow_mut().tables.get_mut(&table) {
                        table.hosts = hosts;
                    }
                    let mut raw = self.raw(Kind::VirtualHost).borrow_mut();
                    update.resources.iter().filter(|r| names.contains(&r.name)).for_each(|r| raw.accept(r, false));
                    update.removed.iter().for_each(|name| raw.remove(name));
                }
                // A table takes all that comes for it at once, or nothing, as in Envoy.
                Err(report) => refused.extend(names.iter().map(|name| bad(name, &reason(&report)))),
            }
        }
        let mut discovered = self.discovered.borrow_mut();
        for name in &update.answered {
            for waiting in discovered.hosts.remove(name).unwrap_or_default() {
                // Whoever waited may be gone.
                let _ = waiting.send(());
            }
        }
        refused
    }

    /// Takes what requests ask for, for as long as the process lives.
    pub(crate) async fn serve_demands(self: Rc<Self>, mut demands: mpsc::Receiver<Demand>) {
        while let Some(Demand { missing, done }) = demands.recv().await {
            match missing {
                Missing::Host { table, host } => self.demand_host(&table, &host, done),
                Missing::Scope { table, .. } => {
                    self.demand_scope(&table);
                    let mut discovered = self.discovered.borrow_mut();
                    let waiting = discovered.scopes.entry(table).or_default();
                    if waiting.len() < MAX_WAITING {
                        waiting.push(done);
                    }
                }
            }
            self.settle_demands();
        }
    }

    fn demand_host(&self, table: &Arc<str>, host: &str, done: oneshot::Sender<()>) {
        let alias: Arc<str> = format!("{table}/{host}").into();
        let mut discovered = self.discovered.borrow_mut();
        // Dropping `done` lets the request go on.
        if !discovered.has(table) {
            return;
        }
        if discovered.hosts.len() >= MAX_ASKED {
            let given_up: BTreeSet<Arc<str>> =
                discovered.hosts.iter().filter(|(_, all)| all.iter().all(|d| d.is_closed())).map(|(a, _)| a.clone()).collect();
            discovered.hosts.retain(|alias, _| !given_up.contains(alias));
            self.subscriptions.forget(Kind::VirtualHost, given_up);
        }
        let asked = discovered.hosts.len();
        match discovered.hosts.get_mut(&alias) {
            Some(waiting) if waiting.len() < MAX_WAITING => waiting.push(done),
            Some(_) => {}
            None if asked < MAX_ASKED && self.subscriptions.demand(Kind::VirtualHost, table, alias.clone()) => {
                discovered.hosts.insert(alias, vec![done]);
            }
            None => {}
        }
    }

    /// Lets requests go on whose table came, or will not come.
    pub(crate) fn settle_demands(&self) {
        let mut discovered = self.discovered.borrow_mut();
        if discovered.scopes.is_empty() {
            return;
        }
        discovered.scopes.retain(|table, waiting| {
            if !self.subscriptions.settled(Kind::Route, table) {
                return true;
            }
            for waiting in waiting.drain(..) {
                let _ = waiting.send(());
            }
            false
        });
    }
}
