//! What a `HTTPFault` injects: compiled on the control thread, asked on workers only where something is configured.

use super::millis;
use crate::config::duration;
use bytes::Bytes;
use http::HeaderName;
use nuncio_core::Headers;
use nuncio_core::diag::{At, Report};
use nuncio_core::registry::Runtime;
use nuncio_matcher::{Fraction, HeaderMatcher, RuntimeFraction};
use nuncio_proto::Struct;
use nuncio_proto::envoy::config::core::v3::RuntimeFractionalPercent;
use nuncio_proto::envoy::extensions::filters::common::fault::v3::{fault_delay::FaultDelaySecifier, fault_rate_limit::LimitType};
use nuncio_proto::envoy::extensions::filters::http::fault::v3::HttpFault;
use nuncio_proto::envoy::extensions::filters::http::fault::v3::fault_abort::ErrorType;
use nuncio_proto::envoy::r#type::v3::FractionalPercent;
use std::collections::HashSet;
use std::time::Duration;

const DELAY: HeaderName = HeaderName::from_static("x-envoy-fault-delay-request");
const DELAY_PERCENTAGE: HeaderName = HeaderName::from_static("x-envoy-fault-delay-request-percentage");
const ABORT: HeaderName = HeaderName::from_static("x-envoy-fault-abort-request");
const ABORT_GRPC: HeaderName = HeaderName::from_static("x-envoy-fault-abort-grpc-request");
const ABORT_PERCENTAGE: HeaderName = HeaderName::from_static("x-envoy-fault-abort-request-percentage");
const THROUGHPUT: HeaderName = HeaderName::from_static("x-envoy-fault-throughput-response");
const THROUGHPUT_PERCENTAGE: HeaderName = HeaderName::from_static("x-envoy-fault-throughput-response-percentage");

/// Compiled settings.
#[derive(Debug)]
pub struct Settings {
    delay: Option<(Chance, Amount)>,
    abort: Option<(Chance, AbortKind)>,
    rate: Option<(Chance, Amount)>,
    pub abort_body: Bytes,
    pub upstream_cluster: String,
    pub headers: Box<[HeaderMatcher]>,
    pub downstream_nodes: HashSet<String>,
    max_active: Option<u64>,
    pub cluster_stats: bool,
    pub metadata: Struct,
    delay_duration_key: String,
    abort_http_key: String,
    abort_grpc_key: String,
    max_active_key: String,
}

/// A number that is configured or comes with the request.
#[derive(Debug)]
enum Amount {
    Fixed(u64),
    Header(HeaderName),
}

#[derive(Debug)]
enum AbortKind {
    Http(u64),
    Grpc(u64),
    Header,
}

/// The status of an abort.
#[derive(Debug, PartialEq, Eq)]
pub enum Abort {
    Http(u16),
    Grpc(u32),
}

/// A fraction of requests. Where the fault comes with the request, a header may lower it.
#[derive(Debug)]
struct Chance {
    percentage: FractionalPercent,
    configured: Fraction,
    fraction: RuntimeFraction,
    header: Option<HeaderName>,
}

impl Chance {
    fn compile(p: Option<&FractionalPercent>, key: &str, header: Option<HeaderName>, at: &At<'_>, report: &mut Report) -> Option<Self> {
        // An absent percentage is the default message: 0 of a hundred.
        let percentage = p.copied().unwrap_or_default();
        let runtime = RuntimeFractionalPercent { default_value: Some(percentage), runtime_key: key.to_string() };
        let at = at.field("percentage");
        let configured = Fraction::compile(&percentage, &at, report)?;
        Some(Self { percentage, configured, fraction: RuntimeFraction::compile(&runtime, &at, report)?, header })
    }
    /// `by_cluster` is the runtime key of the downstream cluster; it decides too where it is set.
    fn hits(&self, headers: &Headers, by_cluster: Option<String>, runtime: &Runtime) -> bool {
        let mut current = self.fraction.current(runtime);
        let lowered = self.header.as_ref().and_then(|name| number(headers, name));
        if let (Some(numerator), true) = (lowered, current == self.configured) {
            let numerator = u32::try_from(numerator).unwrap_or(u32::MAX).min(self.percentage.numerator);
            let percentage = FractionalPercent { numerator, ..self.percentage };
            current = Fraction::compile(&percentage, &At::Root, &mut Report::new()).unwrap_or(current);
        }
        if current.contains(fastrand::u64(..)) {
            return true;
        }
        let Some(key) = by_cluster.filter(|k| runtime.get(k).is_some()) else { return false };
        let own = RuntimeFractionalPercent { default_value: Some(self.percentage), runtime_key: key };
        RuntimeFraction::compile(&own, &At::Root, &mut Report::new()).is_some_and(|f| f.contains(runtime, fastrand::u64(..)))
    }
}

fn number(headers: &Headers, name: &HeaderName) -> Option<u64> {
    headers.get_str(name)?.trim().parse().ok()
}

impl Amount {
    fn get(&self, headers: &Headers) -> Option<u64> {
        match self {
            Self::Fixed(n) => Some(*n),
            Self::Header(name) => number(headers, name),
        }
    }
}

impl Settings {
    pub fn compile(p: &HttpFault, at: &At<'_>, report: &mut Report) -> Option<Self> {
        let or = |configured: &str, default: &str| if configured.is_empty() { default.to_string() } else { configured.to_string() };
        let delay = match &p.delay {
            None => None,
            Some(delay) => {
                let at = at.field("delay");
                let key = or(&p.delay_percent_runtime, "fault.http.delay.fixed_delay_percent");
                let (amount, header) = match &delay.fault_delay_secifier {
                    Some(FaultDelaySecifier::FixedDelay(d)) => {
                        let fixed = duration(d, &at.field("fixed_delay"), report)?;
                        (Amount::Fixed(u64::try_from(fixed.as_millis()).unwrap_or(u64::MAX)), None)
                    }
                    Some(FaultDelaySecifier::HeaderDelay(_)) => (Amount::Header(DELAY), Some(DELAY_PERCENTAGE)),
                    None => return missing(&at, "fixed_delay or header_delay", report),
                };
                Some((Chance::compile(delay.percentage.as_ref(), &key, header, &at, report)?, amount))
            }
        };
        let abort = match &p.abort {
            None => None,
            Some(abort) => {
                let at = at.field("abort");
                let key = or(&p.abort_percent_runtime, "fault.http.abort.abort_percent");
                let (kind, header) = match &abort.error_type {
                    Some(ErrorType::HttpStatus(status)) if (200..600).contains(status) => (AbortKind::Http(u64::from(*status)), None),
                    Some(ErrorType::HttpStatus(status)) => {
                        report.error(&at.field("http_status"), status.to_string(), "give a status from 200 to 599");
                        return None;
                    }
                    Some(ErrorType::GrpcStatus(status)) => (AbortKind::Grpc(u64::from(*status)), None),
                    Some(ErrorType::HeaderAbort(_)) => (AbortKind::Header, Some(ABORT_PERCENTAGE)),
                    None => return missing(&at, "http_status, grpc_status or header_abort", report),
                };
                Some((Chance::compile(abort.percentage.as_ref(), &key, header, &at, report)?, kind))
            }
        };
        let rate = match &p.response_rate_limit {
            None => None,
            Some(rate) => {
                let at = at.field("response_rate_limit");
                let key = or(&p.response_rate_limit_percent_runtime, "fault.http.rate_limit.response_percent");
                let (amount, header) = match &rate.limit_type {
                    Some(LimitType::FixedLimit(limit)) if limit.limit_kbps > 0 => (Amount::Fixed(limit.limit_kbps), None),
                    Some(LimitType::FixedLimit(_)) => {
                        report.error(&at.field("fixed_limit.limit_kbps"), "0", "give at least 1");
                        return None;
                    }
                    Some(LimitType::HeaderLimit(_)) => (Amount::Header(THROUGHPUT), Some(THROUGHPUT_PERCENTAGE)),
                    None => return missing(&at, "fixed_limit or header_limit", report),
                };
                Some((Chance::compile(rate.percentage.as_ref(), &key, header, &at, report)?, amount))
            }
        };
        let body = p.abort.as_ref().map(|a| a.response_body.clone()).filter(|b| !b.is_empty());
        Some(Self {
            delay,
            abort,
            rate,
            abort_body: body.map_or(Bytes::from_static(b"fault filter abort"), Bytes::from),
            upstream_cluster: p.upstream_cluster.clone(),
            headers: HeaderMatcher::compile_list(&p.headers, &at.field("headers"), report)?,
            downstream_nodes: p.downstream_nodes.iter().cloned().collect(),
            max_active: p.max_active_faults.map(u64::from),
            cluster_stats: !p.disable_downstream_cluster_stats,
            metadata: p.filter_metadata.clone().unwrap_or_default(),
            delay_duration_key: or(&p.delay_duration_runtime, "fault.http.delay.fixed_duration_ms"),
            abort_http_key: or(&p.abort_http_status_runtime, "fault.http.abort.http_status"),
            abort_grpc_key: or(&p.abort_grpc_status_runtime, "fault.http.abort.grpc_status"),
            max_active_key: or(&p.max_active_faults_runtime, "fault.http.max_active_faults"),
        })
    }
    /// Whether nothing can be injected.
    pub fn is_empty(&self) -> bool {
        self.delay.is_none() && self.abort.is_none() && self.rate.is_none()
    }
    /// How many faults may be active at once.
    pub fn max_active(&self, runtime: &Runtime) -> Option<u64> {
        let max = runtime.integer(&self.max_active_key, self.max_active.unwrap_or(u64::MAX));
        (max < u64::MAX).then_some(max)
    }
    /// The delay of this request, if it gets one.
    pub fn delay(&self, headers: &Headers, downstream: Option<&str>, runtime: &Runtime) -> Option<Duration> {
        let (chance, amount) = self.delay.as_ref()?;
        if !chance.hits(headers, downstream.map(|c| format!("fault.http.{c}.delay.fixed_delay_percent")), runtime) {
            return None;
        }
        let ms = runtime.integer(&self.delay_duration_key, amount.get(headers)?);
        millis(downstream.map_or(ms, |c| runtime.integer(&format!("fault.http.{c}.delay.fixed_duration_ms"), ms)))
    }
    /// The abort of this request, if it gets one.
    pub fn abort(&self, headers: &Headers, downstream: Option<&str>, runtime: &Runtime) -> Option<Abort> {
        let (chance, kind) = self.abort.as_ref()?;
        if !chance.hits(headers, downstream.map(|c| format!("fault.http.{c}.abort.abort_percent")), runtime) {
            return None;
        }
        let http = match kind {
            AbortKind::Http(status) => Some(*status),
            AbortKind::Grpc(_) => None,
            AbortKind::Header => number(headers, &ABORT).filter(|s| (200..600).contains(s)),
        };
        if let Some(status) = http {
            let current = runtime.integer(&self.abort_http_key, status);
            let current = downstream.map_or(current, |c| runtime.integer(&format!("fault.http.{c}.abort.http_status"), current));
            // The runtime may hold anything; a response may not.
            let current = if (200..600).contains(&current) { current } else { status };
            return u16::try_from(current).ok().map(Abort::Http);
        }
        let grpc = match kind {
            AbortKind::Grpc(status) => Some(*status),
            AbortKind::Http(_) => None,
            AbortKind::Header => number(headers, &ABORT_GRPC),
        }?;
        let current = runtime.integer(&self.abort_grpc_key, grpc);
        let current = downstream.map_or(current, |c| runtime.integer(&format!("fault.http.{c}.abort.grpc_status"), current));
        u32::try_from(current).ok().map(Abort::Grpc)
    }
    /// KiB per second for the response, if it is slowed down.
    pub fn throttle(&self, headers: &Headers, runtime: &Runtime) -> Option<u64> {
        let (chance, amount) = self.rate.as_ref()?;
        let rate = amount.get(headers).filter(|r| *r > 0)?;
        chance.hits(headers, None, runtime).then_some(rate)
    }
}

fn missing<T>(at: &At<'_>, what: &str, report: &mut Report) -> Option<T> {
    report.error(at, "nothing to inject", format!("set {what}"));
    None
}
