//! Reads the runtimes' CNI configurations: whether a plugin that needs the ingress qdisc follows weft, and whose a conflist is.
//!
//! The reference `bandwidth` plugin creates an `ingress` qdisc on the host-side veth and fails when a clsact qdisc is there
//! already. A CNI plugin is not told what follows it, so ipamd looks (ADR 0003). What cannot be read or parsed is passed
//! over: the file may belong to someone else, and the netconf's `hooks` decides in any case.

use serde::Deserialize;
use std::{
    io::Read as _,
    path::{Path, PathBuf},
};

/// Plugin types that create the ingress qdisc themselves.
const NEEDS_INGRESS_QDISC: [&str; 1] = ["bandwidth"];

/// A configuration larger than this is none.
const MAX_SIZE: u64 = 1 << 20;

#[derive(Deserialize)]
struct Conflist {
    name: String,
    plugins: Vec<Plugin>,
}

#[derive(Deserialize)]
struct Plugin {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    ipam: Option<Ipam>,
}

#[derive(Deserialize)]
struct Ipam {
    #[serde(rename = "type", default)]
    kind: String,
}

/// Whether some conflist in `dirs` for `network` has, after `weft`, a plugin that creates the ingress qdisc.
pub fn ingress_qdisc_is_wanted(dirs: &[PathBuf], network: &str) -> bool {
    dirs.iter().flat_map(|dir| conflists(dir)).any(|path| {
        let Some(list) = read(&path) else { return false };
        let after_weft = list.plugins.iter().skip_while(|p| p.kind != "weft");
        list.name == network && after_weft.skip(1).any(|p| NEEDS_INGRESS_QDISC.contains(&p.kind.as_str()))
    })
}

/// Whether a plugin of this conflist is `weft` or has its addresses from `weft-ipam`. None: it is no conflist.
pub(crate) fn calls_weft(text: &[u8]) -> Option<bool> {
    let list: Conflist = serde_json::from_slice(text).ok()?;
    let calls = |p: &Plugin| p.kind == "weft" || p.ipam.as_ref().is_some_and(|i| i.kind == "weft-ipam");
    Some(list.plugins.iter().any(calls))
}

/// The conflists in `dir`, but the one called `name`, that call Weft; in the runtimes' order.
pub(crate) fn others_that_call_weft(dir: &Path, name: &str) -> Vec<PathBuf> {
    let mut others = conflists(dir);
    others.retain(|path| {
        path.file_name() != Some(name.as_ref())
            && std::fs::read(path).is_ok_and(|text| calls_weft(&text) == Some(true))
    });
    others.sort();
    others
}

fn conflists(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "conflist")).collect()
}

fn read(path: &Path) -> Option<Conflist> {
    let file = std::fs::File::open(path).ok()?;
    let mut text = Vec::new();
    // Whole: from a file, serde_json would read byte by byte, one call of the kernel for each.
    file.take(MAX_SIZE).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bandwidth_after_weft_on_the_same_network_counts() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write(
            "1.conflist",
            r#"{"name":"shaped","plugins":[{"type":"weft"},{"type":"tuning"},{"type":"bandwidth"}]}"#,
        );
        write("2.conflist", r#"{"name":"other","plugins":[{"type":"bandwidth"},{"type":"weft"}]}"#);
        write("3.conflist", r#"{"name":"bridge","plugins":[{"type":"bridge"},{"type":"bandwidth"}]}"#);
        write("4.conflist", "{");
        write("5.conf", r#"{"name":"conf","plugins":[{"type":"weft"},{"type":"bandwidth"}]}"#);
        let dirs = [dir.path().to_owned(), PathBuf::from("/nowhere")];
        for (network, wanted) in
            [("shaped", true), ("other", false), ("bridge", false), ("conf", false), ("x", false)]
        {
            assert_eq!(ingress_qdisc_is_wanted(&dirs, network), wanted, "{network}");
        }
    }
}
