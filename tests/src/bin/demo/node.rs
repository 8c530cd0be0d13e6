//! The demo's node: an ipamd with private folders.
//!
//! Owns the process, two mounts (tmpfs for the run folder, where the journal must be, and bpffs for the pins) and a cgroup,
//! whose processes are those of the node. Dropping it ends the process and removes the others, whatever happened before.
//! One thread.

use std::{
    fs::{self, File},
    io::ErrorKind,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use ipamd_api::{Client, path};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use weft_tests::CgroupDir;

use super::story::Story;

/// How long ipamd may take to start and to stop.
const PATIENCE: Duration = Duration::from_secs(10);

/// A mounted file system.
#[derive(Debug)]
struct Mount(PathBuf);

impl Mount {
    fn new(kind: &str, point: PathBuf) -> Result<Self> {
        fs::create_dir_all(&point).with_context(|| format!("cannot create {}", point.display()))?;
        mount(Some(kind), &point, Some(kind), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("cannot mount {kind} at {}", point.display()))?;
        Ok(Self(point))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(errno) = umount2(&self.0, MntFlags::MNT_DETACH) {
            eprintln!("cannot unmount {}: {errno}", self.0.display());
        }
    }
}

/// A running ipamd. Fields are dropped in order: the process before the mounts.
#[derive(Debug)]
pub(crate) struct Node {
    process: Process,
    netctl: PathBuf,
    run: Mount,
    _bpf: Mount,
    cgroup: CgroupDir,
}

#[derive(Debug)]
struct Process(Child);

impl Process {
    /// Asks it to stop and waits; a process that does not stop is killed.
    fn stop(&mut self) -> Result<()> {
        if self.0.try_wait().context("cannot wait for ipamd")?.is_some() {
            return Ok(());
        }
        let pid = i32::try_from(self.0.id()).context("ipamd has an odd process id")?;
        kill(Pid::from_raw(pid), Signal::SIGTERM).context("cannot stop ipamd")?;
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            if let Some(status) = self.0.try_wait().context("cannot wait for ipamd")? {
                ensure!(status.success(), "ipamd ended with {status}");
                return Ok(());
            }
            thread::sleep(Duration::from_millis(10));
        }
        self.0.kill().context("cannot kill ipamd")?;
        self.0.wait().context("cannot wait for ipamd")?;
        bail!("ipamd did not stop within {} s and was killed", PATIENCE.as_secs())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("{error:#}");
        }
    }
}

impl Node {
    /// Starts ipamd and waits until it answers.
    pub(crate) fn start(binaries: &Path, dir: &Path, story: &Story) -> Result<Self> {
        let run = Mount::new("tmpfs", dir.join("run"))?;
        let bpf = Mount::new("bpf", dir.join("bpf"))?;
        let cgroup = CgroupDir::new()?;
        let log = dir.join("ipamd.log");
        let mut command = Command::new(binaries.join("ipamd"));
        command.arg("--run-dir").arg(&run.0).arg("--state-dir").arg(dir.join("state"));
        command.arg("--bpf-dir").arg(bpf.0.join("weft")).arg("--cgroup").arg(cgroup.path());
        command.args(["--node-name", "demo", "--store", "embedded"]);
        let shown: Vec<_> = command.get_args().map(|argument| argument.to_string_lossy()).collect();
        story.command(&format!("ipamd {}", shown.join(" ")))?;
        let output = File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
        let errors = output.try_clone().context("cannot share ipamd's log")?;
        // The machine's own settings are not the demo's. A group of its own: Ctrl-C ends the containers first.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("WEFT_")) {
            command.env_remove(name);
        }
        command.stdin(Stdio::null()).stdout(output).stderr(errors).process_group(0);
        let start = Instant::now();
        let process = Process(command.spawn().context("cannot run ipamd")?);
        let mut node = Self { process, netctl: binaries.join("netctl"), run, _bpf: bpf, cgroup };
        node.wait_until_ready(&log)?;
        story.show(&format!("ready after {} ms", start.elapsed().as_millis()));
        Ok(node)
    }

    /// Where its socket is.
    pub(crate) fn run_dir(&self) -> &Path {
        &self.run.0
    }

    /// A command that runs as a process of the node itself: in its cgroup, whose sockets Weft looks after.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", "echo 0 >\"$0\" && exec \"$@\""]);
        command.arg(self.cgroup.path().join("cgroup.procs")).arg(program);
        command
    }

    /// What a netctl command prints.
    pub(crate) fn netctl(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.netctl);
        let output = command
            .arg("--run-dir")
            .arg(&self.run.0)
            .args(arguments)
            .output()
            .context("cannot run netctl")?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "`netctl {}` failed: {}", arguments.join(" "), complaint.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Stops ipamd.
    pub(crate) fn stop(mut self, story: &Story) -> Result<()> {
        story.command("kill -TERM <ipamd>")?;
        self.process.stop()
    }

    fn wait_until_ready(&mut self, log: &Path) -> Result<()> {
        let client = Client::new(&self.run.0).with_timeout(PATIENCE);
        let end = Instant::now() + PATIENCE;
        loop {
            match client.get::<serde_json::Value>(path::STATUS) {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > end => return Err(error).context(said(log)),
                Err(_) => {}
            }
            if let Some(status) = self.process.0.try_wait().context("cannot wait for ipamd")? {
                bail!("ipamd ended with {status}: {}", said(log));
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// What ipamd logged.
fn said(log: &Path) -> String {
    match fs::read_to_string(log) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => "it logged nothing".to_owned(),
        Err(error) => format!("its log cannot be read: {error}"),
    }
}
