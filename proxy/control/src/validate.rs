//! `--mode validate`: compiles everything that the bootstrap holds or names as a file, and prints every problem at once.

use crate::control::Control;
use crate::needs;
use crate::source::{self, Source};
use crate::subscriptions::read_response;
use nuncio_core::diag::{At, Diagnostic, Report, Severity};
use nuncio_proto::Message;
use nuncio_proto::envoy::config::core::v3::ConfigSource;
use nuncio_proto::envoy::config::listener::v3::Listener;
use nuncio_xds::{file, types};
use std::collections::HashSet;
use std::rc::Rc;

/// One problem: which resource, and what is wrong with it.
fn line(resource: &str, finding: &Diagnostic) -> String {
    if finding.path.is_empty() { format!("{resource}: {}; {}", finding.found, finding.remedy) } else { format!("{resource}: {finding}") }
}

/// The errors of a report as lines; warnings are logged.
pub fn lines(resource: &str, report: &Report) -> Vec<String> {
    for warning in report.items.iter().filter(|d| d.severity == Severity::Warning) {
        log::warn!(target: "config", "{resource}: {warning}");
    }
    report.items.iter().filter(|d| d.severity == Severity::Error).map(|d| line(resource, d)).collect()
}

impl Control {
    /// Every problem of static resources and of file sources, in the order of Envoy's initialisation.
    pub(crate) fn validate(self: &Rc<Self>) -> Vec<String> {
        let mut problems = Vec::new();
        let dynamic = self.bootstrap.dynamic_resources.clone().unwrap_or_default();
        let statics = self.statics.borrow().clone();
        let mut names = HashSet::new();
        for cluster in &statics.clusters {
            if !names.insert(cluster.name.as_str()) {
                problems.push(format!("cluster '{}': duplicate name; give each cluster a name of its own", cluster.name));
            }
            if let Err(report) = self.apply_cluster(&cluster.encode_to_vec(), false) {
                problems.extend(lines(&format!("cluster '{}'", cluster.name), &report));
            }
        }
        let mut listeners = statics.listeners;
        if let Some(source) = &dynamic.cds_config {
            for resource in self.file_resources("dynamic_resources.cds_config", source, types::CLUSTER, &mut problems) {
                if let Err(report) = self.apply_cluster(&resource.value, true) {
                    problems.extend(lines(&format!("cluster '{}'", resource.name), &report));
                }
            }
        }
        if let Some(source) = &dynamic.lds_config {
            for resource in self.file_resources("dynamic_resources.lds_config", source, types::LISTENER, &mut problems) {
                match Listener::decode(resource.value.as_ref()) {
                    Ok(listener) => listeners.push(listener),
                    Err(e) => problems.push(format!("listener '{}': is no valid Listener: {e}", resource.name)),
                }
            }
        }
        for listener in &listeners {
            let name = format!("listener '{}'", listener.name);
            let mut report = Report::new();
            let needs = needs::of(listener, &mut report);
            self.listener_manager.borrow().compile(listener, &mut report);
            problems.extend(lines(&name, &report));
            for need in &needs.routes {
                for resource in self.file_resources(&name, &need.source, types::ROUTE, &mut problems) {
                    if let Err(report) = self.compile_routes(&resource) {
                        problems.extend(lines(&format!("route configuration '{}'", resource.name), &report));
                    }
                }
            }
        }
        for secret in &statics.secrets {
            if let Err(report) = self.shared.secrets.apply(secret, None) {
                problems.extend(lines(&format!("secret '{}'", secret.name), &report));
            }
        }
        problems
    }

    /// Resources of a source that is a file; none for others, whose usability was checked with the resource that names them.
    fn file_resources(&self, place: &str, source: &ConfigSource, type_url: &str, problems: &mut Vec<String>) -> Vec<nuncio_xds::Resource> {
        let mut report = Report::new();
        let Some(Source::File(found)) = source::resolve(source, &At::Root, &mut report) else { return Vec::new() };
        match read_response(&found.path) {
            Ok(response) => {
                let update = file::update(response, type_url, &HashSet::new());
                let path = found.path.display();
                problems.extend(update.refused.iter().map(|r| format!("{path}: '{}': {}", r.name, r.reason)));
                update.resources
            }
            Err(reason) => {
                problems.push(format!("{place}: file {}: {reason}", found.path.display()));
                Vec::new()
            }
        }
    }
}
