//! `envoy.filters.listener.proxy_protocol`: the PROXY header, versions 1 and 2, of a load balancer in front. The header is taken off the
//! socket; the addresses in it become the connection's. The format is `proxy_header`'s.

use super::peek::More;
use super::{Accepted, Peeked, Verdict};
use crate::proxy_header::{self, Parsed, parse};
use base64::Engine;
use nuncio_core::Address;
use nuncio_core::diag::{At, Report};
use nuncio_core::proxy_protocol::{PassTlvs, ProxyTlvs};
use nuncio_core::registry::Server;
use nuncio_proto::Value;
use nuncio_proto::envoy::extensions::filters::listener::proxy_protocol::v3::ProxyProtocol as Proto;
use nuncio_proto::envoy::extensions::filters::listener::proxy_protocol::v3::proxy_protocol::{
    TlvLocation, key_value_pair::ValueStringEncoding,
};
use nuncio_stats::{Counter, Scope};
use nuncio_tls::Transport;
use std::sync::Arc;
use tokio::io::AsyncReadExt;

/// Namespace of rules that name none.
const NAMESPACE: &str = "envoy.filters.listener.proxy_protocol";

#[derive(Debug)]
struct Rule {
    tlv: u8,
    namespace: String,
    key: String,
    base64: bool,
}

#[derive(Debug)]
struct VersionStats {
    found: Counter,
    disallowed: Counter,
    error: Counter,
}
impl VersionStats {
    fn new(scope: &Scope, version: &str) -> Self {
        let scope = scope.scope(&format!("versions.{version}."));
        Self { found: scope.counter("found"), disallowed: scope.counter("disallowed"), error: scope.counter("error") }
    }
}

#[derive(Debug)]
pub(super) struct ProxyProtocol {
    rules: Vec<Rule>,
    /// `pass_through_tlvs`: what upstream connections may tell.
    pass: PassTlvs,
    optional: bool,
    /// By version, 1 and 2.
    disallowed: [bool; 2],
    stats: [VersionStats; 2],
    not_found_allowed: Counter,
    not_found_disallowed: Counter,
    /// Envoy's older name for errors of any version.
    error: Counter,
}

impl ProxyProtocol {
    pub(super) fn compile(proto: &Proto, server: &Arc<Server>, at: &At<'_>, report: &mut Report) -> Option<Self> {
        let before = report.errors();
        if proto.tlv_location != TlvLocation::DynamicMetadata as i32 {
            report.unsupported(&at.field("tlv_location"), "tlv_location FILTER_STATE");
        }
        let pass = PassTlvs::compile(proto.pass_through_tlvs.as_ref(), &at.field("pass_through_tlvs"), report);
        let mut rules = Vec::new();
        let field = at.field("rules");
        for (i, rule) in proto.rules.iter().enumerate() {
            let at = field.index(i);
            let Ok(tlv) = u8::try_from(rule.tlv_type) else {
                report.error(&at.field("tlv_type"), rule.tlv_type.to_string(), "give 0 to 255");
                continue;
            };
            let Some(pair) = &rule.on_tlv_present else { continue };
            if pair.key.is_empty() {
                report.error(&at.field("on_tlv_present").field("key"), "it is empty", "give a key");
                continue;
            }
            let namespace = if pair.metadata_namespace.is_empty() { NAMESPACE } else { &pair.metadata_namespace };
            let base64 = pair.value_string_encoding == ValueStringEncoding::Base64 as i32;
            rules.push(Rule { tlv, namespace: namespace.to_string(), key: pair.key.clone(), base64 });
        }
        let disallowed = [proto.disallowed_versions.contains(&0), proto.disallowed_versions.contains(&1)];
        if disallowed == [true, true] && !proto.allow_requests_without_proxy_protocol {
            report.error(&at.field("disallowed_versions"), "no version is left", "allow V1, V2 or requests without");
        }
        let suffix = if proto.stat_prefix.is_empty() { String::new() } else { format!("{}.", proto.stat_prefix) };
        let scope = server.stats.root().scope(&format!("proxy_proto.{suffix}"));
        (report.errors() == before).then(|| Self {
            rules,
            pass,
            optional: proto.allow_requests_without_proxy_protocol,
            disallowed,
            stats: [VersionStats::new(&scope, "v1"), VersionStats::new(&scope, "v2")],
            not_found_allowed: scope.counter("not_found_allowed"),
            not_found_disallowed: scope.counter("not_found_disallowed"),
            error: server.stats.root().counter("downstream_cx_proxy_proto_error"),
        })
    }

    pub(super) async fn run(&self, io: &mut Transport, peeked: &mut Peeked, accepted: &mut Accepted) -> Verdict {
        let header = loop {
            match parse(peeked.bytes()) {
                Parsed::NeedMore => match peeked.more(io, proxy_header::MAX).await {
                    Ok(More::Bytes) => {}
                    Ok(More::End | More::Full) => return Verdict::RemoteClosed,
                    Err(_) => return Verdict::Error,
                },
                Parsed::Absent if self.optional => {
                    self.not_found_allowed.inc();
                    return Verdict::Continue;
                }
                Parsed::Absent => {
                    self.not_found_disallowed.inc();
                    self.error.inc();
                    return Verdict::Close("proxy_protocol_not_found");
                }
                Parsed::Bad(version) => {
                    self.failed(version);
                    return Verdict::Close("proxy_protocol_error");
                }
                Parsed::Header(header) => break header,
            }
        };
        if self.disallowed.get(header.version).is_some_and(|d| *d) {
            self.version(header.version, |s| s.disallowed.inc());
            // With requests without a header allowed, what looks like a disallowed one is data, as in Envoy.
            return if self.optional { Verdict::Continue } else { Verdict::Close("proxy_protocol_disallowed") };
        }
        // All of it is in the socket's queue: this does not wait.
        let mut taken = vec![0; header.len];
        if io.read_exact(&mut taken).await.is_err() {
            return Verdict::Error;
        }
        peeked.reset();
        if !self.tlvs(taken.get(header.tlvs..).unwrap_or_default(), accepted) {
            self.failed(header.version);
            return Verdict::Close("proxy_protocol_error");
        }
        self.version(header.version, |s| s.found.inc());
        if let Some((source, destination)) = header.addresses {
            accepted.remote = Address::Ip(source);
            if accepted.local != Address::Ip(destination) {
                accepted.local = Address::Ip(destination);
                accepted.restored = true;
            }
        }
        Verdict::Continue
    }

    fn failed(&self, version: usize) {
        self.error.inc();
        self.version(version, |s| s.error.inc());
    }
    fn version(&self, version: usize, count: impl Fn(&VersionStats)) {
        if let Some(stats) = self.stats.get(version) {
            count(stats);
        }
    }

    /// Keeps what the rules want; false if a length does not fit.
    fn tlvs(&self, bytes: &[u8], accepted: &mut Accepted) -> bool {
        let mut passed = Vec::new();
        for tlv in proxy_header::tlvs(bytes) {
            let Some((kind, value)) = tlv else { return false };
            if self.pass.passes(kind) {
                passed.push((kind, value.to_vec()));
            }
            for rule in self.rules.iter().filter(|r| r.tlv == kind) {
                let text = match rule.base64 {
                    true => base64::engine::general_purpose::STANDARD.encode(value),
                    false => sanitized(value),
                };
                let value = Value { kind: Some(prost_types::value::Kind::StringValue(text)) };
                let namespace = accepted.metadata.entry(rule.namespace.clone()).or_default();
                namespace.fields.insert(rule.key.clone(), value);
            }
        }
        // Even without any: tcp_proxy then knows that TLVs come from here.
        accepted.filter_state.set(ProxyTlvs::KEY, Arc::new(ProxyTlvs(passed)));
        true
    }
}

/// Bytes that are not UTF-8 become `!`, as Envoy's `sanitizeUtf8String`.
fn sanitized(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        out.push_str(chunk.valid());
        out.extend(chunk.invalid().iter().map(|_| '!'));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_utf8_is_marked() {
        assert_eq!(sanitized(b"a\xffb\xc3"), "a!b!");
    }
}
