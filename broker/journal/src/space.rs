//! Room on the disk: how much there is, when it counts as low, and the reserve.

use crate::filesystem::{DiskSpace, FileSystem, StoredFile};
use crate::types::{JournalConfig, JournalError, Space};
use std::io;

/// Preallocated, and removed when a segment cannot be made otherwise. Elections, acknowledgements, purges and deletes
/// go on with what it gives back, while publishers wait.
pub(crate) const RESERVE: &str = "reserve";

/// A report is worth making when the free bytes moved by this part of the disk.
const NOTABLE_PART: u64 = 64;

/// What was last seen and said of the disk's room.
#[derive(Debug, Default)]
pub(crate) struct SpaceWatch {
    low_bytes: u64,
    reserve_bytes: u64,
    /// The reserve is there in full.
    has_reserve: bool,
    low: bool,
    reported: Option<Space>,
    seen: DiskSpace,
}

impl SpaceWatch {
    /// Looks at the disk for the first time, and makes the reserve if it is not there and there is room for it.
    pub(crate) fn open<F: FileSystem>(fs: &F, config: &JournalConfig) -> Result<Self, JournalError> {
        let mut watch =
            Self { low_bytes: config.low_space_bytes, reserve_bytes: config.reserve_bytes, ..Self::default() };
        watch.has_reserve = watch.reserve_bytes == 0
            || fs.open(RESERVE).and_then(|file| file.len()).is_ok_and(|len| len == watch.reserve_bytes);
        watch.seen = fs.space().unwrap_or_default();
        if watch.wants_reserve() {
            match make_reserve(fs, watch.reserve_bytes) {
                Ok(()) => watch.has_reserve = true,
                Err(JournalError::NoSpace { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(watch)
    }

    /// Looks at the disk. Gives a report when it is notably different from the last one.
    pub(crate) fn look<F: FileSystem>(&mut self, fs: &F) -> Option<Space> {
        self.seen = fs.space().ok()?;
        let free_bytes = self.seen.free_bytes;
        // Once low, some more than the threshold ends it: an alarm that flutters is worse than one that stays.
        let enough = if self.low { self.low_bytes + self.low_bytes / 4 } else { self.low_bytes };
        self.low = free_bytes < enough || !self.has_reserve;
        let space = Space {
            total_bytes: self.seen.total_bytes,
            free_bytes,
            reserve_bytes: if self.has_reserve { self.reserve_bytes } else { 0 },
            low: self.low,
        };
        let notable = self.reported.is_none_or(|last| {
            last.low != space.low || last.free_bytes.abs_diff(free_bytes) > space.total_bytes / NOTABLE_PART
        });
        if notable {
            self.reported = Some(space);
        }
        notable.then_some(space)
    }

    /// Whether the reserve should be made (again): it is missing and there is room for it and for what it protects.
    pub(crate) fn wants_reserve(&self) -> bool {
        !self.has_reserve && self.seen.free_bytes >= self.reserve_bytes.saturating_add(self.low_bytes)
    }

    pub(crate) fn reserve_bytes(&self) -> u64 {
        self.reserve_bytes
    }

    pub(crate) fn reserve_made(&mut self) {
        self.has_reserve = true;
    }

    /// Gives the reserve's room back to the disk. False when there is none to give.
    pub(crate) fn spend_reserve<F: FileSystem>(&mut self, fs: &F) -> Result<bool, JournalError> {
        if !std::mem::take(&mut self.has_reserve) || self.reserve_bytes == 0 {
            return Ok(false);
        }
        remove_old(fs)?;
        fs.sync_dir().map_err(|error| JournalError::io("sync", "the data directory", error))?;
        Ok(true)
    }
}

fn remove_old<F: FileSystem>(fs: &F) -> Result<(), JournalError> {
    match fs.remove(RESERVE) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(JournalError::io("remove", RESERVE, error)),
        _ => Ok(()),
    }
}

/// Its content is never read and never written: reserving is enough.
pub(crate) fn make_reserve<F: FileSystem>(fs: &F, size_bytes: u64) -> Result<(), JournalError> {
    remove_old(fs)?;
    fs.create(RESERVE, size_bytes).map_err(|error| JournalError::io("create", RESERVE, error))?;
    fs.sync_dir().map_err(|error| JournalError::io("sync", "the data directory", error))
}
