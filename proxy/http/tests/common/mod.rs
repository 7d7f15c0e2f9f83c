//! What the tests of both codecs share: a service made of a closure, and bodies made by hand.
#![allow(dead_code, reason = "each test binary uses its part")]

pub mod h1;
pub mod h2;

use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use http::{HeaderName, HeaderValue, StatusCode};
use nuncio_core::{Body, BodySource, Frame, Headers, ResponseHead, StreamError};
use nuncio_http::{Malformed, Request, Response, Service, Unserved};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

type Handler = dyn Fn(Request) -> LocalBoxFuture<'static, Response>;

/// A service made of a closure.
pub struct TestService {
    handler: Box<Handler>,
    pub calls: Cell<usize>,
    /// Status and details of requests that the codec dealt with.
    pub unserved: RefCell<Vec<(u16, &'static str)>>,
}

impl TestService {
    pub fn new<F: Future<Output = Response> + 'static>(handler: impl Fn(Request) -> F + 'static) -> Rc<Self> {
        Rc::new(Self { handler: Box::new(move |request| Box::pin(handler(request))), calls: Cell::new(0), unserved: RefCell::default() })
    }
    /// Answers with what is put into `channel`.
    pub fn answering(channel: &Channel) -> Rc<Self> {
        let channel = channel.clone();
        Self::new(move |_| {
            let channel = channel.clone();
            async move { ok(channel.body()) }
        })
    }
    /// Answers with method, path, header fields and body of the request.
    pub fn mirror() -> Rc<Self> {
        Self::new(|mut request: Request| async move {
            let (body, trailers) = collect(&mut request.body).await.unwrap_or_default();
            let h = &request.head;
            let fields: String = h.headers.iter().map(|(n, v)| format!("{n}={} ", v.to_str().unwrap_or("?"))).collect();
            let text = format!("{} {} {} {fields}[{}] {trailers}", h.method, h.authority, h.path, String::from_utf8_lossy(&body));
            ok(Body::Full(Bytes::from(text)))
        })
    }
}

impl Service for TestService {
    async fn call(self: Rc<Self>, request: Request) -> Response {
        self.calls.set(self.calls.get() + 1);
        (self.handler)(request).await
    }
    fn malformed(&self, error: &Malformed) -> Response {
        Response::new(ResponseHead::new(error.status), Body::Full(Bytes::from_static(error.details.as_bytes())))
    }
    fn unserved(&self, request: &Unserved) {
        self.unserved.borrow_mut().push((request.status, request.details));
    }
}

pub fn ok(body: Body) -> Response {
    Response::new(ResponseHead::new(StatusCode::OK), body)
}

pub fn headers(fields: &[(&'static str, &'static str)]) -> Headers {
    fields.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
}

/// Everything that a body gives, and its trailers as text.
pub async fn collect(body: &mut Body) -> Result<(Vec<u8>, String), StreamError> {
    let (mut all, mut trailers) = (Vec::new(), String::new());
    while let Some(frame) = body.frame().await {
        match frame? {
            Frame::Data(data) => all.extend_from_slice(&data),
            Frame::Trailers(t) => trailers = t.iter().map(|(n, v)| format!("{n}={} ", v.to_str().unwrap_or("?"))).collect(),
        }
    }
    Ok((all, trailers))
}

/// A body whose frames are put in by hand.
#[derive(Clone, Default)]
pub struct Channel(Rc<ChannelState>);

#[derive(Default)]
pub struct ChannelState {
    frames: RefCell<VecDeque<Option<Result<Frame, StreamError>>>>,
    waker: RefCell<Option<Waker>>,
    pub dropped: Cell<bool>,
    pub sent: Cell<bool>,
    /// Says with the last frame that it is the last one.
    pub whole: Cell<bool>,
    pub polls: Cell<usize>,
}

impl Channel {
    pub fn data(&self, data: impl Into<Bytes>) {
        self.put(Some(Ok(Frame::Data(data.into()))));
    }
    pub fn put(&self, frame: Option<Result<Frame, StreamError>>) {
        self.0.frames.borrow_mut().push_back(frame);
        if let Some(waker) = self.0.waker.take() {
            waker.wake();
        }
    }
    pub fn end(&self) {
        self.put(None);
    }
    pub fn state(&self) -> &ChannelState {
        &self.0
    }
    pub fn body(&self) -> Body {
        Body::Stream(Box::new(ChannelBody(self.0.clone())))
    }
}

struct ChannelBody(Rc<ChannelState>);
impl BodySource for ChannelBody {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, StreamError>>> {
        self.0.polls.set(self.0.polls.get() + 1);
        match self.0.frames.borrow_mut().pop_front() {
            Some(frame) => Poll::Ready(frame),
            None => {
                *self.0.waker.borrow_mut() = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
    fn is_end(&self) -> bool {
        self.0.whole.get() && matches!(self.0.frames.borrow().front(), Some(None))
    }
    fn on_sent(&mut self) {
        self.0.sent.set(true);
    }
}
impl Drop for ChannelBody {
    fn drop(&mut self) {
        self.0.dropped.set(true);
    }
}

/// Runs `test` where local tasks may be spawned.
pub async fn local<F: Future>(test: F) -> F::Output {
    tokio::task::LocalSet::new().run_until(test).await
}

/// Lets every task do what it can.
pub async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}
