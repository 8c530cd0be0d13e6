//! TCP connections that stay open, one or very many, to see that they live on.

use crate::{TestNetns, poll_for};
use anyhow::{Context, Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};
use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

/// How long one exchange may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// A listener whose connections are kept.
#[derive(Debug)]
pub struct Hall {
    listener: TcpListener,
}

/// Both ends of a connection.
#[derive(Debug)]
pub struct Pair {
    /// The end that dialled.
    pub client: TcpStream,
    /// The end that was dialled.
    pub server: TcpStream,
}

impl Hall {
    /// Listens inside a namespace.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub fn open(netns: &TestNetns, listening: SocketAddr) -> Result<Self> {
        let listener = netns.run(|| TcpListener::bind(listening))?;
        let listener = listener.with_context(|| format!("listening at {listening}"))?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener })
    }

    /// Lets `clients` dial an address that leads here, from a port of its own choice if one is given.
    ///
    /// # Errors
    /// The connection is not made.
    pub fn dial(&self, clients: &TestNetns, dialled: SocketAddr, from: Option<SocketAddr>) -> Result<Pair> {
        let pair = clients.run(|| self.join(dialled, from))?;
        pair.with_context(|| format!("connecting {} to {dialled} from {from:?}", clients.path().display()))
    }

    /// The same for many.
    ///
    /// # Errors
    /// One of them is not made.
    pub fn crowd(&self, clients: &TestNetns, dialled: SocketAddr, number: usize) -> Result<Crowd> {
        // Two descriptors each.
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, soft.max(16384).min(hard), hard)?;
        let numbered = |n| self.join(dialled, None).with_context(|| format!("connection {n} to {dialled}"));
        let pairs: Result<_> = clients.run(|| (0..number).map(numbered).collect())?;
        Ok(Crowd { pairs: pairs? })
    }

    fn join(&self, dialled: SocketAddr, from: Option<SocketAddr>) -> Result<Pair> {
        let socket = Socket::new(Domain::for_address(dialled), Type::STREAM, None)?;
        if let Some(from) = from {
            socket.set_reuse_address(true)?;
            socket.bind(&from.into())?;
        }
        socket.connect_timeout(&dialled.into(), PATIENCE)?;
        let accepted = poll_for(PATIENCE, "a connection to be accepted", || self.listener.accept().ok());
        let (client, (server, _)) = (TcpStream::from(socket), accepted?);
        server.set_nonblocking(false)?;
        for stream in [&client, &server] {
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            stream.set_nodelay(true)?;
        }
        Ok(Pair { client, server })
    }
}

impl Pair {
    /// Says a number on both ends and hears it at the other.
    ///
    /// # Errors
    /// The connection is broken, or another one's.
    pub fn check(&mut self, number: u32) -> Result<()> {
        self.say(number)?;
        self.hear(number)
    }

    /// Sends so many bytes, in both directions one after the other, and compares what arrives.
    ///
    /// # Errors
    /// They do not arrive, or not as they were sent.
    pub fn carry(&mut self, bytes: usize) -> Result<()> {
        let sent: Vec<u8> = (0..251u8).cycle().take(bytes).collect();
        for (from, to, way) in
            [(&self.client, &self.server, "to the server"), (&self.server, &self.client, "to the client")]
        {
            let mut got = vec![0; bytes];
            let (mut from, mut to) = (from, to);
            std::thread::scope(|scope| {
                let writer = scope.spawn(|| from.write_all(&sent));
                let read = to.read_exact(&mut got);
                // A blocked writer has a time-out of its own.
                let written = writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))?;
                read.and(written).with_context(|| format!("{bytes} bytes {way}"))
            })?;
            ensure!(got == sent, "what came {way} is not what was sent");
        }
        Ok(())
    }

    fn say(&mut self, number: u32) -> io::Result<()> {
        self.client.write_all(&number.to_be_bytes())?;
        self.server.write_all(&number.to_be_bytes())
    }

    fn hear(&mut self, number: u32) -> Result<()> {
        for end in [&mut self.server, &mut self.client] {
            let mut heard = [0; 4];
            end.read_exact(&mut heard)?;
            let heard = u32::from_be_bytes(heard);
            ensure!(heard == number, "{heard} was heard instead of {number}");
        }
        Ok(())
    }
}

/// Many connections that are silent between checks.
#[derive(Debug)]
pub struct Crowd {
    pairs: Vec<Pair>,
}

impl Crowd {
    /// Says something on each, both ways.
    ///
    /// # Errors
    /// Some are broken; the message says which.
    pub fn check(&mut self) -> Result<()> {
        let mut broken = Vec::new();
        let total = self.pairs.len();
        // All of them speak first, so that what has to be sent again is waited for together.
        for (n, pair) in self.pairs.iter_mut().enumerate() {
            if let Err(error) = pair.say(u32::try_from(n)?) {
                broken.push(format!("{n}: {error}"));
            }
        }
        for (n, pair) in self.pairs.iter_mut().enumerate() {
            if let Err(error) = pair.hear(u32::try_from(n)?) {
                broken.push(format!("{n}: {error:#}"));
            }
            ensure!(
                broken.len() < 4,
                "of {total} connections these are broken, and perhaps more: {broken:?}"
            );
        }
        ensure!(broken.is_empty(), "of {total} connections these are broken: {broken:?}");
        Ok(())
    }
}
