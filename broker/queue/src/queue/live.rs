//! Which log entries still hold a message that is needed.

use crate::codec::{Codec, DecodeError, Reader, Writer};
use crate::packed::{Packed, PackedMap, Record, difference, follow, put_varint};

/// An entry with live messages.
#[derive(Clone, Copy, Debug, Default)]
struct Living {
    index: u64,
    /// How many; at least 1.
    count: u32,
}

/// One byte for each of a row of entries with the same number of messages.
impl Record for Living {
    type Key = u64;

    fn key(&self) -> u64 {
        self.index
    }

    fn pack(&self, before: &Self, out: &mut Vec<u8>) {
        let other = u64::from(self.count != before.count);
        put_varint(difference(before.index, self.index) << 1 | other, out);
        if other == 1 {
            put_varint(u64::from(self.count), out);
        }
    }

    fn unpack(before: &Self, input: &mut Packed<'_>) -> Option<Self> {
        let head = input.varint()?;
        let count = if head & 1 == 1 { input.varint32()? } else { before.count };
        (count > 0).then_some(Living { index: follow(before.index, head >> 1), count })
    }
}

/// Counts live messages per entry. Entries come in ascending order and mostly go in it too.
#[derive(Clone, Debug, Default)]
pub(super) struct LiveIndexes {
    entries: PackedMap<Living>,
}

impl LiveIndexes {
    /// Counts a message of the entry at `index`, which is at least as high as any before.
    pub(super) fn add(&mut self, index: u64) {
        match self.entries.get_mut(&index) {
            Some(entry) => entry.count += 1,
            None => self.entries.insert(Living { index, count: 1 }),
        }
    }

    /// Drops a message of an entry; true when it was the entry's last one.
    pub(super) fn remove(&mut self, index: u64) -> bool {
        let Some(entry) = self.entries.get_mut(&index) else { return false };
        entry.count -= 1;
        let last = entry.count == 0;
        if last {
            self.entries.remove(&index);
        }
        last
    }

    /// Whether the entry at `index`, the latest one, has live messages.
    pub(super) fn holds(&self, index: u64) -> bool {
        self.entries.last().is_some_and(|entry| entry.index == index)
    }

    /// The lowest index of an entry with live messages.
    pub(super) fn oldest(&self) -> Option<u64> {
        self.entries.first().map(|entry| entry.index)
    }

    /// Indexes of entries with live messages, ascending.
    pub(super) fn indexes(&self) -> impl Iterator<Item = u64> {
        self.entries.iter().map(|entry| entry.index)
    }
}

impl Codec for LiveIndexes {
    fn encode(&self, out: &mut Writer) {
        self.entries.encode(out);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(LiveIndexes { entries: Codec::decode(input)? })
    }
}
