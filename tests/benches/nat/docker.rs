//! A Docker of its own: a dockerd in a node's network namespace and a mount namespace, with private folders, its default
//! rules and docker-proxy. One container, whose servers are published.
//!
//! Dropping it removes the container, ends dockerd (and with it the containerd that it started), and then the folders.

use crate::{
    shared::instruments::Servers,
    way::{OUTSIDE, PORTS, SHIFT, forward, outside, servers},
};
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};
use tempfile::TempDir;
use weft_tests::{Guarded, NetnsHandle, TestNetns, image, podman::IMAGE, poll_until};

/// How long dockerd may take to start and to stop.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs dockerd, in a mount namespace, with the machine's own Docker and containerd out of sight.
const START: &str = "
for hidden in /run/docker /run/containerd; do
    if [ -d $hidden ]; then mount -t tmpfs tmpfs $hidden; fi
done
exec dockerd \"$@\"";

/// Debian's, before a newer one elsewhere on the path.
const CLIENTS: [&str; 2] = ["/usr/bin/docker", "/usr/local/bin/docker"];

/// A node with Docker; servers listen in the container and outside.
pub(crate) struct Docker {
    _servers: [Servers; 2],
    daemon: Daemon,
    pub(crate) outside: TestNetns,
    pub(crate) host: TestNetns,
}

/// dockerd and its folders.
struct Daemon {
    process: Guarded,
    client: &'static str,
    dir: TempDir,
}

impl Docker {
    pub(crate) fn new() -> Result<Self> {
        let host = TestNetns::named("host")?;
        forward(&host)?;
        let outside = outside(&host, None)?;
        let daemon = Daemon::start(&host)?;
        let archive = daemon.dir.path().join("image.tar");
        image::write(&archive, &[IMAGE]).context("making the busybox image")?;
        daemon.run(&["load", "--quiet", "--input", &archive.to_string_lossy()])?;
        let published = PORTS.map(|port| format!("--publish={}:{port}", port + SHIFT));
        let mut arguments = vec!["run", "--detach", "--name", "bench"];
        arguments.extend(published.iter().map(String::as_str));
        arguments.push(IMAGE);
        daemon.run(&arguments)?;
        let pid = daemon.run(&["inspect", "--format", "{{.State.Pid}}", "bench"])?;
        let container = NetnsHandle::open(&Path::new("/proc").join(pid.trim()).join("ns/net"))?;
        let pinged = container.command("ping").args(["-c", "1", "-W", "5", OUTSIDE]).output();
        ensure!(
            pinged.context("running ping")?.status.success(),
            "Docker's container does not reach the outside"
        );
        let servers = [servers(&container)?, servers(&outside.handle()?)?];
        Ok(Self { _servers: servers, daemon, outside, host })
    }

    /// What the server says that it is.
    pub(crate) fn version(&self) -> Result<String> {
        let said = self.daemon.run(&["version", "--format", "{{.Server.Version}}"])?;
        Ok(said.trim().to_owned())
    }
}

impl Daemon {
    fn start(host: &TestNetns) -> Result<Self> {
        let client = CLIENTS.into_iter().find(|path| Path::new(path).exists());
        let client = client.context("docker is not installed: run `cargo xtask setup`")?;
        let dir = tempfile::Builder::new().prefix("weft-docker-").tempdir().context("making a folder")?;
        let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
        fs::write(dir.path().join("daemon.json"), "{}").context("writing dockerd's configuration")?;
        let log = File::create(dir.path().join("log")).context("making dockerd's log")?;
        let mut command = host.command("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-euc", START, "sh"]);
        command.args(["--data-root", &path("data"), "--exec-root", &path("exec"), "--pidfile", &path("pid")]);
        command.args([
            "--host",
            &format!("unix://{}", path("socket")),
            "--config-file",
            &path("daemon.json"),
        ]);
        command.args(["--bip", "10.235.0.1/24"]);
        command.stdout(log.try_clone().context("sharing dockerd's log")?).stderr(log);
        let process = Guarded::spawn(&mut command).context("running dockerd")?;
        let mut daemon = Self { process, client, dir };
        let mut ended = false;
        let waited = poll_until(PATIENCE, "dockerd to answer", || {
            ended = !matches!(daemon.process.ended(), Ok(None));
            ended || daemon.run(&["version"]).is_ok()
        });
        let log = || fs::read_to_string(daemon.dir.path().join("log")).unwrap_or_default();
        waited.with_context(log)?;
        ensure!(!ended, "dockerd ended:\n{}", log());
        Ok(daemon)
    }

    /// What a docker command prints.
    fn run(&self, arguments: &[&str]) -> Result<String> {
        let socket: PathBuf = self.dir.path().join("socket");
        let mut command = Command::new(self.client);
        command.arg("--host").arg(format!("unix://{}", socket.display())).args(arguments);
        // The settings of whoever runs this are not ours.
        command.env("DOCKER_CONFIG", self.dir.path()).env_remove("DOCKER_HOST").env_remove("DOCKER_CONTEXT");
        let output = command.output().context("running docker")?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "docker {}: {}", arguments.join(" "), complaint.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // The container first: dockerd would leave it running. A dockerd that never started has none.
        let _ = self.run(&["rm", "--force", "bench"]);
        let stopped = self.process.signal(Signal::SIGTERM).and_then(|()| self.process.wait(PATIENCE));
        if let Err(error) = stopped {
            eprintln!("dockerd did not stop and is killed: {error:#}");
        }
    }
}
