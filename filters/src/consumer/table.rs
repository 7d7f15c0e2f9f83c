//! Consumers by their credentials. Made of the configuration, of a file and of secrets, and made again when one of them changes.
//! Keys and passwords are held as digests only. Control thread and workers.

use crate::secret::{Made, Secret};
use crate::watched::Watched;
use aws_lc_rs::{constant_time, digest};
use nuncio_core::diag::{At, Report};
use nuncio_core::info::CertInfo;
use nuncio_core::stats::{Counter, Scope};
use nuncio_proto::json::{self, UnknownFields};
use nuncio_proto::nuncio::common::v1::secret::Source;
use nuncio_proto::nuncio::filters::http::consumer::v1::{self as proto, credential, credential::certificate::Match};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Consumers of one filter.
const MAX_CONSUMERS: usize = 100_000;
const MAX_NAME: usize = 256;

type Digest = [u8; 32];
type Map<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// One consumer.
#[derive(Debug)]
pub struct Consumer {
    pub name: Arc<str>,
    pub attributes: Vec<(String, String)>,
    /// Requests of this consumer.
    pub requests: Counter,
}

/// Every consumer by every credential.
#[derive(Debug, Default)]
pub struct Table {
    keys: Map<Digest, Arc<Consumer>>,
    /// By user name; a user may have several passwords.
    passwords: Map<String, Vec<(Digest, Arc<Consumer>)>>,
    claims: Map<String, Arc<Consumer>>,
    hmac: Map<String, Arc<Consumer>>,
    certificates: Map<Match, Arc<Consumer>>,
}

/// A consumer of the configuration, its secrets compiled.
struct Entry {
    consumer: proto::Consumer,
    /// Of each credential; none for those that need none.
    secrets: Vec<Option<Secret>>,
}

fn sha256(bytes: &[u8]) -> Digest {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    out
}

impl Table {
    /// Compiles consumers; `None` means refused.
    pub fn compile(config: &proto::ConsumerAuth, scope: &Scope, at: &At<'_>, report: &mut Report) -> Option<Made<Self>> {
        let errors = report.errors();
        let (mut entries, list) = (Vec::new(), at.field("consumers"));
        for (i, consumer) in config.consumers.iter().enumerate() {
            let at = list.index(i);
            let (mut secrets, credentials) = (Vec::new(), at.field("credentials"));
            for (j, credential) in consumer.credentials.iter().enumerate() {
                let at = credentials.index(j);
                secrets.push(match &credential.kind {
                    Some(credential::Kind::ApiKey(key)) => Secret::compile(Some(key), &at.field("api_key"), report),
                    Some(credential::Kind::BasicAuth(basic)) => {
                        let at = at.field("basic_auth");
                        Secret::compile(basic.password.as_ref(), &at.field("password"), report)
                    }
                    _ => None,
                });
            }
            if let Err(why) = check(consumer) {
                report.error(&at, why, "correct it");
            }
            entries.push(Entry { consumer: consumer.clone(), secrets });
        }
        let file = match &config.consumers_from {
            Some(source) => Some(Watched::open(source, 64 << 20, None, Box::new(parse), &at.field("consumers_from"), report)?),
            None => None,
        };
        if entries.is_empty() && file.is_none() {
            report.error(&list, "no consumer", "give consumers or consumers_from");
        }
        if report.errors() > errors {
            return None;
        }
        let counters = Mutex::new(Map::default());
        let scope = scope.clone();
        let make = move || {
            let mut table = Builder { table: Self::default(), problems: Vec::new() };
            let mut counters = counters.lock().unwrap_or_else(PoisonError::into_inner);
            let mut counter = |name: &str| -> Counter {
                counters.entry(name.to_string()).or_insert_with(|| scope.counter(&format!("consumer.{name}.requests"))).clone()
            };
            for entry in &entries {
                let secret = |i: usize| entry.secrets.get(i)?.as_ref()?.get();
                table.add(&entry.consumer, counter(&entry.consumer.name), secret);
            }
            for consumer in file.as_ref().map(|f| f.load()).iter().flat_map(|f| f.iter()) {
                let secret = |i: usize| inline(consumer.credentials.get(i)?.kind.as_ref()?).map(|s| s.trim_ascii().to_vec());
                table.add(consumer, counter(&consumer.name), secret);
            }
            for problem in table.problems.iter().take(10) {
                log::warn!("consumer: {problem}");
            }
            table
        };
        let first = make();
        if let Some(problem) = first.problems.first() {
            report.error(&list, problem.clone(), "give every credential to one consumer");
            return None;
        }
        Some(Made::new(move || make().table))
    }
    /// Whose key this is. Found by its digest, of which a caller cannot guess a part.
    pub fn by_key(&self, key: &[u8]) -> Option<&Arc<Consumer>> {
        self.keys.get(&sha256(key))
    }
    /// Whose user name and password these are.
    pub fn by_password(&self, user: &str, password: &[u8]) -> Option<&Arc<Consumer>> {
        let given = sha256(password);
        let known = self.passwords.get(user).map(Vec::as_slice).unwrap_or_default();
        known.iter().find(|(digest, _)| constant_time::verify_slices_are_equal(digest, &given).is_ok()).map(|(_, consumer)| consumer)
    }
    /// Whose claim this is.
    pub fn by_claim(&self, value: &str) -> Option<&Arc<Consumer>> {
        self.claims.get(value)
    }
    /// Whose signing key this is.
    pub fn by_hmac_key(&self, id: &str) -> Option<&Arc<Consumer>> {
        self.hmac.get(id)
    }
    /// Whose certificate this is: by its digest, its URI and DNS SANs in their order, its subject.
    pub fn by_certificate(&self, certificate: &CertInfo) -> Option<&Arc<Consumer>> {
        if self.certificates.is_empty() {
            return None;
        }
        let matches = std::iter::once(Match::Sha256(certificate.sha256.clone()))
            .chain(certificate.uri_sans.iter().cloned().map(Match::UriSan))
            .chain(certificate.dns_sans.iter().cloned().map(Match::DnsSan))
            .chain(std::iter::once(Match::Subject(certificate.subject.clone())));
        matches.into_iter().find_map(|m| self.certificates.get(&m))
    }
}

struct Builder {
    table: Table,
    /// Never with a secret in them.
    problems: Vec<String>,
}

impl Builder {
    fn add(&mut self, consumer: &proto::Consumer, requests: Counter, secret: impl Fn(usize) -> Option<Vec<u8>>) {
        let attributes = consumer.attributes.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        let this = Arc::new(Consumer { name: consumer.name.as_str().into(), attributes, requests });
        for (i, kind) in consumer.credentials.iter().map(|c| c.kind.as_ref()).enumerate() {
            let table = &mut self.table;
            let taken = match kind {
                Some(credential::Kind::ApiKey(_)) => {
                    let lines = secret(i).unwrap_or_default();
                    let keys = lines.split(|b| *b == b'\n').map(<[u8]>::trim_ascii).filter(|key| !key.is_empty());
                    // Every key of the list is added, whatever became of those before it.
                    keys.filter(|key| occupied(&mut table.keys, sha256(key), &this)).count() > 0
                }
                Some(credential::Kind::BasicAuth(basic)) => {
                    if let Some(password) = secret(i) {
                        table.passwords.entry(basic.username.clone()).or_default().push((sha256(&password), this.clone()));
                    }
                    let known = table.passwords.get(&basic.username).map(Vec::as_slice).unwrap_or_default();
                    known.iter().any(|(_, c)| c.name != this.name)
                }
                Some(credential::Kind::JwtClaim(value)) => occupied(&mut table.claims, value.clone(), &this),
                Some(credential::Kind::HmacKeyId(id)) => occupied(&mut table.hmac, id.clone(), &this),
                Some(credential::Kind::Certificate(certificate)) => match &certificate.r#match {
                    Some(Match::Sha256(hex)) => {
                        occupied(&mut table.certificates, Match::Sha256(hex.replace(':', "").to_ascii_lowercase()), &this)
                    }
                    Some(m) => occupied(&mut table.certificates, m.clone(), &this),
                    None => false,
                },
                None => false,
            };
            if taken {
                self.problems.push(format!("credential {i} of consumer \"{}\" belongs to another consumer too", consumer.name));
            }
        }
    }
}

/// Adds an entry unless another consumer has it; whether one has.
fn occupied<K: std::hash::Hash + Eq>(map: &mut Map<K, Arc<Consumer>>, key: K, consumer: &Arc<Consumer>) -> bool {
    map.entry(key).or_insert_with(|| consumer.clone()).name != consumer.name
}

/// What is wrong with a consumer.
fn check(consumer: &proto::Consumer) -> Result<(), String> {
    if consumer.name.is_empty() || consumer.name.len() > MAX_NAME || consumer.name.chars().any(char::is_control) {
        return Err(format!("a consumer with a name of {} bytes (1 to {MAX_NAME} without control characters)", consumer.name.len()));
    }
    for (i, credential) in consumer.credentials.iter().enumerate() {
        let fine = match &credential.kind {
            Some(credential::Kind::BasicAuth(basic)) => !basic.username.is_empty() && !basic.username.contains(':'),
            Some(credential::Kind::JwtClaim(text) | credential::Kind::HmacKeyId(text)) => !text.is_empty(),
            // An empty subject is that of many certificates.
            Some(credential::Kind::Certificate(certificate)) => certificate.r#match.as_ref().is_some_and(|m| match m {
                Match::Sha256(text) | Match::UriSan(text) | Match::DnsSan(text) | Match::Subject(text) => !text.is_empty(),
            }),
            Some(credential::Kind::ApiKey(_)) => true,
            None => false,
        };
        if !fine {
            return Err(format!("credential {i} of consumer \"{}\" says nothing", consumer.name));
        }
    }
    Ok(())
}

/// Reads a file of consumers. What is wrong is told by its place only: values may be secret.
fn parse(bytes: &[u8]) -> Result<Vec<proto::Consumer>, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "consumers that are no text".to_string())?;
    let list = json::parse_text::<proto::ConsumerList>(text, UnknownFields::Refuse).map_err(|problems| {
        let places: Vec<_> = problems.items.iter().map(|p| p.path.clone()).collect();
        format!("no list of consumers (look at {})", places.join(", "))
    })?;
    let consumers = list.value.consumers;
    if consumers.len() > MAX_CONSUMERS {
        return Err(format!("{} consumers, more than {MAX_CONSUMERS}", consumers.len()));
    }
    for consumer in &consumers {
        check(consumer)?;
        let secrets = consumer.credentials.iter().filter_map(|c| c.kind.as_ref());
        let needs_secret = |kind: &&credential::Kind| matches!(kind, credential::Kind::ApiKey(_) | credential::Kind::BasicAuth(_));
        if secrets.filter(needs_secret).any(|kind| inline(kind).is_none()) {
            return Err(format!("a secret of consumer \"{}\" that is not inline", consumer.name));
        }
    }
    Ok(consumers)
}

/// The secret of a credential that is given inline.
fn inline(kind: &credential::Kind) -> Option<&[u8]> {
    use nuncio_proto::envoy::config::core::v3::data_source::Specifier;
    let secret = match kind {
        credential::Kind::ApiKey(secret) => secret,
        credential::Kind::BasicAuth(basic) => basic.password.as_ref()?,
        _ => return None,
    };
    let Some(Source::DataSource(source)) = &secret.source else { return None };
    match source.specifier.as_ref()? {
        Specifier::InlineString(text) => Some(text.as_bytes()),
        Specifier::InlineBytes(bytes) => Some(bytes),
        Specifier::Filename(_) | Specifier::EnvironmentVariable(_) => None,
    }
}
