//! envoy.filters.http.set_filter_state: puts formatted text into filter state, for other filters and the upstream connection.
//! Source: `envoy/extensions/filters/http/set_filter_state/v3/set_filter_state.proto`.

use crate::config::decode;
use nuncio_core::ByteStr;
use nuncio_core::diag::{At, Report};
use nuncio_core::filter::{FilterAction, FilterCx, HttpFilter, Needs};
use nuncio_core::filter_state::{APPLICATION_PROTOCOLS, ApplicationProtocols, StateObject, StringState};
use nuncio_core::registry::{FactoryCx, HttpFilterFactory};
use nuncio_format::{FormatContext, Formatter};
use nuncio_proto::envoy::extensions::filters::common::set_filter_state::v3::FilterStateValue;
use nuncio_proto::envoy::extensions::filters::common::set_filter_state::v3::filter_state_value::{Key, Value};
use nuncio_proto::envoy::extensions::filters::http::set_filter_state::v3::Config;
use std::sync::Arc;

/// Object factories whose objects are text to whoever reads them.
const TEXT: [&str; 12] = [
    "envoy.string",
    "envoy.hashable_string",
    "istio.hashable_string",
    "envoy.network.upstream_server_name",
    "envoy.network.upstream_subject_alt_names",
    "envoy.tcp_proxy.cluster",
    "envoy.upstream.dynamic_host",
    "envoy.upstream.dynamic_port",
    "envoy.tcp_proxy.disable_tunneling",
    "envoy.network.transport_socket.original_dst_address",
    "envoy.filters.listener.original_dst.local_ip",
    "envoy.filters.listener.original_dst.remote_ip",
];

/// Factory of `envoy.extensions.filters.http.set_filter_state.v3.Config`.
#[derive(Debug)]
pub struct Factory;

impl HttpFilterFactory for Factory {
    fn name(&self) -> &'static str {
        "envoy.filters.http.set_filter_state"
    }
    fn types(&self) -> &'static [&'static str] {
        &["envoy.extensions.filters.http.set_filter_state.v3.Config"]
    }
    fn compile(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<dyn HttpFilter>> {
        let config: Config = decode(config, at, cx.report)?;
        let errors = cx.report.errors();
        let list = at.field("on_request_headers");
        let each = config.on_request_headers.iter().enumerate();
        let entries: Vec<_> = each.filter_map(|(i, value)| Entry::compile(value, &list.index(i), cx.report)).collect();
        (cx.report.errors() == errors).then(|| Arc::new(Filter { entries, clear_route: config.clear_route_cache }) as Arc<dyn HttpFilter>)
    }
}

#[derive(Debug)]
struct Entry {
    key: String,
    format: Formatter,
    skip_empty: bool,
    protocols: bool,
}

impl Entry {
    fn compile(p: &FilterStateValue, at: &At<'_>, report: &mut Report) -> Option<Self> {
        let Some(Key::ObjectKey(key)) = &p.key else {
            report.error(&at.field("object_key"), "nothing", "name the object");
            return None;
        };
        let factory = if p.factory_key.is_empty() { key } else { &p.factory_key };
        let protocols = factory == APPLICATION_PROTOCOLS;
        if !protocols && !TEXT.contains(&factory.as_str()) {
            report.unsupported(&at.field("factory_key"), format_args!("filter state object {factory:?}"));
            return None;
        }
        if p.shared_with_upstream != 0 {
            report.warning(
                &at.field("shared_with_upstream"),
                "a value",
                "it only matters for internal listeners, which Nuncio does not have",
            );
        }
        let Some(Value::FormatString(format)) = &p.value else {
            report.error(&at.field("format_string"), "nothing", "give the object a value");
            return None;
        };
        let format = Formatter::compile(format, &at.field("format_string"), report)?;
        // read_only only keeps other filters from writing the object; here none but this one writes objects by name.
        Some(Self { key: key.clone(), format, skip_empty: p.skip_if_empty, protocols })
    }
}

#[derive(Debug)]
struct Filter {
    entries: Vec<Entry>,
    clear_route: bool,
}

impl HttpFilter for Filter {
    fn needs(&self) -> Needs {
        Needs::REQUEST_HEADERS
    }
    fn on_request<'a>(&'a self, cx: FilterCx<'a>) -> FilterAction<'a> {
        let ex = cx.ex;
        for entry in &self.entries {
            let mut text = String::new();
            entry.format.format(&FormatContext::exchange(ex), &mut text);
            if text.is_empty() && entry.skip_empty {
                continue;
            }
            let object: Arc<dyn StateObject> = if entry.protocols {
                Arc::new(ApplicationProtocols(text.split(',').map(|p| ByteStr::from(p.trim())).collect()))
            } else {
                Arc::new(StringState(text))
            };
            ex.info.filter_state.set(entry.key.clone(), object);
        }
        ex.route_cleared |= self.clear_route;
        FilterAction::Continue
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Method;
    use nuncio_core::RequestHead;
    use nuncio_core::test_kit as kit;
    use nuncio_proto::envoy::config::core::v3::data_source::Specifier;
    use nuncio_proto::envoy::config::core::v3::substitution_format_string::Format;
    use nuncio_proto::envoy::config::core::v3::{DataSource, SubstitutionFormatString};

    fn value(key: &str, factory: &str, text: &str) -> FilterStateValue {
        let source = DataSource { specifier: Some(Specifier::InlineString(text.into())), ..Default::default() };
        let format =
            SubstitutionFormatString { format: Some(Format::TextFormatSource(source)), omit_empty_values: true, ..Default::default() };
        FilterStateValue {
            key: Some(Key::ObjectKey(key.into())),
            factory_key: factory.into(),
            value: Some(Value::FormatString(format)),
            skip_if_empty: true,
            ..Default::default()
        }
    }

    #[tokio::test]
    async fn sets_objects() {
        let values =
            vec![value("my.key", "envoy.string", "fixed"), value(APPLICATION_PROTOCOLS, "", "a, b"), value("my.empty", "envoy.string", "")];
        let config = Config { on_request_headers: values, clear_route_cache: true };
        let filter = kit::compile(&Factory, &config, &kit::server(Default::default())).unwrap();
        let mut ex = kit::exchange(RequestHead::new(Method::GET, "shop", "/"));
        kit::request(&*filter, "s", &mut ex).await;
        assert_eq!(ex.info.filter_state.get("my.key").unwrap().as_string().as_deref(), Some("fixed"));
        let protocols: &ApplicationProtocols = ex.info.filter_state.get_as(APPLICATION_PROTOCOLS).unwrap();
        assert_eq!(protocols.as_string().as_deref(), Some("a,b"));
        assert!(ex.info.filter_state.get("my.empty").is_none() && ex.route_cleared);
    }

    #[test]
    fn unknown_objects_are_refused() {
        let config = Config { on_request_headers: vec![value("k", "envoy.unknown", "x")], clear_route_cache: false };
        assert!(kit::compile(&Factory, &config, &kit::server(Default::default())).unwrap_err().contains("envoy.unknown"));
    }
}
