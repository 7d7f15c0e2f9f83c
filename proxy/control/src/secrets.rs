//! SDS: subscriptions for the names that listeners and clusters refer to, static secrets, files that secrets name. A missing secret
//! fails handshakes and blocks nothing else. Control thread.

use crate::control::Control;
use crate::needs::Need;
use crate::subscriptions::{Kind, Task};
use nuncio_proto::Message;
use nuncio_proto::envoy::config::core::v3::ConfigSource;
use nuncio_proto::envoy::extensions::transport_sockets::tls::v3::Secret;
use nuncio_xds::{Refused, Update};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// How often files that secrets name are looked at.
const FILES: Duration = Duration::from_secs(1);

impl Control {
    /// Subscribes to the secrets that are referred to, and to no others; fills slots whose secret is already known.
    pub(crate) fn sync_secrets(self: &Rc<Self>) {
        let mut needs = Vec::new();
        let mut filled = false;
        for wanted in self.shared.secrets.wanted() {
            match wanted.source {
                None => filled |= !wanted.ready && self.fill_static(&wanted.name),
                Some(source) => {
                    let source = Arc::new(source);
                    filled |= !wanted.ready && self.fill_known(&wanted.name, &source);
                    needs.push(Need { name: wanted.name, source, stat_prefix: "".into(), waits: false });
                }
            }
        }
        let gone = self.subscriptions.sync(self, Kind::Secret, needs);
        for name in gone {
            self.raw(Kind::Secret).borrow_mut().remove(&name);
        }
        if filled {
            self.clusters.secrets_changed();
        }
    }

    /// A secret of the bootstrap, for a slot that refers to one by name alone.
    fn fill_static(&self, name: &str) -> bool {
        let statics = self.statics.borrow();
        let Some(secret) = statics.secrets.iter().find(|s| s.name == name) else { return false };
        match self.shared.secrets.apply(secret, None) {
            Ok(()) => true,
            Err(report) => {
                log::error!(target: "secret", "static secret '{name}' cannot be used: {}", report.summary());
                false
            }
        }
    }

    /// A secret that arrived for another slot before this one was made: the control plane would not send it again.
    fn fill_known(&self, name: &str, source: &Arc<ConfigSource>) -> bool {
        let mut received = false;
        self.subscriptions
            .each(Kind::Secret, name, |w| received |= w.received.get() && (Arc::ptr_eq(&w.source, source) || w.source == *source));
        if !received {
            return false;
        }
        let store = self.raw(Kind::Secret).borrow();
        let Some(raw) = store.get(name).and_then(|e| e.active.as_ref()) else { return false };
        Secret::decode(raw.value.as_ref()).is_ok_and(|secret| self.shared.secrets.apply(&secret, Some(source)).is_ok())
    }

    /// Applies secrets that came by the aggregated stream (`key` none) or by a source of their own.
    pub(crate) fn update_secrets(self: &Rc<Self>, update: &Update, key: Option<&Arc<ConfigSource>>) -> Vec<Refused> {
        let mut refused = Vec::new();
        for resource in &update.resources {
            let secret = match Secret::decode(resource.value.as_ref()) {
                Ok(secret) => secret,
                Err(e) => {
                    refused.push(Refused { name: resource.name.clone(), reason: format!("is no valid Secret: {e}") });
                    continue;
                }
            };
            let mut reason = None;
            for source in self.subscriptions.sources(Kind::Secret, &resource.name, key) {
                if let Err(report) = self.shared.secrets.apply(&secret, Some(&source)) {
                    reason = Some(crate::control::reason(&report));
                }
            }
            match reason {
                None => self.raw(Kind::Secret).borrow_mut().accept(resource, false),
                Some(reason) => refused.push(Refused { name: resource.name.clone(), reason }),
            }
        }
        for name in &update.removed {
            for source in self.subscriptions.sources(Kind::Secret, name, key) {
                self.shared.secrets.remove(name, Some(&source));
            }
            self.raw(Kind::Secret).borrow_mut().remove(name);
        }
        self.clusters.secrets_changed();
        refused
    }

    /// Looks at the files that secrets name (certificates mounted from a Secret volume), for ever.
    pub(crate) fn watch_secret_files(self: &Rc<Self>) -> Task {
        let control = Rc::downgrade(self);
        Task::spawn(async move {
            loop {
                tokio::time::sleep(FILES).await;
                let Some(control) = control.upgrade() else { return };
                for (name, report) in control.shared.secrets.refresh_files() {
                    log::warn!(target: "secret", "secret '{name}': files changed but cannot be used: {}", report.summary());
                }
            }
        })
    }
}
