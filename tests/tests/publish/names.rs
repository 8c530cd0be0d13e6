//! A name server in a container, which `dig` asks from everywhere; and one outside, which containers ask.

use super::scene::{Scene, localhost};
use anyhow::{Result, ensure};
use serde_json::Value;
use std::net::IpAddr;
use weft_tests::{
    FAMILIES, Table, TestNetns,
    dns::{ANSWER, NameServer},
    netconf::both_protocols,
};

/// Where name servers are.
const PORT: u16 = 53;

fn dig(from: &TestNetns, server: IpAddr) -> Result<()> {
    for options in ["+notcp", "+tcp", "+notcp +nocookie +noedns"] {
        let said = from.sh(&format!("dig +short +time=2 +tries=1 {options} @{server} a.example A"))?;
        ensure!(said.trim() == ANSWER.to_string(), "dig {options} @{server} said {said:?}");
    }
    Ok(())
}

#[test]
fn dig_asks_a_published_name_server_and_one_outside() -> Result<()> {
    let scene = Scene::with("names", &Value::Null, &both_protocols(PORT, PORT))?;
    let _inside = NameServer::start(&scene.web, ([0_u16; 8], PORT).into())?;
    let mut outside = Vec::new();
    let mut table = Table::default();
    for v4 in FAMILIES {
        let (machine, node) = (scene.machine.ip_of(v4), scene.machine.peer(v4));
        outside.push(NameServer::start(&scene.machine, (machine, PORT).into())?);
        let ways: [(&str, &TestNetns, IpAddr); 6] = [
            ("machine", &scene.machine, node),
            ("localhost", scene.node.netns(), localhost(v4)),
            ("the node's own address", scene.node.netns(), node),
            ("neighbour", &scene.near, node),
            ("itself", &scene.web, node),
            ("out", &scene.near, machine),
        ];
        for (name, from, server) in ways {
            table.row(format!("{name}, {server}"), || dig(from, server));
        }
    }
    table.judge(|| scene.node.evidence())
}
