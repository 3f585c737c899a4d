//! A set of Raft indexes in a few bits each.

use std::collections::BTreeMap;

/// Blocks of 64 indexes, each a bitmap; empty blocks are not kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct IndexSet {
    blocks: BTreeMap<u64, u64>,
}

impl IndexSet {
    pub(crate) fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    pub(crate) fn contains(&self, index: u64) -> bool {
        self.blocks.get(&(index / 64)).is_some_and(|bits| bits >> (index % 64) & 1 == 1)
    }

    /// Whether it was new.
    pub(crate) fn insert(&mut self, index: u64) -> bool {
        let bits = self.blocks.entry(index / 64).or_default();
        let bit = 1 << (index % 64);
        let new = *bits & bit == 0;
        *bits |= bit;
        new
    }

    /// Whether it was there.
    pub(crate) fn remove(&mut self, index: u64) -> bool {
        let Some(bits) = self.blocks.get_mut(&(index / 64)) else {
            return false;
        };
        let bit = 1 << (index % 64);
        let there = *bits & bit != 0;
        *bits &= !bit;
        if *bits == 0 {
            self.blocks.remove(&(index / 64));
        }
        there
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn it_agrees_with_a_plain_set() {
        let mut state = 7u64;
        let mut ours = IndexSet::default();
        let mut plain = BTreeSet::new();
        for _ in 0..20_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let index = (state >> 33) % 1_000;
            match state >> 61 {
                0..=2 => assert_eq!(ours.insert(index), plain.insert(index)),
                3..=4 => assert_eq!(ours.remove(index), plain.remove(&index)),
                _ => assert_eq!(ours.contains(index), plain.contains(&index)),
            }
        }
        assert!((0..1_000).all(|index| ours.contains(index) == plain.contains(&index)));
    }
}
