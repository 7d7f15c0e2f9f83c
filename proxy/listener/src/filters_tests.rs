// Helpers outside of test functions.
#![allow(clippy::unwrap_used)]

use super::*;
use nuncio_core::test_kit;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::Waker;

/// What a filter was told, in order.
type Told = Rc<RefCell<Vec<String>>>;

/// What a filter answers when it may.
#[derive(Default)]
struct Gate {
    open: Cell<bool>,
    refuses: Cell<bool>,
}

/// Waits at its start or at its first bytes, until its gate opens.
struct Waits {
    name: &'static str,
    at_start: bool,
    asked: bool,
    gate: Rc<Gate>,
    told: Told,
}

impl NetworkFilter for Waits {
    fn on_new(&mut self, _info: &mut StreamInfo, write: &mut BytesMut) -> NetworkAction {
        self.told.borrow_mut().push(format!("{} new", self.name));
        write.extend_from_slice(self.name.as_bytes());
        self.ask(self.at_start)
    }
    fn on_read(&mut self, _info: &mut StreamInfo, data: &mut BytesMut, end: bool) -> NetworkAction {
        self.told.borrow_mut().push(format!("{} {}{}", self.name, String::from_utf8_lossy(data), if end { "." } else { "" }));
        self.ask(!self.asked)
    }
    fn poll_wait(&mut self, _cx: &mut Context<'_>, _info: &mut StreamInfo) -> Poll<NetworkAction> {
        match (self.gate.open.get(), self.gate.refuses.get()) {
            (false, _) => Poll::Pending,
            (true, false) => Poll::Ready(NetworkAction::Continue),
            (true, true) => Poll::Ready(NetworkAction::Close("no".into())),
        }
    }
}

impl Waits {
    fn ask(&mut self, ask: bool) -> NetworkAction {
        self.asked |= ask;
        if ask { NetworkAction::Wait } else { NetworkAction::Continue }
    }
}

/// Passes everything.
struct Passes(&'static str, Told);

impl NetworkFilter for Passes {
    fn on_new(&mut self, _info: &mut StreamInfo, _write: &mut BytesMut) -> NetworkAction {
        self.1.borrow_mut().push(format!("{} new", self.0));
        NetworkAction::Continue
    }
    fn on_read(&mut self, _info: &mut StreamInfo, data: &mut BytesMut, end: bool) -> NetworkAction {
        self.1.borrow_mut().push(format!("{} {}{}", self.0, String::from_utf8_lossy(data), if end { "." } else { "" }));
        NetworkAction::Continue
    }
}

struct Rig {
    filters: Filters,
    info: StreamInfo,
    told: Told,
    out: BytesMut,
}

impl Rig {
    fn new(make: impl FnOnce(&Told) -> Vec<Box<dyn NetworkFilter>>) -> Self {
        let told = Told::default();
        Self { filters: Filters::new(make(&told)), info: test_kit::stream_info(), told, out: BytesMut::new() }
    }
    fn begin(&mut self) -> Passed {
        self.filters.begin(&mut self.info, &mut self.out)
    }
    /// What became of `text`, and what goes on.
    fn read(&mut self, text: &str, end: bool) -> (Passed, String) {
        let mut data = BytesMut::from(text);
        let passed = self.filters.read(&mut self.info, &mut data, end, &mut self.out);
        (passed, String::from_utf8(data.to_vec()).unwrap())
    }
    fn wait(&mut self) -> Poll<(Passed, String)> {
        let mut data = BytesMut::new();
        let polled = self.filters.poll_waiting(&mut Context::from_waker(Waker::noop()), &mut self.info, &mut data, &mut self.out);
        polled.map(|passed| (passed, String::from_utf8(data.to_vec()).unwrap()))
    }
    fn told(&self) -> String {
        self.told.take().join(",")
    }
}

fn waits(name: &'static str, at_start: bool, gate: &Rc<Gate>, told: &Told) -> Box<dyn NetworkFilter> {
    Box::new(Waits { name, at_start, asked: false, gate: gate.clone(), told: told.clone() })
}

fn on(text: &str) -> Poll<(Passed, String)> {
    Poll::Ready((Passed::On, text.to_string()))
}

#[test]
fn nothing_passes_a_filter_that_waits() {
    let gate = Rc::<Gate>::default();
    let mut rig =
        Rig::new(|told| vec![Box::new(Passes("a", told.clone())), waits("b", true, &gate, told), Box::new(Passes("c", told.clone()))]);
    assert_eq!((rig.begin(), rig.filters.is_waiting(), rig.filters.want_data()), (Passed::Held, true, true));
    assert_eq!((rig.told().as_str(), &rig.out[..]), ("a new,b new", b"b".as_ref()), "what it sends goes out while it waits");
    assert_eq!(rig.read("he", false), (Passed::Held, String::new()));
    assert_eq!(rig.wait(), Poll::Pending);
    assert_eq!(rig.read("llo", true), (Passed::Held, String::new()));
    assert_eq!((rig.told().as_str(), rig.filters.wants_more()), ("a he,a hello.", false), "filters before it see what arrives");
    gate.open.set(true);
    assert_eq!(rig.wait(), on("hello"));
    assert_eq!(rig.told(), "c new,c hello.");
    assert!(!rig.filters.is_waiting() && !rig.filters.holding());
}

#[test]
fn an_end_without_bytes_is_told_later() {
    let gate = Rc::<Gate>::default();
    let mut rig = Rig::new(|told| vec![waits("a", true, &gate, told), Box::new(Passes("b", told.clone()))]);
    rig.begin();
    assert_eq!(rig.read("", true).0, Passed::Held);
    gate.open.set(true);
    assert_eq!((rig.wait(), rig.told().as_str()), (on(""), "a new,b new,b ."));
}

#[test]
fn the_first_of_two_that_wait_holds_what_arrived() {
    for first_opens_first in [true, false] {
        let (a, b) = (Rc::<Gate>::default(), Rc::<Gate>::default());
        let mut rig = Rig::new(|told| vec![waits("a", false, &a, told), waits("b", true, &b, told), Box::new(Passes("c", told.clone()))]);
        assert_eq!(rig.begin(), Passed::Held);
        assert_eq!(rig.read("x", false).0, Passed::Held);
        assert_eq!(rig.told(), "a new,b new,a x");
        let (one, other) = if first_opens_first { (&a, &b) } else { (&b, &a) };
        one.open.set(true);
        assert_eq!((rig.wait(), rig.told().as_str()), (Poll::Pending, ""), "neither alone lets it pass");
        other.open.set(true);
        let seen = if first_opens_first { "c new,c x" } else { "b x,c new,c x" };
        assert_eq!((rig.wait(), rig.told().as_str()), (on("x"), seen));
    }
}

#[test]
fn a_filter_that_waited_may_close() {
    let gate = Rc::new(Gate { open: Cell::new(true), refuses: Cell::new(true) });
    let mut rig = Rig::new(|told| vec![waits("a", false, &gate, told), Box::new(Passes("b", told.clone()))]);
    assert_eq!((rig.begin(), rig.filters.is_waiting()), (Passed::On, false));
    assert_eq!(rig.read("x", false).0, Passed::Held);
    assert_eq!(rig.wait(), Poll::Ready((Passed::Closed("no".into()), "x".to_string())));
    assert_eq!(rig.told(), "a new,b new,a x");
}

#[test]
fn little_is_read_ahead() {
    let gate = Rc::<Gate>::default();
    let mut rig = Rig::new(|told| vec![waits("a", false, &gate, told)]);
    rig.begin();
    rig.read(&"x".repeat(AHEAD - 1), false);
    assert!(rig.filters.wants_more());
    rig.read("x", false);
    assert!(!rig.filters.wants_more());
    gate.open.set(true);
    assert!(matches!(rig.wait(), Poll::Ready((Passed::On, data)) if data.len() == AHEAD));
    assert!(rig.filters.wants_more());
}
