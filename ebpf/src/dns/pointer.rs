//! Names of addresses: `4.3.2.1.in-addr.arpa` (RFC 1035, section 3.5) and thirty-two nibbles before `ip6.arpa` (RFC 3596, section 2.5).

use super::{QUESTION_AT, Question, lower};
use crate::packet::{Packet, opaque};
use ebpf_common::{FAMILY_IPV4, FAMILY_IPV6, NetworkId};

/// What a byte is as a hexadecimal digit; 255 is none.
static DIGITS: [u8; 256] = {
    let mut digits = [255; 256];
    let mut digit = 0;
    while digit < 16 {
        digits[b"0123456789abcdef"[digit as usize] as usize] = digit;
        digits[b"0123456789ABCDEF"[digit as usize] as usize] = digit;
        digit += 1;
    }
    digits
};

/// Bytes of `in-addr.arpa` in a name.
const DOMAIN4: u32 = 13;
/// Bytes of the name of an IPv6 address.
const NAME6: u32 = 64 + 9;

/// The key of the address whose name is asked for; whether the question is the name of an address.
#[inline(never)]
pub(super) fn address(packet: &Packet<'_>, q: &mut Question, network: NetworkId) -> bool {
    q.address.network = network;
    q.address.address = [0; 16];
    if q.name == NAME6 { address6(q) } else { address4(packet, q) }
}

#[inline(never)]
fn address4(packet: &Packet<'_>, q: &mut Question) -> bool {
    q.address.family = FAMILY_IPV4;
    if q.name < 4 * 2 + DOMAIN4 || q.name > 4 * 4 + DOMAIN4 {
        return false;
    }
    let domain = QUESTION_AT + q.name - DOMAIN4;
    let mut at = QUESTION_AT;
    let mut wrong = 0;
    for octet in 0..4 {
        at = q.forget(at);
        let (number, length, is_none) = octet_at(q, at);
        wrong |= is_none;
        q.address.address[3 - octet] = number as u8;
        at += 1 + length;
    }
    if wrong != 0 {
        return false;
    }
    // With the root and the type.
    let wanted = [u64::from_le_bytes(*b"\x07in-addr"), u64::from_le_bytes(*b"\x04arpa\0\0\x0c")];
    let Ok(rest) = packet.bytes::<16>(q.at + domain) else {
        return false;
    };
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = rest;
    let rest = [u64::from_le_bytes([a, b, c, d, e, f, g, h]), u64::from_le_bytes([i, j, k, l, m, n, o, p])];
    at == domain && lower(rest[0]) == wanted[0] && lower(rest[1]) == wanted[1]
}

/// A number from 0 to 255 in decimal without zeros before it, its digits, and what is zero if it is one. Without a branch: each of
/// them doubles the ways that Linux 6.1 looks at.
#[inline(always)]
fn octet_at(q: &Question, at: u32) -> (u32, u32, u32) {
    let length = u32::from(q.byte(at));
    let [first, second, third] = [digit(q, at + 1), digit(q, at + 2), digit(q, at + 3)];
    // One each if there is a second, and a third digit.
    let more = opaque(((length >> 1) & 1).into()) as u32;
    let most = opaque((length & (length >> 1) & 1).into()) as u32;
    let beyond = |digit: u32| (digit + 6) & !15;
    let number = first * (1 + 9 * more) + more * second;
    let number = number * (1 + 9 * most) + most * third;
    let zero = |number: u32| number.wrapping_sub(1) >> 31;
    let wrong = (length & !3) | zero(length) | (more * zero(first)) | (number >> 8);
    let wrong = wrong | beyond(first) | (more * beyond(second)) | (most * beyond(third));
    (number, length & 3, wrong)
}

#[inline(never)]
fn address6(q: &mut Question) -> bool {
    q.address.family = FAMILY_IPV6;
    let mut wrong = 0;
    for octet in 0..16 {
        let at = QUESTION_AT + 4 * octet;
        let (low, high) = (digit(q, at + 1), digit(q, at + 3));
        wrong |= (low | high) & !15 | u32::from(q.byte(at) ^ 1) | u32::from(q.byte(at + 2) ^ 1);
        q.address.address[15 - octet as usize] = (high << 4 | low) as u8;
    }
    let start = q.message[9] >> 32 | q.message[10] << 32;
    // The ninth byte, and the root.
    let end = q.message[10] >> 32 & 0xffff;
    wrong == 0 && lower(start) == u64::from_le_bytes(*b"\x03ip6\x04arp") && lower(end) == u64::from(b'a')
}

#[inline(always)]
fn digit(q: &Question, at: u32) -> u32 {
    DIGITS[usize::from(q.byte(at))].into()
}
