//! A plain blocking HTTP/1.1 client that shows exactly what came over the wire.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// A response.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    /// Names in lower case, in order.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    /// First value of `name`.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A connection that lives from request to request.
pub struct Connection {
    reader: BufReader<TcpStream>,
}

impl Connection {
    /// Connects; reads give up after 20 s.
    pub fn open(address: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        stream.set_nodelay(true)?;
        Ok(Self { reader: BufReader::new(stream) })
    }
    /// Writes bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.reader.get_mut().write_all(bytes)
    }
    /// Sends a request and reads its response.
    pub fn request(&mut self, method: &str, host: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> std::io::Result<Reply> {
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !body.is_empty() {
            head.push_str(&format!("content-length: {}\r\n", body.len()));
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(body);
        self.send(&bytes)?;
        self.read(method == "HEAD")
    }
    /// Reads one final response (1xx are skipped).
    pub fn read(&mut self, head_only: bool) -> std::io::Result<Reply> {
        loop {
            let reply = self.read_any(head_only)?;
            if reply.status >= 200 || reply.status == 101 {
                return Ok(reply);
            }
        }
    }
    /// Reads one response, 1xx included.
    pub fn read_any(&mut self, head_only: bool) -> std::io::Result<Reply> {
        let line = self.line()?;
        let status = line.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or_else(|| bad(&line))?;
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').ok_or_else(|| bad(&line))?;
            headers.push((name.to_ascii_lowercase(), value.trim().to_string()));
        }
        let mut reply = Reply { status, headers, body: Vec::new() };
        if head_only || status < 200 || status == 204 || status == 304 {
            return Ok(reply);
        }
        if reply.header("transfer-encoding") == Some("chunked") {
            loop {
                let line = self.line()?;
                let size = usize::from_str_radix(line.split(';').next().unwrap_or(""), 16).map_err(|_| bad(&line))?;
                let mut chunk = vec![0; size];
                self.reader.read_exact(&mut chunk)?;
                reply.body.extend_from_slice(&chunk);
                if size == 0 {
                    loop {
                        let line = self.line()?;
                        let Some((name, value)) = line.split_once(':') else { break };
                        reply.headers.push((name.to_ascii_lowercase(), value.trim().to_string()));
                    }
                    break;
                }
                self.line()?;
            }
        } else if let Some(length) = reply.header("content-length").map(|l| l.parse().map_err(|_| bad(l))) {
            reply.body = vec![0; length?];
            self.reader.read_exact(&mut reply.body)?;
        } else {
            self.reader.read_to_end(&mut reply.body)?;
        }
        Ok(reply)
    }
    /// Raw bytes as they come, at most `limit`.
    pub fn read_raw(&mut self, limit: usize) -> std::io::Result<Vec<u8>> {
        let mut buffer = vec![0; limit];
        let n = self.reader.read(&mut buffer)?;
        buffer.truncate(n);
        Ok(buffer)
    }
    /// Whether the peer has closed (waits for it up to the read timeout).
    pub fn is_closed(&mut self) -> bool {
        matches!(self.reader.fill_buf(), Ok([]) | Err(_))
    }
    fn line(&mut self) -> std::io::Result<String> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            return Err(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "connection closed"));
        }
        Ok(line.trim_end_matches(['\r', '\n']).to_string())
    }
}

fn bad(line: &str) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidData, format!("not HTTP: {line:?}"))
}

/// One GET on a connection of its own.
pub fn get(address: SocketAddr, host: &str, path: &str) -> std::io::Result<Reply> {
    request(address, "GET", host, path, &[], &[])
}

/// One request on a connection of its own.
pub fn request(address: SocketAddr, method: &str, host: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> std::io::Result<Reply> {
    Connection::open(address)?.request(method, host, path, headers, body)
}
