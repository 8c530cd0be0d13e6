//! Programs that look names up, each with a resolver of its own, and a `resolv.conf` that only they see.

use crate::{TestNetns, binaries};
use anyhow::{Context, Result, bail, ensure};
use std::{
    cell::OnceCell,
    collections::BTreeSet,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    process::{Command, Output},
};
use tempfile::TempDir;

/// What a container's program would be linked with, or be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolver {
    /// `getaddrinfo` of glibc.
    Glibc,
    /// `getaddrinfo` of musl, statically linked, as Alpine's programs use it.
    Musl,
    /// `nslookup` of busybox.
    Busybox,
    /// ISC's `dig`.
    Dig,
}

/// All of them.
pub const RESOLVERS: [Resolver; 4] = [Resolver::Glibc, Resolver::Musl, Resolver::Busybox, Resolver::Dig];

/// A `resolv.conf` for the programs of one container.
#[derive(Debug)]
pub struct Resolving {
    dir: TempDir,
    musl: OnceCell<PathBuf>,
}

impl Resolving {
    /// With these lines.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn with(lines: &str) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("weft-resolv-").tempdir().context("making a folder")?;
        fs::write(dir.path().join("resolv.conf"), lines).context("writing resolv.conf")?;
        Ok(Self { dir, musl: OnceCell::new() })
    }

    /// What a program prints that sees this file.
    ///
    /// # Errors
    /// It cannot be run.
    pub fn run(&self, netns: &TestNetns, program: &Path, arguments: &[&str]) -> Result<Output> {
        let script = "mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"";
        let mut command = netns.command("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", script]);
        command.arg(self.dir.path().join("resolv.conf")).arg(program).args(arguments);
        command.output().with_context(|| format!("running {}", program.display()))
    }

    /// The addresses that a resolver finds; none for a name that does not exist.
    ///
    /// # Errors
    /// It cannot be run, or gets no answer.
    pub fn addresses(&self, netns: &TestNetns, resolver: Resolver, name: &str) -> Result<BTreeSet<IpAddr>> {
        match resolver {
            Resolver::Glibc => self.listed(netns, Path::new("getent"), &["ahosts", name]),
            Resolver::Musl => self.listed(netns, self.musl()?, &[name]),
            Resolver::Busybox => {
                let output = self.run(netns, Path::new("busybox"), &["nslookup", name])?;
                let said = String::from_utf8_lossy(&output.stdout).into_owned();
                let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
                ensure!(!said.contains("timed out"), "nslookup {name}: {said}{complaints}");
                // The server comes first, and an empty line.
                let answers = said.split_once("\n\n").map_or("", |(_, answers)| answers);
                let found =
                    answers.lines().filter_map(|line| line.strip_prefix("Address:")?.trim().parse().ok());
                Ok(found.collect())
            }
            Resolver::Dig => {
                let both = ["+search", "+short", "+time=2", "+tries=2", name, "A", name, "AAAA"];
                let output = self.run(netns, Path::new("dig"), &both)?;
                let said = String::from_utf8_lossy(&output.stdout).into_owned();
                ensure!(output.status.success() && !said.contains(";;"), "dig {name}: {said}");
                Ok(said.lines().filter_map(|line| line.parse().ok()).collect())
            }
        }
    }

    /// Of a program that prints one address a line, and fails with a complaint when there is none.
    fn listed(&self, netns: &TestNetns, program: &Path, arguments: &[&str]) -> Result<BTreeSet<IpAddr>> {
        let output = self.run(netns, program, arguments)?;
        let said = String::from_utf8_lossy(&output.stdout);
        let complaint = String::from_utf8_lossy(&output.stderr);
        if complaint.contains("again") || complaint.contains("mount") {
            bail!("{} {arguments:?}: {}: {complaint}", program.display(), output.status);
        }
        Ok(said.lines().filter_map(|line| line.split_whitespace().next()?.parse().ok()).collect())
    }

    /// The program of `fixtures/lookup.c`, statically linked with musl.
    fn musl(&self) -> Result<&Path> {
        if let Some(made) = self.musl.get() {
            return Ok(made);
        }
        // Where there is no compiler, somebody has made it before.
        let made = binaries::dir()?.join("lookup-musl");
        if made.is_file() {
            return Ok(self.musl.get_or_init(|| made));
        }
        let [source, program] = ["lookup.c", "lookup"].map(|name| self.dir.path().join(name));
        fs::write(&source, include_str!("../fixtures/lookup.c")).context("writing lookup.c")?;
        let status = Command::new("musl-gcc").arg("-static").arg("-o").arg(&program).arg(&source).status();
        let status = status.context("musl-gcc: `cargo xtask setup` installs it")?;
        ensure!(status.success(), "musl-gcc: {status}");
        Ok(self.musl.get_or_init(|| program))
    }
}
