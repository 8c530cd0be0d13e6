//! Published ports: which frontend a packet dials, and who may.

use crate::{
    maps::{ALLOWED, NODE_ADDRESSES, PUBLISHED},
    nat::config,
    packet::{Fragment, UDP},
    scratch::{Scratch, narrow},
};
use aya_ebpf::maps::lpm_trie::Key;
use ebpf_common::{
    AddressKey, AllowKey, CONFIG_ALLOW, CONFIG_DENY, IPV4, LIST_NODE_ALLOW, LIST_NODE_DENY,
    PUBLISHED_SOCKETS_ONLY, PortKey, Published, SCTP, TCP, Tuple, is_syn, mapped4,
};

/// Whether an address is the node's.
#[inline(always)]
pub(crate) fn is_node(family: u8, address: &[u8; 16]) -> bool {
    let key = AddressKey { network: 0, family: family.into(), address: *address };
    // SAFETY: only its presence counts.
    unsafe { NODE_ADDRESSES.get(key) }.is_some()
}

/// Whether a packet may begin a flow to a frontend: a SYN of TCP, any packet of UDP and SCTP.
#[inline(always)]
pub(crate) fn may_open(s: &Scratch) -> bool {
    match s.key.protocol {
        _ if s.place.fragment == Fragment::Later && s.key.protocol != UDP => false,
        TCP => is_syn(s.transport.tcp_flags),
        UDP | SCTP => true,
        _ => false,
    }
}

/// The frontend that a packet dials; `node` says whether the address is the node's, and so has what is published at every address.
#[inline(never)]
pub(crate) fn frontend(key: &Tuple, node: bool) -> Option<&'static Published> {
    let at = |address: [u8; 16]| {
        let key = PortKey { address, protocol: key.protocol, family: key.family, port: key.destination_port };
        PUBLISHED.get(Key::new(PortKey::ALL_BITS, key))
    };
    let found = match at(key.destination) {
        None if node => at([0; 16]),
        found => found,
    }?;
    let for_packets = found.flags & PUBLISHED_SOCKETS_ONLY == 0 && found.backend_family == key.family;
    if for_packets { Some(found) } else { None }
}

/// Whether this source may use published ports of this node at all.
#[inline(never)]
pub(crate) fn is_admitted(key: &Tuple) -> bool {
    let flags = config().map_or(0, |c| c.flags);
    let denied = flags & CONFIG_DENY != 0 && is_listed(LIST_NODE_DENY, key);
    !denied && (flags & CONFIG_ALLOW == 0 || is_listed(LIST_NODE_ALLOW, key))
}

/// Whether this source may use one published port: zero is the list of everybody.
#[inline(never)]
pub(crate) fn is_allowed(list: u32, key: &Tuple) -> bool {
    list == 0 || is_listed(list, key)
}

#[inline(always)]
fn is_listed(list: u32, key: &Tuple) -> bool {
    let address = if key.family == IPV4 { mapped4(narrow(&key.source)) } else { key.source };
    let key = AllowKey { list: list.to_be_bytes(), address };
    ALLOWED.get(Key::new(AllowKey::ALL_BITS, key)).is_some()
}
