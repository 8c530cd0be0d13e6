//! Links of the network namespace that the calling thread is in: finding one, removing one.
//!
//! One netlink socket, one request at a time (`rtnetlink(7)`). Only for a DEL while ipamd is away; wiring is ipamd's.

use ipamd_api::MacAddr;
use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::sys::{
    socket::{setsockopt, sockopt},
    time::{TimeVal, TimeValLike},
};
use std::io;

/// Longest wait for an answer of the kernel, in seconds.
const LIMIT: i64 = 10;

/// What a link is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Veth,
    Macvlan,
    Other,
}

/// A link as far as a DEL needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) kind: Kind,
    /// Index of a veth's other end, in that end's namespace.
    pub(crate) peer: Option<u32>,
    pub(crate) mac: Option<MacAddr>,
}

/// A socket in the namespace of the thread that opened it.
pub(crate) struct Links(Socket);

impl Links {
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(LIMIT))?;
        Ok(Self(socket))
    }

    /// The link of this name, if there is one.
    pub(crate) fn by_name(&self, name: &str) -> io::Result<Option<Link>> {
        let mut request = LinkMessage::default();
        request.attributes.push(LinkAttribute::IfName(name.to_owned()));
        self.get(request)
    }

    /// The link of this index, if there is one.
    pub(crate) fn by_index(&self, index: u32) -> io::Result<Option<Link>> {
        let mut request = LinkMessage::default();
        request.header.index = index;
        self.get(request)
    }

    /// Removes a link; whether it was there. Both ends of a veth pair go.
    pub(crate) fn delete(&self, index: u32) -> io::Result<bool> {
        let mut request = LinkMessage::default();
        request.header.index = index;
        self.ask(RouteNetlinkMessage::DelLink(request), NLM_F_ACK).map(|found| found.is_some())
    }

    fn get(&self, request: LinkMessage) -> io::Result<Option<Link>> {
        let answer = self.ask(RouteNetlinkMessage::GetLink(request), 0)?;
        Ok(answer.flatten().map(|message| read(&message)))
    }

    /// Sends one request. `None`: there is no such link; `Some(None)`: done.
    fn ask(&self, request: RouteNetlinkMessage, flags: u16) -> io::Result<Option<Option<LinkMessage>>> {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(request));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.0.send(&bytes, 0)?;
        let (answer, _) = self.0.recv_from_full()?;
        match NetlinkMessage::deserialize(&answer).map_err(io::Error::other)?.payload {
            NetlinkPayload::Error(answer) if answer.code.is_none() => Ok(Some(None)),
            NetlinkPayload::Error(answer) => match answer.to_io() {
                gone if gone.raw_os_error() == Some(nix::errno::Errno::ENODEV as i32) => Ok(None),
                cause => Err(cause),
            },
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => Ok(Some(Some(link))),
            other => {
                Err(io::Error::other(format!("the kernel answered {other:?} to a request about a link")))
            }
        }
    }
}

fn read(message: &LinkMessage) -> Link {
    let mut link =
        Link { index: message.header.index, name: String::new(), kind: Kind::Other, peer: None, mac: None };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Link(peer) => link.peer = Some(*peer),
            LinkAttribute::Address(bytes) => link.mac = bytes.as_slice().try_into().ok().map(MacAddr),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(InfoKind::Veth) => link.kind = Kind::Veth,
                        LinkInfo::Kind(InfoKind::MacVlan) => link.kind = Kind::Macvlan,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    link
}
