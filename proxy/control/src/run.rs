//! The control thread's life: command line and bootstrap in, exit status out. Called by `main` on the process's first thread.

use crate::accounting;
use crate::admin::Admin;
use crate::args::{Args, DrainStrategy, ENVOY_VERSION, IpVersion, Mode};
use crate::bootstrap;
use crate::control::{Control, Parts, Shared};
use crate::init::Phase;
use crate::log_format::Pattern;
use crate::logger::{self, critical};
use crate::source;
use crate::stats::ServerStats;
use crate::subscriptions::{Kind, Task};
use crate::validate::lines;
use nuncio_admin::{AdminOptions, AdminServer};
use nuncio_core::Address;
use nuncio_core::diag::{At, Report};
use nuncio_core::registry::{Registry, Runtime, Server};
use nuncio_format::Files;
use nuncio_hcm::EcdsSlots;
use nuncio_listener::drain::DrainStrategy as ListenerDrain;
use nuncio_listener::{DrainOptions, ListenerManager, ListenerManagerCx, TerminalRegistry, spawn_workers};
use nuncio_proto::Message;
use nuncio_proto::envoy::config::bootstrap::v3::Bootstrap;
use nuncio_proto::envoy::config::bootstrap::v3::bootstrap::application_log_config::log_format::LogFormat;
use nuncio_proto::envoy::config::core::v3::{self as core, address, socket_address::PortSpecifier};
use nuncio_proto::envoy::config::metrics::v3::{StatsConfig, TagSpecifier, tag_specifier::TagValue};
use nuncio_route::RouteSlots;
use nuncio_stats::Store;
use nuncio_tls::SecretStore;
use nuncio_upstream::{ClusterManager, ManagerOptions, Upstreams};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

/// What `main` brings: filters by type, and how to make the terminal filters once there is a server.
pub struct Factories {
    pub registry: Registry,
    /// Makes the factories of terminal network filters.
    pub terminals: Box<dyn FnOnce(&Shared) -> TerminalRegistry>,
    /// Runs first on each worker, inside its runtime, with its index. Upstream pools are installed already.
    pub worker_setup: fn(usize),
}

/// Runs the process to its end; returns its exit status.
pub fn run(args: Args, factories: Factories) -> i32 {
    let pattern = match Pattern::compile(&args.log_format, args.log_format_escaped) {
        Ok(pattern) => pattern,
        Err(e) => return usage_error(&e),
    };
    if let Err(e) = logger::init(args.log_level, &args.component_log_level, pattern, &args.log_path) {
        return usage_error(&e);
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return usage_error(&format!("the event loop cannot be made: {e}")),
    };
    let local = tokio::task::LocalSet::new();
    let status = runtime.block_on(local.run_until(life(args, factories)));
    // What still runs (streams to the control plane, DNS) ends with the process.
    runtime.shutdown_background();
    status
}

fn usage_error(text: &str) -> i32 {
    eprintln!("error: {text}");
    1
}

/// Prints every problem of the configuration; returns the exit status.
fn refuse(args: &Args, problems: &[String]) -> i32 {
    let path = &args.config_path;
    if args.mode == Mode::Validate {
        for problem in problems {
            eprintln!("{problem}");
        }
        eprintln!("configuration '{path}' has {} problem{}", problems.len(), if problems.len() == 1 { "" } else { "s" });
    } else {
        for problem in problems {
            critical("main", format_args!("error initializing configuration '{path}': {problem}"));
        }
    }
    1
}

/// A bootstrap that was read, and everything about it that does not need the process around it.
struct Prepared {
    bootstrap: Bootstrap,
    unknown: Vec<String>,
    layers: Vec<bootstrap::Layer>,
    overload: accounting::Overload,
    store: Store,
    ads: Option<source::Grpc>,
    problems: Vec<String>,
}

fn prepare(args: &Args) -> Result<Prepared, Vec<String>> {
    let loaded = bootstrap::load(args)?;
    let bootstrap = loaded.bootstrap;
    let mut report = Report::new();
    let overload = accounting::account(&bootstrap, &mut report);
    let layers = bootstrap::layers(&bootstrap, &mut report);
    let ads = check_sources(&bootstrap, &mut report);
    if let Err(e) = log_config(&bootstrap, args) {
        let root = At::Root;
        report.error(&root.field("application_log_config"), e, "correct it, or remove --log-format");
    }
    let mut config: StatsConfig = bootstrap.stats_config.clone().unwrap_or_default();
    for (name, value) in &args.stats_tag {
        config.stats_tags.push(TagSpecifier { tag_name: name.clone(), tag_value: Some(TagValue::FixedValue(value.clone())) });
    }
    let mut problems = lines("bootstrap", &report);
    let store = Store::with_config(&config).unwrap_or_else(|all| {
        problems.extend(all.iter().map(|p| format!("bootstrap: stats_config.{}: {}; {}", p.path, p.found, p.remedy)));
        Store::new()
    });
    Ok(Prepared { bootstrap, unknown: loaded.unknown, layers, overload, store, ads, problems })
}

/// The sources of the bootstrap; returns the aggregated one.
fn check_sources(bootstrap: &Bootstrap, report: &mut Report) -> Option<source::Grpc> {
    let dynamic = bootstrap.dynamic_resources.as_ref()?;
    let root = At::Root;
    let at = root.field("dynamic_resources");
    let ads = dynamic.ads_config.as_ref().and_then(|ads| source::grpc(ads, true, &at.field("ads_config"), report));
    if let Some(grpc) = &ads {
        let known = bootstrap.static_resources.iter().flat_map(|s| &s.clusters).any(|c| c.name == grpc.cluster);
        if !known {
            let at = at.field("ads_config");
            report.error(&at, format!("unknown gRPC client cluster '{}'", grpc.cluster), "add it to static_resources.clusters");
        }
    }
    for (name, config) in [("cds_config", &dynamic.cds_config), ("lds_config", &dynamic.lds_config)] {
        let Some(config) = config else { continue };
        let resolved = source::resolve(config, &at.field(name), report);
        if resolved == Some(source::Source::Ads) && dynamic.ads_config.is_none() {
            report.error(&at.field(name), "ads without dynamic_resources.ads_config", "set ads_config");
        }
    }
    ads
}

/// `application_log_config` replaces `--log-format`.
fn log_config(bootstrap: &Bootstrap, args: &Args) -> Result<(), String> {
    let format = bootstrap.application_log_config.as_ref().and_then(|c| c.log_format.as_ref()).and_then(|f| f.log_format.as_ref());
    let Some(format) = format else { return Ok(()) };
    if args.log_format_set {
        return Err("log_format and --log-format exclude each other".to_string());
    }
    let pattern = match format {
        LogFormat::TextFormat(text) => Pattern::compile(text, false)?,
        LogFormat::JsonFormat(fields) => Pattern::compile_json(fields)?,
    };
    logger::set_pattern(pattern);
    Ok(())
}

/// `--disable-extensions`: `category/name`, as Envoy writes it.
fn disable(registry: &mut Registry, disabled: &[String]) {
    let keep = |category: &str, name: &str| !disabled.iter().any(|d| d.split_once('/') == Some((category, name)));
    registry.http.retain(|f| keep("envoy.filters.http", f.name()));
    registry.network.retain(|f| keep("envoy.filters.network", f.name()));
    registry.upstream_network.retain(|f| keep("envoy.filters.upstream_network", f.name()));
}

async fn life(args: Args, mut factories: Factories) -> i32 {
    disable(&mut factories.registry, &args.disabled_extensions);
    let prepared = match prepare(&args) {
        Ok(prepared) => prepared,
        Err(problems) => return refuse(&args, &problems),
    };
    for field in &prepared.unknown {
        log::warn!(target: "config", "unknown field '{field}' of the bootstrap is ignored");
    }
    if args.reject_unknown_dynamic_fields {
        log::warn!(target: "config", "--reject-unknown-dynamic-fields is ignored: fields that are not known are skipped, as in Envoy without it");
    }
    let validating = args.mode == Mode::Validate;
    let Prepared { mut bootstrap, unknown, layers, overload, store, ads, mut problems } = prepared;
    if !problems.is_empty() && !validating {
        return refuse(&args, &problems);
    }
    let node = bootstrap::node(&bootstrap, &args, bootstrap::extensions(&factories.registry));
    bootstrap.node = Some(node.clone());
    name_listeners(&mut bootstrap);
    let runtime = Runtime::default();
    bootstrap::apply_layers(&layers, &runtime);
    // Before anything compiles an expression; the default is Envoy's.
    let limit = runtime.integer("re2.max_program_size.error_level", 100);
    nuncio_matcher::regex::set_max_program_size(u32::try_from(limit).unwrap_or(u32::MAX));
    let server = Arc::new(Server {
        node,
        stats: store,
        runtime,
        started: Instant::now(),
        concurrency: args.concurrency,
        drain_time: args.drain_time,
        clusters: Arc::default(),
    });
    if let Some(local) = bootstrap.cluster_manager.as_ref().map(|m| &m.local_cluster_name).filter(|n| !n.is_empty()) {
        server.clusters.set_local(local);
    }
    if !validating {
        if args.local_address_ip_version == IpVersion::V6 {
            nuncio_core::local_address::use_ipv6();
        }
        Files::start(args.file_flush_interval, usize::try_from(args.file_flush_min_size_kb).unwrap_or(0).saturating_mul(1024));
    }
    let shared = Shared {
        server: server.clone(),
        registry: Arc::new(factories.registry),
        clusters: server.clusters.clone(),
        routes: Arc::new(RouteSlots::default()),
        secrets: SecretStore::new(),
        extensions: Arc::new(EcdsSlots::default()),
        discovery: Arc::default(),
    };
    let mut report = Report::new();
    let clusters = ClusterManager::new(
        ManagerOptions {
            server: server.clone(),
            secrets: shared.secrets.clone(),
            registry: shared.registry.clone(),
            slots: shared.clusters.clone(),
            bootstrap: bootstrap.cluster_manager.clone().unwrap_or_default(),
        },
        &mut report,
    );
    let root = At::Root;
    let admin = bootstrap.admin.as_ref().and_then(|a| {
        let options = AdminOptions::compile(a, &server, &root.field("admin"), &mut report);
        let address = a.address.as_ref().and_then(|address| admin_address(address, &mut report));
        Some((options?, address?))
    });
    problems.extend(lines("bootstrap", &report));
    let terminals = Arc::new((factories.terminals)(&shared));
    let (feeds, setup) = (clusters.clone(), factories.worker_setup);
    let threads = if validating { 0 } else { args.concurrency };
    let workers = spawn_workers(threads, move |index| {
        Upstreams::install(feeds.worker_feed());
        setup(index);
    });
    let workers = match workers {
        Ok(workers) => workers,
        Err(e) => return refuse(&args, &[format!("workers cannot be started: {e}")]),
    };
    let listener_manager = ListenerManager::new(
        ListenerManagerCx {
            server: server.clone(),
            registry: shared.registry.clone(),
            terminals,
            secrets: shared.secrets.clone(),
            drain_strategy: match args.drain_strategy {
                DrainStrategy::Gradual => ListenerDrain::Gradual,
                DrainStrategy::Immediate => ListenerDrain::Immediate,
            },
        },
        workers.clone(),
    );
    let (major, minor, patch) = ENVOY_VERSION;
    let version = bootstrap.stats_server_version_override.and_then(|v| i64::try_from(v).ok());
    // Envoy: the first three bytes of the revision, or this override. The revision here is another program's: use the API's version.
    let version = version.unwrap_or(i64::from(major) << 16 | i64::from(minor) << 8 | i64::from(patch));
    let stats = ServerStats::new(&server.stats.root(), args.concurrency, version);
    stats.static_unknown_fields.add(unknown.len() as u64);
    let control = Control::new(Parts {
        bootstrap_raw: bootstrap.encode_to_vec().into(),
        args,
        shared,
        bootstrap,
        layers,
        clusters,
        listener_manager,
        stats,
    });
    control.listener_manager.borrow_mut().set_max_connections(overload.max_connections);
    if validating {
        problems.extend(control.validate());
        if !problems.is_empty() {
            return refuse(&control.args, &problems);
        }
        println!("configuration '{}' OK", control.args.config_path);
        return 0;
    }
    if !problems.is_empty() {
        return refuse(&control.args, &problems);
    }
    let status = serve(&control, admin, ads).await;
    workers.exit();
    Files::flush();
    status
}

/// Serves until a signal or `/quitquitquit`.
async fn serve(control: &Rc<Control>, admin: Option<(AdminOptions, AdminAddress)>, ads: Option<source::Grpc>) -> i32 {
    control.publish_state();
    let base_id = &control.args.base_id_path;
    if !base_id.is_empty()
        && let Err(e) = std::fs::write(base_id, control.args.base_id.to_string())
    {
        return refuse(&control.args, &[format!("the base ID cannot be written to '{base_id}': {e}")]);
    }
    Upstreams::install(control.clusters.worker_feed());
    let mut tasks = Vec::new();
    if let Some((options, address)) = admin {
        match start_admin(control, options, &address) {
            Ok(task) => tasks.push(task),
            Err(e) => return refuse(&control.args, &[e]),
        }
    }
    tasks.push(Task::spawn(control.clusters.clone().run()));
    let mut problems = Vec::new();
    let clusters = std::mem::take(&mut control.statics.borrow_mut().clusters);
    for cluster in clusters {
        if control.raw(Kind::Cluster).borrow().get(&cluster.name).is_some() {
            problems.push(format!("cluster '{}': duplicate name; give each cluster a name of its own", cluster.name));
            continue;
        }
        let value = cluster.encode_to_vec();
        match control.apply_cluster(&value, false) {
            Ok(_) => control.raw(Kind::Cluster).borrow_mut().put_static(&cluster.name, value.into()),
            Err(report) => problems.extend(lines(&format!("cluster '{}'", cluster.name), &report)),
        }
    }
    if !problems.is_empty() {
        return refuse(&control.args, &problems);
    }
    control.sync_secrets();
    if let Some(ads) = &ads {
        control.subscriptions.start_ads(control, ads);
    }
    tasks.push(Task::spawn(control.clone().keep_house()));
    tasks.push(Task::spawn(control.clone().tend_memory()));
    if let Some(demands) = control.shared.discovery.take_demands() {
        tasks.push(Task::spawn(control.clone().serve_demands(demands)));
    }
    tasks.push(control.watch_secret_files());
    tasks.push(flush_stats(control));
    control.housekeep();
    let status = until_the_end(control).await;
    drop(tasks);
    status
}

fn start_admin(control: &Rc<Control>, options: AdminOptions, at: &AdminAddress) -> Result<Task, String> {
    let AdminAddress { address, mode, ipv4_compat } = at;
    let server = if *ipv4_compat { AdminServer::bind_compat(address) } else { AdminServer::bind(address, *mode) };
    let server = server.map_err(|e| format!("admin address {address} cannot be used: {e}"))?;
    let bound = server.local_address().to_string();
    log::info!(target: "main", "admin address: {bound}");
    let path = &control.args.admin_address_path;
    if !path.is_empty()
        && let Err(e) = std::fs::write(path, &bound)
    {
        // As Envoy: the proxy is useful without that file.
        log::error!(target: "main", "cannot write the admin address to '{path}': {e}");
    }
    let backend = Rc::new(Admin(control.clone()));
    Ok(Task::spawn(server.run(backend, options)))
}

/// Waits for what ends the process; returns the exit status.
async fn until_the_end(control: &Rc<Control>) -> i32 {
    let signals = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
        signal(SignalKind::user_defined1()),
        signal(SignalKind::hangup()),
    );
    let (Ok(mut term), Ok(mut int), Ok(mut usr1), Ok(mut hup)) = signals else {
        return refuse(&control.args, &["signals cannot be handled".to_string()]);
    };
    let mut drained = false;
    let init_only = control.args.mode == Mode::InitOnly;
    loop {
        if init_only && control.init.phase() == Phase::Live {
            return i32::from(control.failed.get());
        }
        tokio::select! {
            _ = term.recv() => {
                if drained {
                    log::warn!(target: "main", "caught a second SIGTERM; exiting without waiting for connections");
                    return 0;
                }
                drained = true;
                log::warn!(target: "main", "caught SIGTERM; draining for at most {} s", control.args.drain_time.as_secs());
                let control = control.clone();
                tokio::task::spawn_local(async move { drain(&control).await });
            }
            _ = int.recv() => {
                log::warn!(target: "main", "caught SIGINT; exiting");
                return 0;
            }
            _ = usr1.recv() => control.reopen_logs(),
            // Envoy ignores it, so that closing a terminal does not end a proxy.
            _ = hup.recv() => log::warn!(target: "main", "caught SIGHUP; ignored"),
            () = control.quit.notified() => return i32::from(control.failed.get()),
            () = tokio::time::sleep(Duration::from_millis(20)), if init_only => {}
        }
    }
}

/// Drains listeners until no connection is left or the drain time is over, then asks for the end.
async fn drain(control: &Rc<Control>) {
    control.draining.set(true);
    control.publish_state();
    // Listeners keep accepting meanwhile: load balancers go on sending until they learn that this endpoint leaves.
    control.listener_manager.borrow_mut().drain(DrainOptions { graceful: true, ..DrainOptions::default() });
    let deadline = Instant::now() + control.args.drain_time;
    loop {
        let connections = control.listener_manager.borrow().connections();
        if connections == 0 {
            log::info!(target: "main", "drained; exiting");
            break;
        }
        if Instant::now() >= deadline {
            log::warn!(target: "main", "drain time is over; closing {connections} connections");
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    control.quit.notify_one();
}

/// Ends the interval of histograms and refreshes gauges, every `stats_flush_interval`.
fn flush_stats(control: &Rc<Control>) -> Task {
    let interval = |d: Option<prost_types::Duration>| d.and_then(|d| Duration::try_from(d).ok()).filter(|d| !d.is_zero());
    let flush = interval(control.bootstrap.stats_flush_interval).unwrap_or(Duration::from_secs(5)).max(Duration::from_millis(1));
    let evict = match &control.bootstrap.stats_eviction {
        Some(nuncio_proto::envoy::config::bootstrap::v3::bootstrap::StatsEviction::StatsEvictionInterval(d)) => interval(Some(*d)),
        None => None,
    };
    let control = Rc::downgrade(control);
    Task::spawn(async move {
        let mut evicted = Instant::now();
        loop {
            tokio::time::sleep(flush).await;
            let Some(control) = control.upgrade() else { return };
            control.refresh_stats();
            control.server.stats.flush();
            if evict.is_some_and(|interval| evicted.elapsed() >= interval) {
                evicted = Instant::now();
                control.server.stats.evict_unused();
            }
        }
    })
}

impl Control {
    /// Opens every log file again.
    pub(crate) fn reopen_logs(&self) {
        logger::reopen();
        Files::reopen();
    }

    /// Gauges that are asked for rather than counted.
    pub(crate) fn refresh_stats(&self) {
        self.publish_state();
        let gauge = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let memory = crate::memory::read();
        self.stats.uptime.set(gauge(self.server.started.elapsed().as_secs()));
        self.stats.memory_allocated.set(gauge(memory.resident_anonymous));
        self.stats.memory_heap_size.set(gauge(memory.data));
        self.stats.memory_physical_size.set(gauge(memory.resident));
        let manager = self.listener_manager.borrow();
        self.stats.total_connections.set(gauge(manager.connections()));
        let warming = self.listeners.borrow().warming();
        self.stats.listeners_warming.set(gauge(warming as u64));
        let days = self.shared.secrets.certificates().iter().map(|c| c.days_until_expiration).min();
        // Envoy says 0 if there is no certificate.
        self.stats.days_until_first_cert_expiring.set(gauge(days.unwrap_or(0)));
    }
}

/// Gives names to listeners of the bootstrap that have none; Envoy makes up UUIDs.
fn name_listeners(bootstrap: &mut Bootstrap) {
    for listener in bootstrap.static_resources.iter_mut().flat_map(|s| &mut s.listeners) {
        if listener.name.is_empty() {
            let (a, b) = (fastrand::u64(..), fastrand::u64(..));
            listener.name = format!(
                "{:08x}-{:04x}-4{:03x}-8{:03x}-{:012x}",
                a >> 32,
                a >> 16 & 0xffff,
                a & 0xfff,
                b >> 48 & 0xfff,
                b & 0xffff_ffff_ffff
            );
        }
    }
}

/// Where the admin port is.
struct AdminAddress {
    /// An IP with port, or a pipe.
    address: Address,
    /// Of a pipe; 0 for the process's umask.
    mode: u32,
    /// An IPv6 address takes IPv4 connections too.
    ipv4_compat: bool,
}

fn admin_address(proto: &core::Address, report: &mut Report) -> Option<AdminAddress> {
    let root = At::Root;
    let at = root.field("admin");
    let at = at.field("address");
    match &proto.address {
        Some(address::Address::SocketAddress(socket)) => {
            let at = at.field("socket_address");
            let port = match socket.port_specifier {
                Some(PortSpecifier::PortValue(port)) => u16::try_from(port).ok(),
                _ => None,
            };
            let ip = socket.address.parse::<std::net::IpAddr>().ok();
            if socket.protocol() != core::socket_address::Protocol::Tcp {
                report.warning(&at.field("protocol"), format!("{:?}", socket.protocol()), "ignored, as by Envoy: the admin port is TCP");
            }
            if !socket.resolver_name.is_empty() {
                report.unsupported(&at.field("resolver_name"), format_args!("resolver {}", socket.resolver_name));
            }
            if !socket.network_namespace_filepath.is_empty() {
                report.unsupported(&at.field("network_namespace_filepath"), "a network namespace of its own");
            }
            match (ip, port) {
                (Some(ip), Some(port)) => {
                    Some(AdminAddress { address: Address::Ip((ip, port).into()), mode: 0, ipv4_compat: socket.ipv4_compat && ip.is_ipv6() })
                }
                (None, _) => {
                    report.error(&at.field("address"), format!("'{}'", socket.address), "give an IP address");
                    None
                }
                (_, None) => {
                    report.error(&at.field("port_value"), "no port of 0 to 65535", "give a port");
                    None
                }
            }
        }
        Some(address::Address::Pipe(pipe)) => {
            Some(AdminAddress { address: Address::Pipe(pipe.path.as_str().into()), mode: pipe.mode, ipv4_compat: false })
        }
        _ => {
            report.error(&at, "no address that can be listened on", "give a socket_address or a pipe");
            None
        }
    }
}
