//! Transport sockets, their matches, and socket options from protobuf.

use super::{extension, refuse};
use crate::cluster::ClusterCx;
use crate::spec::{BindSource, BindSpec, ProxySocket, Socket, SocketOpt, SocketSpec, TransportMatch};
use nuncio_core::diag::{At, Report};
use nuncio_core::proxy_protocol::PassTlvs;
use nuncio_format::Tlvs;
use nuncio_proto::Message;
use nuncio_proto::envoy::config::cluster::v3 as pb;
use nuncio_proto::envoy::config::core::v3::socket_option::Value as OptionValue;
use nuncio_proto::envoy::config::core::v3::transport_socket::ConfigType;
use nuncio_proto::envoy::config::core::v3::{BindConfig, SocketAddress, SocketOption, TransportSocket};
use nuncio_proto::envoy::extensions::transport_sockets::proxy_protocol::v3::ProxyProtocolUpstreamTransport;
use nuncio_proto::envoy::extensions::transport_sockets::tls::v3::UpstreamTlsContext;
use nuncio_proto::typed::unpack;
use nuncio_tls::UpstreamTls;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// The cluster's own transport socket, then its matches.
pub(super) fn transports(proto: &pb::Cluster, at: &At<'_>, cx: &mut ClusterCx<'_>) -> Option<Box<[TransportMatch]>> {
    let own = match &proto.transport_socket {
        None => Some(Socket::Raw),
        Some(socket) => socket_of(socket, &proto_scope(proto, cx), &at.field("transport_socket"), cx),
    };
    let mut all = vec![own.map(|socket| TransportMatch { name: "default".into(), criteria: Box::default(), socket })];
    let list = at.field("transport_socket_matches");
    for (i, entry) in proto.transport_socket_matches.iter().enumerate() {
        let at = list.index(i);
        let criteria = entry.r#match.iter().flat_map(|m| &m.fields).map(|(k, v)| (k.as_str().into(), v.clone())).collect();
        let socket = match &entry.transport_socket {
            None => Some(Socket::Raw),
            Some(socket) => socket_of(socket, &proto_scope(proto, cx), &at.field("transport_socket"), cx),
        };
        all.push(socket.map(|socket| TransportMatch { name: entry.name.as_str().into(), criteria, socket }));
    }
    all.into_iter().collect()
}

fn proto_scope(proto: &pb::Cluster, cx: &ClusterCx<'_>) -> nuncio_stats::Scope {
    let name = if proto.alt_stat_name.is_empty() { &proto.name } else { &proto.alt_stat_name };
    crate::cluster::scope(&cx.server.stats, name)
}

fn socket_of(socket: &TransportSocket, scope: &nuncio_stats::Scope, at: &At<'_>, cx: &mut ClusterCx<'_>) -> Option<Socket> {
    let at = at.field("typed_config");
    let Some(ConfigType::TypedConfig(any)) = &socket.config_type else {
        // By name alone, as raw_buffer is often written.
        if matches!(socket.name.as_str(), "raw_buffer" | "envoy.transport_sockets.raw_buffer") {
            return Some(Socket::Raw);
        }
        cx.report.error(&at, "missing", format!("{} needs typed_config", socket.name));
        return None;
    };
    let typed = match unpack(any) {
        Ok(typed) => typed,
        Err(why) => {
            cx.report.error(&at, why, "a transport socket configuration");
            return None;
        }
    };
    match typed.name.as_str() {
        "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer" => Some(Socket::Raw),
        "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext" => match UpstreamTlsContext::decode(typed.value.as_ref()) {
            Ok(context) => UpstreamTls::compile(&context, cx.secrets, scope, &at, cx.report).map(Socket::Tls),
            Err(e) => {
                cx.report.error(&at, format!("cannot be decoded: {e}"), "an UpstreamTlsContext");
                None
            }
        },
        "envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport" => {
            proxy_protocol(&typed.value, scope, &at, cx)
        }
        other => {
            cx.report.unsupported(&at, format_args!("upstream transport socket {} ({other})", socket.name));
            None
        }
    }
}

fn proxy_protocol(bytes: &[u8], scope: &nuncio_stats::Scope, at: &At<'_>, cx: &mut ClusterCx<'_>) -> Option<Socket> {
    let proto = match ProxyProtocolUpstreamTransport::decode(bytes) {
        Ok(proto) => proto,
        Err(e) => {
            cx.report.error(at, format!("cannot be decoded: {e}"), "a ProxyProtocolUpstreamTransport");
            return None;
        }
    };
    let config = proto.config.unwrap_or_default();
    let at_config = at.field("config");
    // `tlv_as_pool_key` is always so: connections that tell other TLVs are other connections.
    refuse(cx.report, at, &[(proto.allow_unspecified_address, "allow_unspecified_address")]);
    let pass = PassTlvs::compile(config.pass_through_tlvs.as_ref(), &at_config.field("pass_through_tlvs"), cx.report);
    let added = Tlvs::compile(&config.added_tlvs, &at_config.field("added_tlvs"), cx.report)?;
    let Some(inner) = &proto.transport_socket else {
        cx.report.error(&at.field("transport_socket"), "missing", "PROXY protocol wraps another transport socket");
        return None;
    };
    let inner = socket_of(inner, scope, &at.field("transport_socket"), cx)?;
    if matches!(inner, Socket::Proxy(_)) {
        cx.report.error(&at.field("transport_socket"), "PROXY protocol in PROXY protocol", "raw_buffer or tls");
        return None;
    }
    // ProxyProtocolConfig.Version: V1 = 0, V2 = 1.
    Some(Socket::Proxy(Arc::new(ProxySocket { v2: config.version == 1, pass, added, inner })))
}

/// Bind address, keep-alive, happy eyeballs.
pub(super) fn compile(proto: &pb::Cluster, at: &At<'_>, cx: &mut ClusterCx<'_>) -> SocketSpec {
    let mut spec = SocketSpec { family_count: 1, ..SocketSpec::default() };
    spec.bind = match &proto.upstream_bind_config {
        Some(config) => Some(cx.shared.intern_bind(bind(config, &at.field("upstream_bind_config"), cx.report))),
        None => cx.shared.default_bind(),
    };
    let Some(options) = &proto.upstream_connection_options else { return spec };
    let at = at.field("upstream_connection_options");
    if let Some(keep) = &options.tcp_keepalive {
        let value = |v: Option<u32>| v.unwrap_or(0);
        spec.keepalive = Some((value(keep.keepalive_probes), value(keep.keepalive_time), value(keep.keepalive_interval)));
    }
    if options.set_local_interface_name_on_upstream_connections {
        cx.report.warning(&at.field("set_local_interface_name_on_upstream_connections"), "set", "interface names are not looked up");
    }
    if let Some(eyeballs) = &options.happy_eyeballs_config {
        use pb::upstream_connection_options::FirstAddressFamilyVersion as First;
        let at = at.field("happy_eyeballs_config");
        spec.v4_first = match First::try_from(eyeballs.first_address_family_version) {
            Ok(First::V4) => Some(true),
            Ok(First::V6) => Some(false),
            Ok(First::Default) => None,
            _ => {
                cx.report.unsupported(&at.field("first_address_family_version"), "a family other than V4 and V6");
                None
            }
        };
        spec.family_count = eyeballs.first_address_family_count.unwrap_or(1).max(1) as usize;
    }
    spec
}

/// The one selector of local addresses that Envoy has, which is also the default.
const DEFAULT_SELECTOR: &str = "envoy.config.upstream.local_address_selector.v3.DefaultLocalAddressSelector";

/// `BindConfig`, of a cluster or of the cluster manager.
#[allow(deprecated)]
pub(crate) fn bind(config: &BindConfig, at: &At<'_>, report: &mut Report) -> BindSpec {
    let mut sources = Vec::new();
    let own = |address| BindSource { address, options: None };
    if let Some(address) = &config.source_address {
        sources.extend(source(address, &at.field("source_address"), report).map(own));
    }
    let list = at.field("extra_source_addresses");
    for (i, extra) in config.extra_source_addresses.iter().enumerate() {
        let at = list.index(i);
        let options = extra.socket_options.as_ref().map(|o| socket_options(&o.socket_options, &at.field("socket_options"), report));
        match &extra.address {
            Some(address) => sources.extend(source(address, &at.field("address"), report).map(|address| BindSource { address, options })),
            None => report.error(&at.field("address"), "missing", "an address"),
        }
    }
    let list = at.field("additional_source_addresses");
    for (i, address) in config.additional_source_addresses.iter().enumerate() {
        sources.extend(source(address, &list.index(i), report).map(own));
    }
    if let Some(selector) = &config.local_address_selector {
        let at = at.field("local_address_selector");
        let unknown = extension(selector, &at, report).is_some_and(|typed| typed.name != DEFAULT_SELECTOR);
        if unknown {
            report.unsupported(&at, format_args!("local address selector {}", selector.name));
        }
    }
    refuse(report, at, &[(config.validate_network_namespaces, "validate_network_namespaces")]);
    let options = socket_options(&config.socket_options, &at.field("socket_options"), report);
    BindSpec { sources: sources.into_boxed_slice(), freebind: config.freebind.unwrap_or(false), options }
}

fn socket_options(options: &[SocketOption], list: &At<'_>, report: &mut Report) -> Box<[SocketOpt]> {
    options.iter().enumerate().filter_map(|(i, o)| socket_option(o, &list.index(i), report)).collect()
}

fn source(address: &SocketAddress, at: &At<'_>, report: &mut Report) -> Option<SocketAddr> {
    use nuncio_proto::envoy::config::core::v3::socket_address::PortSpecifier;
    let port = match &address.port_specifier {
        Some(PortSpecifier::PortValue(port)) => u16::try_from(*port).ok(),
        Some(PortSpecifier::NamedPort(_)) => None,
        None => Some(0),
    };
    match (address.address.parse::<IpAddr>(), port) {
        (Ok(ip), Some(port)) => Some(SocketAddr::new(ip, port)),
        _ => {
            report.error(at, format!("{}:{port:?}", address.address), "an IP address and a port number");
            None
        }
    }
}

/// A socket option by number. Those that Linux has names for in this process are set; others are refused.
fn socket_option(option: &SocketOption, at: &At<'_>, report: &mut Report) -> Option<SocketOpt> {
    // Set before bind; for these options that is the same as after it.
    refuse(report, at, &[(option.state > 1, "state"), (option.ip_version != 0, "ip_version"), (option.r#type.is_some(), "type")]);
    let number = match &option.value {
        Some(OptionValue::IntValue(v)) => *v,
        Some(OptionValue::BufValue(bytes)) => {
            // Native byte order, as Envoy passes it.
            let Ok(bytes) = <[u8; 4]>::try_from(bytes.as_ref()) else {
                report.unsupported(&at.field("buf_value"), "a buffer that is not an int");
                return None;
            };
            i64::from(i32::from_ne_bytes(bytes))
        }
        None => {
            report.error(at, "no value", "int_value or buf_value");
            return None;
        }
    };
    let value = u32::try_from(number).unwrap_or(0);
    let seconds = Duration::from_secs(u64::from(value));
    // Linux: level SOL_SOCKET 1, IPPROTO_IP 0, IPPROTO_TCP 6, IPPROTO_IPV6 41.
    match (option.level, option.name) {
        (1, 2) => Some(SocketOpt::ReuseAddress(value != 0)),
        (1, 7) => Some(SocketOpt::SendBuffer(value as usize)),
        (1, 8) => Some(SocketOpt::ReceiveBuffer(value as usize)),
        (1, 9) => Some(SocketOpt::KeepAlive(value != 0)),
        (1, 36) => Some(SocketOpt::Mark(value)),
        (0, 1) | (41, 67) => Some(SocketOpt::Tos(value)),
        (6, 1) => Some(SocketOpt::NoDelay(value != 0)),
        (6, 4) => Some(SocketOpt::KeepIdle(seconds)),
        (6, 5) => Some(SocketOpt::KeepInterval(seconds)),
        (6, 6) => Some(SocketOpt::KeepCount(value)),
        (6, 18) => Some(SocketOpt::UserTimeout(Duration::from_millis(u64::from(value)))),
        (level, name) => {
            report.unsupported(at, format_args!("socket option level {level} name {name}"));
            None
        }
    }
}
