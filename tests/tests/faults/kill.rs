//! kill -9 of ipamd and of the plugin at every step of ADD and DEL, and of ipamd at every step of a start.

use super::scene::{self, Pod, Scene};
use anyhow::{Context, Result, bail, ensure};
use ipamd_api::{
    ClientError, ErrorCode, PortMapping, Protocol, PublishRequest, PublishedPorts, UnpublishRequest, path,
};
use std::{collections::BTreeSet, fs, path::Path};
use weft_tests::{
    Node, inventory,
    stops::{
        self, IPAMD_ADD, IPAMD_DEL, IPAMD_PUBLISH, IPAMD_START, IPAMD_UNPUBLISH, PLUGIN_ADD, PLUGIN_DEL,
        PLUGIN_DEL_AWAY, VARIABLE, arm, expect_death,
    },
};

/// What the container that is killed publishes: whoever still holds it after a death keeps the next ADD from working.
const HOST_PORT: u16 = 18_080;

#[test]
fn every_stop_point_is_tested() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut found = BTreeSet::new();
    for part in ["ipamd/src", "plugin/src"] {
        stop_points(&root.join(part), &mut found)?;
    }
    let tested: BTreeSet<String> = stops::all().map(str::to_owned).collect();
    assert_eq!(found, tested, "stop points of the sources and of the testkit's tables differ");
    Ok(())
}

/// Names in the calls `stop_point("…")` and `stop_point!("…")` below a folder.
fn stop_points(dir: &Path, found: &mut BTreeSet<String>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            stop_points(&path, found)?;
            continue;
        }
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        for call in text.split("stop_point").skip(1) {
            let call = call.strip_prefix('!').unwrap_or(call);
            let name = call.strip_prefix("(\"").and_then(|rest| rest.split('"').next());
            found.extend(name.map(str::to_owned));
        }
    }
    Ok(())
}

#[test]
fn ipamd_killed_within_an_add_loses_nothing() -> Result<()> {
    let mut node = scene::node("kill-add").start()?;
    let mut scene = Scene::new(&node)?;
    let mut pod = Pod::new("killed")?.publishing(HOST_PORT);
    for (number, point) in IPAMD_ADD.into_iter().enumerate() {
        kill_within_add(&mut node, &mut pod, point, number % 2 == 0)
            .and_then(|()| scene.assert_nothing_lost(&node))
            .context(point)?;
    }
    Ok(())
}

fn kill_within_add(node: &mut Node, pod: &mut Pod, point: &str, del_while_away: bool) -> Result<()> {
    arm(node, point)?;
    let error = pod.add_refused(node)?;
    ensure!(error.code == ErrorCode::TryAgainLater.number(), "{error}");
    expect_death(node)?;
    // A runtime answers a failed ADD by DEL, at once.
    if del_while_away {
        pod.del(node)?;
        ensure!(!pod.has_interface()?, "the interface outlived a DEL without ipamd");
        node.start()?;
    } else {
        node.start()?;
        pod.del(node)?;
    }
    again(node, pod)
}

/// The next ADD and DEL of the same container work.
fn again(node: &Node, pod: &mut Pod) -> Result<()> {
    let added = pod.add(node).context("ADD after the restart")?;
    let gateway = pod.result.as_ref().and_then(|r| r["ips"][0]["gateway"].as_str());
    ensure!(pod.sandbox.ping(gateway.context("a gateway")?)?, "{added:?} does not reach its gateway");
    pod.del(node).context("DEL after the restart")?;
    ensure!(host_ports(node)?.is_empty(), "published without a container: {:?}", host_ports(node)?);
    Ok(())
}

fn host_ports(node: &Node) -> Result<Vec<u16>> {
    let published: Vec<PublishedPorts> = node.client().get(path::PUBLISH)?;
    Ok(published.iter().map(|p| p.mapping.host_port).collect())
}

#[test]
fn ipamd_killed_within_a_del_loses_nothing() -> Result<()> {
    let mut node = scene::node("kill-del").start()?;
    let mut scene = Scene::new(&node)?;
    let mut pod = Pod::new("killed")?.publishing(HOST_PORT);
    for (number, point) in IPAMD_DEL.into_iter().enumerate() {
        kill_within_del(&mut node, &mut pod, point, number % 2 == 0)
            .and_then(|()| scene.assert_nothing_lost(&node))
            .context(point)?;
    }
    Ok(())
}

fn kill_within_del(node: &mut Node, pod: &mut Pod, point: &str, with_result: bool) -> Result<()> {
    pod.add(node)?;
    arm(node, point)?;
    if !with_result {
        pod.result = None;
    }
    pod.del(node)?;
    expect_death(node)?;
    node.start()?;
    // Whatever was left, twice started is not twice freed or found again.
    node.restart()?;
    ensure!(!pod.has_interface()?, "the interface outlived the DEL");
    again(node, pod)
}

#[test]
fn ipamd_killed_while_it_publishes_knows_what_it_did() -> Result<()> {
    let mut node = scene::node("kill-publish").start()?;
    let mut pod = Pod::new("killed")?.publishing(HOST_PORT);
    let mapping = PortMapping {
        host_port: HOST_PORT + 1,
        container_port: 81,
        count: 1,
        protocol: Protocol::Tcp,
        host_ip: None,
        allow_from: Vec::new(),
    };
    let publish = PublishRequest { container: "killed".into(), network: None, mappings: vec![mapping] };
    let unpublish = UnpublishRequest {
        container: "killed".into(),
        host_port: HOST_PORT + 1,
        protocol: Protocol::Tcp,
        host_ip: None,
    };
    pod.add(&node)?;
    for point in IPAMD_PUBLISH {
        arm(&mut node, point)?;
        let answer: std::result::Result<Vec<PublishedPorts>, _> = node.client().post(path::PUBLISH, &publish);
        ensure!(matches!(answer, Err(ClientError::Broken { .. })), "{point}: {answer:?}");
        expect_death(&mut node)?;
        node.start()?;
        // It was in the journal, so it is published; what the caller makes of that is up to the caller.
        ensure!(host_ports(&node)? == [HOST_PORT, HOST_PORT + 1], "{point}: {:?}", host_ports(&node)?);
        pod.check(&node).context(point)?;
        let _: serde_json::Value = node.client().post(path::UNPUBLISH, &unpublish).context(point)?;
        ensure!(host_ports(&node)? == [HOST_PORT], "{point}: {:?}", host_ports(&node)?);
    }
    for point in IPAMD_UNPUBLISH {
        let _: Vec<PublishedPorts> = node.client().post(path::PUBLISH, &publish).context(point)?;
        arm(&mut node, point)?;
        let answer: std::result::Result<serde_json::Value, _> =
            node.client().post(path::UNPUBLISH, &unpublish);
        ensure!(matches!(answer, Err(ClientError::Broken { .. })), "{point}: {answer:?}");
        expect_death(&mut node)?;
        node.start()?;
        ensure!(host_ports(&node)? == [HOST_PORT], "{point}: {:?}", host_ports(&node)?);
        pod.check(&node).context(point)?;
    }
    pod.del(&node)?;
    again(&node, &mut pod)
}

#[test]
fn ipamd_killed_within_a_start_loses_nothing() -> Result<()> {
    let mut node = scene::node("kill-start").start()?;
    let mut scene = Scene::new(&node)?;
    let (mut half, mut left) = (Pod::new("half")?.publishing(HOST_PORT), Pod::new("left")?);
    for point in IPAMD_START {
        let mut round = || -> Result<()> {
            // Something of each kind is left: a live endpoint, a half-made one, one being removed, and a release.
            left.add(&node)?;
            arm(&mut node, "ipamd.add.attached")?;
            half.add_refused(&node)?;
            expect_death(&mut node)?;
            left.del(&node)?;
            node.spawn(&[(VARIABLE, point)])?;
            expect_death(&mut node)?;
            node.start()?;
            half.del(&node)?;
            again(&node, &mut half)?;
            scene.assert_nothing_lost(&node)
        };
        round().context(point)?;
    }
    Ok(())
}

/// Calls a verb so that the plugin dies at `point`.
fn killed_plugin(node: &Node, pod: &Pod, verb: &str, point: &str) -> Result<()> {
    let netconf = if verb == "DEL" { pod.del_netconf() } else { pod.netconf.clone() };
    match pod.cni(node)?.variable(VARIABLE, Some(point.into())).call(verb, &netconf) {
        Err(_) => Ok(()),
        Ok(answer) => bail!("{verb} went past {point}: {answer:?}"),
    }
}

#[test]
fn the_plugin_killed_within_an_add_loses_nothing() -> Result<()> {
    let node = scene::node("kill-plugin-add").start()?;
    let mut scene = Scene::new(&node)?;
    let mut pod = Pod::new("killed")?;
    for point in PLUGIN_ADD {
        for retried in [false, true] {
            killed_plugin(&node, &pod, "ADD", point)?;
            if !retried {
                pod.del(&node).context(point)?;
            }
            again(&node, &mut pod).and_then(|()| scene.assert_nothing_lost(&node)).context(point)?;
        }
    }
    Ok(())
}

#[test]
fn the_plugin_killed_within_a_del_loses_nothing() -> Result<()> {
    let mut node = scene::node("kill-plugin-del").start()?;
    let mut scene = Scene::new(&node)?;
    let mut pod = Pod::new("killed")?;
    for point in PLUGIN_DEL {
        pod.add(&node)?;
        killed_plugin(&node, &pod, "DEL", point)?;
        pod.del(&node).context(point)?;
        again(&node, &mut pod).and_then(|()| scene.assert_nothing_lost(&node)).context(point)?;
    }
    for point in PLUGIN_DEL_AWAY {
        for with_result in [true, false] {
            pod.add(&node)?;
            if !with_result {
                pod.result = None;
            }
            node.kill()?;
            killed_plugin(&node, &pod, "DEL", point)?;
            // Some runtimes try again, others give up; the record alone is enough where there is one.
            if point == "plugin.del.parsed" || with_result {
                pod.del(&node).context(point)?;
            }
            pod.result = None;
            node.start()?;
            inventory::assert_holds(&node, &[scene.standing.endpoint]).context(point)?;
            ensure!(!pod.has_interface()?, "{point}: the interface is left");
            again(&node, &mut pod).and_then(|()| scene.assert_nothing_lost(&node)).context(point)?;
        }
    }
    Ok(())
}
