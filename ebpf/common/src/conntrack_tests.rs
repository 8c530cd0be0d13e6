//! Histories of flows: what two sides say, and what becomes of it.

use super::*;
use crate::UDP;
use proptest::prelude::*;

/// A packet of a history: whether the opener sends it, and its TCP flags.
type Step = (bool, u8);

const SYN_ACK: u8 = TCP_SYN | TCP_ACK;
const FIN_ACK: u8 = TCP_FIN | TCP_ACK;

/// What both sides have seen after a history.
fn seen(protocol: u8, steps: &[Step]) -> (u32, u32) {
    let mut sides = (0, 0);
    for &(opener, flags) in steps {
        let side = if opener { &mut sides.0 } else { &mut sides.1 };
        *side = note(*side, protocol, flags);
    }
    sides
}

fn after(protocol: u8, steps: &[Step]) -> ConnState {
    let (original, reply) = seen(protocol, steps);
    state(original, reply, protocol)
}

const HANDSHAKE: [Step; 3] = [(true, TCP_SYN), (false, SYN_ACK), (true, TCP_ACK)];

#[test]
fn a_tcp_connection_goes_through_its_states() {
    let table: &[(&str, &[Step], ConnState)] = &[
        ("a SYN", &HANDSHAKE[..1], ConnState::Unreplied),
        ("answered", &HANDSHAKE[..2], ConnState::Opening),
        ("confirmed", &HANDSHAKE, ConnState::Established),
        ("refused", &[(true, TCP_SYN), (false, TCP_RST | TCP_ACK)], ConnState::Reset),
        ("given up", &[(true, TCP_SYN), (true, TCP_RST)], ConnState::Reset),
        ("picked up in the middle", &[(true, TCP_ACK), (false, TCP_ACK)], ConnState::Established),
        ("picked up by the other side", &[(false, TCP_ACK)], ConnState::Opening),
    ];
    for (what, steps, wanted) in table {
        assert_eq!(after(TCP, steps), *wanted, "{what}");
    }
}

#[test]
fn a_tcp_connection_ends_side_by_side() {
    let closes = |steps: &[Step]| after(TCP, &[&HANDSHAKE[..], steps].concat());
    assert_eq!(closes(&[(true, FIN_ACK)]), ConnState::HalfClosed);
    assert_eq!(closes(&[(false, FIN_ACK)]), ConnState::HalfClosed);
    // The other side goes on sending for as long as it likes.
    assert_eq!(closes(&[(true, FIN_ACK), (false, TCP_ACK), (true, TCP_ACK)]), ConnState::HalfClosed);
    assert_eq!(closes(&[(true, FIN_ACK), (false, FIN_ACK)]), ConnState::Closed);
    assert_eq!(closes(&[(true, FIN_ACK), (false, FIN_ACK), (true, TCP_ACK)]), ConnState::Closed);
    assert_eq!(closes(&[(false, TCP_RST)]), ConnState::Reset);
    // Out of the window it is void: data of the same side take it back.
    assert_eq!(closes(&[(false, TCP_RST), (false, TCP_ACK)]), ConnState::Established);
    assert_eq!(closes(&[(false, TCP_RST), (true, TCP_ACK)]), ConnState::Reset);
}

#[test]
fn datagrams_are_answered_or_not() {
    assert_eq!(after(UDP, &[(true, 0), (true, 0)]), ConnState::Unreplied);
    assert_eq!(after(UDP, &[(true, 0), (false, 0)]), ConnState::Established);
    assert_eq!(after(ICMP, &[(true, 0), (false, 0)]), ConnState::Established);
}

#[test]
fn only_a_syn_after_the_end_begins_anew() {
    let (closed, _) = seen(TCP, &[&HANDSHAKE[..], &[(true, FIN_ACK)]].concat());
    let (open, _) = seen(TCP, &HANDSHAKE);
    let (reset, _) = seen(TCP, &[(true, TCP_SYN), (true, TCP_RST)]);
    assert!(reopens(closed, TCP, TCP_SYN) && reopens(reset, TCP, TCP_SYN));
    assert!(!reopens(open, TCP, TCP_SYN), "a SYN within a connection is a stray or an attack (RFC 5961)");
    for flags in [SYN_ACK, TCP_ACK, FIN_ACK, TCP_SYN | TCP_RST, 0] {
        assert!(!reopens(closed, TCP, flags), "{flags:#x}");
    }
    assert!(!reopens(closed, UDP, TCP_SYN));
}

#[test]
fn time_outs_follow_the_state() {
    let of = |state, protocol| timeout(state, protocol, &Timeouts::DEFAULT);
    assert!(of(ConnState::Established, TCP) > of(ConnState::HalfClosed, TCP));
    assert!(of(ConnState::HalfClosed, TCP) > of(ConnState::Closed, TCP));
    assert_eq!(of(ConnState::Reset, TCP), of(ConnState::Closed, TCP));
    assert_eq!(of(ConnState::Unreplied, TCP), of(ConnState::Opening, TCP));
    assert!(of(ConnState::Established, UDP) > of(ConnState::Unreplied, UDP));
    assert_eq!(of(ConnState::Established, ICMPV6), of(ConnState::Unreplied, ICMP));
    // RFC 5382, REQ-5 and RFC 4787, REQ-5.
    assert!(of(ConnState::Established, TCP) >= 7_440 * SECOND);
    assert!(of(ConnState::Established, UDP) >= 120 * SECOND);
}

fn any_tuple() -> impl Strategy<Value = Tuple> {
    (any::<[u8; 16]>(), any::<[u8; 16]>(), any::<[u8; 2]>(), any::<[u8; 2]>(), any::<u8>(), any::<bool>())
        .prop_map(|(source, destination, source_port, destination_port, protocol, wide)| Tuple {
            source,
            destination,
            source_port,
            destination_port,
            protocol,
            family: if wide { crate::IPV6 } else { crate::IPV4 },
            reserved: [0; 2],
        })
}

proptest! {
    /// The key of a flow's other entry leads back to the first one: `to.reversed()` of the one is the key of the other, whose `to` is
    /// the first one's key, reversed.
    #[test]
    fn both_entries_of_a_flow_find_each_other(key in any_tuple(), to in any_tuple()) {
        let (reply_key, reply_to) = (to.reversed(), key.reversed());
        prop_assert_eq!(reply_to.reversed(), key);
        prop_assert_eq!(reply_key.reversed(), to);
    }

    /// Whatever flags packets have: what was seen stays seen, but for the RST that something followed.
    #[test]
    fn nothing_seen_is_forgotten(steps in proptest::collection::vec(any::<u8>(), 1..40)) {
        let mut before = 0;
        for flags in steps {
            let now = note(before, TCP, flags);
            prop_assert_ne!(now, 0, "a packet went by");
            prop_assert_eq!(before & !SEEN_RST & !now, 0);
            prop_assert_eq!(now & SEEN_RST != 0, flags & TCP_RST != 0, "the last word");
            prop_assert_eq!(note(now, TCP, flags), now, "a packet twice is a packet once");
            before = now;
        }
    }

    /// Once a side is answered, the flow never looks unanswered again, and a flow of both never lives shorter than one of none.
    #[test]
    fn an_answered_flow_stays_answered(
        steps in proptest::collection::vec((any::<bool>(), any::<u8>()), 1..40),
        protocol in prop_oneof![Just(TCP), Just(UDP), Just(ICMP), Just(132u8), any::<u8>()],
    ) {
        let mut answered = false;
        for end in 1..=steps.len() {
            let now = after(protocol, &steps[..end]);
            answered |= !steps[end - 1].0;
            if answered {
                prop_assert_ne!(now, ConnState::Unreplied);
            }
            if protocol != TCP {
                prop_assert!(matches!(now, ConnState::Unreplied | ConnState::Established));
            }
            prop_assert!(timeout(now, protocol, &Timeouts::DEFAULT) > 0);
        }
    }

    /// An orderly end is the end, in whatever order segments of both sides arrive.
    #[test]
    fn two_fins_close(mut steps in proptest::collection::vec((any::<bool>(), Just(TCP_ACK)), 0..20), a in 0usize..20, b in 0usize..20) {
        steps.insert(a.min(steps.len()), (true, FIN_ACK));
        steps.insert(b.min(steps.len()), (false, FIN_ACK));
        prop_assert_eq!(after(TCP, &[&HANDSHAKE[..], &steps].concat()), ConnState::Closed);
    }

    /// A forged RST shortens a connection's time only until its side speaks again.
    #[test]
    fn a_reset_holds_until_its_side_speaks(opener: bool, data in proptest::collection::vec(any::<bool>(), 0..20)) {
        let mut steps = HANDSHAKE.to_vec();
        steps.push((opener, TCP_RST));
        steps.extend(data.iter().map(|&side| (side, TCP_ACK)));
        let wanted = if data.contains(&opener) { ConnState::Established } else { ConnState::Reset };
        prop_assert_eq!(after(TCP, &steps), wanted);
    }
}
