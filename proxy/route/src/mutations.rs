//! `HeaderMutations`: a list of `HeaderMutation`s applied one after the other, as early header mutation, the header_mutation
//! filter and request mirroring use it. Source: `envoy/config/common/mutation_rules/v3/mutation_rules.proto`.

use crate::HeaderParser;
use nuncio_core::diag::{At, Report};
use nuncio_core::views::RouteView;
use nuncio_core::{Headers, RequestHead, ResponseHead, StreamInfo};
use nuncio_format::FormatContext;
use nuncio_matcher::StringMatcher;
use nuncio_proto::envoy::config::common::mutation_rules::v3::HeaderMutation;
use nuncio_proto::envoy::config::common::mutation_rules::v3::header_mutation::Action;

/// A compiled list of header mutations.
#[derive(Debug, Default)]
pub struct HeaderMutations {
    steps: Box<[Step]>,
}

#[derive(Debug)]
enum Step {
    /// One addition or one removal.
    Parser(HeaderParser),
    RemoveOnMatch(StringMatcher),
}

impl HeaderMutations {
    /// Compiles a repeated `HeaderMutation`.
    pub fn compile(mutations: &[HeaderMutation], at: &At<'_>, report: &mut Report) -> Option<Self> {
        let steps = nuncio_matcher::compile_all(mutations, at, report, |mutation, at, report| match &mutation.action {
            Some(Action::Remove(name)) => HeaderParser::removal(name, &at.field("remove"), report).map(Step::Parser),
            Some(Action::Append(option)) => HeaderParser::addition(option, &at.field("append"), report).map(Step::Parser),
            Some(Action::RemoveOnMatch(remove)) => {
                let at = at.field("remove_on_match");
                let Some(matcher) = &remove.key_matcher else {
                    report.error(&at.field("key_matcher"), "nothing", "say which headers are removed");
                    return None;
                };
                StringMatcher::compile(matcher, &at.field("key_matcher"), report).map(Step::RemoveOnMatch)
            }
            None => {
                report.error(at, "no action", "set remove, append or remove_on_match");
                None
            }
        })?;
        Some(Self { steps })
    }
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }
    /// Mutates a request's headers.
    pub fn apply_request(&self, request: &mut RequestHead, info: &StreamInfo, route: Option<&dyn RouteView>) {
        for step in &self.steps {
            match step {
                Step::Parser(parser) => parser.apply_request(request, info, route),
                Step::RemoveOnMatch(matcher) => remove_matching(&mut request.headers, matcher),
            }
        }
    }
    /// Mutates a response's headers.
    pub fn apply_response(
        &self,
        response: &mut ResponseHead,
        request: Option<&RequestHead>,
        info: &StreamInfo,
        route: Option<&dyn RouteView>,
    ) {
        for step in &self.steps {
            match step {
                Step::Parser(parser) => parser.apply_response(response, request, info, route),
                Step::RemoveOnMatch(matcher) => remove_matching(&mut response.headers, matcher),
            }
        }
    }
    /// Mutates headers that are in neither head of `cx`, such as trailers.
    pub fn apply(&self, headers: &mut Headers, cx: &FormatContext<'_>) {
        for step in &self.steps {
            match step {
                Step::Parser(parser) => parser.apply(headers, cx),
                Step::RemoveOnMatch(matcher) => remove_matching(headers, matcher),
            }
        }
    }
}

impl HeaderMutations {
    /// The same with values computed now, for headers that come when `cx` is out of reach: [`Self::apply_resolved`].
    pub fn resolved(&self, cx: &FormatContext<'_>) -> Self {
        let steps = self.steps.iter().map(|step| match step {
            Step::Parser(parser) => Step::Parser(parser.resolved(cx)),
            Step::RemoveOnMatch(matcher) => Step::RemoveOnMatch(matcher.clone()),
        });
        Self { steps: steps.collect() }
    }
    /// Mutates `headers` by what [`Self::resolved`] gave.
    pub fn apply_resolved(&self, headers: &mut Headers) {
        for step in &self.steps {
            match step {
                Step::Parser(parser) => parser.apply_resolved(headers),
                Step::RemoveOnMatch(matcher) => remove_matching(headers, matcher),
            }
        }
    }
}

fn remove_matching(headers: &mut Headers, matcher: &StringMatcher) {
    headers.retain(|name, _| !matcher.matches(name.as_str()));
}
