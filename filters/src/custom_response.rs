//! envoy.filters.http.custom_response: answers that match, of upstreams and of the proxy, are replaced by a local one, or by another route's.
//! Source: `envoy/extensions/filters/http/custom_response/v3/custom_response.proto` and its local response policy.

mod redirect;

use crate::config::{decode, read_source};
use bytes::Bytes;
use nuncio_core::diag::{At, Report};
use nuncio_core::filter::{FilterAction, FilterCx, HttpFilter, Needs};
use nuncio_core::registry::{FactoryCx, HttpFilterFactory};
use nuncio_core::stats::Scope;
use nuncio_core::views::PerFilterConfig;
use nuncio_core::{Body, Headers, LocalReply};
use nuncio_format::{FormatContext, Formatter};
use nuncio_matcher::{MatchData, MatchTree};
use nuncio_proto::envoy::extensions::filters::http::custom_response::v3::CustomResponse;
use nuncio_proto::envoy::extensions::http::custom_response::local_response_policy::v3 as local;
use nuncio_proto::envoy::extensions::http::custom_response::redirect_policy::v3::RedirectPolicy;
use nuncio_proto::xds::core::v3::TypedExtensionConfig;
use nuncio_proto::{Name, typed};
use nuncio_route::HeaderParser;
use redirect::Redirect;
use smallvec::SmallVec;
use std::any::Any;
use std::borrow::Cow;
use std::sync::Arc;

/// Factory of `envoy.extensions.filters.http.custom_response.v3.CustomResponse`, on listeners and per route.
#[derive(Debug)]
pub struct Factory;

impl HttpFilterFactory for Factory {
    fn name(&self) -> &'static str {
        "envoy.filters.http.custom_response"
    }
    fn types(&self) -> &'static [&'static str] {
        &["envoy.extensions.filters.http.custom_response.v3.CustomResponse"]
    }
    fn route_types(&self) -> &'static [&'static str] {
        self.types()
    }
    fn compile(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<dyn HttpFilter>> {
        Some(Arc::new(Filter(Policies::compile(config, at, cx)?)))
    }
    fn compile_route(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<dyn Any + Send + Sync>> {
        Some(Arc::new(Policies::compile(config, at, cx)?))
    }
}

/// Which response is replaced by what.
#[derive(Debug)]
struct Policies(Option<MatchTree<Policy>>);

impl Policies {
    fn compile(config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Self> {
        let config: CustomResponse = decode(config, at, cx.report)?;
        let Some(matcher) = &config.custom_response_matcher else { return Some(Self(None)) };
        let scope = cx.scope;
        let mut policy = |action: &TypedExtensionConfig, at: &At<'_>, report: &mut Report| Policy::compile(action, at, scope, report);
        let tree = MatchTree::compile(matcher, &at.field("custom_response_matcher"), cx.report, &mut policy)?;
        Some(Self(Some(tree)))
    }
}

#[derive(Debug)]
enum Policy {
    Local(Box<Local>),
    Redirect(Arc<Redirect>),
}

impl Policy {
    fn compile(action: &TypedExtensionConfig, at: &At<'_>, scope: &Scope, report: &mut Report) -> Option<Self> {
        let at = at.field("typed_config");
        let any = action.typed_config.clone().unwrap_or_default();
        let typed = match typed::unpack(&any) {
            Ok(typed) => typed,
            Err(why) => {
                report.error(&at, why, "give a response policy");
                return None;
            }
        };
        if typed.name == local::LocalResponsePolicy::full_name() {
            Some(Self::Local(Box::new(Local::compile(&decode(&typed.value, &at, report)?, &at, report)?)))
        } else if typed.name == RedirectPolicy::full_name() {
            Some(Self::Redirect(Arc::new(Redirect::compile(&decode(&typed.value, &at, report)?, &at, scope, report)?)))
        } else {
            report.unsupported(&at, format_args!("response policy {}", typed.name));
            None
        }
    }
}

/// A local answer.
#[derive(Debug)]
struct Local {
    body: Option<Bytes>,
    format: Option<Formatter>,
    status: Option<u16>,
    headers: HeaderParser,
    details: Details,
}

#[derive(Debug)]
enum Details {
    None,
    Keep,
    Own(String),
}

impl Local {
    fn compile(policy: &local::LocalResponsePolicy, at: &At<'_>, report: &mut Report) -> Option<Self> {
        let body = match &policy.body {
            Some(source) if source.specifier.is_some() => Some(read_source(source, &at.field("body"), report)?.into()),
            _ => None,
        };
        let format = match &policy.body_format {
            Some(format) => Some(Formatter::compile(format, &at.field("body_format"), report)?),
            None => None,
        };
        let status = match policy.status_code {
            None => None,
            Some(code) => match u16::try_from(code).ok().filter(|c| (200..600).contains(c)) {
                Some(code) => Some(code),
                None => {
                    report.error(&at.field("status_code"), code.to_string(), "give a status from 200 to 599");
                    return None;
                }
            },
        };
        let headers = HeaderParser::compile(&policy.response_headers_to_add, &at.field("response_headers_to_add"), &[], &At::Root, report)?;
        use local::local_response_policy::ResponseCodeDetailsAction as Action;
        let details = match &policy.response_code_details_action {
            None | Some(Action::PreserveResponseCodeDetails(false)) => Details::None,
            Some(Action::PreserveResponseCodeDetails(true)) => Details::Keep,
            Some(Action::ResponseCodeDetails(details)) => Details::Own(details.clone()),
        };
        Some(Self { body, format, status, headers, details })
    }
}

/// The filter saw the request.
struct Seen;

#[derive(Debug)]
struct Filter(Policies);

impl HttpFilter for Filter {
    fn needs(&self) -> Needs {
        Needs::REQUEST_HEADERS.and(Needs::RESPONSE_HEADERS)
    }
    fn on_request<'a>(&'a self, mut cx: FilterCx<'a>) -> FilterAction<'a> {
        cx.set_state(Seen);
        FilterAction::Continue
    }
    fn on_response(&self, mut cx: FilterCx<'_>) {
        let seen = cx.state::<Seen>().is_some();
        if redirect::finish(cx.ex) {
            return;
        }
        // The most specific configuration that has an answer, the listener's last.
        let mut routes: SmallVec<[Arc<Policies>; 3]> = SmallVec::new();
        if let Some(route) = &cx.ex.route {
            route.filter_configs(cx.name, &mut |config| {
                if let PerFilterConfig::Config(any) = config {
                    routes.extend(any.clone().downcast::<Policies>());
                }
            });
        }
        let ex = cx.ex;
        let Some(response) = &ex.response else { return };
        let connection = Some(&*ex.info.connection);
        let data =
            MatchData { request: Some(&ex.request), response: Some(response), info: Some(&ex.info), connection, ..MatchData::default() };
        let all = routes.iter().rev().map(AsRef::as_ref).chain([&self.0]);
        let Some(policy) = all.filter_map(|p| p.0.as_ref()).find_map(|tree| tree.find(&data)) else { return };
        let policy = match policy {
            Policy::Local(policy) => policy,
            Policy::Redirect(policy) => {
                // What the proxy answers before filters see the request stays as it is.
                if seen {
                    policy.clone().begin(ex);
                }
                return;
            }
        };
        let body = match &policy.format {
            None => policy.body.clone().unwrap_or_default(),
            Some(format) => {
                let body = match (&policy.body, &ex.response_body) {
                    (Some(body), _) => body.as_ref(),
                    // The proxy's own answer, which is there as a whole.
                    (None, Body::Full(body)) => body.as_ref(),
                    (None, _) => b"",
                };
                let mut text = String::new();
                let context =
                    FormatContext { local_reply_body: std::str::from_utf8(body).unwrap_or_default(), ..FormatContext::exchange(ex) };
                format.format(&context, &mut text);
                text.into()
            }
        };
        let details = match &policy.details {
            Details::None => Cow::Borrowed(""),
            Details::Keep => ex.info.details.clone().unwrap_or_default(),
            Details::Own(details) => Cow::Owned(details.clone()),
        };
        let mut headers = Headers::new();
        policy.headers.apply(&mut headers, &FormatContext::exchange(ex));
        let mut reply = LocalReply::new(policy.status.unwrap_or(response.status.as_u16()), body, details);
        reply.headers = headers;
        ex.replacement = Some(Box::new(reply));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, Method, StatusCode};
    use nuncio_core::test_kit::{self as kit, FakeRoute};
    use nuncio_core::{Exchange, RequestHead, ResponseHead};
    use nuncio_proto::json::{UnknownFields, parse_text};

    fn config(status: &str, policy: &str) -> CustomResponse {
        let input = "{name: i, typed_config: {'@type': type.googleapis.com/envoy.type.matcher.v3.HttpResponseStatusCodeMatchInput}}";
        let action = format!("{{name: a, typed_config: {{'@type': type.googleapis.com/envoy.extensions.http.custom_response.{policy}}}}}");
        let yaml = format!(
            "custom_response_matcher: {{matcher_list: {{matchers: [{{predicate: {{single_predicate: {{input: {input}, value_match: {{exact: '{status}'}}}}}}, on_match: {{action: {action}}}}}]}}}}"
        );
        parse_text(&yaml, UnknownFields::Refuse).unwrap_or_else(|e| panic!("{e}: {yaml}")).value
    }
    const LOCAL: &str = "local_response_policy.v3.LocalResponsePolicy";

    fn run(filter: &dyn HttpFilter, status: u16, route: Option<Arc<dyn Any + Send + Sync>>) -> Exchange {
        let mut ex = kit::exchange(RequestHead::new(Method::GET, "host", "/p"));
        ex.info.details = Some("via_upstream".into());
        if let Some(route) = route {
            ex.route = Some(Arc::new(FakeRoute::new("r", "c").with("c", route)));
        }
        kit::respond(filter, "c", &mut ex, ResponseHead::new(StatusCode::from_u16(status).unwrap()), Body::Empty);
        ex
    }

    #[test]
    fn what_matches_is_replaced() {
        let server = kit::server(Default::default());
        let rich = format!(
            "{LOCAL}, status_code: 418, body: {{inline_string: b}}, body_format: {{text_format_source: {{inline_string: '%RESPONSE_CODE% %REQ(:PATH)% %LOCAL_REPLY_BODY%'}}}}, response_headers_to_add: [{{header: {{key: x-a, value: '1'}}}}], preserve_response_code_details: true"
        );
        let filter = kit::compile(&Factory, &config("503", &rich), &server).unwrap();
        let reply = run(&*filter, 503, None).replacement.unwrap();
        assert_eq!((reply.status, reply.body.as_ref(), reply.details.as_ref()), (418, b"503 /p b".as_slice(), "via_upstream"));
        assert_eq!(reply.headers.get_str(&HeaderName::from_static("x-a")), Some("1"));
        assert!(run(&*filter, 500, None).replacement.is_none());
        let own = format!("{LOCAL}, body: {{inline_string: of the route}}, response_code_details: mine");
        let route = kit::compile_route(&Factory, &config("404", &own), &server).unwrap();
        let reply = run(&*filter, 404, Some(route.clone())).replacement.unwrap();
        assert_eq!((reply.status, reply.body.as_ref(), reply.details.as_ref()), (404, b"of the route".as_slice(), "mine"));
        assert_eq!(run(&*filter, 503, Some(route.clone())).replacement.unwrap().status, 418);
        assert!(run(&*filter, 500, Some(route)).replacement.is_none());
    }

    #[test]
    fn other_policies_are_refused() {
        let server = kit::server(Default::default());
        for (redirect, named) in [
            ("", "neither uri nor"),
            (", uri: '/relative'", "/relative"),
            (", uri: 'ftp://x/'", "ftp"),
            (", uri: 'http://x/', status_code: 700", "700"),
            (", redirect_action: {path_redirect: '/a#b'}", "fragment"),
            (", redirect_action: {prefix_rewrite: '/a'}", "path_redirect"),
            (", uri: 'http://x/', modify_request_headers_action: {name: x}", "modify_request_headers_action"),
        ] {
            let redirect = format!("redirect_policy.v3.RedirectPolicy{redirect}");
            let error = kit::compile(&Factory, &config("503", &redirect), &server).unwrap_err();
            assert!(error.contains(named), "{redirect}: {error}");
        }
        let bad = format!("{LOCAL}, status_code: 99");
        assert!(kit::compile(&Factory, &config("503", &bad), &server).unwrap_err().contains("99"));
    }
}
