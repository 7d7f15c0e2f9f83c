//! A look at the first bytes of a connection without taking them.

use crate::sys;
use nuncio_tls::Transport;
use std::io;
use std::os::fd::AsFd;
use tokio::io::Interest;

/// First size of the buffer; most connections need no more. Field note 35: 64 KiB per connection is what Envoy suffered from.
const FIRST: usize = 512;

/// The bytes seen so far.
#[derive(Debug, Default)]
pub(crate) struct Peeked {
    buf: Vec<u8>,
    len: usize,
}

/// What waiting for more brought.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum More {
    /// There are more bytes than before.
    Bytes,
    /// The peer has closed, and there is nothing more than before.
    End,
    /// As many as `limit` allows are there.
    Full,
}

impl Peeked {
    /// What is in the socket's queue, as far as it has been looked at.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.buf.get(..self.len).unwrap_or_default()
    }
    /// Forgets everything: the bytes were taken off the socket.
    pub(crate) fn reset(&mut self) {
        self.len = 0;
    }
    /// Waits until there are more bytes than [`Self::bytes`], up to `limit`.
    pub(crate) async fn more(&mut self, io: &Transport, limit: usize) -> io::Result<More> {
        if self.len >= limit {
            return Ok(More::Full);
        }
        if self.len >= self.buf.len() {
            self.buf.resize((self.buf.len() * 2).max(FIRST).min(limit.max(FIRST)), 0);
        }
        let before = self.len;
        loop {
            // Readiness is edge-triggered. Answering "would block" to bytes that were seen already makes the runtime wait for the next edge,
            // that is, for new bytes or the end; without that this loop would spin on an incomplete hello.
            let peek = |fd, buf: &mut [u8]| match sys::peek(fd, buf) {
                Ok(n) if n <= before && n > 0 => Err(io::ErrorKind::WouldBlock.into()),
                other => other,
            };
            let (closed, peeked) = match io {
                Transport::Tcp(socket) => {
                    let closed = socket.ready(Interest::READABLE).await?.is_read_closed();
                    (closed, socket.try_io(Interest::READABLE, || peek(socket.as_fd(), &mut self.buf)))
                }
                Transport::Unix(socket) => {
                    let closed = socket.ready(Interest::READABLE).await?.is_read_closed();
                    (closed, socket.try_io(Interest::READABLE, || peek(socket.as_fd(), &mut self.buf)))
                }
                Transport::Tls(_) => return Err(io::ErrorKind::Unsupported.into()),
            };
            match peeked {
                Ok(0) => return Ok(More::End),
                Ok(n) => {
                    self.len = n;
                    return Ok(More::Bytes);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock && closed => return Ok(More::End),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream, UnixStream};

    async fn tcp() -> (TcpStream, Transport) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (client, Transport::Tcp(listener.accept().await.unwrap().0))
    }

    #[tokio::test]
    async fn grows_with_what_arrives_and_takes_nothing() {
        let (mut client, mut server) = tcp().await;
        let mut peeked = Peeked::default();
        client.write_all(b"ab").await.unwrap();
        assert_eq!(peeked.more(&server, 100_000).await.unwrap(), More::Bytes);
        assert_eq!(peeked.bytes(), b"ab");
        // Nothing new: it waits, and does not spin.
        tokio::select! {
            biased;
            _ = peeked.more(&server, 100_000) => panic!("nothing has arrived"),
            () = tokio::task::yield_now() => {}
        }
        client.write_all(&[b'c'; 2000]).await.unwrap();
        while peeked.bytes().len() < 2002 {
            assert_eq!(peeked.more(&server, 100_000).await.unwrap(), More::Bytes);
        }
        drop(client);
        assert_eq!(peeked.more(&server, 100_000).await.unwrap(), More::End);
        let mut all = Vec::new();
        server.read_to_end(&mut all).await.unwrap();
        assert_eq!(all.len(), 2002);
    }

    #[tokio::test]
    async fn limit_and_unix() {
        let (mut client, server) = UnixStream::pair().unwrap();
        let server = Transport::Unix(server);
        client.write_all(&[1; 600]).await.unwrap();
        let mut peeked = Peeked::default();
        while peeked.bytes().len() < 600 {
            assert_eq!(peeked.more(&server, 600).await.unwrap(), More::Bytes);
        }
        assert_eq!(peeked.more(&server, 600).await.unwrap(), More::Full);
    }
}
