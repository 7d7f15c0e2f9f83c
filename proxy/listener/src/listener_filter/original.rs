//! `envoy.filters.listener.original_dst` and `envoy.filters.listener.original_src`: transparent interception.

use super::{Accepted, Verdict};
use nuncio_core::Address;
use nuncio_core::filter_state::OriginalSource;
use nuncio_tls::Transport;
use socket2::SockRef;
use std::net::SocketAddr;
use std::sync::Arc;

/// Sets the local address to where the client meant to go: SO_ORIGINAL_DST of a redirected connection (iptables REDIRECT); under
/// TPROXY the socket's own local address already is that.
pub(super) fn destination(io: &Transport, transparent: bool, accepted: &mut Accepted) -> Verdict {
    let Transport::Tcp(socket) = io else { return Verdict::Continue };
    let original = match accepted.direct_local.socket() {
        Some(local) if transparent => Some(local),
        Some(local) => redirected(&SockRef::from(socket), local),
        None => None,
    };
    if let Some(address) = original {
        accepted.local = Address::Ip(address);
        accepted.restored = true;
    }
    Verdict::Continue
}

fn redirected(socket: &SockRef<'_>, local: SocketAddr) -> Option<SocketAddr> {
    // A connection that nothing redirected has no entry: the call fails, and the local address stays.
    let v4 = || socket.original_dst_v4().ok().and_then(|a| a.as_socket());
    let v6 = || socket.original_dst_v6().ok().and_then(|a| a.as_socket());
    match local.ip().to_canonical().is_ipv4() {
        true => v4(),
        false => v6(),
    }
}

/// Leaves word that upstream connections are to come from the downstream peer's address.
pub(super) fn source(mark: u32, accepted: &mut Accepted) -> Verdict {
    if let Some(address) = accepted.remote.socket() {
        accepted.filter_state.set(OriginalSource::KEY, Arc::new(OriginalSource { address: address.ip(), mark }));
    }
    Verdict::Continue
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::{TcpListener, TcpStream};

    #[tokio::test]
    async fn without_redirection_nothing_is_restored() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (socket, peer) = listener.accept().await.unwrap();
        let local = Address::Ip(listener.local_addr().unwrap());
        let io = Transport::Tcp(socket);
        let mut accepted = Accepted::new(local.clone(), Address::Ip(peer));
        destination(&io, false, &mut accepted);
        assert_eq!(accepted.local, local);
        let mut accepted = Accepted::new(local.clone(), Address::Ip(peer));
        destination(&io, true, &mut accepted);
        assert!(accepted.restored);
        source(1337, &mut accepted);
        let left = accepted.filter_state.get_as::<OriginalSource>(OriginalSource::KEY).unwrap();
        assert_eq!((left.address, left.mark), (peer.ip(), 1337));
    }
}
