//! Names of an overlay network on all of its nodes.

use crate::scene::{CONVERGENCE, LOCAL, dig, expect};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use weft_tests::{
    Cluster, Pod, Table, TestNetns, poll_until,
    stops::{IPAMD_NAMES, arm, expect_death},
};

fn netconf(aliases: &[&str]) -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "blue", "type": "weft", "driver": "overlay",
        "capabilities": {"aliases": true}, "runtimeConfig": {"aliases": aliases},
    })
}

fn cluster(name: &str, nodes: u8) -> Result<Cluster> {
    let cluster = Cluster::builder(name).nodes(nodes).etcd(1).settings("node_ttl = 5").start()?;
    cluster[0].ask("network create blue --driver overlay --subnet 10.93.0.0/16 --subnet fd00:93::/64")?;
    Ok(cluster)
}

fn await_answer(from: &TestNetns, question: &str, data: &[String], cluster: &Cluster) -> Result<()> {
    let is_so = || dig(from, "10.93.0.1", question).is_ok_and(|answer| answer.data == data);
    poll_until(CONVERGENCE, "a name to be known", is_so)
        .with_context(|| format!("{question} should be {data:?}\n{}", cluster.evidence()))
}

#[test]
fn containers_find_each_other_across_nodes_also_without_ipamd_and_etcd() -> Result<()> {
    let mut cluster = cluster("names", 2)?;
    let near = Pod::add(&cluster[0], "near", &netconf(&["near", "all"]))?;
    let mut searches = netconf(&["far", "all"]);
    searches["dns"] = json!({"search": ["shop.example"]});
    let far = Pod::add(&cluster[1], "far", &searches)?;
    let of = |pod: &Pod| pod.ipv4().map(|ip| ip.to_string());
    await_answer(&near, "far A", &[of(&far)?], &cluster)?;
    await_answer(&far, "near A", &[of(&near)?], &cluster)?;
    cluster.cut(0)?;
    cluster[0].kill()?;
    let mut table = Table::default();
    for server in ["10.93.0.1", "fd00:93::1", LOCAL] {
        let rows = [
            ("far A".to_owned(), vec![of(&far)?]),
            ("far.blue AAAA".to_owned(), vec![far.ipv6()?.to_string()]),
            ("all A".to_owned(), vec![of(&near)?, of(&far)?]),
            // What one of the network searches stands behind names on every node.
            ("near.shop.example A".to_owned(), vec![of(&near)?]),
            ("far.blue.shop.example A".to_owned(), vec![of(&far)?]),
            (format!("-x {}", of(&far)?), vec!["far.blue.".to_owned()]),
        ];
        for (question, data) in rows {
            table.row(format!("{server} {question}"), || expect(&near, server, &question, "NOERROR", &data));
        }
    }
    table.judge(|| cluster.evidence())?;
    // Back without etcd: what was known is known.
    cluster[0].start()?;
    expect(&near, "10.93.0.1", "far A", "NOERROR", &[of(&far)?]).with_context(|| cluster.evidence())?;
    cluster.heal(0)?;
    let late = Pod::add(&cluster[1], "late", &netconf(&["late"]))?;
    await_answer(&near, "late A", &[of(&late)?], &cluster)?;
    late.del(&cluster[1], &netconf(&["late"]))?;
    await_answer(&near, "late.blue A", &[], &cluster)
}

#[test]
fn names_of_a_dead_node_go_with_its_lease_and_return_with_it() -> Result<()> {
    let mut cluster = cluster("lease", 2)?;
    let near = Pod::add(&cluster[0], "near", &netconf(&["near"]))?;
    let far = Pod::add(&cluster[1], "far", &netconf(&["far"]))?;
    let address = far.ipv4()?.to_string();
    await_answer(&near, "far.blue A", std::slice::from_ref(&address), &cluster)?;
    cluster[1].kill()?;
    await_answer(&near, "far.blue A", &[], &cluster)?;
    cluster[1].start()?;
    await_answer(&near, "far.blue A", std::slice::from_ref(&address), &cluster)?;
    // A node that is cut off keeps its own names, and the others lose them.
    cluster.cut(1)?;
    await_answer(&near, "far.blue A", &[], &cluster)?;
    expect(&far, "10.93.0.1", "far.blue A", "NOERROR", std::slice::from_ref(&address))?;
    cluster.heal(1)?;
    await_answer(&near, "far.blue A", std::slice::from_ref(&address), &cluster)
}

#[test]
fn a_node_killed_while_it_tells_names_tells_them_again_and_takes_them_back() -> Result<()> {
    let mut cluster = cluster("telling", 2)?;
    let near = Pod::add(&cluster[0], "near", &netconf(&["near"]))?;
    let [point] = IPAMD_NAMES;
    arm(&mut cluster[1], point)?;
    // Names are told behind the answer, which may or may not have been given.
    let added = Pod::add(&cluster[1], "told", &netconf(&["told"]));
    expect_death(&mut cluster[1])?;
    cluster[1].start()?;
    let told = added.or_else(|_| Pod::add(&cluster[1], "told-again", &netconf(&["told"])))?;
    await_answer(&near, "told.blue A", &[told.ipv4()?.to_string()], &cluster)?;
    told.del(&cluster[1], &netconf(&["told"]))?;
    await_answer(&near, "told.blue A", &[], &cluster)
}
