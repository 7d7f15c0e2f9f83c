//! Listening sockets: what a listener asks for, and binding it. Control thread. Two listeners whose wishes are equal can share the
//! sockets, which is how an update keeps its accept queues.

use crate::sys;
use nuncio_core::Address;
use nuncio_core::diag::{At, Report};
use nuncio_proto::envoy::config::core::v3::{
    self as core, SocketOption as OptionProto, TcpKeepalive as KeepaliveProto,
    address::Address as Kind,
    socket_address::PortSpecifier,
    socket_option::{SocketState, Value},
};
use socket2::{Domain, Protocol, SockAddr, Socket, TcpKeepalive, Type};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;
use std::{fs, io};

/// One `SocketOption`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct RawOption {
    level: i32,
    name: i32,
    value: Vec<u8>,
    state: SocketState,
}

/// One address of a listener with everything that shapes its sockets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SocketSpec {
    pub address: Address,
    /// `bind_to_port`; false: connections come only by hand-over from another listener.
    pub bind: bool,
    ipv4_compat: bool,
    pipe_mode: u32,
    pub shared: SharedSpec,
    options: Vec<RawOption>,
    keepalive: Option<Keepalive>,
}

/// What all addresses of a listener share.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SharedSpec {
    pub reuse_port: bool,
    pub transparent: Option<bool>,
    pub freebind: Option<bool>,
    pub fast_open: Option<u32>,
    pub backlog: Option<u32>,
    pub mptcp: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Keepalive {
    probes: Option<u32>,
    time: Option<u32>,
    interval: Option<u32>,
}

impl SocketSpec {
    /// Compiles one address. None means refused.
    pub(crate) fn compile(
        address: Option<&core::Address>,
        options: &[OptionProto],
        keepalive: Option<&KeepaliveProto>,
        shared: &SharedSpec,
        bind: bool,
        at: &At<'_>,
        report: &mut Report,
    ) -> Option<Self> {
        let here = at.field("address");
        let (address, ipv4_compat, pipe_mode) = match address.and_then(|a| a.address.as_ref()) {
            None => {
                report.error(&here, "it is missing", "give socket_address or pipe");
                return None;
            }
            Some(Kind::EnvoyInternalAddress(_)) => {
                report.unsupported(&here.field("envoy_internal_address"), "an internal listener");
                return None;
            }
            Some(Kind::Pipe(pipe)) => {
                // sun_path holds 108 bytes with its end.
                if pipe.path.is_empty() || pipe.path.len() > 107 || pipe.path.contains('\0') {
                    report.error(&here.field("pipe").field("path"), format!("`{}`", pipe.path), "give a path of 1 to 107 bytes");
                    return None;
                }
                if pipe.mode > 0o777 {
                    report.error(&here.field("pipe").field("mode"), format!("{:o}", pipe.mode), "give at most 0777");
                    return None;
                }
                (Address::Pipe(pipe.path.as_str().into()), false, pipe.mode)
            }
            Some(Kind::SocketAddress(socket)) => (Address::Ip(ip(socket, &here.field("socket_address"), report)?), socket.ipv4_compat, 0),
        };
        let field = at.field("socket_options");
        let compiled: Vec<_> = options.iter().enumerate().map(|(i, o)| raw_option(o, &field.index(i), report)).collect();
        let options = compiled.into_iter().collect::<Option<Vec<_>>>()?.into_iter().flatten().collect();
        let keepalive = keepalive.map(|k| Keepalive { probes: k.keepalive_probes, time: k.keepalive_time, interval: k.keepalive_interval });
        Some(Self { address, bind, ipv4_compat, pipe_mode, shared: shared.clone(), options, keepalive })
    }

    /// Binds the sockets of `workers` workers: one each with SO_REUSEPORT, else one for all. Not listening yet. None are made without
    /// `bind_to_port`. The bound address comes back, with a port instead of 0.
    pub(crate) fn open(&self, workers: usize) -> io::Result<(Address, Vec<Socket>)> {
        if !self.bind {
            return Ok((self.address.clone(), Vec::new()));
        }
        match &self.address {
            Address::Ip(address) => {
                let count = if self.shared.reuse_port { workers.max(1) } else { 1 };
                let first = self.open_tcp(*address)?;
                let bound = first.local_addr()?.as_socket().unwrap_or(*address);
                let mut sockets = vec![first];
                for _ in 1..count {
                    sockets.push(self.open_tcp(bound)?);
                }
                Ok((Address::Ip(bound), sockets))
            }
            Address::Pipe(path) => Ok((self.address.clone(), vec![self.open_pipe(path)?])),
            Address::Internal(..) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    fn open_tcp(&self, address: SocketAddr) -> io::Result<Socket> {
        // 262 is IPPROTO_MPTCP.
        let protocol = if self.shared.mptcp { Protocol::from(262) } else { Protocol::TCP };
        let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(protocol))?;
        socket.set_reuse_address(true)?;
        if self.shared.reuse_port {
            socket.set_reuse_port(true)?;
        }
        if address.is_ipv6() {
            socket.set_only_v6(!self.ipv4_compat)?;
        }
        if let Some(on) = self.shared.transparent {
            if address.is_ipv6() { socket.set_ip_transparent_v6(on)? } else { socket.set_ip_transparent_v4(on)? }
        }
        if let Some(on) = self.shared.freebind {
            if address.is_ipv6() { socket.set_freebind_v6(on)? } else { socket.set_freebind_v4(on)? }
        }
        if let Some(keepalive) = self.keepalive {
            let seconds = |n: u32| Duration::from_secs(n.into());
            let mut wanted = TcpKeepalive::new();
            wanted = keepalive.time.map_or(wanted.clone(), |n| wanted.with_time(seconds(n)));
            wanted = keepalive.interval.map_or(wanted.clone(), |n| wanted.with_interval(seconds(n)));
            wanted = keepalive.probes.map_or(wanted.clone(), |n| wanted.with_retries(n));
            socket.set_keepalive(true)?;
            socket.set_tcp_keepalive(&wanted)?;
        }
        self.apply(&socket, SocketState::StatePrebind)?;
        socket.bind(&SockAddr::from(address))?;
        self.apply(&socket, SocketState::StateBound)?;
        Ok(socket)
    }

    fn open_pipe(&self, path: &str) -> io::Result<Socket> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
        self.apply(&socket, SocketState::StatePrebind)?;
        match path.strip_prefix('@') {
            Some(name) => socket.bind(&SockAddr::unix(format!("\0{name}"))?)?,
            None => {
                // As Envoy: a socket that an earlier process left behind is in the way.
                if fs::symlink_metadata(path).is_ok_and(|m| std::os::unix::fs::FileTypeExt::is_socket(&m.file_type())) {
                    fs::remove_file(path)?;
                }
                socket.bind(&SockAddr::unix(path)?)?;
                if self.pipe_mode != 0 {
                    fs::set_permissions(path, fs::Permissions::from_mode(self.pipe_mode))?;
                }
            }
        }
        self.apply(&socket, SocketState::StateBound)?;
        Ok(socket)
    }

    /// The addresses that connections may have been meant for which belong here: `bound`, and its IPv4 twin if it is `[::]` for both families.
    pub(crate) fn owned(&self, bound: &Address) -> impl Iterator<Item = SocketAddr> {
        let bound = bound.socket();
        let twin = bound.filter(|a| self.ipv4_compat && a.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED));
        bound.into_iter().chain(twin.map(|a| SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), a.port())))
    }

    /// Begins to listen. From here on the kernel queues connections.
    pub(crate) fn listen(&self, socket: &Socket) -> io::Result<()> {
        // The kernel caps it at net.core.somaxconn, which is also Envoy's default.
        socket.listen(self.shared.backlog.map_or(i32::MAX, |n| i32::try_from(n).unwrap_or(i32::MAX)))?;
        if let (Some(queue), Address::Ip(_)) = (self.shared.fast_open, &self.address) {
            sys::set_fast_open(socket.as_fd(), queue)?;
        }
        self.apply(socket, SocketState::StateListening)
    }

    fn apply(&self, socket: &Socket, state: SocketState) -> io::Result<()> {
        for option in self.options.iter().filter(|o| o.state == state) {
            sys::set_option(socket.as_fd(), option.level, option.name, &option.value)
                .map_err(|e| io::Error::new(e.kind(), format!("socket option level {} name {}: {e}", option.level, option.name)))?;
        }
        Ok(())
    }
}

fn ip(socket: &core::SocketAddress, at: &At<'_>, report: &mut Report) -> Option<SocketAddr> {
    let before = report.errors();
    if socket.protocol != core::socket_address::Protocol::Tcp as i32 {
        report.unsupported(&at.field("protocol"), "a UDP listener");
    }
    if !socket.resolver_name.is_empty() {
        report.unsupported(&at.field("resolver_name"), "a resolver for a listener's address");
    }
    if !socket.network_namespace_filepath.is_empty() {
        report.unsupported(&at.field("network_namespace_filepath"), "a network namespace");
    }
    let address = socket.address.parse::<IpAddr>();
    if address.is_err() {
        report.error(&at.field("address"), format!("`{}`", socket.address), "give an IPv4 or IPv6 address");
    }
    let port = match &socket.port_specifier {
        Some(PortSpecifier::PortValue(port)) => u16::try_from(*port).ok(),
        _ => None,
    };
    if port.is_none() {
        report.error(&at.field("port_value"), "no port of 0 to 65535", "give port_value");
    }
    if report.errors() > before {
        return None;
    }
    Some(SocketAddr::new(address.ok()?, port?))
}

/// One option; `Some(None)` if it is not for stream sockets.
fn raw_option(proto: &OptionProto, at: &At<'_>, report: &mut Report) -> Option<Option<RawOption>> {
    let mut number = |n: i64, name: &'static str| match i32::try_from(n) {
        Ok(n) => Some(n),
        Err(_) => {
            report.error(&at.field(name), n.to_string(), "give a number of the system's headers");
            None
        }
    };
    let (level, name) = (number(proto.level, "level")?, number(proto.name, "name")?);
    let value = match &proto.value {
        Some(Value::IntValue(n)) => {
            // The kernel's int; Envoy casts too.
            let n = i32::try_from(*n).map_err(|_| report.error(&at.field("int_value"), n.to_string(), "give a 32-bit number")).ok()?;
            n.to_ne_bytes().to_vec()
        }
        Some(Value::BufValue(bytes)) => bytes.clone(),
        None => {
            report.error(at, "neither int_value nor buf_value", "give one of them");
            return None;
        }
    };
    if proto.ip_version != 0 {
        report.unsupported(&at.field("ip_version"), "a socket option for one IP version");
        return None;
    }
    if proto.r#type.as_ref().is_some_and(|t| t.stream.is_none() && t.datagram.is_some()) {
        return Some(None);
    }
    let Ok(state) = SocketState::try_from(proto.state) else {
        report.error(&at.field("state"), proto.state.to_string(), "give STATE_PREBIND, STATE_BOUND or STATE_LISTENING");
        return None;
    };
    Some(Some(RawOption { level, name, value, state }))
}

/// `0.0.0.0_8080`: an address as Envoy puts it into stat names.
pub(crate) fn stat_name(address: &Address) -> String {
    address.to_string().replace("://", "_").replace([':', '\0'], "_")
}
