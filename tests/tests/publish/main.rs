//! Ports of containers that are published on their node, with real clients on every way to them.

mod access;
mod entry;
mod holders;
mod life;
mod mappings;
mod names;
mod runtimes;
mod scene;
mod ways;
