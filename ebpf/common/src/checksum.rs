//! The Internet checksum by differences (RFC 1624): what a changed header field does to a sum, without summing up again.
//!
//! A difference is a one's complement sum of 32 bits in memory order, as the kernel's `__wsum`: words are added as they lie
//! in memory, which gives the same sum in either byte order (RFC 1071, section 2(B)). Fields must begin at an even
//! offset of what is summed. A checksum that was wrong stays wrong by as much.

/// No difference.
pub const SAME: u32 = 0;

/// Both differences together.
#[inline(always)]
pub const fn sum(a: u32, b: u32) -> u32 {
    // Not by asking for an overflow: each question would double the paths that the kernel's verifier follows.
    let both = a as u64 + b as u64;
    (both as u32).wrapping_add((both >> 32) as u32)
}

/// The difference that it makes to have `to` where `from` was: four bytes.
#[inline(always)]
pub const fn difference4(from: [u8; 4], to: [u8; 4]) -> u32 {
    sum(!u32::from_ne_bytes(from), u32::from_ne_bytes(to))
}

/// Likewise of two bytes.
#[inline(always)]
pub const fn difference2(from: [u8; 2], to: [u8; 2]) -> u32 {
    sum(!(u16::from_ne_bytes(from) as u32), u16::from_ne_bytes(to) as u32)
}

/// Likewise of sixteen bytes.
#[inline(always)]
pub const fn difference16(from: [u8; 16], to: [u8; 16]) -> u32 {
    let [a, b, c, d] = words(from);
    let [e, f, g, h] = words(to);
    sum(sum(difference4(a, e), difference4(b, f)), sum(difference4(c, g), difference4(d, h)))
}

/// The sum of four bytes.
#[inline(always)]
pub const fn total4(bytes: [u8; 4]) -> u32 {
    u32::from_ne_bytes(bytes)
}

/// The sum of sixteen bytes.
#[inline(always)]
pub const fn total16(bytes: &[u8; 16]) -> u32 {
    let [a, b, c, d] = words(*bytes);
    sum(sum(total4(a), total4(b)), sum(total4(c), total4(d)))
}

/// The checksum of what has this sum.
#[inline(always)]
pub const fn finish(sum: u32) -> [u8; 2] {
    apply([0xff, 0xff], sum)
}

#[inline(always)]
const fn words(a: [u8; 16]) -> [[u8; 4]; 4] {
    [
        [a[0], a[1], a[2], a[3]],
        [a[4], a[5], a[6], a[7]],
        [a[8], a[9], a[10], a[11]],
        [a[12], a[13], a[14], a[15]],
    ]
}

/// What a checksum field becomes when what it covers changes by `difference` (RFC 1624, equation 3).
#[inline(always)]
pub const fn apply(field: [u8; 2], difference: u32) -> [u8; 2] {
    let sum = sum(!u16::from_ne_bytes(field) as u32, difference);
    let once = (sum & 0xffff) + (sum >> 16);
    let folded = (once & 0xffff) + (once >> 16);
    (!(folded as u16)).to_ne_bytes()
}

/// Likewise of UDP, where a field of zero means that there is no checksum (RFC 768), so that it stays, and a sum of zero is
/// written as its other form.
#[inline(always)]
pub const fn apply_udp(field: [u8; 2], difference: u32) -> [u8; 2] {
    match (field, apply(field, difference)) {
        ([0, 0], _) => field,
        (_, [0, 0]) => [0xff, 0xff],
        (_, changed) => changed,
    }
}

#[cfg(test)]
#[path = "checksum_tests.rs"]
mod tests;
