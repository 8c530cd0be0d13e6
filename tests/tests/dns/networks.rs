//! Who may know whom: names of a network are for those who are on it.

use crate::scene::{LOCAL, also_on, both, bridge, dig, expect, gateways, pod};
use anyhow::{Result, ensure};
use serde_json::json;
use weft_tests::{
    Node, NodeHandle, Pod, Sandbox, Table,
    docker::Docker,
    resolve::{Resolver, Resolving},
};

#[test]
fn names_of_another_network_are_nobodys() -> Result<()> {
    let node = Node::start_new("apart")?;
    let (red, blue) = (pod(&node, 84, &["red", "same"])?, pod(&node, 85, &["blue", "same"])?);
    let mut table = Table::default();
    for (from, number, unknown) in [(&red, 84, "blue.net-85"), (&blue, 85, "red.net-84")] {
        let [v4, v6] = gateways(number);
        for server in [v4.as_str(), v6.as_str(), LOCAL] {
            table.row(format!("net-{number}: {server} knows no {unknown}"), || {
                let answer = dig(from, server, &format!("{unknown} A"))?;
                ensure!(answer.data.is_empty(), "{}", answer.said);
                Ok(())
            });
            table.row(format!("net-{number}: {server} gives its own of a name that both have"), || {
                expect(from, server, "same A", "NOERROR", &[from.ipv4()?.to_string()])
            });
        }
    }
    table.row("a gateway answers nobody from another network", || {
        let [v4, _] = gateways(85);
        let said = red.command("dig").args([&format!("@{v4}"), "+time=1", "+tries=1", "blue"]).output()?;
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        ensure!(!said.contains(&blue.ipv4()?.to_string()), "{said}");
        Ok(())
    });
    table.judge(|| node.evidence())
}

#[test]
fn a_container_on_two_networks_knows_both() -> Result<()> {
    let node = Node::start_new("two")?;
    let (front, back) = (pod(&node, 86, &["front"])?, pod(&node, 87, &["back"])?);
    let sandbox = Sandbox::new()?;
    let middle = Pod::add_in(sandbox, &NodeHandle::of(&node)?, "middle", &bridge("net-86", 86, &["middle"]))?;
    let mut middle = middle;
    let second = bridge("net-87", 87, &["middle"]);
    also_on(&node, middle.sandbox(), "middle", &second)?;
    let mut table = Table::default();
    for server in [gateways(86)[0].as_str(), gateways(87)[0].as_str(), LOCAL] {
        for (name, known) in [("front", &front), ("back", &back)] {
            table.row(format!("{server} knows {name}"), || {
                expect(&middle, server, &format!("{name} A"), "NOERROR", &[known.ipv4()?.to_string()])
            });
        }
    }
    table.judge(|| node.evidence())
}

#[test]
fn who_wants_no_names_gets_none() -> Result<()> {
    let node = Node::start_new("off")?;
    let mut netconf = bridge("net-88", 88, &["silent"]);
    netconf["dnsMode"] = json!("off");
    let silent = Pod::add(&node, "silent-container", &netconf)?;
    let [v4, _] = gateways(88);
    for server in [v4.as_str(), LOCAL] {
        let asked =
            silent.command("dig").args([&format!("@{server}"), "+time=1", "+tries=1", "silent"]).output()?;
        ensure!(!asked.status.success(), "{server}: {}", String::from_utf8_lossy(&asked.stdout));
    }
    Ok(())
}

#[test]
fn intercepted_questions_are_answered_by_whom_they_were_for() -> Result<()> {
    let node = Node::start_new("intercept")?;
    let mut netconf = bridge("net-89", 89, &["caught"]);
    netconf["dnsMode"] = json!("intercept");
    let caught = Pod::add(&node, "caught-container", &netconf)?;
    let mut table = Table::default();
    for server in ["192.0.2.53", "2001:db8::53"] {
        for how in ["caught A", "caught AAAA", "caught A +tcp", "caught MX", "nobody.net-89 A"] {
            table.row(format!("{server} {how}"), || {
                // dig takes no answer from anybody else.
                let answer = dig(&caught, server, how)?;
                let known = both(&caught)?.iter().any(|ip| answer.data == [ip.to_string()]);
                ensure!(known || answer.data.is_empty(), "{}", answer.said);
                ensure!(known == (how.starts_with("caught A")), "{}", answer.said);
                Ok(())
            });
        }
    }
    table.judge(|| node.evidence())
}

#[test]
fn dockers_own_resolver_is_untouched() -> Result<()> {
    let node = Node::start_new("beside")?;
    let docker = Docker::start(&node)?;
    docker.call(&["network", "create", "theirs"])?;
    let first = docker.run("first", &["--network", "theirs"])?;
    let _second = docker.run("second", &["--network", "theirs"])?;
    let ours = pod(&node, 90, &["ours"])?;
    let conf = Resolving::with(&format!("nameserver {LOCAL}\n"))?;
    let theirs = conf.addresses(&first, Resolver::Glibc, "second")?;
    ensure!(theirs.len() == 1, "Docker's container finds {theirs:?}");
    ensure!(conf.addresses(&ours, Resolver::Glibc, "ours")? == both(&ours)?, "{}", node.evidence());
    let foreign = conf.addresses(&first, Resolver::Glibc, "ours")?;
    ensure!(foreign.is_empty(), "Docker's container finds {foreign:?}");
    Ok(())
}
