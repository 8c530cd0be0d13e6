//! Who may have how many questions under way. Pure.
//!
//! An asker may have as many as are free: one alone takes half of all and no more, a second one then half of the rest, and so on
//! (dynamic thresholds, as switches share their buffers). So there is always room for one who has none under way, with no share to
//! configure and none left idle.

use ipamd_api::EndpointId;
use std::collections::HashMap;

/// The questions under way.
#[derive(Debug)]
pub struct Quota {
    limit: usize,
    used: usize,
    by: HashMap<EndpointId, usize>,
}

impl Quota {
    /// Room for `limit` questions.
    pub fn new(limit: usize) -> Self {
        Self { limit, used: 0, by: HashMap::new() }
    }

    /// Takes a place for an asker. Whether there was one.
    pub fn take(&mut self, asker: EndpointId) -> bool {
        let free = self.limit.saturating_sub(self.used);
        let mine = self.by.get(&asker).copied().unwrap_or(0);
        if mine >= free {
            return false;
        }
        self.used += 1;
        *self.by.entry(asker).or_default() += 1;
        true
    }

    /// Gives a place back.
    pub fn give_back(&mut self, asker: EndpointId) {
        if let Some(mine) = self.by.get_mut(&asker) {
            *mine -= 1;
            self.used -= 1;
            if *mine == 0 {
                self.by.remove(&asker);
            }
        }
    }

    /// Questions under way.
    pub fn used(&self) -> usize {
        self.used
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn asker(number: u64) -> EndpointId {
        EndpointId::new(number).unwrap()
    }

    #[test]
    fn a_flood_leaves_room_for_others() {
        let mut quota = Quota::new(1000);
        let taken = |quota: &mut Quota, who| (0..5000).filter(|_| quota.take(asker(who))).count();
        assert_eq!(taken(&mut quota, 1), 500);
        assert_eq!(taken(&mut quota, 2), 250);
        assert_eq!(taken(&mut quota, 3), 125);
        assert!(quota.take(asker(4)), "there is always a place for one who has none");
        for _ in 0..500 {
            quota.give_back(asker(1));
        }
        assert_eq!(taken(&mut quota, 2), 187, "what one gives back, the others share");
    }

    proptest! {
        #[test]
        fn it_counts(limit in 1_usize..50, moves in prop::collection::vec((any::<bool>(), 1_u64..6), 0..300)) {
            let mut quota = Quota::new(limit);
            let mut model: HashMap<u64, usize> = HashMap::new();
            for (take, who) in moves {
                if take {
                    if quota.take(asker(who)) {
                        *model.entry(who).or_default() += 1;
                    }
                } else if model.get(&who).is_some_and(|n| *n > 0) {
                    quota.give_back(asker(who));
                    *model.entry(who).or_default() -= 1;
                } else {
                    quota.give_back(asker(who));
                }
                prop_assert_eq!(quota.used(), model.values().sum::<usize>());
                prop_assert!(quota.used() <= limit);
            }
        }
    }
}
