//! Looking a name up: as a whole, else its first label if a domain of the network stands behind it.

use super::{QUESTION_AT, Question, lower};
use crate::{
    maps::{DOMAINS, NAMES},
    packet::{Packet, opaque},
};
use aya_ebpf::helpers::generated::bpf_skb_load_bytes;
use ebpf_common::{MAX_KEY_NAME, NameAddresses, NameKey, NetworkId};

/// The addresses of the name that is asked for. A name that no key has room for may be anything.
#[inline(never)]
pub(super) fn find(
    packet: &Packet<'_>,
    network: NetworkId,
    q: &mut Question,
) -> Option<&'static NameAddresses> {
    let length = q.name;
    if length == 0 || length as usize > MAX_KEY_NAME {
        return None;
    }
    // The name begins where a key has it, half a word behind the second word's beginning.
    for word in 0..8 {
        q.whole[word] = q.message[1 + word];
    }
    settle(&mut q.whole, network, length);
    if let Some(row) = named(&q.whole) {
        return Some(row);
    }
    let first = 1 + u32::from(q.byte(QUESTION_AT));
    if first >= length {
        return None;
    }
    let rest = opaque((length - first).into());
    if rest == 0 || rest > MAX_KEY_NAME as u64 {
        return None;
    }
    let (from, to) = (packet.ctx().skb.skb.cast(), q.part.as_mut_ptr().cast::<u32>());
    // SAFETY: at most as many bytes as follow the first four, which are the network.
    if unsafe { bpf_skb_load_bytes(from, q.at + QUESTION_AT + first, to.add(1).cast(), rest as u32) } != 0 {
        return None;
    }
    settle(&mut q.part, network, rest as u32);
    // SAFETY: only its presence counts.
    unsafe { DOMAINS.get(key(&q.part)) }?;
    for word in 0..8 {
        q.part[word] = q.whole[word];
    }
    settle(&mut q.part, network, first);
    named(&q.part)
}

/// Makes a key of a name that begins at its fourth byte and has `length` bytes, whatever follows.
#[inline(never)]
fn settle(words: &mut [u64; 8], network: NetworkId, length: u32) {
    let used = 4 + length;
    for (index, word) in words.iter_mut().enumerate() {
        let begin = 8 * index as u32;
        *word = if used >= begin + 8 {
            lower(*word)
        } else if used <= begin {
            0
        } else {
            lower(*word) & (u64::MAX >> (64 - 8 * (used - begin)))
        };
    }
    words[0] = words[0] & !0xffff_ffff | u64::from(network);
}

#[inline(always)]
fn named(words: &[u64; 8]) -> Option<&'static NameAddresses> {
    // SAFETY: entries are replaced as a whole and freed after a grace period.
    unsafe { NAMES.get(key(words)) }
}

#[inline(always)]
fn key(words: &[u64; 8]) -> &NameKey {
    const _: () = assert!(size_of::<NameKey>() == 64 && cfg!(target_endian = "little"));
    // SAFETY: as many bytes, aligned as more, and any bits are a key.
    unsafe { &*words.as_ptr().cast() }
}
