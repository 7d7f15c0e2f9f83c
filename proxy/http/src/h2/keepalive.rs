//! Keep-alive pings of one HTTP/2 connection (`core.v3.KeepaliveSettings`). Polled by the connection's task.

use crate::h2::io::Heard;
use crate::options::KeepAlive;
use crate::timer::Timer;
use h2::{Ping, PingPong};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Instant;

pub struct Pinger {
    pings: PingPong,
    settings: KeepAlive,
    heard: Rc<Heard>,
    timer: Timer,
    next: Option<Instant>,
    /// A ping is on its way; its answer is due then.
    due: Option<Instant>,
    /// A new stream asks whether a quiet connection still lives.
    asked: bool,
}

impl Pinger {
    pub fn new(pings: PingPong, settings: KeepAlive, heard: Rc<Heard>) -> Self {
        heard.wanted.set(settings.connection_idle_interval.is_some());
        let mut pinger = Self { pings, settings, heard, timer: Timer::default(), next: None, due: None, asked: false };
        pinger.schedule();
        pinger
    }
    fn schedule(&mut self) {
        self.next = self.settings.interval.map(|interval| {
            let jitter = interval.mul_f64((self.settings.interval_jitter_percent / 100.0).clamp(0.0, 1.0) * fastrand::f64());
            Instant::now() + interval.max(Duration::from_millis(1)) + jitter
        });
    }
    /// A stream begins: if nothing was received for `connection_idle_interval`, the peer is asked for a sign of life.
    pub fn stream_begins(&mut self) {
        if let Some(idle) = self.settings.connection_idle_interval
            && self.heard.at.get().is_none_or(|at| at.elapsed() >= idle)
        {
            self.asked = true;
        }
    }
    /// True: the peer did not answer in time. A ping that is sent asks for another poll of the connection, by the waker.
    pub fn poll_dead(&mut self, cx: &mut Context<'_>) -> bool {
        loop {
            if let Some(due) = self.due {
                match self.pings.poll_pong(cx) {
                    Poll::Ready(Ok(_)) => {
                        self.due = None;
                        self.schedule();
                    }
                    // The connection is closing and says so itself.
                    Poll::Ready(Err(_)) => return false,
                    Poll::Pending => return self.timer.poll_passed(due, cx),
                }
            } else {
                let time = self.next.is_some_and(|next| self.timer.poll_passed(next, cx));
                if !(time || self.asked) {
                    return false;
                }
                self.asked = false;
                if self.pings.send_ping(Ping::opaque()).is_err() {
                    return false;
                }
                self.due = Some(Instant::now() + self.settings.timeout);
                cx.waker().wake_by_ref();
            }
        }
    }
}
