//! Work of the journal that needs no place on the commit path: [`crate::Journal::next_chore`] gives one at a time, any
//! thread may run it, and [`crate::Journal::chore_done`] takes the outcome back.

use crate::filesystem::{FileSystem, StoredFile};
use crate::segment::segment_name;
use crate::space::make_reserve;
use crate::types::JournalError;

/// One piece of background work. Dropping it undone leaves the journal waiting for it for ever, which costs speed and
/// room, never data.
pub struct Chore<F: FileSystem> {
    pub(crate) fs: F,
    pub(crate) task: Task,
}

/// What a chore came to.
pub struct Done<F: FileSystem>(pub(crate) Outcome<F>);

pub(crate) enum Task {
    /// Make the file that becomes the next segment.
    Spare { number: u32, size_bytes: u64 },
    /// Make the reserve anew.
    Reserve { size_bytes: u64 },
}

pub(crate) enum Outcome<F: FileSystem> {
    Spare { number: u32, file: Result<F::File, JournalError> },
    Reserve(Result<(), JournalError>),
}

impl<F: FileSystem> Chore<F> {
    /// Does it. It may take as long as the disk needs for a whole segment.
    pub fn run(self) -> Done<F> {
        let fs = self.fs;
        Done(match self.task {
            Task::Spare { number, size_bytes } => {
                Outcome::Spare { number, file: make_file(&fs, &segment_name(number), size_bytes) }
            }
            Task::Reserve { size_bytes } => Outcome::Reserve(make_reserve(&fs, size_bytes)),
        })
    }
}

/// A file of zero bytes, written and synced, with a durable name. Overwriting written blocks costs a sync less than half
/// of what it costs to write into blocks that are only reserved, because no metadata changes with it.
fn make_file<F: FileSystem>(fs: &F, name: &str, size_bytes: u64) -> Result<F::File, JournalError> {
    let file = fs.create(name, size_bytes).map_err(|error| JournalError::io("create", name, error))?;
    file.write_zeros(size_bytes).map_err(|error| JournalError::io("prepare", name, error))?;
    file.sync_data().map_err(|error| JournalError::io("sync", name, error))?;
    fs.sync_dir().map_err(|error| JournalError::io("sync", "the data directory", error))?;
    Ok(file)
}
