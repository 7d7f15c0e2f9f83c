//! File sources (`path_config_source`): noticing that a file changed, and turning its DiscoveryResponse into an update.
//! Polled once a second, because Kubernetes swaps directories by symlinks, which inotify on the file does not see.

use crate::resource::{Refused, Resource, Update, resource_name, types};
use bytes::Bytes;
use nuncio_proto::Message;
use nuncio_proto::envoy::service::discovery::v3::{DiscoveryResponse, Resource as Wrapper};
use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How often files are looked at.
pub const POLL: Duration = Duration::from_secs(1);

/// What identifies one state of a file; symlinks are followed.
type Stamp = Option<(u64, u64, u64, i64, i64)>;

fn stamp(path: &Path) -> Stamp {
    let m = std::fs::metadata(path).ok()?;
    Some((m.dev(), m.ino(), m.size(), m.mtime(), m.mtime_nsec()))
}

/// Watches files for a change of any of them.
#[derive(Debug)]
pub struct Watch {
    files: Vec<(PathBuf, Stamp)>,
}

impl Watch {
    /// Watches `files`, and the directory of `watched_directory` if the configuration names one. What is there now counts as seen.
    pub fn new<P: Into<PathBuf>>(files: impl IntoIterator<Item = P>) -> Self {
        let seen = |path: PathBuf| {
            let stamp = stamp(&path);
            (path, stamp)
        };
        Self { files: files.into_iter().map(Into::into).map(seen).collect() }
    }
    /// Whether anything changed since the last call. A file that is gone counts once it is back.
    pub fn changed(&mut self) -> bool {
        let mut changed = false;
        for (path, seen) in &mut self.files {
            let now = stamp(path);
            if now.is_some() && now != *seen {
                *seen = now;
                changed = true;
            }
        }
        changed
    }
    /// Waits for a change, polling.
    pub async fn wait(&mut self) {
        loop {
            tokio::time::sleep(POLL).await;
            if self.changed() {
                return;
            }
        }
    }
}

/// The update that the response of a file stands for. `held` are names from before: for listeners and clusters, those that are
/// gone from the file are removed. Names are those of the resources themselves.
pub fn update(response: DiscoveryResponse, type_url: &str, held: &HashSet<Arc<str>>) -> Update {
    let version: Arc<str> = response.version_info.into();
    let mut update = Update { type_url: type_url.into(), version: version.clone(), ..Update::default() };
    let mut seen: HashSet<Arc<str>> = HashSet::new();
    for (index, any) in response.resources.into_iter().enumerate() {
        let (found, value, wrapped) = if any.type_url == types::WRAPPER {
            match Wrapper::decode(any.value.as_slice()) {
                Ok(w) => {
                    let inner = w.resource.unwrap_or_default();
                    (inner.type_url, inner.value, w.name)
                }
                Err(e) => {
                    update.refused.push(Refused { name: format!("resource #{index}").into(), reason: e.to_string() });
                    continue;
                }
            }
        } else {
            (any.type_url, any.value, String::new())
        };
        if found != type_url {
            let reason = format!("type URL {found} in a response of {type_url}");
            update.refused.push(Refused { name: format!("resource #{index}").into(), reason });
            continue;
        }
        let name = if wrapped.is_empty() { resource_name(&value) } else { Ok(wrapped.into()) };
        match name {
            Ok(name) if seen.insert(name.clone()) => {
                update.resources.push(Resource { name, version: version.clone(), value: Bytes::from(value) })
            }
            Ok(name) => {
                update.resources.retain(|r| r.name != name);
                update.refused.push(Refused { name, reason: "duplicate name in the file".into() });
            }
            Err(reason) => update.refused.push(Refused { name: format!("resource #{index}").into(), reason }),
        }
    }
    let wildcard = matches!(type_url, types::LISTENER | types::CLUSTER);
    if wildcard && !update.refused.iter().any(|r| !seen.contains(&r.name)) {
        update.removed = held.iter().filter(|n| !seen.contains(*n)).cloned().collect();
        update.removed.sort();
    }
    update
}

#[cfg(test)]
mod tests {
    use super::*;
    use nuncio_proto::Any;
    use nuncio_proto::envoy::config::cluster::v3::Cluster;

    #[test]
    fn a_replaced_file_is_a_change_and_a_missing_one_is_not() {
        let dir = std::env::temp_dir().join(format!("nuncio-xds-file-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let file = dir.join("cds.yaml");
        std::fs::write(&file, "a").unwrap();
        let mut watch = Watch::new([&file]);
        assert!(!watch.changed());
        std::fs::remove_file(&file).unwrap();
        assert!(!watch.changed());
        std::fs::write(dir.join("new"), "bb").unwrap();
        std::fs::rename(dir.join("new"), &file).unwrap();
        assert!(watch.changed() && !watch.changed());
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn names_gone_from_the_file_are_removed_unless_it_is_partly_unreadable() {
        let any = |name: &str| Any {
            type_url: types::CLUSTER.into(),
            value: Cluster { name: name.into(), ..Default::default() }.encode_to_vec(),
        };
        let held: HashSet<Arc<str>> = ["a".into(), "b".into()].into();
        let response = DiscoveryResponse { resources: vec![any("a")], ..Default::default() };
        assert_eq!(update(response.clone(), types::CLUSTER, &held).removed, vec!["b".into()]);
        let mut bad = response;
        bad.resources.push(Any { type_url: types::LISTENER.into(), value: vec![] });
        let got = update(bad, types::CLUSTER, &held);
        assert!(got.removed.is_empty() && got.refused.len() == 1 && got.resources.len() == 1);
    }
}
