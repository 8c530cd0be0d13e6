//! Rows of the datapath against the book, whatever comes in whatever order.

use super::{
    names::{NETWORK, called, gone, ip, name, of_node},
    *,
};
use crate::{
    cluster::{NameEntry, NameUpdate, StaticName, Told},
    datapath::NameRow,
};
use proptest::prelude::*;
use std::collections::BTreeSet;

#[derive(Debug, Clone)]
enum Act {
    Add(u8, Vec<u8>),
    Del(u8),
    Hear(u8, Option<Vec<u8>>),
    Static(u8, Option<bool>),
    Fail,
    Sweep,
}

fn acts() -> impl Strategy<Value = Act> {
    let names = || prop::collection::vec(0..4_u8, 0..3);
    prop_oneof![
        3 => (0..4_u8, names()).prop_map(|(who, names)| Act::Add(who, names)),
        2 => (0..4_u8).prop_map(Act::Del),
        3 => (0..4_u8, prop::option::of(names())).prop_map(|(who, names)| Act::Hear(who, names)),
        2 => (0..4_u8, prop::option::of(any::<bool>())).prop_map(|(who, alias)| Act::Static(who, alias)),
        1 => Just(Act::Fail),
        1 => Just(Act::Sweep),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Whatever comes in whatever order, and whatever the datapath refuses: after a sweep the rows are what the book says, and before
    /// one, too, if nothing was refused.
    #[test]
    fn rows_are_what_the_book_says(all in prop::collection::vec(acts(), 1..25)) {
        let node = Node { cool_down: Duration::ZERO, ..Node::new() };
        let (a, _doomed, _) = node.start();
        let mut failed = false;
        for act in all {
            match act {
                Act::Add(who, names) => {
                    let container = format!("c{who}");
                    let names: Vec<String> = names.iter().map(|n| format!("n{n}")).collect();
                    let names: Vec<&str> = names.iter().map(String::as_str).collect();
                    if a.find(&key(&container)).is_none() {
                        a.add(&called(add_request(&container, &node.sandbox(&container)), &names)).unwrap();
                    }
                }
                Act::Del(who) => {
                    if let Some(record) = a.find(&key(&format!("c{who}"))) {
                        let evidence = Evidence { endpoint: Some(record.endpoint), cookie: None };
                        a.del(&del_request(&format!("c{who}"), evidence)).unwrap();
                        reap(&a);
                    }
                }
                Act::Hear(who, names) => {
                    let names = names.map(|names| names.iter().map(|n| format!("n{n}")).collect::<Vec<_>>());
                    let entry = match names {
                        Some(names) if !names.is_empty() => {
                            let names: Vec<&str> = names.iter().map(String::as_str).collect();
                            of_node("far", u64::from(who) + 1, 0, &names, &[&format!("10.9.0.{who}")])
                        }
                        _ => gone("far", u64::from(who) + 1),
                    };
                    a.hear_names(NETWORK, None, NameUpdate::Some(vec![entry]));
                }
                Act::Static(who, alias) => {
                    let told = match alias {
                        None => Told::Gone,
                        Some(true) => {
                            Told::Is(StaticName { target: Some(name(&format!("n{}", (who + 1) % 4))), ..StaticName::default() })
                        }
                        Some(false) => Told::Is(StaticName { addresses: [ip("192.0.2.1")].into(), target: None }),
                    };
                    let entry = NameEntry::Static { name: name(&format!("n{who}")), told };
                    a.hear_names(NETWORK, None, NameUpdate::Some(vec![entry]));
                }
                Act::Fail => {
                    node.datapath.fail("change_names", 1);
                    failed = true;
                }
                Act::Sweep => {
                    node.datapath.fail("change_names", 0);
                    // Its names have been read: the sweep may take rows away.
                    let open = !a.followed_names().borrow().is_empty();
                    if open { a.mark_names_read(NETWORK); }
                    a.sweep().unwrap();
                    failed = false;
                }
            }
            if !failed {
                let mut held = BTreeSet::new();
                node.datapath.visit_names(&mut |row| { held.insert(row); }).unwrap();
                let wanted: BTreeSet<NameRow> = a.wanted_name_rows();
                prop_assert_eq!(held, wanted);
            }
        }
    }
}
