//! The testkit: real parts in private folders, each with a guard that takes it away again.

pub mod image;
pub mod podman;
