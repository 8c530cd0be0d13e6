//! Whose flows may still be in the tables: a list of addresses and ports that must be swept before somebody else gets them.
//!
//! Removing the flows of an endpoint means reading the whole table, so it is not done for each DEL but by the regular sweep; only
//! who comes before the next one has to wait for it. After a start nothing is known, so the first newcomer waits once.

use super::PublishEntry;
use std::{collections::HashMap, net::IpAddr};

/// Protocol, first and last port.
type Ports = (u8, u16, u16);

/// What was given back since the last sweep, with a number that grows.
#[derive(Debug)]
pub(super) struct Stale {
    /// Whether nothing has been swept since the start.
    unswept: bool,
    now: u64,
    addresses: HashMap<IpAddr, u64>,
    ports: HashMap<Ports, u64>,
}

impl Stale {
    /// `unswept`: flows of an earlier ipamd may be there.
    pub(super) fn new(unswept: bool) -> Self {
        Self { unswept, now: 0, addresses: HashMap::new(), ports: HashMap::new() }
    }

    /// An endpoint with these addresses is gone.
    pub(super) fn left(&mut self, addresses: &[IpAddr]) {
        self.now += 1;
        self.addresses.extend(addresses.iter().map(|a| (*a, self.now)));
    }

    /// A mapping is gone.
    pub(super) fn unpublished(&mut self, entry: &PublishEntry) {
        self.now += 1;
        self.ports.insert(ports(entry), self.now);
    }

    /// Whether somebody new with these addresses could inherit a flow.
    pub(super) fn concerns_addresses(&self, addresses: &[IpAddr]) -> bool {
        self.unswept || addresses.iter().any(|a| self.addresses.contains_key(a))
    }

    /// Whether a new mapping could inherit a flow.
    pub(super) fn concerns_ports(&self, entry: &PublishEntry) -> bool {
        let (protocol, first, last) = ports(entry);
        self.unswept || self.ports.keys().any(|&(p, f, l)| p == protocol && f <= last && first <= l)
    }

    /// What to tell [`Self::swept`] after a sweep that begins now.
    pub(super) fn mark(&self) -> u64 {
        self.now
    }

    /// A sweep has seen the whole table since the mark was taken.
    pub(super) fn swept(&mut self, mark: u64) {
        self.unswept = false;
        self.addresses.retain(|_, since| *since > mark);
        self.ports.retain(|_, since| *since > mark);
    }
}

fn ports(entry: &PublishEntry) -> Ports {
    let mapping = &entry.mapping;
    let last = mapping.host_port.saturating_add(mapping.count.saturating_sub(1));
    (mapping.protocol.number(), mapping.host_port, last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipamd_api::{EndpointId, PortMapping, Protocol};

    fn entry(first: u16, count: u16, protocol: Protocol) -> PublishEntry {
        PublishEntry {
            endpoint: EndpointId::new(1).unwrap(),
            network: 1,
            ipv4: None,
            ipv6: None,
            mapping: PortMapping {
                host_port: first,
                container_port: 80,
                count,
                protocol,
                host_ip: None,
                allow_from: Vec::new(),
            },
        }
    }

    #[test]
    fn what_was_given_back_concerns_who_gets_it_until_it_is_swept() {
        let address: IpAddr = "10.0.0.2".parse().unwrap();
        let mut stale = Stale::new(false);
        assert!(!stale.concerns_addresses(&[address]));
        stale.left(&[address]);
        stale.unpublished(&entry(8000, 10, Protocol::Udp));
        assert!(stale.concerns_addresses(&["fd00::1".parse().unwrap(), address]));
        assert!(!stale.concerns_addresses(&["10.0.0.3".parse().unwrap()]));
        assert!(stale.concerns_ports(&entry(8009, 1, Protocol::Udp)));
        assert!(stale.concerns_ports(&entry(7990, 11, Protocol::Udp)));
        assert!(!stale.concerns_ports(&entry(8010, 1, Protocol::Udp)));
        assert!(!stale.concerns_ports(&entry(8009, 1, Protocol::Tcp)));
        let mark = stale.mark();
        // Given, and given back again, while the sweep was on its way: it may have looked before.
        stale.left(&[address]);
        stale.swept(mark);
        assert!(stale.concerns_addresses(&[address]));
        assert!(!stale.concerns_ports(&entry(8009, 1, Protocol::Udp)));
        stale.swept(stale.mark());
        assert!(!stale.concerns_addresses(&[address]));
    }

    #[test]
    fn after_a_start_everybody_waits_for_the_first_sweep() {
        let mut stale = Stale::new(true);
        assert!(stale.concerns_addresses(&[]) && stale.concerns_ports(&entry(1, 1, Protocol::Tcp)));
        stale.swept(0);
        assert!(!stale.concerns_addresses(&[]));
    }
}
