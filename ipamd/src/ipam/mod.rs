//! Address decisions: which addresses of a pool may be given, how a pool is cut into blocks, who holds what.
//!
//! Pure: no runtime, store, kernel or clock. Time comes in as CLOCK_BOOTTIME, what has to be done outside (claim a block) goes
//! out as an error that the caller answers and retries. Nothing here is shared between threads; the caller holds the lock.

mod allocator;
mod block;
mod error;
mod holdings;
mod pool;
mod pool_state;
mod share;
mod span;

#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod tests;

pub use allocator::Allocator;
pub use block::{block_containing, block_prefix, free_block};
pub use error::{AllocError, Conflict, Lookup};
pub use holdings::{Fenced, IdleClaim};
pub use pool::{PoolPlan, Why, default_gateway};
pub use span::Span;
pub(crate) use span::normalised;
