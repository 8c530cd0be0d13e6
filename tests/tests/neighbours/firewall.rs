//! Firewalls: flushed, closed by default, and compared before and after.

use super::scene::{OUTSIDE, Scene, rules};
use anyhow::{Result, ensure};
use std::{fs, net::SocketAddr};
use weft_tests::{
    FAMILIES, Machine, Node, Table, TestNetns,
    crowd::Hall,
    dial::Dial,
    echo::Echo,
    echo::PROTOCOLS,
    uplink::{cable, forward, set_sysctl},
};

#[test]
fn a_flushed_ruleset_changes_nothing() -> Result<()> {
    let scene = Scene::new("flush")?;
    let host = scene.node.netns();
    let mut open = Vec::new();
    for v4 in FAMILIES {
        let listening = SocketAddr::from((scene.machine.ip_of(v4), OUTSIDE + 1));
        open.push(Hall::open(&scene.machine, listening)?.dial(&scene.near, listening, None)?);
    }
    let mut table = Table::default();
    scene.try_all(&mut table, "before")?;
    host.sh("nft flush ruleset")?;
    for line in ["iptables -F", "iptables -t nat -F", "ip6tables -F", "ip6tables -t nat -F"] {
        host.sh(line)?;
    }
    scene.try_all(&mut table, "after")?;
    for (n, pair) in open.iter_mut().enumerate() {
        table.row(format!("connection {n} that was open"), || pair.check(7));
    }
    table.judge(|| scene.node.evidence())
}

#[test]
fn a_forward_chain_that_drops_does_not_matter() -> Result<()> {
    let scene = Scene::new("forward-drop")?;
    let host = scene.node.netns();
    let mut table = Table::default();
    for line in ["iptables -P FORWARD DROP", "ip6tables -P FORWARD DROP"] {
        host.sh(line)?;
    }
    scene.try_all(&mut table, "iptables")?;
    let path = host.dir().join("drop.nft");
    fs::write(
        &path,
        "table inet closed {\nchain forward {\ntype filter hook forward priority -300; policy drop;\n}\n}\n",
    )?;
    host.sh(&format!("nft -f {}", path.display()))?;
    scene.try_all(&mut table, "nft as well")?;
    table.judge(|| scene.node.evidence())
}

/// What an administrator closes for the host's own programs (ufw, firewalld) is not what containers publish.
#[test]
fn an_input_chain_that_drops_does_not_close_published_ports() -> Result<()> {
    let scene = Scene::new("input-drop")?;
    let host = scene.node.netns();
    for program in ["iptables", "ip6tables"] {
        host.sh(&format!("{program} -P INPUT DROP"))?;
        host.sh(&format!("{program} -A INPUT -i lo -j ACCEPT"))?;
        host.sh(&format!("{program} -A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT"))?;
    }
    host.sh("ip6tables -A INPUT -p ipv6-icmp -j ACCEPT")?;
    let mut table = Table::default();
    scene.try_all(&mut table, "closed")?;
    table.judge(|| scene.node.evidence())
}

#[test]
fn no_rule_is_written_and_none_is_changed() -> Result<()> {
    let mut node = Node::builder("rules").build()?;
    let machine = Machine::on(&node, 0)?;
    let empty = rules(node.netns())?;
    // With none there before, a table of its own would show.
    node.start()?;
    ensure!(rules(node.netns())? == empty, "a start writes rules:\n{}", rules(node.netns())?);
    let path = node.netns().dir().join("some.nft");
    fs::write(
        &path,
        "table inet mine {\nset s {\ntype ipv4_addr\nelements = { 203.0.113.9 }\n}\nchain forward {\n\
         type filter hook forward priority 0; policy accept;\nip saddr @s drop\n}\nchain post {\n\
         type nat hook postrouting priority 100;\nip saddr 203.0.113.0/24 masquerade\n}\n}\n",
    )?;
    node.netns().sh(&format!("nft -f {}", path.display()))?;
    node.netns().sh("iptables -A FORWARD -s 203.0.113.7 -j DROP")?;
    let before = rules(node.netns())?;
    ensure!(
        before.contains("203.0.113.7") && before.contains("203.0.113.9"),
        "the test sees no rules: {before}"
    );
    let mut scene = Scene::on(node, machine)?;
    let mut table = Table::default();
    scene.try_all(&mut table, "beside rules")?;
    let same = |scene: &Scene, when: &str| -> Result<()> {
        let now = rules(scene.node.netns())?;
        ensure!(now == before, "{when}, rules have changed from\n{before}\nto\n{now}");
        Ok(())
    };
    table.row("with traffic", || same(&scene, "with traffic"));
    scene.node.restart()?;
    table.row("after a restart", || same(&scene, "after a restart"));
    scene.web.del(&scene.node, &scene.netconf)?;
    scene.node.stop()?;
    table.row("at the end", || same(&scene, "at the end"));
    table.judge(|| scene.node.evidence())?;
    Ok(())
}

/// What Docker's rules and the portmap plugin do: a port of the node leads to a guest on a bridge of theirs. Without br_netfilter,
/// which shows the answers to the host's connection tracking on the bridge already, before Weft has translated them back.
#[test]
fn a_port_that_others_publish_is_reached_from_containers() -> Result<()> {
    let scene = Scene::new("dnat")?;
    let host = scene.node.netns();
    forward(host)?;
    set_sysctl(host, "bridge/bridge-nf-call-iptables", "0")?;
    let guest = TestNetns::named("guest")?;
    host.ip("link add docker0 type bridge")?;
    host.ip("link set docker0 up")?;
    cable(host, "guest0", &guest, "eth0")?;
    host.ip("link set guest0 master docker0")?;
    host.ip("addr add 172.30.0.1/24 dev docker0")?;
    guest.ip("addr add 172.30.0.2/24 dev eth0")?;
    guest.ip("route add default via 172.30.0.1")?;
    let _server = Echo::start(&guest, "guest", "172.30.0.2:8080".parse()?)?;
    for protocol in PROTOCOLS {
        let name = protocol.name();
        host.sh(&format!(
            "iptables -t nat -A PREROUTING -p {name} -m addrtype --dst-type LOCAL --dport 18090 -j DNAT --to 172.30.0.2:8080"
        ))?;
    }
    let mut table = Table::default();
    for protocol in PROTOCOLS {
        for from in [&scene.near, &scene.web] {
            for length in [1, 6000] {
                let dial = Dial::new(protocol, (scene.machine.peer(true), 18090).into()).sizes(0, length);
                table.row(format!("{}: {dial}", from.id), || {
                    let answer = dial.ask(from)?.answer;
                    ensure!(answer.server == "guest", "{} answered", answer.server);
                    Ok(())
                });
            }
        }
    }
    table.judge(|| scene.node.evidence())
}
