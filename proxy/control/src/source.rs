//! ConfigSource: which of them are supported, and what the control thread must know of one to subscribe.

use nuncio_core::diag::{At, Report};
use nuncio_proto::envoy::config::core::v3::{
    ApiConfigSource, ApiVersion, ConfigSource, api_config_source::ApiType, config_source::ConfigSourceSpecifier,
    grpc_service::TargetSpecifier,
};
use nuncio_xds::Backoff;
use std::path::PathBuf;
use std::time::Duration;

/// Envoy's `initial_fetch_timeout`.
const DEFAULT_FETCH_TIMEOUT: Duration = Duration::from_secs(15);

/// A source in the form that subscriptions need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The aggregated stream of the bootstrap.
    Ads,
    Grpc(Grpc),
    File(File),
}

/// A gRPC stream of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grpc {
    pub cluster: String,
    pub authority: String,
    pub delta: bool,
    pub node_on_first_only: bool,
    pub metadata: Vec<(String, String)>,
    /// Tokens, and tokens a second times 1,000.
    pub rate_limit: Option<(u32, u64)>,
    pub backoff: (Duration, Duration),
}

impl Grpc {
    /// The back-off between streams.
    pub fn backoff(&self) -> Backoff {
        Backoff::new(self.backoff.0, self.backoff.1)
    }
}

/// A file that is watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    pub path: PathBuf,
    /// A directory whose change means that the file changed.
    pub directory: Option<PathBuf>,
    pub poll: Option<Duration>,
}

/// Reports what of `source` is not supported.
pub fn check(source: &ConfigSource, at: &At<'_>, report: &mut Report) {
    resolve(source, at, report);
}

/// `source` as subscriptions need it; none, with findings, if it cannot be used.
pub fn resolve(source: &ConfigSource, at: &At<'_>, report: &mut Report) -> Option<Source> {
    if !source.authorities.is_empty() {
        report.unsupported(&at.field("authorities"), "xdstp authorities");
        return None;
    }
    #[allow(deprecated)]
    if source.resource_api_version == ApiVersion::V2 as i32 {
        report.error(&at.field("resource_api_version"), "V2", "use V3");
        return None;
    }
    #[allow(deprecated)]
    match &source.config_source_specifier {
        Some(ConfigSourceSpecifier::Ads(_) | ConfigSourceSpecifier::Self_(_)) => Some(Source::Ads),
        Some(ConfigSourceSpecifier::Path(path)) => Some(Source::File(File { path: path.into(), directory: None, poll: None })),
        Some(ConfigSourceSpecifier::PathConfigSource(file)) => {
            if file.path.is_empty() {
                report.error(&at.field("path_config_source").field("path"), "empty", "name a file");
                return None;
            }
            Some(Source::File(File {
                path: file.path.as_str().into(),
                directory: file.watched_directory.as_ref().map(|d| d.path.as_str().into()),
                poll: file.poll_interval.and_then(|d| Duration::try_from(d).ok()).filter(|d| !d.is_zero()),
            }))
        }
        Some(ConfigSourceSpecifier::ApiConfigSource(api)) => grpc(api, false, &at.field("api_config_source"), report).map(Source::Grpc),
        None => {
            report.error(at, "no source", "set ads, path_config_source or api_config_source");
            None
        }
    }
}

/// A gRPC source. `aggregated` is the bootstrap's `ads_config`.
pub fn grpc(api: &ApiConfigSource, aggregated: bool, at: &At<'_>, report: &mut Report) -> Option<Grpc> {
    let errors = report.errors();
    let delta = match ApiType::try_from(api.api_type) {
        Ok(ApiType::Grpc) => false,
        Ok(ApiType::DeltaGrpc) => true,
        Ok(ApiType::AggregatedGrpc | ApiType::AggregatedDeltaGrpc) if !aggregated => {
            report.unsupported(&at.field("api_type"), "an aggregated stream outside of ads_config (use ads: {})");
            false
        }
        Ok(ApiType::Rest) => {
            report.unsupported(&at.field("api_type"), "xDS by REST (use GRPC or DELTA_GRPC)");
            false
        }
        _ => {
            report.error(&at.field("api_type"), api.api_type.to_string(), "use GRPC or DELTA_GRPC");
            false
        }
    };
    if api.transport_api_version != ApiVersion::V3 as i32 {
        report.error(&at.field("transport_api_version"), "not V3", "set transport_api_version: V3");
    }
    if !api.config_validators.is_empty() {
        report.unsupported(&at.field("config_validators"), "a config validator");
    }
    let services = at.field("grpc_services");
    if api.grpc_services.len() != 1 {
        report.error(&services, format!("{} services", api.grpc_services.len()), "give exactly one");
        return None;
    }
    let service = api.grpc_services.first()?;
    let at = services.index(0);
    let target = match &service.target_specifier {
        Some(TargetSpecifier::EnvoyGrpc(target)) => target,
        Some(TargetSpecifier::GoogleGrpc(_)) => {
            report.unsupported(&at.field("google_grpc"), "google_grpc (use envoy_grpc with a cluster)");
            return None;
        }
        None => {
            report.error(&at, "no target", "set envoy_grpc");
            return None;
        }
    };
    if target.cluster_name.is_empty() {
        report.error(&at.field("envoy_grpc").field("cluster_name"), "empty", "name a cluster of the bootstrap");
    }
    let duration = |d: Option<nuncio_proto::Duration>, default: Duration| d.and_then(|d| Duration::try_from(d).ok()).unwrap_or(default);
    let policy = target.retry_policy.as_ref().or(service.retry_policy.as_ref()).and_then(|p| p.retry_back_off.as_ref());
    let base = duration(policy.and_then(|p| p.base_interval), Duration::from_millis(500));
    let max = policy.map_or(Duration::from_secs(30), |p| duration(p.max_interval, base.saturating_mul(10)));
    if report.errors() > errors {
        return None;
    }
    Some(Grpc {
        cluster: target.cluster_name.clone(),
        authority: if target.authority.is_empty() { target.cluster_name.clone() } else { target.authority.clone() },
        delta,
        node_on_first_only: api.set_node_on_first_message_only,
        metadata: service.initial_metadata.iter().map(|h| (h.key.clone(), h.value.clone())).collect(),
        rate_limit: api
            .rate_limit_settings
            .as_ref()
            .map(|r| (r.max_tokens.unwrap_or(100), r.fill_rate.map_or(10_000, |f| (f * 1000.0) as u64))),
        backoff: (base, max),
    })
}

/// `initial_fetch_timeout`; none waits for ever.
pub fn fetch_timeout(source: &ConfigSource) -> Option<Duration> {
    match source.initial_fetch_timeout {
        None => Some(DEFAULT_FETCH_TIMEOUT),
        Some(d) => Duration::try_from(d).ok().filter(|d| !d.is_zero()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nuncio_proto::json::{UnknownFields, parse_text};

    fn read(yaml: &str) -> (Option<Source>, Report) {
        let source = parse_text::<ConfigSource>(yaml, UnknownFields::Refuse).unwrap().value;
        let mut report = Report::new();
        let root = At::Root;
        let found = resolve(&source, &root.field("cds_config"), &mut report);
        (found, report)
    }

    #[test]
    fn the_sources_of_istio() {
        assert_eq!(read("{ads: {}, initial_fetch_timeout: 0s, resource_api_version: V3}").0, Some(Source::Ads));
        let (source, report) = read(
            "{api_config_source: {api_type: GRPC, transport_api_version: V3, set_node_on_first_message_only: true, \
             grpc_services: [{envoy_grpc: {cluster_name: sds-grpc}}]}, initial_fetch_timeout: 0s}",
        );
        assert!(!report.has_errors());
        let Some(Source::Grpc(grpc)) = source else { panic!("{source:?}") };
        assert_eq!((grpc.cluster.as_str(), grpc.delta, grpc.backoff.1), ("sds-grpc", false, Duration::from_secs(30)));
    }

    #[test]
    fn rest_and_google_grpc_are_refused_by_name() {
        let (_, report) = read("{api_config_source: {api_type: REST, transport_api_version: V3, cluster_names: [x]}}");
        assert!(report.summary().contains("cds_config.api_config_source.api_type: xDS by REST"), "{}", report.summary());
        let (_, report) = read(
            "{api_config_source: {api_type: GRPC, transport_api_version: V3, grpc_services: [{google_grpc: {target_uri: x, stat_prefix: y}}]}}",
        );
        assert!(report.summary().contains("google_grpc"));
        assert!(read("{}").1.has_errors());
    }

    #[test]
    fn zero_waits_for_ever_and_nothing_waits_fifteen_seconds() {
        let source = |yaml: &str| parse_text::<ConfigSource>(yaml, UnknownFields::Refuse).unwrap().value;
        assert_eq!(fetch_timeout(&source("{ads: {}, initial_fetch_timeout: 0s}")), None);
        assert_eq!(fetch_timeout(&source("{ads: {}}")), Some(Duration::from_secs(15)));
    }
}
