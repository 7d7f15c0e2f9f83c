//! Who is checked when, and what findings do to hosts: one task per cluster, one per host. Control thread.
//! Source: Envoy's `health_checker_base_impl.cc`.

use super::HealthCheckSpec;
use super::events::{Event, Failure};
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
                host.set_unchecked(false);
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
    let waiting = cluster.hosts().iter().any(|h| h.is_unchecked());
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
            let transition = apply(&this, spec, &host, &mut session, finding);
            drop(session);
            settle(&this, &manager);
            interval(&this, spec, matches!(finding, Finding::Healthy { .. }), transition)
        };
        tokio::time::sleep(pause).await;
    }
}

fn count(cluster: &Cluster, name: &str) {
    cluster.endpoint_stats().counter(&format!("health_check.{name}")).inc();
}

/// What a finding changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transition {
    Unchanged,
    /// On the way, not there yet: a threshold.
    Pending,
    Changed,
}

const SEEN: u32 = HealthFlags::FAILED_ACTIVE_HC | HealthFlags::DEGRADED_ACTIVE_HC | HealthFlags::EXCLUDED;

/// Puts a finding into the host's flags. Source: Envoy's `handleSuccess` and `setUnhealthy`.
fn apply(cluster: &Cluster, spec: &HealthCheckSpec, host: &Host, session: &mut Session, finding: Finding) -> Transition {
    let before = host.flags();
    let first = std::mem::replace(&mut session.first, false);
    host.set_unchecked(false);
    let transition = match finding {
        Finding::Healthy { degraded } => passed(cluster, spec, host, session, (first, degraded)),
        Finding::Unhealthy { immediate, retriable, status } => {
            if immediate {
                host.set_flag(HealthFlags::EXCLUDED_VIA_IMMEDIATE_HC_FAIL);
            }
            failed(cluster, spec, host, session, &Failed { failure: Failure::Active, at_once: !retriable, status, first })
        }
        Finding::Network { timeout } => {
            count(cluster, "network_failure");
            let failure = if timeout { Failure::NetworkTimeout } else { Failure::Network };
            failed(cluster, spec, host, session, &Failed { failure, at_once: false, status: 0, first })
        }
    };
    let after = host.flags();
    if before.0 & SEEN != after.0 & SEEN {
        let healthy = !after.has(HealthFlags::FAILED_ACTIVE_HC);
        cluster.health_changed(host, healthy);
        let gauge = |name: &str, flag: u32, wanted: bool| {
            let n = cluster.count_hosts(|h| h.flags().has(flag) == wanted).0;
            cluster.endpoint_stats().gauge(&format!("health_check.{name}")).set(i64::try_from(n).unwrap_or(i64::MAX));
        };
        gauge("healthy", HealthFlags::FAILED_ACTIVE_HC, false);
        if (before.0 | after.0) & HealthFlags::DEGRADED_ACTIVE_HC != 0 {
            gauge("degraded", HealthFlags::DEGRADED_ACTIVE_HC, true);
        }
    }
    if after.has(HealthFlags::FAILED_ACTIVE_HC) {
        cluster.drop_pending();
    } else if matches!(finding, Finding::Healthy { .. }) {
        outlier::health_check_passed(cluster, host);
    }
    transition
}

fn passed(cluster: &Cluster, spec: &HealthCheckSpec, host: &Host, session: &mut Session, (first, degraded): (bool, bool)) -> Transition {
    count(cluster, "success");
    session.unhealthy = 0;
    let mut transition = Transition::Unchanged;
    if host.flags().has(HealthFlags::FAILED_ACTIVE_HC) {
        // A worker made it unhealthy since: the count begins anew.
        if session.healthy >= spec.healthy_threshold {
            session.healthy = 0;
        }
        session.healthy += 1;
        // The very first check decides alone, which makes starting faster.
        if first || session.healthy >= spec.healthy_threshold {
            host.clear_flag(HealthFlags::ACTIVE_HC_TIMEOUT | HealthFlags::EXCLUDED_VIA_IMMEDIATE_HC_FAIL | HealthFlags::FAILED_ACTIVE_HC);
            spec.events.log(cluster, spec, host, Event::Add { first });
            transition = Transition::Changed;
        } else {
            transition = Transition::Pending;
        }
        cluster.passed_health_check(host, Instant::now());
    }
    if transition != Transition::Changed && spec.events.successes {
        spec.events.log(cluster, spec, host, Event::Success);
    }
    if host.clear_flag(HealthFlags::PENDING_ACTIVE_HC) {
        transition = Transition::Changed;
    }
    let changed = if degraded { host.set_flag(HealthFlags::DEGRADED_ACTIVE_HC) } else { host.clear_flag(HealthFlags::DEGRADED_ACTIVE_HC) };
    if changed {
        spec.events.log(cluster, spec, host, if degraded { Event::Degraded } else { Event::NoLongerDegraded });
        if transition == Transition::Unchanged {
            transition = Transition::Changed;
        }
    }
    transition
}

/// A failed check.
struct Failed {
    failure: Failure,
    /// Whatever the threshold.
    at_once: bool,
    status: u16,
    first: bool,
}

fn failed(cluster: &Cluster, spec: &HealthCheckSpec, host: &Host, session: &mut Session, how: &Failed) -> Transition {
    session.healthy = 0;
    let mut transition = Transition::Unchanged;
    if !host.flags().has(HealthFlags::FAILED_ACTIVE_HC) {
        session.unhealthy = session.unhealthy.saturating_add(u32::from(!how.at_once));
        if how.at_once || session.unhealthy >= spec.unhealthy_threshold {
            host.set_flag(HealthFlags::FAILED_ACTIVE_HC);
            spec.events.log(cluster, spec, host, Event::Eject { failure: how.failure, status: how.status });
            transition = Transition::Changed;
        } else {
            transition = Transition::Pending;
        }
    }
    // A host that keeps failing may do so for one reason or the other.
    if how.failure == Failure::NetworkTimeout && host.flags().has(HealthFlags::FAILED_ACTIVE_HC) {
        host.set_flag(HealthFlags::ACTIVE_HC_TIMEOUT);
    } else {
        host.clear_flag(HealthFlags::ACTIVE_HC_TIMEOUT);
    }
    if host.clear_flag(HealthFlags::PENDING_ACTIVE_HC) {
        transition = Transition::Changed;
    }
    if how.first || spec.events.failures {
        spec.events.log(cluster, spec, host, Event::Failure { failure: how.failure, status: how.status, first: how.first });
    }
    count(cluster, "failure");
    transition
}

/// A response of `host` said that it fails its health checks (`x-envoy-immediate-health-check-fail`). Any thread; the next checks
/// decide when it comes back.
pub(crate) fn fail_now(cluster: &Cluster, host: &Host) {
    let Some(spec) = cluster.spec.health_checks.first() else { return };
    if host.health_check.as_ref().is_some_and(|c| c.disabled) {
        return;
    }
    let changed = host.set_flag(HealthFlags::EXCLUDED_VIA_IMMEDIATE_HC_FAIL);
    if host.set_flag(HealthFlags::FAILED_ACTIVE_HC) {
        spec.events.log(cluster, spec, host, Event::Eject { failure: Failure::Passive, status: 0 });
    } else if !changed {
        return;
    }
    count(cluster, "failure");
    count(cluster, "passive_failure");
    cluster.health_changed(host, false);
}

/// Time until the next check. Source: Envoy's `HealthCheckerImplBase::interval`.
fn interval(cluster: &Cluster, spec: &HealthCheckSpec, healthy: bool, transition: Transition) -> Duration {
    let pending = transition == Transition::Pending;
    let base = match (cluster.had_traffic(), healthy, pending) {
        (false, true, false) => spec.no_traffic_healthy_interval,
        (false, _, _) => spec.no_traffic_interval,
        (true, true, true) => spec.healthy_edge_interval,
        (true, true, false) => spec.interval,
        (true, false, true) => spec.unhealthy_edge_interval,
        (true, false, false) => spec.unhealthy_interval,
    };
    let mut jitter = spec.interval_jitter.mul_f64(fastrand::f64());
    if spec.jitter_percent > 0 {
        jitter += base.mul_f64(f64::from(spec.jitter_percent) / 100.0 * fastrand::f64());
    }
    let bound = |key: &str, default: u64| Duration::from_millis(cluster.runtime().integer(key, default));
    let least = bound("health_check.min_interval", 0).max(Duration::from_millis(1));
    (base + jitter).min(bound("health_check.max_interval", u64::MAX)).max(least)
}
