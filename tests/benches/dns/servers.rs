//! Those who answer: Weft's nodes, a dockerd, an aardvark-dns, an unbound, each in a node's namespace with a client beside it.

use crate::perf::Way;
use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;
use std::{fmt::Write as _, fs, net::SocketAddr, path::Path, time::Duration};
use tempfile::TempDir;
use weft_tests::{Node, Pod, TestNetns, docker::Docker, poll_for, unbound::Unbound};

/// Containers of a network, and names of each.
const CONTAINERS: usize = 10;
const NAMES: usize = 10;

/// Names elsewhere, which are forwarded.
pub(crate) const ELSEWHERE: usize = 100;

/// Where the upstream is, on a link of its own to the node.
const UPSTREAM: &str = "198.51.100.53";
const NODE: &str = "198.51.100.1";

/// The names of one container.
fn names(container: usize) -> impl Iterator<Item = String> {
    (0..NAMES).map(move |n| format!("name-{container}-{n}"))
}

/// All names of a network.
pub(crate) fn all_names() -> impl Iterator<Item = String> {
    (0..CONTAINERS).flat_map(names)
}

/// All names elsewhere.
pub(crate) fn elsewhere() -> impl Iterator<Item = String> {
    (0..ELSEWHERE).map(|n| format!("host-{n}.elsewhere.example"))
}

/// A node of Weft with containers on a bridge network.
pub(crate) struct Weft {
    pods: Vec<Pod>,
    node: Node,
}

impl Weft {
    /// `settings` for its `ipamd.toml`.
    pub(crate) fn new(settings: &str) -> Result<Self> {
        let node = Node::builder("bench").settings(settings).start()?;
        let pods = (0..CONTAINERS).map(|container| {
            let aliases: Vec<String> = names(container).collect();
            let netconf = json!({
                "cniVersion": "1.0.0", "name": "bench", "type": "weft", "subnet": "10.236.0.0/24",
                "capabilities": {"aliases": true}, "runtimeConfig": {"aliases": aliases},
            });
            Pod::add(&node, &format!("container-{container}"), &netconf)
        });
        Ok(Self { pods: pods.collect::<Result<_>>()?, node })
    }

    pub(crate) fn netns(&self) -> &TestNetns {
        self.node.netns()
    }

    /// The first container asks its gateway.
    pub(crate) fn way(&self, name: &'static str) -> Result<Way> {
        let client = self.pods.first().context("no container")?.handle()?;
        Ok(Way { name, client, server: "10.236.0.1".into(), process: self.node.ipamd_pid() })
    }
}

/// A node with Docker's containers on a network of their own, asking 127.0.0.11.
pub(crate) struct Dockers {
    client: TestNetns,
    // In the order in which they have to go.
    _docker: Docker,
    _node: Node,
}

impl Dockers {
    pub(crate) fn new() -> Result<Self> {
        let node = Node::builder("docker").build()?;
        let docker = Docker::start(&node)?;
        docker.call(&["network", "create", "bench"])?;
        let mut first = None;
        for container in 0..CONTAINERS {
            let mut options = vec!["--network".to_owned(), "bench".to_owned()];
            for name in names(container) {
                options.extend(["--network-alias".to_owned(), name]);
            }
            let options: Vec<&str> = options.iter().map(String::as_str).collect();
            let netns = docker.run(&format!("container-{container}"), &options)?;
            first.get_or_insert(netns);
        }
        Ok(Self { client: first.context("no container")?, _docker: docker, _node: node })
    }

    pub(crate) fn way(&self) -> Result<Way> {
        Ok(Way { name: "docker", client: self.client.handle()?, server: "127.0.0.11".into(), process: None })
    }
}

/// A bridge in a namespace and a client behind it.
struct Bridge {
    client: TestNetns,
    host: TestNetns,
}

impl Bridge {
    fn new() -> Result<Self> {
        let (host, client) = (TestNetns::named("host")?, TestNetns::named("client")?);
        host.ip("link add br0 type bridge")?;
        host.ip("addr add 10.236.0.1/24 dev br0")?;
        host.ip("link set br0 up")?;
        host.ip(&format!("link add veth0 type veth peer name eth0 netns {}", client.path().display()))?;
        host.ip("link set veth0 master br0 up")?;
        client.ip("addr add 10.236.0.2/24 dev eth0")?;
        client.ip("link set eth0 up")?;
        Ok(Self { client, host })
    }
}

/// podman's name server, as netavark starts it.
pub(crate) struct Aardvark {
    pid: i32,
    bridge: Bridge,
    _dir: TempDir,
}

/// Where Debian has it.
const AARDVARK: &str = "/usr/lib/podman/aardvark-dns";

impl Aardvark {
    pub(crate) fn new() -> Result<Self> {
        let bridge = Bridge::new()?;
        let dir = tempfile::Builder::new().prefix("weft-aardvark-").tempdir().context("making a folder")?;
        let mut text = "10.236.0.1\n".to_owned();
        for container in 0..CONTAINERS {
            let names: Vec<String> = names(container).collect();
            writeln!(text, "{container:064x} 10.236.0.{}  {}", container + 2, names.join(","))?;
        }
        fs::write(dir.path().join("bench"), text).context("writing the names")?;
        let mut command = bridge.host.command(AARDVARK);
        command.arg("-c").arg(dir.path()).args(["-p", "53", "run"]);
        let status =
            command.status().with_context(|| format!("{AARDVARK}: `cargo xtask setup` installs it"))?;
        ensure!(status.success(), "{AARDVARK}: {status}");
        // It goes on in the background and leaves its number.
        let number = || fs::read_to_string(dir.path().join("aardvark.pid")).ok()?.trim().parse().ok();
        let pid = poll_for(Duration::from_secs(5), "aardvark-dns to start", number)?;
        Ok(Self { pid, bridge, _dir: dir })
    }

    pub(crate) fn way(&self) -> Result<Way> {
        let process = u32::try_from(self.pid).ok();
        Ok(Way {
            name: "aardvark-dns",
            client: self.bridge.client.handle()?,
            server: "10.236.0.1".into(),
            process,
        })
    }
}

impl Drop for Aardvark {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = kill(Pid::from_raw(self.pid), Signal::SIGTERM);
    }
}

/// A name server elsewhere, and the link of a node to it.
pub(crate) struct Upstream {
    // In the order in which they have to go.
    _server: Unbound,
    _netns: TestNetns,
}

impl Upstream {
    /// Knows [`elsewhere`], for an hour each.
    pub(crate) fn of(host: &TestNetns) -> Result<Self> {
        let netns = TestNetns::named("upstream")?;
        host.ip(&format!("link add up0 type veth peer name eth0 netns {}", netns.path().display()))?;
        host.ip(&format!("addr add {NODE}/24 dev up0"))?;
        host.ip("link set up0 up")?;
        netns.ip(&format!("addr add {UPSTREAM}/24 dev eth0"))?;
        netns.ip("link set eth0 up")?;
        let records = elsewhere().enumerate();
        let builder = records.fold(Unbound::builder().zone("elsewhere.example."), |builder, (n, name)| {
            builder.record(&format!("{name}. 3600 IN A 203.0.113.{n}"))
        });
        let server = builder.start(&netns, address()?)?;
        Ok(Self { _server: server, _netns: netns })
    }
}

fn address() -> Result<SocketAddr> {
    Ok(format!("{UPSTREAM}:53").parse()?)
}

/// An unbound that forwards and caches, where a node has its bridge.
pub(crate) struct Forwarder {
    server: Unbound,
    _upstream: Upstream,
    bridge: Bridge,
}

impl Forwarder {
    pub(crate) fn new() -> Result<Self> {
        let bridge = Bridge::new()?;
        let upstream = Upstream::of(&bridge.host)?;
        // As many threads as the machine has processors, as its manual advises.
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let builder = Unbound::builder().option(&format!("num-threads: {threads}\nso-reuseport: yes"));
        let server = builder.forward_to(address()?).start(&bridge.host, "10.236.0.1:53".parse()?)?;
        Ok(Self { server, _upstream: upstream, bridge })
    }

    pub(crate) fn way(&self) -> Result<Way> {
        Ok(Way {
            name: "unbound",
            client: self.bridge.client.handle()?,
            server: "10.236.0.1".into(),
            process: Some(self.server.id()),
        })
    }
}

/// Settings of a node that forwards to [`Upstream`].
pub(crate) fn forwarding(dir: &Path) -> Result<String> {
    let path = dir.join("resolv.conf");
    fs::write(&path, format!("nameserver {UPSTREAM}\n")).context("writing resolv.conf")?;
    Ok(format!("resolv_conf = \"{}\"", path.display()))
}
