//! Every example is loaded.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use nuncio_tests::gateway::binary;
use std::path::Path;
use std::process::Command;

#[test]
fn examples_are_valid() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    for (folder, file) in [
        (".", "gateway.yaml"),
        (".", "concurrency-queue.yaml"),
        (".", "api-keys.yaml"),
        (".", "jwt-claims.yaml"),
        (".", "signed-requests.yaml"),
        (".", "signed-links.yaml"),
        ("file-xds", "bootstrap.yaml"),
    ] {
        let out = Command::new(binary()).current_dir(examples.join(folder)).args(["--mode", "validate", "-c", file]).output().unwrap();
        assert!(out.status.success(), "{file}: {}", String::from_utf8_lossy(&out.stderr));
    }
}
