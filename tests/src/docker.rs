//! A Docker daemon on a node, with its own rules there and everything else in a private folder.

use crate::{CgroupDir, Guarded, Node, TestNetns, image, poll_until};
use anyhow::{Context, Result, bail};
use std::{
    fs::{self, File},
    path::Path,
    sync::Arc,
    time::Duration,
};
use tempfile::TempDir;

/// How long it may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Debian's own; another client may come first in `PATH`.
const CLIENT: &str = "/usr/bin/docker";

const IMAGE: &str = "localhost/busybox:1";

/// A running daemon with `docker0`. Dropping it removes its containers and ends it.
#[derive(Debug)]
pub struct Docker {
    daemon: Guarded,
    socket: String,
    dir: TempDir,
    // Its processes are in it.
    _cgroup: Arc<CgroupDir>,
}

impl Docker {
    /// Starts one in a node's namespace.
    ///
    /// # Errors
    /// docker.io is not installed (`cargo xtask setup`), or the daemon does not come up; the message has its log.
    pub fn start(node: &Node) -> Result<Self> {
        let dir =
            tempfile::Builder::new().prefix("weft-docker-").tempdir().context("making Docker's folder")?;
        let at = |name: &str| dir.path().join(name).display().to_string();
        fs::write(at("daemon.json"), "{}").context("writing daemon.json")?;
        let log = File::create(at("log")).context("making Docker's log")?;
        // It wants /run/docker for itself whatever it is told.
        let script = format!(
            "mkdir -p /run/docker && mount -t tmpfs none /run/docker && exec dockerd --data-root {} --exec-root {} \
             --pidfile {} --host unix://{} --config-file {} --cgroup-parent {} --storage-driver vfs",
            at("data"),
            at("exec"),
            at("pid"),
            at("docker.sock"),
            at("daemon.json"),
            docker_cgroup(dir.path()),
        );
        let mut command = node.netns().command("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", &script]);
        let daemon = Guarded::spawn(command.stdout(log.try_clone()?).stderr(log))?;
        let mut docker = Self {
            daemon,
            socket: format!("unix://{}", at("docker.sock")),
            dir,
            _cgroup: Arc::clone(node.cgroup_dir()),
        };
        let mut ended = false;
        let up = poll_until(PATIENCE, "dockerd to answer", || {
            ended = docker.daemon.ended().is_ok_and(|status| status.is_some());
            ended || docker.call(&["version"]).is_ok()
        });
        if ended || up.is_err() {
            let log = fs::read_to_string(docker.dir.path().join("log")).unwrap_or_default();
            bail!("dockerd did not come up:\n{log}");
        }
        let archive = docker.dir.path().join("image.tar");
        image::write(&archive, &[IMAGE]).context("writing an image")?;
        docker.call(&["load", "--input", &archive.display().to_string()])?;
        Ok(docker)
    }

    /// Runs the client and returns what it prints.
    ///
    /// # Errors
    /// It does not succeed.
    pub fn call(&self, arguments: &[&str]) -> Result<String> {
        let output = std::process::Command::new(CLIENT)
            .args(["--host", &self.socket])
            .args(arguments)
            .output()
            .with_context(|| format!("running {CLIENT}"))?;
        if !output.status.success() {
            bail!("docker {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Starts a container that sleeps, with further options, and returns its namespace.
    ///
    /// # Errors
    /// Docker refuses.
    pub fn run(&self, name: &str, options: &[&str]) -> Result<TestNetns> {
        let arguments = [&["run", "--detach", "--name", name], options, &[IMAGE]].concat();
        self.call(&arguments)?;
        let pid = self.call(&["inspect", "--format", "{{.State.Pid}}", name])?;
        TestNetns::adopt(Path::new(&format!("/proc/{pid}/ns/net")))
    }

    /// The address of a container on `docker0`.
    ///
    /// # Errors
    /// It has none.
    pub fn address(&self, name: &str) -> Result<std::net::IpAddr> {
        let text = self.call(&["inspect", "--format", "{{.NetworkSettings.IPAddress}}", name])?;
        text.parse().with_context(|| format!("address {text:?} of {name}"))
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        // Nobody is left to tell.
        if let Ok(names) = self.call(&["ps", "--all", "--quiet"]) {
            for name in names.split_whitespace() {
                let _ = self.call(&["rm", "--force", name]);
            }
        }
        // It ends its own containerd on SIGTERM, not when it is killed.
        let _ = self.daemon.signal(nix::sys::signal::Signal::SIGTERM);
        let _ = self.daemon.wait(PATIENCE);
        let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
        for hierarchy in hierarchies {
            let _ = fs::remove_dir(hierarchy.path().join(docker_cgroup(self.dir.path())));
        }
    }
}

/// The name of the cgroups that its containers are in, below the root of each hierarchy.
fn docker_cgroup(dir: &Path) -> String {
    dir.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
