//! The binary under test: started with a bootstrap, watched, stopped.

use crate::client::{self, Reply};
use crate::eventually;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Where the binary is: `NUNCIO_BIN`, else the newest of this workspace's builds.
pub fn binary() -> PathBuf {
    if let Ok(path) = std::env::var("NUNCIO_BIN") {
        return PathBuf::from(path).canonicalize().expect("NUNCIO_BIN names the binary");
    }
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    let built = |profile: &str| {
        let path = target.join(profile).join("nuncio");
        path.metadata().and_then(|m| m.modified()).ok().map(|at| (at, path))
    };
    [built("debug"), built("release")].into_iter().flatten().max().expect("no nuncio binary; run `cargo build -p nuncio` first").1
}

/// A running gateway with its folder of configuration. Killed and cleaned up when dropped.
pub struct Gateway {
    child: Child,
    pub dir: PathBuf,
    pub admin: SocketAddr,
}

/// Where gateways have their files: in memory where that is, because a rename on a busy disk may wait for seconds while the gateway's
/// drain time runs.
fn folder() -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    if memory.is_dir() { memory } else { std::env::temp_dir() }
}

impl Gateway {
    /// Starts the binary in a fresh folder. `files` are written there first; one must be `bootstrap.yaml`. Waits until it is live.
    pub fn start(admin_port: u16, files: &[(&str, String)]) -> Self {
        let gateway = Self::launch(admin_port, files, &[]);
        gateway.wait_ready();
        gateway
    }
    /// As [`Self::start`], with more arguments and without the wait.
    pub fn launch(admin_port: u16, files: &[(&str, String)], args: &[&str]) -> Self {
        let dir = folder().join(format!("nuncio-test-{}-{admin_port}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        for (name, text) in files {
            std::fs::write(dir.join(name), text).unwrap();
        }
        let log = std::fs::File::create(dir.join("log.txt")).unwrap();
        let child = Command::new(binary())
            .current_dir(&dir)
            .args(["-c", "bootstrap.yaml", "--concurrency", "2", "--drain-time-s", "2", "--file-flush-interval-msec", "50"])
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::from(std::fs::File::create(dir.join("stdout.txt")).unwrap()))
            .stderr(Stdio::from(log))
            .spawn()
            .expect("start nuncio");
        Self { child, dir, admin: ([127, 0, 0, 1], admin_port).into() }
    }
    /// Waits for `/ready` to say LIVE.
    pub fn wait_ready(&self) {
        let log = self.dir.join("log.txt");
        eventually(&format!("gateway readiness (log: {})", log.display()), || {
            client::get(self.admin, "admin", "/ready").is_ok_and(|r| r.status == 200)
        });
    }
    /// An admin answer.
    pub fn admin(&self, path: &str) -> Reply {
        client::get(self.admin, "admin", path).expect("admin answers")
    }
    /// A POST to admin.
    pub fn admin_post(&self, path: &str) -> Reply {
        client::request(self.admin, "POST", "admin", path, &[("content-length", "0")], &[]).expect("admin answers")
    }
    /// A counter or gauge by its full name; 0 if it was never written.
    pub fn stat(&self, name: &str) -> u64 {
        let all = self.admin("/stats").text();
        all.lines().filter_map(|l| l.split_once(": ")).find(|(n, _)| *n == name).and_then(|(_, v)| v.parse().ok()).unwrap_or(0)
    }
    /// Replaces a file as configuration tools do: written beside it, then renamed over it.
    pub fn write(&self, name: &str, text: &str) {
        let temporary = self.dir.join(format!(".{name}.new"));
        let mut file = std::fs::File::create(&temporary).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        drop(file);
        std::fs::rename(temporary, self.dir.join(name)).unwrap();
    }
    /// What it printed to stdout (access logs) so far.
    pub fn stdout(&self) -> String {
        std::fs::read_to_string(self.dir.join("stdout.txt")).unwrap_or_default()
    }
    /// What it logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log.txt")).unwrap_or_default()
    }
    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
    /// Sends SIGTERM.
    pub fn terminate(&self) {
        let _sent = Command::new("kill").arg(self.child.id().to_string()).status();
    }
    /// Waits for the exit code; none after 20 s or if a signal ended it.
    pub fn exit_code(&mut self) -> Option<i32> {
        let mut code = None;
        eventually("exit", || {
            code = self.child.try_wait().unwrap();
            code.is_some()
        });
        code.and_then(|c| c.code())
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _killed = self.child.kill();
        let _reaped = self.child.wait();
        if !std::thread::panicking() {
            let _removed = std::fs::remove_dir_all(&self.dir);
        }
    }
}
