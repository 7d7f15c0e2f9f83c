//! Compiled configuration of ext_authz, of the listener and per route. Control thread.
//! Source: `envoy/extensions/filters/http/ext_authz/v3/ext_authz.proto`.

use super::apply::Checks;
use super::check::{self, Attributes};
use super::http::{HttpService, always_sent, patterns};
use crate::config::decode;
use nuncio_callout::GrpcClient;
use nuncio_core::diag::{At, Report};
use nuncio_core::registry::{FactoryCx, Server};
use nuncio_core::stats::Counter;
use nuncio_matcher::{MetadataMatcher, RuntimeFraction};
use nuncio_proto::envoy::config::core::v3::{ApiVersion, GrpcService, RuntimeFeatureFlag};
use nuncio_proto::envoy::extensions::filters::http::ext_authz::v3 as proto;
use nuncio_proto::envoy::r#type::v3::{HttpStatus, StatusCode};
use nuncio_route::MutationRules;
use proto::ext_authz::Services;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// How long a service may take if nobody says so.
const TIMEOUT: Duration = Duration::from_millis(200);

/// Whom to ask.
#[derive(Debug)]
pub enum Service {
    Grpc(Box<GrpcClient>),
    Http(Box<HttpService>),
}

/// `BufferSettings`.
#[derive(Clone, Copy, Debug)]
pub struct Buffering {
    pub max: usize,
    pub partial: bool,
}

macro_rules! counters {
    ($($name:ident),*) => {
        /// Stats below `http.<prefix>.ext_authz.`.
        #[derive(Debug)]
        pub struct Stats { $(pub $name: Counter,)* }
        impl Stats {
            fn new(scope: &nuncio_core::stats::Scope) -> Self {
                Self { $($name: scope.counter(stringify!($name)),)* }
            }
        }
    };
}
counters!(
    ok,
    denied,
    error,
    disabled,
    failure_mode_allowed,
    invalid,
    ignored_dynamic_metadata,
    omitted_response_headers,
    request_header_limits_reached,
    shadow_denied,
    shadow_error
);

/// The filter's configuration.
#[derive(Debug)]
pub struct Settings {
    pub server: Arc<Server>,
    pub service: Service,
    pub attributes: Attributes,
    pub checks: Checks,
    pub failure_mode_allow: bool,
    pub failure_mode_header: bool,
    pub buffering: Option<Buffering>,
    pub clear_route_cache: bool,
    /// Headers whose change clears the route cache; none: any.
    pub clearing_headers: Vec<String>,
    /// Decide, count and log, but let every request pass.
    pub shadow: bool,
    /// Leave what a call took in filter state.
    pub emit_stats: bool,
    pub status_on_error: u16,
    pub enabled: Option<RuntimeFraction>,
    pub enabled_metadata: Option<MetadataMatcher>,
    pub deny_at_disable: Option<RuntimeFeatureFlag>,
    pub take_metadata: bool,
    pub max_denied_body: usize,
    pub limit_response_headers: bool,
    pub charge_cluster: bool,
    pub stats: Stats,
    /// `ext_authz.<stat_prefix>.`, below the scope of the request's cluster.
    pub cluster_prefix: String,
}

/// Per-route configuration.
#[derive(Debug)]
pub struct PerRoute {
    pub disabled: bool,
    pub extensions: BTreeMap<String, String>,
    /// None: that of the filter. Inner none: no body is sent.
    pub buffering: Option<Option<Buffering>>,
    pub service: Option<Service>,
}

/// Compiles a gRPC service whose timeout is 200 ms unless it says otherwise.
pub fn grpc(service: &GrpcService, server: &Arc<Server>, at: &At<'_>, report: &mut Report) -> Option<GrpcClient> {
    let client = GrpcClient::compile(service, server, at, report)?;
    Some(if service.timeout.is_none() { client.with_timeout(Some(TIMEOUT)) } else { client })
}

/// The gRPC API has one version left.
pub fn check_version(version: i32, at: &At<'_>, report: &mut Report) {
    if ApiVersion::try_from(version) != Ok(ApiVersion::V3) {
        report.error(&at.field("transport_api_version"), format!("{version}"), "use V3, the only version that there is");
    }
}

fn http(service: &proto::HttpService, server: &Arc<Server>, at: &At<'_>, report: &mut Report) -> Option<Service> {
    HttpService::compile(service, server, at, report).map(|s| Service::Http(Box::new(s)))
}

fn buffering(p: &proto::BufferSettings, at: &At<'_>, report: &mut Report) -> Option<Buffering> {
    if p.max_request_bytes == 0 {
        report.error(&at.field("max_request_bytes"), "0", "give at least 1");
        return None;
    }
    Some(Buffering { max: usize::try_from(p.max_request_bytes).unwrap_or(usize::MAX), partial: p.allow_partial_message })
}

/// The status of `HttpStatus`, one that Envoy's API names; refused otherwise. Outer none: refused.
pub fn http_status(status: Option<&HttpStatus>, at: &At<'_>, report: &mut Report) -> Option<Option<u16>> {
    let Some(status) = status else { return Some(None) };
    match (StatusCode::try_from(status.code), u16::try_from(status.code)) {
        (Ok(known), Ok(code)) if known != StatusCode::Empty => Some(Some(code)),
        _ => {
            report.error(&at.field("code"), status.code.to_string(), "give a status that StatusCode names");
            None
        }
    }
}

impl Settings {
    pub fn compile(p: &proto::ExtAuthz, at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Self> {
        let errors = cx.report.errors();
        let server = cx.server;
        let report = &mut *cx.report;
        let (service, is_http) = match &p.services {
            Some(Services::GrpcService(service)) => {
                check_version(p.transport_api_version, at, report);
                (Service::Grpc(Box::new(grpc(service, server, &at.field("grpc_service"), report)?)), false)
            }
            Some(Services::HttpService(service)) => (http(service, server, &at.field("http_service"), report)?, true),
            None => {
                report.error(at, "no service", "set grpc_service or http_service");
                return None;
            }
        };
        let buffering = match &p.with_request_body {
            Some(settings) => Some(buffering(settings, &at.field("with_request_body"), report)?),
            None => None,
        };
        let fraction = |f: &Option<_>, report: &mut Report| match f {
            Some(f) => RuntimeFraction::compile(f, &at.field("filter_enabled"), report).map(Some),
            None => Some(None),
        };
        let enabled = fraction(&p.filter_enabled, report)?;
        let enabled_metadata = match &p.filter_enabled_metadata {
            Some(m) => Some(MetadataMatcher::compile(m, &at.field("filter_enabled_metadata"), report)?),
            None => None,
        };
        let rules = match &p.decoder_header_mutation_rules {
            Some(rules) => Some(MutationRules::compile(rules, &at.field("decoder_header_mutation_rules"), report)?),
            None => None,
        };
        let status_on_error = http_status(p.status_on_error.as_ref(), &at.field("status_on_error"), report)?;
        let status_on_error = status_on_error.filter(|code| *code >= 200).unwrap_or(403);
        let attributes = attributes(p, is_http, server, at, report)?;
        let cluster_prefix = match p.stat_prefix.as_str() {
            "" => "ext_authz.".to_string(),
            prefix => format!("ext_authz.{prefix}."),
        };
        (report.errors() == errors).then(|| Self {
            server: server.clone(),
            service,
            attributes,
            checks: Checks { validate: p.validate_mutations, rules },
            failure_mode_allow: p.failure_mode_allow,
            failure_mode_header: p.failure_mode_allow_header_add,
            buffering,
            clear_route_cache: p.clear_route_cache,
            clearing_headers: p.clear_route_cache_headers.clone(),
            shadow: p.shadow_mode,
            emit_stats: p.emit_filter_state_stats,
            status_on_error,
            enabled,
            enabled_metadata,
            deny_at_disable: p.deny_at_disable.clone(),
            take_metadata: p.enable_dynamic_metadata_ingestion.unwrap_or(true),
            max_denied_body: usize::try_from(p.max_denied_response_body_bytes).unwrap_or(usize::MAX),
            limit_response_headers: p.enforce_response_header_limits,
            charge_cluster: p.charge_cluster_response_stats.unwrap_or(true),
            stats: Stats::new(&cx.scope.scope(&cluster_prefix)),
            cluster_prefix,
        })
    }
}

#[allow(deprecated)]
fn attributes(p: &proto::ExtAuthz, is_http: bool, server: &Server, at: &At<'_>, report: &mut Report) -> Option<Attributes> {
    let own = match &p.services {
        Some(Services::HttpService(s)) => s.authorization_request.as_ref().and_then(|r| r.allowed_headers.as_ref()),
        _ => None,
    };
    if own.is_some() && p.allowed_headers.is_some() {
        report.error(&at.field("allowed_headers"), "allowed_headers twice", "remove it from authorization_request");
    }
    let list = own.or(p.allowed_headers.as_ref());
    let allowed = patterns(list, &at.field("allowed_headers"), report)?;
    let disallowed = patterns(p.disallowed_headers.as_ref(), &at.field("disallowed_headers"), report)?;
    Some(Attributes {
        // An HTTP service is sent next to nothing unless asked for, a gRPC service everything.
        allowed: if is_http { Some(always_sent(allowed)) } else { list.is_some().then_some(allowed) },
        disallowed: p.disallowed_headers.is_some().then_some(disallowed),
        peer_certificate: p.include_peer_certificate,
        tls_session: p.include_tls_session,
        raw_headers: p.encode_raw_headers,
        pack_as_bytes: is_http || p.with_request_body.as_ref().is_some_and(|b| b.pack_as_bytes),
        labels: check::labels(server.node_metadata(), &p.bootstrap_metadata_labels_key),
        metadata: p.metadata_context_namespaces.clone(),
        route_metadata: p.route_metadata_context_namespaces.clone(),
        route_typed_metadata: p.route_typed_metadata_context_namespaces.clone(),
    })
}

impl PerRoute {
    pub fn compile(config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Self> {
        use proto::check_settings::ServiceOverride;
        use proto::ext_authz_per_route::Override;
        let p: proto::ExtAuthzPerRoute = decode(config, at, cx.report)?;
        let settings = match p.r#override {
            Some(Override::Disabled(disabled)) => {
                return Some(Self { disabled, extensions: BTreeMap::new(), buffering: None, service: None });
            }
            Some(Override::CheckSettings(settings)) => settings,
            None => {
                cx.report.error(at, "neither disabled nor check_settings", "set one of them");
                return None;
            }
        };
        let at = at.field("check_settings");
        if settings.disable_request_body_buffering && settings.with_request_body.is_some() {
            cx.report.error(&at.field("with_request_body"), "with disable_request_body_buffering", "set one of them");
            return None;
        }
        let buffering = match &settings.with_request_body {
            _ if settings.disable_request_body_buffering => Some(None),
            Some(body) => Some(Some(buffering(body, &at.field("with_request_body"), cx.report)?)),
            None => None,
        };
        let service = match &settings.service_override {
            Some(ServiceOverride::GrpcService(s)) => {
                Some(Service::Grpc(Box::new(grpc(s, cx.server, &at.field("grpc_service"), cx.report)?)))
            }
            Some(ServiceOverride::HttpService(s)) => Some(http(s, cx.server, &at.field("http_service"), cx.report)?),
            None => None,
        };
        Some(Self { disabled: false, extensions: settings.context_extensions, buffering, service })
    }
}
