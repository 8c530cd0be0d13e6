//! Answers to questions for neighbours of an overlay network, and the MAC that an address has there.

use crate::checksum::{finish, sum, total4, total16};

/// The MAC of whoever has an IPv4 address: `02:57` and the address.
#[inline(always)]
pub const fn mac_of4(address: [u8; 4]) -> [u8; 6] {
    let [a, b, c, d] = address;
    [0x02, 0x57, a, b, c, d]
}

/// The MAC of whoever has an IPv6 address: `06:57` and the last four bytes.
#[inline(always)]
pub const fn mac_of6(address: &[u8; 16]) -> [u8; 6] {
    let [.., a, b, c, d] = *address;
    [0x06, 0x57, a, b, c, d]
}

/// Whether an address is of fe80::/10 (RFC 4291, section 2.5.6).
#[inline(always)]
pub const fn is_link_local(address: &[u8; 16]) -> bool {
    address[0] == 0xfe && address[1] & 0xc0 == 0x80
}

/// An ARP reply in its Ethernet frame (RFC 826).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArpReply {
    frame_to: [u8; 6],
    frame_from: [u8; 6],
    /// Ethertype, hardware, protocol, lengths of addresses, operation.
    fixed: [u8; 10],
    sender_mac: [u8; 6],
    sender: [u8; 4],
    target_mac: [u8; 6],
    target: [u8; 4],
}

impl ArpReply {
    /// Tells `asker` which MAC has the address that it asked for. MACs come with their addresses.
    #[inline(always)]
    pub const fn new((mac, asked): ([u8; 6], [u8; 4]), (asker_mac, asker): ([u8; 6], [u8; 4])) -> Self {
        Self {
            frame_to: asker_mac,
            frame_from: mac,
            fixed: [8, 6, 0, 1, 8, 0, 6, 4, 0, 2],
            sender_mac: mac,
            sender: asked,
            target_mac: asker_mac,
            target: asker,
        }
    }
}

/// A solicited neighbour advertisement in its IPv6 packet, with the link-layer address (RFC 4861, sections 4.4 and 4.6.1).
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advertisement {
    /// Version, traffic class, flow label; length, next header, hop limit.
    head: [u8; 8],
    source: [u8; 16],
    destination: [u8; 16],
    kind: [u8; 2],
    checksum: [u8; 2],
    flags: [u8; 4],
    target: [u8; 16],
    /// Target link-layer address, one unit of eight bytes, the address.
    option: [u8; 8],
}

impl Advertisement {
    /// Bytes of the ICMPv6 message.
    const LENGTH: u8 = 32;
    const ICMPV6: u8 = 58;
    /// Type and code.
    const KIND: [u8; 2] = [136, 0];
    const ROUTER: u8 = 0x80;
    /// It answers a question, and replaces what the asker believed.
    const SOLICITED_OVERRIDE: u8 = 0x60;

    /// Tells `asker` that `mac` has the address that it asked for, and whether that is a router.
    #[inline(always)]
    pub const fn new(asked: &[u8; 16], asker: &[u8; 16], mac: [u8; 6], router: bool) -> Self {
        let first = Self::SOLICITED_OVERRIDE | if router { Self::ROUTER } else { 0 };
        let flags = [first, 0, 0, 0];
        let [a, b, c, d, e, f] = mac;
        // The pseudo header (RFC 8200, section 8.1), then the message.
        let pseudo = sum(sum(total16(asked), total16(asker)), total4([0, Self::LENGTH, 0, Self::ICMPV6]));
        let head = sum(total4([Self::KIND[0], Self::KIND[1], 0, 0]), total4(flags));
        let option = sum(total4([2, 1, a, b]), total4([c, d, e, f]));
        let checksum = finish(sum(sum(pseudo, head), sum(total16(asked), option)));
        Self {
            head: [0x60, 0, 0, 0, 0, Self::LENGTH, Self::ICMPV6, 255],
            source: *asked,
            destination: *asker,
            kind: Self::KIND,
            checksum,
            flags,
            target: *asked,
            option: [2, 1, a, b, c, d, e, f],
        }
    }

    /// The packet as bytes, for tests.
    #[cfg(test)]
    fn bytes(&self) -> [u8; 72] {
        let mut bytes = [0; 72];
        let parts: [&[u8]; 8] = [
            &self.head,
            &self.source,
            &self.destination,
            &self.kind,
            &self.checksum,
            &self.flags,
            &self.target,
            &self.option,
        ];
        let mut at = 0;
        for part in parts {
            bytes[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        bytes
    }
}

const _: () = {
    assert!(size_of::<ArpReply>() == 42);
    assert!(size_of::<Advertisement>() == 72);
};

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071, word by word, of an IPv6 packet's pseudo header and payload: zero if the checksum in it is right.
    fn residue(packet: &[u8; 72]) -> u16 {
        let words = |bytes: &[u8]| -> u64 {
            bytes.chunks(2).map(|w| u64::from(u16::from_be_bytes([w[0], w[1]]))).sum()
        };
        let mut sum = words(&packet[8..]) + 32 + 58;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    proptest! {
        #[test]
        fn an_advertisement_has_the_right_checksum(asked: [u8; 16], asker: [u8; 16], mac: [u8; 6], router: bool) {
            let packet = Advertisement::new(&asked, &asker, mac, router).bytes();
            prop_assert_eq!(residue(&packet), 0);
            prop_assert_eq!(&packet[8..24], &asked);
            prop_assert_eq!(&packet[24..40], &asker);
            prop_assert_eq!(packet[44] >> 7 == 1, router);
            prop_assert_eq!(&packet[66..], &mac);
        }
    }

    #[test]
    fn macs_are_of_addresses() {
        assert_eq!(mac_of4([10, 1, 2, 3]), [2, 0x57, 10, 1, 2, 3]);
        let mut v6 = [0; 16];
        v6[12..].copy_from_slice(&[1, 2, 3, 4]);
        assert_eq!(mac_of6(&v6), [6, 0x57, 1, 2, 3, 4]);
    }
}
