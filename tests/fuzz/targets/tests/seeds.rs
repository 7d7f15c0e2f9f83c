//! Every target treats its seeds well: those that were written to show the way, and those that once did harm.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;

#[test]
fn seeds_do_no_harm() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../seeds");
    for (name, target) in nuncio_fuzz_targets::TARGETS {
        let mut count = 0;
        for entry in std::fs::read_dir(seeds.join(name)).unwrap_or_else(|error| panic!("{name}: {error}")) {
            let data = std::fs::read(entry.unwrap().path()).unwrap();
            target(&data);
            // Cut off anywhere, it is a seed too.
            for len in [0, data.len() / 3, data.len() / 2, data.len().saturating_sub(1)] {
                target(&data[..len]);
            }
            count += 1;
        }
        assert!(count > 0, "{name} has no seeds");
    }
}

#[test]
fn no_seed_is_of_an_unknown_target() {
    for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../seeds")).unwrap() {
        let name = entry.unwrap().file_name();
        assert!(nuncio_fuzz_targets::TARGETS.iter().any(|(known, _)| name == *known), "{name:?}");
    }
}
