//! Attaching by clsact filters: the qdisc and both direct-action filters in one netlink batch.
//!
//! The filters have a fixed priority and handle, so that attaching again replaces them in place: no packet passes between an
//! old and a new program unchecked. Thread rule: a socket belongs to the network namespace of the thread that opened it.

use super::Attached;
use ebpf_common::{FILTER_HANDLE, FILTER_PRIORITY};
use netlink_packet_core::{
    ErrorMessage, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcHeader, TcMessage, TcOption},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

/// `ETH_P_ALL`, network order, in the lower half of `tcm_info`.
const ALL_PROTOCOLS: u32 = 0x0003_u16.to_be() as u32;

/// Both hooks of a clsact qdisc.
const HOOKS: [u16; 2] = [TcHandle::MIN_INGRESS, TcHandle::MIN_EGRESS];

/// A program to put on a hook: its name (as `tc filter show` prints it) and file.
pub(super) struct Hook<'a> {
    pub(super) name: &'static str,
    pub(super) program: BorrowedFd<'a>,
}

/// A filter as it was found.
pub(super) struct Filter {
    pub(super) ifindex: u32,
    hook: u16,
    /// Name of the program.
    pub(super) program: String,
}

/// A netlink socket in the namespace of the veths.
pub(super) struct Clsact {
    socket: Socket,
    sequence: u32,
}

impl Clsact {
    /// Opens a socket in the calling thread's network namespace.
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // The kernel need not send the request back with its acknowledgement.
        socket.set_cap_ack(true)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Makes both programs the filters of a link, with its qdisc if it is missing.
    pub(super) fn attach(&mut self, ifindex: u32, from: &Hook<'_>, to: &Hook<'_>) -> io::Result<()> {
        let create = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE;
        let messages = [
            (RouteNetlinkMessage::NewQueueDiscipline(qdisc(ifindex)?), create),
            (new_filter(ifindex, TcHandle::MIN_INGRESS, from)?, create),
            (new_filter(ifindex, TcHandle::MIN_EGRESS, to)?, create),
        ];
        let first = self.send(messages)?;
        // Every message is answered, also behind one that failed.
        let mut result = Ok(());
        for sequence in first..first + 3 {
            result = result.and(self.acknowledged(sequence));
        }
        result
    }

    /// Which of two programs (by id) are the filters of a link.
    pub(super) fn attached(&mut self, ifindex: u32, from_id: u32, to_id: u32) -> io::Result<Attached> {
        Ok(Attached {
            from_pod: self.program_of(ifindex, TcHandle::MIN_INGRESS)? == Some(from_id),
            to_pod: self.program_of(ifindex, TcHandle::MIN_EGRESS)? == Some(to_id),
        })
    }

    /// Takes Weft's filters off a link, and its clsact qdisc unless others have filters there. What is not there is fine.
    pub(super) fn detach(&mut self, ifindex: u32) -> io::Result<()> {
        for hook in HOOKS {
            let message = RouteNetlinkMessage::DelTrafficFilter(filter(ifindex, hook, None)?);
            let sequence = self.send([(message, NLM_F_REQUEST | NLM_F_ACK)])?;
            there(self.acknowledged(sequence))?;
        }
        for hook in HOOKS {
            let parent = TcHandle { major: TcHandle::CLSACT.major, minor: hook };
            let header = TcHeader { index: index(ifindex)?, parent, ..TcHeader::default() };
            let all = TcMessage::from_parts(header, Vec::new());
            if !self.dump(RouteNetlinkMessage::GetTrafficFilter(all))?.is_empty() {
                return Ok(());
            }
        }
        // The kernel compares the kind: an `ingress` qdisc in the same place stays.
        let message = RouteNetlinkMessage::DelQueueDiscipline(qdisc(ifindex)?);
        let sequence = self.send([(message, NLM_F_REQUEST | NLM_F_ACK)])?;
        there(self.acknowledged(sequence)).map(|_| ())
    }

    /// Puts a program in the place of a filter that is there. A link that is gone, or has been rid of its qdisc, is fine.
    pub(super) fn replace(&mut self, filter: &Filter, program: &Hook<'_>) -> io::Result<()> {
        let message = new_filter(filter.ifindex, filter.hook, program)?;
        let sequence = self.send([(message, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE)])?;
        there(self.acknowledged(sequence)).map(|_| ())
    }

    /// Every filter of the namespace with Weft's priority and handle.
    pub(super) fn filters(&mut self) -> io::Result<Vec<Filter>> {
        let all = self.dump(RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default()))?;
        let clsact = all.iter().filter(|m| {
            m.attributes.iter().any(|a| matches!(a, TcAttribute::Kind(kind) if kind == "clsact"))
        });
        let mut filters = Vec::new();
        for ifindex in clsact.filter_map(|m| u32::try_from(m.header.index).ok()) {
            for hook in HOOKS {
                let found = self.filter_of(ifindex, hook)?;
                let program = found.as_ref().and_then(program_name).map(ToOwned::to_owned);
                filters.extend(program.map(|program| Filter { ifindex, hook, program }));
            }
        }
        Ok(filters)
    }

    /// The id of the program behind Weft's filter on a hook.
    fn program_of(&mut self, ifindex: u32, hook: u16) -> io::Result<Option<u32>> {
        Ok(self.filter_of(ifindex, hook)?.and_then(|m| program_id(&m)))
    }

    /// Weft's filter on a hook.
    fn filter_of(&mut self, ifindex: u32, hook: u16) -> io::Result<Option<TcMessage>> {
        let message = RouteNetlinkMessage::GetTrafficFilter(filter(ifindex, hook, None)?);
        let sequence = self.send([(message, NLM_F_REQUEST)])?;
        there(self.answer(sequence)).map(Option::flatten)
    }

    /// Sends messages in one go and returns the sequence number of the first.
    fn send<const N: usize>(&mut self, messages: [(RouteNetlinkMessage, u16); N]) -> io::Result<u32> {
        let first = self.sequence.wrapping_add(1);
        let mut batch = Vec::with_capacity(512);
        for (payload, flags) in messages {
            self.sequence = self.sequence.wrapping_add(1);
            let mut message = NetlinkMessage::from(payload);
            message.header.flags = flags;
            message.header.sequence_number = self.sequence;
            message.finalize();
            let start = batch.len();
            batch.resize(start + message.buffer_len().next_multiple_of(4), 0);
            message.serialize(&mut batch[start..]);
        }
        self.socket.send(&batch, 0)?;
        Ok(first)
    }

    /// Everything that answers a request.
    fn dump(&mut self, request: RouteNetlinkMessage) -> io::Result<Vec<TcMessage>> {
        let sequence = self.send([(request, NLM_F_REQUEST | NLM_F_DUMP)])?;
        let mut found = Vec::new();
        loop {
            for message in self.receive()?.into_iter().filter(|m| m.header.sequence_number == sequence) {
                match message.payload {
                    NetlinkPayload::Done(_) => return Ok(found),
                    NetlinkPayload::Error(e) => return failure(&e).map(|()| found),
                    NetlinkPayload::InnerMessage(
                        RouteNetlinkMessage::NewTrafficFilter(m) | RouteNetlinkMessage::NewQueueDiscipline(m),
                    ) => found.push(m),
                    _ => {}
                }
            }
        }
    }

    fn acknowledged(&self, sequence: u32) -> io::Result<()> {
        self.answer(sequence).map(|_| ())
    }

    /// Waits for what answers `sequence`: a message, or `None` for a mere acknowledgement.
    fn answer(&self, sequence: u32) -> io::Result<Option<TcMessage>> {
        loop {
            // Answers to a call that failed half way may still be in the queue.
            for message in self.receive()?.into_iter().filter(|m| m.header.sequence_number == sequence) {
                match message.payload {
                    NetlinkPayload::Error(e) => return failure(&e).map(|()| None),
                    NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewTrafficFilter(m)) => {
                        return Ok(Some(m));
                    }
                    _ => {}
                }
            }
        }
    }

    /// The messages of the next datagram.
    fn receive(&self) -> io::Result<Vec<NetlinkMessage<RouteNetlinkMessage>>> {
        let (datagram, _) = self.socket.recv_from_full()?;
        let mut rest = datagram.as_slice();
        let mut messages = Vec::new();
        while !rest.is_empty() {
            let message =
                NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
            let length = (message.header.length as usize).next_multiple_of(4);
            rest = rest.get(length..).unwrap_or_default();
            messages.push(message);
        }
        Ok(messages)
    }
}

/// An error message, or a mere acknowledgement.
fn failure(message: &ErrorMessage) -> io::Result<()> {
    message.code.map_or(Ok(()), |code| Err(io::Error::from_raw_os_error(code.get().abs())))
}

fn qdisc(ifindex: u32) -> io::Result<TcMessage> {
    let handle = TcHandle { major: TcHandle::CLSACT.major, minor: 0 };
    let header = TcHeader { index: index(ifindex)?, handle, parent: TcHandle::CLSACT, ..TcHeader::default() };
    Ok(TcMessage::from_parts(header, vec![TcAttribute::Kind("clsact".into())]))
}

fn new_filter(ifindex: u32, hook: u16, program: &Hook<'_>) -> io::Result<RouteNetlinkMessage> {
    filter(ifindex, hook, Some(program)).map(RouteNetlinkMessage::NewTrafficFilter)
}

/// Weft's filter on a hook; without a program: whatever it is, to ask for it or to remove it.
fn filter(ifindex: u32, hook: u16, program: Option<&Hook<'_>>) -> io::Result<TcMessage> {
    let header = TcHeader {
        index: index(ifindex)?,
        handle: FILTER_HANDLE.into(),
        parent: TcHandle { major: TcHandle::CLSACT.major, minor: hook },
        info: u32::from(FILTER_PRIORITY) << 16 | ALL_PROTOCOLS,
        ..TcHeader::default()
    };
    let mut attributes = vec![TcAttribute::Kind(TcFilterBpf::KIND.into())];
    if let Some(Hook { name, program }) = program {
        let fd = u32::try_from(program.as_raw_fd()).map_err(io::Error::other)?;
        let options = [
            TcFilterBpfOption::ProgFd(fd),
            TcFilterBpfOption::ProgName((*name).into()),
            TcFilterBpfOption::Flags(TcBpfFlags::DirectAction),
        ];
        attributes.push(TcAttribute::Options(options.into_iter().map(TcOption::Bpf).collect()));
    }
    Ok(TcMessage::from_parts(header, attributes))
}

/// What the kernel did or found; `None` when there is no such filter, qdisc or link.
fn there<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::ENOENT | libc::ENODEV)) => Ok(None),
        other => other.map(Some),
    }
}

fn program_id(message: &TcMessage) -> Option<u32> {
    options(message).find_map(|o| match o {
        TcFilterBpfOption::ProgId(id) => Some(*id),
        _ => None,
    })
}

fn program_name(message: &TcMessage) -> Option<&str> {
    options(message).find_map(|o| match o {
        TcFilterBpfOption::ProgName(name) => Some(name.as_str()),
        _ => None,
    })
}

fn options(message: &TcMessage) -> impl Iterator<Item = &TcFilterBpfOption> {
    let options = message.attributes.iter().filter_map(|a| match a {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    });
    options.flatten().filter_map(|o| match o {
        TcOption::Bpf(option) => Some(option),
        _ => None,
    })
}

fn index(ifindex: u32) -> io::Result<i32> {
    i32::try_from(ifindex).map_err(|_| io::Error::from_raw_os_error(libc::ENODEV))
}
