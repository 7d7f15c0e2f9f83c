//! How load is spread over priorities, and when a priority panics: pure arithmetic, parity with Envoy to the percent.
//! Source: Envoy docs "Priority levels", "Panic threshold", and `load_balancer_impl.cc`. Called when a view is built.

use smallvec::SmallVec;

/// What of a priority's hosts the arithmetic needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SetHealth {
    /// All hosts, excluded ones included.
    pub hosts: usize,
    pub excluded: usize,
    pub healthy: usize,
    pub degraded: usize,
    /// In percent; Envoy's default is 140.
    pub overprovisioning: u32,
    /// `weighted_priority_health`: (healthy, degraded, all but excluded) by weight instead of by count.
    pub weights: Option<(u64, u64, u64)>,
}

/// One number per priority.
pub(crate) type PerPriority = SmallVec<[u32; 2]>;

/// Percent of load per priority, healthy and degraded, 100 in total; and which priorities panic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Loads {
    pub healthy: PerPriority,
    pub degraded: PerPriority,
    pub panic: SmallVec<[bool; 4]>,
}

/// Which hosts of a priority are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Availability {
    Healthy,
    Degraded,
}

/// Availability of each priority in percent, overprovisioning included, each at most 100.
pub(crate) fn availability(sets: &[SetHealth]) -> (PerPriority, PerPriority) {
    let percent = |set: &SetHealth, degraded: bool| {
        let count = set.hosts.saturating_sub(set.excluded);
        if count == 0 {
            return 0;
        }
        let (part, whole) = match set.weights {
            Some((healthy, low, all)) => (if degraded { low } else { healthy }, all),
            None => (if degraded { set.degraded } else { set.healthy } as u64, count as u64),
        };
        let value = u64::from(set.overprovisioning).saturating_mul(part).checked_div(whole).unwrap_or(0);
        u32::try_from(value.min(100)).unwrap_or(100)
    };
    (sets.iter().map(|s| percent(s, false)).collect(), sets.iter().map(|s| percent(s, true)).collect())
}

fn total(healthy: &[u32], degraded: &[u32]) -> u32 {
    healthy.iter().chain(degraded).fold(0u32, |sum, p| sum.saturating_add(*p)).min(100)
}

/// Spreads `left` percent over `availability`; gives the first priority that is available at all and what is left over.
fn distribute(loads: &mut [u32], availability: &[u32], mut left: u32, normalized: u32) -> (Option<usize>, u32) {
    let mut first = None;
    for (i, (load, available)) in loads.iter_mut().zip(availability).enumerate() {
        if *available > 0 && first.is_none() {
            first = Some(i);
        }
        *load = left.min(available * 100 / normalized);
        left -= *load;
    }
    (first, left)
}

/// The loads of `sets`. `panic_threshold` in percent, 0 to 100; 0 means never.
pub(crate) fn loads(sets: &[SetHealth], panic_threshold: u32) -> Loads {
    let zeros: PerPriority = sets.iter().map(|_| 0).collect();
    let mut loads = Loads { healthy: zeros.clone(), degraded: zeros, panic: sets.iter().map(|_| false).collect() };
    let (healthy, degraded) = availability(sets);
    let normalized = total(&healthy, &degraded);
    if normalized > 0 {
        let (first_healthy, left) = distribute(&mut loads.healthy, &healthy, 100, normalized);
        let (first_degraded, left) = distribute(&mut loads.degraded, &degraded, left, normalized);
        // What is left are rounding errors.
        let place = match (first_healthy, first_degraded) {
            (Some(i), _) => loads.healthy.get_mut(i),
            (None, Some(i)) => loads.degraded.get_mut(i),
            (None, None) => None,
        };
        if let Some(load) = place {
            *load += left;
        }
    }
    let threshold = panic_threshold.min(100);
    if threshold == 0 && normalized == 0 {
        // Nobody is available and panic is off: priority 0 takes it all, where no host will be found.
        if let Some(first) = loads.healthy.first_mut() {
            *first = 100;
        }
        return loads;
    }
    for (panic, set) in loads.panic.iter_mut().zip(sets) {
        *panic = normalized != 100 && panics(set, threshold);
    }
    if loads.panic.iter().all(|p| *p) {
        total_panic(&mut loads, sets);
    }
    loads
}

/// Whether a priority alone is below the threshold.
pub(crate) fn panics(set: &SetHealth, threshold: u32) -> bool {
    let count = set.hosts.saturating_sub(set.excluded);
    let percent = |n: usize| if count == 0 { 0.0 } else { 100.0 * n as f64 / count as f64 };
    percent(set.healthy) + percent(set.degraded) < f64::from(threshold)
}

/// Every priority panics: load follows the number of hosts, healthy or not.
fn total_panic(loads: &mut Loads, sets: &[SetHealth]) {
    let hosts: usize = sets.iter().map(|s| s.hosts).sum();
    if hosts == 0 {
        if let Some(first) = loads.healthy.first_mut() {
            *first = 100;
        }
        return;
    }
    let mut left = 100u32;
    for ((healthy, degraded), set) in loads.healthy.iter_mut().zip(loads.degraded.iter_mut()).zip(sets) {
        *healthy = u32::try_from(100 * set.hosts / hosts).unwrap_or(100);
        *degraded = 0;
        left = left.saturating_sub(*healthy);
    }
    if let Some(first) = sets.iter().position(|s| s.hosts > 0).and_then(|i| loads.healthy.get_mut(i)) {
        *first += left;
    }
}

/// The priority that `hash` falls on.
pub(crate) fn choose(healthy: &[u32], degraded: &[u32], hash: u64) -> (usize, Availability) {
    let point = u32::try_from(hash % 100).unwrap_or(0) + 1;
    let mut sum = 0;
    for (loads, availability) in [(healthy, Availability::Healthy), (degraded, Availability::Degraded)] {
        for (i, load) in loads.iter().enumerate() {
            sum += load;
            if point <= sum {
                return (i, availability);
            }
        }
    }
    (0, Availability::Healthy)
}

/// Loads for a retry that leaves out the priorities of hosts already tried; none keeps the original loads.
/// Source: Envoy's `envoy.retry_priorities.previous_priorities`.
pub(crate) fn retry_loads(sets: &[SetHealth], update_frequency: u32, attempted: &[u32]) -> Option<Loads> {
    let every = usize::try_from(update_frequency.max(1)).unwrap_or(1);
    // Only whole groups of attempts count; between two updates the last adjustment stays.
    let counted = attempted.len() / every * every;
    if counted == 0 {
        return None;
    }
    let (healthy, degraded) = availability(sets);
    let mut excluded: SmallVec<[bool; 4]> = sets.iter().map(|_| false).collect();
    let mut since_reset = 0;
    for upto in (every..=counted).step_by(every) {
        for priority in attempted.get(since_reset..upto).unwrap_or_default() {
            if let Some(e) = usize::try_from(*priority).ok().and_then(|p| excluded.get_mut(p)) {
                *e = true;
            }
        }
        if adjusted(&healthy, &degraded, &excluded).2 == 0 {
            // Nothing is left: all priorities may be tried again.
            excluded.iter_mut().for_each(|e| *e = false);
            since_reset = upto;
        }
    }
    let (healthy, degraded, available) = adjusted(&healthy, &degraded, &excluded);
    if available == 0 {
        return None;
    }
    let mut loads = Loads { healthy: sets.iter().map(|_| 0).collect(), degraded: sets.iter().map(|_| 0).collect(), panic: SmallVec::new() };
    let mut left = 100u32;
    while left > 0 {
        let before = left;
        for (load, available_here) in loads.healthy.iter_mut().zip(&healthy).chain(loads.degraded.iter_mut().zip(&degraded)) {
            let delta = left.min(available_here * 100 / available);
            *load += delta;
            left -= delta;
        }
        if left == before {
            break;
        }
    }
    Some(loads)
}

fn adjusted(healthy: &[u32], degraded: &[u32], excluded: &[bool]) -> (PerPriority, PerPriority, u32) {
    let without = |all: &[u32]| -> PerPriority { all.iter().zip(excluded).map(|(a, e)| if *e { 0 } else { *a }).collect() };
    let (healthy, degraded) = (without(healthy), without(degraded));
    let available = total(&healthy, &degraded);
    (healthy, degraded, available)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(hosts: usize, healthy: usize, degraded: usize) -> SetHealth {
        SetHealth { hosts, excluded: 0, healthy, degraded, overprovisioning: 140, weights: None }
    }
    /// (healthy percent per priority) over 100 hosts each.
    fn percent(healthy: &[usize]) -> Vec<SetHealth> {
        healthy.iter().map(|h| set(100, *h, 0)).collect()
    }
    fn healthy(sets: &[SetHealth], threshold: u32) -> Vec<u32> {
        loads(sets, threshold).healthy.to_vec()
    }

    #[test]
    fn two_priorities_as_in_envoys_docs() {
        // Healthy % of P0 and P1 -> traffic to P0 and P1.
        for (p0, p1, t0, t1) in
            [(100, 100, 100, 0), (72, 72, 100, 0), (71, 71, 99, 1), (50, 50, 70, 30), (25, 100, 35, 65), (25, 25, 50, 50)]
        {
            assert_eq!(healthy(&percent(&[p0, p1]), 0), [t0, t1], "{p0} {p1}");
        }
    }
    #[test]
    fn three_priorities_as_in_envoys_docs() {
        for (h, t) in [
            ([100, 100, 100], [100, 0, 0]),
            ([72, 72, 100], [100, 0, 0]),
            ([71, 71, 100], [99, 1, 0]),
            ([50, 50, 100], [70, 30, 0]),
            ([25, 100, 100], [35, 65, 0]),
            ([25, 25, 100], [35, 35, 30]),
            ([25, 25, 20], [36, 35, 29]),
        ] {
            let got = healthy(&percent(&h), 0);
            // The docs round the last row to 36, 35, 28; loads must sum up to 100.
            assert_eq!(got.iter().sum::<u32>(), 100);
            for (a, b) in got.iter().zip(t) {
                assert!(a.abs_diff(b) <= 1, "{h:?}: {got:?} instead of {t:?}");
            }
        }
    }
    #[test]
    fn degraded_hosts_take_what_healthy_ones_cannot() {
        // Envoy docs, "Degraded endpoints": healthy/degraded % of P0 -> (healthy, degraded) load.
        for (h, d, lh, ld) in [(100, 0, 100, 0), (71, 0, 100, 0), (71, 29, 99, 1), (25, 65, 35, 65), (5, 0, 100, 0)] {
            let loads = loads(&[set(100, h, d)], 0);
            assert_eq!((loads.healthy[0], loads.degraded[0]), (lh, ld), "{h} {d}");
        }
    }
    #[test]
    fn panic_as_in_envoys_docs() {
        // Threshold 50: healthy % of P0, P1 -> traffic and panic of each. (The docs round the last row to 7 and 93.)
        for (p0, p1, t0, panic0, t1, panic1) in [
            (72, 72, 100, false, 0, false),
            (71, 71, 99, false, 1, false),
            (50, 60, 70, false, 30, false),
            (25, 100, 35, false, 65, false),
            (25, 25, 50, true, 50, true),
            (5, 65, 8, true, 92, false),
        ] {
            let loads = loads(&percent(&[p0, p1]), 50);
            assert_eq!(loads.healthy.as_slice(), [t0, t1], "{p0} {p1}");
            assert_eq!(loads.panic.as_slice(), [panic0, panic1], "{p0} {p1}");
        }
    }
    #[test]
    fn total_panic_follows_host_counts() {
        let loads = loads(&[set(60, 0, 0), set(20, 0, 0), set(20, 1, 0)], 50);
        assert_eq!(loads.healthy.as_slice(), [60, 20, 20]);
        assert!(loads.panic.iter().all(|p| *p));
    }
    #[test]
    fn threshold_zero_never_panics() {
        let none = loads(&[set(3, 0, 0), set(3, 0, 0)], 0);
        assert_eq!(none.healthy.as_slice(), [100, 0]);
        assert!(none.panic.iter().all(|p| !p));
        assert_eq!(loads(&[set(0, 0, 0)], 50).healthy.as_slice(), [100]);
    }
    #[test]
    fn excluded_hosts_do_not_count() {
        let mut p0 = set(10, 5, 0);
        p0.excluded = 5;
        assert_eq!(healthy(&[p0, set(1, 1, 0)], 0), [100, 0]);
    }
    #[test]
    fn weights_count_if_asked() {
        let mut p0 = set(2, 1, 0);
        p0.weights = Some((10, 0, 100));
        assert_eq!(healthy(&[p0, set(1, 1, 0)], 0), [14, 86]);
    }
    #[test]
    fn every_hash_finds_a_priority_with_load() {
        let loads = loads(&percent(&[25, 25, 20]), 0);
        let mut count = [0u32; 3];
        for hash in 0..1000u64 {
            count[choose(&loads.healthy, &loads.degraded, hash).0] += 1;
        }
        for (c, load) in count.iter().zip(&loads.healthy) {
            assert_eq!(*c, load * 10);
        }
    }
    #[test]
    fn retries_leave_tried_priorities() {
        let sets = percent(&[100, 100, 100]);
        assert_eq!(retry_loads(&sets, 1, &[]), None);
        assert_eq!(retry_loads(&sets, 2, &[0]), None);
        assert_eq!(retry_loads(&sets, 1, &[0]).unwrap().healthy.as_slice(), [0, 100, 0]);
        assert_eq!(retry_loads(&sets, 1, &[0, 1]).unwrap().healthy.as_slice(), [0, 0, 100]);
        // All tried: start over.
        assert_eq!(retry_loads(&sets, 1, &[0, 1, 2]).unwrap().healthy.as_slice(), [100, 0, 0]);
        assert_eq!(retry_loads(&sets, 2, &[0, 1, 2]).unwrap().healthy.as_slice(), [0, 0, 100]);
        assert_eq!(retry_loads(&percent(&[0, 0]), 1, &[0]), None);
    }
    proptest::proptest! {
        #[test]
        fn loads_sum_to_100(sets in proptest::collection::vec((0usize..50, 0usize..50, 0usize..50), 1..5), threshold in 0u32..=100) {
            let sets: Vec<_> = sets.into_iter().map(|(h, d, u)| set(h + d + u, h, d)).collect();
            let loads = loads(&sets, threshold);
            proptest::prop_assert_eq!(loads.healthy.iter().chain(&loads.degraded).sum::<u32>(), 100);
        }
    }
}
