//! `MetadataMatcher` and `StructMatcher`: a value at a path of dynamic or static metadata.
//! Source: `envoy/type/matcher/v3/metadata.proto`, `struct.proto`.

use crate::ValueMatcher;
use nuncio_core::StreamInfo;
use nuncio_core::diag::{At, Report};
use nuncio_proto::envoy::config::core::v3::Metadata;
use nuncio_proto::envoy::r#type::matcher::v3 as proto;
use nuncio_proto::{Struct, Value};
use prost_types::value::Kind;

/// The value at `path` below `root`.
pub fn value_at<'a>(root: &'a Struct, path: &[Box<str>]) -> Option<&'a Value> {
    let (last, parents) = path.split_last()?;
    let mut here = root;
    for key in parents {
        match here.fields.get(key.as_ref())?.kind.as_ref()? {
            Kind::StructValue(next) => here = next,
            _ => return None,
        }
    }
    here.fields.get(last.as_ref())
}

/// A compiled `MetadataMatcher`.
#[derive(Clone, Debug)]
pub struct MetadataMatcher {
    filter: Box<str>,
    path: Box<[Box<str>]>,
    value: ValueMatcher,
    invert: bool,
}

impl MetadataMatcher {
    /// Compiles `MetadataMatcher`.
    pub fn compile(matcher: &proto::MetadataMatcher, at: &At<'_>, report: &mut Report) -> Option<Self> {
        use proto::metadata_matcher::path_segment::Segment;
        if matcher.filter.is_empty() {
            report.error(&at.field("filter"), "nothing", "name the metadata's namespace");
            return None;
        }
        let keys = matcher.path.iter().map(|s| s.segment.as_ref().map(|Segment::Key(key)| key.as_str()));
        let (path, value) = parts(keys, matcher.value.as_ref(), at, report)?;
        Some(Self { filter: matcher.filter.as_str().into(), path, value, invert: matcher.invert })
    }
    /// Whether the dynamic metadata of a stream matches.
    pub fn matches(&self, info: &StreamInfo) -> bool {
        self.matches_namespace(info.metadata(&self.filter))
    }
    /// Whether static metadata (of a route, cluster or endpoint) matches.
    pub fn matches_metadata(&self, metadata: Option<&Metadata>) -> bool {
        self.matches_namespace(nuncio_core::views::filter_metadata(metadata, &self.filter))
    }
    /// Whether the metadata that was found under [`Self::namespace`] matches.
    pub fn matches_namespace(&self, namespace: Option<&Struct>) -> bool {
        self.value.matches(namespace.and_then(|s| value_at(s, &self.path))) != self.invert
    }
    /// The namespace (`filter`) that is looked at.
    pub fn namespace(&self) -> &str {
        &self.filter
    }
}

/// A compiled `StructMatcher`.
#[derive(Clone, Debug)]
pub struct StructMatcher {
    path: Box<[Box<str>]>,
    value: ValueMatcher,
}

impl StructMatcher {
    /// Compiles `StructMatcher`.
    pub fn compile(matcher: &proto::StructMatcher, at: &At<'_>, report: &mut Report) -> Option<Self> {
        use proto::struct_matcher::path_segment::Segment;
        let keys = matcher.path.iter().map(|s| s.segment.as_ref().map(|Segment::Key(key)| key.as_str()));
        let (path, value) = parts(keys, matcher.value.as_ref(), at, report)?;
        Some(Self { path, value })
    }
    /// Whether `root` matches.
    pub fn matches(&self, root: &Struct) -> bool {
        self.value.matches(value_at(root, &self.path))
    }
}

type Parts = (Box<[Box<str>]>, ValueMatcher);

fn parts<'a>(
    keys: impl ExactSizeIterator<Item = Option<&'a str>>,
    value: Option<&proto::ValueMatcher>,
    at: &At<'_>,
    report: &mut Report,
) -> Option<Parts> {
    let at_path = at.field("path");
    if keys.len() == 0 {
        report.error(&at_path, "an empty path", "give at least one key");
        return None;
    }
    let mut path = Vec::with_capacity(keys.len());
    for (i, key) in keys.enumerate() {
        let Some(key) = key.filter(|k| !k.is_empty()) else {
            report.error(&at_path.index(i), "an empty segment", "give a key");
            return None;
        };
        path.push(key.into());
    }
    let Some(value) = value else {
        report.error(&at.field("value"), "nothing", "say which value is wanted");
        return None;
    };
    Some((path.into(), ValueMatcher::compile(value, &at.field("value"), report)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::metadata_matcher::{PathSegment, path_segment::Segment};

    fn structure(entries: &[(&str, Kind)]) -> Struct {
        Struct { fields: entries.iter().map(|(k, v)| (k.to_string(), Value { kind: Some(v.clone()) })).collect() }
    }

    #[test]
    fn walks_the_path() {
        let inner = structure(&[("role", Kind::StringValue("admin".into()))]);
        let root = structure(&[("claims", Kind::StructValue(inner)), ("flat", Kind::BoolValue(true))]);
        let matcher = |path: &[&str], invert| {
            let exact = proto::string_matcher::MatchPattern::Exact("admin".into());
            let value =
                proto::value_matcher::MatchPattern::StringMatch(proto::StringMatcher { ignore_case: false, match_pattern: Some(exact) });
            let proto = proto::MetadataMatcher {
                filter: "jwt".into(),
                path: path.iter().map(|k| PathSegment { segment: Some(Segment::Key(k.to_string())) }).collect(),
                value: Some(proto::ValueMatcher { match_pattern: Some(value) }),
                invert,
            };
            MetadataMatcher::compile(&proto, &At::Root, &mut Report::new()).unwrap()
        };
        assert!(matcher(&["claims", "role"], false).matches_namespace(Some(&root)));
        assert!(!matcher(&["claims", "role"], true).matches_namespace(Some(&root)));
        assert!(!matcher(&["flat", "role"], false).matches_namespace(Some(&root)));
        assert!(!matcher(&["claims"], false).matches_namespace(Some(&root)));
        assert!(!matcher(&["claims", "role"], false).matches_namespace(None));
        assert!(matcher(&["claims", "role"], true).matches_namespace(None));
    }

    #[test]
    fn refuses_without_path_or_value() {
        let mut report = Report::new();
        let proto = proto::MetadataMatcher { filter: "jwt".into(), ..Default::default() };
        assert!(MetadataMatcher::compile(&proto, &At::Root, &mut report).is_none());
        assert!(report.summary().starts_with("path: "));
    }
}
