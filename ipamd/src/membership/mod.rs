//! Membership of this node in the cluster: who it is, whether its name is its own, what it may still give.
//!
//! Owns the decisions about registration, fencing, the lease, removal of a node and a store that went back in time; the
//! edge task that carries them out is `daemon::membership`. Invariants:
//! - nothing is given from blocks of a former incarnation: whoever removes a node raises `incarnations/<name>` first, and a
//!   node that finds it raised drops what it held before it registers anew;
//! - a lease that ended frees nothing: it only makes the node suspect;
//! - time is an argument (CLOCK_BOOTTIME), never wall time, so that clock jumps decide nothing.
//!
//! Pure: a snapshot and the time go in, what to do comes out.

mod lease;
mod registration;
mod removal;
mod standing;

#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod tests;

pub use lease::{LeaseStep, LeaseTimer};
pub use registration::{Identity, Registration, Seen, Why, decide};
pub use removal::{Holding, Removal, is_of_former, removal};
pub use standing::{Admission, Contact, Dispute, Fenced, Refusal, Standing, WentBack};
