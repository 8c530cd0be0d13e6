//! Differences against sums that are made anew.

use super::*;
use proptest::prelude::*;

/// The checksum of RFC 1071, section 1, word by word in network order.
fn naive(bytes: &[u8]) -> u16 {
    let mut sum = 0u64;
    for pair in bytes.chunks(2) {
        sum += (u64::from(pair[0]) << 8) | u64::from(*pair.get(1).unwrap_or(&0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Zero has two forms in one's complement.
fn same(a: u16, b: u16) -> bool {
    a % 0xffff == b % 0xffff
}

proptest! {
    #[test]
    fn a_changed_address_changes_the_sum_as_summing_up_does(
        rest in proptest::collection::vec(any::<u8>(), 0..64),
        from: [u8; 4], to: [u8; 4],
        from_port: [u8; 2], to_port: [u8; 2],
        from_wide: [u8; 16], to_wide: [u8; 16],
    ) {
        let lay = |a: &[u8], b: &[u8], c: &[u8]| [a, b, c, &rest].concat();
        let before = naive(&lay(&from, &from_port, &from_wide));
        let after = naive(&lay(&to, &to_port, &to_wide));
        let difference =
            sum(sum(difference4(from, to), difference2(from_port, to_port)), difference16(from_wide, to_wide));
        let applied = u16::from_be_bytes(apply(before.to_be_bytes(), difference));
        prop_assert!(same(applied, after), "{applied:04x} is not {after:04x}");
    }

    #[test]
    fn a_wrong_checksum_stays_wrong_by_as_much(from: [u8; 4], to: [u8; 4], wrong_by in 1u16..0xffff) {
        let wrong = |right: u16| (u32::from(right) + u32::from(wrong_by)) % 0xffff;
        let applied = apply((wrong(naive(&from)) as u16).to_be_bytes(), difference4(from, to));
        prop_assert!(same(u16::from_be_bytes(applied), wrong(naive(&to)) as u16));
    }

    #[test]
    fn there_and_back_is_where_it_was(from: [u8; 16], to: [u8; 16], field: [u8; 2]) {
        let there = apply(field, difference16(from, to));
        let back = apply(there, difference16(to, from));
        prop_assert!(same(u16::from_be_bytes(back), u16::from_be_bytes(field)));
    }

    #[test]
    fn udp_without_a_checksum_stays_without(from: [u8; 4], to: [u8; 4], field in 1u16..=0xffff) {
        let difference = difference4(from, to);
        prop_assert_eq!(apply_udp([0, 0], difference), [0, 0]);
        let applied = apply_udp(field.to_be_bytes(), difference);
        prop_assert_ne!(applied, [0, 0]);
        let plain = u16::from_be_bytes(apply(field.to_be_bytes(), difference));
        prop_assert!(same(u16::from_be_bytes(applied), plain));
    }
}

#[test]
fn the_example_of_rfc_1624() {
    // Section 4: a field that changes from 0x5555 to 0x3285 under the checksum 0xdd2f makes it 0x0000.
    let difference = difference2([0x55, 0x55], [0x32, 0x85]);
    assert_eq!(apply([0xdd, 0x2f], difference), [0, 0]);
    assert_eq!(apply_udp([0xdd, 0x2f], difference), [0xff, 0xff]);
}
