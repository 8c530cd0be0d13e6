//! Questions as datagrams, many in one system call.

use super::{
    core::{Client, Core, Handled, ReplyTo},
    listeners::Place,
    log::Transport,
};
use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg},
};
use std::{
    cell::RefCell,
    io::{self, IoSlice, IoSliceMut},
    net::{IpAddr, SocketAddr},
    os::fd::AsRawFd as _,
    sync::Arc,
};
use tokio::{io::Interest, net::UdpSocket, task::yield_now};

/// Datagrams in one call.
const BATCH: usize = 32;

/// Longest question that is read; one that is longer is no question, as it has no more than a name and options in it.
const LENGTH: usize = 2048;

/// Batches after which others have their turn: other listeners, and those who wait.
const TURN: usize = 8;

/// What a call reads into. The kernel leaves lengths of addresses in the headers, so each family has its own.
struct Batch {
    headers: MultiHeaders<SockaddrStorage>,
    buffers: Box<[[u8; LENGTH]; BATCH]>,
}

impl Batch {
    fn new() -> RefCell<Self> {
        let headers = MultiHeaders::preallocate(BATCH, None);
        RefCell::new(Self { headers, buffers: Box::new([[0; LENGTH]; BATCH]) })
    }
}

thread_local! {
    // Of threads and not of listeners, of which there may be thousands inside of sandboxes: 64 KiB each.
    static IPV4: RefCell<Batch> = Batch::new();
    static IPV6: RefCell<Batch> = Batch::new();
}

/// Replies, and to whom.
#[derive(Default)]
struct Replies {
    messages: Vec<Vec<u8>>,
    peers: Vec<Option<SockaddrStorage>>,
}

/// Answers questions until the task is ended.
pub(super) async fn serve(core: Arc<Core>, place: Place, socket: std::net::UdpSocket) {
    let is_ipv4 = socket.local_addr().is_ok_and(|address| address.is_ipv4());
    let batch = if is_ipv4 { &IPV4 } else { &IPV6 };
    let socket = match UdpSocket::from_std(socket) {
        Ok(socket) => Arc::new(socket),
        Err(error) => {
            tracing::error!(?place, %error, "questions over UDP cannot be waited for");
            return;
        }
    };
    let mut replies = Replies::default();
    loop {
        if let Err(error) = socket.readable().await {
            tracing::error!(?place, %error, "questions over UDP cannot be waited for");
            return;
        }
        let mut more = true;
        for _ in 0..TURN {
            let received = socket.try_io(Interest::READABLE, || {
                batch.with_borrow_mut(|batch| {
                    receive(&socket, batch, |bytes, peer| {
                        if let Some(reply) = answer(&core, place, &socket, bytes, peer) {
                            replies.messages.push(reply);
                            replies.peers.push(Some(peer));
                        }
                    })
                })
            });
            replies.send(&socket);
            match received {
                // While these were answered others may have come: to ask for them costs less than to wait for them.
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    more = false;
                    break;
                }
                // Of one datagram (an ICMP error, memory): the next one is another.
                Err(error) => tracing::debug!(?place, %error, "questions over UDP were lost"),
            }
        }
        if more {
            yield_now().await;
        }
    }
}

fn answer(
    core: &Arc<Core>,
    place: Place,
    socket: &Arc<UdpSocket>,
    bytes: &[u8],
    peer: SockaddrStorage,
) -> Option<Vec<u8>> {
    let peer = address(&peer)?;
    if peer.port() == 0 {
        return None;
    }
    let client = Client { place, source: peer.ip(), transport: Transport::Udp };
    match core.handle(bytes, client) {
        Handled::Reply(reply) => Some(reply),
        Handled::Silence => None,
        Handled::Forward(job) => core.forward(*job, ReplyTo::Udp(Arc::downgrade(socket), peer)),
    }
}

/// Reads what is there, up to a batch.
fn receive(
    socket: &UdpSocket,
    batch: &mut Batch,
    mut each: impl FnMut(&[u8], SockaddrStorage),
) -> io::Result<()> {
    let Batch { headers, buffers } = batch;
    let mut lengths = [(0, None); BATCH];
    let mut read = 0;
    {
        let mut slices = buffers.each_mut().map(|buffer| [IoSliceMut::new(buffer)]);
        let results = recvmmsg(socket.as_raw_fd(), headers, slices.iter_mut(), MsgFlags::MSG_DONTWAIT, None)?;
        for (place, message) in lengths.iter_mut().zip(results) {
            *place = (message.bytes, message.address);
            read += 1;
        }
    }
    for (buffer, (length, peer)) in buffers.iter().zip(lengths).take(read) {
        if let (Some(bytes), Some(peer)) = (buffer.get(..length), peer) {
            each(bytes, peer);
        }
    }
    Ok(())
}

impl Replies {
    /// Sends them all, and has none then; one that cannot be sent is lost, as datagrams are, and holds up no other.
    fn send(&mut self, socket: &UdpSocket) {
        let mut from = 0;
        while let (Some(messages @ [_, ..]), Some(peers)) =
            (self.messages.get(from..), self.peers.get(from..))
        {
            let slices: Vec<[IoSlice<'_>; 1]> = messages.iter().map(|reply| [IoSlice::new(reply)]).collect();
            let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(messages.len(), None);
            let sent =
                sendmmsg(socket.as_raw_fd(), &mut headers, slices.iter(), peers, [], MsgFlags::MSG_DONTWAIT);
            from += match sent {
                Ok(results) => results.count(),
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => 0,
                Err(error) => {
                    tracing::debug!(%error, "a reply was lost");
                    1
                }
            };
        }
        self.messages.clear();
        self.peers.clear();
    }
}

fn address(peer: &SockaddrStorage) -> Option<SocketAddr> {
    if let Some(v4) = peer.as_sockaddr_in() {
        return Some(SocketAddr::new(IpAddr::V4(v4.ip()), v4.port()));
    }
    let v6 = peer.as_sockaddr_in6()?;
    Some(std::net::SocketAddrV6::new(v6.ip(), v6.port(), v6.flowinfo(), v6.scope_id()).into())
}
