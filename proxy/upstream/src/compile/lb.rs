//! Load balancing policies from protobuf, in the old form (`lb_policy`) and the new one (`load_balancing_policy`).

use super::{duration, extension, ignore, metadata_path, subset};
use crate::cluster::ClusterCx;
use crate::lb::ring::HashFunction;
use crate::orca::OrcaSpec;
use crate::orca::oob::OobSpec;
use crate::spec::{LbKind, LbSpec, LiveLb, LocalityMode, OverrideSource, OverrideSpec, SlowStart, ZoneSpec};
use nuncio_core::HeaderKey;
use nuncio_core::diag::At;
use nuncio_proto::Message;
use nuncio_proto::envoy::config::cluster::v3 as pb;
use nuncio_proto::envoy::config::cluster::v3::cluster::common_lb_config::LocalityConfigSpecifier;
use nuncio_proto::envoy::config::cluster::v3::cluster::{LbConfig, LbPolicy};
use nuncio_proto::envoy::config::core::v3::{HealthStatus, RuntimeDouble};
use nuncio_proto::envoy::extensions::load_balancing_policies as policies;
use nuncio_route::HashPolicy;
use policies::client_side_weighted_round_robin::v3::ClientSideWeightedRoundRobin;
use policies::common::v3::locality_lb_config::LocalityConfigSpecifier as TypedLocality;
use policies::common::v3::{ConsistentHashingLbConfig, LocalityLbConfig, SlowStartConfig};
use policies::wrr_locality::v3::WrrLocality;
use std::time::Duration;

const MAX_RING: u64 = 8 << 20;
const MAGLEV: u64 = 65_537;

/// Weights are not computed more often than this, whatever is asked for.
const LEAST_UPDATE: Duration = Duration::from_millis(100);

/// UNKNOWN, HEALTHY and DEGRADED, as bits.
const OVERRIDE_STATUS: u8 = 1 << HealthStatus::Unknown as u8 | 1 << HealthStatus::Healthy as u8 | 1 << HealthStatus::Degraded as u8;

impl Default for LbSpec {
    fn default() -> Self {
        Self {
            kind: LbKind::RoundRobin,
            locality: LocalityMode::ZoneAware(ZoneSpec::default()),
            panic_threshold: 50,
            live: LiveLb::default(),
            slow_start: None,
            hash_hostname: false,
            hash_policy: None,
            hash_balance_factor: None,
            overrides: None,
            override_status: OVERRIDE_STATUS,
            orca: None,
            subsets: None,
            is_local: false,
        }
    }
}

/// The policy of `proto`; `provides`: clusters of this type pick by themselves.
pub(super) fn compile(proto: &pb::Cluster, provides: bool, at: &At<'_>, cx: &mut ClusterCx<'_>) -> Option<LbSpec> {
    let mut spec = LbSpec { is_local: cx.shared.is_local(&proto.name), ..LbSpec::default() };
    common(proto, &mut spec, at, cx);
    let before = cx.report.errors();
    if let Some(policy) = &proto.load_balancing_policy {
        // As in Envoy, the new form wins over `lb_policy`, and locality configuration comes with the policy.
        spec.locality = LocalityMode::Ignore;
        partial(proto, at, cx);
        typed(policy, &mut spec, &at.field("load_balancing_policy"), cx);
    } else {
        by_enum(proto, &mut spec, at, cx);
        let at = at.field("lb_subset_config");
        spec.subsets = proto.lb_subset_config.as_ref().and_then(|c| subset::legacy(c, &at, cx.report));
    }
    if spec.subsets.is_some() && spec.kind == LbKind::ClusterProvided {
        cx.report.error(&at.field("lb_subset_config"), "set", "subsets do not go with CLUSTER_PROVIDED");
    }
    spec.live.read(spec.panic_threshold, &spec.locality, &cx.server.runtime);
    let provided = spec.kind == LbKind::ClusterProvided;
    if provided != provides {
        let found = if provided { "CLUSTER_PROVIDED" } else { "another policy" };
        cx.report.error(
            &at.field("lb_policy"),
            found,
            "ORIGINAL_DST, aggregate and dynamic forward proxy clusters use CLUSTER_PROVIDED, and no others do",
        );
    }
    (cx.report.errors() == before).then_some(spec)
}

/// What the new form says itself must not be said beside it, as in Envoy.
fn partial(proto: &pb::Cluster, at: &At<'_>, cx: &mut ClusterCx<'_>) {
    let common = proto.common_lb_config.as_ref();
    let fields = [
        (proto.lb_subset_config.is_some(), "lb_subset_config"),
        (common.is_some_and(|c| c.locality_config_specifier.is_some()), "common_lb_config"),
        (common.is_some_and(|c| c.consistent_hashing_lb_config.is_some()), "common_lb_config"),
    ];
    for (_, name) in fields.iter().filter(|(set, _)| *set) {
        cx.report.error(&at.field(name), "set", "with load_balancing_policy, subsets, localities and hashing are configured in the policy");
    }
}

fn common(proto: &pb::Cluster, spec: &mut LbSpec, at: &At<'_>, cx: &mut ClusterCx<'_>) {
    let at = at.field("common_lb_config");
    let Some(config) = &proto.common_lb_config else { return };
    if let Some(percent) = &config.healthy_panic_threshold {
        if !(0.0..=100.0).contains(&percent.value) {
            cx.report.error(&at.field("healthy_panic_threshold"), percent.value.to_string(), "0 to 100");
        }
        // Envoy takes the whole percents.
        spec.panic_threshold = percent.value.clamp(0.0, 100.0) as u32;
    }
    match &config.locality_config_specifier {
        None => {}
        Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_)) => spec.locality = LocalityMode::Weighted,
        Some(LocalityConfigSpecifier::ZoneAwareLbConfig(zone)) => {
            spec.locality = LocalityMode::ZoneAware(ZoneSpec {
                enabled: zone.routing_enabled.map_or(100.0, |p| p.value),
                min_cluster_size: zone.min_cluster_size.unwrap_or(6),
                fail_on_panic: zone.fail_traffic_on_panic,
                ..ZoneSpec::default()
            });
        }
    }
    if let Some(hashing) = &config.consistent_hashing_lb_config {
        consistent(spec, hashing.use_hostname_for_hashing, hashing.hash_balance_factor, &at.field("consistent_hashing_lb_config"), cx);
    }
    if let Some(set) = &config.override_host_status {
        spec.override_status =
            set.statuses.iter().filter_map(|s| u32::try_from(*s).ok()).filter(|s| *s < 8).fold(0, |bits, s| bits | 1 << s);
    }
    let merge = config.update_merge_window.as_ref().is_some_and(|w| w.seconds != 0 || w.nanos != 0);
    ignore(cx.report, &at, &[(merge, "update_merge_window", "updates cost little and are applied at once")]);
}

fn consistent(spec: &mut LbSpec, hostname: bool, balance: Option<u32>, at: &At<'_>, cx: &mut ClusterCx<'_>) {
    spec.hash_hostname = hostname;
    if balance.is_some_and(|b| b < 100) {
        cx.report.error(&at.field("hash_balance_factor"), format!("{balance:?}"), "at least 100");
    }
    spec.hash_balance_factor = balance;
}

fn by_enum(proto: &pb::Cluster, spec: &mut LbSpec, at: &At<'_>, cx: &mut ClusterCx<'_>) {
    let at_policy = at.field("lb_policy");
    let config = proto.lb_config.as_ref();
    spec.kind = match LbPolicy::try_from(proto.lb_policy) {
        Ok(LbPolicy::RoundRobin) => {
            if let Some(LbConfig::RoundRobinLbConfig(c)) = config {
                let slow = c.slow_start_config.as_ref().map(legacy_slow_start);
                spec.slow_start = slow_start(slow.as_ref(), &at.field("round_robin_lb_config"), cx);
            }
            LbKind::RoundRobin
        }
        Ok(LbPolicy::LeastRequest) => {
            let at = at.field("least_request_lb_config");
            let (choices, bias) = match config {
                Some(LbConfig::LeastRequestLbConfig(c)) => {
                    let slow = c.slow_start_config.as_ref().map(legacy_slow_start);
                    spec.slow_start = slow_start(slow.as_ref(), &at, cx);
                    (c.choice_count, c.active_request_bias.as_ref())
                }
                _ => (None, None),
            };
            least_request(choices, bias, false, &at, cx)
        }
        Ok(LbPolicy::Random) => LbKind::Random,
        Ok(LbPolicy::RingHash) => {
            let at = at.field("ring_hash_lb_config");
            match config {
                Some(LbConfig::RingHashLbConfig(c)) => {
                    let murmur = c.hash_function == pb::cluster::ring_hash_lb_config::HashFunction::MurmurHash2 as i32;
                    ring(c.minimum_ring_size, c.maximum_ring_size, murmur, &at, cx)
                }
                _ => ring(None, None, false, &at, cx),
            }
        }
        Ok(LbPolicy::Maglev) => {
            let size = match config {
                Some(LbConfig::MaglevLbConfig(c)) => c.table_size,
                _ => None,
            };
            maglev(size, &at.field("maglev_lb_config"), cx)
        }
        Ok(LbPolicy::ClusterProvided) => LbKind::ClusterProvided,
        Ok(LbPolicy::LoadBalancingPolicyConfig) => {
            cx.report.error(&at_policy, "LOAD_BALANCING_POLICY_CONFIG without load_balancing_policy", "set load_balancing_policy");
            LbKind::RoundRobin
        }
        Err(_) => {
            cx.report.error(&at_policy, format!("value {}", proto.lb_policy), "a policy of Cluster.LbPolicy");
            LbKind::RoundRobin
        }
    };
}

fn legacy_slow_start(c: &pb::cluster::SlowStartConfig) -> SlowStartConfig {
    SlowStartConfig { slow_start_window: c.slow_start_window, aggression: c.aggression.clone(), min_weight_percent: c.min_weight_percent }
}

fn slow_start(config: Option<&SlowStartConfig>, at: &At<'_>, cx: &mut ClusterCx<'_>) -> Option<Box<SlowStart>> {
    let config = config?;
    let at = at.field("slow_start_config");
    let window = duration(config.slow_start_window.as_ref(), Duration::ZERO, &at.field("slow_start_window"), cx.report);
    if window.is_zero() {
        return None;
    }
    let mut aggression = config.aggression.as_ref().map_or(1.0, |a| runtime_double(a, cx));
    if aggression <= 0.0 || aggression.is_nan() {
        cx.report.error(&at.field("aggression"), aggression.to_string(), "above 0");
        aggression = 1.0;
    }
    let percent = config.min_weight_percent.map_or(10.0, |p| p.value);
    if !(0.0..=100.0).contains(&percent) {
        cx.report.error(&at.field("min_weight_percent"), percent.to_string(), "0 to 100");
    }
    Some(Box::new(SlowStart {
        window_ms: u64::try_from(window.as_millis()).unwrap_or(u64::MAX).max(1),
        aggression,
        min_weight: percent / 100.0,
    }))
}

/// The value of a runtime key, or its default.
fn runtime_double(value: &RuntimeDouble, cx: &ClusterCx<'_>) -> f64 {
    cx.server.runtime.get(&value.runtime_key).and_then(|v| v.parse().ok()).unwrap_or(value.default_value)
}

fn least_request(choices: Option<u32>, bias: Option<&RuntimeDouble>, full_scan: bool, at: &At<'_>, cx: &mut ClusterCx<'_>) -> LbKind {
    let choices = choices.unwrap_or(2);
    if choices < 2 {
        cx.report.error(&at.field("choice_count"), choices.to_string(), "at least 2");
    }
    let bias = bias.map_or(1.0, |b| runtime_double(b, cx));
    if !(bias >= 0.0 && bias.is_finite()) {
        cx.report.error(&at.field("active_request_bias"), bias.to_string(), "0 or more");
    }
    LbKind::LeastRequest { choices: choices.max(2), bias, full_scan }
}

fn ring(min: Option<u64>, max: Option<u64>, murmur: bool, at: &At<'_>, cx: &mut ClusterCx<'_>) -> LbKind {
    let (min, max) = (min.unwrap_or(1024), max.unwrap_or(MAX_RING));
    for (name, size) in [("minimum_ring_size", min), ("maximum_ring_size", max)] {
        if size > MAX_RING {
            cx.report.error(&at.field(name), size.to_string(), format!("at most {MAX_RING}"));
        }
    }
    if min > max {
        cx.report.error(at, format!("minimum_ring_size {min} above maximum_ring_size {max}"), "a minimum of at most the maximum");
    }
    let function = if murmur { HashFunction::MurmurHash2 } else { HashFunction::XxHash };
    LbKind::RingHash { min, max: max.max(1), function }
}

fn maglev(size: Option<u64>, at: &At<'_>, cx: &mut ClusterCx<'_>) -> LbKind {
    let table_size = size.unwrap_or(MAGLEV);
    let prime = table_size >= 2 && (2..).take_while(|d| d * d <= table_size).all(|d| !table_size.is_multiple_of(d));
    if table_size > 5_000_011 || !prime {
        cx.report.error(&at.field("table_size"), table_size.to_string(), "a prime of at most 5000011");
        return LbKind::Maglev { table_size: MAGLEV };
    }
    LbKind::Maglev { table_size }
}

fn locality(config: Option<&LocalityLbConfig>, spec: &mut LbSpec) {
    spec.locality = match config.and_then(|c| c.locality_config_specifier.as_ref()) {
        None => LocalityMode::Ignore,
        Some(TypedLocality::LocalityWeightedLbConfig(_)) => LocalityMode::Weighted,
        Some(TypedLocality::ZoneAwareLbConfig(zone)) => LocalityMode::ZoneAware(ZoneSpec {
            enabled: zone.routing_enabled.map_or(100.0, |p| p.value),
            min_cluster_size: zone.min_cluster_size.unwrap_or(6),
            fail_on_panic: zone.fail_traffic_on_panic,
            #[allow(deprecated)]
            force_direct: zone.force_locality_direct_routing,
            force_local_min: zone.force_local_zone.as_ref().map(|f| f.min_size.unwrap_or(1)),
            by_weight: zone.locality_basis
                == policies::common::v3::locality_lb_config::zone_aware_lb_config::LocalityBasis::HealthyHostsWeight as i32,
        }),
    };
}

/// The first policy that is known, as in Envoy.
fn typed(policy: &pb::LoadBalancingPolicy, spec: &mut LbSpec, at: &At<'_>, cx: &mut ClusterCx<'_>) {
    let list = at.field("policies");
    let mut unknown = Vec::new();
    for (i, entry) in policy.policies.iter().enumerate() {
        let at = list.index(i);
        let at = at.field("typed_extension_config");
        let Some(config) = &entry.typed_extension_config else {
            cx.report.error(&at, "missing", "a policy needs typed_extension_config");
            return;
        };
        let Some(typed) = extension(config, &at, cx.report) else { return };
        match apply(&typed.name, &typed.value, spec, &at.field("typed_config"), cx) {
            Ok(true) => return,
            Ok(false) => unknown.push(config.name.clone()),
            Err(why) => {
                cx.report.error(&at.field("typed_config"), why, "a valid policy");
                return;
            }
        }
    }
    cx.report.error(
        &list,
        format!("no known policy: {}", unknown.join(", ")),
        "round_robin, least_request, random, ring_hash, maglev, client_side_weighted_round_robin, wrr_locality, subset or override_host",
    );
}

/// Takes a policy; false if it is not known.
fn apply(name: &str, bytes: &[u8], spec: &mut LbSpec, at: &At<'_>, cx: &mut ClusterCx<'_>) -> Result<bool, String> {
    fn decode<T: Message + Default>(bytes: &[u8]) -> Result<T, String> {
        T::decode(bytes).map_err(|e| format!("cannot be decoded: {e}"))
    }
    let Some(name) = name.strip_prefix("envoy.extensions.load_balancing_policies.") else { return Ok(false) };
    match name {
        "round_robin.v3.RoundRobin" => {
            let c: policies::round_robin::v3::RoundRobin = decode(bytes)?;
            spec.kind = LbKind::RoundRobin;
            spec.slow_start = slow_start(c.slow_start_config.as_ref(), at, cx);
            locality(c.locality_lb_config.as_ref(), spec);
        }
        "least_request.v3.LeastRequest" => {
            let c: policies::least_request::v3::LeastRequest = decode(bytes)?;
            #[allow(deprecated)]
            let full = c.selection_method == policies::least_request::v3::least_request::SelectionMethod::FullScan as i32
                || c.enable_full_scan == Some(true);
            spec.kind = least_request(c.choice_count, c.active_request_bias.as_ref(), full, at, cx);
            spec.slow_start = slow_start(c.slow_start_config.as_ref(), at, cx);
            locality(c.locality_lb_config.as_ref(), spec);
        }
        "random.v3.Random" => {
            let c: policies::random::v3::Random = decode(bytes)?;
            spec.kind = LbKind::Random;
            locality(c.locality_lb_config.as_ref(), spec);
        }
        "ring_hash.v3.RingHash" => {
            let c: policies::ring_hash::v3::RingHash = decode(bytes)?;
            let murmur = c.hash_function == policies::ring_hash::v3::ring_hash::HashFunction::MurmurHash2 as i32;
            spec.kind = ring(c.minimum_ring_size, c.maximum_ring_size, murmur, at, cx);
            #[allow(deprecated)]
            consistent(spec, c.use_hostname_for_hashing, c.hash_balance_factor, at, cx);
            hashing(c.consistent_hashing_lb_config.as_ref(), spec, at, cx);
            weighted(c.locality_weighted_lb_config.is_some(), spec);
        }
        "maglev.v3.Maglev" => {
            let c: policies::maglev::v3::Maglev = decode(bytes)?;
            spec.kind = maglev(c.table_size, at, cx);
            hashing(c.consistent_hashing_lb_config.as_ref(), spec, at, cx);
            weighted(c.locality_weighted_lb_config.is_some(), spec);
        }
        "client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin" => orca(&decode(bytes)?, spec, at, cx),
        "wrr_locality.v3.WrrLocality" => wrr_locality(&decode(bytes)?, spec, at, cx),
        "cluster_provided.v3.ClusterProvided" => spec.kind = LbKind::ClusterProvided,
        "override_host.v3.OverrideHost" => override_host(&decode(bytes)?, spec, at, cx),
        "subset.v3.Subset" => {
            let policy: policies::subset::v3::Subset = decode(bytes)?;
            if spec.subsets.is_some() {
                return Err("a subset policy in a subset policy".to_string());
            }
            spec.subsets = Some(subset::typed(&policy, at, cx.report));
            match &policy.subset_lb_policy {
                Some(inner) => typed(inner, spec, &at.field("subset_lb_policy"), cx),
                None => cx.report.error(&at.field("subset_lb_policy"), "missing", "the policy in each subset"),
            }
        }
        _ => return Ok(false),
    }
    Ok(true)
}

/// Round robin by weights that hosts report. Source: `client_side_weighted_round_robin.proto`.
fn orca(config: &ClientSideWeightedRoundRobin, spec: &mut LbSpec, at: &At<'_>, cx: &mut ClusterCx<'_>) {
    let seconds = |name: &str, value: Option<&nuncio_proto::Duration>, default: u64, cx: &mut ClusterCx<'_>| {
        duration(value, Duration::from_secs(default), &at.field(name), cx.report)
    };
    let penalty = f64::from(config.error_utilization_penalty.unwrap_or(0.0));
    if !(penalty >= 0.0 && penalty.is_finite()) {
        cx.report.error(&at.field("error_utilization_penalty"), penalty.to_string(), "0 or more");
    }
    spec.kind = LbKind::RoundRobin;
    spec.slow_start = slow_start(config.slow_start_config.as_ref(), at, cx);
    spec.orca = Some(Box::new(OrcaSpec {
        blackout: seconds("blackout_period", config.blackout_period.as_ref(), 10, cx),
        expiration: seconds("weight_expiration_period", config.weight_expiration_period.as_ref(), 180, cx),
        update: seconds("weight_update_period", config.weight_update_period.as_ref(), 1, cx).max(LEAST_UPDATE),
        error_penalty: penalty,
        oob: (config.enable_oob_load_report == Some(true)).then(|| oob(config, at, cx)),
        metrics: config.metric_names_for_computing_utilization.iter().map(|name| name.as_str().into()).collect(),
    }));
}

/// Load reports out of band.
fn oob(config: &ClientSideWeightedRoundRobin, at: &At<'_>, cx: &mut ClusterCx<'_>) -> OobSpec {
    let default = Duration::from_secs(10);
    let period = duration(config.oob_reporting_period.as_ref(), default, &at.field("oob_reporting_period"), cx.report);
    let overrides = config.oob_reporting_config.clone().unwrap_or_default();
    let port = u16::try_from(overrides.port_value);
    if port.is_err() {
        cx.report.error(&at.field("oob_reporting_config").field("port_value"), overrides.port_value.to_string(), "0 to 65535");
    }
    OobSpec {
        period: if period.is_zero() { default } else { period },
        port: port.ok().filter(|port| *port > 0),
        authority: overrides.authority.as_str().into(),
        criteria: overrides.transport_socket_match_criteria.map(|c| c.fields.into_iter().map(|(k, v)| (k.into(), v)).collect()),
    }
}

/// `wrr_locality`: localities by weight, and in them hosts by what they report. Envoy takes no other policy inside.
fn wrr_locality(config: &WrrLocality, spec: &mut LbSpec, at: &At<'_>, cx: &mut ClusterCx<'_>) {
    let at = at.field("endpoint_picking_policy");
    match &config.endpoint_picking_policy {
        Some(inner) => typed(inner, spec, &at, cx),
        None => return cx.report.error(&at, "missing", "client_side_weighted_round_robin"),
    }
    if spec.orca.is_none() {
        cx.report.error(&at, "another policy", "client_side_weighted_round_robin, as in Envoy");
    }
    spec.locality = LocalityMode::Weighted;
}

fn hashing(config: Option<&ConsistentHashingLbConfig>, spec: &mut LbSpec, at: &At<'_>, cx: &mut ClusterCx<'_>) {
    let Some(config) = config else { return };
    let at = at.field("consistent_hashing_lb_config");
    consistent(spec, config.use_hostname_for_hashing, config.hash_balance_factor, &at, cx);
    spec.hash_policy = HashPolicy::compile(&config.hash_policy, &at.field("hash_policy"), cx.report).flatten().map(Box::new);
}

fn weighted(is: bool, spec: &mut LbSpec) {
    spec.locality = if is { LocalityMode::Weighted } else { LocalityMode::Ignore };
}

fn override_host(config: &policies::override_host::v3::OverrideHost, spec: &mut LbSpec, at: &At<'_>, cx: &mut ClusterCx<'_>) {
    if spec.subsets.is_some() {
        return cx.report.unsupported(at, "override_host inside of a subset policy; put the subset policy inside of override_host");
    }
    let list = at.field("override_host_sources");
    let mut sources = Vec::new();
    for (i, source) in config.override_host_sources.iter().enumerate() {
        let at = list.index(i);
        match (&source.metadata, HeaderKey::parse(&source.header)) {
            (Some(key), _) if source.header.is_empty() => {
                sources.push(OverrideSource::Metadata(metadata_path(key, &at.field("metadata"), cx.report)))
            }
            (None, Some(header)) => sources.push(OverrideSource::Header(header)),
            _ => cx.report.error(&at, "neither a header nor metadata, or both", "exactly one of them"),
        }
    }
    if sources.is_empty() {
        cx.report.error(&list, "empty", "at least one source");
    }
    let selected = config.selected_host_key.as_ref().map(|key| metadata_path(key, &at.field("selected_host_key"), cx.report));
    match &config.fallback_policy {
        Some(fallback) => typed(fallback, spec, &at.field("fallback_policy"), cx),
        None => cx.report.error(&at.field("fallback_policy"), "missing", "a policy for requests that name no host"),
    }
    spec.overrides = Some(Box::new(OverrideSpec { sources: sources.into_boxed_slice(), selected }));
}
