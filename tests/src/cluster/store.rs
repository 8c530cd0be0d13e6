//! Where the nodes of a cluster keep their state: an etcd on the underlay, as operators have it, or each for itself.
//!
//! Owns the members' namespaces and places, and the relays before them. A member is a host of the first segment like any other: it
//! is cut off and kept apart as nodes are.

use super::{
    Cluster,
    relay::Relay,
    underlay::{Place, Underlay},
};
use crate::{TestNetns, etcd};
use anyhow::{Context, Result};
use etcd::Etcd;
use std::{net::SocketAddr, time::Duration};

/// Host numbers of members begin here.
const MEMBERS: u8 = 2;

/// Port at which relays listen, beside the members' own.
const FAR_PORT: u16 = 12_379;

/// Port of members for their clients.
const PORT: u16 = 2379;

/// MTU of members.
const MTU: u32 = 1500;

/// One member's host.
#[derive(Debug)]
struct Host {
    // Kept for its path; the member has a handle of its own.
    netns: TestNetns,
    place: Place,
}

/// The etcd of a cluster, if it has one.
#[derive(Debug)]
pub(super) struct Store {
    // In the order in which they have to go.
    relays: Vec<Relay>,
    etcd: Option<Etcd>,
    hosts: Vec<Host>,
    v4: bool,
}

impl Store {
    /// Starts so many `members` of what `etcd` is to be, beyond relays if that is to be `far`.
    pub(super) fn start(
        underlay: &Underlay,
        mut etcd: etcd::EtcdBuilder,
        members: u8,
        far: bool,
    ) -> Result<Self> {
        let v4 = underlay.families().has(true);
        let mut made = Self { relays: Vec::new(), etcd: None, hosts: Vec::new(), v4 };
        if members == 0 {
            return Ok(made);
        }
        for number in 0..members {
            let netns = TestNetns::named(&format!("etcd{number}"))?;
            let place = underlay.attach(&netns, "eth0", 0, MEMBERS + number, MTU)?;
            etcd = etcd.member(etcd::Place::inside(&netns, place.ip_of(v4))?);
            if far {
                let at = |port| SocketAddr::new(place.ip_of(v4), port);
                made.relays.push(Relay::start(&netns, at(FAR_PORT), at(PORT))?);
            }
            made.hosts.push(Host { netns, place });
        }
        made.etcd = Some(etcd.start()?);
        Ok(made)
    }

    /// Lines for `ipamd.toml`; none without etcd.
    pub(super) fn settings(&self) -> Option<String> {
        let settings = self.etcd.as_ref()?.settings();
        let (near, far) = (format!(":{PORT}\""), format!(":{FAR_PORT}\""));
        Some(if self.relays.is_empty() { settings } else { settings.replace(&near, &far) })
    }
}

impl Cluster {
    /// The etcd.
    ///
    /// # Errors
    /// The cluster was made without one.
    pub fn etcd(&mut self) -> Result<&mut Etcd> {
        self.store.etcd.as_mut().context("this cluster has no etcd")
    }

    /// Where a member of etcd answers its clients.
    pub fn etcd_address(&self, member: usize) -> SocketAddr {
        SocketAddr::new(self.store.hosts[member].place.ip_of(self.store.v4), PORT)
    }

    /// Where a member of etcd is on the underlay.
    pub fn etcd_place(&self, member: usize) -> &Place {
        &self.store.hosts[member].place
    }

    /// The namespace of a member of etcd.
    pub fn etcd_netns(&self, member: usize) -> &TestNetns {
        &self.store.hosts[member].netns
    }

    /// Keeps a node apart from every member of etcd, and from nobody else.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn part_from_etcd(&self, node: usize) -> Result<()> {
        let own = self[node].place();
        self.store.hosts.iter().try_for_each(|host| self.underlay().part(own, &host.place))
    }

    /// Undoes [`Self::part_from_etcd`].
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn join_etcd(&self, node: usize) -> Result<()> {
        let own = self[node].place();
        self.store.hosts.iter().try_for_each(|host| self.underlay().join(own, &host.place))
    }

    /// From now on an answer of etcd takes so much longer. Only of clusters with a far etcd.
    pub fn set_etcd_round_trip(&self, time: Duration) {
        self.store.relays.iter().for_each(|relay| relay.set_round_trip(time));
    }
}
