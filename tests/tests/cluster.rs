//! The cluster of the testkit: its nodes reach each other, its faults do what they say, and all of it is gone afterwards.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use std::{
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::PathBuf,
    time::{Duration, Instant},
};
use weft_tests::{
    Cluster, ClusterNode, FAMILIES, Pod, TestNetns,
    cluster::{relay::Relay, underlay::Underlying},
    crowd::Hall,
    inventory,
    netconf::network,
    poll_until,
};

/// A test of one node's ipamd that is not to wait for the others.
const SOON: Duration = Duration::from_secs(10);

fn reach(cluster: &Cluster, from: usize, to: usize) -> Result<bool> {
    cluster[from].netns().ping(cluster[to].ip_of(true))
}

#[test]
fn nodes_on_two_segments_reach_each_other_and_a_bystander() -> Result<()> {
    let cluster = Cluster::builder("reach").nodes(3).segments(2).mtu(9000).build()?;
    let bystander = cluster.bystander(1)?;
    for v4 in FAMILIES {
        for (from, to) in [(0, 1), (0, 2), (1, 2)] {
            let to = cluster[to].ip_of(v4);
            // Whole: no fragments.
            let line = format!("ping -n -c 1 -W 2 -M do -s 8900 {to}");
            cluster[from].netns().sh(&line).context("between nodes")?;
        }
        ensure!(bystander.ping(cluster[0].ip_of(v4))?, "the bystander does not reach node 0");
    }
    let names: Vec<&str> = cluster.nodes().iter().map(ClusterNode::name).collect();
    assert_eq!(names, ["reach-0", "reach-1", "reach-2"]);
    Ok(())
}

#[test]
fn an_underlay_may_have_one_family() -> Result<()> {
    for (families, v4) in [(Underlying::V4, true), (Underlying::V6, false)] {
        let cluster = Cluster::builder("family").underlying(families).build()?;
        ensure!(cluster[0].netns().ping(cluster[1].ip_of(v4))?, "{families:?}");
        ensure!(!cluster[0].netns().ping(cluster[1].ip_of(!v4))?, "{families:?}: the other family works");
    }
    Ok(())
}

#[test]
fn faults_strike_one_node_and_leave_the_others() -> Result<()> {
    let mut cluster = Cluster::builder("strike").nodes(2).settings("cool_down = 0").start()?;
    let netconf = network("blue", 66, &serde_json::Value::Null);
    let kept = Pod::add(&cluster[1], "kept", &netconf)?;
    let lost = Pod::add(&cluster[0], "lost", &netconf)?;

    cluster.cut(0)?;
    ensure!(!reach(&cluster, 0, 1)?, "node 0 was cut off");
    cluster.heal(0)?;
    ensure!(reach(&cluster, 0, 1)?, "node 0 was healed");
    cluster.part(0, 1)?;
    ensure!(!reach(&cluster, 1, 0)?, "the nodes were kept apart");
    cluster.join(0, 1)?;
    ensure!(reach(&cluster, 1, 0)?, "the nodes were joined again");

    cluster[0].signal(Signal::SIGSTOP)?;
    let asked = cluster[0].client().with_timeout(Duration::from_millis(300));
    ensure!(asked.get::<ipamd_api::Status>(ipamd_api::path::STATUS).is_err(), "a paused ipamd answered");
    cluster.heal_all()?;
    cluster[0].client().get::<ipamd_api::Status>(ipamd_api::path::STATUS)?;
    cluster[0].restart()?;
    inventory::assert_holds(&cluster[0], &[lost.endpoint()?])?;

    cluster.reboot(0)?;
    inventory::assert_clean(&cluster[0])?;
    poll_until(SOON, "the link of a sandbox to go with its node", || {
        inventory::interfaces(&lost).is_ok_and(|names| names.is_empty())
    })?;
    ensure!(reach(&cluster, 0, 1)?, "node 0 is on the underlay again");
    let fresh = Pod::add(&cluster[0], "fresh", &netconf)?;
    ensure!(fresh.ping("10.66.0.1")?, "the gateway does not answer after a boot");
    inventory::assert_holds(&cluster[1], &[kept.endpoint()?])
}

#[test]
fn a_power_loss_takes_every_sandbox_and_no_state() -> Result<()> {
    let mut cluster = Cluster::builder("power").start()?;
    let netconf = network("blue", 66, &serde_json::Value::Null);
    let pods = [Pod::add(&cluster[0], "zero", &netconf)?, Pod::add(&cluster[1], "one", &netconf)?];
    cluster.power_loss()?;
    drop(pods);
    for node in cluster.nodes() {
        inventory::assert_clean(node)?;
        let networks = node.ask("network ls")?;
        ensure!(networks.contains("blue"), "the network is forgotten: {networks}");
    }
    Ok(())
}

#[test]
fn etcd_is_a_host_of_the_underlay() -> Result<()> {
    let mut cluster = Cluster::builder("etcd").etcd(3).segments(2).far_etcd().build()?;
    let reaches = |cluster: &Cluster, node: usize, member: usize| -> Result<bool> {
        let at = cluster.etcd_address(member);
        cluster[node].netns().run(|| TcpStream::connect_timeout(&at, Duration::from_millis(500)).is_ok())
    };
    ensure!(reaches(&cluster, 0, 0)? && reaches(&cluster, 1, 2)?, "etcd is not reached");
    cluster.part_from_etcd(0)?;
    ensure!(!reaches(&cluster, 0, 0)? && !reaches(&cluster, 0, 2)?, "node 0 was kept apart from etcd");
    ensure!(reaches(&cluster, 1, 0)? && reach(&cluster, 0, 1)?, "nobody else was");
    cluster.join_etcd(0)?;
    ensure!(reaches(&cluster, 0, 0)?, "node 0 was joined again");

    // One member of three may fail, and be cut off.
    let leader = cluster.etcd()?.leader()?;
    cluster.underlay().cut(cluster.etcd_place(leader))?;
    let other = (leader + 1) % 3;
    cluster.etcd()?.kill(leader)?;
    poll_until(SOON, "the others to elect a leader", || {
        cluster.etcd().is_ok_and(|etcd| etcd.ctl(other, &["put", "key", "value"]).is_ok())
    })?;
    cluster.heal_all()?;
    cluster.etcd()?.restart_all()?;

    let away = Duration::from_millis(300);
    cluster.set_etcd_round_trip(away);
    let endpoint = format!("http://{}:12379", cluster.etcd_address(0).ip());
    let start = Instant::now();
    cluster[0].netns().sh(&format!("etcdctl --endpoints={endpoint} get key"))?;
    ensure!(start.elapsed() >= away, "etcd answers within {:?}", start.elapsed());
    Ok(())
}

#[test]
fn a_relay_makes_a_server_far_away() -> Result<()> {
    let netns = TestNetns::new()?;
    let [server, far]: [SocketAddr; 2] = [7000, 7001].map(|port| (Ipv4Addr::LOCALHOST, port).into());
    let hall = Hall::open(&netns, server)?;
    let relay = Relay::start(&netns, far, server)?;
    let mut pair = hall.dial(&netns, far, None)?;
    pair.check(1)?;
    // Much more than the noise of a busy machine, and less than what a client waits.
    let away = Duration::from_millis(400);
    relay.set_round_trip(away);
    let start = Instant::now();
    // Both ends speak at once, so that half a round trip is all it takes.
    pair.check(2)?;
    let took = start.elapsed();
    ensure!(took >= away / 2, "{took:?} for half a round trip of {away:?}");
    relay.set_round_trip(Duration::ZERO);
    pair.carry(3_000_000).context("through a relay")?;
    drop(relay);
    ensure!(pair.check(3).is_err(), "the stream outlived its relay");
    Ok(())
}

#[test]
fn nothing_is_left_of_a_cluster_whose_test_panics() -> Result<()> {
    let (mut paths, mut pids): (Vec<PathBuf>, Vec<u32>) = Default::default();
    let failed = std::thread::scope(|scope| {
        let (paths, pids) = (&mut paths, &mut pids);
        scope
            .spawn(move || -> Result<()> {
                let mut cluster = Cluster::builder("panic").start()?;
                cluster.cut(0)?;
                cluster[1].signal(Signal::SIGSTOP)?;
                for node in cluster.nodes() {
                    paths.extend([node.netns().path().to_owned(), node.bpf_dir(), node.run_dir()]);
                    paths.push(node.cgroup().to_owned());
                    pids.extend(node.ipamd_pid());
                }
                paths.push(cluster.underlay().netns().path().to_owned());
                std::panic::resume_unwind(Box::new("as a failed assertion would"));
            })
            .join()
    });
    ensure!(failed.is_err(), "{failed:?}");
    ensure!(paths.len() == 9 && pids.len() == 2, "{paths:?}, {pids:?}");
    for path in paths {
        ensure!(!path.exists(), "{} is left", path.display());
    }
    for pid in pids {
        ensure!(!PathBuf::from(format!("/proc/{pid}")).exists(), "process {pid} is left");
    }
    Ok(())
}
