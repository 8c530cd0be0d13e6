//! Pure: the two directions of a flow brought together as they are read, and what they mean together.

use super::FlowEntry;
use ebpf_common::{
    CONN_ORIGINAL, Conn, ConnState, ICMP, ICMPV6, IPV4, TCP, Timeouts, Tuple, UDP, state, timeout,
};
use ipamd_api::{EndpointId, FlowTuple};
use std::{
    collections::{HashMap, hash_map::Entry},
    hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState},
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

/// What is kept of one direction until the other one comes.
pub(super) trait Half {
    fn of(conn: &Conn) -> Self;
}

impl Half for Conn {
    fn of(conn: &Conn) -> Self {
        *conn
    }
}

/// What a sweep must know of a direction: less than everything, because there are many.
#[derive(Debug, Clone, Copy)]
pub(super) struct Vital {
    pub(super) endpoint: u64,
    pub(super) opener: u64,
    pub(super) created: u64,
    pub(super) last_seen: u64,
    pub(super) flags: u32,
    pub(super) seen: u32,
}

impl Half for Vital {
    fn of(conn: &Conn) -> Self {
        let Conn { endpoint, opener, created, last_seen, flags, seen, .. } = *conn;
        Self { endpoint, opener, created, last_seen, flags, seen }
    }
}

/// Both directions: the key of the opener's, what is known of it, the key of the other one, what is known of that.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pair<H> {
    pub(super) original_key: Tuple,
    pub(super) original: H,
    pub(super) reply_key: Tuple,
    pub(super) reply: H,
}

/// Directions that wait for their other one, by a hash of the flow: there may be hundreds of thousands, and this is half of what
/// their whole keys would need. Of two flows with one hash only one can wait; the other is not seen this time.
pub(super) struct Join<H> {
    waiting: HashMap<u64, (Tuple, H), BuildHasherDefault<Hashed>>,
    seed: [u64; 2],
}

impl<H: Half + Copy> Join<H> {
    /// One for about so many flows.
    pub(super) fn with_capacity(flows: usize) -> Self {
        // Clients choose ports: with a seed of their own nobody can choose them to collide.
        let random = RandomState::new();
        let seed = [random.hash_one(0_u8), random.hash_one(1_u8) | 1];
        // In random order, half of the flows are open at a time.
        Self { waiting: HashMap::with_capacity_and_hasher(flows / 2, BuildHasherDefault::default()), seed }
    }

    /// Takes a direction; answers with both when it is the second.
    pub(super) fn take(&mut self, key: &Tuple, conn: &Conn) -> Option<Pair<H>> {
        let partner = conn.to.reversed();
        let half = H::of(conn);
        let is_original = conn.flags & CONN_ORIGINAL != 0;
        // Of both keys: a half that is left over may name the same partner as one of a flow that is whole.
        let (original, reply) = if is_original { (key, &partner) } else { (&partner, key) };
        let [seed, factor] = self.seed;
        let hash = hash([hash(self.seed, original) ^ seed, factor], reply);
        match self.waiting.entry(hash) {
            Entry::Occupied(waiting) if waiting.get().0 == partner => {
                let (other_key, other) = waiting.remove();
                Some(if is_original {
                    Pair { original_key: *key, original: half, reply_key: other_key, reply: other }
                } else {
                    Pair { original_key: other_key, original: other, reply_key: *key, reply: half }
                })
            }
            Entry::Occupied(mut stranger) => {
                stranger.insert((*key, half));
                None
            }
            Entry::Vacant(vacant) => {
                vacant.insert((*key, half));
                None
            }
        }
    }

    /// Directions whose other one never came.
    pub(super) fn rest(self) -> impl Iterator<Item = (Tuple, H)> {
        self.waiting.into_values()
    }
}

/// A hash that is a hash already.
#[derive(Debug, Default)]
struct Hashed(u64);

impl Hasher for Hashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

/// A hash of a tuple by multiplications of 64 bits whose halves are folded (as wyhash does): a few nanoseconds.
fn hash([seed, factor]: [u64; 2], tuple: &Tuple) -> u64 {
    let words = |[a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]: [u8; 16]| {
        [u64::from_ne_bytes([a, b, c, d, e, f, g, h]), u64::from_ne_bytes([i, j, k, l, m, n, o, p])]
    };
    let ([a, b], [c, d]) = (words(tuple.source), words(tuple.destination));
    let ([e, f], [g, h]) = (tuple.source_port, tuple.destination_port);
    let ports = u64::from_ne_bytes([e, f, g, h, tuple.protocol, tuple.family, 0, 0]);
    [a, b, c, d, ports].into_iter().fold(seed, |state, word| {
        let product = u128::from(state ^ word) * u128::from(factor);
        (product as u64) ^ (product >> 64) as u64 ^ seed.rotate_left(17)
    })
}

/// The state of a flow and how long it is still remembered, nanoseconds; zero: it has expired.
pub(super) fn judge(
    protocol: u8,
    (original, reply): (u32, u32),
    last_seen: u64,
    now: u64,
    timeouts: &Timeouts,
) -> (ConnState, u64) {
    let state = state(original, reply, protocol);
    let end = last_seen.saturating_add(timeout(state, protocol, timeouts));
    (state, end.saturating_sub(now))
}

/// How long a flow of the host keeps its port from sandboxes after its last packet.
pub(super) fn host_timeout(protocol: u8, timeouts: &Timeouts) -> u64 {
    match protocol {
        TCP => timeouts.tcp_established,
        UDP => timeouts.udp_replied,
        ICMP | ICMPV6 => timeouts.icmp,
        _ => timeouts.udp_replied,
    }
}

/// A flow as it is shown.
pub(super) fn entry_of(pair: &Pair<Conn>, now: u64, timeouts: &Timeouts) -> FlowEntry {
    let (original, reply) = (&pair.original, &pair.reply);
    let protocol = pair.original_key.protocol;
    let last_seen = original.last_seen.max(reply.last_seen);
    let (state, left) = judge(protocol, (original.seen, reply.seen), last_seen, now, timeouts);
    FlowEntry {
        protocol,
        state,
        flags: original.flags,
        endpoint: EndpointId::new(original.endpoint),
        opener: EndpointId::new(original.opener),
        original: tuple_of(&pair.original_key),
        reply: tuple_of(&pair.reply_key),
        original_count: (original.packets, original.bytes),
        reply_count: (reply.packets, reply.bytes),
        age: Duration::from_nanos(now.saturating_sub(original.created)),
        expires_in: Duration::from_nanos(left),
    }
}

fn tuple_of(tuple: &Tuple) -> FlowTuple {
    FlowTuple {
        source: address_of(tuple.family, tuple.source),
        source_port: u16::from_be_bytes(tuple.source_port),
        destination: address_of(tuple.family, tuple.destination),
        destination_port: u16::from_be_bytes(tuple.destination_port),
    }
}

/// An address of a tuple.
fn address_of(family: u8, address: [u8; 16]) -> IpAddr {
    let [a, b, c, d, ..] = address;
    if family == IPV4 { IpAddr::V4(Ipv4Addr::new(a, b, c, d)) } else { IpAddr::V6(address.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebpf_common::{CONN_MASQUERADE, SEEN_DATA, SEEN_FIN, SEEN_SYN, wide4};
    use proptest::prelude::*;

    fn tuple(source: ([u8; 4], u16), destination: ([u8; 4], u16)) -> Tuple {
        Tuple {
            source: wide4(source.0),
            destination: wide4(destination.0),
            source_port: source.1.to_be_bytes(),
            destination_port: destination.1.to_be_bytes(),
            protocol: TCP,
            family: IPV4,
            reserved: [0; 2],
        }
    }

    /// Both directions of a masqueraded flow, as in the map.
    fn flow(port: u16) -> [(Tuple, Conn); 2] {
        let out = tuple(([10, 1, 0, 2], port), ([192, 0, 2, 9], 80));
        let translated = tuple(([198, 51, 100, 1], port), ([192, 0, 2, 9], 80));
        let original = Conn {
            endpoint: 7,
            opener: 0,
            created: 100,
            last_seen: 400,
            packets: 3,
            bytes: 300,
            to: translated,
            flags: CONN_ORIGINAL | CONN_MASQUERADE,
            seen: SEEN_SYN | SEEN_DATA,
        };
        let reply = Conn {
            to: out.reversed(),
            flags: CONN_MASQUERADE,
            last_seen: 900,
            packets: 2,
            bytes: 200,
            seen: SEEN_SYN | SEEN_DATA | SEEN_FIN,
            ..original
        };
        [(out, original), (translated.reversed(), reply)]
    }

    #[test]
    fn both_directions_make_one_flow_in_any_order() {
        for order in [[0, 1], [1, 0]] {
            let halves = flow(1000);
            let mut join = Join::<Conn>::with_capacity(0);
            assert!(join.take(&halves[order[0]].0, &halves[order[0]].1).is_none());
            let pair = join.take(&halves[order[1]].0, &halves[order[1]].1).unwrap();
            let entry = entry_of(&pair, 1000, &Timeouts::DEFAULT);
            assert_eq!(entry.state, ConnState::HalfClosed);
            assert_eq!(entry.original.source.to_string(), "10.1.0.2");
            assert_eq!(entry.reply.destination.to_string(), "198.51.100.1");
            assert_eq!((entry.original_count, entry.reply_count), ((3, 300), (2, 200)));
            assert_eq!(entry.age, Duration::from_nanos(900));
            assert_eq!(entry.expires_in, Duration::from_nanos(Timeouts::DEFAULT.tcp_half_closed - 100));
            assert_eq!(join.rest().count(), 0);
        }
    }

    #[test]
    fn a_half_whose_partner_means_another_stays_alone() {
        let [(out, original), (back, reply)] = flow(1000);
        // The answers of another flow have come to lie under the key that this one's answers should have.
        let other = Conn { to: tuple(([192, 0, 2, 9], 80), ([10, 1, 0, 99], 1)), ..reply };
        let mut join = Join::<Vital>::with_capacity(0);
        assert!(join.take(&out, &original).is_none());
        assert!(join.take(&back, &other).is_none());
        let mut rest: Vec<_> = join.rest().map(|(key, _)| key).collect();
        rest.sort_unstable();
        let mut wanted = vec![out, back];
        wanted.sort_unstable();
        assert_eq!(rest, wanted);
    }

    #[test]
    fn a_half_that_is_left_over_keeps_no_flow_from_being_whole() {
        // The port leads elsewhere by now: the opener's entry was written anew, and that of the old answers is still there.
        let [(out, original), (back, reply)] = flow(1000);
        let elsewhere = tuple(([198, 51, 100, 1], 1000), ([192, 0, 2, 77], 80));
        let original = Conn { to: elsewhere, ..original };
        let halves = [(out, original), (elsewhere.reversed(), reply), (back, reply)];
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let mut join = Join::<Conn>::with_capacity(0);
            let pairs: Vec<_> =
                order.into_iter().filter_map(|n| join.take(&halves[n].0, &halves[n].1)).collect();
            assert_eq!(pairs.len(), 1, "{order:?}");
            assert_eq!(pairs[0].reply_key, elsewhere.reversed(), "{order:?}");
            assert_eq!(join.rest().map(|(key, _)| key).collect::<Vec<_>>(), [back], "{order:?}");
        }
    }

    #[test]
    fn flows_that_differ_in_one_port_hash_apart() {
        let seed = [0x9e37_79b9_7f4a_7c15, 0xd6e8_feb8_6659_fd93];
        let hashes: std::collections::BTreeSet<_> = (0..=u16::MAX)
            .map(|port| hash(seed, &tuple(([10, 1, 0, 2], port), ([192, 0, 2, 9], 80))))
            .collect();
        assert_eq!(hashes.len(), 1 << 16);
        // hashbrown takes seven bits from the top and the bucket from the bottom: both must vary.
        for shift in [0, 57] {
            let few: std::collections::BTreeSet<_> = hashes.iter().map(|h| h >> shift & 0x7f).collect();
            assert_eq!(few.len(), 128);
        }
    }

    #[test]
    fn the_end_is_counted_from_the_last_packet_of_either_side() {
        let t = Timeouts::DEFAULT;
        let seen = SEEN_SYN | SEEN_DATA;
        let left = |now| judge(TCP, (seen, seen), 1000, now, &t);
        assert_eq!(left(1000), (ConnState::Established, t.tcp_established));
        assert_eq!(left(1000 + t.tcp_established - 1).1, 1);
        assert_eq!(left(1000 + t.tcp_established).1, 0);
        // A clock that is read a tick late is no end.
        assert_eq!(left(0).1, t.tcp_established + 1000);
        assert_eq!(judge(UDP, (SEEN_SYN, 0), 0, t.udp_unreplied, &t), (ConnState::Unreplied, 0));
    }

    proptest! {
        #[test]
        fn flows_come_out_whole_whatever_the_order(
            ports in proptest::collection::btree_set(1..2000_u16, 1..60), keys in proptest::collection::vec(any::<u32>(), 120)
        ) {
            let mut halves: Vec<_> = ports.iter().flat_map(|p| flow(*p)).zip(keys).collect();
            halves.sort_by_key(|(_, key)| *key);
            let mut join = Join::<Vital>::with_capacity(0);
            let pairs: Vec<_> = halves.iter().filter_map(|((key, conn), _)| join.take(key, conn)).collect();
            let found: std::collections::BTreeSet<_> =
                pairs.iter().map(|p| u16::from_be_bytes(p.original_key.source_port)).collect();
            prop_assert_eq!(found, ports);
            for pair in pairs {
                prop_assert!(pair.original.flags & CONN_ORIGINAL != 0 && pair.reply.flags & CONN_ORIGINAL == 0);
                prop_assert_eq!(pair.original.last_seen, 400);
            }
            prop_assert_eq!(join.rest().count(), 0);
        }
    }
}
