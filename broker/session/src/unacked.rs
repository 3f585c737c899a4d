use std::collections::BTreeMap;

use crate::outbox::{Outbox, extend};
use crate::{ChannelId, Outcome, Settle};

/// What the engine knows a delivery by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Handle {
    pub consumer: u32,
    pub queue: u64,
    pub number: u64,
}

impl Handle {
    pub fn settle(self, channel: ChannelId, outcome: Outcome) -> Settle {
        Settle { channel, consumer: self.consumer, queue: self.queue, first: self.number, last: self.number, outcome }
    }
}

/// The delivery tags of one channel: 1, 2, 3 …, and what is not acknowledged yet.
#[derive(Debug, Default)]
pub(crate) struct Unacked {
    last_tag: u64,
    entries: BTreeMap<u64, Handle>,
}

impl Unacked {
    /// The tag of the next delivery; with `handle` it has to be acknowledged.
    pub fn deliver(&mut self, handle: Option<Handle>) -> u64 {
        self.last_tag += 1;
        if let Some(handle) = handle {
            self.entries.insert(self.last_tag, handle);
        }
        self.last_tag
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Takes one delivery; `None` if the tag is unknown.
    pub fn take(&mut self, tag: u64) -> Option<Handle> {
        self.entries.remove(&tag)
    }

    /// Takes all up to `tag`, 0 meaning all there are. `None` if the tag is unknown: it has to name an
    /// unacknowledged delivery itself, as RabbitMQ asks.
    pub fn take_up_to(&mut self, tag: u64) -> Option<BTreeMap<u64, Handle>> {
        if tag == 0 {
            return Some(std::mem::take(&mut self.entries));
        }
        if !self.entries.contains_key(&tag) {
            return None;
        }
        let later = self.entries.split_off(&(tag + 1));
        Some(std::mem::replace(&mut self.entries, later))
    }

    /// Puts deliveries back that a transaction had acknowledged.
    pub fn restore(&mut self, entries: impl IntoIterator<Item = (u64, Handle)>) {
        self.entries.extend(entries);
    }
}

/// Joins deliveries into one range per consumer and row of numbers, and hands each to `emit`.
pub(crate) fn ranges(
    channel: ChannelId,
    outcome: Outcome,
    handles: impl IntoIterator<Item = Handle>,
    mut emit: impl FnMut(Settle),
) {
    let mut open: BTreeMap<(u32, u64), Settle> = BTreeMap::new();
    for handle in handles {
        let next = handle.settle(channel, outcome);
        let range = open.entry((handle.consumer, handle.queue)).or_insert(next);
        if *range != next && !extend(range, &next) {
            emit(std::mem::replace(range, next));
        }
    }
    open.into_values().for_each(emit);
}

/// Settles deliveries at once.
pub(crate) fn settle_all(
    channel: ChannelId,
    outcome: Outcome,
    handles: impl IntoIterator<Item = Handle>,
    out: &mut Outbox,
) {
    ranges(channel, outcome, handles, |settle| out.settle(settle));
}
