//! What both sides rely on, beyond the sizes that are asserted at compile time.

use super::*;
use core::mem::{align_of, offset_of};

#[test]
fn layouts_have_no_padding() {
    // The last field ends where the type ends, and the sizes of the fields add up (asserted beside each type).
    assert_eq!(offset_of!(Endpoint, bridge) + 4, size_of::<Endpoint>());
    assert_eq!(offset_of!(Target, reserved) + 2, size_of::<Target>());
    assert_eq!(offset_of!(AddressKey, address) + 16, size_of::<AddressKey>());
    assert_eq!(offset_of!(FlowKey, destination_port) + 2, size_of::<FlowKey>());
    assert_eq!(offset_of!(Flow, reserved) + 4, size_of::<Flow>());
    assert_eq!(offset_of!(Record, json) + MAX_RECORD, size_of::<Record>());
    // Values of hash maps are eight-byte aligned in the kernel.
    assert!(align_of::<Endpoint>() <= 8 && align_of::<Counters>() <= 8 && align_of::<Flow>() <= 8);
}

#[test]
fn reasons_have_names_of_their_own() {
    for (i, a) in DropReason::ALL.iter().enumerate() {
        assert_eq!(*a as usize, i);
        assert!(!a.meaning().trim().is_empty());
        assert!(a.name().bytes().all(|b| b.is_ascii_lowercase() || b == b'-'), "{}", a.name());
        for b in &DropReason::ALL[..i] {
            assert_ne!(a.name(), b.name());
        }
    }
}

#[test]
fn link_local_is_the_modified_eui_64() {
    // The example of RFC 4291, appendix A: 34-56-78-9A-BC-DE becomes 3656:78FF:FE9A:BCDE.
    let mac = [0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde];
    let wanted = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0x36, 0x56, 0x78, 0xff, 0xfe, 0x9a, 0xbc, 0xde];
    assert_eq!(link_local_of(mac), wanted);
}

#[test]
fn keys_of_both_families_differ() {
    let v4 = AddressKey::ipv4(1, [10, 0, 0, 1]);
    let mut same_bytes = [0; 16];
    same_bytes[..4].copy_from_slice(&[10, 0, 0, 1]);
    assert_eq!(v4.address, same_bytes);
    assert_ne!(v4, AddressKey::ipv6(1, same_bytes));
    assert_ne!(v4, AddressKey::ipv4(2, [10, 0, 0, 1]));
}

#[test]
fn a_flow_reversed_twice_is_itself() {
    let key = FlowKey {
        network: 7,
        protocol: 6,
        family: 4,
        reserved: [0; 2],
        source: [1; 16],
        destination: [2; 16],
        source_port: [0, 80],
        destination_port: [16, 0],
    };
    assert_eq!(key.reversed().reversed(), key);
    assert_eq!(key.reversed().source_port, [16, 0]);
    assert_eq!(key.pair().reversed(), key.reversed().pair());
    assert_ne!(key.pair(), key);
}
