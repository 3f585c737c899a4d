//! What the journal does for itself between writes: chores are handed out and taken back here.

use crate::chore::{Chore, Done, Outcome, Task};
use crate::filesystem::FileSystem;
use crate::segment::segment_name;
use crate::space::SpaceWatch;
use crate::types::{JournalError, Upkeep};
use crate::writer::Journal;

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
    pub(crate) space: SpaceWatch,
    news: Upkeep,
}

impl<F: FileSystem> Keeper<F> {
    pub(crate) fn new(space: SpaceWatch, next_number: u32) -> Self {
        Self { busy: false, spare: None, spare_refused: false, next_number, space, news: Upkeep::default() }
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
}

impl<F: FileSystem> Journal<F> {
    /// The next piece of background work, if there is any and none is out: the spare segment once the open one is half
    /// full, the reserve. Have it run
    /// by any thread but, if possible, not by the one that writes, and hand the outcome to [`Journal::chore_done`].
    pub fn next_chore(&mut self) -> Option<Chore<F>> {
        if self.is_poisoned() || self.keeper.busy {
            return None;
        }
        let task = self.next_task()?;
        self.keeper.busy = true;
        Some(Chore { fs: self.file_system().clone(), task })
    }

    fn next_task(&mut self) -> Option<Task> {
        let half_full = self.active_bytes() >= self.segment_bytes() / 2;
        let keeper = &mut self.keeper;
        if half_full && keeper.spare.is_none() && !keeper.spare_refused {
            let number = keeper.new_number();
            return Some(Task::Spare { number, size_bytes: self.segment_bytes() });
        }
        if keeper.space.wants_reserve() {
            return Some(Task::Reserve { size_bytes: keeper.space.reserve_bytes() });
        }
        None
    }

    /// Takes the outcome of a chore. An error means what it means for [`Journal::write_many`].
    pub fn chore_done(&mut self, done: Done<F>) -> Result<(), JournalError> {
        self.keeper.busy = false;
        match done.0 {
            Outcome::Spare { number, file: Ok(file) } if number > self.active_number() => {
                self.keeper.spare = Some((number, file));
                Ok(())
            }
            // The open segment was full before its successor was ready, and another file took that place.
            Outcome::Spare { number, file: Ok(_) } => self.remove(&segment_name(number)),
            Outcome::Spare { number, file: Err(JournalError::NoSpace { .. }) } => {
                self.keeper.spare_refused = true;
                self.remove(&segment_name(number))
            }
            Outcome::Reserve(Ok(())) => {
                self.keeper.space.reserve_made();
                Ok(())
            }
            Outcome::Reserve(Err(JournalError::NoSpace { .. })) => Ok(()),
            Outcome::Spare { file: Err(error), .. } | Outcome::Reserve(Err(error)) => {
                self.poison();
                Err(error)
            }
        }
    }

    /// What there is to tell since the last call. Call it after each write and, while there are none, about once a
    /// second; an error means what it means for [`Journal::write_many`].
    pub fn upkeep(&mut self) -> Result<Option<Upkeep>, JournalError> {
        if self.is_poisoned() {
            return Err(JournalError::Poisoned);
        }
        let fs = self.file_system().clone();
        if let Some(space) = self.keeper.space.look(&fs) {
            self.keeper.spare_refused = false;
            self.keeper.news.space = Some(space);
        }
        let news = std::mem::take(&mut self.keeper.news);
        Ok((news != Upkeep::default()).then_some(news))
    }
}
