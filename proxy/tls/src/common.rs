//! `CommonTlsContext`: what both sides share. Where certificates and validation contexts come from, and what they are right now.

// Fields that Envoy deprecated are still sent (Istio's match_subject_alt_names) and must be read or refused.
#![allow(deprecated)]

use crate::TlsFailure;
use crate::material::{Identity, Material};
use crate::params::Params;
use crate::pins::Validation;
use crate::secret::{Live, SecretKind, SecretSlot, SecretStore};
use crate::stats::SslStats;
use arc_swap::ArcSwapOption;
use nuncio_core::diag::{At, Report};
use nuncio_proto::envoy::config::core::v3::data_source::Specifier;
use nuncio_proto::envoy::extensions::transport_sockets::tls::v3::{
    CommonTlsContext, SdsSecretConfig, Secret, TlsCertificate, common_tls_context::ValidationContextType, secret,
};
use std::sync::{Arc, Mutex, PoisonError};

/// Where a certificate comes from.
#[derive(Debug)]
pub(crate) enum CertSource {
    Static(Arc<Identity>),
    Slot(Arc<SecretSlot>),
}

/// Where the validation context comes from; both parts are merged if both are there.
#[derive(Debug, Default)]
pub(crate) struct ValidationSource {
    pub fixed: Option<Arc<Validation>>,
    pub slot: Option<Arc<SecretSlot>>,
}

/// A compiled `CommonTlsContext`.
#[derive(Debug)]
pub(crate) struct Common {
    pub params: Params,
    pub certs: Vec<CertSource>,
    pub validation: ValidationSource,
    pub alpn: Vec<Vec<u8>>,
}

/// What the sources hold at one moment.
pub(crate) struct Resolved {
    pub identities: Vec<Arc<Identity>>,
    pub validation: Option<Arc<Validation>>,
}

impl Common {
    /// Compiles; None means refused.
    pub(crate) fn compile(
        proto: Option<&CommonTlsContext>,
        server: bool,
        secrets: &Arc<SecretStore>,
        at: &At<'_>,
        report: &mut Report,
    ) -> Option<Self> {
        let empty = CommonTlsContext::default();
        let proto = proto.unwrap_or(&empty);
        let before = report.errors();
        for (set, name) in [
            (proto.tls_certificate_provider_instance.is_some(), "tls_certificate_provider_instance"),
            (proto.custom_tls_certificate_selector.is_some(), "custom_tls_certificate_selector"),
            (proto.tls_certificate_certificate_provider.is_some(), "tls_certificate_certificate_provider"),
            (proto.tls_certificate_certificate_provider_instance.is_some(), "tls_certificate_certificate_provider_instance"),
            (proto.custom_handshaker.is_some(), "custom_handshaker"),
            (proto.key_log.is_some(), "key_log"),
        ] {
            if set {
                report.unsupported(&at.field(name), name);
            }
        }
        let params = Params::compile(proto.tls_params.as_ref(), server, &at.field("tls_params"), report);
        let mut certs = Vec::new();
        let field = at.field("tls_certificates");
        for (i, cert) in proto.tls_certificates.iter().enumerate() {
            certs.extend(static_certificate(cert, secrets, &field.index(i), report));
        }
        let field = at.field("tls_certificate_sds_secret_configs");
        for (i, config) in proto.tls_certificate_sds_secret_configs.iter().enumerate() {
            certs.extend(slot(config, SecretKind::TlsCertificate, secrets, &field.index(i), report).map(CertSource::Slot));
        }
        let validation = validation(proto.validation_context_type.as_ref(), secrets, at, report);
        let field = at.field("alpn_protocols");
        let mut alpn = Vec::new();
        for (i, text) in proto.alpn_protocols.iter().enumerate() {
            // Envoy allows `h2,http/1.1` in one element.
            for name in text.split(',') {
                if name.is_empty() || name.len() > 255 {
                    report.error(&field.index(i), format!("`{text}`"), "give protocol names of 1 to 255 bytes");
                } else {
                    alpn.push(name.as_bytes().to_vec());
                }
            }
        }
        let (params, validation) = (params?, validation?);
        (report.errors() == before).then_some(Self { params, certs, validation, alpn })
    }

    /// Whether every slot is filled.
    pub(crate) fn ready(&self) -> bool {
        self.slots().all(|s| s.get().is_some())
    }
    fn slots(&self) -> impl Iterator<Item = &Arc<SecretSlot>> {
        let certs = self.certs.iter().filter_map(|c| if let CertSource::Slot(s) = c { Some(s) } else { None });
        certs.chain(&self.validation.slot)
    }
    /// What is in the slots now; the generation of everything that is built from this context.
    pub(crate) fn generation(&self) -> Generation {
        self.slots().map(|s| s.get()).collect()
    }
    /// Whether what was read at compile time is the same, and what comes later comes from the same slots.
    pub(crate) fn same_material(&self, other: &Self) -> bool {
        let same = |(a, b): (&CertSource, &CertSource)| match (a, b) {
            (CertSource::Static(a), CertSource::Static(b)) => a.leaf() == b.leaf(),
            (CertSource::Slot(a), CertSource::Slot(b)) => Arc::ptr_eq(a, b),
            _ => false,
        };
        let fixed = |v: &ValidationSource| v.fixed.as_ref().map(|v| v.digest);
        self.certs.len() == other.certs.len()
            && self.certs.iter().zip(&other.certs).all(same)
            && fixed(&self.validation) == fixed(&other.validation)
    }
    /// Shows when each certificate in use expires.
    pub(crate) fn show_expiration(&self, stats: &SslStats) {
        for source in &self.certs {
            match source {
                CertSource::Static(identity) => stats.expiration("", &identity.info),
                CertSource::Slot(slot) => {
                    if let Some(Material::Certificate(identity)) = slot.get().as_deref().map(|l| &l.material) {
                        stats.expiration(&slot.name, &identity.info);
                    }
                }
            }
        }
    }
    /// Reads the sources. Err names the secret that is missing. Of several certificates those that have arrived are used.
    pub(crate) fn resolve(&self) -> Result<Resolved, String> {
        let mut identities = Vec::with_capacity(self.certs.len());
        let mut missing = None;
        for source in &self.certs {
            match source {
                CertSource::Static(identity) => identities.push(identity.clone()),
                CertSource::Slot(slot) => match slot.get().as_deref().map(|l| &l.material) {
                    Some(Material::Certificate(identity)) => identities.push(identity.clone()),
                    _ => missing = missing.or(Some(&slot.name)),
                },
            }
        }
        if let (true, Some(name)) = (identities.is_empty(), missing) {
            return Err(name.to_string());
        }
        let validation = match &self.validation.slot {
            None => self.validation.fixed.clone(),
            Some(slot) => match slot.get().as_deref().map(|l| &l.material) {
                Some(Material::Validation(dynamic)) => Some(match &self.validation.fixed {
                    Some(fixed) => Arc::new(fixed.merged(dynamic)),
                    None => dynamic.clone(),
                }),
                _ => return Err(slot.name.to_string()),
            },
        };
        Ok(Resolved { identities, validation })
    }
}

/// Secrets as they were at one moment.
type Generation = Vec<Option<Arc<Live>>>;

/// What is built from secrets at the first handshake, and built again when one of them changed.
#[derive(Debug)]
pub(crate) struct Cached<T> {
    built: ArcSwapOption<(Generation, Arc<T>)>,
    building: Mutex<()>,
}

impl<T> Default for Cached<T> {
    fn default() -> Self {
        Self { built: ArcSwapOption::empty(), building: Mutex::default() }
    }
}

impl<T> Cached<T> {
    /// What holds for the secrets that `generation` gives now; `build` if there is none yet.
    pub(crate) fn current(
        &self,
        common: &Common,
        stats: &SslStats,
        generation: impl Fn() -> Generation,
        build: impl FnOnce() -> Result<T, TlsFailure>,
    ) -> Result<Arc<T>, TlsFailure> {
        if let Some(built) = self.built_from(&generation()) {
            return Ok(built);
        }
        // One worker builds; the others wait a moment rather than build the same.
        let _turn = self.building.lock().unwrap_or_else(PoisonError::into_inner);
        let generation = generation();
        if let Some(built) = self.built_from(&generation) {
            return Ok(built);
        }
        let built = Arc::new(build()?);
        common.show_expiration(stats);
        if self.built.swap(Some(Arc::new((generation, built.clone())))).is_some() {
            stats.updated_by_sds.inc();
        }
        Ok(built)
    }
    fn built_from(&self, generation: &Generation) -> Option<Arc<T>> {
        let held = self.built.load();
        let (from, built) = held.as_deref()?;
        same(from, generation).then(|| built.clone())
    }
}

/// The failure of a handshake that needs a secret that has not come.
pub(crate) fn missing(name: &str) -> TlsFailure {
    TlsFailure::SecretMissing(format!("TLS_error:Secret is not supplied by SDS: `{name}`"))
}

/// Whether what was built from `old` still holds for `new`.
fn same(old: &[Option<Arc<Live>>], new: &[Option<Arc<Live>>]) -> bool {
    old.len() == new.len()
        && old.iter().zip(new).all(|(a, b)| match (a, b) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            _ => false,
        })
}

fn static_certificate(proto: &TlsCertificate, secrets: &Arc<SecretStore>, at: &At<'_>, report: &mut Report) -> Option<CertSource> {
    let file = |s: &Option<nuncio_proto::envoy::config::core::v3::DataSource>| {
        matches!(s.as_ref().and_then(|s| s.specifier.as_ref()), Some(Specifier::Filename(_)))
    };
    if proto.watched_directory.is_some() && (file(&proto.certificate_chain) || file(&proto.private_key)) {
        // Files that are watched live in a slot of their own, which `refresh_files` keeps fresh.
        let secret = Secret { name: String::new(), r#type: Some(secret::Type::TlsCertificate(proto.clone())) };
        return secrets.watched(&secret, at, report).map(CertSource::Slot);
    }
    let identity = Identity::compile(proto, at, report)?;
    secrets.remember(&identity);
    Some(CertSource::Static(identity))
}

pub(crate) fn slot(
    config: &SdsSecretConfig,
    kind: SecretKind,
    secrets: &Arc<SecretStore>,
    at: &At<'_>,
    report: &mut Report,
) -> Option<Arc<SecretSlot>> {
    if config.name.is_empty() {
        report.error(&at.field("name"), "it is empty", "give the secret's name");
        return None;
    }
    let found = secrets.slot(&config.name, kind, config.sds_config.as_ref());
    if config.sds_config.is_none() && found.get().is_none() {
        report.error(
            &at.field("name"),
            format!("unknown static secret `{}`", config.name),
            "name one of static_resources.secrets, or give sds_config",
        );
        return None;
    }
    Some(found)
}

fn validation(
    proto: Option<&ValidationContextType>,
    secrets: &Arc<SecretStore>,
    at: &At<'_>,
    report: &mut Report,
) -> Option<ValidationSource> {
    let compile = |context, at: &At<'_>, report: &mut Report| {
        let validation = Validation::compile(context, at, report)?;
        if context.watched_directory.is_some() {
            report.warning(&at.field("watched_directory"), "set", "files of a context without SDS are read once");
        }
        if let Some(ca) = &validation.ca {
            secrets.remember_ca(ca);
        }
        Some(validation)
    };
    match proto {
        None => Some(ValidationSource::default()),
        Some(ValidationContextType::ValidationContext(context)) => {
            Some(ValidationSource { fixed: Some(compile(context, &at.field("validation_context"), report)?), slot: None })
        }
        Some(ValidationContextType::ValidationContextSdsSecretConfig(config)) => {
            let slot = slot(config, SecretKind::ValidationContext, secrets, &at.field("validation_context_sds_secret_config"), report)?;
            Some(ValidationSource { fixed: None, slot: Some(slot) })
        }
        Some(ValidationContextType::CombinedValidationContext(combined)) => {
            let at = at.field("combined_validation_context");
            if combined.validation_context_certificate_provider.is_some()
                || combined.validation_context_certificate_provider_instance.is_some()
            {
                report.unsupported(&at, "a certificate provider");
                return None;
            }
            let fixed = match &combined.default_validation_context {
                Some(context) => compile(context, &at.field("default_validation_context"), report)?,
                None => Arc::default(),
            };
            let field = at.field("validation_context_sds_secret_config");
            let Some(config) = &combined.validation_context_sds_secret_config else {
                report.error(&field, "it is missing", "name the secret, or use validation_context");
                return None;
            };
            Some(ValidationSource { fixed: Some(fixed), slot: Some(slot(config, SecretKind::ValidationContext, secrets, &field, report)?) })
        }
        Some(
            ValidationContextType::ValidationContextCertificateProvider(_)
            | ValidationContextType::ValidationContextCertificateProviderInstance(_),
        ) => {
            report.unsupported(&at.field("validation_context_certificate_provider"), "a certificate provider");
            None
        }
    }
}
