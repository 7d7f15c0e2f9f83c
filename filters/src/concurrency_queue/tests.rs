//! Tests of the queue, and of the filter before it.

use super::queue::{Limits, Place, Queue, Stats, Waiting};
use super::*;
use futures_util::FutureExt;
use http::{HeaderName, HeaderValue, Method};
use nuncio_core::registry::Server;
use nuncio_core::test_kit::{self as kit, FakeRoute};
use nuncio_core::{Exchange, RequestHead};
use nuncio_proto::nuncio::filters::http::concurrency_queue::v1::{Consumer, concurrency_queue::Scope, consumer::Source};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

fn queue(concurrency: u32, queue: u32, per_consumer: u32) -> (Arc<Queue>, Arc<Stats>) {
    let server = kit::server(Default::default());
    let stats = Arc::new(Stats::new(&server.stats.root().scope("t.")));
    (Queue::new(Limits { concurrency, queue, per_consumer }, stats.clone()), stats)
}
fn place(asked: Asked) -> Place {
    match asked {
        Asked::Admitted(place) => place,
        _ => panic!("not admitted"),
    }
}
fn wait(asked: Asked) -> Waiting {
    match asked {
        Asked::Wait(waiting) => waiting,
        _ => panic!("does not wait"),
    }
}

#[tokio::test]
async fn places_go_to_who_waits_longest() {
    let (queue, stats) = queue(1, 2, 2);
    let first = place(queue.enter("a"));
    let (second, third) = (wait(queue.enter("a")), wait(queue.enter("a")));
    assert!(matches!(queue.enter("a"), Asked::Full));
    assert_eq!((stats.active.value(), stats.waiting.value(), stats.overflow.value()), (1, 2, 1));
    drop(first);
    // A newcomer does not overtake.
    assert!(matches!(queue.enter("a"), Asked::Wait(_)));
    let second = second.await.unwrap();
    assert_eq!(stats.active.value(), 1);
    drop(second);
    drop(third.await);
    assert_eq!((stats.active.value(), stats.waiting.value()), (0, 0));
    assert!(queue.is_idle());
    assert_eq!(stats.admitted.value(), 3);
}

#[tokio::test]
async fn consumers_take_turns() {
    let (queue, _) = queue(1, 100, 100);
    let mut held = place(queue.enter("greedy"));
    let mut line: Vec<_> = (0..3).map(|i| (format!("greedy{i}"), wait(queue.enter("greedy")))).collect();
    line.extend((0..2).map(|i| (format!("modest{i}"), wait(queue.enter("modest")))));
    let mut order = Vec::new();
    while !line.is_empty() {
        drop(held);
        let at = line.iter_mut().position(|(_, w)| w.now_or_never().is_some_and(held_next));
        let (name, _) = line.remove(at.unwrap());
        order.push(name);
        held = NEXT.take().unwrap();
    }
    assert_eq!(order, ["greedy0", "modest0", "greedy1", "modest1", "greedy2"]);
}

std::thread_local! {
    static NEXT: std::cell::Cell<Option<Place>> = const { std::cell::Cell::new(None) };
}
fn held_next(place: Option<Place>) -> bool {
    NEXT.set(place);
    true
}

#[tokio::test]
async fn who_gives_up_takes_no_place() {
    let (queue, stats) = queue(1, 10, 1);
    let first = place(queue.enter("a"));
    let gone = wait(queue.enter("a"));
    assert!(matches!(queue.enter("a"), Asked::Full), "one of a consumer may wait");
    let stays = wait(queue.enter("b"));
    drop(gone);
    assert_eq!(stats.waiting.value(), 1);
    drop(first);
    // Its turn came, but nobody looked: the place goes on.
    let late = wait(queue.enter("c"));
    drop(stays);
    drop(late.await.unwrap());
    assert!(queue.is_idle());
}

#[test]
fn workers_share_places_and_lose_none() {
    let (queue, stats) = queue(3, 1000, 1000);
    let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for worker in 0..4 {
            let (queue, now, most) = (queue.clone(), &now, &most);
            scope.spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                let local = tokio::task::LocalSet::new();
                local.block_on(&runtime, async move {
                    let one = |i: usize| {
                        let queue = queue.clone();
                        async move {
                            let consumer = ["a", "b", "c"][i % 3];
                            let place = match queue.enter(consumer) {
                                Asked::Admitted(place) => place,
                                // Every fifth gives up at once, some of them while their turn comes.
                                Asked::Wait(waiting) if i % 5 == worker => {
                                    tokio::task::yield_now().await;
                                    drop(waiting);
                                    return;
                                }
                                Asked::Wait(waiting) => waiting.await.unwrap(),
                                Asked::Full => panic!("there is room"),
                            };
                            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                            tokio::task::yield_now().await;
                            now.fetch_sub(1, Ordering::SeqCst);
                            drop(place);
                        }
                    };
                    for round in 0..40 {
                        futures_util::future::join_all((0..25).map(|i| one(i + round))).await;
                    }
                });
            });
        }
    });
    assert!(queue.is_idle());
    assert!((1..=3).contains(&most.load(Ordering::SeqCst)), "{most:?}");
    assert_eq!((stats.active.value(), stats.waiting.value(), stats.overflow.value()), (0, 0, 0));
}

struct Kit {
    server: Arc<Server>,
    filter: Arc<dyn HttpFilter>,
}
impl Kit {
    fn new(config: ConcurrencyQueue) -> Self {
        let server = kit::server(Default::default());
        let filter = kit::compile(&Factory, &config, &server).unwrap();
        Self { server, filter }
    }
    fn exchange(&self, consumer: &'static str, cluster: &str) -> Exchange {
        let mut ex = kit::exchange(RequestHead::new(Method::GET, "shop", "/"));
        ex.request.headers.append(HeaderName::from_static("x-consumer"), HeaderValue::from_static(consumer));
        ex.route = Some(Arc::new(FakeRoute::new("r", cluster)));
        ex
    }
    async fn ask(&self, ex: &mut Exchange) -> Option<LocalReply> {
        kit::request(&*self.filter, "queue", ex).await
    }
    fn count(&self, name: &str) -> u64 {
        self.server.stats.root().counter(&format!("q.concurrency_queue.{name}")).value()
    }
}

fn base() -> ConcurrencyQueue {
    ConcurrencyQueue { stat_prefix: "q".into(), max_concurrency: 1, ..Default::default() }
}
fn by_header() -> Option<Consumer> {
    Some(Consumer { source: Some(Source::Header("x-consumer".into())) })
}

#[tokio::test(start_paused = true)]
async fn a_place_is_held_until_the_stream_is_over() {
    let wait = nuncio_proto::Duration { seconds: 3, nanos: 0 };
    let kit = Kit::new(ConcurrencyQueue { max_wait: Some(wait), max_queue: Some(1), ..base() });
    let (mut one, mut two, mut three) = (kit.exchange("", "c"), kit.exchange("", "c"), kit.exchange("", "c"));
    assert!(kit.ask(&mut one).await.is_none());
    let begun = Instant::now();
    let (waited, refused) = tokio::join!(kit.ask(&mut two), kit.ask(&mut three));
    let refused = refused.unwrap();
    assert_eq!((refused.status, &*refused.details), (503, "concurrency_queue_full"));
    assert!(refused.flags.has(ResponseFlags::CONCURRENCY_QUEUE));
    let waited = waited.unwrap();
    assert_eq!((waited.status, &*waited.details, begun.elapsed()), (503, "concurrency_queue_timeout", Duration::from_secs(3)));
    assert_eq!((kit.count("timeout"), kit.count("overflow"), kit.count("admitted")), (1, 1, 1));
    drop(one);
    assert!(kit.ask(&mut three).await.is_none());
}

#[tokio::test(start_paused = true)]
async fn clusters_and_consumers_have_places_of_their_own() {
    let kit = Kit::new(ConcurrencyQueue { scope: Scope::Cluster as i32, max_queue: Some(0), ..base() });
    let (mut a, mut b, mut again) = (kit.exchange("", "a"), kit.exchange("", "b"), kit.exchange("", "a"));
    assert!(kit.ask(&mut a).await.is_none() && kit.ask(&mut b).await.is_none());
    assert!(kit.ask(&mut again).await.is_some());

    let config =
        ConcurrencyQueue { scope: Scope::Consumer as i32, max_queue: Some(0), max_scopes: Some(2), consumer: by_header(), ..base() };
    let kit = Kit::new(config);
    let (mut ann, mut bob, mut eve, mut dan) =
        (kit.exchange("ann", "c"), kit.exchange("bob", "c"), kit.exchange("eve", "c"), kit.exchange("dan", "c"));
    assert!(kit.ask(&mut ann).await.is_none() && kit.ask(&mut bob).await.is_none());
    // Two scopes are the most: others share one, until one is idle.
    assert!(kit.ask(&mut eve).await.is_none());
    assert!(kit.ask(&mut dan).await.is_some());
    drop(bob);
    assert!(kit.ask(&mut dan).await.is_none());
}

#[tokio::test]
async fn names_that_are_too_long_are_not_remembered() {
    let kit = Kit::new(ConcurrencyQueue { scope: Scope::Consumer as i32, max_queue: Some(0), consumer: by_header(), ..base() });
    let long = |letter: &str| String::leak(letter.repeat(300));
    let (mut one, mut two) = (kit.exchange(long("a"), "c"), kit.exchange(long("b"), "c"));
    assert!(kit.ask(&mut one).await.is_none());
    assert!(kit.ask(&mut two).await.is_some(), "they share the queue of those without a name");
}

#[tokio::test]
async fn routes_have_their_own_limits_or_none() {
    let server = kit::server(Default::default());
    let filter = kit::compile(&Factory, &ConcurrencyQueue { max_queue: Some(0), ..base() }, &server).unwrap();
    let off = ConcurrencyQueue { disabled: true, ..Default::default() };
    let off = kit::compile_route(&Factory, &off, &server).unwrap();
    let mut held = Vec::new();
    for _ in 0..5 {
        let mut ex = kit::exchange(RequestHead::new(Method::GET, "shop", "/"));
        ex.route = Some(Arc::new(FakeRoute::new("r", "c").with("queue", off.clone())));
        assert!(kit::request(&*filter, "queue", &mut ex).await.is_none());
        held.push(ex);
    }
}

#[test]
fn what_cannot_be_meant_is_refused() {
    let server = kit::server(Default::default());
    let hour = nuncio_proto::Duration { seconds: 3601, nanos: 0 };
    for (wrong, field) in [
        (ConcurrencyQueue { max_concurrency: 0, ..base() }, "max_concurrency"),
        (ConcurrencyQueue { stat_prefix: String::new(), ..base() }, "stat_prefix"),
        (ConcurrencyQueue { scope: Scope::Consumer as i32, ..base() }, "scope"),
        (ConcurrencyQueue { scope: 9, ..base() }, "scope"),
        (ConcurrencyQueue { disabled: true, ..base() }, "disabled"),
        (ConcurrencyQueue { max_wait: Some(hour), ..base() }, "max_wait"),
        (ConcurrencyQueue { max_scopes: Some(0), ..base() }, "max_scopes"),
        (ConcurrencyQueue { consumer: Some(Consumer { source: None }), ..base() }, "consumer"),
        (ConcurrencyQueue { consumer: Some(Consumer { source: Some(Source::Header("a b".into())) }), ..base() }, "consumer.header"),
    ] {
        let report = kit::compile(&Factory, &wrong, &server).unwrap_err();
        assert!(report.to_string().contains(field), "{field}: {report}");
    }
}
