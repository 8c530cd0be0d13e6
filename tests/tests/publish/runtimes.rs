//! Ports that runtimes publish, by the words that their users know: podman and containerd, with nothing configured but a conflist
//! that names `weft`.

use super::scene::{HOST_PORT, localhost};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::{fs, net::IpAddr, path::Path};
use tempfile::TempDir;
use weft_tests::{
    FAMILIES, Machine, Node, Table, TestNetns,
    containerd::{Containerd, pod_config},
    cri::PodPort,
    inventory, plugins,
    podman::Podman,
};

/// What busybox' httpd serves in the image.
const PAGE: &str = "hello from busybox";

/// Writes the conflist that a user writes once.
fn conflist(node: &Node, dir: &Path) -> Result<()> {
    fs::create_dir(dir)?;
    let plugin = json!({
        "type": "weft", "runDir": node.run_dir(), "capabilities": {"portMappings": true},
        "pools": [{"subnet": "10.70.0.0/24"}, {"subnet": "fd00:70::/64"}],
    });
    let conflist = json!({"cniVersion": "1.0.0", "name": "blue", "plugins": [plugin]});
    fs::write(dir.join("10-blue.conflist"), conflist.to_string()).context("writing a conflist")
}

fn page(from: &TestNetns, ip: IpAddr, port: u16) -> Result<()> {
    let host = if ip.is_ipv4() { ip.to_string() } else { format!("[{ip}]") };
    let said = from.sh(&format!("curl -sS -g --max-time 3 http://{host}:{port}/"))?;
    ensure!(said.trim_end() == PAGE, "{said}");
    Ok(())
}

/// The page from another machine and from the node, by both families.
fn pages(table: &mut Table, node: &Node, machine: &Machine, port: u16) {
    for v4 in FAMILIES {
        for (name, from, ip) in [
            ("machine", &**machine, machine.peer(v4)),
            ("localhost", node.netns(), localhost(v4)),
            ("the node's address", node.netns(), machine.peer(v4)),
        ] {
            table.row(format!("{name}, {ip} port {port}"), || page(from, ip, port));
        }
    }
}

/// podman and its node; podman goes first.
struct World {
    podman: Podman,
    machine: Machine,
    node: Node,
    _dir: TempDir,
}

impl World {
    fn new() -> Result<Self> {
        let node = Node::start_new("podman")?;
        let machine = Machine::on(&node, 0)?;
        let dir = tempfile::tempdir()?;
        let plugins = plugins::folder(&dir.path().join("plugins"))?;
        let networks = dir.path().join("net.d");
        conflist(&node, &networks)?;
        let podman = Podman::new_in(node.netns(), &dir.path().join("podman"), &plugins, &networks, "blue")?;
        Ok(Self { podman, machine, node, _dir: dir })
    }

    fn serve(&self, name: &str, ports: &[&str]) -> Result<()> {
        for port in ports {
            self.podman.exec(name, &["httpd", "-p", port, "-h", "/www"])?;
        }
        Ok(())
    }
}

#[test]
fn podman_publishes_and_gives_back() -> Result<()> {
    let world = World::new()?;
    let World { podman, machine, node, .. } = &world;
    let loopback = format!("127.0.0.1:{}:80", HOST_PORT + 1);
    let range = format!("{}-{}:9000-9002", HOST_PORT + 10, HOST_PORT + 12);
    let options = ["--publish", &format!("{HOST_PORT}:80"), "--publish", &loopback, "--publish", &range];
    podman.start("web", "blue", &options)?;
    world.serve("web", &["80", "9000", "9001", "9002"])?;
    let mut table = Table::default();
    pages(&mut table, node, machine, HOST_PORT);
    for n in 10..=12 {
        pages(&mut table, node, machine, HOST_PORT + n);
    }
    table.row("at 127.0.0.1 alone", || page(node.netns(), localhost(true), HOST_PORT + 1));
    table.row("not elsewhere", || {
        let answered = page(machine, machine.peer(true), HOST_PORT + 1).is_ok();
        ensure!(!answered, "is answered");
        Ok(())
    });
    table.row("a second container with the same port", || {
        let error = podman.start("late", "blue", &["--publish", &format!("{HOST_PORT}:80")]);
        let error = format!("{:#}", error.err().context("was started")?);
        ensure!(
            error.contains("in use") || error.contains("taken") || error.contains("published"),
            "{error}"
        );
        podman.remove("late")
    });
    // A restart is another sandbox at the same port.
    podman.run(["restart", "--time", "0", "web"])?;
    world.serve("web", &["80", "9000", "9001", "9002"])?;
    pages(&mut table, node, machine, HOST_PORT);
    table.judge(|| node.evidence())?;
    podman.remove("web")?;
    ensure!(page(node.netns(), localhost(true), HOST_PORT).is_err(), "published without a container");
    inventory::assert_clean(node)
}

#[test]
fn containerd_publishes_a_host_port() -> Result<()> {
    let node = Node::start_new("containerd")?;
    let machine = Machine::on(&node, 0)?;
    let dir = tempfile::tempdir()?;
    let plugins = plugins::folder(&dir.path().join("plugins"))?;
    let networks = dir.path().join("net.d");
    conflist(&node, &networks)?;
    let mut containerd = Containerd::start_new(node.netns(), &plugins, &networks)?;
    let mut config = pod_config("web");
    config.ports = vec![PodPort { container_port: 80, host_port: HOST_PORT.into() }];
    let web = containerd.start_pod(&config)?;
    containerd.exec(&web, &["httpd", "-p", "80", "-h", "/www"])?;
    let mut table = Table::default();
    pages(&mut table, &node, &machine, HOST_PORT);
    table.row("a second pod with the same port", || {
        let mut config = pod_config("late");
        config.ports = vec![PodPort { container_port: 80, host_port: HOST_PORT.into() }];
        let error = format!("{:#}", containerd.start_pod(&config).err().context("was started")?);
        ensure!(error.contains(&web.id) || error.contains("web"), "{error}");
        Ok(())
    });
    table.judge(|| node.evidence())?;
    containerd.remove_pod(&web.id)?;
    ensure!(page(node.netns(), localhost(true), HOST_PORT).is_err(), "published without a pod");
    inventory::assert_clean(&node)
}
