//! Gives back the memory of code and constants that only starting up or a large update needed. Control thread.
//!
//! Pages of the executable that were touched once stay mapped, and count as resident, until the machine is short of memory: 17 MB
//! for a gateway that then serves from two. Letting them go costs nothing that lasts: what is needed again comes back
//! from the page cache without reading a disk, 64 KB at a time.

use crate::sys;
use std::path::Path;

/// A mapping of the executable that holds nothing but what is in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Clean {
    pub start: usize,
    pub end: usize,
}

/// Lets go of the executable's code and constants; returns how many bytes of address space were let go of, resident or not.
pub fn release() -> usize {
    let Ok(exe) = std::fs::read_link("/proc/self/exe") else { return 0 };
    let Ok(maps) = std::fs::read_to_string("/proc/self/smaps") else { return 0 };
    clean(&maps, &exe).into_iter().filter(|m| sys::release(*m)).map(|m| m.end - m.start).sum()
}

/// The private, read-only mappings of `exe` in `smaps` that have no page of their own. One that was written before it became
/// read-only (relocated constants, a debugger's breakpoint) must stay: what was written would be lost.
fn clean(smaps: &str, exe: &Path) -> Vec<Clean> {
    let mut found = Vec::new();
    let mut candidate = None;
    for line in smaps.lines() {
        if let Some(own) = line.strip_prefix("Anonymous:") {
            if let Some(mapping) = candidate.take().filter(|_| own.trim() == "0 kB") {
                found.push(mapping);
            }
        } else if let Some(head) = heading(line) {
            candidate = head.filter(|(_, path)| Path::new(path) == exe).map(|(mapping, _)| mapping);
        }
    }
    found
}

/// `start-end perms offset device inode path`: none if `line` is no heading, nothing inside if the mapping is not private and
/// read-only.
fn heading(line: &str) -> Option<Option<(Clean, &str)>> {
    let (range, rest) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    let (perms, rest) = rest.split_once(' ')?;
    let path = rest.splitn(4, ' ').nth(3).unwrap_or_default().trim_start();
    let private = matches!(perms, "r--p" | "r-xp") && start < end;
    Some(private.then_some((Clean { start, end }, path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
5500-5600 r--p 00000000 08:01 77                         /usr/bin/a proxy
Rss:                 256 kB
Anonymous:             0 kB
VmFlags: rd mr mw me
5600-5700 r-xp 00000100 08:01 77                         /usr/bin/a proxy
Anonymous:             0 kB
5700-5800 r--p 00000200 08:01 77                         /usr/bin/a proxy
Anonymous:           644 kB
5800-5900 rw-p 00000300 08:01 77                         /usr/bin/a proxy
Anonymous:             0 kB
5900-5a00 r-xp 00000000 08:01 78                         /usr/lib/libc.so.6
Anonymous:             0 kB
7ffc-7ffd r--p 00000000 00:00 0                          [vvar]
Anonymous:             0 kB
6000-6100 rw-p 00000000 00:00 0 
Anonymous:             0 kB
";

    #[test]
    fn only_what_is_as_in_the_file_is_let_go_of() {
        let found = clean(SMAPS, Path::new("/usr/bin/a proxy"));
        assert_eq!(found, [Clean { start: 0x5500, end: 0x5600 }, Clean { start: 0x5600, end: 0x5700 }]);
        assert_eq!(clean(SMAPS, Path::new("/usr/bin/a")), []);
        assert_eq!(clean("", Path::new("")), []);
    }

    /// Constants that are only touched here, so that they are resident before and not after.
    static LARGE: [u8; 4 << 20] = {
        let mut all = [0u8; 4 << 20];
        let mut i = 0;
        while i < all.len() {
            all[i] = (i / 4096 % 251) as u8 + 1;
            i += 4096;
        }
        all
    };

    fn sum() -> u64 {
        std::hint::black_box(&LARGE).iter().step_by(4096).map(|b| u64::from(*b)).sum()
    }

    /// Pages of `LARGE` that are mapped now: the top bits in /proc/self/pagemap.
    fn mapped() -> usize {
        use std::os::unix::fs::FileExt;
        let first = LARGE.as_ptr().addr() / 4096;
        let mut entries = vec![0u8; LARGE.len() / 4096 * 8];
        std::fs::File::open("/proc/self/pagemap").unwrap().read_exact_at(&mut entries, first as u64 * 8).unwrap();
        entries.chunks_exact(8).filter(|e| e[7] & 0x80 != 0).count()
    }

    #[test]
    fn constants_come_back_when_they_are_read_again() {
        let before = sum();
        assert!(mapped() > 900, "{} pages", mapped());
        assert!(release() >= LARGE.len());
        // Other tests may touch what lies next to it.
        assert!(mapped() < 100, "{} pages", mapped());
        assert_eq!(sum(), before);
    }
}
