//! One face for both kinds of session, so that the transport and the control loop are written once.

use crate::delta::DeltaSession;
use crate::resource::{Receipt, Refused};
use crate::sotw::SotwSession;
use nuncio_proto::envoy::config::core::v3::Node;
use std::sync::Arc;

/// A delta or a state-of-the-world session.
#[derive(Debug)]
pub enum Session {
    Delta(DeltaSession),
    Sotw(SotwSession),
}

macro_rules! each {
    ($self:ident, $s:ident => $body:expr) => {
        match $self {
            Session::Delta($s) => $body,
            Session::Sotw($s) => $body,
        }
    };
}

impl Session {
    /// A delta session.
    pub fn delta(node: Node) -> Self {
        Self::Delta(DeltaSession::new(node))
    }
    /// A state-of-the-world session.
    pub fn sotw(node: Node) -> Self {
        Self::Sotw(SotwSession::new(node))
    }
    /// Subscribes to every resource of a type.
    pub fn subscribe_all(&mut self, type_url: &str) {
        each!(self, s => s.subscribe_all(type_url))
    }
    /// Subscribes to `names`.
    pub fn subscribe<I: IntoIterator<Item = Arc<str>>>(&mut self, type_url: &str, names: I) {
        each!(self, s => s.subscribe(type_url, names))
    }
    /// Gives `names` up.
    pub fn unsubscribe<I: IntoIterator<Item = Arc<str>>>(&mut self, type_url: &str, names: I) {
        each!(self, s => s.unsubscribe(type_url, names))
    }
    /// A new stream is open.
    pub fn connected(&mut self) {
        each!(self, s => s.connected())
    }
    /// The stream is gone.
    pub fn disconnected(&mut self) {
        each!(self, s => s.disconnected())
    }
    /// The consumer applied an update, all but `refused`.
    pub fn finish(&mut self, receipt: Receipt, refused: Vec<Refused>) {
        each!(self, s => s.finish(receipt, refused))
    }
    /// Requests that wait to be sent.
    pub fn pending(&self) -> usize {
        each!(self, s => s.pending())
    }
    /// Whether anything of this type is subscribed to.
    pub fn is_subscribed(&self, type_url: &str) -> bool {
        each!(self, s => s.is_subscribed(type_url))
    }
}
