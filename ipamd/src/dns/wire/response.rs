//! Asks upstreams, and reads what they answer.

use super::{
    CLASS_IN, Edns, HEADER, Query, Question, flags, header, kind, push_opt,
    read::{RecordHead, read_question, skip_record, words},
};
use hickory_proto::{
    rr::Name,
    serialize::binary::{BinDecodable as _, BinDecoder, DecodeError},
};

/// Longest time for which a record is believed (RFC 8767, section 4, allows up to a week), seconds.
pub const MAX_TTL: u32 = 86_400;

/// Longest time for which it is believed that there is none (RFC 2308, section 5), seconds.
const MAX_NEGATIVE_TTL: u32 = 3_600;

/// An upstream's answer to the question it was asked: a whole message without its OPT record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    message: Box<[u8]>,
    counts: [u16; 3],
    /// Where times to live stand.
    ttls: Box<[u16]>,
    question_len: usize,
    /// Result, with EDNS's upper bits.
    pub rcode: u16,
    /// Whether the upstream has proven it.
    pub proven: bool,
    /// Whether it was cut: the whole of it is to be had over TCP.
    pub cut: bool,
    /// For how long it may be kept, seconds; zero: not at all.
    pub ttl: u32,
    /// Whether EDNS was understood.
    pub edns: bool,
}

/// For how long what is given may be kept by who asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// As the upstream said, this many seconds ago.
    Aged(u32),
    /// This many seconds.
    Fixed(u32),
}

/// A message that is no answer to the question that was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// Not to this question: somebody else's, or a forgery.
    Foreign,
    /// To this question, as far as it can be told, but it says nothing: the result.
    Refusal(u16),
    /// Not a whole message.
    Malformed,
}

/// Writes the query for an upstream. `question` is the raw one, in any case of letters; `edns` says whether to speak EDNS.
pub fn write_query(id: u16, question: &[u8], checking_disabled: bool, edns: Option<Edns>) -> Vec<u8> {
    let cd = if checking_disabled { flags::CD } else { 0 };
    // AD asks for the proof's result; who wants it is told (RFC 6840, section 5.7).
    let words = [id, flags::RD | flags::AD | cd, 1, 0, 0, u16::from(edns.is_some())];
    let mut bytes: Vec<u8> = words.into_iter().flat_map(u16::to_be_bytes).collect();
    bytes.extend(question);
    push_opt(&mut bytes, &mut 0, edns, 0);
    bytes
}

/// Reads the answer to a query that [`write_query`] wrote. `exact`: letters have to be as they were sent (0x20).
///
/// # Errors
/// It is none.
pub fn read_response(bytes: &[u8], sent: &[u8], exact: bool) -> Result<Response, Failure> {
    let (Some((&header, _)), Some((&asked, _))) =
        (bytes.split_first_chunk::<HEADER>(), sent.split_first_chunk::<HEADER>())
    else {
        return Err(Failure::Malformed);
    };
    let [id, word, questions, answers, authorities, additionals] = words(header);
    if id != words(asked)[0] || word & flags::QR == 0 || word & flags::OPCODE != 0 {
        return Err(Failure::Foreign);
    }
    let rcode = word & flags::RCODE;
    if questions == 0 && rcode != 0 {
        return Err(Failure::Refusal(rcode));
    }
    let start = HEADER as u16;
    let mut decoder = BinDecoder::new(bytes).clone(start);
    let question = read_question(&mut decoder).ok().flatten().ok_or(Failure::Malformed)?;
    let expected = read_question(&mut BinDecoder::new(sent).clone(start)).ok().flatten();
    let end = decoder.index();
    let same = expected.as_ref() == Some(&question) && questions == 1;
    if !same || (exact && bytes.get(HEADER..end) != sent.get(HEADER..end)) {
        return Err(Failure::Foreign);
    }
    if end != HEADER + question.name.wire().len() + 5 {
        return Err(Failure::Malformed);
    }
    let cut = word & flags::TC != 0;
    let mut walk = Walk { kind: question.kind, ..Walk::default() };
    let read = walk.read(bytes, &mut decoder, [answers, authorities, additionals]);
    let (message_end, counts) = match read {
        // What is cut may be cut anywhere.
        Err(_) if !cut => return Err(Failure::Malformed),
        Err(_) => (end, [0; 3]),
        Ok(read) => read,
    };
    let rcode = rcode | walk.rcode_high << 4;
    let ttl = if cut { 0 } else { walk.lifetime(rcode) };
    let mut message: Box<[u8]> = bytes.get(..message_end).unwrap_or_default().into();
    if let Some((at, ttl)) = walk.denial {
        write_ttl(&mut message, at, ttl);
    }
    Ok(Response {
        message,
        counts,
        ttls: walk.ttls.into(),
        question_len: end - HEADER,
        rcode,
        proven: word & flags::AD != 0,
        cut,
        ttl,
        edns: walk.edns,
    })
}

/// What the records of a message say.
#[derive(Default)]
struct Walk {
    kind: u16,
    ttls: Vec<u16>,
    least: Option<u32>,
    answered: bool,
    /// Where the SOA's TTL stands, and for how long it denies (RFC 2308, section 5).
    denial: Option<(usize, u32)>,
    edns: bool,
    rcode_high: u16,
}

impl Walk {
    /// Reads all records. Returns where the last one that is kept ends, and how many those are: an OPT record and what stands behind
    /// it go (they are additional, and taking out what stands between would move what pointers point to).
    fn read(
        &mut self,
        bytes: &[u8],
        decoder: &mut BinDecoder<'_>,
        counts: [u16; 3],
    ) -> Result<(usize, [u16; 3]), DecodeError> {
        let mut kept = [0; 3];
        let mut end = decoder.index();
        for (section, count) in counts.into_iter().enumerate() {
            for _ in 0..count {
                let head = skip_record(decoder)?;
                if head.kind == kind::OPT {
                    self.edns = true;
                    self.rcode_high = (head.ttl >> 24) as u16;
                } else if !self.edns {
                    self.note(section, head, bytes)?;
                    kept[section] += 1;
                    end = decoder.index();
                }
            }
        }
        Ok((end, kept))
    }

    fn note(&mut self, section: usize, head: RecordHead, bytes: &[u8]) -> Result<(), DecodeError> {
        // Negative numbers are zero (RFC 2181, section 8).
        let mut ttl = if head.ttl > i32::MAX as u32 { 0 } else { head.ttl };
        if section == 0 && head.class == CLASS_IN {
            self.answered |= head.kind == self.kind || self.kind == kind::ANY;
        }
        if section == 1 && head.kind == kind::SOA {
            let mut data = BinDecoder::new(bytes).clone(head.data_at as u16);
            Name::read(&mut data)?;
            Name::read(&mut data)?;
            for _ in 0..4 {
                data.read_u32()?;
            }
            let minimum = data.read_u32()?.unverified();
            if data.index() != head.data_end {
                return Err(DecodeError::InsufficientBytes);
            }
            ttl = ttl.min(minimum).min(MAX_NEGATIVE_TTL);
            self.denial = Some((head.ttl_at, ttl));
        }
        self.ttls.push(head.ttl_at as u16);
        self.least = Some(self.least.map_or(ttl, |least| least.min(ttl)));
        Ok(())
    }

    /// For how long the message may be kept: as its shortest record, and a denial only with an SOA (RFC 2308, section 5).
    fn lifetime(&self, rcode: u16) -> u32 {
        let least = self.least.unwrap_or(0).min(MAX_TTL);
        match (rcode, self.answered, self.denial) {
            (0, true, _) | (0 | 3, _, Some(_)) => least,
            _ => 0,
        }
    }
}

impl Response {
    /// Bytes of memory that it takes.
    pub fn size(&self) -> usize {
        size_of::<Self>() + self.message.len() + 2 * self.ttls.len()
    }

    /// The reply to `query`, which asks the same: at most `limit` bytes, or cut.
    pub fn reply(&self, query: &Query<'_>, limit: usize, life: Life) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.message.len() + super::OPT);
        bytes.extend(&self.message);
        for &at in &self.ttls {
            let at = usize::from(at);
            let ttl = bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_be_bytes);
            let ttl = match life {
                Life::Aged(_) if ttl > i32::MAX as u32 => 0,
                Life::Aged(age) => ttl.min(MAX_TTL).saturating_sub(age),
                Life::Fixed(ttl) => ttl,
            };
            write_ttl(&mut bytes, at, ttl);
        }
        let mut counts = self.counts;
        let mut flags = if self.cut { flags::TC } else { 0 };
        if self.proven && query.wants_proof() {
            flags |= flags::AD;
        }
        let opt = if query.edns.is_some() { super::OPT } else { 0 };
        if bytes.len() + opt > limit || self.cut {
            bytes.truncate(HEADER + self.question_len);
            counts = [0; 3];
            flags |= flags::TC;
        }
        push_opt(&mut bytes, &mut counts[2], query.edns, self.rcode);
        let header = header(query, flags, self.rcode, counts);
        if let Some(place) = bytes.get_mut(..HEADER) {
            place.copy_from_slice(&header);
        }
        if let Some(place) = bytes.get_mut(HEADER..HEADER + query.raw_question.len()) {
            place.copy_from_slice(query.raw_question);
        }
        bytes
    }
}

impl Question {
    /// Its wire form, in small letters.
    pub fn raw(&self) -> Vec<u8> {
        let mut raw = Vec::with_capacity(self.name.wire().len() + 5);
        raw.extend(self.name.wire());
        raw.push(0);
        raw.extend(self.kind.to_be_bytes());
        raw.extend(self.class.to_be_bytes());
        raw
    }
}

fn write_ttl(message: &mut [u8], at: usize, ttl: u32) {
    if let Some(place) = message.get_mut(at..at + 4) {
        place.copy_from_slice(&ttl.to_be_bytes());
    }
}
