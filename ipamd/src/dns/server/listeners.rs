//! Which sockets are open. Owns them: a listener that is taken away ends with its connections, one that stays is not touched.

use ipamd_api::{EndpointId, netns::in_netns};
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::fd::BorrowedFd,
    sync::{Mutex, PoisonError},
};
use tokio::runtime::Runtime;

/// Where a sandbox's resolver is (Docker's convention, on which images rely).
const INSIDE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 11));

/// Room for questions that wait in a socket, bytes: a burst of 10,000.
const RECEIVE_BUFFER: usize = 8 << 20;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 256;

/// An address that cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot answer DNS at {address}: {cause}; {next}")]
pub struct ListenError {
    /// Address and port.
    pub address: SocketAddr,
    cause: io::Error,
    next: &'static str,
}

/// Whose questions come to a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// A gateway address: those of the endpoint whose address they come from.
    Gateway(IpAddr),
    /// The inside of a sandbox: those of that endpoint.
    Inside(EndpointId),
}

/// The sockets of one listener.
#[derive(Debug)]
pub(super) struct Sockets {
    pub(super) udp: std::net::UdpSocket,
    pub(super) tcp: std::net::TcpListener,
}

pub(super) struct Listeners {
    runtime: Option<Runtime>,
    port: u16,
    open: Mutex<BTreeMap<Place, Sockets>>,
}

impl Listeners {
    pub(super) fn new(runtime: Runtime, port: u16) -> Self {
        Self { runtime: Some(runtime), port, open: Mutex::default() }
    }

    pub(super) fn set(&self, addresses: &BTreeSet<IpAddr>) -> Vec<ListenError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|place, _| match place {
            Place::Gateway(address) => addresses.contains(address),
            Place::Inside(_) => true,
        });
        let mut failed = Vec::new();
        for &address in addresses {
            let place = Place::Gateway(address);
            if open.contains_key(&place) {
                continue;
            }
            let at = SocketAddr::new(address, self.port);
            match Sockets::open(at) {
                Ok(sockets) => drop(open.insert(place, sockets)),
                Err(cause) => failed.push(ListenError::new(at, cause)),
            }
        }
        failed
    }

    pub(super) fn add_inside(
        &self,
        endpoint: EndpointId,
        sandbox: BorrowedFd<'_>,
    ) -> Result<(), ListenError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let place = Place::Inside(endpoint);
        if open.contains_key(&place) {
            return Ok(());
        }
        let at = SocketAddr::new(INSIDE, self.port);
        let sockets = in_netns(sandbox, || Sockets::open(at))
            .and_then(|opened| opened)
            .map_err(|cause| ListenError::new(at, cause))?;
        open.insert(place, sockets);
        Ok(())
    }

    pub(super) fn remove_inside(&self, endpoint: EndpointId) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.remove(&Place::Inside(endpoint));
    }
}

impl Drop for Listeners {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Waiting is not allowed where this may be dropped: in a task of the daemon's runtime.
            runtime.shutdown_background();
        }
    }
}

impl fmt::Debug for Listeners {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        f.debug_set().entries(open.keys()).finish()
    }
}

impl Sockets {
    fn open(at: SocketAddr) -> io::Result<Self> {
        let udp = bind(at, Type::DGRAM, Protocol::UDP)?;
        // The kernel gives what it allows; a smaller buffer only loses questions of a burst, and clients ask again.
        let _ = udp.set_recv_buffer_size(RECEIVE_BUFFER);
        let tcp = bind(at, Type::STREAM, Protocol::TCP)?;
        tcp.listen(BACKLOG)?;
        Ok(Self { udp: udp.into(), tcp: tcp.into() })
    }
}

/// A socket at an address that may come later (`IP_FREEBIND`).
fn bind(at: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(at), kind, Some(protocol))?;
    socket.set_nonblocking(true)?;
    match at {
        SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
        SocketAddr::V6(_) => {
            socket.set_only_v6(true)?;
            socket.set_freebind_v6(true)?;
        }
    }
    if kind == Type::STREAM {
        // Connections of an ipamd before this one may still be closing.
        socket.set_reuse_address(true)?;
    }
    socket.bind(&at.into())?;
    Ok(socket)
}

impl ListenError {
    fn new(address: SocketAddr, cause: io::Error) -> Self {
        let next = match cause.kind() {
            io::ErrorKind::AddrInUse => {
                "another program answers there: let it leave this address out, or set the network's dns to \"off\""
            }
            io::ErrorKind::PermissionDenied => "ipamd needs CAP_NET_BIND_SERVICE and CAP_NET_ADMIN",
            _ => {
                "names of the network are answered by the programs only, until the next change of networks tries again"
            }
        };
        Self { address, cause, next }
    }
}
