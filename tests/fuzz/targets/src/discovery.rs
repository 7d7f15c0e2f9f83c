//! Discovery sessions with any responses: nothing panics, every response is answered once, and what was subscribed stays subscribed.

use nuncio_proto::Message;
use nuncio_proto::envoy::config::core::v3::Node;
use nuncio_proto::envoy::service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse};
use nuncio_xds::{DeltaSession, Refused, SotwSession, types};

/// Most requests that may follow one response.
const ANSWERS: usize = 64;

/// Responses, each with two bytes of length; the first byte of each says what is done with it.
fn responses(mut data: &[u8], mut each: impl FnMut(u8, &[u8])) {
    while let Some((head, rest)) = data.split_at_checked(3) {
        let (mode, length) = (head[0], usize::from(u16::from_be_bytes([head[1], head[2]])).min(rest.len()));
        let (body, rest) = rest.split_at(length);
        each(mode, body);
        data = rest;
    }
}

fn refused(names: impl Iterator<Item = std::sync::Arc<str>>, mode: u8) -> Vec<Refused> {
    match mode & 1 {
        0 => Vec::new(),
        _ => names.map(|name| Refused { name, reason: "no".to_string() }).collect(),
    }
}

/// The delta protocol.
pub fn delta(data: &[u8]) {
    let mut session = DeltaSession::new(Node::default());
    session.subscribe_all(types::CLUSTER);
    session.subscribe(types::ENDPOINT, ["a".into(), "b".into()]);
    session.connected();
    while session.next_request().is_some() {}
    responses(data, |mode, body| {
        if mode & 2 != 0 {
            session.disconnected();
            session.connected();
        }
        let Ok(response) = DeltaDiscoveryResponse::decode(body) else { return };
        if let Some((update, receipt)) = session.on_response(response) {
            session.finish(receipt, refused(update.resources.iter().map(|r| r.name.clone()), mode));
        }
        let mut answers = 0;
        while session.next_request().is_some() {
            answers += 1;
            assert!(answers < ANSWERS, "the session talks without end");
        }
        assert!(session.is_subscribed(types::CLUSTER) && session.is_subscribed(types::ENDPOINT));
    });
}

/// State of the world.
pub fn sotw(data: &[u8]) {
    let mut session = SotwSession::new(Node::default());
    session.subscribe_all(types::CLUSTER);
    session.subscribe(types::ENDPOINT, ["a".into(), "b".into()]);
    session.connected();
    while session.next_request().is_some() {}
    responses(data, |mode, body| {
        let Ok(response) = DiscoveryResponse::decode(body) else { return };
        if let Some((update, receipt)) = session.on_response(response) {
            session.finish(receipt, refused(update.resources.iter().map(|r| r.name.clone()), mode));
        }
        let mut answers = 0;
        while session.next_request().is_some() {
            answers += 1;
            assert!(answers < ANSWERS, "the session talks without end");
        }
    });
}
