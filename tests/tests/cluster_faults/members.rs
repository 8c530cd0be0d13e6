//! One of three members of etcd cut off or killed, the leader too, while blocks are claimed.

use super::world::{CONVERGENCE, World, builder, netconf};
use anyhow::{Context, Result, anyhow};
use std::thread;
use weft_tests::poll_until;

/// Networks, on each of which the first ADD of a node is a claim.
fn networks(world: &World, prefix: &str, count: u8, first: u8) -> Result<Vec<String>> {
    (0..count)
        .map(|n| {
            let name = format!("{prefix}{n}");
            world.create(&name, &format!("--subnet 10.{}.0.0/16", first + n))?;
            Ok(name)
        })
        .collect()
}

#[test]
fn any_member_may_be_cut_off() -> Result<()> {
    let mut world = World::populated(builder("cut").etcd(3))?;
    let networks = networks(&world, "net", 3, 80)?;
    for (member, network) in networks.iter().enumerate() {
        let place = world.cluster.etcd_place(member).clone();
        world.cluster.underlay().cut(&place)?;
        let url = world.cluster.etcd()?.endpoint(member);
        world.says(0, "doctor", &format!("store {url}"))?;
        for node in [0, 1] {
            let added = world.insist(node, &netconf(network));
            let added = added.with_context(|| format!("a claim of node {node} without member {member}"))?;
            world.live.push(added);
        }
        world.cluster.underlay().heal(&place)?;
        world.cluster.etcd()?.wait_ready()?;
        poll_until(CONVERGENCE, "the doctor to find nothing", || world.cluster[0].ask("doctor").is_ok())
            .with_context(|| world.cluster.evidence())?;
    }
    world.converge()?;
    world.judge()
}

#[test]
fn the_leader_may_die_during_claims() -> Result<()> {
    let mut world = World::populated(builder("leader").etcd(3))?;
    for round in 0..2_u8 {
        let networks = networks(&world, &format!("r{round}n"), 4, 80 + 10 * round)?;
        let leader = world.cluster.etcd()?.leader()?;
        let pid = world.cluster.etcd()?.pid(leader).context("the leader runs")?;
        let pid = nix::unistd::Pid::from_raw(i32::try_from(pid)?);
        let (world_, networks_) = (&world, &networks);
        let added = thread::scope(|scope| {
            let claims: Vec<_> = [0, 1]
                .into_iter()
                .flat_map(|node| networks_.iter().map(move |network| (node, network)))
                .map(|(node, network)| scope.spawn(move || world_.insist(node, &netconf(network))))
                .collect();
            // By its number, for its value is the world's: in the middle of the claims.
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL)?;
            claims
                .into_iter()
                .map(|claim| claim.join().map_err(|_| anyhow!("a claim panicked"))?)
                .collect::<Result<Vec<_>>>()
        })?;
        world.live.extend(added);
        world.judge()?;
        world.cluster.etcd()?.restart_all()?;
    }
    world.converge()?;
    world.judge()
}
