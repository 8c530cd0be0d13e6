//! Events of links and qdiscs.

use crate::edge::{Edge, endpoint, network};
use anyhow::{Context, Result};
use ipamd::kernel::{Kernel, LinkEvent, LinkWatch, NetlinkKernel};
use std::{fmt::Write, sync::mpsc, time::Duration};
use weft_tests::Sandbox;

/// Stops the watch when what is waited for does not come: a test that fails must not hang. Ends with the value returned.
fn with_deadline(watch: &LinkWatch) -> mpsc::Sender<()> {
    let (alive, over) = mpsc::channel();
    let stopper = watch.stopper();
    std::thread::spawn(move || {
        if over.recv_timeout(Duration::from_secs(60)) == Err(mpsc::RecvTimeoutError::Timeout) {
            stopper.stop();
        }
    });
    alive
}

#[test]
fn qdiscs_and_links_that_go_are_told() -> Result<()> {
    let edge = Edge::new()?;
    edge.network(&network(1)?)?;
    let sandbox = Sandbox::new()?;
    let wanted = endpoint(1, 2, "eth0")?;
    edge.attach(&wanted, &sandbox)?;
    let port = edge.call(Kernel::endpoint_links)?[0].1;
    let mut watch = edge.call(NetlinkKernel::watch_links)?;
    let _alive = with_deadline(&watch);
    edge.host.sh(&format!(
        "tc qdisc add dev {} root tbf rate 20mbit burst 32k latency 25ms",
        wanted.host_ifname
    ))?;
    assert_eq!(watch.next(), Some(LinkEvent::QdiscChanged { ifindex: port }));
    edge.host.sh(&format!("tc qdisc add dev {} clsact", wanted.host_ifname))?;
    edge.host.sh(&format!("tc qdisc del dev {} root", wanted.host_ifname))?;
    assert_eq!(
        watch.next(),
        Some(LinkEvent::QdiscChanged { ifindex: port }),
        "clsact, Weft's own, is passed over"
    );
    Ok(())
}

#[test]
fn a_watch_is_stopped_from_another_thread() -> Result<()> {
    let edge = Edge::new()?;
    let watch = edge.call(NetlinkKernel::watch_links)?;
    let stopper = watch.stopper();
    let reader = std::thread::spawn(move || watch.count());
    stopper.stop();
    stopper.stop();
    assert_eq!(reader.join().ok().context("the reader ends")?, 0);
    Ok(())
}

#[test]
fn lost_events_are_told() -> Result<()> {
    let edge = Edge::new()?;
    edge.host.ip("link add x0 type veth peer name x1")?;
    let mut watch = edge.call(NetlinkKernel::watch_links)?;
    let _alive = with_deadline(&watch);
    let mut batch = String::new();
    for i in 0..16_000 {
        writeln!(batch, "qdisc replace dev x0 root pfifo limit {}", 1000 + i % 2)?;
    }
    let file = edge.state.path().join("changes");
    std::fs::write(&file, batch)?;
    edge.host.sh(&format!("tc -batch {}", file.display()))?;
    assert_eq!(watch.next(), Some(LinkEvent::Overrun));
    edge.host.sh("tc qdisc del dev x0 root")?;
    assert!(matches!(watch.next(), Some(LinkEvent::QdiscChanged { .. })), "and it goes on");
    Ok(())
}
