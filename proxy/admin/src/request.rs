//! Requests to the admin port. Envoy's admin port takes what pilot-agent sends: regular expressions with `^ ( | \ $` unescaped
//! in the request line, which strict URI parsers refuse. So the request line is read here: everything between the method and
//! the version is the target.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

/// Longest request head; more is answered 431.
const HEAD_LIMIT: usize = 64 << 10;
/// Longest request body (form values of `/runtime_modify`); more is answered 413.
const BODY_LIMIT: usize = 256 << 10;
const MAX_HEADERS: usize = 100;

/// One request, body included.
#[derive(Debug, Default)]
pub(crate) struct Request {
    pub method: String,
    /// Path and query as sent, without scheme, authority and fragment.
    pub target: String,
    pub host: String,
    pub headers: Vec<(String, Vec<u8>)>,
    pub body: Vec<u8>,
    pub http_10: bool,
    /// The connection stays open after the response.
    pub keep_alive: bool,
    params: Vec<(String, String)>,
}

/// Why no request could be read.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// The peer closed, or the socket failed: nothing to answer.
    Gone,
    /// Answer this status and close.
    Status(u16),
}

impl From<io::Error> for Refusal {
    fn from(_: io::Error) -> Self {
        Self::Gone
    }
}

impl Request {
    /// The path without query, runs of slashes merged.
    pub fn path(&self) -> String {
        let path = self.target.split('?').next().unwrap_or_default();
        let mut merged = String::with_capacity(path.len());
        for c in path.chars() {
            if c != '/' || !merged.ends_with('/') {
                merged.push(c);
            }
        }
        merged
    }

    /// The first value of a query parameter, percent-decoded; `+` is not a space, because filters are regular expressions.
    pub fn param(&self, name: &str) -> Option<&str> {
        self.params.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// As [`Self::param`], but none if the value is empty.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.param(name).filter(|v| !v.is_empty())
    }

    pub fn has(&self, name: &str) -> bool {
        self.param(name).is_some()
    }

    /// Parameters of the query, then of a form in the body, in order.
    pub fn params(&self) -> &[(String, String)] {
        &self.params
    }

    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_slice())
    }
}

/// Reads one request after the other from a connection; bytes of the next request wait in `buffer`.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    buffer: Vec<u8>,
}

impl Reader {
    /// Whether bytes of another request are there already.
    pub fn is_idle(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Waits for bytes.
    pub async fn more(&mut self, io: &mut (impl AsyncRead + Unpin + ?Sized)) -> Result<(), Refusal> {
        self.buffer.reserve(4096);
        if io.read_buf(&mut self.buffer).await? == 0 { Err(Refusal::Gone) } else { Ok(()) }
    }

    /// The next request.
    pub async fn request(&mut self, io: &mut (impl AsyncRead + Unpin + ?Sized)) -> Result<Request, Refusal> {
        let end = loop {
            let blank = self.buffer.iter().take_while(|b| matches!(b, b'\r' | b'\n')).count();
            self.buffer.drain(..blank);
            if let Some(end) = head_end(&self.buffer) {
                break end;
            }
            if self.buffer.len() > HEAD_LIMIT {
                return Err(Refusal::Status(431));
            }
            self.more(io).await?;
        };
        let head: Vec<u8> = self.buffer.drain(..end).collect();
        let mut request = parse_head(&head).ok_or(Refusal::Status(400))?;
        self.body(io, &mut request).await?;
        let form = b"application/x-www-form-urlencoded";
        if request.header("content-type").is_some_and(|v| v.get(..form.len()).is_some_and(|v| v.eq_ignore_ascii_case(form))) {
            // What a browser's form sends in the body means what it means in the query.
            let text = String::from_utf8_lossy(&request.body).into_owned();
            request.params.extend(parse_query(text.trim_end(), true));
        }
        Ok(request)
    }

    async fn body(&mut self, io: &mut (impl AsyncRead + Unpin + ?Sized), request: &mut Request) -> Result<(), Refusal> {
        let chunked = request.header("transfer-encoding").is_some();
        let lengths: Vec<&[u8]> =
            request.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case("content-length")).map(|(_, v)| v.as_slice()).collect();
        match (chunked, lengths.as_slice()) {
            (false, []) => Ok(()),
            (false, [length]) => {
                let length = std::str::from_utf8(length).ok().filter(|l| !l.is_empty() && l.bytes().all(|b| b.is_ascii_digit()));
                let length: u64 = length.and_then(|l| l.parse().ok()).ok_or(Refusal::Status(400))?;
                let length = usize::try_from(length).ok().filter(|l| *l <= BODY_LIMIT).ok_or(Refusal::Status(413))?;
                while self.buffer.len() < length {
                    self.more(io).await?;
                }
                request.body = self.buffer.drain(..length).collect();
                Ok(())
            }
            (true, []) if request.header("transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case(b"chunked")) => {
                self.chunks(io, request).await
            }
            _ => Err(Refusal::Status(400)),
        }
    }

    async fn chunks(&mut self, io: &mut (impl AsyncRead + Unpin + ?Sized), request: &mut Request) -> Result<(), Refusal> {
        loop {
            let (start, size) = loop {
                match httparse::parse_chunk_size(&self.buffer) {
                    Ok(httparse::Status::Complete(found)) => break found,
                    Ok(httparse::Status::Partial) if self.buffer.len() <= HEAD_LIMIT => self.more(io).await?,
                    _ => return Err(Refusal::Status(400)),
                }
            };
            let size = usize::try_from(size).ok().filter(|s| s + request.body.len() <= BODY_LIMIT).ok_or(Refusal::Status(413))?;
            self.buffer.drain(..start);
            if size == 0 {
                // Trailers mean nothing here.
                loop {
                    if self.buffer.starts_with(b"\r\n") {
                        self.buffer.drain(..2);
                        return Ok(());
                    }
                    if let Some(end) = head_end(&self.buffer) {
                        self.buffer.drain(..end);
                        return Ok(());
                    }
                    if self.buffer.len() > HEAD_LIMIT {
                        return Err(Refusal::Status(431));
                    }
                    self.more(io).await?;
                }
            }
            while self.buffer.len() < size + 2 {
                self.more(io).await?;
            }
            request.body.extend(self.buffer.drain(..size));
            if self.buffer.get(..2) != Some(b"\r\n") {
                return Err(Refusal::Status(400));
            }
            self.buffer.drain(..2);
        }
    }
}

/// Where the head ends: after the first empty line.
fn head_end(bytes: &[u8]) -> Option<usize> {
    let mut line = 0;
    for (i, b) in bytes.iter().enumerate() {
        if *b == b'\n' {
            let text = bytes.get(line..i).unwrap_or_default();
            if i > 0 && (text.is_empty() || text == b"\r") {
                return Some(i + 1);
            }
            line = i + 1;
        }
    }
    None
}

fn parse_head(head: &[u8]) -> Option<Request> {
    let split = head.iter().position(|b| *b == b'\n')?;
    let (line, rest) = (head.get(..split)?, head.get(split + 1..)?);
    let line = std::str::from_utf8(line.strip_suffix(b"\r").unwrap_or(line)).ok()?;
    let (method, rest_of_line) = line.split_once(' ')?;
    let (target, version) = rest_of_line.rsplit_once(' ')?;
    let http_10 = match version {
        "HTTP/1.1" => false,
        "HTTP/1.0" => true,
        _ => return None,
    };
    let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    let target = origin_form(target)?;
    if method.is_empty() || !method.bytes().all(is_token) || target.bytes().any(|b| b.is_ascii_control()) {
        return None;
    }
    let mut slots = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let httparse::Status::Complete((_, parsed)) = httparse::parse_headers(rest, &mut slots).ok()? else { return None };
    let headers: Vec<(String, Vec<u8>)> = parsed.iter().map(|h| (h.name.to_string(), h.value.to_vec())).collect();
    let params = target.split_once('?').map(|(_, query)| parse_query(query, false)).unwrap_or_default();
    let mut request = Request { method: method.to_string(), target: target.to_string(), headers, http_10, params, ..Request::default() };
    let hosts: Vec<&[u8]> = request.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case("host")).map(|(_, v)| v.as_slice()).collect();
    request.host = match hosts.as_slice() {
        [host] => String::from_utf8_lossy(host).into_owned(),
        [] if http_10 => String::new(),
        _ => return None,
    };
    let connection = request.header("connection").unwrap_or_default().to_ascii_lowercase();
    let says = |word: &[u8]| connection.split(|b| *b == b',').any(|part| part.trim_ascii() == word);
    request.keep_alive = if http_10 { says(b"keep-alive") } else { !says(b"close") };
    Some(request)
}

/// Path and query of an origin-form or absolute-form target.
fn origin_form(target: &str) -> Option<&str> {
    let target = target.split('#').next().unwrap_or_default();
    if target.starts_with('/') {
        return Some(target);
    }
    let rest = target.strip_prefix("http://").or_else(|| target.strip_prefix("https://"))?;
    Some(rest.find('/').and_then(|at| rest.get(at..)).unwrap_or("/"))
}

fn parse_query(query: &str, plus_is_space: bool) -> Vec<(String, String)> {
    let decode = |text: &str| if plus_is_space { percent_decode(&text.replace('+', " ")) } else { percent_decode(text) };
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).map(|(name, value)| (decode(name), decode(value))).collect()
}

/// Decodes `%41`; what is no escape stays as it is.
fn percent_decode(text: &str) -> String {
    if !text.contains('%') {
        return text.to_string();
    }
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while let Some(b) = bytes.get(i) {
        let hex = |at: usize| bytes.get(at).and_then(|b| char::from(*b).to_digit(16));
        match (b, hex(i + 1), hex(i + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                i += 3;
            }
            _ => {
                out.push(*b);
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(text: &[u8]) -> Result<Request, Refusal> {
        Reader::default().request(&mut &*text).await
    }

    #[tokio::test]
    async fn regular_expressions_in_the_request_line() {
        let line = r"GET /stats?usedonly&filter=^(cluster_manager\.cds|listener_manager\.lds)\.(update_success|update_rejected)$ HTTP/1.1";
        let request = read(format!("{line}\r\nHost: localhost\r\n\r\n").as_bytes()).await.unwrap();
        assert_eq!(request.path(), "/stats");
        assert!(request.has("usedonly"));
        assert_eq!(request.param("filter"), Some(r"^(cluster_manager\.cds|listener_manager\.lds)\.(update_success|update_rejected)$"));
        let request = read(b"GET /stats?filter=a b[c]{2}\"<>`+%5E%zz%4 HTTP/1.1\nhost: x\n\n").await.unwrap();
        assert_eq!(request.param("filter"), Some("a b[c]{2}\"<>`+^%zz%4"));
        assert!(request.keep_alive);
    }

    #[tokio::test]
    async fn forms_of_targets_and_versions() {
        let request = read(b"GET http://a:1/ready?x#y HTTP/1.1\r\nHost: a\r\nConnection: Close\r\n\r\n").await.unwrap();
        assert_eq!((request.path().as_str(), request.keep_alive), ("/ready", false));
        let request = read(b"GET //ready HTTP/1.0\r\n\r\n").await.unwrap();
        assert_eq!((request.path().as_str(), request.http_10, request.keep_alive), ("/ready", true, false));
    }

    #[tokio::test]
    async fn bodies() {
        let form = "Content-Type: application/x-www-form-urlencoded";
        let text = format!("POST /runtime_modify?p HTTP/1.1\r\nHost: x\r\n{form}\r\nContent-Length: 11\r\n\r\nq=5&r=a%20+rest");
        let request = read(text.as_bytes()).await.unwrap();
        let params: Vec<_> = request.params().iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        assert_eq!(params, [("p", ""), ("q", "5"), ("r", "a  ")]);
        let text = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nq=5\r\n2;x\r\n&r\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: y\r\n\r\n";
        let (mut reader, mut io) = (Reader::default(), &text[..]);
        assert_eq!(reader.request(&mut io).await.unwrap().body, b"q=5&r");
        assert_eq!(reader.request(&mut io).await.unwrap().host, "y");
        assert!(matches!(reader.request(&mut io).await, Err(Refusal::Gone)));
    }

    #[tokio::test]
    async fn hostile_requests_are_refused() {
        for text in [
            "BAD\r\n\r\n",
            "GET /\r\n\r\n",
            "GET / HTTP/2.0\r\n\r\n",
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n",
            "G@T / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /\u{7} HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET nowhere HTTP/1.1\r\nHost: a\r\n\r\n",
        ] {
            assert!(matches!(read(text.as_bytes()).await, Err(Refusal::Status(400))), "{text:?}");
        }
        let long = format!("GET /{} HTTP/1.1\r\n", "a".repeat(HEAD_LIMIT + 9));
        assert!(matches!(read(long.as_bytes()).await, Err(Refusal::Status(431))));
        let large = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4294967296\r\n\r\n";
        assert!(matches!(read(large).await, Err(Refusal::Status(413))));
        let large = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nfffffff\r\n";
        assert!(matches!(read(large).await, Err(Refusal::Status(413))));
        let huge = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n";
        assert!(read(huge).await.is_err());
    }
}
