//! Every field of the Bootstrap: implemented elsewhere, refused here, or ignored here with a warning by name. Called once.

use nuncio_core::diag::{At, Report};
use nuncio_proto::envoy::config::bootstrap::v3::Bootstrap;
use nuncio_proto::typed;

/// Overload settings that are implemented.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overload {
    /// `envoy.resource_monitors.global_downstream_max_connections`.
    pub max_connections: Option<u64>,
}

/// Goes through the fields that nothing else looks at.
pub fn account(bootstrap: &Bootstrap, report: &mut Report) -> Overload {
    // Taken apart without `..`, so that a field added to the message does not compile until it is accounted for.
    #[allow(deprecated)]
    let Bootstrap {
        node: _,
        node_context_params,
        static_resources: _,
        dynamic_resources,
        cluster_manager: _,
        hds_config,
        flags_path,
        stats_sinks,
        // Stats are cheap until they are used: there is nothing to defer.
        deferred_stat_options: _,
        stats_config: _,
        // Only sinks are flushed, and there are none.
        stats_flush_interval: _,
        stats_flush: _,
        stats_eviction: _,
        watchdog,
        watchdogs,
        tracing,
        layered_runtime: _,
        admin: _,
        overload_manager: _,
        enable_dispatcher_stats,
        header_prefix,
        stats_server_version_override: _,
        use_tcp_for_dns_lookups,
        dns_resolution_config,
        typed_dns_resolver_config,
        bootstrap_extensions,
        fatal_actions,
        config_sources,
        default_config_source,
        default_socket_interface,
        certificate_provider_instances,
        // Envoy registers these headers for speed; nothing behaves differently.
        inline_headers: _,
        perf_tracing_file_path,
        default_regex_engine,
        xds_delegate_extension,
        xds_config_tracker_extension,
        listener_manager,
        application_log_config: _,
        grpc_async_client_manager_config: _,
        memory_allocator_manager,
        enable_worker_cpu_affinity,
    } = bootstrap;
    let root = At::Root;
    const NO_EFFECT: &str = "remove it; it has no effect here";
    let mut refuse = |set: bool, field: &str, what: &str| {
        if set {
            report.unsupported(&root.field(field), what);
        }
    };
    refuse(hds_config.is_some(), "hds_config", "health discovery (HDS)");
    refuse(!stats_sinks.is_empty(), "stats_sinks", "sending stats to a sink (scrape /stats/prometheus)");
    refuse(!header_prefix.is_empty() && header_prefix != "x-envoy", "header_prefix", "another prefix than x-envoy");
    refuse(!config_sources.is_empty(), "config_sources", "xdstp resource names");
    refuse(default_config_source.is_some(), "default_config_source", "xdstp resource names");
    refuse(!default_socket_interface.is_empty(), "default_socket_interface", "another socket interface");
    refuse(!certificate_provider_instances.is_empty(), "certificate_provider_instances", "certificate providers");
    refuse(xds_delegate_extension.is_some(), "xds_delegate_extension", "an xDS delegate");
    refuse(xds_config_tracker_extension.is_some(), "xds_config_tracker_extension", "an xDS config tracker");
    let mut ignore = |set: bool, field: &str, found: &str| {
        if set {
            report.warning(&root.field(field), format!("{found} is ignored"), NO_EFFECT);
        }
    };
    ignore(!node_context_params.is_empty(), "node_context_params", "the context of xdstp names");
    ignore(!flags_path.is_empty(), "flags_path", "the flag directory of hot restart");
    ignore(watchdog.is_some(), "watchdog", "the watchdog");
    ignore(watchdogs.is_some(), "watchdogs", "the watchdog");
    ignore(tracing.is_some(), "tracing", "the deprecated tracing provider");
    ignore(*enable_dispatcher_stats, "enable_dispatcher_stats", "statistics of libevent");
    ignore(!fatal_actions.is_empty(), "fatal_actions", "what to do on a crash");
    ignore(!perf_tracing_file_path.is_empty(), "perf_tracing_file_path", "Perfetto tracing");
    ignore(memory_allocator_manager.is_some(), "memory_allocator_manager", "tuning of tcmalloc");
    ignore(*enable_worker_cpu_affinity, "enable_worker_cpu_affinity", "pinning of workers");
    let mut resolver = |set: bool, field: &str| {
        if set {
            report.warning(&root.field(field), "a resolver for the whole process", "set it in each cluster; others use the system's");
        }
    };
    resolver(*use_tcp_for_dns_lookups, "use_tcp_for_dns_lookups");
    resolver(dns_resolution_config.is_some(), "dns_resolution_config");
    resolver(typed_dns_resolver_config.is_some(), "typed_dns_resolver_config");
    if let Some(engine) = default_regex_engine
        && engine.typed_config.as_ref().is_some_and(|a| !a.type_url.ends_with("envoy.extensions.regex_engines.v3.GoogleRE2"))
    {
        report.unsupported(&root.field("default_regex_engine"), format_args!("regex engine '{}'", engine.name));
    }
    if let Some(manager) = listener_manager
        && manager.name != "envoy.listener_manager_impl.default"
    {
        report.unsupported(&root.field("listener_manager"), format_args!("listener manager '{}'", manager.name));
    }
    extensions(bootstrap_extensions, report);
    if let Some(dynamic) = dynamic_resources {
        let at = root.field("dynamic_resources");
        if !dynamic.lds_resources_locator.is_empty() {
            report.unsupported(&at.field("lds_resources_locator"), "xdstp resource names");
        }
        if !dynamic.cds_resources_locator.is_empty() {
            report.unsupported(&at.field("cds_resources_locator"), "xdstp resource names");
        }
    }
    cluster_manager(bootstrap, report);
    overload(bootstrap, report)
}

fn extensions(all: &[nuncio_proto::envoy::config::core::v3::TypedExtensionConfig], report: &mut Report) {
    let root = At::Root;
    let field = root.field("bootstrap_extensions");
    for (i, extension) in all.iter().enumerate() {
        let at = field.index(i);
        // The name alone decides when a TypedStruct wraps a type that is not known here.
        let name = extension.typed_config.as_ref().and_then(|a| typed::unpack(a).ok()).map(|t| t.name).unwrap_or_default();
        match name.as_str() {
            "envoy.extensions.bootstrap.internal_listener.v3.InternalListener" => {}
            _ if extension.name == "envoy.bootstrap.internal_listener" => {}
            "istio.workload.BootstrapExtension" => {
                report.warning(&at, "workload discovery is ignored", "peers are known by metadata exchange only");
            }
            _ if extension.name == "metadata_discovery" => {
                report.warning(&at, "workload discovery is ignored", "peers are known by metadata exchange only");
            }
            _ => report.unsupported(&at, format_args!("bootstrap extension '{}'", extension.name)),
        }
    }
}

fn cluster_manager(bootstrap: &Bootstrap, report: &mut Report) {
    let Some(manager) = &bootstrap.cluster_manager else { return };
    let root = At::Root;
    let at = root.field("cluster_manager");
    if manager.load_stats_config.is_some() {
        report.unsupported(&at.field("load_stats_config"), "load reporting (LRS)");
    }
    if manager.outlier_detection.as_ref().is_some_and(|o| o.event_service.is_some()) {
        report.unsupported(&at.field("outlier_detection").field("event_service"), "an event service");
    }
}

fn overload(bootstrap: &Bootstrap, report: &mut Report) -> Overload {
    use nuncio_proto::envoy::extensions::resource_monitors::downstream_connections::v3::DownstreamConnectionsConfig;
    let mut result = Overload::default();
    let Some(manager) = &bootstrap.overload_manager else { return result };
    let root = At::Root;
    let at = root.field("overload_manager");
    let monitors = at.field("resource_monitors");
    for (i, monitor) in manager.resource_monitors.iter().enumerate() {
        let at = monitors.index(i);
        let Some(nuncio_proto::envoy::config::overload::v3::resource_monitor::ConfigType::TypedConfig(any)) = &monitor.config_type else {
            report.error(&at, "no typed_config", "set typed_config");
            continue;
        };
        match typed::unpack_as::<DownstreamConnectionsConfig>(any) {
            Ok(config) if config.max_active_downstream_connections > 0 => {
                result.max_connections = u64::try_from(config.max_active_downstream_connections).ok();
            }
            Ok(config) => report.error(
                &at.field("typed_config").field("max_active_downstream_connections"),
                config.max_active_downstream_connections.to_string(),
                "must be greater than 0",
            ),
            Err(_) => report.unsupported(&at, format_args!("resource monitor '{}'", monitor.name)),
        }
    }
    if !manager.actions.is_empty() {
        report.unsupported(&at.field("actions"), "overload actions");
    }
    if manager.buffer_factory_config.is_some() {
        report.warning(&at.field("buffer_factory_config"), "set", "buffers are not accounted by stream");
    }
    if !manager.loadshed_points.is_empty() {
        report.unsupported(&at.field("loadshed_points"), "load shed points");
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use nuncio_proto::json::{UnknownFields, parse_text};

    fn findings(yaml: &str) -> (Overload, Report) {
        let bootstrap = parse_text::<Bootstrap>(yaml, UnknownFields::Ignore).unwrap().value;
        let mut report = Report::new();
        (account(&bootstrap, &mut report), report)
    }

    #[test]
    fn every_refusal_and_warning_names_its_field() {
        let (_, report) = findings("{header_prefix: x-foo, hds_config: {}, watchdog: {}, cluster_manager: {load_stats_config: {}}}");
        let paths: Vec<_> = report.items.iter().map(|d| d.path.as_str()).collect();
        assert_eq!(paths, ["hds_config", "header_prefix", "watchdog", "cluster_manager.load_stats_config"]);
        assert_eq!(report.errors(), 3);
    }

    #[test]
    fn what_nothing_reads_is_warned_about() {
        let (_, report) = findings(
            "{use_tcp_for_dns_lookups: true, dns_resolution_config: {}, typed_dns_resolver_config: {name: x}, \
             overload_manager: {buffer_factory_config: {}}, cluster_manager: {local_cluster_name: me}}",
        );
        let paths: Vec<_> = report.items.iter().map(|d| d.path.as_str()).collect();
        let resolvers = ["use_tcp_for_dns_lookups", "dns_resolution_config", "typed_dns_resolver_config"];
        assert_eq!(paths, [&resolvers[..], &["overload_manager.buffer_factory_config"]].concat());
        assert_eq!(report.errors(), 0);
    }

    #[test]
    fn the_connection_limit_is_read() {
        let (overload, report) = findings(
            r#"{overload_manager: {resource_monitors: [{name: x, typed_config: {"@type": type.googleapis.com/envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig, max_active_downstream_connections: "7"}}]}}"#,
        );
        assert_eq!((overload.max_connections, report.items.len()), (Some(7), 0));
    }
}
