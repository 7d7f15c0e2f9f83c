//! `FilterStateMatcher`: a condition on an object of filter state. Source: `envoy/type/matcher/v3/filter_state.proto`.

use crate::{IpSet, StringMatcher};
use nuncio_core::StreamInfo;
use nuncio_core::diag::{At, Report};
use nuncio_core::filter_state::{StateObject, StringState};
use nuncio_proto::envoy::r#type::matcher::v3 as proto;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// A compiled `FilterStateMatcher`.
#[derive(Clone, Debug)]
pub struct FilterStateMatcher {
    key: Box<str>,
    test: Test,
}

#[derive(Clone, Debug)]
enum Test {
    String(StringMatcher),
    Address { ranges: IpSet, invert: bool },
}

impl FilterStateMatcher {
    /// Compiles `FilterStateMatcher`.
    pub fn compile(matcher: &proto::FilterStateMatcher, at: &At<'_>, report: &mut Report) -> Option<Self> {
        use proto::filter_state_matcher::Matcher as M;
        if matcher.key.is_empty() {
            report.error(&at.field("key"), "nothing", "name the filter state object");
            return None;
        }
        let test = match &matcher.matcher {
            Some(M::StringMatch(s)) => Test::String(StringMatcher::compile(s, &at.field("string_match"), report)?),
            Some(M::AddressMatch(a)) => {
                let ranges = IpSet::compile_xds(&a.ranges, &at.field("address_match").field("ranges"), report)?;
                Test::Address { ranges, invert: a.invert_match }
            }
            None => {
                report.error(at, "no matcher", "set string_match or address_match");
                return None;
            }
        };
        Some(Self { key: matcher.key.as_str().into(), test })
    }
    /// Whether the object, of the stream or of its connection, matches. An object that is missing or has no such form does not.
    pub fn matches(&self, info: &StreamInfo) -> bool {
        // A text that reads like an address is none: whoever sets texts must not pass for one.
        let is_address = matches!(self.test, Test::Address { .. });
        let read = |object: &Arc<dyn StateObject>| match is_address && object.as_any().is::<StringState>() {
            true => None,
            false => object.as_string(),
        };
        let text = match info.filter_state.get(&self.key) {
            Some(object) => read(object),
            None => info.connection.filter_state.borrow().get(&self.key).and_then(read),
        };
        let Some(text) = text else { return false };
        match &self.test {
            Test::String(s) => s.matches(&text),
            Test::Address { ranges, invert } => {
                let address = text.parse::<IpAddr>().or_else(|_| text.parse::<SocketAddr>().map(|a| a.ip()));
                address.is_ok_and(|a| ranges.contains(a) != *invert)
            }
        }
    }
}
