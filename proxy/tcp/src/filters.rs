//! The network filters in front of tcp_proxy, driven in order for bytes that arrive and in reverse for bytes that go out.
//! Belongs to one connection.

use bytes::BytesMut;
use nuncio_core::StreamInfo;
use nuncio_core::network::{NetworkAction, NetworkFilter};
use std::borrow::Cow;
use std::time::Duration;

/// The filters of one connection.
pub(crate) struct Filters {
    list: Vec<Box<dyn NetworkFilter>>,
    /// Filters below this index have seen `on_new`.
    begun: usize,
    /// A filter holds what arrives; the next bytes are added to `read`.
    holding: bool,
    /// Bytes that filters hold on their way in and out.
    read: BytesMut,
    write: BytesMut,
}

/// What a filter decided.
pub(crate) enum Passed {
    /// Go on with the bytes.
    On,
    /// Nothing goes on until more bytes come.
    Held,
    /// Close the connection for this reason.
    Closed(Cow<'static, str>),
}

impl Filters {
    pub fn new(list: Vec<Box<dyn NetworkFilter>>) -> Self {
        Self { list, begun: 0, holding: false, read: BytesMut::new(), write: BytesMut::new() }
    }
    /// Whether bytes must pass through `on_read` and `on_write`.
    pub fn want_data(&self) -> bool {
        self.holding || !self.read.is_empty() || !self.write.is_empty() || self.list.iter().any(|f| f.wants_data())
    }
    /// Whether a filter waits for more bytes.
    pub fn holding(&self) -> bool {
        self.holding
    }
    /// Tells the filters that the connection is there. What they want to send is appended to `out`.
    pub fn begin(&mut self, info: &mut StreamInfo, out: &mut BytesMut) -> Passed {
        while let Some(filter) = self.list.get_mut(self.begun) {
            self.begun += 1;
            match filter.on_new(info, out) {
                NetworkAction::Continue => {}
                NetworkAction::Hold => {
                    self.holding = true;
                    return Passed::Held;
                }
                NetworkAction::Close(why) => return Passed::Closed(why),
            }
        }
        Passed::On
    }
    /// Passes bytes that arrived. `data` holds what goes on; filters that were held up begin when the one before them continues.
    pub fn read(&mut self, info: &mut StreamInfo, data: &mut BytesMut, end: bool, out: &mut BytesMut) -> Passed {
        if !self.read.is_empty() {
            self.read.unsplit(std::mem::take(data));
            std::mem::swap(data, &mut self.read);
        }
        for index in 0..self.list.len() {
            if index == self.begun {
                match self.begin_one(index, info, out) {
                    NetworkAction::Continue => {}
                    NetworkAction::Hold => return self.hold(data),
                    NetworkAction::Close(why) => return Passed::Closed(why),
                }
            }
            let Some(filter) = self.list.get_mut(index) else { break };
            match filter.on_read(info, data, end) {
                NetworkAction::Continue => {}
                NetworkAction::Hold => return self.hold(data),
                NetworkAction::Close(why) => return Passed::Closed(why),
            }
        }
        self.holding = false;
        Passed::On
    }
    fn begin_one(&mut self, index: usize, info: &mut StreamInfo, out: &mut BytesMut) -> NetworkAction {
        self.begun = index + 1;
        self.list.get_mut(index).map_or(NetworkAction::Continue, |f| f.on_new(info, out))
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
                NetworkAction::Hold => {
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
