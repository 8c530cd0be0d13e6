//! A node: a network namespace with an ipamd of its own in it, with private run, state, pin and cgroup directories.

use crate::{BpfMount, CgroupDir, Cni, Guarded, TestNetns, binaries, poll_for};
use anyhow::{Context, Result, bail, ensure};
use ipamd_api::{Client, Status, path};
use nix::sys::signal::Signal;
use std::{
    fs::{self, OpenOptions},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Output},
    sync::Arc,
    time::Duration,
};
use tempfile::TempDir;

/// How long ipamd may take to become ready or to stop.
const PATIENCE: Duration = Duration::from_secs(180);

/// How many bytes of the log a failure shows.
const LOG_TAIL: usize = 4000;

/// What a node is to be made of.
#[derive(Debug, Clone)]
pub struct NodeBuilder {
    name: String,
    settings: String,
    arguments: Vec<String>,
    variables: Vec<(String, String)>,
    own_boot_id: bool,
    own_group: bool,
    everywhere: bool,
}

impl NodeBuilder {
    /// Lines for its `ipamd.toml`.
    #[must_use]
    pub fn settings(mut self, toml: &str) -> Self {
        self.settings.push_str(toml);
        self.settings.push('\n');
        self
    }

    /// A further argument of ipamd.
    #[must_use]
    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// A variable in ipamd's environment at its first start.
    #[must_use]
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Gives it a boot ID of its own, so that it can lose its power without the machine that plays it.
    #[must_use]
    pub fn own_boot_id(mut self) -> Self {
        self.own_boot_id = true;
        self
    }

    /// Puts the hooks of sockets on the root of the cgroups, as on a real node: for containers of a runtime that makes cgroups of its
    /// own. They know the node's sandboxes from all others.
    #[must_use]
    pub fn hooks_everywhere(mut self) -> Self {
        self.everywhere = true;
        self
    }

    /// Lets ipamd be in a process group of its own: Ctrl-C does not reach it, so that containers can be removed first.
    #[must_use]
    pub fn own_group(mut self) -> Self {
        self.own_group = true;
        self
    }

    /// Makes the node without starting ipamd.
    ///
    /// # Errors
    /// Not root, or the kernel refuses.
    pub fn build(self) -> Result<Node> {
        let mut netns = TestNetns::named("host")?;
        let bpf = BpfMount::new()?;
        let cgroup = Arc::new(CgroupDir::new()?);
        netns.join(&cgroup);
        let dir =
            tempfile::Builder::new().prefix("weft-node-").tempdir().context("making a node's folder")?;
        for part in ["run", "state"] {
            fs::create_dir(dir.path().join(part)).with_context(|| format!("making {part}"))?;
        }
        let node = Node {
            ipamd: None,
            name: self.name,
            arguments: self.arguments,
            own_group: self.own_group,
            everywhere: self.everywhere,
            netns,
            bpf,
            cgroup,
            dir,
        };
        if self.own_boot_id {
            node.renew_boot_id()?;
        }
        node.write_settings(&self.settings)?;
        Ok(node)
    }

    /// Makes the node and starts ipamd.
    ///
    /// # Errors
    /// As [`Self::build`], or ipamd does not become ready.
    pub fn start(self) -> Result<Node> {
        let variables = self.variables.clone();
        let mut node = self.build()?;
        let variables: Vec<_> = variables.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        node.start_with(&variables)?;
        Ok(node)
    }
}

/// A node. Dropping it kills its ipamd and removes everything that was made for it.
#[derive(Debug)]
pub struct Node {
    // In the order in which they have to go.
    ipamd: Option<Guarded>,
    name: String,
    arguments: Vec<String>,
    own_group: bool,
    everywhere: bool,
    netns: TestNetns,
    bpf: BpfMount,
    cgroup: Arc<CgroupDir>,
    dir: TempDir,
}

impl Node {
    /// A node to be made.
    pub fn builder(name: &str) -> NodeBuilder {
        NodeBuilder {
            name: name.to_owned(),
            settings: String::new(),
            arguments: Vec::new(),
            variables: Vec::new(),
            own_boot_id: false,
            own_group: false,
            everywhere: false,
        }
    }

    /// A node with default settings and a running ipamd.
    ///
    /// # Errors
    /// See [`NodeBuilder::start`].
    pub fn start_new(name: &str) -> Result<Self> {
        Self::builder(name).start()
    }

    /// Its namespace.
    pub fn netns(&self) -> &TestNetns {
        &self.netns
    }

    /// Run directory: socket, journal, release records.
    pub fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    /// State directory: store, `sysctl-undo.json`.
    pub fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// Where ipamd pins.
    pub fn bpf_dir(&self) -> PathBuf {
        self.bpf.path().join("weft")
    }

    /// Its cgroup.
    pub fn cgroup(&self) -> &Path {
        self.cgroup.path()
    }

    /// Its cgroup, for the sandboxes that are on it.
    pub fn cgroup_dir(&self) -> &Arc<CgroupDir> {
        &self.cgroup
    }

    /// ipamd's log.
    pub fn log_path(&self) -> PathBuf {
        self.dir.path().join("ipamd.log")
    }

    /// The boot ID of a node that has its own.
    fn boot_id_file(&self) -> PathBuf {
        self.dir.path().join("boot-id")
    }

    fn renew_boot_id(&self) -> Result<()> {
        let fresh = fs::read("/proc/sys/kernel/random/uuid").context("making up a boot ID")?;
        fs::write(self.boot_id_file(), fresh).context("writing a boot ID")
    }

    /// Writes its `ipamd.toml`, for the next start.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_settings(&self, toml: &str) -> Result<()> {
        let mut settings = toml.to_owned();
        if self.boot_id_file().exists() {
            settings.push_str(&format!("\nboot_id_file = {:?}\n", self.boot_id_file()));
        }
        fs::write(self.dir.path().join("ipamd.toml"), settings).context("writing ipamd.toml")
    }

    /// A client of its API.
    pub fn client(&self) -> Client {
        Client::new(&self.run_dir()).with_timeout(PATIENCE)
    }

    /// Process id of ipamd, if it was started and not stopped.
    pub fn ipamd_pid(&self) -> Option<u32> {
        self.ipamd.as_ref().map(Guarded::id)
    }

    /// Starts ipamd and waits until it is ready.
    ///
    /// # Errors
    /// It ends or is not ready in time; the message has the end of its log.
    pub fn start(&mut self) -> Result<()> {
        self.start_with(&[])
    }

    /// The same with variables in its environment, e.g. `WEFT_STOP_AT`.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with(&mut self, variables: &[(&str, &str)]) -> Result<()> {
        self.spawn(variables)?;
        self.wait_ready()
    }

    /// The same on a clock that says so many seconds more since boot, as after a sleep, or fewer (a time namespace).
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_later(&mut self, seconds: i64) -> Result<()> {
        self.spawn_through(&["unshare", "--time", "--boottime", &seconds.to_string(), "--"])?;
        self.wait_ready()
    }

    /// Starts ipamd through another program, which becomes it, and does not wait.
    ///
    /// # Errors
    /// It runs already, or cannot be run.
    pub fn spawn_through(&mut self, words: &[&str]) -> Result<()> {
        let (program, arguments) = words.split_first().context("a program is needed")?;
        let mut command = self.netns.command(program);
        command.args(arguments).arg(binaries::find("ipamd")?);
        self.spawn_by(command, &[])
    }

    /// Starts ipamd and does not wait.
    ///
    /// # Errors
    /// It runs already, or cannot be run.
    pub fn spawn(&mut self, variables: &[(&str, &str)]) -> Result<()> {
        let command = self.netns.command(binaries::find("ipamd")?);
        self.spawn_by(command, variables)
    }

    fn spawn_by(&mut self, mut command: Command, variables: &[(&str, &str)]) -> Result<()> {
        if let Some(ipamd) = &mut self.ipamd
            && ipamd.ended()?.is_none()
        {
            bail!("ipamd of {} runs already", self.name);
        }
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_path())
            .context("opening ipamd's log")?;
        command
            .arg("--config")
            .arg(self.dir.path().join("ipamd.toml"))
            .arg("--run-dir")
            .arg(self.run_dir())
            .arg("--state-dir")
            .arg(self.state_dir())
            .arg("--bpf-dir")
            .arg(self.bpf_dir())
            .arg("--cgroup")
            .arg(if self.everywhere {
                self.cgroup().parent().unwrap_or(self.cgroup())
            } else {
                self.cgroup()
            })
            .args(["--node-name", &self.name])
            .args(&self.arguments)
            .envs(variables.iter().copied())
            .env_remove("NOTIFY_SOCKET")
            .stdout(log.try_clone().context("opening ipamd's log twice")?)
            .stderr(log);
        if self.own_group {
            command.process_group(0);
        }
        self.ipamd = Some(Guarded::spawn(&mut command)?);
        Ok(())
    }

    /// Waits until the status says that an ADD would work.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn wait_ready(&mut self) -> Result<()> {
        let client = self.client();
        let mut last = String::new();
        let found = poll_for(PATIENCE, "ipamd to be ready", || {
            if let Some(Ok(Some(status))) = self.ipamd.as_mut().map(Guarded::ended) {
                return Some(Err(status));
            }
            match client.get::<Status>(path::STATUS) {
                Ok(status) if status.ready => Some(Ok(())),
                Ok(status) => {
                    last = format!("{:?}", status.parts);
                    None
                }
                Err(error) => {
                    last = error.to_string();
                    None
                }
            }
        });
        match found {
            Ok(Ok(())) => Ok(()),
            Ok(Err(status)) => bail!("ipamd of {} ended with {status}:\n{}", self.name, self.log_tail()),
            Err(error) => Err(error.context(format!("{last}\n{}", self.log_tail()))),
        }
    }

    /// Stops ipamd gracefully (SIGTERM) and waits.
    ///
    /// # Errors
    /// It does not run, or does not end in time.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        let mut ipamd = self.ipamd.take().context("ipamd does not run")?;
        ipamd.signal(Signal::SIGTERM)?;
        ipamd.wait(PATIENCE).with_context(|| self.log_tail())
    }

    /// Kills ipamd (SIGKILL).
    ///
    /// # Errors
    /// It does not run.
    pub fn kill(&mut self) -> Result<()> {
        self.ipamd.take().context("ipamd does not run")?.kill().map(|_| ())
    }

    /// Sends ipamd a signal, e.g. to stop (`SIGSTOP`) or go on (`SIGCONT`). Nothing happens if it does not run.
    ///
    /// # Errors
    /// The signal is refused.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        self.ipamd.as_mut().map_or(Ok(()), |ipamd| ipamd.signal(signal))
    }

    /// Loses its power: ipamd, every device, every pin and the run directory are gone, and the next boot has another ID. What is
    /// in the state directory stays. Sandboxes that are still there have lost their links.
    ///
    /// # Errors
    /// It has no boot ID of its own, or something cannot be removed.
    pub fn power_off(&mut self) -> Result<()> {
        ensure!(self.boot_id_file().exists(), "{} was made without a boot ID of its own", self.name);
        if let Some(mut ipamd) = self.ipamd.take() {
            ipamd.kill()?;
        }
        let run = self.run_dir();
        fs::remove_dir_all(&run).and_then(|()| fs::create_dir(&run)).context("emptying the run directory")?;
        self.netns.replace()?;
        self.bpf.renew()?;
        self.renew_boot_id()
    }

    /// Waits until ipamd has ended by itself, e.g. at a stop point.
    ///
    /// # Errors
    /// It does not run, or still runs after some time.
    pub fn wait_ended(&mut self) -> Result<ExitStatus> {
        self.ipamd.take().context("ipamd does not run")?.wait(PATIENCE)
    }

    /// Kills ipamd and starts it again.
    ///
    /// # Errors
    /// As [`Self::kill`] and [`Self::start`].
    pub fn restart(&mut self) -> Result<()> {
        self.kill()?;
        self.start()
    }

    /// A caller of the CNI executable on this node.
    ///
    /// # Errors
    /// The executable has not been built.
    pub fn cni(&self) -> Result<Cni<'_>> {
        Cni::new(&self.netns, &self.run_dir())
    }

    /// Runs `netctl` for this node.
    ///
    /// # Errors
    /// It cannot be run.
    pub fn netctl(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = self.netns.command_without_cgroup(binaries::find("netctl")?);
        command.arg("--run-dir").arg(self.run_dir()).args(arguments);
        command.output().context("running netctl")
    }

    /// How many packets were dropped for a reason, by its name.
    ///
    /// # Errors
    /// ipamd is away, or knows no such reason.
    pub fn drops(&self, reason: &str) -> Result<u64> {
        let status: Status = self.client().get(path::STATUS)?;
        let found = status.drops.iter().find(|d| d.name == reason).map(|d| d.packets);
        found.with_context(|| format!("no counter {reason} in {:?}", status.drops))
    }

    /// What explains a failure of traffic: links, routes, counters.
    pub fn evidence(&self) -> String {
        let said = |output: Result<String>| output.unwrap_or_else(|error| format!("{error:#}"));
        let drops = self.client().get::<Status>(path::STATUS).map(|status| {
            let counted = status.drops.into_iter().filter(|d| d.packets > 0);
            counted.map(|d| format!("{} {}\n", d.packets, d.name)).collect()
        });
        [
            said(self.netns.ip("-br addr")),
            said(self.netns.ip("route")),
            said(self.netns.ip("-6 route")),
            format!("drops:\n{}", said(drops.map_err(Into::into))),
            self.log_tail(),
        ]
        .join("\n")
    }

    /// The end of ipamd's log.
    pub fn log_tail(&self) -> String {
        let log = fs::read(self.log_path()).unwrap_or_default();
        let from = log.len().saturating_sub(LOG_TAIL);
        format!("log of {}:\n{}", self.name, String::from_utf8_lossy(&log[from..]))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log_tail());
        }
    }
}
