//! FieldMask as Envoy's `/config_dump?mask=` applies it, on wire bytes of one message at a time.

use super::schema::{Descriptors, Kind, Message, TypeId, WellKnown};
use super::wire::{Fields, Raw, put_len};

/// Paths of proto field names, separated by commas. A mask does not reach through repeated fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mask {
    paths: Vec<String>,
}

impl Mask {
    /// Reads `a.b,c`; any text is a mask, whether it fits a message is another question ([`Mask::fits`]).
    pub fn parse(text: &str) -> Self {
        Self { paths: text.split(',').filter(|p| !p.is_empty()).map(str::to_string).collect() }
    }

    /// The paths, for error messages.
    pub fn paths(&self) -> &[String] {
        &self.paths
    }

    /// Whether every path names a field of message `name`, without passing through a repeated field.
    pub fn fits(&self, d: &Descriptors, name: &str) -> bool {
        d.find(name).is_some_and(|id| self.paths.iter().all(|p| fits(d, id, p)))
    }

    /// Whether some of top-level field `field` is kept. An empty mask keeps everything.
    pub fn selects(&self, field: &str) -> bool {
        self.paths.is_empty() || self.paths.iter().any(|p| p.split('.').next() == Some(field))
    }

    /// The wire bytes of message `name` with only the fields of the mask; `None` if the mask does not fit the message.
    pub fn trim(&self, d: &Descriptors, name: &str, wire: &[u8]) -> Option<Vec<u8>> {
        if !self.fits(d, name) {
            return None;
        }
        if self.paths.is_empty() {
            return Some(wire.to_vec());
        }
        let paths: Vec<&str> = self.paths.iter().map(String::as_str).collect();
        Some(trim(d, d.message(d.find(name)?), &paths, wire))
    }

    /// Like [`Mask::trim`] for an element of a config dump, whose resource lies in an Any: `cluster.name` reaches into the
    /// cluster. `None` if the mask fits neither the element nor the resource in it.
    pub fn trim_element(&self, d: &Descriptors, name: &str, wire: &[u8]) -> Option<Vec<u8>> {
        let (outer, inner, number) = self.split(d, d.find(name)?);
        let trimmed = outer.trim(d, name, wire)?;
        let Some(number) = number.filter(|_| !inner.paths.is_empty()) else { return Some(trimmed) };
        let mut out = Vec::with_capacity(trimmed.len());
        for field in Fields::new(&trimmed).flatten() {
            match field.raw {
                Raw::Len(any) if field.number == number => put_len(&mut out, number, &inner.trim_any(d, any)?),
                _ => copy(&field, &trimmed, &mut out),
            }
        }
        Some(out)
    }

    /// Whether [`Mask::trim_element`] would apply to an element `name` whose Any is of type `type_url`.
    pub fn fits_element(&self, d: &Descriptors, name: &str, type_url: &str) -> bool {
        let Some(id) = d.find(name) else { return false };
        let (outer, inner, _) = self.split(d, id);
        outer.fits(d, name) && (inner.paths.is_empty() || inner.fits(d, type_url.rsplit('/').next().unwrap_or_default()))
    }

    /// The paths within the element, those within the resource in its Any, and the number of the field with the Any.
    fn split(&self, d: &Descriptors, id: TypeId) -> (Self, Self, Option<u32>) {
        let (mut outer, mut inner, mut number) = (Self::default(), Self::default(), None);
        for path in &self.paths {
            let (head, rest) = path.split_once('.').unwrap_or((path, ""));
            let any = d.message(id).fields.iter().find(|f| &*f.name == head && !f.repeated && is_any(d, f.kind));
            match any {
                Some(field) if number.is_none_or(|n| n == field.number) => {
                    number = Some(field.number);
                    outer.paths.push(head.to_string());
                    if !rest.is_empty() {
                        inner.paths.push(rest.to_string());
                    }
                }
                _ => outer.paths.push(path.clone()),
            }
        }
        (outer, inner, number)
    }

    fn trim_any(&self, d: &Descriptors, any: &[u8]) -> Option<Vec<u8>> {
        let (mut url, mut value): (&[u8], &[u8]) = (&[], &[]);
        for field in Fields::new(any).flatten() {
            match (field.number, field.raw) {
                (1, Raw::Len(b)) => url = b,
                (2, Raw::Len(b)) => value = b,
                _ => {}
            }
        }
        let name = std::str::from_utf8(url).ok()?.rsplit('/').next()?;
        let mut out = Vec::new();
        put_len(&mut out, 1, url);
        put_len(&mut out, 2, &self.trim(d, name, value)?);
        Some(out)
    }
}

fn is_any(d: &Descriptors, kind: Kind) -> bool {
    matches!(kind, Kind::Message(id) if d.message(id).well_known == WellKnown::Any)
}

fn fits(d: &Descriptors, id: TypeId, path: &str) -> bool {
    let (head, rest) = path.split_once('.').map_or((path, None), |(h, r)| (h, Some(r)));
    let Some(field) = d.message(id).fields.iter().find(|f| &*f.name == head) else { return false };
    match (rest, field.kind) {
        (None, _) => true,
        (Some(rest), Kind::Message(inner)) if !field.repeated => fits(d, inner, rest),
        _ => false,
    }
}

fn trim(d: &Descriptors, message: &Message, paths: &[&str], wire: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for field in Fields::new(wire).flatten() {
        let Some((_, descriptor)) = message.by_number(field.number) else { continue };
        let here =
            || paths.iter().map(|p| p.split_once('.').map_or((*p, None), |(h, r)| (h, Some(r)))).filter(|(h, _)| *h == &*descriptor.name);
        if here().any(|(_, rest)| rest.is_none()) {
            copy(&field, wire, &mut out);
            continue;
        }
        let below: Vec<&str> = here().filter_map(|(_, rest)| rest).collect();
        if let (Kind::Message(id), Raw::Len(bytes), false) = (descriptor.kind, field.raw, below.is_empty()) {
            put_len(&mut out, field.number, &trim(d, d.message(id), &below, bytes));
        }
    }
    out
}

fn copy(field: &super::wire::Field<'_>, wire: &[u8], out: &mut Vec<u8>) {
    let wire_type = match field.raw {
        Raw::Len(bytes) => return put_len(out, field.number, bytes),
        Raw::Varint(_) => 0,
        Raw::Fixed64(_) => 1,
        Raw::Fixed32(_) => 5,
    };
    super::wire::put_tag(out, field.number, wire_type);
    out.extend_from_slice(wire.get(field.start..field.end).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envoy::admin::v3::clusters_config_dump::DynamicCluster;
    use crate::envoy::config::cluster::v3::Cluster;
    use prost::Message as _;

    fn element() -> Vec<u8> {
        let cluster = Cluster { name: "c".into(), alt_stat_name: "a".into(), ..Default::default() };
        DynamicCluster { version_info: "7".into(), cluster: Some(crate::typed::pack(&cluster)), ..Default::default() }.encode_to_vec()
    }

    #[test]
    fn reaches_into_any() {
        let d = Descriptors::shared();
        let name = "envoy.admin.v3.ClustersConfigDump.DynamicCluster";
        let trimmed = Mask::parse("cluster.name").trim_element(&d, name, &element()).unwrap();
        let trimmed = DynamicCluster::decode(trimmed.as_slice()).unwrap();
        assert_eq!(trimmed.version_info, "");
        let cluster: Cluster = crate::typed::unpack_as(&trimmed.cluster.unwrap()).unwrap();
        assert_eq!(cluster, Cluster { name: "c".into(), ..Default::default() });
        assert!(Mask::parse("cluster.nonsense").trim_element(&d, name, &element()).is_none());
        assert!(Mask::parse("nonsense").trim_element(&d, name, &element()).is_none());
        let whole = Mask::parse("cluster,version_info").trim_element(&d, name, &element()).unwrap();
        assert_eq!(whole, element());
    }

    #[test]
    fn fits_and_trims_nested_messages() {
        let d = Descriptors::shared();
        assert!(Mask::parse("bootstrap.node.id").fits(&d, "envoy.admin.v3.BootstrapConfigDump"));
        assert!(
            !Mask::parse("dynamic_active_clusters.version_info").fits(&d, "envoy.admin.v3.ClustersConfigDump"),
            "through a repeated field"
        );
        assert!(Mask::parse("static_clusters,version_info").selects("static_clusters"));
        assert!(!Mask::parse("static_clusters").selects("version_info"));
        let node = crate::envoy::config::core::v3::Node { id: "i".into(), cluster: "c".into(), ..Default::default() };
        let bootstrap = crate::envoy::config::bootstrap::v3::Bootstrap { node: Some(node), ..Default::default() };
        let trimmed = Mask::parse("node.id").trim(&d, "envoy.config.bootstrap.v3.Bootstrap", &bootstrap.encode_to_vec()).unwrap();
        let trimmed = crate::envoy::config::bootstrap::v3::Bootstrap::decode(trimmed.as_slice()).unwrap();
        assert_eq!((trimmed.node.as_ref().unwrap().id.as_str(), trimmed.node.as_ref().unwrap().cluster.as_str()), ("i", ""));
    }
}
