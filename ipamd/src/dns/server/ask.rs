//! Questions on a container's behalf, from nobody's socket: what it would be told if it asked at its gateway and the programs left it to
//! ipamd.

use super::{
    DnsServer,
    core::{Client, Handled, ReplyTo},
    listeners::Place,
    log::Transport,
};
use crate::dns::wire::{Edns, MAX_UDP, Question, write_query};
use hickory_proto::op::Message;
use ipamd_api::EndpointId;
use std::net::{IpAddr, Ipv4Addr};
use tokio::sync::mpsc;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The server let nobody wait for it, or ended.
    #[error("the question was not answered; ipamd may be stopping")]
    Unanswered,
    /// Its own answer.
    #[error("the answer cannot be read: {0}")]
    Unreadable(#[from] hickory_proto::serialize::binary::DecodeError),
}

impl DnsServer {
    /// Asks as an endpoint would. Blocks until there is an answer, at most for the patience of a forwarded question.
    ///
    /// # Errors
    /// There is none.
    pub fn ask(&self, endpoint: EndpointId, question: &Question) -> Result<Message, AskError> {
        let edns = Edns { payload: MAX_UDP as u16, version: 0, dnssec_ok: false };
        // Nobody else sees it, so its number need not be unforeseeable.
        let bytes = write_query(0, &question.raw(), false, Some(edns));
        // As over a connection: answers of any length.
        let source = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let client = Client { place: Place::Inside(endpoint), source, transport: Transport::Tcp };
        let reply = match self.core.handle(&bytes, client) {
            Handled::Reply(reply) => reply,
            Handled::Silence => return Err(AskError::Unanswered),
            Handled::Forward(job) => {
                let (sender, mut replies) = mpsc::channel(1);
                let room = sender.try_reserve_owned().map_err(|_| AskError::Unanswered)?;
                match self.core.forward(*job, ReplyTo::Tcp(room)) {
                    Some(reply) => reply,
                    None => replies.blocking_recv().ok_or(AskError::Unanswered)?,
                }
            }
        };
        Ok(Message::from_vec(&reply)?)
    }
}
