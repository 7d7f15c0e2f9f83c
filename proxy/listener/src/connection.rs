//! One connection from accept to its end: limits, balance, listener filters, hand-over by original destination, filter-chain match,
//! handshake, terminal filter, listener access log. Runs on the worker that owns the connection.

use crate::chain_match::Facts;
use crate::drain::DrainWatch;
use crate::listener_filter::{self, Accepted, Verdict};
use crate::slot::{Active, Chain, Place, Slot};
use crate::stats::ListenerStats;
use crate::terminal::Connection;
use crate::worker::Worker;
use bytes::BytesMut;
use nuncio_core::info::TrafficDirection;
use nuncio_core::{Address, ConnectionInfo, ResponseFlags, StreamInfo, TlsInfo};
use nuncio_format::{AccessLogs, FormatContext};
use nuncio_proto::envoy::config::core::v3::Metadata;
use nuncio_tls::{TlsFailure, Transport};
use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// How long a terminal has to end by itself once its connection must close.
const CLOSE_GRACE: Duration = Duration::from_secs(1);

/// Takes in a connection that was just accepted: counts it against the limits and gives it to the least busy worker if so configured.
pub(crate) fn accepted(worker: &Rc<Worker>, slot: &Arc<Slot>, io: Transport, peer: Option<Address>) {
    let active = slot.active.load_full();
    let remote = peer.unwrap_or_else(|| Address::Pipe("".into()));
    let target = if active.listener.exact_balance { slot.least_busy(worker.index) } else { worker.index };
    // The place is counted on the worker that will own the connection, before it is told: balance sees connections under way.
    let Some(place) = Place::take(slot, &active, target) else { return };
    if target == worker.index {
        start(worker, slot.clone(), active, io, remote, place);
        return;
    }
    let Some(handle) = slot.shared.workers.handles.get(target) else { return };
    match Loose::from(io) {
        Ok(loose) => {
            let slot = slot.clone();
            handle.run(move || {
                Worker::with(|worker| match loose.bind() {
                    Ok(io) => start(worker, slot.clone(), slot.active.load_full(), io, remote, place),
                    Err(e) => log::warn!("listener `{}`: a connection could not be handed over: {e}", slot.active.load().listener.name),
                })
            });
        }
        Err(e) => log::warn!("listener `{}`: a connection could not be handed over: {e}", active.listener.name),
    }
}

/// A socket between two runtimes.
enum Loose {
    Tcp(std::net::TcpStream),
    Unix(std::os::unix::net::UnixStream),
}
impl Loose {
    fn from(io: Transport) -> io::Result<Self> {
        match io {
            Transport::Tcp(s) => s.into_std().map(Self::Tcp),
            Transport::Unix(s) => s.into_std().map(Self::Unix),
            Transport::Tls(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }
    fn bind(self) -> io::Result<Transport> {
        match self {
            Self::Tcp(s) => tokio::net::TcpStream::from_std(s).map(Transport::Tcp),
            Self::Unix(s) => tokio::net::UnixStream::from_std(s).map(Transport::Unix),
        }
    }
}

fn start(worker: &Rc<Worker>, slot: Arc<Slot>, active: Arc<Active>, io: Transport, remote: Address, place: Place) {
    let Ok(local) = io.local_addr() else { return };
    tokio::task::spawn_local(run(worker.clone(), slot, active, io, Accepted::new(local, remote), place));
}

async fn run(
    worker: Rc<Worker>,
    mut slot: Arc<Slot>,
    mut active: Arc<Active>,
    mut io: Transport,
    mut accepted: Accepted,
    mut place: Place,
) {
    let (start, start_instant) = (SystemTime::now(), Instant::now());
    let mut handed_over = false;
    loop {
        if !active.listener.filters.is_empty() && !inspect(&active, &mut io, &mut accepted).await {
            return;
        }
        // Connections that were redirected belong to the listener of where they meant to go, if there is one. Once only.
        let owner = match accepted.local {
            Address::Ip(address) if active.listener.use_original_dst && accepted.restored && !handed_over => slot.shared.owner(address),
            _ => None,
        };
        let Some(owner) = owner.filter(|o| o.id != slot.id) else { break };
        handed_over = true;
        slot = owner;
        active = slot.active.load_full();
        // The old place is given back first: it is the same connection.
        drop(place);
        match Place::take(&slot, &active, worker.index) {
            Some(taken) => place = taken,
            None => return,
        }
    }
    if accepted.transport.is_empty() {
        accepted.transport = "raw_buffer";
    }
    let facts = Facts {
        local: accepted.local.socket(),
        server_name: accepted.server_name.as_deref().unwrap_or_default(),
        transport: accepted.transport,
        protocols: &accepted.protocols,
        direct_remote: accepted.direct_remote.socket(),
        remote: accepted.remote.socket(),
    };
    let chain = active.listener.index.find(&facts).and_then(|i| active.chains.get(i)).cloned();
    let mut made = Made { listener: Listener::new(&active), worker: &worker, accepted, start, start_instant };
    let Some(chain) = chain else {
        made.listener.stats.no_filter_chain_match.inc();
        let info = made.info(None, None);
        made.log(&info, true);
        return;
    };
    // From here on nothing holds the listener's configuration: long connections must not keep old generations alive.
    drop(active);
    let _counted = Counted::new(made.listener.stats.clone(), &worker, start_instant);
    let drain = DrainWatch::new(worker.signal(&chain.drain));
    let (io, tls) = match secure(io, &chain, &made.listener, &drain).await {
        Ok(done) => done,
        Err(reason) => {
            let info = made.info(Some(&chain), None);
            *info.transport_failure.borrow_mut() = Some(reason);
            made.log(&info, false);
            return;
        }
    };
    if let Some(sni) = tls.as_ref().and_then(|t| t.sni.clone()) {
        made.accepted.server_name = Some(sni);
    }
    let handshake = tls.is_some().then(|| start_instant.elapsed());
    let info = made.info(Some(&chain), tls);
    info.handshake.set(handshake);
    let filters = chain.spec.filters.iter().filter_map(|f| f.create(&info)).collect();
    let connection = Connection { io, info: info.clone(), filters, leftover: BytesMut::new(), drain: drain.clone() };
    let closing = async {
        drain.closing().await;
        tokio::time::sleep(CLOSE_GRACE).await;
    };
    // Kept no longer than needed: an update of the chain frees what only new connections would have used.
    let serving = chain.spec.terminal.clone().serve(connection);
    drop(chain);
    tokio::select! {
        biased;
        () = serving => {}
        () = closing => {
            info.termination_details.borrow_mut().get_or_insert(Cow::Borrowed("drain_timeout"));
        }
    }
    made.log(&info, false);
    drop(place);
}

/// Runs the listener filters within their time; false if the connection is to be closed.
async fn inspect(active: &Active, io: &mut Transport, accepted: &mut Accepted) -> bool {
    let listener = &active.listener;
    let _waiting = Waiting::new(active);
    // Boxed: buffers and states of inspection must not make every connection's task larger for its whole life.
    let filters = Box::pin(listener_filter::run(&listener.filters, io, accepted, &listener.stats));
    let verdict = match listener.filters_timeout {
        None => filters.await,
        Some(limit) => match tokio::time::timeout(limit, filters).await {
            Ok(verdict) => verdict,
            Err(_) => {
                listener.stats.pre_cx_timeout.inc();
                return listener.continue_on_timeout;
            }
        },
    };
    if let Verdict::Close(why) = verdict {
        log::debug!("listener `{}`: closing {}: {why}", listener.name, accepted.direct_remote);
    }
    verdict == Verdict::Continue
}

/// The handshake, within its time. Err is the reason in words.
async fn secure(
    io: Transport,
    chain: &Chain,
    listener: &Listener,
    drain: &DrainWatch,
) -> Result<(Transport, Option<Arc<TlsInfo>>), String> {
    let Some(tls) = &chain.spec.tls else { return Ok((io, None)) };
    let handshake = Box::pin(tls.accept(io));
    let timeout = async {
        match chain.spec.connect_timeout {
            Some(limit) => tokio::time::sleep(limit).await,
            None => std::future::pending().await,
        }
    };
    let result: Result<_, TlsFailure> = tokio::select! {
        biased;
        result = handshake => result,
        () = timeout => {
            listener.stats.transport_socket_connect_timeout.inc();
            return Err("transport socket timeout was reached".to_string());
        }
        () = drain.closing() => return Err("the listener was drained during the handshake".to_string()),
    };
    match result {
        Ok((io, info)) => Ok((io, Some(info))),
        Err(failure) => {
            log::debug!("listener `{}`: {failure}", listener.name);
            Err(failure.reason().to_string())
        }
    }
}

/// What a connection keeps of its listener.
struct Listener {
    name: Arc<str>,
    direction: TrafficDirection,
    metadata: Option<Arc<Metadata>>,
    stats: Arc<ListenerStats>,
    logs: Arc<AccessLogs>,
}
impl Listener {
    fn new(active: &Active) -> Self {
        let listener = &active.listener;
        Self {
            name: listener.name.clone(),
            direction: listener.direction,
            metadata: listener.metadata.clone(),
            stats: listener.stats.clone(),
            logs: listener.access_logs.clone(),
        }
    }
}

/// What a connection's info is made of.
struct Made<'a> {
    listener: Listener,
    worker: &'a Worker,
    accepted: Accepted,
    start: SystemTime,
    start_instant: Instant,
}

impl Made<'_> {
    /// The connection's info. Called once per connection: filter state and metadata move into it.
    fn info(&mut self, chain: Option<&Chain>, tls: Option<Arc<TlsInfo>>) -> Rc<ConnectionInfo> {
        let (accepted, listener) = (&mut self.accepted, &self.listener);
        Rc::new(ConnectionInfo {
            id: self.worker.connection_id(),
            start: self.start,
            start_instant: self.start_instant,
            remote: accepted.remote.clone(),
            direct_remote: accepted.direct_remote.clone(),
            local: accepted.local.clone(),
            direct_local: accepted.direct_local.clone(),
            requested_server_name: accepted.server_name.clone(),
            tls,
            listener: listener.name.clone(),
            direction: listener.direction,
            filter_chain: chain.map_or_else(|| "".into(), |c| c.spec.name.clone()),
            listener_metadata: listener.metadata.clone(),
            filter_chain_metadata: chain.and_then(|c| c.spec.metadata.clone()),
            handshake: Cell::new(None),
            filter_state: RefCell::new(std::mem::take(&mut accepted.filter_state)),
            metadata: RefCell::new(std::mem::take(&mut accepted.metadata)),
            termination_details: RefCell::new(None),
            transport_failure: RefCell::new(None),
            local_close: Cell::default(),
            detected_close: Cell::default(),
            flags: Cell::default(),
            details: RefCell::default(),
            close_delay: Cell::default(),
            requests: Cell::new(0),
            rx_bytes: Cell::new(0),
            tx_bytes: Cell::new(0),
        })
    }
    /// Writes the listener's access log, one entry per connection.
    fn log(&self, info: &Rc<ConnectionInfo>, unmatched: bool) {
        let logs = &self.listener.logs;
        if logs.is_empty() {
            return;
        }
        let mut stream = StreamInfo::new(info.clone(), None);
        (stream.start, stream.start_instant) = (self.start, self.start_instant);
        stream.duration = Some(self.start_instant.elapsed());
        let metadata = info.metadata.borrow();
        if !metadata.is_empty() {
            stream.metadata = Some(Box::new(metadata.clone()));
        }
        (stream.wire_rx_bytes, stream.wire_tx_bytes) = (info.rx_bytes.get(), info.tx_bytes.get());
        (stream.flags, stream.details) = (info.flags.get(), info.details.take());
        if unmatched {
            stream.flags.set(ResponseFlags::NO_ROUTE_FOUND);
            stream.details = Some(Cow::Borrowed("filter_chain_not_found"));
        }
        logs.log(&FormatContext::new(&stream));
    }
}

/// Counts a connection in listener filters; gives back when it is dropped, however the task ends.
struct Waiting<'a>(&'a Active);
impl<'a> Waiting<'a> {
    fn new(active: &'a Active) -> Self {
        active.listener.stats.pre_cx_active.inc();
        Self(active)
    }
}
impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.listener.stats.pre_cx_active.dec();
    }
}

/// Counts a connection that has its chain, until it is dropped.
struct Counted {
    stats: Arc<ListenerStats>,
    worker: usize,
    start: Instant,
}
impl Counted {
    fn new(stats: Arc<ListenerStats>, worker: &Worker, start: Instant) -> Self {
        stats.cx_total.inc();
        stats.cx_active.inc();
        if let Some(own) = stats.workers.get(worker.index) {
            own.cx_total.inc();
            own.cx_active.inc();
        }
        Self { stats, worker: worker.index, start }
    }
}
impl Drop for Counted {
    fn drop(&mut self) {
        self.stats.cx_destroy.inc();
        self.stats.cx_active.dec();
        if let Some(own) = self.stats.workers.get(self.worker) {
            own.cx_active.dec();
        }
        self.stats.cx_length_ms.record(u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX));
    }
}
