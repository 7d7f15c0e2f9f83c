//! The server side of one HTTP/1 connection.

use crate::{ConnControl, ConnectionEnd, ServerOptions, Service};
use bytes::BytesMut;
use std::{rc::Rc, sync::Arc};
use tokio::io::{AsyncRead, AsyncWrite};

/// Drives one HTTP/1 connection to its end. `leftover`: bytes that were read before (protocol detection, PROXY protocol).
pub async fn serve_h1<IO, S>(
    _io: IO,
    _leftover: BytesMut,
    _service: Rc<S>,
    _options: Arc<ServerOptions>,
    _control: Rc<ConnControl>,
) -> ConnectionEnd
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
    S: Service,
{
    ConnectionEnd::Local
}
