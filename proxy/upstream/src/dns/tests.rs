//! Resolving against a small name server that lies, stalls and overflows.

use super::*;
use crate::tests::run;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};

/// What the server does with a question.
#[derive(Clone)]
enum Says {
    /// These addresses, with this TTL.
    Addresses(Vec<IpAddr>, u32),
    Code(u8),
    Silence,
    /// An answer with another id, then one to another question, then the true one.
    Lies(IpAddr),
    /// Bytes that are no DNS message.
    Garbage,
    /// A record that claims more bytes than there are.
    Overlong,
}

struct Server {
    spec: ResolverSpec,
    says: Arc<Mutex<Says>>,
    over_tcp: Arc<AtomicUsize>,
    asked: Arc<AtomicUsize>,
}

fn record(question: &[u8], ip: &IpAddr, ttl: u32) -> Vec<u8> {
    let kind = question[question.len() - 3];
    let data = match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let mut out = vec![0xc0, 12, 0, kind, 0, 1];
    out.extend(ttl.to_be_bytes());
    out.extend((data.len() as u16).to_be_bytes());
    out.extend(data);
    out
}

fn message(id: [u8; 2], flags: u16, question: &[u8], records: &[Vec<u8>]) -> Vec<u8> {
    let mut out = id.to_vec();
    out.extend(flags.to_be_bytes());
    for count in [1u16, records.len() as u16, 0, 0] {
        out.extend(count.to_be_bytes());
    }
    out.extend(question);
    out.extend(records.concat());
    out
}

impl Server {
    async fn start(says: Says) -> Self {
        let (udp, tcp, address) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let address = udp.local_addr().unwrap();
            // Somebody may have the same port over TCP.
            if let Ok(tcp) = TcpListener::bind(address).await {
                break (udp, tcp, address);
            }
        };
        let says = Arc::new(Mutex::new(says));
        let (over_tcp, asked) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (s, a) = (says.clone(), asked.clone());
        tokio::task::spawn_local(async move {
            let mut buf = [0; 2048];
            while let Ok((n, peer)) = udp.recv_from(&mut buf).await {
                a.fetch_add(1, Ordering::SeqCst);
                let says = s.lock().unwrap().clone();
                for answer in Self::answers(&says, &buf[..n], 512) {
                    udp.send_to(&answer, peer).await.unwrap();
                }
            }
        });
        let (s, t) = (says.clone(), over_tcp.clone());
        tokio::task::spawn_local(async move {
            while let Ok((mut peer, _)) = tcp.accept().await {
                t.fetch_add(1, Ordering::SeqCst);
                let Ok(length) = peer.read_u16().await else { continue };
                let mut query = vec![0; usize::from(length)];
                peer.read_exact(&mut query).await.unwrap();
                let says = s.lock().unwrap().clone();
                for answer in Self::answers(&says, &query, 65_535) {
                    peer.write_u16(answer.len() as u16).await.unwrap();
                    peer.write_all(&answer).await.unwrap();
                }
            }
        });
        let spec =
            ResolverSpec { servers: vec![address], no_search: true, timeout: Duration::from_secs(1), tries: 1, ..ResolverSpec::default() };
        Self { spec, says, over_tcp, asked }
    }
    fn answers(says: &Says, query: &[u8], limit: usize) -> Vec<Vec<u8>> {
        let id = [query[0], query[1]];
        let end = 12 + query[12..].iter().position(|b| *b == 0).unwrap() + 5;
        let question = &query[12..end];
        let v6 = question[question.len() - 3] == 28;
        let mine = |ips: &[IpAddr], ttl| ips.iter().filter(|ip| ip.is_ipv6() == v6).map(|ip| record(question, ip, ttl)).collect::<Vec<_>>();
        match says {
            Says::Silence => Vec::new(),
            Says::Code(code) => vec![message(id, 0x8180 | u16::from(*code), question, &[])],
            Says::Garbage => vec![[&id[..], &[0x81, 0x80], &[0xff; 30]].concat()],
            Says::Overlong => {
                let mut whole = message(id, 0x8180, question, &mine(&["10.0.0.1".parse().unwrap()], 60));
                let at = whole.len() - 6;
                whole.get_mut(at..at + 2).unwrap().copy_from_slice(&[0xff, 0xff]);
                vec![whole]
            }
            Says::Addresses(ips, ttl) => {
                let whole = message(id, 0x8180, question, &mine(ips, *ttl));
                vec![if whole.len() > limit { message(id, 0x8380, question, &[]) } else { whole }]
            }
            Says::Lies(truth) => {
                let false_id = [id[0] ^ 0x55, id[1] ^ 0x55];
                let evil = mine(&["10.6.6.6".parse().unwrap(), "fe80::6".parse().unwrap()], 60);
                let mut other = question.to_vec();
                other[1] ^= 1;
                vec![
                    message(false_id, 0x8180, question, &evil),
                    message(id, 0x8180, &other, &evil),
                    message(id, 0x8180, question, &mine(&[*truth], 60)),
                ]
            }
        }
    }
    fn say(&self, says: Says) {
        *self.says.lock().unwrap() = says;
    }
    async fn ask(&self, family: Family) -> Result<Answer, String> {
        DnsService::new("/nonexistent".into()).resolve("name.test", family, &self.spec).await
    }
}

fn ips(list: &[&str]) -> Vec<IpAddr> {
    list.iter().map(|ip| ip.parse().unwrap()).collect()
}

#[test]
fn families_and_ttls() {
    run(async {
        let server = Server::start(Says::Addresses(ips(&["10.0.0.1", "10.0.0.2", "2001:db8::1"]), 30)).await;
        for (family, want) in [
            (Family::V4Only, &["10.0.0.1", "10.0.0.2"][..]),
            (Family::V6Only, &["2001:db8::1"]),
            (Family::Auto, &["2001:db8::1"]),
            (Family::V4Preferred, &["10.0.0.1", "10.0.0.2"]),
            (Family::All, &["2001:db8::1", "10.0.0.1", "10.0.0.2"]),
        ] {
            let answer = server.ask(family).await.unwrap();
            assert_eq!((answer.addresses, answer.ttl), (ips(want), Some(Duration::from_secs(30))), "{family:?}");
        }
        server.say(Says::Addresses(ips(&["10.0.0.1"]), 30));
        assert_eq!(server.ask(Family::Auto).await.unwrap().addresses, ips(&["10.0.0.1"]), "no IPv6: IPv4");
        assert_eq!(server.ask(Family::V6Only).await.unwrap(), Answer::default());
    });
}

#[test]
fn a_name_that_is_not_there_is_an_answer_and_a_broken_server_is_none() {
    run(async {
        let server = Server::start(Says::Code(3)).await;
        assert_eq!(server.ask(Family::V4Only).await, Ok(Answer::default()));
        server.say(Says::Addresses(Vec::new(), 0));
        assert_eq!(server.ask(Family::V4Only).await, Ok(Answer::default()));
        for code in [1, 2, 4, 5] {
            server.say(Says::Code(code));
            assert!(server.ask(Family::V4Only).await.is_err(), "code {code}");
        }
    });
}

#[test]
fn lies_are_not_believed() {
    run(async {
        let server = Server::start(Says::Lies("10.0.0.7".parse().unwrap())).await;
        // Whether the true answer is still waited for is the resolver's choice; the false ones must never count.
        match server.ask(Family::V4Only).await {
            Ok(answer) => assert!(answer.addresses.is_empty() || answer.addresses == ips(&["10.0.0.7"]), "{answer:?}"),
            Err(why) => assert!(!why.is_empty()),
        }
    });
}

#[test]
fn garbage_and_false_lengths_fail() {
    run(async {
        let server = Server::start(Says::Garbage).await;
        assert!(server.ask(Family::V4Only).await.is_err());
        server.say(Says::Overlong);
        assert!(server.ask(Family::V4Only).await.is_err());
    });
}

#[test]
fn a_silent_server_is_given_up() {
    run(async {
        let mut server = Server::start(Says::Silence).await;
        server.spec.timeout = Duration::from_millis(50);
        assert!(server.ask(Family::V4Only).await.is_err());
        assert!(server.asked.load(Ordering::SeqCst) >= 1);
    });
}

#[test]
fn what_does_not_fit_into_a_datagram_comes_over_tcp() {
    run(async {
        let many: Vec<IpAddr> = (0..2000u32).map(|n| IpAddr::from((0x0a00_0000 + n).to_be_bytes())).collect();
        let server = Server::start(Says::Addresses(many.clone(), 60)).await;
        let mut found = server.ask(Family::V4Only).await.unwrap().addresses;
        found.sort();
        assert_eq!(found, many);
        assert!(server.over_tcp.load(Ordering::SeqCst) > 0);
        let asked = server.asked.load(Ordering::SeqCst);
        let tcp = ResolverSpec { tcp: true, ..server.spec.clone() };
        let service = DnsService::new("/nonexistent".into());
        assert_eq!(service.resolve("name.test", Family::V4Only, &tcp).await.unwrap().addresses.len(), 2000);
        assert_eq!(server.asked.load(Ordering::SeqCst), asked, "nothing over UDP");
    });
}

#[test]
fn literals_are_not_asked_for() {
    run(async {
        let server = Server::start(Says::Silence).await;
        let service = DnsService::new("/nonexistent".into());
        let found = service.resolve("10.1.2.3", Family::V4Only, &server.spec).await.unwrap();
        assert_eq!((found.addresses, found.ttl), (ips(&["10.1.2.3"]), None));
        assert!(service.resolve("::1", Family::V4Only, &server.spec).await.is_err());
        assert_eq!(server.asked.load(Ordering::SeqCst), 0);
    });
}

#[test]
fn pauses_after_failures_grow_within_their_limit() {
    let (base, max) = (Duration::from_millis(100), Duration::from_millis(450));
    for (failures, limit) in [(1, 100), (2, 200), (3, 400), (4, 450), (40, 450), (u32::MAX, 450)] {
        for _ in 0..50 {
            let pause = backoff(base, max, failures);
            assert!(pause >= Duration::from_millis(1) && pause <= Duration::from_millis(limit), "{failures}: {pause:?}");
        }
    }
}
