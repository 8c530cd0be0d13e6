//! ICMP errors on their way to a container: they arrive, and what they quote is the container's own packet.

use super::scene::{Scene, gateway};
use anyhow::{Context, Result, ensure};
use std::net::IpAddr;
use weft_tests::{FAMILIES, Machine, Table, dial::Dial, echo::PROTOCOLS, echo::Protocol};

/// The hops that traceroute shows, in order.
fn hops(said: &str) -> Vec<Option<IpAddr>> {
    let lines = said.lines().filter(|line| line.trim_start().starts_with(|c: char| c.is_ascii_digit()));
    lines.map(|line| line.split_whitespace().nth(1)?.parse().ok()).collect()
}

#[test]
fn traceroute_shows_the_gateway_the_router_and_the_server() -> Result<()> {
    let scene = Scene::new("trace")?;
    let server = Machine::behind(&scene.machine, 0, 1500)?;
    let mut table = Table::default();
    for v4 in FAMILIES {
        let wanted = [gateway(v4)?, scene.machine.ip_of(v4), server.ip_of(v4)].map(Some);
        for method in ["--udp", "--icmp", "--tcp", ""] {
            let family = if v4 { "-4" } else { "-6" };
            // One probe a hop and one at a time: kernels limit how many errors they send.
            let line = format!("traceroute {family} -n -q 1 -N 1 -w 2 -m 5 {method} {}", server.ip_of(v4));
            table.row(&line, || {
                let said = scene.pod.sh(&line)?;
                ensure!(hops(&said) == wanted, "{said}");
                Ok(())
            });
        }
    }
    table.judge(|| scene.node.evidence())
}

#[test]
fn closed_ports_are_refused_at_once() -> Result<()> {
    let scene = Scene::new("closed")?;
    let server = Machine::behind(&scene.machine, 0, 1500)?;
    let mut table = Table::default();
    for v4 in FAMILIES {
        for protocol in PROTOCOLS {
            for to in [scene.machine.ip_of(v4), server.ip_of(v4)] {
                let dial = Dial::new(protocol, (to, 9).into());
                let mut forms = vec![dial, dial.from_port(5600)];
                if v4 {
                    forms.push(dial.mapped());
                }
                for dial in forms {
                    table.row(dial, || {
                        let number = dial.refusal(&scene.pod)?;
                        ensure!(number == libc::ECONNREFUSED, "error {number}");
                        Ok(())
                    });
                }
            }
        }
    }
    table.judge(|| scene.node.evidence())
}

#[test]
fn an_unreachable_host_is_told() -> Result<()> {
    let scene = Scene::new("unreachable")?;
    let _server = Machine::behind(&scene.machine, 0, 1500)?;
    let mut table = Table::default();
    for v4 in FAMILIES {
        // The router has no way there and says so.
        let to: IpAddr = if v4 { "203.0.113.9" } else { "2001:db8:f::9" }.parse()?;
        table.row(format!("tcp to {to}"), || {
            let number = Dial::new(Protocol::Tcp, (to, 9).into()).refusal(&scene.pod)?;
            ensure!([libc::ENETUNREACH, libc::EHOSTUNREACH].contains(&number), "error {number}");
            Ok(())
        });
        table.row(format!("ping {to}"), || {
            let output =
                scene.pod.command("ping").args(["-n", "-c", "1", "-W", "2", &to.to_string()]).output()?;
            let said = String::from_utf8_lossy(&output.stdout);
            let router = format!("From {}", scene.machine.ip_of(v4));
            let line =
                said.lines().find(|line| line.starts_with(&router)).with_context(|| said.to_string())?;
            ensure!(line.contains("nreachable") || line.contains("No route"), "{said}");
            Ok(())
        });
    }
    table.judge(|| scene.node.evidence())
}

/// A hop limit that ends at the node itself is answered by the gateway, in the container's own terms.
#[test]
fn a_hop_limit_that_ends_at_the_node_is_told_by_the_gateway() -> Result<()> {
    let scene = Scene::new("ttl")?;
    for v4 in FAMILIES {
        let to = scene.machine.ip_of(v4).to_string();
        let output = scene.pod.command("ping").args(["-n", "-c", "1", "-W", "2", "-t", "1", &to]).output()?;
        let said = String::from_utf8_lossy(&output.stdout);
        let expected = format!("From {}", gateway(v4)?);
        ensure!(said.contains(&expected) && said.contains("xceeded"), "{said}\n{}", scene.node.evidence());
    }
    Ok(())
}
