//! istio.alpn: chooses the ALPN that the upstream connection offers, by the protocol that the cluster speaks, so that the
//! peer's sidecar picks its HTTP filter chain. Runs on workers before the router; nuncio-upstream reads the result.
//! Source: `istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig`, Envoy contrib `istio/filters/http/alpn`.

use nuncio_core::diag::At;
use nuncio_core::filter::{FilterAction, FilterCx, HttpFilter, Needs};
use nuncio_core::filter_state::{APPLICATION_PROTOCOLS, ApplicationProtocols};
use nuncio_core::registry::{FactoryCx, HttpFilterFactory};
use nuncio_core::views::filter_metadata;
use nuncio_core::{ByteStr, HttpVersion};
use nuncio_proto::istio::envoy::config::filter::http::alpn::v2alpha1::FilterConfig;
use nuncio_proto::istio::envoy::config::filter::http::alpn::v2alpha1::filter_config::Protocol;
use prost::Message;
use std::sync::Arc;

/// Factory of `istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig`.
#[derive(Debug)]
pub struct Factory;

impl HttpFilterFactory for Factory {
    fn name(&self) -> &'static str {
        "istio.alpn"
    }
    fn types(&self) -> &'static [&'static str] {
        &["istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig"]
    }
    fn compile(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<dyn HttpFilter>> {
        let config = match FilterConfig::decode(config) {
            Ok(config) => config,
            Err(e) => {
                cx.report.error(at, format!("undecodable configuration ({e})"), "send istio.alpn's FilterConfig");
                return None;
            }
        };
        let mut filter = Filter::default();
        for (i, entry) in config.alpn_override.iter().enumerate() {
            let slot = match Protocol::try_from(entry.upstream_protocol) {
                Ok(Protocol::Http10) => &mut filter.http10,
                Ok(Protocol::Http11) => &mut filter.http11,
                Ok(Protocol::Http2) => &mut filter.http2,
                Err(_) => {
                    let list = at.field("alpn_override");
                    let entry_at = list.index(i);
                    let found = format!("unknown protocol {}", entry.upstream_protocol);
                    cx.report.error(&entry_at.field("upstream_protocol"), found, "use HTTP10, HTTP11 or HTTP2");
                    return None;
                }
            };
            // The first entry of a protocol counts, as in Envoy.
            if slot.is_none() && !entry.alpn_override.is_empty() {
                *slot = Some(Arc::new(ApplicationProtocols(entry.alpn_override.iter().map(|p| ByteStr::from(p.as_str())).collect())));
            }
        }
        Some(Arc::new(filter))
    }
}

#[derive(Debug, Default)]
struct Filter {
    http10: Option<Arc<ApplicationProtocols>>,
    http11: Option<Arc<ApplicationProtocols>>,
    http2: Option<Arc<ApplicationProtocols>>,
}

impl HttpFilter for Filter {
    fn needs(&self) -> Needs {
        Needs::REQUEST_HEADERS
    }
    fn on_request<'a>(&'a self, cx: FilterCx<'a>) -> FilterAction<'a> {
        let ex = cx.ex;
        let Some(cluster) = &ex.cluster else { return FilterAction::Continue };
        let istio = filter_metadata(cluster.metadata(), "istio");
        if istio.and_then(|i| i.fields.get("alpn_override")).is_some_and(|v| crate::peer::text(v) == "false") {
            return FilterAction::Continue;
        }
        let protocols = match cluster.upstream_protocol(ex.request.version) {
            HttpVersion::Http10 => &self.http10,
            HttpVersion::Http11 => &self.http11,
            HttpVersion::Http2 => &self.http2,
            HttpVersion::Http3 => &None,
        };
        if let Some(protocols) = protocols {
            ex.info.filter_state.set(APPLICATION_PROTOCOLS, protocols.clone());
        }
        FilterAction::Continue
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Method;
    use nuncio_core::RequestHead;
    use nuncio_core::test_kit::{self as kit, FakeCluster};
    use nuncio_proto::istio::envoy::config::filter::http::alpn::v2alpha1::filter_config::AlpnOverride;

    fn filter() -> Arc<dyn HttpFilter> {
        let entry = |p: Protocol, a: &[&str]| AlpnOverride {
            upstream_protocol: p.into(),
            alpn_override: a.iter().map(ToString::to_string).collect(),
        };
        let config = FilterConfig {
            alpn_override: vec![
                entry(Protocol::Http10, &["istio-http/1.0", "istio", "http/1.0"]),
                entry(Protocol::Http11, &["istio-http/1.1", "istio", "http/1.1"]),
                entry(Protocol::Http2, &["istio-h2", "istio", "h2"]),
            ],
        };
        kit::compile(&Factory, &config, &kit::server(Default::default())).unwrap()
    }

    async fn offered(cluster: Option<FakeCluster>) -> Option<String> {
        let mut ex = kit::exchange(RequestHead::new(Method::GET, "a", "/"));
        if let Some(cluster) = cluster {
            kit::send_to(&mut ex, cluster, None);
        }
        kit::request(&*filter(), "istio.alpn", &mut ex).await;
        ex.info
            .filter_state
            .get_as::<ApplicationProtocols>(APPLICATION_PROTOCOLS)
            .map(|p| p.0.iter().map(|s| s.as_str()).collect::<Vec<_>>().join(","))
    }

    #[tokio::test]
    async fn follows_the_cluster() {
        assert_eq!(offered(Some(FakeCluster::new("c"))).await.as_deref(), Some("istio-http/1.1,istio,http/1.1"));
        let h2 = FakeCluster { protocol: HttpVersion::Http2, ..FakeCluster::new("c") };
        assert_eq!(offered(Some(h2)).await.as_deref(), Some("istio-h2,istio,h2"));
        assert_eq!(offered(None).await, None);
    }

    #[tokio::test]
    async fn clusters_can_opt_out() {
        let metadata = kit::metadata("istio", kit::fields([("alpn_override", kit::text("false"))]));
        assert_eq!(offered(Some(FakeCluster { metadata: Some(metadata), ..FakeCluster::new("c") })).await, None);
    }

    #[test]
    fn unknown_protocols_are_refused() {
        let config = FilterConfig { alpn_override: vec![AlpnOverride { upstream_protocol: 9, alpn_override: vec![] }] };
        let error = kit::compile(&Factory, &config, &kit::server(Default::default())).unwrap_err();
        assert!(error.contains("alpn_override[0].upstream_protocol"), "{error}");
    }
}
