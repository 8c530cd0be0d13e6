//! The kernel edge of ipamd against the real kernel, each test in namespaces of its own. Needs root.

mod bridge;
mod damage;
mod devices;
mod edge;
mod endpoint;
mod macvlan;
mod overlay;
mod sockets;
mod watch;
