//! What is left of a container is not its successor's, though both have the same address.

use super::scene::NETWORK;
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};
use weft_tests::{FAMILIES, Machine, Node, Pod, TestNetns, netconf::network};

const PATIENCE: Duration = Duration::from_secs(3);

/// The same source port in both containers.
const SOURCE: u16 = 5100;

fn socket(netns: &TestNetns, bound: SocketAddr) -> Result<UdpSocket> {
    let socket = netns.run(|| UdpSocket::bind(bound))??;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

#[test]
fn late_datagrams_are_not_for_the_container_that_came_after() -> Result<()> {
    let (node, [machine]) = Machine::beside(Node::builder("successor").settings("cool_down = 0"))?;
    // As a runtime asks for a container with fixed addresses.
    let fixed = json!({"runtimeConfig": {"ips": ["10.70.0.9", "fd00:70::9"]}});
    let netconf = network("blue", NETWORK, &fixed);
    for v4 in FAMILIES {
        let any: IpAddr = if v4 { [0; 4].into() } else { [0_u16; 8].into() };
        let to = SocketAddr::from((machine.ip_of(v4), 7100));
        let server = socket(&machine, to)?;
        let first = Pod::add(&node, "first", &netconf)?;
        let client = socket(&first, (any, SOURCE).into())?;
        client.send_to(b"hello", to)?;
        let (_, seen) = server.recv_from(&mut [0; 16]).with_context(|| node.evidence())?;
        server.send_to(b"once", seen)?;
        client.recv_from(&mut [0; 16]).context("the answer to the living one")?;
        let address = first.ip_of(v4)?;
        first.del(&node, &netconf)?;
        drop((client, first));

        let second = Pod::add(&node, "second", &netconf)?;
        ensure!(second.ip_of(v4)? == address, "the test needs the same address again");
        let client = socket(&second, (any, SOURCE).into())?;
        server.send_to(b"late", seen)?;
        // Its own traffic, which comes behind what is late, shows that nothing is still on its way.
        client.send_to(b"hello", to)?;
        let (_, seen) = server.recv_from(&mut [0; 16])?;
        server.send_to(b"mine", seen)?;
        let mut got = [0; 4];
        client.recv_from(&mut got).context("the answer to the second one")?;
        ensure!(
            &got == b"mine",
            "the successor got {:?}, sent to the one before it",
            String::from_utf8_lossy(&got)
        );
        second.del(&node, &netconf)?;
    }
    Ok(())
}
