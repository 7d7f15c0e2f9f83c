//! Envoy's command line: every flag of Envoy 1.40, those that mean nothing here included. Read once by `main`.

use crate::logger::{COMPONENTS, Level};
use std::ffi::OsString;
use std::time::Duration;

/// The Envoy version whose API and behaviour this is; istioctl and control planes read it.
pub const ENVOY_VERSION: (u32, u32, u32) = (1, 40, 0);

/// `--mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    #[default]
    Serve,
    /// Compile everything, print every problem, exit.
    Validate,
    /// As serve, but exit once the listeners would have started.
    InitOnly,
}

/// `--drain-strategy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DrainStrategy {
    #[default]
    Gradual,
    Immediate,
}

/// `--local-address-ip-version`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IpVersion {
    #[default]
    V4,
    V6,
}

/// The command line, in Envoy's words. Defaults are Envoy's.
#[derive(Clone, Debug)]
pub struct Args {
    pub config_path: String,
    pub config_yaml: String,
    pub mode: Mode,
    /// Workers; at least 1.
    pub concurrency: usize,
    pub allow_unknown_static_fields: bool,
    pub reject_unknown_dynamic_fields: bool,
    pub ignore_unknown_dynamic_fields: bool,
    pub skip_deprecated_logs: bool,
    pub admin_address_path: String,
    pub local_address_ip_version: IpVersion,
    pub log_level: Level,
    /// Component and level, in the order given.
    pub component_log_level: Vec<(String, Level)>,
    /// The text of `--component-log-level`, as server_info shows it.
    pub component_log_level_text: String,
    pub log_format: String,
    /// Whether `--log-format` was given; `application_log_config` and it exclude each other.
    pub log_format_set: bool,
    pub log_format_escaped: bool,
    pub log_path: String,
    pub service_cluster: String,
    pub service_node: String,
    pub service_zone: String,
    pub file_flush_interval: Duration,
    /// Bytes in KiB after which access logs flush early.
    pub file_flush_min_size_kb: u32,
    pub drain_time: Duration,
    pub drain_strategy: DrainStrategy,
    pub parent_shutdown_time: Duration,
    pub restart_epoch: u32,
    pub base_id: u32,
    pub use_dynamic_base_id: bool,
    pub base_id_path: String,
    pub disable_hot_restart: bool,
    pub skip_hot_restart_on_no_parent: bool,
    pub skip_hot_restart_parent_stats: bool,
    pub enable_mutex_tracing: bool,
    pub cpuset_threads: bool,
    pub disabled_extensions: Vec<String>,
    pub enable_fine_grain_logging: bool,
    pub log_stacktrace_single_entry: bool,
    pub socket_path: String,
    pub socket_mode: u32,
    pub enable_core_dump: bool,
    /// `tag:value` pairs added to every stat.
    pub stats_tag: Vec<(String, String)>,
}

/// spdlog pattern that Envoy logs with.
pub const DEFAULT_LOG_FORMAT: &str = "[%Y-%m-%d %T.%e][%t][%l][%n] [%g:%#] %v";

impl Default for Args {
    fn default() -> Self {
        Self {
            config_path: String::new(),
            config_yaml: String::new(),
            mode: Mode::Serve,
            concurrency: 1,
            allow_unknown_static_fields: false,
            reject_unknown_dynamic_fields: false,
            ignore_unknown_dynamic_fields: false,
            skip_deprecated_logs: false,
            admin_address_path: String::new(),
            local_address_ip_version: IpVersion::V4,
            log_level: Level::Info,
            component_log_level: Vec::new(),
            component_log_level_text: String::new(),
            log_format: DEFAULT_LOG_FORMAT.to_string(),
            log_format_set: false,
            log_format_escaped: false,
            log_path: String::new(),
            service_cluster: String::new(),
            service_node: String::new(),
            service_zone: String::new(),
            file_flush_interval: Duration::from_secs(10),
            file_flush_min_size_kb: 64,
            drain_time: Duration::from_secs(600),
            drain_strategy: DrainStrategy::Gradual,
            parent_shutdown_time: Duration::from_secs(900),
            restart_epoch: 0,
            base_id: 0,
            use_dynamic_base_id: false,
            base_id_path: String::new(),
            disable_hot_restart: false,
            skip_hot_restart_on_no_parent: false,
            skip_hot_restart_parent_stats: false,
            enable_mutex_tracing: false,
            cpuset_threads: false,
            disabled_extensions: Vec::new(),
            enable_fine_grain_logging: false,
            log_stacktrace_single_entry: false,
            socket_path: "@envoy_domain_socket".to_string(),
            socket_mode: 0,
            enable_core_dump: false,
            stats_tag: Vec::new(),
        }
    }
}

/// What the command line asks for.
#[derive(Debug)]
pub enum Parsed {
    Run(Box<Args>),
    /// Print this to stdout and exit 0.
    Print(String),
}

/// Flags with a value: long name, short name, description.
const VALUES: &[(&str, Option<char>, &str)] = &[
    ("config-path", Some('c'), "Path to configuration file"),
    ("config-yaml", None, "Inline YAML configuration, merges with the contents of --config-path"),
    ("mode", None, "One of 'serve' (default), 'validate' (check the configuration and exit) or 'init_only'"),
    ("concurrency", None, "# of worker threads to run; 0 for one per core. Default: the cores that affinity and cgroup grant"),
    ("log-level", Some('l'), "Log levels: [trace][debug][info][warning|warn][error][critical][off]. Default is [info]"),
    ("component-log-level", None, "Comma-separated list of component log levels. For example upstream:debug,config:trace"),
    ("log-format", None, "Log message format in spdlog syntax. Default is \"[%Y-%m-%d %T.%e][%t][%l][%n] [%g:%#] %v\""),
    ("log-path", None, "Path to logfile"),
    ("drain-time-s", None, "Drain time of SIGTERM, of listeners that are removed or changed, and of /drain_listeners, in seconds"),
    ("drain-strategy", None, "Drain sequence behaviour, one of 'gradual' (default) or 'immediate'"),
    ("parent-shutdown-time-s", None, "Accepted; there is no hot restart"),
    ("service-cluster", None, "Cluster name of the node"),
    ("service-node", None, "Node name"),
    ("service-zone", None, "Zone name of the node"),
    ("local-address-ip-version", None, "The local IP address version (v4 or v6)"),
    ("admin-address-path", None, "Path to which the admin address is written"),
    ("file-flush-interval-msec", None, "Interval for log flushing in msec"),
    ("file-flush-min-size-kb", None, "Minimum size in KB for log flushing"),
    ("disable-extensions", None, "Comma-separated list of extensions to disable"),
    ("stats-tag", None, "tag:value that every stat carries (accepted multiple times)"),
    ("restart-epoch", None, "Accepted; there is no hot restart"),
    ("base-id", None, "Accepted; there is no hot restart"),
    ("base-id-path", None, "Path to which the base ID is written"),
    ("socket-path", None, "Accepted; there is no hot restart"),
    ("socket-mode", None, "Accepted; there is no hot restart"),
];

/// Flags without a value.
const SWITCHES: &[(&str, &str)] = &[
    ("allow-unknown-static-fields", "Allow unknown fields in static configuration"),
    ("allow-unknown-fields", "Allow unknown fields in static configuration (DEPRECATED)"),
    ("reject-unknown-dynamic-fields", "Reject unknown fields in dynamic configuration"),
    ("ignore-unknown-dynamic-fields", "Ignore unknown fields in dynamic configuration"),
    ("skip-deprecated-logs", "Skips the logging of deprecated field warnings"),
    ("disable-hot-restart", "Accepted; there is no hot restart"),
    ("use-dynamic-base-id", "Accepted; there is no hot restart"),
    ("skip-hot-restart-on-no-parent", "Accepted; there is no hot restart"),
    ("skip-hot-restart-parent-stats", "Accepted; there is no hot restart"),
    ("log-format-escaped", "Escape c-style escape sequences in the application logs"),
    ("enable-fine-grain-logging", "Accepted; levels are per component"),
    ("log-stacktrace-single-entry", "Accepted; there are no stack traces in the log"),
    ("enable-mutex-tracing", "Accepted; there is no mutex contention tracing"),
    ("cpuset-threads", "Accepted; affinity is always respected"),
    ("enable-core-dump", "Accepted; use ulimit -c"),
    ("hot-restart-version", "Hot restart compatibility version"),
    ("version", "Displays version information and exits"),
];

/// The version string of `--version` and server_info: revision/Envoy version/status/build type/TLS library.
pub fn version() -> String {
    let build = if cfg!(debug_assertions) { "DEBUG" } else { "RELEASE" };
    let (major, minor, patch) = ENVOY_VERSION;
    format!("{}/{major}.{minor}.{patch}/{}/{build}/{SSL_VERSION}", revision(), REVISION_STATUS)
}
/// `revision.sha` of the build, zeros if it is unknown.
pub fn revision() -> &'static str {
    option_env!("NUNCIO_REVISION").unwrap_or("0000000000000000000000000000000000000000")
}
/// `revision.status`.
pub const REVISION_STATUS: &str = concat!("Nuncio-", env!("CARGO_PKG_VERSION"));
/// `ssl.version`.
pub const SSL_VERSION: &str = "AWS-LC";

/// Reads the command line. The error is the text for stderr; the exit status is then 1.
pub fn parse<I>(arguments: I) -> Result<Parsed, String>
where
    I: IntoIterator<Item = OsString>,
{
    let mut parser = lexopt::Parser::from_iter(arguments);
    let program = parser.bin_name().unwrap_or("nuncio").to_string();
    let mut args = Args::default();
    let mut seen: Vec<String> = Vec::new();
    let mut concurrency = None;
    loop {
        let argument = match parser.next() {
            Ok(Some(argument)) => argument,
            Ok(None) => break,
            Err(lexopt::Error::UnexpectedValue { option, value }) => {
                return Err(parse_error(&format!("{option}={}", value.to_string_lossy()), "Couldn't find match for argument"));
            }
            Err(e) => return Err(parse_error("(unreadable)", &e.to_string())),
        };
        let name = match argument {
            lexopt::Arg::Value(value) => return Err(parse_error(&value.to_string_lossy(), "Couldn't find match for argument")),
            lexopt::Arg::Short('h') => return Ok(Parsed::Print(usage(&program))),
            lexopt::Arg::Short(c) => match VALUES.iter().find(|(_, short, _)| *short == Some(c)) {
                Some((name, ..)) => (*name).to_string(),
                None => return Err(parse_error(&format!("-{c}"), "Couldn't find match for argument")),
            },
            lexopt::Arg::Long("help") => return Ok(Parsed::Print(usage(&program))),
            lexopt::Arg::Long(name) => name.to_string(),
        };
        if seen.contains(&name) && name != "stats-tag" {
            return Err(parse_error(&format!("--{name}"), "Argument already set!"));
        }
        seen.push(name.clone());
        if VALUES.iter().any(|(n, ..)| *n == name) {
            let value = parser.value().map_err(|_| parse_error(&format!("(--{name})"), "Missing a value for this argument!"))?;
            let value = value.into_string().map_err(|_| parse_error(&format!("(--{name})"), "The value is not UTF-8"))?;
            value_flag(&mut args, &mut concurrency, &name, value)?;
        } else {
            match name.as_str() {
                "version" => return Ok(Parsed::Print(format!("\n{program}  version: {}\n", version()))),
                "hot-restart-version" => return Ok(Parsed::Print("disabled\n".to_string())),
                _ if !switch(&mut args, &name) => return Err(parse_error(&format!("--{name}"), "Couldn't find match for argument")),
                _ => {}
            }
        }
    }
    args.concurrency = match concurrency {
        Some(0) => crate::cores::online(),
        Some(n) => n as usize,
        None => crate::cores::granted(),
    }
    .max(1);
    Ok(Parsed::Run(Box::new(args)))
}

fn switch(args: &mut Args, name: &str) -> bool {
    let field = match name {
        "allow-unknown-static-fields" | "allow-unknown-fields" => &mut args.allow_unknown_static_fields,
        "reject-unknown-dynamic-fields" => &mut args.reject_unknown_dynamic_fields,
        "ignore-unknown-dynamic-fields" => &mut args.ignore_unknown_dynamic_fields,
        "skip-deprecated-logs" => &mut args.skip_deprecated_logs,
        "disable-hot-restart" => &mut args.disable_hot_restart,
        "use-dynamic-base-id" => &mut args.use_dynamic_base_id,
        "skip-hot-restart-on-no-parent" => &mut args.skip_hot_restart_on_no_parent,
        "skip-hot-restart-parent-stats" => &mut args.skip_hot_restart_parent_stats,
        "log-format-escaped" => &mut args.log_format_escaped,
        "enable-fine-grain-logging" => &mut args.enable_fine_grain_logging,
        "log-stacktrace-single-entry" => &mut args.log_stacktrace_single_entry,
        "enable-mutex-tracing" => &mut args.enable_mutex_tracing,
        "cpuset-threads" => &mut args.cpuset_threads,
        "enable-core-dump" => &mut args.enable_core_dump,
        _ => return false,
    };
    *field = true;
    true
}

fn value_flag(args: &mut Args, concurrency: &mut Option<u32>, name: &str, value: String) -> Result<(), String> {
    let number = || {
        let parsed: Result<u32, _> = value.parse();
        parsed.map_err(|_| parse_error(&format!("(--{name})"), &format!("Couldn't read argument value from string '{value}'")))
    };
    let seconds = || number().map(|n| Duration::from_secs(u64::from(n)));
    match name {
        "config-path" => args.config_path = value,
        "config-yaml" => args.config_yaml = value,
        "mode" => {
            args.mode = match value.as_str() {
                "serve" => Mode::Serve,
                "validate" => Mode::Validate,
                "init_only" => Mode::InitOnly,
                _ => return Err(format!("error: unknown mode '{value}'")),
            }
        }
        "concurrency" => *concurrency = Some(number()?),
        "log-level" => args.log_level = level(&value)?,
        "component-log-level" => {
            args.component_log_level = component_levels(&value)?;
            args.component_log_level_text = value;
        }
        "log-format" => {
            args.log_format = value;
            args.log_format_set = true;
        }
        "log-path" => args.log_path = value,
        "drain-time-s" => args.drain_time = seconds()?,
        "drain-strategy" => {
            args.drain_strategy = match value.as_str() {
                "gradual" => DrainStrategy::Gradual,
                "immediate" => DrainStrategy::Immediate,
                _ => return Err(format!("error: unknown drain-strategy '{value}'")),
            }
        }
        "parent-shutdown-time-s" => args.parent_shutdown_time = seconds()?,
        "service-cluster" => args.service_cluster = value,
        "service-node" => args.service_node = value,
        "service-zone" => args.service_zone = value,
        "local-address-ip-version" => {
            args.local_address_ip_version = match value.as_str() {
                "v4" => IpVersion::V4,
                "v6" => IpVersion::V6,
                _ => return Err(format!("error: unknown IP address version '{value}'")),
            }
        }
        "admin-address-path" => args.admin_address_path = value,
        "file-flush-interval-msec" => args.file_flush_interval = Duration::from_millis(u64::from(number()?)),
        "file-flush-min-size-kb" => args.file_flush_min_size_kb = number()?,
        "disable-extensions" => {
            args.disabled_extensions = value.split(',').map(str::trim).filter(|s| !s.is_empty()).map(str::to_string).collect();
        }
        "stats-tag" => args.stats_tag.push(stats_tag(&value, &args.stats_tag)?),
        "restart-epoch" => args.restart_epoch = number()?,
        "base-id" => args.base_id = number()?,
        "base-id-path" => args.base_id_path = value,
        "socket-path" => args.socket_path = value,
        "socket-mode" => {
            args.socket_mode = u32::from_str_radix(&value, 8).map_err(|_| format!("error: invalid socket-mode '{value}'"))?;
        }
        _ => return Err(parse_error(&format!("--{name}"), "Couldn't find match for argument")),
    }
    Ok(())
}

fn level(text: &str) -> Result<Level, String> {
    Level::parse(text).ok_or_else(|| format!("error: invalid log level specified '{text}'"))
}

fn component_levels(text: &str) -> Result<Vec<(String, Level)>, String> {
    let mut levels = Vec::new();
    for part in text.split(',').filter(|p| !p.is_empty()) {
        let Some((component, lvl)) = part.split_once(':').filter(|(_, l)| !l.contains(':')) else {
            return Err(format!("error: component log level not correctly specified '{part}'"));
        };
        let lvl = level(lvl)?;
        if !COMPONENTS.contains(&component) {
            return Err(format!("error: invalid component specified '{component}'"));
        }
        levels.push((component.to_string(), lvl));
    }
    Ok(levels)
}

fn stats_tag(text: &str, known: &[(String, String)]) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').unwrap_or((text, ""));
    if value.is_empty() || value.contains('.') || name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
        return Err(format!("error: misformatted stats-tag '{text}'"));
    }
    if known.iter().any(|(n, v)| n == name && v != value) {
        return Err(format!("error: multiple values for stats-tag '{name}'"));
    }
    Ok((name.to_string(), value.to_string()))
}

fn parse_error(argument: &str, what: &str) -> String {
    format!("PARSE ERROR: Argument: {argument}\n             {what}\n\nFor complete USAGE and HELP type: \n   nuncio --help\n")
}

fn usage(program: &str) -> String {
    let mut text = format!("\nUSAGE: \n\n   {program} [flags]\n\nWhere: \n\n");
    for (name, short, about) in VALUES {
        let short = short.map(|c| format!("-{c} <string>,  ")).unwrap_or_default();
        text.push_str(&format!("   {short}--{name} <value>\n     {about}\n\n"));
    }
    for (name, about) in SWITCHES {
        text.push_str(&format!("   --{name}\n     {about}\n\n"));
    }
    text.push_str("   -h,  --help\n     Displays usage information and exits.\n\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(line: &str) -> Result<Args, String> {
        match parse(std::iter::once("nuncio").chain(line.split_whitespace()).map(OsString::from))? {
            Parsed::Run(args) => Ok(*args),
            Parsed::Print(text) => Err(text),
        }
    }

    #[test]
    fn takes_what_pilot_agent_passes() {
        let args = run("-c etc/istio/proxy/envoy-rev.json --drain-time-s 45 --drain-strategy immediate --local-address-ip-version v4 \
             --file-flush-interval-msec 1000 --disable-hot-restart --allow-unknown-static-fields -l warning \
             --component-log-level misc:error --skip-deprecated-logs --enable-core-dump --concurrency 2 --config-yaml {}")
        .unwrap();
        assert_eq!(args.config_path, "etc/istio/proxy/envoy-rev.json");
        assert_eq!((args.drain_time.as_secs(), args.drain_strategy, args.concurrency), (45, DrainStrategy::Immediate, 2));
        assert_eq!((args.log_level, args.component_log_level), (Level::Warning, vec![("misc".to_string(), Level::Error)]));
        assert!(args.allow_unknown_static_fields && args.skip_deprecated_logs && args.enable_core_dump);
    }

    #[test]
    fn every_listed_flag_is_known_in_both_forms() {
        for (name, ..) in VALUES {
            let value = match *name {
                "mode" => "validate",
                "log-level" => "warn",
                "component-log-level" => "http:debug",
                "drain-strategy" => "gradual",
                "local-address-ip-version" => "v6",
                "stats-tag" => "a:b",
                _ => "7",
            };
            run(&format!("--{name} {value}")).unwrap();
            run(&format!("--{name}={value}")).unwrap();
        }
        for (name, _) in SWITCHES.iter().filter(|(n, _)| !n.ends_with("version")) {
            run(&format!("--{name}")).unwrap();
        }
    }

    #[test]
    fn errors_read_as_envoys() {
        for (line, want) in [
            ("--foo", "PARSE ERROR: Argument: --foo\n             Couldn't find match for argument"),
            ("--concurrency x", "PARSE ERROR: Argument: (--concurrency)\n             Couldn't read argument value from string 'x'"),
            ("--concurrency", "PARSE ERROR: Argument: (--concurrency)\n             Missing a value for this argument!"),
            ("-c a -c b", "Argument already set!"),
            ("positional", "PARSE ERROR: Argument: positional"),
            ("--disable-hot-restart=1", "PARSE ERROR: Argument: --disable-hot-restart=1"),
            ("--mode bad", "error: unknown mode 'bad'"),
            ("-l nope", "error: invalid log level specified 'nope'"),
            ("--component-log-level nope:info", "error: invalid component specified 'nope'"),
            ("--stats-tag a", "error: misformatted stats-tag 'a'"),
        ] {
            let got = run(line).unwrap_err();
            assert!(got.contains(want), "{line}: {got}");
        }
    }

    #[test]
    fn version_has_envoys_five_parts() {
        let text = run("--version").unwrap_err();
        let parts: Vec<_> = text.trim().split("version: ").nth(1).unwrap().split('/').collect();
        assert_eq!((parts.len(), parts[1]), (5, "1.40.0"));
    }
}
