//! What ipamd tells of itself: the history of calls, metrics, and the rules and the dashboard that are made of them. Needs root, and promtool.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod exposition;
mod history;
mod rules;
