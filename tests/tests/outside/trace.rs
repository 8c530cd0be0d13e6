//! `netctl trace` on a node: what it says of a packet is what becomes of one, and it leaves no trace itself.

use super::scene::{HOST_PORT, OUTSIDE, PORT, Scene};
use anyhow::{Context, Result, ensure};
use ipamd_api::{FlowList, Trace, TraceVerdict, path};
use serde_json::{Value, json};
use std::net::{IpAddr, SocketAddr};
use weft_tests::{FAMILIES, Node, Pod, Table, dial::Dial, echo::Echo, echo::Protocol, netconf::network};

/// Sender, its sandbox, destination; verdict, drop reason, and the map with the beginning of the value that decides.
type Row<'a> = (&'a str, &'a Pod, SocketAddr, TraceVerdict, Option<&'a str>, Option<(&'a str, &'a str)>);

/// What is said, after the exit code was held against it.
fn trace(node: &Node, from: &str, to: &str) -> Result<Trace> {
    let output = node.netctl(&["trace", from, to, "-o", "json"])?;
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    let trace: Trace =
        serde_json::from_str(&said).with_context(|| format!("trace {from} {to}: {said}{errors}"))?;
    ensure!(output.status.success() == trace.verdict.is_well(), "{}: {trace:?}", output.status);
    Ok(trace)
}

fn entry<'t>(trace: &'t Trace, map: &str) -> Result<&'t str> {
    let mut all = trace.hops.iter().flat_map(|hop| &hop.entries);
    let found = all.find(|entry| entry.map == map).map(|entry| entry.value.as_str());
    found.with_context(|| format!("no entry of {map} in {trace:#?}"))
}

fn drops(node: &Node) -> Result<Value> {
    let status: Value = node.client().get(path::STATUS)?;
    Ok(status["drops"].clone())
}

#[test]
fn what_a_trace_says_is_what_becomes_of_packets() -> Result<()> {
    let scene = Scene::new(Node::builder("trace"))?;
    let node = &scene.node;
    let other = scene.pod("other")?;
    let red = Pod::add(node, "red", &network("red", 71, &Value::Null))?;
    let before = drops(node)?;
    let mut table = Table::default();
    let mut servers = Vec::new();
    for v4 in FAMILIES {
        servers.push(Echo::start(&scene.web, "web", scene.inside(v4)?)?);
        servers.push(Echo::start(&scene.machine, "machine", scene.outside(v4))?);
        let (web, uplink) = (scene.inside(v4)?, scene.machine.peer(v4));
        let machine = scene.machine.ip_of(v4).to_string();
        let published = SocketAddr::new(uplink, HOST_PORT);
        let unheard = SocketAddr::new(uplink, 9);
        let rows: [Row<'_>; 6] = [
            ("other", &other, web, TraceVerdict::Delivered, None, Some(("ADDRESSES", "wf"))),
            (
                "other",
                &other,
                scene.outside(v4),
                TraceVerdict::Leaves,
                None,
                Some(("UPLINKS", "masquerades with")),
            ),
            ("other", &other, published, TraceVerdict::Delivered, None, Some(("PUBLISHED", "web"))),
            ("web", &scene.web, published, TraceVerdict::Delivered, None, Some(("PUBLISHED", "web"))),
            (
                "red",
                &red,
                web,
                TraceVerdict::Dropped,
                Some("isolated"),
                Some((if v4 { "POOLS4" } else { "POOLS6" }, "network blue")),
            ),
            ("other", &other, unheard, TraceVerdict::Refused, None, None),
        ];
        for (name, pod, to, verdict, reason, decided) in rows {
            table.row(format!("{name} to {to}"), || {
                let told = trace(node, name, &format!("{to}/tcp"))?;
                ensure!(told.verdict == verdict && told.reason.as_deref() == reason, "{told:#?}");
                if let Some((map, value)) = decided {
                    ensure!(entry(&told, map)?.contains(value), "{told:#?}");
                }
                ensure!(told.hops.iter().any(|hop| hop.hop == "from_pod"), "{told:#?}");
                ensure!(verdict.is_well() || told.advice.is_some(), "{told:#?}");
                Ok(())
            });
            // Nothing of it is known to the node.
            table.row(format!("{name} to {to}, traces of it"), || {
                ensure!(drops(node)? == before, "{} before, {} now", before, drops(node)?);
                let flows: FlowList = node.client().post(path::FLOWS, &json!({"port": 60999}))?;
                ensure!(flows.flows.is_empty(), "{flows:?}");
                Ok(())
            });
            if verdict.is_well() {
                table.row(format!("{name} to {to}, for real"), || {
                    let answered = Dial::new(Protocol::Tcp, to).is_answered(pod);
                    ensure!(answered, "not answered");
                    Ok(())
                });
            }
        }
        table.row(format!("{machine} to the published port"), || {
            let told = trace(node, &machine, &format!("{published}"))?;
            ensure!(told.verdict == TraceVerdict::Delivered && told.summary.contains("web"), "{told:#?}");
            ensure!(told.hops[0].hop == "from_netdev", "{told:#?}");
            Ok(())
        });
        table.row(format!("{machine} to the container itself"), || {
            let told = trace(node, &machine, &web.to_string())?;
            ensure!(told.reason.as_deref() == Some("not-published"), "{told:#?}");
            ensure!(told.advice.as_deref().is_some_and(|a| a.contains("netctl publish add")), "{told:#?}");
            Ok(())
        });
    }
    table.row("the node answers echoes", || {
        let told = trace(node, "other", "node")?;
        ensure!(told.verdict == TraceVerdict::Delivered && told.packet.contains("echo request"), "{told:#?}");
        Ok(())
    });
    table.row("by name", || {
        let told = trace(node, "other", &format!("web:{PORT}"))?;
        ensure!(told.verdict == TraceVerdict::Delivered, "{told:#?}");
        Ok(())
    });
    table.row("without a route", || {
        other.sh("ip route del default")?;
        let to: IpAddr = scene.machine.ip_of(true);
        let told = trace(node, "other", &format!("{to}:{OUTSIDE}"))?;
        ensure!(told.verdict == TraceVerdict::Dropped && told.summary.contains("no route"), "{told:#?}");
        Ok(())
    });
    table.row("for people", || {
        let output = node.netctl(&["trace", "red", "web"])?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(said.contains("dropped: dropped as isolated") && said.contains("mend: "), "{said}");
        Ok(())
    });
    for (from, to, words) in [
        ("nobody", "web", "no running container"),
        ("other", "nowhere", "no container of this node"),
        ("node", "web", "cannot be replayed"),
        ("224.0.0.1", "web", "nobody's own address"),
        ("other", "224.0.0.1", "is a group"),
        ("other", "255.255.255.255", "is a group"),
    ] {
        table.row(format!("{from} to {to} is refused"), || {
            let output = node.netctl(&["trace", from, to])?;
            let said = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.code() == Some(1) && said.contains(words), "{said}");
            Ok(())
        });
    }
    table.judge(|| scene.node.evidence())
}
