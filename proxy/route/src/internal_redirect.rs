//! Internal redirect policies: which redirects of the upstream the router follows itself. Source: InternalRedirectPolicy.

use crate::cx::RouteCx;
use crate::headers::is_modifiable;
use http::HeaderName;
use nuncio_core::diag::At;
use nuncio_proto::envoy::config::route::v3 as proto;
use nuncio_proto::envoy::extensions::internal_redirect::allow_listed_routes::v3::AllowListedRoutesConfig;

/// A compiled internal redirect policy.
#[derive(Debug)]
pub struct InternalRedirectPolicy {
    /// How many redirects one request may take. Default 1.
    pub max_internal_redirects: u32,
    /// Status codes that are followed: 302 by default.
    pub codes: Vec<u16>,
    /// All must accept the route that the redirect leads to.
    pub predicates: Vec<RedirectPredicate>,
    /// Whether http may redirect to https and back.
    pub allow_cross_scheme_redirect: bool,
    /// Headers of the redirect response that go into the new request.
    pub response_headers_to_copy: Vec<HeaderName>,
}

/// A condition on the route that a redirect leads to.
#[derive(Debug)]
pub enum RedirectPredicate {
    /// The route was not taken before by a redirect from this route.
    PreviousRoutes,
    /// The route's name is one of these.
    AllowListedRoutes(Vec<String>),
    /// From https to http, or the same scheme.
    SafeCrossScheme,
}

const PREVIOUS_ROUTES: &str = "envoy.extensions.internal_redirect.previous_routes.v3.PreviousRoutesConfig";
const SAFE_CROSS_SCHEME: &str = "envoy.extensions.internal_redirect.safe_cross_scheme.v3.SafeCrossSchemeConfig";

impl InternalRedirectPolicy {
    /// Compiles `internal_redirect_policy`, or the deprecated fields; the outer `None` means refused.
    #[allow(deprecated)]
    pub(crate) fn compile(action: &proto::RouteAction, at: &At<'_>, cx: &mut RouteCx<'_>) -> Option<Option<Self>> {
        let Some(policy) = &action.internal_redirect_policy else {
            let handle = proto::route_action::InternalRedirectAction::HandleInternalRedirect as i32;
            let policy = (action.internal_redirect_action == handle).then(|| Self {
                max_internal_redirects: action.max_internal_redirects.unwrap_or(1),
                codes: vec![302],
                predicates: Vec::new(),
                allow_cross_scheme_redirect: false,
                response_headers_to_copy: Vec::new(),
            });
            return Some(policy);
        };
        let at = at.field("internal_redirect_policy");
        let mut codes = Vec::new();
        for (i, code) in policy.redirect_response_codes.iter().enumerate() {
            match code {
                301 | 302 | 303 | 307 | 308 => codes.extend(u16::try_from(*code).ok()),
                other => cx.report.warning(
                    &at.field("redirect_response_codes").index(i),
                    other.to_string(),
                    "ignored, as Envoy does: only 301, 302, 303, 307 and 308 are followed",
                ),
            }
        }
        if policy.redirect_response_codes.is_empty() {
            codes.push(302);
        }
        let mut predicates = Vec::with_capacity(policy.predicates.len());
        for (i, predicate) in policy.predicates.iter().enumerate() {
            let at = at.field("predicates");
            let at = at.index(i);
            let at = at.field("typed_config");
            let Some(config) = &predicate.typed_config else {
                return cx.refuse(&at, format!("predicate \"{}\" without configuration", predicate.name), "set typed_config");
            };
            let typed = match nuncio_proto::typed::unpack(config) {
                Ok(typed) => typed,
                Err(why) => return cx.refuse(&at, why, "give a valid configuration"),
            };
            predicates.push(match typed.name.as_str() {
                PREVIOUS_ROUTES => RedirectPredicate::PreviousRoutes,
                SAFE_CROSS_SCHEME => RedirectPredicate::SafeCrossScheme,
                other => match nuncio_proto::typed::unpack_as::<AllowListedRoutesConfig>(config) {
                    Ok(config) => RedirectPredicate::AllowListedRoutes(config.allowed_route_names),
                    Err(_) => {
                        cx.report.unsupported(&at, format_args!("internal redirect predicate {other}"));
                        return None;
                    }
                },
            });
        }
        let mut response_headers_to_copy = Vec::new();
        for (i, name) in policy.response_headers_to_copy.iter().enumerate() {
            match HeaderName::from_bytes(name.as_bytes()) {
                Ok(parsed) if is_modifiable(name) => response_headers_to_copy.push(parsed),
                _ => {
                    let at = at.field("response_headers_to_copy");
                    return cx.refuse(
                        &at.index(i),
                        format!("\"{name}\""),
                        "give a header name that is neither host nor begins with a colon",
                    );
                }
            }
        }
        Some(Some(Self {
            max_internal_redirects: policy.max_internal_redirects.unwrap_or(1),
            codes,
            predicates,
            allow_cross_scheme_redirect: policy.allow_cross_scheme_redirect,
            response_headers_to_copy,
        }))
    }
}
