//! Containers of a runtime, which only have what the runtime writes into their `resolv.conf`.

use crate::scene::LOCAL;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::fs;
use weft_tests::{
    Node, Table,
    containerd::{Containerd, pod_config},
    cri::PodDns,
    plugins,
    podman::Podman,
};

/// podman's CNI backend hands over the container's name and its aliases.
#[test]
fn containers_of_podman_find_each_other() -> Result<()> {
    let node = Node::builder("podman").hooks_everywhere().start()?;
    let dir = tempfile::tempdir().context("making a folder")?;
    let plugins = plugins::folder(&dir.path().join("plugins"))?;
    let networks = dir.path().join("net.d");
    fs::create_dir(&networks)?;
    let plugin = json!({
        "type": "weft", "runDir": node.run_dir(), "pools": [{"subnet": "10.97.0.0/24"}, {"subnet": "fd00:97::/64"}],
        "capabilities": {"ips": true, "mac": true, "portMappings": true, "aliases": true},
    });
    let conflist = json!({"cniVersion": "1.0.0", "name": "shop", "plugins": [plugin]});
    fs::write(networks.join("shop.conflist"), conflist.to_string())?;
    let podman = Podman::new_in(node.netns(), &dir.path().join("podman"), &plugins, &networks, "shop")?;
    for (name, more) in
        [("web", vec![]), ("db", vec!["--network-alias", "store"]), ("local", vec!["--dns", LOCAL])]
    {
        let line = [
            &["run", "--detach", "--name", name, "--network", "shop"][..],
            &more,
            &[weft_tests::podman::IMAGE],
        ];
        podman.run(line.concat())?;
    }
    let db = podman.addresses("db", "shop")?;
    let mut table = Table::default();
    for from in ["web", "local"] {
        for name in ["db", "store", "db.shop"] {
            table.row(format!("{from} looks for {name}"), || {
                let said = podman.exec(from, &["nslookup", name])?;
                ensure!(said.contains(&db.ipv4) && said.contains(&db.ipv6), "{said}");
                Ok(())
            });
        }
    }
    table.judge(|| node.evidence())
}

/// containerd hands over what the kubelet says: the pod's name and namespace, and the resolver's settings, here 127.0.0.11 alone.
#[test]
fn pods_of_containerd_find_each_other_by_the_resolver_of_the_sandbox() -> Result<()> {
    let bridge = json!({"pools": [{"subnet": "10.105.0.0/24"}, {"subnet": "fd00:105::/64"}]});
    let macvlan = json!({
        "driver": "macvlan", "parent": "outer0",
        "pools": [{"subnet": "10.106.0.0/24"}, {"subnet": "fd00:106::/64"}],
    });
    for (network, keys) in [("inner", bridge), ("outer", macvlan)] {
        let node = Node::builder("containerd").hooks_everywhere().start()?;
        node.netns().ip("link add outer0 type veth peer name outer1")?;
        node.netns().ip("link set outer0 up")?;
        node.netns().ip("link set outer1 up")?;
        find_each_other(&node, network, &keys).with_context(|| format!("{network}\n{}", node.evidence()))?;
    }
    Ok(())
}

fn find_each_other(node: &Node, network: &str, keys: &Value) -> Result<()> {
    let dir = tempfile::tempdir().context("making a folder")?;
    let plugins = plugins::folder(&dir.path().join("plugins"))?;
    let networks = dir.path().join("net.d");
    fs::create_dir(&networks)?;
    let mut plugin = json!({"type": "weft", "runDir": node.run_dir(), "capabilities": {"dns": true}});
    for (key, value) in keys.as_object().into_iter().flatten() {
        plugin[key] = value.clone();
    }
    let conflist = json!({"cniVersion": "1.0.0", "name": network, "plugins": [plugin]});
    fs::write(networks.join("10-weft.conflist"), conflist.to_string())?;
    let mut containerd = Containerd::start_new(node.netns(), &plugins, &networks)?;
    let mut pods = Vec::new();
    for name in ["web", "db"] {
        let mut config = pod_config(name);
        config.dns = Some(PodDns { servers: vec![LOCAL.to_owned()], ..PodDns::default() });
        pods.push(containerd.start_pod(&config)?);
    }
    let [web, db] = &pods[..] else { bail!("two pods were made") };
    let resolver = containerd.exec(web, &["cat", "/etc/resolv.conf"])?;
    ensure!(resolver.trim() == format!("nameserver {LOCAL}"), "{resolver}");
    let mut table = Table::default();
    for name in ["db", "db.tests", &format!("db.{network}"), &db.id[..12]] {
        table.row(format!("web looks for {name} on {network}"), || {
            let said = containerd.exec(web, &["nslookup", name])?;
            ensure!(db.ips.len() == 2 && db.ips.iter().all(|ip| said.contains(ip)), "{:?}: {said}", db.ips);
            Ok(())
        });
    }
    table.judge(|| node.evidence())?;
    for pod in &pods {
        containerd.remove_pod(&pod.id)?;
    }
    Ok(())
}
