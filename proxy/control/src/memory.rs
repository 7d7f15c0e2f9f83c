//! What the process uses, as the kernel counts it: `/memory` and `server.memory_*`.

/// Bytes of memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Resident, files and shared memory included.
    pub resident: u64,
    /// Resident and not backed by a file: heap and stacks.
    pub resident_anonymous: u64,
    /// Private writable address space.
    pub data: u64,
}

/// Reads /proc/self/status; zeros if it cannot be read.
pub fn read() -> Memory {
    parse(&std::fs::read_to_string("/proc/self/status").unwrap_or_default())
}

fn parse(status: &str) -> Memory {
    let field = |name: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0).saturating_mul(1024)
    };
    Memory { resident: field("VmRSS"), resident_anonymous: field("RssAnon"), data: field("VmData") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_kilobytes() {
        let text = "Name:\tx\nVmRSS:\t    2048 kB\nRssAnon:\t 1024 kB\nVmData:\t 4096 kB\n";
        assert_eq!(parse(text), Memory { resident: 2 << 20, resident_anonymous: 1 << 20, data: 4 << 20 });
        assert!(read().resident > 0);
    }
}
