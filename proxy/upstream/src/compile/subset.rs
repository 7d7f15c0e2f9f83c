//! Subset load balancing from protobuf: `lb_subset_config`, and the policy `envoy.load_balancing_policies.subset`, which says the
//! same with the policy inside. Control thread.

use crate::lb::subset::{Fallback, Selector, SubsetSpec};
use nuncio_core::diag::{At, Report};
use nuncio_proto::envoy::config::cluster::v3::cluster::LbSubsetConfig;
use nuncio_proto::envoy::config::cluster::v3::cluster::lb_subset_config::lb_subset_selector::LbSubsetSelectorFallbackPolicy as OnSelector;
use nuncio_proto::envoy::config::cluster::v3::cluster::lb_subset_config::{LbSubsetFallbackPolicy, LbSubsetSelector};
use nuncio_proto::envoy::extensions::load_balancing_policies::subset::v3::Subset;

/// `lb_subset_config`; without selectors it says nothing, as in Envoy.
pub(super) fn legacy(config: &LbSubsetConfig, at: &At<'_>, report: &mut Report) -> Option<Box<SubsetSpec>> {
    if config.subset_selectors.is_empty() {
        return None;
    }
    Some(Box::new(compile(config, false, at, report)))
}

/// The subset policy. Its enums have the numbers of the field's.
pub(super) fn typed(policy: &Subset, at: &At<'_>, report: &mut Report) -> Box<SubsetSpec> {
    let selectors = policy.subset_selectors.iter().map(|s| LbSubsetSelector {
        keys: s.keys.clone(),
        single_host_per_subset: s.single_host_per_subset,
        fallback_policy: s.fallback_policy,
        fallback_keys_subset: s.fallback_keys_subset.clone(),
    });
    let config = LbSubsetConfig {
        fallback_policy: policy.fallback_policy,
        default_subset: policy.default_subset.clone(),
        subset_selectors: selectors.collect(),
        locality_weight_aware: policy.locality_weight_aware,
        scale_locality_weight: policy.scale_locality_weight,
        panic_mode_any: policy.panic_mode_any,
        list_as_any: policy.list_as_any,
        metadata_fallback_policy: policy.metadata_fallback_policy,
    };
    Box::new(compile(&config, policy.allow_redundant_keys, at, report))
}

fn compile(config: &LbSubsetConfig, allow_redundant_keys: bool, at: &At<'_>, report: &mut Report) -> SubsetSpec {
    let fallback = match LbSubsetFallbackPolicy::try_from(config.fallback_policy) {
        Ok(LbSubsetFallbackPolicy::NoFallback) => Fallback::None,
        Ok(LbSubsetFallbackPolicy::AnyEndpoint) => Fallback::Any,
        Ok(LbSubsetFallbackPolicy::DefaultSubset) => Fallback::Default,
        Err(_) => {
            report.error(&at.field("fallback_policy"), config.fallback_policy.to_string(), "NO_FALLBACK, ANY_ENDPOINT or DEFAULT_SUBSET");
            Fallback::None
        }
    };
    if !(0..=1).contains(&config.metadata_fallback_policy) {
        let found = config.metadata_fallback_policy.to_string();
        report.error(&at.field("metadata_fallback_policy"), found, "METADATA_NO_FALLBACK or FALLBACK_LIST");
    }
    let mut selectors: Vec<Selector> = Vec::new();
    let list = at.field("subset_selectors");
    for (i, proto) in config.subset_selectors.iter().enumerate() {
        let at = list.index(i);
        let keys = sorted(&proto.keys);
        if keys.is_empty() {
            report.warning(&at.field("keys"), "empty", "a selector without keys has no effect, as in Envoy");
            continue;
        }
        let mut selector = Selector { fallback: on_selector(proto, &keys, &at, report), keys, single_host: proto.single_host_per_subset };
        if selectors.iter().any(|s| s.keys == selector.keys) {
            report.warning(&at.field("keys"), proto.keys.join(", "), "the first selector of these keys counts, as in Envoy");
            continue;
        }
        // Envoy keeps selectors as a tree of keys, and what a longer one made on the way is not told of the shorter one's fallback.
        if selector.fallback.is_some() && selectors.iter().any(|s| s.keys.starts_with(&selector.keys)) {
            let why = "as in Envoy, it has no effect after a selector that begins with the same keys: put the shorter one first";
            report.warning(&at.field("fallback_policy"), proto.keys.join(", "), why);
            selector.fallback = None;
        }
        selectors.push(selector);
    }
    let default = config.default_subset.iter().flat_map(|s| &s.fields);
    SubsetSpec {
        fallback,
        default: default.map(|(key, value)| (key.as_str().into(), value.clone())).collect(),
        selectors: selectors.into_boxed_slice(),
        locality_weight_aware: config.locality_weight_aware,
        scale_locality_weight: config.scale_locality_weight,
        panic_mode_any: config.panic_mode_any,
        list_as_any: config.list_as_any,
        allow_redundant_keys,
        fallback_list: config.metadata_fallback_policy == 1,
    }
}

fn sorted(keys: &[String]) -> Box<[Box<str>]> {
    let mut keys: Vec<Box<str>> = keys.iter().map(|k| k.as_str().into()).collect();
    keys.sort();
    keys.dedup();
    keys.into_boxed_slice()
}

fn on_selector(proto: &LbSubsetSelector, keys: &[Box<str>], at: &At<'_>, report: &mut Report) -> Option<Fallback> {
    let policy = OnSelector::try_from(proto.fallback_policy);
    let fewer = at.field("fallback_keys_subset");
    if policy != Ok(OnSelector::KeysSubset) && !proto.fallback_keys_subset.is_empty() {
        report.error(&fewer, proto.fallback_keys_subset.join(", "), "only with fallback_policy: KEYS_SUBSET");
    }
    match policy {
        Ok(OnSelector::NotDefined) => None,
        Ok(OnSelector::NoFallback) => Some(Fallback::None),
        Ok(OnSelector::AnyEndpoint) => Some(Fallback::Any),
        Ok(OnSelector::DefaultSubset) => Some(Fallback::Default),
        Ok(OnSelector::KeysSubset) => {
            let subset = sorted(&proto.fallback_keys_subset);
            if subset.is_empty() || subset.len() == keys.len() || subset.iter().any(|k| !keys.contains(k)) {
                report.error(&fewer, proto.fallback_keys_subset.join(", "), "some of the selector's keys, but not all");
            }
            Some(Fallback::Keys(subset))
        }
        Err(_) => {
            report.error(&at.field("fallback_policy"), proto.fallback_policy.to_string(), "a fallback policy of a selector");
            None
        }
    }
}
