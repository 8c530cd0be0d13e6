//! Qdiscs that others put on a link.

use super::{
    Result,
    netlink::{Request, RouteSocket},
};
use crate::datapath::Shaping;
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcHandle, TcMessage},
};

/// Root qdiscs that shape nothing; a virtual device has `noqueue`.
const UNSHAPED: [&str; 4] = ["noqueue", "pfifo_fast", "noop", "mq"];

/// Which directions are shaped, as the container sees them. This reads the qdiscs of all links: asking for those of one would
/// send an event to everyone who watches, ipamd itself among them.
pub(super) fn shaping(socket: &mut RouteSocket, ifindex: u32) -> Result<Shaping> {
    let message = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default());
    let request = Request::new(message, 0, "list", "qdiscs");
    let mut shaping = Shaping::default();
    // `struct tcmsg` has the ifindex at 4.
    for (parent, kind) in
        socket.dump_where(&request, |m| m.get(4..8) == Some(&ifindex.to_ne_bytes()))?.iter().filter_map(kind)
    {
        if parent == TcHandle::ROOT {
            shaping.ingress = !UNSHAPED.contains(&kind);
        } else if parent == TcHandle::INGRESS {
            shaping.egress = kind == "ingress";
        }
    }
    Ok(shaping)
}

fn kind(message: &RouteNetlinkMessage) -> Option<(TcHandle, &str)> {
    let RouteNetlinkMessage::NewQueueDiscipline(message) = message else { return None };
    let kind = message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Kind(kind) => Some(kind.as_str()),
        _ => None,
    })?;
    Some((message.header.parent, kind))
}
