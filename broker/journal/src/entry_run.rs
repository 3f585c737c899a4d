//! Entries that follow one another, taken in together: a long log is little else, and a start has ten million of them to
//! go through.

use crate::record::{Kind, Record};
use crate::types::{GroupKey, Location};

/// Entries of one group and one term with consecutive indexes, in one segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct EntryRun {
    pub key: GroupKey,
    pub term: u64,
    /// Index of the first.
    pub first: u64,
    pub locations: Vec<Location>,
}

impl EntryRun {
    /// Adds the record if it is an entry that follows those that are here, or the first one. False if it is not.
    pub(crate) fn add(&mut self, record: &Record, location: Location) -> bool {
        if record.kind != Kind::Entry {
            return false;
        }
        let next = self.first.wrapping_add(self.locations.len() as u64);
        if self.locations.is_empty() {
            (self.key, self.term, self.first) = (record.key, record.term, record.index);
        } else if (self.key, self.term, next) != (record.key, record.term, record.index) {
            return false;
        }
        self.locations.push(location);
        true
    }

    /// Begins anew.
    pub(crate) fn clear(&mut self) {
        self.locations.clear();
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.locations.is_empty()
    }

    /// Each index and where its entry lies, ascending.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, Location)> + '_ {
        (self.first..).zip(self.locations.iter().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accounting::Accounting;
    use crate::conformance::test_key;
    use crate::record::{bare_record, indexes_record};
    use crate::replay::Replay;
    use bytes::Bytes;

    struct Chance(u64);

    impl Chance {
        fn below(&mut self, bound: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % bound
        }
    }

    /// Records that a replica could have written, each with its place.
    fn history(seed: u64) -> Vec<(Record, Location)> {
        let mut chance = Chance(seed);
        // For each group the prefix and the last index.
        let mut groups = [(0u64, 0u64); 2];
        let mut all = Vec::new();
        let mut place = Location { segment: 1, offset: 0, len: 0 };
        for _ in 0..60 {
            place.segment += u32::from(chance.below(4) == 0);
            let number = chance.below(2);
            let (prefix, last) = &mut groups[number as usize];
            let key = test_key(number);
            let bare = |kind, index, term| bare_record(kind, key, index, term);
            let records: Vec<Record> = match chance.below(10) {
                0..6 => {
                    let back = if chance.below(4) == 0 { chance.below(*last - *prefix + 1) } else { 0 };
                    let first = *last - back + 1;
                    *last = first + chance.below(300);
                    (first..=*last).map(|index| bare(Kind::Entry, index, 1 + index / 200)).collect()
                }
                6..8 => {
                    *prefix += chance.below(*last - *prefix + 1);
                    let (kept, from) = (chance.below(4), chance.below(*prefix + 1));
                    let live = (1..=*prefix).filter(|index| kept == 0 || *index >= from || *index % 7 < kept);
                    vec![indexes_record(Kind::Compact, key, *prefix, live)]
                }
                8 => {
                    let from = chance.below(*prefix + 1);
                    vec![indexes_record(Kind::Dead, key, 0, from..(from + 40).min(*prefix + 1))]
                }
                _ if chance.below(3) == 0 => {
                    *last += 1 + chance.below(5);
                    *prefix = *last;
                    vec![bare(Kind::Body, *last, 0), bare(Kind::Reset, *last, 1)]
                }
                _ => vec![bare(Kind::Body, *last + chance.below(50), 0)],
            };
            for record in records {
                place.offset += 100;
                place.len =
                    if record.payload == Bytes::new() { 10 + place.offset % 90 } else { record.payload.len() as u32 };
                all.push((record, place));
            }
        }
        all
    }

    #[test]
    fn entries_taken_together_come_to_the_same_as_one_by_one() {
        for seed in 0..300 {
            let (mut single, mut together) = (Accounting::default(), Accounting::default());
            let (mut single_replay, mut together_replay) = (Replay::default(), Replay::default());
            let mut run = EntryRun::default();
            let mut segment = 0;
            let mut runs = 0;
            for (record, location) in history(seed) {
                single.apply(&record, location.segment, location.len);
                single_replay.apply(&record, location);
                // A run lies in one segment, as a footer speaks of one.
                if segment == location.segment && run.add(&record, location) {
                    continue;
                }
                if !run.is_empty() {
                    together.entries(&run, segment);
                    together_replay.entries(&run);
                    runs += usize::from(run.locations.len() > 1);
                    run.clear();
                }
                segment = location.segment;
                if !run.add(&record, location) {
                    together.apply(&record, location.segment, location.len);
                    together_replay.apply(&record, location);
                }
            }
            if !run.is_empty() {
                together.entries(&run, segment);
                together_replay.entries(&run);
            }
            assert!(runs > 5, "seed {seed} has {runs} runs");
            assert_eq!(format!("{single:?}"), format!("{together:?}"), "seed {seed}");
            assert_eq!(format!("{single_replay:?}"), format!("{together_replay:?}"), "seed {seed}");
        }
    }
}
