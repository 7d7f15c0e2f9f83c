//! Tag extraction: which parts of a stat's name are values, such as the cluster in `cluster.a.upstream_cx_total`. Done once per
//! stat, when it is first shown in Prometheus form. Source: Envoy's `config.metrics.v3.TagSpecifier` and its default tags.

use crate::config::Problem;
use nuncio_proto::envoy::config::metrics::v3::{StatsConfig, tag_specifier::TagValue};
use regex::bytes::{Regex, RegexBuilder};
use std::ops::Range;
use std::sync::Arc;

/// A tag's name and value.
pub(crate) type Tag = (Arc<str>, Arc<str>);

/// How one tag is found.
#[derive(Debug)]
struct Extractor {
    name: Arc<str>,
    pattern: Pattern,
    /// First token that the stat's name must have; empty for any. Those with a token run after those without, as in Envoy.
    prefix: String,
    /// A value that is no tag.
    except: &'static str,
}

#[derive(Debug)]
enum Pattern {
    /// Group 1 is taken out of the name; group 2, or else group 1, is the value. `guard` must match too (look-ahead).
    Regex { main: Regex, guard: Option<Regex> },
    /// Dot-separated tokens: `$` is the value, `*` any token, a final `**` one token or more.
    Tokens(Vec<&'static str>),
}

/// Every extractor of the process.
#[derive(Debug, Default)]
pub(crate) struct Extractors {
    fixed: Vec<Tag>,
    all: Vec<Extractor>,
}

const TOKEN: &str = r"[^.]+";
const ADDRESS: &str = r"(?:\d+\.\d+\.\d+\.\d+|\[[_a-fA-F\d]+\])_\d+";

/// Envoy's default tags. `@` stands for a token, `#` for an address, `&` for a listener or cluster with its name.
const DEFAULTS: &[(&str, &str)] = &[
    ("response_code", r"_rq(_(\d{3}))$"),
    ("response_code_class", r"_rq_((\d))xx$"),
    ("dynamo_partition_id", r"^http\.@\.dynamodb\.table\.@\.capacity\.@(\.__partition_id=(\w{7}))$"),
    ("dynamo_operation", r"^http\.@\.dynamodb\.(?:operation|table\.@\.capacity)(\.(@))(?:\.|$)"),
    ("mongo_callsite", "mongo.*.collection.*.callsite.$.**"),
    ("dynamo_table", r"^http\.@\.dynamodb\.(?:table|error)\.((@)\.)"),
    ("mongo_collection", "mongo.*.collection.$.**"),
    ("mongo_cmd", "mongo.*.cmd.$.**"),
    ("grpc_bridge_method", "cluster.*.grpc.*.$.**"),
    ("http_user_agent", "http.*.user_agent.$.**"),
    ("virtual_cluster", "vhost.*.vcluster.$.**"),
    ("fault_downstream_cluster", "http.*.fault.$.**"),
    ("ssl_cipher", r"^listener\..*?\.ssl\.ciphers(\.([\w-]+))$"),
    ("ssl_cipher_suite", r"^cluster\.@\.ssl\.ciphers(\.([\w-]+))$"),
    ("ssl_curve", r"^&\.ssl\.curves(\.([\w-]+))$"),
    ("ssl_sigalg", r"^&\.ssl\.sigalgs(\.([\w-]+))$"),
    ("ssl_version", r"^&\.ssl\.versions(\.([\w.-]+))$"),
    ("tls_certificate", r"^&\.ssl\.certificate\.((@)\.).*$"),
    ("health_check_name", r"^cluster\.@\.health_check(\.name\.(@))\..+"),
    ("grpc_bridge_service", "cluster.*.grpc.$.**"),
    ("tcp_prefix", "tcp.$.**"),
    ("udp_prefix", "udp.$.**"),
    ("clientssl_prefix", "auth.clientssl.$.**"),
    ("ratelimit_prefix", "ratelimit.$.**"),
    ("local_http_ratelimit_prefix", r"^((@)\.)http_local_rate_limit\."),
    ("local_network_ratelimit_prefix", "local_rate_limit.$.**"),
    ("local_listener_ratelimit_prefix", "listener_local_ratelimit.$.**"),
    ("dns_filter_prefix", "dns_filter.$.**"),
    ("connection_limit_prefix", "connection_limit.$.**"),
    ("rbac_policy_name", r"^http\.@\.rbac\.(?:@\.)?policy\.((@)\.)(?:allowed|shadow_allowed|denied|shadow_denied)$"),
    ("rbac_http_prefix", r"^http\.@\.rbac\.((@)\.)"),
    ("rbac_prefix", r"^((@)\.)rbac\."),
    ("ext_authz_prefix", "cluster.*.ext_authz.$.**"),
    ("ext_authz_prefix", "http.*.ext_authz.$.**"),
    ("cluster_name", "cluster.$.**"),
    ("http_conn_manager_prefix", r"^listener\..*?\.http\.((@)\.)"),
    ("http_conn_manager_prefix", "http.$.**"),
    ("worker_id", r"^(?:listener\.(?:#|@)|server|listener_manager|thread_local_cluster_manager)\.worker_((\d+)\.)"),
    ("listener_address", r"^listener\.((#|@)\.)"),
    ("route", "vhost.*.route.$.**"),
    ("virtual_host", "vhost.$.**"),
    ("mongo_prefix", "mongo.$.**"),
    ("rds_route_config", r"^http\.@\.rds\.(([\w./-]+)\.)\w+?$"),
    ("scoped_rds_config", r"^http\.@\.scoped_rds\.(([\w./-]+)\.)\w+?$"),
    ("google_grpc_client_prefix", "grpc.$.**"),
    ("thrift_prefix", "thrift.$.**"),
    ("redis_prefix", "redis.$.**"),
    ("proxy_protocol_version", r"^proxy_proto\.((?:@\.)?versions\.v(\d)\.)\w+$"),
    ("proxy_protocol_prefix", r"^proxy_proto\.((@)\.).+$"),
    ("xds_resource_name", r"^sds\.((@)\.).+"),
];

/// The first token of the names that `regex` can match, if the regex says so: `^cluster\.`.
fn regex_prefix(regex: &str) -> String {
    let Some(rest) = regex.strip_prefix('^') else { return String::new() };
    let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
    let (token, after) = rest.split_at(end);
    let dotted = after.starts_with(r"\.") || after.starts_with(r"(?=\.)") || after == "$";
    if dotted { token.to_string() } else { String::new() }
}

/// `\\w` and `\\d` stand for ASCII, as in RE2, and names are matched as bytes: with Unicode's tables the default tags alone take 2 MB.
/// What has no meaning without Unicode (`\\p{..}`) is compiled with it.
fn build(regex: &str) -> Result<Regex, String> {
    let with = |unicode| RegexBuilder::new(regex).unicode(unicode).build();
    with(false).or_else(|_| with(true)).map_err(|e| e.to_string().replace('\n', " "))
}

/// Compiles a regex in which one look-ahead may follow a literal beginning: `^listener(?=\.)rest` matches where both
/// `^listener\.` and `^listenerrest` match, because the position of the look-ahead is then fixed.
fn compile(regex: &str) -> Result<Pattern, String> {
    let Some((before, rest)) = regex.split_once("(?=") else {
        return Ok(Pattern::Regex { main: build(regex)?, guard: None });
    };
    let literal = before.strip_prefix('^').is_some_and(|b| b.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'));
    let Some((ahead, after)) = rest.split_once(')').filter(|(ahead, _)| literal && !ahead.contains('(')) else {
        return Err("look-ahead is supported only once, after a literal beginning such as ^listener(?=\\.)".to_string());
    };
    let main = build(&format!("{before}{after}"))?;
    Ok(Pattern::Regex { main, guard: Some(build(&format!("{before}(?:{ahead})"))?) })
}

fn tokens(pattern: &[&str], name: &str) -> Option<Range<usize>> {
    let mut start = 0;
    let mut found = None;
    for token in pattern {
        let rest = name.get(start..)?;
        if *token == "**" {
            return (!rest.is_empty()).then_some(found)?;
        }
        let end = start + rest.find('.').unwrap_or(rest.len());
        let text = name.get(start..end)?;
        match *token {
            "*" => {}
            "$" => found = Some(start..end),
            literal if literal != text => return None,
            _ => {}
        }
        start = end + 1;
    }
    (start > name.len()).then_some(found)?
}

impl Extractor {
    /// What is removed from the name, and where the value is.
    fn find(&self, name: &str) -> Option<(Range<usize>, Range<usize>)> {
        match &self.pattern {
            Pattern::Tokens(pattern) => {
                let value = tokens(pattern, name)?;
                // The dot behind goes too.
                Some((value.start..(value.end + 1).min(name.len()), value))
            }
            Pattern::Regex { main, guard } => {
                if guard.as_ref().is_some_and(|g| !g.is_match(name.as_bytes())) {
                    return None;
                }
                let found = main.captures(name.as_bytes())?;
                let removed = found.get(1)?;
                Some((removed.range(), found.get(2).unwrap_or(removed).range()))
            }
        }
    }
}

impl Extractors {
    /// Compiles `stats_tags` and, unless they are switched off, the default tags.
    pub fn compile(config: &StatsConfig, problems: &mut Vec<Problem>) -> Self {
        let mut this = Self::default();
        let overrides = config.allow_default_tag_overrides.unwrap_or(false);
        let own = |name: &str| config.stats_tags.iter().any(|t| t.tag_name == name && t.tag_value.is_some());
        if config.use_all_default_tags.unwrap_or(true) {
            for (tag, pattern) in DEFAULTS {
                let name = format!("envoy.{tag}");
                if overrides && own(&name) {
                    continue;
                }
                this.add_default(&name, pattern, problems);
            }
        }
        for (i, spec) in config.stats_tags.iter().enumerate() {
            let mut problem = |field: &str, found: String, remedy: &str| {
                problems.push(Problem { path: format!("stats_tags[{i}].{field}"), found, remedy: remedy.to_string() });
            };
            let name: Arc<str> = spec.tag_name.as_str().into();
            if name.is_empty() {
                problem("tag_name", "empty tag name".to_string(), "name the tag");
                continue;
            }
            match &spec.tag_value {
                Some(TagValue::FixedValue(value)) => this.fixed.push((name, value.as_str().into())),
                Some(TagValue::Regex(regex)) if !regex.is_empty() => match compile(regex) {
                    Ok(pattern) => this.all.push(Extractor { name, pattern, prefix: regex_prefix(regex), except: "" }),
                    Err(e) => {
                        problem("regex", format!("{regex:?} of tag {name:?}: {e}"), "use a regex without look-around and back-references")
                    }
                },
                _ => {
                    let known = DEFAULTS.iter().filter(|(tag, _)| name.strip_prefix("envoy.") == Some(tag));
                    let mut any = false;
                    for (_, pattern) in known {
                        this.add_default(&name, pattern, problems);
                        any = true;
                    }
                    if !any {
                        let found = format!("no regex or fixed_value, and {name:?} is no default tag");
                        problems.push(Problem {
                            path: format!("stats_tags[{i}]"),
                            found,
                            remedy: "give a regex or a fixed_value".to_string(),
                        });
                    }
                }
            }
        }
        this.all.sort_by_key(|e| !e.prefix.is_empty());
        this
    }
    fn add_default(&mut self, name: &str, pattern: &'static str, problems: &mut Vec<Problem>) {
        let (compiled, prefix) = if pattern.contains(['^', '(']) {
            let regex = pattern.replace('@', TOKEN).replace('#', ADDRESS).replace('&', r"(?:listener|cluster)\..*?");
            (compile(&regex), regex_prefix(&regex))
        } else {
            let tokens: Vec<_> = pattern.split('.').collect();
            let prefix = tokens.first().copied().unwrap_or_default().to_string();
            (Ok(Pattern::Tokens(tokens)), prefix)
        };
        // The admin listener has no address in its name.
        let except = if name == "envoy.listener_address" { "admin" } else { "" };
        match compiled {
            Ok(pattern) => self.all.push(Extractor { name: name.into(), pattern, prefix, except }),
            Err(found) => problems.push(Problem { path: "use_all_default_tags".to_string(), found, remedy: "set it to false".to_string() }),
        }
    }
    /// The tags of `name`, and the name without them.
    pub fn extract(&self, name: &str) -> (String, Vec<Tag>) {
        let first = name.split('.').next().unwrap_or_default();
        let mut tags = self.fixed.clone();
        let mut removed: Vec<Range<usize>> = Vec::new();
        for extractor in self.all.iter().filter(|e| e.prefix.is_empty() || e.prefix == first) {
            if tags.iter().any(|(n, _)| *n == extractor.name) {
                continue;
            }
            let Some((cut, value)) = extractor.find(name) else { continue };
            let value = name.get(value).unwrap_or_default();
            if extractor.except.is_empty() || value != extractor.except {
                tags.push((extractor.name.clone(), value.into()));
                removed.push(cut);
            }
        }
        removed.sort_by_key(|r| r.start);
        let mut rest = String::with_capacity(name.len());
        let mut at = 0;
        for cut in removed {
            if cut.start > at {
                rest.push_str(name.get(at..cut.start).unwrap_or_default());
            }
            at = at.max(cut.end);
        }
        rest.push_str(name.get(at..).unwrap_or_default());
        (rest, tags)
    }
    /// Tags with fixed values, which stats with tags of their own get too.
    pub fn fixed(&self) -> &[Tag] {
        &self.fixed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(extractors: &Extractors, name: &str) -> String {
        let (rest, tags) = extractors.extract(name);
        let tags: Vec<_> = tags.iter().map(|(n, v)| format!("{}={v}", n.trim_start_matches("envoy."))).collect();
        format!("{rest} {}", tags.join(" "))
    }

    #[test]
    fn default_tags() {
        let mut problems = Vec::new();
        let all = Extractors::compile(&StatsConfig::default(), &mut problems);
        assert!(problems.is_empty(), "{problems:?}");
        for (name, expected) in [
            ("cluster.a.upstream_cx_total", "cluster.upstream_cx_total cluster_name=a"),
            ("cluster.a.external.upstream_rq_200", "cluster.external.upstream_rq response_code=200 cluster_name=a"),
            ("cluster.a.upstream_rq_2xx", "cluster.upstream_rq_xx response_code_class=2 cluster_name=a"),
            (
                "listener.127.0.0.1_18802.http.in.g.downstream_rq_1xx",
                "listener.http.g.downstream_rq_xx response_code_class=1 http_conn_manager_prefix=in listener_address=127.0.0.1_18802",
            ),
            (
                "listener.127.0.0.1_18802.worker_0.downstream_cx_total",
                "listener.worker_downstream_cx_total worker_id=0 listener_address=127.0.0.1_18802",
            ),
            ("listener.[__1]_80.downstream_cx_total", "listener.downstream_cx_total listener_address=[__1]_80"),
            ("http.admin.downstream_cx_total", "http.downstream_cx_total http_conn_manager_prefix=admin"),
            ("server.worker_1.watchdog_miss", "server.worker_watchdog_miss worker_id=1"),
            ("listener.admin.downstream_cx_total", "listener.admin.downstream_cx_total "),
            ("server.live", "server.live "),
            ("tcp.x.downstream_cx_total", "tcp.downstream_cx_total tcp_prefix=x"),
            ("cluster", "cluster "),
            ("cluster.größe.upstream_cx_total", "cluster.upstream_cx_total cluster_name=größe"),
            (
                "listener.größe.http.ä.downstream_rq_1xx",
                "listener.http.downstream_rq_xx response_code_class=1 http_conn_manager_prefix=ä listener_address=größe",
            ),
        ] {
            assert_eq!(shown(&all, name), expected);
        }
    }

    #[test]
    fn look_ahead_after_a_literal() {
        let Ok(Pattern::Regex { main, guard: Some(guard) }) = compile(r"^listener(?=\.).*?\.http\.((\w*)\.)") else { panic!() };
        for (name, both) in [("listener.0_80.http.a.x", true), ("listener.http.a.x", true), ("listenerx.http.a.x", false)] {
            assert_eq!(main.is_match(name.as_bytes()) && guard.is_match(name.as_bytes()), both, "{name}");
        }
        assert!(compile(r"a.*(?=b)").is_err());
    }

    #[test]
    fn classes_are_ascii_but_for_those_of_unicode() {
        let matches = |regex: &str, name: &str| build(regex).unwrap().is_match(name.as_bytes());
        assert!(matches(r"^\d+$", "12") && !matches(r"^\d+$", "١٢") && !matches(r"^\w+$", "größe"));
        assert!(matches(r"^\pL+$", "größe"));
        // Unicode's tables would make it thirty times as large.
        let small = RegexBuilder::new(r"^\w+\.\w+\.\w+$").unicode(false).size_limit(20_000).build();
        assert!(small.is_ok() && RegexBuilder::new(r"^\w+\.\w+\.\w+$").size_limit(20_000).build().is_err());
        assert!(build("(").unwrap_err().contains("unclosed group"));
    }
}
