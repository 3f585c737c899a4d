//! From records, in the order of the log, to what each group has on disk.

use crate::accounting::JOURNAL_KEY;
use crate::blocks::Blocks;
use crate::checkpoint;
use crate::entry_run::EntryRun;
use crate::filesystem::FileSystem;
use crate::record::{HardStatePayload, Kind, ListedGroup, Mark, Record, Summary, corruption_of, indexes_of};
use crate::runs::Runs;
use crate::types::{Corruption, GroupKey, HardState, Location, RecoveredEntry, RecoveredGroup};
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

#[derive(Debug, Default)]
pub(crate) struct Replay {
    groups: BTreeMap<GroupKey, ReplayGroup>,
    /// Records that nobody can name were lost before this point, and why.
    lost: Option<String>,
}

#[derive(Debug, Default)]
struct ReplayGroup {
    hard_state: Option<HardState>,
    mark: Option<Mark>,
    compacted: u64,
    /// Without a location: it was written, and is damaged.
    log: Blocks<LogSlot>,
    bodies: Blocks<BodySlot>,
    corruption: Option<Corruption>,
}

#[derive(Clone, Copy, Debug)]
struct LogSlot {
    term: u64,
    location: Option<Location>,
}

#[derive(Clone, Copy, Debug)]
struct BodySlot {
    location: Option<Location>,
    /// It came as a body, not as an entry that the prefix passed.
    installed: bool,
}

impl ReplayGroup {
    fn entry(&mut self, index: u64, slot: LogSlot) {
        if index > self.compacted {
            self.log.truncate(index);
            self.log.insert(index, slot);
        } else if let Some(body) = self.bodies.get_mut(index).filter(|body| !body.installed) {
            // The last batch before a restart is replayed twice.
            body.location = slot.location;
        }
    }

    /// As [`ReplayGroup::entry`] for each of them.
    fn entries(&mut self, run: &EntryRun) {
        let slot = |location| LogSlot { term: run.term, location: Some(location) };
        if run.first > self.compacted {
            self.log.truncate(run.first);
            self.log.extend(run.iter().map(|(index, location)| (index, slot(location))));
        } else {
            run.iter().for_each(|(index, location)| self.entry(index, slot(location)));
        }
    }

    fn compact(&mut self, up_to: u64, live: &Runs) {
        self.bodies.keep_up_to(up_to, live);
        let body = |slot: LogSlot| BodySlot { location: slot.location, installed: false };
        for (first, last, slots) in self.log.take_up_to(up_to).pieces() {
            if live.covers(first, last + 1) && self.bodies.last().is_none_or(|body| body < first) {
                self.bodies.extend(slots.map(|(index, slot)| (index, body(slot))));
                continue;
            }
            for (index, slot) in slots {
                if live.contains(index) && !self.bodies.contains(index) {
                    self.bodies.insert(index, body(slot));
                }
            }
        }
        // Usually all are there and nothing else is; otherwise those that are not there were lost.
        if self.bodies.len() != live.len() || self.bodies.last().is_some_and(|last| last > up_to) {
            for index in live.iter() {
                if !self.bodies.contains(index) {
                    self.bodies.insert(index, BodySlot { location: None, installed: false });
                }
            }
        }
        self.compacted = self.compacted.max(up_to);
    }

    fn reset(&mut self, index: u64) {
        for (entry, slot) in std::mem::take(&mut self.log).take_up_to(index).iter() {
            if !self.bodies.contains(entry) {
                self.bodies.insert(entry, BodySlot { location: slot.location, installed: false });
            }
        }
        self.compacted = index;
        if let Some(corruption) = self.corruption.take()
            && corruption.hard_state
        {
            self.corruption = Some(Corruption { hard_state: true, why: corruption.why, ..Corruption::default() });
        }
    }

    /// An earlier start said so. What this one found besides, in what was sound then, stays known; a repair was only ever of
    /// missing entries and bodies, which [`ReplayGroup::missing`] counts again.
    fn corrupt(&mut self, said: Corruption) {
        if said == Corruption::default() {
            self.corruption.take_if(|known| !known.hard_state && !known.checkpoint && !known.unknown);
            return;
        }
        let known = self.suspect(&said.why);
        known.hard_state |= said.hard_state;
        known.checkpoint |= said.checkpoint;
        known.unknown |= said.unknown;
        known.missing = said.missing;
    }

    fn suspect(&mut self, why: &str) -> &mut Corruption {
        let corruption = self.corruption.get_or_insert_default();
        if !corruption.why.contains(why) {
            if !corruption.why.is_empty() {
                corruption.why.push_str("; ");
            }
            corruption.why.push_str(why);
        }
        corruption
    }

    fn summary(&mut self, summary: &Summary) {
        self.hard_state = summary.hard_state;
        self.mark.clone_from(&summary.mark);
        self.log.truncate(summary.last.saturating_add(1));
        self.bodies.keep_up_to(u64::MAX - 1, &summary.live_bodies);
        self.compact(summary.compacted, &summary.live_bodies);
    }

    /// Indexes that should be there and are not.
    fn missing(&self) -> Vec<RangeInclusive<u64>> {
        let mut missing = Ranges::default();
        for (index, body) in self.bodies.iter() {
            if body.location.is_none() {
                missing.add(index, index);
            }
        }
        let mut expected = self.compacted + 1;
        for (index, slot) in self.log.iter() {
            if index > expected {
                missing.add(expected, index - 1);
            }
            if slot.location.is_none() {
                missing.add(index, index);
            }
            expected = index + 1;
        }
        missing.0
    }

    fn finish<F: FileSystem>(mut self, fs: &F, key: GroupKey) -> RecoveredGroup {
        let missing = self.missing();
        if !missing.is_empty() {
            let corruption = self.suspect("entries or bodies in damaged blocks");
            corruption.missing = missing;
        }
        let checkpoint = self.mark.as_ref().and_then(|mark| checkpoint::load(fs, key, mark));
        let reaches = checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.index) >= self.compacted;
        if (self.mark.is_some() && checkpoint.is_none()) || !reaches {
            self.suspect("its checkpoint is missing or damaged").checkpoint = true;
        }
        if let (Some(state), Some(checkpoint)) = (&mut self.hard_state, &checkpoint) {
            state.commit = state.commit.max(checkpoint.index);
        }
        let log = self.log.iter();
        RecoveredGroup {
            key,
            hard_state: self.hard_state,
            checkpoint,
            compacted: self.compacted,
            entries: log
                .filter_map(|(index, slot)| Some(RecoveredEntry { index, term: slot.term, location: slot.location? }))
                .collect(),
            bodies: self.bodies.iter().filter_map(|(index, body)| Some((index, body.location?))).collect(),
            corruption: self.corruption,
        }
    }
}

/// Ascending ranges that join where they touch.
#[derive(Default)]
struct Ranges(Vec<RangeInclusive<u64>>);

impl Ranges {
    fn add(&mut self, first: u64, last: u64) {
        match self.0.last_mut() {
            Some(range) if *range.end() + 1 == first => *range = *range.start()..=last,
            _ => self.0.push(first..=last),
        }
    }
}

impl Replay {
    fn group(&mut self, key: GroupKey) -> &mut ReplayGroup {
        let lost = &self.lost;
        self.groups.entry(key).or_insert_with(|| {
            let mut group = ReplayGroup::default();
            if let Some(why) = lost {
                group.suspect(why).unknown = true;
            }
            group
        })
    }

    /// Takes the next entries of the log.
    pub(crate) fn entries(&mut self, run: &EntryRun) {
        self.group(run.key).entries(run);
    }

    /// Takes the next record of the log, which lies at `location`.
    pub(crate) fn apply(&mut self, record: &Record, location: Location) {
        if record.key == JOURNAL_KEY {
            return;
        }
        if record.kind == Kind::Destroy {
            self.groups.remove(&record.key);
            return;
        }
        let group = self.group(record.key);
        match record.kind {
            Kind::Entry => group.entry(record.index, LogSlot { term: record.term, location: Some(location) }),
            Kind::Body => {
                group.bodies.insert(record.index, BodySlot { location: Some(location), installed: true });
            }
            Kind::HardState => group.hard_state = HardStatePayload::decode(record).map(|payload| payload.0),
            Kind::Mark => group.mark = Mark::decode(record),
            Kind::Compact => group.compact(record.index, &indexes_of(record).unwrap_or_default()),
            Kind::Dead => {
                for index in indexes_of(record).unwrap_or_default().iter() {
                    group.bodies.remove(index);
                }
            }
            Kind::Reset => group.reset(record.index),
            Kind::Summary => {
                if let Some(summary) = Summary::decode(record) {
                    group.summary(&summary);
                }
            }
            Kind::Corrupt => {
                if let Some(said) = corruption_of(record) {
                    group.corrupt(said);
                }
            }
            Kind::Destroy | Kind::Removed => {}
        }
    }

    /// The records of one group in a batch are damaged; the batch's list says what they were.
    pub(crate) fn damaged(&mut self, listed: &ListedGroup, why: &str) {
        if listed.key == JOURNAL_KEY {
            return;
        }
        let group = self.group(listed.key);
        if let Some((first, last)) = listed.entries {
            for index in first..=last {
                group.entry(index, LogSlot { term: 0, location: None });
            }
        }
        if listed.hard_state.is_some() {
            group.hard_state = listed.hard_state;
        }
        if listed.control {
            group.suspect(why).unknown = true;
        }
    }

    /// Whole batches are lost, and nobody can name their groups.
    pub(crate) fn lost(&mut self, why: &str) {
        for group in self.groups.values_mut() {
            group.suspect(why).unknown = true;
        }
        self.lost = Some(why.to_owned());
    }

    /// Whether records are lost that nobody can name.
    pub(crate) fn is_forgetful(&self) -> bool {
        self.lost.is_some()
    }

    pub(crate) fn finish<F: FileSystem>(self, fs: &F) -> Vec<RecoveredGroup> {
        self.groups.into_iter().map(|(key, group)| group.finish(fs, key)).collect()
    }
}
