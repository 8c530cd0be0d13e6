//! Numbers by chance, for what must differ from process to process and is no secret.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};

/// A number that no other process has either.
pub(crate) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}
