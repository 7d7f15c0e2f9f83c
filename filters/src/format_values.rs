//! Operators of formatter extensions that read files and secrets: `%FILE_CONTENT(path)%` and `%SECRET(name)%`. Compiled on the control
//! thread for nuncio-format, which asks by a hook; read on the workers. Source: `envoy/extensions/formatter/{file_content,generic_secret}/v3`.

use crate::secret::{Secret, stored};
use crate::watched::Watched;
use nuncio_core::diag::{At, Report};
use nuncio_format::{OpValue, ValueFactory, ValueSource};
use nuncio_proto::envoy::config::core::v3::{DataSource, data_source::Specifier};
use nuncio_proto::envoy::extensions::formatter::file_content::v3::FileContent;
use nuncio_proto::envoy::extensions::formatter::generic_secret::v3::GenericSecret;
use nuncio_proto::{Message, Name};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Bytes of a file that a format shows.
const MAX_BYTES: usize = 1024 * 1024;

/// Given to nuncio-format by `main`.
#[derive(Debug)]
pub struct Values;

impl ValueFactory for Values {
    fn types(&self) -> &[&'static str] {
        &["envoy.extensions.formatter.file_content.v3.FileContent", "envoy.extensions.formatter.generic_secret.v3.GenericSecret"]
    }
    fn compile(&self, name: &str, config: &[u8], at: &At<'_>, report: &mut Report) -> Option<Box<dyn ValueSource>> {
        if name == FileContent::full_name() {
            return Some(Box::new(Files));
        }
        let config = GenericSecret::decode(config).map_err(|e| report.error(at, format!("{name}: {e}"), "correct the bytes")).ok()?;
        let at = at.field("secret_configs");
        if config.secret_configs.is_empty() {
            report.error(&at, "no secret", "name those that %SECRET(..)% shows");
            return None;
        }
        let mut secrets = BTreeMap::new();
        for (name, sds) in &config.secret_configs {
            let secret = stored(&sds.name, sds.sds_config.as_ref(), &at.key(name), report)?;
            secrets.insert(name.clone(), secret);
        }
        Some(Box::new(Secrets(secrets)))
    }
}

/// `FileContent`.
struct Files;

impl ValueSource for Files {
    fn value(&self, name: &str, argument: &str, length: Option<usize>) -> Option<Result<Box<dyn OpValue>, String>> {
        (name == "FILE_CONTENT").then(|| {
            // The file is looked at whatever directory is to be watched for it.
            let parts: Vec<_> = argument.split(':').filter(|part| !part.is_empty()).collect();
            let ([path] | [path, _]) = parts.as_slice() else {
                return Err(format!("FILE_CONTENT: expected format 'path' or 'path:watch_directory', got '{argument}'"));
            };
            let source = DataSource { specifier: Some(Specifier::Filename((*path).to_string())), watched_directory: None };
            let limit = length.unwrap_or(usize::MAX);
            let parse = move |bytes: &[u8]| Ok(bytes.get(..limit).unwrap_or(bytes).to_vec());
            let mut report = Report::new();
            match Watched::open(&source, MAX_BYTES, None, Box::new(parse), &At::Root, &mut report) {
                Some(file) => Ok(Box::new(File(file)) as Box<dyn OpValue>),
                None => Err(format!("FILE_CONTENT: {}", report.summary())),
            }
        })
    }
}

#[derive(Debug)]
struct File(Arc<Watched<Vec<u8>>>);

impl OpValue for File {
    fn write(&self, out: &mut Vec<u8>) -> bool {
        out.extend_from_slice(&self.0.load());
        true
    }
}

/// `GenericSecret`: secrets by the names that operators use.
struct Secrets(BTreeMap<String, Secret>);

impl ValueSource for Secrets {
    fn value(&self, name: &str, argument: &str, length: Option<usize>) -> Option<Result<Box<dyn OpValue>, String>> {
        (name == "SECRET").then(|| match self.0.get(argument) {
            Some(secret) => Ok(Box::new(Shown { secret: secret.clone(), limit: length.unwrap_or(usize::MAX) }) as Box<dyn OpValue>),
            None => Err(format!("envoy.formatter.generic_secret: secret '{argument}' is not configured in secret_configs")),
        })
    }
}

#[derive(Debug)]
struct Shown {
    secret: Secret,
    limit: usize,
}

impl OpValue for Shown {
    fn write(&self, out: &mut Vec<u8>) -> bool {
        let Some(secret) = self.secret.get() else { return false };
        out.extend_from_slice(secret.get(..self.limit).unwrap_or(&secret));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(source: &dyn ValueSource, name: &str, argument: &str, length: Option<usize>) -> Option<String> {
        let mut out = Vec::new();
        source.value(name, argument, length)?.unwrap().write(&mut out).then(|| String::from_utf8(out).unwrap())
    }

    #[test]
    fn files_are_shown_up_to_a_length() {
        let path = std::env::temp_dir().join(format!("nuncio-format-{}", std::process::id()));
        std::fs::write(&path, "one\ntwo\n").unwrap();
        let path = path.display().to_string();
        assert_eq!(shown(&Files, "FILE_CONTENT", &path, None).as_deref(), Some("one\ntwo\n"));
        assert_eq!(shown(&Files, "FILE_CONTENT", &format!("{path}:/tmp"), Some(5)).as_deref(), Some("one\nt"));
        assert!(Files.value("SECRET", &path, None).is_none());
        for bad in ["", "a:b:c", "/no/such/file"] {
            assert!(Files.value("FILE_CONTENT", bad, None).unwrap().unwrap_err().starts_with("FILE_CONTENT: "), "{bad}");
        }
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn secrets_must_be_named() {
        let none = Secrets(BTreeMap::new());
        assert!(none.value("SECRET", "x", None).unwrap().unwrap_err().contains("secret 'x' is not configured in secret_configs"));
        assert!(none.value("OTHER", "x", None).is_none());
    }
}
