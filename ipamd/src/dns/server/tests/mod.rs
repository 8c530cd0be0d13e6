//! The server with real sockets, in a network namespace of its own, and upstreams that misbehave.

mod clients;
mod many;
mod unbound;
mod upstreams;

use super::*;
use crate::dns::{Host, name::DomainName};
use hickory_proto::{
    op::{Edns, Message, OpCode, Query, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata},
};
use nix::sched::{CloneFlags, unshare};
use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, UdpSocket},
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

/// Where the server listens, and endpoints that ask it.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(127, 0, 1, 1);
const ASKER: Ipv4Addr = Ipv4Addr::new(127, 0, 1, 2);
const OTHER: Ipv4Addr = Ipv4Addr::new(127, 0, 1, 3);

/// Upstreams.
const FIRST: Ipv4Addr = Ipv4Addr::new(127, 0, 2, 1);
const SECOND: Ipv4Addr = Ipv4Addr::new(127, 0, 2, 2);

/// Ten times what is seen on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs a test on a thread with a network namespace of its own that has a loopback device.
pub(super) fn alone(test: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let run = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("this test needs root: it makes a network namespace");
            assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
            test();
        });
        if let Err(panic) = run.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Waits for something.
pub(super) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "in vain: {what}");
        std::thread::yield_now();
    }
}

/// Endpoints 1 (`web`, [`ASKER`]) and 2 ([`OTHER`]) on the network `mynet`.
pub(super) struct Fixed {
    book: Book,
    network: Arc<NetworkDns>,
}

impl Names for Fixed {
    fn asker(&self, source: IpAddr) -> Option<Asker> {
        let number = match source {
            IpAddr::V4(ASKER) | IpAddr::V6(Ipv6Addr::LOCALHOST) => 1,
            IpAddr::V4(OTHER) => 2,
            _ => return None,
        };
        self.asker_at(EndpointId::new(number)?)
    }

    fn asker_at(&self, endpoint: EndpointId) -> Option<Asker> {
        Some(Asker { endpoint, networks: vec![1] })
    }

    fn with_book(&self, read: &mut dyn FnMut(&Book)) {
        read(&self.book);
    }

    fn network(&self, _: u32) -> Option<Arc<NetworkDns>> {
        Some(Arc::clone(&self.network))
    }

    fn in_pools(&self, _: IpAddr) -> bool {
        false
    }

    fn ttl(&self) -> u32 {
        60
    }
}

pub(super) fn fixed() -> Arc<Fixed> {
    let mut book = Book::default();
    let domain: DomainName = "mynet".parse().unwrap();
    let host = Host {
        names: ["web".parse().unwrap()].into(),
        canonical: "web.mynet".parse().unwrap(),
        addresses: [ASKER.into()].into(),
        services: Vec::new(),
    };
    book.zone_mut(1).add_domain(domain.clone());
    book.zone_mut(1).set("web", Some(host));
    Arc::new(Fixed {
        book,
        network: Arc::new(NetworkDns { domain: Some(domain), upstreams: Vec::new(), outside: true }),
    })
}

/// A server at the gateway address, with these upstreams.
pub(super) struct Scene {
    pub(super) server: DnsServer,
    pub(super) dir: tempfile::TempDir,
}

pub(super) fn scene(upstreams: &[Ipv4Addr], change: impl FnOnce(&mut DnsOptions)) -> Scene {
    let dir = tempfile::tempdir().unwrap();
    let resolv_conf = dir.path().join("resolv.conf");
    std::fs::write(&resolv_conf, conf(upstreams)).unwrap();
    let mut options = DnsOptions { resolv_conf, ..DnsOptions::default() };
    change(&mut options);
    let server = DnsServer::start(fixed(), options).unwrap();
    let failed = server.set_listeners(&[GATEWAY.into()].into());
    assert!(failed.is_empty(), "{failed:?}");
    Scene { server, dir }
}

pub(super) fn conf(upstreams: &[Ipv4Addr]) -> String {
    upstreams.iter().map(|upstream| format!("nameserver {upstream}\n")).collect()
}

pub(super) fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(format!("{name}.")).unwrap(), kind));
    message
}

/// A socket of an endpoint, connected to the gateway.
pub(super) fn client(source: Ipv4Addr) -> UdpSocket {
    let socket = UdpSocket::bind((source, 0)).unwrap();
    socket.connect((GATEWAY, 53)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

pub(super) fn receive(socket: &UdpSocket) -> Message {
    let mut buffer = [0; 4096];
    let length = socket.recv(&mut buffer).expect("no answer came");
    Message::from_vec(&buffer[..length]).unwrap()
}

pub(super) fn ask(source: Ipv4Addr, message: &Message) -> Message {
    let socket = client(source);
    socket.send(&message.to_vec().unwrap()).unwrap();
    let answer = receive(&socket);
    assert_eq!(answer.metadata.id, message.metadata.id);
    assert_eq!(answer.queries, message.queries);
    answer
}

/// Result and addresses of an answer.
pub(super) fn gist(message: &Message) -> (ResponseCode, Vec<String>) {
    (message.metadata.response_code, message.answers.iter().map(|record| record.data.to_string()).collect())
}

pub(super) fn look_up(name: &str) -> (ResponseCode, Vec<String>) {
    gist(&ask(ASKER, &question(name, RecordType::A)))
}

/// The answer of an upstream to a query.
pub(super) fn reply_to(query: &Message, ttl: u32, address: [u8; 4]) -> Message {
    let mut reply = Message::response(query.metadata.id, OpCode::Query);
    reply.metadata.recursion_available = true;
    let asked = query.queries[0].clone();
    let data = RData::A(rdata::A(address.into()));
    reply.add_answer(Record::from_rdata(asked.name().clone(), ttl, data));
    reply.add_query(asked);
    reply.set_edns(Edns::new());
    reply
}

/// Over which the query came, and how it may be answered. Nothing is sent but what the test sends.
pub(super) enum Asked<'a> {
    Udp(&'a UdpSocket, SocketAddr),
    Tcp(&'a mut TcpStream),
}

impl Asked<'_> {
    pub(super) fn send(&mut self, message: &[u8]) {
        match self {
            Self::Udp(socket, peer) => drop(socket.send_to(message, *peer)),
            Self::Tcp(stream) => drop(stream.write_all(&super::tcp::framed(message))),
        }
    }

    pub(super) fn is_tcp(&self) -> bool {
        matches!(self, Self::Tcp(_))
    }
}

/// An upstream that does what the test says, and remembers what it was asked, and from which port.
pub(super) struct Upstream {
    pub(super) asked: Arc<Mutex<Vec<(u16, Message)>>>,
    stop: Arc<AtomicBool>,
}

impl Upstream {
    pub(super) fn start(
        at: Ipv4Addr,
        behave: impl Fn(&Message, &mut Asked<'_>) + Send + Sync + 'static,
    ) -> Self {
        let asked: Arc<Mutex<Vec<(u16, Message)>>> = Arc::default();
        let stop = Arc::new(AtomicBool::new(false));
        let behave = Arc::new(behave);
        let udp = UdpSocket::bind((at, 53)).unwrap();
        let tcp = TcpListener::bind((at, 53)).unwrap();
        udp.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        tcp.set_nonblocking(true).unwrap();
        let (stopped, remembered, other) = (Arc::clone(&stop), Arc::clone(&asked), Arc::clone(&behave));
        std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while !stopped.load(Ordering::Relaxed) {
                let Ok((length, peer)) = udp.recv_from(&mut buffer) else { continue };
                let query = Message::from_vec(&buffer[..length]).unwrap();
                remembered.lock().unwrap().push((peer.port(), query.clone()));
                other(&query, &mut Asked::Udp(&udp, peer));
            }
        });
        let (stopped, remembered) = (Arc::clone(&stop), Arc::clone(&asked));
        std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let Ok((mut stream, peer)) = tcp.accept() else {
                    std::thread::sleep(Duration::from_millis(5));
                    continue;
                };
                stream.set_nonblocking(false).unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                let Some(bytes) = read_framed(&mut stream) else { continue };
                let query = Message::from_vec(&bytes).unwrap();
                remembered.lock().unwrap().push((peer.port(), query.clone()));
                behave(&query, &mut Asked::Tcp(&mut stream));
            }
        });
        Self { asked, stop }
    }

    pub(super) fn count(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// A message over a connection; `None`: it was closed.
pub(super) fn read_framed(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).ok()?;
    let mut bytes = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut bytes).ok()?;
    Some(bytes)
}

/// An upstream that answers everything with one address.
pub(super) fn honest(at: Ipv4Addr, address: [u8; 4]) -> Upstream {
    Upstream::start(at, move |query, asked| asked.send(&reply_to(query, 300, address).to_vec().unwrap()))
}
