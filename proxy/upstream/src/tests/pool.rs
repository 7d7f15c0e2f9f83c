//! Pools against real loopback servers.

use super::*;
use crate::RoutingPriority;
use crate::host::HealthFlags;
use nuncio_core::HttpVersion;
use nuncio_http::{ConnControl, Request, Response, ServerOptions, Service, serve_h2};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

fn one(server: &TestServer, more: &str) -> Arc<Cluster> {
    cluster(&static_cluster(more, &[(&server.address.to_string(), "")]))
}

#[test]
fn connections_are_reused() {
    run(async {
        let server = TestServer::start(Manner::KeepAlive).await;
        let c = one(&server, "");
        for i in 0..5 {
            let host = c.hosts()[0].clone();
            let stream = open(&c, &host).await.unwrap();
            assert_eq!(stream.is_reused(), i > 0);
            assert_eq!(stream.info().connection_streams, i + 1);
            assert_eq!(stream.info().protocol, Some(HttpVersion::Http11));
            let (head, body) = finish(stream).await.unwrap();
            assert_eq!((head.status.as_u16(), body.as_slice()), (200, &b"ok"[..]));
        }
        assert_eq!((server.connections(), server.requests.load(Ordering::SeqCst)), (1, 5));
        let t = &c.stats().traffic;
        assert_eq!((t.upstream_cx_total.value(), t.upstream_cx_active.value(), t.upstream_cx_http1_total.value()), (1, 1, 1));
        assert_eq!((t.upstream_rq_total.value(), t.upstream_rq_active.value(), t.upstream_rq_pending_total.value()), (5, 0, 1));
        assert!(t.upstream_cx_rx_bytes_total.value() > 0 && t.upstream_cx_tx_bytes_total.value() > 0);
        assert_eq!(c.breakers().default.requests.current() + c.breakers().default.pending.current(), 0);
        Upstreams::current().close_idle();
        assert_eq!((t.upstream_cx_active.value(), t.upstream_cx_destroy_local.value()), (0, 1));
        assert_eq!(c.hosts()[0].stats.cx_active.load(Ordering::Relaxed), 0);
    });
}

#[test]
fn a_closed_connection_is_not_used_again() {
    run(async {
        let server = TestServer::start(Manner::CloseAfter).await;
        let c = one(&server, "");
        for _ in 0..5 {
            assert!(fetch(&c).await.is_ok());
            // The close is on its way.
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
        assert_eq!(server.connections(), 5);
        assert_eq!(c.stats().traffic.upstream_cx_destroy_remote.value(), 4);
    });
}

#[test]
fn the_sweep_notices_closed_connections() {
    run(async {
        let server = TestServer::start(Manner::CloseAfter).await;
        let c = one(&server, "");
        let upstreams = Upstreams::install(Default::default());
        assert!(fetch(&c).await.is_ok());
        until("the connection is closed", || c.stats().traffic.upstream_cx_active.value() == 0).await;
        drop(upstreams);
    });
}

#[test]
fn waiters_are_served_in_order_by_few_connections() {
    run(async {
        let server = TestServer::start(Manner::Slow(10)).await;
        let c = one(&server, "circuit_breakers: {thresholds: [{max_connections: 1}]}");
        let order = Rc::new(std::cell::RefCell::new(Vec::new()));
        let mut tasks = Vec::new();
        for i in 0..5 {
            let (c, order) = (c.clone(), order.clone());
            tasks.push(tokio::task::spawn_local(async move {
                fetch(&c).await.unwrap();
                order.borrow_mut().push(i);
            }));
            tokio::task::yield_now().await;
        }
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(*order.borrow(), [0, 1, 2, 3, 4]);
        assert_eq!(server.connections(), 1);
        assert!(c.stats().traffic.upstream_cx_overflow.value() > 0);
        assert_eq!(c.stats().default_breakers.cx_open.value(), 1);
    });
}

#[test]
fn circuit_breakers_refuse() {
    run(async {
        let server = TestServer::start(Manner::Slow(50)).await;
        let c = one(
            &server,
            "circuit_breakers: {thresholds: [{max_connections: 1, max_pending_requests: 1}, {priority: HIGH, max_requests: 0}]}",
        );
        let host = c.hosts()[0].clone();
        let first = open(&c, &host).await.unwrap();
        let (c2, h2) = (c.clone(), host.clone());
        let second = tokio::task::spawn_local(async move { open(&c2, &h2).await.map(drop) });
        tokio::task::yield_now().await;
        assert_eq!(open(&c, &host).await.err(), Some(StreamError::Overflow));
        assert_eq!(c.stats().traffic.upstream_rq_pending_overflow.value(), 1);
        assert_eq!(c.stats().default_breakers.rq_pending_open.value(), 1);
        finish(first).await.unwrap();
        second.await.unwrap().unwrap();
        let high = OpenOptions { priority: RoutingPriority::High, ..OpenOptions::default() };
        let refused = Upstreams::current().open(&c, &host, &get(), true, &high).await;
        assert_eq!(refused.err(), Some(StreamError::Overflow));
        assert_eq!(c.breakers().default.pending.current(), 0);
    });
}

#[test]
fn retries_have_their_own_limit() {
    let c = cluster(
        "name: x\ncircuit_breakers: {thresholds: [{max_retries: 1}, {priority: HIGH, retry_budget: {budget_percent: {value: 50}, min_retry_concurrency: 2}}]}",
    );
    let guard = c.try_retry(RoutingPriority::Default);
    assert!(guard.is_some() && c.try_retry(RoutingPriority::Default).is_none());
    drop(guard);
    assert!(c.try_retry(RoutingPriority::Default).is_some());
    let budget: Vec<_> = (0..2).map(|_| c.try_retry(RoutingPriority::High).unwrap()).collect();
    assert!(c.try_retry(RoutingPriority::High).is_none());
    let stats = &c.stats().high_breakers;
    for _ in 0..6 {
        c.breakers().high.acquire(crate::breaker::Kind::Request, stats);
    }
    assert!(c.try_retry(RoutingPriority::High).is_some(), "half of six is three");
    drop(budget);
}

#[test]
fn giving_up_leaves_no_trace() {
    run(async {
        let server = TestServer::start(Manner::Slow(20)).await;
        let c = one(&server, "circuit_breakers: {thresholds: [{max_connections: 1}]}");
        let host = c.hosts()[0].clone();
        let first = open(&c, &host).await.unwrap();
        for _ in 0..3 {
            assert!(tokio::time::timeout(Duration::from_millis(1), open(&c, &host)).await.is_err());
        }
        assert_eq!(c.breakers().default.pending.current(), 0);
        assert_eq!(host.stats.rq_pending_active.load(Ordering::Relaxed), 0);
        assert_eq!(c.stats().traffic.upstream_rq_cancelled.value(), 3);
        finish(first).await.unwrap();
        assert!(fetch(&c).await.is_ok());
        assert_eq!(server.connections(), 1);
    });
}

#[test]
fn connect_failures_are_told_and_reported() {
    run(async {
        // Bound, then closed: nobody listens there.
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let c =
            cluster(&static_cluster("outlier_detection: {max_ejection_percent: 100, consecutive_5xx: 2}", &[(&address.to_string(), "")]));
        let host = c.hosts()[0].clone();
        for _ in 0..2 {
            assert!(matches!(open(&c, &host).await.err(), Some(StreamError::ConnectFailed(why)) if why.contains("refused")));
        }
        assert!(host.flags().has(HealthFlags::FAILED_OUTLIER_CHECK));
        let t = &c.stats().traffic;
        assert_eq!(
            (t.upstream_cx_connect_fail.value(), t.upstream_rq_pending_failure_eject.value(), t.upstream_cx_active.value()),
            (2, 2, 0)
        );
        assert_eq!(host.stats.cx_connect_fail.load(Ordering::Relaxed), 2);
    });
}

#[test]
fn a_peer_that_closes_at_once_fails_one_request() {
    run(async {
        let server = TestServer::start(Manner::CloseAtOnce).await;
        let c = one(&server, "");
        assert!(matches!(fetch(&c).await, Err(StreamError::ConnectionClosed(_))));
        assert!(server.connections() <= 2);
    });
}

#[test]
fn connect_timeout() {
    run(async {
        // A full backlog: the kernel answers no SYN any more.
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        socket.listen(0).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        let mut fill = Vec::new();
        for _ in 0..4 {
            let s = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            s.set_nonblocking(true).unwrap();
            let _ = s.connect(&address.into());
            fill.push(s);
        }
        let c = cluster(&static_cluster("connect_timeout: 0.1s", &[(&address.to_string(), "")]));
        assert_eq!(open(&c, &c.hosts()[0].clone()).await.err(), Some(StreamError::ConnectTimeout));
        assert_eq!(c.stats().traffic.upstream_cx_connect_timeout.value(), 1);
    });
}

#[test]
fn max_requests_per_connection() {
    run(async {
        let server = TestServer::start(Manner::KeepAlive).await;
        let c = one(&server, "common_http_protocol_options: {max_requests_per_connection: 2}");
        for _ in 0..6 {
            fetch(&c).await.unwrap();
        }
        assert_eq!(server.connections(), 3);
        assert_eq!(c.stats().traffic.upstream_cx_max_requests.value(), 3);
    });
}

#[test]
fn idle_and_old_connections_are_closed() {
    run(async {
        let server = TestServer::start(Manner::KeepAlive).await;
        let c = one(&server, "common_http_protocol_options: {idle_timeout: 0.02s}");
        fetch(&c).await.unwrap();
        tokio::time::sleep(Duration::from_millis(40)).await;
        fetch(&c).await.unwrap();
        assert_eq!((server.connections(), c.stats().traffic.upstream_cx_idle_timeout.value()), (2, 1));
        let c = one(&server, "common_http_protocol_options: {max_connection_duration: 0.02s}");
        fetch(&c).await.unwrap();
        tokio::time::sleep(Duration::from_millis(40)).await;
        fetch(&c).await.unwrap();
        assert_eq!((server.connections(), c.stats().traffic.upstream_cx_max_duration_reached.value()), (4, 1));
    });
}

#[test]
fn unfinished_streams_close_their_connection() {
    run(async {
        let server = TestServer::start(Manner::Slow(1000)).await;
        let c = one(&server, "");
        let host = c.hosts()[0].clone();
        let mut stream = open(&c, &host).await.unwrap();
        let _ = poll_fn(|cx| std::task::Poll::Ready(stream.poll_response(cx))).await;
        drop(stream);
        let t = &c.stats().traffic;
        assert_eq!((t.upstream_cx_active.value(), t.upstream_cx_destroy_local.value(), t.upstream_rq_active.value()), (0, 1, 0));
        // A reset is what HTTP/2 has.
        assert_eq!(t.upstream_rq_tx_reset.value(), 0);
    });
}

#[test]
fn hosts_that_leave_keep_their_streams_only() {
    run(async {
        let server = TestServer::start(Manner::Slow(30)).await;
        let c = cluster("name: test\ntype: EDS\neds_cluster_config: {eds_config: {ads: {}}}");
        let list = |port: u16| {
            assignment(&format!(
                "cluster_name: test\nendpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}]}}]"
            ))
        };
        c.update_endpoints(&list(server.address.port())).unwrap();
        let host = c.hosts()[0].clone();
        let busy = open(&c, &host).await.unwrap();
        let second = open(&c, &host).await.unwrap();
        finish(second).await.unwrap();
        assert_eq!(c.stats().traffic.upstream_cx_active.value(), 2);
        let upstreams = Upstreams::current();
        c.update_endpoints(&list(1)).unwrap();
        upstreams.sweep_now();
        assert_eq!(c.stats().traffic.upstream_cx_active.value(), 1, "the idle one is closed");
        assert!(finish(busy).await.is_ok());
        assert_eq!(c.stats().traffic.upstream_cx_active.value(), 0);
        upstreams.sweep_now();
        assert_eq!(c.breakers().default.pools.current(), 0);
    });
}

#[test]
fn pipes() {
    run(async {
        let path = std::env::temp_dir().join(format!("nuncio-upstream-{}.sock", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        tokio::task::spawn_local(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut buf = [0; 1024];
            let _ = socket.read(&mut buf).await;
            let _ = socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
            std::future::pending::<()>().await;
        });
        let c = cluster(&format!(
            "name: x\nload_assignment: {{cluster_name: x, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{pipe: {{path: {}}}}}}}}}]}}]}}",
            path.display()
        ));
        assert_eq!(fetch(&c).await.unwrap().0.status.as_u16(), 200);
        std::fs::remove_file(&path).unwrap();
    });
}

#[test]
fn bind_address_and_happy_eyeballs() {
    run(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let c = cluster(&format!(
            "name: x\nupstream_bind_config: {{source_address: {{address: 127.0.0.6, port_value: 0}}}}\nupstream_connection_options: {{tcp_keepalive: {{keepalive_time: 300}}}}\nload_assignment: {{cluster_name: x, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {dead}}}}}, additional_addresses: [{{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}]}}}}]}}]}}"
        ));
        let upstreams = Upstreams::current();
        let host = upstreams.pick(&c, &LbContext::default()).unwrap();
        let options = OpenOptions::default();
        let connect = upstreams.connect(&c, &host, &options);
        let (made, accepted) = tokio::join!(connect, listener.accept());
        let made = made.unwrap();
        assert_eq!(accepted.unwrap().1.ip().to_string(), "127.0.0.6");
        assert_eq!(made.info().local.as_ref().unwrap().without_port(), "127.0.0.6");
        assert_eq!(made.info().remote.as_ref().unwrap().socket().unwrap().port(), port);
    });
}

#[test]
fn raw_connections_are_counted() {
    run(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let c = cluster(&static_cluster("circuit_breakers: {thresholds: [{max_connections: 1}]}", &[(&address.to_string(), "")]));
        let upstreams = Upstreams::current();
        let host = c.hosts()[0].clone();
        let options = OpenOptions::default();
        let (made, accepted) = tokio::join!(upstreams.connect(&c, &host, &options), listener.accept());
        let (mut made, mut peer) = (made.unwrap(), accepted.unwrap().0);
        made.write_all(b"hello").await.unwrap();
        let mut buf = [0; 5];
        peer.read_exact(&mut buf).await.unwrap();
        assert_eq!(&buf, b"hello");
        assert!(made.plain().is_some());
        assert_eq!(upstreams.connect(&c, &host, &OpenOptions::default()).await.err(), Some(StreamError::Overflow));
        drop(peer);
        assert_eq!(made.read(&mut buf).await.unwrap(), 0);
        drop(made);
        let t = &c.stats().traffic;
        assert_eq!((t.upstream_cx_active.value(), t.upstream_cx_tx_bytes_total.value(), t.upstream_cx_overflow.value()), (0, 5, 1));
        assert_eq!((t.upstream_cx_destroy_remote.value(), t.upstream_rq_total.value(), t.upstream_rq_active.value()), (1, 1, 0));
    });
}

/// Answers HTTP/2 requests after a moment.
struct Echo(Cell<usize>);
impl Service for Echo {
    async fn call(self: Rc<Self>, _request: Request) -> Response {
        self.0.set(self.0.get() + 1);
        tokio::time::sleep(Duration::from_millis(10)).await;
        Response::new(ResponseHead::new(http::StatusCode::OK), nuncio_core::Body::Full("two".into()))
    }
    fn malformed(&self, _error: &nuncio_http::Malformed) -> Response {
        Response::reset(1)
    }
}

#[test]
fn http2_streams_share_a_connection() {
    run(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Rc::new(Cell::new(0));
        let seen = connections.clone();
        tokio::task::spawn_local(async move {
            while let Ok((socket, _)) = listener.accept().await {
                seen.set(seen.get() + 1);
                let mut options = ServerOptions::default();
                options.h2.max_concurrent_streams = 3;
                let serve =
                    serve_h2(socket, Default::default(), Rc::new(Echo(Cell::new(0))), Arc::new(options), Rc::new(ConnControl::new()));
                tokio::task::spawn_local(async move {
                    serve.await;
                });
            }
        });
        let c = cluster(&static_cluster("http2_protocol_options: {}", &[(&address.to_string(), "")]));
        assert_eq!(fetch(&c).await.unwrap().1, b"two");
        let tasks: Vec<_> = (0..3)
            .map(|_| {
                let c = c.clone();
                tokio::task::spawn_local(async move { fetch(&c).await.unwrap().0.version })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(connections.get(), 1, "three streams at once fit");
        let tasks: Vec<_> = (0..7)
            .map(|_| {
                let c = c.clone();
                tokio::task::spawn_local(async move { fetch(&c).await.unwrap() })
            })
            .collect();
        for task in tasks {
            assert_eq!(task.await.unwrap().1, b"two");
        }
        assert!((2..=3).contains(&connections.get()), "{}", connections.get());
        let t = &c.stats().traffic;
        assert_eq!((t.upstream_rq_total.value(), t.upstream_rq_active.value()), (11, 0));
        assert_eq!(t.upstream_cx_http2_total.value(), connections.get());
        Upstreams::current().close_idle();
        until("connections are closed", || t.upstream_cx_active.value() == 0).await;
    });
}

#[test]
fn no_request_fails_while_endpoints_churn() {
    run(async {
        let mut servers = Vec::new();
        for _ in 0..4 {
            servers.push(TestServer::start(Manner::KeepAlive).await);
        }
        let c = cluster("name: test\ntype: EDS\neds_cluster_config: {eds_config: {ads: {}}}\nlb_policy: LEAST_REQUEST");
        let list = |which: &[usize]| {
            let one = |i: &usize| {
                format!("{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {}}}}}}}}}", servers[*i].address.port())
            };
            assignment(&format!(
                "cluster_name: test\nendpoints: [{{lb_endpoints: [{}]}}]",
                which.iter().map(one).collect::<Vec<_>>().join(", ")
            ))
        };
        c.update_endpoints(&list(&[0, 1])).unwrap();
        let stop = Rc::new(Cell::new(false));
        let tasks: Vec<_> = (0..8)
            .map(|_| {
                let (c, stop) = (c.clone(), stop.clone());
                tokio::task::spawn_local(async move {
                    let mut done = 0;
                    while !stop.get() {
                        let (head, body) = fetch(&c).await.unwrap();
                        assert_eq!((head.status.as_u16(), body.as_slice()), (200, &b"ok"[..]));
                        done += 1;
                    }
                    done
                })
            })
            .collect();
        let upstreams = Upstreams::current();
        for round in 0..60usize {
            let a = round % 4;
            c.update_endpoints(&list(&[a, (a + 1) % 4])).unwrap();
            upstreams.sweep_now();
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        stop.set(true);
        let mut total = 0;
        for task in tasks {
            total += task.await.unwrap();
        }
        assert!(total > 100, "{total}");
        let t = &c.stats().traffic;
        assert_eq!((t.upstream_rq_active.value(), t.upstream_cx_connect_fail.value(), t.upstream_rq_tx_reset.value()), (0, 0, 0));
        upstreams.close_idle();
        assert_eq!(t.upstream_cx_active.value(), 0);
        assert!(servers.iter().all(|s| s.requests.load(Ordering::SeqCst) > 0));
    });
}

#[test]
fn connections_close_with_the_set_of_hosts() {
    run(async {
        let server = TestServer::start(Manner::KeepAlive).await;
        let (ip, port) = (server.address.ip(), server.address.port());
        let endpoints = |more: &str| {
            assignment(&format!(
                "{{cluster_name: test, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: {ip}, port_value: {port}}}}}}}{more}}}]}}]}}"
            ))
        };
        for (on, connections) in [(true, 4), (false, 1)] {
            let before = server.connections();
            let more = format!("common_lb_config: {{close_connections_on_host_set_change: {on}}}");
            let c = one(&server, &more);
            fetch(&c).await.unwrap();
            // Said again, which is no change; then another weight, another health, and an ejection.
            for change in ["", ", load_balancing_weight: 3", ", health_status: UNHEALTHY"] {
                c.update_endpoints(&endpoints(change)).unwrap_or_else(|e| panic!("{}", e.summary()));
                fetch(&c).await.unwrap();
            }
            c.health_changed(&c.hosts()[0], true);
            fetch(&c).await.unwrap();
            assert_eq!(server.connections() - before, connections, "{on}");
        }
    });
}
