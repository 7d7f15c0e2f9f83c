//! The network filters in front of a terminal one, driven in order for bytes that arrive and in reverse for bytes that go out. The one
//! place that knows what their answers mean, and where filters that wait for a service are waited for; used by terminals on the worker that
//! owns the connection.

use bytes::BytesMut;
use nuncio_core::StreamInfo;
use nuncio_core::network::{NetworkAction, NetworkFilter};
use std::borrow::Cow;
use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::Duration;

/// Bytes that are read ahead while a filter waits; the rest stays in the kernel, and the peer is held up.
const AHEAD: usize = 32 << 10;

/// The filters of one connection.
#[derive(Default)]
pub struct Filters {
    list: Vec<Box<dyn NetworkFilter>>,
    /// Filters below this index have seen `on_new`.
    begun: usize,
    /// A filter holds what arrives; the next bytes are added to `read`.
    holding: bool,
    /// Filters that wait: bytes stay in front of each of them. Almost always none or one.
    waiting: Vec<usize>,
    /// The peer has sent all that it will.
    ended: bool,
    /// Bytes that filters hold on their way in and out.
    read: BytesMut,
    write: BytesMut,
}

/// What the filters decided.
#[derive(Debug, PartialEq, Eq)]
pub enum Passed {
    /// Go on with the bytes.
    On,
    /// Nothing goes on: until more bytes come, or a filter that waits knows ([`Filters::is_waiting`]).
    Held,
    /// Close the connection for this reason.
    Closed(Cow<'static, str>),
}

impl Filters {
    /// `list` in the order of the chain, none of which has seen the connection.
    pub fn new(list: Vec<Box<dyn NetworkFilter>>) -> Self {
        Self { list, ..Self::default() }
    }
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
    /// Whether bytes must pass through `read` and `write`.
    pub fn want_data(&self) -> bool {
        self.holding || !self.read.is_empty() || !self.write.is_empty() || self.list.iter().any(|f| f.wants_data())
    }
    /// Whether a filter holds the connection up, for bytes or for an answer.
    pub fn holding(&self) -> bool {
        self.holding
    }
    /// Whether [`Self::poll_waiting`] must be polled.
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }
    /// Whether more may be read from the peer. It is held up while a filter waits and holds enough.
    pub fn wants_more(&self) -> bool {
        self.waiting.is_empty() || (!self.ended && self.read.len() < AHEAD)
    }
    /// Tells the filters that the connection is there. What they want to send is appended to `out`.
    pub fn begin(&mut self, info: &mut StreamInfo, out: &mut BytesMut) -> Passed {
        self.pass(0, info, &mut BytesMut::new(), false, out)
    }
    /// Passes bytes that arrived. `data` holds what goes on; filters that were held up begin when the one before them continues.
    pub fn read(&mut self, info: &mut StreamInfo, data: &mut BytesMut, end: bool, out: &mut BytesMut) -> Passed {
        if !self.read.is_empty() {
            self.read.unsplit(std::mem::take(data));
            std::mem::swap(data, &mut self.read);
        }
        self.ended |= end;
        self.pass(0, info, data, true, out)
    }
    /// Asks the filters that wait. Ready when none waits any more, or one closes the connection; what they held is put into `data` if it
    /// goes on. What filters want to send is appended to `out`, in any case.
    pub fn poll_waiting(&mut self, cx: &mut Context<'_>, info: &mut StreamInfo, data: &mut BytesMut, out: &mut BytesMut) -> Poll<Passed> {
        let (mut at, mut passed) = (0, Passed::On);
        while let Some(&index) = self.waiting.get(at) {
            let polled = self.list.get_mut(index).map_or(Poll::Ready(NetworkAction::Continue), |f| f.poll_wait(cx, info));
            let Poll::Ready(action) = polled else {
                at += 1;
                continue;
            };
            self.waiting.remove(at);
            // Bytes go on from the first filter that holds them, and from no later one.
            if action == NetworkAction::Continue && self.waiting.iter().any(|other| *other < index) {
                continue;
            }
            *data = std::mem::take(&mut self.read);
            let shown = self.ended || !data.is_empty();
            passed = self.settle(index, action, data).unwrap_or_else(|| self.pass(index + 1, info, data, shown, out));
            if let Passed::Closed(_) = passed {
                return Poll::Ready(passed);
            }
            at = 0;
        }
        if self.waiting.is_empty() { Poll::Ready(passed) } else { Poll::Pending }
    }
    /// [`Self::poll_waiting`] as a future. Dropping it loses nothing.
    pub async fn wait(&mut self, info: &mut StreamInfo, data: &mut BytesMut, out: &mut BytesMut) -> Passed {
        poll_fn(|cx| self.poll_waiting(cx, info, data, out)).await
    }
    /// Lets the filters from index `from` on begin and, if `shown`, see `data`.
    fn pass(&mut self, from: usize, info: &mut StreamInfo, data: &mut BytesMut, shown: bool, out: &mut BytesMut) -> Passed {
        for index in from..self.list.len() {
            if self.waiting.contains(&index) {
                return self.hold(data);
            }
            let Some(filter) = self.list.get_mut(index) else { break };
            if index == self.begun {
                self.begun = index + 1;
                let action = filter.on_new(info, out);
                if let Some(passed) = self.settle(index, action, data) {
                    return passed;
                }
            }
            if shown && let Some(filter) = self.list.get_mut(index) {
                let action = filter.on_read(info, data, self.ended);
                if let Some(passed) = self.settle(index, action, data) {
                    return passed;
                }
            }
        }
        self.holding = false;
        Passed::On
    }
    /// What the answer of filter `index` means for the filters after it; none if they are next.
    fn settle(&mut self, index: usize, action: NetworkAction, data: &mut BytesMut) -> Option<Passed> {
        match action {
            NetworkAction::Continue => None,
            NetworkAction::Hold => Some(self.hold(data)),
            NetworkAction::Wait => {
                self.waiting.push(index);
                Some(self.hold(data))
            }
            NetworkAction::Close(why) => Some(Passed::Closed(why)),
        }
    }
    fn hold(&mut self, data: &mut BytesMut) -> Passed {
        self.holding = true;
        self.read = std::mem::take(data);
        Passed::Held
    }
    /// Passes bytes that go out, last filter first.
    pub fn write(&mut self, info: &mut StreamInfo, data: &mut BytesMut, end: bool) -> Passed {
        if !self.write.is_empty() {
            self.write.unsplit(std::mem::take(data));
            std::mem::swap(data, &mut self.write);
        }
        for filter in self.list.iter_mut().rev() {
            match filter.on_write(info, data, end) {
                NetworkAction::Continue => {}
                NetworkAction::Hold | NetworkAction::Wait => {
                    self.write = std::mem::take(data);
                    return Passed::Held;
                }
                NetworkAction::Close(why) => return Passed::Closed(why),
            }
        }
        Passed::On
    }
    /// Shortest period in which a filter wants to report.
    pub fn report_interval(&self) -> Option<Duration> {
        self.list.iter().filter_map(|f| f.report_interval()).min()
    }
    /// Lets the filters report.
    pub fn report(&mut self, info: &mut StreamInfo) {
        self.list.iter_mut().filter(|f| f.report_interval().is_some()).for_each(|f| f.on_report(info));
    }
    /// Tells the filters that began that the connection is over.
    pub fn close(&mut self, info: &mut StreamInfo) {
        self.list.iter_mut().take(self.begun).for_each(|f| f.on_close(info));
    }
}

#[cfg(test)]
#[path = "filters_tests.rs"]
mod tests;
