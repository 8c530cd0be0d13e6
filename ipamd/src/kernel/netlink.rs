//! A blocking route netlink socket that sends several requests at once and hears the outcome of each.
//!
//! Invariants: every request is acknowledged, so no outcome is guessed; a socket that failed in transport is never used
//! again; a refusal carries the kernel's own words (`NETLINK_EXT_ACK`). Thread rule: a socket belongs to the namespace it
//! was made in, whatever thread uses it later; one user at a time.

use super::{KernelError, Result};
use ipamd_api::netns::in_netns;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE,
    NLMSG_ERROR, NetlinkHeader, NetlinkMessage, NetlinkPayload, NlasIterator, ParseableParametrized,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, protocols::NETLINK_ROUTE};
use std::{
    fmt,
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::{Mutex, PoisonError},
};

/// Larger than any answer of the kernel (dumps use at most 32 KiB a datagram).
pub(super) const BUFFER: usize = 128 * 1024;

/// Length of `struct nlmsghdr`.
pub(super) const HEADER: usize = 16;

/// NLMSGERR_ATTR_MSG (`linux/netlink.h`): the kernel's words.
const ATTR_MSG: u16 = 1;

/// Acknowledgements of more would not fit into a socket's buffer (208 KiB as a rule, about 1 KiB each).
pub(super) const REQUESTS_AT_ONCE: usize = 100;

/// How often a dump that others changed under way is taken again.
const DUMP_ATTEMPTS: usize = 8;

/// What to ask of the kernel, and how to speak of it when it refuses.
#[derive(Debug, Clone)]
pub(super) struct Request {
    message: RouteNetlinkMessage,
    flags: u16,
    action: &'static str,
    object: String,
    tolerated: &'static [i32],
}

impl Request {
    pub(super) fn new(
        message: RouteNetlinkMessage,
        flags: u16,
        action: &'static str,
        object: impl Into<String>,
    ) -> Self {
        Self { message, flags, action, object: object.into(), tolerated: &[] }
    }

    /// The same; these errors count as success.
    pub(super) fn tolerate(mut self, errnos: &'static [i32]) -> Self {
        self.tolerated = errnos;
        self
    }

    /// What it does and to what.
    #[cfg(test)]
    pub(super) fn words(&self) -> String {
        format!("{} {}", self.action, self.object)
    }

    /// The error that the reply to this request is, if it is one.
    pub(super) fn refusal_of(&self, reply: &Reply) -> Option<KernelError> {
        let refusal = reply.outcome.as_ref().err().filter(|r| !self.tolerated.contains(&r.errno))?;
        Some(refused(self.action, &self.object, refusal.clone().into()))
    }
}

/// What the kernel said to a request it refused.
#[derive(Debug, Clone)]
pub(super) struct Refusal {
    pub(super) errno: i32,
    words: Option<String>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", io::Error::from_raw_os_error(self.errno))?;
        self.words.as_ref().map_or(Ok(()), |words| write!(f, ": {words}"))
    }
}

impl std::error::Error for Refusal {}

impl From<Refusal> for io::Error {
    fn from(refusal: Refusal) -> Self {
        match refusal.words {
            None => Self::from_raw_os_error(refusal.errno),
            Some(_) => Self::new(Self::from_raw_os_error(refusal.errno).kind(), refusal),
        }
    }
}

/// Outcome of one request.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) answers: Vec<RouteNetlinkMessage>,
    pub(super) outcome: std::result::Result<(), Refusal>,
}

/// What came unasked.
pub(super) enum RawEvent {
    /// An event.
    Message(RouteNetlinkMessage),
    /// One that this build does not understand.
    Unreadable,
}

/// A route netlink socket.
#[derive(Debug)]
pub(super) struct RouteSocket {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
    broken: bool,
}

impl RouteSocket {
    /// A socket of the calling thread's namespace.
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.set_ext_ack(true)?;
        socket.set_netlink_get_strict_chk(true)?;
        // The kernel answers within the send; a lost answer must become an error, not a hang.
        let limit = nix::sys::time::TimeVal::new(10, 0);
        nix::sys::socket::setsockopt(&as_fd(&socket), nix::sys::socket::sockopt::ReceiveTimeout, &limit)?;
        Ok(Self { socket, sequence: 0, buffer: Vec::with_capacity(BUFFER), broken: false })
    }

    /// A socket of the namespace behind `netns`.
    pub(super) fn open_in(netns: BorrowedFd<'_>) -> io::Result<Self> {
        in_netns(netns, Self::open)?
    }

    /// Sends all requests at once; the kernel takes them in order, and goes on behind a refused one.
    pub(super) fn exchange(&mut self, requests: &[Request]) -> io::Result<Vec<Reply>> {
        let mut replies: Vec<Reply> =
            requests.iter().map(|_| Reply { answers: Vec::new(), outcome: Ok(()) }).collect();
        if requests.is_empty() {
            return Ok(replies);
        }
        let first = self.sequence.wrapping_add(1);
        let mut out = Vec::with_capacity(512 * requests.len());
        for request in requests {
            self.encode(request, NLM_F_REQUEST | NLM_F_ACK | request.flags, &mut out);
        }
        self.send(&out)?;
        let mut open = requests.len();
        while open > 0 {
            self.receive()?;
            for part in Parts(&self.buffer) {
                let part = part.inspect_err(|_| self.broken = true)?;
                let Some(reply) = replies.get_mut(part.sequence.wrapping_sub(first) as usize) else {
                    continue;
                };
                match part.kind {
                    NLMSG_ERROR => {
                        reply.outcome = part.outcome();
                        open -= 1;
                    }
                    kind => reply.answers.push(parse(kind, part.payload)?),
                }
            }
        }
        Ok(replies)
    }

    /// The same, and a refusal that is not tolerated is an error: the first one counts.
    pub(super) fn run(&mut self, requests: &[Request]) -> Result<Vec<Vec<RouteNetlinkMessage>>> {
        let Some(first) = requests.first() else { return Ok(Vec::new()) };
        let replies = self.exchange(requests).map_err(|cause| refused(first.action, &first.object, cause))?;
        let checked = replies.into_iter().zip(requests);
        checked.map(|(reply, request)| request.refusal_of(&reply).map_or(Ok(reply.answers), Err)).collect()
    }

    /// All of them, however many, whatever becomes of the others. The first refusal that is not tolerated is the error.
    pub(super) fn run_all(&mut self, requests: &[Request]) -> Result<()> {
        let mut first = None;
        for some in requests.chunks(REQUESTS_AT_ONCE) {
            let object = some.first().map(|r| (r.action, &*r.object)).unwrap_or_default();
            let replies = self.exchange(some).map_err(|cause| refused(object.0, object.1, cause))?;
            let refusals = some.iter().zip(&replies).filter_map(|(request, reply)| request.refusal_of(reply));
            for refusal in refusals {
                first.get_or_insert(refusal);
            }
        }
        first.map_or(Ok(()), Err)
    }

    /// Takes a dump. What this build cannot read is left out: an exotic device of someone else must not stop Weft.
    pub(super) fn dump(&mut self, request: &Request) -> Result<Vec<RouteNetlinkMessage>> {
        self.dump_as(request, |_| true, Some)
    }

    /// The same; messages whose bytes `wanted` refuses are not even read.
    pub(super) fn dump_where(
        &mut self,
        request: &Request,
        wanted: impl Fn(&[u8]) -> bool,
    ) -> Result<Vec<RouteNetlinkMessage>> {
        self.dump_as(request, wanted, Some)
    }

    /// The same, keeping of each message only what `read` makes of it: parsed links are large, and a node has many.
    pub(super) fn dump_as<T>(
        &mut self,
        request: &Request,
        wanted: impl Fn(&[u8]) -> bool,
        read: impl Fn(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<Vec<T>> {
        let failed = |cause| refused(request.action, &request.object, cause);
        for attempt in 1.. {
            let (found, interrupted) = self.dump_once(request, &wanted, &read).map_err(failed)?;
            if !interrupted {
                return Ok(found);
            }
            if attempt == DUMP_ATTEMPTS {
                tracing::warn!(
                    object = request.object,
                    "the list changed each time it was read; using the last"
                );
                return Ok(found);
            }
        }
        Ok(Vec::new())
    }

    fn dump_once<T>(
        &mut self,
        request: &Request,
        wanted: &impl Fn(&[u8]) -> bool,
        read: &impl Fn(RouteNetlinkMessage) -> Option<T>,
    ) -> io::Result<(Vec<T>, bool)> {
        let mut out = Vec::with_capacity(128);
        self.encode(request, NLM_F_REQUEST | NLM_F_DUMP | request.flags, &mut out);
        self.send(&out)?;
        let (mut found, mut interrupted) = (Vec::new(), false);
        loop {
            self.receive()?;
            for part in Parts(&self.buffer) {
                let part = part.inspect_err(|_| self.broken = true)?;
                if part.sequence != self.sequence {
                    continue;
                }
                interrupted |= part.flags & NLM_F_DUMP_INTR != 0;
                match part.kind {
                    NLMSG_DONE | NLMSG_ERROR => {
                        return match part.outcome() {
                            Err(refusal) if !request.tolerated.contains(&refusal.errno) => {
                                Err(refusal.into())
                            }
                            _ => Ok((found, interrupted)),
                        };
                    }
                    _ if !wanted(part.payload) => {}
                    kind => match parse(kind, part.payload) {
                        Ok(message) => found.extend(read(message)),
                        Err(cause) => tracing::debug!(%cause, object = request.object, "left out of a list"),
                    },
                }
            }
        }
    }

    /// Listens to groups of events, with a buffer of this size.
    pub(super) fn listen(&mut self, groups: &[u32], buffer: usize) -> io::Result<()> {
        // Beyond net.core.rmem_max, which is too small for the end of a thousand links at once.
        let force = nix::sys::socket::sockopt::RcvBufForce;
        nix::sys::socket::setsockopt(&as_fd(&self.socket), force, &buffer)?;
        for group in groups {
            self.socket.add_membership(*group)?;
        }
        Ok(())
    }

    /// The events of one datagram. ENOBUFS: some were lost.
    pub(super) fn events(&mut self) -> io::Result<Vec<RawEvent>> {
        self.receive()?;
        let events = Parts(&self.buffer).map(|part| {
            let read = part.and_then(|part| parse(part.kind, part.payload));
            read.map_or(RawEvent::Unreadable, RawEvent::Message)
        });
        Ok(events.collect())
    }

    /// Whether one of the events of a datagram matters, by kind and bytes; one that is cut short does. ENOBUFS: some were lost.
    pub(super) fn any_event(&mut self, matters: impl Fn(u16, &[u8]) -> bool) -> io::Result<bool> {
        self.receive()?;
        Ok(Parts(&self.buffer).any(|part| part.map_or(true, |part| matters(part.kind, part.payload))))
    }

    /// Throws away what is waiting. A socket that lost events gets none until it is empty.
    pub(super) fn drain(&mut self) -> io::Result<()> {
        loop {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, libc::MSG_DONTWAIT) {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) if matches!(e.raw_os_error(), Some(libc::ENOBUFS | libc::EINTR)) => {}
                Err(e) => return Err(e),
            }
        }
    }

    fn encode(&mut self, request: &Request, flags: u16, out: &mut Vec<u8>) {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(request.message.clone()));
        message.finalize();
        let start = out.len();
        out.resize(start + message.buffer_len().next_multiple_of(4), 0);
        message.serialize(&mut out[start..]);
    }

    fn send(&mut self, out: &[u8]) -> io::Result<()> {
        let sent = self.socket.send(out, 0).inspect_err(|_| self.broken = true)?;
        if sent == out.len() { Ok(()) } else { Err(io::Error::other("the kernel took half a message")) }
    }

    fn receive(&mut self) -> io::Result<()> {
        self.buffer.clear();
        loop {
            match self.socket.recv(&mut self.buffer, 0) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    self.broken = true;
                    return Err(e);
                }
                Ok(_) => return Ok(()),
            }
        }
    }
}

impl AsFd for RouteSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        as_fd(&self.socket)
    }
}

pub(super) fn as_fd(socket: &Socket) -> BorrowedFd<'_> {
    use std::os::fd::AsRawFd;
    // SAFETY: the descriptor is open as long as `socket` is borrowed.
    unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) }
}

/// One message of a datagram.
pub(super) struct Part<'a> {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) sequence: u32,
    pub(super) payload: &'a [u8],
}

impl Part<'_> {
    /// Of NLMSG_ERROR and NLMSG_DONE: both begin with an error number, zero for success.
    pub(super) fn outcome(&self) -> std::result::Result<(), Refusal> {
        let errno = word(self.payload, 0).map_or(0, |w| i32::from_ne_bytes(w).wrapping_neg());
        if errno == 0 {
            return Ok(());
        }
        Err(Refusal { errno, words: self.words() })
    }

    fn words(&self) -> Option<String> {
        if self.flags & NLM_F_ACK_TLVS == 0 {
            return None;
        }
        // Behind the error number: of an error the request, only its header if capped; of DONE nothing.
        let attributes = if self.kind == NLMSG_DONE {
            4
        } else if self.flags & NLM_F_CAPPED != 0 {
            4 + HEADER
        } else {
            let echoed = word(self.payload, 4).map(u32::from_ne_bytes)? as usize;
            4 + echoed.next_multiple_of(4)
        };
        let attributes = NlasIterator::new(self.payload.get(attributes..)?);
        let words = attributes.flatten().find(|nla| nla.kind() == ATTR_MSG)?;
        Some(String::from_utf8_lossy(words.value()).trim_end_matches('\0').to_owned())
    }
}

/// The messages of a datagram.
pub(super) struct Parts<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Parts<'a> {
    type Item = io::Result<Part<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let part = read_part(self.0);
        self.0 = match &part {
            Some((_, rest)) => rest,
            None => &[],
        };
        Some(part.map(|(part, _)| part).ok_or_else(|| io::Error::other("the kernel's answer is cut short")))
    }
}

fn read_part(data: &[u8]) -> Option<(Part<'_>, &[u8])> {
    let length = u32::from_ne_bytes(word(data, 0)?) as usize;
    let [k0, k1, f0, f1] = word(data, 4)?;
    let part = Part {
        kind: u16::from_ne_bytes([k0, k1]),
        flags: u16::from_ne_bytes([f0, f1]),
        sequence: u32::from_ne_bytes(word(data, 8)?),
        payload: data.get(HEADER..length)?,
    };
    Some((part, data.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

pub(super) fn word(data: &[u8], at: usize) -> Option<[u8; 4]> {
    data.get(at..at + 4)?.try_into().ok()
}

fn parse(kind: u16, payload: &[u8]) -> io::Result<RouteNetlinkMessage> {
    RouteNetlinkMessage::parse_with_param(payload, kind).map_err(|e| io::Error::other(e.to_string()))
}

pub(super) fn refused(action: &'static str, object: &str, cause: io::Error) -> KernelError {
    KernelError::Refused { action, object: object.to_owned(), cause }
}

/// Sockets of the host's namespace, one for each call under way, kept for the next ones.
pub(super) struct HostSockets {
    netns: File,
    idle: Mutex<Vec<RouteSocket>>,
}

impl HostSockets {
    /// Sockets of the calling thread's namespace.
    pub(super) fn new() -> io::Result<Self> {
        let netns = File::open("/proc/thread-self/ns/net")?;
        Ok(Self { netns, idle: Mutex::new(vec![RouteSocket::open()?]) })
    }

    /// The host's namespace.
    pub(super) fn netns(&self) -> BorrowedFd<'_> {
        self.netns.as_fd()
    }

    /// Runs `work` with a socket of its own.
    pub(super) fn with<T>(&self, work: impl FnOnce(&mut RouteSocket) -> Result<T>) -> Result<T> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut socket = match idle {
            Some(socket) => socket,
            None => RouteSocket::open_in(self.netns())
                .map_err(|cause| refused("open", "a netlink socket", cause))?,
        };
        let done = work(&mut socket);
        if !socket.broken {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(socket);
        }
        done
    }
}
