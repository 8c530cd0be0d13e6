//! Documents end to end: files through `netctl` and ipamd's socket into the store, the allocator, the resolver and the datapath.

use super::{PATIENCE, netctl::netctl, refused, with};
use anyhow::{Context, Result, ensure};
use ipamd_api::path;
use serde_json::{Value, json};
use std::{fs, path::Path as File};
use weft_tests::{
    Node, Pod, Sandbox,
    echo::{Answer, Echo, Protocol, ask},
    inventory, poll_until,
};

const SHOP: &str = "\
apiVersion: weft/v1
kind: DnsRecord
metadata: {name: printer}
spec: {network: shop, addresses: [192.0.2.9]}
---
apiVersion: weft/v1
kind: StaticAddress
metadata: {name: db}
spec:
  network: shop
  addresses: [10.77.0.50, 'fd00:77::50']
---
apiVersion: weft/v1
kind: Network
metadata: {name: shop}
spec:
  mtu: 1400
  pools:
  - subnet: 10.77.0.0/24
  - subnet: fd00:77::/64
";

fn publish(host_port: u16) -> String {
    format!(
        "apiVersion: weft/v1\nkind: Publish\nmetadata: {{name: database}}\nspec:\n  mappings:\n  - {{hostPort: {host_port}, containerPort: 5432, protocol: tcp}}\n"
    )
}

/// Networks and names of a node.
fn declared(node: &Node) -> Result<[Value; 2]> {
    Ok([node.client().get(path::NETWORKS)?, node.client().get(path::NAMES)?])
}

fn dial(node: &Node, port: &str) -> Result<Answer> {
    ask(node.netns(), Protocol::Tcp, port.parse()?, 0)
}

#[test]
fn a_file_makes_a_shop_and_takes_it_away() -> Result<()> {
    let mut node = Node::start_new("documents")?;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("shop.yaml");
    let write = |file: &File, text: &str| fs::write(file, text).context("writing documents");
    let on = |node: &Node, command: &[&str], file: &File| {
        netctl(node, &[command, &["-f", file.to_str().context("a path")?]].concat())
    };
    write(&file, SHOP)?;

    let (code, said, _) = on(&node, &["diff"], &file)?;
    ensure!(code == 1 && said.contains("+ Network shop") && said.contains("mtu: 1400"), "{code} {said}");
    let (code, said, error) = on(&node, &["apply", "--dry-run"], &file)?;
    ensure!(code == 0 && said.matches(" created (dry run)").count() == 3, "{code} {said}{error}");
    ensure!(netctl(&node, &["network", "inspect", "shop"])?.0 == 1, "a dry run made a network");
    let (code, said, error) = on(&node, &["apply"], &file)?;
    ensure!(code == 0 && said.matches(" created\n").count() == 3, "{code} {said}{error}");
    let (code, said, error) = on(&node, &["apply"], &file)?;
    ensure!(code == 0 && said.matches(" unchanged\n").count() == 3, "{code} {said}{error}");
    ensure!(on(&node, &["diff"], &file)? == (0, String::new(), String::new()), "a difference right after");

    // Everybody but the database gets another address; the database this one, also after a restart of ipamd.
    let netconf = json!({"cniVersion": "1.0.0", "name": "shop", "type": "weft"});
    let shown = netctl(&node, &["pool", "ls", "shop"])?.1;
    ensure!(shown.contains("10.77.0.50") && shown.contains("KEPT FOR") && shown.contains("db"), "{shown}");
    let other = Pod::add(&node, "customer", &netconf)?;
    let thief = Sandbox::new()?;
    let asking = with(&netconf, &json!({"runtimeConfig": {"ips": ["10.77.0.50/24"]}}));
    let error = refused(node.cni()?.container("thief").netns(thief.path()).call("ADD", &asking))?;
    ensure!(error.code == 102 && error.to_string().contains("kept for db"), "{error}");
    node.stop()?;
    node.start()?;
    let called = with(&netconf, &json!({"runtimeConfig": {"aliases": {"shop": ["db"]}}}));
    let database = Pod::add(&node, "database", &called)?;
    let addresses: Vec<String> = database.addresses().iter().map(ToString::to_string).collect();
    ensure!(addresses.iter().any(|a| a.starts_with("10.77.0.50")), "{addresses:?}");
    ensure!(addresses.iter().any(|a| a.starts_with("fd00:77::50")), "{addresses:?}");
    ensure!(other.ping("10.77.0.50")?, "the database does not answer");
    let (code, said, _) = netctl(&node, &["dns", "query", "customer", "printer"])?;
    ensure!(code == 0 && said.contains("192.0.2.9"), "{said}");

    // A port is published, moved, and taken back.
    let ports = dir.path().join("ports.yaml");
    let _served = Echo::start(&database, "database", "0.0.0.0:5432".parse()?)?;
    write(&ports, &publish(15_432))?;
    ensure!(on(&node, &["apply"], &ports)?.0 == 0);
    dial(&node, "127.0.0.1:15432")?;
    write(&ports, &publish(15_433))?;
    let (code, said, _) = on(&node, &["apply"], &ports)?;
    ensure!(code == 0 && said.contains("Publish database changed") && said.contains("15433"), "{said}");
    dial(&node, "127.0.0.1:15433")?;
    ensure!(dial(&node, "127.0.0.1:15432").is_err(), "the old port answers still");

    // One wrong document, and nothing is changed.
    let before = declared(&node)?;
    let wrong = dir.path().join("wrong.yaml");
    let changed = SHOP.replace("mtu: 1400", "mtu: 1300").replace("192.0.2.9", "192.0.2.10");
    write(&wrong, &changed)?;
    let (code, said, error) = on(&node, &["apply"], &wrong)?;
    ensure!(code == 1 && said.is_empty(), "{code} {said}");
    for word in [
        "1 of 3 documents",
        "document 3 (Network \"shop\")",
        "mtu is 1400, asked for 1300",
        "netctl network rm shop",
        "code 122",
    ] {
        ensure!(error.contains(word), "no {word:?} in {error}");
    }
    ensure!(on(&node, &["diff"], &wrong)?.0 == 2, "diff of what is refused");
    ensure!(declared(&node)? == before, "a refused apply changed something");

    // Gone in the order in which it can go.
    let (code, _, error) = on(&node, &["delete"], &file)?;
    ensure!(code == 1 && error.contains("network shop has 2 endpoints"), "{error}");
    ensure!(declared(&node)? == before, "a refused delete changed something");
    ensure!(on(&node, &["delete"], &ports)?.1.contains("Publish database deleted"));
    database.del(&node, &called)?;
    other.del(&node, &netconf)?;
    poll_until(PATIENCE, "the end of their links", || {
        on(&node, &["delete", "--dry-run"], &file).is_ok_and(|(code, ..)| code == 0)
    })?;
    let (code, said, error) = on(&node, &["delete"], &file)?;
    ensure!(code == 0 && said.matches(" deleted\n").count() == 3, "{code} {said}{error}");
    let (code, said, _) = on(&node, &["delete"], &file)?;
    ensure!(code == 0 && said.matches(" unchanged\n").count() == 3, "{said}");
    inventory::assert_clean(&node)
}
