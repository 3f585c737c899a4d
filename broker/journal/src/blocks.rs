//! A map from Raft indexes that are mostly neighbours and mostly come in ascending order.

use crate::runs::Runs;
use std::collections::BTreeMap;

/// Blocks of 256 indexes, each a sorted list; empty ones are not kept.
#[derive(Clone, Debug)]
pub(crate) struct Blocks<V> {
    blocks: BTreeMap<u64, Vec<(u8, V)>>,
    len: u64,
}

const BLOCK: u64 = 256;

impl<V> Default for Blocks<V> {
    fn default() -> Self {
        Self { blocks: BTreeMap::new(), len: 0 }
    }
}

fn index_of(block: u64, low: u8) -> u64 {
    block * BLOCK + u64::from(low)
}

impl<V: Copy> Blocks<V> {
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn last(&self) -> Option<u64> {
        let (block, slots) = self.blocks.last_key_value()?;
        slots.last().map(|(low, _)| index_of(*block, *low))
    }

    pub(crate) fn insert(&mut self, index: u64, value: V) {
        let slots = self.blocks.entry(index / BLOCK).or_default();
        let low = (index % BLOCK) as u8;
        if slots.last().is_none_or(|(last, _)| *last < low) {
            slots.push((low, value));
            self.len += 1;
            return;
        }
        match slots.binary_search_by_key(&low, |slot| slot.0) {
            Ok(at) => slots[at].1 = value,
            Err(at) => {
                slots.insert(at, (low, value));
                self.len += 1;
            }
        }
    }

    /// Adds what is ascending and above everything that is here.
    pub(crate) fn extend(&mut self, all: impl Iterator<Item = (u64, V)>) {
        let mut all = all.peekable();
        while let Some(block) = all.peek().map(|(index, _)| index / BLOCK) {
            let slots = self.blocks.entry(block).or_insert_with(|| Vec::with_capacity(BLOCK as usize));
            while let Some((index, value)) = all.next_if(|(index, _)| index / BLOCK == block) {
                debug_assert!(slots.last().is_none_or(|(last, _)| u64::from(*last) < index % BLOCK));
                slots.push(((index % BLOCK) as u8, value));
                self.len += 1;
            }
        }
    }

    /// All of it in pieces, ascending: first index, last index, and each index with its value.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = (u64, u64, impl Iterator<Item = (u64, V)> + '_)> + '_ {
        self.blocks.iter().filter_map(|(block, slots)| {
            let (first, last) = (slots.first()?.0, slots.last()?.0);
            let indexed = slots.iter().map(|(low, value)| (index_of(*block, *low), *value));
            Some((index_of(*block, first), index_of(*block, last), indexed))
        })
    }

    pub(crate) fn get_mut(&mut self, index: u64) -> Option<&mut V> {
        let slots = self.blocks.get_mut(&(index / BLOCK))?;
        let at = slots.binary_search_by_key(&((index % BLOCK) as u8), |slot| slot.0).ok()?;
        Some(&mut slots[at].1)
    }

    pub(crate) fn contains(&self, index: u64) -> bool {
        let slots = self.blocks.get(&(index / BLOCK));
        slots.is_some_and(|slots| slots.binary_search_by_key(&((index % BLOCK) as u8), |slot| slot.0).is_ok())
    }

    pub(crate) fn remove(&mut self, index: u64) {
        self.retain_in_block(index / BLOCK, |found| found != index);
    }

    /// Removes everything at or above `index`.
    pub(crate) fn truncate(&mut self, index: u64) {
        if self.last().is_none_or(|last| last < index) {
            return;
        }
        self.retain_in_block(index / BLOCK, |found| found < index);
        let gone = self.blocks.split_off(&(index / BLOCK + 1));
        self.len -= gone.values().map(|slots| slots.len() as u64).sum::<u64>();
    }

    /// Removes everything at or below `index`, and gives it.
    pub(crate) fn take_up_to(&mut self, index: u64) -> Self {
        let after = index.saturating_add(1);
        let mut above = self.blocks.split_off(&(after / BLOCK));
        let mut below = std::mem::take(&mut self.blocks);
        if let Some(first) = above.first_entry()
            && *first.key() == after / BLOCK
        {
            let (block, slots) = first.remove_entry();
            let (low, high): (Vec<_>, Vec<_>) = slots.into_iter().partition(|(low, _)| index_of(block, *low) < after);
            if !low.is_empty() {
                below.insert(block, low);
            }
            if !high.is_empty() {
                above.insert(block, high);
            }
        }
        let len = below.values().map(|slots| slots.len() as u64).sum();
        self.len -= len;
        self.blocks = above;
        Self { blocks: below, len }
    }

    /// Of everything at or below `up_to`, keeps what is listed.
    pub(crate) fn keep_up_to(&mut self, up_to: u64, listed: &Runs) {
        let partly = |block: &u64| !listed.covers(block * BLOCK, (block + 1) * BLOCK);
        let blocks: Vec<u64> = self.blocks.range(..=up_to / BLOCK).map(|(block, _)| *block).filter(partly).collect();
        for block in blocks {
            self.retain_in_block(block, |index| index > up_to || listed.contains(index));
        }
    }

    fn retain_in_block(&mut self, block: u64, keep: impl Fn(u64) -> bool) {
        let Some(slots) = self.blocks.get_mut(&block) else { return };
        let before = slots.len();
        slots.retain(|(low, _)| keep(index_of(block, *low)));
        self.len -= (before - slots.len()) as u64;
        if slots.is_empty() {
            self.blocks.remove(&block);
        }
    }

    /// Ascending.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, V)> + '_ {
        self.blocks.iter().flat_map(|(block, slots)| slots.iter().map(|(low, value)| (index_of(*block, *low), *value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_agrees_with_a_plain_map() {
        let mut state = 7u64;
        let mut ours: Blocks<u64> = Blocks::default();
        let mut plain: BTreeMap<u64, u64> = BTreeMap::new();
        for step in 0..20_000u64 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let index = (state >> 33) % 3_000;
            match (state >> 60, step % 50) {
                (0..=9, _) => {
                    ours.insert(index, step);
                    plain.insert(index, step);
                }
                (10, _) => {
                    ours.remove(index);
                    plain.remove(&index);
                }
                (11, 0..=5) => {
                    ours.truncate(index);
                    plain.split_off(&index);
                }
                (12, 0..=5) => {
                    let above = plain.split_off(&(index + 1));
                    assert!(ours.take_up_to(index).iter().eq(std::mem::replace(&mut plain, above)));
                }
                (14, 0..=5) => {
                    let start = plain.last_key_value().map_or(0, |(last, _)| last + 1 + step % 3);
                    let more = (start..start + 300).filter(|index| index % 5 > 0).map(|index| (index, step));
                    ours.extend(more.clone());
                    plain.extend(more);
                }
                (13, 0..=5) => {
                    let listed: Runs = (0..3_000).filter(|index| index % 900 < 600).collect();
                    ours.keep_up_to(index, &listed);
                    plain.retain(|found, _| *found > index || listed.contains(*found));
                }
                _ => assert_eq!(ours.get_mut(index).copied(), plain.get(&index).copied()),
            }
            assert_eq!((ours.len(), ours.last()), (plain.len() as u64, plain.keys().last().copied()));
        }
        assert!(ours.iter().eq(plain.iter().map(|(index, value)| (*index, *value))));
        let pieces: Vec<_> =
            ours.pieces().map(|(first, last, slots)| (first, last, slots.collect::<Vec<_>>())).collect();
        assert!(pieces.iter().all(|(first, last, all)| all[0].0 == *first && all[all.len() - 1].0 == *last));
        assert!(pieces.into_iter().flat_map(|(.., all)| all).eq(ours.iter()));
    }
}
