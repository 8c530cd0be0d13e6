//! Reads what clients ask.

use super::{CLASS_IN, HEADER, MAX_UDP, PLAIN_UDP, Question, Rcode, flags, kind};
use crate::dns::DomainName;
use hickory_proto::{
    rr::Name,
    serialize::binary::{BinDecodable as _, BinDecoder, DecodeError},
};

/// A question as a client asked it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query<'a> {
    /// Number by which the client knows the reply.
    pub id: u16,
    /// Second word of its header.
    pub flags: u16,
    /// What is asked.
    pub question: Question,
    /// The question as it was written.
    pub raw_question: &'a [u8],
    /// What it said by EDNS.
    pub edns: Option<Edns>,
}

/// What a client says by EDNS. Its options are not read: they are for the next server only, and mean nothing to this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edns {
    /// Most bytes over UDP.
    pub payload: u16,
    /// Version; zero is the only one.
    pub version: u8,
    /// Whether signatures are wanted (RFC 3225).
    pub dnssec_ok: bool,
}

/// A message that is no question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unreadable {
    /// Too short for a header, or a response: whatever is sent back may come back.
    Ignored,
    /// The reply that says what is wrong.
    Reply(Rcode, Vec<u8>),
}

impl Query<'_> {
    /// Most bytes of a reply over UDP.
    pub fn udp_limit(&self) -> usize {
        self.edns.map_or(PLAIN_UDP, |edns| usize::from(edns.payload).clamp(PLAIN_UDP, MAX_UDP))
    }

    /// Whether signatures are wanted.
    pub fn dnssec_ok(&self) -> bool {
        self.edns.is_some_and(|edns| edns.dnssec_ok)
    }

    /// Whether it wants to know if the data are proven (RFC 6840, section 5.7).
    pub fn wants_proof(&self) -> bool {
        self.dnssec_ok() || self.flags & flags::AD != 0
    }
}

/// Reads a query.
///
/// # Errors
/// It is none, or one that is never answered with data: the reply that is due, if any.
pub fn read_query(bytes: &[u8]) -> Result<Query<'_>, Unreadable> {
    let Some((&header, _)) = bytes.split_first_chunk::<HEADER>() else { return Err(Unreadable::Ignored) };
    let [id, flags, questions, answers, authorities, additionals] = words(header);
    if flags & flags::QR != 0 {
        return Err(Unreadable::Ignored);
    }
    let refuse = |rcode| Unreadable::Reply(rcode, bare_reply(id, flags, rcode));
    if flags & flags::OPCODE != 0 {
        return Err(refuse(Rcode::NotImp));
    }
    if (questions, answers, authorities) != (1, 0, 0) {
        return Err(refuse(Rcode::FormErr));
    }
    let malformed = |_: DecodeError| refuse(Rcode::FormErr);
    let (question, raw_question) = plain_question(bytes).ok_or_else(|| refuse(Rcode::FormErr))?;
    let mut decoder = BinDecoder::new(bytes).clone((HEADER + raw_question.len()) as u16);
    let edns =
        read_edns(&mut decoder, additionals).map_err(malformed)?.map_err(|()| refuse(Rcode::FormErr))?;
    Ok(Query { id, flags, question, raw_question, edns })
}

/// Why a question is not answered, whatever it asks for.
pub fn refusal(query: &Query<'_>) -> Option<Rcode> {
    if query.edns.is_some_and(|edns| edns.version != 0) {
        return Some(Rcode::BadVers);
    }
    if query.question.class != CLASS_IN {
        return Some(Rcode::Refused);
    }
    match query.question.kind {
        0 | kind::OPT => Some(Rcode::FormErr),
        transfer if kind::TRANSFERS.contains(&transfer) => Some(Rcode::Refused),
        meta if kind::META.contains(&meta) => Some(Rcode::NotImp),
        _ => None,
    }
}

/// The question of a query, and how it was written. One whose name has a pointer is none: it could only point into the header, which nobody
/// writes who means well, and could not be repeated.
fn plain_question(bytes: &[u8]) -> Option<(Question, &[u8])> {
    let behind = bytes.get(HEADER..)?;
    let (name, end) = DomainName::read_plain(behind)?;
    let (&[kind, kind_low, class, class_low], _) = behind.get(end..)?.split_first_chunk()?;
    let [kind, class] = [[kind, kind_low], [class, class_low]].map(u16::from_be_bytes);
    Some((Question { name, kind, class }, behind.get(..end + 4)?))
}

/// The header's words.
pub(super) fn words(header: [u8; HEADER]) -> [u16; 6] {
    let mut words = [0; 6];
    for (word, bytes) in words.iter_mut().zip(header.as_chunks::<2>().0) {
        *word = u16::from_be_bytes(*bytes);
    }
    words
}

/// Reads a question; `None` if its name is none of ours (the decoder allows what [`DomainName`] does not).
pub(super) fn read_question(decoder: &mut BinDecoder<'_>) -> Result<Option<Question>, DecodeError> {
    let name = Name::read(decoder)?;
    let kind = decoder.read_u16()?.unverified();
    let class = decoder.read_u16()?.unverified();
    Ok(DomainName::of_labels(name.iter()).ok().map(|name| Question { name, kind, class }))
}

/// What stands before the data of a record.
#[derive(Debug, Clone, Copy)]
pub(super) struct RecordHead {
    pub(super) root: bool,
    pub(super) kind: u16,
    pub(super) class: u16,
    pub(super) ttl: u32,
    /// Where its TTL is.
    pub(super) ttl_at: usize,
    /// Where its data begin, and end.
    pub(super) data_at: usize,
    pub(super) data_end: usize,
}

/// Reads a record's head and goes behind its data.
pub(super) fn skip_record(decoder: &mut BinDecoder<'_>) -> Result<RecordHead, DecodeError> {
    let root = Name::read(decoder)?.is_root();
    let kind = decoder.read_u16()?.unverified();
    let class = decoder.read_u16()?.unverified();
    let ttl_at = decoder.index();
    let ttl = decoder.read_u32()?.unverified();
    let length = decoder.read_u16()?.unverified();
    let data_at = decoder.index();
    decoder.read_slice(usize::from(length))?;
    Ok(RecordHead { root, kind, class, ttl, ttl_at, data_at, data_end: decoder.index() })
}

/// Finds the OPT record; an error inside: there are two, or it is not the root's (RFC 6891, section 6.1.1).
fn read_edns(decoder: &mut BinDecoder<'_>, records: u16) -> Result<Result<Option<Edns>, ()>, DecodeError> {
    let mut edns = None;
    for _ in 0..records {
        let head = skip_record(decoder)?;
        if head.kind == kind::OPT {
            if edns.is_some() || !head.root {
                return Ok(Err(()));
            }
            edns = Some(Edns {
                payload: head.class,
                version: (head.ttl >> 16) as u8,
                dnssec_ok: head.ttl & 0x8000 != 0,
            });
        }
    }
    Ok(Ok(edns))
}

/// A header alone: the question cannot be repeated.
fn bare_reply(id: u16, query: u16, rcode: Rcode) -> Vec<u8> {
    let word = flags::QR | flags::RA | query & (flags::OPCODE | flags::RD | flags::CD) | rcode as u16;
    [id, word, 0, 0, 0, 0].into_iter().flat_map(u16::to_be_bytes).collect()
}
