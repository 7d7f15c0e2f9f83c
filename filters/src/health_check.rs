//! envoy.filters.http.health_check: answers health checks of load balancers, or passes them on and remembers the answer; marks
//! responses while the operator fails the server. Source: `envoy/extensions/filters/http/health_check/v3/health_check.proto`.

use crate::config::{decode, duration};
use http::{HeaderName, HeaderValue};
use nuncio_core::diag::At;
use nuncio_core::filter::{FilterAction, FilterCx, HttpFilter, Needs};
use nuncio_core::registry::{FactoryCx, HttpFilterFactory, Server};
use nuncio_core::stats::Counter;
use nuncio_core::views::ClusterSlot;
use nuncio_core::{LocalReply, ResponseFlags};
use nuncio_matcher::HeaderMatcher;
use nuncio_proto::envoy::extensions::filters::http::health_check::v3::HealthCheck;
use nuncio_upstream::{Cluster, Health};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

const CHECKED_CLUSTER: HeaderName = HeaderName::from_static("x-envoy-upstream-healthchecked-cluster");
const IMMEDIATE_FAIL: HeaderName = HeaderName::from_static("x-envoy-immediate-health-check-fail");
const DEGRADED: HeaderName = HeaderName::from_static("x-envoy-degraded");

/// Why the health of clusters fails a check.
const NOT_FOUND: &str = "health_check_failed_no_cluster_found";
const EMPTY: &str = "health_check_failed_cluster_empty";
const UNHEALTHY: &str = "health_check_failed_cluster_unhealthy";

/// Factory of `envoy.extensions.filters.http.health_check.v3.HealthCheck`.
#[derive(Debug)]
pub struct Factory;

impl HttpFilterFactory for Factory {
    fn name(&self) -> &'static str {
        "envoy.filters.http.health_check"
    }
    fn types(&self) -> &'static [&'static str] {
        &["envoy.extensions.filters.http.health_check.v3.HealthCheck"]
    }
    fn compile(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<dyn HttpFilter>> {
        let config: HealthCheck = decode(config, at, cx.report)?;
        let Some(pass_through) = config.pass_through_mode else {
            cx.report.error(&at.field("pass_through_mode"), "nothing", "say whether checks are passed on");
            return None;
        };
        let cache_at = at.field("cache_time");
        let cache_time = match &config.cache_time {
            Some(time) => Some(duration(time, &cache_at, cx.report)?).filter(|t| !t.is_zero()),
            None => None,
        };
        if cache_time.is_some() && !pass_through {
            cx.report.error(&cache_at, "a value without pass_through_mode", "remove it: there is no answer to remember");
            return None;
        }
        if !config.cluster_min_healthy_percentages.is_empty() && pass_through {
            let at = at.field("cluster_min_healthy_percentages");
            cx.report.error(&at, "clusters beside pass_through_mode", "remove them: the upstream answers");
            return None;
        }
        let mut clusters = Vec::with_capacity(config.cluster_min_healthy_percentages.len());
        for (name, percent) in &config.cluster_min_healthy_percentages {
            if !(0.0..=100.0).contains(&percent.value) {
                let at = at.field("cluster_min_healthy_percentages");
                cx.report.error(&at.key(name), percent.value.to_string(), "give a percentage from 0 to 100");
                return None;
            }
            clusters.push((cx.server.clusters.slot(name), percent.value));
        }
        let cluster = HeaderValue::from_str(&cx.server.node.cluster).unwrap_or(HeaderValue::from_static(""));
        let scope = cx.scope.scope("health_check.");
        Some(Arc::new(Filter {
            pass_through,
            headers: HeaderMatcher::compile_list(&config.headers, &at.field("headers"), cx.report)?,
            cache_time,
            clusters: clusters.into(),
            cached: Mutex::default(),
            cluster,
            server: cx.server.clone(),
            total: scope.counter("request_total"),
            ok: scope.counter("ok"),
            failed: scope.counter("failed"),
            from_cache: scope.counter("cached_response"),
            degraded: scope.counter("degraded"),
            not_found: scope.counter("failed_cluster_not_found"),
            empty: scope.counter("failed_cluster_empty"),
            unhealthy: scope.counter("failed_cluster_unhealthy"),
        }))
    }
}

#[derive(Debug)]
struct Filter {
    pass_through: bool,
    headers: Box<[HeaderMatcher]>,
    cache_time: Option<Duration>,
    /// Clusters of which so many percent of the hosts must be available.
    clusters: Box<[(Arc<ClusterSlot>, f64)]>,
    /// The last answer and when it came. Locked by health checks only.
    cached: Mutex<Option<Answer>>,
    cluster: HeaderValue,
    server: Arc<Server>,
    total: Counter,
    ok: Counter,
    failed: Counter,
    from_cache: Counter,
    degraded: Counter,
    not_found: Counter,
    empty: Counter,
    unhealthy: Counter,
}

#[derive(Clone, Copy, Debug)]
struct Answer {
    at: Instant,
    status: u16,
    degraded: bool,
}

/// Why fewer than `percent` of the hosts of a cluster are available; none if enough are.
fn unavailable(slot: &ClusterSlot, percent: f64) -> Option<&'static str> {
    let Some(cluster) = slot.get() else { return Some(NOT_FOUND) };
    let hosts = cluster.as_any().downcast_ref::<Cluster>().map(Cluster::hosts).unwrap_or_default();
    if hosts.is_empty() {
        // Envoy counts whole percents here.
        return (percent >= 1.0).then_some(EMPTY);
    }
    let available = hosts.iter().filter(|h| h.state().health() != Health::Unhealthy).count();
    let too_few = (100 * available) as f64 + 1e-6 < hosts.len() as f64 * percent.trunc();
    too_few.then_some(UNHEALTHY)
}

/// State: this request is a health check; whether this filter answered it.
struct Check {
    answered: bool,
}

impl HttpFilter for Filter {
    fn needs(&self) -> Needs {
        Needs::REQUEST_HEADERS.and(Needs::RESPONSE_HEADERS)
    }
    fn on_request<'a>(&'a self, mut cx: FilterCx<'a>) -> FilterAction<'a> {
        if !HeaderMatcher::all_match(&self.headers, &cx.ex.request) {
            return FilterAction::Continue;
        }
        self.total.inc();
        cx.ex.info.health_check = true;
        cx.ex.info.sampled = false;
        let answer = if self.server.runtime.health_failed() {
            Some((503, false, "health_check_failed"))
        } else if !self.pass_through && !self.clusters.is_empty() {
            Some(match self.clusters.iter().find_map(|(slot, percent)| unavailable(slot, *percent)) {
                None => (200, false, "health_check_ok_cluster_healthy"),
                Some(why) => {
                    let counter = match why {
                        NOT_FOUND => &self.not_found,
                        EMPTY => &self.empty,
                        _ => &self.unhealthy,
                    };
                    counter.inc();
                    (503, false, why)
                }
            })
        } else if !self.pass_through {
            Some((200, false, "health_check_ok"))
        } else {
            self.fresh().map(|a| {
                self.from_cache.inc();
                (a.status, a.degraded, "health_check_cached")
            })
        };
        cx.set_state(Check { answered: answer.is_some() });
        let Some((status, degraded, details)) = answer else { return FilterAction::Continue };
        let mut reply = LocalReply::new(status, "", details);
        if (200..300).contains(&status) {
            self.ok.inc();
        } else {
            self.failed.inc();
            reply = reply.flag(ResponseFlags::FAILED_LOCAL_HEALTH_CHECK);
        }
        if degraded {
            self.degraded.inc();
            reply.headers.insert(DEGRADED, HeaderValue::from_static(""));
        }
        FilterAction::Respond(Box::new(reply))
    }
    fn on_response(&self, mut cx: FilterCx<'_>) {
        let check = cx.state::<Check>().map(|c| c.answered);
        let Some(response) = &mut cx.ex.response else { return };
        match check {
            Some(answered) => {
                if self.cache_time.is_some() && !answered {
                    let answer =
                        Answer { at: Instant::now(), status: response.status.as_u16(), degraded: response.headers.contains(&DEGRADED) };
                    *self.cached.lock().unwrap_or_else(PoisonError::into_inner) = Some(answer);
                }
                if !self.cluster.is_empty() {
                    response.headers.insert(CHECKED_CLUSTER, self.cluster.clone());
                }
            }
            None if self.server.runtime.health_failed() => response.headers.insert(IMMEDIATE_FAIL, HeaderValue::from_static("true")),
            None => {}
        }
    }
}

impl Filter {
    /// The last answer, if it is not too old.
    fn fresh(&self) -> Option<Answer> {
        let time = self.cache_time?;
        let cached = *self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        cached.filter(|a| a.at.elapsed() < time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{Method, StatusCode};
    use nuncio_core::test_kit as kit;
    use nuncio_core::{Body, Exchange, RequestHead, ResponseHead};
    use nuncio_proto::envoy::config::route::v3::{HeaderMatcher as Proto, header_matcher::HeaderMatchSpecifier};
    use nuncio_proto::envoy::r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern};

    fn config(pass_through: bool, cache_ms: i32) -> HealthCheck {
        let path = StringMatcher { match_pattern: Some(MatchPattern::Exact("/healthz".into())), ignore_case: false };
        let matcher =
            Proto { name: ":path".into(), header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(path)), ..Default::default() };
        HealthCheck {
            pass_through_mode: Some(pass_through),
            headers: vec![matcher],
            cache_time: (cache_ms > 0).then_some(nuncio_proto::Duration { seconds: 0, nanos: cache_ms * 1_000_000 }),
            ..Default::default()
        }
    }
    fn exchange(path: &'static str) -> Exchange {
        kit::exchange(RequestHead::new(Method::GET, "shop", path))
    }

    #[tokio::test]
    async fn answers_itself() {
        let server = kit::server(Default::default());
        let filter = kit::compile(&Factory, &config(false, 0), &server).unwrap();
        let mut ex = exchange("/healthz");
        assert_eq!(kit::request(&*filter, "h", &mut ex).await.unwrap().status, 200);
        assert!(ex.info.health_check);
        assert!(kit::request(&*filter, "h", &mut exchange("/other")).await.is_none());
        server.runtime.set_health_failed(true);
        let reply = kit::request(&*filter, "h", &mut exchange("/healthz")).await.unwrap();
        assert!(reply.status == 503 && reply.flags.has(ResponseFlags::FAILED_LOCAL_HEALTH_CHECK));
        let mut ex = exchange("/other");
        kit::request(&*filter, "h", &mut ex).await;
        kit::respond(&*filter, "h", &mut ex, ResponseHead::new(StatusCode::OK), Body::Empty);
        assert!(ex.response.unwrap().headers.contains(&IMMEDIATE_FAIL));
    }

    #[tokio::test(start_paused = true)]
    async fn remembers_what_the_upstream_said() {
        let filter = kit::compile(&Factory, &config(true, 100), &kit::server(Default::default())).unwrap();
        let mut ex = exchange("/healthz");
        assert!(kit::request(&*filter, "h", &mut ex).await.is_none());
        kit::respond(&*filter, "h", &mut ex, ResponseHead::new(StatusCode::INTERNAL_SERVER_ERROR), Body::Empty);
        // This node has no cluster to tell of.
        assert!(!ex.response.unwrap().headers.contains(&CHECKED_CLUSTER));
        let reply = kit::request(&*filter, "h", &mut exchange("/healthz")).await.unwrap();
        assert_eq!((reply.status, reply.details.as_ref()), (500, "health_check_cached"));
        tokio::time::advance(Duration::from_millis(101)).await;
        assert!(kit::request(&*filter, "h", &mut exchange("/healthz")).await.is_none());
    }

    #[test]
    fn refused() {
        let server = kit::server(Default::default());
        let error = |c: &HealthCheck| kit::compile(&Factory, c, &server).unwrap_err();
        assert!(error(&config(false, 5)).contains("cache_time"));
        assert!(error(&HealthCheck { pass_through_mode: None, ..config(true, 0) }).contains("pass_through_mode"));
        let clusters = |percent| [("c".to_string(), nuncio_proto::envoy::r#type::v3::Percent { value: percent })].into();
        let beside = HealthCheck { cluster_min_healthy_percentages: clusters(1.0), ..config(true, 0) };
        assert!(error(&beside).contains("pass_through_mode"));
        let wrong = HealthCheck { cluster_min_healthy_percentages: clusters(101.0), ..config(false, 0) };
        assert!(error(&wrong).contains("cluster_min_healthy_percentages[\"c\"]: 101"));
    }

    #[tokio::test]
    async fn clusters_that_are_not_there_are_not_healthy() {
        let server = kit::server(Default::default());
        let clusters = [("c".to_string(), nuncio_proto::envoy::r#type::v3::Percent { value: 1.0 })].into();
        let config = HealthCheck { cluster_min_healthy_percentages: clusters, ..config(false, 0) };
        let filter = kit::compile(&Factory, &config, &server).unwrap();
        let reply = kit::request(&*filter, "h", &mut exchange("/healthz")).await.unwrap();
        assert_eq!((reply.status, reply.details.as_ref()), (503, "health_check_failed_no_cluster_found"));
    }
}
