//! Scoped routes: which route table a request gets by a key that is made of its headers. Compiled on the control thread; looked
//! up by workers, without allocation for keys of usual length.
//! Source: ScopedRoutes of HttpConnectionManager, `envoy/config/route/v3/scoped_route.proto`, Envoy's `router/scoped_config_impl.cc`.

use crate::RouteSlot;
use arc_swap::{ArcSwapOption, Guard};
use nuncio_core::diag::{At, Report};
use nuncio_core::{HeaderKey, RequestHead};
use nuncio_proto::Message;
use nuncio_proto::envoy::config::core::v3::ConfigSource;
use nuncio_proto::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use nuncio_proto::envoy::config::route::v3::ScopedRouteConfiguration;
use nuncio_proto::envoy::config::route::v3::scoped_route_configuration::key::fragment;
use nuncio_proto::envoy::extensions::filters::network::http_connection_manager::v3::scoped_routes as proto;
use proto::scope_key_builder::fragment_builder::{HeaderValueExtractor, Type, header_value_extractor::ExtractType};
use smallvec::SmallVec;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Fragments of a scope's key, each behind its length, so that different fragments never make the same key.
pub type ScopeKey = SmallVec<[u8; 96]>;

fn push(key: &mut ScopeKey, fragment: &[u8]) {
    key.extend_from_slice(&(fragment.len() as u64).to_ne_bytes());
    key.extend_from_slice(fragment);
}

/// `ScopedRoutes.scope_key_builder`.
#[derive(Debug)]
pub struct ScopeKeyBuilder(Box<[Extractor]>);

#[derive(Debug)]
struct Extractor {
    header: HeaderKey,
    /// Empty: the whole value is the one element.
    separator: Box<str>,
    part: Part,
}

#[derive(Debug)]
enum Part {
    Index(usize),
    /// The value of the first element whose key this is.
    Element {
        separator: Box<str>,
        key: Box<str>,
    },
}

impl ScopeKeyBuilder {
    /// Compiles; none if something was refused.
    pub fn compile(builder: &proto::ScopeKeyBuilder, at: &At<'_>, report: &mut Report) -> Option<Self> {
        let at = at.field("fragments");
        if builder.fragments.is_empty() {
            report.error(&at, "no fragments", "say what the key is made of");
            return None;
        }
        let mut all = Vec::with_capacity(builder.fragments.len());
        for (i, fragment) in builder.fragments.iter().enumerate() {
            let at = at.index(i);
            let Some(Type::HeaderValueExtractor(extractor)) = &fragment.r#type else {
                report.error(&at, "nothing", "set header_value_extractor");
                return None;
            };
            all.push(Extractor::compile(extractor, &at.field("header_value_extractor"), report)?);
        }
        Some(Self(all.into()))
    }
    /// The key of a request; none if it lacks a part.
    pub fn key(&self, request: &RequestHead) -> Option<ScopeKey> {
        let mut key = ScopeKey::new();
        for extractor in &self.0 {
            extractor.extract(request, |fragment| push(&mut key, fragment))?;
        }
        Some(key)
    }
}

impl Extractor {
    fn compile(proto: &HeaderValueExtractor, at: &At<'_>, report: &mut Report) -> Option<Self> {
        let Some(header) = HeaderKey::parse(&proto.name) else {
            report.error(&at.field("name"), format!("{:?}", proto.name), "give a valid header name");
            return None;
        };
        let part = match &proto.extract_type {
            Some(ExtractType::Index(index)) => {
                if *index > 0 && proto.element_separator.is_empty() {
                    report.error(&at.field("index"), index.to_string(), "without element_separator there is only index 0");
                    return None;
                }
                Part::Index(*index as usize)
            }
            Some(ExtractType::Element(element)) => {
                let at = at.field("element");
                for (text, field) in [(&element.separator, "separator"), (&element.key, "key")] {
                    if text.is_empty() {
                        report.error(&at.field(field), "nothing", "say how the element is found");
                        return None;
                    }
                }
                Part::Element { separator: element.separator.as_str().into(), key: element.key.as_str().into() }
            }
            None => {
                report.error(at, "no extract_type", "set index or element");
                return None;
            }
        };
        Some(Self { header, separator: proto.element_separator.as_str().into(), part })
    }
    /// As Envoy, the first field of that name counts.
    fn extract(&self, request: &RequestHead, found: impl FnOnce(&[u8])) -> Option<()> {
        let value = match &self.header {
            HeaderKey::Name(name) => request.headers.get(name)?.as_bytes().into(),
            other => request.header(other)?,
        };
        // Values that are no text have no elements, and no scope.
        let value = std::str::from_utf8(&value).ok()?;
        let mut elements: SmallVec<[&str; 8]> = SmallVec::new();
        if self.separator.is_empty() {
            elements.push(value)
        } else {
            elements.extend(value.split(&*self.separator))
        }
        let fragment = match &self.part {
            Part::Index(index) => elements.get(*index).copied()?,
            Part::Element { separator, key } => elements.iter().find_map(|element| match element.split_once(&**separator) {
                Some((name, value)) => (name == &**key).then_some(value),
                None => (*element == &**key).then_some(""),
            })?,
        };
        found(fragment.as_bytes());
        Some(())
    }
}

/// One scope.
#[derive(Clone, Debug)]
pub struct Scope {
    /// `ScopedRouteConfiguration.name`.
    pub name: Arc<str>,
    /// Its table.
    pub slot: Arc<RouteSlot>,
    /// The table is subscribed to when somebody asks for it.
    pub on_demand: bool,
}

/// Scopes by key.
#[derive(Debug, Default)]
pub struct Scopes(HashMap<ScopeKey, Scope, foldhash::fast::RandomState>);

impl Scopes {
    /// The scope of a key.
    pub fn get(&self, key: &ScopeKey) -> Option<&Scope> {
        self.0.get(key)
    }
    /// Adds a scope; the error is the name of the one that has its key.
    pub fn insert(&mut self, key: ScopeKey, scope: Scope) -> Result<(), Arc<str>> {
        match self.0.get(&key) {
            Some(other) => Err(other.name.clone()),
            None => {
                self.0.insert(key, scope);
                Ok(())
            }
        }
    }
    /// Puts a scope in the place of the one that has its key.
    pub fn replace(&mut self, key: ScopeKey, scope: Scope) -> Option<Scope> {
        self.0.insert(key, scope)
    }
    /// Every scope, in no order.
    pub fn all(&self) -> impl Iterator<Item = &Scope> {
        self.0.values()
    }
}

/// The key that a scope's configuration gives; none if something was refused. The table is the caller's business.
pub fn scope_key(config: &ScopedRouteConfiguration, at: &At<'_>, report: &mut Report) -> Option<ScopeKey> {
    if config.name.is_empty() {
        report.error(&at.field("name"), "nothing", "name the scope");
        return None;
    }
    if config.route_configuration.is_some() != config.route_configuration_name.is_empty() {
        report.error(at, "route_configuration beside route_configuration_name, or neither", "set one of them");
        return None;
    }
    let fragments = config.key.as_ref().map(|k| k.fragments.as_slice()).unwrap_or_default();
    let key_at = at.field("key");
    let at = key_at.field("fragments");
    if fragments.is_empty() {
        report.error(&at, "no fragments", "say which requests the scope is for");
        return None;
    }
    let mut key = ScopeKey::new();
    for (i, fragment) in fragments.iter().enumerate() {
        let Some(fragment::Type::StringKey(text)) = &fragment.r#type else {
            report.error(&at.index(i), "nothing", "set string_key");
            return None;
        };
        push(&mut key, text.as_bytes());
    }
    Some(key)
}

/// The place of the scopes of one source.
#[derive(Debug, Default)]
pub struct ScopesSlot(ArcSwapOption<Scopes>);

impl ScopesSlot {
    /// A slot with `scopes` in it.
    pub fn fixed(scopes: Scopes) -> Arc<Self> {
        Arc::new(Self(ArcSwapOption::from_pointee(scopes)))
    }
    /// The scopes; none while the source has not answered.
    pub fn load(&self) -> Guard<Option<Arc<Scopes>>> {
        self.0.load()
    }
    /// Puts scopes into the slot. Control thread only.
    pub fn set(&self, scopes: Arc<Scopes>) {
        self.0.store(Some(scopes));
    }
}

/// The slots of scopes that come by SRDS, one for each source; all that comes by ADS is one source.
#[derive(Debug, Default)]
pub struct ScopesSlots(Mutex<HashMap<Vec<u8>, Weak<ScopesSlot>>>);

impl ScopesSlots {
    /// The slot of a source, made if there is none. `None` is the aggregated stream.
    pub fn slot(&self, source: Option<&ConfigSource>) -> Arc<ScopesSlot> {
        let key = source.filter(|s| !is_aggregated(s)).map(Message::encode_to_vec).unwrap_or_default();
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        slots.retain(|_, slot| slot.strong_count() > 0);
        if let Some(slot) = slots.get(&key).and_then(Weak::upgrade) {
            return slot;
        }
        let slot = Arc::new(ScopesSlot::default());
        slots.insert(key, Arc::downgrade(&slot));
        slot
    }
}

/// Whether a source is the aggregated stream.
pub fn is_aggregated(source: &ConfigSource) -> bool {
    matches!(source.config_source_specifier, Some(ConfigSourceSpecifier::Ads(_) | ConfigSourceSpecifier::Self_(_)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue, Method};
    use nuncio_proto::json::{UnknownFields, parse_text};

    fn key(builder: &str, headers: &[(&'static str, &'static str)]) -> Option<ScopeKey> {
        let builder = parse_text::<proto::ScopeKeyBuilder>(builder, UnknownFields::Refuse).unwrap().value;
        let mut report = Report::new();
        let builder = ScopeKeyBuilder::compile(&builder, &At::Root, &mut report).unwrap_or_else(|| panic!("{}", report.summary()));
        let mut head = RequestHead::new(Method::GET, "host", "/");
        for (name, value) in headers {
            head.headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        builder.key(&head)
    }
    fn of(fragments: &[&str]) -> Option<ScopeKey> {
        let mut key = ScopeKey::new();
        fragments.iter().for_each(|f| push(&mut key, f.as_bytes()));
        Some(key)
    }

    #[test]
    fn keys_are_made_of_elements() {
        let element = "{fragments: [{header_value_extractor: {name: x, element_separator: ',', element: {separator: '=', key: a}}}]}";
        assert_eq!(key(element, &[("x", "b=1,a=2=3,a=4")]), of(&["2=3"]));
        assert_eq!(key(element, &[("x", "b=1")]), None);
        assert_eq!(key(element, &[]), None);
        let index = "{fragments: [{header_value_extractor: {name: x, element_separator: ',', index: 1}}, \
                     {header_value_extractor: {name: ':authority', index: 0}}]}";
        assert_eq!(key(index, &[("x", "a,b")]), of(&["b", "host"]));
        assert_eq!(key(index, &[("x", "a")]), None);
        assert_eq!(key(index, &[("x", "a,"), ("x", "b")]), of(&["", "host"]));
        assert_ne!(of(&["ab", "c"]), of(&["a", "bc"]));
    }

    #[test]
    fn a_key_belongs_to_one_scope() {
        let mut scopes = Scopes::default();
        let slot = crate::RouteSlots::default().slot("t");
        let scope = |name: &str| Scope { name: name.into(), slot: slot.clone(), on_demand: false };
        assert_eq!(scopes.insert(ScopeKey::new(), scope("a")), Ok(()));
        assert_eq!(scopes.insert(ScopeKey::new(), scope("b")).unwrap_err().as_ref(), "a");
    }

    #[test]
    fn ten_thousand_scopes_cost_one_lookup() {
        use std::hash::BuildHasher;
        let mut scopes = Scopes::default();
        let slots = crate::RouteSlots::default();
        let mut hashes = std::collections::HashSet::new();
        for i in 0..10_000 {
            let (name, key) = (format!("scope-{i}"), of(&["tenant", &i.to_string()]).unwrap());
            // Keys that differ differ in their hash: none is compared with another's.
            assert!(hashes.insert(scopes.0.hasher().hash_one(&key)), "{name}");
            let scope = Scope { name: name.as_str().into(), slot: slots.slot(&name), on_demand: false };
            assert_eq!(scopes.insert(key, scope), Ok(()));
        }
        let name = |i: &str| scopes.get(&of(&["tenant", i]).unwrap()).map(|scope| scope.name.to_string());
        assert_eq!(name("7777").as_deref(), Some("scope-7777"));
        assert_eq!(name("10000"), None);
    }

    #[test]
    fn wrong_scopes_are_refused() {
        for (text, why) in [
            ("{route_configuration_name: r, key: {fragments: [{string_key: a}]}}", "name"),
            ("{name: a, key: {fragments: [{string_key: a}]}}", "neither"),
            ("{name: a, route_configuration_name: r}", "key.fragments"),
            ("{name: a, route_configuration_name: r, key: {fragments: [{}]}}", "string_key"),
        ] {
            let config = parse_text::<ScopedRouteConfiguration>(text, UnknownFields::Refuse).unwrap().value;
            let mut report = Report::new();
            assert!(scope_key(&config, &At::Root, &mut report).is_none());
            assert!(report.summary().contains(why), "{}", report.summary());
        }
    }
}
