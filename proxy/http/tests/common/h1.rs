//! An HTTP/1 server over an in-memory transport.

use super::TestService;
use bytes::BytesMut;
use nuncio_http::{ConnControl, ConnectionEnd, ServerOptions, serve_h1};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::task::JoinHandle;
use tokio::time::timeout;

pub struct Server {
    pub io: DuplexStream,
    pub control: Rc<ConnControl>,
    pub task: JoinHandle<ConnectionEnd>,
}

pub fn start(service: Rc<TestService>, options: ServerOptions) -> Server {
    start_with(service, options, 1 << 20, "")
}

pub fn start_with(service: Rc<TestService>, options: ServerOptions, buffer: usize, leftover: &str) -> Server {
    let (io, server) = duplex(buffer);
    let control = Rc::new(ConnControl::new());
    let task = tokio::task::spawn_local(serve_h1(server, BytesMut::from(leftover), service, Arc::new(options), control.clone()));
    Server { io, control, task }
}

impl Server {
    pub async fn send(&mut self, text: &str) {
        self.io.write_all(text.as_bytes()).await.unwrap();
    }
    /// Everything up to the end of the connection.
    pub async fn rest(&mut self) -> String {
        let mut all = Vec::new();
        let _ = timeout(Duration::from_secs(100), self.io.read_to_end(&mut all)).await;
        String::from_utf8(all).unwrap()
    }
    /// Reads until `end` was seen.
    pub async fn until(&mut self, end: &str) -> String {
        let mut all = Vec::new();
        while !all.ends_with(end.as_bytes()) {
            match timeout(Duration::from_secs(5), self.io.read_u8()).await {
                Ok(Ok(byte)) => all.push(byte),
                other => panic!("{other:?} after {:?}", String::from_utf8_lossy(&all)),
            }
        }
        String::from_utf8(all).unwrap()
    }
    pub async fn end(self) -> ConnectionEnd {
        drop(self.io);
        self.task.await.unwrap()
    }
}
