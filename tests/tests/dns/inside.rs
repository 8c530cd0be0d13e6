//! Containers that no program stands before: ipamd answers at 127.0.0.11 inside of their sandboxes.

use crate::scene::{LOCAL, also_on, both, bridge, expect, pod};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::{fs, time::Duration};
use tempfile::TempDir;
use weft_tests::{
    Cni, Node, NodeHandle, Pod, Sandbox, Table, TestNetns,
    dns::{ANSWER, NameServer},
    plugins, poll_until,
    resolve::{RESOLVERS, Resolving},
};

/// How long what happens behind an answer may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A macvlan network on a device of the node.
fn macvlan(aliases: &[&str]) -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "lan", "type": "weft", "driver": "macvlan", "parent": "outer0",
        "pools": [{"subnet": "10.102.0.0/24"}, {"subnet": "fd00:102::/64"}],
        "capabilities": {"aliases": true}, "runtimeConfig": {"aliases": aliases},
    })
}

/// A node with such a device, and a name server that it asks.
struct Scene {
    node: Node,
    _upstream: NameServer,
    dir: TempDir,
}

impl Scene {
    fn new(name: &str) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("weft-resolv-").tempdir().context("making a folder")?;
        let resolv_conf = dir.path().join("resolv.conf");
        fs::write(&resolv_conf, "nameserver 127.0.0.1\n").context("writing resolv.conf")?;
        let settings = format!("resolv_conf = \"{}\"\nsweep_interval = 1", resolv_conf.display());
        let node = Node::builder(name).settings(&settings).start()?;
        let upstream = NameServer::start(node.netns(), "127.0.0.1:53".parse()?)?;
        node.netns().ip("link add outer0 type veth peer name outer1")?;
        node.netns().ip("link set outer0 up")?;
        node.netns().ip("link set outer1 up")?;
        Ok(Self { node, _upstream: upstream, dir })
    }

    fn pod(&self, aliases: &[&str]) -> Result<Pod> {
        let id = format!("{}-container", aliases.first().context("a container without a name")?);
        Pod::add(&self.node, &id, &macvlan(aliases))
    }

    /// Gives the sandbox one end of a pair of devices that goes with it. Whether it is there tells whether the sandbox is, whoever holds it.
    fn leash(&self, sandbox: &TestNetns, name: &str) -> Result<()> {
        let netns = self.node.netns();
        netns.ip(&format!("link add {name} type veth peer name leash netns {}", sandbox.path().display()))?;
        Ok(())
    }

    fn is_there(&self, leash: &str) -> bool {
        self.node.netns().ip(&format!("link show {leash}")).is_ok()
    }
}

/// What every container of the network is to be told.
fn known(table: &mut Table, when: &str, from: &Pod, other: &Pod) {
    let of = |pod: &Pod, v4: bool| pod.ip_of(v4).map_or_else(|_| String::new(), |ip| ip.to_string());
    let rows = [
        ("other A", "NOERROR", vec![of(other, true)]),
        ("other AAAA +tcp", "NOERROR", vec![of(other, false)]),
        ("other.lan A", "NOERROR", vec![of(other, true)]),
        ("one A", "NOERROR", vec![of(from, true)]),
        ("other MX", "NOERROR", vec![]),
        ("nobody.lan A", "NXDOMAIN", vec![]),
        ("who.test A", "NOERROR", vec![ANSWER.to_string()]),
        ("who.test A +tcp", "NOERROR", vec![ANSWER.to_string()]),
    ];
    for (question, status, data) in rows {
        table.row(format!("{when}: {question}"), || expect(from, LOCAL, question, status, &data));
    }
    table.row(format!("{when}: the name of an address"), || {
        expect(from, LOCAL, &format!("-x {}", of(other, true)), "NOERROR", &["other.lan.".into()])
    });
}

#[test]
fn containers_of_a_macvlan_network_find_each_other() -> Result<()> {
    let mut scene = Scene::new("macvlan")?;
    let (one, other) = (scene.pod(&["one"])?, scene.pod(&["other"])?);
    ensure!(one.result["dns"]["nameservers"] == json!([LOCAL]), "{}", one.result);
    let mut table = Table::default();
    known(&mut table, "at once", &one, &other);
    let conf = Resolving::with(&format!("nameserver {LOCAL}\n"))?;
    for resolver in RESOLVERS {
        for name in ["other", "OTHER", "other.lan"] {
            table.row(format!("{resolver:?} looks for {name}"), || {
                let found = conf.addresses(&one, resolver, name)?;
                ensure!(found == both(&other)?, "{found:?} instead of {:?}", both(&other)?);
                Ok(())
            });
        }
    }
    scene.node.kill()?;
    scene.node.start()?;
    known(&mut table, "after a crash of ipamd", &one, &other);
    scene.node.restart()?;
    known(&mut table, "after a restart of ipamd", &one, &other);
    table.judge(|| scene.node.evidence())?;
    other.del(&scene.node, &macvlan(&["other"]))?;
    expect(&one, LOCAL, "other.lan A", "NXDOMAIN", &[])
}

#[test]
fn nothing_of_ipamd_keeps_a_sandbox_that_is_gone() -> Result<()> {
    let mut scene = Scene::new("leave")?;
    goes(&mut scene, "deleted", |scene, pod| pod.del(&scene.node, &macvlan(&["deleted"])))?;
    // Its runtime forgot it: ipamd's sweep finds nobody in it.
    goes(&mut scene, "forgotten", |_, _| Ok(()))?;
    // Deleted while ipamd is away.
    goes(&mut scene, "away", |scene, pod| {
        scene.node.kill()?;
        pod.del(&scene.node, &macvlan(&["away"]))?;
        scene.node.start()
    })
}

/// Makes a container and ends it so; sees that its sandbox is gone then.
fn goes(scene: &mut Scene, name: &str, end: impl FnOnce(&mut Scene, &Pod) -> Result<()>) -> Result<()> {
    let pod = scene.pod(&[name])?;
    expect(&pod, LOCAL, &format!("{name} A"), "NOERROR", &[pod.ipv4()?.to_string()])?;
    scene.leash(&pod, "leash0")?;
    end(scene, &pod)?;
    drop(pod);
    poll_until(PATIENCE, "a sandbox to be gone", || !scene.is_there("leash0"))
        .with_context(|| format!("{name}\n{}", scene.node.evidence()))
}

#[test]
fn a_port_that_somebody_holds_is_taken_when_it_is_free() -> Result<()> {
    let scene = Scene::new("held")?;
    let sandbox = Sandbox::with_process()?;
    let holder = sandbox.run(|| std::net::UdpSocket::bind((LOCAL, 53)))??;
    let one = Pod::add_in(sandbox, &NodeHandle::of(&scene.node)?, "one-container", &macvlan(&["one"]))?;
    drop(holder);
    poll_until(PATIENCE, "the sweep to take the port", || {
        expect(
            &one,
            LOCAL,
            "one A",
            "NOERROR",
            &[one.ipv4().map_or_else(|_| String::new(), |ip| ip.to_string())],
        )
        .is_ok()
    })
    .with_context(|| scene.node.evidence())
}

#[test]
fn a_sandbox_on_a_bridge_and_on_an_outer_link_knows_both() -> Result<()> {
    let mut scene = Scene::new("both")?;
    let (inner, outer) = (pod(&scene.node, 103, &["inner"])?, scene.pod(&["outer"])?);
    let bridged = bridge("net-103", 103, &["middle"]);
    let mut first = Pod::add(&scene.node, "first", &bridged)?;
    also_on(&scene.node, first.sandbox(), "first", &macvlan(&["middle"]))?;
    let mut second = Pod::add(&scene.node, "second", &macvlan(&["middle"]))?;
    also_on(&scene.node, second.sandbox(), "second", &bridged)?;
    let mut table = Table::default();
    for when in ["added", "after a restart"] {
        for (from, which) in [(&first, "the bridge first"), (&second, "the outer link first")] {
            for (name, known) in [("inner.net-103", &inner), ("outer.lan", &outer)] {
                table.row(format!("{when}, {which}: {name}"), || {
                    expect(from, LOCAL, &format!("{name} A"), "NOERROR", &[known.ipv4()?.to_string()])
                });
            }
        }
        scene.node.restart()?;
    }
    // Without the bridge, the socket inside answers.
    first.del(&scene.node, &bridged)?;
    table.row("the bridge is gone", || {
        expect(&first, LOCAL, "outer.lan A", "NOERROR", &[outer.ipv4()?.to_string()])
    });
    table.judge(|| scene.node.evidence())
}

#[test]
fn containers_that_another_plugin_wires_find_each_other() -> Result<()> {
    let scene = Scene::new("external")?;
    let plugins = plugins::folder(&scene.dir.path().join("plugins"))?;
    let netconf = json!({
        "cniVersion": "1.0.0", "name": "theirs", "type": "macvlan", "master": "outer0",
        "ipam": {"type": "weft-ipam", "subnet": "10.104.0.0/24", "dnsMode": "sandbox"},
    });
    let call = |program: &str, name: &str, sandbox: &Sandbox| -> Result<Cni<'_>> {
        let cni = scene.node.cni()?.program(plugins.join(program)).container(&format!("{name}-container"));
        let cni = cni.netns(sandbox.path()).args(&format!("IgnoreUnknown=1;WEFT_NAME={name}"));
        let cni = cni.variable("CNI_PATH", Some(plugins.clone().into()));
        Ok(cni.variable("WEFT_RUN_DIR", Some(scene.node.run_dir().into())))
    };
    let (one, other) = (Sandbox::with_process()?, Sandbox::with_process()?);
    let address = |result: &Value| -> Result<String> {
        let address = result["ips"][0]["address"].as_str().context("no address")?;
        Ok(address.split('/').next().unwrap_or_default().to_owned())
    };
    // By itself, as main plugins of other versions see it: this one's answer is the last word on what it hands on.
    let given = call("weft-ipam", "given", &Sandbox::with_process()?)?.add(&netconf)?;
    ensure!(given["dns"]["nameservers"] == json!([LOCAL]), "{given}");
    call("macvlan", "one", &one)?.add(&netconf)?;
    let of_other = address(&call("macvlan", "other", &other)?.add(&netconf)?)?;
    expect(&one, LOCAL, "other A", "NOERROR", std::slice::from_ref(&of_other))?;
    expect(&one, LOCAL, "other.theirs A", "NOERROR", std::slice::from_ref(&of_other))?;
    expect(&one, LOCAL, "who.test A", "NOERROR", &[ANSWER.to_string()])?;
    scene.leash(&other, "leash0")?;
    call("macvlan", "other", &other)?.del(&netconf)?;
    expect(&one, LOCAL, "other.theirs A", "NXDOMAIN", &[])?;
    drop(other);
    poll_until(PATIENCE, "a sandbox to be gone", || !scene.is_there("leash0"))
        .with_context(|| scene.node.evidence())
}
