//! What a worker has of all clusters: load balancer state and connection pools. One per worker, thread local, not `Send`.

use crate::cluster::Cluster;
use crate::connection::UpstreamConnection;
use crate::context::{LbContext, OpenOptions};
use crate::host::Host;
use crate::manager::WorkerFeed;
use crate::stream::UpstreamStream;
use nuncio_core::{RequestHead, StreamError};
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

thread_local! {
    static CURRENT: RefCell<Option<Rc<Upstreams>>> = const { RefCell::new(None) };
}

/// The upstream side of one worker.
pub struct Upstreams {
    _feed: WorkerFeed,
}

impl Upstreams {
    /// Makes this thread's upstreams and starts their housekeeping (idle connections, removed hosts and clusters) as a local
    /// task. Called once per worker, inside its `LocalSet`, with [`crate::ClusterManager::worker_feed`].
    pub fn install(feed: WorkerFeed) -> Rc<Self> {
        let upstreams = Rc::new(Self { _feed: feed });
        CURRENT.with(|c| *c.borrow_mut() = Some(upstreams.clone()));
        upstreams
    }
    /// This thread's upstreams; made without a feed if `install` was not called (tests).
    pub fn current() -> Rc<Self> {
        CURRENT.with(|c| c.borrow_mut().get_or_insert_with(|| Rc::new(Self { _feed: WorkerFeed::default() })).clone())
    }
    /// Picks a host. None: no healthy host (count `upstream_cx_none_healthy`, done here; answer 503 UH).
    pub fn pick(&self, _cluster: &Arc<Cluster>, _cx: &LbContext<'_>) -> Option<Arc<Host>> {
        None
    }
    /// A stream to `host` with the head of `request` queued (`end`: it has no body). Waits for a connection if none is free.
    /// Dropping the future gives up the place in the queue. Fails with `Overflow` (circuit breaker), `ConnectFailed`,
    /// `ConnectTimeout` and codec errors. Connection failures are reported to outlier detection here; results of the request
    /// ([`Cluster::report`]) are the router's.
    pub async fn open(
        &self,
        _cluster: &Arc<Cluster>,
        _host: &Arc<Host>,
        _request: &RequestHead,
        _end: bool,
        _options: &OpenOptions<'_>,
    ) -> Result<UpstreamStream, StreamError> {
        Err(StreamError::Overflow)
    }
    /// A new raw connection to `host`, after its TLS handshake if there is one.
    pub async fn connect(
        &self,
        _cluster: &Arc<Cluster>,
        _host: &Arc<Host>,
        _options: &OpenOptions<'_>,
    ) -> Result<UpstreamConnection, StreamError> {
        Err(StreamError::Overflow)
    }
}
