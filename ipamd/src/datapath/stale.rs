//! Published ports whose flows still lead to an endpoint that lives, though it has given the ports back: such flows must be swept
//! before the ports are published again.
//!
//! Finding them means reading the whole table of flows, so the regular sweep does it; only who publishes such a port before the next one
//! has to wait. Flows of an endpoint that is gone are nothing to wait for, however many flows there are: the programs deliver to
//! the generation that a flow belongs to or not at all, and let its client begin anew. After a start nothing is known, so the
//! first to publish waits once.

use super::PublishEntry;
use ipamd_api::EndpointId;
use std::collections::HashMap;

/// Protocol, first and last port.
type Ports = (u8, u16, u16);

/// What was given back since the last sweep, with a number that grows.
#[derive(Debug)]
pub(super) struct Stale {
    /// Whether nothing has been swept since the start.
    unswept: bool,
    now: u64,
    ports: HashMap<(Ports, EndpointId), u64>,
}

impl Stale {
    /// `unswept`: flows of an earlier ipamd may be there.
    pub(super) fn new(unswept: bool) -> Self {
        Self { unswept, now: 0, ports: HashMap::new() }
    }

    /// An endpoint is gone.
    pub(super) fn left(&mut self, endpoint: EndpointId) {
        self.ports.retain(|(_, by), _| *by != endpoint);
    }

    /// A mapping is gone.
    pub(super) fn unpublished(&mut self, entry: &PublishEntry) {
        self.now += 1;
        self.ports.insert((ports(entry), entry.endpoint), self.now);
    }

    /// Whether flows of an earlier mapping may come by a port of a new one.
    pub(super) fn concerns(&self, entry: &PublishEntry) -> bool {
        let (protocol, first, last) = ports(entry);
        self.unswept || self.ports.keys().any(|&((p, f, l), _)| p == protocol && f <= last && first <= l)
    }

    /// What to tell [`Self::swept`] after a sweep that begins now.
    pub(super) fn mark(&self) -> u64 {
        self.now
    }

    /// A sweep has seen the whole table since the mark was taken.
    pub(super) fn swept(&mut self, mark: u64) {
        self.unswept = false;
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
    use ipamd_api::{PortMapping, Protocol};

    fn id(number: u64) -> EndpointId {
        EndpointId::new(number).unwrap()
    }

    fn entry(endpoint: u64, first: u16, count: u16, protocol: Protocol) -> PublishEntry {
        PublishEntry {
            endpoint: id(endpoint),
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
        let mut stale = Stale::new(false);
        let udp = |first, count| entry(2, first, count, Protocol::Udp);
        assert!(!stale.concerns(&udp(8009, 1)));
        stale.unpublished(&entry(1, 8000, 10, Protocol::Udp));
        assert!(stale.concerns(&udp(8009, 1)) && stale.concerns(&udp(7990, 11)));
        assert!(!stale.concerns(&udp(8010, 1)));
        assert!(!stale.concerns(&entry(2, 8009, 1, Protocol::Tcp)));
        let mark = stale.mark();
        // Given back again while the sweep was on its way: it may have looked before.
        stale.unpublished(&entry(1, 8000, 1, Protocol::Udp));
        stale.swept(mark);
        assert!(stale.concerns(&udp(8000, 1)) && !stale.concerns(&udp(8009, 1)));
        stale.swept(stale.mark());
        assert!(!stale.concerns(&udp(8000, 1)));
    }

    #[test]
    fn flows_of_who_is_gone_concern_nobody() {
        let mut stale = Stale::new(false);
        for endpoint in [1, 2] {
            stale.unpublished(&entry(endpoint, 8000, 1, Protocol::Udp));
        }
        stale.left(id(2));
        // It may lead to another port of the same endpoint.
        assert!(stale.concerns(&entry(1, 8000, 1, Protocol::Udp)));
        stale.left(id(1));
        assert!(!stale.concerns(&entry(3, 8000, 1, Protocol::Udp)));
    }

    #[test]
    fn after_a_start_everybody_waits_for_the_first_sweep() {
        let mut stale = Stale::new(true);
        assert!(stale.concerns(&entry(1, 1, 1, Protocol::Tcp)));
        stale.swept(0);
        assert!(!stale.concerns(&entry(1, 1, 1, Protocol::Tcp)));
    }
}
