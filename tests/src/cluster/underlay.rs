//! The underlay of a cluster: one namespace with a bridge for each segment, which it routes between.
//!
//! Owns its end of every link; a port goes with it or by [`Underlay::detach`]. Cuts are exact and silent, as a failing switch makes
//! them: nobody loses its carrier, and what is not cut goes on. A port that is off takes and gives no frame at all (a bridge port
//! in the state `disabled`); two places that are kept apart lose the packets from one to the other, and nothing else
//! (nftables at the ingress of their ports).

use crate::{
    FAMILIES, TestNetns,
    uplink::{cable, forward, set_sysctl},
};
use anyhow::{Context, Result, bail, ensure};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

/// Which families the underlay has addresses of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Underlying {
    /// Both.
    Both,
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
}

impl Underlying {
    /// Whether there are addresses of a family.
    pub fn has(self, v4: bool) -> bool {
        match self {
            Self::Both => true,
            Self::V4 => v4,
            Self::V6 => !v4,
        }
    }
}

/// A place on the underlay that a link leads to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Number of its segment.
    pub segment: u8,
    /// Number of the host on it.
    pub host: u8,
    number: u32,
    port: String,
}

impl Place {
    /// Its address, whether or not the underlay has this family.
    pub fn ip_of(&self, v4: bool) -> IpAddr {
        address(self.segment, self.host, v4)
    }

    /// Name of the underlay's end of its link: a port of the segment's bridge.
    pub fn port(&self) -> &str {
        &self.port
    }

    /// The address of its machine's network card. A machine that boots has the same one, which its neighbours go on using.
    fn mac(&self) -> String {
        let number = self.number.to_be_bytes();
        format!("02:c4:{:02x}:{:02x}:{:02x}:{:02x}", number[0], number[1], number[2], number[3])
    }
}

/// The address of a host on a segment: 198.19.`segment`.`host`/24 and 2001:db8:19:`segment`::`host`/64.
pub fn address(segment: u8, host: u8, v4: bool) -> IpAddr {
    match v4 {
        true => Ipv4Addr::new(198, 19, segment, host).into(),
        false => Ipv6Addr::new(0x2001, 0xdb8, 0x19, segment.into(), 0, 0, 0, host.into()).into(),
    }
}

/// Host number of the router, which is the underlay itself, on every segment.
const ROUTER: u8 = 1;

/// Largest MTU of a veth pair.
const WIDEST: u32 = 65_535;

/// What is cut now.
#[derive(Debug, Default)]
struct Cuts {
    off: BTreeSet<Place>,
    apart: BTreeSet<(Place, Place)>,
}

/// The underlay.
#[derive(Debug)]
pub struct Underlay {
    netns: TestNetns,
    families: Underlying,
    segments: u8,
    next: AtomicU32,
    cuts: Mutex<Cuts>,
}

impl Underlay {
    /// Makes one with so many segments.
    ///
    /// # Errors
    /// Not root, or the kernel refuses.
    pub fn new(segments: u8, families: Underlying) -> Result<Self> {
        let netns = TestNetns::named("underlay")?;
        forward(&netns)?;
        for segment in 0..segments {
            let bridge = bridge(segment);
            netns.ip(&format!("link add {bridge} type bridge"))?;
            set_sysctl(&netns, &format!("ipv6/conf/{bridge}/accept_dad"), "0")?;
            netns.ip(&format!("link set {bridge} up"))?;
            for v4 in FAMILIES.into_iter().filter(|v4| families.has(*v4)) {
                netns.ip(&format!("addr add {} dev {bridge}", with_prefix(segment, ROUTER, v4)))?;
            }
        }
        Ok(Self { netns, families, segments, next: AtomicU32::new(0), cuts: Mutex::default() })
    }

    /// Its namespace: the router between the segments.
    pub fn netns(&self) -> &TestNetns {
        &self.netns
    }

    /// The families it has.
    pub fn families(&self) -> Underlying {
        self.families
    }

    /// Joins a namespace by a link `ifname` with this MTU, as this host of a segment. Its default routes lead to the router.
    ///
    /// # Errors
    /// There is no such segment, or the kernel refuses.
    pub fn attach(&self, netns: &TestNetns, ifname: &str, segment: u8, host: u8, mtu: u32) -> Result<Place> {
        ensure!(
            segment < self.segments,
            "the underlay has {} segments and no number {segment}",
            self.segments
        );
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let place = Place { segment, host, number, port: format!("p{number}") };
        self.wire(netns, ifname, &place, mtu)?;
        Ok(place)
    }

    fn wire(&self, netns: &TestNetns, ifname: &str, place: &Place, mtu: u32) -> Result<()> {
        let port = &place.port;
        cable(&self.netns, port, netns, ifname)?;
        // The link-local address is made from it when the link goes up.
        netns.ip(&format!("link set {ifname} down"))?;
        netns.ip(&format!("link set {ifname} address {} up", place.mac()))?;
        self.netns.ip(&format!("link set {port} mtu {mtu}"))?;
        netns.ip(&format!("link set {ifname} mtu {mtu}"))?;
        for v4 in FAMILIES.into_iter().filter(|v4| self.families.has(*v4)) {
            netns
                .ip(&format!("addr add {} dev {ifname} nodad", with_prefix(place.segment, place.host, v4)))?;
        }
        self.netns.ip(&format!("link set {port} master {}", bridge(place.segment)))?;
        for v4 in FAMILIES.into_iter().filter(|v4| self.families.has(*v4)) {
            netns.ip(&format!("route replace default via {}", address(place.segment, ROUTER, v4)))?;
        }
        Ok(())
    }

    /// Takes the link of a place away, both ends of it.
    ///
    /// # Errors
    /// It has none.
    pub fn detach(&self, place: &Place) -> Result<()> {
        self.netns.ip(&format!("link del {}", place.port)).map(drop)
    }

    /// Joins a namespace at a place that was there before, as a machine that boots. What was cut there still is.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn attach_again(&self, netns: &TestNetns, ifname: &str, place: &Place, mtu: u32) -> Result<()> {
        self.wire(netns, ifname, place, mtu)?;
        let cuts = self.cuts.lock().unwrap_or_else(PoisonError::into_inner);
        if cuts.off.contains(place) {
            self.switch(place, false)?;
        }
        // Rules are bound to the device that is gone.
        self.apply(&cuts)
    }

    /// Sets the MTU of the underlay's end only: what is larger is lost on its way there without a word.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn narrow(&self, place: &Place, mtu: u32) -> Result<()> {
        ensure!(mtu <= WIDEST, "{mtu} is wider than any link");
        self.netns.ip(&format!("link set {} mtu {mtu}", place.port)).map(drop)
    }

    /// Cuts a place off from everything.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn cut(&self, place: &Place) -> Result<()> {
        self.cuts.lock().unwrap_or_else(PoisonError::into_inner).off.insert(place.clone());
        self.switch(place, false)
    }

    /// Undoes [`Self::cut`].
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn heal(&self, place: &Place) -> Result<()> {
        self.cuts.lock().unwrap_or_else(PoisonError::into_inner).off.remove(place);
        self.switch(place, true)
    }

    /// Keeps two places apart; each still reaches everybody else.
    ///
    /// # Errors
    /// nftables refuses.
    pub fn part(&self, one: &Place, other: &Place) -> Result<()> {
        let mut cuts = self.cuts.lock().unwrap_or_else(PoisonError::into_inner);
        cuts.apart.insert((one.clone(), other.clone()));
        cuts.apart.insert((other.clone(), one.clone()));
        self.apply(&cuts)
    }

    /// Undoes [`Self::part`].
    ///
    /// # Errors
    /// nftables refuses.
    pub fn join(&self, one: &Place, other: &Place) -> Result<()> {
        let mut cuts = self.cuts.lock().unwrap_or_else(PoisonError::into_inner);
        cuts.apart.remove(&(one.clone(), other.clone()));
        cuts.apart.remove(&(other.clone(), one.clone()));
        self.apply(&cuts)
    }

    /// Undoes every cut.
    ///
    /// # Errors
    /// The kernel or nftables refuses.
    pub fn heal_all(&self) -> Result<()> {
        let mut cuts = self.cuts.lock().unwrap_or_else(PoisonError::into_inner);
        cuts.apart.clear();
        for place in std::mem::take(&mut cuts.off) {
            self.switch(&place, true)?;
        }
        self.apply(&cuts)
    }

    fn switch(&self, place: &Place, on: bool) -> Result<()> {
        // States of a bridge port (linux/if_bridge.h): disabled and forwarding.
        let state = if on { 3 } else { 0 };
        self.netns.sh(&format!("bridge link set dev {} state {state}", place.port)).map(drop)
    }

    fn apply(&self, cuts: &Cuts) -> Result<()> {
        let rules = ruleset(&cuts.apart);
        let output = self.netns.command("nft").arg(&rules).output().context("running nft")?;
        if !output.status.success() {
            bail!("nft refuses\n{rules}\n{}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }
}

/// Name of the bridge that is a segment, in the underlay's namespace.
pub fn bridge(segment: u8) -> String {
    format!("br{segment}")
}

fn with_prefix(segment: u8, host: u8, v4: bool) -> String {
    format!("{}/{}", address(segment, host, v4), if v4 { 24 } else { 64 })
}

/// The rules, in place of all before them: at the port of each place, packets to those that it is kept apart from are dropped.
fn ruleset(apart: &BTreeSet<(Place, Place)>) -> String {
    let mut by_port: BTreeMap<&str, Vec<&Place>> = BTreeMap::new();
    for (from, to) in apart {
        by_port.entry(&from.port).or_default().push(to);
    }
    let mut rules = "table netdev cuts\ndelete table netdev cuts\ntable netdev cuts {\n".to_owned();
    for (port, places) in by_port {
        // Writing to a String cannot fail.
        let _ = writeln!(
            rules,
            "chain {port} {{\ntype filter hook ingress device \"{port}\" priority 0; policy accept;"
        );
        for place in places {
            let _ =
                writeln!(rules, "ip daddr {} drop\nip6 daddr {} drop", place.ip_of(true), place.ip_of(false));
        }
        rules.push_str("}\n");
    }
    rules.push_str("}\n");
    rules
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Result;

    fn places(underlay: &Underlay, hosts: &[(u8, u8)]) -> Result<Vec<(TestNetns, Place)>> {
        let place = |(segment, host): &(u8, u8)| {
            let netns = TestNetns::named("place")?;
            let place = underlay.attach(&netns, "up0", *segment, *host, 1500)?;
            Ok((netns, place))
        };
        hosts.iter().map(place).collect()
    }

    fn reaches(from: &(TestNetns, Place), to: &(TestNetns, Place)) -> Result<bool> {
        let ping = |v4| from.0.sh(&format!("ping -n -c 1 -W 1 {}", to.1.ip_of(v4))).is_ok();
        let [v4, v6] = FAMILIES.map(ping);
        ensure!(v4 == v6, "IPv4 {v4}, IPv6 {v6}");
        Ok(v4)
    }

    #[test]
    fn what_is_cut_is_cut_and_nothing_else() -> Result<()> {
        let underlay = Underlay::new(2, Underlying::Both)?;
        let hosts = places(&underlay, &[(0, 11), (0, 12), (1, 13)])?;
        let all = || -> Result<Vec<bool>> {
            [(0, 1), (0, 2), (1, 2)].iter().map(|(a, b)| reaches(&hosts[*a], &hosts[*b])).collect()
        };
        assert_eq!(all()?, [true, true, true]);
        underlay.cut(&hosts[0].1)?;
        assert_eq!(all()?, [false, false, true]);
        let link = hosts[0].0.ip("link show up0")?;
        assert!(link.contains("LOWER_UP"), "the carrier is gone: {link}");
        underlay.heal(&hosts[0].1)?;
        assert_eq!(all()?, [true, true, true]);
        underlay.part(&hosts[0].1, &hosts[1].1)?;
        underlay.part(&hosts[0].1, &hosts[2].1)?;
        assert_eq!(all()?, [false, false, true]);
        underlay.join(&hosts[0].1, &hosts[1].1)?;
        assert_eq!(all()?, [true, false, true]);
        underlay.cut(&hosts[1].1)?;
        underlay.heal_all()?;
        assert_eq!(all()?, [true, true, true]);
        Ok(())
    }

    #[test]
    fn a_machine_that_boots_again_is_still_cut_off() -> Result<()> {
        let underlay = Underlay::new(1, Underlying::Both)?;
        let mut hosts = places(&underlay, &[(0, 11), (0, 12)])?;
        let card = |netns: &TestNetns| -> Result<Option<String>> {
            Ok(netns.ip("-brief link show up0")?.split_whitespace().nth(2).map(str::to_owned))
        };
        let card_before = card(&hosts[0].0)?;
        underlay.part(&hosts[0].1, &hosts[1].1)?;
        let (netns, place) = &mut hosts[0];
        underlay.detach(place)?;
        netns.replace()?;
        underlay.attach_again(netns, "up0", place, 1500)?;
        assert!(card_before.is_some());
        assert_eq!(card(netns)?, card_before, "it is the same machine");
        assert!(!reaches(&hosts[0], &hosts[1])?);
        underlay.heal_all()?;
        assert!(reaches(&hosts[0], &hosts[1])?);
        Ok(())
    }
}
