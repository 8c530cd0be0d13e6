//! Manual damage: each kind is found, named, and mended by the very command that is suggested.

use crate::edge::{Edge, endpoint, network};
use anyhow::Result;
use ipamd::kernel::{EndpointWiring, Kernel};
use ipamd::reconcile::{comparisons, endpoint_differences};
use ipamd_api::Difference;
use std::time::Duration;
use weft_tests::{Sandbox, poll_until};

struct Wired {
    edge: Edge,
    sandbox: Sandbox,
    wanted: EndpointWiring,
}

impl Wired {
    fn new() -> Result<Self> {
        let edge = Edge::new()?;
        edge.network(&network(1)?)?;
        let sandbox = Sandbox::new()?;
        let wanted = endpoint(1, 2, "eth0")?;
        edge.attach(&wanted, &sandbox)?;
        Ok(Self { edge, sandbox, wanted })
    }

    fn differences(&self) -> Result<Vec<Difference>> {
        let observed = self.edge.call(|k| k.observe(&self.wanted, self.sandbox.identity()))?;
        let rows = comparisons(&self.wanted, self.sandbox.path(), &observed);
        let found = endpoint_differences(&self.wanted, self.sandbox.path(), &observed);
        let differs = rows.iter().any(|r| r.desired != r.observed);
        assert_eq!(differs, !found.is_empty(), "rows and differences agree: {rows:?} {found:?}");
        Ok(found)
    }

    /// Does what the remedy says: a command of the shell, or the host side re-applied.
    fn mend(&self, remedy: &str) -> Result<()> {
        if remedy == "netctl gc" {
            return Ok(self.edge.call(|k| k.repair_host_side(&self.wanted))?);
        }
        let output = self.edge.host.command("sh").args(["-c", remedy]).output()?;
        anyhow::ensure!(output.status.success(), "{remedy}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }
}

#[test]
fn nothing_differs_after_an_add() -> Result<()> {
    assert_eq!(Wired::new()?.differences()?, []);
    Ok(())
}

#[test]
fn every_damage_is_found_and_its_remedy_mends_it() -> Result<()> {
    let wired = Wired::new()?;
    let (host, mac) = (&wired.wanted.host_ifname, wired.wanted.mac);
    let outside = [
        (format!("ip link set {host} down"), format!("state of {host}")),
        (format!("ip link set {host} nomaster"), format!("bridge of {host}")),
        (format!("ip link set {host} mtu 1300"), format!("MTU of {host}")),
        (format!("bridge fdb del {mac} dev {host} master"), format!("forwarding entry of {mac}")),
        ("ip neigh del 10.1.0.2 dev wf-1".into(), "neighbour 10.1.0.2 on wf-1".into()),
        (
            "ip neigh replace fd00:1::2 dev wf-1 lladdr 02:00:00:00:00:09 nud permanent".into(),
            "neighbour fd00:1::2 on wf-1".into(),
        ),
    ];
    let inside = [
        ("ip addr del 10.1.0.2/24 dev eth0", "address 10.1.0.2/24 on eth0"),
        ("ip addr del fd00:1::2/64 dev eth0", "address fd00:1::2/64 on eth0"),
        ("ip route del default", "route default via 10.1.0.1 over eth0"),
        ("ip -6 route del default", "route default via fd00:1::1 over eth0"),
        ("ip route replace default via 10.1.0.7 dev eth0", "route default via 10.1.0.1 over eth0"),
        ("ip link set eth0 down", "state of eth0"),
        ("ip link set eth0 mtu 1300", "MTU of eth0"),
        ("ip link set eth0 address 02:00:00:00:00:09", "MAC of eth0"),
    ];
    let inside = inside.map(|(damage, subject)| (damage.to_owned(), subject.to_owned()));
    let all =
        outside.iter().map(|c| (c, &wired.edge.host)).chain(inside.iter().map(|c| (c, &*wired.sandbox)));
    for ((damage, subject), netns) in all {
        netns.sh(damage)?;
        let found = wired.differences()?;
        assert!(found.iter().any(|d| d.subject == *subject), "{damage}: {found:?}");
        for difference in found {
            wired.mend(&difference.remedy)?;
        }
        assert_eq!(wired.differences()?, [], "after {damage} and its remedies");
        for address in ["10.1.0.1", "fd00:1::1"] {
            // A new IPv6 address is there at once, but the kernel's work queue makes its local route: a first answer may be lost.
            poll_until(Duration::from_secs(20), &format!("{address} after {damage}"), || {
                wired.sandbox.ping(address).unwrap_or(false)
            })?;
        }
    }
    Ok(())
}

#[test]
fn a_removed_link_is_missed_on_both_sides() -> Result<()> {
    let wired = Wired::new()?;
    wired.sandbox.ip("link del eth0")?;
    let found = wired.differences()?;
    let subjects: Vec<_> = found.iter().map(|d| d.subject.as_str()).collect();
    let host = format!("host link {}", wired.wanted.host_ifname);
    assert_eq!(subjects, [host.as_str(), "interface eth0 in the sandbox"]);
    assert!(wired.edge.call(|k| k.repair_host_side(&wired.wanted)).is_err(), "there is nothing to repair");
    Ok(())
}

#[test]
fn repairing_sets_the_flags_of_the_port_again() -> Result<()> {
    let wired = Wired::new()?;
    let host = &wired.wanted.host_ifname;
    let port = || crate::edge::json(&wired.edge.host, &format!("link show {host}"));
    let flags = port()?[0]["linkinfo"]["info_slave_data"].clone();
    wired.edge.host.sh(&format!("bridge link set dev {host} learning on flood on mcast_flood off"))?;
    wired.edge.call(|k| k.repair_host_side(&wired.wanted))?;
    for flag in ["learning", "flood", "mcast_flood", "bcast_flood", "hairpin"] {
        assert_eq!(port()?[0]["linkinfo"]["info_slave_data"][flag], flags[flag], "{flag}");
    }
    Ok(())
}
