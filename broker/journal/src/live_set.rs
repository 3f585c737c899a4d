//! Which payloads of a group are live, and about how large each is.

use crate::record::RECORD_HEADER_BYTES;
use crate::runs::Runs;
use std::collections::BTreeMap;

/// The size of a record as one byte: the exponent and three more bits. What it stands for is off by at most a sixteenth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RecordSize(u8);

impl RecordSize {
    pub(crate) fn of_payload(bytes: u32) -> Self {
        let bytes = bytes.saturating_add(RECORD_HEADER_BYTES as u32).max(8);
        let exponent = bytes.ilog2();
        Self((exponent * 8 + ((bytes >> (exponent - 3)) & 7)) as u8)
    }

    pub(crate) fn bytes(self) -> u64 {
        let (exponent, fraction) = (u32::from(self.0 / 8), u64::from(self.0 % 8));
        ((17 + 2 * fraction) << exponent) >> 4
    }
}

/// Blocks of 64 indexes; empty ones are not kept.
#[derive(Clone, Debug, Default)]
pub(crate) struct LiveSet {
    blocks: BTreeMap<u64, Block>,
}

#[derive(Clone, Debug)]
struct Block {
    bits: u64,
    sizes: [RecordSize; 64],
}

impl Default for Block {
    fn default() -> Self {
        Self { bits: 0, sizes: [RecordSize::default(); 64] }
    }
}

impl Block {
    fn iter(&self, number: u64) -> impl Iterator<Item = (u64, RecordSize)> + '_ {
        let mut bits = self.bits;
        std::iter::from_fn(move || {
            let bit = bits.trailing_zeros();
            bits &= bits.checked_sub(1)?;
            Some((number * 64 + u64::from(bit), self.sizes[bit as usize]))
        })
    }
}

/// Up to 64 neighbours of a set; at least one.
pub(crate) struct Piece<'a> {
    number: u64,
    block: &'a Block,
}

impl Piece<'_> {
    pub(crate) fn first(&self) -> u64 {
        self.number * 64 + u64::from(self.block.bits.trailing_zeros())
    }

    pub(crate) fn last(&self) -> u64 {
        self.number * 64 + u64::from(63 - self.block.bits.leading_zeros())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, RecordSize)> + '_ {
        self.block.iter(self.number)
    }
}

impl LiveSet {
    pub(crate) fn get(&self, index: u64) -> Option<RecordSize> {
        let block = self.blocks.get(&(index / 64))?;
        (block.bits >> (index % 64) & 1 == 1).then(|| block.sizes[(index % 64) as usize])
    }

    pub(crate) fn contains(&self, index: u64) -> bool {
        self.get(index).is_some()
    }

    /// Adds the index, or gives it another size.
    pub(crate) fn insert(&mut self, index: u64, size: RecordSize) {
        let block = self.blocks.entry(index / 64).or_default();
        block.bits |= 1 << (index % 64);
        block.sizes[(index % 64) as usize] = size;
    }

    /// Adds what is ascending.
    pub(crate) fn extend(&mut self, all: impl Iterator<Item = (u64, RecordSize)>) {
        let mut all = all.peekable();
        while let Some(number) = all.peek().map(|(index, _)| index / 64) {
            let block = self.blocks.entry(number).or_default();
            while let Some((index, size)) = all.next_if(|(index, _)| index / 64 == number) {
                block.bits |= 1 << (index % 64);
                block.sizes[(index % 64) as usize] = size;
            }
        }
    }

    /// All of it in pieces of at most 64, ascending.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = Piece<'_>> {
        self.blocks.iter().map(|(number, block)| Piece { number: *number, block })
    }

    /// Adds a piece of another set, to nothing of it that is here.
    pub(crate) fn insert_piece(&mut self, piece: &Piece<'_>) {
        let block = self.blocks.entry(piece.number).or_default();
        for (index, size) in piece.block.iter(0) {
            block.bits |= 1 << index;
            block.sizes[index as usize] = size;
        }
    }

    /// The size it had, if it was there.
    pub(crate) fn remove(&mut self, index: u64) -> Option<RecordSize> {
        let size = self.get(index)?;
        let block = self.blocks.get_mut(&(index / 64))?;
        block.bits &= !(1 << (index % 64));
        if block.bits == 0 {
            self.blocks.remove(&(index / 64));
        }
        Some(size)
    }

    /// Ascending.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, RecordSize)> + '_ {
        self.blocks.iter().flat_map(|(number, block)| block.iter(*number))
    }

    pub(crate) fn first(&self) -> Option<u64> {
        self.first_from(0)
    }

    /// The lowest index at or above `index`.
    pub(crate) fn first_from(&self, index: u64) -> Option<u64> {
        let mut blocks = self.blocks.range(index / 64..);
        blocks.find_map(|(number, block)| block.iter(*number).map(|(found, _)| found).find(|found| *found >= index))
    }

    pub(crate) fn last(&self) -> Option<u64> {
        let (number, block) = self.blocks.last_key_value()?;
        Some(number * 64 + u64::from(block.bits.checked_ilog2()?))
    }

    /// Removes and returns everything at or above `index`.
    pub(crate) fn split_off(&mut self, index: u64) -> Self {
        if self.last().is_none_or(|last| last < index) {
            return Self::default();
        }
        let mut tail = Self { blocks: self.blocks.split_off(&(index / 64)) };
        let below = (1u64 << (index % 64)) - 1;
        if let Some(mut first) = tail.blocks.first_entry()
            && *first.key() == index / 64
            && first.get().bits & below != 0
        {
            let mut kept = first.get().clone();
            kept.bits &= below;
            first.get_mut().bits &= !below;
            if first.get().bits == 0 {
                first.remove();
            }
            self.blocks.insert(index / 64, kept);
        }
        tail
    }

    /// Without the sizes.
    pub(crate) fn indexes(&self) -> Runs {
        self.iter().map(|(index, _)| index).collect()
    }

    /// Those at or below `up_to` that are not listed, ascending.
    pub(crate) fn unlisted(&self, up_to: u64, listed: &Runs) -> Vec<u64> {
        let blocks = self.blocks.range(..=up_to / 64);
        let partly = blocks.filter(|(number, _)| !listed.covers(**number * 64, (**number + 1) * 64));
        let indexes = partly.flat_map(|(number, block)| block.iter(*number).map(|(index, _)| index));
        indexes.filter(|index| *index <= up_to && !listed.contains(*index)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_off_by_at_most_a_sixteenth() {
        for payload in (0..5_000).chain([1 << 20, (1 << 20) - 57, 1 << 30, u32::MAX]) {
            let true_bytes = u64::from(payload.saturating_add(RECORD_HEADER_BYTES as u32));
            let coded = RecordSize::of_payload(payload).bytes();
            assert!(coded.abs_diff(true_bytes) * 16 <= true_bytes + 16, "{true_bytes} became {coded}");
        }
    }

    #[test]
    fn it_agrees_with_a_plain_map() {
        let mut state = 7u64;
        let mut ours = LiveSet::default();
        let mut plain: BTreeMap<u64, RecordSize> = BTreeMap::new();
        for step in 0..20_000u64 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let index = (state >> 33) % 1_000;
            let size = RecordSize::of_payload(step as u32);
            match state >> 61 {
                0..=3 => {
                    ours.insert(index, size);
                    plain.insert(index, size);
                }
                4..=5 => assert_eq!(ours.remove(index), plain.remove(&index)),
                7 if step % 20 == 0 => {
                    let start = plain.last_key_value().map_or(0, |(last, _)| last + 1);
                    let more = (start..start + 100).filter(|index| index % 5 > 0).map(|index| (index, RecordSize(9)));
                    ours.extend(more.clone());
                    plain.extend(more);
                }
                6 if step % 20 == 0 => {
                    let tail = ours.split_off(index);
                    assert!(tail.iter().eq(plain.split_off(&index)));
                }
                _ => assert_eq!(ours.get(index), plain.get(&index).copied()),
            }
        }
        assert!(ours.iter().eq(plain.iter().map(|(index, size)| (*index, *size))));
        assert!(ours.indexes().iter().eq(plain.keys().copied()));
        let mut copy = LiveSet::default();
        for piece in ours.pieces() {
            assert_eq!(
                (piece.iter().next().map(|it| it.0), piece.iter().last().map(|it| it.0)),
                (Some(piece.first()), Some(piece.last()))
            );
            copy.insert_piece(&piece);
        }
        assert!(copy.iter().eq(ours.iter()));
        let listed: Runs = (0..1_000).filter(|index| index % 300 < 200).collect();
        for up_to in [0, 63, 64, 250, 999, 5_000] {
            let unlisted = plain.keys().copied().filter(|index| *index <= up_to && !listed.contains(*index));
            assert!(ours.unlisted(up_to, &listed).into_iter().eq(unlisted));
        }
        assert_eq!(ours.last(), plain.keys().last().copied());
        for index in 0..1_100 {
            assert_eq!(ours.first_from(index), plain.range(index..).next().map(|(found, _)| *found));
        }
    }
}
