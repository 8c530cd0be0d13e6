//! Broadcast and multicast inside a network: to every container of it where the network asks for it, else to none elsewhere.

use super::scene::{self, BRIEF, Scene};
use anyhow::{Context, Result, ensure};
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket},
    time::Duration,
};
use weft_tests::{Cluster, Pod, Table, TestNetns};

const PORT: u16 = 7300;
const GROUP4: Ipv4Addr = Ipv4Addr::new(239, 1, 2, 3);
const GROUP6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x99);

/// Who is addressed.
#[derive(Debug, Clone, Copy)]
enum Group {
    /// 255.255.255.255
    All,
    /// The pool's broadcast address.
    Subnet,
    Multicast4,
    Multicast6,
}

const GROUPS: [Group; 4] = [Group::All, Group::Subnet, Group::Multicast4, Group::Multicast6];

impl Group {
    fn address(self) -> IpAddr {
        match self {
            Self::All => Ipv4Addr::BROADCAST.into(),
            Self::Subnet => Ipv4Addr::new(10, scene::BLUE, 255, 255).into(),
            Self::Multicast4 => GROUP4.into(),
            Self::Multicast6 => GROUP6.into(),
        }
    }

    fn listen(self, netns: &TestNetns) -> Result<UdpSocket> {
        let listening = netns.run(|| -> Result<UdpSocket> {
            let index = nix::net::if_::if_nametoindex("eth0")?;
            let v4 = self.address().is_ipv4();
            let domain = if v4 { Domain::IPV4 } else { Domain::IPV6 };
            let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
            let any: IpAddr = if v4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            // A listener of the group before may live on in a process that is just being started.
            socket.set_reuse_address(true)?;
            socket.bind(&SocketAddr::from((any, PORT)).into())?;
            match self {
                Self::Multicast4 => {
                    socket.join_multicast_v4_n(&GROUP4, &socket2::InterfaceIndexOrAddress::Index(index))?;
                }
                Self::Multicast6 => socket.join_multicast_v6(&GROUP6, index)?,
                Self::All | Self::Subnet => {}
            }
            socket.set_read_timeout(Some(BRIEF))?;
            Ok(socket.into())
        })?;
        listening.with_context(|| format!("listening for {self:?}"))
    }

    fn send(self, netns: &TestNetns, word: &str) -> Result<()> {
        netns.run(|| -> Result<()> {
            let index = nix::net::if_::if_nametoindex("eth0")?;
            let (any, to): (IpAddr, SocketAddr) = match self.address() {
                IpAddr::V4(to) => (Ipv4Addr::UNSPECIFIED.into(), (to, PORT).into()),
                IpAddr::V6(to) => {
                    (Ipv6Addr::UNSPECIFIED.into(), SocketAddrV6::new(to, PORT, 0, index).into())
                }
            };
            let socket = UdpSocket::bind((any, 0))?;
            if to.is_ipv4() {
                socket.set_broadcast(true)?;
            }
            socket.send_to(word.as_bytes(), to)?;
            Ok(())
        })?
    }
}

/// How often a word is heard, and from whom.
fn heard(socket: &UdpSocket, word: &str) -> Result<Vec<IpAddr>> {
    let mut buffer = [0; 64];
    let mut from = Vec::new();
    while let Ok((length, client)) = socket.recv_from(&mut buffer) {
        if buffer.get(..length) == Some(word.as_bytes()) {
            from.push(client.ip());
        }
        socket.set_read_timeout(Some(Duration::from_millis(150)))?;
    }
    Ok(from)
}

fn try_all(scene: &Scene, near: &Pod, stranger: &Pod, remote: bool) -> Result<()> {
    let mut table = Table::default();
    for group in GROUPS {
        let listeners = [near, &scene.pods[1], &scene.pods[2], stranger].map(|pod| group.listen(pod));
        let [near, one, two, stranger] = listeners;
        let listeners = [(near?, true), (one?, true), (two?, true), (stranger?, false)];
        let word = format!("to {group:?}");
        table.row(format!("{group:?}, sent"), || group.send(&scene.pods[0], &word));
        for (n, (socket, member)) in listeners.iter().enumerate() {
            table.row(format!("{group:?}, listener {n}"), || {
                let heard = heard(socket, &word)?;
                let expected = usize::from(*member && remote);
                // What one node does among its own containers without replication is its own affair.
                ensure!(
                    heard.len() == expected || (n == 0 && !remote && heard.len() <= 1),
                    "heard {} times, from {heard:?}",
                    heard.len()
                );
                if expected == 1 && group.address().is_ipv4() {
                    ensure!(heard[0] == IpAddr::from(scene.pods[0].ipv4()?), "from {heard:?}");
                }
                Ok(())
            });
        }
    }
    table.judge(|| scene.cluster.evidence())
}

fn world(name: &str, options: &str) -> Result<(Scene, Pod, Pod)> {
    let mut scene = Scene::of(Cluster::builder(name).nodes(3).etcd(1), options)?;
    scene::create(&scene.cluster, "green", 71, &weft_tests::FAMILIES, "--flood")?;
    let near = scene.neighbour(0, "near")?;
    let stranger = Pod::add(&scene.cluster[1], "stranger", &scene::netconf("green"))?;
    Ok((scene, near, stranger))
}

#[test]
fn a_network_that_floods_brings_one_copy_to_each() -> Result<()> {
    let (scene, near, stranger) = world("flood", "--flood")?;
    try_all(&scene, &near, &stranger, true)
}

#[test]
fn without_it_nothing_leaves_the_node() -> Result<()> {
    let (scene, near, stranger) = world("quiet", "")?;
    try_all(&scene, &near, &stranger, false)
}
