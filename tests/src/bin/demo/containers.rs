//! The demo's containers and the runtimes that make them, one podman a node.
//!
//! Dropping a runtime removes its containers. One thread.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use weft_tests::{
    ClusterNode,
    podman::{Addresses, Podman},
    poll_until,
};

use super::{NETWORKS, story::Story};

/// A node's podman.
#[derive(Debug)]
pub(crate) struct Runtime {
    podman: Podman,
    networks: PathBuf,
}

impl Runtime {
    /// Makes one on a node, with a conflist for each network.
    pub(crate) fn new(binaries: &Path, dir: &Path, node: &ClusterNode) -> Result<Self> {
        let dir = dir.join(node.name());
        let (networks, plugins) = (dir.join("net.d"), dir.join("plugins"));
        for folder in [&networks, &plugins] {
            fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        }
        symlink(binaries.join("weft"), plugins.join("weft")).context("cannot link the plugin")?;
        for (name, _) in NETWORKS {
            let capabilities = json!({ "portMappings": true });
            let plugin = json!({
                "type": "weft", "driver": "overlay", "runDir": node.run_dir(), "capabilities": capabilities,
            });
            let conflist = json!({ "cniVersion": "1.0.0", "name": name, "plugins": [plugin] });
            let path = networks.join(format!("{name}.conflist"));
            fs::write(&path, conflist.to_string())
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        let podman = Podman::new_in(node.netns(), &dir.join("podman"), &plugins, &networks, NETWORKS[0].0)?;
        Ok(Self { podman, networks })
    }

    /// Folder of the conflists.
    pub(crate) fn networks(&self) -> &Path {
        &self.networks
    }
}

/// One container.
#[derive(Debug)]
struct Container<'a> {
    name: &'static str,
    node: usize,
    podman: &'a Podman,
    addresses: Addresses,
}

/// All containers.
#[derive(Debug)]
pub(crate) struct Containers<'a>(Vec<Container<'a>>);

impl<'a> Containers<'a> {
    /// Starts them: name, node, network and more options each.
    pub(crate) fn start(
        story: &Story,
        runtimes: &'a [Runtime],
        wanted: &[(&'static str, usize, &str, &[&str])],
    ) -> Result<Self> {
        let mut made = Vec::new();
        for (name, node, network, options) in wanted {
            let podman = &runtimes[*node].podman;
            let more: String = options.iter().map(|option| format!("{option} ")).collect();
            story.command(&format!(
                "node-{node}: podman run --detach --name {name} --network {network} {more}localhost/busybox:1"
            ))?;
            podman.start(name, network, options)?;
            let addresses = podman.addresses(name, network)?;
            story.show(&format!(
                "{name}: {} and {}, gateway {}",
                addresses.ipv4, addresses.ipv6, addresses.gateway
            ));
            made.push(Container { name, node: *node, podman, addresses });
        }
        Ok(Self(made))
    }

    fn get(&self, name: &str) -> Result<&Container<'a>> {
        self.0.iter().find(|one| one.name == name).with_context(|| format!("there is no container {name}"))
    }

    /// The addresses of one.
    pub(crate) fn of(&self, name: &str) -> Result<&Addresses> {
        self.get(name).map(|one| &one.addresses)
    }

    fn say(&self, story: &Story, name: &str, line: &str) -> Result<&Podman> {
        let one = self.get(name)?;
        story.command(&format!("node-{}: podman exec {name} {line}", one.node))?;
        Ok(one.podman)
    }

    /// Runs a command in a container and shows what it prints.
    pub(crate) fn inside(&self, story: &Story, name: &str, command: &[&str]) -> Result<()> {
        story.show(&self.say(story, name, &command.join(" "))?.exec(name, command)?);
        Ok(())
    }

    /// Waits, without a word, until an address answers a container.
    pub(crate) fn await_answer(&self, from: &str, to: &str, limit: Duration) -> Result<()> {
        let podman = self.get(from)?.podman;
        let answers = || podman.exec(from, &["ping", "-c", "1", "-W", "1", to]).is_ok();
        poll_until(limit, "an answer", answers).with_context(|| format!("{from} should reach {to}"))
    }

    /// Waits, without a word, until a container knows a name.
    pub(crate) fn await_name(&self, from: &str, name: &str, limit: Duration) -> Result<()> {
        let podman = self.get(from)?.podman;
        let known = || podman.exec(from, &["nslookup", name]).is_ok();
        poll_until(limit, "a name", known).with_context(|| format!("{from} should know {name}"))
    }

    /// One container finds another by name, at both of its addresses.
    pub(crate) fn finds(&self, story: &Story, from: &str, name: &str, known: &Addresses) -> Result<()> {
        let podman = self.say(story, from, &format!("nslookup {name}"))?;
        let said = podman.exec(from, &["nslookup", name])?;
        for address in [&known.ipv4, &known.ipv6] {
            ensure!(
                said.contains(address),
                "{from} should find {name} at {address}, but nslookup said: {said}"
            );
        }
        story.show(&said);
        Ok(())
    }

    /// One container does not know a name.
    pub(crate) fn finds_nobody(&self, story: &Story, from: &str, name: &str) -> Result<()> {
        let podman = self.say(story, from, &format!("nslookup {name}"))?;
        let output = podman.command().args(["exec", from, "nslookup", name]).output();
        let output = output.context("cannot run podman")?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(!output.status.success(), "{from} should not know {name}, but nslookup said: {said}");
        story.show(&format!("{name} is not known to {from} (as it should be)"));
        Ok(())
    }

    /// One container gets answers to its pings.
    pub(crate) fn reaches(&self, story: &Story, from: &str, to: &str) -> Result<()> {
        let ping = ["ping", "-c", "2", "-i", "0.2", "-w", "5", to];
        let podman = self.say(story, from, &ping.join(" "))?;
        let output = podman.exec(from, &ping).with_context(|| format!("{from} should reach {to}"))?;
        story.show(statistics(&output));
        Ok(())
    }

    /// One container gets no answer.
    pub(crate) fn is_cut_off(&self, story: &Story, from: &str, to: &str) -> Result<()> {
        let ping = ["ping", "-c", "2", "-i", "0.2", "-W", "1", to];
        let podman = self.say(story, from, &ping.join(" "))?;
        let output =
            podman.command().arg("exec").arg(from).args(ping).output().context("cannot run podman")?;
        let said = String::from_utf8_lossy(&output.stdout);
        // Without this line the ping did not run, which proves nothing.
        let sent = said.contains("100% packet loss")
            || String::from_utf8_lossy(&output.stderr).contains("nreachable");
        if output.status.success() || !sent {
            bail!("{from} should get no answer from {to}, but ping said: {said}");
        }
        story.show(&format!("{}(as it should be)", statistics(&said)));
        Ok(())
    }

    /// A container serves its page.
    pub(crate) fn serve_a_page(&self, story: &Story, name: &str) -> Result<()> {
        self.inside(story, name, &["httpd", "-p", "80", "-h", "/www"])
    }

    /// One container gets another's page.
    pub(crate) fn gets_the_page(&self, story: &Story, from: &str, server: &Addresses) -> Result<()> {
        // Not wget: a static busybox crashes in it, looking for name services that no image of one file has.
        let request = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {} 80 | tail -n 1", server.ipv4);
        let podman = self.say(story, from, &format!("sh -c \"{request}\""))?;
        let page = podman.exec(from, &["sh", "-c", &request])?;
        ensure!(page.contains("hello from busybox"), "{from} should get the page, but got: {page}");
        story.show(&page);
        Ok(())
    }

    /// Removes them.
    pub(crate) fn remove(&self, story: &Story) -> Result<()> {
        for one in &self.0 {
            story.command(&format!("node-{}: podman rm --force {}", one.node, one.name))?;
            one.podman.remove(one.name)?;
        }
        Ok(())
    }
}

/// The last lines of a ping: what counts.
fn statistics(output: &str) -> &str {
    output.split_once("statistics ---\n").map_or(output, |(_, statistics)| statistics)
}
