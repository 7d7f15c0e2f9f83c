//! Compiles HttpConnectionManager. Control thread. Every field is honoured, refused by name, or warned about where Envoy
//! would do without it too.

use crate::chain::{FilterChain, FilterEntry};
use crate::compile_identity;
use crate::compile_lifetime;
use crate::config::{Codec, HcmConfig, ServerHeader, Upgrade};
use crate::ecds::EcdsSlots;
use crate::hcm::Hcm;
use crate::host::{HostPolicy, StripPort};
use crate::local_reply::{self, LocalReplyConfig};
use crate::on_demand::{OnDemandFilter, RouteDiscovery};
use crate::path::PathPolicy;
use crate::proxy_status::ProxyStatus;
use crate::router::RouterConfig;
use crate::routes::Routes;
use crate::stats::{HcmStats, ListenerHttpStats};
use http::HeaderValue;
use nuncio_core::diag::At;
use nuncio_core::filter::Needs;
use nuncio_core::registry::{FactoryCx, Registry};
use nuncio_core::views::ClusterSlots;
use nuncio_format::AccessLogs;
use nuncio_http::compile as codec_options;
use nuncio_http::{CodecStats, H2Options, ServerOptions};
use nuncio_listener::{ChainCx, Terminal, TerminalFactory};
use nuncio_proto::Message;
use nuncio_proto::envoy::config::core::v3::Http2ProtocolOptions;
use nuncio_proto::envoy::extensions::filters::network::http_connection_manager::v3 as pb;
use nuncio_proto::envoy::extensions::http::early_header_mutation::header_mutation::v3::HeaderMutation as EarlyHeaderMutation;
use nuncio_route::{HeaderMutations, RouteSlots};
use pb::http_connection_manager::{PathWithEscapedSlashesAction, ServerHeaderTransformation, StripPortMode};
use pb::{HttpConnectionManager, HttpFilter, http_filter::ConfigType};
use std::sync::Arc;
use std::time::Duration;

/// Windows of connections to managers whose filters hold requests back, unless configuration says otherwise, and what the second may grow
/// by for bodies that are waited for. In bytes; Envoy's defaults (16 and 24 MiB) would take whole bodies in.
const HELD_STREAM_WINDOW: u32 = 65_536;
const HELD_CONNECTION_WINDOW: u32 = 1 << 20;
const HELD_EXTRA_WINDOW: u32 = 16 << 20;

/// Makes connection managers.
pub struct HcmFactory {
    pub registry: Arc<Registry>,
    pub routes: Arc<RouteSlots>,
    pub clusters: Arc<ClusterSlots>,
    pub extensions: Arc<EcdsSlots>,
    pub discovery: Arc<RouteDiscovery>,
}

impl TerminalFactory for HcmFactory {
    fn types(&self) -> &[&str] {
        &["envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"]
    }

    fn compile(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>, chain: &ChainCx<'_>) -> Option<Arc<dyn Terminal>> {
        match HttpConnectionManager::decode(config) {
            Ok(proto) => {
                let compiled = self.connection_manager(&proto, at, cx, chain)?;
                Some(Arc::new(Hcm::new(compiled)))
            }
            Err(error) => {
                cx.report.error(at, format!("not an HttpConnectionManager message: {error}"), "send a valid HttpConnectionManager");
                None
            }
        }
    }
}

impl HcmFactory {
    fn connection_manager(
        &self,
        proto: &HttpConnectionManager,
        at: &At<'_>,
        cx: &mut FactoryCx<'_>,
        chain: &ChainCx<'_>,
    ) -> Option<HcmConfig> {
        let errors = cx.report.errors();
        if proto.stat_prefix.is_empty() {
            cx.report.error(&at.field("stat_prefix"), "empty", "a name for the stats is required");
        }
        let scope = cx.server.stats.root().scope(&format!("http.{}.", proto.stat_prefix));
        let listener_scope = chain.listener_scope.scope(&format!("http.{}.", proto.stat_prefix));
        let routes = self.routes(proto, at, cx);
        let filters_at = at.field("http_filters");
        let mut filter_cx = FactoryCx { server: cx.server, scope: &scope, direction: cx.direction, report: cx.report };
        let routes = Arc::new(routes?);
        let (filters, router) = self.filters(&proto.http_filters, &routes, &filters_at, &mut filter_cx);
        let upgrades = self.upgrades(proto, &routes, at, &mut filter_cx, router.as_ref());
        let early_mutations = early_mutations(proto, at, cx);
        let access_logs = AccessLogs::compile(&proto.access_log, cx.server, &at.field("access_log"), cx.report);
        let identity = compile_identity::identity(proto, at, cx);
        let mut options = server_options(proto, at, cx, chain);
        let local_reply = match &proto.local_reply_config {
            None => Some(LocalReplyConfig::default()),
            Some(config) => local_reply::compile(config, &at.field("local_reply_config"), cx.report),
        };
        let server_name = if proto.server_name.is_empty() { "envoy" } else { &proto.server_name };
        let server_name = match HeaderValue::from_str(server_name) {
            Ok(name) => name,
            Err(_) => {
                cx.report.error(&at.field("server_name"), format!("{server_name:?}"), "must be a valid header value");
                HeaderValue::from_static("envoy")
            }
        };
        let proxy_status = proto.proxy_status_config.as_ref().map(|config| {
            let name = server_name.to_str().unwrap_or_default();
            Box::new(ProxyStatus::compile(config, name, &at.field("proxy_status_config"), cx))
        });
        refuse_unsupported(proto, at, cx);
        let path = path_policy(proto, at, cx);
        let timeouts = compile_lifetime::timeouts(proto, at, cx.report);
        options.stream_flush_timeout = timeouts.flush;
        if filters.as_ref().is_some_and(|chain| chain.needs(Needs::HOLDS_REQUESTS)) {
            hold_little(&mut options.h2, proto.http2_protocol_options.as_ref());
        }
        let log_options = compile_lifetime::log_options(proto, at, cx.report);
        let codec = match proto.codec_type {
            0 => Codec::Auto,
            1 => Codec::Http1,
            2 => Codec::Http2,
            other => {
                cx.report.error(&at.field("codec_type"), format!("value {other}"), "AUTO, HTTP1 or HTTP2; HTTP/3 is not supported");
                Codec::Auto
            }
        };
        let server_header = match ServerHeaderTransformation::try_from(proto.server_header_transformation) {
            Ok(ServerHeaderTransformation::AppendIfAbsent) => ServerHeader::AppendIfAbsent,
            Ok(ServerHeaderTransformation::PassThrough) => ServerHeader::PassThrough,
            _ => ServerHeader::Overwrite,
        };
        let (filters, router, access_logs, identity, local_reply) = (filters?, router?, access_logs?, identity?, local_reply?);
        if cx.report.errors() > errors {
            return None;
        }
        let stats = HcmStats::new(&scope);
        options.too_many_premature_resets = stats.downstream_rq_too_many_premature_resets.clone();
        Some(HcmConfig {
            server: cx.server.clone(),
            codec,
            options: Arc::new(options),
            stats,
            listener_stats: ListenerHttpStats::new(&listener_scope),
            filters,
            router,
            routes,
            route_resolution: proto
                .record_route_resolution_stats
                .then(|| (scope.histogram("downstream_rq_route_resolution_time_us"), scope.histogram("downstream_rq_route_resolutions"))),
            access_logs,
            identity,
            path,
            host: HostPolicy {
                strip_port: match proto.strip_port_mode {
                    Some(StripPortMode::StripAnyHostPort(true)) => StripPort::Any,
                    _ if proto.strip_matching_host_port => StripPort::Matching,
                    _ => StripPort::None,
                },
                strip_trailing_dot: proto.strip_trailing_host_dot,
            },
            reject_fragment: cx.server.runtime.boolean("envoy.reloadable_features.http_reject_path_with_fragment", true),
            early_mutations,
            local_reply,
            server_header,
            server_name,
            proxy_status,
            upgrades,
            timeouts,
            log_options,
            proxy_100_continue: proto.proxy_100_continue,
            always_set_request_id_in_response: proto.always_set_request_id_in_response,
        })
    }

    /// The chain and its terminal router.
    fn filters(
        &self,
        protos: &[HttpFilter],
        routes: &Arc<Routes>,
        at: &At<'_>,
        cx: &mut FactoryCx<'_>,
    ) -> (Option<FilterChain>, Option<RouterConfig>) {
        let Some((last, before)) = protos.split_last() else {
            cx.report.error(at, "no filters", "the chain must end in envoy.filters.http.router");
            return (None, None);
        };
        let entries = before.iter().enumerate().map(|(i, proto)| self.filter(proto, routes, &at.index(i), cx)).collect::<Vec<_>>();
        let router = self.router(last, &at.index(before.len()), cx);
        let complete = entries.iter().all(|e| !matches!(e, Filter::Refused));
        let entries = entries.into_iter().filter_map(Filter::entry).collect();
        (complete.then(|| FilterChain::new(entries)), router)
    }

    /// `upgrade_configs`, with their own filters. Their router must be the connection manager's.
    fn upgrades(
        &self,
        proto: &HttpConnectionManager,
        routes: &Arc<Routes>,
        at: &At<'_>,
        cx: &mut FactoryCx<'_>,
        router: Option<&RouterConfig>,
    ) -> Vec<Upgrade> {
        let list = at.field("upgrade_configs");
        let mut upgrades: Vec<Upgrade> = Vec::new();
        for (i, upgrade) in proto.upgrade_configs.iter().enumerate() {
            let here = list.index(i);
            if upgrades.iter().any(|u| u.kind.eq_ignore_ascii_case(&upgrade.upgrade_type)) {
                cx.report.error(&here.field("upgrade_type"), format!("{:?} twice", upgrade.upgrade_type), "name each type once");
            }
            let mut filters = None;
            if !upgrade.filters.is_empty() {
                let at = here.field("filters");
                let (chain, own) = self.filters(&upgrade.filters, routes, &at, cx);
                if own.is_some() && router.is_some() && own.as_ref() != router {
                    cx.report.unsupported(&at.index(upgrade.filters.len() - 1), "a router other than that of http_filters");
                }
                filters = chain;
            }
            upgrades.push(Upgrade { kind: upgrade.upgrade_type.clone(), enabled: upgrade.enabled.unwrap_or(true), filters });
        }
        upgrades
    }

    fn filter(&self, proto: &HttpFilter, routes: &Arc<Routes>, at: &At<'_>, cx: &mut FactoryCx<'_>) -> Filter {
        let config_at = at.field("typed_config");
        let any = match &proto.config_type {
            Some(ConfigType::TypedConfig(any)) => any,
            Some(ConfigType::ConfigDiscovery(source)) => {
                let compiled = self.extensions.filter(&proto.name, source, &self.registry, &at.field("config_discovery"), cx);
                return compiled.map_or(Filter::Refused, |filter| Filter::entry_of(proto, filter));
            }
            None => {
                cx.report.error(&config_at, format!("filter {:?} has no configuration", proto.name), "set typed_config");
                return Filter::Refused;
            }
        };
        let typed = match nuncio_proto::typed::unpack(any) {
            Ok(typed) => typed,
            Err(why) if proto.is_optional => {
                cx.report.warning(&config_at, why, format!("optional filter {:?} is left out", proto.name));
                return Filter::LeftOut;
            }
            Err(why) => {
                cx.report.error(&config_at, why, "use a filter type that Nuncio knows");
                return Filter::Refused;
            }
        };
        if typed.name == RouterConfig::TYPE {
            cx.report.error(&config_at, "the router is not the last filter", "envoy.filters.http.router must end the chain");
            return Filter::Refused;
        }
        if typed.name == OnDemandFilter::TYPE {
            let compiled = OnDemandFilter::compile(&typed.value, &self.discovery, routes, &config_at, cx);
            return compiled.map_or(Filter::Refused, |filter| Filter::entry_of(proto, filter));
        }
        match self.registry.http(&typed.name) {
            Some(factory) => match factory.compile(&typed.value, &config_at, cx) {
                Some(filter) => Filter::entry_of(proto, filter),
                None => Filter::Refused,
            },
            None if proto.is_optional => {
                cx.report.warning(
                    &config_at,
                    format!("unknown filter type {}", typed.name),
                    format!("optional filter {:?} is left out", proto.name),
                );
                Filter::LeftOut
            }
            None => {
                cx.report.unsupported(&config_at, format!("HTTP filter {:?} of type {}", proto.name, typed.name));
                Filter::Refused
            }
        }
    }

    fn router(&self, proto: &HttpFilter, at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<RouterConfig> {
        let config_at = at.field("typed_config");
        let typed = match &proto.config_type {
            Some(ConfigType::TypedConfig(any)) => nuncio_proto::typed::unpack(any),
            _ => Err(format!("filter {:?} has no typed_config", proto.name)),
        };
        match typed {
            Ok(typed) if typed.name == RouterConfig::TYPE => RouterConfig::compile(&typed.value, &config_at, cx.report),
            Ok(typed) => {
                cx.report.error(
                    &config_at,
                    format!("the last filter is {} ({})", proto.name, typed.name),
                    "the chain must end in envoy.filters.http.router",
                );
                None
            }
            Err(why) => {
                cx.report.error(&config_at, why, "the chain must end in envoy.filters.http.router");
                None
            }
        }
    }
}

/// Outcome of one filter.
enum Filter {
    Entry(FilterEntry),
    /// Optional and unknown.
    LeftOut,
    Refused,
}

impl Filter {
    fn entry_of(proto: &HttpFilter, filter: Arc<dyn nuncio_core::filter::HttpFilter>) -> Self {
        let needs = filter.needs();
        Self::Entry(FilterEntry { name: proto.name.as_str().into(), needs, filter, disabled: proto.disabled })
    }
    fn entry(self) -> Option<FilterEntry> {
        match self {
            Self::Entry(entry) => Some(entry),
            Self::LeftOut | Self::Refused => None,
        }
    }
}

/// Windows where requests wait with their bodies unread: small if the configuration does not say, and growing for those that no longer wait.
fn hold_little(options: &mut H2Options, proto: Option<&Http2ProtocolOptions>) {
    options.extra_window = HELD_EXTRA_WINDOW;
    if proto.is_none_or(|h2| h2.initial_stream_window_size.is_none()) {
        options.initial_stream_window_size = HELD_STREAM_WINDOW;
    }
    if proto.is_none_or(|h2| h2.initial_connection_window_size.is_none()) {
        options.initial_connection_window_size = HELD_CONNECTION_WINDOW;
    }
}

fn server_options(proto: &HttpConnectionManager, at: &At<'_>, cx: &mut FactoryCx<'_>, chain: &ChainCx<'_>) -> ServerOptions {
    let common = proto.common_http_protocol_options.unwrap_or_default();
    let common_at = at.field("common_http_protocol_options");
    let hour = Some(Duration::from_secs(3600));
    let mut options = ServerOptions {
        idle_timeout: codec_options::timeout(common.idle_timeout.as_ref(), hour, &common_at.field("idle_timeout"), cx.report),
        request_headers_timeout: codec_options::timeout(
            proto.request_headers_timeout.as_ref(),
            None,
            &at.field("request_headers_timeout"),
            cx.report,
        ),
        delayed_close_timeout: codec_options::timeout(
            proto.delayed_close_timeout.as_ref(),
            Some(Duration::from_secs(1)),
            &at.field("delayed_close_timeout"),
            cx.report,
        )
        .unwrap_or_default(),
        max_headers_kb: proto.max_request_headers_kb.unwrap_or(60),
        max_headers_count: common.max_headers_count.unwrap_or(100),
        max_requests_per_connection: common.max_requests_per_connection.unwrap_or(0),
        headers_with_underscores: codec_options::underscores(
            common.headers_with_underscores_action,
            &common_at.field("headers_with_underscores_action"),
            cx.report,
        ),
        tls: chain.tls,
        stats: codec_stats(&cx.server.stats.root()),
        ..ServerOptions::default()
    };
    if matches!(proto.strip_port_mode, Some(StripPortMode::StripAnyHostPort(true))) && proto.strip_matching_host_port {
        cx.report.error(&at.field("strip_any_host_port"), "strip_any_host_port beside strip_matching_host_port", "keep one of them");
    }
    if options.max_headers_count == 0 {
        cx.report.error(&common_at.field("max_headers_count"), "value 0", "1 or more");
    }
    if !(1..=8192).contains(&options.max_headers_kb) {
        cx.report.error(&at.field("max_request_headers_kb"), format!("value {}", options.max_headers_kb), "1 to 8192");
    }
    if let Some(h1) = &proto.http_protocol_options {
        options.h1 = codec_options::h1(h1, &at.field("http_protocol_options"), cx.report);
    }
    if let Some(h2) = &proto.http2_protocol_options {
        let at = at.field("http2_protocol_options");
        options.h2 = codec_options::h2(h2, &at, cx.report);
        if h2.max_header_field_size_kb.is_some_and(|kb| kb > options.max_headers_kb) {
            let limit = format!("no more than max_request_headers_kb, {}", options.max_headers_kb);
            cx.report.error(&at.field("max_header_field_size_kb"), "more than a whole head may have", limit);
        }
    }
    options.tx_flush_timeout = cx.server.stats.root().counter("http2.tx_flush_timeout");
    if proto.stream_error_on_invalid_http_message == Some(true) {
        options.h1.stream_error_on_invalid_http_message = true;
    }
    options
}

fn codec_stats(scope: &nuncio_stats::Scope) -> CodecStats {
    let h1 = scope.scope("http1.");
    let h2 = scope.scope("http2.");
    CodecStats {
        dropped_headers_with_underscores: h1.counter("dropped_headers_with_underscores"),
        requests_rejected_with_underscores_in_headers: h1.counter("requests_rejected_with_underscores_in_headers"),
        h2_dropped_headers_with_underscores: h2.counter("dropped_headers_with_underscores"),
        h2_requests_rejected_with_underscores_in_headers: h2.counter("requests_rejected_with_underscores_in_headers"),
        header_overflow: h2.counter("header_overflow"),
        keepalive_timeout: h2.counter("keepalive_timeout"),
        rx_reset: h2.counter("rx_reset"),
        tx_reset: h2.counter("tx_reset"),
        rx_messaging_error: h2.counter("rx_messaging_error"),
        trailers: h2.counter("trailers"),
        goaway_sent: h2.counter("goaway_sent"),
        inbound_empty_frames_flood: h2.counter("inbound_empty_frames_flood"),
        inbound_priority_frames_flood: h2.counter("inbound_priority_frames_flood"),
        inbound_window_update_frames_flood: h2.counter("inbound_window_update_frames_flood"),
    }
}

fn path_policy(proto: &HttpConnectionManager, at: &At<'_>, cx: &mut FactoryCx<'_>) -> PathPolicy {
    if proto.path_normalization_options.is_some() {
        cx.report.warning(&at.field("path_normalization_options"), "set", "ignored, as by Envoy, which does not implement it");
    }
    let escaped_slashes = PathWithEscapedSlashesAction::try_from(proto.path_with_escaped_slashes_action).unwrap_or_else(|_| {
        let found = format!("value {}", proto.path_with_escaped_slashes_action);
        cx.report.error(&at.field("path_with_escaped_slashes_action"), found, "an action of PathWithEscapedSlashesAction");
        PathWithEscapedSlashesAction::KeepUnchanged
    });
    let normalize = proto.normalize_path.unwrap_or_else(|| cx.server.runtime.boolean("http_connection_manager.normalize_path", false));
    PathPolicy { normalize, merge_slashes: proto.merge_slashes, escaped_slashes }
}

fn early_mutations(proto: &HttpConnectionManager, at: &At<'_>, cx: &mut FactoryCx<'_>) -> Vec<HeaderMutations> {
    let list = at.field("early_header_mutation_extensions");
    let mut all = Vec::new();
    for (i, extension) in proto.early_header_mutation_extensions.iter().enumerate() {
        let here = list.index(i);
        let any = extension.typed_config.clone().unwrap_or_default();
        match nuncio_proto::typed::unpack_as::<EarlyHeaderMutation>(&any) {
            Ok(config) => all.extend(HeaderMutations::compile(&config.mutations, &here.field("mutations"), cx.report)),
            Err(why) => cx.report.error(&here, why, "only envoy.http.early_header_mutation.header_mutation is supported"),
        }
    }
    all
}

/// Fields without an implementation: refused by name where leaving them out would change what requests get.
fn refuse_unsupported(proto: &HttpConnectionManager, at: &At<'_>, cx: &mut FactoryCx<'_>) {
    let report = &mut *cx.report;
    if proto.tracing.as_ref().is_some_and(|t| t.provider.is_some()) {
        report.unsupported(&at.field("tracing").field("provider"), "exporting spans");
    }
    if proto.typed_header_validation_config.is_some() {
        report.unsupported(&at.field("typed_header_validation_config"), "a header validation extension");
    }
    if proto.represent_ipv4_remote_address_as_ipv4_mapped_ipv6 {
        report.warning(
            &at.field("represent_ipv4_remote_address_as_ipv4_mapped_ipv6"),
            "true",
            "ignored, as by Envoy, which does not implement it",
        );
    }
    if proto.add_proxy_protocol_connection_state == Some(false) {
        report.unsupported(&at.field("add_proxy_protocol_connection_state"), "false");
    }
}
