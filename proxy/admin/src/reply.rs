//! Responses of the admin port: a head, then a body in pieces with backpressure. A body that fits one piece is sent with its
//! length, a longer one chunked, so that memory stays that of a piece whatever the size of the answer.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncWrite, AsyncWriteExt};

/// Size at which a piece is written out.
pub(crate) const PIECE: usize = 32 << 10;
/// A peer that takes no byte for so long is dropped, and with it what its answer holds.
const STALL: Duration = Duration::from_secs(120);

pub(crate) const TEXT: &str = "text/plain; charset=UTF-8";
pub(crate) const PLAIN: &str = "text/plain";
pub(crate) const JSON: &str = "application/json";
pub(crate) const HTML: &str = "text/html; charset=UTF-8";

/// Why an answer ends early.
#[derive(Debug)]
pub(crate) enum Stop {
    /// The peer is gone or takes nothing.
    Gone,
    /// The request was HEAD: nobody wants the body.
    NoBody,
}

impl From<io::Error> for Stop {
    fn from(_: io::Error) -> Self {
        Self::Gone
    }
}

/// The response to one request.
pub(crate) struct Reply<'a> {
    io: &'a mut (dyn AsyncWrite + Unpin),
    /// Body text that is not written yet.
    pub out: Vec<u8>,
    pub status: u16,
    content_type: &'static str,
    head_only: bool,
    http_10: bool,
    keep_alive: bool,
    started: bool,
    finished: bool,
    /// Body bytes written.
    pub sent: u64,
}

impl<'a> Reply<'a> {
    pub fn new(io: &'a mut (dyn AsyncWrite + Unpin), head_only: bool, http_10: bool, keep_alive: bool) -> Self {
        Self {
            io,
            out: Vec::new(),
            status: 200,
            content_type: TEXT,
            head_only,
            http_10,
            keep_alive,
            started: false,
            finished: false,
            sent: 0,
        }
    }

    /// Sets status and content type; to be called before the first piece is written.
    pub fn start(&mut self, status: u16, content_type: &'static str) {
        self.status = status;
        self.content_type = content_type;
    }

    /// A whole text answer.
    pub fn text(&mut self, status: u16, body: &str) {
        self.start(status, TEXT);
        self.out.extend_from_slice(body.as_bytes());
    }

    /// Whether the connection can carry another request.
    pub fn keeps_alive(&self) -> bool {
        self.keep_alive && self.finished
    }

    /// Writes a piece if there is one. Call it between elements; other work of the control thread runs meanwhile.
    pub async fn piece(&mut self) -> Result<(), Stop> {
        if self.out.len() < PIECE {
            return Ok(());
        }
        self.write().await?;
        tokio::task::yield_now().await;
        Ok(())
    }

    async fn write(&mut self) -> Result<(), Stop> {
        if self.head_only {
            return Err(Stop::NoBody);
        }
        let mut frame = Vec::new();
        if !self.started {
            // HTTP/1.0 has no chunks: the end of the connection is the end of the body.
            if self.http_10 {
                self.keep_alive = false;
            }
            self.head(if self.http_10 { None } else { Some("transfer-encoding: chunked\r\n".to_string()) }, &mut frame);
        }
        if !self.http_10 {
            frame.extend_from_slice(format!("{:x}\r\n", self.out.len()).as_bytes());
        }
        self.sent += self.out.len() as u64;
        self.put(&frame).await?;
        let body = std::mem::take(&mut self.out);
        self.put(&body).await?;
        if !self.http_10 {
            self.put(b"\r\n").await?;
        }
        self.out = body;
        self.out.clear();
        Ok(())
    }

    async fn put(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let n = tokio::time::timeout(STALL, self.io.write(rest)).await.map_err(|_| Stop::Gone)??;
            if n == 0 {
                return Err(Stop::Gone);
            }
            rest = rest.get(n..).unwrap_or_default();
        }
        Ok(())
    }

    fn head(&mut self, framing: Option<String>, frame: &mut Vec<u8>) {
        self.started = true;
        let date = jiff::Timestamp::now().strftime("%a, %d %b %Y %H:%M:%S GMT");
        let head = format!(
            "HTTP/1.1 {} {}\r\ncontent-type: {}\r\ncache-control: no-cache, max-age=0\r\nx-content-type-options: nosniff\r\ndate: {date}\r\nserver: envoy\r\n{}{}\r\n",
            self.status,
            reason(self.status),
            self.content_type,
            framing.unwrap_or_default(),
            if self.keep_alive { "" } else { "connection: close\r\n" },
        );
        frame.extend_from_slice(head.as_bytes());
    }

    /// Writes what is left, and the end. Calling it again does nothing.
    pub async fn finish(&mut self) -> Result<(), Stop> {
        if self.finished {
            return Ok(());
        }
        if !self.started {
            let mut frame = Vec::new();
            // The length of a body that was cut short for HEAD is not known, and need not be told.
            let length = if self.head_only { None } else { Some(format!("content-length: {}\r\n", self.out.len())) };
            let framing = if self.head_only && !self.http_10 { Some("transfer-encoding: chunked\r\n".to_string()) } else { length };
            self.head(framing, &mut frame);
            if !self.head_only {
                self.sent += self.out.len() as u64;
                frame.append(&mut self.out);
            }
            self.put(&frame).await?;
        } else {
            if !self.out.is_empty() {
                self.write().await?;
            }
            if !self.http_10 {
                self.put(b"0\r\n\r\n").await?;
            }
        }
        tokio::time::timeout(STALL, self.io.flush()).await.map_err(|_| Stop::Gone)??;
        self.finished = true;
        Ok(())
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        413 => "Payload Too Large",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        _ => "Unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn answer(pieces: usize, head_only: bool, http_10: bool) -> (String, bool) {
        let mut io = Vec::new();
        let mut reply = Reply::new(&mut io, head_only, http_10, true);
        reply.start(200, JSON);
        let mut result = Ok(());
        for _ in 0..pieces {
            reply.out.resize(PIECE, b'x');
            result = reply.piece().await;
        }
        if result.is_ok() {
            reply.out.extend_from_slice(b"end");
        }
        reply.finish().await.unwrap();
        let keeps = reply.keeps_alive();
        (String::from_utf8(io).unwrap(), keeps)
    }

    #[tokio::test]
    async fn short_long_and_old() {
        let (text, keeps) = answer(0, false, false).await;
        assert!(
            keeps
                && text.starts_with("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n")
                && text.ends_with("\r\ncontent-length: 3\r\n\r\nend"),
            "{text}"
        );
        let (text, keeps) = answer(2, false, false).await;
        assert!(keeps && text.contains("transfer-encoding: chunked\r\n") && text.ends_with("\r\n3\r\nend\r\n0\r\n\r\n"), "{text}");
        let (text, keeps) = answer(2, false, true).await;
        assert!(!keeps && text.contains("connection: close\r\n") && !text.contains("chunked") && text.ends_with("xend"), "{text}");
        let (text, keeps) = answer(2, true, false).await;
        assert!(keeps && text.ends_with("\r\n\r\n") && !text.contains("xxx"), "{text}");
    }
}
