//! One group-commit log per member, which is also the message store.
//!
//! Every Raft group of a member writes into the same sequence of segment files. A driver hands over whatever arrived
//! while the last sync ran ([`Journal::write_many`]): it becomes one batch on disk, one contiguous write, one
//! `fdatasync`. What the journal returns ([`Written`]) is the only proof of durability that the rest of the broker
//! knows.
//!
//! ```text
//!  segment file        ┌────────┬─────────┬─────────┬─────────┬───────┬────────┐
//!                      │ header │ batch 7 │ batch 8 │ batch 9 │ (pad) │ footer │   sealed: immutable
//!                      └────────┴─────────┴─────────┴─────────┴───────┴────────┘
//!  batch               ┌──────────────────────────────┬────────┬────────┬────────┬─────┐
//!  (starts on a block) │ header: epoch, sequence,     │ record │ record │ record │ pad │
//!                      │ durable, groups listed, crc  │  crc   │  crc   │  crc   │     │
//!                      └──────────────────────────────┴────────┴────────┴────────┴─────┘
//! ```
//!
//! Invariants, each with the module that keeps it:
//! - A batch starts on a block of its own, so a torn write cannot touch an older batch ([`writer`](Journal)).
//! - A write is synced before the next one starts. Damage in the last batch of the log is therefore a torn tail, and
//!   damage anywhere before it is corruption of the groups in that batch (`recovery`).
//! - After a restart nothing is reported before the last batch, which may have been in the page cache only, is written
//!   again into a new file with a new epoch, and both file and directory are synced (`recovery`).
//! - A full segment is never written to again, apart from the footer that closes it. The footer names its records, so a
//!   start need not read them, and has a checksum of all of it, which scrubbing compares (`footer`, `scrub`).
//! - What is moved out of a segment can be read at its old place until the caller has said that it knows the new one
//!   (`relocation`).
//! - After any failed write or sync the journal is poisoned; nothing is retried (`writer`).
//! - A segment is removed only when no record in it can matter to a later replay (`accounting`).
//! - What a hold names stays readable as it was, whatever is written, moved or removed later (`hold`).

mod accounting;
mod aside;
mod blocks;
mod checkpoint;
mod chore;
pub mod conformance;
mod encoding;
mod entry_run;
mod filesystem;
mod footer;
mod hold;
mod identity;
mod index_set;
mod inspection;
mod keeper;
mod live_set;
mod reader;
mod record;
mod recovery;
mod relocation;
mod replay;
mod runs;
mod scan;
mod scrub;
mod segment;
mod space;
mod types;
mod writer;

pub use chore::{Chore, Done};
pub use filesystem::{DiskSpace, FileSystem, RealFileSystem, StoredFile};
pub use hold::{HeldFile, HeldView, HeldViewFile, HoldingFileSystem};
pub use inspection::{Inspection, Scrutiny, SegmentReport, inspect, inspect_with_reader};
pub use reader::{EntryReader, JournalReader, ReadError};
pub use types::{
    Batch, BatchId, Checkpoint, CheckpointStored, Corruption, Damage, Finding, GroupKey, HardState, Incarnation,
    JournalConfig, JournalError, Location, MovedBody, Moves, Op, Recovered, RecoveredEntry, RecoveredGroup, Space,
    Upkeep, Written, WrittenRecord,
};
pub use writer::Journal;
