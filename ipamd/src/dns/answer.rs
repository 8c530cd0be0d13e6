//! What a question is answered without asking anybody else. Pure.
//!
//! First [`from_book`]: names and addresses of endpoints. What is not there is given to [`elsewhere`], which knows what must not leave
//! the node: names within a network's own name, addresses of its pools, anything at all from an internal network.
//!
//! Single-label names that are no endpoint's are forwarded as Docker does it: the node's resolver may know them (a router that
//! names the machines of a LAN), and users expect in a container what works on the node.

use super::{
    Asker, Book, DomainName, Host, NetworkDns,
    wire::{Owner, Query, Rcode, ReplyWriter, Section, flags, kind},
};
use std::{
    borrow::Borrow,
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// Names that nobody has to be asked for (RFC 6761, section 6.4; RFC 7686): there are none.
const NEVER: [&[u8]; 2] = [b"invalid", b"onion"];

/// How answers are made.
#[derive(Debug, Clone, Copy)]
pub struct Manner {
    /// Time to live, seconds; of the denial, too.
    pub ttl: u32,
    /// Which of several records comes first: another number, another one.
    pub turn: usize,
    /// Most bytes of the reply.
    pub limit: usize,
}

/// What is to be done with a question that no endpoint is the answer of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Send this.
    Reply(Rcode, Vec<u8>),
    /// Ask others.
    Forward,
}

/// The address whose name is asked for, if it is such a question.
pub fn reversed(name: &DomainName) -> Option<IpAddr> {
    name.wire().ends_with(b"\x04arpa").then(|| name.address()).flatten()
}

/// The answer from names of the asker's networks; `None`: they have no such name.
pub fn from_book(query: &Query<'_>, asker: &Asker, book: &Book, manner: Manner) -> Option<(Rcode, Vec<u8>)> {
    let name = &query.question.name;
    if let Some(address) = reversed(name) {
        let hosts = book.at(asker, address);
        let canonical = hosts.iter().map(|host| &host.canonical).find(|name| !name.is_root())?;
        return Some(pointer(query, canonical, manner));
    }
    let hosts = book.find(asker, name);
    if !hosts.is_empty() {
        if let [host] = hosts[..] {
            return Some(addresses_of(query, &host.addresses, manner));
        }
        let addresses = hosts.iter().flat_map(|host| &host.addresses).copied().collect();
        return Some(addresses_of(query, &addresses, manner));
    }
    services(query, asker, book, manner)
}

/// What is due to a question that [`from_book`] does not answer. `networks`: the asker's; `pooled`: its address ([`reversed`]) is in
/// a pool of this node's networks.
pub fn elsewhere(
    query: &Query<'_>,
    networks: &[impl Borrow<NetworkDns>],
    pooled: bool,
    manner: Manner,
) -> Verdict {
    let name = &query.question.name;
    let last = name.labels().last();
    if last == Some(b"localhost") {
        let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        let (rcode, reply) = addresses_of(query, &loopback.into(), manner);
        return Verdict::Reply(rcode, reply);
    }
    let networks = || networks.iter().map(Borrow::borrow);
    if networks().any(|network| network.domain.as_ref() == Some(name)) {
        let (rcode, reply) = apex(query, manner);
        return Verdict::Reply(rcode, reply);
    }
    let ours =
        || networks().any(|network| network.domain.as_ref().is_some_and(|domain| name.is_within(domain)));
    if pooled || last.is_some_and(|last| NEVER.contains(&last)) || ours() || !networks().any(|n| n.outside) {
        return Verdict::Reply(Rcode::NxDomain, denial(query, Rcode::NxDomain, manner));
    }
    if query.flags & flags::RD == 0 {
        // Nothing but names of the network is ours, and what others asked for is nobody's business.
        return Verdict::Reply(Rcode::Refused, super::wire::empty_reply(query, Rcode::Refused));
    }
    Verdict::Forward
}

/// A and AAAA; NODATA of a type that the name does not have.
fn addresses_of(query: &Query<'_>, addresses: &BTreeSet<IpAddr>, manner: Manner) -> (Rcode, Vec<u8>) {
    let v4 = || addresses.iter().copied().filter(IpAddr::is_ipv4).collect::<Vec<_>>();
    let v6 = || addresses.iter().copied().filter(IpAddr::is_ipv6).collect::<Vec<_>>();
    let mut chosen = match query.question.kind {
        kind::A => v4(),
        kind::AAAA => v6(),
        // One set of records is enough of an answer (RFC 8482, section 4.1).
        kind::ANY => Some(v4()).filter(|list| !list.is_empty()).unwrap_or_else(v6),
        _ => Vec::new(),
    };
    if chosen.is_empty() {
        return (Rcode::NoError, denial(query, Rcode::NoError, manner));
    }
    let first = manner.turn % chosen.len();
    chosen.rotate_left(first);
    let mut reply = ReplyWriter::new(query, manner.limit);
    reply.set_flags(flags::AA);
    for address in chosen {
        push_address(&mut reply, Section::Answer, Owner::Question, address, manner.ttl);
    }
    (Rcode::NoError, reply.finish(Rcode::NoError))
}

fn push_address(reply: &mut ReplyWriter<'_>, section: Section, owner: Owner<'_>, address: IpAddr, ttl: u32) {
    match address {
        IpAddr::V4(v4) => reply.push(section, owner, kind::A, ttl, &[&v4.octets()]),
        IpAddr::V6(v6) => reply.push(section, owner, kind::AAAA, ttl, &[&v6.octets()]),
    }
}

/// PTR: one name, as the programs have it, though several hosts may have the address.
fn pointer(query: &Query<'_>, canonical: &DomainName, manner: Manner) -> (Rcode, Vec<u8>) {
    if !matches!(query.question.kind, kind::PTR | kind::ANY) {
        return (Rcode::NoError, denial(query, Rcode::NoError, manner));
    }
    let mut reply = ReplyWriter::new(query, manner.limit);
    reply.set_flags(flags::AA);
    reply.push(Section::Answer, Owner::Question, kind::PTR, manner.ttl, &[canonical.wire(), &[0]]);
    (Rcode::NoError, reply.finish(Rcode::NoError))
}

/// SRV of `_service._protocol.host` (RFC 2782). A host's services are all that stands before its name; before a name with dots, which
/// may be one of the Internet's that somebody else's container goes by, others are asked for what it does not have.
fn services(query: &Query<'_>, asker: &Asker, book: &Book, manner: Manner) -> Option<(Rcode, Vec<u8>)> {
    let mut labels = query.question.name.labels();
    let (service, protocol) = (labels.next()?, labels.next()?);
    if !service.starts_with(b"_") || !protocol.starts_with(b"_") {
        return None;
    }
    let label = DomainName::of_labels([service, protocol]).ok()?;
    let host_name = DomainName::of_labels(labels).ok()?;
    let hosts = book.find(asker, &host_name);
    let mut found: Vec<(&Host, u16)> = Vec::new();
    for host in &hosts {
        found.extend(host.services.iter().filter(|s| s.label == label).map(|s| (*host, s.port)));
    }
    if found.is_empty() {
        let single = !hosts.is_empty() && host_name.labels().nth(1).is_none();
        return single.then(|| (Rcode::NxDomain, denial(query, Rcode::NxDomain, manner)));
    }
    if !matches!(query.question.kind, kind::SRV | kind::ANY) {
        return Some((Rcode::NoError, denial(query, Rcode::NoError, manner)));
    }
    let first = manner.turn % found.len();
    found.rotate_left(first);
    let mut reply = ReplyWriter::new(query, manner.limit);
    reply.set_flags(flags::AA);
    // One without a name of its own is where it was asked for.
    let target = |host: &Host| match host.canonical.is_root() {
        true => host_name.clone(),
        false => host.canonical.clone(),
    };
    for (host, port) in &found {
        let target = target(host);
        let data: [&[u8]; 4] = [&[0; 4], &port.to_be_bytes(), target.wire(), &[0]];
        reply.push(Section::Answer, Owner::Question, kind::SRV, manner.ttl, &data);
    }
    for (host, _) in &found {
        let target = target(host);
        for &address in &host.addresses {
            push_address(&mut reply, Section::Additional, Owner::Name(&target), address, manner.ttl);
        }
    }
    Some((Rcode::NoError, reply.finish(Rcode::NoError)))
}

/// The network's own name: a zone, so its SOA is there and nothing else.
fn apex(query: &Query<'_>, manner: Manner) -> (Rcode, Vec<u8>) {
    if !matches!(query.question.kind, kind::SOA | kind::ANY) {
        return (Rcode::NoError, denial(query, Rcode::NoError, manner));
    }
    let mut reply = ReplyWriter::new(query, manner.limit);
    reply.set_flags(flags::AA);
    push_soa(&mut reply, Section::Answer, Owner::Question, manner.ttl);
    (Rcode::NoError, reply.finish(Rcode::NoError))
}

/// There is no such name, or nothing of this type, and for how long that may be believed (RFC 2308). A name without such data is
/// a zone of its own here, one that is not is missing in what stands behind its first label.
fn denial(query: &Query<'_>, rcode: Rcode, manner: Manner) -> Vec<u8> {
    let owner = if rcode == Rcode::NxDomain { Owner::Parent } else { Owner::Question };
    let mut reply = ReplyWriter::new(query, manner.limit);
    reply.set_flags(flags::AA);
    push_soa(&mut reply, Section::Authority, owner, manner.ttl);
    reply.finish(rcode)
}

/// An SOA as of a zone that is nobody's to transfer: serial, refresh, retry, expire, minimum.
fn push_soa(reply: &mut ReplyWriter<'_>, section: Section, owner: Owner<'_>, ttl: u32) {
    let numbers: Vec<u8> = [1, 3_600, 600, 86_400, ttl].into_iter().flat_map(u32::to_be_bytes).collect();
    reply.push(section, owner, kind::SOA, ttl, &[b"\x04weft\0\x0ahostmaster\x04weft\0", &numbers]);
}

#[cfg(test)]
mod tests;
