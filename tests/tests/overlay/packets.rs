//! VXLAN packets (RFC 7348): found on a wire, and forged.

use anyhow::{Context, Result, bail};
use ipamd_api::MacAddr;
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    time::Duration,
};
use weft_tests::{TestNetns, Wire};

/// IANA's port.
pub(crate) const VXLAN: u16 = 4789;

/// A VXLAN packet as it was on a wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Encapsulated {
    pub(crate) vni: u32,
    pub(crate) inner: Vec<u8>,
}

/// What an Ethernet frame without IP options has in VXLAN.
pub(crate) fn encapsulated(frame: &[u8]) -> Option<Encapsulated> {
    let udp = match frame.get(12..14)? {
        [0x08, 0x00] if frame.get(23) == Some(&17) => 34,
        [0x86, 0xdd] if frame.get(20) == Some(&17) => 54,
        _ => return None,
    };
    let port = u16::from_be_bytes(frame.get(udp + 2..udp + 4)?.try_into().ok()?);
    let header = frame.get(udp + 8..udp + 16)?;
    let vni = u32::from_be_bytes([0, header[4], header[5], header[6]]);
    (port == VXLAN).then(|| Encapsulated { vni, inner: frame[udp + 16..].to_vec() })
}

/// Waits for a VXLAN packet.
pub(crate) fn expect_vxlan(wire: &Wire, limit: Duration) -> Result<Encapsulated> {
    let frame = wire.expect(limit, "a VXLAN packet", |frame| encapsulated(frame).is_some())?;
    encapsulated(&frame).context("a VXLAN packet")
}

/// A datagram of UDP in a frame in VXLAN, from and to whom one likes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Forged {
    pub(crate) vni: u32,
    pub(crate) from: Ipv4Addr,
    pub(crate) to: SocketAddr,
    pub(crate) mac: MacAddr,
}

impl Forged {
    /// What is behind the outer UDP header, with `word` in the innermost datagram.
    pub(crate) fn packet(&self, word: &[u8]) -> Result<Vec<u8>> {
        let IpAddr::V4(to) = self.to.ip() else { bail!("only IPv4 is forged here") };
        let [_, vni @ ..] = self.vni.to_be_bytes();
        let mut packet = vec![8, 0, 0, 0];
        packet.extend(vni);
        packet.push(0);
        packet.extend(self.mac.0);
        packet.extend([2, 0x57, 0, 0, 0, 99, 8, 0]);
        let udp = u16::try_from(8 + word.len())?;
        let mut ip = vec![0x45, 0];
        ip.extend((20 + udp).to_be_bytes());
        ip.extend([0, 1, 0x40, 0, 64, 17, 0, 0]);
        ip.extend(self.from.octets());
        ip.extend(to.octets());
        let sum = checksum(&ip);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        packet.extend(ip);
        packet.extend(9999_u16.to_be_bytes());
        packet.extend(self.to.port().to_be_bytes());
        packet.extend(udp.to_be_bytes());
        // No checksum.
        packet.extend([0, 0]);
        packet.extend(word);
        Ok(packet)
    }

    /// Sends it from a namespace to a node, more than once, for datagrams may be lost.
    pub(crate) fn send(&self, from: &TestNetns, node: IpAddr, word: &[u8]) -> Result<()> {
        let packet = self.packet(word)?;
        let any: IpAddr = if node.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
        from.run(|| -> Result<()> {
            let socket = UdpSocket::bind((any, 0))?;
            for _ in 0..3 {
                // A refusal is an answer to the one before.
                let _ = socket.send_to(&packet, (node, VXLAN));
            }
            Ok(())
        })?
    }
}

/// The Internet checksum (RFC 1071) of an even number of bytes, among which its own is zero.
pub(crate) fn checksum(header: &[u8]) -> u16 {
    let words = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let sum = words.sum::<u32>();
    let folded = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap_or(0)
}

/// Whoever gets a datagram in a container.
#[derive(Debug)]
pub(crate) struct Listener(UdpSocket);

impl Listener {
    pub(crate) fn open(netns: &TestNetns, at: SocketAddr) -> Result<Self> {
        let socket = netns.run(|| UdpSocket::bind(at))?.with_context(|| format!("listening at {at}"))?;
        Ok(Self(socket))
    }

    /// What comes within `limit`, as text.
    pub(crate) fn hear(&self, limit: Duration) -> Result<Option<String>> {
        self.0.set_read_timeout(Some(limit))?;
        let mut buffer = [0; 128];
        Ok(match self.0.recv(&mut buffer) {
            Ok(length) => Some(String::from_utf8_lossy(&buffer[..length]).into_owned()),
            Err(_) => None,
        })
    }

    /// What came by now is forgotten.
    pub(crate) fn drain(&self) -> Result<()> {
        while self.hear(Duration::from_millis(50))?.is_some() {}
        Ok(())
    }
}

#[test]
fn a_forged_packet_has_the_sum_of_the_book() {
    // The example of RFC 1071's section 3, as a header.
    assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
}
