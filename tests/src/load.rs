//! Constant load in the background, which counts everything that is not a 200.

use crate::client::Connection;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// Clients that request without pause until the load is stopped.
pub struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    failures: Arc<Mutex<Vec<String>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts `clients` threads. Each keeps its connection as long as the gateway does, and opens another when told to close.
    pub fn start(address: SocketAddr, host: &str, path: &str, clients: usize) -> Self {
        let (stop, done, failures) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
        let threads = (0..clients)
            .map(|_| {
                let (stop, done, failures, host, path) = (stop.clone(), done.clone(), failures.clone(), host.to_string(), path.to_string());
                std::thread::spawn(move || {
                    let mut connection = None;
                    while !stop.load(Ordering::SeqCst) {
                        let fail = |what: String| failures.lock().unwrap().push(what);
                        let mut open = match connection.take().map_or_else(|| Connection::open(address), Ok) {
                            Ok(open) => open,
                            Err(e) => {
                                fail(format!("connect: {e}"));
                                continue;
                            }
                        };
                        match open.request("GET", &host, &path, &[], &[]) {
                            Ok(reply) if reply.status == 200 => {
                                done.fetch_add(1, Ordering::SeqCst);
                                if reply.header("connection") != Some("close") {
                                    connection = Some(open);
                                }
                            }
                            Ok(reply) => fail(format!("{} {}", reply.status, reply.text())),
                            Err(e) => fail(format!("request: {e}")),
                        }
                    }
                })
            })
            .collect();
        Self { stop, done, failures, threads }
    }
    /// Requests that were answered with 200 so far.
    pub fn done(&self) -> usize {
        self.done.load(Ordering::SeqCst)
    }
    /// Waits for `more` answers from now on, so that a change was under load.
    pub fn pass(&self, more: usize) {
        let until = self.done() + more;
        crate::eventually("answers under load", || self.done() >= until);
    }
    /// Ends it; gives what failed.
    pub fn stop(self) -> Vec<String> {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads {
            let _ended = thread.join();
        }
        std::mem::take(&mut self.failures.lock().unwrap())
    }
}
