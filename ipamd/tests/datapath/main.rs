//! The datapath in the kernel: the loader, packet tables by test run, and live traffic. Needs root; fails loudly without.
//!
//! Every test has a network namespace of its own, which is the "host", and a bpffs of its own: nothing is left behind.

// A test may panic; clippy knows this of test functions, not of what they call.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[macro_use]
mod families;

mod dns;
mod errors;
mod frames;
mod heirs;
mod host;
mod hostile;
mod hostile_nat;
mod ipv4;
mod ipv6;
mod live;
mod loader;
mod loader_fill;
mod loader_flows;
mod loader_host;
mod loader_publish;
mod masquerade;
mod migration;
mod names;
mod node;
mod object;
mod overlay;
mod overlay_answers;
mod overlay_guards;
mod overlay_hostile;
mod overlay_lab;
mod overlay_live;
mod overlay_maps;
mod overlay_nodes;
mod overlay_paths;
mod overlay_probes;
mod overlay_shortcut;
mod publish;
mod rejected;
mod replay;
mod run;
mod sockets;
mod table;
mod upgrade;
mod wire;
