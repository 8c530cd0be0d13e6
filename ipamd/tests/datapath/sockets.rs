//! Sockets of the node itself: how they reach published ports, which ports they cannot bind, how the hooks are attached.
//!
//! The sockets are real ones of a cgroup that only the test uses. Which hooks run is decided by the cgroup of the process that
//! *makes* a socket, so a child in the cgroup makes them and hands them over.

mod agent;
mod bind;
mod dial;
mod limits;
mod links;
mod resolver;
mod scene;
