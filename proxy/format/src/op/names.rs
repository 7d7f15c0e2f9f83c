//! Operators that take neither argument nor length, by name. Called on the control thread when a format is compiled.

use super::Op;
use super::address::{AddressForm, AddressOf};
use super::duration::DurationOf;
use super::fields::{GrpcForm, NumberOf, TextOf};
use super::hosts::HostsOf;
use super::tls::{CertField, Side};
use nuncio_core::info::measure_route_time;

/// The operator of that name.
pub(super) fn simple(name: &str) -> Option<Op> {
    use AddressForm::{EndpointId, Full, Port};
    use AddressOf as A;
    use Side::{Downstream, Upstream};
    Some(match name {
        "PROTOCOL" => Op::Text(TextOf::Protocol),
        "UPSTREAM_PROTOCOL" => Op::Text(TextOf::UpstreamProtocol),
        "CONNECTION_TERMINATION_DETAILS" => Op::Text(TextOf::TerminationDetails),
        "RESPONSE_FLAGS" => Op::Text(TextOf::Flags),
        "RESPONSE_FLAGS_LONG" => Op::Text(TextOf::FlagsLong),
        "ROUTE_NAME" => Op::Text(TextOf::RouteName),
        "VIRTUAL_CLUSTER_NAME" => Op::Text(TextOf::VirtualCluster),
        "UPSTREAM_CLUSTER" => Op::Text(TextOf::Cluster),
        "UPSTREAM_CLUSTER_RAW" => Op::Text(TextOf::ClusterRaw),
        "UPSTREAM_HOST_NAME" => Op::Hosts(HostsOf::Name),
        "UPSTREAM_HOST_NAME_WITHOUT_PORT" => Op::Hosts(HostsOf::NameWithoutPort),
        "UPSTREAM_HOSTS_ATTEMPTED" => Op::Hosts(HostsOf::Addresses),
        "UPSTREAM_HOSTS_ATTEMPTED_WITHOUT_PORT" => Op::Hosts(HostsOf::AddressesWithoutPort),
        "UPSTREAM_HOST_NAMES_ATTEMPTED" => Op::Hosts(HostsOf::Names),
        "UPSTREAM_HOST_NAMES_ATTEMPTED_WITHOUT_PORT" => Op::Hosts(HostsOf::NamesWithoutPort),
        "UPSTREAM_CONNECTION_IDS_ATTEMPTED" => Op::Text(TextOf::ConnectionsAttempted),
        "UPSTREAM_DETECTED_CLOSE_TYPE" => Op::Text(TextOf::UpstreamDetectedClose),
        "UPSTREAM_LOCAL_CLOSE_REASON" => Op::Text(TextOf::UpstreamLocalClose),
        "DOWNSTREAM_DETECTED_CLOSE_TYPE" => Op::Text(TextOf::DownstreamDetectedClose),
        "DOWNSTREAM_LOCAL_CLOSE_REASON" => Op::Text(TextOf::DownstreamLocalClose),
        "UPSTREAM_TRANSPORT_FAILURE_REASON" => Op::Text(TextOf::UpstreamFailure),
        "DOWNSTREAM_TRANSPORT_FAILURE_REASON" => Op::Text(TextOf::DownstreamFailure),
        "STREAM_ID" => Op::Text(TextOf::StreamId),
        "UNIQUE_ID" => Op::Text(TextOf::UniqueId),
        "FILTER_CHAIN_NAME" => Op::Text(TextOf::FilterChain),
        "LISTENER_NAME" => Op::Text(TextOf::Listener),
        "ACCESS_LOG_TYPE" => Op::Text(TextOf::LogType),
        "LOCAL_REPLY_BODY" => Op::Text(TextOf::LocalReplyBody),
        "CUSTOM_FLAGS" => Op::Text(TextOf::CustomFlags),
        "BYTES_RECEIVED" => Op::Number(NumberOf::BytesReceived),
        "BYTES_SENT" => Op::Number(NumberOf::BytesSent),
        // Envoy measures these of QUIC only.
        "BYTES_RETRANSMITTED" | "PACKETS_RETRANSMITTED" | "DOWNSTREAM_CX_RTT" => Op::Number(NumberOf::Zero),
        "ROUTE_RESOLUTION_COUNT" => Op::Number(NumberOf::RouteResolutions),
        "ROUTE_RESOLUTION_TIME_US" => {
            measure_route_time();
            Op::Number(NumberOf::RouteResolutionTime)
        }
        "REQUEST_HEADERS_BYTES" => Op::Number(NumberOf::RequestHeaders),
        "RESPONSE_HEADERS_BYTES" => Op::Number(NumberOf::ResponseHeaders),
        "RESPONSE_TRAILERS_BYTES" => Op::Number(NumberOf::ResponseTrailers),
        "RESPONSE_CODE" => Op::Number(NumberOf::ResponseCode),
        "UPSTREAM_REQUEST_ATTEMPT_COUNT" => Op::Number(NumberOf::Attempts),
        "UPSTREAM_WIRE_BYTES_SENT" => Op::Number(NumberOf::UpstreamWireSent),
        "UPSTREAM_WIRE_BYTES_RECEIVED" => Op::Number(NumberOf::UpstreamWireReceived),
        "UPSTREAM_HEADER_BYTES_SENT" | "UPSTREAM_DECOMPRESSED_HEADER_BYTES_SENT" => Op::Number(NumberOf::UpstreamHeadersSent),
        "UPSTREAM_HEADER_BYTES_RECEIVED" | "UPSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED" => Op::Number(NumberOf::UpstreamHeadersReceived),
        "DOWNSTREAM_WIRE_BYTES_SENT" => Op::Number(NumberOf::DownstreamWireSent),
        "DOWNSTREAM_WIRE_BYTES_RECEIVED" => Op::Number(NumberOf::DownstreamWireReceived),
        "DOWNSTREAM_HEADER_BYTES_SENT" | "DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_SENT" => Op::Number(NumberOf::DownstreamHeadersSent),
        "DOWNSTREAM_HEADER_BYTES_RECEIVED" | "DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED" => {
            Op::Number(NumberOf::DownstreamHeadersReceived)
        }
        "CONNECTION_ID" => Op::Number(NumberOf::ConnectionId),
        "UPSTREAM_CONNECTION_ID" => Op::Number(NumberOf::UpstreamConnectionId),
        "DURATION" => Op::Duration(DurationOf::Total),
        "REQUEST_DURATION" => Op::Duration(DurationOf::Request),
        "REQUEST_TX_DURATION" => Op::Duration(DurationOf::RequestSent),
        "RESPONSE_DURATION" => Op::Duration(DurationOf::Response),
        "RESPONSE_TX_DURATION" => Op::Duration(DurationOf::ResponseSent),
        "DOWNSTREAM_HANDSHAKE_DURATION" => Op::Duration(DurationOf::Handshake),
        "UPSTREAM_CONNECTION_POOL_READY_DURATION" => Op::Duration(DurationOf::PoolReady),
        "GRPC_STATUS_NUMBER" => Op::GrpcStatus(GrpcForm::Number),
        "UPSTREAM_HOST" => Op::Address(A::UpstreamHost, Full),
        "UPSTREAM_LOCAL_ADDRESS" => Op::Address(A::UpstreamLocal, Full),
        "UPSTREAM_LOCAL_PORT" => Op::Address(A::UpstreamLocal, Port),
        "UPSTREAM_REMOTE_ADDRESS" => Op::Address(A::UpstreamRemote, Full),
        "UPSTREAM_REMOTE_PORT" => Op::Address(A::UpstreamRemote, Port),
        "UPSTREAM_REMOTE_ADDRESS_ENDPOINT_ID" => Op::Address(A::UpstreamRemote, EndpointId),
        "DOWNSTREAM_REMOTE_ADDRESS" => Op::Address(A::DownstreamRemote, Full),
        "DOWNSTREAM_REMOTE_PORT" => Op::Address(A::DownstreamRemote, Port),
        "DOWNSTREAM_DIRECT_REMOTE_ADDRESS" => Op::Address(A::DownstreamDirectRemote, Full),
        "DOWNSTREAM_DIRECT_REMOTE_PORT" => Op::Address(A::DownstreamDirectRemote, Port),
        "DOWNSTREAM_LOCAL_ADDRESS" => Op::Address(A::DownstreamLocal, Full),
        "DOWNSTREAM_LOCAL_PORT" => Op::Address(A::DownstreamLocal, Port),
        "DOWNSTREAM_LOCAL_ADDRESS_ENDPOINT_ID" => Op::Address(A::DownstreamLocal, EndpointId),
        "DOWNSTREAM_DIRECT_LOCAL_ADDRESS" => Op::Address(A::DownstreamDirectLocal, Full),
        "DOWNSTREAM_DIRECT_LOCAL_PORT" => Op::Address(A::DownstreamDirectLocal, Port),
        "DOWNSTREAM_DIRECT_LOCAL_ADDRESS_ENDPOINT_ID" => Op::Address(A::DownstreamDirectLocal, EndpointId),
        "DOWNSTREAM_LOCAL_IP_SAN" => Op::Cert(Downstream, CertField::LocalIpSan),
        "DOWNSTREAM_LOCAL_DNS_SAN" => Op::Cert(Downstream, CertField::LocalDnsSan),
        "DOWNSTREAM_LOCAL_URI_SAN" => Op::Cert(Downstream, CertField::LocalUriSan),
        "DOWNSTREAM_LOCAL_EMAIL_SAN" => Op::Cert(Downstream, CertField::LocalEmailSan),
        "DOWNSTREAM_LOCAL_OTHERNAME_SAN" => Op::Cert(Downstream, CertField::LocalOtherSan),
        "DOWNSTREAM_LOCAL_SUBJECT" => Op::Cert(Downstream, CertField::LocalSubject),
        "DOWNSTREAM_PEER_IP_SAN" => Op::Cert(Downstream, CertField::PeerIpSan),
        "DOWNSTREAM_PEER_DNS_SAN" => Op::Cert(Downstream, CertField::PeerDnsSan),
        "DOWNSTREAM_PEER_URI_SAN" => Op::Cert(Downstream, CertField::PeerUriSan),
        "DOWNSTREAM_PEER_EMAIL_SAN" => Op::Cert(Downstream, CertField::PeerEmailSan),
        "DOWNSTREAM_PEER_OTHERNAME_SAN" => Op::Cert(Downstream, CertField::PeerOtherSan),
        "DOWNSTREAM_PEER_SUBJECT" => Op::Cert(Downstream, CertField::PeerSubject),
        "DOWNSTREAM_PEER_ISSUER" => Op::Cert(Downstream, CertField::PeerIssuer),
        "DOWNSTREAM_PEER_FINGERPRINT_256" => Op::Cert(Downstream, CertField::PeerSha256),
        "DOWNSTREAM_PEER_FINGERPRINT_1" => Op::Cert(Downstream, CertField::PeerSha1),
        "DOWNSTREAM_PEER_SERIAL" => Op::Cert(Downstream, CertField::PeerSerial),
        "DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_256" => Op::Cert(Downstream, CertField::ChainSha256),
        "DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_1" => Op::Cert(Downstream, CertField::ChainSha1),
        "DOWNSTREAM_PEER_CHAIN_SERIALS" => Op::Cert(Downstream, CertField::ChainSerials),
        "DOWNSTREAM_PEER_ISSUER_FINGERPRINT_256" => Op::Cert(Downstream, CertField::IssuerSha256),
        "DOWNSTREAM_PEER_ISSUER_SERIAL" => Op::Cert(Downstream, CertField::IssuerSerial),
        "DOWNSTREAM_PEER_CERT" => Op::Cert(Downstream, CertField::PeerCert),
        "DOWNSTREAM_TLS_SESSION_ID" => Op::Cert(Downstream, CertField::SessionId),
        "DOWNSTREAM_TLS_CIPHER" => Op::Cert(Downstream, CertField::Cipher),
        "DOWNSTREAM_TLS_VERSION" => Op::Cert(Downstream, CertField::Version),
        "DOWNSTREAM_TLS_GROUP" => Op::Cert(Downstream, CertField::Group),
        "UPSTREAM_PEER_SUBJECT" => Op::Cert(Upstream, CertField::PeerSubject),
        "UPSTREAM_PEER_ISSUER" => Op::Cert(Upstream, CertField::PeerIssuer),
        "UPSTREAM_PEER_CERT" => Op::Cert(Upstream, CertField::PeerCert),
        "UPSTREAM_PEER_URI_SAN" => Op::Cert(Upstream, CertField::PeerUriSan),
        "UPSTREAM_PEER_DNS_SAN" => Op::Cert(Upstream, CertField::PeerDnsSan),
        "UPSTREAM_PEER_IP_SAN" => Op::Cert(Upstream, CertField::PeerIpSan),
        "UPSTREAM_LOCAL_URI_SAN" => Op::Cert(Upstream, CertField::LocalUriSan),
        "UPSTREAM_LOCAL_DNS_SAN" => Op::Cert(Upstream, CertField::LocalDnsSan),
        "UPSTREAM_LOCAL_IP_SAN" => Op::Cert(Upstream, CertField::LocalIpSan),
        "UPSTREAM_TLS_SESSION_ID" => Op::Cert(Upstream, CertField::SessionId),
        "UPSTREAM_TLS_CIPHER" => Op::Cert(Upstream, CertField::Cipher),
        "UPSTREAM_TLS_VERSION" => Op::Cert(Upstream, CertField::Version),
        "UPSTREAM_TLS_GROUP" => Op::Cert(Upstream, CertField::Group),
        "UPSTREAM_SERVER_NAME" => Op::Cert(Upstream, CertField::Sni),
        // Fingerprints only if the TLS inspector computes them, round trips of QUIC, spans of a tracer: none of these exists here.
        "TLS_JA3_FINGERPRINT" | "TLS_JA4_FINGERPRINT" | "ROUNDTRIP_DURATION" | "TRACE_ID" | "SPAN_ID" => Op::Absent,
        "HOSTNAME" => Op::Constant(hostname().into()),
        _ => return None,
    })
}

fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").map_or_else(|_| "-".to_string(), |name| name.trim_end().to_string())
}
