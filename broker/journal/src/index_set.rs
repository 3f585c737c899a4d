//! A set of Raft indexes in a few bits each: ten million scattered ones fit in some megabytes.

use std::collections::BTreeMap;

/// Blocks of 64 indexes, each a bitmap; empty blocks are not kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct IndexSet {
    blocks: BTreeMap<u64, u64>,
}

impl FromIterator<u64> for IndexSet {
    fn from_iter<I: IntoIterator<Item = u64>>(indexes: I) -> Self {
        let mut set = Self::default();
        for index in indexes {
            set.insert(index);
        }
        set
    }
}

impl IndexSet {
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

    /// Adds `start..end`.
    pub(crate) fn insert_range(&mut self, start: u64, end: u64) {
        let mut index = start;
        while index < end {
            let block_end = (index / 64 + 1).saturating_mul(64).min(end);
            let count = block_end - index;
            let bits = if count == 64 { u64::MAX } else { ((1 << count) - 1) << (index % 64) };
            *self.blocks.entry(index / 64).or_default() |= bits;
            index = block_end;
        }
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

    /// Ascending.
    pub(crate) fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.blocks.iter().flat_map(|(block, bits)| bits_of(*block, *bits))
    }
}

fn bits_of(block: u64, mut bits: u64) -> impl Iterator<Item = u64> {
    std::iter::from_fn(move || {
        if bits == 0 {
            return None;
        }
        let bit = bits.trailing_zeros();
        bits &= bits - 1;
        Some(block * 64 + u64::from(bit))
    })
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
        for step in 0..20_000u64 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let index = (state >> 33) % 1_000;
            match state >> 61 {
                0..=2 => assert_eq!(ours.insert(index), plain.insert(index)),
                3..=4 => assert_eq!(ours.remove(index), plain.remove(&index)),
                6 if step % 20 == 0 => {
                    ours.insert_range(index, index + 70);
                    plain.extend(index..index + 70);
                }
                _ => assert_eq!(ours.contains(index), plain.contains(&index)),
            }
        }
        assert!(ours.iter().eq(plain.iter().copied()));
    }
}
