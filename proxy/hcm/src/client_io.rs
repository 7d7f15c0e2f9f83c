//! The transport of an HTTP/1 client connection. The end of the connection's last response goes out in one packet with the FIN: a connection
//! per request would otherwise cost a packet, and its acknowledgement, more. Belongs to the connection's task.

use nuncio_http::ConnControl;
use nuncio_tls::Transport;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A transport whose last write waits for its shutdown.
pub struct ClientIo {
    io: Transport,
    control: Rc<ConnControl>,
    corked: bool,
}

impl ClientIo {
    /// `io`, with the control of the codec that will drive it.
    pub fn new(io: Transport, control: Rc<ConnControl>) -> Self {
        Self { io, control, corked: false }
    }
    fn cork_if_last(&mut self) {
        if self.control.is_last_write() && !self.corked {
            self.corked = true;
            self.io.cork();
        }
    }
}

impl AsyncRead for ClientIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_read(cx, buf)
    }
}

impl AsyncWrite for ClientIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.cork_if_last();
        Pin::new(&mut this.io).poll_write(cx, data)
    }
    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.cork_if_last();
        Pin::new(&mut this.io).poll_write_vectored(cx, data)
    }
    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}
