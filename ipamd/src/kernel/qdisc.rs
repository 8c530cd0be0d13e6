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
use std::collections::BTreeMap;

/// Root qdiscs that shape nothing; a virtual device has `noqueue`.
const UNSHAPED: [&str; 4] = ["noqueue", "pfifo_fast", "noop", "mq"];

/// Which links are shaped, as their containers see it. This reads the qdiscs of all links: asking for those of one would send
/// an event to everyone who watches, ipamd itself among them.
pub(super) fn shaping(socket: &mut RouteSocket) -> Result<BTreeMap<u32, Shaping>> {
    let message = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default());
    let request = Request::new(message, 0, "list", "qdiscs");
    let mut found: BTreeMap<u32, Shaping> = BTreeMap::new();
    for (ifindex, parent, kind) in socket.dump_where(&request, |_| true)?.iter().filter_map(qdisc) {
        if parent == TcHandle::ROOT && !UNSHAPED.contains(&kind) {
            found.entry(ifindex).or_default().ingress = true;
        } else if parent == TcHandle::INGRESS && kind == "ingress" {
            found.entry(ifindex).or_default().egress = true;
        }
    }
    Ok(found)
}

/// Link, parent and kind.
fn qdisc(message: &RouteNetlinkMessage) -> Option<(u32, TcHandle, &str)> {
    let RouteNetlinkMessage::NewQueueDiscipline(message) = message else { return None };
    Some((message.header.index.cast_unsigned(), message.header.parent, kind(message)?))
}

/// The kind of a qdisc, e.g. `tbf`.
pub(super) fn kind(message: &TcMessage) -> Option<&str> {
    message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Kind(kind) => Some(kind.as_str()),
        _ => None,
    })
}
