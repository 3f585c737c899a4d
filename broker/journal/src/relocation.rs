//! Moving the last live bodies out of old segments, so that the segments can go.
//!
//! One segment at a time: its footer names the records, the accounting says which of them are live, a chore reads those,
//! and the next write takes them along as bodies at the tail. The old segment stays until the caller has said that it
//! knows the new places. Only bodies below their group's prefix are moved; entries above it end when the group compacts.

use crate::chore::Task;
use crate::filesystem::FileSystem;
use crate::footer::{Footer, FooterRecords};
use crate::reader::ReadError;
use crate::record::{Kind, Record};
use crate::types::{Damage, GroupKey, JournalError, Location, MovedBody, Moves};
use crate::writer::Journal;
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};

/// Payload bytes that one write takes along.
const STEP_BYTES: u64 = 256 << 10;
/// Footer records looked at in one go on the writing thread: about a millisecond.
const STEP_RECORDS: usize = 20_000;
/// The most that may be moved without new writes or time to pay for it.
const MOST_CREDIT_BYTES: u64 = 4 << 20;
/// For each byte that is written, so many may be moved: enough for segments of which half is live.
const EARNED_PER_BYTE: u64 = 2;

/// A live body in the segment that is emptied.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LiveBody {
    kind: Kind,
    key: GroupKey,
    index: u64,
    pub location: Location,
}

enum Step {
    Idle,
    /// Its footer is being read.
    Opening,
    /// The footer is compared with the accounting. The last record of an index counts.
    Picking {
        records: FooterRecords,
        found: BTreeMap<(GroupKey, u64), LiveBody>,
    },
    Moving {
        todo: VecDeque<LiveBody>,
    },
    /// Payloads are being read.
    Reading {
        todo: VecDeque<LiveBody>,
    },
    /// They go with the next write.
    Ready {
        todo: VecDeque<LiveBody>,
        bodies: Vec<(LiveBody, Bytes)>,
        seen_by_upkeep: bool,
    },
}

/// The state of relocation.
pub(crate) struct Relocation {
    segment: u32,
    step: Step,
    /// Bytes that may be moved.
    credit: u64,
    last_id: u64,
    /// Reports that the caller has not answered, and the segment that each is about.
    awaited: BTreeMap<u64, u32>,
    /// Segments that could not be emptied, and how many bodies were left.
    stuck: BTreeMap<u32, u64>,
    /// On their way into the segment that is written.
    leaving: Vec<LiveBody>,
}

impl Default for Relocation {
    fn default() -> Self {
        Self {
            segment: 0,
            step: Step::Idle,
            credit: 0,
            last_id: 0,
            awaited: BTreeMap::new(),
            stuck: BTreeMap::new(),
            leaving: Vec::new(),
        }
    }
}

impl Relocation {
    pub(crate) fn earn(&mut self, written_bytes: u64) {
        self.grant(written_bytes.saturating_mul(EARNED_PER_BYTE));
    }

    pub(crate) fn grant(&mut self, bytes: u64) {
        self.credit = self.credit.saturating_add(bytes).min(MOST_CREDIT_BYTES);
    }

    pub(crate) fn removed(&mut self, segment: u32) {
        self.stuck.remove(&segment);
        if self.segment == segment {
            self.step = Step::Idle;
        }
    }

    /// Something is to be done before the next chore can be given.
    pub(crate) fn is_picking(&self) -> bool {
        matches!(self.step, Step::Picking { .. })
    }

    pub(crate) fn has_bodies(&self) -> bool {
        matches!(self.step, Step::Ready { .. })
    }

    /// True at the second call for the same bodies: no write came to take them along.
    pub(crate) fn waited_long_enough(&mut self) -> bool {
        match &mut self.step {
            Step::Ready { seen_by_upkeep, .. } => std::mem::replace(seen_by_upkeep, true),
            _ => false,
        }
    }
}

impl<F: FileSystem> Journal<F> {
    /// Goes on with relocation, as far as that goes without a chore.
    pub(crate) fn relocation_task(&mut self) -> Option<Task<F>> {
        match std::mem::replace(&mut self.keeper.relocation.step, Step::Idle) {
            Step::Idle => self.begin_relocation(),
            Step::Picking { records, found } => {
                self.pick(records, found);
                None
            }
            Step::Moving { todo } => self.read_next(todo),
            step => {
                self.keeper.relocation.step = step;
                None
            }
        }
    }

    fn begin_relocation(&mut self) -> Option<Task<F>> {
        let victim = self.victim()?;
        let sealed = *self.older().get(&victim)?;
        let segment = self.open_segment(victim)?;
        let relocation = &mut self.keeper.relocation;
        (relocation.segment, relocation.step) = (victim, Step::Opening);
        Some(Task::Open { segment, sealed })
    }

    /// The sealed segment with the smallest live part among those that hold nothing but bodies, when there is too much on
    /// the disk that is not live.
    fn victim(&self) -> Option<u32> {
        if !self.is_wasteful() {
            return None;
        }
        let relocation = &self.keeper.relocation;
        let movable = |number: &&u32| {
            let used = self.accounting().usage(**number);
            used.entries == 0
                && used.bodies > 0
                && relocation.stuck.get(number) != Some(&used.bodies)
                && !relocation.awaited.values().any(|awaited| awaited == *number)
        };
        self.keeper.footers.keys().filter(movable).min_by_key(|number| self.live_part(**number)).copied()
    }

    /// Whether the log takes notably more than what is live in it: three quarters more, and a segment.
    pub(crate) fn is_wasteful(&self) -> bool {
        let live = self.accounting().live_bytes();
        let emptied: u64 = self.keeper.relocation.awaited.values().map(|number| self.segment_bytes_of(*number)).sum();
        let used = self.used_bytes().saturating_sub(emptied);
        used > live.saturating_add(live / 4 * 3).saturating_add(self.segment_bytes())
    }

    /// What is live in a segment, in thousandths of its size.
    pub(crate) fn live_part(&self, number: u32) -> u64 {
        self.accounting().usage(number).live_bytes * 1000 / self.segment_bytes_of(number).max(1)
    }

    /// The victim's footer was read.
    pub(crate) fn relocation_opened(&mut self, footer: Option<Footer>) {
        let relocation = &mut self.keeper.relocation;
        if !matches!(relocation.step, Step::Opening) {
            return;
        }
        match footer {
            Some(footer) => {
                relocation.step = Step::Picking { records: footer.records(), found: BTreeMap::new() };
            }
            None => self.relocation_ended(),
        }
    }

    fn pick(&mut self, mut records: FooterRecords, mut found: BTreeMap<(GroupKey, u64), LiveBody>) {
        let segment = self.keeper.relocation.segment;
        for _ in 0..STEP_RECORDS {
            let Some((record, location)) = records.next() else {
                let todo = found.into_values().collect();
                self.keeper.relocation.step = Step::Moving { todo };
                return;
            };
            let Record { kind, key, index, .. } = record;
            if self.accounting().is_live_body(kind, key, index, segment) {
                found.insert((key, index), LiveBody { kind, key, index, location });
            }
        }
        self.keeper.relocation.step = Step::Picking { records, found };
    }

    fn is_still_there(&self, body: &LiveBody) -> bool {
        self.accounting().is_live_body(body.kind, body.key, body.index, body.location.segment)
    }

    fn read_next(&mut self, mut todo: VecDeque<LiveBody>) -> Option<Task<F>> {
        let mut bodies = Vec::new();
        let mut bytes = 0;
        while bytes < STEP_BYTES.min(self.keeper.relocation.credit)
            && let Some(body) = todo.pop_front()
        {
            if self.is_still_there(&body) {
                bytes += u64::from(body.location.len) + 1;
                bodies.push(body);
            }
        }
        let segment = self.open_segment(self.keeper.relocation.segment);
        match segment {
            Some(segment) if !bodies.is_empty() => {
                let relocation = &mut self.keeper.relocation;
                relocation.credit = relocation.credit.saturating_sub(bytes);
                relocation.step = Step::Reading { todo };
                Some(Task::Read { segment, bodies })
            }
            _ if todo.is_empty() => {
                self.relocation_ended();
                None
            }
            _ => {
                self.keeper.relocation.step = Step::Moving { todo };
                None
            }
        }
    }

    /// Nothing more can be moved out of the segment.
    fn relocation_ended(&mut self) {
        let segment = self.keeper.relocation.segment;
        let left = self.accounting().usage(segment).bodies;
        let relocation = &mut self.keeper.relocation;
        relocation.step = Step::Idle;
        if left > 0 {
            relocation.stuck.insert(segment, left);
        }
    }

    /// Payloads were read. What cannot be read stays where it is, and is reported.
    pub(crate) fn relocation_read(&mut self, read: Vec<(LiveBody, Result<Bytes, ReadError>)>) {
        let relocation = &mut self.keeper.relocation;
        let Step::Reading { todo } = std::mem::replace(&mut relocation.step, Step::Idle) else { return };
        let mut bodies = Vec::new();
        let mut damaged = Vec::new();
        for (body, payload) in read {
            match payload {
                Ok(payload) => bodies.push((body, payload)),
                Err(error) => damaged.push((body, error)),
            }
        }
        relocation.step = match bodies.is_empty() {
            true => Step::Moving { todo },
            false => Step::Ready { todo, bodies, seen_by_upkeep: false },
        };
        for (body, error) in damaged {
            if self.is_still_there(&body) {
                let LiveBody { key, index, .. } = body;
                self.keeper.news.damaged.push(Damage { key, index, why: error.to_string() });
            }
        }
    }

    /// Adds the bodies that are ready to the records of a write.
    pub(crate) fn add_moves(&mut self, records: &mut Vec<Record>) {
        let step = std::mem::replace(&mut self.keeper.relocation.step, Step::Idle);
        let Step::Ready { todo, bodies, .. } = step else {
            self.keeper.relocation.step = step;
            return;
        };
        self.keeper.relocation.step = Step::Moving { todo };
        let active = self.active_number();
        for (body, payload) in bodies {
            if !self.is_still_there(&body) {
                continue;
            }
            let record = Record { kind: Kind::Body, key: body.key, index: body.index, term: 0, payload };
            self.accounting_mut().hold(body.location.segment, true);
            self.accounting_mut().apply(&record, active, body.location.len);
            self.keeper.relocation.leaving.push(body);
            records.push(record);
        }
    }

    /// They are durable at the first of these places, in order.
    pub(crate) fn moves_written(&mut self, locations: &[Location]) {
        let relocation = &mut self.keeper.relocation;
        let leaving = std::mem::take(&mut relocation.leaving);
        let Some(first) = leaving.first() else { return };
        relocation.last_id += 1;
        relocation.awaited.insert(relocation.last_id, first.location.segment);
        let news = self.keeper.news.moves.get_or_insert_with(Moves::default);
        news.id = relocation.last_id;
        for (body, to) in leaving.into_iter().zip(locations) {
            let LiveBody { key, index, location: from, .. } = body;
            news.bodies.push(MovedBody { key, index, from, to: *to });
        }
    }

    /// The caller knows the new places.
    pub(crate) fn moves_taken(&mut self, id: u64) {
        let relocation = &mut self.keeper.relocation;
        let later = relocation.awaited.split_off(&id.saturating_add(1));
        let taken = std::mem::replace(&mut relocation.awaited, later);
        let let_go: Vec<u32> = taken
            .into_values()
            .filter(|segment| !relocation.awaited.values().any(|awaited| awaited == segment))
            .collect();
        for segment in let_go {
            self.accounting_mut().hold(segment, false);
        }
    }

    /// Whether the journal has something of its own to write.
    pub(crate) fn has_own_records(&self) -> bool {
        let waits = self.keeper.relocation.has_bodies() || self.keeper.aside.has_stored();
        waits || self.accounting().can_retire(self.active_number())
    }

    /// Writes what of the journal's own waits although no batch comes.
    pub(crate) fn write_own_records(&mut self) -> Result<(), JournalError> {
        let bodies_waited = self.keeper.relocation.waited_long_enough();
        let marks_waited = self.keeper.aside.waited_long_enough();
        if bodies_waited || marks_waited || self.accounting().can_retire(self.active_number()) {
            self.poison();
            self.append(&mut Vec::new(), true)?;
            self.unpoison();
        }
        Ok(())
    }
}
