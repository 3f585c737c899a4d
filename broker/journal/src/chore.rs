//! Work of the journal that needs no place on the commit path: [`crate::Journal::next_chore`] gives one at a time, any
//! thread may run it, and [`crate::Journal::chore_done`] takes the outcome back.

use crate::checkpoint;
use crate::filesystem::{FileSystem, StoredFile};
use crate::footer::Footer;
use crate::reader::{ReadError, ReadableSegment};
use crate::relocation::LiveBody;
use crate::scrub::{ScrubPlace, Scrubbed, scrub};
use crate::segment::{SealedSegment, segment_name};
use crate::space::make_reserve;
use crate::types::{Checkpoint, GroupKey, JournalError};
use bytes::Bytes;
use std::io;
use std::sync::Arc;

/// One piece of background work. Dropping it undone leaves the journal waiting for it for ever, which costs speed and
/// room, never data.
pub struct Chore<F: FileSystem> {
    pub(crate) fs: F,
    pub(crate) task: Task<F>,
}

/// What a chore came to.
pub struct Done<F: FileSystem>(pub(crate) Outcome<F>);

type Segment<F> = Arc<ReadableSegment<<F as FileSystem>::File>>;

pub(crate) enum Task<F: FileSystem> {
    /// Make the file that becomes the next segment.
    Spare { number: u32, size_bytes: u64 },
    /// Write the footer of a full segment, and cut what was reserved behind it.
    Seal { number: u32, end: u32, footer: Vec<u8>, segment: Segment<F> },
    /// Make the reserve anew.
    Reserve { size_bytes: u64 },
    /// Make a checkpoint's file.
    Store { name: String, key: GroupKey, checkpoint: Checkpoint },
    /// Remove files that nothing needs.
    Remove { names: Vec<String> },
    /// Read the footer of the segment that is being emptied.
    Open { segment: Segment<F>, sealed: SealedSegment },
    /// Read bodies that are to be moved.
    Read { segment: Segment<F>, bodies: Vec<LiveBody> },
    /// Read on in a segment, to see whether it is sound.
    Scrub { segment: Segment<F>, place: ScrubPlace },
}

pub(crate) enum Outcome<F: FileSystem> {
    Spare { number: u32, file: Result<F::File, JournalError> },
    Sealed { number: u32, footer_bytes: Result<u32, JournalError> },
    Reserve(Result<(), JournalError>),
    Stored { name: String, stored: Result<(), JournalError> },
    Removed(Result<(), JournalError>),
    Opened(Option<Footer>),
    Read(Vec<(LiveBody, Result<Bytes, ReadError>)>),
    Scrubbed { number: u32, found: Scrubbed },
}

impl<F: FileSystem> Chore<F> {
    /// Does it. It may take as long as the disk needs to write a whole segment.
    pub fn run(self) -> Done<F> {
        let fs = self.fs;
        Done(match self.task {
            Task::Spare { number, size_bytes } => {
                Outcome::Spare { number, file: make_file(&fs, &segment_name(number), size_bytes) }
            }
            Task::Seal { number, end, footer, segment } => {
                Outcome::Sealed { number, footer_bytes: seal(&segment.file, &segment_name(number), end, &footer) }
            }
            Task::Reserve { size_bytes } => Outcome::Reserve(make_reserve(&fs, size_bytes)),
            Task::Store { name, key, checkpoint } => {
                let stored = checkpoint::store(&fs, &name, key, &checkpoint).and_then(|()| sync_dir(&fs));
                Outcome::Stored { name, stored }
            }
            Task::Remove { names } => Outcome::Removed(names.iter().try_for_each(|name| remove(&fs, name))),
            Task::Open { segment, sealed } => {
                let footer = Footer::load(&segment.file, sealed.end);
                Outcome::Opened(footer.filter(|footer| footer.belongs_to(&sealed)))
            }
            Task::Read { segment, bodies } => {
                Outcome::Read(bodies.into_iter().map(|body| (body, segment.read(body.location))).collect())
            }
            Task::Scrub { segment, place } => {
                Outcome::Scrubbed { number: place.sealed.number, found: scrub(&segment, place) }
            }
        })
    }
}

/// A file of zero bytes, written and synced, with a durable name. Overwriting written blocks costs a sync less than half
/// of what it costs to write into blocks that are only reserved, because no metadata changes with it.
fn make_file<F: FileSystem>(fs: &F, name: &str, size_bytes: u64) -> Result<F::File, JournalError> {
    let file = fs.create(name, size_bytes).map_err(|error| JournalError::io("create", name, error))?;
    file.write_zeros(size_bytes).map_err(|error| JournalError::io("prepare", name, error))?;
    file.sync_data().map_err(|error| JournalError::io("sync", name, error))?;
    sync_dir(fs)?;
    Ok(file)
}

fn sync_dir<F: FileSystem>(fs: &F) -> Result<(), JournalError> {
    fs.sync_dir().map_err(|error| JournalError::io("sync", "the data directory", error))
}

/// Removes the file, if it is there.
pub(crate) fn remove<F: FileSystem>(fs: &F, name: &str) -> Result<(), JournalError> {
    match fs.remove(name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(|error| JournalError::io("remove", name, error)),
    }
}

/// The size of the footer. On a full disk there is none, and only what was reserved is given back.
fn seal(file: &impl StoredFile, name: &str, end: u32, footer: &[u8]) -> Result<u32, JournalError> {
    let end = u64::from(end);
    let written = file.write_at(end, footer).map_err(|error| JournalError::io("write the footer", name, error));
    let footer_bytes = match written {
        Err(JournalError::NoSpace { .. }) => 0,
        result => result.map(|()| footer.len() as u32)?,
    };
    file.set_len(end + u64::from(footer_bytes)).map_err(|error| JournalError::io("cut", name, error))?;
    file.sync_data().map_err(|error| JournalError::io("sync", name, error))?;
    Ok(footer_bytes)
}
