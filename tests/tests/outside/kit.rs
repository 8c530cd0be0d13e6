//! The testkit's machines, tunnels and cgroups are what the other tests take them for.

use anyhow::{Result, ensure};
use std::{fs, net::IpAddr};
use weft_tests::{
    Machine, Node, Sandbox, TestNetns,
    crowd::Hall,
    dial::Dial,
    echo::{Echo, Protocol},
    tun::Tunnel,
};

fn cgroup_of_thread() -> Result<String> {
    let all = fs::read_to_string("/proc/thread-self/cgroup")?;
    Ok(all.lines().filter_map(|line| line.strip_prefix("0::")).collect())
}

#[test]
fn what_runs_on_a_node_is_in_its_cgroup_and_the_test_is_not() -> Result<()> {
    let node = Node::builder("cgroup").build()?;
    let name = node.cgroup().file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let before = cgroup_of_thread()?;
    let mut sandbox = Sandbox::new()?;
    sandbox.join(node.cgroup_dir());
    for netns in [node.netns(), &sandbox] {
        let inside = netns.run(cgroup_of_thread)??;
        ensure!(inside.ends_with(&name), "a thread is in {inside}");
        let inside = netns.sh("cat /proc/self/cgroup")?;
        ensure!(inside.contains(&name), "a process is in {inside}");
    }
    ensure!(cgroup_of_thread()? == before, "the test itself has moved to {}", cgroup_of_thread()?);
    let path = node.cgroup().to_owned();
    drop((node, sandbox));
    ensure!(!path.exists(), "{} is left", path.display());
    Ok(())
}

#[test]
fn machines_reach_their_node_and_each_other_by_routers_only() -> Result<()> {
    let node = Node::builder("machines").build()?;
    let [first, second] = [Machine::on(&node, 0)?, Machine::on(&node, 1)?];
    let behind = Machine::behind(&first, 0, 1400)?;
    for v4 in [true, false] {
        ensure!(
            first.ping(first.peer(v4))? && second.ping(second.peer(v4))?,
            "a machine does not reach its node"
        );
        ensure!(node.netns().ping(behind.ip_of(v4))?, "the node does not reach who is behind the router");
        let sandbox: IpAddr = if v4 { "10.70.0.2" } else { "fd00:70::2" }.parse()?;
        for machine in [&first, &second] {
            let family = if v4 { "-4" } else { "-6" };
            ensure!(
                machine.ip(&format!("{family} route get {sandbox}")).is_err(),
                "a machine knows sandboxes"
            );
        }
        // The smaller MTU behind the router is what a stream has to find.
        let listening = (behind.ip_of(v4), 7000).into();
        Hall::open(&behind, listening)?.dial(node.netns(), listening, None)?.carry(100_000)?;
    }
    Ok(())
}

#[test]
fn a_tunnel_carries_both_families_and_large_packets() -> Result<()> {
    let ends = [TestNetns::named("one")?, TestNetns::named("other")?];
    let _tunnel = Tunnel::new([&ends[0], &ends[1]], "tun0")?;
    for (n, end) in ends.iter().enumerate() {
        end.ip(&format!("addr add 10.99.0.{}/24 dev tun0", n + 1))?;
        end.ip(&format!("addr add fd00:99::{}/64 dev tun0 nodad", n + 1))?;
    }
    for address in ["10.99.0.2", "fd00:99::2"] {
        let address: IpAddr = address.parse()?;
        let _server = Echo::start(&ends[1], "other", (address, 7000).into())?;
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let heard = Dial::new(protocol, (address, 7000).into()).sizes(1, 8192).ask(&ends[0])?;
            ensure!(heard.answer.seen().port() == heard.local.port(), "{heard:?}");
        }
    }
    Ok(())
}
