//! What ipamd tells of itself: the history of calls, and metrics. Needs root.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod exposition;
mod history;
