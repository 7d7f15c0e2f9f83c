//! What the admin endpoints see of the control thread: the implementation of nuncio-admin's [`Backend`].

use crate::args::{self, DrainStrategy, IpVersion, Mode};
use crate::control::Control;
use crate::init::Phase;
use crate::logger;
use crate::subscriptions::Kind;
use bytes::Bytes;
use nuncio_admin::{
    Backend, ClusterStatus, Drain, HostHealth, HostStats, HostStatus, Limits, ListenerStatus, Resource, ResourceKind, Runtime,
    RuntimeEntry, State, UnreadyTargets, Version,
};
use nuncio_core::views::{ClusterView, HostView};
use nuncio_listener::DrainOptions;
use nuncio_proto::Message;
use nuncio_proto::envoy::admin::v3::{
    Certificate, CertificateDetails, CommandLineOptions, Memory, ServerInfo, SubjectAlternateName, command_line_options as cli,
    server_info, subject_alternate_name::Name,
};
use nuncio_proto::envoy::config::cluster::v3::{Cluster as ClusterProto, cluster::ClusterDiscoveryType, cluster::DiscoveryType};
use nuncio_stats::Store;
use nuncio_upstream::context::RoutingPriority;
use nuncio_upstream::{Cluster, HealthFlags, Host};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime};

/// The control thread as the admin port sees it.
pub struct Admin(pub Rc<Control>);

impl Backend for Admin {
    fn stats(&self) -> Store {
        self.0.refresh_stats();
        self.0.server.stats.clone()
    }
    fn bootstrap(&self) -> (Bytes, SystemTime) {
        (self.0.bootstrap_raw.clone(), self.0.loaded_at)
    }
    fn version_info(&self, kind: ResourceKind) -> String {
        self.0.raw(kind_of(kind)).borrow().version.to_string()
    }
    fn resources(&self, kind: ResourceKind) -> Box<dyn Iterator<Item = Resource>> {
        let control = self.0.clone();
        match kind {
            ResourceKind::Endpoint => Box::new(Cursor::new(control, Kind::Cluster).filter_map(Cursor::endpoints)),
            ResourceKind::Secret => Box::new(self.secrets().into_iter()),
            ResourceKind::Route => {
                let inline = inline_routes(&control);
                Box::new(inline.into_iter().chain(Cursor::new(control, Kind::Route).map(|(control, r)| control.with_hosts_shown(r))))
            }
            ResourceKind::ScopedRoute => Box::new(control.scopes_shown().into_iter()),
            other => Box::new(Cursor::new(control, kind_of(other)).map(|(_, r)| r)),
        }
    }
    fn clusters(&self) -> Box<dyn Iterator<Item = ClusterStatus>> {
        let control = self.0.clone();
        let mut names: Vec<Arc<str>> = control.clusters.active().iter().map(|c| c.name().clone()).collect();
        names.sort();
        Box::new(names.into_iter().filter_map(move |name| control.clusters.get(&name).map(|c| cluster(&control, &c))))
    }
    fn listeners(&self) -> Vec<ListenerStatus> {
        let manager = self.0.listener_manager.borrow();
        let status = |l: nuncio_listener::ListenerStatus| {
            let mut addresses = l.addresses.into_iter();
            Some(ListenerStatus {
                name: l.name.to_string(),
                local_address: addresses.next()?,
                additional_local_addresses: addresses.collect(),
            })
        };
        manager.listeners().into_iter().filter_map(status).collect()
    }
    fn server_info(&self) -> ServerInfo {
        let uptime = prost_types::Duration::try_from(Duration::from_secs(self.0.server.started.elapsed().as_secs())).ok();
        ServerInfo {
            version: args::version(),
            state: match self.state() {
                State::Live => server_info::State::Live,
                State::Draining => server_info::State::Draining,
                State::PreInitializing => server_info::State::PreInitializing,
                State::Initializing => server_info::State::Initializing,
            } as i32,
            uptime_current_epoch: uptime,
            uptime_all_epochs: uptime,
            hot_restart_version: "disabled".to_string(),
            command_line_options: Some(options(&self.0.args)),
            node: Some(self.0.server.node.clone()),
            hot_restart_initializing: false,
        }
    }
    fn certificates(&self) -> Vec<Certificate> {
        let details = |c: &nuncio_tls::CertificateStatus| CertificateDetails {
            path: c.path.clone(),
            serial_number: c.info.serial.clone(),
            subject_alt_names: [
                c.info.dns_sans.iter().cloned().map(Name::Dns).collect::<Vec<_>>(),
                c.info.uri_sans.iter().cloned().map(Name::Uri).collect(),
                c.info.ip_sans.iter().cloned().map(Name::IpAddress).collect(),
            ]
            .concat()
            .into_iter()
            .map(|name| SubjectAlternateName { name: Some(name) })
            .collect(),
            days_until_expiration: c.days_until_expiration,
            valid_from: c.info.not_before.map(Into::into),
            expiration_time: c.info.not_after.map(Into::into),
            ocsp_details: None,
        };
        let one = |c: nuncio_tls::CertificateStatus| {
            let all = vec![details(&c)];
            if c.ca { Certificate { ca_cert: all, cert_chain: Vec::new() } } else { Certificate { ca_cert: Vec::new(), cert_chain: all } }
        };
        self.0.shared.secrets.certificates().into_iter().map(one).collect()
    }
    fn unready_targets(&self) -> Vec<UnreadyTargets> {
        let mut all = Vec::new();
        let waits = self.0.waits_for();
        if !waits.is_empty() && self.0.init.phase() != Phase::Live {
            all.push(UnreadyTargets { name: "init manager Server".to_string(), targets: waits, listener: false });
        }
        for (name, targets) in self.0.listeners.borrow().waiting(|needs| self.0.undiscovered(needs)) {
            all.push(UnreadyTargets { name: format!("init manager Listener-init-manager {name}"), targets, listener: true });
        }
        all
    }
    fn state(&self) -> State {
        self.0.state()
    }
    fn not_ready_because(&self) -> Vec<String> {
        self.0.waits_for()
    }
    fn runtime(&self) -> Runtime {
        let layers = self.0.layers.borrow();
        let entry = |(key, final_value): (String, String)| RuntimeEntry {
            layer_values: layers
                .iter()
                .map(|l| l.values.iter().find(|(k, _)| *k == key).map(|(_, v)| v.clone()).unwrap_or_default())
                .collect(),
            key,
            final_value,
        };
        Runtime {
            layers: layers.iter().map(|l| l.name.clone()).collect(),
            entries: self.0.server.runtime.all().into_iter().map(entry).collect(),
        }
    }
    fn modify_runtime(&self, changes: &[(String, String)]) -> Result<(), String> {
        let mut layers = self.0.layers.borrow_mut();
        if !layers.iter().any(|l| l.admin) {
            return Err("No admin layer specified".to_string());
        }
        for (key, value) in changes {
            if let Some(admin) = layers.iter_mut().find(|l| l.admin) {
                admin.values.retain(|(k, _)| k != key);
                if !value.is_empty() {
                    admin.values.push((key.clone(), value.clone()));
                }
            }
            // The last layer that has the key decides; an override that is gone uncovers what it hid.
            let value =
                layers.iter().rev().find_map(|l| l.values.iter().find(|(k, _)| k == key)).map(|(_, v)| v.clone()).unwrap_or_default();
            self.0.server.runtime.set(key, &value);
        }
        Ok(())
    }
    fn log_levels(&self) -> Vec<(String, &'static str)> {
        logger::levels().into_iter().map(|(name, level)| (name.to_string(), level.name())).collect()
    }
    fn set_log_level(&self, component: Option<&str>, level: &str) {
        let Some(level) = logger::Level::parse(level) else { return };
        match component {
            Some(component) => {
                logger::set(component, level);
            }
            None => logger::set_all(level),
        }
    }
    fn fail_health_checks(&self, fail: bool) {
        self.0.health_failed.set(fail);
        self.0.server.runtime.set_health_failed(fail);
        self.0.listener_manager.borrow_mut().set_health_failed(fail);
        self.0.publish_state();
    }
    fn drain_listeners(&self, how: Drain) {
        let options = DrainOptions { graceful: how.graceful, inbound_only: how.inbound_only, skip_exit: how.skip_exit };
        self.0.listener_manager.borrow_mut().drain(options);
    }
    fn quit(&self) {
        self.0.quit.notify_one();
    }
    fn reopen_logs(&self) {
        self.0.reopen_logs();
    }
    fn memory(&self) -> Memory {
        let used = crate::memory::read();
        Memory { allocated: used.resident_anonymous, heap_size: used.data, total_physical_bytes: used.resident, ..Memory::default() }
    }
}

impl Admin {
    /// Secrets as the store shows them, keys redacted; those that are wanted but not there are warming.
    fn secrets(&self) -> Vec<Resource> {
        let raw = self.0.raw(Kind::Secret).borrow();
        let type_url: Arc<str> = Kind::Secret.type_url().into();
        let mut all: Vec<Resource> = Vec::new();
        for slot in self.0.shared.secrets.slots() {
            // The same name may be wanted as several kinds; the dump has it once.
            if all.last().is_some_and(|r| r.name == slot.name) {
                continue;
            }
            let entry = raw.get(&slot.name);
            let version_info = entry.and_then(|e| e.active.as_ref()).map_or_else(|| Arc::from(""), |r| r.version.clone());
            let mut resource = Resource {
                name: slot.name.clone(),
                is_static: slot.source.is_none(),
                active: None,
                warming: None,
                draining: None,
                error: entry.and_then(|e| e.error.as_deref().cloned()),
            };
            match slot.get() {
                Some(live) => {
                    let value = live.redacted.encode_to_vec().into();
                    resource.active = Some(Version { version_info, last_updated: live.updated, type_url: type_url.clone(), value });
                }
                None => {
                    let type_url = "".into();
                    resource.warming = Some(Version { version_info, last_updated: self.0.loaded_at, type_url, value: Bytes::new() });
                }
            }
            all.push(resource);
        }
        all
    }
}

/// Walks a raw store by name without holding it between steps.
struct Cursor {
    control: Rc<Control>,
    kind: Kind,
    last: Option<Arc<str>>,
}

impl Cursor {
    fn new(control: Rc<Control>, kind: Kind) -> Self {
        Self { control, kind, last: None }
    }
    /// The endpoint assignment of a cluster, as received: its own (static) or the one that EDS gave.
    fn endpoints((control, cluster): (Rc<Control>, Resource)) -> Option<Resource> {
        let version = cluster.active.as_ref()?;
        let proto = ClusterProto::decode(version.value.as_ref()).ok()?;
        let is_eds = proto.cluster_discovery_type == Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32));
        let mut endpoints = Resource { warming: None, draining: None, error: None, active: None, ..cluster.clone() };
        if is_eds {
            let service = proto.eds_cluster_config.map(|e| e.service_name).unwrap_or_default();
            let name = if service.is_empty() { proto.name } else { service };
            let raw = control.raw(Kind::Endpoint).borrow();
            let entry = raw.get(&name)?;
            endpoints.error = entry.error.as_deref().cloned();
            endpoints.active = entry.active.as_ref().map(|r| Version {
                version_info: r.version.clone(),
                last_updated: r.updated,
                type_url: Kind::Endpoint.type_url().into(),
                value: r.value.clone(),
            });
            return Some(endpoints);
        }
        let mut assignment = proto.load_assignment.unwrap_or_default();
        if assignment.cluster_name.is_empty() {
            assignment.cluster_name = proto.name;
        }
        let value = assignment.encode_to_vec().into();
        endpoints.active = Some(Version { type_url: Kind::Endpoint.type_url().into(), value, ..version.clone() });
        Some(endpoints)
    }
}

impl Iterator for Cursor {
    type Item = (Rc<Control>, Resource);
    fn next(&mut self) -> Option<Self::Item> {
        let next = self.control.raw(self.kind).borrow().after(self.last.as_deref())?;
        self.last = Some(next.name.clone());
        Some((self.control.clone(), next))
    }
}

fn kind_of(kind: ResourceKind) -> Kind {
    match kind {
        ResourceKind::Cluster => Kind::Cluster,
        ResourceKind::Endpoint => Kind::Endpoint,
        ResourceKind::Listener => Kind::Listener,
        ResourceKind::Route => Kind::Route,
        ResourceKind::Secret => Kind::Secret,
        ResourceKind::ExtensionConfig => Kind::Extension,
        ResourceKind::ScopedRoute => Kind::Scope,
    }
}

/// Route tables inside of listeners.
fn inline_routes(control: &Control) -> Vec<Resource> {
    let type_url: Arc<str> = Kind::Route.type_url().into();
    let one = |value: Bytes| {
        let name = nuncio_xds::resource_name(&value).unwrap_or_else(|_| "".into());
        let active = Version { version_info: "".into(), last_updated: control.loaded_at, type_url: type_url.clone(), value };
        Resource { name, is_static: true, active: Some(active), warming: None, draining: None, error: None }
    };
    control.listeners.borrow().inline_routes().into_iter().map(one).collect()
}

fn cluster(control: &Control, cluster: &Arc<Cluster>) -> ClusterStatus {
    let limits = |priority| {
        let t = cluster.breakers().at(priority);
        Limits {
            max_connections: t.connections.max(),
            max_pending_requests: t.pending.max(),
            max_requests: t.requests.max(),
            max_retries: t.retries.max(),
        }
    };
    let added_via_api = control.raw(Kind::Cluster).borrow().get(cluster.name()).is_some_and(|e| !e.is_static);
    ClusterStatus {
        name: cluster.name().clone(),
        observability_name: cluster.observability_name().clone(),
        added_via_api,
        eds_service_name: String::new(),
        outlier: None,
        default_priority: limits(RoutingPriority::Default),
        high_priority: limits(RoutingPriority::High),
        hosts: cluster.hosts().iter().map(|h| host(h)).collect(),
    }
}

fn host(host: &Host) -> HostStatus {
    let flags = host.flags();
    let gauge = |n: i64| u64::try_from(n).unwrap_or(0);
    let s = &host.stats;
    let locality = host.locality().cloned().unwrap_or_default();
    HostStatus {
        address: host.address().clone(),
        hostname: host.hostname().to_string(),
        stats: HostStats {
            cx_active: gauge(s.cx_active.load(Relaxed)),
            cx_connect_fail: s.cx_connect_fail.load(Relaxed),
            cx_total: s.cx_total.load(Relaxed),
            rq_active: gauge(s.rq_active.load(Relaxed)),
            rq_error: s.rq_error.load(Relaxed),
            rq_pending_active: gauge(s.rq_pending_active.load(Relaxed)),
            rq_success: s.rq_success.load(Relaxed),
            rq_timeout: s.rq_timeout.load(Relaxed),
            rq_total: s.rq_total.load(Relaxed),
        },
        health: HostHealth {
            failed_active_health_check: flags.has(HealthFlags::FAILED_ACTIVE_HC),
            failed_outlier_check: flags.has(HealthFlags::FAILED_OUTLIER_CHECK),
            failed_active_degraded_check: flags.has(HealthFlags::DEGRADED_ACTIVE_HC),
            pending_dynamic_removal: flags.has(HealthFlags::PENDING_DYNAMIC_REMOVAL),
            pending_active_hc: flags.has(HealthFlags::PENDING_ACTIVE_HC),
            excluded_via_immediate_hc_fail: flags.has(HealthFlags::EXCLUDED_VIA_IMMEDIATE_HC_FAIL),
            active_hc_timeout: flags.has(HealthFlags::ACTIVE_HC_TIMEOUT),
            failed_degraded_outlier_detection: flags.has(HealthFlags::DEGRADED_OUTLIER_DETECTION),
            eds_health_status: host.eds_health() as i32,
        },
        weight: host.weight(),
        region: locality.region,
        zone: locality.zone,
        sub_zone: locality.sub_zone,
        canary: host.canary(),
        priority: host.priority(),
        success_rate: -1.0,
        local_origin_success_rate: -1.0,
    }
}

/// `command_line_options` of server_info.
fn options(a: &args::Args) -> CommandLineOptions {
    let duration = |d: Duration| prost_types::Duration::try_from(d).ok();
    CommandLineOptions {
        base_id: u64::from(a.base_id),
        use_dynamic_base_id: a.use_dynamic_base_id,
        skip_hot_restart_on_no_parent: a.skip_hot_restart_on_no_parent,
        skip_hot_restart_parent_stats: a.skip_hot_restart_parent_stats,
        base_id_path: a.base_id_path.clone(),
        concurrency: u32::try_from(a.concurrency).unwrap_or(u32::MAX),
        config_path: a.config_path.clone(),
        config_yaml: a.config_yaml.clone(),
        allow_unknown_static_fields: a.allow_unknown_static_fields,
        reject_unknown_dynamic_fields: a.reject_unknown_dynamic_fields,
        ignore_unknown_dynamic_fields: a.ignore_unknown_dynamic_fields,
        skip_deprecated_logs: a.skip_deprecated_logs,
        admin_address_path: a.admin_address_path.clone(),
        local_address_ip_version: match a.local_address_ip_version {
            IpVersion::V4 => cli::IpVersion::V4,
            IpVersion::V6 => cli::IpVersion::V6,
        } as i32,
        log_level: a.log_level.name().to_string(),
        component_log_level: a.component_log_level_text.clone(),
        log_format: a.log_format.clone(),
        log_format_escaped: a.log_format_escaped,
        log_path: a.log_path.clone(),
        service_cluster: a.service_cluster.clone(),
        service_node: a.service_node.clone(),
        service_zone: a.service_zone.clone(),
        file_flush_interval: duration(a.file_flush_interval),
        file_flush_min_size: a.file_flush_min_size_kb,
        drain_time: duration(a.drain_time),
        drain_strategy: match a.drain_strategy {
            DrainStrategy::Gradual => cli::DrainStrategy::Gradual,
            DrainStrategy::Immediate => cli::DrainStrategy::Immediate,
        } as i32,
        parent_shutdown_time: duration(a.parent_shutdown_time),
        mode: match a.mode {
            Mode::Serve => cli::Mode::Serve,
            Mode::Validate => cli::Mode::Validate,
            Mode::InitOnly => cli::Mode::InitOnly,
        } as i32,
        disable_hot_restart: a.disable_hot_restart,
        enable_mutex_tracing: a.enable_mutex_tracing,
        restart_epoch: a.restart_epoch,
        cpuset_threads: a.cpuset_threads,
        disabled_extensions: a.disabled_extensions.clone(),
        enable_fine_grain_logging: a.enable_fine_grain_logging,
        log_stacktrace_single_entry: a.log_stacktrace_single_entry,
        socket_path: a.socket_path.clone(),
        socket_mode: a.socket_mode,
        enable_core_dump: a.enable_core_dump,
        stats_tag: a.stats_tag.iter().map(|(k, v)| format!("{k}:{v}")).collect(),
    }
}
