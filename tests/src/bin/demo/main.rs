//! `cargo xtask demo`: Weft at work on two nodes, told step by step.
//!
//! It owns two network namespaces that play nodes, each with an ipamd and a podman, an etcd and another machine beside them, all on
//! an underlay of its own, so nothing of the machine's own network is touched; every file lies below one temporary folder.
//! Guards take everything down again, in the order containers, runtimes, ipamds, etcd, underlay, also after a failure or Ctrl-C. A step that
//! shows something else than it should ends the demo with exit code 1. One thread, but for the two podmans' start.

mod containers;
mod story;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use ipamd_api::EndpointId;
use serde_json::Value;
use weft_tests::{Cluster, FAMILIES, Wire, cluster::Bystander, inventory};

use containers::{Containers, Runtime};
use story::Story;

/// The two networks and their pools.
const NETWORKS: [(&str, [&str; 2]); 2] =
    [("front", ["10.231.0.0/16", "fd23:1::/64"]), ("back", ["10.232.0.0/16", "fd23:2::/64"])];

/// The containers: name, node, network and more options of `podman run`.
const CONTAINERS: [(&str, usize, &str, &[&str]); 3] =
    [("alice", 0, "front", &[]), ("bob", 1, "front", &["--publish", "8080:80"]), ("carol", 1, "back", &[])];

/// How long a node may take to hear of another's containers.
const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let start = Instant::now();
    match told() {
        Ok(()) => {
            println!("\nDone in {:.1} s; nothing was left behind.", start.elapsed().as_secs_f64());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The demo and what must be true after it.
fn told() -> Result<()> {
    story::catch_interrupts()?;
    // The machine's own settings are not the demo's.
    let own = env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    let own = own.filter(|name| name.starts_with("WEFT_")).collect::<Vec<_>>();
    ensure!(own.is_empty(), "unset {} first: the demo has settings of its own", own.join(", "));
    let binaries = env::current_exe().context("cannot tell where this program is")?;
    let binaries = binaries.parent().context("this program is in no folder")?;
    for name in ["weft", "ipamd", "netctl"] {
        ensure!(
            binaries.join(name).is_file(),
            "{name} is not in {}: run `cargo xtask demo`",
            binaries.display()
        );
    }
    let dir =
        tempfile::Builder::new().prefix("weft-demo-").tempdir().context("cannot make a temporary folder")?;
    // What the testkit makes lies there, too.
    let elsewhere = tempfile::env::override_temp_dir(dir.path());
    ensure!(elsewhere.is_ok(), "the folder for temporary files was chosen before");
    println!("Weft demo: two nodes, one network on both; containers by podman, addresses by etcd.");
    println!("It runs in network namespaces of its own and keeps its files in {}.", dir.path().display());

    let played = play(binaries, dir.path());
    let left = left_behind(dir.path());
    let path = dir.path().to_path_buf();
    dir.close().with_context(|| format!("cannot remove {}", path.display()))?;
    played?;
    left
}

/// All steps. Guards live here: when this returns, all is down.
fn play(binaries: &Path, dir: &Path) -> Result<()> {
    let mut story = Story::new(dir);

    story.step("Start an etcd, and ipamd, the node daemon, on two nodes beside it")?;
    let mut cluster = Cluster::builder("node").etcd(1).own_groups().build()?;
    let start = Instant::now();
    cluster.start_all()?;
    let machine = cluster.bystander(0)?;
    for node in cluster.nodes() {
        let [v4, v6] = FAMILIES.map(|v4| node.ip_of(v4));
        story.show(&format!("{}: {v4} and {v6} on the underlay", node.name()));
    }
    story.show(&format!(
        "etcd: {}; both ready after {} ms",
        cluster.etcd_address(0),
        start.elapsed().as_millis()
    ));

    story.step("Create two overlay networks; every node of the cluster knows them")?;
    for (name, pools) in NETWORKS {
        let subnets: String = pools.iter().map(|pool| format!(" --subnet {pool}")).collect();
        let line = format!("network create {name} --driver overlay{subnets}");
        story.command(&format!("netctl {line}"))?;
        cluster[0].ask(&line)?;
    }
    netctl(&story, &cluster, 1, "network ls")?;
    netctl(&story, &cluster, 0, "node ls")?;

    story.step("Start three containers of a busybox image made on this machine, by each node's podman")?;
    let runtimes = runtimes(binaries, dir, &cluster, &story)?;
    let containers = Containers::start(&story, &runtimes, &CONTAINERS)?;

    story.step("See alice's own view: interface, addresses and routes came from Weft")?;
    for command in [&["ip", "address", "show", "eth0"][..], &["ip", "route"]] {
        containers.inside(&story, "alice", command)?;
    }

    story.step("alice on node-0 and bob on node-1 reach each other, on both families, and their gateway")?;
    let (alice, bob, carol) = (containers.of("alice")?, containers.of("bob")?, containers.of("carol")?);
    containers.await_answer("alice", &bob.ipv4, PATIENCE)?;
    let wire = Wire::open(cluster[1].netns(), "up0")?;
    for (from, to) in
        [("alice", &bob.ipv4), ("alice", &bob.ipv6), ("bob", &alice.ipv4), ("alice", &alice.gateway)]
    {
        containers.reaches(&story, from, to)?;
    }
    // The inner frame lies behind 50 bytes of Ethernet, IPv4, UDP and VXLAN.
    let frame = wire.expect(PATIENCE, "a packet in VXLAN", |frame| {
        frame.get(36..38) == Some(&4789_u16.to_be_bytes()) && frame.get(23) == Some(&17)
    })?;
    let vni = frame.get(46..49).map_or(0, |b| u32::from_be_bytes([0, b[0], b[1], b[2]]));
    story.show(&format!("on the wire between the nodes: UDP port 4789, VXLAN with VNI {vni}"));
    containers.serve_a_page(&story, "bob")?;
    containers.gets_the_page(&story, "alice", bob)?;

    story.step(
        "Containers know each other by name, on every node of their network, and nobody of another one",
    )?;
    containers.await_name("alice", "bob", PATIENCE)?;
    containers.finds(&story, "alice", "bob", bob)?;
    containers.finds(&story, "bob", "alice", alice)?;
    containers.finds_nobody(&story, "alice", "carol.back")?;

    story.step(
        "A network is isolated from another: carol is beside bob, and neither he nor alice reaches her",
    )?;
    for (from, to) in [("bob", &carol.ipv4), ("alice", &carol.ipv6), ("carol", &alice.ipv4)] {
        containers.is_cut_off(&story, from, to)?;
    }

    story.step(
        "Containers reach other machines, with their node's address: the others know no way to a container",
    )?;
    for v4 in FAMILIES {
        containers.reaches(&story, "alice", &machine.ip_of(v4).to_string())?;
    }

    story.step("bob's page is published on node-1: another machine gets it from port 8080, and so does node-1 itself")?;
    for v4 in FAMILIES {
        get_published(&story, &cluster, Some(&machine), &cluster[1].ip_of(v4).to_string())?;
    }
    for host in ["127.0.0.1", "::1"] {
        get_published(&story, &cluster, None, host)?;
    }

    story.step("Ask Weft: who is where, and how much is used")?;
    netctl(&story, &cluster, 1, "endpoint ls")?;
    netctl(&story, &cluster, 0, "pool ls")?;
    netctl(&story, &cluster, 0, "inspect alice")?;

    story.step("Kill etcd and both ipamds: traffic between the nodes goes on, and names are answered")?;
    story.command("kill -KILL <etcd> <ipamd of node-0> <ipamd of node-1>")?;
    cluster.etcd()?.kill_all()?;
    for node in cluster.nodes_mut() {
        node.kill()?;
    }
    containers.reaches(&story, "alice", &bob.ipv4)?;
    containers.finds(&story, "alice", "bob", bob)?;
    story.command("systemctl start etcd ipamd   # each where it was")?;
    cluster.etcd()?.restart_all()?;
    cluster.start_all()?;
    containers.reaches(&story, "bob", &alice.ipv6)?;

    story.step("Take it down: the containers give their addresses back")?;
    containers.remove(&story)?;
    for (number, node) in cluster.nodes().iter().enumerate() {
        let endpoints = netctl(&story, &cluster, number, "endpoint ls -o json")?;
        let endpoints: Value = serde_json::from_str(&endpoints).context("netctl printed no JSON")?;
        ensure!(
            endpoints.as_array().is_some_and(Vec::is_empty),
            "endpoints are left after their containers are gone"
        );
        let links = inventory::interfaces(node.netns())?;
        let left = links.iter().find(|name| EndpointId::of_host_ifname(name).is_some());
        ensure!(left.is_none(), "the link {left:?} is left on {}", node.name());
    }
    drop(runtimes);
    for node in cluster.nodes_mut() {
        story.command(&format!("kill -TERM <ipamd of {}>", node.name()))?;
        let status = node.stop()?;
        ensure!(status.success(), "ipamd ended with {status}");
    }
    Ok(())
}

/// What a netctl command prints on a node.
fn netctl(story: &Story, cluster: &Cluster, node: usize, line: &str) -> Result<String> {
    story.command(&format!("{}: netctl {line}", cluster[node].name()))?;
    let said = cluster[node].ask(line)?;
    story.show(&said);
    Ok(said)
}

/// A podman for each node, both made at once.
fn runtimes(binaries: &Path, dir: &Path, cluster: &Cluster, story: &Story) -> Result<Vec<Runtime>> {
    let made: Result<Vec<Runtime>> = thread::scope(|scope| {
        let nodes = cluster.nodes().iter();
        let made: Vec<_> = nodes.map(|node| scope.spawn(|| Runtime::new(binaries, dir, node))).collect();
        made.into_iter().map(|one| one.join().map_err(|_| anyhow!("a podman's start panicked"))?).collect()
    });
    let made = made?;
    let conflist: PathBuf = made[0].networks().join(format!("{}.conflist", NETWORKS[0].0));
    story.show(&fs::read_to_string(conflist).context("cannot read a conflist")?);
    Ok(made)
}

/// bob's page by his published port at an address of node-1: from another machine, or from node-1 itself.
fn get_published(story: &Story, cluster: &Cluster, machine: Option<&Bystander>, host: &str) -> Result<()> {
    let url =
        if host.contains(':') { format!("http://[{host}]:8080/") } else { format!("http://{host}:8080/") };
    let (place, command) = match machine {
        Some(machine) => ("another machine", machine.command("curl")),
        None => ("node-1", cluster[1].netns().command("curl")),
    };
    story.command(&format!("{place}: curl {url}"))?;
    let page = page(command, &url)?;
    ensure!(page.contains("hello from busybox"), "{url} should give bob's page, but gave: {page}");
    story.show(&page);
    Ok(())
}

/// What `curl` gets by `command`, which runs it somewhere.
fn page(mut command: Command, url: &str) -> Result<String> {
    // No glob: the brackets are an IPv6 address's. No proxy of whoever runs the demo.
    command.args(["--silent", "--show-error", "--globoff", "--noproxy", "*", "--max-time", "5", url]);
    let output = command.output().context("cannot run curl")?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`curl {url}` failed: {}", complaint.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether a mount is left when all guards are gone: every namespace and every pin lies in one.
fn left_behind(dir: &Path) -> Result<()> {
    let dir = dir.to_string_lossy();
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("cannot read the mount table")?;
    match mounts.lines().find(|line| line.contains(&*dir)) {
        Some(mount) => Err(anyhow!("a mount is left: {mount}")),
        None => Ok(()),
    }
}
