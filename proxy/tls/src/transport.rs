//! The byte stream below a codec: TCP, Unix socket, or TLS over either. An enum, because a virtual call per read is not free and
//! the kinds are few. Used by listeners (downstream) and pools (upstream) on the workers.

use nuncio_core::Address;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

/// A connected byte stream.
#[derive(Debug)]
pub enum Transport {
    Tcp(TcpStream),
    Unix(UnixStream),
    /// Boxed, because a TLS connection is large and most places move the enum around.
    Tls(Box<tokio_rustls::TlsStream<Transport>>),
}

/// Runs `$body` on the stream that is really there.
macro_rules! each {
    ($self:expr, $io:ident => $body:expr) => {
        match $self {
            Transport::Tcp($io) => $body,
            Transport::Unix($io) => $body,
            Transport::Tls($io) => $body,
        }
    };
}

impl Transport {
    /// The socket under any TLS.
    pub fn socket(&self) -> &Self {
        let mut io = self;
        while let Self::Tls(tls) = io {
            io = tls.get_ref().0;
        }
        io
    }
    /// The peer's address; an unnamed Unix peer is an empty pipe.
    pub fn peer_addr(&self) -> io::Result<Address> {
        match self.socket() {
            Self::Tcp(s) => s.peer_addr().map(Address::Ip),
            Self::Unix(s) => s.peer_addr().map(|a| pipe(&a)),
            Self::Tls(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }
    /// The address of our side.
    pub fn local_addr(&self) -> io::Result<Address> {
        match self.socket() {
            Self::Tcp(s) => s.local_addr().map(Address::Ip),
            Self::Unix(s) => s.local_addr().map(|a| pipe(&a)),
            Self::Tls(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }
    /// TCP_NODELAY; does nothing on a Unix socket.
    pub fn set_nodelay(&self, on: bool) -> io::Result<()> {
        match self.socket() {
            Self::Tcp(s) => s.set_nodelay(on),
            _ => Ok(()),
        }
    }
    /// Makes the coming close a reset (RST) instead of an orderly end; does nothing on a Unix socket.
    pub fn reset_on_close(&self) -> io::Result<()> {
        match self.socket() {
            Self::Tcp(s) => s.set_zero_linger(),
            _ => Ok(()),
        }
    }
    /// Holds back the last, partly filled segment of what is written from now on until the write side is shut, so that it carries the
    /// end (FIN) with it; the kernel waits 200 ms at most. Does nothing on a Unix socket.
    pub fn cork(&self) {
        if let Self::Tcp(s) = self.socket() {
            // It saves a packet; without it everything arrives all the same.
            let _in_vain = socket2::SockRef::from(s).set_tcp_cork(true);
        }
    }
    /// Whether bytes are protected by TLS.
    pub fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }
    /// Resolves when a read would make progress (data, end or error). May wake without cause.
    /// Of TLS it means the socket below: decrypted bytes that are already buffered do not count.
    pub async fn readable(&self) -> io::Result<()> {
        match self.socket() {
            Self::Tcp(s) => s.readable().await,
            Self::Unix(s) => s.readable().await,
            Self::Tls(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

fn pipe(address: &tokio::net::unix::SocketAddr) -> Address {
    let path = address.as_pathname().map(|p| p.to_string_lossy().into_owned());
    let path = path.or_else(|| address.as_abstract_name().map(|n| format!("@{}", String::from_utf8_lossy(n))));
    Address::Pipe(path.unwrap_or_default().into())
}

impl From<TcpStream> for Transport {
    fn from(s: TcpStream) -> Self {
        Self::Tcp(s)
    }
}
impl From<UnixStream> for Transport {
    fn from(s: UnixStream) -> Self {
        Self::Unix(s)
    }
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), io => Pin::new(io).poll_read(cx, buf))
    }
}
impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(self.get_mut(), io => Pin::new(io).poll_write(cx, buf))
    }
    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        each!(self.get_mut(), io => Pin::new(io).poll_write_vectored(cx, bufs))
    }
    fn is_write_vectored(&self) -> bool {
        each!(self, io => io.is_write_vectored())
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), io => Pin::new(io).poll_flush(cx))
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), io => Pin::new(io).poll_shutdown(cx))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn a_corked_end_arrives_with_the_shutdown() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut server = Transport::from(listener.accept().await.unwrap().0);
        server.cork();
        let Transport::Tcp(socket) = &server else { unreachable!() };
        assert!(socket2::SockRef::from(socket).tcp_cork().unwrap());
        server.write_all(b"last words").await.unwrap();
        server.shutdown().await.unwrap();
        let mut all = Vec::new();
        client.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"last words");
    }
}
