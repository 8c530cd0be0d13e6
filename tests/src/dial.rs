//! Clients that an application might be: TCP and UDP, of either family or IPv4 on an IPv6 socket, connected or not, from a port
//! of their own choice. They hold what the kernel tells them about their peer against what they dialled.

use crate::{
    TestNetns,
    echo::{Answer, Protocol},
};
use anyhow::{Context, Result, ensure};
use socket2::{Domain, SockAddr, Socket, Type};
use std::{
    fmt,
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    time::Duration,
};

/// How long a client waits for an answer unless told otherwise.
const PATIENCE: Duration = Duration::from_secs(3);

/// A question to an [`Echo`](crate::echo::Echo).
#[derive(Debug, Clone, Copy)]
pub struct Dial {
    protocol: Protocol,
    to: SocketAddr,
    mapped: bool,
    connected: bool,
    from: Option<SocketAddr>,
    question: usize,
    answer: usize,
    patience: Duration,
}

/// What a client learned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    /// What the server said.
    pub answer: Answer,
    /// The client's own address and port, as its socket has them. An unconnected socket has no address.
    pub local: SocketAddr,
}

impl fmt::Display for Dial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", self.protocol.name(), self.to)?;
        if let Some(from) = self.from {
            write!(f, " from {from}")?;
        }
        if self.mapped {
            f.write_str(", v4-mapped")?;
        }
        if !self.connected {
            f.write_str(", unconnected")?;
        }
        if self.question > 0 || self.answer > 1 {
            write!(f, ", {} bytes there and {} back", self.question, self.answer)?;
        }
        Ok(())
    }
}

impl Dial {
    /// To `to`, by a connected socket of the family of `to`.
    pub fn new(protocol: Protocol, to: SocketAddr) -> Self {
        let (question, answer) = (0, 1);
        Self {
            protocol,
            to,
            mapped: false,
            connected: true,
            from: None,
            question,
            answer,
            patience: PATIENCE,
        }
    }

    /// By an IPv6 socket that takes IPv4 too, as Java, Go and Node make them.
    #[must_use]
    pub fn mapped(mut self) -> Self {
        self.mapped = true;
        self
    }

    /// By `sendto` and `recvfrom`; only UDP can.
    #[must_use]
    pub fn unconnected(mut self) -> Self {
        self.connected = false;
        self
    }

    /// From this address and port; either may be unspecified.
    #[must_use]
    pub fn from(mut self, from: SocketAddr) -> Self {
        self.from = Some(from);
        self
    }

    /// From this port.
    #[must_use]
    pub fn from_port(self, port: u16) -> Self {
        let any: IpAddr =
            if self.to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        self.from((any, port).into())
    }

    /// With a datagram of at least so many bytes, and an answer of at least so many.
    #[must_use]
    pub fn sizes(mut self, question: usize, answer: usize) -> Self {
        (self.question, self.answer) = (question, answer);
        self
    }

    /// Gives up after `patience`: for what is expected not to be answered.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Asks from inside a namespace.
    ///
    /// # Errors
    /// No whole answer came in time, or the kernel names another peer than the one that was dialled.
    pub fn ask(self, netns: &TestNetns) -> Result<Heard> {
        let asked = netns.run(|| self.open().and_then(|socket| self.exchange(socket)))?;
        asked.with_context(|| format!("{self}, dialled in {}", netns.path().display()))
    }

    /// The error number with which connecting, sending or receiving ended, e.g. `ECONNREFUSED`.
    ///
    /// # Errors
    /// It was answered, or failed without such a number.
    pub fn refusal(self, netns: &TestNetns) -> Result<i32> {
        let Err(error) = self.ask(netns) else { anyhow::bail!("{self} was answered") };
        let number = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
        number.with_context(|| format!("no error number: {error:#}"))
    }

    /// Whether it is answered.
    pub fn is_answered(self, netns: &TestNetns) -> bool {
        self.ask(netns).is_ok()
    }

    fn open(&self) -> Result<Socket> {
        let v6 = self.mapped || self.to.is_ipv6();
        let domain = if v6 { Domain::IPV6 } else { Domain::IPV4 };
        let kind = match self.protocol {
            Protocol::Tcp => Type::STREAM,
            Protocol::Udp => Type::DGRAM,
        };
        let socket = Socket::new(domain, kind, None)?;
        if v6 {
            socket.set_only_v6(!self.mapped)?;
        }
        socket.set_read_timeout(Some(self.patience))?;
        socket.set_write_timeout(Some(self.patience))?;
        if let Some(from) = self.from {
            socket.set_reuse_address(true)?;
            socket.bind(&self.as_dialled(from)).with_context(|| format!("binding {from}"))?;
        }
        Ok(socket)
    }

    /// An address in the form that the socket takes.
    fn as_dialled(&self, address: SocketAddr) -> SockAddr {
        match address.ip() {
            IpAddr::V4(ip) if self.mapped => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
            _ => address,
        }
        .into()
    }

    fn check_peer(&self, call: &str, peer: io::Result<SocketAddr>) -> Result<()> {
        let peer = peer.context(call.to_owned())?;
        let plain = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        ensure!(plain == self.to, "{call} says {peer} instead of {}", self.to);
        ensure!(peer.is_ipv6() == (self.mapped || self.to.is_ipv6()), "{call} says {peer}: another family");
        Ok(())
    }

    fn exchange(&self, socket: Socket) -> Result<Heard> {
        let mut question = self.answer.to_string().into_bytes();
        question.resize(question.len().max(self.question), b' ');
        let to = self.as_dialled(self.to);
        if self.connected {
            match self.protocol {
                Protocol::Tcp => socket.connect_timeout(&to, self.patience)?,
                Protocol::Udp => socket.connect(&to)?,
            }
        }
        let local = |address: io::Result<SocketAddr>| {
            address.map(|a| SocketAddr::new(a.ip().to_canonical(), a.port()))
        };
        let mut said = Vec::new();
        let local = match self.protocol {
            Protocol::Tcp => {
                let mut stream = TcpStream::from(socket);
                self.check_peer("getpeername", stream.peer_addr())?;
                stream.write_all(&question)?;
                stream.read_to_end(&mut said)?;
                local(stream.local_addr())?
            }
            Protocol::Udp => {
                let socket = UdpSocket::from(socket);
                said.resize(1 << 16, 0);
                if self.connected {
                    self.check_peer("getpeername", socket.peer_addr())?;
                    socket.send(&question)?;
                } else if let Some(to) = to.as_socket() {
                    socket.send_to(&question, to)?;
                }
                let (length, from) = socket.recv_from(&mut said)?;
                said.truncate(length);
                self.check_peer("recvfrom", Ok(from))?;
                local(socket.local_addr())?
            }
        };
        ensure!(said.len() >= self.answer, "{} of {} bytes came", said.len(), self.answer);
        Ok(Heard { answer: Answer::of(&said)?, local })
    }
}
