//! A real name server inside a namespace: unbound, with records of its own or as a forwarder with a cache.

use crate::{Guarded, TestNetns, poll_until};
use anyhow::{Context, Result, ensure};
use std::{
    fmt::Write as _,
    fs::{self, File},
    net::{SocketAddr, UdpSocket},
    time::Duration,
};
use tempfile::TempDir;

/// How long it may take to start.
const PATIENCE: Duration = Duration::from_secs(10);

/// A running server; it ends with the value.
#[derive(Debug)]
pub struct Unbound {
    process: Guarded,
    _dir: TempDir,
}

/// What it is to be.
#[derive(Debug, Clone, Default)]
pub struct UnboundBuilder {
    server: String,
    rest: String,
    anchors: Vec<String>,
}

impl UnboundBuilder {
    /// A record in the form of a zone file, which it knows by itself: `www.example. 60 IN A 192.0.2.1`.
    #[must_use]
    pub fn record(self, record: &str) -> Self {
        self.option(&format!("local-data: '{record}'"))
    }

    /// A zone that it has all of: what is not a record there does not exist.
    #[must_use]
    pub fn zone(self, name: &str) -> Self {
        self.option(&format!("local-zone: \"{name}\" static"))
    }

    /// Proves what it answers (RFC 4035), by keys in the form of a zone file.
    #[must_use]
    pub fn trusting(mut self, keys: &[String]) -> Self {
        self.anchors.extend_from_slice(keys);
        self
    }

    /// Who knows a zone.
    #[must_use]
    pub fn stub(mut self, zone: &str, server: SocketAddr) -> Self {
        let (ip, port) = (server.ip(), server.port());
        // Writing to a text does not fail.
        let _ = writeln!(self.rest, "stub-zone:\nname: \"{zone}\"\nstub-addr: {ip}@{port}");
        self
    }

    /// An option of the clause `server`.
    #[must_use]
    pub fn option(mut self, line: &str) -> Self {
        self.server.push_str(line);
        self.server.push('\n');
        self
    }

    /// Whom it asks for what it does not know.
    #[must_use]
    pub fn forward_to(mut self, upstream: SocketAddr) -> Self {
        let (ip, port) = (upstream.ip(), upstream.port());
        // Writing to a text does not fail.
        let _ = writeln!(self.rest, "forward-zone:\nname: \".\"\nforward-addr: {ip}@{port}");
        self
    }

    /// Starts it inside a namespace and waits until it listens.
    ///
    /// # Errors
    /// It is not installed (`cargo xtask setup`), or does not come up; the message has what it said.
    pub fn start(self, netns: &TestNetns, address: SocketAddr) -> Result<Unbound> {
        let dir = tempfile::Builder::new().prefix("weft-unbound-").tempdir().context("making a folder")?;
        let at = |name: &str| dir.path().join(name);
        let (ip, port) = (address.ip(), address.port());
        let modules = if self.anchors.is_empty() { "iterator" } else { "validator iterator" };
        let trusted = if self.anchors.is_empty() { "" } else { "trust-anchor-file: anchors\n" };
        fs::write(at("anchors"), self.anchors.join("\n")).context("writing keys")?;
        let text = format!(
            "server:\ndirectory: \"{}\"\nchroot: \"\"\nusername: \"\"\npidfile: \"\"\nuse-syslog: no\ndo-daemonize: no\n\
             interface: {ip}@{port}\naccess-control: 0.0.0.0/0 allow\naccess-control: ::/0 allow\n\
             do-not-query-localhost: no\nmodule-config: \"{modules}\"\n{trusted}minimal-responses: yes\n{}\n\
             remote-control:\ncontrol-enable: no\n{}",
            dir.path().display(),
            self.server,
            self.rest,
        );
        fs::write(at("unbound.conf"), text).context("writing unbound.conf")?;
        let log = File::create(at("log")).context("making unbound's log")?;
        // Debian has it in /usr/sbin, which is not in everybody's path.
        let mut command = netns.command("/usr/sbin/unbound");
        command.arg("-c").arg(at("unbound.conf")).stdout(log.try_clone()?).stderr(log);
        let process =
            Guarded::spawn(&mut command).context("running unbound: `cargo xtask setup` installs it")?;
        let mut server = Unbound { process, _dir: dir };
        let mut ended = false;
        poll_until(PATIENCE, "unbound to listen", || {
            ended = !matches!(server.process.ended(), Ok(None));
            ended || is_taken(netns, address)
        })?;
        let said = || fs::read_to_string(server._dir.path().join("log")).unwrap_or_default();
        ensure!(!ended, "unbound ended:\n{}", said());
        Ok(server)
    }
}

/// Whether somebody listens there.
fn is_taken(netns: &TestNetns, address: SocketAddr) -> bool {
    let bound = netns.run(|| UdpSocket::bind(address).map(drop));
    matches!(bound, Ok(Err(error)) if error.kind() == std::io::ErrorKind::AddrInUse)
}

impl Unbound {
    /// One to be started.
    pub fn builder() -> UnboundBuilder {
        UnboundBuilder::default()
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Lets it stand still, or go on.
    ///
    /// # Errors
    /// It has ended.
    pub fn pause(&mut self, still: bool) -> Result<()> {
        use nix::sys::signal::Signal::{SIGCONT, SIGSTOP};
        self.process.signal(if still { SIGSTOP } else { SIGCONT })
    }
}
