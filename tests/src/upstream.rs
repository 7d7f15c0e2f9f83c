//! An HTTP/1.1 upstream that says who it is, echoes what it got, and fails on command.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What an upstream answers.
#[derive(Clone, Debug)]
pub struct Behaviour {
    pub status: u16,
    pub delay: Duration,
    /// Close the connection instead of answering.
    pub close: bool,
    /// Headers of every response.
    pub headers: Vec<(String, String)>,
    /// The body instead of the echo.
    pub body: Option<Vec<u8>>,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self { status: 200, delay: Duration::ZERO, close: false, headers: Vec::new(), body: None }
    }
}

/// A running upstream; it stops when dropped. The body of an answer is the request as it arrived (head, then body).
pub struct Upstream {
    pub name: String,
    pub address: SocketAddr,
    pub hits: Arc<AtomicUsize>,
    pub connections: Arc<AtomicUsize>,
    behaviour: Arc<Mutex<Behaviour>>,
    stop: Arc<AtomicBool>,
}

impl Upstream {
    /// Starts one on a free loopback port.
    pub fn start(name: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let upstream = Self {
            name: name.to_string(),
            address: listener.local_addr().unwrap(),
            hits: Arc::default(),
            connections: Arc::default(),
            behaviour: Arc::default(),
            stop: Arc::default(),
        };
        let (hits, connections) = (upstream.hits.clone(), upstream.connections.clone());
        let (behaviour, stop, name) = (upstream.behaviour.clone(), upstream.stop.clone(), upstream.name.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                connections.fetch_add(1, Ordering::SeqCst);
                let (hits, behaviour, name, stop) = (hits.clone(), behaviour.clone(), name.clone(), stop.clone());
                std::thread::spawn(move || {
                    let _ended = serve(stream, &name, &hits, &behaviour, &stop);
                });
            }
        });
        upstream
    }
    /// Changes what it answers from the next request on.
    pub fn behave(&self, behaviour: Behaviour) {
        *self.behaviour.lock().unwrap() = behaviour;
    }
    /// Answers `status` from the next request on.
    pub fn answer(&self, status: u16) {
        self.behave(Behaviour { status, ..Behaviour::default() });
    }
    /// Requests answered so far.
    pub fn hits(&self) -> usize {
        self.hits.load(Ordering::SeqCst)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the accept loop so that it sees the flag.
        let _woken = TcpStream::connect(self.address);
    }
}

fn serve(stream: TcpStream, name: &str, hits: &AtomicUsize, behaviour: &Mutex<Behaviour>, stop: &AtomicBool) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    loop {
        let Some((head, body)) = read_request(&mut reader)? else { return Ok(()) };
        if stop.load(Ordering::SeqCst) {
            return Ok(());
        }
        hits.fetch_add(1, Ordering::SeqCst);
        let now = behaviour.lock().unwrap().clone();
        std::thread::sleep(now.delay);
        if now.close {
            return Ok(());
        }
        let stream = reader.get_mut();
        if head.to_ascii_lowercase().contains("\r\nupgrade: websocket") {
            stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")?;
            return echo(&mut reader);
        }
        let echo = now.body.unwrap_or_else(|| [head.as_bytes(), &body].concat());
        let mut answer = format!("HTTP/1.1 {} {name}\r\nx-upstream: {name}\r\ncontent-length: {}\r\n", now.status, echo.len());
        for (name, value) in &now.headers {
            answer.push_str(&format!("{name}: {value}\r\n"));
        }
        answer.push_str("\r\n");
        stream.write_all(answer.as_bytes())?;
        if !head.starts_with("HEAD ") {
            stream.write_all(&echo)?;
        }
    }
}

/// Raw bytes back, as a WebSocket echo that does not look inside frames.
fn echo(reader: &mut BufReader<TcpStream>) -> std::io::Result<()> {
    loop {
        let bytes = reader.fill_buf()?.to_vec();
        if bytes.is_empty() {
            return Ok(());
        }
        reader.consume(bytes.len());
        reader.get_mut().write_all(&bytes)?;
    }
}

fn read_request(reader: &mut BufReader<TcpStream>) -> std::io::Result<Option<(String, Vec<u8>)>> {
    let mut head = String::new();
    loop {
        let start = head.len();
        if reader.read_line(&mut head)? == 0 {
            return Ok(None);
        }
        if head[start..].trim_end().is_empty() {
            break;
        }
    }
    let field = |name: &str| {
        head.lines().filter_map(|l| l.split_once(':')).find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.trim().to_string())
    };
    let mut body = Vec::new();
    if field("transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked")) {
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let size = usize::from_str_radix(line.trim(), 16).unwrap_or(0);
            let mut chunk = vec![0; size + 2];
            reader.read_exact(&mut chunk)?;
            if size == 0 {
                break;
            }
            body.extend_from_slice(&chunk[..size]);
        }
    } else if let Some(length) = field("content-length").and_then(|l| l.parse().ok()) {
        body = vec![0; length];
        reader.read_exact(&mut body)?;
    }
    Ok(Some((head, body)))
}
