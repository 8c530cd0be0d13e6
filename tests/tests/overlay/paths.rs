//! Ways between nodes that are not whole: found, said, and got round by the nodes themselves.

use super::{
    broken_card::{BrokenCard, nft},
    scene::{PORT, Scene, seen_as, two, unanswered},
    sizes::{carries, overhead, ping_whole, told},
};
use anyhow::{Context, Result, bail, ensure};
use ipamd_api::{NodePath, NodeView, PathState, path};
use std::time::Duration;
use weft_tests::{FAMILIES, Table, TestNetns, dial::Dial, echo::PROTOCOLS, poll_until};

/// How long nodes may take to judge a way: tries with growing waits, and a search.
const JUDGEMENT: Duration = Duration::from_secs(60);

/// How long until a bad way is looked at again, and then some.
const HEALING: Duration = Duration::from_secs(150);

/// Bytes of the underlay's links, and of the narrow one.
const WIDE: u32 = 1500;
const NARROW: u32 = 1400;

/// What a node knows of the way to another one.
fn way(scene: &Scene, from: usize, to: usize) -> Result<NodePath> {
    let nodes: Vec<NodeView> = scene.cluster[from].client().get(path::NODES)?;
    let name = scene.cluster[to].name();
    let found = nodes.into_iter().find(|node| node.name == name).context("a node")?;
    found.path.with_context(|| format!("nothing is known of the way to {name}"))
}

fn await_way(
    scene: &Scene,
    (from, to): (usize, usize),
    state: PathState,
    limit: Duration,
) -> Result<NodePath> {
    let mut last = None;
    let is_so = || {
        last = Some(way(scene, from, to));
        matches!(&last, Some(Ok(path)) if path.state == state)
    };
    poll_until(limit, "a way to be judged", is_so)
        .with_context(|| format!("{state} from {from} to {to}; {last:?}\n{}", scene.cluster.evidence()))?;
    way(scene, from, to)
}

/// What netctl prints on a node, whether or not all is well.
fn ask(scene: &Scene, node: usize, words: &[&str]) -> Result<String> {
    let output = scene.cluster[node].netctl(words)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn doctor(scene: &Scene, node: usize) -> Result<String> {
    ask(scene, node, &["doctor"])
}

fn says(scene: &Scene, node: usize, words: &[&str]) -> Result<()> {
    let said = doctor(scene, node)?;
    match words.iter().find(|word| !said.contains(*word)) {
        None => Ok(()),
        Some(word) => bail!("nothing of {word:?} in\n{said}"),
    }
}

/// Routers do not cut what is too long into segments, as network cards do for each other.
fn without_segmentation(netns: &TestNetns) -> Result<()> {
    netns.sh("ethtool -K up0 tso off tx-udp_tnl-segmentation off tx-udp_tnl-csum-segmentation off").map(drop)
}

fn forget_sizes(scene: &Scene) -> Result<()> {
    for netns in [&**scene.pods[0], scene.cluster[0].netns()] {
        netns.ip("route flush cache")?;
        netns.ip("-6 route flush cache")?;
    }
    Ok(())
}

#[test]
fn whole_ways_are_found_whole() -> Result<()> {
    for over_v4 in FAMILIES {
        let scene = Scene::of(two("whole", over_v4), "")?;
        for (from, to) in [(0, 1), (1, 0)] {
            let found = await_way(&scene, (from, to), PathState::Whole, JUDGEMENT)?;
            ensure!(found.largest.is_none(), "{found:?}");
            let said = scene.cluster[from].ask(&format!("inspect {}", scene.cluster[to].name()))?;
            ensure!(said.contains("whole since"), "{said}");
            let said = doctor(&scene, from)?;
            ensure!(
                said.contains("paths") && !said.contains("VXLAN") && !said.contains("checksum off"),
                "{said}"
            );
        }
    }
    Ok(())
}

/// A link on the way loses what is large without a word: senders hear of the size that fits instead, until it is mended.
#[test]
fn a_black_hole_is_got_round() -> Result<()> {
    for over_v4 in FAMILIES {
        let mut scene = Scene::of(two("hole", over_v4), "")?;
        for node in scene.cluster.nodes() {
            without_segmentation(node.netns())?;
        }
        await_way(&scene, (0, 1), PathState::Whole, JUDGEMENT)?;
        let whole = WIDE - overhead(over_v4);
        scene.cluster.underlay().narrow(scene.cluster[0].place(), NARROW)?;
        for v4 in FAMILIES {
            let said = ping_whole(&scene.pods[0], scene.pods[1].ip_of(v4)?, whole)?;
            ensure!(said.contains("0 received") && !said.contains("mtu"), "no black hole: {said}");
        }
        // At join, for a way that was well is not looked at again at once.
        scene.cluster[0].restart()?;
        let found = await_way(&scene, (0, 1), PathState::Clamped, JUDGEMENT)?;
        let fits = found.largest.context("a largest packet")?;
        // A bridge port lets four bytes more pass, for a VLAN tag.
        let link = NARROW - overhead(over_v4);
        ensure!((link..=link + 4).contains(&fits), "{fits} instead of {link}");

        let mut table = Table::default();
        let name = scene.cluster[1].name();
        table.row("doctor", || {
            says(&scene, 0, &[name, &format!("more than {fits} bytes"), "next: give every link"])
        });
        table.row("inspect", || {
            let said = ask(&scene, 0, &["inspect", name])?;
            ensure!(said.contains(&format!("clamped to {fits} bytes since")), "{said}");
            Ok(())
        });
        for v4 in FAMILIES {
            let to = scene.pods[1].ip_of(v4)?;
            let senders = [("a container", &**scene.pods[0]), ("the node", scene.cluster[0].netns())];
            for (who, from) in senders {
                table.row(format!("{to}: {who} hears of it"), || told(from, to, fits));
                // The way back has a limit of its own, by a few bytes.
                table.row(format!("{to}: just right of {who}"), || {
                    let said = ping_whole(from, to, link)?;
                    ensure!(said.contains("1 received"), "{said}");
                    Ok(())
                });
            }
        }
        table.judge(|| scene.cluster.evidence()).with_context(|| format!("over IPv4 {over_v4}"))?;
        forget_sizes(&scene)?;
        // Streams go both ways, and the other node has to look at its own first: it hears that there is something.
        for v4 in FAMILIES {
            let mut last = None;
            poll_until(JUDGEMENT, "a stream", || {
                last = carries(&scene.pods[0], &scene.pods[1], v4).err();
                last.is_none()
            })
            .with_context(|| {
                format!("IPv4 {v4} over IPv4 {over_v4}: {last:?}\n{}", scene.cluster.evidence())
            })?;
        }
        // The limit is there while nobody knows yet how the way is.
        forget_sizes(&scene)?;
        scene.cluster[0].restart()?;
        told(&scene.pods[0], scene.pods[1].ip_of(true)?, fits).context("after a restart")?;

        scene.cluster.underlay().narrow(scene.cluster[0].place(), WIDE)?;
        // On the way back over IPv6 the underlay says "too big" to the node, whose kernel believes it for ten minutes.
        scene.cluster[1].netns().ip("-6 route flush cache")?;
        await_way(&scene, (1, 0), PathState::Whole, HEALING)?;
        await_way(&scene, (0, 1), PathState::Whole, HEALING)?;
        forget_sizes(&scene)?;
        for v4 in FAMILIES {
            let said = ping_whole(&scene.pods[0], scene.pods[1].ip_of(v4)?, whole)?;
            ensure!(said.contains("1 received"), "after it was mended: {said}");
        }
        let said = doctor(&scene, 0)?;
        ensure!(!said.contains("bytes to it"), "{said}");
    }
    Ok(())
}

/// Somebody filters the UDP port: the node is alive by its lease, and its way is named with the port.
#[test]
fn a_blocked_port_is_named() -> Result<()> {
    let mut scene = Scene::of(two("blocked", true), "")?;
    await_way(&scene, (0, 1), PathState::Whole, JUDGEMENT)?;
    let node = scene.cluster[1].netns();
    nft(
        node,
        "table inet block { chain input { type filter hook input priority 0; udp dport 4789 drop; }; }",
    )?;
    scene.cluster[0].restart()?;
    await_way(&scene, (0, 1), PathState::Silent, JUDGEMENT)?;
    let name = scene.cluster[1].name();
    says(
        &scene,
        0,
        &[
            &format!("node {name}: is alive, and does not answer over VXLAN (UDP port 4789)"),
            "let UDP port 4789 through",
        ],
    )?;
    nft(scene.cluster[1].netns(), "delete table inet block")?;
    await_way(&scene, (0, 1), PathState::Whole, HEALING)?;
    let said = doctor(&scene, 0)?;
    ensure!(!said.contains("does not answer over VXLAN"), "{said}");
    Ok(())
}

/// A network card that should fill in the checksums inside VXLAN and does not.
#[test]
fn a_broken_checksum_offload_is_switched_off() -> Result<()> {
    for over_v4 in FAMILIES {
        let mut scene = Scene::of(two("sums", over_v4), "")?;
        await_way(&scene, (0, 1), PathState::Whole, JUDGEMENT)?;
        without_segmentation(scene.cluster[0].netns())?;
        let card = BrokenCard::at(scene.cluster.underlay(), scene.cluster[0].place())?;
        for v4 in FAMILIES {
            for protocol in PROTOCOLS {
                unanswered(&scene.pods[0], protocol, (scene.pods[1].ip_of(v4)?, PORT).into())
                    .context("the card is not broken")?;
            }
        }
        scene.cluster[0].restart()?;
        let name = scene.cluster[1].name().to_owned();
        let mut said = String::new();
        poll_until(JUDGEMENT, "the offload to be switched off", || {
            said = doctor(&scene, 0).unwrap_or_default();
            said.contains(&format!("checksum offload is switched off, because packets to node {name}"))
        })
        .with_context(|| format!("{said}\n{}", scene.cluster.evidence()))?;
        ensure!(said.contains("ethtool -K wf-vxlan tx on"), "{said}");
        await_way(&scene, (0, 1), PathState::Whole, JUDGEMENT)?;
        let features = scene.cluster[0].netns().sh("ethtool -k wf-vxlan")?;
        ensure!(features.contains("tx-checksumming: off"), "{features}");
        let mut table = Table::default();
        for v4 in FAMILIES {
            for protocol in PROTOCOLS {
                let dial = Dial::new(protocol, (scene.pods[1].ip_of(v4)?, PORT).into());
                table.row(format!("{dial}"), || {
                    seen_as(&scene.pods[0], dial, scene.pods[0].ip_of(v4)?).map(drop)
                });
            }
            table.row(format!("a stream, IPv4 {v4}"), || carries(&scene.pods[0], &scene.pods[1], v4));
        }
        table.judge(|| scene.cluster.evidence()).with_context(|| format!("over IPv4 {over_v4}"))?;
        // It stays off through a restart: the device is the same.
        scene.cluster[0].restart()?;
        says(&scene, 0, &["checksum offload is switched off, by an earlier ipamd"])?;
        card.mend()?;
        scene.cluster[0].netns().sh("ethtool -K wf-vxlan tx on")?;
        scene.cluster[0].restart()?;
        await_way(&scene, (0, 1), PathState::Whole, JUDGEMENT)?;
        let said = doctor(&scene, 0)?;
        ensure!(!said.contains("offload is"), "{said}");
    }
    Ok(())
}

/// Probes are between nodes: a container neither reaches a probe address nor takes one.
#[test]
fn no_container_is_on_the_probe_network() -> Result<()> {
    let scene = Scene::new("inside")?;
    await_way(&scene, (0, 1), PathState::Whole, JUDGEMENT)?;
    let addresses = scene.cluster[1].netns().ip("-6 addr show dev wf-vxlan")?;
    let own = addresses.split_whitespace().find(|word| word.starts_with("fd77:6566:7470:"));
    let own = own.and_then(|word| word.split('/').next()).context("a probe address")?;
    let ping = |from: &TestNetns| from.sh(&format!("ping -6 -n -c 1 -W 1 {own}")).is_ok();
    ensure!(ping(scene.cluster[0].netns()), "the other node does not reach it");
    for (pod, node) in scene.pods.iter().zip(scene.cluster.nodes()) {
        let before = node.drops("isolated")?;
        ensure!(!ping(pod), "a container reaches {own}");
        ensure!(node.drops("isolated")? > before, "not dropped as isolated\n{}", scene.cluster.evidence());
    }
    let refused = scene.cluster[0].netctl(
        &"network create probes --driver overlay --subnet fd77:6566:7470::/48".split(' ').collect::<Vec<_>>(),
    )?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(!refused.status.success() && said.contains("probe the ways"), "{said}");
    Ok(())
}
