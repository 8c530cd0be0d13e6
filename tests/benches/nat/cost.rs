//! What one packet costs, and whether it costs more with many ports and many flows.

use crate::{
    lab::{
        ACK, Hook, Lab, NEIGHBOUR, NODE, OUTSIDE, POD, REDIRECT, REMOTE, SERVED, SHOT, SYN, Segment, in_lab,
    },
    shared::{
        go_on,
        programs::{map_memory, mb, median_of},
    },
};
use anyhow::{Context, Result};
use std::{net::Ipv4Addr, time::Instant};

/// Runs of each kind of packet.
const RUNS: usize = 20_000;

/// The published port of the established flow.
const PORT: u16 = 8080;

/// Blocks of an overlay network.
const BLOCKS: u32 = 10_000;

/// Published ports in the parts that grow, from this one on.
const FIRST_PORT: u16 = 20_000;
const PUBLISHED: [u16; 3] = [1, 1_000, 10_000];

/// Flows in the part that grows. They have [`POD`]'s ports from 1,024 on, and so many addresses outside as they need.
const FLOWS: [u32; 3] = [10, 100_000, 500_000];
const FIRST_SOURCE: u32 = 1_024;
const SOURCES: u32 = 64_000;

/// The client of the established flow to a published port, and the server of the one that is masqueraded.
const CLIENT: (Ipv4Addr, u16) = (OUTSIDE, 40_000);
const SERVER: (Ipv4Addr, u16) = (OUTSIDE, 443);
const OWN_PORT: u16 = 30_000;

/// The costs of single packets.
pub(crate) fn packets() -> Result<()> {
    in_lab(RUNS as u32 * 4, |lab| {
        lab.publish(PORT, 1)?;
        println!("\none packet, median of {RUNS} runs, ns above an empty program");
        let empty = empty(lab)?;
        println!("  {:<56} {empty:>8.0}  (taken off below)", "the empty program itself");
        let show = |costs: Costs| {
            for (what, cost) in costs {
                println!("  {what:<56} {:>8.0}", cost - empty);
            }
        };
        show(established(lab)?);
        show(opening(lab)?);
        show(dropping(lab)?);
        show(within(lab)?);
        Ok(())
    })
}

fn empty(lab: &mut Lab) -> Result<f64> {
    let segment = Segment { from: CLIENT, to: (NODE, PORT), flags: ACK };
    median_of(RUNS, |_| lab.run_empty(Hook::Netdev, segment))
}

type Costs = Vec<(&'static str, f64)>;

fn established(lab: &Lab) -> Result<Costs> {
    lab.open_flow(CLIENT, (NODE, PORT))?;
    lab.open_flow((POD, OWN_PORT), SERVER)?;
    let packets = [
        ("established DNAT: a client to a published port", Hook::Netdev, CLIENT, (NODE, PORT)),
        ("established DNAT: the answer", Hook::Pod, (POD, SERVED), CLIENT),
        ("established SNAT: a container to the outside", Hook::Pod, (POD, OWN_PORT), SERVER),
        ("established SNAT: the answer", Hook::Netdev, SERVER, (NODE, OWN_PORT)),
    ];
    let cost = |(what, hook, from, to)| {
        let cost = median_of(RUNS, |_| lab.run(hook, Segment { from, to, flags: ACK }, REDIRECT));
        Ok((what, cost.context(what)?))
    };
    packets.into_iter().map(cost).collect()
}

fn opening(lab: &Lab) -> Result<Costs> {
    let port = |n: usize| u16::try_from(1_024 + n % 25_000).unwrap_or(u16::MAX);
    let dnat = median_of(RUNS, |n| {
        let segment =
            Segment { from: (Ipv4Addr::new(203, 0, 113, 1), port(n)), to: (NODE, PORT), flags: SYN };
        lab.run(Hook::Netdev, segment, REDIRECT)
    });
    let snat = median_of(RUNS, |n| {
        let segment = Segment { from: (POD, port(n)), to: (Ipv4Addr::new(203, 0, 113, 2), 443), flags: SYN };
        lab.run(Hook::Pod, segment, REDIRECT)
    });
    Ok(vec![
        ("new flow to a published port", dnat.context("new flows to a published port")?),
        ("new masqueraded flow", snat.context("new masqueraded flows")?),
    ])
}

fn dropping(lab: &Lab) -> Result<Costs> {
    let stranger = Segment { from: CLIENT, to: (POD, SERVED), flags: SYN };
    let liar = Segment { from: (Ipv4Addr::new(10, 1, 0, 3), OWN_PORT), to: SERVER, flags: ACK };
    let stranger = median_of(RUNS, |_| lab.run(Hook::Netdev, stranger, SHOT));
    let liar = median_of(RUNS, |_| lab.run(Hook::Pod, liar, SHOT));
    Ok(vec![
        ("drop: from outside to a container's own address", stranger.context("drops from outside")?),
        ("drop: a spoofed source", liar.context("drops of spoofed sources")?),
    ])
}

/// To containers of the own network. The last thing in a lab: the network spans nodes afterwards.
fn within(lab: &Lab) -> Result<Costs> {
    let cost = |what, to, flags| {
        let segment = Segment { from: (NEIGHBOUR, OWN_PORT), to: (to, SERVED), flags };
        let cost = median_of(RUNS, |_| lab.run(Hook::Neighbour, segment, REDIRECT)).context(what)?;
        Ok::<_, anyhow::Error>((what, cost))
    };
    let mut costs = vec![
        cost("to a container of the same bridge", POD, ACK)?,
        cost("the same, a connection's first packet", POD, SYN)?,
    ];
    lab.span(BLOCKS)?;
    costs.push(cost("to a container of the same overlay network here", POD, ACK)?);
    costs.push(cost("to one on another node, by 10,000 blocks", REMOTE, ACK)?);
    Ok(costs)
}

/// Costs with more and more published ports, each by a mapping of its own, and the entries of one range.
pub(crate) fn ports() -> Result<()> {
    in_lab(RUNS as u32 * 4, |lab| {
        println!("\npublished ports, each by itself: ns above an empty program, memory of the maps");
        println!(
            "  {:>8} {:>16} {:>12} {:>18} {:>12}",
            "ports", "established", "new flow", "publish one, µs", "maps, MB"
        );
        let mut published = 0;
        for (step, &ports) in PUBLISHED.iter().enumerate() {
            let before = Instant::now();
            for port in published..ports {
                if port % 100 == 0 {
                    go_on()?;
                }
                lab.publish(FIRST_PORT + port, 1)?;
            }
            let each = before.elapsed().as_secs_f64() * 1e6 / f64::from(ports - published);
            published = ports;
            let empty = empty(lab)?;
            // Each step has clients of its own.
            let client = |last: u8| Ipv4Addr::new(203, 0, 113, last + u8::try_from(step).unwrap_or(u8::MAX));
            let port = |n: usize| FIRST_PORT + u16::try_from(n * 7919 % usize::from(ports)).unwrap_or(0);
            let established = (client(10), 40_000);
            lab.open_flow(established, (NODE, port(1)))?;
            let segment = Segment { from: established, to: (NODE, port(1)), flags: ACK };
            let established = median_of(RUNS, |_| lab.run(Hook::Netdev, segment, REDIRECT))?;
            let new = median_of(RUNS, |n| {
                let source = u16::try_from(1_024 + n % 60_000).unwrap_or(u16::MAX);
                let segment = Segment { from: (client(20), source), to: (NODE, port(n)), flags: SYN };
                lab.run(Hook::Netdev, segment, REDIRECT)
            })?;
            let (established, new) = (established - empty, new - empty);
            println!("  {ports:>8} {established:>16.0} {new:>12.0} {each:>18.1} {:>12.1}", memory(lab)?);
        }
        Ok(())
    })?;
    in_lab(1, |lab| {
        let bytes = |lab: &Lab| {
            let sizes = map_memory(&lab.bpf.path().join("weft"))?;
            let of =
                |wanted: &str| sizes.iter().find(|(name, _)| name == wanted).map_or(0, |(_, bytes)| *bytes);
            Ok::<_, anyhow::Error>(of("PUBLISHED") + of("RESERVED_PORTS"))
        };
        let (before, start) = (bytes(lab)?, Instant::now());
        lab.publish(FIRST_PORT, 10_000)?;
        let took = start.elapsed().as_secs_f64() * 1e6;
        println!(
            "  one range of 10,000 ports: {took:.0} µs, {} bytes of the maps of ports",
            bytes(lab)? - before
        );
        Ok(())
    })
}

/// Costs with more and more established flows.
pub(crate) fn flows() -> Result<()> {
    in_lab(FLOWS[FLOWS.len() - 1] + 100_000, |lab| {
        println!("\nmasqueraded flows: ns above an empty program, memory of the maps");
        println!(
            "  {:>8} {:>16} {:>16} {:>12} {:>12}",
            "flows", "one flow", "any flow", "new flow", "maps, MB"
        );
        let flow = |n: u32| {
            let port = u16::try_from(FIRST_SOURCE + n % SOURCES).unwrap_or(u16::MAX);
            let server = Ipv4Addr::from(u32::from(Ipv4Addr::new(203, 0, 113, 0)) + n / SOURCES);
            ((POD, port), (server, 443))
        };
        let mut open = 0;
        for (step, &flows) in FLOWS.iter().enumerate() {
            for n in open..flows {
                if n % 1000 == 0 {
                    go_on()?;
                }
                let (own, server) = flow(n);
                lab.open_flow(own, server).with_context(|| format!("flow {n}"))?;
            }
            open = flows;
            let empty = empty(lab)?;
            let cost = |of: &dyn Fn(usize) -> u32| {
                median_of(RUNS, |n| {
                    let (from, to) = flow(of(n));
                    lab.run(Hook::Pod, Segment { from, to, flags: ACK }, REDIRECT)
                })
            };
            let (one, any) = (
                cost(&|_| 7)?,
                cost(&|n| u32::try_from(n).unwrap_or(0).wrapping_mul(2_654_435_761) % flows)?,
            );
            let server = Ipv4Addr::new(203, 0, 114, u8::try_from(step).unwrap_or(u8::MAX));
            let new = median_of(RUNS, |n| {
                let port = u16::try_from(1_024 + n % 60_000).unwrap_or(u16::MAX);
                let segment = Segment { from: (POD, port), to: (server, 443), flags: SYN };
                lab.run(Hook::Pod, segment, REDIRECT)
            })?;
            let (one, any, new) = (one - empty, any - empty, new - empty);
            println!("  {flows:>8} {one:>16.0} {any:>16.0} {new:>12.0} {:>12.1}", memory(lab)?);
        }
        println!("  the largest maps:");
        for (name, bytes) in map_memory(&lab.bpf.path().join("weft"))?.iter().take(6) {
            println!("    {name:<20} {:>10.1} MB", mb(*bytes));
        }
        Ok(())
    })
}

/// Memory of all maps, in MB.
fn memory(lab: &Lab) -> Result<f64> {
    Ok(map_memory(&lab.bpf.path().join("weft"))?.iter().map(|(_, bytes)| mb(*bytes)).sum())
}
