//! envoy.filters.http.set_metadata: puts fixed values into dynamic metadata.
//! Source: `envoy/extensions/filters/http/set_metadata/v3/set_metadata.proto`.

use crate::config::decode;
use nuncio_core::diag::At;
use nuncio_core::filter::{FilterAction, FilterCx, HttpFilter, Needs};
use nuncio_core::registry::{FactoryCx, HttpFilterFactory};
use nuncio_core::stats::Counter;
use nuncio_proto::envoy::extensions::filters::http::set_metadata::v3::Config;
use nuncio_proto::{Struct, Value};
use prost_types::value::Kind;
use std::sync::Arc;

/// Factory of `envoy.extensions.filters.http.set_metadata.v3.Config`.
#[derive(Debug)]
pub struct Factory;

impl HttpFilterFactory for Factory {
    fn name(&self) -> &'static str {
        "envoy.filters.http.set_metadata"
    }
    fn types(&self) -> &'static [&'static str] {
        &["envoy.extensions.filters.http.set_metadata.v3.Config"]
    }
    #[allow(deprecated)]
    fn compile(&self, config: &[u8], at: &At<'_>, cx: &mut FactoryCx<'_>) -> Option<Arc<dyn HttpFilter>> {
        let config: Config = decode(config, at, cx.report)?;
        let mut entries = Vec::new();
        if let Some(value) = config.value {
            entries.push(Entry { namespace: config.metadata_namespace, value, overwrite: true });
        }
        let list = at.field("metadata");
        for (i, metadata) in config.metadata.into_iter().enumerate() {
            let at = list.index(i);
            if metadata.metadata_namespace.is_empty() {
                cx.report.error(&at.field("metadata_namespace"), "an empty name", "name the namespace");
                return None;
            }
            if metadata.typed_value.is_some() {
                cx.report.unsupported(&at.field("typed_value"), "typed dynamic metadata");
                return None;
            }
            if let Some(value) = metadata.value {
                entries.push(Entry { namespace: metadata.metadata_namespace, value, overwrite: metadata.allow_overwrite });
            }
        }
        Some(Arc::new(Filter { entries, denied: cx.scope.scope("set_metadata.").counter("overwrite_denied") }))
    }
}

#[derive(Debug)]
struct Entry {
    namespace: String,
    value: Struct,
    overwrite: bool,
}

#[derive(Debug)]
struct Filter {
    entries: Vec<Entry>,
    denied: Counter,
}

impl HttpFilter for Filter {
    fn needs(&self) -> Needs {
        Needs::REQUEST_HEADERS
    }
    fn on_request<'a>(&'a self, cx: FilterCx<'a>) -> FilterAction<'a> {
        let info = &mut cx.ex.info;
        for entry in &self.entries {
            match info.metadata(&entry.namespace).cloned() {
                None => info.set_metadata(&entry.namespace, entry.value.clone()),
                Some(mut existing) if entry.overwrite => {
                    update(&mut existing, &entry.value);
                    info.set_metadata(&entry.namespace, existing);
                }
                Some(_) => self.denied.inc(),
            }
        }
        FilterAction::Continue
    }
}

/// Envoy's `StructUtil::update`: structs are merged, lists joined, all else is replaced.
fn update(into: &mut Struct, from: &Struct) {
    for (key, value) in &from.fields {
        match (into.fields.get_mut(key).and_then(|v| v.kind.as_mut()), &value.kind) {
            (Some(Kind::StructValue(a)), Some(Kind::StructValue(b))) => update(a, b),
            (Some(Kind::ListValue(a)), Some(Kind::ListValue(b))) => a.values.extend(b.values.iter().cloned()),
            _ => {
                into.fields.insert(key.clone(), Value::clone(value));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Method;
    use nuncio_core::RequestHead;
    use nuncio_core::test_kit::{self as kit, fields, list, object, text};
    use nuncio_proto::envoy::extensions::filters::http::set_metadata::v3::Metadata;

    #[tokio::test]
    async fn sets_merges_and_denies() {
        let metadata = |overwrite, value| Metadata {
            metadata_namespace: "ns".into(),
            allow_overwrite: overwrite,
            value: Some(value),
            typed_value: None,
        };
        let first = fields([("a", object(fields([("x", text("1"))]))), ("l", list(vec![text("1")]))]);
        let second = fields([("a", object(fields([("y", text("2"))]))), ("l", list(vec![text("2")]))]);
        let config = Config {
            metadata: vec![metadata(false, first), metadata(true, second), metadata(false, fields([("z", text("no"))]))],
            ..Default::default()
        };
        let server = kit::server(Default::default());
        let filter = kit::compile(&Factory, &config, &server).unwrap();
        let mut ex = kit::exchange(RequestHead::new(Method::GET, "shop", "/"));
        kit::request(&*filter, "m", &mut ex).await;
        let expected = fields([("a", object(fields([("x", text("1")), ("y", text("2"))]))), ("l", list(vec![text("1"), text("2")]))]);
        assert_eq!(ex.info.metadata("ns"), Some(&expected));
        assert_eq!(server.stats.root().counter("http.test.set_metadata.overwrite_denied").value(), 1);
    }

    #[test]
    fn typed_values_are_refused() {
        let metadata = Metadata { metadata_namespace: "ns".into(), typed_value: Some(Default::default()), ..Default::default() };
        let config = Config { metadata: vec![metadata], ..Default::default() };
        assert!(kit::compile(&Factory, &config, &kit::server(Default::default())).unwrap_err().contains("metadata[0].typed_value"));
    }
}
