//! Sorted rows of small records in a few bytes each, since a queue may hold many millions.
//!
//! Records stand in blocks of [`BLOCK`]. A block is either *open*, the records as they are, or *packed*, each record as
//! its difference to the one before. What is worked on is open: a few blocks at a time, so that a short row costs no
//! packing at all. Which blocks are open never shows: not in what is read, and not in the encoded form.

use crate::codec::{Codec, DecodeError, Reader, Writer};
use std::collections::VecDeque;
use std::fmt;

/// Records of a full block.
const BLOCK: usize = 128;
/// Blocks that are open at a time; the one that was opened first is packed first.
const OPEN_BLOCKS: usize = 4;
/// Records that the encoded form keeps together.
const ENCODED_TOGETHER: usize = 1024;

/// What a [`PackedMap`] holds.
pub trait Record: Copy + Default + fmt::Debug {
    /// What records are sorted by; no two in a row have the same.
    type Key: Copy + Ord + fmt::Debug;

    /// This record's key.
    fn key(&self) -> Self::Key;

    /// Appends at least one byte: how this record differs from the one before it.
    fn pack(&self, before: &Self, out: &mut Vec<u8>);

    /// Reads what [`Record::pack`] wrote; `None` when the bytes are no record.
    fn unpack(before: &Self, input: &mut Packed<'_>) -> Option<Self>;
}

/// Appends an integer in as few bytes as it needs.
pub fn put_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// The difference between two numbers, such that small ones of either sign become small numbers.
pub fn difference(from: u64, to: u64) -> u64 {
    let step = to.wrapping_sub(from) as i64;
    ((step << 1) ^ (step >> 63)) as u64
}

/// The number that [`difference`] led to.
pub fn follow(from: u64, difference: u64) -> u64 {
    from.wrapping_add((difference >> 1) ^ (difference & 1).wrapping_neg())
}

/// Packed bytes that are being read.
#[derive(Clone, Copy, Debug)]
pub struct Packed<'a>(&'a [u8]);

impl Packed<'_> {
    /// The next integer; `None` at the end or when it does not fit 64 bits.
    pub fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return None;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    /// The next integer, as 32 bits.
    pub fn varint32(&mut self) -> Option<u32> {
        u32::try_from(self.varint()?).ok()
    }

    /// The 32-bit number that a [`difference`] to `from` leads to.
    pub fn follow32(&mut self, from: u32) -> Option<u32> {
        u32::try_from(follow(u64::from(from), self.varint()?)).ok()
    }
}

#[derive(Clone, Debug)]
enum Content<R> {
    Open(VecDeque<R>),
    Packed(Box<[u8]>),
}

#[derive(Clone, Debug)]
struct Block<R: Record> {
    /// No record of this block, and none of the ones after it, has a lower key.
    lower: R::Key,
    content: Content<R>,
}

impl<R: Record> Block<R> {
    fn records(&self) -> Records<'_, R> {
        match &self.content {
            Content::Open(records) => Records::Open(records.iter()),
            Content::Packed(bytes) => Records::Packed { input: Packed(bytes), before: R::default() },
        }
    }

    fn open(&mut self) {
        if let Content::Packed(_) = self.content {
            let mut records = VecDeque::with_capacity(BLOCK);
            records.extend(self.records());
            self.content = Content::Open(records);
        }
    }

    fn opened(&mut self) -> Option<&mut VecDeque<R>> {
        match &mut self.content {
            Content::Open(records) => Some(records),
            Content::Packed(_) => None,
        }
    }
}

/// The records of one block.
enum Records<'a, R> {
    Open(std::collections::vec_deque::Iter<'a, R>),
    Packed { input: Packed<'a>, before: R },
}

impl<R: Record> Iterator for Records<'_, R> {
    type Item = R;

    fn next(&mut self) -> Option<R> {
        match self {
            Records::Open(records) => records.next().copied(),
            Records::Packed { input, before } => {
                if input.0.is_empty() {
                    return None;
                }
                *before = R::unpack(before, input)?;
                Some(*before)
            }
        }
    }
}

fn pack<R: Record>(records: impl IntoIterator<Item = R>, out: &mut Vec<u8>) {
    let mut before = R::default();
    for record in records {
        record.pack(&before, out);
        before = record;
    }
}

/// Records in the order of their keys. Adding at the end and taking from the front cost about as much as with a deque;
/// anything else costs the search for a block and work on that block.
#[derive(Clone, Debug)]
pub struct PackedMap<R: Record> {
    blocks: VecDeque<Block<R>>,
    len: usize,
    /// Where the blocks begin that may be open, in the order in which they were opened.
    open: VecDeque<R::Key>,
    /// No record has a higher key.
    top: Option<R::Key>,
}

impl<R: Record> Default for PackedMap<R> {
    fn default() -> Self {
        Self { blocks: VecDeque::new(), len: 0, open: VecDeque::new(), top: None }
    }
}

impl<R: Record> PackedMap<R> {
    /// How many records there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All records, ascending.
    pub fn iter(&self) -> impl Iterator<Item = R> + '_ {
        self.blocks.iter().flat_map(Block::records)
    }

    /// The records with this key and higher ones, ascending.
    pub fn from(&self, key: R::Key) -> impl Iterator<Item = R> + '_ {
        let first = self.block_of(&key).unwrap_or(0);
        self.blocks.range(first..).flat_map(Block::records).skip_while(move |record| record.key() < key)
    }

    /// The record with the lowest key.
    pub fn first(&self) -> Option<R> {
        self.blocks.front()?.records().next()
    }

    /// The record with the highest key.
    pub fn last(&self) -> Option<R> {
        let block = self.blocks.back()?;
        match &block.content {
            Content::Open(records) => records.back().copied(),
            Content::Packed(_) => block.records().last(),
        }
    }

    /// The record with this key.
    pub fn get(&self, key: &R::Key) -> Option<R> {
        let block = &self.blocks[self.block_of(key)?];
        match &block.content {
            Content::Open(records) => {
                let at = records.binary_search_by_key(key, R::key).ok()?;
                records.get(at).copied()
            }
            Content::Packed(_) => block.records().find(|record| record.key() >= *key).filter(|one| one.key() == *key),
        }
    }

    /// The record with this key, to be changed; its key must stay.
    pub fn get_mut(&mut self, key: &R::Key) -> Option<&mut R> {
        let block = self.block_of(key)?;
        let records = self.open(block)?;
        let at = records.binary_search_by_key(key, R::key).ok()?;
        records.get_mut(at)
    }

    /// Adds a record, in place of the one with its key if there is one.
    pub fn insert(&mut self, record: R) {
        let key = record.key();
        if self.top.is_none_or(|top| key > top) {
            self.top = Some(key);
            return self.append(record);
        }
        let at = self.block_of(&key).unwrap_or(0);
        let Some(block) = self.blocks.get_mut(at) else { return self.append(record) };
        if key < block.lower {
            let before = std::mem::replace(&mut block.lower, key);
            self.open.iter_mut().filter(|lower| **lower == before).for_each(|lower| *lower = key);
        }
        let Some(records) = self.open(at) else { return };
        match records.binary_search_by_key(&key, R::key) {
            Ok(place) => records[place] = record,
            Err(place) => {
                records.insert(place, record);
                self.len += 1;
                self.split(at);
            }
        }
    }

    fn append(&mut self, record: R) {
        self.len += 1;
        if let Some(at) = self.blocks.len().checked_sub(1)
            && let Some(records) = self.open(at)
            && records.len() < BLOCK
        {
            return records.push_back(record);
        }
        let lower = record.key();
        self.blocks.push_back(Block { lower, content: Content::Open(VecDeque::from([record])) });
        self.note_open(lower);
    }

    /// Makes two of a block that is too long.
    fn split(&mut self, at: usize) {
        let Some(records) = self.blocks.get_mut(at).and_then(Block::opened) else { return };
        if records.len() <= BLOCK {
            return;
        }
        let later = records.split_off(BLOCK / 2);
        let Some(lower) = later.front().map(R::key) else { return };
        self.blocks.insert(at + 1, Block { lower, content: Content::Open(later) });
        self.note_open(lower);
    }

    /// Takes the record with the lowest key out.
    pub fn pop_first(&mut self) -> Option<R> {
        let record = self.open(0)?.pop_front();
        self.removed_from(0, record)
    }

    /// Takes the record with this key out.
    pub fn remove(&mut self, key: &R::Key) -> Option<R> {
        let block = self.block_of(key)?;
        let records = self.open(block)?;
        let at = records.binary_search_by_key(key, R::key).ok()?;
        let record = records.remove(at);
        self.removed_from(block, record)
    }

    fn removed_from(&mut self, block: usize, record: Option<R>) -> Option<R> {
        self.len -= usize::from(record.is_some());
        if self.blocks.get_mut(block).and_then(Block::opened).is_some_and(|records| records.is_empty()) {
            self.blocks.remove(block);
            if self.blocks.capacity() > 1024 && self.blocks.len() < self.blocks.capacity() / 4 {
                self.blocks.shrink_to(self.blocks.capacity() / 2);
            }
        }
        if self.blocks.is_empty() {
            self.open.clear();
            self.top = None;
        }
        record
    }

    /// The block that a key belongs to; none before the first.
    fn block_of(&self, key: &R::Key) -> Option<usize> {
        self.blocks.partition_point(|block| block.lower <= *key).checked_sub(1)
    }

    fn open(&mut self, at: usize) -> Option<&mut VecDeque<R>> {
        let block = self.blocks.get_mut(at)?;
        if let Content::Packed(_) = block.content {
            block.open();
            let lower = block.lower;
            self.note_open(lower);
        }
        self.blocks.get_mut(at)?.opened()
    }

    /// A block was opened: another one is packed if too many are open.
    fn note_open(&mut self, lower: R::Key) {
        self.open.push_back(lower);
        while self.open.len() > OPEN_BLOCKS {
            let Some(oldest) = self.open.pop_front() else { return };
            if oldest != lower {
                self.pack(oldest);
            }
        }
    }

    fn pack(&mut self, lower: R::Key) {
        let Some(at) = self.block_of(&lower) else { return };
        let block = &mut self.blocks[at];
        // The block that was noted may be gone.
        let Content::Open(records) = &block.content else { return };
        if block.lower != lower {
            return;
        }
        let mut bytes = Vec::with_capacity(records.len() * 8);
        pack(records.iter().copied(), &mut bytes);
        block.content = Content::Packed(bytes.into_boxed_slice());
    }
}

impl<R: Record> Extend<R> for PackedMap<R> {
    fn extend<I: IntoIterator<Item = R>>(&mut self, records: I) {
        for record in records {
            self.insert(record);
        }
    }
}

impl<R: Record> FromIterator<R> for PackedMap<R> {
    fn from_iter<I: IntoIterator<Item = R>>(records: I) -> Self {
        let mut map = Self::default();
        map.extend(records);
        map
    }
}

/// The count, then rows of packed records: a function of the records alone.
impl<R: Record> Codec for PackedMap<R> {
    fn encode(&self, out: &mut Writer) {
        out.varint(self.len as u64);
        let mut records = self.iter();
        let mut bytes = Vec::new();
        loop {
            bytes.clear();
            pack(records.by_ref().take(ENCODED_TOGETHER), &mut bytes);
            if bytes.is_empty() {
                return;
            }
            out.bytes(&bytes);
        }
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        let count = input.length()?;
        let mut map = Self::default();
        while map.len < count {
            let bytes = input.bytes()?;
            let (mut rest, mut before) = (Packed(&bytes), R::default());
            if bytes.is_empty() {
                return Err(DecodeError::Truncated);
            }
            while !rest.0.is_empty() {
                let record = R::unpack(&before, &mut rest).ok_or(DecodeError::Invalid("packed bytes are no record"))?;
                if map.top.is_some_and(|top| record.key() <= top) {
                    return Err(DecodeError::Invalid("packed records do not ascend"));
                }
                map.insert(record);
                before = record;
            }
        }
        if map.len == count { Ok(map) } else { Err(DecodeError::Invalid("more records than were announced")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    struct Pair {
        key: u64,
        value: u32,
    }

    impl Record for Pair {
        type Key = u64;

        fn key(&self) -> u64 {
            self.key
        }

        fn pack(&self, before: &Self, out: &mut Vec<u8>) {
            put_varint(difference(before.key, self.key), out);
            put_varint(difference(u64::from(before.value), u64::from(self.value)), out);
        }

        fn unpack(before: &Self, input: &mut Packed<'_>) -> Option<Self> {
            Some(Pair { key: follow(before.key, input.varint()?), value: input.follow32(before.value)? })
        }
    }

    fn bytes_of(map: &PackedMap<Pair>) -> usize {
        let of_block = |block: &Block<Pair>| match &block.content {
            Content::Open(records) => records.capacity() * size_of::<Pair>(),
            Content::Packed(bytes) => bytes.len(),
        };
        map.blocks.capacity() * size_of::<Block<Pair>>() + map.blocks.iter().map(of_block).sum::<usize>()
    }

    #[test]
    fn a_million_records_take_under_three_bytes_each() {
        let map: PackedMap<Pair> = (0..1_000_000).map(|key| Pair { key, value: 7 }).collect();
        assert!(bytes_of(&map) < 3_000_000, "{} bytes", bytes_of(&map));
        assert_eq!(
            (map.len(), map.first(), map.last()),
            (1_000_000, Some(Pair { key: 0, value: 7 }), Some(Pair { key: 999_999, value: 7 }),)
        );
    }

    #[test]
    fn extreme_numbers_come_back() {
        for (from, to) in [(0, u64::MAX), (u64::MAX, 0), (5, 5), (1 << 63, 1), (0, 1 << 63)] {
            assert_eq!(follow(from, difference(from, to)), to);
        }
    }

    #[test]
    fn records_out_of_order_or_more_than_announced_are_refused() {
        let encode = |count: u64, records: &[Pair]| {
            let mut out = Writer::default();
            out.varint(count);
            let mut bytes = Vec::new();
            pack(records.iter().copied(), &mut bytes);
            out.bytes(&bytes);
            PackedMap::<Pair>::from_bytes(&out.into_bytes()).map(|map| map.len())
        };
        let (low, high) = (Pair { key: 1, value: 1 }, Pair { key: 2, value: 1 });
        assert_eq!(encode(2, &[low, high]), Ok(2));
        assert!(encode(2, &[high, low]).is_err());
        assert!(encode(2, &[low, low]).is_err());
        assert!(encode(1, &[low, high]).is_err());
        assert!(encode(3, &[low, high]).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn it_agrees_with_a_plain_map(steps in prop::collection::vec((0..8u8, 0..4000u64, any::<u32>()), 0..6000)) {
            let mut ours = PackedMap::default();
            let mut plain = BTreeMap::new();
            let mut next = 2000;
            for (what, key, value) in steps {
                match what {
                    0..=2 => {
                        next += 1 + key % 3;
                        ours.insert(Pair { key: next, value });
                        plain.insert(next, value);
                    }
                    3 => {
                        ours.insert(Pair { key, value });
                        plain.insert(key, value);
                    }
                    4 => {
                        let first = ours.pop_first().map(|one| (one.key, one.value));
                        prop_assert_eq!(first, plain.pop_first());
                    }
                    5 => prop_assert_eq!(ours.remove(&key).map(|one| one.value), plain.remove(&key)),
                    6 => {
                        let found = ours.get_mut(&key).map(|one| { one.value ^= 1; one.value });
                        prop_assert_eq!(found, plain.get_mut(&key).map(|one| { *one ^= 1; *one }));
                    }
                    _ => {
                        prop_assert_eq!(ours.get(&key).map(|one| one.value), plain.get(&key).copied());
                        let ahead = ours.from(key).next().map(|one| one.key);
                        prop_assert_eq!(ahead, plain.range(key..).next().map(|(key, _)| *key));
                        prop_assert_eq!(ours.last().map(|one| one.key), plain.last_key_value().map(|(key, _)| *key));
                    }
                }
                prop_assert_eq!(ours.len(), plain.len());
            }
            let all: Vec<(u64, u32)> = ours.iter().map(|one| (one.key, one.value)).collect();
            prop_assert_eq!(&all, &plain.into_iter().collect::<Vec<_>>());
            let bytes = ours.to_bytes();
            let back = PackedMap::<Pair>::from_bytes(&bytes).unwrap();
            prop_assert_eq!(back.iter().map(|one| (one.key, one.value)).collect::<Vec<_>>(), all);
            prop_assert_eq!(back.to_bytes(), bytes);
        }
    }
}
