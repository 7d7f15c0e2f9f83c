//! What tests of the whole control thread share: the process in a thread, and a plain HTTP client.
#![allow(dead_code)]

use nuncio_control::{Args, Factories, run};
use nuncio_core::registry::Registry;
use nuncio_hcm::HcmFactory;
use nuncio_listener::TerminalRegistry;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A folder of its own for one test, removed with it.
pub struct Folder(pub PathBuf);
impl Folder {
    pub fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("nuncio-control-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }
    pub fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
    /// Written beside and renamed over, as configuration tools do.
    pub fn write(&self, name: &str, text: &str) {
        let new = self.0.join(format!(".{name}"));
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, self.0.join(name)).unwrap();
    }
}
impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The process in a thread.
pub struct Proxy {
    thread: Option<JoinHandle<i32>>,
    pub admin: String,
}

impl Proxy {
    /// Starts with a bootstrap whose admin port is 0.
    pub fn start(dir: &Path, yaml: String) -> Self {
        let path = dir.join("admin-address");
        let args = Args { config_yaml: yaml, admin_address_path: path.display().to_string(), concurrency: 1, ..Args::default() };
        let thread = Some(std::thread::spawn(move || run(args, factories())));
        let admin = eventually("admin", || std::fs::read_to_string(&path).ok().filter(|a| !a.is_empty()));
        Self { thread, admin }
    }
    pub fn get(&self, path: &str) -> String {
        http(&self.admin, "GET", path).unwrap().1
    }
    /// A stat's text; none if there is no such stat.
    pub fn stat(&self, name: &str) -> Option<String> {
        self.get("/stats").lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(": ").map(str::to_string))
    }
    pub fn wait_live(&self) {
        eventually("LIVE", || http(&self.admin, "GET", "/ready").filter(|(status, body)| *status == 200 && body.starts_with("LIVE")));
    }
    /// The address of a listener.
    pub fn listener(&self, name: &str) -> Option<String> {
        self.get("/listeners").lines().find_map(|l| l.strip_prefix(name)?.strip_prefix("::").map(str::to_string))
    }
    /// Ends it by `/quitquitquit`; the exit status.
    pub fn quit(mut self) -> i32 {
        assert_eq!(http(&self.admin, "POST", "/quitquitquit").unwrap().0, 200);
        self.thread.take().unwrap().join().unwrap()
    }
}

pub fn factories() -> Factories {
    Factories {
        registry: Registry::default(),
        terminals: Box::new(|shared| TerminalRegistry {
            factories: vec![Box::new(HcmFactory {
                registry: shared.registry.clone(),
                routes: shared.routes.clone(),
                clusters: shared.clusters.clone(),
                extensions: shared.extensions.clone(),
                discovery: shared.discovery.clone(),
            })],
        }),
        worker_setup: |_| {},
    }
}

/// The fields of a listener, as YAML in one line and without braces: an HTTP connection manager with `fields`, whose HTTP filters are
/// `filters` (each with a comma behind it) and the router.
pub fn listener(name: &str, port: u16, fields: &str, filters: &str) -> String {
    format!(
        r#"name: {name}, address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}, filter_chains: [{{filters: [{{name: hcm, typed_config:
        {{"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: web, {fields},
        http_filters: [{filters}{{name: envoy.filters.http.router, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]}}}}]}}]"#
    )
}

pub fn http(address: &str, method: &str, path: &str) -> Option<(u16, String)> {
    let mut io = TcpStream::connect(address).ok()?;
    io.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    write!(io, "{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").ok()?;
    let mut all = Vec::new();
    io.read_to_end(&mut all).ok()?;
    let text = String::from_utf8_lossy(&all).into_owned();
    let (head, body) = text.split_once("\r\n\r\n")?;
    let body = if head.to_ascii_lowercase().contains("transfer-encoding: chunked") { unchunk(body) } else { body.to_string() };
    Some((head.split(' ').nth(1)?.parse().ok()?, body))
}

fn unchunk(mut body: &str) -> String {
    let mut all = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let Ok(size @ 1..) = usize::from_str_radix(size.trim(), 16) else { break };
        all.push_str(&rest[..size]);
        body = rest[size..].trim_start_matches("\r\n");
    }
    all
}

/// Looks until there is something to see; panics after 20 s.
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(10));
    }
}
