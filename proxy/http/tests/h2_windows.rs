//! The window of an HTTP/2 connection whose requests are held back with their bodies unread.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may fail a test")]

mod common;

use bytes::Bytes;
use common::h2::{Pair, Stream, body, head, open, pair, response};
use common::{TestService, collect, local, ok, settle};
use http::Method;
use nuncio_core::Body;
use nuncio_http::{ClientOptions, H2Options, Request, ServerOptions};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::timeout;

const WINDOW: u32 = 65_535;

/// A server that leaves bodies unread whose path is `/held`, until it is told to go on.
async fn server(extra_window: u32) -> (Pair, Rc<Cell<bool>>) {
    let go = Rc::new(Cell::new(false));
    let told = go.clone();
    let service = TestService::new(move |mut request: Request| {
        let told = told.clone();
        async move {
            while request.head.path.as_str() == "/held" && !told.get() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            let (data, _) = collect(&mut request.body).await.unwrap();
            ok(Body::Full(Bytes::from(data.len().to_string())))
        }
    });
    let h2 = H2Options { initial_stream_window_size: WINDOW, initial_connection_window_size: WINDOW, extra_window, ..H2Options::default() };
    (pair(service, ServerOptions { h2, ..ServerOptions::default() }, ClientOptions::default()).await, go)
}

async fn post(p: &Pair, path: &str, length: usize) -> Stream {
    let mut stream = open(&p.client, &head(Method::POST, path), false);
    stream.send_data(Bytes::from(vec![b'x'; length]), true).unwrap();
    settle().await;
    stream
}

async fn answer(stream: &mut Stream) -> String {
    response(stream).await.unwrap();
    String::from_utf8(body(stream).await.unwrap().0).unwrap()
}

#[tokio::test(start_paused = true)]
async fn bodies_that_nobody_reads_do_not_keep_others_away() {
    local(async {
        let (p, go) = server(16 << 20).await;
        let mut held = Vec::new();
        for _ in 0..20 {
            held.push(post(&p, "/held", 80_000).await);
        }
        for length in [10_000, 200_000] {
            assert_eq!(answer(&mut post(&p, "/", length).await).await, length.to_string());
        }
        go.set(true);
        for stream in &mut held {
            assert_eq!(answer(stream).await, "80000");
        }
        // Back to where it was: one stream fills the window again.
        drop(held);
        settle().await;
        assert_eq!(answer(&mut post(&p, "/", 300_000).await).await, "300000");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_is_lent_has_an_end() {
    local(async {
        let (p, go) = server(100_000).await;
        let mut held = Vec::new();
        for _ in 0..20 {
            held.push(post(&p, "/held", 80_000).await);
        }
        let mut late = post(&p, "/", 10_000).await;
        // The client sends in the order of its streams: all that was lent goes to those that wait.
        assert!(timeout(Duration::from_secs(60), answer(&mut late)).await.is_err());
        go.set(true);
        assert_eq!(answer(&mut late).await, "10000");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_lent_where_nothing_is_held() {
    local(async {
        let (p, go) = server(0).await;
        let _held = post(&p, "/held", 80_000).await;
        let mut late = post(&p, "/", 10_000).await;
        assert!(timeout(Duration::from_secs(60), answer(&mut late)).await.is_err());
        go.set(true);
        assert_eq!(answer(&mut late).await, "10000");
    })
    .await;
}
