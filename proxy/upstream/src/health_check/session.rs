//! Who is checked when, and what findings do to hosts: one task per cluster, one per host. Control thread.
//! Source: Envoy's `health_checker_base_impl.cc`.

use super::HealthCheckSpec;
use super::probe::{Finding, Kept, probe};
use crate::cluster::Cluster;
use crate::host::{HealthFlags, Host};
use crate::manager::ClusterManager;
use crate::outlier;
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// How often a cluster without news is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// What is remembered of one host.
struct Session {
    first: bool,
    healthy: u32,
    unhealthy: u32,
    kept: Kept,
}

struct Running {
    host: Arc<Host>,
    session: Rc<RefCell<Session>>,
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Checks the hosts of `cluster` for as long as it lives.
pub(crate) async fn run(cluster: Weak<Cluster>, manager: Weak<ClusterManager>) {
    let mut running: HashMap<u64, Running> = HashMap::new();
    let Some(news) = cluster.upgrade().map(|c| c.news()) else { return };
    loop {
        {
            let Some(this) = cluster.upgrade().filter(|c| !c.is_retired()) else { return };
            let hosts = this.hosts();
            let disabled = |h: &Host| h.health_check.as_ref().is_some_and(|c| c.disabled);
            for host in hosts.iter().filter(|h| disabled(h)) {
                let cleared = host.clear_flag(HealthFlags::FAILED_ACTIVE_HC | HealthFlags::PENDING_ACTIVE_HC);
                if cleared {
                    this.health_changed(host, true);
                }
            }
            let wanted: HashMap<u64, &Arc<Host>> = hosts.iter().filter(|h| !disabled(h)).map(|h| (h.id, h)).collect();
            running.retain(|id, _| wanted.contains_key(id));
            for (id, host) in wanted {
                let known = running.get(&id);
                if known.is_some_and(|r| Arc::ptr_eq(&r.host, host)) {
                    continue;
                }
                let session = known
                    .map(|r| r.session.clone())
                    .unwrap_or_else(|| Rc::new(RefCell::new(Session { first: true, healthy: 0, unhealthy: 0, kept: Kept::default() })));
                let task = tokio::task::spawn_local(check_host(cluster.clone(), manager.clone(), host.clone(), session.clone()));
                running.insert(id, Running { host: host.clone(), session, task });
            }
            settle(&this, &manager);
        }
        tokio::select! {
            () = news.notified() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// The cluster is warm once every host was checked once.
fn settle(cluster: &Arc<Cluster>, manager: &Weak<ClusterManager>) {
    let waiting = cluster.hosts().iter().any(|h| h.flags().has(HealthFlags::PENDING_ACTIVE_HC));
    if !waiting
        && cluster.has_endpoints()
        && cluster.checked()
        && let Some(manager) = manager.upgrade()
    {
        manager.settle_one(cluster);
    }
}

async fn check_host(cluster: Weak<Cluster>, manager: Weak<ClusterManager>, host: Arc<Host>, session: Rc<RefCell<Session>>) {
    let Some(jitter) = cluster.upgrade().and_then(|c| Some(c.spec.health_checks.first()?.initial_jitter)) else { return };
    if !jitter.is_zero() && session.borrow().first {
        tokio::time::sleep(jitter.mul_f64(fastrand::f64())).await;
    }
    loop {
        let pause = {
            let Some(this) = cluster.upgrade().filter(|c| !c.is_retired()) else { return };
            let Some(spec) = this.spec.health_checks.first() else { return };
            let mut kept = std::mem::take(&mut session.borrow_mut().kept);
            count(&this, "attempt");
            let finding = Box::pin(probe(&this, spec, &host, &mut kept)).await;
            let mut session = session.borrow_mut();
            session.kept = kept;
            let changed = apply(&this, spec, &host, &mut session, finding);
            drop(session);
            settle(&this, &manager);
            interval(&this, spec, &host, changed)
        };
        tokio::time::sleep(pause).await;
    }
}

fn count(cluster: &Cluster, name: &str) {
    cluster.endpoint_stats().counter(&format!("health_check.{name}")).inc();
}

/// Puts a finding into the host's flags; whether the host changed between healthy and unhealthy.
fn apply(cluster: &Cluster, spec: &HealthCheckSpec, host: &Host, session: &mut Session, finding: Finding) -> bool {
    let before = host.flags();
    let failed = before.has(HealthFlags::FAILED_ACTIVE_HC);
    let first = std::mem::replace(&mut session.first, false);
    match finding {
        Finding::Healthy { degraded } => {
            count(cluster, "success");
            session.unhealthy = 0;
            session.healthy = session.healthy.saturating_add(1);
            host.clear_flag(HealthFlags::ACTIVE_HC_TIMEOUT | HealthFlags::EXCLUDED_VIA_IMMEDIATE_HC_FAIL);
            if degraded {
                count(cluster, "degraded");
                host.set_flag(HealthFlags::DEGRADED_ACTIVE_HC);
            } else {
                host.clear_flag(HealthFlags::DEGRADED_ACTIVE_HC);
            }
            // The very first check decides alone, which makes starting faster.
            if failed && (first || session.healthy >= spec.healthy_threshold) {
                host.clear_flag(HealthFlags::FAILED_ACTIVE_HC);
                cluster.passed_health_check(host, Instant::now());
            }
            if let Some(outlier) = &cluster.spec.outlier {
                outlier::health_check_passed(cluster, outlier, host);
            }
        }
        Finding::Unhealthy { immediate, retriable } => {
            count(cluster, "failure");
            session.healthy = 0;
            session.unhealthy = session.unhealthy.saturating_add(1);
            if immediate {
                host.set_flag(HealthFlags::EXCLUDED_VIA_IMMEDIATE_HC_FAIL);
            }
            if !failed && (immediate || !retriable || session.unhealthy >= spec.unhealthy_threshold) {
                host.set_flag(HealthFlags::FAILED_ACTIVE_HC);
            }
        }
        Finding::Network { timeout } => {
            count(cluster, "failure");
            count(cluster, "network_failure");
            session.healthy = 0;
            session.unhealthy = session.unhealthy.saturating_add(1);
            if timeout {
                host.set_flag(HealthFlags::ACTIVE_HC_TIMEOUT);
            }
            if !failed && session.unhealthy >= spec.unhealthy_threshold {
                host.set_flag(HealthFlags::FAILED_ACTIVE_HC);
            }
        }
    }
    host.clear_flag(HealthFlags::PENDING_ACTIVE_HC);
    let after = host.flags();
    let now_failed = after.has(HealthFlags::FAILED_ACTIVE_HC);
    if before != after {
        cluster.health_changed(host, !now_failed);
        let healthy = cluster.count_hosts(|h| !h.flags().has(HealthFlags::FAILED_ACTIVE_HC)).0;
        cluster.endpoint_stats().gauge("health_check.healthy").set(i64::try_from(healthy).unwrap_or(i64::MAX));
    }
    if now_failed {
        cluster.drop_pending();
    }
    failed != now_failed
}

/// Time until the next check.
fn interval(cluster: &Cluster, spec: &HealthCheckSpec, host: &Host, changed: bool) -> Duration {
    let healthy = !host.flags().has(HealthFlags::FAILED_ACTIVE_HC);
    let base = match (cluster.had_traffic(), healthy, changed) {
        (false, true, _) => spec.no_traffic_healthy_interval,
        (false, false, _) => spec.no_traffic_interval,
        (true, true, true) => spec.healthy_edge_interval,
        (true, true, false) => spec.interval,
        (true, false, true) => spec.unhealthy_edge_interval,
        (true, false, false) => spec.unhealthy_interval,
    };
    let mut jitter = spec.interval_jitter.mul_f64(fastrand::f64());
    if spec.jitter_percent > 0 {
        jitter += base.mul_f64(f64::from(spec.jitter_percent) / 100.0 * fastrand::f64());
    }
    (base + jitter).max(Duration::from_millis(1))
}
