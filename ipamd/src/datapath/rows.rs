//! Pure: what the maps should hold of an endpoint beside what they hold.

use super::{DnsMode, EndpointEntry, EndpointRef, ObservedEndpoint, ObservedOne, ObservedTarget, Outside};
use ipamd_api::Comparison;

/// A row for each map entry of the endpoint. A row whose two sides differ is a difference.
pub fn rows(entry: &EndpointEntry, held: &ObservedOne) -> Vec<Comparison> {
    let row = |subject: String, desired: String, observed: Option<String>| Comparison {
        source: "map".to_owned(),
        subject,
        desired,
        observed: observed.unwrap_or_else(|| "-".to_owned()),
    };
    let mut rows = vec![row(
        format!("ENDPOINTS[{}]", entry.host_ifindex),
        show_endpoint(&entry.into()),
        held.endpoint.as_ref().map(show_endpoint),
    )];
    let wanted = ObservedTarget {
        host_ifindex: entry.host_ifindex,
        mac: entry.mac,
        shaped_ingress: entry.shaping.ingress,
        routed: entry.outside == Outside::Routed,
    };
    for address in EndpointRef::from(entry).addresses {
        rows.push(row(
            format!("ADDRESSES[{}, {address}]", entry.network),
            show_target(&wanted),
            held.addresses.get(&address).map(show_target),
        ));
    }
    rows
}

fn show_endpoint(e: &ObservedEndpoint) -> String {
    let mut parts = vec![match e.id {
        Some(id) => id.to_string(),
        None => "no generation".to_owned(),
    }];
    parts.push(format!("network {}", e.network));
    parts.push(e.mac.to_string());
    parts.extend(e.ipv4.map(|(address, gateway)| format!("{address} by {gateway}")));
    parts.extend(e.ipv6.map(|(address, gateway)| format!("{address} by {gateway}")));
    parts.push(format!("bridge {}", e.gateway_mac));
    parts.extend(e.internal.then(|| "internal".to_owned()));
    parts.extend(e.shaped_egress.then(|| "egress shaped".to_owned()));
    parts.extend(match e.outside {
        Outside::Masquerade => Some("masquerade".to_owned()),
        Outside::Plain => None,
        Outside::Routed => Some("routed".to_owned()),
    });
    parts.extend(e.published.then(|| "published".to_owned()));
    parts.extend(e.overlay.then(|| "overlay".to_owned()));
    parts.extend(match e.dns {
        DnsMode::Off => None,
        DnsMode::Gateway => Some("names by gateway".to_owned()),
        DnsMode::Intercept => Some("names by all port 53".to_owned()),
    });
    parts.push(format!("bridge ifindex {}", e.bridge_ifindex));
    parts.join(", ")
}

fn show_target(t: &ObservedTarget) -> String {
    let shaped = if t.shaped_ingress { ", ingress shaped" } else { "" };
    let routed = if t.routed { ", routed" } else { "" };
    format!("ifindex {}, {}{shaped}{routed}", t.host_ifindex, t.mac)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::{Datapath, FakeDatapath, Shaping};
    use ipamd_api::{EndpointId, Hooks, MacAddr};

    #[test]
    fn rows_agree_after_attach_and_show_what_is_missing() {
        let entry = EndpointEntry {
            id: EndpointId::new(7).unwrap(),
            host_ifindex: 5,
            host_ifname: "wf000000000007".into(),
            hooks: Hooks::Clsact,
            network: 1,
            internal: true,
            ipv4: Some(("10.0.0.2".parse().unwrap(), "10.0.0.1".parse().unwrap())),
            ipv6: Some(("fd00::2".parse().unwrap(), "fd00::1".parse().unwrap())),
            mac: MacAddr([2, 0x57, 10, 0, 0, 2]),
            gateway_mac: MacAddr([2, 0x57, 10, 0, 0, 1]),
            shaping: Shaping { ingress: true, egress: true },
            bridge_ifindex: 3,
            overlay: false,
            outside: Outside::Routed,
            published: true,
            dns: DnsMode::Gateway,
        };
        let datapath = FakeDatapath::new();
        datapath.attach(&entry).unwrap();
        let held = datapath.observe_endpoint(&(&entry).into()).unwrap();
        let agreed = rows(&entry, &held);
        assert_eq!(agreed.len(), 3);
        assert!(agreed.iter().all(|r| r.desired == r.observed), "{agreed:?}");
        let lost = rows(&entry, &ObservedOne::default());
        assert!(lost.iter().all(|r| r.observed == "-" && r.desired != "-"), "{lost:?}");
    }
}
