//! How many workers to start: cores by affinity, cut by the cgroup's CPU quota (v1 and v2), so that a limited container does
//! not start more threads than it is granted time for. Called once by the command line.

use std::path::{Path, PathBuf};

/// Cores that this process may run on.
pub fn online() -> usize {
    affinity(&std::fs::read_to_string("/proc/self/status").unwrap_or_default())
        .or_else(|| std::thread::available_parallelism().ok().map(usize::from))
        .unwrap_or(1)
}

/// Cores by affinity and quota; a started part of a core counts as one.
pub fn granted() -> usize {
    let quota = quota(Path::new("/sys/fs/cgroup"), &std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default());
    quota.map_or(usize::MAX, |q| q.ceil().max(1.0) as usize).min(online()).max(1)
}

/// Number of cores in `Cpus_allowed_list` of /proc/self/status.
fn affinity(status: &str) -> Option<usize> {
    let list = status.lines().find_map(|l| l.strip_prefix("Cpus_allowed_list:"))?.trim();
    let mut count = 0usize;
    for part in list.split(',') {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let (from, to): (usize, usize) = (from.parse().ok()?, to.parse().ok()?);
        count = count.saturating_add(to.checked_sub(from)?).saturating_add(1);
    }
    (count > 0).then_some(count)
}

/// The smallest quota from this process's cgroup up to the root, in cores. `cgroup` is /proc/self/cgroup.
fn quota(root: &Path, cgroup: &str) -> Option<f64> {
    let mut least: Option<f64> = None;
    let mut consider = |q: Option<f64>| {
        if let Some(q) = q {
            least = Some(least.map_or(q, |l: f64| l.min(q)));
        }
    };
    for line in cgroup.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else { continue };
        let path = path.trim_start_matches('/');
        if controllers.is_empty() {
            for dir in upward(root, path) {
                consider(v2(&dir));
            }
        } else if controllers.split(',').any(|c| c == "cpu") {
            for base in [root.join("cpu"), root.join("cpu,cpuacct")] {
                for dir in upward(&base, path) {
                    consider(v1(&dir));
                }
            }
        }
    }
    least
}

/// `root/a/b`, `root/a`, `root`. Inside a container the path may not exist below the mount, and the root is its own cgroup.
fn upward(root: &Path, path: &str) -> Vec<PathBuf> {
    let mut all = vec![root.to_path_buf()];
    let mut dir = root.to_path_buf();
    for part in path.split('/').filter(|p| !p.is_empty() && *p != "..") {
        dir.push(part);
        all.push(dir.clone());
    }
    all
}

fn v2(dir: &Path) -> Option<f64> {
    let text = std::fs::read_to_string(dir.join("cpu.max")).ok()?;
    let mut parts = text.split_whitespace();
    cores(parts.next()?.parse().ok()?, parts.next()?.parse().ok()?)
}

fn v1(dir: &Path) -> Option<f64> {
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).ok()?.trim().parse().ok();
    cores(read("cpu.cfs_quota_us")?, read("cpu.cfs_period_us")?)
}

fn cores(quota: f64, period: f64) -> Option<f64> {
    (quota > 0.0 && period > 0.0).then(|| quota / period)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_ranges_of_the_affinity_list() {
        assert_eq!(affinity("Name:\tx\nCpus_allowed_list:\t0-3,8,10-11\n"), Some(7));
        assert_eq!(affinity("Cpus_allowed_list:\t3-0\n"), None);
    }

    #[test]
    fn the_smallest_quota_on_the_way_up_counts() {
        let root = std::env::temp_dir().join(format!("nuncio-cores-{}", std::process::id()));
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        std::fs::write(root.join("a/cpu.max"), "150000 100000\n").unwrap();
        std::fs::write(root.join("a/b/cpu.max"), "max 100000\n").unwrap();
        assert_eq!(quota(&root, "0::/a/b\n"), Some(1.5));
        assert_eq!(quota(&root, "0::/a/../..\n"), Some(1.5));
        assert_eq!(quota(&root, "0::/\n"), None);
        std::fs::create_dir_all(root.join("cpu/x")).unwrap();
        std::fs::write(root.join("cpu/x/cpu.cfs_quota_us"), "-1").unwrap();
        std::fs::write(root.join("cpu/x/cpu.cfs_period_us"), "100000").unwrap();
        std::fs::write(root.join("cpu/cpu.cfs_quota_us"), "50000").unwrap();
        std::fs::write(root.join("cpu/cpu.cfs_period_us"), "100000").unwrap();
        assert_eq!(quota(&root, "4:cpu,cpuacct:/x\n"), Some(0.5));
        std::fs::remove_dir_all(&root).unwrap();
    }
}
