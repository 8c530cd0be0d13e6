//! Bad input: a clear error, nothing changed, nothing lost. After every refused call the node is as it was before.

mod api;
mod fuzz;
mod scene;
mod table;

use anyhow::{Context, Result, ensure};
use ipamd_api::{EndpointView, path};
use scene::Scene;
use serde_json::{Value, json};
use weft_tests::inventory;

fn base() -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "base", "type": "weft",
        "pools": [{"subnet": "10.90.0.0/24", "reserved": ["10.90.0.20"]}, {"subnet": "fd00:90::/64"}],
    })
}

fn tiny() -> Value {
    json!({"cniVersion": "1.0.0", "name": "tiny", "type": "weft", "subnet": "10.91.0.0/30"})
}

fn with(netconf: &Value, fields: &Value) -> Value {
    let mut netconf = netconf.clone();
    if let (Some(netconf), Some(fields)) = (netconf.as_object_mut(), fields.as_object()) {
        netconf.extend(fields.clone());
    }
    netconf
}

#[test]
fn what_is_wrong_is_named_and_changes_nothing() -> Result<()> {
    let scene = Scene::new()?;
    let host_before = inventory::interfaces(scene.node.netns())?;
    let mut failed = Vec::new();
    let groups =
        [scene.frames()?, scene.netconfs()?, scene.ports()?, scene.contradictions()?, scene.variables()?];
    let mut tried = 0;
    for case in groups.iter().flatten() {
        tried += 1;
        if let Err(error) = scene.refuse(case) {
            failed.push(format!("{}: {error:#}", case.what));
        }
    }
    ensure!(failed.is_empty(), "{} of {tried}:\n{}", failed.len(), failed.join("\n"));
    ensure!(tried > 100, "only {tried} were tried");
    ensure!(inventory::interfaces(scene.node.netns())? == host_before, "links of the host");
    // Those who were there live on, and the victim of all this gets its network.
    ensure!(scene.holder.ping("10.90.0.1")? && scene.tiny.ping("10.91.0.1")?, "those who were there");
    scene.cni()?.add(&base())?;
    ensure!(scene.victim.ping("10.90.0.10")?, "the victim");
    Ok(())
}

#[test]
fn an_unknown_command_is_refused_and_a_broken_netconf_stops_no_del() -> Result<()> {
    let scene = Scene::new()?;
    for command in ["ADDD", "add", "DELETE"] {
        let error = scene.cni()?.call(command, &base())?.err().context("was not refused")?;
        ensure!(error.code == 4 && error.msg.contains(command) && error.msg.contains("CHECK"), "{error}");
    }
    let broken = with(&base(), &json!({"pools": "none", "mtu": "x", "runtimeConfig": 5, "prevResult": 7}));
    scene.node.cni()?.container("holder").netns(scene.holder.path()).del(&broken)?;
    let others = [endpoint_of(&scene, "tiny-holder")?, endpoint_of(&scene, "publisher")?];
    inventory::assert_holds(&scene.node, &others)
}

fn endpoint_of(scene: &Scene, container: &str) -> Result<ipamd_api::EndpointId> {
    let all: Vec<EndpointView> = scene.node.client().get(path::ENDPOINTS)?;
    all.iter()
        .find(|e| e.attachment.container_id == container)
        .map(|e| e.endpoint)
        .context("no such endpoint")
}
