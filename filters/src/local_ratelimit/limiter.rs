//! The buckets of one configuration: a default one, one per configured descriptor, and some for descriptors with wildcards, whose
//! values come with requests.

use super::bucket::{Bucket, Rate};
use crate::rate_limit::{Descriptor, Entry};
use nuncio_core::diag::{At, Report};
use nuncio_proto::envoy::extensions::filters::http::local_ratelimit::v3::LocalRateLimit;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// What buckets there are; immutable.
#[derive(Debug)]
pub struct Plan {
    default: Option<Rate>,
    /// Without wildcards, by their entries.
    fixed: Vec<Rule>,
    /// With wildcards: an empty value in `entries` stands for any.
    wild: Vec<Rule>,
    max_dynamic: usize,
    always_default: bool,
}

#[derive(Clone, Debug)]
struct Rule {
    entries: Vec<Entry>,
    rate: Rate,
    shadow: bool,
}

impl Plan {
    pub fn compile(p: &LocalRateLimit, at: &At<'_>, report: &mut Report) -> Option<Self> {
        let errors = report.errors();
        let default = match &p.token_bucket {
            Some(bucket) => Some(Rate::compile(bucket, &at.field("token_bucket"), report)?),
            None => None,
        };
        let mut out = Self {
            default,
            fixed: Vec::new(),
            wild: Vec::new(),
            max_dynamic: p.max_dynamic_descriptors.map_or(20, |n| n as usize),
            always_default: p.always_consume_default_token_bucket.unwrap_or(true),
        };
        if out.max_dynamic == 0 {
            report.error(&at.field("max_dynamic_descriptors"), "0", "give at least 1");
        }
        let descriptors = at.field("descriptors");
        for (i, descriptor) in p.descriptors.iter().enumerate() {
            let at = descriptors.index(i);
            let entries: Vec<Entry> = descriptor.entries.iter().map(|e| (e.key.clone(), e.value.clone())).collect();
            let Some(bucket) = &descriptor.token_bucket else {
                report.error(&at.field("token_bucket"), "nothing", "give the descriptor a token bucket");
                continue;
            };
            let Some(rate) = Rate::compile(bucket, &at.field("token_bucket"), report) else { continue };
            let list = if entries.iter().any(|(_, value)| value.is_empty()) { &mut out.wild } else { &mut out.fixed };
            if list.iter().any(|r| r.entries == entries) {
                report.error(&at, format!("{entries:?} twice"), "merge descriptors with the same entries");
                continue;
            }
            list.push(Rule { entries, rate, shadow: descriptor.shadow_mode });
        }
        (report.errors() == errors).then_some(out)
    }
    pub fn has_descriptors(&self) -> bool {
        !self.fixed.is_empty() || !self.wild.is_empty()
    }
}

/// Running buckets.
#[derive(Debug)]
pub struct Limiter {
    default: Option<Arc<Bucket>>,
    fixed: Vec<(Rule, Arc<Bucket>)>,
    wild: Vec<(Rule, Mutex<Dynamic>)>,
    max_dynamic: usize,
    always_default: bool,
}

/// Buckets of one wildcard rule; the longest unused goes when there are too many.
#[derive(Debug, Default)]
struct Dynamic {
    buckets: HashMap<Vec<Entry>, (u64, Arc<Bucket>)>,
    uses: u64,
}

/// What becomes of a request.
#[derive(Debug)]
pub struct Verdict {
    pub allowed: bool,
    /// A descriptor that only watches would have refused.
    pub shadow: bool,
    /// The bucket that decided; none if there is none at all.
    pub bucket: Option<Arc<Bucket>>,
    pub show_headers: Option<bool>,
}

impl Limiter {
    pub fn new(plan: &Plan) -> Self {
        Self {
            default: plan.default.map(|rate| Arc::new(Bucket::new(rate))),
            fixed: plan.fixed.iter().map(|r| (r.clone(), Arc::new(Bucket::new(r.rate)))).collect(),
            wild: plan.wild.iter().map(|r| (r.clone(), Mutex::default())).collect(),
            max_dynamic: plan.max_dynamic,
            always_default: plan.always_default,
        }
    }
    fn bucket(&self, entries: &[Entry]) -> Option<(&Rule, Arc<Bucket>)> {
        if let Some((rule, bucket)) = self.fixed.iter().find(|(r, _)| r.entries == entries) {
            return Some((rule, bucket.clone()));
        }
        let matches = |rule: &Rule| {
            rule.entries.len() == entries.len()
                && rule.entries.iter().zip(entries).all(|(r, e)| r.0 == e.0 && (r.1.is_empty() || r.1 == e.1))
        };
        let (rule, dynamic) = self.wild.iter().find(|(r, _)| matches(r))?;
        let mut dynamic = dynamic.lock().unwrap_or_else(PoisonError::into_inner);
        dynamic.uses += 1;
        let now = dynamic.uses;
        if let Some((used, bucket)) = dynamic.buckets.get_mut(entries) {
            *used = now;
            return Some((rule, bucket.clone()));
        }
        if dynamic.buckets.len() >= self.max_dynamic {
            let oldest = dynamic.buckets.iter().min_by_key(|(_, (used, _))| *used).map(|(entries, _)| entries.clone());
            if let Some(oldest) = oldest {
                dynamic.buckets.remove(&oldest);
            }
        }
        let bucket = Arc::new(Bucket::new(rule.rate));
        dynamic.buckets.insert(entries.to_vec(), (now, bucket.clone()));
        Some((rule, bucket))
    }
    /// Takes tokens for a request, each `price` times: of every descriptor that is configured, the strictest first, then of the default bucket.
    pub fn judge(&self, descriptors: &[Descriptor], price: u64) -> Verdict {
        let mut matched: Vec<_> =
            descriptors.iter().filter_map(|d| self.bucket(&d.entries).map(|(rule, bucket)| (d, rule, bucket))).collect();
        matched.sort_by(|a, b| a.1.rate.fill().total_cmp(&b.1.rate.fill()));
        let mut shadow = false;
        for (descriptor, rule, bucket) in &matched {
            if !bucket.take(descriptor.hits.saturating_mul(price)) {
                if rule.shadow {
                    shadow = true;
                    continue;
                }
                return Verdict { allowed: false, shadow, bucket: Some(bucket.clone()), show_headers: descriptor.show_headers };
            }
        }
        let first = matched.first().map(|(d, _, bucket)| (d.show_headers, bucket.clone()));
        let (show_headers, told) = first.map_or((None, self.default.clone()), |(show, bucket)| (show, Some(bucket)));
        if (matched.is_empty() || self.always_default)
            && let Some(default) = &self.default
            && !default.take(price)
        {
            return Verdict { allowed: false, shadow, bucket: Some(default.clone()), show_headers: None };
        }
        Verdict { allowed: true, shadow, bucket: told, show_headers }
    }
}
