//! Faults of a cluster, with a real etcd: whatever dies or is cut off, no address is given twice, none that lives is lost, and
//! all is as it should be within seconds after it ends.

mod etcd;
mod garbage;
mod kill;
mod lease;
mod members;
mod names;
mod power;
mod soak;
mod world;
