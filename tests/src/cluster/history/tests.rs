//! Right histories pass, and every way of breaking one is found: by hand, and by breaking one that a right allocator has made.

use super::*;
use crate::Random;
use std::net::Ipv4Addr;

fn holder(node: &str, container: &str) -> Holder {
    Holder { node: node.to_owned(), container: container.to_owned() }
}

fn holding(node: &str, container: &str, last: u8) -> Holding {
    Holding {
        holder: holder(node, container),
        network: "blue".to_owned(),
        addresses: vec![Ipv4Addr::new(10, 0, 0, last).into()],
    }
}

fn added(node: &str, container: &str, last: u8) -> Event {
    Event::Added(holding(node, container, last))
}

fn deleting(node: &str, container: &str) -> Event {
    Event::Deleting(holder(node, container))
}

fn deleted(node: &str, container: &str) -> Event {
    Event::Deleted(holder(node, container))
}

fn looked<const N: usize>(node: &str, since: usize, seen: [Holding; N]) -> Event {
    Event::Looked { node: node.to_owned(), since, seen: seen.into() }
}

#[test]
fn an_address_may_be_given_again_once_its_del_is_on_the_way() {
    let verdict = judge(&[added("a", "1", 5), deleting("a", "1"), added("b", "2", 5), deleted("a", "1")]);
    assert_eq!((verdict.added, verdict.deleted, verdict.most), (2, 1, 1));
    assert_eq!(verdict.violations, []);
}

#[test]
fn a_duplicate_is_found_and_named() {
    let verdict = judge(&[added("a", "1", 5), added("b", "2", 5)]);
    assert_eq!(
        verdict.to_string().lines().nth(1),
        Some("- 10.0.0.5 of blue was given to 2 on b while 1 on a had it")
    );
    // Each side of it may end; the other still has it.
    let verdict = judge(&[added("a", "1", 5), added("b", "2", 5), deleting("a", "1"), added("c", "3", 5)]);
    assert_eq!(verdict.violations.len(), 2, "{verdict}");
}

#[test]
fn networks_have_addresses_of_their_own() {
    let mut other = holding("b", "2", 5);
    other.network = "green".to_owned();
    assert_eq!(judge(&[added("a", "1", 5), Event::Added(other)]).violations, []);
}

#[test]
fn a_reboot_ends_what_was_on_that_node_only() {
    let gone = || Event::Gone { node: "a".to_owned() };
    assert_eq!(judge(&[added("a", "1", 5), gone(), added("b", "2", 5)]).violations, []);
    assert_eq!(judge(&[added("b", "1", 5), gone(), added("a", "2", 5)]).violations.len(), 1);
}

#[test]
fn a_look_must_show_what_lives_through_it() {
    let lost = |events: &[Event]| judge(events).violations;
    let known = || holding("a", "1", 5);
    assert_eq!(lost(&[added("a", "1", 5), looked("a", 1, [known()])]), []);
    assert_eq!(lost(&[added("a", "1", 5), looked("a", 1, [])]), [Violation::Lost(holder("a", "1"))]);
    assert_eq!(
        lost(&[added("a", "1", 5), looked("a", 1, [holding("a", "1", 6)])]),
        [Violation::Lost(holder("a", "1"))],
        "with another address"
    );
    assert_eq!(lost(&[added("a", "1", 5), looked("a", 0, [])]), [], "added while the node was asked");
    assert_eq!(lost(&[added("a", "1", 5), deleting("a", "1"), looked("a", 1, [])]), [], "deleted meanwhile");
    assert_eq!(lost(&[added("a", "1", 5), looked("b", 1, [])]), [], "another node's");
}

#[test]
fn a_look_must_not_show_what_was_deleted() {
    let gone = [added("a", "1", 5), deleting("a", "1"), deleted("a", "1")];
    let with = |since| judge(&[&gone[..], &[looked("a", since, [holding("a", "1", 5)])]].concat()).violations;
    assert_eq!(with(3), [Violation::Left(holder("a", "1"))]);
    assert_eq!(with(2), [], "the DEL was answered while the node was asked");
}

#[test]
fn a_look_finds_the_duplicate_of_an_add_that_nobody_heard_of() {
    let verdict = judge(&[added("a", "1", 5), looked("b", 1, [holding("b", "2", 5)])]);
    assert!(matches!(&verdict.violations[..], [Violation::Duplicate { .. }]), "{verdict}");
}

#[test]
fn the_recorder_keeps_the_order_of_a_del() {
    let history = History::default();
    history.added(holding("a", "1", 5));
    history
        .deleting(&holder("a", "1"), || {
            history.added(holding("b", "2", 5));
            Ok::<_, ()>(())
        })
        .unwrap();
    history.look("b", || Ok::<_, ()>(vec![holding("b", "2", 5)])).unwrap();
    history.gone("b");
    assert_eq!(history.judge().violations, []);
}

/// A history of three nodes that give from blocks of their own. With a fault, one of them gives from its neighbour's.
fn cluster(seed: u64, faulty: bool) -> Vec<Event> {
    const BLOCK: usize = 16;
    let mut random = Random::new(seed);
    let mut events = Vec::new();
    let mut free: Vec<Vec<u8>> =
        (0..3).map(|n| (0..BLOCK).map(|i| (n * BLOCK + i) as u8).collect()).collect();
    let mut live: Vec<(usize, String, u8)> = Vec::new();
    for step in 0..400 {
        let node = random.index(3);
        let name = format!("node-{node}");
        if random.index(5) < 3 {
            let from = if faulty && node == 2 && random.index(10) == 0 { 1 } else { node };
            if free[from].is_empty() {
                continue;
            }
            let at = random.index(free[from].len());
            // The faulty one does not tell the owner.
            let address = if from == node { free[from].swap_remove(at) } else { free[from][at] };
            let container = format!("c{step}");
            events.push(added(&name, &container, address));
            live.push((node, container, address));
        } else if !live.is_empty() {
            let (owner, container, address) = live.swap_remove(random.index(live.len()));
            let name = format!("node-{owner}");
            events.push(deleting(&name, &container));
            events.push(deleted(&name, &container));
            if usize::from(address) / BLOCK == owner {
                free[owner].push(address);
            }
        }
        if random.index(20) == 0 {
            let seen = live.iter().filter(|(owner, ..)| *owner == node);
            let seen = seen.map(|(_, container, address)| holding(&name, container, *address)).collect();
            events.push(Event::Looked { node: name, since: events.len(), seen });
        }
    }
    events
}

/// Who lives when, and with which address: the intervals of a history, ends excluded.
fn alive(events: &[Event], at: usize) -> Vec<&Holding> {
    let mut live: Vec<&Holding> = Vec::new();
    for event in &events[..at] {
        match event {
            Event::Added(holding) => live.push(holding),
            Event::Deleting(holder) => live.retain(|holding| holding.holder != *holder),
            _ => {}
        }
    }
    live
}

#[test]
fn right_allocators_pass_and_mutants_do_not() {
    let mut faulty = 0;
    for seed in 1..=40 {
        let events = cluster(seed, false);
        assert_eq!(judge(&events).violations, [], "seed {seed}");
        // An allocator that gives from another's block is caught whenever both gave the same address.
        faulty += usize::from(!judge(&cluster(seed, true)).violations.is_empty());
        // One ADD answered with an address that somebody has.
        let mut random = Random::new(seed);
        let victims: Vec<usize> = (0..events.len())
            .filter(|at| matches!(events[*at], Event::Added(_)) && !alive(&events, *at).is_empty())
            .collect();
        let at = victims[random.index(victims.len())];
        let mut mutant = events.clone();
        let taken = alive(&events, at)[0].addresses.clone();
        if let Event::Added(holding) = &mut mutant[at] {
            holding.addresses = taken;
        }
        let found = judge(&mutant).violations;
        assert!(found.iter().any(|v| matches!(v, Violation::Duplicate { .. })), "seed {seed}, event {at}");
        // One attachment that a look has lost.
        let mut mutant = events.clone();
        let lost = mutant.iter_mut().find_map(|event| match event {
            Event::Looked { seen, .. } if !seen.is_empty() => Some(seen.remove(0).holder),
            _ => None,
        });
        let lost = lost.expect("a look that saw something");
        assert!(judge(&mutant).violations.contains(&Violation::Lost(lost)), "seed {seed}");
    }
    assert!(faulty > 20, "only {faulty} of 40 faulty clusters were caught");
}
