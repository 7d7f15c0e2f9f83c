//! Weights that hosts give themselves: load reports (ORCA) in response headers or trailers, turned into weights every so often.
//! Reports are read on workers as responses pass, weights are computed on the control thread, balancers read them as they pick.
//! Source: `client_side_weighted_round_robin.proto`, Envoy's `orca_weight_manager.cc` and `orca_parser.cc`.

pub(crate) mod oob;

use crate::cluster::Cluster;
use crate::host::{Host, millis};
use crate::view::EndpointSet;
use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use http::HeaderName;
use nuncio_core::Headers;
use nuncio_core::views::HostView;
use oob::OobSpec;
use prost::Message;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// `ClientSideWeightedRoundRobin`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct OrcaSpec {
    /// Reports count after this time without a gap. Default 10 s.
    pub blackout: Duration,
    /// Reports count for this long. Default 3 min.
    pub expiration: Duration,
    /// How often weights are computed. Default 1 s.
    pub update: Duration,
    pub error_penalty: f64,
    /// `metric_names_for_computing_utilization`.
    pub metrics: Box<[Box<str>]>,
    /// `enable_oob_load_report`: hosts are asked for reports over streams of their own.
    pub oob: Option<OobSpec>,
}

/// What a host said last. Times are milliseconds since [`crate::host::epoch`].
#[derive(Debug)]
pub(crate) struct OrcaHost {
    /// The weight in use.
    weight: AtomicU32,
    reported: AtomicU32,
    /// When reports began, [`NEVER`] without one.
    since: AtomicU64,
    last: AtomicU64,
}

const NEVER: u64 = u64::MAX;

impl Default for OrcaHost {
    fn default() -> Self {
        Self { weight: AtomicU32::new(1), reported: AtomicU32::new(0), since: AtomicU64::new(NEVER), last: AtomicU64::new(0) }
    }
}

impl OrcaHost {
    /// The weight in use, at least 1.
    pub(crate) fn weight(&self) -> u32 {
        self.weight.load(Ordering::Relaxed).max(1)
    }
    fn report(&self, weight: u32, now: u64) {
        self.reported.store(weight, Ordering::Relaxed);
        self.last.store(now, Ordering::Relaxed);
        // The first of a row says when it began; others find it said.
        let _ = self.since.compare_exchange(NEVER, now, Ordering::Relaxed, Ordering::Relaxed);
    }
    /// The reported weight, if it counts now.
    fn valid(&self, spec: &OrcaSpec, now: u64) -> Option<u32> {
        let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        let since = self.since.load(Ordering::Relaxed);
        if since == NEVER || now < since.saturating_add(ms(spec.blackout)) {
            return None;
        }
        if self.last.load(Ordering::Relaxed).saturating_add(ms(spec.expiration)) < now {
            // Reports begin anew, blackout included.
            self.since.store(NEVER, Ordering::Relaxed);
            return None;
        }
        Some(self.reported.load(Ordering::Relaxed))
    }
}

/// Computes the weights of one priority; whether any changed. Hosts without a valid report get the median of the others.
fn update_weights(spec: &OrcaSpec, set: &EndpointSet, now: u64) -> bool {
    let mut known: Vec<u32> = set.hosts().filter_map(|h| h.orca().valid(spec, now)).collect();
    known.sort_unstable();
    let middle = known.len() / 2;
    let median = match (known.get(middle), middle.checked_sub(1).and_then(|m| known.get(m))) {
        (None, _) => 1,
        (Some(upper), Some(lower)) if known.len().is_multiple_of(2) => {
            u32::try_from((u64::from(*lower) + u64::from(*upper)) / 2).unwrap_or(*upper)
        }
        (Some(middle), _) => *middle,
    };
    let mut changed = false;
    for host in set.hosts() {
        let orca = host.orca();
        let weight = orca.valid(spec, now).unwrap_or(median);
        changed |= orca.weight.swap(weight, Ordering::Relaxed) != weight;
    }
    changed
}

impl Cluster {
    /// Takes the hosts' reports into their weights. Control thread, every `weight_update_period` and when hosts come.
    pub(crate) fn update_orca_weights(&self, now: Instant) {
        let Some(spec) = &self.spec.lb.orca else { return };
        let endpoints = self.endpoints();
        let now = millis(now);
        // Every priority, whatever the one before did.
        let changed = endpoints.sets.iter().filter(|set| update_weights(spec, set, now)).count();
        if changed > 0 {
            self.weights_changed();
        }
    }
}

/// Reads the report of a response, if it has one that is right; whether it had.
pub(crate) fn take_report(spec: &OrcaSpec, host: &Host, headers: &Headers) -> bool {
    static BINARY: HeaderName = HeaderName::from_static("endpoint-load-metrics-bin");
    static ANY: HeaderName = HeaderName::from_static("endpoint-load-metrics");
    let report = match (headers.get_str(&BINARY), headers.get_str(&ANY)) {
        (Some(binary), _) => binary_report(binary),
        (None, Some(text)) => match text.split_once(' ') {
            Some(("BIN", rest)) => binary_report(rest),
            Some(("TEXT", rest)) => text_report(rest),
            Some(("JSON", rest)) => json_report(rest),
            _ => None,
        },
        (None, None) => return false,
    };
    let Some(report) = report else {
        log::debug!("the load report of {} is not understood", host.address());
        return false;
    };
    if let Some(weight) = weight_of(spec, &report) {
        host.orca().report(weight, millis(Instant::now()));
    }
    true
}

/// `xds.data.orca.v3.OrcaLoadReport`.
#[derive(Clone, PartialEq, Message)]
struct Report {
    #[prost(double, tag = "1")]
    cpu_utilization: f64,
    #[prost(double, tag = "2")]
    mem_utilization: f64,
    #[prost(map = "string, double", tag = "4")]
    request_cost: HashMap<String, f64>,
    #[prost(map = "string, double", tag = "5")]
    utilization: HashMap<String, f64>,
    #[prost(double, tag = "6")]
    rps_fractional: f64,
    #[prost(double, tag = "7")]
    eps: f64,
    #[prost(map = "string, double", tag = "8")]
    named_metrics: HashMap<String, f64>,
    #[prost(double, tag = "9")]
    application_utilization: f64,
}

impl Report {
    fn field(&mut self, name: &str) -> Option<&mut f64> {
        Some(match name {
            "cpu_utilization" => &mut self.cpu_utilization,
            "mem_utilization" => &mut self.mem_utilization,
            "application_utilization" => &mut self.application_utilization,
            "eps" => &mut self.eps,
            "rps_fractional" => &mut self.rps_fractional,
            _ => return None,
        })
    }
    fn map(&mut self, name: &str) -> Option<&mut HashMap<String, f64>> {
        Some(match name {
            "named_metrics" => &mut self.named_metrics,
            "utilization" => &mut self.utilization,
            "request_cost" => &mut self.request_cost,
            _ => return None,
        })
    }
    /// A metric by the name that configuration gives it; with `*` the greatest of a map.
    fn metric(&self, name: &str) -> f64 {
        let (map, key) = match name.split_once('.') {
            Some(("named_metrics", key)) => (&self.named_metrics, key),
            Some(("utilization", key)) => (&self.utilization, key),
            Some(("request_cost", key)) => (&self.request_cost, key),
            _ => {
                return match name {
                    "cpu_utilization" => self.cpu_utilization,
                    "mem_utilization" => self.mem_utilization,
                    "application_utilization" => self.application_utilization,
                    "eps" => self.eps,
                    "rps_fractional" => self.rps_fractional,
                    _ => 0.0,
                };
            }
        };
        if key == "*" { map.values().copied().fold(0.0, f64::max) } else { map.get(key).copied().unwrap_or(0.0) }
    }
}

/// Requests per second by utilization, errors counted on top.
fn weight_of(spec: &OrcaSpec, report: &Report) -> Option<u32> {
    let rate = report.rps_fractional;
    let named = spec.metrics.iter().map(|name| report.metric(name)).fold(0.0, f64::max);
    let utilization = [named, report.application_utilization].into_iter().find(|u| *u > 0.0).unwrap_or(report.cpu_utilization);
    let utilization = utilization + spec.error_penalty * report.eps / rate;
    // Conversion cuts off the fraction and keeps to the bounds.
    (rate > 0.0 && utilization > 0.0).then(|| (rate / utilization) as u32)
}

fn binary_report(text: &str) -> Option<Report> {
    let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let bytes = GeneralPurpose::new(&STANDARD, config).decode(text.trim()).ok().filter(|b| !b.is_empty())?;
    Report::decode(bytes.as_slice()).ok()
}

/// `cpu_utilization=0.3, named_metrics.queue=2`; one wrong or repeated metric makes the whole report void.
fn text_report(text: &str) -> Option<Report> {
    let mut report = Report::default();
    let mut seen: Vec<&str> = Vec::new();
    for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        let (name, value) = part.split_once(['=', ':'])?;
        let (name, value) = (name.trim(), value.trim().parse::<f64>().ok().filter(|v| v.is_finite())?);
        if seen.contains(&name) {
            return None;
        }
        seen.push(name);
        match name.split_once('.') {
            Some((_, "")) => return None,
            Some((map, key)) => {
                report.map(map)?.insert(key.to_string(), value);
            }
            None => *report.field(name)? = value,
        }
    }
    Some(report)
}

fn json_report(text: &str) -> Option<Report> {
    let serde_json::Value::Object(fields) = serde_json::from_str(text).ok()? else { return None };
    let mut report = Report::default();
    let number = |value: &serde_json::Value| value.as_f64().or_else(|| value.as_str()?.parse().ok());
    for (name, value) in &fields {
        // Both spellings of protobuf JSON.
        let name: String =
            name.chars().flat_map(|c| [c.is_ascii_uppercase().then_some('_'), Some(c.to_ascii_lowercase())]).flatten().collect();
        match value {
            serde_json::Value::Object(entries) => {
                let map = report.map(&name)?;
                for (key, value) in entries {
                    map.insert(key.clone(), number(value)?);
                }
            }
            // The whole number that came before `rps_fractional`; nothing is computed from it.
            _ if name == "rps" => {}
            value => *report.field(&name)? = number(value)?,
        }
    }
    Some(report)
}

#[cfg(test)]
#[path = "../tests/orca.rs"]
mod tests;
