//! Uplinks are where the routing table leads, today: several of them, and ones that change.

use super::scene::{PORT, Scene, answering, answering_at, seen_as};
use anyhow::{Context, Result, ensure};
use ipamd_api::FlowList;
use serde_json::Value;
use std::{net::IpAddr, time::Duration};
use weft_tests::{
    FAMILIES, Machine, Table,
    crowd::Hall,
    dial::Dial,
    echo::PROTOCOLS,
    echo::{Echo, Protocol},
    poll_until,
};

/// How long ipamd may take to follow a change.
const FOLLOWED: Duration = Duration::from_secs(5);

/// An address that several machines have, as anycast servers do.
fn anycast(v4: bool) -> Result<IpAddr> {
    Ok(if v4 { "203.0.113.1" } else { "2001:db8:a::1" }.parse()?)
}

fn serve_anycast(machine: &Machine, name: &str) -> Result<Vec<Echo>> {
    let serve = |v4| {
        machine.ip(&format!("addr add {} dev lo {}", anycast(v4)?, if v4 { "" } else { "nodad" }))?;
        answering_at(machine, name, anycast(v4)?)
    };
    FAMILIES.into_iter().map(serve).collect()
}

#[test]
fn each_uplink_gives_its_own_address() -> Result<()> {
    let (scene, machines) = Scene::among::<3>("uplinks", &Value::Null)?;
    let _servers = [answering(&machines[0], "one")?, answering(&machines[1], "two")?];
    let behind = Machine::behind(&machines[1], 3, 1500)?;
    let _server = answering(&behind, "behind")?;
    let mut table = Table::default();
    for v4 in FAMILIES {
        let prefix = if v4 { 32 } else { 128 };
        scene.node.netns().ip(&format!(
            "route add {}/{prefix} via {}",
            behind.ip_of(v4),
            machines[1].ip_of(v4)
        ))?;
        let ways = [
            (scene.machine.ip_of(v4), scene.machine.peer(v4)),
            (machines[0].ip_of(v4), machines[0].peer(v4)),
            (machines[1].ip_of(v4), machines[1].peer(v4)),
            (behind.ip_of(v4), machines[1].peer(v4)),
        ];
        for (to, expected) in ways {
            for protocol in PROTOCOLS {
                table.row(format!("{} to {to}", protocol.name()), || {
                    seen_as(&scene.pod, Dial::new(protocol, (to, PORT).into()), expected).map(drop)
                });
            }
            table.row(format!("ping {to}"), || {
                ensure!(scene.pod.ping(to)?, "no answer");
                Ok(())
            });
        }
    }
    table.judge(|| scene.node.evidence())
}

#[test]
fn an_uplink_that_comes_later_is_found() -> Result<()> {
    let scene = Scene::new("later")?;
    for v4 in FAMILIES {
        seen_as(&scene.pod, Dial::new(Protocol::Tcp, scene.server(v4)), scene.machine.peer(v4))?;
    }
    let later = Machine::on(&scene.node, 1)?;
    let _server = answering(&later, "later")?;
    for v4 in FAMILIES {
        let dial =
            Dial::new(Protocol::Udp, (later.ip_of(v4), PORT).into()).patience(Duration::from_millis(300));
        let mut last = String::new();
        poll_until(FOLLOWED, "the new uplink to be used", || {
            let seen = seen_as(&scene.pod, dial, later.peer(v4));
            last = seen.as_ref().err().map(|e| format!("{e:#}")).unwrap_or_default();
            seen.is_ok()
        })
        .with_context(|| format!("{last}\n{}", scene.node.evidence()))?;
    }
    Ok(())
}

#[test]
fn a_change_of_the_uplinks_address_is_followed() -> Result<()> {
    let scene = Scene::new("address")?;
    let host = scene.node.netns();
    for (v4, new, old, rest) in
        [(true, "198.18.0.77", "198.18.0.1/24", ""), (false, "2001:db8::77", "2001:db8::1/64", "nodad")]
    {
        seen_as(&scene.pod, Dial::new(Protocol::Udp, scene.server(v4)), scene.machine.peer(v4))?;
        let prefix = if v4 { 24 } else { 64 };
        host.ip(&format!("addr del {old} dev up0"))?;
        host.ip(&format!("addr add {new}/{prefix} dev up0 {rest}"))?;
        host.ip(&format!("route replace default via {}", scene.machine.ip_of(v4)))?;
        let expected: IpAddr = new.parse()?;
        for protocol in PROTOCOLS {
            let dial = Dial::new(protocol, scene.server(v4)).patience(Duration::from_millis(300));
            let mut last = String::new();
            poll_until(FOLLOWED, "the new address to be used", || {
                let seen = seen_as(&scene.pod, dial, expected);
                last = seen.as_ref().err().map(|e| format!("{e:#}")).unwrap_or_default();
                seen.is_ok()
            })
            .with_context(|| format!("{last}\n{}", scene.node.evidence()))?;
        }
    }
    Ok(())
}

/// A resolver, say, that asks from one port for ever: it must not go on under an address that is gone.
#[test]
fn flows_of_an_address_that_is_gone_begin_anew_from_the_same_port() -> Result<()> {
    const SOURCE: u16 = 5200;
    let scene = Scene::new("gone")?;
    let host = scene.node.netns();
    for (v4, new, old, rest) in
        [(true, "198.18.0.77", "198.18.0.1/24", ""), (false, "2001:db8::77", "2001:db8::1/64", "nodad")]
    {
        let ask = |patience| Dial::new(Protocol::Udp, scene.server(v4)).from_port(SOURCE).patience(patience);
        let gone = scene.machine.peer(v4);
        seen_as(&scene.pod, ask(FOLLOWED), gone)?;
        host.ip(&format!("addr del {old} dev up0"))?;
        host.ip(&format!("addr add {new}/{} dev up0 {rest}", if v4 { 24 } else { 64 }))?;
        host.ip(&format!("route replace default via {}", scene.machine.ip_of(v4)))?;
        let expected: IpAddr = new.parse()?;
        let mut last = String::new();
        poll_until(FOLLOWED, "the same port to be seen at the new address", || {
            let seen = seen_as(&scene.pod, ask(Duration::from_millis(300)), expected);
            last = seen.as_ref().err().map(|e| format!("{e:#}")).unwrap_or_default();
            seen.is_ok()
        })
        .with_context(|| format!("{last}\n{}", scene.node.evidence()))?;
        let asked = ["conntrack", "ls", "--address", &gone.to_string(), "-o", "json"];
        let left: FlowList = serde_json::from_slice(&scene.node.netctl(&asked)?.stdout)?;
        ensure!(left.matching == 0, "flows of the old address: {:?}", left.flows);
    }
    Ok(())
}

#[test]
fn a_change_of_the_route_is_followed_and_open_connections_keep_their_address() -> Result<()> {
    let scene = Scene::new("route")?;
    let other = Machine::on(&scene.node, 1)?;
    let _servers = [serve_anycast(&scene.machine, "machine")?, serve_anycast(&other, "other")?];
    let host = scene.node.netns();
    for v4 in FAMILIES {
        let to = anycast(v4)?;
        let way = |machine: &Machine| host.ip(&format!("route replace {to} via {}", machine.ip_of(v4)));
        way(&scene.machine)?;
        let dial = Dial::new(Protocol::Tcp, (to, PORT).into()).patience(Duration::from_millis(300));
        let answered = |name: &str, expected: IpAddr| {
            poll_until(FOLLOWED, &format!("{name} to answer for {to}"), || {
                dial.ask(&scene.pod).is_ok_and(|h| h.answer.server == name && h.answer.client == expected)
            })
            .with_context(|| scene.node.evidence())
        };
        answered("machine", scene.machine.peer(v4))?;
        // A connection to another address, whose way does not change.
        let listening = (scene.machine.ip_of(v4), 7100).into();
        let mut open = Hall::open(&scene.machine, listening)?.dial(&scene.pod, listening, None)?;
        open.check(1)?;
        way(&other)?;
        answered("other", other.peer(v4))?;
        open.check(2)?;
        way(&scene.machine)?;
        answered("machine", scene.machine.peer(v4))?;
        open.check(3)?;
    }
    Ok(())
}
