//! Making one upstream connection: socket options, bind address, happy eyeballs, PROXY protocol, TLS, and what of them
//! `connect_timeout` allows. Runs on a worker (pools) or on the control thread (health checks).

use crate::cluster::Cluster;
use crate::host::Host;
use crate::pool::io::{Filters, Opened, PoolIo};
use crate::pool::key::{Key, Speaks};
use crate::pool::proxy::{self, Told};
use crate::spec::{BindSource, BindSpec, Socket, SocketOpt, SocketSpec};
use futures_util::stream::{FuturesUnordered, StreamExt};
use nuncio_core::filter_state::OriginalSource;
use nuncio_core::info::{ConnectMoments, TrafficDirection, UpstreamInfo};
use nuncio_core::views::{ClusterView, HostView};
use nuncio_core::{Address, ConnectionInfo, HttpVersion, StreamError, TlsInfo};
use nuncio_tls::{ConnectOptions, Transport};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream, UnixStream};

/// Time before the next address is tried beside the one that hangs. Source: RFC 8305, and Envoy's `happy_eyeballs_connection_impl.cc`.
const NEXT_ADDRESS: Duration = Duration::from_millis(300);

/// A connection that is up, and what is known of it.
pub(crate) struct Connected {
    pub io: PoolIo,
    pub info: UpstreamInfo,
    /// ALPN chose HTTP/2.
    pub alpn_h2: bool,
}

/// Connects to `host` as `key` says. `opened` counts the connection from the start; failures are counted here.
pub(crate) async fn connect(
    cluster: &Arc<Cluster>,
    host: &Arc<Host>,
    key: &Key,
    http: bool,
    downstream: Option<&Rc<ConnectionInfo>>,
    opened: Opened,
) -> Result<Connected, StreamError> {
    let began = Instant::now();
    let made = tokio::time::timeout(cluster.spec.connect_timeout, handshake(cluster, host, key, http)).await;
    let (io, mut info) = match made {
        Ok(Ok(made)) => made,
        Ok(Err(why)) => {
            opened.failed(false);
            return Err(StreamError::ConnectFailed(why));
        }
        Err(_) => {
            opened.failed(true);
            return Err(StreamError::ConnectTimeout);
        }
    };
    info.cluster = Some(cluster.clone());
    info.host = Some(host.clone());
    info.connection_id = Some(opened.meta.id);
    info.connect_time = Some(began.elapsed());
    let alpn_h2 = info.tls.as_ref().and_then(|t| t.alpn.as_ref()).is_some_and(|alpn| &**alpn == "h2" || &**alpn == "istio-h2");
    let version = http.then_some(match key.speaks {
        Speaks::H2 => HttpVersion::Http2,
        Speaks::Auto if alpn_h2 => HttpVersion::Http2,
        _ => HttpVersion::Http11,
    });
    info.protocol = version;
    opened.established(version);
    let filters = if cluster.spec.filters.is_empty() {
        None
    } else {
        let made_for = downstream.cloned().unwrap_or_else(|| Rc::new(stand_in(&info)));
        Filters::new(cluster, &made_for, &info)
    };
    let mut io = PoolIo { io, filters, opened };
    if let Some(filters) = &mut io.filters {
        filters.begin().map_err(|e| StreamError::ConnectFailed(e.to_string()))?;
    }
    Ok(Connected { io, info, alpn_h2 })
}

/// A pooled connection is made for nobody in particular; filters are shown its own two ends.
fn stand_in(info: &UpstreamInfo) -> ConnectionInfo {
    let nowhere = || Address::Pipe("".into());
    let local = info.local.clone().unwrap_or_else(nowhere);
    let remote = info.remote.clone().unwrap_or_else(nowhere);
    ConnectionInfo { direction: TrafficDirection::Outbound, ..ConnectionInfo::plain(local, remote, "".into()) }
}

async fn handshake(cluster: &Arc<Cluster>, host: &Arc<Host>, key: &Key, http: bool) -> Result<(Transport, UpstreamInfo), String> {
    let began = Instant::now();
    let io = open_transport(&cluster.spec.socket, host.address(), &host.additional, key.origin.as_ref()).await.map_err(|e| reason(&e))?;
    let mut info = UpstreamInfo { local: io.local_addr().ok(), remote: io.peer_addr().ok(), ..UpstreamInfo::default() };
    info.connect = ConnectMoments { began: Some(began), connected: Some(Instant::now()), secured: None };
    if let Address::Pipe(_) = host.address() {
        info.remote = Some(host.address().clone());
    }
    let Some(matched) = cluster.spec.transports.get(usize::from(host.transport)) else { return Ok((io, info)) };
    let fallback = fallback(http.then_some(key.speaks));
    let hostname = Some(host.hostname()).filter(|h| !h.is_empty());
    let options = ConnectOptions {
        sni: key.sni.as_deref(),
        alpn: key.alpn.as_deref(),
        alpn_fallback: &fallback,
        hostname,
        verify_sans: key.sans.as_deref(),
    };
    let told = key.proxied.as_ref().map(|proxied| Told { proxied, cluster, host });
    let (io, tls) = secure(io, &matched.socket, told, &options).await?;
    info.connect.secured = tls.is_some().then(Instant::now);
    info.tls = tls;
    Ok((io, info))
}

/// ALPN that the codec asks for, if nothing else says any.
fn fallback(speaks: Option<Speaks>) -> Vec<Vec<u8>> {
    let h1 = || b"http/1.1".to_vec();
    match speaks {
        None => Vec::new(),
        Some(Speaks::H1) => vec![h1()],
        Some(Speaks::H2) => vec![b"h2".to_vec()],
        Some(Speaks::Auto) => vec![b"h2".to_vec(), h1()],
    }
}

/// PROXY protocol and TLS, as `socket` says.
async fn secure(
    mut io: Transport,
    mut socket: &Socket,
    told: Option<Told<'_>>,
    options: &ConnectOptions<'_>,
) -> Result<(Transport, Option<Arc<TlsInfo>>), String> {
    if let Socket::Proxy(proxy) = socket {
        let header = proxy::header_of(proxy, told, &io);
        io.write_all(&header).await.map_err(|e| reason(&e))?;
        socket = &proxy.inner;
    }
    let Socket::Tls(tls) = socket else { return Ok((io, None)) };
    // The future is large, and most of the time there is none.
    let (io, info) = Box::pin(tls.connect(io, options)).await.map_err(|e| e.reason().to_string())?;
    Ok((io, Some(info)))
}

/// A connection for a health check or a load report stream, which counts nowhere.
pub(crate) async fn for_check(
    cluster: &Cluster,
    host: &Host,
    address: &Address,
    socket: Option<&Socket>,
    alpn: Option<&[Vec<u8>]>,
    speaks: Option<Speaks>,
) -> Result<(Transport, Option<Arc<TlsInfo>>), String> {
    let io = open_transport(&cluster.spec.socket, address, &[], None).await.map_err(|e| reason(&e))?;
    let Some(socket) = socket else { return Ok((io, None)) };
    let fallback = fallback(speaks);
    let hostname = Some(host.hostname()).filter(|h| !h.is_empty());
    let options = ConnectOptions { alpn, alpn_fallback: &fallback, hostname, ..ConnectOptions::default() };
    secure(io, socket, None, &options).await
}

/// Envoy's words where it has some.
fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "delayed connect error: Connection refused".to_string(),
        _ => format!("delayed connect error: {error}"),
    }
}

/// Connects to the first address that answers.
pub(crate) async fn open_transport(
    spec: &SocketSpec,
    address: &Address,
    additional: &[Address],
    origin: Option<&OriginalSource>,
) -> io::Result<Transport> {
    match address {
        Address::Pipe(path) => unix(path).await.map(Transport::Unix),
        Address::Internal(..) => Err(io::Error::new(io::ErrorKind::Unsupported, "internal listeners are not supported")),
        Address::Ip(first) if additional.is_empty() => tcp(spec, *first, origin).await.map(Transport::Tcp),
        Address::Ip(first) => happy_eyeballs(spec, *first, additional, origin).await.map(Transport::Tcp),
    }
}

async fn unix(path: &str) -> io::Result<UnixStream> {
    match path.strip_prefix('@') {
        // Linux's abstract namespace.
        Some(name) => {
            use std::os::linux::net::SocketAddrExt;
            let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
            let stream = std::os::unix::net::UnixStream::connect_addr(&address)?;
            stream.set_nonblocking(true)?;
            UnixStream::from_std(stream)
        }
        None => UnixStream::connect(path).await,
    }
}

async fn tcp(spec: &SocketSpec, address: SocketAddr, origin: Option<&OriginalSource>) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_nodelay(true)?;
    prepare(&socket, spec, address, origin)?;
    socket.connect(address).await
}

fn prepare(socket: &TcpSocket, spec: &SocketSpec, address: SocketAddr, origin: Option<&OriginalSource>) -> io::Result<()> {
    if let Some((probes, time, interval)) = spec.keepalive {
        let mut keep = socket2::TcpKeepalive::new();
        if probes > 0 {
            keep = keep.with_retries(probes);
        }
        if time > 0 {
            keep = keep.with_time(Duration::from_secs(u64::from(time)));
        }
        if interval > 0 {
            keep = keep.with_interval(Duration::from_secs(u64::from(interval)));
        }
        socket2::SockRef::from(socket).set_tcp_keepalive(&keep)?;
    }
    let source = spec.bind.as_ref().and_then(|b| b.sources.iter().find(|s| s.address.is_ipv4() == address.is_ipv4()));
    if let Some(bind) = &spec.bind {
        for option in source.and_then(|s| s.options.as_ref()).unwrap_or(&bind.options) {
            apply(socket, *option)?;
        }
    }
    // The client's address goes before any that is configured, as in Envoy.
    if let Some(origin) = origin.filter(|o| o.address.is_ipv4() == address.is_ipv4()) {
        return bind_origin(socket, origin);
    }
    let Some(bind) = &spec.bind else { return Ok(()) };
    bind_source(socket, bind, source, address)
}

/// Binds to the client's address (original_src), as far as the system allows it.
fn bind_origin(socket: &TcpSocket, origin: &OriginalSource) -> io::Result<()> {
    let raw = socket2::SockRef::from(socket);
    let transparent = if origin.address.is_ipv4() { raw.set_ip_transparent_v4(true) } else { raw.set_ip_transparent_v6(true) };
    let marked = transparent.and_then(|()| if origin.mark > 0 { raw.set_mark(origin.mark) } else { Ok(()) });
    marked.map_err(|e| {
        static SAID: Once = Once::new();
        let why = format!("original_src needs CAP_NET_ADMIN to connect from {}: {e}", origin.address);
        // Every connection fails alike; who looks for the reason finds it in each access log.
        SAID.call_once(|| log::warn!("{why}"));
        io::Error::new(e.kind(), why)
    })?;
    socket.bind(SocketAddr::new(origin.address, 0))
}

fn bind_source(socket: &TcpSocket, bind: &BindSpec, source: Option<&BindSource>, address: SocketAddr) -> io::Result<()> {
    if bind.freebind {
        let raw = socket2::SockRef::from(socket);
        if address.is_ipv4() {
            raw.set_freebind_v4(true)?
        } else {
            raw.set_freebind_v6(true)?
        };
    }
    match source {
        Some(source) => socket.bind(source.address),
        None => Ok(()),
    }
}

fn apply(socket: &TcpSocket, option: SocketOpt) -> io::Result<()> {
    let raw = socket2::SockRef::from(socket);
    let keep = socket2::TcpKeepalive::new;
    match option {
        SocketOpt::KeepAlive(on) => raw.set_keepalive(on),
        SocketOpt::KeepIdle(time) => raw.set_tcp_keepalive(&keep().with_time(time)),
        SocketOpt::KeepInterval(time) => raw.set_tcp_keepalive(&keep().with_interval(time)),
        SocketOpt::KeepCount(n) => raw.set_tcp_keepalive(&keep().with_retries(n)),
        SocketOpt::NoDelay(on) => raw.set_tcp_nodelay(on),
        SocketOpt::UserTimeout(time) => raw.set_tcp_user_timeout(Some(time)),
        SocketOpt::Mark(mark) => raw.set_mark(mark),
        SocketOpt::Tos(tos) => match raw.set_tos_v4(tos) {
            Ok(()) => Ok(()),
            Err(_) => raw.set_tclass_v6(tos),
        },
        SocketOpt::ReuseAddress(on) => raw.set_reuse_address(on),
        SocketOpt::SendBuffer(n) => raw.set_send_buffer_size(n),
        SocketOpt::ReceiveBuffer(n) => raw.set_recv_buffer_size(n),
    }
}

/// Addresses in turn of family, each begun a little after the one before; the first that connects wins.
async fn happy_eyeballs(
    spec: &SocketSpec,
    first: SocketAddr,
    additional: &[Address],
    origin: Option<&OriginalSource>,
) -> io::Result<TcpStream> {
    let all = std::iter::once(first).chain(additional.iter().filter_map(Address::socket)).collect();
    race(interleave(all, spec.v4_first, spec.family_count), |address| tcp(spec, address, origin)).await
}

/// The first connection that is made: the next address is tried as soon as one failed, and after [`NEXT_ADDRESS`] while all hang
/// (RFC 8305 section 5, Envoy's `MultiConnectionBaseImpl`).
async fn race<T, F: Future<Output = io::Result<T>>>(addresses: Vec<SocketAddr>, connect: impl Fn(SocketAddr) -> F) -> io::Result<T> {
    let mut waiting = addresses.into_iter();
    let mut running = FuturesUnordered::new();
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    running.extend(waiting.next().map(&connect));
    loop {
        tokio::select! {
            biased;
            done = running.next() => match done {
                Some(Ok(stream)) => return Ok(stream),
                Some(Err(e)) => {
                    last = e;
                    running.extend(waiting.next().map(&connect));
                }
                None => return Err(last),
            },
            () = tokio::time::sleep(NEXT_ADDRESS), if waiting.len() > 0 => running.extend(waiting.next().map(&connect)),
        }
    }
}

/// `happy_eyeballs_config`: `count` addresses of the first family, then the families in turn. Without configuration the first
/// address says which family is first.
fn interleave(all: Vec<SocketAddr>, v4_first: Option<bool>, count: usize) -> Vec<SocketAddr> {
    let first_v4 = v4_first.unwrap_or_else(|| all.first().is_some_and(SocketAddr::is_ipv4));
    let (a, b): (Vec<_>, Vec<_>) = all.into_iter().partition(|x| x.is_ipv4() == first_v4);
    let (mut a, mut b) = (a.into_iter(), b.into_iter());
    let mut order: Vec<_> = a.by_ref().take(count.max(1)).collect();
    loop {
        let before = order.len();
        order.extend(b.next());
        order.extend(a.next());
        if order.len() == before {
            return order;
        }
    }
}

/// The cluster as formatters name it, for logs of connect failures.
pub(crate) fn describe(cluster: &Cluster, host: &Host) -> String {
    format!("{} ({})", host.address(), ClusterView::name(cluster))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_failed_address_gives_way_at_once() {
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let tried = std::cell::RefCell::new(Vec::new());
        let began = tokio::time::Instant::now();
        let connect = |to: SocketAddr| {
            tried.borrow_mut().push((to.port(), began.elapsed().as_millis()));
            async move {
                match to.port() {
                    1 => std::future::pending().await,
                    2 => Err(io::Error::from(io::ErrorKind::ConnectionRefused)),
                    port => Ok(port),
                }
            }
        };
        assert_eq!(race(vec![address(1), address(2), address(3)], &connect).await.unwrap(), 3);
        assert_eq!(*tried.borrow(), [(1, 0), (2, 300), (3, 300)]);
        assert_eq!(race(vec![address(2), address(2)], &connect).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(race(Vec::new(), &connect).await.unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn families_alternate() {
        let a = |s: &str| s.parse::<SocketAddr>().unwrap();
        let all = || vec![a("1.1.1.1:1"), a("2.2.2.2:1"), a("[::3]:1"), a("[::4]:1"), a("3.3.3.3:1")];
        let text = |v: Vec<SocketAddr>| v.iter().map(|x| x.ip().to_string()).collect::<Vec<_>>().join(" ");
        assert_eq!(text(interleave(all(), None, 1)), "1.1.1.1 ::3 2.2.2.2 ::4 3.3.3.3");
        assert_eq!(text(interleave(all(), Some(false), 1)), "::3 1.1.1.1 ::4 2.2.2.2 3.3.3.3");
        assert_eq!(text(interleave(all(), Some(true), 2)), "1.1.1.1 2.2.2.2 ::3 3.3.3.3 ::4");
    }
}
