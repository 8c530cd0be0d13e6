//! A network card that takes VXLAN packets whose inner checksums it is to fill in, and sends them as they are.
//!
//! That is what a packet socket sees of a packet before its checksum is filled in, so the card is a process: VXLAN that comes from the
//! node is lost at its port and sent on, byte by byte, by another one. What else the node sends passes as ever.

use super::packets::encapsulated;
use anyhow::{Context, Result};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};
use weft_tests::{TestNetns, Wire, cluster::underlay::{Place, Underlay, bridge}};

/// Until it is dropped or mended.
#[derive(Debug)]
pub(crate) struct BrokenCard {
    netns: TestNetns,
    ended: Arc<AtomicBool>,
    relay: Option<JoinHandle<Result<()>>>,
}

impl BrokenCard {
    /// In the place of the node's own.
    pub(crate) fn at(underlay: &Underlay, place: &Place) -> Result<Self> {
        let netns = underlay.netns().alias()?;
        netns.ip("link add card0 type veth peer name card1")?;
        netns.ip(&format!("link set card1 master {} up", bridge(place.segment)))?;
        netns.ip("link set card0 up addrgenmode none")?;
        // The node is where it was.
        netns.sh("bridge link set dev card1 learning off")?;
        let port = place.port();
        let (from, to) = (Wire::open(&netns, port)?, Wire::open(&netns, "card0")?);
        netns.sh(&format!(
            "nft 'table netdev card {{ chain lost {{ type filter hook ingress device \"{port}\" priority 10; udp dport 4789 drop; }}; }}'"
        ))?;
        let ended = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&ended);
        let relay = std::thread::spawn(move || {
            while !until.load(Ordering::Relaxed) {
                if let Some(frame) = from.receive()?.filter(|frame| encapsulated(frame).is_some()) {
                    to.send(&frame)?;
                }
            }
            Ok(())
        });
        Ok(Self { netns, ended, relay: Some(relay) })
    }

    /// Puts the old one back.
    pub(crate) fn mend(mut self) -> Result<()> {
        self.ended.store(true, Ordering::Relaxed);
        let relay = self.relay.take().context("a relay")?;
        relay.join().map_err(|_| anyhow::anyhow!("the relay panicked"))??;
        self.netns.sh("nft delete table netdev card")?;
        self.netns.ip("link del card0").map(drop)
    }
}

impl Drop for BrokenCard {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}
