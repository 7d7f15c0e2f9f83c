//! envoy.filters.network.sni_dynamic_forward_proxy: looks up the server name that a TLS client asks for, before tcp_proxy connects to
//! it. The connection waits in tcp_proxy. Source: `envoy/extensions/filters/network/sni_dynamic_forward_proxy/v3`.

use crate::config::decode;
use bytes::BytesMut;
use nuncio_core::diag::At;
use nuncio_core::filter_state::StringState;
use nuncio_core::network::{NetworkAction, NetworkFilter, NetworkFilterConfig};
use nuncio_core::registry::{FactoryCx, NetworkFilterFactory};
use nuncio_core::{ConnectionInfo, StreamInfo};
use nuncio_proto::envoy::extensions::filters::network::sni_dynamic_forward_proxy::v3 as proto;
use nuncio_upstream::LbContext;
use nuncio_upstream::forward_proxy::{self, DYNAMIC_PORT, DnsCache, DnsCaches, Lookup, WaitForLookup};
use std::rc::Rc;
use std::sync::Arc;

/// Factory of `envoy.extensions.filters.network.sni_dynamic_forward_proxy.v3.FilterConfig`.
#[derive(Debug)]
pub struct SniFactory;

impl NetworkFilterFactory for SniFactory {
    fn name(&self) -> &'static str {
        "envoy.filters.network.sni_dynamic_forward_proxy"
    }
    fn types(&self) -> &'static [&'static str] {
        &["envoy.extensions.filters.network.sni_dynamic_forward_proxy.v3.FilterConfig"]
    }
    fn compile(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<dyn NetworkFilterConfig>> {
        let proto: proto::FilterConfig = decode(config, at, cx.report)?;
        let port = match proto.port_specifier {
            None => 443,
            Some(proto::filter_config::PortSpecifier::PortValue(port)) => match u16::try_from(port) {
                Ok(port) if port > 0 => port,
                _ => {
                    cx.report.error(&at.field("port_value"), port.to_string(), "1 to 65535");
                    return None;
                }
            },
        };
        let at = at.field("dns_cache_config");
        let cache = DnsCaches::of(cx.server).cache(&proto.dns_cache_config.unwrap_or_default(), cx.server, &at, cx.report)?;
        if proto.save_upstream_address {
            cx.report.warning(&at, "save_upstream_address", "the address of a TCP upstream is %UPSTREAM_REMOTE_ADDRESS%");
        }
        Some(Arc::new(Config { cache, port }))
    }
}

#[derive(Debug)]
struct Config {
    cache: Arc<DnsCache>,
    port: u16,
}

impl NetworkFilterConfig for Config {
    fn create(&self, _connection: &Rc<ConnectionInfo>) -> Option<Box<dyn NetworkFilter>> {
        Some(Box::new(Filter { cache: self.cache.clone(), port: self.port }))
    }
}

struct Filter {
    cache: Arc<DnsCache>,
    port: u16,
}

impl NetworkFilter for Filter {
    fn on_new(&mut self, info: &mut StreamInfo, _write: &mut BytesMut) -> NetworkAction {
        let context = LbContext { downstream: Some(&info.connection), ..LbContext::default() };
        let Some((host, port)) = forward_proxy::wanted(Some(info), &context, self.port) else { return NetworkAction::Continue };
        let Some(pending) = self.cache.admit() else {
            return NetworkAction::Close("dynamic_forward_proxy_pending_request_overflow".into());
        };
        // The cluster has to look for the same name.
        info.filter_state.set(DYNAMIC_PORT, Arc::new(StringState(port.to_string())));
        match self.cache.look_up(&host, port) {
            Lookup::Known(_) => NetworkAction::Continue,
            Lookup::Loading(entry) => {
                info.filter_state.set(WaitForLookup::KEY, Arc::new(WaitForLookup::new(entry, pending)));
                NetworkAction::Continue
            }
            Lookup::Overflow => NetworkAction::Close("dns_cache_overflow".into()),
        }
    }
    fn wants_data(&self) -> bool {
        false
    }
}
