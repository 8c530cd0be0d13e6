//! SCTP packets by raw sockets, for kernels that have no SCTP of their own: what counts is that they arrive as they were sent.

use crate::TestNetns;
use anyhow::{Context, Result};
use socket2::{Domain, Socket, Type};
use std::{
    io,
    mem::MaybeUninit,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

/// How long a packet may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// `IPPROTO_SCTP` (RFC 9260).
const PROTOCOL: i32 = 132;

/// A raw socket that sends and receives packets of SCTP.
#[derive(Debug)]
pub struct Sctp {
    socket: Socket,
    v4: bool,
}

impl Sctp {
    /// Opens one at an address of a namespace.
    ///
    /// # Errors
    /// Not root, or the address is not there.
    pub fn open(netns: &TestNetns, local: IpAddr) -> Result<Self> {
        let made = netns.run(|| {
            let domain = Domain::for_address((local, 0).into());
            let socket = Socket::new(domain, Type::RAW, Some(PROTOCOL.into()))?;
            socket.bind(&SocketAddr::from((local, 0)).into())?;
            socket.set_read_timeout(Some(PATIENCE))?;
            Ok::<_, io::Error>(socket)
        })?;
        Ok(Self { socket: made.context("a raw socket")?, v4: local.is_ipv4() })
    }

    /// Sends a packet, common header first.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn send(&self, packet: &[u8], to: IpAddr) -> Result<()> {
        self.socket.send_to(packet, &SocketAddr::from((to, 0)).into()).context("sending SCTP").map(drop)
    }

    /// The next packet, from its common header on, and where it came from.
    ///
    /// # Errors
    /// None comes in time.
    pub fn receive(&self) -> Result<(Vec<u8>, IpAddr)> {
        let mut buffer = [MaybeUninit::<u8>::uninit(); 512];
        let (length, from) = self.socket.recv_from(&mut buffer).context("receiving SCTP")?;
        // SAFETY: the kernel has written so many bytes.
        let bytes: Vec<u8> = buffer[..length].iter().map(|byte| unsafe { byte.assume_init() }).collect();
        // A raw socket of IPv4 is given the IP header too.
        let header = if self.v4 { 20 } else { 0 };
        let from = from.as_socket().context("an internet address")?.ip();
        Ok((bytes.get(header..).context("an IP header")?.to_vec(), from))
    }
}

/// A packet with the common header and an INIT chunk. Its checksum is not right, which nobody on the way may mind or mend.
pub fn init(source: u16, destination: u16) -> Vec<u8> {
    let mut packet = [source.to_be_bytes(), destination.to_be_bytes()].concat();
    // Verification tag zero, checksum, then INIT of 20 bytes: tag, window, streams, first number.
    packet.extend([0, 0, 0, 0, 0xde, 0xad, 0xbe, 0xef]);
    packet.extend([1, 0, 0, 20, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
    packet
}
