//! What a node that takes nothing more refuses, and what it goes on doing.

use super::*;
use crate::{
    clock::Clock,
    member::Member as Standing,
    membership::{self, Refusal},
};
use std::thread;

fn standing() -> Arc<Standing> {
    let standing = membership::Standing::new("node".into(), Duration::from_secs(3600), Some(0));
    let standing = Arc::new(Standing::new(standing, Arc::new(BootClock)));
    standing.update(|s| s.confirm(BootClock.now()));
    standing
}

#[test]
fn a_node_that_is_drained_or_refused_adds_nothing_and_keeps_what_it_has() {
    let node = Node::new();
    let (a, _doomed, _) = node.start();
    let standing = standing();
    a.ask_before_adds(&standing);
    let netns = node.sandbox("one");
    let added = a.add(&add_request("one", &netns)).unwrap();
    let refusal = Refusal { id: "other".into(), underlay: vec![] };
    for (close, word) in [(None, "netctl undrain"), (Some(refusal), "another machine's")] {
        standing.update(|s| match close {
            None => s.draining = true,
            Some(refusal) => s.refuse(refusal),
        });
        let mut other = add_request("two", &node.sandbox("two"));
        other.network.name = "green".into();
        other.network.pools = vec![];
        for request in [&add_request("two", &node.sandbox("two")), &other] {
            let error = a.add(request).unwrap_err();
            assert_eq!(error.code(), Some(ErrorCode::NotAvailable), "{error}");
            assert!(error.msg.contains(word.trim_start_matches("netctl ")), "{error}");
        }
        assert_eq!(a.networks().all().len(), 1, "no network is made either");
        // What exists is answered for.
        assert_eq!(a.add(&add_request("one", &netns)).unwrap().endpoint, added.endpoint);
    }
    a.del(&del_request("one", by_generation(&added))).unwrap();
    reap(&a);
    node.assert_clean(&a, "after the DEL");
}

#[test]
fn a_node_that_hears_only_within_an_add_that_it_is_drained_keeps_nothing_of_it() {
    let node = Node::new();
    let (a, _doomed, _) = node.start();
    // Nothing was heard yet.
    let standing = membership::Standing::new("node".into(), Duration::from_secs(3600), Some(0));
    let standing = Arc::new(Standing::new(standing, Arc::new(BootClock)));
    a.ask_before_adds(&standing);
    let (asked, answers) = (Arc::clone(&standing), node.runtime.handle().clone());
    let answering = thread::spawn(move || {
        answers.block_on(asked.wanted());
        asked.update(|s| {
            s.draining = true;
            s.confirm(BootClock.now());
        });
    });
    let error = a.add(&add_request("one", &node.sandbox("one"))).unwrap_err();
    answering.join().unwrap();
    assert_eq!(error.code(), Some(ErrorCode::NotAvailable), "{error}");
    assert_eq!(a.networks().all(), []);
    node.assert_clean(&a, "after the ADD");
}
