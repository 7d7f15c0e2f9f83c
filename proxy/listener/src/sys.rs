//! The system calls that no safe crate offers: reading without consuming, and socket options by number. Everything `unsafe` of this
//! crate is here.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Copies up to `buf.len()` bytes that wait in the socket's receive queue without taking them. `WouldBlock` if there are none; 0 if
/// the peer has closed.
pub(crate) fn peek(socket: BorrowedFd<'_>, buf: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the pointer and length are those of a live, writable slice; `socket` is open for the length of the call; recv writes at
    // most `buf.len()` bytes into it.
    let n = unsafe { libc::recv(socket.as_raw_fd(), buf.as_mut_ptr().cast(), buf.len(), libc::MSG_PEEK | libc::MSG_DONTWAIT) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// setsockopt(2) with raw bytes; `SocketOption` of a configuration names level and option by number.
pub(crate) fn set_option(socket: BorrowedFd<'_>, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    let len = libc::socklen_t::try_from(value.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: the pointer and length are those of a live slice, which setsockopt only reads; `socket` is open for the length of the call.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value.as_ptr().cast(), len) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// TCP_FASTOPEN: the queue length of a listening socket.
pub(crate) fn set_fast_open(socket: BorrowedFd<'_>, queue: u32) -> io::Result<()> {
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_FASTOPEN, &i32::try_from(queue).unwrap_or(i32::MAX).to_ne_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn peek_takes_nothing() {
        let (mut a, mut b) = UnixStream::pair().unwrap();
        let mut buf = [0; 8];
        assert_eq!(peek(b.as_fd(), &mut buf).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        a.write_all(b"hello").unwrap();
        assert_eq!(peek(b.as_fd(), &mut buf[..2]).unwrap(), 2);
        assert_eq!(peek(b.as_fd(), &mut buf).unwrap(), 5);
        let mut read = [0; 5];
        b.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"hello");
        drop(a);
        assert_eq!(peek(b.as_fd(), &mut buf).unwrap(), 0);
    }

    #[test]
    fn options_are_set_or_refused() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        set_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_KEEPALIVE, &1i32.to_ne_bytes()).unwrap();
        assert!(socket2::SockRef::from(&socket).keepalive().unwrap());
        assert!(set_option(socket.as_fd(), libc::SOL_SOCKET, 123_456, &1i32.to_ne_bytes()).is_err());
        set_fast_open(socket.as_fd(), 16).unwrap();
    }
}
