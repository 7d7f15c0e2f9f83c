//! HTTP/2 over the `h2` crate: header conversion, flow control and the life of connections on both sides.

pub mod client;
mod convert;
mod guard;
mod heads;
mod hpack;
mod io;
mod keepalive;
mod lend;
pub mod server;
mod stream;

pub use client::{Client, Stream};

use nuncio_core::StreamError;

/// Bytes that a frame costs beside its payload (RFC 9113, section 4.1).
const FRAME_HEADER: u64 = 9;

/// What an error of the `h2` crate means for one stream.
fn stream_error(error: &h2::Error) -> StreamError {
    let reason = error.reason();
    if error.is_reset() && error.is_remote() {
        return match reason {
            Some(h2::Reason::REFUSED_STREAM) => StreamError::RemoteRefused,
            reason => StreamError::RemoteReset(reason.map_or(0, u32::from)),
        };
    }
    // A graceful GOAWAY fails only the streams above its last id: the peer has not looked at them. Others may have run.
    if error.is_go_away() && error.is_remote() && reason == Some(h2::Reason::NO_ERROR) {
        return StreamError::RemoteRefused;
    }
    if error.is_reset() && error.is_library() {
        return match reason {
            // The peer passed a limit of ours with a response head.
            Some(h2::Reason::ENHANCE_YOUR_CALM) => StreamError::TooLarge(crate::validate::details::H2_TOO_LARGE),
            _ => StreamError::Protocol(crate::validate::details::H2_MESSAGING),
        };
    }
    // We ended the connection because of what the peer sent.
    if error.is_go_away() && error.is_library() {
        return StreamError::Protocol(crate::validate::details::H2_MESSAGING);
    }
    // So did the guard, which the library takes for a transport that failed.
    if error.is_io() && error.get_io().is_some_and(|io| io.to_string() == crate::validate::details::H2_MESSAGING) {
        return StreamError::Protocol(crate::validate::details::H2_MESSAGING);
    }
    StreamError::ConnectionClosed(error.to_string())
}
