//! The life of an HTTP/2 connection: drain, idle connections, limits, pings and GOAWAY, on both sides.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may fail a test")]

mod common;

use common::h2::{body, head, open, pair, response, serve, text};
use common::{Channel, TestService, local, ok, settle};
use http::{Method, StatusCode};
use nuncio_core::{Body, StreamError};
use nuncio_http::{ClientOptions, ConnectionEnd, KeepAlive, Request, ServerOptions, h2};
use std::cell::RefCell;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::time::timeout;

#[tokio::test(start_paused = true)]
async fn drain_lets_streams_finish_and_takes_no_more() {
    local(async {
        let channel = Channel::default();
        let service = TestService::answering(&channel);
        let p = pair(service, ServerOptions::default(), ClientOptions::default()).await;
        let mut stream = open(&p.client, &head(Method::GET, "/"), true);
        response(&mut stream).await.unwrap();
        p.control.drain();
        p.client.draining().await;
        assert!(!p.client.is_ready());
        assert!(matches!(p.client.send(&head(Method::GET, "/"), true), Err(StreamError::RemoteRefused)));
        channel.data("late");
        channel.end();
        assert_eq!(body(&mut stream).await.unwrap().0, b"late");
        drop(stream);
        assert_eq!(p.client.closed().await, "");
        assert_eq!(p.task.await.unwrap(), ConnectionEnd::Local);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_ignores_goaway_is_left() {
    local(async {
        let (mut ours, theirs) = duplex(1 << 16);
        let options = ServerOptions { idle_timeout: Some(Duration::from_secs(30)), ..ServerOptions::default() };
        let (_control, task) = serve(theirs, TestService::mirror(), options);
        ours.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
        let mut all = Vec::new();
        let _ = timeout(Duration::from_secs(60), ours.read_to_end(&mut all)).await.unwrap();
        assert_eq!(task.await.unwrap(), ConnectionEnd::IdleTimeout);

        // Nor is one waited for that never speaks.
        let (_ours, theirs) = duplex(1 << 16);
        let (_control, task) = serve(theirs, TestService::mirror(), ServerOptions::default());
        assert_eq!(timeout(Duration::from_secs(100), task).await.unwrap().unwrap(), ConnectionEnd::IdleTimeout);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn idle_timeout_counts_from_the_last_stream() {
    local(async {
        let service = TestService::new(|_| async {
            tokio::time::sleep(Duration::from_secs(100)).await;
            ok(Body::Empty)
        });
        let options = ServerOptions { idle_timeout: Some(Duration::from_secs(30)), ..ServerOptions::default() };
        let p = pair(service, options, ClientOptions::default()).await;
        let mut stream = open(&p.client, &head(Method::GET, "/"), true);
        assert_eq!(response(&mut stream).await.unwrap().status, StatusCode::OK);
        drop(stream);
        tokio::time::sleep(Duration::from_secs(29)).await;
        settle().await;
        assert!(!p.client.is_draining());
        tokio::time::sleep(Duration::from_secs(3)).await;
        p.client.draining().await;
        assert_eq!(p.task.await.unwrap(), ConnectionEnd::IdleTimeout);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn max_requests_drain_the_connection() {
    local(async {
        let options = ServerOptions { max_requests_per_connection: 2, ..ServerOptions::default() };
        let p = pair(TestService::mirror(), options, ClientOptions::default()).await;
        for _ in 0..2 {
            let mut stream = open(&p.client, &head(Method::GET, "/"), true);
            text(&mut stream).await;
        }
        p.client.draining().await;
        assert_eq!(p.task.await.unwrap(), ConnectionEnd::Local);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn pings_find_a_dead_peer() {
    local(async {
        let keepalive = Some(KeepAlive {
            interval: Some(Duration::from_secs(10)),
            timeout: Duration::from_secs(5),
            interval_jitter_percent: 0.0,
            connection_idle_interval: None,
        });
        // A peer that answers is kept.
        let mut options = ServerOptions::default();
        options.h2.keepalive = keepalive;
        let mut client = ClientOptions::default();
        client.h2.keepalive = keepalive;
        let p = pair(TestService::mirror(), options.clone(), client.clone()).await;
        tokio::time::sleep(Duration::from_secs(1000)).await;
        assert!(p.client.is_ready() && !p.task.is_finished());

        // One that does not is not.
        let (mut ours, theirs) = duplex(1 << 16);
        let (_control, task) = serve(theirs, TestService::mirror(), options);
        ours.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
        assert_eq!(timeout(Duration::from_secs(16), task).await.unwrap().unwrap(), ConnectionEnd::KeepAliveTimeout);

        let (ours, _theirs) = duplex(1 << 16);
        let dead = h2::Client::connect(ours, Arc::new(client)).await.unwrap();
        assert_eq!(timeout(Duration::from_secs(16), dead.closed()).await.unwrap(), "keepalive timeout");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_quiet_connection_is_asked_before_a_stream() {
    local(async {
        let mut client = ClientOptions::default();
        client.h2.keepalive = Some(KeepAlive {
            interval: None,
            timeout: Duration::from_secs(5),
            interval_jitter_percent: 0.0,
            connection_idle_interval: Some(Duration::from_secs(60)),
        });
        let (ours, mut theirs) = duplex(1 << 16);
        let quiet = h2::Client::connect(ours, Arc::new(client)).await.unwrap();
        theirs.write_all(b"\0\0\0\x04\0\0\0\0\0").await.unwrap();
        settle().await;
        let first = open(&quiet, &head(Method::GET, "/"), true);
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert!(!quiet.is_draining());
        tokio::time::sleep(Duration::from_secs(31)).await;
        let _second = open(&quiet, &head(Method::GET, "/"), true);
        assert_eq!(timeout(Duration::from_secs(6), quiet.closed()).await.unwrap(), "keepalive timeout");
        drop(first);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_goaway_refuses_what_the_peer_did_not_look_at() {
    local(async {
        let (ours, theirs) = duplex(1 << 16);
        // Takes one stream, then says that it took none after it.
        let peer = tokio::task::spawn_local(async move {
            let mut connection = ::h2::server::handshake(theirs).await.unwrap();
            let (_request, respond) = connection.accept().await.unwrap().unwrap();
            connection.graceful_shutdown();
            let held = RefCell::new(Some(respond));
            while let Some(next) = poll_fn(|cx| connection.poll_accept(cx)).await {
                drop(next);
                if let Some(mut respond) = held.take() {
                    respond.send_response(http::Response::new(()), true).unwrap();
                }
            }
        });
        let client = h2::Client::connect(ours, Arc::new(ClientOptions::default())).await.unwrap();
        let mut first = open(&client, &head(Method::GET, "/"), true);
        client.draining().await;
        assert!(matches!(client.send(&head(Method::GET, "/"), true), Err(StreamError::RemoteRefused)));
        peer.abort();
        // The one that was taken may have run.
        assert!(matches!(response(&mut first).await, Err(StreamError::ConnectionClosed(_))));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_peers_stream_limit_is_known() {
    local(async {
        let mut options = ServerOptions::default();
        options.h2.max_concurrent_streams = 3;
        let hold = TestService::new(|request: Request| async move {
            request.stream.closed().await;
            ok(Body::Empty)
        });
        let p = pair(hold, options, ClientOptions::default()).await;
        assert_eq!(p.client.max_streams(), 3);
        let streams: Vec<_> = (0..3).map(|_| open(&p.client, &head(Method::GET, "/"), true)).collect();
        assert!(!p.client.is_ready());
        assert_eq!(p.client.active_streams(), 3);
        drop(streams);
        settle().await;
        assert!(p.client.is_ready());
    })
    .await;
}
