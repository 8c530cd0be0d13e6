//! `cargo xtask demo`: Weft at work on this machine, told step by step.
//!
//! It owns a network namespace (this process moves into a new one, so nothing of the machine's own network is
//! touched) with a link to another one that plays another machine, an ipamd with the embedded store, and a podman with three
//! containers, all below one temporary folder. Guards take everything down again, in the order containers, runtime, ipamd, mounts, also after a
//! failure or Ctrl-C. A step that shows something else than it should ends the demo with exit code 1. One thread.

mod node;
mod outside;
mod story;

use std::{
    env, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, unshare};
use serde_json::json;
use weft_tests::podman::{Addresses, Podman};

use node::Node;
use outside::{NODE, OTHER, Outside, page};
use story::Story;

/// The two networks and their pools.
const NETWORKS: [(&str, [&str; 2]); 2] =
    [("front", ["10.231.1.0/24", "fd23:1::/64"]), ("back", ["10.231.2.0/24", "fd23:2::/64"])];

/// The three containers, their networks and more options of `podman run`.
const CONTAINERS: [(&str, &str, &[&str]); 3] =
    [("alice", "front", &[]), ("bob", "front", &["--publish", "8080:80"]), ("carol", "back", &[])];

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
    let binaries = env::current_exe().context("cannot tell where this program is")?;
    let binaries = binaries.parent().context("this program is in no folder")?;
    for name in ["weft", "ipamd", "netctl"] {
        ensure!(
            binaries.join(name).is_file(),
            "{name} is not in {}: run `cargo xtask demo`",
            binaries.display()
        );
    }
    unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
    let dir =
        tempfile::Builder::new().prefix("weft-demo-").tempdir().context("cannot make a temporary folder")?;
    println!("Weft demo: three containers on two networks, made by podman, joined by Weft.");
    println!("It runs in a network namespace of its own and keeps its files in {}.", dir.path().display());

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
    shell("ip", &["link", "set", "lo", "up"])?;
    let outside = Outside::new()?;

    story.step("Start ipamd, the node daemon, with its embedded store")?;
    let node = Node::start(binaries, dir, &story)?;

    story.step("Tell podman of the two networks: a conflist each, with \"type\": \"weft\"")?;
    let networks = conflists(dir, node.run_dir())?;
    for (name, _) in NETWORKS {
        story.show(&fs::read_to_string(networks.join(format!("{name}.conflist")))?);
    }
    let plugins = dir.join("plugins");
    fs::create_dir(&plugins)?;
    symlink(binaries.join("weft"), plugins.join("weft"))?;
    let podman = Podman::new(&dir.join("podman"), &plugins, &networks, "front")?;

    story.step("Start three containers of a busybox image made on this machine")?;
    for (name, network, options) in CONTAINERS {
        let more: String = options.iter().map(|option| format!("{option} ")).collect();
        let line = format!("podman run --detach --name {name} --network {network} {more}localhost/busybox:1");
        story.command(&line)?;
        podman.start(name, network, options)?;
        let addresses = podman.addresses(name, network)?;
        story.show(&format!(
            "{name}: {} and {}, gateway {}",
            addresses.ipv4, addresses.ipv6, addresses.gateway
        ));
    }
    let [alice, bob, carol] = CONTAINERS.map(|(name, network, _)| podman.addresses(name, network));
    let (alice, bob, carol) = (alice?, bob?, carol?);

    story.step("See alice's own view: interface, addresses and routes came from Weft")?;
    for command in [&["ip", "address", "show", "eth0"][..], &["ip", "route"]] {
        inside(&podman, &story, "alice", command)?;
    }

    story.step("Containers of one network reach each other, on both families, and their gateway")?;
    for (from, to) in [
        ("alice", &bob.ipv4),
        ("alice", &bob.ipv6),
        ("bob", &alice.ipv4),
        ("alice", &alice.gateway),
        ("carol", &carol.gateway),
    ] {
        reaches(&podman, &story, from, to)?;
    }
    serve_a_page(&podman, &story, &bob)?;

    story.step("A network is isolated from another: alice and carol do not reach each other")?;
    for (from, to) in [("alice", &carol.ipv4), ("alice", &carol.ipv6), ("carol", &alice.ipv4)] {
        is_cut_off(&podman, &story, from, to)?;
    }

    story.step(
        "Containers reach other machines, with the node's address: the others know no way to a container",
    )?;
    for address in OTHER {
        reaches(&podman, &story, "alice", address)?;
    }

    story.step("bob's page is published: another machine gets it from the node's port 8080, and so does the node itself")?;
    for host in [NODE[0], NODE[1], "127.0.0.1", "::1"] {
        get_published(&story, &node, &outside, host)?;
    }

    story.step("Ask Weft: netctl publish ls, netctl inspect bob")?;
    for arguments in [&["endpoint", "ls"][..], &["publish", "ls"], &["inspect", "bob"]] {
        story.command(&format!("netctl {}", arguments.join(" ")))?;
        story.show(&node.netctl(arguments)?);
    }

    story.step("Take it down: the containers give their addresses back")?;
    for (name, ..) in CONTAINERS {
        story.command(&format!("podman rm --force {name}"))?;
        podman.remove(name)?;
    }
    story.command("netctl endpoint ls -o json")?;
    let endpoints = node.netctl(&["endpoint", "ls", "-o", "json"])?;
    story.show(&endpoints);
    let endpoints: serde_json::Value = serde_json::from_str(&endpoints).context("netctl printed no JSON")?;
    ensure!(
        endpoints.as_array().is_some_and(Vec::is_empty),
        "endpoints are left after their containers are gone"
    );
    drop(podman);
    node.stop(&story)
}

/// Writes a conflist for each network.
fn conflists(dir: &Path, run_dir: &Path) -> Result<PathBuf> {
    let networks = dir.join("net.d");
    fs::create_dir(&networks)?;
    for (name, pools) in NETWORKS {
        let pools: Vec<_> = pools.iter().map(|subnet| json!({ "subnet": subnet })).collect();
        let capabilities = json!({ "portMappings": true });
        let plugin =
            json!({ "type": "weft", "runDir": run_dir, "pools": pools, "capabilities": capabilities });
        let conflist = json!({ "cniVersion": "1.0.0", "name": name, "plugins": [plugin] });
        fs::write(networks.join(format!("{name}.conflist")), conflist.to_string())?;
    }
    Ok(networks)
}

/// Runs a command in a container and shows what it prints.
fn inside(podman: &Podman, story: &Story, name: &str, command: &[&str]) -> Result<()> {
    story.command(&format!("podman exec {name} {}", command.join(" ")))?;
    story.show(&podman.exec(name, command)?);
    Ok(())
}

/// One container answers another's pings.
fn reaches(podman: &Podman, story: &Story, from: &str, to: &str) -> Result<()> {
    let ping = ["ping", "-c", "2", "-i", "0.2", "-w", "5", to];
    story.command(&format!("podman exec {from} {}", ping.join(" ")))?;
    let output = podman.exec(from, &ping).with_context(|| format!("{from} should reach {to}"))?;
    story.show(statistics(&output));
    Ok(())
}

/// One container gets no answer from another.
fn is_cut_off(podman: &Podman, story: &Story, from: &str, to: &str) -> Result<()> {
    let ping = ["ping", "-c", "2", "-i", "0.2", "-W", "1", to];
    story.command(&format!("podman exec {from} {}", ping.join(" ")))?;
    let output = podman.command().arg("exec").arg(from).args(ping).output().context("cannot run podman")?;
    let said = String::from_utf8_lossy(&output.stdout);
    // Without this line the ping did not run, which proves nothing.
    let sent =
        said.contains("100% packet loss") || String::from_utf8_lossy(&output.stderr).contains("nreachable");
    if output.status.success() || !sent {
        bail!("{from} should get no answer from {to}, but ping said: {said}");
    }
    story.show(&format!("{}(as it should be)", statistics(&said)));
    Ok(())
}

/// A TCP connection from alice to bob.
fn serve_a_page(podman: &Podman, story: &Story, bob: &Addresses) -> Result<()> {
    inside(podman, story, "bob", &["httpd", "-p", "80", "-h", "/www"])?;
    // Not wget: a static busybox crashes in it, looking for name services that no image of one file has.
    let request = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {} 80 | tail -n 1", bob.ipv4);
    story.command(&format!("podman exec alice sh -c \"{request}\""))?;
    let page = podman.exec("alice", &["sh", "-c", &request])?;
    ensure!(page.contains("hello from busybox"), "alice should get bob's page, but got: {page}");
    story.show(&page);
    Ok(())
}

/// bob's page by his published port at an address of the node: from the node itself if it is a loopback address, else from the
/// other machine.
fn get_published(story: &Story, node: &Node, outside: &Outside, host: &str) -> Result<()> {
    let url =
        if host.contains(':') { format!("http://[{host}]:8080/") } else { format!("http://{host}:8080/") };
    let own = ["127.0.0.1", "::1"].contains(&host);
    let (place, command) =
        if own { ("", node.command("curl")) } else { ("other machine: ", outside.command("curl")) };
    story.command(&format!("{place}curl {url}"))?;
    let page = page(command, &url)?;
    ensure!(page.contains("hello from busybox"), "{url} should give bob's page, but gave: {page}");
    story.show(&page);
    Ok(())
}

/// The last lines of a ping: what counts.
fn statistics(output: &str) -> &str {
    output.split_once("statistics ---\n").map_or(output, |(_, statistics)| statistics)
}

/// Runs a program of the machine.
fn shell(program: &str, arguments: &[&str]) -> Result<()> {
    let output =
        Command::new(program).args(arguments).output().with_context(|| format!("cannot run {program}"))?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`{program} {}` failed: {}", arguments.join(" "), complaint.trim());
    Ok(())
}

/// Whether mounts or links are left when all guards are gone.
fn left_behind(dir: &Path) -> Result<()> {
    let dir = dir.to_string_lossy();
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("cannot read the mount table")?;
    if let Some(mount) = mounts.lines().find(|line| line.contains(&*dir)) {
        bail!("a mount is left: {mount}");
    }
    // Bridges belong to the networks and go with the namespace; endpoints' links must be gone.
    let devices = fs::read_to_string("/proc/net/dev").context("cannot read the list of links")?;
    let names = devices.lines().filter_map(|line| Some(line.split_once(':')?.0.trim()));
    match names.into_iter().find(|name| name.starts_with("wf") && !name.starts_with("wf-")) {
        Some(name) => bail!("the link {name} is left"),
        None => Ok(()),
    }
}
