//! Certificates for tests, made by the `openssl` command.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A folder with `ca.pem` and what was issued by it.
pub struct Authority {
    pub dir: PathBuf,
}

fn openssl(dir: &Path, args: &[&str]) {
    let done = Command::new("openssl").current_dir(dir).args(args).stdin(Stdio::null()).output().expect("openssl is installed");
    assert!(done.status.success(), "openssl {args:?}: {}", String::from_utf8_lossy(&done.stderr));
}

impl Authority {
    /// A new authority in a folder of its own.
    pub fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("nuncio-ca-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        openssl(
            &dir,
            &[
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
                "-nodes",
                "-days",
                "2",
                "-subj",
                "/CN=ca",
                "-keyout",
                "ca.key",
                "-out",
                "ca.pem",
            ],
        );
        Self { dir }
    }
    /// Issues `<name>.pem` and `<name>.key` for `san` (openssl's form, such as `DNS:a.example`).
    pub fn issue(&self, name: &str, san: &str) {
        let (csr, pem, key, ext) = (format!("{name}.csr"), format!("{name}.pem"), format!("{name}.key"), format!("{name}.ext"));
        std::fs::write(self.dir.join(&ext), format!("subjectAltName={san}\n")).unwrap();
        let subject = format!("/CN={name}");
        openssl(
            &self.dir,
            &[
                "req",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
                "-nodes",
                "-subj",
                &subject,
                "-keyout",
                &key,
                "-out",
                &csr,
            ],
        );
        openssl(
            &self.dir,
            &[
                "x509",
                "-req",
                "-in",
                &csr,
                "-CA",
                "ca.pem",
                "-CAkey",
                "ca.key",
                "-CAcreateserial",
                "-days",
                "2",
                "-extfile",
                &ext,
                "-out",
                &pem,
            ],
        );
    }
    /// The path of a file of this authority.
    pub fn path(&self, file: &str) -> String {
        self.dir.join(file).display().to_string()
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        let _removed = std::fs::remove_dir_all(&self.dir);
    }
}
