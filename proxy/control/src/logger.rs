//! The application log: backend of the `log` crate with Envoy's component names, levels per component that change live
//! (`/logging`), spdlog patterns or JSON, to stderr or a file that SIGUSR1 reopens. Used from every thread.

use crate::log_format::{Line, Pattern};
use log::{Log, Metadata, Record};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError, RwLock};

/// Envoy's log levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    Trace,
    Debug,
    Info,
    Warning,
    Error,
    Critical,
    Off,
}

impl Level {
    const ALL: [Self; 7] = [Self::Trace, Self::Debug, Self::Info, Self::Warning, Self::Error, Self::Critical, Self::Off];
    /// As in `-l` and `/logging?level=`; `warn` is `warning`.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|l| l.name() == text).or_else(|| (text == "warn").then_some(Self::Warning))
    }
    /// As spdlog's `%l`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Trace => "trace",
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
            Self::Critical => "critical",
            Self::Off => "off",
        }
    }
    fn from_u8(n: u8) -> Self {
        Self::ALL.get(usize::from(n)).copied().unwrap_or(Self::Off)
    }
    fn of(level: log::Level) -> Self {
        match level {
            log::Level::Trace => Self::Trace,
            log::Level::Debug => Self::Debug,
            log::Level::Info => Self::Info,
            log::Level::Warn => Self::Warning,
            log::Level::Error => Self::Error,
        }
    }
    fn filter(self) -> log::LevelFilter {
        match self {
            Self::Trace => log::LevelFilter::Trace,
            Self::Debug => log::LevelFilter::Debug,
            Self::Info => log::LevelFilter::Info,
            Self::Warning => log::LevelFilter::Warn,
            Self::Error => log::LevelFilter::Error,
            Self::Critical | Self::Off => log::LevelFilter::Off,
        }
    }
}

/// Envoy's logger names, as `/logging` lists them.
pub const COMPONENTS: &[&str] = &[
    "admin",
    "alternate_protocols_cache",
    "assert",
    "aws",
    "backtrace",
    "basic_auth",
    "cache_filter",
    "client",
    "compression",
    "config",
    "conn_handler",
    "connection",
    "credential_injector",
    "decompression",
    "dns",
    "dubbo",
    "dynamic_forward_proxy",
    "dynamic_modules",
    "envoy_bug",
    "ext_authz",
    "ext_proc",
    "file",
    "filter",
    "forward_proxy",
    "geolocation",
    "golang",
    "grpc",
    "happy_eyeballs",
    "hc",
    "health_checker",
    "http",
    "http2",
    "hystrix",
    "init",
    "io",
    "ip_tagging",
    "json_rpc",
    "jwt",
    "kafka",
    "key_value_store",
    "local_rate_limit",
    "lua",
    "main",
    "matcher",
    "misc",
    "mongo",
    "multi_connection",
    "notification",
    "oauth2",
    "pool",
    "quic",
    "quic_stream",
    "rate_limit_quota",
    "rbac",
    "rds",
    "redis",
    "rocketmq",
    "router",
    "runtime",
    "secret",
    "stats",
    "stats_sinks",
    "tap",
    "testing",
    "thrift",
    "tracing",
    "udp",
    "upstream",
    "wasm",
    "websocket",
];

/// The component of a record's target: Envoy's name if the target is one, else by the crate that logged.
fn component(target: &str) -> usize {
    let name = |n: &str| COMPONENTS.binary_search(&n).ok();
    if let Some(i) = name(target) {
        return i;
    }
    let mut parts = target.split("::");
    let by_crate = match parts.next().unwrap_or_default() {
        "nuncio_upstream" => "upstream",
        "nuncio_route" => "router",
        "nuncio_hcm" | "nuncio_http" | "httparse" => "http",
        "h2" => "http2",
        "nuncio_tls" | "rustls" | "tokio_rustls" => "connection",
        "nuncio_listener" => "conn_handler",
        "nuncio_tcp" | "nuncio_filters" | "nuncio_istio" => "filter",
        "nuncio_admin" => "admin",
        "nuncio_xds" | "nuncio_proto" => "config",
        "nuncio_format" => "file",
        "nuncio_stats" => "stats",
        "nuncio_control" | "nuncio" => "main",
        "tonic" | "hyper" | "hyper_util" | "tower" => "grpc",
        "hickory_resolver" | "hickory_proto" | "hickory_net" => "dns",
        _ => "misc",
    };
    name(by_crate).unwrap_or(0)
}

enum Output {
    Stderr,
    File { path: String, file: Option<File> },
}

/// The process's logger.
pub struct Logger {
    levels: Vec<AtomicU8>,
    pattern: RwLock<Pattern>,
    output: Mutex<Output>,
}

static LOGGER: OnceLock<Logger> = OnceLock::new();

/// Installs the logger; later calls only change its settings. The error names a log file that cannot be opened.
pub fn init(level: Level, components: &[(String, Level)], pattern: Pattern, path: &str) -> Result<(), String> {
    let output = if path.is_empty() {
        Output::Stderr
    } else {
        let file = open(path).map_err(|e| format!("Failed to open log-file '{path}': {e}"))?;
        Output::File { path: path.to_string(), file: Some(file) }
    };
    let logger = LOGGER.get_or_init(|| Logger {
        levels: COMPONENTS.iter().map(|_| AtomicU8::new(level as u8)).collect(),
        pattern: RwLock::new(pattern.clone()),
        output: Mutex::new(Output::Stderr),
    });
    *logger.output.lock().unwrap_or_else(PoisonError::into_inner) = output;
    set_pattern(pattern);
    // A second call (tests) fails, which is what is wanted: there is one logger.
    let _ = log::set_logger(logger);
    set_all(level);
    for (name, level) in components {
        set(name, *level);
    }
    Ok(())
}

fn open(path: &str) -> std::io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

/// Uses another line format from now on (`application_log_config`).
pub fn set_pattern(pattern: Pattern) {
    if let Some(logger) = LOGGER.get() {
        *logger.pattern.write().unwrap_or_else(PoisonError::into_inner) = pattern;
    }
}

/// Opens the log file again (SIGUSR1, `/reopen_logs`). On failure the old file stays in use.
pub fn reopen() {
    let Some(logger) = LOGGER.get() else { return };
    let mut output = logger.output.lock().unwrap_or_else(PoisonError::into_inner);
    if let Output::File { path, file } = &mut *output
        && let Ok(new) = open(path)
    {
        *file = Some(new);
    }
}

/// Every component with its level.
pub fn levels() -> Vec<(&'static str, Level)> {
    match LOGGER.get() {
        Some(logger) => COMPONENTS.iter().zip(&logger.levels).map(|(n, l)| (*n, Level::from_u8(l.load(Ordering::Relaxed)))).collect(),
        None => Vec::new(),
    }
}

/// Sets the level of all components.
pub fn set_all(level: Level) {
    if let Some(logger) = LOGGER.get() {
        for l in &logger.levels {
            l.store(level as u8, Ordering::Relaxed);
        }
        logger.update_max();
    }
}

/// Sets the level of one component; false if there is none of that name.
pub fn set(name: &str, level: Level) -> bool {
    let (Some(logger), Ok(index)) = (LOGGER.get(), COMPONENTS.binary_search(&name)) else { return false };
    if let Some(l) = logger.levels.get(index) {
        l.store(level as u8, Ordering::Relaxed);
    }
    logger.update_max();
    true
}

/// Logs at Envoy's `critical`, which the `log` crate does not have: what ends the process.
pub fn critical(component: &str, message: std::fmt::Arguments<'_>) {
    match LOGGER.get() {
        Some(logger) => {
            let index = self::component(component);
            if logger.level(index) <= Level::Critical {
                logger.write(index, Level::Critical, &message.to_string(), "", 0);
            }
        }
        None => eprintln!("{message}"),
    }
}

impl Logger {
    fn level(&self, component: usize) -> Level {
        self.levels.get(component).map_or(Level::Off, |l| Level::from_u8(l.load(Ordering::Relaxed)))
    }
    fn update_max(&self) {
        let least = (0..self.levels.len()).map(|i| self.level(i)).min().unwrap_or(Level::Off);
        log::set_max_level(least.filter());
    }
    fn write(&self, component: usize, level: Level, message: &str, file: &str, line: u32) {
        let name = COMPONENTS.get(component).copied().unwrap_or("misc");
        let mut text = String::with_capacity(message.len() + 96);
        self.pattern.read().unwrap_or_else(PoisonError::into_inner).format(&Line { level, name, message, file, line }, &mut text);
        text.push('\n');
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        // There is nowhere to report that the log cannot be written; the proxy goes on.
        let _ = match &mut *output {
            Output::Stderr => std::io::stderr().write_all(text.as_bytes()),
            Output::File { file: Some(file), .. } => file.write_all(text.as_bytes()),
            Output::File { file: None, .. } => Ok(()),
        };
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        Level::of(metadata.level()) >= self.level(component(metadata.target()))
    }
    fn log(&self, record: &Record<'_>) {
        let index = component(record.target());
        let level = Level::of(record.level());
        if level < self.level(index) {
            return;
        }
        let (file, line) = (record.file().unwrap_or_default(), record.line().unwrap_or_default());
        match record.args().as_str() {
            Some(text) => self.write(index, level, text, file, line),
            None => self.write(index, level, &record.args().to_string(), file, line),
        }
    }
    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_are_sorted_and_targets_map_to_them() {
        assert!(COMPONENTS.is_sorted());
        assert_eq!(COMPONENTS[component("config")], "config");
        assert_eq!(COMPONENTS[component("nuncio_upstream::dns")], "upstream");
        assert_eq!(COMPONENTS[component("something_else")], "misc");
    }

    #[test]
    fn writes_by_component_level_and_reopens_a_rotated_file() {
        let path = std::env::temp_dir().join(format!("nuncio-log-{}", std::process::id()));
        let text = path.to_str().unwrap();
        let pattern = Pattern::compile("[%l][%n] %v", false).unwrap();
        init(Level::Warning, &[("dns".into(), Level::Debug)], pattern, text).unwrap();
        log::warn!(target: "config", "one");
        log::info!(target: "config", "not this");
        log::debug!(target: "dns", "two");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "[warning][config] one\n[debug][dns] two\n");
        let moved = path.with_extension("1");
        std::fs::rename(&path, &moved).unwrap();
        reopen();
        assert!(set("config", Level::Info) && !set("nope", Level::Info));
        log::info!(target: "config", "three");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "[info][config] three\n");
        assert!(levels().contains(&("config", Level::Info)));
        assert!(init(Level::Info, &[], Pattern::default(), "/nonexistent/dir/log").unwrap_err().contains("/nonexistent/dir/log"));
        std::fs::remove_file(path).unwrap();
        std::fs::remove_file(moved).unwrap();
    }
}
