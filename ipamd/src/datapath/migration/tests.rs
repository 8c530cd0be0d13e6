use super::{free_name, is_pin_of, merge::Merge};
use crate::datapath::maps::{CONFIG, DROPS, FLOWS, FRAGMENTS, STACK_FLOWS};
use ebpf_common::Conn;
use std::{collections::BTreeSet, mem::offset_of};

/// A value of so many numbers.
fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// What an old and a new value are together, and whether that is a change.
fn merged(map: &str, old: &[u64], new: Option<&[u64]>, length: usize) -> (Vec<u8>, bool) {
    let mut value = new.map_or_else(|| vec![0; length], words);
    value.resize(length, 0);
    let old = words(old);
    let changed = Merge::of(map).apply(new.is_some(), [(&old[..], &mut value[..])].into_iter());
    (value, changed)
}

/// A map, the old value, the new one if there is one, what they become, and whether that is a change.
type Row<'a> = (&'a str, &'a [u64], Option<&'a [u64]>, &'a [u64], bool);

#[test]
fn values_of_two_maps_become_one() {
    let rows: [Row<'_>; 12] = [
        // What is missing is made, cut or filled up with zeroes.
        (CONFIG, &[1, 2], None, &[1, 2, 0], true),
        (CONFIG, &[1, 2, 3], None, &[1, 2], true),
        (CONFIG, &[0], None, &[0, 0], true),
        // What only ipamd writes stands; nothing is nothing.
        (CONFIG, &[1, 2], Some(&[3, 4]), &[3, 4], false),
        (CONFIG, &[1, 2], Some(&[0, 0, 0]), &[1, 2, 0], true),
        // Counts grow, each for itself.
        (DROPS, &[5, 1], Some(&[3, 2, 9]), &[5, 2, 9], true),
        (DROPS, &[5, 1], Some(&[5, 2]), &[5, 2], false),
        // The later one, and what it does not know stays.
        (STACK_FLOWS, &[7, 20, 1], Some(&[8, 10, 2, 9]), &[7, 20, 1, 9], true),
        (STACK_FLOWS, &[7, 10, 1], Some(&[8, 20, 2]), &[8, 20, 2], false),
        (FRAGMENTS, &[20, 1], Some(&[10, 2]), &[20, 1], true),
        (FRAGMENTS, &[10, 1], Some(&[10, 2]), &[10, 2], false),
        ("OF-A-LATER-RELEASE", &[1], Some(&[2]), &[2], false),
    ];
    for (number, (map, old, new, wanted, is_change)) in rows.into_iter().enumerate() {
        let got = merged(map, old, new, wanted.len() * 8);
        assert_eq!(got, (words(wanted), is_change), "row {number}: {map} {old:?} {new:?}");
    }
}

/// A direction of a flow: creation, last seen, packets, bytes, what was seen.
fn conn(created: u64, last_seen: u64, packets: u64, bytes: u64, seen: u32) -> Vec<u8> {
    let mut value = vec![0xee; size_of::<Conn>()];
    let mut put = |offset: usize, bytes: &[u8]| value[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(offset_of!(Conn, created), &created.to_ne_bytes());
    put(offset_of!(Conn, last_seen), &last_seen.to_ne_bytes());
    put(offset_of!(Conn, packets), &packets.to_ne_bytes());
    put(offset_of!(Conn, bytes), &bytes.to_ne_bytes());
    put(offset_of!(Conn, seen), &seen.to_ne_bytes());
    value
}

#[test]
fn two_programs_that_saw_one_flow_saw_it_together() {
    let rows = [
        // Each had the last word on something: no FIN is forgotten, or the flow would be kept for days.
        (conn(1, 9, 5, 500, 7), conn(1, 8, 6, 400, 3), conn(1, 9, 6, 500, 7), true),
        (conn(1, 8, 5, 300, 3), conn(1, 8, 6, 400, 7), conn(1, 8, 6, 400, 7), false),
        // Opened anew on the same ports.
        (conn(2, 9, 1, 60, 1), conn(1, 9, 6, 400, 7), conn(2, 9, 1, 60, 1), true),
        (conn(1, 9, 6, 400, 7), conn(2, 9, 1, 60, 1), conn(2, 9, 1, 60, 1), false),
    ];
    for (number, (old, new, wanted, is_change)) in rows.into_iter().enumerate() {
        let mut got = new;
        let changed = Merge::of(FLOWS).apply(true, [(&old[..], &mut got[..])].into_iter());
        assert_eq!((got, changed), (wanted, is_change), "row {number}");
    }
}

#[test]
fn pins_of_a_map_are_told_from_those_of_others() {
    for (pin, name, is) in [
        ("FLOWS", "FLOWS", true),
        ("FLOWS-new", "FLOWS", true),
        ("FLOWS-new7", "FLOWS", true),
        ("FLOWS_OPENED", "FLOWS", false),
        ("FLOWS_OPENED-new", "FLOWS", false),
        ("NEW_FLOWS", "FLOWS", false),
        ("links", "FLOWS", false),
    ] {
        assert_eq!(is_pin_of(pin, name), is, "{pin} of {name}");
    }
    let mut pins = BTreeSet::from(["FLOWS".to_owned()]);
    for wanted in ["FLOWS-new", "FLOWS-new2", "FLOWS-new3"] {
        let name = free_name(&pins, "FLOWS");
        assert_eq!(name, wanted);
        pins.insert(name);
    }
}
