//! The table of endpoints, `/help`, the page at `/`, and the answer to paths that do not exist.

use crate::endpoints::Action;

/// One endpoint as `/help` shows it.
pub(crate) struct Endpoint {
    pub path: &'static str,
    pub action: Action,
    /// Changes something: POST is required.
    pub mutates: bool,
    pub help: &'static str,
    pub params: &'static [Param],
}

/// A query parameter.
pub(crate) struct Param {
    name: &'static str,
    help: &'static str,
    /// Allowed values, if it is not free text or a mere flag.
    values: &'static [&'static str],
    flag: bool,
}

const fn text(name: &'static str, help: &'static str) -> Param {
    Param { name, help, values: &[], flag: false }
}
const fn flag(name: &'static str, help: &'static str) -> Param {
    Param { name, help, values: &[], flag: true }
}
const fn choice(name: &'static str, help: &'static str, values: &'static [&'static str]) -> Param {
    Param { name, help, values, flag: false }
}
const fn get(path: &'static str, action: Action, help: &'static str, params: &'static [Param]) -> Endpoint {
    Endpoint { path, action, mutates: false, help, params }
}
const fn post(path: &'static str, action: Action, help: &'static str, params: &'static [Param]) -> Endpoint {
    Endpoint { path, action, mutates: true, help, params }
}

const YES_NO: &[&str] = &["y", "n"];

/// Every endpoint, sorted by path. The texts are Envoy's, because tools and people compare them.
pub(crate) const ENDPOINTS: &[Endpoint] = &[
    get("/", Action::Home, "Admin home page", &[]),
    post(
        "/allocprofiler",
        Action::AllocProfiler,
        "enable/disable the allocation profiler (if supported)",
        &[choice("enable", "enable/disable the allocation profiler", YES_NO)],
    ),
    get("/certs", Action::Certs, "print certs on machine", &[]),
    get(
        "/clusters",
        Action::Clusters,
        "upstream cluster status",
        &[text("filter", "Regular expression (Google re2) for filtering clusters by name")],
    ),
    get(
        "/config_dump",
        Action::ConfigDump,
        "dump current Envoy configs",
        &[
            text("resource", "The resource to dump"),
            text(
                "mask",
                "The mask to apply. When both resource and mask are specified, the mask is applied to every element in the desired repeated field so that only a subset of fields are returned. The mask is parsed as a Protobuf::FieldMask",
            ),
            text(
                "name_regex",
                "Dump only the currently loaded configurations whose names match the specified regex. Can be used with both resource and mask query parameters.",
            ),
            flag("include_eds", "Dump currently loaded configuration including EDS. See the response definition for more information"),
        ],
    ),
    get("/contention", Action::Contention, "dump current Envoy mutex contention stats (if enabled)", &[]),
    post("/cpuprofiler", Action::CpuProfiler, "enable/disable the CPU profiler", &[choice("enable", "enables the CPU profiler", YES_NO)]),
    post(
        "/drain_listeners",
        Action::DrainListeners,
        "drain listeners",
        &[
            flag(
                "graceful",
                "When draining listeners, enter a graceful drain period prior to closing listeners. This behaviour and duration is configurable via server options or CLI",
            ),
            flag(
                "skip_exit",
                "When draining listeners, drain the connections but never stop the listeners. The graceful parameter has no effect when this is set, since the drain period only delays stopping the listeners",
            ),
            flag(
                "inboundonly",
                "Drains all inbound listeners. traffic_direction field in envoy_v3_api_msg_config.listener.v3.Listener is used to determine whether a listener is inbound or outbound.",
            ),
        ],
    ),
    post("/healthcheck/fail", Action::HealthcheckFail, "cause the server to fail health checks", &[]),
    post("/healthcheck/ok", Action::HealthcheckOk, "cause the server to pass health checks", &[]),
    get("/heap_dump", Action::HeapDump, "dump current Envoy heap (if supported)", &[]),
    post(
        "/heapprofiler",
        Action::HeapProfiler,
        "enable/disable the heap profiler",
        &[choice("enable", "enable/disable the heap profiler", YES_NO)],
    ),
    get("/help", Action::Help, "print out list of admin commands", &[]),
    get("/hot_restart_version", Action::HotRestartVersion, "print the hot restart compatibility version", &[]),
    get(
        "/init_dump",
        Action::InitDump,
        "dump current Envoy init manager information (experimental)",
        &[text(
            "mask",
            "The desired component to dump unready targets. The mask is parsed as a Protobuf::FieldMask. For example, get the unready targets of all listeners with /init_dump?mask=listener`",
        )],
    ),
    get("/listeners", Action::Listeners, "print listener info", &[choice("format", "File format to use", &["text", "json"])]),
    post(
        "/logging",
        Action::Logging,
        "query/change logging levels",
        &[
            text(
                "paths",
                "Change multiple logging levels by setting to <logger_name1>:<desired_level1>,<logger_name2>:<desired_level2>. If fine grain logging is enabled, use __FILE__ or a glob experision as the logger name. For example, source/common*:warning",
            ),
            text(
                "group",
                "Change given logger group to desired level, set to <logger_group_name>:<desired_level>. logger_group_name must be a logger name.",
            ),
            choice(
                "level",
                "desired logging level, this will change all loggers's level",
                &["", "trace", "debug", "info", "warning", "error", "critical", "off"],
            ),
        ],
    ),
    get("/memory", Action::Memory, "print current allocation/heap usage", &[]),
    get("/memory/tcmalloc", Action::MemoryTcmalloc, "print TCMalloc stats", &[]),
    get("/peak_heap_dump", Action::HeapDump, "dump peak Envoy heap (if supported)", &[]),
    post("/quitquitquit", Action::Quit, "exit the server", &[]),
    get("/ready", Action::Ready, "print server state, return 200 if LIVE, otherwise return 503", &[]),
    post("/reopen_logs", Action::ReopenLogs, "reopen access logs", &[]),
    post("/reset_counters", Action::ResetCounters, "reset all counters to zero", &[]),
    get("/runtime", Action::Runtime, "print runtime values", &[]),
    post(
        "/runtime_modify",
        Action::RuntimeModify,
        "Adds or modifies runtime values as passed in query parameters. To delete a previously added key, use an empty string as the value. Note that deletion only applies to overrides added via this endpoint; values loaded from disk can be modified via override but not deleted. E.g. ?key1=value1&key2=value2...",
        &[],
    ),
    get("/server_info", Action::ServerInfo, "print server version/status information", &[]),
    get(
        "/stats",
        Action::Stats,
        "print server stats",
        &[
            USED_ONLY,
            FILTER,
            INVERT_FILTER,
            choice("format", "Format to use", &["html", "active-html", "text", "json"]),
            choice("type", "Stat types to include.", &["All", "Counters", "Histograms", "Gauges", "TextReadouts"]),
            choice("histogram_buckets", "Histogram bucket display mode", &["cumulative", "disjoint", "detailed", "summary"]),
        ],
    ),
    get(
        "/stats/prometheus",
        Action::Prometheus,
        "print server stats in prometheus format",
        &[
            USED_ONLY,
            flag("text_readouts", "Render text_readouts as new gaugues with value 0 (increases Prometheus data size)"),
            FILTER,
            INVERT_FILTER,
            choice("histogram_buckets", "Histogram bucket display mode", &["cumulative", "summary"]),
        ],
    ),
    get("/stats/recentlookups", Action::RecentLookups, "Show recent stat-name lookups", &[]),
    post("/stats/recentlookups/clear", Action::RecentLookupsChange, "clear list of stat-name lookups and counter", &[]),
    post("/stats/recentlookups/disable", Action::RecentLookupsChange, "disable recording of reset stat-name lookup names", &[]),
    post("/stats/recentlookups/enable", Action::RecentLookupsChange, "enable recording of reset stat-name lookup names", &[]),
];

const USED_ONLY: Param = flag("usedonly", "Only include stats that have been written by system since restart");
const FILTER: Param = text("filter", "Regular expression (Google re2) for filtering stats");
const INVERT_FILTER: Param = flag("invert_filter", "Invert the filter regex");

/// The list of endpoints in text.
pub(crate) fn help(out: &mut Vec<u8>) {
    let mut text = String::from("admin commands are:\n");
    for endpoint in ENDPOINTS {
        let post = if endpoint.mutates { " (POST)" } else { "" };
        text.push_str(&format!("  {}{post}: {}\n", endpoint.path, endpoint.help));
        for param in endpoint.params {
            text.push_str(&format!("      {}: {}", param.name, param.help));
            if !param.values.is_empty() {
                text.push_str(&format!("; One of ({})", param.values.join(", ")));
            }
            text.push('\n');
        }
    }
    out.extend_from_slice(text.as_bytes());
}

const STYLE: &str = "body{font-family:sans-serif;margin:2em;color:#222}table{border-collapse:collapse}\
td{padding:.35em .8em;vertical-align:top;border-top:1px solid #ddd}td:first-child{font-family:monospace;white-space:nowrap}\
form{margin:0}label{display:block;font-size:85%;color:#555;max-width:50em}button{font-family:monospace}";

/// The page at `/`: every endpoint as a link, or as a form where there are parameters or something changes.
pub(crate) fn home(out: &mut Vec<u8>) {
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n<title>Nuncio admin</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>Nuncio admin</h1>\n<table>\n"
    );
    for endpoint in ENDPOINTS.iter().filter(|e| e.path != "/") {
        let path = endpoint.path.trim_start_matches('/');
        let method = if endpoint.mutates { "post" } else { "get" };
        page.push_str("<tr><td>");
        if endpoint.mutates {
            page.push_str(&format!("<form id='{path}' action='{path}' method='post'><button>{path}</button></form>"));
        } else {
            page.push_str(&format!("<a href='{path}'>{path}</a>"));
        }
        page.push_str(&format!("</td><td>{}", escape(endpoint.help)));
        if !endpoint.params.is_empty() {
            // Envoy takes parameters from the query, for POST too; a form sends those of GET there.
            if !endpoint.mutates {
                page.push_str(&format!("<form action='{path}' method='{method}'>"));
            }
            for param in endpoint.params {
                let form = if endpoint.mutates { format!(" form='{path}'") } else { String::new() };
                let field = if param.flag {
                    format!("<input type='checkbox' name='{}'{form}>", param.name)
                } else if param.values.is_empty() {
                    format!("<input type='text' name='{}'{form}>", param.name)
                } else {
                    let options: String = param.values.iter().map(|v| format!("<option>{v}</option>")).collect();
                    format!("<select name='{}'{form}>{options}</select>", param.name)
                };
                page.push_str(&format!("<label>{field} <b>{}</b> {}</label>", param.name, escape(param.help)));
            }
            if !endpoint.mutates {
                page.push_str("<button>show</button></form>");
            }
        }
        page.push_str("</td></tr>\n");
    }
    page.push_str("</table>\n</body>\n</html>\n");
    out.extend_from_slice(page.as_bytes());
}

/// Text as it can stand in HTML.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('\'', "&#39;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_is_envoys() {
        let mut out = Vec::new();
        help(&mut out);
        assert_eq!(String::from_utf8(out).unwrap(), include_str!("../tests/data/help.txt"));
    }

    #[test]
    fn the_page_links_every_endpoint() {
        let mut out = Vec::new();
        home(&mut out);
        let page = String::from_utf8(out).unwrap();
        for endpoint in ENDPOINTS.iter().filter(|e| e.path != "/") {
            assert!(page.contains(&format!("'{}'", &endpoint.path[1..])), "{}", endpoint.path);
        }
        assert!(page.contains("&lt;logger_name1&gt;"));
    }
}
