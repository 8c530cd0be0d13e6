//! Numbers for tests that try many things.

/// Numbers that differ between seeds, and are the same for one (Marsaglia's xorshift64).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// From a seed; zero, which would yield nothing else, is taken as one.
    pub fn new(seed: u64) -> Self {
        Self(seed.max(1))
    }

    /// The next number, below `limit`, which is not zero.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    /// The next place in something that has `length` of them, which is not zero.
    pub fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).unwrap_or(0)
    }
}
