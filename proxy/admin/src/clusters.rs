//! `/clusters` and `/listeners`, in text and as JSON.

use nuncio_core::Address;
use nuncio_proto::Message;
use nuncio_proto::envoy::admin::v3::{self, SimpleMetric, simple_metric};
use nuncio_proto::envoy::config::cluster::v3::{CircuitBreakers, circuit_breakers};
use nuncio_proto::envoy::config::core::v3::{HealthStatus, Locality, RoutingPriority};
use nuncio_proto::envoy::r#type::v3::Percent;
use nuncio_proto::json::{Descriptors, Options, Pretty, Renderer};
use regex::Regex;

use crate::endpoints::render;
use crate::reply::{JSON, Reply, Stop};
use crate::request::Request;
use crate::{Backend, ClusterStatus, HostHealth, HostStats, HostStatus, Limits};

/// `/clusters`, one cluster at a time.
pub(crate) async fn clusters(backend: &dyn Backend, request: &Request, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let filter = match request.value("filter").map(Regex::new).transpose() {
        Ok(filter) => filter,
        Err(_) => {
            reply.text(400, "Invalid re2 regex\n");
            return Ok(());
        }
    };
    let clusters = backend.clusters().filter(|c| filter.as_ref().is_none_or(|f| f.is_match(&c.name)));
    if request.value("format") == Some("json") {
        let statuses = clusters.map(|c| cluster_message(&c).encode_to_vec());
        return list(reply, "cluster_statuses", "envoy.admin.v3.ClusterStatus", statuses).await;
    }
    for cluster in clusters {
        cluster_text(&cluster, reply).await?;
    }
    Ok(())
}

/// `/listeners`.
pub(crate) async fn listeners(backend: &dyn Backend, request: &Request, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let listeners = backend.listeners();
    if request.value("format") == Some("json") {
        let statuses = listeners.into_iter().map(|l| {
            let more = l.additional_local_addresses.iter().map(Address::to_proto).collect();
            v3::ListenerStatus { name: l.name, local_address: Some(l.local_address.to_proto()), additional_local_addresses: more }
                .encode_to_vec()
        });
        return list(reply, "listener_statuses", "envoy.admin.v3.ListenerStatus", statuses).await;
    }
    for listener in listeners {
        for address in std::iter::once(&listener.local_address).chain(&listener.additional_local_addresses) {
            reply.out.extend_from_slice(format!("{}::{address}\n", listener.name).as_bytes());
        }
        reply.piece().await?;
    }
    Ok(())
}

/// `{"field": [elements]}`, or `{}` without elements.
async fn list(reply: &mut Reply<'_>, field: &str, element: &str, all: impl Iterator<Item = Vec<u8>>) -> Result<(), Stop> {
    reply.start(200, JSON);
    let d = Descriptors::shared();
    let mut layout = Pretty::new();
    layout.object(&mut reply.out);
    for wire in all {
        if layout.level() == 1 {
            layout.key(&mut reply.out, field);
            layout.list(&mut reply.out);
        }
        layout.item(&mut reply.out);
        let options = Options { indent: layout.level(), ..Options::default() };
        if let Some(renderer) = Renderer::message(d.clone(), element, wire.into(), options) {
            render(renderer, reply).await?;
        }
    }
    while layout.level() > 0 {
        layout.end(&mut reply.out);
    }
    reply.out.push(b'\n');
    Ok(())
}

async fn cluster_text(cluster: &ClusterStatus, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let name = &cluster.name;
    let mut lines = vec![("observability_name".to_string(), cluster.observability_name.to_string())];
    if let Some(outlier) = &cluster.outlier {
        lines.extend(
            [
                ("success_rate_average", outlier.success_rate_average),
                ("success_rate_ejection_threshold", outlier.success_rate_ejection_threshold),
                ("local_origin_success_rate_average", outlier.local_origin_success_rate_average),
                ("local_origin_success_rate_ejection_threshold", outlier.local_origin_success_rate_ejection_threshold),
            ]
            .map(|(name, rate)| (format!("outlier::{name}"), rate.to_string())),
        );
    }
    for (priority, limits) in [("default_priority", &cluster.default_priority), ("high_priority", &cluster.high_priority)] {
        lines.extend(
            [
                ("max_connections", limits.max_connections),
                ("max_pending_requests", limits.max_pending_requests),
                ("max_requests", limits.max_requests),
                ("max_retries", limits.max_retries),
            ]
            .map(|(name, limit)| (format!("{priority}::{name}"), limit.to_string())),
        );
    }
    lines.push(("added_via_api".to_string(), cluster.added_via_api.to_string()));
    if !cluster.eds_service_name.is_empty() {
        lines.push(("eds_service_name".to_string(), cluster.eds_service_name.clone()));
    }
    for (key, value) in lines {
        reply.out.extend_from_slice(format!("{name}::{key}::{value}\n").as_bytes());
    }
    for host in &cluster.hosts {
        host_text(name, host, &mut reply.out);
        reply.piece().await?;
    }
    reply.piece().await
}

fn host_text(cluster: &str, host: &HostStatus, out: &mut Vec<u8>) {
    let mut line = |key: &str, value: &str| out.extend_from_slice(format!("{cluster}::{}::{key}::{value}\n", host.address).as_bytes());
    let mut metrics = host_metrics(&host.stats);
    metrics.sort_by_key(|m| m.0);
    for (name, value, _) in metrics {
        line(name, &value.to_string());
    }
    line("hostname", &host.hostname);
    line("health_flags", &health_flags(&host.health));
    line("weight", &host.weight.to_string());
    line("region", &host.region);
    line("zone", &host.zone);
    line("sub_zone", &host.sub_zone);
    line("canary", &host.canary.to_string());
    line("priority", &host.priority.to_string());
    line("success_rate", &host.success_rate.to_string());
    line("local_origin_success_rate", &host.local_origin_success_rate.to_string());
}

/// Name, value and whether it is a gauge; counters first, as JSON shows them.
fn host_metrics(stats: &HostStats) -> [(&'static str, u64, bool); 9] {
    [
        ("cx_connect_fail", stats.cx_connect_fail, false),
        ("cx_total", stats.cx_total, false),
        ("rq_error", stats.rq_error, false),
        ("rq_success", stats.rq_success, false),
        ("rq_timeout", stats.rq_timeout, false),
        ("rq_total", stats.rq_total, false),
        ("cx_active", stats.cx_active, true),
        ("rq_active", stats.rq_active, true),
        ("rq_pending_active", stats.rq_pending_active, true),
    ]
}

/// As Envoy writes the flags that are set; `healthy` if there are none.
fn health_flags(health: &HostHealth) -> String {
    let eds = match HealthStatus::try_from(health.eds_health_status) {
        Ok(HealthStatus::Unhealthy | HealthStatus::Timeout) => "/failed_eds_health",
        Ok(HealthStatus::Draining) => "/eds_status_draining",
        Ok(HealthStatus::Degraded) => "/degraded_eds_health",
        _ => "",
    };
    let flags = [
        (health.failed_active_health_check, "/failed_active_hc"),
        (health.failed_outlier_check, "/failed_outlier_check"),
        (eds == "/failed_eds_health", eds),
        (health.failed_active_degraded_check, "/degraded_active_hc"),
        (eds == "/degraded_eds_health", eds),
        (health.pending_dynamic_removal, "/pending_dynamic_removal"),
        (health.pending_active_hc, "/pending_active_hc"),
        (health.excluded_via_immediate_hc_fail, "/excluded_via_immediate_hc_fail"),
        (health.active_hc_timeout, "/active_hc_timeout"),
        (eds == "/eds_status_draining", eds),
        (health.failed_degraded_outlier_detection, "/degraded_outlier_detection"),
    ];
    let set: String = flags.into_iter().filter(|(set, _)| *set).map(|(_, name)| name).collect();
    if set.is_empty() { "healthy".to_string() } else { set }
}

fn cluster_message(cluster: &ClusterStatus) -> v3::ClusterStatus {
    let threshold = |priority: RoutingPriority, limits: &Limits| circuit_breakers::Thresholds {
        priority: priority.into(),
        max_connections: Some(limits.max_connections),
        max_pending_requests: Some(limits.max_pending_requests),
        max_requests: Some(limits.max_requests),
        max_retries: Some(limits.max_retries),
        ..Default::default()
    };
    let thresholds =
        vec![threshold(RoutingPriority::Default, &cluster.default_priority), threshold(RoutingPriority::High, &cluster.high_priority)];
    v3::ClusterStatus {
        name: cluster.name.to_string(),
        added_via_api: cluster.added_via_api,
        success_rate_ejection_threshold: cluster.outlier.and_then(|o| percent(o.success_rate_ejection_threshold)),
        host_statuses: cluster.hosts.iter().map(host_message).collect(),
        local_origin_success_rate_ejection_threshold: cluster.outlier.and_then(|o| percent(o.local_origin_success_rate_ejection_threshold)),
        circuit_breakers: Some(CircuitBreakers { thresholds, ..Default::default() }),
        observability_name: cluster.observability_name.to_string(),
        eds_service_name: cluster.eds_service_name.clone(),
    }
}

fn percent(value: f64) -> Option<Percent> {
    (value >= 0.0).then_some(Percent { value })
}

fn host_message(host: &HostStatus) -> v3::HostStatus {
    let metric = |(name, value, gauge): (&str, u64, bool)| SimpleMetric {
        r#type: if gauge { simple_metric::Type::Gauge } else { simple_metric::Type::Counter }.into(),
        value,
        name: name.to_string(),
    };
    let health = &host.health;
    let eds_health_status =
        if health.eds_health_status == HealthStatus::Unknown as i32 { HealthStatus::Healthy as i32 } else { health.eds_health_status };
    v3::HostStatus {
        address: Some(host.address.to_proto()),
        stats: host_metrics(&host.stats).into_iter().map(metric).collect(),
        health_status: Some(v3::HostHealthStatus {
            failed_active_health_check: health.failed_active_health_check,
            failed_outlier_check: health.failed_outlier_check,
            failed_active_degraded_check: health.failed_active_degraded_check,
            pending_dynamic_removal: health.pending_dynamic_removal,
            pending_active_hc: health.pending_active_hc,
            excluded_via_immediate_hc_fail: health.excluded_via_immediate_hc_fail,
            active_hc_timeout: health.active_hc_timeout,
            failed_degraded_outlier_detection: health.failed_degraded_outlier_detection,
            eds_health_status,
        }),
        success_rate: percent(host.success_rate),
        weight: host.weight,
        hostname: host.hostname.clone(),
        priority: host.priority,
        local_origin_success_rate: percent(host.local_origin_success_rate),
        locality: Some(Locality { region: host.region.clone(), zone: host.zone.clone(), sub_zone: host.sub_zone.clone() }),
    }
}
