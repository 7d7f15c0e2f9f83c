//! `envoy.filters.listener.http_inspector`: whether plaintext is HTTP/1.0, HTTP/1.1 or HTTP/2 with prior knowledge (`h2c`).

use super::peek::More;
use super::{Accepted, Peeked, Verdict};
use nuncio_core::registry::Server;
use nuncio_stats::Counter;
use nuncio_tls::Transport;
use std::sync::Arc;

/// Envoy's `MAX_INSPECT_SIZE`.
const MAX: usize = 64 * 1024;
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Longer than any registered method (`UPDATEREDIRECTREF`).
const MAX_METHOD: usize = 20;

#[derive(Debug)]
pub(super) struct HttpInspector {
    http10_found: Counter,
    http11_found: Counter,
    http2_found: Counter,
    http_not_found: Counter,
    read_error: Counter,
}

#[derive(Debug, PartialEq, Eq)]
enum Found {
    NeedMore,
    Not,
    Http10,
    Http11,
    Http2,
}

impl HttpInspector {
    pub(super) fn new(server: &Arc<Server>) -> Self {
        let scope = server.stats.root().scope("http_inspector.");
        Self {
            http10_found: scope.counter("http10_found"),
            http11_found: scope.counter("http11_found"),
            http2_found: scope.counter("http2_found"),
            http_not_found: scope.counter("http_not_found"),
            read_error: scope.counter("read_error"),
        }
    }

    pub(super) async fn run(&self, io: &Transport, peeked: &mut Peeked, accepted: &mut Accepted) -> Verdict {
        if !matches!(accepted.transport, "" | "raw_buffer") {
            return Verdict::Continue;
        }
        loop {
            let (counter, protocol) = match inspect(peeked.bytes()) {
                Found::NeedMore => match peeked.more(io, MAX).await {
                    Ok(More::Bytes) => continue,
                    Ok(More::End) => return Verdict::RemoteClosed,
                    Ok(More::Full) => (&self.http_not_found, None),
                    Err(_) => {
                        self.read_error.inc();
                        return Verdict::Error;
                    }
                },
                Found::Not => (&self.http_not_found, None),
                Found::Http10 => (&self.http10_found, Some("http/1.0")),
                Found::Http11 => (&self.http11_found, Some("http/1.1")),
                Found::Http2 => (&self.http2_found, Some("h2c")),
            };
            counter.inc();
            accepted.protocols = protocol.into_iter().map(str::to_string).collect();
            return Verdict::Continue;
        }
    }
}

/// Looks at the request line, or the HTTP/2 preface.
fn inspect(bytes: &[u8]) -> Found {
    let compared = bytes.len().min(PREFACE.len());
    if bytes.get(..compared) == PREFACE.get(..compared) {
        return if compared == PREFACE.len() { Found::Http2 } else { Found::NeedMore };
    }
    // RFC 9112 2.2: empty lines before the request line are skipped.
    let start = bytes.iter().position(|b| !matches!(b, b'\r' | b'\n')).unwrap_or(bytes.len());
    let line = bytes.get(start..).unwrap_or_default();
    let method = line.iter().position(|b| *b == b' ');
    let token = line.get(..method.unwrap_or(line.len())).unwrap_or_default();
    if token.len() > MAX_METHOD || !token.iter().all(|b| b.is_ascii_uppercase() || *b == b'-') {
        return Found::Not;
    }
    let Some(method) = method else { return Found::NeedMore };
    if method == 0 {
        return Found::Not;
    }
    let rest = line.get(method + 1..).unwrap_or_default();
    // Control bytes in the target: not HTTP, known before the line ends.
    let Some(end) = rest.iter().position(|b| *b == b'\n') else {
        return if rest.iter().any(|b| *b < b' ' && *b != b'\r') { Found::Not } else { Found::NeedMore };
    };
    let line = rest.get(..end).unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.ends_with(b" HTTP/1.1") {
        Found::Http11
    } else if line.ends_with(b" HTTP/1.0") {
        Found::Http10
    } else {
        Found::Not
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_http() {
        for (bytes, found) in [
            (&b"GET / HTTP/1.1\r\n"[..], Found::Http11),
            (b"\r\nGET / HTTP/1.0\n", Found::Http10),
            (b"M-SEARCH * HTTP/1.1\r\nHost: a", Found::Http11),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0", Found::Http2),
            (b"PRI * HTTP/2.0\r\n\r\nSM", Found::NeedMore),
            (b"PRI * HTTP/2.1\r\n", Found::Not),
            (b"GET / HTTP/1.1", Found::NeedMore),
            (b"GET /", Found::NeedMore),
            (b"GE", Found::NeedMore),
            (b"", Found::NeedMore),
            (b"GET / HTTP/3\r\n", Found::Not),
            (b"get / HTTP/1.1\r\n", Found::Not),
            (b"EHLO mail.example.com\r\n", Found::Not),
            (b"\x16\x03\x01", Found::Not),
            (b"GET /\x00\x01", Found::Not),
            (b"AAAAAAAAAAAAAAAAAAAAAAAAA", Found::Not),
            (b" GET / HTTP/1.1\r\n", Found::Not),
        ] {
            assert_eq!(inspect(bytes), found, "{}", String::from_utf8_lossy(bytes));
        }
    }
}
