//! Names of addresses: `4.3.2.1.in-addr.arpa` (RFC 1035, section 3.5) and thirty-two nibbles before `ip6.arpa` (RFC 3596, section 2.5).

use super::{QUESTION_AT, Question, lower};
use crate::packet::Packet;
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
    for octet in 0..4 {
        at = q.forget(at);
        let length = q.byte(at);
        let mut number = digit(q, at + 1);
        let mut wrong = number > 9;
        match length {
            1 => {}
            2 | 3 => {
                wrong |= number == 0;
                for next in 2..=u32::from(length) {
                    let digit = digit(q, at + next);
                    wrong |= digit > 9;
                    number = number * 10 + digit;
                }
            }
            _ => return false,
        }
        if wrong || number > 255 {
            return false;
        }
        q.address.address[3 - octet] = number as u8;
        at += 1 + u32::from(length);
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
