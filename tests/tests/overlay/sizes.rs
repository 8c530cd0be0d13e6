//! What fits: the MTU of overlay networks follows the underlay's, and who sends more hears of it.

use super::scene::{HALL, Scene, two};
use anyhow::{Context, Result, ensure};
use std::net::IpAddr;
use weft_tests::{FAMILIES, Pod, Table, TestNetns, crowd::Hall, poll_until};

/// Bytes that VXLAN adds, inner Ethernet header included (RFC 7348).
pub(crate) fn overhead(over_v4: bool) -> u32 {
    if over_v4 { 50 } else { 70 }
}

/// Bytes of IP and ICMP headers before the data of an echo request.
fn headers(v4: bool) -> u32 {
    if v4 { 28 } else { 48 }
}

fn mtu(pod: &TestNetns) -> Result<u32> {
    let shown: serde_json::Value = serde_json::from_str(&pod.ip("-j link show eth0")?)?;
    let mtu = shown[0]["mtu"].as_u64().context("an MTU")?;
    Ok(u32::try_from(mtu)?)
}

/// What a ping of so many bytes in all says, which may not be cut.
pub(crate) fn ping_whole(from: &TestNetns, to: IpAddr, size: u32) -> Result<String> {
    let data = size - headers(to.is_ipv4());
    let line = format!("-n -c 1 -W 2 -M do -s {data} {to}");
    let output = from.command("ping").args(line.split(' ')).output()?;
    Ok(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

pub(crate) fn carries(from: &Pod, to: &Pod, v4: bool) -> Result<()> {
    let listening = (to.ip_of(v4)?, HALL).into();
    Hall::open(to, listening)?.dial(from, listening, None)?.carry(2_000_000)
}

#[test]
fn networks_take_what_the_underlay_leaves() -> Result<()> {
    // IPv6 needs 1280 bytes inside, which the narrowest underlay does not leave.
    for (over_v4, underlay, families) in [
        (true, 1280, &[true][..]),
        (true, 1500, &FAMILIES),
        (true, 9000, &FAMILIES),
        (false, 1500, &FAMILIES),
        (false, 9000, &FAMILIES),
    ] {
        let scene = Scene::with(two("mtu", over_v4).mtu(underlay), families, "")?;
        let whole = underlay - overhead(over_v4);
        let mut table = Table::default();
        table.row("MTU of the containers", || {
            let found = [mtu(&scene.pods[0])?, mtu(&scene.pods[1])?];
            ensure!(found == [whole; 2], "{found:?} instead of {whole}");
            Ok(())
        });
        for v4 in scene.families() {
            let to = scene.pods[1].ip_of(v4)?;
            table.row(format!("{to}: just right"), || {
                let said = ping_whole(&scene.pods[0], to, whole)?;
                ensure!(said.contains("1 received"), "{said}");
                Ok(())
            });
            table.row(format!("{to}: a stream"), || carries(&scene.pods[0], &scene.pods[1], v4));
        }
        table
            .judge(|| scene.cluster.evidence())
            .with_context(|| format!("over IPv4 {over_v4}, {underlay} bytes"))?;
    }
    Ok(())
}

/// A network may ask for less than there is; what it asks for and does not fit is told by the way.
#[test]
fn networks_get_what_they_ask_for() -> Result<()> {
    let whole = 1500 - overhead(true);
    for asked in [1400, 1500, 9000] {
        let scene = Scene::of(two("asked", true), &format!("--mtu {asked}"))?;
        let mut table = Table::default();
        table.row("MTU of the containers", || {
            let found = [mtu(&scene.pods[0])?, mtu(&scene.pods[1])?];
            ensure!(found == [asked; 2] || found == [whole.min(asked); 2], "{found:?}");
            Ok(())
        });
        for v4 in FAMILIES {
            let (to, limit) = (scene.pods[1].ip_of(v4)?, whole.min(asked));
            table.row(format!("{to}: too large by one"), || told(&scene.pods[0], to, limit));
            table.row(format!("{to}: just right"), || {
                let said = ping_whole(&scene.pods[0], to, limit)?;
                ensure!(said.contains("1 received"), "{said}");
                Ok(())
            });
            for netns in [&**scene.pods[0], &**scene.pods[1]] {
                netns.ip("route flush cache")?;
                netns.ip("-6 route flush cache")?;
            }
            table.row(format!("{to}: a stream"), || carries(&scene.pods[0], &scene.pods[1], v4));
        }
        table.judge(|| scene.cluster.evidence()).with_context(|| format!("{asked} bytes asked for"))?;
    }
    Ok(())
}

/// A ping that is too large by one byte hears of the MTU.
pub(crate) fn told(from: &TestNetns, to: IpAddr, limit: u32) -> Result<()> {
    let said = ping_whole(from, to, limit + 1)?;
    let forms = [format!("mtu={limit}"), format!("mtu = {limit}"), format!("mtu: {limit}")];
    ensure!(forms.iter().any(|form| said.contains(form)), "{said}");
    Ok(())
}

/// Containers that were made for a wider underlay hear of the narrower one, and streams go on.
#[test]
fn a_narrower_underlay_is_followed() -> Result<()> {
    let mut scene = Scene::of(two("follow", true), "")?;
    let mut halls = Vec::new();
    for v4 in FAMILIES {
        let listening = (scene.pods[1].ip_of(v4)?, HALL + 1).into();
        let hall = Hall::open(&scene.pods[1], listening)?;
        let pair = hall.dial(&scene.pods[0], listening, None)?;
        halls.push((hall, pair));
    }
    for node in [0, 1] {
        scene.cluster.set_mtu(node, 1400)?;
    }
    let whole = 1400 - overhead(true);
    for v4 in FAMILIES {
        let to = scene.pods[1].ip_of(v4)?;
        let mut last = None;
        poll_until(super::scene::CONVERGENCE, "a ping to hear of the smaller MTU", || {
            last = told(&scene.pods[0], to, whole).err();
            last.is_none()
        })
        .with_context(|| format!("{last:?}\n{}", scene.cluster.evidence()))?;
        let said = ping_whole(&scene.pods[0], to, whole)?;
        ensure!(said.contains("1 received"), "just right: {said}");
    }
    for (_, pair) in &mut halls {
        pair.carry(500_000).with_context(|| format!("an open stream\n{}", scene.cluster.evidence()))?;
    }
    // They listen where new ones are to lead.
    drop(halls);
    for v4 in FAMILIES {
        carries(&scene.pods[0], &scene.pods[1], v4).context("a new stream")?;
    }
    Ok(())
}
