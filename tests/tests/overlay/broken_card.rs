//! A network card that takes VXLAN packets whose inner checksums it is to fill in, and sends them as they are.
//!
//! That is what a packet socket sees of a packet before its checksum is filled in, so the card is a process: VXLAN that comes from the
//! node is lost at its port and sent on by another one. Outer checksums, which IPv6 has, are filled in as on any card. What else the
//! node sends passes as ever.

use super::packets::{checksum, encapsulated};
use anyhow::{Context, Result, ensure};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};
use weft_tests::{
    TestNetns, Wire,
    cluster::underlay::{Place, Underlay, bridge},
};

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
        nft(
            &netns,
            &format!(
                "table netdev card {{ chain lost {{ type filter hook ingress device \"{port}\" priority 10; udp dport 4789 drop; }}; }}"
            ),
        )?;
        let ended = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&ended);
        let relay = std::thread::spawn(move || {
            while !until.load(Ordering::Relaxed) {
                if let Some(mut frame) = from.receive()?.filter(|frame| encapsulated(frame).is_some()) {
                    fill_in(&mut frame)?;
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
        nft(&self.netns, "delete table netdev card")?;
        self.netns.ip("link del card0").map(drop)
    }
}

/// Fills in the outer checksum of a datagram of UDP over IPv6 (RFC 8200, section 8.1); over IPv4 VXLAN has none.
fn fill_in(frame: &mut [u8]) -> Result<()> {
    const IP: usize = 14;
    const UDP: usize = IP + 40;
    if frame[12..IP] != [0x86, 0xdd] {
        return Ok(());
    }
    frame[UDP + 6..UDP + 8].fill(0);
    let mut summed = frame[IP + 8..].to_vec();
    summed.extend(u32::try_from(frame.len() - UDP)?.to_be_bytes());
    summed.extend([0, 0, 0, 17]);
    // Of whatever length, as if a zero followed; the order of words means nothing.
    if frame.len() % 2 == 1 {
        summed.insert(frame.len() - IP - 8, 0);
    }
    let sum = checksum(&summed);
    frame[UDP + 6..UDP + 8].copy_from_slice(&sum.to_be_bytes());
    Ok(())
}

/// Rules of nftables in a namespace.
pub(crate) fn nft(netns: &TestNetns, rules: &str) -> Result<()> {
    let output = netns.command("nft").arg(rules).output().context("running nft")?;
    ensure!(output.status.success(), "nft refuses {rules}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

impl Drop for BrokenCard {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}
