//! One process of etcd, and where it lives.

use super::{TOKEN_TTL, run};
use crate::{Guarded, NetnsHandle, TestNetns};
use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use std::{
    fs::{self, OpenOptions},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// How many bytes of the log a failure shows.
const LOG_TAIL: usize = 3000;
/// IANA's port for etcd's clients.
const CLIENT_PORT: u16 = 2379;
/// IANA's port among members.
const PEER_PORT: u16 = 2380;

/// Where a member lives.
#[derive(Debug)]
pub struct Place {
    netns: Option<NetnsHandle>,
    pub(super) client: SocketAddr,
    pub(super) peer: SocketAddr,
}

impl Place {
    /// At free ports of loopback, in the namespace of the test itself.
    ///
    /// # Errors
    /// No port is free.
    pub fn loopback() -> Result<Self> {
        // Both are held until both are known, so that they differ.
        let bind = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("looking for a free port");
        let (client, peer) = (bind()?, bind()?);
        let (client, peer) = (client.local_addr()?, peer.local_addr()?);
        Ok(Self { netns: None, client, peer })
    }

    /// At an address that the namespace has.
    ///
    /// # Errors
    /// The namespace cannot be opened.
    pub fn inside(netns: &TestNetns, address: IpAddr) -> Result<Self> {
        Self::inside_apart(netns, address, address)
    }

    /// At two addresses that the namespace has: one for clients, one among members.
    ///
    /// # Errors
    /// The namespace cannot be opened.
    pub fn inside_apart(netns: &TestNetns, client: IpAddr, peer: IpAddr) -> Result<Self> {
        Ok(Self {
            netns: Some(netns.handle()?),
            client: SocketAddr::new(client, CLIENT_PORT),
            peer: SocketAddr::new(peer, PEER_PORT),
        })
    }
}

/// One member.
#[derive(Debug)]
pub(super) struct Member {
    process: Option<Guarded>,
    name: String,
    place: Place,
    dir: PathBuf,
    scheme: &'static str,
    arguments: Vec<String>,
}

impl Member {
    pub(super) fn new(
        name: String,
        place: Place,
        dir: &Path,
        scheme: &'static str,
        cluster: &str,
        mut arguments: Vec<String>,
    ) -> Result<Self> {
        let dir = dir.join(&name);
        fs::create_dir(&dir).with_context(|| format!("making {}", dir.display()))?;
        arguments.push(format!("--initial-cluster={cluster}"));
        Ok(Self { process: None, name, place, dir, scheme, arguments })
    }

    pub(super) fn endpoint(&self) -> String {
        format!("{}://{}", self.scheme, self.place.client)
    }

    /// A command that will run where the member lives.
    pub(super) fn command(&self, program: &str) -> Command {
        match &self.place.netns {
            Some(netns) => netns.command(program),
            None => {
                let mut command = Command::new(program);
                command.stdin(Stdio::null());
                command
            }
        }
    }

    fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    pub(super) fn start(&mut self) -> Result<()> {
        if self.runs()? {
            bail!("{} runs already", self.name);
        }
        let log = OpenOptions::new().create(true).append(true).open(self.log()).context("opening a log")?;
        let (client, peer) = (self.endpoint(), format!("{}://{}", self.scheme, self.place.peer));
        let mut command = self.command("etcd");
        command
            .arg(format!("--name={}", self.name))
            .arg(format!("--data-dir={}", self.data().display()))
            .arg(format!("--listen-client-urls={client}"))
            .arg(format!("--advertise-client-urls={client}"))
            .arg(format!("--listen-peer-urls={peer}"))
            .arg(format!("--initial-advertise-peer-urls={peer}"))
            .arg("--unsafe-no-fsync")
            // Passwords of tests are no secrets, and hashing one well takes long.
            .arg("--bcrypt-cost=4")
            .arg(format!("--auth-token-ttl={}", TOKEN_TTL.as_secs()))
            .arg("--logger=zap")
            .args(&self.arguments)
            .stdout(log.try_clone().context("opening a log")?)
            .stderr(log);
        self.process =
            Some(Guarded::spawn(&mut command).context("is etcd-server installed? `cargo xtask setup` does")?);
        Ok(())
    }

    pub(super) fn runs(&mut self) -> Result<bool> {
        match &mut self.process {
            Some(process) => Ok(process.ended()?.is_none()),
            None => Ok(false),
        }
    }

    pub(super) fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Guarded::id)
    }

    pub(super) fn kill(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            process.kill()?;
        }
        Ok(())
    }

    pub(super) fn signal(&mut self, signal: Signal) -> Result<()> {
        match &mut self.process {
            Some(process) => process.signal(signal),
            None => bail!("{} does not run", self.name),
        }
    }

    /// Replaces the data by what a snapshot has; the member must not run.
    pub(super) fn restore(&self, snapshot: &Path, cluster: &str) -> Result<()> {
        let data = self.data();
        fs::remove_dir_all(&data).with_context(|| format!("removing {}", data.display()))?;
        let mut command = self.command("etcdctl");
        command
            .env("ETCDCTL_API", "3")
            .args(["snapshot", "restore"])
            .arg(snapshot)
            .arg(format!("--name={}", self.name))
            .arg(format!("--data-dir={}", data.display()))
            .arg(format!("--initial-cluster={cluster}"))
            .arg(format!("--initial-advertise-peer-urls={}://{}", self.scheme, self.place.peer));
        run(&mut command).map(|_| ())
    }

    /// The end of its log, for messages.
    pub(super) fn log_end(&self) -> String {
        let log = fs::read(self.log()).unwrap_or_default();
        let end = &log[log.len().saturating_sub(LOG_TAIL)..];
        format!("{}'s log ends:\n{}", self.name, String::from_utf8_lossy(end))
    }
}
