//! The embedded store's file put back from a copy: what was made since stays in use, and no address is given twice.

use anyhow::{Context, Result, ensure};
use ipamd_api::{Network, path};
use serde_json::json;
use std::{collections::BTreeSet, fs};
use weft_tests::{Node, Pod, netconf::network};

#[test]
fn an_older_copy_of_the_embedded_store_costs_no_live_address() -> Result<()> {
    let mut node = Node::start_new("backup")?;
    let older = network("older", 71, &json!({}));
    let newer = network("newer", 72, &json!({}));
    let mut pods = vec![Pod::add(&node, "before", &older)?];

    // As docs/operations.md says: while ipamd is away, which no packet notices.
    let (file, copy) = (node.state_dir().join("weft.redb"), node.state_dir().join("weft.redb.copy"));
    node.stop()?;
    fs::copy(&file, &copy)?;
    node.start()?;
    pods.push(Pod::add(&node, "after", &older)?);
    pods.push(Pod::add(&node, "elsewhere", &newer)?);

    node.stop()?;
    fs::rename(&copy, &file)?;
    node.start()?;
    let networks: Vec<Network> = node.client().get(path::NETWORKS)?;
    let names: BTreeSet<&str> = networks.iter().map(|network| network.name.as_str()).collect();
    ensure!(names == ["newer", "older"].into(), "networks: {names:?}");
    let mut given: BTreeSet<_> = pods.iter().map(Pod::ipv4).collect::<Result<_>>()?;
    for n in 0..5 {
        for netconf in [&older, &newer] {
            let name = netconf["name"].as_str().context("a name")?;
            let pod = Pod::add(&node, &format!("{name}-{n}"), netconf)?;
            ensure!(given.insert(pod.ipv4()?), "{} was given twice", pod.ipv4()?);
            pods.push(pod);
        }
    }
    ensure!(pods[0].ping(pods[1].ipv4()?)?, "containers of one network have lost each other");
    let doctor = node.netctl(&["doctor"])?;
    let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
    ensure!(said.contains("went back to an older state"), "{said}");
    ensure!(said.matches("warning: ").count() == 1 && !said.contains("error: "), "more is wrong: {said}");
    // A network by its name alone, as a netconf without a subnet says it, is the one that it was.
    let by_name = json!({"cniVersion": "1.0.0", "name": "newer", "type": "weft"});
    let pod = Pod::add(&node, "by-name", &by_name)?;
    ensure!(pod.ipv4()?.octets()[..3] == [10, 72, 0], "{}", pod.ipv4()?);
    Ok(())
}
