//! A podman of its own: private storage, private configuration, the CNI backend.
//!
//! Owns every container it made; dropping it removes them (which makes podman call DEL), then its storage. Everything
//! lies below one folder that the caller gives and removes. Containers get the network namespace's CNI
//! configuration from `networks` and plugins from `plugins`; podman itself runs in the caller's network namespace,
//! or in the one it was made for.
//! One podman is used by one thread; several side by side are fine.

use std::{
    ffi::OsStr,
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{NetnsHandle, TestNetns, mounts, poll_until};

/// What the containers run.
pub const IMAGE: &str = "localhost/busybox:1";

/// An address of a container, as podman heard it from the plugin.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Addresses {
    /// The IPv4 address; empty when there is none.
    pub ipv4: String,
    /// The gateway of the IPv4 pool.
    pub gateway: String,
    /// The IPv6 address; empty when there is none.
    pub ipv6: String,
}

/// A podman with private folders.
#[derive(Debug)]
pub struct Podman {
    dir: PathBuf,
    host: Option<NetnsHandle>,
}

impl Podman {
    /// Configures a podman below `dir` and loads the busybox image. It looks for plugins in `plugins` and for
    /// conflists in `networks`; containers that name no network join `default_network`.
    ///
    /// # Errors
    /// When the folder cannot be filled, or podman does not run.
    pub fn new(dir: &Path, plugins: &Path, networks: &Path, default_network: &str) -> Result<Self> {
        Self::made(dir, plugins, networks, default_network, None)
    }

    /// The same on the node whose network namespace `host` is.
    ///
    /// # Errors
    /// As [`Podman::new`].
    pub fn new_in(
        host: &TestNetns,
        dir: &Path,
        plugins: &Path,
        networks: &Path,
        default_network: &str,
    ) -> Result<Self> {
        Self::made(dir, plugins, networks, default_network, Some(host.handle()?))
    }

    fn made(
        dir: &Path,
        plugins: &Path,
        networks: &Path,
        default_network: &str,
        host: Option<NetnsHandle>,
    ) -> Result<Self> {
        fs::create_dir_all(dir.join("tmp")).with_context(|| format!("cannot create {}", dir.display()))?;
        let podman = Self { dir: dir.to_path_buf(), host };
        let write = |name: &str, text: String| {
            let path = podman.dir.join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
        };
        write("containers.conf", containers_conf(dir, plugins, networks, default_network)?)?;
        write("storage.conf", storage_conf(dir))?;
        let image = dir.join("image.tar");
        crate::image::write(&image, &[IMAGE]).context("cannot make the busybox image")?;
        podman.run(["load", "--quiet", "--input"].map(OsStr::new).into_iter().chain([image.as_os_str()]))?;
        Ok(podman)
    }

    /// A podman command with the private configuration.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command =
            self.host.as_ref().map_or_else(|| Command::new("podman"), |host| host.command("podman"));
        command
            .arg("--root")
            .arg(self.dir.join("root"))
            .arg("--runroot")
            .arg(self.dir.join("runroot"))
            .arg("--tmpdir")
            .arg(self.dir.join("tmp"))
            .env("CONTAINERS_CONF", self.dir.join("containers.conf"))
            .env("CONTAINERS_STORAGE_CONF", self.dir.join("storage.conf"))
            .env("TMPDIR", self.dir.join("tmp"))
            .env_remove("XDG_RUNTIME_DIR")
            // A group of its own: a podman that Ctrl-C stops half-way leaves a network namespace nobody knows.
            .process_group(0)
            .stdin(Stdio::null());
        command
    }

    /// Runs podman and returns what it printed.
    ///
    /// # Errors
    /// When it fails; the error has what it complained of.
    pub fn run<I>(&self, arguments: I) -> Result<String>
    where
        I: IntoIterator<Item: AsRef<OsStr>>,
    {
        let mut command = self.command();
        finish(command.args(arguments))
    }

    /// Starts a container called `name` that sleeps, on `networks` (comma-separated), with `options` of `podman run`.
    ///
    /// # Errors
    /// As [`Podman::run`].
    pub fn start(&self, name: &str, networks: &str, options: &[&str]) -> Result<()> {
        let fixed = ["run", "--detach", "--name", name, "--network", networks];
        self.run(fixed.iter().chain(options).chain(&[IMAGE])).map(drop)
    }

    /// What a command inside the container `name` prints.
    ///
    /// # Errors
    /// When the command fails.
    pub fn exec(&self, name: &str, arguments: &[&str]) -> Result<String> {
        self.run(["exec", name].iter().chain(arguments))
    }

    /// Stops and removes a container.
    ///
    /// # Errors
    /// As [`Podman::run`].
    pub fn remove(&self, name: &str) -> Result<()> {
        self.run(["rm", "--force", "--time", "0", name]).map(drop)
    }

    /// The addresses that the container `name` has on `network`.
    ///
    /// # Errors
    /// When podman does not know the container or it is not on that network.
    pub fn addresses(&self, name: &str, network: &str) -> Result<Addresses> {
        let inspected: Value = serde_json::from_str(&self.run(["container", "inspect", name])?)
            .context("podman inspect printed no JSON")?;
        let joined = &inspected[0]["NetworkSettings"]["Networks"][network];
        if joined.is_null() {
            bail!("the container {name} is not on the network {network}");
        }
        let text = |key: &str| joined[key].as_str().unwrap_or_default().to_owned();
        Ok(Addresses { ipv4: text("IPAddress"), gateway: text("Gateway"), ipv6: text("GlobalIPv6Address") })
    }

    /// Removes all containers and unmounts what podman mounted.
    ///
    /// # Errors
    /// When a container cannot be removed, as happens when a plugin's DEL fails.
    pub fn clear(&self) -> Result<()> {
        let mut command = self.command();
        command.args(["rm", "--all", "--force", "--time", "0"]);
        let removed = finish(&mut command).map(drop);
        // A container that ended has its clean-up done by a podman of its own, which mounts the storage again.
        let busy = poll_until(PATIENCE, "podman's own clean-up to end", || !has_processes(&self.dir));
        let unmounted = mounts::unmount_below(&self.dir).context("cannot unmount podman's storage");
        removed.and(busy).and(unmounted)
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        if let Err(error) = self.clear() {
            eprintln!("podman in {} is not clean: {error:#}", self.dir.display());
        }
    }
}

/// How long podman may take to clean up after its containers.
const PATIENCE: Duration = Duration::from_secs(20);

/// Whether some process has the folder in its arguments, as every podman and conmon of ours has.
fn has_processes(dir: &Path) -> bool {
    let dir = dir.as_os_str().as_encoded_bytes();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut arguments = processes.filter_map(|process| fs::read(process.path().join("cmdline")).ok());
    arguments.any(|line| line.windows(dir.len()).any(|part| part == dir))
}

/// Waits for `command`; its output, or an error with its complaint.
fn finish(command: &mut Command) -> Result<String> {
    let output = command.output().context("cannot run podman")?;
    if !output.status.success() {
        let arguments: Vec<_> = command.get_args().skip(6).map(OsStr::to_string_lossy).collect();
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("`podman {}` failed: {}: {}", arguments.join(" "), output.status, complaint.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn containers_conf(dir: &Path, plugins: &Path, networks: &Path, default_network: &str) -> Result<String> {
    let runc = ["/usr/sbin/runc", "/usr/bin/runc"].into_iter().find(|path| Path::new(path).exists());
    let runc = runc.context("runc is not installed: run `cargo xtask setup`")?;
    let (dir, plugins, networks) = (dir.display(), plugins.display(), networks.display());
    // Without ulimits of their own, containers ask for limits above the caller's, which needs CAP_SYS_RESOURCE.
    Ok(format!(
        r#"[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
base_hosts_file = "none"
log_driver = "k8s-file"

[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
runtime = "runc"
tmp_dir = "{dir}/tmp"
static_dir = "{dir}/static"
volume_path = "{dir}/volumes"

[engine.runtimes]
runc = ["{runc}"]

[network]
network_backend = "cni"
cni_plugin_dirs = ["{plugins}"]
network_config_dir = "{networks}"
default_network = "{default_network}"
"#
    ))
}

fn storage_conf(dir: &Path) -> String {
    let dir = dir.display();
    format!("[storage]\ndriver = \"overlay\"\ngraphroot = \"{dir}/root\"\nrunroot = \"{dir}/runroot\"\n")
}

#[cfg(test)]
mod tests {
    use std::thread;

    use nix::sched::{CloneFlags, unshare};

    use super::*;

    /// The reference plugins show that this podman works, whatever becomes of Weft.
    const NETWORK: &str = r#"{"cniVersion":"0.4.0","name":"plain","plugins":[{"type":"bridge","bridge":"plain0",
        "isGateway":true,"ipam":{"type":"host-local","ranges":[[{"subnet":"10.231.0.0/24"}]],"dataDir":"DIR/ipam"}}]}"#;

    #[test]
    fn containers_join_a_network_and_leave_nothing() {
        // A network namespace for this thread and what it starts.
        let in_namespace = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let dir = tempfile::tempdir().unwrap();
            let networks = dir.path().join("networks");
            fs::create_dir(&networks).unwrap();
            let conflist = NETWORK.replace("DIR", &dir.path().to_string_lossy());
            fs::write(networks.join("plain.conflist"), conflist).unwrap();

            let podman =
                Podman::new(&dir.path().join("podman"), Path::new("/usr/lib/cni"), &networks, "plain")
                    .unwrap();
            podman.start("a", "plain", &[]).unwrap();
            podman.start("b", "plain", &[]).unwrap();
            let b = podman.addresses("b", "plain").unwrap();
            assert_eq!(b.gateway, "10.231.0.1");
            podman.exec("a", &["ping", "-c", "1", "-w", "5", &b.ipv4]).unwrap();
            assert!(podman.exec("a", &["ping", "-c", "1", "-W", "1", "10.231.0.250"]).is_err());
            assert!(podman.addresses("a", "other").is_err());

            podman.remove("a").unwrap();
            drop(podman);
            let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
            assert!(!mounts.contains(&*dir.path().to_string_lossy()), "{mounts}");
            let leases = fs::read_dir(dir.path().join("ipam/plain")).unwrap().flatten();
            let held: Vec<_> = leases
                .map(|lease| lease.file_name())
                .filter(|n| n.to_string_lossy().starts_with("10."))
                .collect();
            assert!(held.is_empty(), "{held:?}");
        };
        thread::spawn(in_namespace).join().unwrap();
    }
}
