//! The testkit: nodes, sandboxes and processes that clean up after themselves, for integration tests and the demo.
//!
//! Owns no knowledge of Weft's inside: it drives the real binaries and the real kernel. Invariant: what a value of this
//! crate made is gone when it is dropped, also when a test fails. Needs root. Nothing leaves the namespaces it makes.

pub mod binaries;
pub mod cluster;
mod cni;
mod connection;
pub mod containerd;
pub mod cri;
pub mod crowd;
pub mod dial;
pub mod dns;
pub mod docker;
pub mod echo;
pub mod etcd;
pub mod image;
pub mod inventory;
pub mod knot;
mod machine;
pub mod module;
mod mounts;
pub mod netconf;
mod netns;
pub mod nginx;
mod node;
mod node_handle;
mod pings;
pub mod plugins;
mod pod;
pub mod podman;
mod poll;
mod process;
mod random;
pub mod resolve;
mod sandbox;
pub mod scrape;
pub mod sctp;
pub mod stops;
pub mod stream;
mod table;
pub mod tun;
pub mod unbound;
pub mod uplink;
mod wire;
pub mod wireguard;

pub use cluster::{Cluster, ClusterNode};
pub use cni::{Cni, CniError};
pub use connection::Connection;
pub use inventory::Inventory;
pub use machine::{FAMILIES, Machine};
pub use mounts::{BpfMount, CgroupDir};
pub use netns::{NetnsHandle, TestNetns};
pub use node::{Node, NodeBuilder};
pub use node_handle::NodeHandle;
pub use pings::Pings;
pub use pod::Pod;
pub use poll::{bind_soon, poll_for, poll_until};
pub use process::Guarded;
pub use random::Random;
pub use sandbox::Sandbox;
pub use table::Table;
pub use uplink::Uplink;
pub use wire::Wire;

/// A network namespace that plays a node.
pub type HostNetns = TestNetns;
