//! A containerd of its own, driven through CRI as a kubelet drives it.
//!
//! Owns the process, its pods, its folders and its mounts; dropping it removes pods (which makes containerd call DEL), then
//! the process, then mounts and folders, also when a test fails halfway or has killed the process. It runs in the network
//! namespace of a node, and in a mount namespace where the paths that containerd fixes (`/run/containerd`, `/var/lib/cni`)
//! are private; the sandboxes' namespaces are mounted below its state folder, which is shared with the host as on a real
//! node, because ipamd opens them. Several side by side are fine; one is used by one thread.

use std::{
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{
    mount::{MsFlags, mount, umount},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use crate::{
    Guarded, NetnsHandle, TestNetns,
    cri::{Cri, PodConfig, PodMetadata},
    image, mounts, poll_for, poll_until,
};

/// What the containers run.
pub const IMAGE: &str = "localhost/busybox:1";

/// What keeps a pod's namespaces alive.
const PAUSE_IMAGE: &str = "localhost/pause:1";

/// How long containerd may take to start or to stop.
const PATIENCE: Duration = Duration::from_secs(20);

/// How many bytes of the log a failure shows.
const LOG_TAIL: usize = 3000;

/// Where containerd keeps the bundles of containers, below its state folder.
const BUNDLES: &str = "io.containerd.runtime.v2.task/k8s.io";

/// Makes the mounts of the node private here except the state folder, covers the fixed paths, and becomes containerd.
const START: &str = r#"
while read -r _ _ _ _ point _ flag _; do
    case "$flag" in shared:*) [ "$point" = "$1/state" ] || mount --make-private "$point" || exit 1;; esac
done < /proc/self/mountinfo
mount --bind "$1/run" /run/containerd && mount --bind "$1/cni-cache" /var/lib/cni || exit 1
exec containerd --config "$1/config.toml"
"#;

/// A running pod with one container.
#[derive(Debug, Clone)]
pub struct Pod {
    /// Id of the pod, which is `CNI_CONTAINERID`.
    pub id: String,
    /// Id of its container.
    pub container: String,
    /// Its addresses as the runtime reports them, the main one first.
    pub ips: Vec<String>,
}

/// A containerd with private folders.
#[derive(Debug)]
pub struct Containerd {
    process: Option<Guarded>,
    cri: Cri,
    host: NetnsHandle,
    snapshotter: &'static str,
    dir: TempDir,
}

impl Containerd {
    /// Starts one on the node whose namespace `host` is, with CNI plugins from `plugins` (`loopback` must be there) and
    /// the first conflist of `networks`. It has the busybox image.
    ///
    /// # Errors
    /// Not root, a package is missing, or containerd does not become ready; the message has the end of its log.
    pub fn start_new(host: &TestNetns, plugins: &Path, networks: &Path) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("weft-containerd-").tempdir();
        let dir = dir.context("making a folder for containerd")?;
        let path = dir.path();
        for part in ["root", "state", "run", "cni-cache"] {
            fs::create_dir(path.join(part)).with_context(|| format!("making {part}"))?;
        }
        // The mount points must exist to be covered; they are empty folders of containerd's package elsewhere.
        for fixed in ["/run/containerd", "/var/lib/cni"] {
            fs::create_dir_all(fixed).with_context(|| format!("making {fixed}"))?;
        }
        let state = path.join("state");
        mount(Some(&state), &state, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .context("mounting containerd's state folder: tests need root")?;
        let cri = Cri::new(&path.join("containerd.sock"))?;
        // From here on dropping it cleans up.
        let snapshotter = if overlay_works(path) { "overlayfs" } else { "native" };
        let mut made = Self { process: None, cri, host: host.handle()?, snapshotter, dir };
        mount(None::<&str>, &state, None::<&str>, MsFlags::MS_SHARED, None::<&str>)
            .context("sharing containerd's state folder")?;
        let settings = made.settings(plugins, networks)?;
        fs::write(made.dir.path().join("config.toml"), settings).context("writing config.toml")?;
        made.start()?;
        made.load_images()?;
        Ok(made)
    }

    /// Starts it, again after [`Self::kill`], and waits until it is ready.
    ///
    /// # Errors
    /// It runs already, or does not become ready.
    pub fn start(&mut self) -> Result<()> {
        if self.process.is_some() {
            bail!("containerd runs already");
        }
        let log = OpenOptions::new().create(true).append(true).open(self.log_path());
        let log = log.context("opening containerd's log")?;
        let mut command = self.host.command("unshare");
        command
            .args(["--mount", "--propagation", "unchanged", "sh", "-c", START, "sh"])
            .arg(self.dir.path())
            .env_remove("NOTIFY_SOCKET")
            .stdout(log.try_clone().context("opening containerd's log twice")?)
            .stderr(log);
        let process = self.process.insert(Guarded::spawn(&mut command)?);
        let cri = &mut self.cri;
        let mut last = String::new();
        let found =
            poll_for(PATIENCE, "containerd to be ready", || match (process.ended(), cri.is_ready()) {
                (Ok(Some(status)), _) => Some(Err(status)),
                (_, Ok(true)) => Some(Ok(())),
                (_, answer) => {
                    last = format!("{answer:?}");
                    None
                }
            });
        match found {
            Ok(Ok(())) => Ok(()),
            Ok(Err(status)) => bail!("containerd ended with {status}\n{}", self.log_tail()),
            Err(error) => Err(error.context(format!("{last}\n{}", self.log_tail()))),
        }
    }

    /// Kills it (SIGKILL); its containers run on.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().context("containerd does not run")?.kill().map(drop)
    }

    /// The interface that a kubelet calls.
    pub fn cri(&mut self) -> &mut Cri {
        &mut self.cri
    }

    /// Runs a pod of one container that sleeps.
    ///
    /// # Errors
    /// The runtime's.
    pub fn start_pod(&mut self, config: &PodConfig) -> Result<Pod> {
        let id = self.cri.run_pod(config)?;
        let container = self.cri.start_container(&id, config, IMAGE)?;
        let ips = self.cri.pod_status(&id)?.ips;
        Ok(Pod { id, container, ips })
    }

    /// What a command in the pod's container prints.
    ///
    /// # Errors
    /// The command fails; the message has what it printed.
    pub fn exec(&mut self, pod: &Pod, command: &[&str]) -> Result<String> {
        let said = self.cri.exec(&pod.container, command)?;
        let stdout = String::from_utf8_lossy(&said.stdout).into_owned();
        if said.exit_code != 0 {
            let stderr = String::from_utf8_lossy(&said.stderr);
            bail!("`{}` in a pod ended with {}: {stdout}{stderr}", command.join(" "), said.exit_code);
        }
        Ok(stdout)
    }

    /// Whether one ping from the pod to `address` is answered within two seconds.
    ///
    /// # Errors
    /// The command cannot be run.
    pub fn ping(&mut self, pod: &Pod, address: &str) -> Result<bool> {
        let said = self.cri.exec(&pod.container, &["ping", "-c", "1", "-W", "2", address])?;
        match said.exit_code {
            0 => Ok(true),
            1 => Ok(false),
            code => bail!("ping in a pod ended with {code}: {}", String::from_utf8_lossy(&said.stderr)),
        }
    }

    /// Stops and removes a pod with its container.
    ///
    /// # Errors
    /// The runtime's, as when a DEL fails.
    pub fn remove_pod(&mut self, id: &str) -> Result<()> {
        self.cri.stop_pod(id)?;
        self.cri.remove_pod(id)
    }

    /// Its own client, for what is in `namespace`: a kubelet's things are in `k8s.io`.
    pub fn ctr(&self, namespace: &str) -> Command {
        let mut command = self.host.command("ctr");
        command
            .arg("--address")
            .arg(self.dir.path().join("containerd.sock"))
            .args(["--namespace", namespace]);
        command
    }

    /// Its state folder, which has the sandboxes' namespaces in it and is shared with the host.
    pub fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// The end of its log.
    pub fn log_tail(&self) -> String {
        let log = fs::read(self.log_path()).unwrap_or_default();
        let from = log.len().saturating_sub(LOG_TAIL);
        format!("log of containerd:\n{}", String::from_utf8_lossy(&log[from..]))
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("containerd.log")
    }

    /// Takes the images of an archive into `namespace`.
    ///
    /// # Errors
    /// What `ctr` says.
    pub fn import(&self, namespace: &str, archive: &Path) -> Result<()> {
        let mut command = self.ctr(namespace);
        command.args(["images", "import", "--snapshotter", self.snapshotter]);
        let output = command.arg(archive).output().context("running ctr: it comes with containerd")?;
        if !output.status.success() {
            bail!("ctr images import: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    /// The snapshotter that works here, which `ctr run` is to be told.
    pub fn snapshotter(&self) -> &'static str {
        self.snapshotter
    }

    fn load_images(&mut self) -> Result<()> {
        let archive = self.dir.path().join("image.tar");
        image::write(&archive, &[IMAGE, PAUSE_IMAGE]).context("making the busybox image")?;
        self.import("k8s.io", &archive)?;
        // The CRI plugin hears of new images by an event.
        for image in [IMAGE, PAUSE_IMAGE] {
            poll_until(PATIENCE, "an image to be known", || self.cri.has_image(image).unwrap_or(false))?;
        }
        Ok(())
    }

    /// `config.toml`: nothing outside the folder, nothing that this machine may lack.
    fn settings(&self, plugins: &Path, networks: &Path) -> Result<String> {
        let runc = ["/usr/sbin/runc", "/usr/bin/runc"].into_iter().find(|path| Path::new(path).exists());
        let runc = runc.context("runc is not installed: run `cargo xtask setup`")?;
        let (dir, plugins, networks) = (self.dir.path().display(), plugins.display(), networks.display());
        let snapshotter = self.snapshotter;
        Ok(format!(
            r#"version = 2
root = "{dir}/root"
state = "{dir}/state"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
]

[grpc]
address = "{dir}/containerd.sock"

[ttrpc]
address = "{dir}/containerd.sock.ttrpc"

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE_IMAGE}"
netns_mounts_under_state_dir = true
disable_apparmor = true
restrict_oom_score_adj = true
stream_server_port = "0"

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{plugins}"
conf_dir = "{networks}"
max_conf_num = 1

[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "{snapshotter}"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
BinaryName = "{runc}"
Root = "{dir}/run/runc"
SystemdCgroup = false
"#
        ))
    }

    /// Removes all pods through the runtime, which is started for it if need be.
    fn clear(&mut self) -> Result<()> {
        if !matches!(self.process.as_mut().map(Guarded::ended), Some(Ok(None))) {
            self.process = None;
            self.start()?;
        }
        let mut first = Ok(());
        for pod in self.cri.pods()? {
            first = first.and(self.remove_pod(&pod));
        }
        first
    }

    /// Ends containerd, then what it left running when pods could not be removed.
    fn stop(&mut self) -> Result<()> {
        let stopped = match self.process.take() {
            Some(mut process) => process.signal(Signal::SIGTERM).and(process.wait(PATIENCE).map(drop)),
            None => Ok(()),
        };
        for pid in self.left_running() {
            // It may have ended by itself.
            let _ = kill(pid, Signal::SIGKILL);
        }
        stopped
    }

    /// Containers' first processes, by their bundles, and shims, which have this containerd's socket as an argument.
    fn left_running(&self) -> Vec<Pid> {
        let bundles = fs::read_dir(self.dir.path().join("state").join(BUNDLES)).into_iter().flatten();
        let containers = bundles.flatten().filter_map(|bundle| {
            fs::read_to_string(bundle.path().join("init.pid")).ok()?.trim().parse().ok()
        });
        let socket = self.dir.path().join("containerd.sock");
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        let shims = processes.filter_map(|process| {
            let pid = process.file_name().to_str()?.parse().ok()?;
            let arguments = fs::read(process.path().join("cmdline")).ok()?;
            let mut arguments = arguments.split(|&byte| byte == 0);
            arguments.any(|argument| argument == socket.as_os_str().as_encoded_bytes()).then_some(pid)
        });
        containers.chain(shims).map(Pid::from_raw).collect()
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log_tail());
        }
        let cleared = self.clear();
        let stopped = self.stop();
        let unmounted = mounts::unmount_below(self.dir.path()).context("unmounting");
        if let Err(error) = cleared.and(stopped).and(unmounted) {
            eprintln!("containerd in {} is not clean: {error:#}", self.dir.path().display());
        }
    }
}

/// What a kubelet says of a pod called `name`.
#[must_use]
pub fn pod_config(name: &str) -> PodConfig {
    let metadata =
        PodMetadata { name: name.to_owned(), uid: format!("uid-of-{name}"), namespace: "tests".to_owned() };
    PodConfig { metadata: Some(metadata), ..PodConfig::default() }
}

/// Whether an overlay can be mounted on the file system of `dir`.
fn overlay_works(dir: &Path) -> bool {
    let part = |name: &str| dir.join("overlay").join(name);
    if ["lower", "upper", "work", "merged"].iter().any(|name| fs::create_dir_all(part(name)).is_err()) {
        return false;
    }
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        part("lower").display(),
        part("upper").display(),
        part("work").display()
    );
    let merged = part("merged");
    let mounted =
        mount(Some("overlay"), &merged, Some("overlay"), MsFlags::empty(), Some(OsStr::new(&options)));
    let works = mounted.is_ok() && File::create(merged.join("file")).is_ok();
    // A failure leaves a mount that `Drop` removes.
    mounted.is_ok() && umount(&merged).is_ok() && works
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The reference plugins show that this containerd works, whatever becomes of Weft.
    const NETWORK: &str = r#"{"cniVersion":"1.0.0","name":"plain","plugins":[{"type":"bridge","bridge":"plain0",
        "isGateway":true,"ipam":{"type":"host-local","ranges":[[{"subnet":"10.232.0.0/24"}]],"dataDir":"DIR/ipam"}}]}"#;

    #[test]
    fn pods_join_a_network_outlive_containerd_and_leave_nothing() {
        let host = TestNetns::named("host").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let conflist = NETWORK.replace("DIR", &dir.path().to_string_lossy());
        fs::write(dir.path().join("plain.conflist"), conflist).unwrap();
        let mut containerd =
            Containerd::start_new(&host, Path::new(crate::plugins::REFERENCE), dir.path()).unwrap();
        let own = containerd.dir.path().to_owned();

        let first = containerd.start_pod(&pod_config("first")).unwrap();
        let second = containerd.start_pod(&pod_config("second")).unwrap();
        assert_eq!(second.ips, ["10.232.0.3"]);
        assert!(containerd.ping(&first, &second.ips[0]).unwrap());
        assert!(!containerd.ping(&first, "10.232.0.250").unwrap());

        containerd.kill().unwrap();
        containerd.start().unwrap();
        assert_eq!(containerd.cri().pod_status(&second.id).unwrap().ips, second.ips);
        containerd.remove_pod(&first.id).unwrap();
        containerd.kill().unwrap();
        drop(containerd);

        assert!(!own.exists());
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&*own.to_string_lossy()), "{mounts}");
        let leases = fs::read_dir(dir.path().join("ipam/plain")).unwrap().flatten();
        let held: Vec<_> = leases
            .map(|lease| lease.file_name())
            .filter(|n| n.to_string_lossy().starts_with("10."))
            .collect();
        assert!(held.is_empty(), "{held:?}");
    }
}
