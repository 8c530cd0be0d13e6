//! A WireGuard link between two namespaces, by the kernel's own devices and `wg`.

use std::{fs, io::Write as _, net::IpAddr};

use anyhow::{Context, Result};

use crate::{TestNetns, module};

/// UDP port of both ends.
const PORT: u16 = 51_820;

/// A key, and what others know of it.
struct Key {
    file: tempfile::NamedTempFile,
    public: String,
}

impl Key {
    fn new(netns: &TestNetns) -> Result<Self> {
        let mut file = tempfile::NamedTempFile::new().context("making a file for a key")?;
        file.write_all(netns.sh("wg genkey")?.as_bytes())?;
        let input = fs::File::open(file.path())?;
        let output = netns.command("wg").arg("pubkey").stdin(input).output().context("running wg pubkey")?;
        Ok(Self { public: String::from_utf8(output.stdout)?.trim().to_owned(), file })
    }
}

/// Joins two namespaces that reach each other at these addresses by a device of this name in each, up and without addresses, which carry
/// everything. False: this kernel was built without WireGuard.
///
/// # Errors
/// The kernel has it and it cannot be used, or the name is taken.
pub fn join(ends: [(&TestNetns, IpAddr); 2], name: &str) -> Result<bool> {
    let made = ends[0].0.ip(&format!("link add {name} type wireguard"));
    if module::is_missing("wireguard", made)? {
        return Ok(false);
    }
    ends[1].0.ip(&format!("link add {name} type wireguard"))?;
    let keys = [Key::new(ends[0].0)?, Key::new(ends[1].0)?];
    for (own, other) in [(0, 1), (1, 0)] {
        let (netns, _) = ends[own];
        let endpoint = std::net::SocketAddr::new(ends[other].1, PORT);
        netns.sh(&format!(
            "wg set {name} listen-port {PORT} private-key {} peer {} endpoint {endpoint} allowed-ips 0.0.0.0/0,::/0",
            keys[own].file.path().display(),
            keys[other].public
        ))?;
        netns.ip(&format!("link set {name} up"))?;
    }
    Ok(true)
}
