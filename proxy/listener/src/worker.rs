//! Worker threads: one current_thread runtime with a `LocalSet` each. They take commands from the control thread over a channel and
//! accept connections on their own sockets.

use crate::connection;
use crate::drain::{DrainSignal, DrainState};
use crate::slot::{ChainDrain, Slot};
use futures_util::FutureExt;
use nuncio_core::Address;
use nuncio_tls::Transport;
use socket2::{Protocol, Socket};
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::io;
use std::panic::AssertUnwindSafe;
use std::rc::{Rc, Weak};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Notify, mpsc};

/// How long accepting pauses when the system has run out of something (descriptors), and how often overload is looked at.
const PAUSE: Duration = Duration::from_millis(50);

/// What a worker is told.
enum Command {
    /// Runs a closure on the worker.
    Run(Box<dyn FnOnce() + Send>),
    /// Ends the worker's thread.
    Exit,
}

/// The control thread's end of one worker.
#[derive(Clone, Debug)]
pub struct WorkerHandle {
    pub index: usize,
    tx: mpsc::UnboundedSender<Command>,
}

impl WorkerHandle {
    /// Runs `work` on the worker's thread, inside its runtime and `LocalSet` (so that it may `spawn_local`).
    pub fn run(&self, work: impl FnOnce() + Send + 'static) {
        // A worker that is gone has nothing to do.
        let _gone = self.tx.send(Command::Run(Box::new(work)));
    }
}

/// Every worker.
#[derive(Clone, Debug)]
pub struct Workers {
    pub handles: Arc<[WorkerHandle]>,
    threads: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

impl Workers {
    /// Asks every worker to end and waits until they have; living connections are dropped.
    pub fn exit(&self) {
        for worker in self.handles.iter() {
            let _gone = worker.tx.send(Command::Exit);
        }
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            // A worker that panicked has said so already.
            let _panicked = thread.join();
        }
    }
}

/// Starts `n` worker threads (`wrk:worker_0`, ...). `setup` runs first on each, inside its runtime and `LocalSet`, with its index:
/// thread locals such as `Upstreams` are installed there. Background work of configuration goes to the first. Errors: a thread or a runtime could not be made.
pub fn spawn_workers(n: usize, setup: impl Fn(usize) + Send + Clone + 'static) -> io::Result<Workers> {
    let (mut handles, mut threads) = (Vec::new(), Vec::new());
    for index in 0..n {
        let (tx, rx) = mpsc::unbounded_channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let setup = setup.clone();
        let run = move || {
            nuncio_stats::set_worker(index);
            let local = tokio::task::LocalSet::new();
            WORKER.with(|slot| slot.get_or_init(|| Rc::new(Worker::new(index, n))).clone());
            local.block_on(&runtime, async {
                setup(index);
                obey(rx).await;
            });
        };
        threads.push(std::thread::Builder::new().name(format!("wrk:worker_{index}")).spawn(run)?);
        handles.push(WorkerHandle { index, tx });
    }
    if let Some(first) = handles.first().cloned() {
        nuncio_core::background::install(move |work| first.run(work));
    }
    Ok(Workers { handles: handles.into(), threads: Arc::new(Mutex::new(threads)) })
}

async fn obey(mut rx: mpsc::UnboundedReceiver<Command>) {
    while let Some(command) = rx.recv().await {
        match command {
            Command::Run(work) => {
                // A fault in one command must not end the worker and every connection with it.
                if std::panic::catch_unwind(AssertUnwindSafe(work)).is_err() {
                    log::error!("a command of a worker panicked");
                }
            }
            Command::Exit => return,
        }
    }
}

thread_local! {
    static WORKER: OnceCell<Rc<Worker>> = const { OnceCell::new() };
}

/// One worker's own state.
#[derive(Debug)]
pub(crate) struct Worker {
    pub index: usize,
    count: u64,
    next_id: Cell<u64>,
    /// Drain signals of chains that have connections here.
    signals: RefCell<HashMap<u64, Weak<DrainSignal>>>,
    sweep_at: Cell<usize>,
    /// Accept loops of each listener.
    listening: RefCell<HashMap<u64, Rc<Stop>>>,
}

/// Ends accept loops, those included that have been spawned but not run yet.
#[derive(Debug, Default)]
struct Stop {
    stopped: Cell<bool>,
    notify: Notify,
}

impl Worker {
    fn new(index: usize, count: usize) -> Self {
        let (next_id, sweep_at) = (Cell::new(0), Cell::new(64));
        Self { index, count: count as u64, next_id, signals: RefCell::default(), sweep_at, listening: RefCell::default() }
    }
    /// Runs `work` with this thread's worker; nothing happens on other threads.
    pub(crate) fn with(work: impl FnOnce(&Rc<Worker>)) {
        if let Some(worker) = WORKER.with(|slot| slot.get().cloned()) {
            work(&worker);
        }
    }
    /// A connection id that no other connection of the process has, without a counter that cores share.
    pub(crate) fn connection_id(&self) -> u64 {
        let n = self.next_id.get();
        self.next_id.set(n + 1);
        n * self.count + self.index as u64
    }
    /// This worker's signal of a chain.
    pub(crate) fn signal(&self, drain: &ChainDrain) -> Rc<DrainSignal> {
        let mut signals = self.signals.borrow_mut();
        if let Some(signal) = signals.get(&drain.id).and_then(Weak::upgrade) {
            return signal;
        }
        // The control thread changes the state before it sends the command: a signal made here has seen it, or will be told.
        let signal = DrainSignal::new(drain.state());
        // Swept when it has doubled: a look at all of them per connection would cost what it saves.
        if signals.len() >= self.sweep_at.get() {
            signals.retain(|_, s| s.strong_count() > 0);
            self.sweep_at.set((signals.len() * 2).max(64));
        }
        signals.insert(drain.id, Rc::downgrade(&signal));
        signal
    }
    /// Tells the connections of some chains where they stand; with `close_at`, they end then.
    pub(crate) fn drain(self: &Rc<Self>, chains: &[(u64, DrainState)], close_at: Option<Instant>) {
        let find = |id: &u64| self.signals.borrow().get(id).and_then(Weak::upgrade);
        let living: Vec<_> = chains.iter().filter_map(|(id, state)| find(id).map(|signal| (signal, *state))).collect();
        for (signal, state) in &living {
            signal.set(*state);
        }
        if let (Some(at), false) = (close_at, living.is_empty()) {
            tokio::task::spawn_local(async move {
                tokio::time::sleep_until(at.into()).await;
                for (signal, _) in living {
                    signal.set(DrainState { closing: true, ..signal.get() });
                }
            });
        }
    }
    /// Accepts on `socket` for `slot` until [`Self::unlisten`].
    pub(crate) fn listen(self: &Rc<Self>, slot: Arc<Slot>, socket: Socket, unix: bool) {
        let listening = match unix {
            true => UnixListener::from_std(socket.into()).map(Listening::Unix),
            false => Listening::tcp(socket),
        };
        match listening {
            Ok(listening) => {
                let stop = self.listening.borrow_mut().entry(slot.id).or_default().clone();
                tokio::task::spawn_local(accept(self.clone(), slot, listening, stop));
            }
            Err(e) => log::error!("worker {}: cannot accept for listener `{}`: {e}", self.index, slot.active.load().listener.name),
        }
    }
    /// Ends the accept loops of a listener; what the kernel had queued is accepted before the sockets close.
    pub(crate) fn unlisten(&self, id: u64) {
        if let Some(stop) = self.listening.borrow_mut().remove(&id) {
            stop.stopped.set(true);
            stop.notify.notify_waiters();
        }
    }
}

enum Listening {
    /// With whether accepted sockets have TCP_NODELAY already.
    Tcp(TcpListener, bool),
    Unix(UnixListener),
}

impl Listening {
    fn tcp(socket: Socket) -> io::Result<Self> {
        // Accepted sockets inherit it, which saves a system call each; those of MPTCP need not.
        let inherits = socket.set_tcp_nodelay(true).is_ok() && socket.protocol().is_ok_and(|p| p == Some(Protocol::TCP));
        TcpListener::from_std(socket.into()).map(|l| Self::Tcp(l, inherits))
    }
    async fn accept(&self) -> io::Result<(Transport, Option<Address>)> {
        match self {
            Self::Tcp(l, inherits) => {
                let (socket, peer) = l.accept().await?;
                if !inherits {
                    // Fails only if the peer is gone already, which the first read will say.
                    let _gone = socket.set_nodelay(true);
                }
                Ok((Transport::Tcp(socket), Some(Address::Ip(peer))))
            }
            Self::Unix(l) => l.accept().await.map(|(s, _)| (Transport::Unix(s), None)),
        }
    }
}

async fn accept(worker: Rc<Worker>, slot: Arc<Slot>, listening: Listening, stop: Rc<Stop>) {
    let stopped = stop.notify.notified();
    tokio::pin!(stopped);
    // Before the first await, so that no notification is missed.
    stopped.as_mut().enable();
    let mut taken = 0_u32;
    while !stop.stopped.get() {
        let active = slot.active.load_full();
        if slot.shared.stop_accepting.load(Ordering::Relaxed) && !active.listener.bypass_overload {
            tokio::select! {
                () = tokio::time::sleep(PAUSE) => continue,
                () = &mut stopped => break,
            }
        }
        let accepted = match listening.accept().now_or_never() {
            Some(accepted) => accepted,
            None => {
                if taken > 0 {
                    active.listener.stats.accepted_per_event.record(taken.into());
                    taken = 0;
                }
                tokio::select! {
                    biased;
                    () = &mut stopped => break,
                    accepted = listening.accept() => accepted,
                }
            }
        };
        match accepted {
            Ok((io, peer)) => {
                // The configuration may have changed while we waited.
                connection::accepted(&worker, &slot, io, peer);
                taken += 1;
                if taken >= active.listener.max_accept {
                    active.listener.stats.accepted_per_event.record(taken.into());
                    taken = 0;
                    tokio::task::yield_now().await;
                }
            }
            Err(e) => {
                // The peer gave up while it was queued, or descriptors ran out: the latter does not pass by itself at once.
                if !matches!(e.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted) {
                    log::warn!("listener `{}`: accept failed: {e}", active.listener.name);
                    tokio::select! {
                        () = tokio::time::sleep(PAUSE) => {}
                        () = &mut stopped => break,
                    }
                }
            }
        }
    }
    while let Some(Ok((io, peer))) = listening.accept().now_or_never() {
        connection::accepted(&worker, &slot, io, peer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use socket2::{Domain, Type};

    #[tokio::test]
    async fn accepted_sockets_have_nodelay() {
        let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), Some(Protocol::TCP)).unwrap();
        socket.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
        socket.listen(1).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        let listening = Listening::tcp(socket).unwrap();
        let _client = std::net::TcpStream::connect(address).unwrap();
        let Ok((Transport::Tcp(accepted), Some(_))) = listening.accept().await else { unreachable!() };
        assert!(accepted.nodelay().unwrap());
    }
}
