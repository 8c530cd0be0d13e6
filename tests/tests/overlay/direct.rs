//! `--encapsulation cross-subnet`: nodes that share a segment send packets as they are, others in VXLAN.

use super::{
    packets::encapsulated,
    scene::{HALL, Scene, seen_as, unanswered},
};
use anyhow::{Result, ensure};
use std::net::IpAddr;
use weft_tests::{
    Cluster, FAMILIES, Table, Wire,
    crowd::Hall,
    dial::Dial,
    echo::{PROTOCOLS, Protocol},
};

/// Whether a frame has this IP source address.
fn is_from(frame: &[u8], ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => frame.get(12..14) == Some(&[8, 0]) && frame.get(26..30) == Some(&ip.octets()),
        IpAddr::V6(ip) => frame.get(12..14) == Some(&[0x86, 0xdd]) && frame.get(22..38) == Some(&ip.octets()),
    }
}

#[test]
fn a_shared_segment_sees_no_vxlan() -> Result<()> {
    // Nodes 0 and 2 share one, node 1 is behind the router.
    let cluster = Cluster::builder("direct").nodes(3).segments(2).etcd(1);
    let scene = Scene::of(cluster, "--encapsulation cross-subnet")?;
    let mut table = Table::default();
    for v4 in FAMILIES {
        for (from, to) in [(0, 2), (2, 0), (0, 1), (1, 0)] {
            let direct = from != 1 && to != 1;
            let own = scene.pods[from].ip_of(v4)?;
            let what = format!("from {from} to {to}, {own}");
            for protocol in PROTOCOLS {
                let dial = Dial::new(protocol, scene.server(to, v4)?);
                table.row(format!("{what}: {dial}"), || seen_as(&scene.pods[from], dial, own).map(drop));
            }
            let dial = Dial::new(Protocol::Udp, scene.server(to, v4)?).sizes(8192, 8192);
            table.row(format!("{what}: {dial}"), || seen_as(&scene.pods[from], dial, own).map(drop));
            table.row(format!("{what}: a stream"), || {
                let listening = (scene.pods[to].ip_of(v4)?, HALL).into();
                let hall = Hall::open(&scene.pods[to], listening)?;
                hall.dial(&scene.pods[from], listening, None)?.carry(500_000)
            });
            table.row(format!("{what}: on the wire"), || {
                let wire = Wire::open(scene.cluster[to].netns(), "up0")?;
                let dial = Dial::new(Protocol::Udp, scene.server(to, v4)?);
                seen_as(&scene.pods[from], dial, own)?;
                let frames = wire.drain()?;
                let plain = frames.iter().filter(|frame| is_from(frame, own)).count();
                let inside = frames.iter().filter_map(|frame| encapsulated(frame));
                let inside = inside.filter(|packet| is_from(&packet.inner, own)).count();
                ensure!((plain > 0) == direct, "{plain} packets came as they are");
                ensure!((inside > 0) != direct, "{inside} packets came in VXLAN");
                Ok(())
            });
        }
    }
    table.judge(|| scene.cluster.evidence())
}

/// Who is no node gets nothing in by the same road.
#[test]
fn a_shared_segment_is_no_open_door() -> Result<()> {
    let scene = Scene::of(Cluster::builder("door").etcd(1), "--encapsulation cross-subnet")?;
    let machine = scene.cluster.bystander(0)?;
    let mut table = Table::default();
    for v4 in FAMILIES {
        let pool = if v4 { "10.70.0.0/16" } else { "fd00:70::/64" };
        machine.ip(&format!("route replace {pool} via {}", scene.cluster[0].ip_of(v4)))?;
        for protocol in PROTOCOLS {
            table.row(format!("{} to a container, {v4}", protocol.name()), || {
                unanswered(&machine, protocol, scene.server(0, v4)?)
            });
        }
    }
    table.judge(|| scene.cluster.evidence())
}
