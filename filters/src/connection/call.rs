//! A call of a service that a connection waits for. Belongs to the filter of one connection: dropped with it, which ends the call.

use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use nuncio_core::StreamInfo;
use nuncio_core::stats::Gauge;
use std::task::{Context, Poll};

/// `Stats` of a filter that calls a service: these counters, and the gauge of calls that run.
macro_rules! call_stats {
    ($($name:ident),*) => {
        /// Stats below `<filter>.<stat_prefix>.`.
        #[derive(Debug)]
        struct Stats { $($name: Counter,)* active: Gauge }
        impl Stats {
            fn new(scope: &Scope) -> Self {
                Self { $($name: scope.counter(stringify!($name)),)* active: scope.gauge("active") }
            }
        }
    };
}
pub(super) use call_stats;

/// A call under way; counts in its gauge for as long as it is.
pub struct Call<A> {
    answer: LocalBoxFuture<'static, A>,
    active: Gauge,
}

impl<A> Call<A> {
    /// Begins with the first poll.
    pub fn new(answer: impl Future<Output = A> + 'static, active: &Gauge) -> Self {
        active.inc();
        Self { answer: answer.boxed_local(), active: active.clone() }
    }
    /// The answer; not to be polled again after it.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<A> {
        self.answer.poll_unpin(cx)
    }
}

impl<A> Drop for Call<A> {
    fn drop(&mut self) {
        self.active.dec();
    }
}

/// What formats may see of a connection while a call is made: the call outlives the borrow of its stream info.
pub fn snapshot(info: &StreamInfo) -> StreamInfo {
    let mut taken = StreamInfo::new(info.connection.clone(), None);
    (taken.start, taken.start_instant) = (info.start, info.start_instant);
    taken.metadata.clone_from(&info.metadata);
    taken.filter_state.clone_from(&info.filter_state);
    taken
}
