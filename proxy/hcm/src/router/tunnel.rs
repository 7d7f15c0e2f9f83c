//! Ending CONNECT (and POST, where the route says so): the request's payload goes to the upstream as plain TCP, and what comes back is
//! the response's body. Belongs to one worker. Source: RouteAction.UpgradeConfig.ConnectConfig, Envoy's `TcpUpstream`.

use super::deadlines::{Deadline, Deadlines};
use super::forward::Forwarding;
use super::retry::Failure;
use super::upstream_body::UpstreamMeter;
use super::{errors, finish};
use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Method, StatusCode};
use nuncio_core::{Body, BodySource, Frame, LocalReply, RequestHead, ResponseHead, StreamError};
use nuncio_route::ConnectConfig;
use nuncio_upstream::{OpenOptions, UpstreamConnection, proxy_header};
use std::cell::Cell;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf, ReadHalf, WriteHalf};

/// Bytes that are read from the upstream at once.
const CHUNK: usize = 16 * 1024;

/// Whether `config` ends this request here.
pub fn ends(config: &ConnectConfig, request: &RequestHead) -> bool {
    request.method == Method::CONNECT || (config.allow_post && request.method == Method::POST)
}

impl Forwarding<'_> {
    /// Leaves the tunnel in the exchange as its response.
    pub(super) async fn tunnel(self, config: &ConnectConfig, mut connection: UpstreamConnection) -> Result<(), Box<LocalReply>> {
        if let Some(proxy_protocol) = &config.proxy_protocol {
            let downstream = &self.active.ex.info.connection;
            let addresses = downstream.remote.socket().zip(downstream.local.socket());
            let header = proxy_header(proxy_protocol.version == 1, addresses);
            if let Err(error) = connection.write_all(&header).await {
                return Err(errors::before_response(&StreamError::ConnectionClosed(error.to_string()), false));
            }
        }
        let manager = self.active.config.clone();
        let ex = &mut *self.active.ex;
        let mut head = ResponseHead::new(StatusCode::OK);
        let host = connection.host().clone();
        self.cluster.report(&host, nuncio_upstream::Outcome::HttpCode(200));
        finish::charge(&self.cluster, &self.groups, &manager, ex, &host, 200, &head);
        ex.info.details = Some("via_upstream".into());
        ex.info.response_code = 200;
        let now = ex.info.elapsed();
        let upstream = ex.info.upstream_mut();
        (upstream.first_rx, upstream.last_rx) = (Some(now), Some(now));
        if self.pump.is_whole() && !manager.router.suppress_envoy_headers {
            head.headers.insert(crate::names::X_ENVOY_UPSTREAM_SERVICE_TIME.clone(), HeaderValue::from(0));
        }
        self.entry.finalize_response(&mut head, &ex.request, &ex.info);
        ex.response = Some(head);
        let meter = Rc::new(UpstreamMeter::default());
        let idle = self.forward.idle_timeout().unwrap_or(manager.timeouts.stream_idle);
        let body = TunnelBody::new(connection, self.pump.into_source(), self.deadlines, idle, meter.clone());
        self.active.ex.response_body = Body::Stream(Box::new(body));
        self.active.upstream_meter = Some(meter);
        Ok(())
    }

    /// A connection to a host, retried as the route has it.
    pub(super) async fn connected(&mut self) -> Result<UpstreamConnection, Box<LocalReply>> {
        loop {
            self.active.ex.info.attempts += 1;
            let host = self.pick()?;
            let info = &mut self.active.ex.info;
            finish::begin_attempt(info, &host);
            let options = OpenOptions::from_stream(info, self.priority);
            let made = {
                let mut connect = pin!(self.upstreams.connect(&self.cluster, &host, &options));
                let deadlines = &mut self.deadlines;
                poll_fn(|cx| match connect.as_mut().poll(cx) {
                    Poll::Ready(made) => Poll::Ready(Ok(made)),
                    Poll::Pending => deadlines.poll(cx).map(Err),
                })
                .await
            };
            self.tried_priorities.push(host.priority());
            self.tried.push(host.clone());
            match made {
                Ok(Ok(connection)) => {
                    let facts = connection.info();
                    let upstream = self.active.ex.info.upstream_mut();
                    upstream.local.clone_from(&facts.local);
                    upstream.remote.clone_from(&facts.remote);
                    upstream.tls.clone_from(&facts.tls);
                    upstream.connection_id = facts.connection_id;
                    upstream.connect_time = facts.connect_time;
                    upstream.connect = facts.connect;
                    upstream.filter_state = facts.filter_state.clone();
                    return Ok(connection);
                }
                Ok(Err(error)) => {
                    self.report_reset(&host, &error);
                    self.active.ex.info.upstream_mut().failure = errors::transport_reason(&error).map(str::to_string);
                    let Some(delay) = self.retry_after(&Failure::Reset { error: &error, processed: false }) else {
                        return Err(errors::before_response(&error, self.active.ex.info.attempts > 1));
                    };
                    tokio::time::sleep(delay).await;
                }
                Err(which) => {
                    self.report_timeout(&host, which);
                    return Err(self.timed_out(which));
                }
            }
        }
    }
}

/// What comes from the upstream; a task of its own sends what the client says.
struct TunnelBody {
    reader: ReadHalf<UpstreamConnection>,
    buffer: BytesMut,
    sending: Rc<Sending>,
    task: tokio::task::JoinHandle<()>,
    deadlines: Deadlines,
    idle: Option<Duration>,
    /// What had been sent when the idle time last began.
    noted: u64,
    received: u64,
    meter: Rc<UpstreamMeter>,
    ended: bool,
}

/// Progress of the other direction.
#[derive(Default)]
struct Sending {
    bytes: Cell<u64>,
    failed: Cell<Option<StreamError>>,
    reader: Cell<Option<std::task::Waker>>,
}

impl TunnelBody {
    fn new(connection: UpstreamConnection, source: Body, deadlines: Deadlines, idle: Option<Duration>, meter: Rc<UpstreamMeter>) -> Self {
        let (reader, writer) = tokio::io::split(connection);
        let sending = Rc::new(Sending::default());
        let task = tokio::task::spawn_local(send(source, writer, sending.clone()));
        Self { reader, buffer: BytesMut::new(), sending, task, deadlines, idle, noted: 0, received: 0, meter, ended: false }
    }

    fn poll_deadlines(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        let sent = self.sending.bytes.get();
        if sent != self.noted {
            self.noted = sent;
            self.deadlines.set(Deadline::Idle, self.idle);
        }
        self.deadlines.poll(cx).map(|which| {
            StreamError::LocalReset(match which {
                Deadline::MaxDuration => errors::MAX_DURATION,
                Deadline::UpstreamMaxDuration => errors::UPSTREAM_MAX_DURATION,
                _ => errors::STREAM_IDLE_TIMEOUT,
            })
        })
    }

    fn end(&mut self, with: Option<StreamError>) -> Poll<Option<Result<Frame, StreamError>>> {
        self.ended = true;
        Poll::Ready(with.map(Err))
    }
}

/// Sends `source` and then closes that direction.
async fn send(mut source: Body, mut writer: WriteHalf<UpstreamConnection>, sending: Rc<Sending>) {
    let failed = loop {
        match source.frame().await {
            Some(Ok(Frame::Data(data))) => {
                // The end of the response tells of an upstream that failed.
                if writer.write_all(&data).await.is_err() || writer.flush().await.is_err() {
                    return;
                }
                sending.bytes.set(sending.bytes.get() + data.len() as u64);
            }
            Some(Ok(Frame::Trailers(_))) | None => break None,
            Some(Err(error)) => break Some(error),
        }
    };
    if failed.is_none() {
        let _closed = writer.shutdown().await;
    }
    sending.failed.set(failed);
    if let Some(reader) = sending.reader.take() {
        reader.wake();
    }
}

impl BodySource for TunnelBody {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, StreamError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if let Some(error) = self.sending.failed.take() {
            return self.end(Some(error));
        }
        self.sending.reader.set(Some(cx.waker().clone()));
        self.buffer.resize(CHUNK, 0);
        let mut buffer = ReadBuf::new(&mut self.buffer);
        let polled = Pin::new(&mut self.reader).poll_read(cx, &mut buffer);
        let read = buffer.filled().len();
        match polled {
            Poll::Ready(Ok(())) if read == 0 => self.end(None),
            Poll::Ready(Ok(())) => {
                self.received += read as u64;
                self.deadlines.set(Deadline::Idle, self.idle);
                let data: Bytes = self.buffer.split_to(read).freeze();
                Poll::Ready(Some(Ok(Frame::Data(data))))
            }
            Poll::Ready(Err(error)) => self.end(Some(StreamError::ConnectionClosed(error.to_string()))),
            Poll::Pending => {
                // A tunnel that waits holds no buffer.
                self.buffer = BytesMut::new();
                match self.poll_deadlines(cx) {
                    Poll::Ready(error) => self.end(Some(error)),
                    Poll::Pending => Poll::Pending,
                }
            }
        }
    }

    fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        self.poll_deadlines(cx)
    }

    fn is_end(&self) -> bool {
        self.ended
    }
}

impl Drop for TunnelBody {
    fn drop(&mut self) {
        self.task.abort();
        self.meter.tx_bytes.set(self.sending.bytes.get());
        self.meter.rx_bytes.set(self.received);
    }
}
