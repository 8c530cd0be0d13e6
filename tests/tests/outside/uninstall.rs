//! `netctl uninstall` leaves nothing behind: no pin, no program on a device or a cgroup, no link, no file, no setting.

use super::scene::{HOST_PORT, Scene, any};
use anyhow::{Context, Result, ensure};
use std::{
    collections::BTreeMap,
    fs,
    net::{TcpListener, UdpSocket},
    path::Path,
};
use weft_tests::{FAMILIES, Machine, Node, TestNetns};

/// Filters, qdiscs and programs on the devices of a host, and its settings of forwarding.
fn traces(host: &TestNetns) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    let links = host.ip("-o link")?;
    let names = links.lines().filter_map(|line| line.split(": ").nth(1)?.split('@').next());
    for name in names.filter(|name| *name != "lo") {
        for hook in ["ingress", "egress"] {
            found.insert(format!("{name} {hook}"), host.sh(&format!("tc filter show dev {name} {hook}"))?);
        }
        found.insert(format!("{name} qdisc"), host.sh(&format!("tc qdisc show dev {name}"))?);
    }
    let settings = [
        "ipv4/ip_forward",
        "ipv6/conf/all/forwarding",
        "ipv4/conf/up0/forwarding",
        "ipv6/conf/up0/forwarding",
    ];
    for name in settings {
        found.insert(name.to_owned(), weft_tests::uplink::sysctl(host, name)?);
    }
    for line in ["ip -4 route", "ip -6 route", "ip -4 rule", "ip -6 rule", "nft list ruleset"] {
        found.insert(line.to_owned(), host.sh(line)?);
    }
    Ok(found)
}

fn files(dir: &Path) -> Result<Vec<String>> {
    match fs::read_dir(dir) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path().display().to_string())).collect(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("reading {}", dir.display())),
    }
}

#[test]
fn uninstall_removes_every_trace() -> Result<()> {
    let mut node = Node::builder("uninstall").build()?;
    let machine = Machine::on(&node, 0)?;
    let before = traces(node.netns())?;
    node.start()?;
    let scene = Scene::on(node, machine)?;
    for v4 in FAMILIES {
        ensure!(scene.web.ping(scene.machine.ip_of(v4))?, "no answer\n{}", scene.node.evidence());
    }
    ensure!(traces(scene.node.netns())? != before, "the test sees nothing of Weft");

    let refused = scene.node.netctl(&["uninstall"])?;
    ensure!(!refused.status.success(), "a node with containers was uninstalled without --force");
    ensure!(scene.web.ping(scene.machine.ip_of(true))?, "a refused uninstall took something away");
    let done = scene.node.netctl(&["uninstall", "--force"])?;
    ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let Scene { web, machine, mut node } = scene;
    node.wait_ended()?;
    let left = traces(node.netns())?;
    let changed: Vec<_> = left.iter().filter(|(name, value)| before.get(*name) != Some(value)).collect();
    ensure!(changed.is_empty(), "left or changed: {changed:#?}");
    let gone: Vec<_> = before.keys().filter(|name| !left.contains_key(*name)).collect();
    ensure!(gone.is_empty(), "taken away: {gone:?}");
    for dir in [node.bpf_dir(), node.run_dir()] {
        ensure!(files(&dir)?.is_empty(), "left: {:?}", files(&dir)?);
    }
    drop((web, machine));
    // The hooks of sockets are gone with their links.
    for v4 in FAMILIES {
        node.netns().run(|| {
            TcpListener::bind(any(v4, HOST_PORT)).and(UdpSocket::bind(any(v4, HOST_PORT))).map(drop)
        })??;
    }
    Ok(())
}
