//! Keys that a server hands out. They are fetched when the first token needs them, or at once and again for ever (`async_fetch`); all
//! workers share them. They are fetched again shortly before they are out of date, while requests go on with the old ones; and if the
//! server does not answer, the old ones stay in use. Compiled on the control thread, fetched and read on the workers.
//! Source: `RemoteJwks`, Envoy's `jwt_authn/jwks_async_fetcher.h`.

use super::Fetches;
use super::jwks::{self, Jwks};
use crate::config::duration;
use crate::shared::Shared;
use arc_swap::{ArcSwapOption, Guard};
use http::Method;
use nuncio_callout::{FetchOptions, HttpTarget, compile_retry, fetch};
use nuncio_core::background;
use nuncio_core::diag::At;
use nuncio_core::registry::FactoryCx;
use nuncio_proto::envoy::extensions::filters::http::jwt_authn::v3::RemoteJwks;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

const CACHE_DURATION: Duration = Duration::from_secs(600);
/// How long before they are out of date keys are fetched again.
const AHEAD: Duration = Duration::from_secs(5);
const AFTER_FAILURE: Duration = Duration::from_secs(1);

/// A compiled `RemoteJwks` and what was fetched.
#[derive(Debug)]
pub struct Remote {
    provider: Box<str>,
    target: HttpTarget,
    options: FetchOptions,
    cache_duration: Duration,
    after_failure: Duration,
    is_async: bool,
    state: Arc<State>,
    stats: Fetches,
}

/// What was fetched from one place. Whoever fetches from there shares it, from one update of the configuration to the next.
#[derive(Debug)]
struct State {
    current: ArcSwapOption<Jwks>,
    started: Instant,
    /// Milliseconds since `started`: until then the keys need no look at the server. 0 before the first fetch.
    fresh_until: AtomicU64,
    /// When somebody should fetch again, though the keys are still good.
    refresh_at: AtomicU64,
    /// Fetches that ended. Who waited while one ended takes its result and makes none of its own.
    ended: AtomicU64,
    /// Held by whoever fetches; one at a time, however many workers and requests want it.
    turn: Mutex<()>,
}

static STATES: Shared<State> = Shared::new();

impl State {
    fn new() -> Self {
        Self {
            current: ArcSwapOption::empty(),
            started: Instant::now(),
            fresh_until: AtomicU64::new(0),
            refresh_at: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            turn: Mutex::default(),
        }
    }
    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
    fn after(&self, time: Duration) -> u64 {
        self.now().saturating_add(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)).max(1)
    }
    /// Time until keys that are there should be fetched again; none if it is time.
    fn not_due(&self) -> Option<Duration> {
        let left = self.refresh_at.load(Ordering::Relaxed).checked_sub(self.now()).filter(|left| *left > 0)?;
        self.current.load().is_some().then(|| Duration::from_millis(left))
    }
}

impl Remote {
    /// Compiles; with `async_fetch` the first fetch begins at once. `None` means refused.
    pub fn compile(provider: &str, remote: &RemoteJwks, stats: Fetches, at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<Self>> {
        let Some(uri) = &remote.http_uri else {
            cx.report.error(&at.field("http_uri"), "nothing", "say where the keys are");
            return None;
        };
        let target = HttpTarget::compile(uri, cx.server, &at.field("http_uri"), cx.report)?;
        let retry = compile_retry(remote.retry_policy.as_ref(), None, cx.server, &at.field("retry_policy"), cx.report)?;
        let mut time = |value: &Option<_>, default, at: &At<'_>| match value {
            Some(value) => duration(value, at, cx.report),
            None => Some(default),
        };
        let cache_duration = time(&remote.cache_duration, CACHE_DURATION, &at.field("cache_duration"))?;
        let fetching = at.field("async_fetch");
        let after = remote.async_fetch.as_ref().and_then(|a| a.failed_refetch_duration);
        let after_failure = time(&after, AFTER_FAILURE, &fetching.field("failed_refetch_duration"))?;
        if cache_duration < Duration::from_millis(1) || cache_duration.as_secs() >= 9_000_000_000 {
            cx.report.error(&at.field("cache_duration"), format!("{cache_duration:?}"), "give 1 ms or more");
            return None;
        }
        let place = format!("{} {} {} {}", target.slot.name, target.scheme, target.authority, target.path);
        let compiled = Arc::new(Self {
            provider: provider.into(),
            options: FetchOptions { timeout: Some(target.timeout), max_body: jwks::MAX_BYTES, retry, ..FetchOptions::default() },
            target,
            cache_duration,
            after_failure: after_failure.max(Duration::from_millis(1)),
            is_async: remote.async_fetch.is_some(),
            state: STATES.get(place, State::new),
            stats,
        });
        if compiled.is_async {
            let weak = Arc::downgrade(&compiled);
            background::spawn(move || {
                tokio::task::spawn_local(async move {
                    while let Some(remote) = weak.upgrade() {
                        let wait = match remote.state.not_due() {
                            Some(left) => left.min(remote.ahead()),
                            None if remote.attempt().await => remote.ahead(),
                            None => remote.after_failure,
                        };
                        drop(remote);
                        tokio::time::sleep(wait).await;
                    }
                });
            });
        }
        Some(compiled)
    }
    /// The keys that were fetched last.
    pub fn load(&self) -> Guard<Option<Arc<Jwks>>> {
        self.state.current.load()
    }
    /// Time from a fetch to the next one.
    fn ahead(&self) -> Duration {
        if self.cache_duration > AHEAD { self.cache_duration - AHEAD } else { self.cache_duration }
    }
    /// Whether the keys can be used without a fetch before. If they are about to be out of date, one is started beside it.
    pub fn is_fresh(self: &Arc<Self>) -> bool {
        if self.is_async {
            return self.state.current.load().is_some();
        }
        let now = self.state.now();
        if now >= self.state.fresh_until.load(Ordering::Relaxed) {
            return false;
        }
        let due = self.state.refresh_at.load(Ordering::Relaxed);
        // Whoever moves the time on is the one that fetches.
        let mine = || self.state.refresh_at.compare_exchange(due, u64::MAX, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if now >= due && mine() {
            let remote = self.clone();
            tokio::task::spawn_local(async move { remote.attempt().await });
        }
        true
    }
    /// Fetches, or waits for a fetch that is under way. Whether there are keys then, be they old ones.
    pub async fn fetch(self: &Arc<Self>) -> bool {
        let good = self.attempt().await;
        if !good && self.state.current.load().is_some() {
            self.stats.stale.inc();
            return true;
        }
        good
    }
    /// One fetch; whether it gave keys.
    async fn attempt(&self) -> bool {
        let before = self.state.ended.load(Ordering::Acquire);
        let _turn = self.state.turn.lock().await;
        let ended = self.state.ended.load(Ordering::Acquire);
        if ended != before {
            return ended & 1 == 1;
        }
        let mut request = self.target.request(Method::GET);
        // Envoy's; some servers send other keys to what they do not take for a browser.
        request.headers.insert(http::header::USER_AGENT, http::HeaderValue::from_static("Go-browser"));
        let result = fetch(&self.target.slot, request, Default::default(), &self.options).await;
        let keys = match result {
            Ok((head, body)) if head.status == http::StatusCode::OK => Jwks::parse(&body),
            Ok((head, _)) => Err(format!("the server answers {}", head.status.as_u16())),
            Err(error) => Err(error.to_string()),
        };
        let good = match keys {
            Ok(keys) => {
                self.stats.success.inc();
                self.state.current.store(Some(Arc::new(keys)));
                self.state.fresh_until.store(self.state.after(self.cache_duration), Ordering::Relaxed);
                self.state.refresh_at.store(self.state.after(self.ahead()), Ordering::Relaxed);
                true
            }
            Err(why) => {
                self.stats.failed.inc();
                let kept = self.state.current.load().is_some();
                let then = if kept { "the keys of the last fetch stay in use" } else { "there are no keys" };
                log::warn!(
                    "jwt_authn: keys of provider {} cannot be fetched from {}{}: {why}; {then}",
                    self.provider,
                    self.target.authority,
                    self.target.path
                );
                if kept {
                    let next = self.state.after(self.after_failure);
                    self.state.fresh_until.fetch_max(next, Ordering::Relaxed);
                    self.state.refresh_at.store(next, Ordering::Relaxed);
                }
                false
            }
        };
        // The lowest bit says how it ended.
        self.state.ended.store(((ended >> 1) + 1) << 1 | u64::from(good), Ordering::Release);
        good
    }
}
