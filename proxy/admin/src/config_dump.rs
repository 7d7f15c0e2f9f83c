//! `/config_dump`: one section per kind of resource, one element in memory at a time. Source of shapes, masks and errors:
//! `envoy/admin/v3/config_dump.proto` and what Envoy 1.40 answers.

use std::collections::HashSet;
use std::sync::Arc;

use nuncio_proto::json::{Descriptors, Mask, Options, Pretty, Renderer};
use regex::Regex;

use crate::dump_elements::{BOOTSTRAP, Field, SECTIONS, Section, bootstrap};
use crate::endpoints::render;
use crate::reply::{JSON, PLAIN, Reply, Stop};
use crate::request::Request;
use crate::stats::regex_problem;
use crate::{Backend, Resource, ResourceKind};

const PREFIX: &str = "type.googleapis.com/";
/// Masks and secrets: everything is shown redacted.
const OPTIONS: Options = Options { defaults: false, redact: true, compact: false, indent: 0 };

/// What the query asks for.
struct Query {
    names: Option<Regex>,
    mask: Option<Mask>,
    include_eds: bool,
}

impl Query {
    fn shows(&self, section: &Section) -> bool {
        self.include_eds || section.kind != ResourceKind::Endpoint
    }

    fn elements(&self, backend: &dyn Backend, section: &Section) -> impl Iterator<Item = Resource> + use<> {
        let names = self.names.clone();
        backend.resources(section.kind).filter(move |r| names.as_ref().is_none_or(|n| n.is_match(&r.name)))
    }
}

pub(crate) async fn answer(backend: &dyn Backend, request: &Request, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let names = match request.value("name_regex").map(|n| Regex::new(&format!("^(?:{n})$")).map_err(|e| (n, e.to_string()))).transpose() {
        Ok(names) => names,
        Err((pattern, e)) => {
            let why = regex_problem(&e);
            return refuse(reply, 400, &format!("INVALID_ARGUMENT: Error while parsing name_regex from {pattern}: {why}: {pattern}"));
        }
    };
    let query = Query { names, mask: request.value("mask").map(Mask::parse), include_eds: request.has("include_eds") };
    let d = Descriptors::shared();
    match request.value("resource") {
        Some(resource) => dump_resource(backend, &d, &query, resource, reply).await,
        None => dump_all(backend, &d, &query, request.value("mask").unwrap_or_default(), reply).await,
    }
}

fn refuse(reply: &mut Reply<'_>, status: u16, text: &str) -> Result<(), Stop> {
    reply.start(status, PLAIN);
    reply.out.extend_from_slice(text.as_bytes());
    reply.out.push(b'\n');
    Ok(())
}

/// Elements of one repeated field, each as an Any of its own.
async fn dump_resource(
    backend: &dyn Backend,
    d: &Arc<Descriptors>,
    query: &Query,
    resource: &str,
    reply: &mut Reply<'_>,
) -> Result<(), Stop> {
    let found = SECTIONS.iter().filter(|s| query.shows(s)).find_map(|s| s.fields.iter().find(|f| f.name == resource).map(|f| (s, f)));
    let Some((section, field)) = found else {
        if matches!(resource, "bootstrap" | "last_updated" | "version_info") {
            let text = format!("{resource} is not a repeated field. Use ?mask={resource} to get only this field");
            return refuse(reply, 400, &text);
        }
        return refuse(reply, 404, &format!("{resource} not found in config dump"));
    };
    if let Some(mask) = &query.mask {
        // Nothing is written before it is known that the mask fits every type of resource that is there.
        let mut fits = mask.fits_element(d, field.element, "") || mask.paths().iter().any(|p| p.contains('.'));
        let mut types = HashSet::new();
        for (_, type_url) in query.elements(backend, section).filter_map(|r| (field.build)(&r)) {
            if types.insert(type_url.clone()) {
                fits &= mask.fits_element(d, field.element, &type_url);
            }
        }
        if !fits {
            let paths: String = mask.paths().iter().map(|p| format!("paths: {p:?}\n")).collect();
            return refuse(reply, 400, &format!("FieldMask {paths} could not be successfully used."));
        }
    }
    let mut layout = Document::begin(reply);
    for (wire, _) in query.elements(backend, section).filter_map(|r| (field.build)(&r)) {
        let wire = match &query.mask {
            Some(mask) => mask.trim_element(d, field.element, &wire).unwrap_or_default(),
            None => wire,
        };
        layout.config(reply);
        let options = Options { indent: layout.0.level(), ..OPTIONS };
        render(Renderer::any(d.clone(), &format!("{PREFIX}{}", field.element), wire.into(), options), reply).await?;
    }
    layout.end(reply);
    Ok(())
}

/// Every section that the mask fits.
async fn dump_all(backend: &dyn Backend, d: &Arc<Descriptors>, query: &Query, mask: &str, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let fits = |message: &str| query.mask.as_ref().is_none_or(|m| m.fits(d, message));
    let with_bootstrap = fits(BOOTSTRAP);
    let sections: Vec<&Section> = SECTIONS.iter().filter(|s| query.shows(s) && fits(s.message)).collect();
    if query.mask.is_some() && !with_bootstrap && sections.is_empty() {
        return refuse(reply, 400, &format!("FieldMask {mask} could not be successfully applied to any configs."));
    }
    let mut layout = Document::begin(reply);
    if with_bootstrap {
        let wire = bootstrap(backend.bootstrap());
        let wire = query.mask.as_ref().and_then(|m| m.trim(d, BOOTSTRAP, &wire)).unwrap_or(wire);
        layout.config(reply);
        let options = Options { indent: layout.0.level(), ..OPTIONS };
        render(Renderer::any(d.clone(), &format!("{PREFIX}{BOOTSTRAP}"), wire.into(), options), reply).await?;
    }
    for section in sections {
        layout.config(reply);
        layout.0.object(&mut reply.out);
        layout.0.field(&mut reply.out, "@type", &format!("{PREFIX}{}", section.message));
        let selected = |field: &str| query.mask.as_ref().is_none_or(|m| m.selects(field));
        if section.versioned && selected("version_info") {
            let version = backend.version_info(section.kind);
            if !version.is_empty() {
                layout.0.field(&mut reply.out, "version_info", &version);
            }
        }
        for field in section.fields.iter().filter(|f| selected(f.name)) {
            dump_field(backend, d, query, section, field, &mut layout.0, reply).await?;
        }
        layout.0.end(&mut reply.out);
    }
    layout.end(reply);
    Ok(())
}

async fn dump_field(
    backend: &dyn Backend,
    d: &Arc<Descriptors>,
    query: &Query,
    section: &Section,
    field: &Field,
    layout: &mut Pretty,
    reply: &mut Reply<'_>,
) -> Result<(), Stop> {
    let outside = layout.level();
    for (wire, _) in query.elements(backend, section).filter_map(|r| (field.build)(&r)) {
        if layout.level() == outside {
            layout.key(&mut reply.out, field.name);
            layout.list(&mut reply.out);
        }
        layout.item(&mut reply.out);
        let options = Options { indent: layout.level(), ..OPTIONS };
        if let Some(renderer) = Renderer::message(d.clone(), field.element, wire.into(), options) {
            render(renderer, reply).await?;
        }
    }
    if layout.level() > outside {
        layout.end(&mut reply.out);
    }
    Ok(())
}

/// `{"configs": [..]}`, or `{}` if there are none.
struct Document(Pretty);

impl Document {
    fn begin(reply: &mut Reply<'_>) -> Self {
        reply.start(200, JSON);
        let mut layout = Pretty::new();
        layout.object(&mut reply.out);
        Self(layout)
    }

    /// Starts the next element of `configs`.
    fn config(&mut self, reply: &mut Reply<'_>) {
        if self.0.level() == 1 {
            self.0.key(&mut reply.out, "configs");
            self.0.list(&mut reply.out);
        }
        self.0.item(&mut reply.out);
    }

    fn end(mut self, reply: &mut Reply<'_>) {
        while self.0.level() > 0 {
            self.0.end(&mut reply.out);
        }
        reply.out.push(b'\n');
    }
}
