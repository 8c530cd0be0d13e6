//! `weft-ipam` under the reference main plugins, called as a runtime calls them: addresses are given once, kept over restarts and
//! freed as those of Weft's own containers are, and the containers reach each other by them.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure here is a failed test")]

mod life;
mod plugins;
mod podman;
mod refusals;
mod scene;
