//! A real authoritative name server inside a namespace that signs its zones: knot, with keys that it makes itself.

use crate::{Guarded, TestNetns, poll_until};
use anyhow::{Context, Result, ensure};
use std::{
    fmt::Write as _,
    fs::{self, File},
    net::SocketAddr,
    time::Duration,
};
use tempfile::TempDir;

/// How long it may take to start and to sign.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where Debian has it, which is not in everybody's path.
const PROGRAM: &str = "/usr/sbin/knotd";

/// A running server; it ends with the value.
#[derive(Debug)]
pub struct Knot {
    process: Guarded,
    address: SocketAddr,
    dir: TempDir,
}

impl Knot {
    /// Starts it with zones, each a name without a dot at the end and records in the form of a zone file, and waits until all are signed.
    ///
    /// # Errors
    /// It is not installed (`cargo xtask setup`), or does not come up; the message has what it said.
    pub fn start(netns: &TestNetns, address: SocketAddr, zones: &[(&str, &[&str])]) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("weft-knot-").tempdir().context("making a folder")?;
        let path = dir.path().display();
        let (ip, port) = (address.ip(), address.port());
        let mut text = format!(
            "server:\n  rundir: {path}\n  listen: {ip}@{port}\n\
             database:\n  storage: {path}\n\
             policy:\n  - id: own\n    algorithm: ecdsap256sha256\n    single-type-signing: on\n\
             template:\n  - id: default\n    storage: {path}\n    file: \"%s.zone\"\n    zonefile-sync: -1\n\
             \u{20}   dnssec-signing: on\n    dnssec-policy: own\n\
             log:\n  - target: stderr\n    any: info\nzone:\n"
        );
        for (zone, records) in zones {
            // Writing to a text does not fail.
            let _ = writeln!(text, "  - domain: {zone}");
            let mut lines = format!(
                "$ORIGIN {zone}.\n$TTL 60\n@ SOA ns hostmaster 1 3600 600 86400 60\n@ NS ns\nns A {ip}\n"
            );
            records.iter().for_each(|record| lines += &format!("{record}\n"));
            fs::write(dir.path().join(format!("{zone}.zone")), lines).context("writing a zone")?;
        }
        fs::write(dir.path().join("knot.conf"), text).context("writing knot.conf")?;
        let log = File::create(dir.path().join("log")).context("making knot's log")?;
        let mut command = netns.command(PROGRAM);
        command.arg("-c").arg(dir.path().join("knot.conf")).stdout(log.try_clone()?).stderr(log);
        let process =
            Guarded::spawn(&mut command).context("running knotd: `cargo xtask setup` installs it")?;
        let mut server = Self { process, address, dir };
        let mut ended = false;
        let signed = poll_until(PATIENCE, "knot to sign its zones", || {
            ended = !matches!(server.process.ended(), Ok(None));
            ended || zones.iter().all(|(zone, _)| server.keys(netns, zone).is_ok_and(|keys| !keys.is_empty()))
        });
        let said = || fs::read_to_string(server.dir.path().join("log")).unwrap_or_default();
        signed.with_context(said)?;
        ensure!(!ended, "knot ended:\n{}", said());
        Ok(server)
    }

    /// The keys of a zone as records of a zone file, for those who are to trust them.
    ///
    /// # Errors
    /// It does not answer.
    pub fn keys(&self, netns: &TestNetns, zone: &str) -> Result<Vec<String>> {
        let (ip, port) = (self.address.ip(), self.address.port());
        let said = netns.sh(&format!("dig @{ip} -p {port} +time=1 +tries=1 +noall +answer {zone} DNSKEY"))?;
        Ok(said.lines().filter(|line| line.contains("DNSKEY")).map(str::to_owned).collect())
    }
}
