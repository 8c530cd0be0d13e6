//! Which sockets are open. Owns them: a listener that is taken away ends with its connections, one that stays is not touched.

use super::{core::Core, tcp, udp};
use ipamd_api::{EndpointId, netns::in_netns};
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::fd::BorrowedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    time::Duration,
};
use tokio::{runtime::Runtime, task::AbortHandle};

/// Where a sandbox's resolver is (Docker's convention, on which images rely).
pub const INSIDE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 11));

/// Room for questions that wait in a socket, bytes: a burst of 10,000.
const RECEIVE_BUFFER: usize = 8 << 20;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 256;

/// How long a task may take to end: no longer than one batch of questions.
const END: Duration = Duration::from_secs(1);

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
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Place {
    /// A gateway address: those of the endpoint whose address they come from.
    Gateway(IpAddr),
    /// The inside of a sandbox: those of that endpoint.
    Inside(EndpointId),
}

/// The sockets of one listener.
struct Sockets {
    udp: std::net::UdpSocket,
    tcp: std::net::TcpListener,
}

/// A task that owns a socket. Dropped, it has ended and the socket is closed, so that it can be opened anew at once.
struct Task {
    abort: AbortHandle,
    ended: mpsc::Receiver<()>,
}

pub(super) struct Listeners {
    runtime: Option<Runtime>,
    core: Arc<Core>,
    open: Mutex<BTreeMap<Place, [Task; 2]>>,
}

impl Listeners {
    pub(super) fn new(runtime: Runtime, core: Arc<Core>) -> Self {
        Self { runtime: Some(runtime), core, open: Mutex::default() }
    }

    pub(super) fn set(&self, addresses: &BTreeSet<IpAddr>) -> Vec<ListenError> {
        let mut open = self.open();
        open.retain(|place, _| match place {
            Place::Gateway(address) => addresses.contains(address),
            Place::Inside(_) => true,
        });
        self.core.set_own(addresses.clone());
        let mut failed = Vec::new();
        for &address in addresses {
            let place = Place::Gateway(address);
            if open.contains_key(&place) {
                continue;
            }
            let at = SocketAddr::new(address, self.core.options.port);
            match Sockets::open(at) {
                Ok(sockets) => drop(open.insert(place, self.serve(place, sockets))),
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
        let mut open = self.open();
        let place = Place::Inside(endpoint);
        if open.contains_key(&place) {
            return Ok(());
        }
        let at = SocketAddr::new(INSIDE, self.core.options.port);
        let sockets = in_netns(sandbox, || Sockets::open(at))
            .and_then(|opened| opened)
            .map_err(|cause| ListenError::new(at, cause))?;
        open.insert(place, self.serve(place, sockets));
        Ok(())
    }

    pub(super) fn remove_inside(&self, endpoint: EndpointId) {
        self.open().remove(&Place::Inside(endpoint));
    }

    fn open(&self) -> MutexGuard<'_, BTreeMap<Place, [Task; 2]>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, place: Place, sockets: Sockets) -> [Task; 2] {
        let Sockets { udp, tcp } = sockets;
        [
            self.task(udp::serve(Arc::clone(&self.core), place, udp)),
            self.task(tcp::serve(Arc::clone(&self.core), place, tcp)),
        ]
    }

    fn task(&self, work: impl Future<Output = ()> + Send + 'static) -> Task {
        let (ends, ended) = mpsc::channel();
        // Together, so that the work is dropped first, also by a task that never ran.
        let owned = (work, ends);
        let task = self.core.runtime.spawn(async move {
            let (work, _ends) = owned;
            work.await;
        });
        Task { abort: task.abort_handle(), ended }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.abort.abort();
        // Nothing is ever sent: the other end goes with the task.
        let _ = self.ended.recv_timeout(END);
    }
}

impl Drop for Listeners {
    fn drop(&mut self) {
        self.open().clear();
        if let Some(runtime) = self.runtime.take() {
            // Waiting is not allowed where this may be dropped: in a task of the daemon's runtime.
            runtime.shutdown_background();
        }
    }
}

impl fmt::Debug for Listeners {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.open().keys()).finish()
    }
}

impl Sockets {
    fn open(at: SocketAddr) -> io::Result<Self> {
        let udp = bind(at, Type::DGRAM, Protocol::UDP)?;
        // Beyond net.core.rmem_max, which is 200 KiB by default. A smaller buffer only loses questions of a burst, and clients
        // ask again.
        let _ = setsockopt(&udp, RcvBufForce, &RECEIVE_BUFFER);
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
