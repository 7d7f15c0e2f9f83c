//! `core.v3.HttpUri`: a cluster, and the authority and path of a request to it. Compiled on the control thread.

use http::{Method, Uri};
use nuncio_core::diag::{At, Report};
use nuncio_core::registry::Server;
use nuncio_core::views::ClusterSlot;
use nuncio_core::{ByteStr, RequestHead};
use nuncio_proto::envoy::config::core::v3::{HttpUri, http_uri::HttpUpstreamType};
use std::sync::Arc;
use std::time::Duration;

/// A compiled `HttpUri`.
#[derive(Clone, Debug)]
pub struct HttpTarget {
    /// Where to find the cluster.
    pub slot: Arc<ClusterSlot>,
    /// `http` or `https`.
    pub scheme: ByteStr,
    pub authority: ByteStr,
    /// Path and query; `/` if the URI has none.
    pub path: ByteStr,
    /// `HttpUri.timeout`.
    pub timeout: Duration,
}

impl HttpTarget {
    /// Compiles `uri`. None means refused.
    pub fn compile(uri: &HttpUri, server: &Server, at: &At<'_>, report: &mut Report) -> Option<Self> {
        let cluster = match &uri.http_upstream_type {
            Some(HttpUpstreamType::Cluster(name)) if !name.is_empty() => name,
            _ => {
                report.error(&at.field("cluster"), "no cluster", "name the cluster to call");
                return None;
            }
        };
        let timeout = uri.timeout.and_then(|t| Duration::try_from(t).ok());
        let Some(timeout) = timeout else {
            report.error(&at.field("timeout"), format!("{:?}", uri.timeout), "give a timeout that is not negative");
            return None;
        };
        let (scheme, rest) = match uri.uri.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => ("https", rest),
            Some((_, rest)) => ("http", rest),
            None => ("http", uri.uri.as_str()),
        };
        let cut = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(cut);
        let path = match path.as_bytes().first() {
            Some(b'/') => path.to_string(),
            _ => format!("/{path}"),
        };
        let valid = !authority.is_empty() && authority.parse::<http::uri::Authority>().is_ok() && path.parse::<Uri>().is_ok();
        if !valid {
            report.error(&at.field("uri"), format!("{:?}", uri.uri), "give a URI with a host, as https://host/path");
            return None;
        }
        let slot = server.clusters.slot(cluster);
        Some(Self { slot, scheme: ByteStr::from_static(scheme), authority: authority.to_string().into(), path: path.into(), timeout })
    }
    /// A request for the URI's path.
    pub fn request(&self, method: Method) -> RequestHead {
        let mut head = RequestHead::new(method, self.authority.clone(), self.path.clone());
        head.scheme = self.scheme.clone();
        head
    }
}
