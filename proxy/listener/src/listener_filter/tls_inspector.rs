//! `envoy.filters.listener.tls_inspector`: SNI and offered ALPN of the ClientHello, for filter-chain match.

use super::peek::More;
use super::{Accepted, Peeked, Verdict};
use nuncio_core::diag::{At, Report};
use nuncio_core::registry::Server;
use nuncio_proto::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector as Proto;
use nuncio_stats::{Counter, Histogram};
use nuncio_tls::Transport;
use nuncio_tls::client_hello::{self, MAX_CLIENT_HELLO, Parsed};
use std::sync::Arc;

#[derive(Debug)]
pub(super) struct TlsInspector {
    max: usize,
    close_on_error: bool,
    client_hello_too_large: Counter,
    tls_found: Counter,
    tls_not_found: Counter,
    alpn_found: Counter,
    alpn_not_found: Counter,
    sni_found: Counter,
    sni_not_found: Counter,
    bytes_processed: Histogram,
}

impl TlsInspector {
    pub(super) fn new(server: &Arc<Server>) -> Self {
        // Rooted at the process, not at the listener, as in Envoy.
        let scope = server.stats.root().scope("tls_inspector.");
        Self {
            max: MAX_CLIENT_HELLO,
            close_on_error: false,
            client_hello_too_large: scope.counter("client_hello_too_large"),
            tls_found: scope.counter("tls_found"),
            tls_not_found: scope.counter("tls_not_found"),
            alpn_found: scope.counter("alpn_found"),
            alpn_not_found: scope.counter("alpn_not_found"),
            sni_found: scope.counter("sni_found"),
            sni_not_found: scope.counter("sni_not_found"),
            bytes_processed: scope.histogram("bytes_processed"),
        }
    }
    /// `initial_read_buffer_size` needs no obedience: buffers begin at 512 bytes and grow with what arrives.
    pub(super) fn compile(proto: &Proto, server: &Arc<Server>, at: &At<'_>, report: &mut Report) -> Option<Self> {
        let before = report.errors();
        if proto.enable_ja3_fingerprinting.unwrap_or_default() {
            report.unsupported(&at.field("enable_ja3_fingerprinting"), "JA3 fingerprinting");
        }
        if proto.enable_ja4_fingerprinting.unwrap_or_default() {
            report.unsupported(&at.field("enable_ja4_fingerprinting"), "JA4 fingerprinting");
        }
        let range = |field: &'static str, value: Option<u32>, low: u32, high: u32, report: &mut Report| {
            if let Some(n) = value.filter(|n| !(low..=high).contains(n)) {
                report.error(&at.field(field), n.to_string(), format!("give {low} to {high}"));
            }
        };
        range("initial_read_buffer_size", proto.initial_read_buffer_size, 256, 65_536, report);
        range("max_client_hello_size", proto.max_client_hello_size, 256, 65_536, report);
        let max = proto.max_client_hello_size.and_then(|n| usize::try_from(n).ok()).unwrap_or(MAX_CLIENT_HELLO).min(MAX_CLIENT_HELLO);
        let close_on_error = proto.close_connection_on_client_hello_parsing_errors;
        (report.errors() == before).then(|| Self { max, close_on_error, ..Self::new(server) })
    }

    pub(super) async fn run(&self, io: &Transport, peeked: &mut Peeked, accepted: &mut Accepted) -> Verdict {
        loop {
            match client_hello::parse(peeked.bytes()) {
                Parsed::NeedMore => match peeked.more(io, self.max).await {
                    Ok(More::Bytes) => {}
                    Ok(More::End) => return Verdict::RemoteClosed,
                    Ok(More::Full) => {
                        self.client_hello_too_large.inc();
                        return Verdict::Close("client_hello_too_large");
                    }
                    Err(_) => return Verdict::Error,
                },
                Parsed::NotTls => {
                    self.tls_not_found.inc();
                    self.bytes_processed.record(peeked.bytes().len() as u64);
                    // A first byte of a handshake record that does not become a hello is an error, anything else just not TLS.
                    if self.close_on_error && peeked.bytes().first() == Some(&22) {
                        return Verdict::Close("client_hello_parse_error");
                    }
                    return Verdict::Continue;
                }
                Parsed::Hello(hello) => {
                    self.tls_found.inc();
                    self.bytes_processed.record(hello.len as u64);
                    if hello.alpn.is_empty() {
                        self.alpn_not_found.inc()
                    } else {
                        self.alpn_found.inc()
                    }
                    if hello.sni.is_some() {
                        self.sni_found.inc()
                    } else {
                        self.sni_not_found.inc()
                    }
                    accepted.transport = "tls";
                    accepted.protocols = hello.alpn;
                    accepted.server_name = hello.sni.map(Into::into);
                    return Verdict::Continue;
                }
            }
        }
    }
}
