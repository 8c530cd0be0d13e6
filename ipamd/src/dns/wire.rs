//! Messages of DNS as bytes (RFC 1035, section 4; RFC 6891). Pure.
//!
//! What others wrote is read by `hickory_proto`'s decoder, which follows no pointer forwards and no name beyond 255 bytes. What is
//! written here needs no more than numbers and names that are in wire form already.
//!
//! Invariants: whatever bytes come in, the answer is an error or a message that is whole; a reply repeats the question as it was
//! asked, bit by bit, capital letters included.

mod read;
mod response;

#[cfg(test)]
mod tests;

pub use read::{Edns, Query, Unreadable, read_query, refusal};
pub use response::{Failure, Life, MAX_TTL, Response, read_response, write_query};

use super::DomainName;

/// Bytes of a header.
pub const HEADER: usize = 12;

/// Most bytes of a reply over UDP, whatever the client takes: no path of ours cuts these into fragments (RFC 9715).
pub const MAX_UDP: usize = 1232;

/// Most bytes of a reply over UDP to a client that says nothing (RFC 1035, section 2.3.4).
pub const PLAIN_UDP: usize = 512;

/// Bytes of an OPT record without options.
const OPT: usize = 11;

/// Flags of the header's second word.
pub mod flags {
    /// It is a response.
    pub const QR: u16 = 0x8000;
    /// Kind of query: zero is the only one that is answered.
    pub const OPCODE: u16 = 0x7800;
    /// From the authority itself.
    pub const AA: u16 = 0x0400;
    /// Cut: ask again over TCP.
    pub const TC: u16 = 0x0200;
    /// Ask others, too.
    pub const RD: u16 = 0x0100;
    /// Others are asked.
    pub const RA: u16 = 0x0080;
    /// The data are proven (RFC 4035).
    pub const AD: u16 = 0x0020;
    /// Prove nothing (RFC 4035).
    pub const CD: u16 = 0x0010;
    /// Result.
    pub const RCODE: u16 = 0x000f;
}

/// Results (RFC 1035, section 4.1.1; RFC 6891, section 9).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u16)]
pub enum Rcode {
    /// Here it is, or there is none of this type.
    NoError = 0,
    /// The question cannot be read.
    FormErr = 1,
    /// It cannot be found out now.
    ServFail = 2,
    /// There is no such name.
    NxDomain = 3,
    /// Such questions are not answered.
    NotImp = 4,
    /// This asker is not answered this question.
    Refused = 5,
    /// This version of EDNS is not spoken.
    BadVers = 16,
}

/// A result as `dig` writes it.
pub fn status(rcode: u16) -> String {
    let known = match rcode {
        0 => "NOERROR",
        1 => "FORMERR",
        2 => "SERVFAIL",
        3 => "NXDOMAIN",
        4 => "NOTIMP",
        5 => "REFUSED",
        16 => "BADVERS",
        other => return format!("RCODE{other}"),
    };
    known.to_owned()
}

/// Numbers of record types that mean something here.
pub mod kind {
    /// IPv4 address.
    pub const A: u16 = 1;
    /// Name server.
    pub const NS: u16 = 2;
    /// Another name for it.
    pub const CNAME: u16 = 5;
    /// Begin of a zone.
    pub const SOA: u16 = 6;
    /// Name of an address.
    pub const PTR: u16 = 12;
    /// IPv6 address.
    pub const AAAA: u16 = 28;
    /// Where a service is (RFC 2782).
    pub const SRV: u16 = 33;
    /// EDNS (RFC 6891).
    pub const OPT: u16 = 41;
    /// Types that ask for a transfer, a mailbox, or are no data: 249 (TKEY) to 254 (MAILA).
    pub const META: std::ops::RangeInclusive<u16> = 249..=254;
    /// Transfers (RFC 1995, RFC 5936).
    pub const TRANSFERS: std::ops::RangeInclusive<u16> = 251..=252;
    /// Everything (RFC 8482).
    pub const ANY: u16 = 255;
}

/// The class of the Internet.
pub const CLASS_IN: u16 = 1;

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Question {
    /// Name.
    pub name: DomainName,
    /// Type of record.
    pub kind: u16,
    /// Class.
    pub class: u16,
}

/// Writes a reply to a query.
#[derive(Debug)]
pub struct ReplyWriter<'q> {
    query: &'q Query<'q>,
    limit: usize,
    bytes: Vec<u8>,
    flags: u16,
    counts: [u16; 3],
    fits: bool,
}

/// Whose name a record is.
#[derive(Debug, Clone, Copy)]
pub enum Owner<'a> {
    /// The question's.
    Question,
    /// What stands behind the question's first label.
    Parent,
    /// Another one.
    Name(&'a DomainName),
}

/// Part of a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    /// What was asked for.
    Answer,
    /// Who says so, and for how long it is not there.
    Authority,
    /// What would be asked next.
    Additional,
}

impl<'q> ReplyWriter<'q> {
    /// A reply of at most `limit` bytes.
    pub fn new(query: &'q Query<'q>, limit: usize) -> Self {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend([0; HEADER]);
        bytes.extend(query.raw_question);
        Self { query, limit, bytes, flags: 0, counts: [0; 3], fits: true }
    }

    /// Sets flags beside those that every reply has.
    pub fn set_flags(&mut self, flags: u16) {
        self.flags |= flags;
    }

    /// Adds a record; sections come in their order. One that has no room makes the reply a cut one, but an additional one is left out.
    pub fn push(&mut self, section: Section, owner: Owner<'_>, kind: u16, ttl: u32, data: &[&[u8]]) {
        let before = self.bytes.len();
        match owner {
            Owner::Question => self.bytes.extend(pointer(HEADER)),
            Owner::Parent => match self.query.raw_question.first() {
                // The root's parent is the root.
                None | Some(0) => self.bytes.push(0),
                Some(len) => self.bytes.extend(pointer(HEADER + 1 + usize::from(*len))),
            },
            Owner::Name(name) => {
                self.bytes.extend(name.wire());
                self.bytes.push(0);
            }
        }
        let length: usize = data.iter().map(|part| part.len()).sum();
        self.bytes.extend(kind.to_be_bytes());
        self.bytes.extend(CLASS_IN.to_be_bytes());
        self.bytes.extend(ttl.to_be_bytes());
        self.bytes.extend((length as u16).to_be_bytes());
        for part in data {
            self.bytes.extend(*part);
        }
        let opt = if self.query.edns.is_some() { OPT } else { 0 };
        if self.bytes.len() + opt > self.limit {
            self.bytes.truncate(before);
            self.fits &= section == Section::Additional;
        } else {
            self.counts[section as usize] += 1;
        }
    }

    /// The reply.
    pub fn finish(mut self, rcode: Rcode) -> Vec<u8> {
        let mut flags = self.flags;
        if !self.fits {
            self.bytes.truncate(HEADER + self.query.raw_question.len());
            self.counts = [0; 3];
            flags |= flags::TC;
        }
        push_opt(&mut self.bytes, &mut self.counts[2], self.query.edns, rcode as u16);
        let header = header(self.query, flags, rcode as u16, self.counts);
        if let Some(place) = self.bytes.get_mut(..HEADER) {
            place.copy_from_slice(&header);
        }
        self.bytes
    }
}

/// A reply without records.
pub fn empty_reply(query: &Query<'_>, rcode: Rcode) -> Vec<u8> {
    ReplyWriter::new(query, PLAIN_UDP).finish(rcode)
}

/// The header of a reply: what the query said, and `flags`.
fn header(query: &Query<'_>, flags: u16, rcode: u16, counts: [u16; 3]) -> [u8; HEADER] {
    let kept = query.flags & (flags::OPCODE | flags::RD | flags::CD);
    let word = flags::QR | flags::RA | kept | flags | rcode & flags::RCODE;
    let mut header = [0; HEADER];
    for (place, value) in
        header.as_chunks_mut::<2>().0.iter_mut().zip([query.id, word, 1, counts[0], counts[1], counts[2]])
    {
        *place = value.to_be_bytes();
    }
    header
}

/// The OPT record that a query with one is owed (RFC 6891, section 6.1.1): what we take, the DO bit repeated.
fn push_opt(bytes: &mut Vec<u8>, count: &mut u16, edns: Option<Edns>, rcode: u16) {
    let Some(edns) = edns else { return };
    bytes.push(0);
    bytes.extend(kind::OPT.to_be_bytes());
    bytes.extend((MAX_UDP as u16).to_be_bytes());
    bytes.extend([(rcode >> 4) as u8, 0, if edns.dnssec_ok { 0x80 } else { 0 }, 0]);
    bytes.extend([0, 0]);
    *count = count.saturating_add(1);
}

/// A compression pointer (RFC 1035, section 4.1.4).
fn pointer(to: usize) -> [u8; 2] {
    (0xc000 | to as u16 & 0x3fff).to_be_bytes()
}
