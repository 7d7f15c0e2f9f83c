//! Diagnostics of configuration: what is wrong, where, and what to do. Filled by every `compile` function on the control
//! thread; read by NACKs, `--mode validate`, config_dump's error_state and the log.

use std::fmt;

/// Whether the resource is refused or only talked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The resource is refused.
    Error,
    /// The resource is used; a field of it is ignored, as Envoy would.
    Warning,
}

/// One finding.
#[derive(Clone, Debug)]
pub struct Diagnostic {
    pub severity: Severity,
    /// Dotted path from the resource's root: `filter_chains[0].filters[1].typed_config.route_config`.
    pub path: String,
    /// What was found, quoted as it is in the configuration.
    pub found: String,
    /// What is allowed, or what to do.
    pub remedy: String,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.path, self.found, self.remedy)
    }
}

/// Everything found in one resource.
#[derive(Debug, Default)]
pub struct Report {
    pub items: Vec<Diagnostic>,
}

impl Report {
    /// An empty report.
    pub fn new() -> Self {
        Self::default()
    }
    /// Refuses the resource.
    pub fn error(&mut self, at: &At<'_>, found: impl Into<String>, remedy: impl Into<String>) {
        self.push(Severity::Error, at, found.into(), remedy.into());
    }
    /// Says that something is ignored.
    pub fn warning(&mut self, at: &At<'_>, found: impl Into<String>, remedy: impl Into<String>) {
        self.push(Severity::Warning, at, found.into(), remedy.into());
    }
    /// Refuses the resource because `what` is not supported.
    pub fn unsupported(&mut self, at: &At<'_>, what: impl fmt::Display) {
        self.error(at, format!("{what} is not supported by Nuncio"), "remove it; docs/envoy-coverage.md lists what is supported");
    }
    /// Whether the resource must be refused.
    pub fn has_errors(&self) -> bool {
        self.items.iter().any(|d| d.severity == Severity::Error)
    }
    /// Number of findings: remember it before a part, compare after, to know whether that part failed.
    pub fn errors(&self) -> usize {
        self.items.iter().filter(|d| d.severity == Severity::Error).count()
    }
    /// The errors in one line, joined by `; `, for NACK details.
    pub fn summary(&self) -> String {
        let all: Vec<_> = self.items.iter().filter(|d| d.severity == Severity::Error).map(ToString::to_string).collect();
        all.join("; ")
    }
    fn push(&mut self, severity: Severity, at: &At<'_>, found: String, remedy: String) {
        self.items.push(Diagnostic { severity, path: at.to_string(), found, remedy });
    }
}

/// A place in a resource: a linked list on the stack, turned into text only when something is wrong.
#[derive(Clone, Copy, Debug)]
pub enum At<'a> {
    Root,
    Field(&'a At<'a>, &'a str),
    Index(&'a At<'a>, usize),
    Key(&'a At<'a>, &'a str),
}

impl<'a> At<'a> {
    /// Field `name` of the message here.
    pub fn field(&'a self, name: &'a str) -> At<'a> {
        At::Field(self, name)
    }
    /// Element `i` of the repeated field here.
    pub fn index(&'a self, i: usize) -> At<'a> {
        At::Index(self, i)
    }
    /// Entry `key` of the map here.
    pub fn key(&'a self, key: &'a str) -> At<'a> {
        At::Key(self, key)
    }
}

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            At::Root => Ok(()),
            At::Field(At::Root, name) => f.write_str(name),
            At::Field(parent, name) => write!(f, "{parent}.{name}"),
            At::Index(parent, i) => write!(f, "{parent}[{i}]"),
            At::Key(parent, key) => write!(f, "{parent}[\"{key}\"]"),
        }
    }
}
