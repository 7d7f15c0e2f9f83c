//! What the binary is made of: every filter and terminal factory that this build knows. Called by `main.rs` on the process's
//! first thread, which becomes the control thread.

use nuncio_control::{Factories, Parsed, Shared};
use nuncio_core::registry::Registry;
use nuncio_hcm::HcmFactory;
use nuncio_listener::TerminalRegistry;
use std::ffi::OsString;
use std::process::ExitCode;

/// Runs the process with `arguments` (the program's name first) to its end.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let status = match nuncio_control::args::parse(arguments) {
        Ok(Parsed::Run(args)) => nuncio_control::run(*args, factories()),
        Ok(Parsed::Print(text)) => {
            println!("{text}");
            0
        }
        Err(problem) => {
            eprintln!("{problem}");
            1
        }
    };
    ExitCode::from(u8::try_from(status).unwrap_or(1))
}

/// Every filter and terminal factory.
fn factories() -> Factories {
    let mut registry = Registry::default();
    nuncio_filters::register(&mut registry);
    nuncio_istio::register(&mut registry);
    nuncio_format::set_loggers(Box::new(nuncio_loggers::Loggers));
    nuncio_format::set_values(Box::new(nuncio_filters::format_values::Values));
    Factories { registry, terminals: Box::new(terminals), worker_setup: nuncio_stats::set_worker }
}

fn terminals(shared: &Shared) -> TerminalRegistry {
    nuncio_filters::secret::install(shared.secrets.clone());
    TerminalRegistry {
        factories: vec![
            Box::new(HcmFactory {
                registry: shared.registry.clone(),
                routes: shared.routes.clone(),
                clusters: shared.clusters.clone(),
                extensions: shared.extensions.clone(),
                discovery: shared.discovery.clone(),
            }),
            Box::new(nuncio_tcp::TcpProxyFactory::new(shared.clusters.clone())),
        ],
    }
}
