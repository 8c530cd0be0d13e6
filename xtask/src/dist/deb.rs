//! The Debian package (deb(5)): an `ar` archive of the format's version, the control files and the files themselves.
//!
//! Own code, because it is sixty bytes of header per member, and because packaging tools of Debian's put times into it. It enables and
//! starts nothing: which network a node has is for its operator to say.

use std::fmt::Write as _;

use anyhow::Result;
use archive::{Tree, architecture, gzip};

use super::Release;

/// Where Debian's container runtimes look for plugins.
const CNI: &str = "usr/lib/cni";

const MAINTAINER: &str = "Weft's developers <weft@localhost>";

/// A unit that runs goes on with the new daemon; one that does not run stays so.
const POSTINST: &str = "#!/bin/sh
set -e
if [ \"$1\" = configure ] && [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    systemctl try-restart ipamd.service
fi
";

/// Containers keep their network while ipamd is away; `netctl uninstall` is for who wants it gone.
const PRERM: &str = "#!/bin/sh
set -e
[ \"$1\" = remove ] || exit 0
if [ -d /run/systemd/system ]; then
    systemctl disable --quiet --now ipamd.service
fi
if [ -d /sys/fs/bpf/weft ]; then
    echo 'weft: containers keep their network. To have it gone, install weft again, start ipamd and run netctl uninstall.'
fi
";

/// State has the networks and the blocks that the node owns: only `netctl uninstall` gives these up.
const POSTRM: &str = "#!/bin/sh
set -e
if [ \"$1\" = remove ] && [ -d /run/systemd/system ]; then
    systemctl daemon-reload
fi
if [ \"$1\" = purge ] && [ -d /var/lib/weft ]; then
    rmdir --ignore-fail-on-non-empty /var/lib/weft
fi
if [ \"$1\" = purge ] && [ -d /var/lib/weft ]; then
    echo 'weft: /var/lib/weft has networks and blocks of this node, and stays. Remove it if they are not wanted.'
fi
";

/// The package.
pub(crate) fn package(release: &Release) -> Result<Vec<u8>> {
    let files = files(release)?;
    let size: usize = files.files().map(|(_, bytes)| bytes.len().div_ceil(1024)).sum();
    let mut control = Tree::new();
    control.file("control", description(&release.version, size), 0o644);
    control.file("conffiles", "/etc/weft/ipamd.toml\n", 0o644);
    control.file("postinst", POSTINST, 0o755);
    control.file("postrm", POSTRM, 0o755);
    control.file("prerm", PRERM, 0o755);
    let members = [
        ("debian-binary", b"2.0\n".to_vec()),
        ("control.tar.gz", gzip(&control.tar()?)?),
        ("data.tar.gz", gzip(&files.tar()?)?),
    ];
    Ok(ar(&members))
}

fn description(version: &str, kilobytes: usize) -> String {
    format!(
        "Package: weft\nVersion: {version}\nArchitecture: {}\nMaintainer: {MAINTAINER}\nInstalled-Size: {kilobytes}\n\
         Section: net\nPriority: optional\nSuggests: containerd | podman, etcd-server\n\
         Description: networks of containers, on one node or many\n \
         A CNI plugin, the daemon that owns addresses and the eBPF datapath of a node, and the\n \
         command by which operators look at them.\n",
        architecture()
    )
}

fn files(release: &Release) -> Result<Tree> {
    let mut tree = Tree::new();
    tree.file(&format!("{CNI}/weft"), release.weft.as_slice(), 0o755);
    tree.link(&format!("{CNI}/weft-ipam"), "weft");
    tree.file("usr/sbin/ipamd", release.ipamd.as_slice(), 0o755);
    tree.file("usr/bin/netctl", release.netctl.as_slice(), 0o755);
    tree.file("etc/weft/ipamd.toml", release.text("manifests/systemd/ipamd.toml")?, 0o644);
    let unit = release.text("manifests/systemd/ipamd.service")?;
    let unit = String::from_utf8_lossy(&unit).replace("/usr/local/bin/ipamd", "/usr/sbin/ipamd");
    tree.file("usr/lib/systemd/system/ipamd.service", unit, 0o644);
    tree.file("usr/lib/tmpfiles.d/weft.conf", release.text("manifests/systemd/weft.tmpfiles")?, 0o644);
    release.folder(&mut tree, "manifests/cni", "usr/share/doc/weft/examples")?;
    release.folder(&mut tree, "manifests/monitoring", "usr/share/doc/weft/examples/monitoring")?;
    release.licences(&mut tree, "usr/share/doc/weft")?;
    tree.file("usr/share/doc/weft/copyright", copyright(), 0o644);
    for (name, text) in &release.manual {
        tree.file(&format!("usr/share/man/man1/{name}.gz"), gzip(text)?, 0o644);
    }
    Ok(tree)
}

fn copyright() -> String {
    "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\n\
     Files: *\nLicense: Apache-2.0\n See /usr/share/common-licenses/Apache-2.0.\n\n\
     Files: eBPF programs within ipamd\nLicense: Apache-2.0 or GPL-2\n At your choice: see /usr/share/common-licenses/Apache-2.0 and\n \
     /usr/share/common-licenses/GPL-2.\n"
        .to_owned()
}

/// An `ar` archive as dpkg takes it: names without a slash, no times.
fn ar(members: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut archive = b"!<arch>\n".to_vec();
    for (name, bytes) in members {
        let mut header = String::new();
        // Writing to a String cannot fail.
        let _ = writeln!(header, "{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`", 0, 0, 0, "100644", bytes.len());
        archive.extend(header.as_bytes());
        archive.extend(bytes);
        if bytes.len() % 2 == 1 {
            archive.push(b'\n');
        }
    }
    archive
}
