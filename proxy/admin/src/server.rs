//! The admin listener: accepts connections and answers requests, all in one future of the control thread. Bounded in
//! connections, header and body size, and time; a slow peer costs one piece of text, a stalled one is dropped.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::LocalBoxFuture;
use futures_util::stream::FuturesUnordered;
use nuncio_core::diag::{At, Report};
use nuncio_core::registry::Server;
use nuncio_core::{Address, ConnectionInfo};
use nuncio_format::AccessLogs;
use nuncio_matcher::StringMatcher;
use nuncio_proto::envoy::config::accesslog::v3::{AccessLog, access_log};
use nuncio_proto::envoy::config::bootstrap::v3::Admin;
use nuncio_proto::envoy::extensions::access_loggers::file::v3::FileAccessLog;
use nuncio_proto::typed::pack;
use nuncio_stats::Store;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use crate::Backend;
use crate::access::{AdminStats, log};
use crate::endpoints::answer;
use crate::listen::Socket;
use crate::reply::{Reply, Stop};
use crate::request::{Reader, Refusal, Request};

/// Connections at once; more wait in the accept queue.
const MAX_CONNECTIONS: usize = 512;
/// How long a connection may be idle between requests.
const IDLE: Duration = Duration::from_secs(300);
/// How long a request may take to arrive.
const HEAD: Duration = Duration::from_secs(30);

/// `Bootstrap.admin` compiled: everything but the socket.
#[derive(Debug)]
pub struct AdminOptions {
    /// None if nothing is logged.
    access_logs: Option<AccessLogs>,
    allow_paths: Box<[StringMatcher]>,
}

impl AdminOptions {
    /// Compiles `config`; problems go to `report`. None means refused. The address is the caller's affair ([`AdminServer::bind`]).
    pub fn compile(config: &Admin, server: &Arc<Server>, at: &At<'_>, report: &mut Report) -> Option<Self> {
        let mut logs = config.access_log.clone();
        #[allow(deprecated)]
        let path = &config.access_log_path;
        if !path.is_empty() {
            let file = FileAccessLog { path: path.clone(), ..Default::default() };
            logs.push(AccessLog {
                name: "envoy.access_loggers.file".to_string(),
                config_type: Some(access_log::ConfigType::TypedConfig(pack(&file))),
                ..Default::default()
            });
        }
        if !config.socket_options.is_empty() {
            report.unsupported(&at.field("socket_options"), "an option of the admin socket");
            return None;
        }
        // profile_path names where a profiler writes, and there is none; ignore_global_conn_limit is always so: the admin port
        // does not count towards the limit of downstream connections.
        let access_logs = AccessLogs::compile(&logs, server, &at.field("access_log"), report);
        let allow_paths = StringMatcher::compile_list(&config.allow_paths, &at.field("allow_paths"), report);
        Some(Self { access_logs: Some(access_logs?).filter(|logs| !logs.is_empty()), allow_paths: allow_paths? })
    }

    /// No access log, all paths.
    pub fn open() -> Self {
        Self { access_logs: None, allow_paths: Box::default() }
    }

    fn allows(&self, path: &str) -> bool {
        self.allow_paths.is_empty() || self.allow_paths.iter().any(|m| m.matches(path))
    }
}

/// The bound admin socket.
#[derive(Debug)]
pub struct AdminServer {
    socket: Socket,
    address: Address,
}

impl AdminServer {
    /// Binds `address`: an IP with port (0 takes a free one), a Unix socket path (an old socket there is removed), or an abstract
    /// one (`@name`). `mode` is the file mode of a Unix socket; 0 keeps the process's umask. Call it inside the runtime.
    pub fn bind(address: &Address, mode: u32) -> io::Result<Self> {
        let (socket, address) = Socket::bind(address, mode, false)?;
        Ok(Self { socket, address })
    }

    /// Binds an IPv6 address that takes IPv4 connections too (`ipv4_compat`), where [`Self::bind`] takes IPv6 only.
    pub fn bind_compat(address: &Address) -> io::Result<Self> {
        let (socket, address) = Socket::bind(address, 0, true)?;
        Ok(Self { socket, address })
    }

    /// The address in use, for `--admin-address-path`.
    pub fn local_address(&self) -> &Address {
        &self.address
    }

    /// Serves until it is dropped. Runs on the control thread; needs no `LocalSet`.
    pub async fn run(self, backend: Rc<dyn Backend>, options: AdminOptions) {
        let stats = AdminStats::new(&backend.stats());
        let cx = Rc::new(Context { backend, options, stats, local: self.address });
        let mut connections: FuturesUnordered<LocalBoxFuture<'static, ()>> = FuturesUnordered::new();
        loop {
            tokio::select! {
                accepted = self.socket.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                    Ok((io, remote)) => connections.push(Box::pin(connection(cx.clone(), io, remote))),
                    Err(e) => {
                        log::warn!("admin: cannot accept a connection: {e}");
                        // Out of file descriptors, most likely: wait for some to be closed.
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
                Some(()) = connections.next() => {}
            }
        }
    }
}

struct Context {
    backend: Rc<dyn Backend>,
    options: AdminOptions,
    stats: AdminStats,
    local: Address,
}

pub(crate) trait Io: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Io for T {}

async fn connection(cx: Rc<Context>, mut io: Box<dyn Io>, remote: Address) {
    let _open = cx.stats.connection();
    // Nobody asks for the connection's data unless there is a log.
    let info = cx.options.access_logs.is_some().then(|| Rc::new(ConnectionInfo::plain(remote, cx.local.clone(), Arc::from("admin"))));
    let mut reader = Reader::default();
    loop {
        if reader.is_idle() && !matches!(timeout(IDLE, reader.more(&mut io)).await, Ok(Ok(()))) {
            return;
        }
        let request = match timeout(HEAD, reader.request(&mut io)).await {
            Ok(Ok(request)) => request,
            Ok(Err(Refusal::Gone)) => return,
            Ok(Err(Refusal::Status(status))) => return refuse(&mut io, status).await,
            Err(_) => return refuse(&mut io, 408).await,
        };
        if !exchange(&cx, &mut io, &request, info.as_ref()).await {
            return;
        }
    }
}

/// Answers what is no request.
async fn refuse(io: &mut Box<dyn Io>, status: u16) {
    let mut reply = Reply::new(io, false, false, false);
    reply.text(status, if status == 400 { "Bad Request" } else { "" });
    // The peer may be gone already; the connection ends either way.
    let _ = reply.finish().await;
}

/// One request and its answer; whether the connection carries another.
async fn exchange(cx: &Context, io: &mut Box<dyn Io>, request: &Request, info: Option<&Rc<ConnectionInfo>>) -> bool {
    let started = info.map(|info| nuncio_core::StreamInfo::new(info.clone(), None));
    let active = cx.stats.request();
    let mut reply = Reply::new(io, request.method == "HEAD", request.http_10, request.keep_alive);
    let path = request.path();
    let mut result = Ok(());
    if cx.options.allows(&path) {
        result = answer(cx.backend.as_ref(), request, &mut reply).await;
    } else {
        reply.text(403, &format!("request to path {path} not allowed"));
    }
    if !matches!(result, Err(Stop::Gone)) {
        result = reply.finish().await;
    }
    active.done(reply.status);
    if let (Some(stream), Some(logs)) = (started, &cx.options.access_logs) {
        log(logs, stream, request, &reply, result.is_err());
    }
    result.is_ok() && reply.keeps_alive()
}

impl AdminStats {
    fn new(store: &Store) -> Self {
        Self::in_scope(&store.root())
    }
}
