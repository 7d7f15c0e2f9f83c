//! Configuration as text: it compiles or is refused, nothing panics, and a table that compiles routes.

use crate::routing;
use http::Method;
use nuncio_core::diag::Report;
use nuncio_core::{RequestHead, test_kit};
use nuncio_proto::envoy::config::bootstrap::v3::Bootstrap;
use nuncio_proto::envoy::config::cluster::v3::Cluster;
use nuncio_proto::envoy::config::listener::v3::Listener;
use nuncio_proto::envoy::config::route::v3::RouteConfiguration;
use nuncio_proto::json::{UnknownFields, parse_text};

/// JSON or YAML of any of the roots.
pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for unknown in [UnknownFields::Refuse, UnknownFields::Ignore] {
        let _ = parse_text::<Bootstrap>(text, unknown);
        let _ = parse_text::<Cluster>(text, unknown);
        let _ = parse_text::<Listener>(text, unknown);
    }
    let Ok(read) = parse_text::<RouteConfiguration>(text, UnknownFields::Refuse) else { return };
    let server = test_kit::server(Default::default());
    let mut report = Report::new();
    if let Some(table) = routing::compile(&read.value, &server, &mut report) {
        for (host, path) in [("a.test", "/"), ("x.b.test:80", "/a/b?c=d"), ("", "/%00"), ("[::1]", "/exact")] {
            routing::route(&table, &server, RequestHead::new(Method::GET, host, path));
        }
    }
}
