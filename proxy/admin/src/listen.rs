//! Sockets of the admin port.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::sync::Arc;

use nuncio_core::Address;
use tokio::net::{TcpListener, TcpSocket, UnixListener};

use crate::server::Io;

#[derive(Debug)]
pub(crate) enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Socket {
    pub fn bind(address: &Address, mode: u32, ipv4_compat: bool) -> io::Result<(Self, Address)> {
        match address {
            Address::Ip(at) => {
                let socket = if at.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
                socket.set_reuseaddr(true)?;
                if at.is_ipv6() {
                    socket2::SockRef::from(&socket).set_only_v6(!ipv4_compat)?;
                }
                socket.bind(*at)?;
                let listener = socket.listen(128)?;
                let bound = Address::Ip(listener.local_addr()?);
                Ok((Self::Tcp(listener), bound))
            }
            Address::Pipe(path) => {
                let listener = match path.strip_prefix('@') {
                    Some(name) => {
                        let name = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
                        std::os::unix::net::UnixListener::bind_addr(&name)?
                    }
                    None => bind_path(path, mode)?,
                };
                listener.set_nonblocking(true)?;
                Ok((Self::Unix(UnixListener::from_std(listener)?), address.clone()))
            }
            Address::Internal(..) => Err(io::Error::new(io::ErrorKind::InvalidInput, "the admin port cannot be an internal listener")),
        }
    }

    pub async fn accept(&self) -> io::Result<(Box<dyn Io>, Address)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                // Answers are written in whole pieces; waiting for more bytes only costs time.
                stream.set_nodelay(true)?;
                Ok((Box::new(stream), Address::Ip(peer)))
            }
            Self::Unix(listener) => {
                let (stream, peer) = listener.accept().await?;
                let path = peer.as_pathname().map(|p| p.to_string_lossy().into_owned()).unwrap_or_default();
                Ok((Box::new(stream), Address::Pipe(Arc::from(path))))
            }
        }
    }
}

fn bind_path(path: &str, mode: u32) -> io::Result<std::os::unix::net::UnixListener> {
    // A socket that a former process left is in the way; anything else there is not ours to remove.
    if std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket()) {
        std::fs::remove_file(path)?;
    }
    let listener = std::os::unix::net::UnixListener::bind(path)?;
    if mode != 0 {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    }
    Ok(listener)
}
