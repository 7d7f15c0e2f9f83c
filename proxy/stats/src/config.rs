//! `StatsConfig` of the bootstrap: which stats exist (`stats_matcher`), their tags, and the buckets of histograms.

use crate::histogram::BUCKETS;
use crate::tags::Extractors;
use nuncio_proto::envoy::config::metrics::v3::{StatsConfig, stats_matcher};
use nuncio_proto::envoy::r#type::matcher::v3::{ListStringMatcher, StringMatcher, string_matcher::MatchPattern};
use regex::Regex;
use std::sync::Arc;

/// Something wrong in `StatsConfig`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Path within `StatsConfig`.
    pub path: String,
    pub found: String,
    pub remedy: String,
}

#[derive(Debug)]
enum Text {
    Exact(String),
    Prefix(String),
    Suffix(String),
    Contains(String),
    Regex(Regex),
}

/// A compiled `StringMatcher` over stat names.
#[derive(Debug)]
struct Name {
    text: Text,
    ignore_case: bool,
}

impl Name {
    fn compile(config: &StringMatcher, path: &str, problems: &mut Vec<Problem>) -> Option<Self> {
        let mut refuse = |found: String, remedy: &str| {
            problems.push(Problem { path: path.to_string(), found, remedy: remedy.to_string() });
            None
        };
        let fold = |s: &String| if config.ignore_case { s.to_ascii_lowercase() } else { s.clone() };
        let text = match &config.match_pattern {
            Some(MatchPattern::Exact(s)) => Text::Exact(fold(s)),
            Some(MatchPattern::Prefix(s)) => Text::Prefix(fold(s)),
            Some(MatchPattern::Suffix(s)) => Text::Suffix(fold(s)),
            Some(MatchPattern::Contains(s)) => Text::Contains(fold(s)),
            // Envoy's RE2 matcher wants the whole name.
            Some(MatchPattern::SafeRegex(r)) => match Regex::new(&format!("^(?:{})$", r.regex)) {
                Ok(regex) => Text::Regex(regex),
                Err(e) => return refuse(format!("regex {:?}: {}", r.regex, e.to_string().replace('\n', " ")), "correct the regex"),
            },
            Some(MatchPattern::Custom(c)) => {
                return refuse(
                    format!("custom matcher {:?} is not supported", c.name),
                    "use exact, prefix, suffix, contains or safe_regex",
                );
            }
            None => return refuse("no match pattern".to_string(), "give exact, prefix, suffix, contains or safe_regex"),
        };
        Some(Self { text, ignore_case: config.ignore_case })
    }
    fn matches(&self, name: &str) -> bool {
        if self.ignore_case && !matches!(self.text, Text::Regex(_)) {
            return self.text_matches(&name.to_ascii_lowercase());
        }
        self.text_matches(name)
    }
    fn text_matches(&self, name: &str) -> bool {
        match &self.text {
            Text::Exact(s) => name == s,
            Text::Prefix(s) => name.starts_with(s.as_str()),
            Text::Suffix(s) => name.ends_with(s.as_str()),
            Text::Contains(s) => name.contains(s.as_str()),
            Text::Regex(r) => r.is_match(name),
        }
    }
}

#[derive(Debug, Default)]
enum Matcher {
    #[default]
    All,
    None,
    Only(Vec<Name>),
    Except(Vec<Name>),
}

fn list(config: &ListStringMatcher, path: &str, problems: &mut Vec<Problem>) -> Vec<Name> {
    let each = config.patterns.iter().enumerate();
    let mut names: Vec<_> = each.filter_map(|(i, p)| Name::compile(p, &format!("stats_matcher.{path}.patterns[{i}]"), problems)).collect();
    // Cheap ones first: any match decides.
    names.sort_by_key(|n| matches!(n.text, Text::Regex(_)));
    names
}

/// Compiled `StatsConfig`.
#[derive(Debug)]
pub(crate) struct Settings {
    matcher: Matcher,
    pub tags: Extractors,
    buckets: Vec<(Name, Arc<[f64]>)>,
    default_buckets: Arc<[f64]>,
}

impl Settings {
    pub fn compile(config: &StatsConfig, problems: &mut Vec<Problem>) -> Self {
        let matcher = match config.stats_matcher.as_ref().and_then(|m| m.stats_matcher.as_ref()) {
            None | Some(stats_matcher::StatsMatcher::RejectAll(false)) => Matcher::All,
            Some(stats_matcher::StatsMatcher::RejectAll(true)) => Matcher::None,
            Some(stats_matcher::StatsMatcher::InclusionList(l)) => Matcher::Only(list(l, "inclusion_list", problems)),
            Some(stats_matcher::StatsMatcher::ExclusionList(l)) => Matcher::Except(list(l, "exclusion_list", problems)),
        };
        let mut buckets = Vec::new();
        for (i, setting) in config.histogram_bucket_settings.iter().enumerate() {
            let path = format!("histogram_bucket_settings[{i}]");
            let Some(name) =
                Name::compile(setting.r#match.as_ref().unwrap_or(&StringMatcher::default()), &format!("{path}.match"), problems)
            else {
                continue;
            };
            let ascending = setting.buckets.windows(2).all(|w| w.first() < w.last());
            if !ascending || setting.buckets.iter().any(|b| *b <= 0.0 || !b.is_finite()) {
                let found = format!("buckets {:?}", setting.buckets);
                problems.push(Problem {
                    path: format!("{path}.buckets"),
                    found,
                    remedy: "give positive numbers in ascending order".to_string(),
                });
                continue;
            }
            // `bins` only sizes a table of Envoy's histogram library; ours grows as needed.
            if !setting.buckets.is_empty() {
                buckets.push((name, setting.buckets.as_slice().into()));
            }
        }
        Self { matcher, tags: Extractors::compile(config, problems), buckets, default_buckets: BUCKETS.as_slice().into() }
    }
    /// Whether a stat of this full name exists.
    pub fn accepts(&self, name: &str) -> bool {
        match &self.matcher {
            Matcher::All => true,
            Matcher::None => false,
            Matcher::Only(names) => names.iter().any(|n| n.matches(name)),
            Matcher::Except(names) => !names.iter().any(|n| n.matches(name)),
        }
    }
    /// The buckets of histogram `name`: those of the first setting that matches.
    pub fn buckets(&self, name: &str) -> Arc<[f64]> {
        self.buckets.iter().find(|(n, _)| n.matches(name)).map_or(&self.default_buckets, |(_, b)| b).clone()
    }
}
