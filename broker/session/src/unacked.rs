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

/// Deliveries whose tags and numbers go up together: what one consumer gets in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    /// Of the first delivery.
    pub handle: Handle,
    /// At least 1.
    pub count: u64,
}

impl Run {
    pub fn one(handle: Handle) -> Run {
        Run { handle, count: 1 }
    }

    pub fn settle(self, channel: ChannelId, outcome: Outcome) -> Settle {
        let Handle { consumer, queue, number } = self.handle;
        Settle { channel, consumer, queue, first: number, last: number + self.count - 1, outcome }
    }

    /// Parts it after `count` deliveries; both parts may be empty.
    fn split(self, count: u64) -> (Run, Run) {
        let rest = Handle { number: self.handle.number + count, ..self.handle };
        (Run { count, ..self }, Run { handle: rest, count: self.count - count })
    }
}

impl Handle {
    pub fn settle(self, channel: ChannelId, outcome: Outcome) -> Settle {
        Run::one(self).settle(channel, outcome)
    }
}

/// The delivery tags of one channel: 1, 2, 3 …, and what is not acknowledged yet, as runs: a consumer that never
/// acknowledges costs next to nothing.
#[derive(Debug, Default)]
pub(crate) struct Unacked {
    last_tag: u64,
    len: u64,
    /// By the tag of their first delivery.
    runs: BTreeMap<u64, Run>,
}

impl Unacked {
    /// The tag of the next delivery; with `handle` it has to be acknowledged.
    pub fn deliver(&mut self, handle: Option<Handle>) -> u64 {
        self.last_tag += 1;
        let tag = self.last_tag;
        let Some(handle) = handle else { return tag };
        self.len += 1;
        if let Some(mut last) = self.runs.last_entry()
            && *last.key() + last.get().count == tag
            && last.get().split(last.get().count).1.handle == handle
        {
            last.get_mut().count += 1;
        } else {
            self.runs.insert(tag, Run::one(handle));
        }
        tag
    }

    /// How many deliveries are not acknowledged.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Takes one delivery; `None` if the tag is unknown.
    pub fn take(&mut self, tag: u64) -> Option<Handle> {
        let (first, run) = self.run_of(tag)?;
        let (before, rest) = run.split(tag - first);
        let (taken, after) = rest.split(1);
        self.runs.remove(&first);
        self.keep(first, before);
        self.keep(tag + 1, after);
        self.len -= 1;
        Some(taken.handle)
    }

    /// Takes all up to `tag`, 0 meaning all there are. `None` if the tag is unknown: it has to name an
    /// unacknowledged delivery itself, as RabbitMQ asks.
    pub fn take_up_to(&mut self, tag: u64) -> Option<BTreeMap<u64, Run>> {
        if tag == 0 {
            self.len = 0;
            return Some(std::mem::take(&mut self.runs));
        }
        let (first, run) = self.run_of(tag)?;
        let (taken, after) = run.split(tag - first + 1);
        self.runs.insert(first, taken);
        let later = self.runs.split_off(&(tag + 1));
        let all = std::mem::replace(&mut self.runs, later);
        self.keep(tag + 1, after);
        self.len -= all.values().map(|run| run.count).sum::<u64>();
        Some(all)
    }

    fn run_of(&self, tag: u64) -> Option<(u64, Run)> {
        let (first, run) = self.runs.range(..=tag).next_back()?;
        (tag - first < run.count).then_some((*first, *run))
    }

    fn keep(&mut self, first: u64, run: Run) {
        if run.count > 0 {
            self.runs.insert(first, run);
        }
    }

    /// Puts deliveries back that a transaction had acknowledged.
    pub fn restore(&mut self, runs: impl IntoIterator<Item = (u64, Run)>) {
        for (first, run) in runs {
            self.len += run.count;
            self.runs.insert(first, run);
        }
    }
}

/// Joins deliveries into one range per consumer and row of numbers, and hands each to `emit`.
pub(crate) fn ranges(
    channel: ChannelId,
    outcome: Outcome,
    runs: impl IntoIterator<Item = Run>,
    mut emit: impl FnMut(Settle),
) {
    let mut open: BTreeMap<(u32, u64), Settle> = BTreeMap::new();
    for run in runs {
        let next = run.settle(channel, outcome);
        let range = open.entry((next.consumer, next.queue)).or_insert(next);
        if *range != next && !extend(range, &next) {
            emit(std::mem::replace(range, next));
        }
    }
    open.into_values().for_each(emit);
}

/// Settles deliveries at once.
pub(crate) fn settle_all(channel: ChannelId, outcome: Outcome, runs: impl IntoIterator<Item = Run>, out: &mut Outbox) {
    ranges(channel, outcome, runs, |settle| out.settle(settle));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two consumers take turns of different length; then some tags are taken singly and by range, as a plain map would.
    #[test]
    fn runs_give_back_the_same_deliveries_as_a_plain_map() {
        let mut ours = Unacked::default();
        let mut plain: BTreeMap<u64, Handle> = BTreeMap::new();
        let mut seed = 11u64;
        let mut random = |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % below
        };
        let mut numbers = [0u64; 2];
        for _ in 0..20_000 {
            match random(10) {
                0..=5 => {
                    let consumer = u32::from(random(7) == 0);
                    numbers[consumer as usize] += 1;
                    let handle = Handle { consumer, queue: 9, number: numbers[consumer as usize] };
                    let acked = random(9) == 0;
                    let tag = ours.deliver((!acked).then_some(handle));
                    if !acked {
                        plain.insert(tag, handle);
                    }
                }
                6..=8 => {
                    let tag = random(ours.last_tag + 2);
                    assert_eq!(ours.take(tag), plain.remove(&tag));
                }
                _ if random(20) == 0 => {
                    let tag = random(ours.last_tag + 2);
                    let taken = ours.take_up_to(tag);
                    let known = tag == 0 || plain.contains_key(&tag);
                    assert_eq!(taken.is_some(), known);
                    let last = if tag == 0 { u64::MAX - 1 } else { tag };
                    if let Some(taken) = taken {
                        let later = plain.split_off(&(last + 1));
                        let singles: Vec<(u64, Handle)> = taken
                            .iter()
                            .flat_map(|(first, run)| (0..run.count).map(move |at| (first + at, run.split(at).1.handle)))
                            .collect();
                        assert_eq!(singles, plain.into_iter().collect::<Vec<_>>());
                        plain = later;
                        if random(2) == 0 {
                            ours.restore(taken);
                            plain.extend(singles);
                        }
                    }
                }
                _ => {}
            }
            assert_eq!(ours.len(), plain.len() as u64);
        }
    }

    #[test]
    fn ten_million_deliveries_in_a_row_are_one_run() {
        let mut unacked = Unacked::default();
        for number in 1..=10_000_000 {
            unacked.deliver(Some(Handle { consumer: 1, queue: 1, number }));
        }
        assert_eq!((unacked.len(), unacked.runs.len()), (10_000_000, 1));
    }
}
