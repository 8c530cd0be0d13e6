//! The Debian packages that the build, the tests and the demo need.
//!
//! A program counts as present wherever it comes from: a containerd of Docker's own packages is not replaced.
//! What is present is never touched or upgraded, and no service is started. One thread; apt has its own lock.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::process::{find_program, succeeds};
use crate::services::NoStart;

/// How one sees that a package, or another source of the same thing, is there.
#[derive(Debug, Clone, Copy)]
enum Evidence {
    /// A program of this name is on the path.
    Program(&'static str),
    /// This file exists.
    File(&'static str),
    /// dpkg says so.
    Dpkg,
}

use Evidence::{Dpkg, File, Program};

/// What the tests and the demo run.
const RUN: [(&str, Evidence); 30] = [
    ("aardvark-dns", File("/usr/lib/podman/aardvark-dns")),
    ("bind9-dnsutils", Program("dig")),
    ("busybox-static", Program("busybox")),
    ("containerd", Program("containerd")),
    ("containernetworking-plugins", File("/usr/lib/cni/bridge")),
    ("curl", Program("curl")),
    ("dnsperf", Program("dnsperf")),
    ("docker.io", Program("dockerd")),
    ("etcd-client", Program("etcdctl")),
    ("etcd-server", Program("etcd")),
    ("ethtool", Program("ethtool")),
    ("iperf3", Program("iperf3")),
    ("iproute2", Program("ip")),
    ("iptables", Program("iptables")),
    ("iputils-ping", Program("ping")),
    ("ipvsadm", Program("ipvsadm")),
    ("knot", File("/usr/sbin/knotd")),
    ("musl-tools", Program("musl-gcc")),
    ("nftables", Program("nft")),
    ("nginx-light", Program("nginx")),
    ("openssl", Program("openssl")),
    ("podman", Program("podman")),
    ("prometheus", Program("promtool")),
    ("runc", Program("runc")),
    ("sockperf", Program("sockperf")),
    ("systemd", Program("systemd-analyze")),
    ("traceroute", Program("traceroute")),
    ("unbound", File("/usr/sbin/unbound")),
    ("util-linux", Program("unshare")),
    ("wireguard-tools", Program("wg")),
];

/// What compiling needs. The libraries are those of Debian's rustc-web and its LLVM, which is only unpacked; protoc and the files it
/// includes are for etcd-client, which compiles etcd's protocol.
const BUILD: [(&str, Evidence); 10] = [
    ("ca-certificates", File("/etc/ssl/certs/ca-certificates.crt")),
    ("gcc", Program("cc")),
    ("libc6-dev", File("/usr/include/stdio.h")),
    ("libedit2", Dpkg),
    ("libffi8", Dpkg),
    ("libprotobuf-dev", File("/usr/include/google/protobuf/descriptor.proto")),
    ("libxml2", Dpkg),
    ("libz3-4", Dpkg),
    ("libzstd1", Dpkg),
    ("protobuf-compiler", Program("protoc")),
];

/// The packages that are to be installed. `web_compiler` says whether Debian's compiler is used.
pub(crate) fn missing(web_compiler: bool) -> Vec<&'static str> {
    let wanted =
        || RUN.iter().chain(BUILD.iter()).filter(|(_, evidence)| web_compiler || !matches!(evidence, Dpkg));
    let asked: Vec<_> =
        wanted().filter(|(_, evidence)| matches!(evidence, Dpkg)).map(|(name, _)| *name).collect();
    let installed = if asked.is_empty() { String::new() } else { dpkg_status(&asked) };
    wanted()
        .filter(|(name, evidence)| match evidence {
            Program(program) => find_program(program).is_none(),
            File(path) => !Path::new(path).exists(),
            Dpkg => !is_installed(&installed, name),
        })
        .map(|(name, _)| *name)
        .collect()
}

/// Installs packages by name.
pub(crate) fn install(names: &[&str]) -> Result<()> {
    require_apt(names)?;
    let _forbidden = NoStart::begin()?;
    println!("installing Debian packages: {}", names.join(" "));
    if lists_are_empty() {
        update()?;
    }
    if try_install(names)? {
        return Ok(());
    }
    // Lists that are too old name files that are gone.
    update()?;
    if !try_install(names)? {
        bail!(
            "the packages above could not be installed: see apt-get's message, install them and run this again"
        );
    }
    Ok(())
}

/// Reads the package lists anew.
pub(crate) fn update() -> Result<()> {
    println!("reading Debian's package lists");
    let mut command = apt();
    command.args(["update", "-q"]);
    if !succeeds(&mut command)? {
        bail!("`apt-get update` failed: see its message, mend the sources or the network and run this again");
    }
    Ok(())
}

/// An apt-get that asks nothing.
pub(crate) fn apt() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C.UTF-8").stdin(Stdio::null());
    command
}

/// Whether there are no package lists yet, as on a fresh machine image.
pub(crate) fn lists_are_empty() -> bool {
    let entries = fs::read_dir("/var/lib/apt/lists").into_iter().flatten().flatten();
    !entries.into_iter().any(|entry| entry.file_name().to_string_lossy().contains("_Packages"))
}

fn try_install(names: &[&str]) -> Result<bool> {
    let mut command = apt();
    command.args(["install", "-q", "-y", "--no-install-recommends"]).args(names);
    succeeds(&mut command)
}

fn require_apt(names: &[&str]) -> Result<()> {
    if find_program("apt-get").is_none() {
        bail!("this is no Debian, so install what these Debian packages hold yourself: {}", names.join(" "));
    }
    Ok(())
}

/// `name:arch status` lines; dpkg-query fails when it knows one of the names not at all, and prints the others.
fn dpkg_status(names: &[&str]) -> String {
    let mut command = Command::new("dpkg-query");
    command.args(["--show", "--showformat", "${Package} ${db:Status-Status}\n"]).args(names);
    let output = command.stderr(Stdio::null()).output().context("dpkg-query");
    output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
}

fn is_installed(status: &str, name: &str) -> bool {
    status.lines().any(|line| line.split_once(' ') == Some((name, "installed")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_removed_packages_are_not_installed() {
        let status = "libedit2 installed\nlibxml2 config-files\nlibz3-4 not-installed\n";
        assert!(is_installed(status, "libedit2"));
        assert!(!is_installed(status, "libxml2"));
        assert!(!is_installed(status, "libz3-4"));
        assert!(!is_installed(status, "libz3"));
    }

    #[test]
    fn libraries_are_asked_for_only_with_debians_compiler() {
        let libraries: Vec<_> =
            BUILD.iter().filter(|(_, e)| matches!(e, Dpkg)).map(|(name, _)| *name).collect();
        assert!(missing(false).iter().all(|name| !libraries.contains(name)));
    }
}
