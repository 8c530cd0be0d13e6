//! `prevResult`: what an earlier ADD answered, in the form of any version served.
//!
//! Elements are kept as they came, so that keys Weft does not know (`socketPath`, `pciID`, a route's `table`) pass
//! through; what Weft reads of them is checked once, here.

use crate::{
    error,
    netconf::{JsonFields, dns},
};
use ipamd_api::{ApiError, Dns, EndpointId};
use ipnetwork::IpNetwork;
use serde_json::{Map, Value};

/// A result as it came.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct PrevResult {
    pub(crate) interfaces: Vec<Map<String, Value>>,
    pub(crate) ips: Vec<Map<String, Value>>,
    pub(crate) routes: Vec<Map<String, Value>>,
    pub(crate) dns: Dns,
}

impl PrevResult {
    /// Reads `prevResult`.
    pub(crate) fn read(fields: &JsonFields<'_>) -> Result<Self, ApiError> {
        for interface in fields.objects("interfaces")? {
            let [_, _] = [interface.text("name")?, interface.text("sandbox")?];
        }
        let count = fields.list("interfaces")?.len();
        for ip in fields.objects("ips")? {
            if ip.parsed::<IpNetwork>("address")?.is_none() {
                return Err(error::invalid("netconf: \"prevResult.ips\" has an element without \"address\""));
            }
            if let Some(index) = ip.number::<u32>("interface")?.filter(|index| *index as usize >= count) {
                return Err(error::invalid(format!(
                    "netconf: \"prevResult.ips\" names interface {index}, but \"prevResult.interfaces\" has {count}"
                )));
            }
        }
        let maps =
            |key| fields.list(key)?.iter().map(|item| item.map().cloned()).collect::<Result<Vec<_>, _>>();
        Ok(Self {
            interfaces: maps("interfaces")?,
            ips: maps("ips")?,
            routes: maps("routes")?,
            dns: dns(fields)?,
        })
    }

    /// The generation that the host-side veth's name tells; `None` if there is none, or more than one to choose from.
    pub(crate) fn generation(&self) -> Option<EndpointId> {
        let mut found = self
            .interfaces
            .iter()
            .filter(|interface| text(interface, "sandbox").is_none_or(str::is_empty))
            .filter_map(|interface| EndpointId::of_host_ifname(text(interface, "name")?));
        found.next().filter(|_| found.next().is_none())
    }

    /// Whether it has an interface of this name inside a sandbox.
    pub(crate) fn has_in_sandbox(&self, ifname: &str) -> bool {
        self.interfaces.iter().any(|interface| is_in_sandbox(interface, ifname))
    }

    /// The addresses on the interface of this name inside a sandbox.
    pub(crate) fn addresses_of(&self, ifname: &str) -> Vec<IpNetwork> {
        let on_it = |ip: &&Map<String, Value>| {
            let index = ip.get("interface").and_then(Value::as_u64).and_then(|i| usize::try_from(i).ok());
            index
                .and_then(|i| self.interfaces.get(i))
                .is_some_and(|interface| is_in_sandbox(interface, ifname))
        };
        self.ips.iter().filter(on_it).filter_map(|ip| text(ip, "address")?.trim().parse().ok()).collect()
    }
}

fn is_in_sandbox(interface: &Map<String, Value>, ifname: &str) -> bool {
    text(interface, "name") == Some(ifname) && text(interface, "sandbox").is_some_and(|s| !s.is_empty())
}

fn text<'a>(map: &'a Map<String, Value>, key: &str) -> Option<&'a str> {
    map.get(key)?.as_str()
}
