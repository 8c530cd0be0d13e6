//! The store over etcd, against a real one: the contract of every store, and what goes wrong with members, links,
//! certificates and clocks.
#![allow(clippy::unwrap_used, clippy::panic, reason = "what helps these tests may fail as they do")]

mod addresses;
mod contract;
mod copies;
mod daemon;
mod documents;
mod doubts;
mod harness;
mod names;
mod nodes;
mod outages;
mod refusals;
mod scene;
mod streams;
mod swaps;
