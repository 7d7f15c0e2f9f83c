//! Where a route sends requests: one cluster, one of several by weight, or the one that a header names.
//! Source: RouteAction.cluster_specifier, WeightedCluster.

use crate::cx::RouteCx;
use http::HeaderName;
use nuncio_core::diag::At;
use nuncio_core::registry::Runtime;
use nuncio_core::views::{ClusterSlot, ClusterSlots};
use nuncio_core::{ByteStr, HeaderKey, RequestHead, StreamInfo};
use nuncio_matcher::{MatchData, MatchTree};
use nuncio_proto::envoy::config::route::v3::WeightedCluster;
use nuncio_proto::envoy::config::route::v3::weighted_cluster::RandomValueSpecifier;
use std::sync::Arc;

/// A cluster, or the header that names it.
#[derive(Clone, Debug)]
pub(crate) enum ClusterRef {
    Slot(Arc<ClusterSlot>),
    Header(HeaderKey),
    /// A match tree over the request; none of its leaves means no cluster.
    Matcher(Arc<MatchTree<Arc<ClusterSlot>>>),
    /// A plugin that is not there and need not be.
    Nowhere,
}

impl ClusterRef {
    /// A named cluster. It must exist if the table validates its clusters.
    pub fn named(name: &str, at: &At<'_>, cx: &mut RouteCx<'_>) -> Option<Self> {
        if name.is_empty() {
            return cx.refuse(at, "an empty cluster name", "name a cluster");
        }
        let slot = cx.clusters.slot(name);
        if cx.validate_clusters && !slot.is_known() {
            return cx.refuse(at, format!("unknown cluster \"{name}\""), "define the cluster, or set validate_clusters to false");
        }
        Some(Self::Slot(slot))
    }
    /// The cluster that header `name` names.
    pub fn header(name: &str, at: &At<'_>, cx: &mut RouteCx<'_>) -> Option<Self> {
        match HeaderKey::parse(name) {
            Some(key) => Some(Self::Header(key)),
            None => cx.refuse(at, format!("\"{name}\""), "give a valid header name"),
        }
    }
    /// The slot for `request`; none if the header is absent or names no known cluster, or nothing matches.
    /// `info` is for plugins.
    pub fn resolve(&self, clusters: &ClusterSlots, request: &RequestHead, info: Option<&StreamInfo>) -> Option<Arc<ClusterSlot>> {
        match self {
            Self::Slot(slot) => Some(slot.clone()),
            Self::Header(key) => clusters.lookup(&header_value(request, key)?),
            Self::Matcher(tree) => tree.find(&MatchData::request(request, info?)).cloned(),
            Self::Nowhere => None,
        }
    }
}

/// First value of a header, as Envoy takes it for `cluster_header`.
fn header_value(request: &RequestHead, key: &HeaderKey) -> Option<ByteStr> {
    let bytes = match key {
        HeaderKey::Name(name) => request.headers.get(name)?.as_bytes().to_vec(),
        other => request.header(other)?.into_owned(),
    };
    ByteStr::from_utf8(bytes.into()).ok()
}

/// How one of several weighted clusters is chosen. Weights belong to the route's entries, in order.
#[derive(Debug)]
pub(crate) struct WeightedChoice {
    weights: Box<[u32]>,
    /// Sum of the weights, more than 0 and at most `u32::MAX`.
    total: u32,
    /// Runtime keys that override the weights; empty if there is no `runtime_key_prefix`.
    runtime_keys: Box<[Box<str>]>,
    random: RandomSource,
}

#[derive(Debug)]
enum RandomSource {
    Stream,
    Header(HeaderName),
    HashPolicy,
}

impl WeightedChoice {
    /// Compiles what `WeightedCluster` says about the choice.
    #[allow(deprecated)]
    pub fn compile(weighted: &WeightedCluster, at: &At<'_>, cx: &mut RouteCx<'_>) -> Option<Self> {
        let at_clusters = at.field("clusters");
        if weighted.clusters.is_empty() {
            return cx.refuse(&at_clusters, "no clusters", "give at least one");
        }
        let weights: Box<[u32]> = weighted.clusters.iter().map(|c| c.weight.unwrap_or(0)).collect();
        let sum: u64 = weights.iter().map(|w| u64::from(*w)).sum();
        let total = match u32::try_from(sum) {
            Ok(0) => return cx.refuse(&at_clusters, "weights that add up to 0", "give at least one cluster a weight"),
            Ok(total) => total,
            Err(_) => return cx.refuse(&at_clusters, format!("weights that add up to {sum}"), "keep the sum at or below 4294967295"),
        };
        if let Some(given) = weighted.total_weight.filter(|given| *given != total) {
            let remedy = format!("ignored, as Envoy does: the weights add up to {total}");
            cx.report.warning(&at.field("total_weight"), given.to_string(), remedy);
        }
        let random = match &weighted.random_value_specifier {
            None | Some(RandomValueSpecifier::UseHashPolicy(false)) => RandomSource::Stream,
            Some(RandomValueSpecifier::UseHashPolicy(true)) => RandomSource::HashPolicy,
            Some(RandomValueSpecifier::HeaderName(name)) if name.is_empty() => RandomSource::Stream,
            Some(RandomValueSpecifier::HeaderName(name)) => match HeaderName::from_bytes(name.as_bytes()) {
                Ok(name) => RandomSource::Header(name),
                Err(_) => return cx.refuse(&at.field("header_name"), format!("\"{name}\""), "give a valid header name"),
            },
        };
        let prefix = &weighted.runtime_key_prefix;
        let runtime_keys = match prefix.is_empty() {
            true => Box::default(),
            false => weighted.clusters.iter().map(|c| format!("{prefix}.{}", c.name).into()).collect(),
        };
        Some(Self { weights, total, runtime_keys, random })
    }
    /// Index of the chosen cluster. `hash` is asked for only if the choice goes by the hash policy.
    pub fn pick(&self, request: &RequestHead, runtime: &Runtime, random: u64, hash: impl FnOnce() -> Option<u64>) -> Option<usize> {
        let random = match &self.random {
            RandomSource::Stream => random,
            RandomSource::HashPolicy => hash().unwrap_or(random),
            // Several values would make several choices for one request possible; Envoy ignores them.
            RandomSource::Header(name) => {
                let mut values = request.headers.get_all(name);
                match (values.next(), values.next()) {
                    (Some(value), None) => value.to_str().ok().and_then(|v| v.trim_ascii().parse().ok()).unwrap_or(random),
                    _ => random,
                }
            }
        };
        if self.runtime_keys.is_empty() {
            return select(self.weights.iter().copied(), u64::from(self.total), random);
        }
        let weight = |key: &str, default: u32| u32::try_from(runtime.integer(key, u64::from(default))).unwrap_or(u32::MAX);
        let weights: smallvec::SmallVec<[u32; 4]> =
            self.runtime_keys.iter().zip(&self.weights).map(|(key, default)| weight(key, *default)).collect();
        let total: u64 = weights.iter().map(|w| u64::from(*w)).sum();
        if total == 0 || total > u64::from(u32::MAX) {
            return None;
        }
        select(weights.iter().copied(), total, random)
    }
}

fn select(mut weights: impl Iterator<Item = u32>, total: u64, random: u64) -> Option<usize> {
    let mut left = random % total;
    weights.position(|weight| match left.checked_sub(u64::from(weight)) {
        Some(rest) => {
            left = rest;
            false
        }
        None => true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_exact_shares() {
        let count = |weights: &[u32]| {
            let total: u64 = weights.iter().map(|w| u64::from(*w)).sum();
            let mut counts = vec![0; weights.len()];
            for random in 0..total * 3 {
                counts[select(weights.iter().copied(), total, random).unwrap()] += 1;
            }
            counts
        };
        assert_eq!(count(&[1, 2, 3]), [3, 6, 9]);
        assert_eq!(count(&[0, 5, 0]), [0, 15, 0]);
    }
}
