//! Fragments: only the first one of a datagram has ports; they are remembered for those that follow.

use crate::{
    clock::now,
    maps::FRAGMENTS,
    packet::{Fragment, ICMP, ICMPV6, Ipv4, Ipv6, Ports, UDP, is_extension},
};
use ebpf_common::{DropReason, FragmentKey, FragmentPorts, IPV4, IPV6, SCTP, TCP, wide4};

/// How long the ports of a datagram are believed: identifications come again (RFC 791 lets a receiver wait 15 s at least; Linux
/// waits 30 s).
const REMEMBERED_NS: u64 = 30_000_000_000;

/// The key of an IPv4 datagram.
#[inline(always)]
pub(crate) fn key4(ip: &Ipv4) -> FragmentKey {
    FragmentKey {
        source: wide4(ip.source),
        destination: wide4(ip.destination),
        identification: ip.identification,
        protocol: ip.protocol,
        family: IPV4,
        reserved: [0; 2],
    }
}

/// The key of an IPv6 datagram.
#[inline(always)]
pub(crate) fn key6(ip: &Ipv6) -> FragmentKey {
    FragmentKey {
        source: ip.source,
        destination: ip.destination,
        identification: ip.identification,
        protocol: ip.protocol,
        family: IPV6,
        reserved: [0; 2],
    }
}

/// The ports of the datagram that a packet is of, whichever part: the whole or the first one has them itself. None if its
/// protocol has no ports.
#[inline(always)]
pub(crate) fn ports(
    key: &FragmentKey,
    fragment: Fragment,
    ports: Option<Ports>,
) -> Result<Option<Ports>, DropReason> {
    match (fragment, ports) {
        (Fragment::Whole, ports) | (Fragment::First, ports @ None) => Ok(ports),
        (Fragment::First, Some(ports)) => {
            remember(key, &ports);
            Ok(Some(ports))
        }
        (Fragment::Later, _) if has_ports(key.protocol) => {
            let mut ports = Ports { source: [0; 2], destination: [0; 2] };
            recall(key, &mut ports)?;
            Ok(Some(ports))
        }
        (Fragment::Later, _) => Ok(None),
    }
}

/// Whether the datagram may have ports. Behind an extension header that was fragmented with the rest, nobody knows.
#[inline(always)]
fn has_ports(protocol: u8) -> bool {
    matches!(protocol, ICMP | ICMPV6 | TCP | UDP | SCTP) || is_extension(protocol)
}

#[inline(never)]
fn remember(key: &FragmentKey, ports: &Ports) {
    let value = FragmentPorts {
        seen: now(),
        source_port: ports.source,
        destination_port: ports.destination,
        reserved: [0; 4],
    };
    // A map that cannot take the entry (it is an LRU: not for being full) costs the later fragments, not this one.
    let _ = FRAGMENTS.insert(key, value, 0);
}

#[inline(never)]
fn recall(key: &FragmentKey, ports: &mut Ports) -> Result<(), DropReason> {
    // SAFETY: the value is read at once; a torn read of it is one wrong port for one datagram.
    let value = unsafe { FRAGMENTS.get(key) }.ok_or(DropReason::FragmentUnknown)?;
    if now().saturating_sub(value.seen) > REMEMBERED_NS {
        return Err(DropReason::FragmentUnknown);
    }
    *ports = Ports { source: value.source_port, destination: value.destination_port };
    Ok(())
}
