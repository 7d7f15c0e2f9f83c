//! The response's body as it comes from the upstream, while the rest of the request still goes out.
//! Owned by the exchange's response body; belongs to one worker.

use super::deadlines::{Deadline, Deadlines};
use super::errors;
use super::request_body::{PumpError, RequestPump};
use nuncio_core::{BodySource, Frame, StreamError};
use nuncio_upstream::UpstreamStream;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

/// What the end of the upstream stream tells its owner.
#[derive(Debug, Default)]
pub struct UpstreamMeter {
    pub tx_bytes: std::cell::Cell<u64>,
    pub rx_bytes: std::cell::Cell<u64>,
}

/// A response body from an upstream.
pub struct UpstreamBody {
    stream: UpstreamStream,
    pump: RequestPump,
    deadlines: Deadlines,
    idle: Option<Duration>,
    meter: Rc<UpstreamMeter>,
    ended: bool,
}

impl UpstreamBody {
    /// The body of `stream`, whose head was read; `pump` still sends the request.
    pub fn new(stream: UpstreamStream, pump: RequestPump, deadlines: Deadlines, idle: Option<Duration>, meter: Rc<UpstreamMeter>) -> Self {
        Self { stream, pump, deadlines, idle, meter, ended: false }
    }

    fn touch(&mut self) {
        if self.idle.is_some() {
            self.deadlines.set(Deadline::Idle, self.idle);
        }
    }

    fn fail(&mut self, error: StreamError) -> Poll<Option<Result<Frame, StreamError>>> {
        self.ended = true;
        Poll::Ready(Some(Err(error)))
    }
}

impl BodySource for UpstreamBody {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, StreamError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if !self.pump.is_done() {
            match self.pump.poll(&mut self.stream, cx) {
                Poll::Ready(Err(PumpError::Downstream(error))) => return self.fail(error),
                // The upstream may stop reading and still answer; its response says how it ends.
                Poll::Ready(Err(PumpError::Upstream(_))) => self.pump.abandon(),
                Poll::Ready(Ok(())) | Poll::Pending => {}
            }
        }
        match self.stream.poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                self.touch();
                if matches!(frame, Frame::Trailers(_)) {
                    self.ended = true;
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => self.fail(error),
            Poll::Ready(None) => {
                self.ended = true;
                Poll::Ready(None)
            }
            Poll::Pending => match self.deadlines.poll(cx) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(which) => self.fail(StreamError::LocalReset(match which {
                    Deadline::Global => errors::RESPONSE_TIMEOUT,
                    Deadline::PerTry => errors::PER_TRY_TIMEOUT,
                    Deadline::PerTryIdle => errors::PER_TRY_IDLE_TIMEOUT,
                    Deadline::Idle | Deadline::Request => errors::STREAM_IDLE_TIMEOUT,
                    Deadline::MaxDuration => errors::MAX_DURATION,
                })),
            },
        }
    }

    fn remaining(&self) -> Option<u64> {
        self.stream.remaining()
    }

    fn is_end(&self) -> bool {
        self.ended || self.stream.is_end()
    }
}

impl Drop for UpstreamBody {
    fn drop(&mut self) {
        self.meter.tx_bytes.set(self.stream.bytes_written());
        self.meter.rx_bytes.set(self.stream.bytes_read());
    }
}
