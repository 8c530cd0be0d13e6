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

/// Answers questions until the task is ended.
pub(super) async fn serve(core: Arc<Core>, place: Place, socket: std::net::UdpSocket) {
    let socket = match UdpSocket::from_std(socket) {
        Ok(socket) => Arc::new(socket),
        Err(error) => {
            tracing::error!(?place, %error, "questions over UDP cannot be waited for");
            return;
        }
    };
    let mut buffers = vec![[0; LENGTH]; BATCH].into_boxed_slice();
    let mut replies: Vec<(Vec<u8>, SockaddrStorage)> = Vec::with_capacity(BATCH);
    loop {
        if let Err(error) = socket.readable().await {
            tracing::error!(?place, %error, "questions over UDP cannot be waited for");
            return;
        }
        let received = socket.try_io(Interest::READABLE, || {
            let read = receive(&socket, &mut buffers, |bytes, peer| {
                if let Some(reply) = answer(&core, place, &socket, bytes, peer) {
                    replies.push((reply, peer));
                }
            })?;
            // Fewer than there was room for: the kernel has found no other, which need not be asked of it again.
            if read < BATCH { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
        });
        send(&socket, &replies);
        replies.clear();
        match received {
            // Other listeners and those who wait have their turn, however many questions come here.
            Ok(()) => yield_now().await,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // Of one datagram (an ICMP error, memory): the next one is another.
            Err(error) => {
                tracing::debug!(?place, %error, "questions over UDP were lost");
                yield_now().await;
            }
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
    buffers: &mut [[u8; LENGTH]],
    mut each: impl FnMut(&[u8], SockaddrStorage),
) -> io::Result<usize> {
    let mut lengths = [(0, None); BATCH];
    let mut read = 0;
    {
        let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(buffers.len(), None);
        let mut slices: Vec<[IoSliceMut<'_>; 1]> =
            buffers.iter_mut().map(|buffer| [IoSliceMut::new(buffer)]).collect();
        let results =
            recvmmsg(socket.as_raw_fd(), &mut headers, slices.iter_mut(), MsgFlags::MSG_DONTWAIT, None)?;
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
    Ok(read)
}

/// Sends replies; one that cannot be sent is lost, as datagrams are, and holds up no other.
fn send(socket: &UdpSocket, replies: &[(Vec<u8>, SockaddrStorage)]) {
    let mut rest = replies;
    while !rest.is_empty() {
        let slices: Vec<[IoSlice<'_>; 1]> = rest.iter().map(|(reply, _)| [IoSlice::new(reply)]).collect();
        let peers: Vec<Option<SockaddrStorage>> = rest.iter().map(|(_, peer)| Some(*peer)).collect();
        let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(rest.len(), None);
        let sent =
            sendmmsg(socket.as_raw_fd(), &mut headers, slices.iter(), &peers, [], MsgFlags::MSG_DONTWAIT);
        let done = match sent {
            Ok(results) => results.count(),
            Err(Errno::EAGAIN) => return,
            Err(Errno::EINTR) => 0,
            Err(error) => {
                tracing::debug!(%error, "a reply was lost");
                1
            }
        };
        rest = rest.get(done..).unwrap_or_default();
    }
}

fn address(peer: &SockaddrStorage) -> Option<SocketAddr> {
    if let Some(v4) = peer.as_sockaddr_in() {
        return Some(SocketAddr::new(IpAddr::V4(v4.ip()), v4.port()));
    }
    let v6 = peer.as_sockaddr_in6()?;
    Some(std::net::SocketAddrV6::new(v6.ip(), v6.port(), v6.flowinfo(), v6.scope_id()).into())
}
