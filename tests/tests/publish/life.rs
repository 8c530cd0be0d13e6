//! Published ports while ipamd comes and goes.

use super::scene::{HOST_PORT, Scene, Seen, gateway, localhost};
use super::ways::try_all;
use anyhow::Result;
use weft_tests::{FAMILIES, Table, dial::Dial, echo::PROTOCOLS};

fn every_way(table: &mut Table, when: &str, scene: &Scene) -> Result<()> {
    for v4 in FAMILIES {
        let node = scene.machine.peer(v4);
        try_all(
            table,
            &format!("{when}, machine"),
            &scene.machine,
            node,
            Seen::Client(scene.machine.ip_of(v4)),
        );
        try_all(table, &format!("{when}, node"), scene.node.netns(), localhost(v4), Seen::Anyone);
        try_all(table, &format!("{when}, neighbour"), &scene.near, node, Seen::Client(scene.near.ip_of(v4)?));
        try_all(table, &format!("{when}, itself"), &scene.web, node, Seen::At(gateway(v4)?));
    }
    Ok(())
}

#[test]
fn published_ports_are_served_while_ipamd_is_away_and_after_it_is_back() -> Result<()> {
    let mut scene = Scene::new("away")?;
    let mut table = Table::default();
    scene.node.kill()?;
    every_way(&mut table, "away", &scene)?;
    scene.node.start()?;
    every_way(&mut table, "back", &scene)?;
    scene.node.stop()?;
    every_way(&mut table, "stopped", &scene)?;
    scene.node.start()?;
    table.judge(|| scene.node.evidence())?;
    scene.web.del(&scene.node, &scene.netconf)?;
    for protocol in PROTOCOLS {
        let dial = Dial::new(protocol, (localhost(true), HOST_PORT).into());
        anyhow::ensure!(dial.refusal(scene.node.netns())? == libc::ECONNREFUSED, "a port that was removed");
    }
    Ok(())
}
