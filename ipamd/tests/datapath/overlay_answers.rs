//! Who answers a sandbox of an overlay network that asks for its neighbours: ARP and neighbour solicitations, by test run.

use crate::{
    frames::*,
    node::{GATEWAY_MAC, GATEWAY4, GATEWAY6},
    overlay_lab::{
        Want::{Quiet, Redirect},
        *,
    },
    wire,
};
use ebpf_common::DropReason::*;
use ipamd_api::{MacAddr, mac_of_address};
use std::net::{Ipv4Addr, Ipv6Addr};

/// The answer to an ARP request of the container at [`A`].
fn arp_reply(lab: &Lab, mac: MacAddr, asked: Ipv4Addr) -> Vec<u8> {
    let body = [&[0, 1, 8, 0, 6, 4, 0, 2], &mac.0[..], &asked.octets(), &lab.a.mac.0, &A.octets()];
    ethernet(lab.a.mac, mac, 0x0806, &body.concat())
}

#[test]
fn arp_is_answered_for_everybody_else() {
    let lab = Lab::new();
    let own = lab.a.mac;
    let ask = |target| arp(own, 1, (own, A), target);
    for asked in [B, REMOTE, DIRECT, NOBODY, OWN, Ipv4Addr::new(10, 1, 255, 255)] {
        let reply = arp_reply(&lab, mac_of_address(asked.into()), asked);
        lab.sends(&format!("{asked}"), &ask(asked), &Redirect(reply));
    }
    lab.sends("gateway", &ask(GATEWAY4), &Redirect(arp_reply(&lab, GATEWAY_MAC, GATEWAY4)));
    // What a kernel asks to see whether a neighbour is still there.
    let mut unicast = ask(REMOTE);
    unicast[..6].copy_from_slice(&mac_of_address(REMOTE.into()).0);
    let reply = arp_reply(&lab, mac_of_address(REMOTE.into()), REMOTE);
    lab.sends("unicast", &unicast, &Redirect(reply));
    for (what, frame) in [
        ("itself", ask(A)),
        ("a probe for itself", arp(own, 1, (own, Ipv4Addr::UNSPECIFIED), A)),
        ("a probe for another", arp(own, 1, (own, Ipv4Addr::UNSPECIFIED), B)),
        ("a reply", arp(own, 2, (own, A), B)),
        ("of another network", ask(OTHER)),
        ("of no network", ask(OUTSIDE)),
    ] {
        lab.sends(what, &frame, &Quiet);
    }
    lab.sends("for another", &arp(own, 1, (own, B), REMOTE), &Want::Drop(SpoofedNeighbour));
    let mut odd = ask(B);
    odd[L3 + 4] = 8;
    lab.sends("long MACs", &odd, &Want::Drop(Malformed));
    for length in L3 + 1..ask(B).len() {
        lab.sends(&format!("cut to {length}"), &ask(B)[..length], &Want::Drop(Malformed));
    }
}

/// A neighbour solicitation for `asked`, to the group that its owner is in.
fn solicitation(lab: &Lab, from: Ipv6Addr, asked: Ipv6Addr, options: &[u8]) -> Vec<u8> {
    let [.., x, y, z] = asked.octets();
    let group = Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, x, y, z]);
    let mac = MacAddr([0x33, 0x33, 0xff, x, y, z]);
    let message = discovery(135, &[&asked.octets(), options]);
    ipv6((mac, lab.a.mac), (from, group), &[], ICMPV6, &message)
}

fn advertisement(lab: &Lab, mac: MacAddr, asked: Ipv6Addr, asker: Ipv6Addr, router: bool) -> Vec<u8> {
    let mut message = discovery(136, &[&asked.octets(), &link_layer(2, mac)]);
    message[4] = if router { 0xe0 } else { 0x60 };
    let pseudo = [&asked.octets()[..], &asker.octets(), &[0, 0, 0, 32, 0, 0, 0, 58]].concat();
    let sum = wire::checksum(&[&pseudo, &message]);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    ipv6((lab.a.mac, mac), (asked, asker), &[], ICMPV6, &message)
}

#[test]
fn solicitations_are_answered_for_everybody_else() {
    let lab = Lab::new();
    let option = link_layer(1, lab.a.mac);
    let own_link_local = Ipv6Addr::from(ebpf_common::link_local_of(lab.a.mac.0));
    for asked in [B6, REMOTE6, DIRECT6, NOBODY6, OWN6] {
        let mac = mac_of_address(asked.into());
        for asker in [A6, own_link_local] {
            let want = Redirect(advertisement(&lab, mac, asked, asker, false));
            lab.sends(&format!("{asked}"), &solicitation(&lab, asker, asked, &option), &want);
            lab.sends(&format!("{asked}, bare"), &solicitation(&lab, asker, asked, &[]), &want);
            // Other options than the one that is known, and padding behind the packet.
            let more = [&option[..], &[14, 1, 1, 2, 3, 4, 5, 6]].concat();
            let mut padded = solicitation(&lab, asker, asked, &more);
            padded.extend([0; 30]);
            lab.sends(&format!("{asked}, long"), &padded, &want);
        }
    }
    let want = Redirect(advertisement(&lab, GATEWAY_MAC, GATEWAY6, A6, true));
    lab.sends("gateway", &solicitation(&lab, A6, GATEWAY6, &option), &want);
    let straight = ipv6(lab.to(B6), (A6, B6), &[], ICMPV6, &discovery(135, &[&B6.octets(), &option]));
    let want = Redirect(advertisement(&lab, mac_of_address(B6.into()), B6, A6, false));
    lab.sends("unicast", &straight, &want);

    let mut routed = straight.clone();
    routed[L3 + 7] = 254;
    let padding: &[(u8, &[u8])] = &[(60, &[0, 1, 4, 0, 0, 0, 0])];
    let behind = ipv6(lab.to(B6), (A6, B6), padding, ICMPV6, &discovery(135, &[&B6.octets()]));
    let all_routers = "ff02::2".parse().unwrap();
    let announce = discovery(136, &[&A6.octets(), &link_layer(2, lab.a.mac)]);
    for (what, frame) in [
        ("itself", solicitation(&lab, A6, A6, &option)),
        ("duplicate address detection", solicitation(&lab, Ipv6Addr::UNSPECIFIED, A6, &[])),
        ("of somebody else's address", solicitation(&lab, Ipv6Addr::UNSPECIFIED, B6, &[])),
        ("of another network", solicitation(&lab, A6, OTHER6, &option)),
        ("of a link-local address", solicitation(&lab, A6, "fe80::1".parse().unwrap(), &option)),
        ("one that was routed", routed),
        ("one behind another header", behind),
        ("for routers", ipv6(lab.to(B6), (A6, all_routers), &[], ICMPV6, &discovery(133, &[]))),
        ("an announcement", ipv6(lab.to(B6), (A6, "ff02::1".parse().unwrap()), &[], ICMPV6, &announce)),
        ("an answer", ipv6(lab.to(B6), (A6, B6), &[], ICMPV6, &announce)),
    ] {
        lab.sends(what, &frame, &Quiet);
    }
    let forged = ipv6(lab.to(B6), (A6, B6), &[], ICMPV6, &discovery(134, &[&[0; 8]]));
    lab.sends("as a router", &forged, &Want::Drop(SpoofedNeighbour));
    let whole = solicitation(&lab, A6, B6, &option);
    for length in L3 + 40..whole.len() {
        lab.sends(&format!("cut to {length}"), &whole[..length], &Want::Drop(Malformed));
    }
    let stolen = solicitation(&lab, A6, B6, &link_layer(1, lab.b.mac));
    lab.sends("with another's MAC", &stolen, &Want::Drop(SpoofedNeighbour));
}
