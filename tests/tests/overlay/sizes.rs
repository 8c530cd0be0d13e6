//! What fits: the MTU of overlay networks follows the underlay's, and who sends more hears of it.

use super::scene::{BLUE, HALL, Scene, gateway, two};
use anyhow::{Context, Result, ensure};
use std::net::IpAddr;
use weft_tests::{Cluster, FAMILIES, Pod, Table, TestNetns, crowd::Hall, poll_until};

/// Bytes that VXLAN adds, inner Ethernet header included (RFC 7348).
fn overhead(over_v4: bool) -> u32 {
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
fn ping_whole(from: &TestNetns, to: IpAddr, size: u32) -> Result<String> {
    let data = size - headers(to.is_ipv4());
    let line = format!("-n -c 1 -W 2 -M do -s {data} {to}");
    let output = from.command("ping").args(line.split(' ')).output()?;
    Ok(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

fn carries(from: &Pod, to: &Pod, v4: bool) -> Result<()> {
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

/// A network may ask for less than there is, and gets no more than there is.
#[test]
fn networks_get_what_they_ask_for_if_it_fits() -> Result<()> {
    for (asked, given) in [(1400, 1400), (9000, 1500 - overhead(true))] {
        let scene = Scene::of(Cluster::builder("asked").etcd(1), &format!("--mtu {asked}"))?;
        let found = [mtu(&scene.pods[0])?, mtu(&scene.pods[1])?];
        ensure!(found == [given; 2], "{found:?} instead of {given} for {asked}");
        for v4 in FAMILIES {
            carries(&scene.pods[0], &scene.pods[1], v4)?;
        }
    }
    Ok(())
}

/// Containers that were made for a wider underlay hear of the narrower one by their gateway, and streams go on.
#[test]
fn a_narrower_underlay_is_followed() -> Result<()> {
    let mut scene = Scene::new("follow")?;
    let mut halls = Vec::new();
    for v4 in FAMILIES {
        let listening = (scene.pods[1].ip_of(v4)?, HALL).into();
        let hall = Hall::open(&scene.pods[1], listening)?;
        let pair = hall.dial(&scene.pods[0], listening, None)?;
        halls.push((hall, pair));
    }
    for node in [0, 1] {
        scene.cluster.set_mtu(node, 1400)?;
    }
    let whole = 1400 - overhead(true);
    for v4 in FAMILIES {
        let (to, gateway) = (scene.pods[1].ip_of(v4)?, gateway(BLUE, v4)?);
        let mut said = String::new();
        let told = |said: &str| {
            let forms = [format!("mtu={whole}"), format!("mtu = {whole}"), format!("mtu: {whole}")];
            forms.iter().any(|form| said.contains(form))
        };
        let mut by_gateway = false;
        poll_until(super::scene::CONVERGENCE, "a ping to hear of the smaller MTU", || {
            said = ping_whole(&scene.pods[0], to, whole + 1).unwrap_or_default();
            by_gateway |= said.contains(&format!("From {gateway}"));
            told(&said)
        })
        .with_context(|| format!("{said}\n{}", scene.cluster.evidence()))?;
        let now = mtu(&scene.pods[0])?;
        ensure!(by_gateway || now == whole, "not the gateway said so: {said}");
        let said = ping_whole(&scene.pods[0], to, whole)?;
        ensure!(said.contains("1 received"), "just right: {said}");
    }
    for (_, pair) in &mut halls {
        pair.carry(500_000).with_context(|| format!("an open stream\n{}", scene.cluster.evidence()))?;
    }
    for v4 in FAMILIES {
        carries(&scene.pods[0], &scene.pods[1], v4).context("a new stream")?;
    }
    Ok(())
}
