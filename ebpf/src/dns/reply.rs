//! Making the answer of the question: the same packet, turned round, with records behind the question.
//!
//! The longest answer has 12 + 74 + 4 bytes of header and question, a pointer of 133 or eight addresses of 28, and an OPT: below the
//! 512 bytes that every asker takes, so nothing is ever cut off (TC). The checksum changes by differences, as everywhere (`rewrite`).

use super::{
    A, AAAA, POINTER, Question, ROOM, TAIL, count,
    question::{HEADERS4, HEADERS6, OPT_LENGTH},
};
use crate::{
    drop::{self, fold},
    packet::{Packet, opaque},
    redirect::PACKET_HOST,
    rewrite,
    scratch::Scratch,
};
use aya_ebpf::{
    bindings::BPF_F_MARK_MANGLED_0,
    helpers::generated::{
        bpf_csum_diff, bpf_redirect_peer, bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_store_bytes,
    },
};
use ebpf_common::{
    DnsCount, DropReason, MAX_NAME_ADDRESSES, NameAddresses, Pointer,
    checksum::{self, difference2, sum},
};

const _: () = assert!(12 + 74 + 4 + 28 * MAX_NAME_ADDRESSES as u32 + OPT_LENGTH <= 512);

/// Largest datagram that ipamd takes (EDNS): what goes unfragmented everywhere (the value of the DNS flag day of 2020).
const OPT_SIZE: [u8; 2] = 1232_u16.to_be_bytes();

/// Name (the question's), type, class and time of a record; what follows are the length and the data.
#[inline(always)]
fn record(kind: u16, ttl: u32, length: u16) -> [u32; 3] {
    let [k1, k2] = kind.to_be_bytes();
    let [t1, t2, t3, t4] = ttl.to_be_bytes();
    let [l1, l2] = length.to_be_bytes();
    [[0xc0, 12, k1, k2], [0, 1, t1, t2], [t3, t4, l1, l2]].map(u32::from_ne_bytes)
}

/// Writes the IPv4 addresses of a name, of which there are some, beginning with one that `turn` says. Returns their sum.
#[inline(never)]
pub(super) fn records4(q: &mut Question, row: &NameAddresses, turn: u32) -> u32 {
    let count = u32::from(row.count4);
    let head = record(A, row.ttl, 4);
    let mut sum = 0_u64;
    for index in 0..MAX_NAME_ADDRESSES {
        if index as u32 >= count {
            break;
        }
        let which = opaque(((turn + index as u32) % count).into()) as usize & (MAX_NAME_ADDRESSES - 1);
        // SAFETY: there are as many.
        let address = u32::from_ne_bytes(unsafe { *row.ipv4.as_ptr().add(which) });
        for (offset, word) in [head[0], head[1], head[2], address].into_iter().enumerate() {
            q.tail[4 * index + offset] = word;
            sum += u64::from(word);
        }
    }
    fold_sum(sum)
}

/// Likewise the IPv6 addresses.
#[inline(never)]
pub(super) fn records6(q: &mut Question, row: &NameAddresses, turn: u32) -> u32 {
    let count = u32::from(row.count6);
    let head = record(AAAA, row.ttl, 16);
    let mut sum = 0_u64;
    for index in 0..MAX_NAME_ADDRESSES {
        if index as u32 >= count {
            break;
        }
        let which = opaque(((turn + index as u32) % count).into()) as usize & (MAX_NAME_ADDRESSES - 1);
        // SAFETY: there are as many, aligned like the row's first field.
        let address = unsafe { *row.ipv6.as_ptr().add(which).cast::<[u32; 4]>() };
        let [a, b, c, d] = address;
        for (offset, word) in [head[0], head[1], head[2], a, b, c, d].into_iter().enumerate() {
            q.tail[7 * index + offset] = word;
            sum += u64::from(word);
        }
    }
    fold_sum(sum)
}

/// Writes the name of an address; what follows it in the row is zero, as the root is.
#[inline(never)]
pub(super) fn pointer(q: &mut Question, row: &Pointer) -> u32 {
    let head = record(POINTER, row.ttl, u16::from(row.len) + 1);
    let mut sum = 0_u64;
    for (index, word) in head.into_iter().enumerate() {
        q.tail[index] = word;
        sum += u64::from(word);
    }
    let name = row.name.as_ptr().cast::<u32>();
    for index in 0..row.name.len() / 4 {
        // SAFETY: the name has as many words, and lies behind two others.
        let word = unsafe { *name.add(index) };
        q.tail[3 + index] = word;
        sum += u64::from(word);
    }
    q.tail[3 + row.name.len() / 4] = 0;
    fold_sum(sum)
}

#[inline(always)]
fn fold_sum(total: u64) -> u32 {
    sum(total as u32, (total >> 32) as u32)
}

/// A sum as it counts from an odd offset on.
#[inline(always)]
fn shifted(sum: u32, offset: u32) -> u32 {
    sum.rotate_right(8 * (offset & 1))
}

/// Turns the question round and sends it back with the records in `q.tail`: how many, their bytes and sum.
#[inline(never)]
pub(super) fn send(
    packet: &Packet<'_>,
    s: &Scratch,
    q: &mut Question,
    (answers, bytes, sum_of): (u32, u32, u32),
    what: DnsCount,
) -> i32 {
    let end = q.end();
    let mut change = shifted(sum_of, end);
    let has_opt = q.extra_length != 0;
    if has_opt {
        let Some(before) = sum_of_extra(packet, q, end) else {
            return super::unanswered(DnsCount::NotUnderstood);
        };
        change = sum(change, shifted(before, end));
    }
    let length = end + bytes + if has_opt { OPT_LENGTH } else { 0 };
    let context = packet.ctx().skb.skb;
    // SAFETY: the context is the one that the kernel gave.
    if unsafe { bpf_skb_change_tail(context, q.at + length, 0) } != 0 {
        return super::unanswered(DnsCount::NotUnderstood);
    }
    let size = opaque(bytes.into());
    if size > 0 && size <= 4 * TAIL as u64 {
        let from = q.tail.as_ptr().cast();
        // SAFETY: at most as many bytes as there are.
        if unsafe { bpf_skb_store_bytes(context, q.at + end, from, size as u32, 0) } != 0 {
            return fold(DropReason::Rewrite);
        }
    }
    if has_opt {
        let [z1, z2] = OPT_SIZE;
        let opt = [0, 0, 41, z1, z2, 0, 0, q.dnssec as u8, 0, 0, 0];
        if let Err(reason) = packet.store(q.at + end + bytes, &opt, 0) {
            return fold(reason);
        }
        let [a, b, c, d, e, f, g, h, i, j, k] = opt;
        let words = [[a, b, c, d], [e, f, g, h], [i, j, k, 0]].map(|w| u64::from(u32::from_ne_bytes(w)));
        change = sum(change, shifted(fold_sum(words[0] + words[1] + words[2]), end + bytes));
    }
    match turn(packet, s, q, (length, answers, change)) {
        0 => {}
        reason => return reason,
    }
    if packet.ctx().change_type(PACKET_HOST).is_err() {
        return fold(DropReason::Rewrite);
    }
    count(what);
    let ifindex = packet.ifindex();
    drop::received(ifindex, packet.len());
    // SAFETY: plain integers.
    unsafe { bpf_redirect_peer(ifindex, 0) as i32 }
}

/// What it makes to the sum that all behind the question goes.
#[inline(always)]
fn sum_of_extra(packet: &Packet<'_>, q: &mut Question, end: u32) -> Option<u32> {
    let size = opaque(q.extra_length.into());
    if size < u64::from(OPT_LENGTH) || size > ROOM as u64 - 4 {
        return None;
    }
    let words = q.extra.as_mut_ptr();
    let last = opaque(size) >> 2 & (ROOM as u64 / 4 - 1);
    // SAFETY: there are as many; what the last one has beyond the bytes is to be zero.
    unsafe { words.add(last as usize).write_volatile(0) };
    // SAFETY: at most as many bytes as there is room for.
    let loaded =
        unsafe { bpf_skb_load_bytes(packet.ctx().skb.skb.cast(), q.at + end, words.cast(), size as u32) };
    if loaded != 0 {
        return None;
    }
    let padded = opaque(size + 3) & (ROOM as u64 - 4);
    // SAFETY: as above.
    let negative = unsafe { bpf_csum_diff(words, padded as u32, core::ptr::null_mut(), 0, 0) };
    if negative < 0 { None } else { Some(negative as u32) }
}

/// Makes the headers those of the answer, whose message has `length` bytes and `answers` records; `change` is the difference that the
/// records make. Zero, or a folded reason.
#[inline(never)]
fn turn(
    packet: &Packet<'_>,
    s: &Scratch,
    q: &mut Question,
    (length, answers, change): (u32, u32, u32),
) -> i32 {
    let mut head = Headers { bytes: q.head.as_mut_ptr().cast() };
    let done = if s.is4() {
        turn4(packet, &mut head, length as u16, answers as u8, change)
    } else {
        turn6(packet, &mut head, length as u16, answers as u8, change)
    };
    match done {
        Ok(()) => 0,
        Err(reason) => fold(reason),
    }
}

#[inline(always)]
fn turn4(
    packet: &Packet<'_>,
    head: &mut Headers,
    length: u16,
    answers: u8,
    change: u32,
) -> Result<(), DropReason> {
    head.load::<HEADERS4>(packet)?;
    let (before, total) = (head.get(16), (20 + 8 + length).to_be_bytes());
    head.set(24, checksum::apply(head.get(24), difference2(before, total)));
    head.set(16, total);
    head.exchange::<u32>(26, 30);
    let (sealed, pseudo, rest) = finish(head, 34, length, answers, change);
    head.store::<HEADERS4>(packet)?;
    seal(packet, 34, sealed, pseudo, rest)
}

#[inline(always)]
fn turn6(
    packet: &Packet<'_>,
    head: &mut Headers,
    length: u16,
    answers: u8,
    change: u32,
) -> Result<(), DropReason> {
    head.load::<HEADERS6>(packet)?;
    head.set(18, (8 + length).to_be_bytes());
    head.exchange::<u64>(22, 38);
    head.exchange::<u64>(30, 46);
    let (sealed, pseudo, rest) = finish(head, 54, length, answers, change);
    head.store::<HEADERS6>(packet)?;
    seal(packet, 54, sealed, pseudo, rest)
}

/// The same of both families: MACs, ports, length, the message's header. Returns whether there is a checksum, and the differences
/// of the pseudo header and of the rest.
#[inline(always)]
fn finish(head: &mut Headers, udp: usize, length: u16, answers: u8, change: u32) -> (bool, u32, u32) {
    for at in [0, 2, 4] {
        head.exchange::<u16>(at, 6 + at);
    }
    head.exchange::<u16>(udp, udp + 2);
    let datagram = (8 + length).to_be_bytes();
    let longer = difference2(head.get(udp + 4), datagram);
    head.set(udp + 4, datagram);
    let flags = head.get(udp + 10);
    // A response with authority; recursion is available, and nothing is said about DNSSEC (AD), whose checking stays off if it was.
    let response = [flags[0] | 0x84, 0x80 | flags[1] & 0x10];
    head.set(udp + 10, response);
    head.set(udp + 14, [0, answers]);
    let header = sum(difference2(flags, response), difference2([0; 2], [0, answers]));
    (head.get(udp + 6) != [0; 2], longer, sum(sum(longer, header), change))
}

/// Changes the checksum, if there is one: of IPv4 there may be none.
#[inline(always)]
fn seal(packet: &Packet<'_>, udp: u32, sealed: bool, pseudo: u32, rest: u32) -> Result<(), DropReason> {
    if !sealed {
        return Ok(());
    }
    rewrite::checksum(packet, udp + 6, pseudo, rest, BPF_F_MARK_MANGLED_0)
}

/// Headers of the packet in its `Question`, two bytes behind the beginning. Offsets are those of the packet, constant and even, so that
/// everything lies as its type wants it.
struct Headers {
    bytes: *mut u8,
}

/// Bytes before the headers.
const SHIFT: usize = 2;

impl Headers {
    #[inline(always)]
    fn load<const N: usize>(&mut self, packet: &Packet<'_>) -> Result<(), DropReason> {
        const { assert!(N + SHIFT <= size_of::<[u64; 10]>()) };
        // SAFETY: there is room for as many; any bytes are headers.
        let to = unsafe { &mut *self.bytes.add(SHIFT).cast::<[u8; N]>() };
        if packet.copy(0, to) { Ok(()) } else { Err(DropReason::Rewrite) }
    }

    #[inline(always)]
    fn store<const N: usize>(&self, packet: &Packet<'_>) -> Result<(), DropReason> {
        // SAFETY: as in `load`.
        packet.store(0, unsafe { &*self.bytes.add(SHIFT).cast::<[u8; N]>() }, 0)
    }

    #[inline(always)]
    fn get(&self, at: usize) -> [u8; 2] {
        // SAFETY: within the headers, at an even address.
        unsafe { *self.bytes.add(SHIFT + at).cast::<u16>() }.to_ne_bytes()
    }

    #[inline(always)]
    fn set(&mut self, at: usize, bytes: [u8; 2]) {
        // SAFETY: as in `get`.
        unsafe { *self.bytes.add(SHIFT + at).cast::<u16>() = u16::from_ne_bytes(bytes) };
    }

    #[inline(always)]
    fn exchange<T>(&mut self, first: usize, second: usize) {
        // SAFETY: both within the headers and aligned as `T` is (see above), and apart.
        unsafe {
            let (first, second) =
                (self.bytes.add(SHIFT + first).cast(), self.bytes.add(SHIFT + second).cast());
            let before: T = core::ptr::read(first);
            core::ptr::write(first, core::ptr::read(second));
            core::ptr::write(second, before);
        }
    }
}
