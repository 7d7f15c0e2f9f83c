//! What a delta session sends, message by message.

#![allow(clippy::unwrap_used)] // Helpers outside of test functions.

use nuncio_proto::Any;
use nuncio_proto::envoy::config::core::v3::Node;
use nuncio_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use nuncio_xds::{DeltaSession, Refused, types};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

fn session() -> DeltaSession {
    DeltaSession::new(Node { id: "me".into(), ..Node::default() })
}

fn resource(type_url: &str, name: &str, version: &str) -> Resource {
    Resource {
        name: name.into(),
        version: version.into(),
        resource: Some(Any { type_url: type_url.into(), value: name.as_bytes().to_vec() }),
        ..Resource::default()
    }
}

fn response(type_url: &str, nonce: &str, resources: Vec<Resource>) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: type_url.into(),
        nonce: nonce.into(),
        system_version_info: "v".into(),
        resources,
        ..Default::default()
    }
}

fn drain(s: &mut DeltaSession) -> Vec<DeltaDiscoveryRequest> {
    std::iter::from_fn(|| s.next_request()).collect()
}

fn names(n: &[&str]) -> Vec<Arc<str>> {
    n.iter().map(|n| Arc::from(*n)).collect()
}

fn accept(s: &mut DeltaSession, r: DeltaDiscoveryResponse) {
    let (_, receipt) = s.on_response(r).unwrap();
    s.finish(receipt, vec![]);
}

#[test]
fn first_requests_are_wildcard_in_order_of_subscription_with_the_node_once() {
    let mut s = session();
    s.subscribe_all(types::CLUSTER);
    s.subscribe_all(types::LISTENER);
    assert!(drain(&mut s).is_empty(), "nothing before there is a stream");
    s.connected();
    let sent = drain(&mut s);
    assert_eq!(sent.iter().map(|r| r.type_url.as_str()).collect::<Vec<_>>(), [types::CLUSTER, types::LISTENER]);
    assert!(sent.iter().all(|r| r.resource_names_subscribe.is_empty() && r.response_nonce.is_empty()));
    assert_eq!(sent.iter().map(|r| r.node.is_some()).collect::<Vec<_>>(), [true, false]);
}

#[test]
fn an_ack_has_the_nonce_and_no_change_and_goes_before_a_change_without_nonce() {
    let mut s = session();
    s.subscribe_all(types::CLUSTER);
    s.connected();
    drain(&mut s);
    let (update, receipt) = s.on_response(response(types::CLUSTER, "n1", vec![resource(types::CLUSTER, "a", "1")])).unwrap();
    assert_eq!((update.resources[0].name.as_ref(), update.resources[0].value.as_ref()), ("a", b"a".as_slice()));
    s.subscribe(types::ENDPOINT, names(&["a"]));
    s.finish(receipt, vec![]);
    let sent = drain(&mut s);
    assert_eq!((sent[0].type_url.as_str(), sent[0].response_nonce.as_str()), (types::CLUSTER, "n1"));
    assert!(sent[0].resource_names_subscribe.is_empty() && sent[0].error_detail.is_none() && sent[0].initial_resource_versions.is_empty());
    assert_eq!((sent[1].type_url.as_str(), sent[1].response_nonce.as_str()), (types::ENDPOINT, ""));
    assert_eq!(sent[1].resource_names_subscribe, ["a"]);
    assert_eq!(sent.len(), 2);
}

#[test]
fn changes_are_collected_and_what_cancels_out_is_not_lost() {
    let mut s = session();
    s.subscribe(types::ENDPOINT, names(&["a", "b"]));
    s.connected();
    drain(&mut s);
    accept(&mut s, response(types::ENDPOINT, "n", vec![resource(types::ENDPOINT, "a", "1")]));
    drain(&mut s);
    s.unsubscribe(types::ENDPOINT, names(&["a", "b"]));
    s.subscribe(types::ENDPOINT, names(&["a", "c"]));
    let sent = drain(&mut s);
    assert_eq!(sent.len(), 1);
    assert_eq!(sent[0].resource_names_subscribe, ["a", "c"], "a is asked for again, because what was held of it is gone");
    assert_eq!(sent[0].resource_names_unsubscribe, ["b"]);
    s.subscribe(types::ENDPOINT, names(&["a"]));
    assert!(drain(&mut s).is_empty(), "a name already subscribed to changes nothing");
}

#[test]
fn a_named_type_without_names_is_not_asked_for_because_that_would_mean_everything() {
    let mut s = session();
    s.subscribe(types::ROUTE, names(&["r"]));
    s.connected();
    drain(&mut s);
    s.unsubscribe(types::ROUTE, names(&["r"]));
    assert_eq!(drain(&mut s)[0].resource_names_unsubscribe, ["r"]);
    s.disconnected();
    s.connected();
    assert!(drain(&mut s).is_empty());
}

#[test]
fn a_nack_names_each_refused_resource_and_the_good_ones_are_held() {
    let mut s = session();
    s.subscribe_all(types::CLUSTER);
    s.connected();
    drain(&mut s);
    accept(&mut s, response(types::CLUSTER, "n1", vec![resource(types::CLUSTER, "bad", "1")]));
    let two = ["good", "bad", "worse"].map(|n| resource(types::CLUSTER, n, "2")).to_vec();
    let (_, receipt) = s.on_response(response(types::CLUSTER, "n2", two)).unwrap();
    let refuse = |n: &str| Refused { name: n.into(), reason: format!("because {n}") };
    s.finish(receipt, vec![refuse("bad"), refuse("worse")]);
    let sent = drain(&mut s);
    let detail = sent[1].error_detail.as_ref().unwrap();
    assert_eq!((sent[1].response_nonce.as_str(), detail.code), ("n2", 13));
    assert_eq!(detail.message, "bad: because bad\nworse: because worse");
    s.disconnected();
    s.connected();
    let again = drain(&mut s);
    let held: BTreeMap<String, String> = [("bad".into(), "1".into()), ("good".into(), "2".into())].into();
    assert_eq!(again[0].initial_resource_versions, held, "refused resources stay at the version that was accepted, if any");
    assert!(again[0].node.is_some() && again[0].resource_names_subscribe.is_empty());
}

#[test]
fn reconnecting_asks_for_all_names_with_the_versions_held_and_drops_old_acks() {
    let mut s = session();
    s.subscribe(types::ENDPOINT, names(&["a", "b"]));
    s.connected();
    drain(&mut s);
    let (_, receipt) = s.on_response(response(types::ENDPOINT, "n1", vec![resource(types::ENDPOINT, "a", "7")])).unwrap();
    s.disconnected();
    s.connected();
    s.finish(receipt, vec![]);
    let sent = drain(&mut s);
    assert_eq!(sent.len(), 1, "the nonce belongs to the old stream");
    assert_eq!(sent[0].resource_names_subscribe, ["a", "b"]);
    assert_eq!(sent[0].initial_resource_versions, BTreeMap::from([("a".to_string(), "7".to_string())]));
}

#[test]
fn removed_resources_are_reported_and_no_longer_held() {
    let mut s = session();
    s.subscribe_all(types::LISTENER);
    s.connected();
    drain(&mut s);
    accept(&mut s, response(types::LISTENER, "n1", ["a", "b"].map(|n| resource(types::LISTENER, n, "1")).to_vec()));
    let mut gone = response(types::LISTENER, "n2", vec![]);
    gone.removed_resources = vec!["a".into(), "never-heard-of".into()];
    let (update, receipt) = s.on_response(gone).unwrap();
    assert_eq!(update.removed, names(&["a", "never-heard-of"]));
    s.finish(receipt, vec![]);
    s.disconnected();
    s.connected();
    assert_eq!(drain(&mut s)[0].initial_resource_versions.keys().collect::<Vec<_>>(), ["b"]);
}

#[test]
fn empty_and_unsolicited_responses_are_acknowledged_and_foreign_ones_ignored() {
    let mut s = session();
    s.subscribe_all(types::LISTENER);
    s.subscribe(types::ENDPOINT, names(&["a"]));
    s.connected();
    drain(&mut s);
    accept(&mut s, response(types::LISTENER, "empty", vec![]));
    accept(&mut s, response(types::ENDPOINT, "forced", vec![resource(types::ENDPOINT, "a", "1")]));
    accept(&mut s, response(types::ENDPOINT, "again", vec![resource(types::ENDPOINT, "a", "1")]));
    assert!(s.on_response(response(types::ROUTE, "x", vec![])).is_none());
    let nonces: Vec<_> = drain(&mut s).into_iter().map(|r| r.response_nonce).collect();
    assert_eq!(nonces, ["empty", "forced", "again"]);
}

#[test]
fn resources_that_nobody_wants_any_more_are_left_out() {
    let mut s = session();
    s.subscribe(types::ENDPOINT, names(&["a"]));
    s.connected();
    drain(&mut s);
    let both = ["a", "stranger"].map(|n| resource(types::ENDPOINT, n, "1")).to_vec();
    let (update, receipt) = s.on_response(response(types::ENDPOINT, "n", both)).unwrap();
    assert_eq!(update.resources.len(), 1);
    s.unsubscribe(types::ENDPOINT, names(&["a"]));
    s.finish(receipt, vec![]);
    s.subscribe(types::ENDPOINT, names(&["b"]));
    s.disconnected();
    s.connected();
    assert!(drain(&mut s)[0].initial_resource_versions.is_empty(), "given up while it was applied: not held");
}

#[test]
fn duplicates_wrong_types_and_missing_bodies_are_refused_alone() {
    let mut s = session();
    s.subscribe_all(types::CLUSTER);
    s.connected();
    drain(&mut s);
    let mut missing = resource(types::CLUSTER, "missing", "1");
    missing.resource = None;
    let mut heartbeat = resource(types::CLUSTER, "heartbeat", "1");
    heartbeat.resource = None;
    heartbeat.ttl = Some(nuncio_proto::Duration { seconds: 5, nanos: 0 });
    let all = vec![
        resource(types::CLUSTER, "twice", "1"),
        resource(types::CLUSTER, "twice", "1"),
        resource(types::LISTENER, "wrong", "1"),
        missing,
        heartbeat,
        resource(types::CLUSTER, "good", "1"),
    ];
    let (update, receipt) = s.on_response(response(types::CLUSTER, "n", all)).unwrap();
    assert_eq!(update.resources.iter().map(|r| r.name.as_ref()).collect::<Vec<_>>(), ["good"]);
    assert_eq!(update.refused.iter().map(|r| r.name.as_ref()).collect::<Vec<_>>(), ["twice", "wrong", "missing"]);
    s.finish(receipt, vec![]);
    let nack = drain(&mut s).remove(0).error_detail.unwrap().message;
    assert!(nack.contains("twice") && nack.contains("wrong") && nack.contains("missing") && !nack.contains("good"));
}

#[test]
fn everything_and_a_name_is_an_explicit_star() {
    let mut s = session();
    s.subscribe_all(types::CLUSTER);
    s.subscribe(types::CLUSTER, names(&["a"]));
    s.connected();
    assert_eq!(drain(&mut s)[0].resource_names_subscribe, ["*", "a"]);
}

#[derive(Clone, Debug)]
enum Op {
    Subscribe(u8),
    Unsubscribe(u8),
    Reconnect,
    Send,
    Push(Vec<(u8, bool)>),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        (0..6u8).prop_map(Op::Subscribe),
        (0..6u8).prop_map(Op::Unsubscribe),
        Just(Op::Reconnect),
        Just(Op::Send),
        proptest::collection::vec((0..6u8, any::<bool>()), 0..4).prop_map(Op::Push),
    ]
}

proptest! {
    /// Whatever happens, a server that only looks at requests knows exactly the names that the client wants, every nonce is
    /// acknowledged once on its own stream, and nothing is held that was refused or given up.
    #[test]
    fn the_server_always_knows_what_the_client_wants(ops in proptest::collection::vec(op(), 1..60)) {
        let mut s = session();
        s.connected();
        let (mut wanted, mut server): (BTreeSet<String>, BTreeSet<String>) = Default::default();
        let mut open: BTreeSet<String> = BTreeSet::new();
        let mut accepted: BTreeSet<String> = BTreeSet::new();
        let mut nonce = 0;
        let mut first = true;
        for op in ops.into_iter().chain([Op::Send]) {
            match op {
                Op::Subscribe(n) => { s.subscribe(types::ENDPOINT, names(&[&n.to_string()])); wanted.insert(n.to_string()); }
                Op::Unsubscribe(n) => {
                    s.unsubscribe(types::ENDPOINT, names(&[&n.to_string()]));
                    wanted.remove(&n.to_string());
                    accepted.remove(&n.to_string());
                }
                Op::Reconnect => { s.disconnected(); s.connected(); server.clear(); open.clear(); first = true; }
                Op::Push(items) => {
                    nonce += 1;
                    let mut seen = BTreeSet::new();
                    let items: Vec<_> = items.into_iter().filter(|(n, _)| seen.insert(*n)).collect();
                    let all = items.iter().map(|(n, _)| resource(types::ENDPOINT, &n.to_string(), "1")).collect();
                    if let Some((update, receipt)) = s.on_response(response(types::ENDPOINT, &nonce.to_string(), all)) {
                        let bad = |n: &str| items.iter().any(|(i, good)| i.to_string() == n && !good);
                        let refused: Vec<_> = update.resources.iter().filter(|r| bad(&r.name))
                            .map(|r| Refused { name: r.name.clone(), reason: "no".into() }).collect();
                        accepted.extend(update.resources.iter().filter(|r| !bad(&r.name)).map(|r| r.name.to_string()));
                        s.finish(receipt, refused);
                        open.insert(nonce.to_string());
                    }
                }
                Op::Send => {
                    for r in drain(&mut s) {
                        prop_assert_eq!(r.node.is_some(), first);
                        if !r.response_nonce.is_empty() {
                            prop_assert!(open.remove(&r.response_nonce));
                            prop_assert!(r.resource_names_subscribe.is_empty() && r.resource_names_unsubscribe.is_empty());
                        }
                        for held in r.initial_resource_versions.keys() {
                            prop_assert!(accepted.contains(held));
                        }
                        first = false;
                        server.extend(r.resource_names_subscribe);
                        for gone in r.resource_names_unsubscribe { server.remove(&gone); }
                    }
                    prop_assert_eq!(&server, &wanted);
                    prop_assert!(open.is_empty());
                }
            }
        }
    }
}

#[test]
fn virtual_hosts_come_below_the_name_of_their_table_and_on_demand_by_alias() {
    let mut s = session();
    s.subscribe(types::VIRTUAL_HOST, names(&["table"]));
    s.connected();
    assert_eq!(drain(&mut s)[0].resource_names_subscribe, ["table"]);
    accept(&mut s, response(types::VIRTUAL_HOST, "1", vec![resource(types::VIRTUAL_HOST, "table/a", "v1")]));
    drain(&mut s);
    s.subscribe(types::VIRTUAL_HOST, names(&["table/b.com", "table/c.com"]));
    assert_eq!(drain(&mut s)[0].resource_names_subscribe, ["table/b.com", "table/c.com"]);
    let found = Resource { aliases: vec!["table/b.com".into()], ..resource(types::VIRTUAL_HOST, "table/b", "v1") };
    let missing = Resource {
        name: "table/c.com".into(),
        aliases: vec!["table/c.com".into()],
        resource: None,
        ..resource(types::VIRTUAL_HOST, "table/c.com", "")
    };
    let (update, receipt) =
        s.on_response(response(types::VIRTUAL_HOST, "2", vec![found, missing, resource(types::VIRTUAL_HOST, "other/x", "v1")])).unwrap();
    assert_eq!(update.resources.iter().map(|r| r.name.as_ref()).collect::<Vec<_>>(), ["table/b"]);
    assert!(update.refused.is_empty());
    for name in ["table/b", "table/b.com", "table/c.com"] {
        assert!(update.answered.iter().any(|n| **n == *name), "{name}");
    }
    s.finish(receipt, Vec::new());
    drain(&mut s);
    // A new stream asks for the table and what is held of it, not again for what was asked for on demand.
    s.disconnected();
    s.connected();
    let again = drain(&mut s).remove(0);
    assert_eq!(again.resource_names_subscribe, ["table", "table/a", "table/b"]);
    assert_eq!(again.initial_resource_versions.len(), 2);
    s.unsubscribe(types::VIRTUAL_HOST, names(&["table"]));
    assert_eq!(drain(&mut s)[0].resource_names_unsubscribe, ["table"]);
}

#[test]
fn everything_can_be_given_up_and_asked_for_again() {
    let mut s = session();
    s.subscribe_all(types::SCOPED_ROUTE);
    s.connected();
    drain(&mut s);
    s.unsubscribe(types::SCOPED_ROUTE, names(&["*"]));
    assert_eq!(drain(&mut s)[0].resource_names_unsubscribe, ["*"]);
    s.subscribe_all(types::SCOPED_ROUTE);
    assert_eq!(drain(&mut s)[0].resource_names_subscribe, ["*"]);
}
