//! Checkpoints that are stored beside the commits, and files that go beside them.
//!
//! Making a file, syncing it and its name takes a disk as long as hundreds of commits, so a chore does it. Only then the
//! `Mark` record that lets it count goes along with a batch, or alone if none comes. Whatever says more about the group
//! meanwhile (another checkpoint, a reset, its end) drops the one that is under way: it would bring back an older state.

use crate::checkpoint::{checkpoint_name, mark_for};
use crate::chore::Task;
use crate::filesystem::FileSystem;
use crate::record::{Mark, Record};
use crate::types::{Batch, Checkpoint, CheckpointStored, GroupKey, JournalError, Op};
use crate::writer::Journal;
use std::collections::VecDeque;

/// A checkpoint on its way.
pub(crate) struct Pending {
    key: GroupKey,
    /// What the caller knows it by.
    id: u64,
    term: u64,
    mark: Mark,
}

/// Checkpoints on their way, and files that are to go.
#[derive(Default)]
pub(crate) struct Aside {
    /// To be stored, oldest first.
    waiting: VecDeque<(Pending, String, Checkpoint)>,
    /// A chore stores it.
    storing: Option<(Pending, String)>,
    /// Stored: their marks go with the next batch.
    stored: Vec<Pending>,
    /// They were stored when upkeep was last asked for: no batch has come since.
    seen_by_upkeep: bool,
    /// Their marks are in the batch that is being written.
    leaving: Vec<Pending>,
    /// Files that nothing needs any more.
    gone: Vec<String>,
}

impl Aside {
    fn cancel(&mut self, key: GroupKey) {
        self.waiting.retain(|(pending, ..)| pending.key != key);
        self.stored.retain(|pending| {
            let stays = pending.key != key;
            if !stays {
                self.gone.extend(checkpoint_name(key, &pending.mark));
            }
            stays
        });
        // Its file goes when the chore is done.
        self.storing.take_if(|(pending, _)| pending.key == key);
    }

    /// The file is not needed any more. It goes some time later.
    pub(crate) fn let_go(&mut self, name: String) {
        self.gone.push(name);
    }

    pub(crate) fn has_stored(&self) -> bool {
        !self.stored.is_empty()
    }

    /// Whether a chore has something to do.
    pub(crate) fn has_work(&self) -> bool {
        !self.waiting.is_empty() || !self.stored.is_empty() || !self.gone.is_empty()
    }

    /// Whether marks wait since before the last time this was asked.
    pub(crate) fn waited_long_enough(&mut self) -> bool {
        let has_stored = self.has_stored();
        std::mem::replace(&mut self.seen_by_upkeep, has_stored) && has_stored
    }
}

impl<F: FileSystem> Journal<F> {
    /// Takes what a call is about to write, as far as it concerns checkpoints beside the commits.
    pub(crate) fn note_aside(&mut self, batches: &[Batch]) {
        let mut number = 0;
        for op in batches.iter().flat_map(|batch| &batch.ops) {
            match op {
                Op::Checkpoint { key, .. } | Op::Reset { key, .. } | Op::Destroy { key } => {
                    self.keeper.aside.cancel(*key);
                }
                Op::CheckpointAside { key, id, index, term, conf, machine } => {
                    self.keeper.aside.cancel(*key);
                    let checkpoint =
                        Checkpoint { index: *index, term: *term, conf: conf.clone(), machine: machine.clone() };
                    // Those in the call itself count up from the same sequence, and are fewer than half of these.
                    let sequence = (self.next_sequence() << 16) + 0x8000 + number;
                    number += 1;
                    let mark = mark_for(*key, &checkpoint, sequence, self.small_checkpoint_bytes());
                    let name = checkpoint_name(*key, &mark);
                    let pending = Pending { key: *key, id: *id, term: *term, mark };
                    let aside = &mut self.keeper.aside;
                    match name {
                        Some(name) => aside.waiting.push_back((pending, name, checkpoint)),
                        None => aside.stored.push(pending),
                    }
                }
                _ => {}
            }
        }
    }

    pub(crate) fn aside_task(&mut self) -> Option<Task<F>> {
        let aside = &mut self.keeper.aside;
        if !aside.gone.is_empty() {
            return Some(Task::Remove { names: std::mem::take(&mut aside.gone) });
        }
        let (pending, name, checkpoint) = aside.waiting.pop_front()?;
        let key = pending.key;
        aside.storing = Some((pending, name.clone()));
        Some(Task::Store { name, key, checkpoint })
    }

    /// The chore that stored a checkpoint is done. On a full disk there is none, and the older one goes on counting.
    pub(crate) fn aside_stored(&mut self, name: String, stored: Result<(), JournalError>) -> Result<(), JournalError> {
        let aside = &mut self.keeper.aside;
        let Some((pending, _)) = aside.storing.take_if(|(_, storing)| *storing == name) else {
            aside.gone.extend([format!("{name}.tmp"), name]);
            return match stored {
                Err(JournalError::NoSpace { .. }) | Ok(()) => Ok(()),
                Err(error) => Err(error),
            };
        };
        match stored {
            Ok(()) => aside.stored.push(pending),
            Err(JournalError::NoSpace { .. }) => {
                aside.gone.extend([format!("{name}.tmp"), name]);
                let Pending { key, id, .. } = pending;
                self.keeper.news.checkpoints.push(CheckpointStored { key, id, stored: false });
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Adds the marks of stored checkpoints to the records of a write.
    pub(crate) fn add_marks(&mut self, records: &mut Vec<Record>) {
        let active = self.active_number();
        for pending in std::mem::take(&mut self.keeper.aside.stored) {
            let before = self.accounting().mark(pending.key);
            let superseded = before.and_then(|mark| checkpoint_name(pending.key, mark));
            let record = pending.mark.record(pending.key, pending.term);
            self.accounting_mut().apply(&record, active, record.payload.len() as u32);
            records.push(record);
            self.keeper.aside.leaving.push(pending);
            // Not before this batch is durable: removals are a chore, and there is none before the write is over.
            self.keeper.aside.gone.extend(superseded);
        }
    }

    /// The marks that went along are durable.
    pub(crate) fn marks_written(&mut self) {
        for Pending { key, id, .. } in std::mem::take(&mut self.keeper.aside.leaving) {
            self.keeper.news.checkpoints.push(CheckpointStored { key, id, stored: true });
        }
    }

    /// Makes room at once: what is to go goes now.
    pub(crate) fn remove_gone(&mut self) -> Result<(), JournalError> {
        let gone = std::mem::take(&mut self.keeper.aside.gone);
        gone.iter().try_for_each(|name| self.remove(name))
    }
}
