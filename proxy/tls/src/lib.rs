//! TLS of both sides from Envoy's configuration and SDS secrets, by rustls over aws-lc-rs. Compiled on the control thread, used by
//! every worker. Secrets are read from the [`SecretStore`] at handshake time, so a rotation rebuilds no listener and no cluster.

pub mod cert;
pub mod client_hello;
mod common;
pub mod downstream;
mod finish;
pub mod material;
mod params;
mod pins;
pub mod secret;
mod session;
mod staple;
mod stats;
pub mod transport;
pub mod upstream;
mod verify;

pub use downstream::DownstreamTls;
pub use secret::{CertificateStatus, SecretKind, SecretSlot, SecretStore, Wanted};
pub use transport::Transport;
pub use upstream::{ConnectOptions, UpstreamTls};

/// Why a handshake failed, in the words of `%DOWNSTREAM_TRANSPORT_FAILURE_REASON%` and `%UPSTREAM_TRANSPORT_FAILURE_REASON%`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TlsFailure {
    /// An SDS secret that the context needs has not arrived; the text names it.
    SecretMissing(String),
    /// The peer or this side refused the handshake; the text begins with `TLS_error:`.
    Handshake(String),
    /// The connection broke during the handshake.
    Io(String),
}

impl TlsFailure {
    /// The text for formatters and logs.
    pub fn reason(&self) -> &str {
        match self {
            Self::SecretMissing(text) | Self::Handshake(text) | Self::Io(text) => text,
        }
    }
}
impl std::fmt::Display for TlsFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.reason())
    }
}
impl std::error::Error for TlsFailure {}
