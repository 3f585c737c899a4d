//! What the journal does for itself between writes: chores are handed out and taken back here.

use crate::aside::Aside;
use crate::chore::{Chore, Done, Outcome, Task};
use crate::filesystem::FileSystem;
use crate::relocation::Relocation;
use crate::scrub::Scrub;
use crate::segment::segment_name;
use crate::space::SpaceWatch;
use crate::types::{GroupKey, JournalError, Upkeep};
use crate::writer::{Journal, Unsealed};
use std::collections::{BTreeMap, VecDeque};

/// A segment whose live part is below this many thousandths is mostly dead.
const MOSTLY_DEAD: u64 = 500;

/// The state of a journal's background work.
pub(crate) struct Keeper<F: FileSystem> {
    /// A chore is out.
    busy: bool,
    /// Made ahead of time; nothing is written in it yet.
    spare: Option<(u32, F::File)>,
    /// There was no room for a spare segment; it is tried again when there is.
    spare_refused: bool,
    /// No file has this number or a higher one.
    next_number: u32,
    /// Full segments without a footer.
    pub(crate) unsealed: VecDeque<Unsealed<F>>,
    /// The sizes of the footers that are there.
    pub(crate) footers: BTreeMap<u32, u32>,
    pub(crate) space: SpaceWatch,
    pub(crate) aside: Aside,
    pub(crate) relocation: Relocation,
    pub(crate) scrub: Scrub,
    pub(crate) news: Upkeep,
    /// The open segment when groups were last told that they pin old ones.
    pins_told_in: u32,
}

impl<F: FileSystem> Keeper<F> {
    pub(crate) fn new(
        space: SpaceWatch,
        next_number: u32,
        footers: BTreeMap<u32, u32>,
        unsealed: Vec<Unsealed<F>>,
    ) -> Self {
        Self {
            busy: false,
            spare: None,
            spare_refused: false,
            next_number,
            unsealed: unsealed.into(),
            footers,
            space,
            aside: Aside::default(),
            relocation: Relocation::default(),
            scrub: Scrub::default(),
            news: Upkeep::default(),
            pins_told_in: 0,
        }
    }

    /// The spare segment, if there is one.
    pub(crate) fn take_spare(&mut self) -> Option<(u32, F::File)> {
        self.spare.take()
    }

    /// A number that no segment ever had.
    pub(crate) fn new_number(&mut self) -> u32 {
        self.next_number += 1;
        self.next_number - 1
    }

    /// The segment is gone.
    pub(crate) fn removed(&mut self, number: u32) {
        self.footers.remove(&number);
        self.unsealed.retain(|unsealed| unsealed.sealed.number != number);
        self.relocation.removed(number);
    }
}

impl<F: FileSystem> Journal<F> {
    /// The next piece of background work, if there is any and none is out: the spare segment once the open one is half
    /// full, footers, the reserve, checkpoints, files that go, relocation, scrubbing. Have it run by any thread but, if possible, not by the one that
    /// writes, and hand the outcome to [`Journal::chore_done`].
    pub fn next_chore(&mut self) -> Option<Chore<F>> {
        if self.is_poisoned() || self.keeper.busy {
            return None;
        }
        let task = self.next_task()?;
        self.keeper.busy = true;
        Some(Chore { fs: self.file_system().clone(), task })
    }

    fn next_task(&mut self) -> Option<Task<F>> {
        let half_full = self.active_bytes() >= self.segment_bytes() / 2;
        let size_bytes = self.segment_bytes();
        let keeper = &mut self.keeper;
        if half_full && keeper.spare.is_none() && !keeper.spare_refused {
            return Some(Task::Spare { number: keeper.new_number(), size_bytes });
        }
        if let Some(Unsealed { sealed, segment, footer }) = keeper.unsealed.pop_front() {
            let footer = footer.finish(&sealed);
            return Some(Task::Seal { number: sealed.number, end: sealed.end, footer, segment });
        }
        if keeper.space.wants_reserve() {
            return Some(Task::Reserve { size_bytes: keeper.space.reserve_bytes() });
        }
        self.aside_task().or_else(|| self.relocation_task()).or_else(|| self.scrub_task())
    }

    /// Whether [`Journal::next_chore`], [`Journal::upkeep`] and [`Journal::grant`] should be called soon, although
    /// nothing is written.
    pub fn has_work(&self) -> bool {
        let keeper = &self.keeper;
        let moves = keeper.relocation.is_picking() || keeper.relocation.has_bodies() || self.is_wasteful();
        moves || keeper.scrub.is_under_way() || !keeper.unsealed.is_empty() || keeper.aside.has_work()
    }

    /// Takes the outcome of a chore. An error means what it means for [`Journal::write_many`].
    pub fn chore_done(&mut self, done: Done<F>) -> Result<(), JournalError> {
        self.keeper.busy = false;
        let outcome = self.take_outcome(done.0);
        if outcome.is_err() {
            self.poison();
        }
        outcome
    }

    fn take_outcome(&mut self, outcome: Outcome<F>) -> Result<(), JournalError> {
        match outcome {
            Outcome::Spare { number, file: Ok(file) } if number > self.active_number() => {
                self.keeper.spare = Some((number, file));
            }
            // The open segment was full before its successor was ready, and another file took that place.
            Outcome::Spare { number, file: Ok(_) } => self.remove(&segment_name(number))?,
            Outcome::Spare { number, file: Err(JournalError::NoSpace { .. }) } => {
                self.keeper.spare_refused = true;
                self.remove(&segment_name(number))?;
            }
            Outcome::Spare { file: Err(error), .. } => return Err(error),
            Outcome::Sealed { number, footer_bytes } => {
                let footer_bytes = footer_bytes?;
                if footer_bytes > 0 && self.older().contains_key(&number) {
                    self.keeper.footers.insert(number, footer_bytes);
                }
            }
            Outcome::Stored { name, stored } => self.aside_stored(name, stored)?,
            Outcome::Removed(result) => result?,
            Outcome::Reserve(Ok(())) => self.keeper.space.reserve_made(),
            Outcome::Reserve(Err(JournalError::NoSpace { .. })) => {}
            Outcome::Reserve(Err(error)) => return Err(error),
            Outcome::Opened(footer) => self.relocation_opened(footer),
            Outcome::Read(bodies) => self.relocation_read(bodies),
            Outcome::Scrubbed { number, found } => self.scrub_done(number, found),
        }
        Ok(())
    }

    /// Allows background work so many more bytes. A driver that grants some each tenth of a second decides how fast old
    /// segments are emptied while nothing is written, and how fast they are scrubbed.
    pub fn grant(&mut self, bytes: u64) {
        self.keeper.relocation.grant(bytes);
        self.keeper.scrub.grant(bytes);
    }

    /// What there is to tell since the last call. Call it after each write and, while there are none, about once a
    /// second; an error means what it means for [`Journal::write_many`].
    pub fn upkeep(&mut self) -> Result<Option<Upkeep>, JournalError> {
        if self.is_poisoned() {
            return Err(JournalError::Poisoned);
        }
        self.write_own_records()?;
        let fs = self.file_system().clone();
        if let Some(space) = self.keeper.space.look(&fs) {
            self.keeper.spare_refused = false;
            self.keeper.news.space = Some(space);
        }
        if self.keeper.pins_told_in != self.active_number() && self.is_wasteful() {
            self.keeper.pins_told_in = self.active_number();
            self.keeper.news.pinning = self.pinning();
        }
        let news = std::mem::take(&mut self.keeper.news);
        Ok((news != Upkeep::default()).then_some(news))
    }

    /// Groups whose log keeps a mostly dead segment.
    fn pinning(&self) -> Vec<GroupKey> {
        let pinned =
            |number: &&u32| self.accounting().usage(**number).entries > 0 && self.live_part(**number) < MOSTLY_DEAD;
        let newest = self.older().keys().rev().find(pinned);
        newest.map_or_else(Vec::new, |newest| self.accounting().groups_pinning(*newest))
    }
}
