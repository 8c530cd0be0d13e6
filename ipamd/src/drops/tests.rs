//! Packets in words, and samples as they are shown.

use super::*;
use proptest::prelude::*;

/// Bytes from hex, spaces between.
fn hex(text: &str) -> Vec<u8> {
    let digits: String = text.split_whitespace().collect();
    (0..digits.len() / 2).map(|i| u8::from_str_radix(&digits[2 * i..2 * i + 2], 16).unwrap()).collect()
}

const MACS: &str = "020000000001 020000000002";
const V4: &str = "4500 0028 0001 0000 4006 0000 0a000002 0a010003";
const V6_ENDS: &str = "fd000000000000000000000000000002 fd010000000000000000000000000003";

#[test]
fn packets_are_told_in_one_line() {
    let tcp = "1267 0050 00000001 00000000 5002 ffff 0000 0000";
    let echo = "0800 0000 0007 0001";
    for (packet, l3, expected) in [
        (format!("{MACS} 0800 {V4} {tcp}"), false, "tcp 10.0.0.2:4711 > 10.1.0.3:80 [S]"),
        (format!("{V4} {tcp}"), true, "tcp 10.0.0.2:4711 > 10.1.0.3:80 [S]"),
        (format!("{V4} 1267 0050 00000001 00000000 5012"), true, "tcp 10.0.0.2:4711 > 10.1.0.3:80 [S.]"),
        (format!("{V4} 1267 0050 00000001 00000000 5019"), true, "tcp 10.0.0.2:4711 > 10.1.0.3:80 [FP.]"),
        (format!("{V4} 1267 0050 00000001 00000000 5000"), true, "tcp 10.0.0.2:4711 > 10.1.0.3:80 [none]"),
        (format!("{V4} 1267 0050"), true, "tcp 10.0.0.2:4711 > 10.1.0.3:80"),
        (format!("{V4} 12"), true, "tcp 10.0.0.2 > 10.1.0.3, cut short"),
        (
            "4500 0000 0001 2000 4011 0000 0a000002 0a010003 0035 1000".to_owned(),
            true,
            "udp 10.0.0.2:53 > 10.1.0.3:4096 first fragment",
        ),
        (
            "4500 0000 0001 00b9 4011 0000 0a000002 0a010003 0035 1000".to_owned(),
            true,
            "udp 10.0.0.2 > 10.1.0.3 fragment at 1480",
        ),
        (
            format!("4600 0000 0001 0000 4001 0000 0a000002 0a010003 01010101 {echo}"),
            true,
            "icmp 10.0.0.2 > 10.1.0.3 echo request id 7 seq 1",
        ),
        (
            "4300 0000 0001 0000 4001 0000 0a000002 0a010003".to_owned(),
            true,
            "malformed ipv4 10.0.0.2 > 10.1.0.3",
        ),
        ("4500 0000".to_owned(), true, "ipv4, cut short"),
        (
            format!("{MACS} 86dd 60000000 0000 06 40 {V6_ENDS} {tcp}"),
            false,
            "tcp [fd00::2]:4711 > [fd01::3]:80 [S]",
        ),
        (
            format!("60000000 0000 00 40 {V6_ENDS} 3a00000000000000 8700 0000"),
            true,
            "icmpv6 fd00::2 > fd01::3 neighbour solicitation",
        ),
        (
            format!("60000000 0000 2c 40 {V6_ENDS} 1100 0001 00000001 0035 1000"),
            true,
            "udp [fd00::2]:53 > [fd01::3]:4096 first fragment",
        ),
        (
            format!("60000000 0000 2c 40 {V6_ENDS} 1100 05a8 00000001 0035 1000"),
            true,
            "udp fd00::2 > fd01::3 fragment at 1448",
        ),
        (
            format!("{MACS} 0806 0001 0800 0604 0001 020000000001 0a000002 000000000000 0a000001"),
            false,
            "arp who has 10.0.0.1 tell 10.0.0.2",
        ),
        (
            format!("{MACS} 0806 0001 0800 0604 0002 020000000001 0a000002 020000000002 0a000001"),
            false,
            "arp 10.0.0.2 is at 02:00:00:00:00:01",
        ),
        (format!("{MACS} 8100 0007 0800 {V4} {tcp}"), false, "vlan 7 tcp 10.0.0.2:4711 > 10.1.0.3:80 [S]"),
        (format!("{MACS} 88cc"), false, "ethertype 0x88cc 02:00:00:00:00:02 > 02:00:00:00:00:01"),
        ("0200".to_owned(), false, "a frame without a whole header"),
        (String::new(), true, "an empty packet"),
    ] {
        assert_eq!(describe(&hex(&packet), l3), expected, "{packet}");
    }
}

#[test]
fn a_sample_is_shown_with_names_and_wall_clock() {
    let now = Moment { monotonic: Duration::from_secs(100), unix: Duration::from_secs(1_000_000) };
    let sample = DropSample {
        time: 99_000_000_000,
        reason: 7,
        hook: HOOK_FROM_POD,
        ifindex: 5,
        length: 60,
        l3: true,
        packet: hex(V4),
    };
    let shown = view(&sample, now, "wf0123456789ab".into(), None);
    assert_eq!((shown.time_ms, shown.reason.as_str()), (999_999_000, "isolated"));
    assert_eq!((shown.hook.as_str(), shown.length), ("from_pod", 60));
    assert!(shown.meaning.contains("another network"), "{}", shown.meaning);
    let unknown = view(&DropSample { reason: 63, hook: 9, ..sample }, now, "eth0".into(), None);
    assert_eq!((unknown.reason.as_str(), unknown.hook.as_str()), ("reason-63", "unknown"));
}

/// docs/datapath.md lists the reasons for operators; this keeps it whole.
#[test]
fn the_documentation_has_every_reason() {
    let document = include_str!("../../../docs/datapath.md");
    let rows = document.lines().filter(|row| row.as_bytes().get(2).is_some_and(u8::is_ascii_digit));
    let listed: Vec<&str> =
        rows.filter(|row| row.starts_with("| ")).filter_map(|row| row.split('`').nth(1)).collect();
    let reasons: Vec<&str> = DropReason::ALL.iter().map(|reason| reason.name()).collect();
    assert_eq!(listed, reasons);
}

proptest! {
    #[test]
    fn no_bytes_panic(packet in prop::collection::vec(any::<u8>(), 0..96), l3 in any::<bool>()) {
        prop_assert!(!describe(&packet, l3).is_empty());
    }

    #[test]
    fn no_ip_packet_panics(mut packet in prop::collection::vec(any::<u8>(), 1..96), v6 in any::<bool>()) {
        packet[0] = if v6 { 0x60 } else { 0x45 };
        prop_assert!(!describe(&packet, true).is_empty());
    }
}
