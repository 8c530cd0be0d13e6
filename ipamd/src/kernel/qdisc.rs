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

/// Which directions are shaped, as the container sees them.
pub(super) fn shaping(socket: &mut RouteSocket, ifindex: u32) -> Result<Shaping> {
    let ask = |parent: TcHandle| {
        let mut message = TcMessage::default();
        message.header.index = ifindex.cast_signed();
        message.header.parent = parent;
        let object = format!("link {ifindex}");
        Request::new(RouteNetlinkMessage::GetQueueDiscipline(message), 0, "read the qdiscs of", object)
            .tolerate(&[libc::ENOENT, libc::ENODEV])
    };
    let replies = socket.run(&[ask(TcHandle::ROOT), ask(TcHandle::INGRESS)])?;
    let mut kinds = replies.into_iter().map(kind_of);
    let mut next = || kinds.next().flatten();
    Ok(Shaping {
        ingress: next().is_some_and(|kind| !UNSHAPED.contains(&kind.as_str())),
        egress: next().is_some_and(|kind| kind == "ingress"),
    })
}

fn kind_of(answers: Vec<RouteNetlinkMessage>) -> Option<String> {
    answers.into_iter().find_map(|answer| {
        let RouteNetlinkMessage::NewQueueDiscipline(message) = answer else { return None };
        message.attributes.into_iter().find_map(|attribute| match attribute {
            TcAttribute::Kind(kind) => Some(kind),
            _ => None,
        })
    })
}
