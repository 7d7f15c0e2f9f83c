//! Tests of the network filters that bound connections.

use super::*;
use bytes::BytesMut;
use nuncio_core::ConnectionInfo;
use nuncio_core::StreamInfo;
use nuncio_core::diag::{At, Report};
use nuncio_core::info::TrafficDirection;
use nuncio_core::network::{NetworkAction, NetworkFilter, NetworkFilterConfig};
use nuncio_core::registry::{FactoryCx, NetworkFilterFactory, Server};
use nuncio_core::test_kit as kit;
use nuncio_proto::Message;
use nuncio_proto::envoy::config::core::v3::RuntimeFeatureFlag;
use nuncio_proto::envoy::extensions::filters::network::connection_limit::v3::ConnectionLimit;
use nuncio_proto::envoy::extensions::filters::network::local_ratelimit::v3::LocalRateLimit;
use nuncio_proto::envoy::r#type::v3::TokenBucket;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

fn compile(
    factory: &dyn NetworkFilterFactory,
    config: &impl Message,
    server: &Arc<Server>,
) -> Result<Arc<dyn NetworkFilterConfig>, String> {
    let mut report = Report::new();
    let scope = server.stats.root();
    let mut cx = FactoryCx { server, scope: &scope, direction: TrafficDirection::Unspecified, report: &mut report };
    let compiled = factory.compile(&config.encode_to_vec(), &At::Root, &mut cx);
    compiled.ok_or_else(|| report.summary())
}

/// A connection that begins.
struct Open {
    filter: Box<dyn NetworkFilter>,
    info: StreamInfo,
    action: NetworkAction,
}

fn open(config: &Arc<dyn NetworkFilterConfig>) -> Open {
    let connection: Rc<ConnectionInfo> = Rc::new(kit::connection());
    let mut filter = config.create(&connection).unwrap();
    let mut info = StreamInfo::new(connection, None);
    let action = filter.on_new(&mut info, &mut BytesMut::new());
    Open { filter, info, action }
}

#[test]
fn connections_over_the_limit_are_closed() {
    let server = kit::server(Default::default());
    let delay = Some(nuncio_proto::Duration { seconds: 1, nanos: 0 });
    let config = ConnectionLimit { stat_prefix: "p".into(), max_connections: Some(2), delay, runtime_enabled: None };
    let limit = compile(&LimitFactory, &config, &server).unwrap();
    let first = open(&limit);
    let mut second = open(&limit);
    let third = open(&limit);
    assert_eq!((&first.action, &second.action), (&NetworkAction::Continue, &NetworkAction::Continue));
    assert!(matches!(third.action, NetworkAction::Close(_)));
    assert_eq!(third.info.connection.close_delay.get(), Duration::from_secs(1));
    let root = server.stats.root();
    assert_eq!(root.gauge("connection_limit.p.active_connections").value(), 3);
    assert_eq!(root.counter("connection_limit.p.limited_connections").value(), 1);
    // A refused connection counts until it is gone, and no connection is given back twice.
    drop(third);
    second.filter.on_close(&mut second.info);
    drop(second);
    assert_eq!(root.gauge("connection_limit.p.active_connections").value(), 1);
    assert_eq!(open(&limit).action, NetworkAction::Continue);
    let off = RuntimeFeatureFlag { default_value: Some(false), runtime_key: "limit.on".into() };
    let config = ConnectionLimit { max_connections: Some(1), runtime_enabled: Some(off), ..config };
    let limit = compile(&LimitFactory, &config, &server).unwrap();
    let held = [open(&limit), open(&limit)];
    assert!(held.iter().all(|o| o.action == NetworkAction::Continue));
    server.runtime.set("limit.on", "true");
    let held = [open(&limit), open(&limit)];
    assert!(held.iter().any(|o| o.action != NetworkAction::Continue));
    assert!(compile(&LimitFactory, &ConnectionLimit { max_connections: None, ..config }, &server).is_err());
}

#[test]
fn buckets_are_shared_by_key() {
    let server = kit::server(Default::default());
    let bucket = |max| {
        Some(TokenBucket {
            max_tokens: max,
            tokens_per_fill: Some(1),
            fill_interval: Some(nuncio_proto::Duration { seconds: 600, nanos: 0 }),
        })
    };
    let config = |key: &str, max| LocalRateLimit {
        stat_prefix: "p".into(),
        token_bucket: bucket(max),
        runtime_enabled: None,
        share_key: key.into(),
    };
    let factory = RateFactory::default();
    let allowed = |config: &Arc<dyn NetworkFilterConfig>| open(config).action == NetworkAction::Continue;
    let one = compile(&factory, &config("k", 2), &server).unwrap();
    let two = compile(&factory, &config("k", 2), &server).unwrap();
    let other = compile(&factory, &config("k", 3), &server).unwrap();
    assert!(allowed(&one) && allowed(&two) && !allowed(&one) && !allowed(&two));
    assert!(allowed(&other));
    let alone = compile(&factory, &config("", 1), &server).unwrap();
    assert!(allowed(&alone) && !allowed(&alone));
    assert_eq!(server.stats.root().counter("local_rate_limit.p.rate_limited").value(), 3);
    // A bucket that nobody uses any more is forgotten.
    drop((one, two));
    assert!(allowed(&compile(&factory, &config("k", 2), &server).unwrap()));
}
