//! The store over etcd, against a real one: the contract of every store, and what goes wrong with members, links,
//! certificates and clocks.

mod harness;
