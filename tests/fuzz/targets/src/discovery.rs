//! Discovery sessions with any responses: nothing panics, every response is answered once, and what was subscribed stays subscribed.

use nuncio_proto::Message;
use nuncio_proto::envoy::config::core::v3::Node;
use nuncio_proto::envoy::service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse};
use nuncio_xds::{Receipt, Refused, Session, Update, types};

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

/// What both protocols keep to. `respond` gives the session the bytes of a response, if they are one.
fn run(mut session: Session, data: &[u8], respond: impl Fn(&mut Session, &[u8]) -> Option<Option<(Update, Receipt)>>) {
    session.subscribe_all(types::CLUSTER);
    session.subscribe(types::ENDPOINT, ["a".into(), "b".into()]);
    session.connected();
    drain(&mut session);
    responses(data, |mode, body| {
        if mode & 2 != 0 {
            session.disconnected();
            session.connected();
        }
        let Some(answer) = respond(&mut session, body) else { return };
        if let Some((update, receipt)) = answer {
            session.finish(receipt, refused(update.resources.iter().map(|r| r.name.clone()), mode));
        }
        drain(&mut session);
        assert!(session.is_subscribed(types::CLUSTER) && session.is_subscribed(types::ENDPOINT));
    });
}

/// Takes what the session has to say.
fn drain(session: &mut Session) {
    let mut answers = 0;
    let mut next = || match session {
        Session::Delta(s) => s.next_request().is_some(),
        Session::Sotw(s) => s.next_request().is_some(),
    };
    while next() {
        answers += 1;
        assert!(answers < ANSWERS, "the session talks without end");
    }
}

/// The delta protocol.
pub fn delta(data: &[u8]) {
    run(Session::delta(Node::default()), data, |session, body| {
        let (Session::Delta(s), Ok(response)) = (session, DeltaDiscoveryResponse::decode(body)) else { return None };
        Some(s.on_response(response))
    });
}

/// State of the world.
pub fn sotw(data: &[u8]) {
    run(Session::sotw(Node::default()), data, |session, body| {
        let (Session::Sotw(s), Ok(response)) = (session, DiscoveryResponse::decode(body)) else { return None };
        Some(s.on_response(response))
    });
}
