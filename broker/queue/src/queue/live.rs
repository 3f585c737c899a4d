//! Which log entries still hold a message that is needed.

use crate::codec::{Codec, DecodeError, Reader, Writer};
use std::collections::VecDeque;

/// Counts live messages per entry. Entries come in ascending order and mostly go in it too, so a deque of counts with
/// binary search is both the smallest and the quickest; those that went out of order leave a zero until it reaches the
/// front or zeros are the majority.
#[derive(Clone, Debug, Default)]
pub(super) struct LiveIndexes {
    slots: VecDeque<Slot>,
    zeros: usize,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    index: u64,
    count: u32,
}

impl LiveIndexes {
    /// Counts a message of the entry at `index`, which is at least as high as any before.
    pub(super) fn add(&mut self, index: u64) {
        match self.slots.back_mut() {
            Some(slot) if slot.index == index => {
                self.zeros -= usize::from(slot.count == 0);
                slot.count += 1;
            }
            _ => self.slots.push_back(Slot { index, count: 1 }),
        }
    }

    /// Drops a message of an entry; true when it was the entry's last one.
    pub(super) fn remove(&mut self, index: u64) -> bool {
        let at = match self.slots.front() {
            Some(slot) if slot.index == index => 0,
            _ => self.slots.partition_point(|slot| slot.index < index),
        };
        let Some(slot) = self.slots.get_mut(at).filter(|slot| slot.index == index && slot.count > 0) else {
            return false;
        };
        slot.count -= 1;
        if slot.count > 0 {
            return false;
        }
        self.zeros += 1;
        self.sweep();
        true
    }

    fn sweep(&mut self) {
        while self.slots.front().is_some_and(|slot| slot.count == 0) {
            self.slots.pop_front();
            self.zeros -= 1;
        }
        if self.zeros > 64 && self.zeros * 2 > self.slots.len() {
            self.slots.retain(|slot| slot.count > 0);
            self.zeros = 0;
        }
        super::ready::shrink(&mut self.slots);
    }

    /// Whether the entry at `index`, the latest one, has live messages.
    pub(super) fn holds(&self, index: u64) -> bool {
        self.slots.back().is_some_and(|slot| slot.index == index && slot.count > 0)
    }

    /// Indexes of entries with live messages, ascending.
    pub(super) fn indexes(&self) -> impl Iterator<Item = u64> {
        self.live().map(|slot| slot.index)
    }

    fn live(&self) -> impl Iterator<Item = &Slot> {
        self.slots.iter().filter(|slot| slot.count > 0)
    }
}

impl Codec for LiveIndexes {
    fn encode(&self, out: &mut Writer) {
        out.varint((self.slots.len() - self.zeros) as u64);
        let mut before = 0;
        for slot in self.live() {
            out.varint(slot.index.wrapping_sub(before));
            out.varint(u64::from(slot.count));
            before = slot.index;
        }
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        let count = input.length()?;
        let mut slots = VecDeque::with_capacity(count.min(input.remaining() / 2));
        let mut index = 0u64;
        for nth in 0..count {
            let step = input.varint()?;
            let count = u32::decode(input)?;
            if (step == 0 && nth > 0) || count == 0 {
                return Err(DecodeError::Invalid("live indexes do not ascend"));
            }
            index = index.wrapping_add(step);
            slots.push_back(Slot { index, count });
        }
        Ok(LiveIndexes { slots, zeros: 0 })
    }
}
