//! Servers that answer what they are sent and say who sent it, and their clients: TCP and UDP inside a namespace.

use crate::{TestNetns, poll::wait_to_read};
use anyhow::{Context, Result, bail, ensure};
use std::{
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// How often a server looks whether it is to end.
const LOOK: Duration = Duration::from_millis(50);

/// The protocols that have clients and servers here.
pub const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

/// Transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// One connection a question.
    Tcp,
    /// One datagram a question.
    Udp,
}

impl Protocol {
    /// As firewall rules write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// What came back from an [`Echo`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Which server answered.
    pub server: String,
    /// Who it took the client for.
    pub client: IpAddr,
    /// And at which port.
    pub port: u16,
}

impl Answer {
    /// Reads what a server wrote.
    ///
    /// # Errors
    /// It is no answer.
    pub fn of(said: &[u8]) -> Result<Self> {
        let text = std::str::from_utf8(said)?;
        let mut words = text.split(' ');
        let mut next = || words.next().unwrap_or_default();
        let (server, client, port) = (next().to_owned(), next().parse(), next().parse());
        match (client, port) {
            (Ok(client), Ok(port)) => Ok(Self { server, client, port }),
            _ => bail!("an answer of {text:?}"),
        }
    }

    /// Who it took the client for, port included.
    pub fn seen(&self) -> SocketAddr {
        (self.client, self.port).into()
    }
}

/// Answers on both protocols at one port until it is dropped: `<name> <client's address> <its port>`, filled up with dots to
/// the length that the client asked for.
#[derive(Debug)]
pub struct Echo {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Echo {
    /// Listens at `address` (the unspecified one for all) inside a namespace.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub fn start(netns: &TestNetns, name: &str, address: SocketAddr) -> Result<Self> {
        let bound =
            netns.run(|| Ok::<_, io::Error>((TcpListener::bind(address)?, UdpSocket::bind(address)?)))?;
        let (tcp, udp) = bound.with_context(|| format!("{name} cannot listen at {address}"))?;
        tcp.set_nonblocking(true)?;
        udp.set_read_timeout(Some(LOOK))?;
        let stop = Arc::new(AtomicBool::new(false));
        let (ended, label) = (Arc::clone(&stop), name.to_owned());
        let datagrams = thread::spawn(move || serve_udp(&udp, &label, &ended));
        let (ended, label) = (Arc::clone(&stop), name.to_owned());
        let streams = thread::spawn(move || serve_tcp(&tcp, &label, &ended));
        Ok(Self { stop, threads: vec![datagrams, streams] })
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panic in it has been printed; the test judges by what its clients got.
            let _ = thread.join();
        }
    }
}

fn serve_udp(socket: &UdpSocket, name: &str, stop: &AtomicBool) {
    let mut question = vec![0; 1 << 16];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((length, client)) = socket.recv_from(&mut question) {
            // A client that went away shows at the client.
            let _ = socket.send_to(&answer(name, client, &question[..length]), client);
        }
    }
}

fn serve_tcp(listener: &TcpListener, name: &str, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        if wait_to_read(listener, LOOK)
            && let Ok((stream, client)) = listener.accept()
        {
            // As above.
            let _ = serve_stream(stream, name, client);
        }
    }
}

fn serve_stream(mut stream: TcpStream, name: &str, client: SocketAddr) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut question = [0; 64];
    let length = stream.read(&mut question)?;
    stream.write_all(&answer(name, client, &question[..length]))
}

fn answer(name: &str, client: SocketAddr, question: &[u8]) -> Vec<u8> {
    let wanted =
        std::str::from_utf8(question).ok().and_then(|text| text.trim_end().parse().ok()).unwrap_or(0);
    let mut answer = format!("{name} {} {} ", client.ip().to_canonical(), client.port()).into_bytes();
    answer.resize(answer.len().max(wanted), b'.');
    answer
}

/// Asks the server at `address` from inside a namespace for an answer of at least `length` bytes.
///
/// # Errors
/// No whole answer came within three seconds.
pub fn ask(netns: &TestNetns, protocol: Protocol, address: SocketAddr, length: usize) -> Result<Answer> {
    let asked = netns.run(|| match protocol {
        Protocol::Tcp => ask_tcp(address, length),
        Protocol::Udp => ask_udp(address, length),
    })?;
    let got = asked.with_context(|| {
        format!("{} from {} to {address}, {length} bytes", protocol.name(), netns.path().display())
    })?;
    ensure!(got.len() >= length, "{} of {length} bytes came from {address}", got.len());
    Answer::of(&got)
}

fn ask_tcp(address: SocketAddr, length: usize) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(length.to_string().as_bytes())?;
    let mut got = Vec::new();
    stream.read_to_end(&mut got)?;
    Ok(got)
}

fn ask_udp(address: SocketAddr, length: usize) -> io::Result<Vec<u8>> {
    let any: IpAddr = if address.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
    let socket = UdpSocket::bind((any, 0))?;
    // Connected: an answer from any other address than the one that was asked is no answer.
    socket.connect(address)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(length.to_string().as_bytes())?;
    let mut got = vec![0; 1 << 16];
    let length = socket.recv(&mut got)?;
    got.truncate(length);
    Ok(got)
}
