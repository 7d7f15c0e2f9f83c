//! The upstream side of a connection: a connection of its own, or a tunnel. Belongs to one connection.

use crate::bypass::Bypass;
use crate::tunnel::Tunnel;
use nuncio_core::StreamInfo;
use nuncio_core::info::UpstreamInfo;
use nuncio_upstream::UpstreamConnection;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// What bytes are copied to and from.
pub(crate) enum Upstream {
    Plain(Box<UpstreamConnection>),
    Tunnel(Box<Tunnel>),
}

impl Upstream {
    /// Facts of the connection beneath.
    pub fn info(&self) -> &UpstreamInfo {
        match self {
            Self::Plain(connection) => connection.info(),
            Self::Tunnel(tunnel) => tunnel.stream().info(),
        }
    }
    /// Period of [`Self::report`]; none if nobody wants it.
    pub fn report_interval(&self) -> Option<Duration> {
        match self {
            Self::Plain(connection) => connection.report_interval(),
            Self::Tunnel(_) => None,
        }
    }
    /// Lets filters of the upstream connection report.
    pub fn report(&mut self) {
        if let Self::Plain(connection) = self {
            connection.report();
        }
    }
    /// Takes over what the upstream said beside its bytes.
    pub fn note(&mut self, info: &mut StreamInfo) {
        if let Self::Tunnel(tunnel) = self {
            tunnel.note(info);
        }
    }
}

impl AsyncRead for Upstream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(connection) => Pin::new(connection.as_mut()).poll_read(cx, buf),
            Self::Tunnel(tunnel) => Pin::new(tunnel.as_mut()).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Upstream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(connection) => Pin::new(connection.as_mut()).poll_write(cx, buf),
            Self::Tunnel(tunnel) => Pin::new(tunnel.as_mut()).poll_write(cx, buf),
        }
    }
    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(connection) => Pin::new(connection.as_mut()).poll_write_vectored(cx, bufs),
            Self::Tunnel(tunnel) => Pin::new(tunnel.as_mut()).poll_write_vectored(cx, bufs),
        }
    }
    fn is_write_vectored(&self) -> bool {
        matches!(self, Self::Plain(connection) if connection.is_write_vectored())
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(connection) => Pin::new(connection.as_mut()).poll_flush(cx),
            Self::Tunnel(tunnel) => Pin::new(tunnel.as_mut()).poll_flush(cx),
        }
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(connection) => Pin::new(connection.as_mut()).poll_shutdown(cx),
            Self::Tunnel(tunnel) => Pin::new(tunnel.as_mut()).poll_shutdown(cx),
        }
    }
}

impl Bypass for Upstream {
    fn socket(&mut self) -> Option<&TcpStream> {
        match self {
            Self::Plain(connection) => connection.socket(),
            Self::Tunnel(tunnel) => tunnel.socket(),
        }
    }
    fn bypassed(&self, received: usize, sent: usize) {
        match self {
            Self::Plain(connection) => connection.bypassed(received, sent),
            Self::Tunnel(tunnel) => tunnel.bypassed(received, sent),
        }
    }
}
