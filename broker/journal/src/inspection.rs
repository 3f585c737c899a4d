//! Looking at the files of a stopped member without changing any of them.

use crate::filesystem::FileSystem;
use crate::reader::JournalReader;
use crate::recovery::Recovery;
use crate::types::{Finding, JournalError, RecoveredGroup};
use bytes::Bytes;

/// How closely to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scrutiny {
    /// As a start would: footers where they verify, everything else in full.
    AsAtStart,
    /// Every byte of every segment, and every footer.
    EveryByte,
}

/// What a journal's files hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inspection {
    /// None on a blank disk.
    pub identity: Option<Bytes>,
    /// Ascending by number.
    pub segments: Vec<SegmentReport>,
    /// Ascending by key. Those that lost something say so in `corruption`.
    pub groups: Vec<RecoveredGroup>,
    /// Damage, and what is merely unusual, in words.
    pub findings: Vec<Finding>,
    /// Something that was durable once cannot be read.
    pub is_damaged: bool,
    /// Records that nobody can name are lost: a group that was on this disk may not be among `groups`.
    pub forgetful: bool,
}

/// A segment file that counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SegmentReport {
    pub file: String,
    pub number: u32,
    /// The last segment, to which the member was writing.
    pub is_open: bool,
    /// A footer closes it; a full one that has none yet gets it after the next start.
    pub has_footer: bool,
    /// Of the log in it, without what is reserved.
    pub size_bytes: u64,
    /// Numbers of its first and last batch.
    pub batches: (u64, u64),
    /// Log entries above their group's prefix.
    pub live_entries: u64,
    /// Payloads below it in which a message is live.
    pub live_bodies: u64,
    /// What both take, about.
    pub live_bytes: u64,
}

/// Reads what is in a journal's directory. Nobody may be writing there: the caller holds the lock of the data directory.
/// Errors are those that would keep a member from starting.
pub fn inspect<F: FileSystem>(fs: &F, scrutiny: Scrutiny) -> Result<Inspection, JournalError> {
    Recovery::look(fs, scrutiny).map(|(found, _)| found)
}

/// As [`inspect`], with a reader of the payloads that the places in it name.
pub fn inspect_with_reader<F: FileSystem>(
    fs: &F,
    scrutiny: Scrutiny,
) -> Result<(Inspection, JournalReader<F>), JournalError> {
    Recovery::look(fs, scrutiny)
}
