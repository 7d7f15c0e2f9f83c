//! What a `ConcurrencyQueue` says, compiled on the control thread, and the queues of its scopes, made by workers when the first
//! request of a scope comes.

use super::queue::{Limits, Queue, Stats};
use crate::config::duration;
use http::HeaderName;
use nuncio_core::Exchange;
use nuncio_core::diag::At;
use nuncio_core::registry::FactoryCx;
use nuncio_core::stats::Histogram;
use nuncio_proto::nuncio::filters::http::concurrency_queue::v1::concurrency_queue::Scope as Sharing;
use nuncio_proto::nuncio::filters::http::concurrency_queue::v1::{ConcurrencyQueue, Consumer as ProtoConsumer, consumer::Source};
use prost_types::value::Kind;
use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

const DEFAULT_QUEUE: u32 = 10_000;
const DEFAULT_WAIT: Duration = Duration::from_secs(5);
const MAX_WAIT: Duration = Duration::from_secs(3600);
const DEFAULT_SCOPES: u32 = 10_000;
/// Bytes of a scope's name: scopes are remembered, and their names may come from clients.
const MAX_NAME: usize = 256;

/// Compiled configuration with its running queues.
#[derive(Debug)]
pub struct Config {
    sharing: Sharing,
    limits: Limits,
    pub max_wait: Duration,
    consumer: Option<Consumer>,
    pub status: u16,
    max_scopes: usize,
    stats: Arc<Stats>,
    pub wait_ms: Histogram,
    /// The queue of the whole configuration, and of what has no scope of its own.
    common: Arc<Queue>,
    scopes: RwLock<HashMap<Box<str>, Arc<Queue>>>,
}

/// Where the consumer's name is.
#[derive(Debug)]
enum Consumer {
    Header(HeaderName),
    Metadata { namespace: String, key: String },
    RemoteAddress,
}

impl Consumer {
    fn compile(p: &ProtoConsumer, at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Self> {
        let or = |given: &str, default: &str| if given.is_empty() { default.to_string() } else { given.to_string() };
        match &p.source {
            Some(Source::Header(name)) => match HeaderName::try_from(name.as_str()) {
                Ok(name) => Some(Self::Header(name)),
                Err(_) => {
                    cx.report.error(&at.field("header"), name.clone(), "give the name of a header");
                    None
                }
            },
            Some(Source::Metadata(m)) => Some(Self::Metadata { namespace: or(&m.namespace, "nuncio.consumer"), key: or(&m.key, "name") }),
            Some(Source::RemoteAddress(true)) => Some(Self::RemoteAddress),
            Some(Source::RemoteAddress(false)) | None => {
                cx.report.error(at, "no source", "give header, metadata, or remote_address: true");
                None
            }
        }
    }
    fn name<'a>(&self, ex: &'a Exchange) -> Option<Cow<'a, str>> {
        match self {
            Self::Header(name) => ex.request.headers.get_str(name).map(Cow::Borrowed),
            Self::Metadata { namespace, key } => match &ex.info.metadata(namespace)?.fields.get(key)?.kind {
                Some(Kind::StringValue(name)) => Some(Cow::Borrowed(name)),
                _ => None,
            },
            Self::RemoteAddress => ex.info.connection.remote.socket().map(|a| Cow::Owned(a.ip().to_string())),
        }
    }
}

impl Config {
    pub fn compile(p: &ConcurrencyQueue, at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Self> {
        let errors = cx.report.errors();
        let need = |ok: bool, field: &str, value: String, remedy: &str, cx: &mut FactoryCx<'_>| {
            if !ok {
                cx.report.error(&at.field(field), value, remedy);
            }
        };
        need(!p.disabled, "disabled", "true".into(), "disable the filter on routes only, or leave it out", cx);
        need(!p.stat_prefix.is_empty(), "stat_prefix", "an empty prefix".into(), "name the stats of this queue", cx);
        need(p.max_concurrency > 0, "max_concurrency", "0".into(), "let at least 1 request be in progress", cx);
        let max_wait = match &p.max_wait {
            Some(wait) => duration(wait, &at.field("max_wait"), cx.report)?,
            None => DEFAULT_WAIT,
        };
        need(max_wait <= MAX_WAIT, "max_wait", format!("{max_wait:?}"), "wait for an hour at most", cx);
        let status = p.rejected_status.as_ref().map_or(503, |s| s.code);
        need((400..600).contains(&status), "rejected_status", status.to_string(), "give a status from 400 to 599", cx);
        let max_scopes = p.max_scopes.unwrap_or(DEFAULT_SCOPES);
        need(max_scopes > 0, "max_scopes", "0".into(), "tell at least 1 scope apart", cx);
        let consumer = match &p.consumer {
            Some(consumer) => Some(Consumer::compile(consumer, &at.field("consumer"), cx)?),
            None => None,
        };
        let Ok(sharing) = Sharing::try_from(p.scope) else {
            cx.report.error(&at.field("scope"), p.scope.to_string(), "use CONFIGURATION, CLUSTER or CONSUMER");
            return None;
        };
        let named = sharing != Sharing::Consumer || consumer.is_some();
        need(named, "scope", "CONSUMER".into(), "say with `consumer` where the name of the consumer is", cx);
        if cx.report.errors() != errors {
            return None;
        }
        let queue = p.max_queue.unwrap_or(DEFAULT_QUEUE);
        let limits = Limits { concurrency: p.max_concurrency, queue, per_consumer: p.max_queue_per_consumer.unwrap_or(queue).min(queue) };
        let scope = cx.server.stats.root().scope(&format!("{}.concurrency_queue.", p.stat_prefix));
        let stats = Arc::new(Stats::new(&scope));
        Some(Self {
            sharing,
            limits,
            max_wait,
            consumer,
            status: u16::try_from(status).unwrap_or(503),
            max_scopes: max_scopes as usize,
            common: Queue::new(limits, stats.clone()),
            stats,
            wait_ms: scope.histogram("wait_ms"),
            scopes: RwLock::default(),
        })
    }
    /// Who asks; empty if that is not known.
    pub fn consumer<'a>(&self, ex: &'a Exchange) -> Cow<'a, str> {
        self.consumer.as_ref().and_then(|c| c.name(ex)).unwrap_or_default()
    }
    /// The queue that a request belongs to.
    pub fn queue(&self, ex: &Exchange, consumer: &str) -> Arc<Queue> {
        match self.sharing {
            Sharing::Configuration => self.common.clone(),
            Sharing::Consumer => self.scope(consumer),
            Sharing::Cluster => {
                let cluster = ex.route.as_ref().and_then(|r| r.cluster_name().cloned());
                cluster.map_or_else(|| self.common.clone(), |c| self.scope(&c))
            }
        }
    }
    /// The queue of a scope by name. Names may come with requests: there are `max_scopes` at most.
    fn scope(&self, name: &str) -> Arc<Queue> {
        if name.is_empty() || name.len() > MAX_NAME {
            return self.common.clone();
        }
        if let Some(queue) = self.scopes.read().unwrap_or_else(PoisonError::into_inner).get(name) {
            return queue.clone();
        }
        let mut scopes = self.scopes.write().unwrap_or_else(PoisonError::into_inner);
        if scopes.len() >= self.max_scopes && !scopes.contains_key(name) {
            // Those that nothing and nobody refers to can be made again.
            scopes.retain(|_, queue| !queue.is_idle() || Arc::strong_count(queue) > 1);
            if scopes.len() >= self.max_scopes {
                return self.common.clone();
            }
        }
        scopes.entry(name.into()).or_insert_with(|| Queue::new(self.limits, self.stats.clone())).clone()
    }
}
