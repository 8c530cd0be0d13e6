//! The form of probes and answers. What is behind the first bytes of a probe is zero, and of no interest.

use super::{HEADERS, Probe};

/// Bytes of a message without what fills it up.
pub const MESSAGE: usize = 24;

/// What a message of Weft's begins with.
const MAGIC: [u8; 4] = *b"WfPP";
/// Version of the form.
const VERSION: u8 = 1;
/// [`Message::encode`]: set if the probe has a checksum.
const CHECKSUM: u8 = 1;
/// Set if the sender has found that not all of its packets arrive.
const ILL: u8 = 2;

/// What a message is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Asks for an answer.
    Probe,
    /// Says which probe has arrived.
    Answer,
}

/// A probe, or the answer to one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// Which of them.
    pub kind: Kind,
    /// Random number of the examination that it belongs to.
    pub id: u64,
    /// The probe.
    pub probe: Probe,
    /// Whether the sender has found that not all of its packets arrive: the way back may have the same narrow place.
    pub ill: bool,
}

impl Message {
    /// Its first bytes: magic, version, kind, flags, zero, id and size of the IP packet in network order, zero.
    pub fn encode(&self) -> [u8; MESSAGE] {
        let mut bytes = [0; MESSAGE];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4] = VERSION;
        bytes[5] = if self.kind == Kind::Probe { 1 } else { 2 };
        bytes[6] = if self.probe.checksum { CHECKSUM } else { 0 } | if self.ill { ILL } else { 0 };
        bytes[8..16].copy_from_slice(&self.id.to_be_bytes());
        bytes[16..20].copy_from_slice(&self.probe.size.to_be_bytes());
        bytes
    }

    /// What a datagram says; `None` if it is nothing of this kind, or a probe that is not as long as it says.
    pub fn decode(datagram: &[u8]) -> Option<Self> {
        let head: &[u8; MESSAGE] = datagram.first_chunk()?;
        let kind = match (head.first_chunk()? == &MAGIC, head[4], head[5]) {
            (true, VERSION, 1) => Kind::Probe,
            (true, VERSION, 2) => Kind::Answer,
            _ => return None,
        };
        let id = u64::from_be_bytes(*head[8..].first_chunk()?);
        let size = u32::from_be_bytes(*head[16..].first_chunk()?);
        let length = u32::try_from(datagram.len()).ok()?.checked_add(HEADERS)?;
        let (probe, ill) = (Probe { size, checksum: head[6] & CHECKSUM != 0 }, head[6] & ILL != 0);
        (kind == Kind::Answer || length == size).then_some(Self { kind, id, probe, ill })
    }
}
