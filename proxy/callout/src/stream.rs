//! A gRPC stream: messages both ways for as long as both sides like. Owned by one task of one worker, which polls it; nothing is sent
//! or read between polls. Dropping it resets the stream. Source: Envoy's `Grpc::AsyncStreamImpl`.

use crate::CalloutError;
use crate::attempt::Reporter;
use crate::fetch::cluster_of;
use crate::frame::{self, Decoder};
use crate::grpc::{GrpcError, status};
use bytes::Bytes;
use http::StatusCode;
use nuncio_core::views::ClusterSlot;
use nuncio_core::{Frame, Headers, HttpVersion, RequestHead, ResponseHead, StreamError};
use nuncio_upstream::{Cluster, Host, LbContext, OpenOptions, UpstreamStream, Upstreams};
use prost::Message;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::marker::PhantomData;
use std::sync::Arc;
use std::task::{Context, Poll};

/// A stream whose answers are `A`.
pub struct GrpcStream<A> {
    stream: UpstreamStream,
    cluster: Arc<Cluster>,
    host: Arc<Host>,
    request: RequestHead,
    head: Option<ResponseHead>,
    trailers: Option<Box<Headers>>,
    /// Messages that wait for room, and their bytes.
    queue: VecDeque<Bytes>,
    queued: usize,
    /// No more messages will come from this side; `sent_end` once that was said.
    closing: bool,
    sent_end: bool,
    /// The peer takes no more; its status tells why.
    stuck: bool,
    ended: bool,
    decoder: Decoder,
    answers: PhantomData<fn() -> A>,
}

impl<A: Message + Default> GrpcStream<A> {
    pub(crate) async fn open(slot: &ClusterSlot, request: RequestHead, max_message: usize) -> Result<Self, GrpcError> {
        let cluster = cluster_of(slot)?;
        if cluster.should_drop() {
            return Err(CalloutError::Dropped.into());
        }
        let reporter = Reporter::new(&cluster);
        let upstreams = Upstreams::current();
        let Some(host) = upstreams.pick(&cluster, &LbContext { request: Some(&request), ..LbContext::default() }) else {
            reporter.local(Some(&request), None, 503);
            return Err(CalloutError::NoHealthyHost.into());
        };
        let options = OpenOptions { downstream_protocol: Some(HttpVersion::Http2), ..OpenOptions::default() };
        let stream = upstreams.open(&cluster, &host, &request, false, &options).await.map_err(|error| {
            reporter.reset(&host, &error);
            reporter.local(Some(&request), Some(&host), 503);
            CalloutError::Stream(error)
        })?;
        Ok(Self {
            stream,
            cluster,
            host,
            request,
            head: None,
            trailers: None,
            queue: VecDeque::new(),
            queued: 0,
            closing: false,
            sent_end: false,
            stuck: false,
            ended: false,
            decoder: Decoder::new(max_message),
            answers: PhantomData,
        })
    }

    /// Queues a message; it goes out as the stream is polled. The caller bounds the queue by looking at [`Self::queued`].
    pub fn send(&mut self, message: &impl Message) {
        if self.closing || self.stuck || self.ended {
            return;
        }
        let frame = frame::encode(message);
        self.queued += frame.len();
        self.queue.push_back(frame);
    }
    /// Bytes that wait for room.
    pub fn queued(&self) -> usize {
        self.queued
    }
    /// Says that no more messages will come from this side, once what is queued has been sent.
    pub fn finish(&mut self) {
        self.closing = true;
    }
    /// Sends what there is room for. Ready once nothing is left to send.
    pub fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.stuck || self.sent_end {
            return Poll::Ready(());
        }
        while !self.queue.is_empty() || self.closing {
            match self.stream.poll_ready(cx) {
                Poll::Pending => {
                    let _flushed = self.stream.poll_flush(cx);
                    return Poll::Pending;
                }
                Poll::Ready(Err(_)) => return self.give_up(),
                Poll::Ready(Ok(())) => {}
            }
            let data = self.queue.pop_front().unwrap_or_default();
            self.queued = self.queued.saturating_sub(data.len());
            let end = self.closing && self.queue.is_empty();
            if self.stream.send_data(data, end).is_err() {
                return self.give_up();
            }
            if end {
                self.sent_end = true;
                break;
            }
        }
        match self.stream.poll_flush(cx) {
            Poll::Ready(Err(_)) => self.give_up(),
            Poll::Ready(Ok(())) => Poll::Ready(()),
            Poll::Pending => Poll::Pending,
        }
    }
    /// The response says why the peer takes no more.
    fn give_up(&mut self) -> Poll<()> {
        self.stuck = true;
        self.queue.clear();
        self.queued = 0;
        Poll::Ready(())
    }
    /// The next message, while what is queued goes out. `Ok(None)`: the peer ended the stream with status OK.
    pub fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<A>, GrpcError>> {
        let _sent = self.poll_send(cx);
        if self.ended {
            return Poll::Ready(Ok(None));
        }
        let result = std::task::ready!(self.poll_next(cx));
        if !matches!(result, Ok(Some(_))) {
            self.ended = true;
        }
        Poll::Ready(result)
    }
    /// As [`Self::poll_message`].
    pub async fn message(&mut self) -> Result<Option<A>, GrpcError> {
        poll_fn(|cx| self.poll_message(cx)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<A>, GrpcError>> {
        while self.head.is_none() {
            match std::task::ready!(self.stream.poll_response(cx)) {
                Ok(head) if head.status.is_informational() => {}
                Ok(head) => {
                    Reporter::new(&self.cluster).response(&self.request, &self.host, &head);
                    if head.status != StatusCode::OK {
                        return Poll::Ready(status(&head, None).map(|()| None));
                    }
                    self.head = Some(head);
                }
                Err(error) => {
                    Reporter::new(&self.cluster).reset(&self.host, &error);
                    return Poll::Ready(Err(failed(error)));
                }
            }
        }
        loop {
            if let Some(message) = self.decoder.next_message()? {
                return Poll::Ready(Ok(Some(message)));
            }
            match std::task::ready!(self.stream.poll_frame(cx)) {
                Some(Ok(Frame::Data(data))) => self.decoder.push(&data),
                Some(Ok(Frame::Trailers(trailers))) => self.trailers = Some(trailers),
                Some(Err(error)) => return Poll::Ready(Err(failed(error))),
                None => {
                    let Some(head) = &self.head else { return Poll::Ready(Ok(None)) };
                    return Poll::Ready(status(head, self.trailers.as_deref()).map(|()| None));
                }
            }
        }
    }
}

fn failed(error: StreamError) -> GrpcError {
    CalloutError::Stream(error).into()
}
