//! URI templates: `envoy.path.match.uri_template` and `envoy.path.rewrite.uri_template`.
//! `/a/{id}/**` matches paths; `/b/{id}` rewrites them from what was captured. Limits are Envoy's: five variables, names of
//! at most 16 characters, `**` at most once and last. Source: `envoy/extensions/path/match/uri_template/v3`.

use nuncio_core::diag::{At, Report};
use nuncio_proto::Any;
use nuncio_proto::envoy::extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig;
use nuncio_proto::envoy::extensions::path::rewrite::uri_template::v3::UriTemplateRewriteConfig;
use regex::bytes;
use std::sync::Arc;

const MAX_VARIABLES: usize = 5;
const MAX_NAME: usize = 16;
/// Characters of a path segment (RFC 3986 pchar without `*`, which is an operator).
const SEGMENT: &str = r"[a-zA-Z0-9\-._~%!$&'()+,;:@=]+";
const REST: &str = r"[a-zA-Z0-9\-._~%!$&'()+,;:@=/]*";

fn is_path_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-._~%!$&'()+,;:@".contains(c)
}

/// A compiled path template.
#[derive(Clone, Debug)]
pub struct UriTemplate {
    regex: bytes::Regex,
    variables: Box<[Box<str>]>,
}

impl UriTemplate {
    /// Compiles the typed configuration of a `path_match_policy`; another type is refused.
    pub fn compile(config: &Any, at: &At<'_>, report: &mut Report) -> Option<Self> {
        let config: UriTemplateMatchConfig = match nuncio_proto::typed::unpack_as(config) {
            Ok(config) => config,
            Err(why) => {
                report.error(at, why, "use envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig");
                return None;
            }
        };
        match Self::new(&config.path_template) {
            Ok(template) => Some(template),
            Err(why) => {
                report.error(
                    &at.field("path_template"),
                    format!("\"{}\": {why}", config.path_template),
                    "see Envoy's UriTemplateMatchConfig for the syntax",
                );
                None
            }
        }
    }
    /// Compiles a template's text. The error says what is wrong with it.
    pub fn new(template: &str) -> Result<Self, String> {
        let mut parser = Parser {
            rest: template,
            regex: r"\A".to_string(),
            variables: Vec::new(),
            rest_matched: false,
            segment_start: false,
            in_variable: false,
        };
        parser.parse()?;
        let Parser { mut regex, variables, .. } = parser;
        regex.push_str(r"\z");
        let regex = bytes::Regex::new(&regex).map_err(|e| e.to_string())?;
        Ok(Self { regex, variables: variables.into() })
    }
    /// Whether `path` (without query) matches.
    pub fn matches(&self, path: &str) -> bool {
        self.regex.is_match(path.as_bytes())
    }
}

struct Parser<'a> {
    rest: &'a str,
    regex: String,
    variables: Vec<Box<str>>,
    /// `**` was there; only text may follow.
    rest_matched: bool,
    /// A segment begins here, where an operator may be.
    segment_start: bool,
    /// Inside of a variable, where nothing but a slash may follow an operator.
    in_variable: bool,
}

impl Parser<'_> {
    fn parse(&mut self) -> Result<(), String> {
        if !self.rest.starts_with('/') {
            return Err("it must begin with /".to_string());
        }
        while let Some(c) = self.rest.chars().next() {
            if c == '{' { self.variable()? } else { self.element(c)? }
        }
        Ok(())
    }
    /// One operator or character outside of a variable, or inside of a variable's pattern.
    fn element(&mut self, c: char) -> Result<(), String> {
        match c {
            '*' => {
                self.operator()?;
                if let Some(rest) = self.rest.strip_prefix("**") {
                    self.rest_matched = true;
                    self.regex.push_str(REST);
                    self.rest = rest;
                } else {
                    self.regex.push_str(SEGMENT);
                    self.rest = self.rest.get(1..).unwrap_or_default();
                }
                if self.in_variable && !(self.rest.is_empty() || self.rest.starts_with('/')) {
                    return Err("text after an operator inside of a variable".to_string());
                }
            }
            '/' => {
                if self.rest.starts_with("//") {
                    return Err("an empty segment".to_string());
                }
                self.regex.push('/');
                self.rest = self.rest.get(1..).unwrap_or_default();
                self.segment_start = true;
            }
            c if is_path_char(c) => {
                self.segment_start = false;
                self.regex.push_str(&regex_syntax::escape(c.encode_utf8(&mut [0; 4])));
                self.rest = self.rest.get(c.len_utf8()..).unwrap_or_default();
            }
            c => return Err(format!("'{c}' is not allowed in a path")),
        }
        Ok(())
    }
    /// An operator must begin its segment, and none may follow `**`.
    fn operator(&mut self) -> Result<(), String> {
        if self.rest_matched {
            return Err("nothing but text may follow **".to_string());
        }
        match std::mem::take(&mut self.segment_start) {
            true => Ok(()),
            false => Err("an operator must begin its segment".to_string()),
        }
    }
    /// `{name}` or `{name=pattern}`.
    fn variable(&mut self) -> Result<(), String> {
        let (inner, after) = self.rest.get(1..).and_then(|r| r.split_once('}')).ok_or("a { without }")?;
        let (name, pattern) = inner.split_once('=').unwrap_or((inner, "*"));
        check_name(name)?;
        self.operator()?;
        if self.variables.iter().any(|v| v.as_ref() == name) {
            return Err(format!("variable {name} is there twice"));
        }
        if self.variables.len() == MAX_VARIABLES {
            return Err(format!("more than {MAX_VARIABLES} variables"));
        }
        if pattern.is_empty() {
            return Err(format!("variable {name} has an empty pattern"));
        }
        self.variables.push(name.into());
        self.regex.push('(');
        self.rest = pattern;
        self.segment_start = true;
        self.in_variable = true;
        while let Some(c) = self.rest.chars().next() {
            if c == '{' {
                return Err("a variable inside a variable".to_string());
            }
            self.element(c)?;
        }
        self.regex.push(')');
        self.rest = after;
        self.segment_start = false;
        self.in_variable = false;
        Ok(())
    }
}

fn check_name(name: &str) -> Result<(), String> {
    let good = name.starts_with(|c: char| c.is_ascii_alphabetic()) && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if !good {
        return Err(format!("\"{name}\" is no variable name"));
    }
    if name.len() > MAX_NAME {
        return Err(format!("variable name {name} is longer than {MAX_NAME}"));
    }
    Ok(())
}

/// A compiled rewrite: text and variables of the template that matched.
#[derive(Clone, Debug)]
pub struct UriTemplateRewrite {
    template: Arc<UriTemplate>,
    parts: Box<[Part]>,
}

#[derive(Clone, Debug)]
enum Part {
    Text(Box<str>),
    Variable(usize),
}

impl UriTemplateRewrite {
    /// Compiles the typed configuration of a `path_rewrite_policy` for a route that matches with `template`.
    pub fn compile(config: &Any, template: &Arc<UriTemplate>, at: &At<'_>, report: &mut Report) -> Option<Self> {
        let config: UriTemplateRewriteConfig = match nuncio_proto::typed::unpack_as(config) {
            Ok(config) => config,
            Err(why) => {
                report.error(at, why, "use envoy.extensions.path.rewrite.uri_template.v3.UriTemplateRewriteConfig");
                return None;
            }
        };
        match Self::new(&config.path_template_rewrite, template) {
            Ok(rewrite) => Some(rewrite),
            Err(why) => {
                let found = format!("\"{}\": {why}", config.path_template_rewrite);
                report.error(&at.field("path_template_rewrite"), found, "use text and {variables} of the path_template");
                None
            }
        }
    }
    /// Compiles a rewrite's text.
    pub fn new(text: &str, template: &Arc<UriTemplate>) -> Result<Self, String> {
        if !text.starts_with('/') {
            return Err("it must begin with /".to_string());
        }
        let mut parts = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            if let Some(after) = rest.strip_prefix('{') {
                let (name, after) = after.split_once('}').ok_or("a { without }")?;
                check_name(name)?;
                let index = template
                    .variables
                    .iter()
                    .position(|v| v.as_ref() == name)
                    .ok_or_else(|| format!("the template has no variable {name}"))?;
                parts.push(Part::Variable(index + 1));
                rest = after;
            } else {
                let (literal, after) = rest.split_at(rest.find('{').unwrap_or(rest.len()));
                if let Some(c) = literal.chars().find(|c| !(is_path_char(*c) || "/=*".contains(*c))) {
                    return Err(format!("'{c}' is not allowed in a path"));
                }
                if literal.contains("//") {
                    return Err("an empty segment".to_string());
                }
                parts.push(Part::Text(literal.into()));
                rest = after;
            }
        }
        Ok(Self { template: template.clone(), parts: parts.into() })
    }
    /// The new path for `path` (without query); none if it does not match the template.
    pub fn rewrite(&self, path: &str) -> Option<String> {
        let found = self.template.regex.captures(path.as_bytes())?;
        let mut out = String::with_capacity(path.len());
        for part in &self.parts {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Variable(n) => out.push_str(found.get(*n).and_then(|m| path.get(m.range())).unwrap_or_default()),
            }
        }
        Some(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_as_documented() {
        for (template, path, wanted) in [
            ("/videos/*/*/*.m4s", "/videos/123414/hls/1080p5000_00001.m4s", true),
            ("/videos/*/*/*.m4s", "/videos/123414/hls/x/1080p5000_00001.m4s", false),
            ("/videos/{id}/**", "/videos/1/a/b", true),
            ("/videos/{id}/**", "/videos/1/", true),
            ("/videos/{id}/**", "/videos//a", false),
            ("/{path=v/*}/hls", "/v/1/hls", true),
            ("/{path=**}.m3u8", "/a/b.m3u8", true),
            ("/{path=**}.m3u8", "/a/b.mpd", false),
            ("/a", "/a", true),
            ("/a", "/a/", false),
            ("/a.b", "/axb", false),
            ("/*", "/a*b", false),
            ("/a/{b}.html", "/a/x.html", true),
            ("/a/*b", "/a/xb", true),
            ("/{a=b}", "/b", true),
            ("/**/x", "/a/b/x", true),
        ] {
            assert_eq!(UriTemplate::new(template).unwrap().matches(path), wanted, "{template} {path}");
        }
        for bad in [
            "a",
            "/**/*",
            "/**/{a}",
            "/{a}{b}",
            "/***",
            "/{1a}",
            "/{a",
            "/a//b",
            "/{a}/{a}",
            "/{a=}",
            "/{a={b}}",
            "/{a}-{b}",
            "/{a=*b}",
            "/a/b*",
            "/a?b",
            "/{abcdefghijklmnopq}",
            "/{a}/{b}/{c}/{d}/{e}/{f}",
        ] {
            assert!(UriTemplate::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn rewrites() {
        let template = Arc::new(UriTemplate::new("/bar/{lang}/{country=a/*}").unwrap());
        let rewrite = |text: &str| UriTemplateRewrite::new(text, &template);
        assert_eq!(rewrite("/{country}/x/{lang}").unwrap().rewrite("/bar/en/a/us").as_deref(), Some("/a/us/x/en"));
        assert_eq!(rewrite("/{lang}").unwrap().rewrite("/other"), None);
        assert!(rewrite("/{nope}").is_err());
        assert!(rewrite("{lang}").is_err());
    }
}
