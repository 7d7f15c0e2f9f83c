//! What a state-of-the-world session sends, message by message.

use nuncio_proto::envoy::config::cluster::v3::Cluster;
use nuncio_proto::envoy::config::core::v3::Node;
use nuncio_proto::envoy::extensions::transport_sockets::tls::v3::Secret;
use nuncio_proto::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse, Resource};
use nuncio_proto::typed::pack;
use nuncio_proto::{Any, Message};
use nuncio_xds::{Refused, SotwSession, types};
use std::sync::Arc;

fn session() -> SotwSession {
    SotwSession::new(Node { id: "me".into(), ..Node::default() })
}
fn cluster(name: &str) -> Any {
    pack(&Cluster { name: name.into(), ..Cluster::default() })
}
fn secret(name: &str) -> Any {
    pack(&Secret { name: name.into(), ..Secret::default() })
}
fn response(type_url: &str, version: &str, nonce: &str, resources: Vec<Any>) -> DiscoveryResponse {
    DiscoveryResponse { type_url: type_url.into(), version_info: version.into(), nonce: nonce.into(), resources, ..Default::default() }
}
fn drain(s: &mut SotwSession) -> Vec<DiscoveryRequest> {
    std::iter::from_fn(|| s.next_request()).collect()
}
fn names(n: &[&str]) -> Vec<Arc<str>> {
    n.iter().map(|n| Arc::from(*n)).collect()
}

#[test]
fn an_sds_stream_acks_with_its_version_and_resumes_with_it() {
    let mut s = session();
    s.subscribe(types::SECRET, names(&["default"]));
    s.connected();
    let first = drain(&mut s).remove(0);
    assert_eq!((first.version_info.as_str(), first.response_nonce.as_str()), ("", ""));
    assert_eq!(first.resource_names, ["default"]);
    assert!(first.node.is_some());
    let (update, receipt) = s.on_response(response(types::SECRET, "v1", "n1", vec![secret("default"), secret("other")])).unwrap();
    assert_eq!(update.resources.len(), 1);
    s.finish(receipt, vec![]);
    let ack = drain(&mut s).remove(0);
    assert_eq!((ack.version_info.as_str(), ack.response_nonce.as_str(), ack.node.is_some()), ("v1", "n1", false));
    s.disconnected();
    s.connected();
    let again = drain(&mut s).remove(0);
    assert_eq!((again.version_info.as_str(), again.response_nonce.as_str()), ("v1", ""));
}

#[test]
fn a_nack_keeps_the_accepted_version_and_names_what_was_refused() {
    let mut s = session();
    s.subscribe_all(types::CLUSTER);
    s.connected();
    assert!(drain(&mut s)[0].resource_names.is_empty());
    let (_, receipt) = s.on_response(response(types::CLUSTER, "v1", "n1", vec![cluster("a")])).unwrap();
    s.finish(receipt, vec![]);
    drain(&mut s);
    let (update, receipt) = s.on_response(response(types::CLUSTER, "v2", "n2", vec![cluster("a"), cluster("b")])).unwrap();
    assert!(update.removed.is_empty());
    s.finish(receipt, vec![Refused { name: "b".into(), reason: "no".into() }]);
    let nack = drain(&mut s).remove(0);
    assert_eq!((nack.version_info.as_str(), nack.response_nonce.as_str()), ("v1", "n2"));
    assert_eq!(nack.error_detail.unwrap().message, "b: no");
}

#[test]
fn absent_clusters_are_removed_but_absent_secrets_are_not() {
    let mut s = session();
    s.subscribe_all(types::CLUSTER);
    s.subscribe(types::SECRET, names(&["x"]));
    s.connected();
    for r in [response(types::CLUSTER, "1", "1", vec![cluster("a"), cluster("b")]), response(types::SECRET, "1", "1", vec![secret("x")])] {
        let (_, receipt) = s.on_response(r).unwrap();
        s.finish(receipt, vec![]);
    }
    let (update, receipt) = s.on_response(response(types::CLUSTER, "2", "2", vec![cluster("b")])).unwrap();
    assert_eq!(update.removed, names(&["a"]));
    s.finish(receipt, vec![]);
    let (update, receipt) = s.on_response(response(types::SECRET, "2", "2", vec![])).unwrap();
    assert!(update.removed.is_empty());
    s.finish(receipt, vec![]);
    let unreadable = Any { type_url: types::CLUSTER.into(), value: vec![0x0a, 0xff] };
    let (update, receipt) = s.on_response(response(types::CLUSTER, "3", "3", vec![unreadable])).unwrap();
    assert!(update.removed.is_empty() && update.refused.len() == 1, "what cannot be named must not look removed");
    s.finish(receipt, vec![]);
    let (update, _receipt) = s.on_response(response(types::CLUSTER, "4", "4", vec![])).unwrap();
    assert_eq!(update.removed, names(&["b"]));
}

#[test]
fn a_changed_subscription_carries_all_names_and_the_last_nonce() {
    let mut s = session();
    s.subscribe(types::ENDPOINT, names(&["a"]));
    s.connected();
    drain(&mut s);
    let (_, receipt) = s.on_response(response(types::ENDPOINT, "v1", "n1", vec![])).unwrap();
    s.finish(receipt, vec![]);
    s.subscribe(types::ENDPOINT, names(&["b"]));
    let sent = drain(&mut s);
    assert_eq!(sent.len(), 1, "acknowledgement and change are one message");
    assert_eq!((sent[0].resource_names.clone(), sent[0].response_nonce.as_str()), (vec!["a".to_string(), "b".into()], "n1"));
    s.unsubscribe(types::ENDPOINT, names(&["a", "b"]));
    assert!(drain(&mut s)[0].resource_names.is_empty());
    s.disconnected();
    s.connected();
    assert!(drain(&mut s).is_empty(), "without names nothing is asked for");
}

#[test]
fn wrapped_resources_and_heartbeats() {
    let mut s = session();
    s.subscribe_all(types::CLUSTER);
    s.connected();
    let wrap = |resource: Option<Any>| Any {
        type_url: types::WRAPPER.into(),
        value: Resource { name: "outer".into(), resource, ..Resource::default() }.encode_to_vec(),
    };
    let (update, receipt) = s.on_response(response(types::CLUSTER, "1", "1", vec![wrap(Some(cluster("inner"))), wrap(None)])).unwrap();
    assert_eq!(update.resources.iter().map(|r| r.name.as_ref()).collect::<Vec<_>>(), ["outer"]);
    s.finish(receipt, vec![]);
    let (update, _receipt) = s.on_response(response(types::CLUSTER, "2", "2", vec![cluster("x"), cluster("x"), secret("y")])).unwrap();
    assert_eq!((update.resources.len(), update.refused.len()), (0, 2));
}
