//! Names of the network, answered on their way out of the sandbox (RFC 1035): the question is turned round into its answer and goes
//! back to where it came from.
//!
//! [`understand`] reads the question, [`find`] looks it up, `reply` makes the answer. Nothing of the packet is changed before it is
//! known that there is one, so whatever the programs do not answer goes on as it came, to ipamd at the gateway's address. What a
//! run works on is in its CPU's `QUESTION`, likewise so that the verifier forgets by which way a number came about.

mod intercept;
mod names;
mod pointer;
mod question;
mod reply;

pub(crate) use intercept::{intercept, is_intercepted, may_be_led, restore, to_gateway};

use crate::{
    maps::{DNS_COUNTS, POINTERS, QUESTION},
    packet::{Packet, UDP, opaque},
    scratch::Scratch,
};
use ebpf_common::{
    AddressKey, DnsCount, ENDPOINT_DNS, ENDPOINT_DNS_INTERCEPT, Endpoint, MAX_NAME_ADDRESSES,
    MAX_TARGET_NAME, TCP,
};

/// The question was not answered and the packet not changed. Neither an action nor a folded reason.
pub(crate) const UNANSWERED: i32 = 1 << 24;

/// Port of the protocol, network order.
const PORT: [u8; 2] = [0, 53];

/// Types of records (RFC 1035, section 3.2.2; RFC 3596).
const A: u16 = 1;
const AAAA: u16 = 28;
const POINTER: u16 = 12;

/// Bytes of a message that there is room for.
const ROOM: usize = 256;
/// Words of four bytes that the records of an answer need at most.
const TAIL: usize = {
    let (addresses, pointer) = (7 * MAX_NAME_ADDRESSES, 4 + MAX_TARGET_NAME / 4);
    if addresses > pointer { addresses } else { pointer }
};

/// A question, and what is being made of it. Aligned, so that it is worked on by words.
#[repr(C, align(8))]
pub(crate) struct Question {
    /// The message as it came, from its header on.
    message: [u64; ROOM / 8],
    /// Headers of the packet, two bytes behind the beginning, so that the IP header is aligned.
    head: [u64; 10],
    /// The name, lower case, as a key.
    whole: [u64; 8],
    /// The rest of the name behind its first label, or that label.
    part: [u64; 8],
    /// The address whose name is wanted.
    address: AddressKey,
    /// Records of the answer.
    tail: [u32; TAIL],
    /// What stands behind the question.
    extra: [u32; ROOM / 4],
    /// Offset of the message in the packet.
    at: u32,
    /// Bytes of the message.
    length: u32,
    /// Bytes of the name, without the root's zero.
    name: u32,
    /// Type of the records wanted.
    kind: u32,
    /// Whether an OPT follows the question: bytes of all that follows.
    extra_length: u32,
    /// Third byte of the OPT's flags: the bit DO.
    dnssec: u32,
    /// A number that the verifier is to know nothing of.
    forgotten: u32,
}

/// Whether a packet may be a question for [`ask`].
#[inline(always)]
pub(crate) fn is_asked(endpoint: &Endpoint, s: &Scratch) -> bool {
    s.key.destination_port == PORT
        && s.place.protocol == UDP
        && endpoint.flags & ENDPOINT_DNS != 0
        && (s.is_gateway || endpoint.flags & ENDPOINT_DNS_INTERCEPT != 0)
}

/// Whether a packet is for the resolver at the gateway's address: a port that is published there is not meant.
#[inline(always)]
pub(crate) fn is_resolver(endpoint: &Endpoint, s: &Scratch) -> bool {
    s.is_gateway
        && s.key.destination_port == PORT
        && endpoint.flags & ENDPOINT_DNS != 0
        && matches!(s.key.protocol, TCP | UDP)
}

/// Answers a question of `endpoint`: an action or a folded reason, or [`UNANSWERED`].
#[inline(never)]
pub(crate) fn ask(packet: &Packet<'_>, endpoint: &Endpoint, s: &Scratch) -> i32 {
    let Some(q) = scratch() else {
        return UNANSWERED;
    };
    if !question::understand(packet, s, q) {
        return unanswered(DnsCount::NotUnderstood);
    }
    match q.kind as u16 {
        A | AAAA => addresses(packet, endpoint, s, q),
        POINTER => target(packet, endpoint, s, q),
        _ => unanswered(DnsCount::NotUnderstood),
    }
}

#[inline(never)]
fn addresses(packet: &Packet<'_>, endpoint: &Endpoint, s: &Scratch, q: &mut Question) -> i32 {
    let Some(row) = names::find(packet, endpoint.network, q) else {
        return unanswered(DnsCount::Missed);
    };
    let (of4, of6) = (u32::from(row.count4), u32::from(row.count6));
    let is4 = q.kind as u16 == A;
    let (count, what) = if is4 { (of4, DnsCount::A) } else { (of6, DnsCount::Aaaa) };
    if of4 | of6 == 0 || count > MAX_NAME_ADDRESSES as u32 {
        return unanswered(DnsCount::Missed);
    }
    // Who asks again asks with another number, from another port.
    let [a, b] = s.key.source_port;
    let turn = (q.message[0] as u32 ^ u32::from_ne_bytes([a, b, 0, 0])) & 0xffff;
    let sum = match (count, is4) {
        (0, _) => 0,
        (_, true) => reply::records4(q, row, turn),
        (_, false) => reply::records6(q, row, turn),
    };
    let bytes = if is4 { 16 * count } else { 28 * count };
    reply::send(packet, s, q, (count, bytes, sum), if count == 0 { DnsCount::NoData } else { what })
}

#[inline(never)]
fn target(packet: &Packet<'_>, endpoint: &Endpoint, s: &Scratch, q: &mut Question) -> i32 {
    if !pointer::address(packet, q, endpoint.network) {
        return unanswered(DnsCount::Missed);
    }
    // SAFETY: entries are replaced as a whole and freed after a grace period.
    let Some(row) = (unsafe { POINTERS.get(&q.address) }) else {
        return unanswered(DnsCount::Missed);
    };
    let length = u32::from(row.len);
    if length as usize > MAX_TARGET_NAME {
        return unanswered(DnsCount::Missed);
    }
    let sum = reply::pointer(q, row);
    reply::send(packet, s, q, (1, 13 + length, sum), DnsCount::Pointer)
}

#[inline(always)]
fn unanswered(what: DnsCount) -> i32 {
    count(what);
    UNANSWERED
}

#[inline(always)]
fn count(what: DnsCount) {
    if let Some(questions) = DNS_COUNTS.get_ptr_mut(what as u32) {
        // SAFETY: the slot belongs to this CPU, and the program is not preempted by another run of itself.
        unsafe { *questions += 1 };
    }
}

/// This CPU's entry.
#[inline(always)]
fn scratch() -> Option<&'static mut Question> {
    let entry = QUESTION.get_ptr_mut(0)?;
    // SAFETY: as of `crate::scratch::scratch`; any bits are a question.
    Some(unsafe { &mut *entry })
}

impl Question {
    /// A byte of the message. Behind its end there is something, but not of this message.
    #[inline(always)]
    fn byte(&self, at: u32) -> u8 {
        let at = opaque(at.into()) & (ROOM as u64 - 1);
        // SAFETY: there are as many.
        unsafe { self.message.as_ptr().cast::<u8>().add(at as usize).read_volatile() }
    }

    /// The same number, of which the verifier knows nothing: it would else follow what comes once for each way to it.
    #[inline(always)]
    fn forget(&mut self, number: u32) -> u32 {
        let slot = &raw mut self.forgotten;
        // SAFETY: a field of `self`.
        unsafe {
            slot.write_volatile(number);
            slot.read_volatile()
        }
    }

    /// Offset behind the question.
    #[inline(always)]
    fn end(&self) -> u32 {
        self.name + QUESTION_AT + 5
    }
}

/// Where the question's name begins in a message.
const QUESTION_AT: u32 = 12;

/// Upper case to lower case, eight bytes at once. Lengths of labels are below every letter, so they stay.
#[inline(always)]
const fn lower(word: u64) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let low = word & (0x7f * ONES);
    let from_a = low + (0x80 - b'A' as u64) * ONES;
    let behind_z = low + (0x7f - b'Z' as u64) * ONES;
    let upper = (from_a ^ behind_z) & !word & (0x80 * ONES);
    word | upper >> 2
}

const _: () = {
    assert!(lower(u64::from_le_bytes(*b"AZ@[az\xc1\xda")) == u64::from_le_bytes(*b"az@[az\xc1\xda"));
    assert!(lower(u64::from_le_bytes(*b"\x3fMn\x00-_09")) == u64::from_le_bytes(*b"\x3fmn\x00-_09"));
};
