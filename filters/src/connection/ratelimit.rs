//! envoy.filters.network.ratelimit: a service that many proxies share counts connections and says which are too many. A new connection waits
//! for the answer on its worker. Source: `envoy/extensions/filters/network/ratelimit/v3/rate_limit.proto`, Envoy's network `ratelimit.cc`.

use super::call::{Call, call_stats, snapshot};
use crate::config::decode;
use crate::rate_limit::percent;
use crate::ratelimit::SHOULD_RATE_LIMIT;
use crate::ratelimit::settings::service;
use bytes::BytesMut;
use nuncio_callout::{GrpcClient, GrpcError};
use nuncio_core::diag::{At, Report};
use nuncio_core::network::{NetworkAction, NetworkFilter, NetworkFilterConfig};
use nuncio_core::registry::{FactoryCx, NetworkFilterFactory, Server};
use nuncio_core::stats::{Counter, Gauge, Scope};
use nuncio_core::{ConnectionInfo, StreamInfo};
use nuncio_format::{FormatContext, Formatter};
use nuncio_proto::envoy::extensions::common::ratelimit::v3::RateLimitDescriptor;
use nuncio_proto::envoy::extensions::common::ratelimit::v3::rate_limit_descriptor::Entry;
use nuncio_proto::envoy::extensions::filters::network::ratelimit::v3::RateLimit;
use nuncio_proto::envoy::service::ratelimit::v3::{RateLimitRequest, RateLimitResponse, rate_limit_response::Code};
use std::borrow::Cow;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

/// The filter's name, under which its metadata is found.
const NAME: &str = "envoy.filters.network.ratelimit";

/// Factory of `envoy.extensions.filters.network.ratelimit.v3.RateLimit`.
#[derive(Debug)]
pub struct Factory;

impl NetworkFilterFactory for Factory {
    fn name(&self) -> &'static str {
        NAME
    }
    fn types(&self) -> &'static [&'static str] {
        &["envoy.extensions.filters.network.ratelimit.v3.RateLimit"]
    }
    fn compile(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<dyn NetworkFilterConfig>> {
        Some(Arc::new(Config(Arc::new(Settings::compile(&decode(config, at, cx.report)?, at, cx)?))))
    }
}

#[derive(Debug)]
struct Config(Arc<Settings>);

impl NetworkFilterConfig for Config {
    fn create(&self, _connection: &Rc<ConnectionInfo>) -> Option<Box<dyn NetworkFilter>> {
        Some(Box::new(Filter { settings: self.0.clone(), call: None }))
    }
}

call_stats!(total, ok, over_limit, error, failure_mode_allowed, cx_closed);

#[derive(Debug)]
struct Settings {
    server: Arc<Server>,
    client: Arc<GrpcClient>,
    domain: String,
    descriptors: Box<[Entries]>,
    deny: bool,
    stats: Stats,
}

/// A descriptor's keys, and formats of their values.
type Entries = Box<[(String, Formatter)]>;
type Answer = Result<RateLimitResponse, GrpcError>;

impl Settings {
    fn compile(p: &RateLimit, at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Self> {
        let errors = cx.report.errors();
        let (server, report) = (cx.server, &mut *cx.report);
        if p.stat_prefix.is_empty() {
            report.error(&at.field("stat_prefix"), "nothing", "name the stats of this filter");
        }
        if p.domain.is_empty() {
            report.error(&at.field("domain"), "an empty domain", "name the domain of the limits");
        }
        let at_descriptors = at.field("descriptors");
        if p.descriptors.is_empty() {
            report.error(&at_descriptors, "nothing", "give at least one descriptor");
        }
        let descriptors = p.descriptors.iter().enumerate().map(|(i, d)| entries(d, &at_descriptors.index(i), report)).collect::<Vec<_>>();
        let client = service(p.rate_limit_service.as_ref(), p.timeout.as_ref(), server, at, report)?;
        let descriptors = descriptors.into_iter().collect::<Option<Vec<_>>>()?.into();
        (report.errors() == errors).then(|| Self {
            server: server.clone(),
            client: Arc::new(client),
            domain: p.domain.clone(),
            descriptors,
            deny: p.failure_mode_deny,
            stats: Stats::new(&server.stats.root().scope(&format!("ratelimit.{}.", p.stat_prefix))),
        })
    }
    /// Begins the call.
    fn ask(&self, info: &StreamInfo) -> Call<Answer> {
        self.stats.total.inc();
        let seen = snapshot(info);
        let entry = |(key, value): &(String, Formatter)| {
            let mut text = Vec::new();
            value.write(&FormatContext::new(&seen), &mut text);
            Entry { key: key.clone(), value: String::from_utf8_lossy(&text).into_owned() }
        };
        let descriptor = |entries: &Entries| RateLimitDescriptor { entries: entries.iter().map(entry).collect(), ..Default::default() };
        let descriptors = self.descriptors.iter().map(descriptor).collect();
        let request = RateLimitRequest { domain: self.domain.clone(), descriptors, hits_addend: 0 };
        let client = self.client.clone();
        let answer = async move { client.unary(SHOULD_RATE_LIMIT, &request, Some(&FormatContext::new(&seen))).await };
        Call::new(answer, &self.stats.active)
    }
    /// What becomes of a connection.
    fn conclude(&self, answer: Answer, info: &mut StreamInfo) -> NetworkAction {
        let stats = &self.stats;
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                log::debug!(target: "ratelimit", "rate limit service of cluster '{}': {error}", self.client.cluster());
                stats.error.inc();
                if self.deny {
                    return self.close(info, "ratelimit_error_failure_mode_connection_close");
                }
                stats.failure_mode_allowed.inc();
                return NetworkAction::Continue;
            }
        };
        if let Some(metadata) = answer.dynamic_metadata.filter(|m| !m.fields.is_empty()) {
            info.set_metadata(NAME, metadata);
        }
        if answer.overall_code != Code::OverLimit as i32 {
            stats.ok.inc();
            return NetworkAction::Continue;
        }
        stats.over_limit.inc();
        if !percent(&self.server.runtime, "ratelimit.tcp_filter_enforcing") {
            return NetworkAction::Continue;
        }
        self.close(info, "ratelimit_close_over_limit")
    }
    fn close(&self, info: &StreamInfo, reason: &'static str) -> NetworkAction {
        self.stats.cx_closed.inc();
        info.connection.local_close.set(Some(reason));
        NetworkAction::Close(Cow::Borrowed(""))
    }
}

/// The entries of a descriptor; none: refused.
fn entries(p: &RateLimitDescriptor, at: &At<'_>, report: &mut Report) -> Option<Entries> {
    let at_entries = at.field("entries");
    if p.entries.is_empty() {
        report.error(&at_entries, "nothing", "give at least one entry");
    }
    for (given, name) in [(p.limit.is_some(), "limit"), (p.hits_addend.is_some(), "hits_addend"), (p.is_negative_hits, "is_negative_hits")]
    {
        if given {
            report.warning(&at.field(name), "a value", "ignored for connections, as in Envoy");
        }
    }
    let compiled = p.entries.iter().enumerate().map(|(i, entry)| {
        let at = at_entries.index(i);
        for (text, name) in [(&entry.key, "key"), (&entry.value, "value")] {
            if text.is_empty() {
                report.error(&at.field(name), "nothing", "give some text");
            }
        }
        Some((entry.key.clone(), Formatter::text(&entry.value, &at.field("value"), report)?))
    });
    // All of them, so that each problem is reported.
    compiled.collect::<Vec<_>>().into_iter().collect()
}

struct Filter {
    settings: Arc<Settings>,
    call: Option<Call<Answer>>,
}

impl NetworkFilter for Filter {
    fn on_new(&mut self, info: &mut StreamInfo, _write: &mut BytesMut) -> NetworkAction {
        if !percent(&self.settings.server.runtime, "ratelimit.tcp_filter_enabled") {
            return NetworkAction::Continue;
        }
        self.call = Some(self.settings.ask(info));
        NetworkAction::Wait
    }
    fn poll_wait(&mut self, cx: &mut Context<'_>, info: &mut StreamInfo) -> Poll<NetworkAction> {
        let Some(call) = &mut self.call else { return Poll::Ready(NetworkAction::Continue) };
        let answer = ready!(call.poll(cx));
        self.call = None;
        Poll::Ready(self.settings.conclude(answer, info))
    }
    fn wants_data(&self) -> bool {
        false
    }
    fn on_close(&mut self, _info: &mut StreamInfo) {
        self.call = None;
    }
}
