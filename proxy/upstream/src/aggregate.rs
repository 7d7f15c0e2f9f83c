//! Aggregate clusters (`envoy.clusters.aggregate`): the priorities of other clusters, one cluster after another, make one list of
//! priorities. A pick chooses among them here and is then made by the member cluster, which also owns hosts, connections, circuit
//! breakers and their stats. Members come, change and go; the list follows at the next pick. Workers read, the first to see a
//! change builds. Source: Envoy docs "Aggregate Cluster", `source/extensions/clusters/aggregate`.

use crate::cluster::Cluster;
use crate::context::LbContext;
use crate::host::Host;
use crate::priority::{self, Availability, Loads, SetHealth};
use arc_swap::ArcSwapOption;
use hashbrown::HashMap;
use nuncio_core::views::ClusterSlot;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The members of one aggregate cluster, and the list as it was built last.
#[derive(Debug)]
pub(crate) struct AggregateState {
    slots: Box<[Arc<ClusterSlot>]>,
    /// As runtime has it now.
    panic_threshold: AtomicU32,
    linear: ArcSwapOption<Linear>,
    building: Mutex<()>,
}

/// A member, and the epoch of its view.
type Member = (Arc<Cluster>, u64);

/// One priority of the list.
#[derive(Debug)]
struct Level {
    member: usize,
    priority: usize,
}

/// All priorities of the members in order, those without hosts left out.
#[derive(Debug)]
struct Linear {
    /// Each member with the state of endpoints and health that this was built from; none without the cluster.
    members: Box<[Option<Member>]>,
    levels: Box<[Level]>,
    health: Box<[SetHealth]>,
    loads: Loads,
    /// Members by the ids of their hosts.
    owners: HashMap<u64, usize, foldhash::fast::RandomState>,
}

/// Where a pick in a member is to be made.
#[derive(Debug)]
pub(crate) struct Placed {
    pub cluster: Arc<Cluster>,
    pub priority: usize,
    pub availability: Availability,
}

/// The cluster in a slot, if it can be a member: aggregates have no hosts of their own, so that one in another adds nothing.
fn member(slot: &ClusterSlot) -> Option<Arc<Cluster>> {
    let view = slot.get()?;
    // The slot holds `dyn ClusterView`; the shared pointer to the cluster itself is kept by the cluster.
    view.as_any().downcast_ref::<Cluster>().filter(|c| c.aggregate().is_none())?.shared_self()
}

impl AggregateState {
    pub(crate) fn new(slots: Box<[Arc<ClusterSlot>]>, panic_threshold: u32) -> Self {
        Self { slots, panic_threshold: AtomicU32::new(panic_threshold), linear: ArcSwapOption::empty(), building: Mutex::new(()) }
    }
    /// Runtime changed the threshold.
    pub(crate) fn set_panic_threshold(&self, percent: u32) {
        self.panic_threshold.store(percent, Ordering::Relaxed);
        self.linear.store(None);
    }
    /// Whether the list is what the members are now.
    fn is_current(&self, linear: &Linear) -> bool {
        self.slots.iter().zip(&linear.members).all(|(slot, known)| {
            let now = slot.load();
            let now = now.as_ref().and_then(|view| view.as_any().downcast_ref::<Cluster>());
            match (now, known) {
                (Some(now), Some((cluster, epoch))) => now.id == cluster.id && now.current_epoch() == *epoch,
                (Some(now), None) => now.aggregate().is_some(),
                (None, None) => true,
                (None, Some(_)) => false,
            }
        })
    }
    fn linear(&self) -> Arc<Linear> {
        if let Some(linear) = self.linear.load_full().filter(|l| self.is_current(l)) {
            return linear;
        }
        let _building = self.building.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(linear) = self.linear.load_full().filter(|l| self.is_current(l)) {
            return linear;
        }
        let linear = Arc::new(self.build());
        self.linear.store(Some(linear.clone()));
        linear
    }
    fn build(&self) -> Linear {
        let (mut members, mut levels, mut health) = (Vec::new(), Vec::new(), Vec::new());
        let mut owners = HashMap::default();
        for (at, slot) in self.slots.iter().enumerate() {
            let Some(cluster) = member(slot) else {
                members.push(None);
                continue;
            };
            let view = cluster.view();
            for (priority, set) in view.sets.iter().enumerate().filter(|(_, set)| set.health.hosts > 0) {
                levels.push(Level { member: at, priority });
                health.push(set.health);
            }
            for host in view.endpoints.hosts() {
                owners.entry(host.id).or_insert(at);
            }
            members.push(Some((cluster, view.epoch)));
        }
        let loads = priority::loads(&health, self.panic_threshold.load(Ordering::Relaxed));
        Linear { members: members.into(), levels: levels.into(), health: health.into(), loads, owners }
    }
    /// Chooses a priority of a member; none if there are no hosts at all. Source: Envoy's `AggregateClusterLoadBalancer`.
    pub(crate) fn place(&self, cx: &LbContext<'_>) -> Option<Placed> {
        let linear = self.linear();
        let retried = cx.retry_priority.and_then(|retry| {
            let level = |host: &Arc<Host>| linear.level(host);
            let attempted: Vec<u32> = retry.hosts.iter().filter_map(level).collect();
            priority::retry_loads(&linear.health, retry.update_frequency, &attempted)
        });
        let loads = retried.as_ref().unwrap_or(&linear.loads);
        let (at, availability) = priority::choose(&loads.healthy, &loads.degraded, fastrand::u64(..));
        let level = linear.levels.get(at)?;
        let (cluster, _) = linear.members.get(level.member)?.as_ref()?;
        Some(Placed { cluster: cluster.clone(), priority: level.priority, availability })
    }
    /// The member that `host` is of; none if it left in the meantime.
    pub(crate) fn owner(&self, host: &Host) -> Option<Arc<Cluster>> {
        let linear = self.linear.load();
        let linear = linear.as_ref()?;
        let at = *linear.owners.get(&host.id)?;
        linear.members.get(at)?.as_ref().map(|(cluster, _)| cluster.clone())
    }
    /// Hosts of all members, each cluster in its turn.
    pub(crate) fn hosts(&self) -> Vec<Arc<Host>> {
        self.slots.iter().filter_map(|slot| member(slot)).flat_map(|cluster| cluster.hosts()).collect()
    }
}

impl Linear {
    /// The place of a host's priority in the list.
    fn level(&self, host: &Arc<Host>) -> Option<u32> {
        let member = *self.owners.get(&host.id)?;
        let priority = usize::try_from(host.priority()).ok()?;
        let at = self.levels.iter().position(|l| l.member == member && l.priority == priority)?;
        u32::try_from(at).ok()
    }
}
