//! Network filters before the terminal one (http_connection_manager, tcp_proxy). A filter object belongs to one connection.

use crate::{ConnectionInfo, StreamInfo};
use bytes::BytesMut;
use std::borrow::Cow;
use std::fmt::Debug;
use std::rc::Rc;
use std::task::{Context, Poll};

/// What follows a callback.
#[derive(Debug, PartialEq, Eq)]
pub enum NetworkAction {
    Continue,
    /// Nothing more goes to the next filter until a later callback continues (more bytes are needed).
    Hold,
    /// Nothing goes to the next filter until [`NetworkFilter::poll_wait`] says how to go on; meanwhile few bytes are read. Not for
    /// `on_write`, nor in `Cluster.filters`, where it fails the connection.
    Wait,
    /// Close the connection, `ConnectionInfo::close_delay` from now; the text, if it is not empty, is
    /// `%CONNECTION_TERMINATION_DETAILS%`.
    Close(Cow<'static, str>),
}

/// A compiled network filter.
pub trait NetworkFilterConfig: Debug + Send + Sync {
    /// The filter of a new connection; none if this connection does not concern it, which then costs nothing.
    fn create(&self, connection: &Rc<ConnectionInfo>) -> Option<Box<dyn NetworkFilter>>;
}

/// A network filter on one connection. "Read" is from the peer that connected (or, in `Cluster.filters`, from the upstream).
pub trait NetworkFilter {
    /// The connection is up (after the handshake). Bytes put into `write` go out before anything else.
    fn on_new(&mut self, _info: &mut StreamInfo, _write: &mut BytesMut) -> NetworkAction {
        NetworkAction::Continue
    }
    /// Bytes arrived; the filter may take from or change them before the next filter sees them.
    fn on_read(&mut self, _info: &mut StreamInfo, _data: &mut BytesMut, _end: bool) -> NetworkAction {
        NetworkAction::Continue
    }
    /// What follows a callback that returned [`NetworkAction::Wait`], once the filter knows. Polled until it is ready, and again after
    /// each further `Wait`; a filter whose peer leaves meanwhile is dropped.
    fn poll_wait(&mut self, _cx: &mut Context<'_>, _info: &mut StreamInfo) -> Poll<NetworkAction> {
        Poll::Ready(NetworkAction::Continue)
    }
    /// Bytes go out to the peer.
    fn on_write(&mut self, _info: &mut StreamInfo, _data: &mut BytesMut, _end: bool) -> NetworkAction {
        NetworkAction::Continue
    }
    /// Whether later bytes must pass through this filter; false lets the data path copy without it.
    fn wants_data(&self) -> bool {
        true
    }
    /// Called every `report_interval`, for counters that grow during long connections.
    fn on_report(&mut self, _info: &mut StreamInfo) {}
    /// Period of `on_report`; none for never.
    fn report_interval(&self) -> Option<std::time::Duration> {
        None
    }
    /// The connection is over.
    fn on_close(&mut self, _info: &mut StreamInfo) {}
}
