//! Packets come in by whatever device the host has: a tunnel without Ethernet, another program's bridge.

use super::scene::{HOST_PORT, PORT, Scene, Seen};
use super::ways::try_all;
use anyhow::{Result, ensure};
use std::{net::IpAddr, time::Duration};
use weft_tests::{
    Machine, Table, TestNetns, dial::Dial, echo::Echo, echo::PROTOCOLS, poll_until, tun::Tunnel,
    uplink::cable, wireguard,
};

/// ipamd learns of a device by netlink.
const PATIENCE: Duration = Duration::from_secs(5);

/// Waits until a device that was made just now leads in.
fn leads_in(scene: &Scene, from: &TestNetns, to: IpAddr) -> Result<()> {
    let dial = Dial::new(PROTOCOLS[1], (to, HOST_PORT).into()).patience(Duration::from_millis(200));
    let found = poll_until(PATIENCE, "a new device to lead to the published port", || dial.is_answered(from));
    found.map_err(|error| error.context(scene.node.evidence()))
}

#[test]
fn a_tunnel_without_ethernet_leads_in_and_out() -> Result<()> {
    let scene = Scene::new("tunnel")?;
    let remote = TestNetns::named("remote")?;
    let _tunnel = Tunnel::new([scene.node.netns(), &remote], "tun0")?;
    leads_in_and_out(&scene, &remote, "tun0")
}

/// Its packets come in by the uplink first, as the host's own.
#[test]
fn wireguard_leads_in_and_out() -> Result<()> {
    let scene = Scene::new("wireguard")?;
    let remote = TestNetns::named("remote")?;
    cable(scene.node.netns(), "lan0", &remote, "lan0")?;
    let ends = [(scene.node.netns(), "192.0.2.97"), (&remote, "192.0.2.98")];
    for (netns, address) in ends {
        // Wide enough for whole packets inside: what is too large, over IPv6, is lost once until its sender knows the way's MTU.
        netns.ip("link set lan0 mtu 1600")?;
        netns.ip(&format!("addr add {address}/30 dev lan0"))?;
    }
    let ends = [(ends[0].0, ends[0].1.parse()?), (ends[1].0, ends[1].1.parse()?)];
    if !wireguard::join(ends, "wg0")? {
        return Ok(());
    }
    for netns in [scene.node.netns(), &remote] {
        netns.ip("link set wg0 mtu 1500")?;
    }
    leads_in_and_out(&scene, &remote, "wg0")
}

/// A link without Ethernet to a remote machine, from which published ports are dialled, and to which containers dial.
fn leads_in_and_out(scene: &Scene, remote: &TestNetns, device: &str) -> Result<()> {
    let mut table = Table::default();
    for (node, there, rest) in [("10.99.0.1", "10.99.0.2", "/24"), ("fd00:99::1", "fd00:99::2", "/64 nodad")]
    {
        scene.node.netns().ip(&format!("addr add {node}{rest} dev {device}"))?;
        remote.ip(&format!("addr add {there}{rest} dev {device}"))?;
        remote.ip(&format!("route add {} via {node}", scene.machine.peer(node.contains('.'))))?;
        let (node, there): (IpAddr, IpAddr) = (node.parse()?, there.parse()?);
        leads_in(scene, remote, node)?;
        try_all(&mut table, "remote", remote, node, Seen::Client(there));
        try_all(
            &mut table,
            "remote, the uplink's address",
            remote,
            scene.machine.peer(node.is_ipv4()),
            Seen::Client(there),
        );
        // And out of it, masqueraded with the link's address.
        let _server = Echo::start(remote, "remote", (there, 7000).into())?;
        for protocol in PROTOCOLS {
            table.row(format!("out to {there}, {}", protocol.name()), || {
                let heard = Dial::new(protocol, (there, 7000).into()).sizes(1, 8192).ask(&scene.near)?;
                ensure!(heard.answer.client == node, "seen as {}", heard.answer.seen());
                Ok(())
            });
        }
        table.row(format!("ping {there}"), || {
            ensure!(scene.near.ping(there)?, "no answer");
            Ok(())
        });
    }
    table.judge(|| scene.node.evidence())
}

#[test]
fn a_bridge_of_someone_else_leads_in_and_out() -> Result<()> {
    let scene = Scene::new("bridge")?;
    let host = scene.node.netns();
    let guest = TestNetns::named("guest")?;
    // As Docker makes its own.
    host.ip("link add docker0 type bridge")?;
    weft_tests::uplink::set_sysctl(host, "ipv6/conf/docker0/accept_dad", "0")?;
    host.ip("link set docker0 up")?;
    cable(host, "guest0", &guest, "eth0")?;
    host.ip("link set guest0 master docker0")?;
    let mut table = Table::default();
    for (node, there, rest) in
        [("172.30.0.1", "172.30.0.2", "/24"), ("fd00:30::1", "fd00:30::2", "/64 nodad")]
    {
        host.ip(&format!("addr add {node}{rest} dev docker0"))?;
        guest.ip(&format!("addr add {there}{rest} dev eth0"))?;
        guest.ip(&format!("route add default via {node}"))?;
        let (node, there): (IpAddr, IpAddr) = (node.parse()?, there.parse()?);
        leads_in(&scene, &guest, node)?;
        try_all(&mut table, "guest", &guest, node, Seen::Client(there));
        try_all(
            &mut table,
            "guest, the uplink's address",
            &guest,
            scene.machine.peer(node.is_ipv4()),
            Seen::Client(there),
        );
        table.row(format!("guest to the container itself, {there}"), || {
            let to = (scene.web.ip_of(node.is_ipv4())?, PORT).into();
            let dial = Dial::new(PROTOCOLS[0], to).patience(Duration::from_millis(300));
            ensure!(!dial.is_answered(&guest), "is answered");
            Ok(())
        });
        let _server = Echo::start(&guest, "guest", (there, 7000).into())?;
        for protocol in PROTOCOLS {
            table.row(format!("out to {there}, {}", protocol.name()), || {
                let heard = Dial::new(protocol, (there, 7000).into()).ask(&scene.near)?;
                ensure!(heard.answer.client == node, "seen as {}", heard.answer.seen());
                Ok(())
            });
        }
    }
    table.judge(|| scene.node.evidence())
}

/// A machine whose packets for one of the node's addresses come in by another uplink, and whose answers go back there.
#[test]
fn an_address_of_another_uplink_is_served_too() -> Result<()> {
    let scene = Scene::new("across")?;
    let second = Machine::on(&scene.node, 1)?;
    let mut table = Table::default();
    for v4 in [true, false] {
        second.ip(&format!("route add {} via {}", scene.machine.peer(v4), second.peer(v4)))?;
        leads_in(&scene, &second, second.peer(v4))?;
        try_all(&mut table, "across", &second, scene.machine.peer(v4), Seen::Client(second.ip_of(v4)));
    }
    table.judge(|| scene.node.evidence())
}
