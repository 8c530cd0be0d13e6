//! Reading a question: bounded, and everything that is not as most resolvers write it is left to ipamd.

use super::{QUESTION_AT, Question, ROOM};
use crate::{
    packet::{Fragment, Packet, opaque},
    scratch::Scratch,
};
use aya_ebpf::helpers::generated::{bpf_csum_update, bpf_skb_load_bytes};

/// Headers of Ethernet, IP, UDP and DNS together.
pub(super) const HEADERS4: usize = 14 + 20 + 8 + 12;
pub(super) const HEADERS6: usize = 14 + 40 + 8 + 12;

/// Bytes of the longest name that is understood: that of an IPv6 address (RFC 3596, section 2.5).
const LONGEST: u32 = 73;
/// Labels of such a name, and the root.
const MOST_LABELS: u32 = 35;
/// The shortest question: a header, the root, type and class.
const SHORTEST: u32 = QUESTION_AT + 5;
/// The longest message that is understood.
const MOST: u32 = ROOM as u32 - 4;

/// Internet (RFC 1035, section 3.2.4).
const IN: u16 = 1;
/// OPT (RFC 6891).
const OPT: u16 = 41;
/// Bytes of an OPT without options.
pub(super) const OPT_LENGTH: u32 = 11;

/// Reads the question in a packet; whether it is understood. Its length, name, type and EDNS are in `q` then.
#[inline(never)]
pub(super) fn understand(packet: &Packet<'_>, s: &Scratch, q: &mut Question) -> bool {
    if !has_plain_headers(packet, s, q) {
        return false;
    }
    let size = opaque(q.length.into());
    if size < u64::from(SHORTEST) || size > u64::from(MOST) {
        return false;
    }
    let (from, to) = (packet.ctx().skb.skb.cast(), q.message.as_mut_ptr().cast());
    // SAFETY: at most as many bytes as there is room for.
    if unsafe { bpf_skb_load_bytes(from, q.at, to, size as u32) } != 0 || !walk(q) {
        return false;
    }
    let end = q.end();
    if end > q.length {
        return false;
    }
    let field = |at: u32| u16::from_be_bytes([q.byte(at), q.byte(at + 1)]);
    let (kind, class) = (field(end - 4), field(end - 2));
    q.kind = kind.into();
    class == IN && has_plain_rest(q, end)
}

/// Whether there is nothing unusual about IP, UDP and the header of the message: one question, and perhaps one more record.
#[inline(always)]
fn has_plain_headers(packet: &Packet<'_>, s: &Scratch, q: &mut Question) -> bool {
    let (payload, length) =
        if s.is4() { (s.ip4.payload, s.ip4.length) } else { (s.ip6.payload, s.ip6.length) };
    let plain = if s.is4() { HEADERS4 } else { HEADERS6 } as u32 - 20;
    if payload != plain || s.place.fragment != Fragment::Whole || packet.is_segmented() {
        return false;
    }
    let Ok(start) = packet.bytes::<20>(payload) else {
        return false;
    };
    let [s1, s2, _, _, l1, l2, c1, c2, _, _, f1, f2, counts @ ..] = start;
    let datagram = u32::from(u16::from_be_bytes([l1, l2]));
    if datagram != length || packet.len() != payload + length || length < 8 || [s1, s2] == [0; 2] {
        return false;
    }
    // IPv6 knows no datagram without checksum.
    if [c1, c2] == [0; 2] && !s.is4() {
        return false;
    }
    // A plain query at most wants recursion, and says AD or CD (RFC 1035, section 4.1.1; RFC 6840, section 5.7).
    if f1 & 0xfe != 0 || f2 & 0xcf != 0 {
        return false;
    }
    let [0, 1, 0, 0, 0, 0, 0, extra @ (0 | 1)] = counts else {
        return false;
    };
    // A device has summed the packet up (what an interface of the host in the sandbox may give): the sum would have to follow.
    // SAFETY: the context is the one that the kernel gave; nothing is added.
    if unsafe { bpf_csum_update(packet.ctx().skb.skb, 0) } >= 0 {
        return false;
    }
    q.at = payload + 8;
    q.length = length - 8;
    q.extra_length = extra.into();
    true
}

/// Finds the end of the name.
#[inline(always)]
fn walk(q: &mut Question) -> bool {
    let mut at = QUESTION_AT;
    for _ in 0..MOST_LABELS {
        let length = u32::from(q.byte(at));
        if length == 0 {
            q.name = at - QUESTION_AT;
            return true;
        }
        // Longer ones are pointers, or nothing that is defined.
        if length > 63 {
            return false;
        }
        at += 1 + length;
        if at > QUESTION_AT + LONGEST {
            return false;
        }
    }
    false
}

/// What follows the question is nothing, or one OPT of version 0 and nothing else.
#[inline(always)]
fn has_plain_rest(q: &mut Question, end: u32) -> bool {
    let rest = q.length - end;
    if q.extra_length == 0 {
        return rest == 0;
    }
    q.extra_length = rest;
    if rest < OPT_LENGTH {
        return false;
    }
    let byte = |at: u32| q.byte(end + at);
    let kind = u16::from_be_bytes([byte(1), byte(2)]);
    let options = u32::from(u16::from_be_bytes([byte(9), byte(10)]));
    // Root, and no extended code in a question.
    if byte(0) != 0 || kind != OPT || byte(5) != 0 || byte(6) != 0 || rest != OPT_LENGTH + options {
        return false;
    }
    let dnssec = byte(7) & 0x80;
    q.dnssec = dnssec.into();
    true
}
