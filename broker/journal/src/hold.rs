//! Holding files for a backup: further names of what a journal consists of at one moment, which keep the files whatever the
//! journal does later, and a view of just that moment's part of them.
//!
//! Segments are only ever appended to, so what a file held at that moment is its beginning for ever; checkpoints and
//! identities are replaced by files of the same name, never changed. So a held file needs no copy, and may be copied
//! slowly while the journal goes on.

use crate::checkpoint::checkpoint_name;
use crate::filesystem::{DiskSpace, FileSystem, StoredFile};
use crate::identity;
use crate::segment::segment_name;
use crate::types::JournalError;
use crate::writer::Journal;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

/// A file system that can give its files further names, in directories of their own: holds.
pub trait HoldingFileSystem: FileSystem {
    /// The names of all holds, ascending.
    fn holds(&self) -> io::Result<Vec<String>>;
    /// Makes a hold without files, durably. Fails when its name is taken.
    fn make_hold(&self, hold: &str) -> io::Result<Self>;
    /// The files of a hold.
    fn open_hold(&self, hold: &str) -> io::Result<Self>;
    /// Gives the file `name` that name in `hold` too; durable after `sync_dir` of the hold.
    fn link(&self, name: &str, hold: &Self) -> io::Result<()>;
    /// Removes a hold and its names. Files that have no other are gone. One that is not there is fine.
    fn remove_hold(&self, hold: &str) -> io::Result<()>;
}

/// What counts of a held file.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct HeldFile {
    pub name: String,
    /// So many bytes from its start; they never change.
    pub length: u64,
    /// The size that it had, what was reserved included.
    pub file_bytes: u64,
}

impl<F: HoldingFileSystem> Journal<F> {
    /// Holds, under `hold`, all files that make up the journal as it is durable now: a start on them would recover what is
    /// recovered from the present files. Takes as long as it takes to make some names durable.
    ///
    /// An error leaves the journal as it was, and no hold.
    pub fn hold(&self, hold: &str) -> Result<(F, Vec<HeldFile>), JournalError> {
        if self.is_poisoned() {
            return Err(JournalError::Poisoned);
        }
        let fs = self.file_system();
        let directory = fs.make_hold(hold).map_err(|error| JournalError::io("make the hold", hold, error))?;
        let held = self.link_all(&directory);
        if held.is_err() {
            // What was linked is of no use, and the reason is the other error.
            let _ = fs.remove_hold(hold);
        }
        held.map(|files| (directory, files))
    }

    fn link_all(&self, hold: &F) -> Result<Vec<HeldFile>, JournalError> {
        let fs = self.file_system();
        let mut lengths: BTreeMap<String, u64> =
            self.older().keys().map(|number| (segment_name(*number), self.segment_bytes_of(*number))).collect();
        lengths.insert(segment_name(self.active_number()), self.active_bytes());
        // A chore may be removing checkpoints that count no more, so only those that do are touched.
        let checkpoints = self.accounting().marks().filter_map(|(key, mark)| checkpoint_name(key, mark));
        for name in checkpoints.chain(identity::COPIES.map(str::to_owned)) {
            match fs.open(&name).and_then(|file| file.len()) {
                Ok(length) => drop(lengths.insert(name, length)),
                // Before a member has joined a cluster there is no identity.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(JournalError::io("open", &name, error)),
            }
        }
        let mut held = Vec::with_capacity(lengths.len());
        for (name, length) in lengths {
            fs.link(&name, hold).map_err(|error| JournalError::io("hold", &name, error))?;
            let file = hold.open(&name).and_then(|file| file.len());
            let file_bytes = file.map_err(|error| JournalError::io("open", &name, error))?.max(length);
            held.push(HeldFile { name, length, file_bytes });
        }
        hold.sync_dir().map_err(|error| JournalError::io("sync", "the hold", error))?;
        Ok(held)
    }
}

/// The files of a hold, or of a copy of one, as they were when they were held: what was appended later is not there, and no
/// other file is. It can only be read.
#[derive(Clone, Debug)]
pub struct HeldView<F: FileSystem> {
    fs: F,
    files: Arc<BTreeMap<String, HeldFile>>,
}

impl<F: FileSystem> HeldView<F> {
    /// Shows these files of `fs`, and nothing else of it.
    pub fn new(fs: F, files: impl IntoIterator<Item = HeldFile>) -> Self {
        let files = files.into_iter().map(|file| (file.name.clone(), file)).collect();
        Self { fs, files: Arc::new(files) }
    }
}

/// One file of a [`HeldView`].
pub struct HeldViewFile<T> {
    file: T,
    length: u64,
    file_bytes: u64,
}

fn read_only<T>() -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::ReadOnlyFilesystem, "held files are never changed"))
}

impl<F: FileSystem> FileSystem for HeldView<F> {
    type File = HeldViewFile<F::File>;

    fn create(&self, _name: &str, _size_bytes: u64) -> io::Result<Self::File> {
        read_only()
    }

    fn open(&self, name: &str) -> io::Result<Self::File> {
        let held = self.files.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(HeldViewFile { file: self.fs.open(name)?, length: held.length, file_bytes: held.file_bytes })
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.files.keys().cloned().collect())
    }

    fn remove(&self, _name: &str) -> io::Result<()> {
        read_only()
    }

    fn rename(&self, _from: &str, _to: &str) -> io::Result<()> {
        read_only()
    }

    fn sync_dir(&self) -> io::Result<()> {
        Ok(())
    }

    fn space(&self) -> io::Result<DiskSpace> {
        Ok(DiskSpace::default())
    }
}

impl<T: StoredFile> StoredFile for HeldViewFile<T> {
    fn write_at(&self, _offset: u64, _data: &[u8]) -> io::Result<()> {
        read_only()
    }

    /// Behind what counts there were only zero bytes.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = (buffer.len() as u64).min(self.file_bytes.saturating_sub(offset)) as usize;
        let counting = (wanted as u64).min(self.length.saturating_sub(offset)) as usize;
        let found = self.file.read_at(offset, &mut buffer[..counting])?;
        buffer[found..wanted].fill(0);
        Ok(wanted)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file_bytes)
    }

    fn set_len(&self, _size_bytes: u64) -> io::Result<()> {
        read_only()
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }
}
