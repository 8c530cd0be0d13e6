//! A flood of new flows, from outside and from a container: those that live, live on, and new ones still come through.

use super::scene::{PORT, Scene};
use anyhow::{Context, Result};
use ipamd_api::MacAddr;
use std::net::{Ipv4Addr, UdpSocket};
use weft_tests::{
    FAMILIES, Node, TestNetns, Wire,
    crowd::{Crowd, Hall},
};

/// New flows of the flood, from each side.
const FLOOD: u32 = 500_000;

/// Connections that live, of each kind and family.
const LIVING: usize = 500;

/// A datagram in a frame, whose addresses and ports are changed from one to the next.
struct Datagram {
    frame: [u8; 42],
}

impl Datagram {
    fn new(macs: [MacAddr; 2], to: (Ipv4Addr, u16)) -> Self {
        let mut frame = [0; 42];
        frame[..6].copy_from_slice(&macs[1].0);
        frame[6..12].copy_from_slice(&macs[0].0);
        frame[12..24].copy_from_slice(&[0x08, 0, 0x45, 0, 0, 28, 0, 1, 0, 0, 64, 17]);
        frame[30..34].copy_from_slice(&to.0.octets());
        frame[36..38].copy_from_slice(&to.1.to_be_bytes());
        // UDP without a checksum.
        frame[38..40].copy_from_slice(&8_u16.to_be_bytes());
        Self { frame }
    }

    fn between(&mut self, from: (Ipv4Addr, u16), to: Ipv4Addr) -> &[u8] {
        self.frame[26..30].copy_from_slice(&from.0.octets());
        self.frame[30..34].copy_from_slice(&to.octets());
        self.frame[34..36].copy_from_slice(&from.1.to_be_bytes());
        self.frame[24..26].fill(0);
        let words = self.frame[14..34].chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(w[1]));
        let sum: u32 = words.sum();
        let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
        self.frame[24..26].copy_from_slice(&sum.to_be_bytes());
        &self.frame
    }
}

fn mac(netns: &TestNetns, device: &str) -> Result<MacAddr> {
    let said = netns.ip(&format!("-o link show dev {device}"))?;
    let word = said.split("link/ether ").nth(1).and_then(|rest| rest.split(' ').next());
    Ok(word.with_context(|| format!("no MAC of {device}"))?.parse()?)
}

#[test]
fn a_million_new_flows_evict_none_of_two_thousand_that_live() -> Result<()> {
    let scene = Scene::new(Node::builder("flood"))?;
    let mut crowds: Vec<(&str, Crowd)> = Vec::new();
    for v4 in FAMILIES {
        let outside = scene.outside(v4);
        crowds.push(("outgoing", Hall::open(&scene.machine, outside)?.crowd(&scene.web, outside, LIVING)?));
        let hall = Hall::open(&scene.web, scene.inside(v4)?)?;
        crowds.push(("published", hall.crowd(&scene.machine, scene.published(v4), LIVING)?));
    }
    // Nobody reads there, and nobody says that nobody is there.
    let _inside = scene.web.run(|| UdpSocket::bind(("0.0.0.0", PORT)))??;
    let _outside = scene.machine.run(|| UdpSocket::bind(("0.0.0.0", 9)))??;
    scene.machine.ip("route add local 203.0.113.0/24 dev lo")?;

    let uplink = mac(scene.node.netns(), "up0")?;
    let wire = Wire::open(&scene.machine, "ext0")?;
    let published = Ipv4Addr::new(198, 18, 0, 1);
    let mut datagram = Datagram::new([mac(&scene.machine, "ext0")?, uplink], (published, 18_080));
    for n in 0..FLOOD {
        // 16 ports of many addresses.
        let from = (Ipv4Addr::from(0x0b00_0000 | n >> 4), 1000 + u16::try_from(n & 15)?);
        wire.send(datagram.between(from, published)).with_context(|| format!("datagram {n} from outside"))?;
    }
    let wire = Wire::open(&scene.web, "eth0")?;
    let own = scene.web.ipv4()?;
    let mut datagram = Datagram::new([scene.web.mac()?, scene.web.gateway_mac()?], (published, 9));
    for n in 0..FLOOD {
        // 50,000 ports to each of some addresses.
        let to = Ipv4Addr::from(u32::from(Ipv4Addr::new(203, 0, 113, 0)) + n / 50_000);
        let from = (own, 10_000 + u16::try_from(n % 50_000)?);
        wire.send(datagram.between(from, to)).with_context(|| format!("datagram {n} of the container"))?;
    }

    for (name, crowd) in &mut crowds {
        crowd.check().with_context(|| format!("{name} connections\n{}", scene.node.evidence()))?;
    }
    // And there is room for more.
    drop(crowds);
    for v4 in FAMILIES {
        let outside = scene.outside(v4);
        Hall::open(&scene.machine, outside)?.dial(&scene.web, outside, None)?.check(1)?;
        Hall::open(&scene.web, scene.inside(v4)?)?
            .dial(&scene.machine, scene.published(v4), None)?
            .check(1)?;
    }
    Ok(())
}
