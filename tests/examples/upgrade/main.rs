//! `cargo xtask upgrade`: executables of an earlier release and of this one, in each other's place and beside each other.
//!
//! Owns a node with containers that talk all the time. ipamd is replaced by the later one, by the earlier one and by the later one
//! again, each time with ADD, CHECK and DEL by the plugin of either release; then the same with a cluster ([`cluster`]). Any lost packet,
//! ended connection, refused call or thing that is left fails the run.

mod cluster;
mod releases;

use anyhow::{Context, Result, bail, ensure};
use releases::{Release, Releases};
use serde_json::{Value, json};
use std::{
    env,
    net::{Ipv6Addr, SocketAddr, TcpListener},
    os::unix::fs::symlink,
    path::PathBuf,
    process::{Command, ExitCode},
    time::{Duration, Instant},
};
use weft_tests::{
    Connection, Machine, Node, Pings, Pod, TestNetns, binaries,
    dial::Dial,
    echo::{Echo, Protocol},
    inventory,
    netconf::{network, publishing},
};

/// Where the servers listen, in containers and beside the node.
const PORT: u16 = 8080;
/// The published port.
const HOST_PORT: u16 = 18_080;

/// Names a variable by which the inner process knows that it is that.
const INNER: &str = "WEFT_UPGRADE_INNER";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let arguments: Vec<PathBuf> = env::args_os().skip(1).map(PathBuf::from).collect();
    let [old, new] = &arguments[..] else {
        bail!("usage: upgrade FOLDER-OF-THE-EARLIER-EXECUTABLES FOLDER-OF-THE-LATER-ONES");
    };
    if env::var_os(INNER).is_some() {
        let releases = Releases::of([old.clone(), new.clone()])?;
        return cluster::run(&Upgrade::begin(releases)?.go()?);
    }
    // What runs is found by one link, which is turned from one release to the other.
    let dir = tempfile::Builder::new().prefix("weft-upgrade-").tempdir().context("making a folder")?;
    let link = dir.path().join("bin");
    symlink(old, &link).context("linking the earlier executables")?;
    let mut inner = Command::new(env::current_exe().context("finding this program")?);
    inner.args([old, new]).env(INNER, "1").env(binaries::DIR_VARIABLE, &link);
    let ended = inner.status().context("running it with the earlier executables")?;
    ensure!(ended.success(), "the run ended with {ended}");
    Ok(())
}

/// A node with containers, and the releases that take turns.
struct Upgrade {
    // In the order in which they have to go.
    pings: Option<Pings>,
    connections: Vec<Connection>,
    _servers: Vec<Echo>,
    pods: Vec<Pod>,
    machine: Machine,
    node: Node,
    releases: Releases,
    netconf: Value,
    added: usize,
}

impl Upgrade {
    fn begin(releases: Releases) -> Result<Self> {
        let mut node = Node::builder("upgrade").settings("cool_down = 0").build()?;
        let machine = Machine::on(&node, 0)?;
        node.start().context("starting the earlier ipamd")?;
        let netconf = network("blue", 70, &json!({}));
        let web = publishing(
            &netconf,
            &json!([
                {"hostPort": HOST_PORT, "containerPort": PORT, "protocol": "tcp"},
            ]),
        );
        let pods = vec![
            Pod::add(&node, "one", &netconf)?,
            Pod::add(&node, "two", &netconf)?,
            Pod::add(&node, "web", &web)?,
        ];
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, PORT));
        let servers = vec![Echo::start(&pods[2], "web", any)?, Echo::start(&machine, "machine", any)?];
        Ok(Self {
            pings: None,
            connections: Vec::new(),
            _servers: servers,
            pods,
            machine,
            node,
            releases,
            netconf,
            added: 0,
        })
    }

    fn go(mut self) -> Result<Releases> {
        self.talk()?;
        self.calls(Release::Old).context("before")?;
        for (ipamd, plugins) in [
            (Release::New, [Release::Old, Release::New]),
            (Release::Old, [Release::New, Release::Old]),
            (Release::New, [Release::Old, Release::New]),
        ] {
            let begun = Instant::now();
            self.replace(ipamd).with_context(|| format!("putting the {} ipamd in place", ipamd.name()))?;
            for plugin in plugins {
                self.calls(plugin)
                    .with_context(|| format!("{} ipamd, {} plugin", ipamd.name(), plugin.name()))?;
            }
            println!(
                "{} ipamd: no connection ended, ADD, CHECK and DEL by both plugins, {:.1} s",
                ipamd.name(),
                begun.elapsed().as_secs_f64()
            );
        }
        let sent = self.pings.take().context("pings")?.end()?;
        println!("{sent} packets between containers meanwhile, none lost");
        self.connections.clear();
        let pods = std::mem::take(&mut self.pods);
        pods.iter().try_for_each(|pod| pod.del(&self.node, &self.netconf))?;
        inventory::assert_clean(&self.node)?;
        println!("nothing is left");
        Ok(self.releases)
    }

    /// Begins what goes on all the time.
    fn talk(&mut self) -> Result<()> {
        let to = [self.pods[1].ip_of(true)?, self.pods[1].ip_of(false)?];
        self.pings = Some(Pings::start(&self.pods[0], to, Duration::from_millis(10))?);
        let listen = |netns: &TestNetns| netns.run(|| TcpListener::bind("0.0.0.0:9090"));
        let neighbour = listen(&self.pods[1])??;
        let outside = listen(&self.machine)??;
        let to = |ip, port| SocketAddr::new(ip, port);
        self.connections = vec![
            Connection::open(
                "between containers",
                &self.pods[0],
                to(self.pods[1].ip_of(true)?, 9090),
                &neighbour,
            )?,
            Connection::open("to the outside", &self.pods[0], to(self.machine.ip_of(true), 9090), &outside)?,
        ];
        Ok(())
    }

    /// What must work at any time, and a container's whole life by the plugin of a release.
    fn calls(&mut self, plugin: Release) -> Result<()> {
        self.releases.turn(plugin)?;
        self.connections.iter().try_for_each(Connection::speak)?;
        for v4 in [true, false] {
            let published = SocketAddr::new(self.machine.peer(v4), HOST_PORT);
            for (from, to, server) in [
                (&*self.machine as &TestNetns, published, "web"),
                (&self.pods[0], SocketAddr::new(self.machine.ip_of(v4), PORT), "machine"),
            ] {
                let heard = Dial::new(Protocol::Tcp, to).ask(from)?;
                ensure!(heard.answer.server == server, "{to} is answered by {}", heard.answer.server);
            }
        }
        for pod in &self.pods {
            let cni = self.node.cni()?.container(&pod.id).netns(pod.path());
            cni.check(&self.netconf, &pod.result).with_context(|| format!("CHECK of {}", pod.id))?;
        }
        self.added += 1;
        let pod = Pod::add(&self.node, &format!("passing-{}", self.added), &self.netconf)?;
        for v4 in [true, false] {
            ensure!(pod.ping(self.pods[0].ip_of(v4)?)?, "a new container does not reach an earlier one");
        }
        // Of those that the other plugin added, one goes each time.
        self.pods.push(pod);
        if self.pods.len() > 4 {
            let gone = self.pods.remove(3);
            gone.del(&self.node, &self.netconf).with_context(|| format!("DEL of {}", gone.id))?;
        }
        let live: Vec<_> = self.pods.iter().map(Pod::endpoint).collect::<Result<_>>()?;
        inventory::assert_holds(&self.node, &live)
    }

    /// Ends ipamd and starts the one of a release.
    fn replace(&mut self, ipamd: Release) -> Result<()> {
        ensure!(self.node.stop()?.success(), "ipamd did not end well");
        self.connections.iter().try_for_each(Connection::speak).context("with no ipamd")?;
        self.releases.turn(ipamd)?;
        self.node.start()
    }
}
