//! Requirements: the tree of providers of which any or all must have verified a token, laid out flat so that walking it needs no
//! recursion and, as long as the keys are there, no allocation. Compiled on the control thread, run on the workers.
//! Source: Envoy's `jwt_authn/verifier.h`, `JwtRequirement`.

use super::Config;
use super::extract::Locations;
use super::provider::{Audiences, Provider};
use super::status::Status;
use super::verify::{self, Leaf, Mode};
use http::HeaderName;
use nuncio_core::Exchange;
use nuncio_core::diag::{At, Report};
use nuncio_proto::Struct;
use nuncio_proto::envoy::extensions::filters::http::jwt_authn::v3::{JwtRequirement, jwt_requirement::RequiresType};
use smallvec::SmallVec;

/// How deep requirements may be nested.
const DEPTH: usize = 32;

/// A compiled requirement.
#[derive(Debug)]
pub struct Requirement {
    nodes: Box<[Node]>,
    /// Providers of its leaves whose keys come from a server, by index.
    remote: Box<[usize]>,
}

#[derive(Debug)]
struct Node {
    kind: Kind,
    /// Index of the first node after this one and all below it.
    end: usize,
}

#[derive(Debug)]
enum Kind {
    /// Nothing is required.
    Nothing,
    Leaf(Box<Leaf>),
    Any(Tolerance),
    All,
}

/// What an `any` forgives if nothing in it succeeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tolerance {
    Nothing,
    Missing,
    Failed,
}

/// A group that is being walked.
struct Group {
    any: Option<Tolerance>,
    /// What an `any` would say if the rest failed as well.
    worst: Status,
    end: usize,
}

impl Requirement {
    /// Compiles `requirement`; `providers` in the order of their names.
    pub fn compile(requirement: &JwtRequirement, providers: &[(Box<str>, Provider)], at: &At<'_>, report: &mut Report) -> Option<Self> {
        let mut nodes = Vec::new();
        add(requirement, providers, DEPTH, &mut nodes, at, report)?;
        let is_remote = |index: &usize| providers.get(*index).is_some_and(|(_, p)| matches!(p.keys, super::provider::Keys::Remote(_)));
        let mut remote: Vec<usize> = Vec::new();
        for node in &nodes {
            match &node.kind {
                Kind::Leaf(leaf) => remote.extend(leaf.provider.map_or(0..providers.len(), |p| p..p + 1).filter(is_remote)),
                Kind::Nothing | Kind::Any(_) | Kind::All => {}
            }
        }
        Some(Self { nodes: nodes.into(), remote: remote.into() })
    }
    /// Indices of the providers whose keys may have to be fetched.
    pub fn remote(&self) -> &[usize] {
        &self.remote
    }
    /// Whether the tokens of the request are what is required. Claims of good tokens are collected in `extracted`.
    pub async fn check(&self, config: &Config, ex: &mut Exchange, extracted: &mut Struct) -> Status {
        let mut groups = SmallVec::<[Group; 4]>::new();
        let mut at = 0;
        loop {
            let Some(node) = self.nodes.get(at) else { return Status::JwtMissed };
            let mut status = match &node.kind {
                Kind::Nothing => Status::Ok,
                Kind::Leaf(leaf) => verify::leaf(config, leaf, ex, extracted).await,
                Kind::Any(tolerance) => {
                    groups.push(Group { any: Some(*tolerance), worst: Status::JwtMissed, end: node.end });
                    at += 1;
                    continue;
                }
                Kind::All => {
                    groups.push(Group { any: None, worst: Status::Ok, end: node.end });
                    at += 1;
                    continue;
                }
            };
            at = node.end;
            // A group that is decided is a result for the group around it.
            loop {
                let Some(group) = groups.last_mut() else { return status };
                let done = at >= group.end;
                match group.any {
                    None if status == Status::Ok && !done => break,
                    None => {}
                    Some(_) if status == Status::Ok => {}
                    Some(tolerance) => {
                        let mild = |s| matches!(s, Status::JwtMissed | Status::UnknownIssuer);
                        if !mild(status) || group.worst == Status::JwtMissed {
                            group.worst = status;
                        }
                        if !done {
                            break;
                        }
                        let forgiven =
                            tolerance == Tolerance::Failed || (tolerance == Tolerance::Missing && group.worst == Status::JwtMissed);
                        status = if forgiven { Status::Ok } else { group.worst };
                    }
                }
                at = group.end;
                groups.pop();
            }
        }
    }
}

fn add(
    requirement: &JwtRequirement,
    providers: &[(Box<str>, Provider)],
    depth: usize,
    nodes: &mut Vec<Node>,
    at: &At<'_>,
    report: &mut Report,
) -> Option<()> {
    let Some(depth) = depth.checked_sub(1) else {
        report.error(at, "requirements that are nested too deep", format!("nest at most {DEPTH}"));
        return None;
    };
    let everyone =
        |mode| Leaf { provider: None, audiences: None, locations: Locations::union(providers.iter().map(|(_, p)| &p.locations)), mode };
    let leaf = match &requirement.requires_type {
        None => {
            nodes.push(Node { kind: Kind::Nothing, end: nodes.len() + 1 });
            return Some(());
        }
        Some(RequiresType::ProviderName(name)) => named(name, None, providers, &at.field("provider_name"), report)?,
        Some(RequiresType::ProviderAndAudiences(p)) => {
            let audiences = (!p.audiences.is_empty()).then(|| Audiences::new(&p.audiences));
            let at = at.field("provider_and_audiences");
            named(&p.provider_name, audiences, providers, &at.field("provider_name"), report)?
        }
        Some(RequiresType::AllowMissing(())) => everyone(Mode::AllowMissing),
        Some(RequiresType::AllowMissingOrFailed(())) => everyone(Mode::AllowFailed),
        Some(RequiresType::ExtractOnlyWithoutValidation(extract)) => {
            let text = match extract.verification_status_header.as_str() {
                "" => "x-jwt-signature-verified",
                text => text,
            };
            let header = (text != "-").then(|| HeaderName::from_bytes(text.as_bytes())).transpose();
            let Ok(header) = header else {
                let at = at.field("extract_only_without_validation");
                report.error(&at.field("verification_status_header"), format!("{text:?}"), "give a header name");
                return None;
            };
            everyone(Mode::ExtractOnly(header))
        }
        Some(RequiresType::RequiresAny(list)) => {
            let at = at.field("requires_any");
            return group(&list.requirements, true, providers, depth, nodes, &at.field("requirements"), report);
        }
        Some(RequiresType::RequiresAll(list)) => {
            let at = at.field("requires_all");
            return group(&list.requirements, false, providers, depth, nodes, &at.field("requirements"), report);
        }
    };
    nodes.push(Node { kind: Kind::Leaf(Box::new(leaf)), end: nodes.len() + 1 });
    Some(())
}

fn named(name: &str, audiences: Option<Audiences>, providers: &[(Box<str>, Provider)], at: &At<'_>, report: &mut Report) -> Option<Leaf> {
    let found = providers.iter().enumerate().find(|(_, (n, _))| **n == *name);
    let Some((index, (_, provider))) = found else {
        report.error(at, format!("provider \"{name}\", which is not configured"), "name one of providers");
        return None;
    };
    Some(Leaf { provider: Some(index), audiences, locations: provider.locations.clone(), mode: Mode::Strict })
}

fn group(
    list: &[JwtRequirement],
    any: bool,
    providers: &[(Box<str>, Provider)],
    depth: usize,
    nodes: &mut Vec<Node>,
    at: &At<'_>,
    report: &mut Report,
) -> Option<()> {
    if list.len() < 2 {
        report.error(at, format!("{} requirements", list.len()), "give at least two");
        return None;
    }
    let mut tolerance = Tolerance::Nothing;
    if any {
        for requirement in list {
            match (&requirement.requires_type, tolerance) {
                (Some(RequiresType::AllowMissingOrFailed(())), _) => tolerance = Tolerance::Failed,
                (Some(RequiresType::AllowMissing(())), Tolerance::Nothing) => tolerance = Tolerance::Missing,
                _ => {}
            }
        }
    }
    // In an `any` these are no leaves of their own, unless there is nothing else.
    let is_tolerance =
        |r: &JwtRequirement| matches!(r.requires_type, Some(RequiresType::AllowMissingOrFailed(()) | RequiresType::AllowMissing(())));
    if any && list.iter().all(is_tolerance) {
        let one = if tolerance == Tolerance::Failed { RequiresType::AllowMissingOrFailed(()) } else { RequiresType::AllowMissing(()) };
        return add(&JwtRequirement { requires_type: Some(one) }, providers, depth, nodes, at, report);
    }
    let start = nodes.len();
    nodes.push(Node { kind: if any { Kind::Any(tolerance) } else { Kind::All }, end: 0 });
    for (i, requirement) in list.iter().enumerate().filter(|(_, r)| !(any && is_tolerance(r))) {
        add(requirement, providers, depth, nodes, &at.index(i), report)?;
    }
    let end = nodes.len();
    if let Some(node) = nodes.get_mut(start) {
        node.end = end;
    }
    Some(())
}
