//! Zone-aware routing: keep requests in the proxy's own zone as far as the upstream's capacity there allows. Computed with the
//! view, from the upstream's and the local cluster's hosts per locality. Source: Envoy docs "Zone aware routing",
//! `regenerateLocalityRoutingStructures` and `tryChooseLocalLocalityHosts`.

use crate::priority;
use crate::spec::{LiveLb, ZoneSpec};
use crate::stats::LbStats;
use crate::view::{LocalityView, SetView, View};

/// How requests of priority 0 spread over localities.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ZoneRouting {
    spread: Spread,
    /// The proxies' own cluster panics: its zones say nothing about where load comes from.
    local_panic: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Spread {
    /// All to the local locality.
    Direct,
    /// This share (of 10,000) to the local locality, the rest by what the others have left.
    Residual { local: u64, capacity: Box<[u64]> },
}

impl ZoneRouting {
    /// None: no locality routing.
    pub(crate) fn build(zone: &ZoneSpec, live: &LiveLb, set: &SetView, (local, stats): (&View, Option<&LbStats>)) -> Option<Self> {
        let count = |pick: fn(&LbStats)| {
            if let Some(stats) = stats {
                pick(stats);
            }
        };
        count(|s| s.lb_recalculate_zone_structures.inc());
        let mine = local.sets.first()?;
        let least_here = zone.force_local_min.map(|min| min as usize).or(zone.force_direct.then_some(1));
        if set.localities.len() < 2 || (least_here.is_none() && mine.localities.len() < 2) {
            return None;
        }
        if !mine.has_local || mine.localities.first().is_none_or(|l| l.all == 0) {
            count(|s| s.lb_local_cluster_not_ok.inc());
            return None;
        }
        if (set.healthy.hosts.len() as u64) < live.min_cluster_size() {
            count(|s| s.lb_zone_cluster_too_small.inc());
            return None;
        }
        let local_panic = priority::panics(&mine.health, live.panic_threshold());
        let done = |spread| Some(Self { spread, local_panic });
        let first_hosts = set.localities.first().map_or(0, |l| l.healthy.hosts.len());
        if set.has_local && least_here.is_some_and(|min| first_hosts >= min) {
            return done(Spread::Direct);
        }
        let size = |l: &LocalityView| match zone.by_weight {
            true => l.healthy.hosts.iter().map(|h| u64::from(h.weight())).sum(),
            false => l.healthy.hosts.len() as u64,
        };
        let total = |all: &[LocalityView]| all.iter().map(size).sum::<u64>();
        let (total_local, total_upstream) = (total(&mine.localities), total(&set.localities));
        let share = |part: u64, whole: u64| (part * 10_000).checked_div(whole).unwrap_or(0);
        let percentages: Vec<(u64, u64)> = set
            .localities
            .iter()
            .map(|l| {
                let here: u64 = mine.localities.iter().filter(|m| m.locality == l.locality).map(size).sum();
                (share(here, total_local), share(size(l), total_upstream))
            })
            .collect();
        let (first_local, first_upstream) = percentages.first().copied()?;
        if set.has_local && first_upstream > 0 && first_upstream >= first_local {
            return done(Spread::Direct);
        }
        let local_share = if set.has_local && first_local > 0 { first_upstream * 10_000 / first_local } else { 0 };
        let mut sum = 0;
        let capacity = percentages
            .iter()
            .enumerate()
            .map(|(i, (local, upstream))| {
                if !(i == 0 && set.has_local) {
                    sum += upstream.saturating_sub(*local);
                }
                sum
            })
            .collect();
        done(Spread::Residual { local: local_share, capacity })
    }
    /// Whether the proxies' own cluster says too little to route by; counted for each pick.
    pub(crate) fn local_panic(&self, stats: &LbStats) -> bool {
        if self.local_panic {
            stats.lb_local_cluster_not_ok.inc();
        }
        self.local_panic
    }
    /// The locality of one pick.
    pub(crate) fn choose(&self, stats: &LbStats) -> usize {
        match &self.spread {
            Spread::Direct => {
                stats.lb_zone_routing_all_directly.inc();
                0
            }
            Spread::Residual { local, capacity } => {
                if fastrand::u64(0..10_000) < *local {
                    stats.lb_zone_routing_sampled.inc();
                    return 0;
                }
                stats.lb_zone_routing_cross_zone.inc();
                let total = capacity.last().copied().unwrap_or(0);
                if total == 0 {
                    stats.lb_zone_no_capacity_left.inc();
                    return fastrand::usize(0..capacity.len().max(1));
                }
                let point = fastrand::u64(0..total);
                capacity.iter().position(|c| point < *c).unwrap_or(0)
            }
        }
    }
}
