//! What the journal takes in and gives back.

use bytes::Bytes;
use std::fmt;
use std::io;
use std::ops::RangeInclusive;

/// Tells apart lives of a group that share its number (design §3.1). Compared before the Raft term: the higher counter
/// wins, and equal counters with different nonces refuse each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation {
    /// Raised by each re-creation or forced recovery.
    pub counter: u32,
    /// Drawn at random when the incarnation is made.
    pub nonce: u64,
}

/// Names one life of one Raft group. Group 0 holds the metadata.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupKey {
    pub group: u64,
    pub incarnation: Incarnation,
}

impl fmt::Display for GroupKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "group {} ({}.{:016x})", self.group, self.incarnation.counter, self.incarnation.nonce)
    }
}

/// Chosen by the caller; comes back in [`Written`]. The journal gives it no meaning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BatchId(pub u64);

/// What must become durable together. An empty batch is allowed: it is durable when everything before it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    pub id: BatchId,
    /// Applied in this order, now and at every replay.
    pub ops: Vec<Op>,
}

/// One change of what is on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// A Raft log entry. It drops the group's log entries with an index at or above its own (Raft §5.3).
    /// `index` is above the compacted prefix.
    Entry { key: GroupKey, index: u64, term: u64, payload: Bytes },
    /// Replaces the group's hard state (Raft §5.2: term and vote are durable before any reply).
    HardState { key: GroupKey, term: u64, vote: u64, commit: u64 },
    /// The payload of an entry below the prefix, that came by Raft snapshot. It never acts on the log; where log and
    /// body share an index, the body holds once the prefix passes it.
    Body { key: GroupKey, index: u64, payload: Bytes },
    /// A state of the group's machine at `index`, without message bodies, and the membership there. It replaces the
    /// older one when its batch is durable, so records that need it (`Compact`, `Reset`) may share that batch. A hard
    /// state with a commit at or above `index` is in this batch or an earlier one.
    Checkpoint { key: GroupKey, index: u64, term: u64, conf: Bytes, machine: Bytes },
    /// As [`Op::Checkpoint`], but stored beside the commits, which do not wait for it: it does not count before
    /// [`Upkeep::checkpoints`] names its `id`, and nothing that needs it may be written before. Its index is above that of
    /// the one before. It is dropped, and not named, when another checkpoint, a `Reset` or `Destroy` of the group follows.
    CheckpointAside { key: GroupKey, id: u64, index: u64, term: u64, conf: Bytes, machine: Bytes },
    /// The log starts after `up_to`. Of everything at or below it only `live` (ascending) is still needed. A
    /// checkpoint at or above `up_to` is durable or in this batch.
    Compact { key: GroupKey, up_to: u64, live: Vec<u64> },
    /// Bodies at or below the prefix that nobody will need again. Unknown indexes are ignored.
    Dead { key: GroupKey, indexes: Vec<u64> },
    /// A Raft snapshot at `index` was installed: the log is empty and starts after it. Log entries at or below `index`
    /// without a body become bodies; the `Compact` that follows says which of them are live.
    Reset { key: GroupKey, index: u64, term: u64 },
    /// What the recovery found to be missing ([`Corruption::missing`]) is in this batch or an earlier one, or not needed any
    /// more: the group is not damaged from here on.
    Repaired { key: GroupKey },
    /// Forget the group: everything that was written under this key before.
    Destroy { key: GroupKey },
    /// The caller knows the new places of all bodies that were moved up to this one of [`Moves::id`], and reads none from
    /// its old place any more: the segments that they were moved out of may go. Nothing of it is on disk.
    MovesTaken { id: u64 },
    /// Replaces the member's identity, a small file of its own, kept twice. It ends [`Recovered::forgetful`].
    Identity(Bytes),
}

impl Op {
    /// The group that this is about; none for [`Op::Identity`] and [`Op::MovesTaken`].
    pub fn key(&self) -> Option<GroupKey> {
        match self {
            Op::Entry { key, .. }
            | Op::HardState { key, .. }
            | Op::Body { key, .. }
            | Op::Checkpoint { key, .. }
            | Op::CheckpointAside { key, .. }
            | Op::Compact { key, .. }
            | Op::Dead { key, .. }
            | Op::Reset { key, .. }
            | Op::Repaired { key }
            | Op::Destroy { key } => Some(*key),
            Op::Identity(_) | Op::MovesTaken { .. } => None,
        }
    }
}

/// Where a payload lies on this member's disk. Never part of replicated state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Location {
    /// Number of the segment file.
    pub segment: u32,
    /// Bytes from the start of the file to the record's header.
    pub offset: u32,
    /// Bytes of the payload.
    pub len: u32,
}

/// A batch is durable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    pub batch: BatchId,
    /// Each `Entry` and `Body` of the batch, in the batch's order.
    pub records: Vec<WrittenRecord>,
    /// Each checkpoint of the batch and its index.
    pub checkpoints: Vec<(GroupKey, u64)>,
}

/// What the journal did for itself and what its caller should know of it; see [`crate::Journal::upkeep`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Upkeep {
    /// The room on the disk; there after a start, and whenever it is notably different from what was said last.
    pub space: Option<Space>,
    /// Bodies lie somewhere else now, durably. Answered with [`Op::MovesTaken`] once the new places are known.
    pub moves: Option<Moves>,
    /// Groups whose log reaches back into segments that hold little else: each should be checkpointed and compacted,
    /// whatever the usual reasons to wait. Named again, when it had no effect, once another segment is full.
    pub pinning: Vec<GroupKey>,
    /// Payloads that are needed and cannot be read any more. Such a replica must stop serving, as after a recovery that
    /// found [`Corruption`].
    pub damaged: Vec<Damage>,
    /// Each [`Op::CheckpointAside`] that counts from now on, durably, or for which there was no room.
    pub checkpoints: Vec<CheckpointStored>,
    /// What else was found on the disk, in words.
    pub findings: Vec<Finding>,
}

/// What came of an [`Op::CheckpointAside`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointStored {
    pub key: GroupKey,
    pub id: u64,
    /// False when the disk was full: the one before goes on counting.
    pub stored: bool,
}

/// Bodies below their group's prefix that were moved, so that the segment they were in can go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Moves {
    /// Grows with each report.
    pub id: u64,
    pub bodies: Vec<MovedBody>,
}

/// A body's new place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MovedBody {
    pub key: GroupKey,
    pub index: u64,
    /// Where it was; if the caller knows it to be elsewhere, the move is not about that.
    pub from: Location,
    pub to: Location,
}

/// A payload that the disk lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    pub key: GroupKey,
    pub index: u64,
    /// Where it was, in words.
    pub why: String,
}

/// The room that a journal has on its disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// Size of the file system.
    pub total_bytes: u64,
    /// What this process may still take, apart from the reserve.
    pub free_bytes: u64,
    /// What the reserve holds at the moment: [`JournalConfig::reserve_bytes`], or 0 while it is spent.
    pub reserve_bytes: u64,
    /// Fewer bytes are free than [`JournalConfig::low_space_bytes`], or the reserve is spent. Publishers must wait until
    /// this is false again, here and wherever a follower that is needed for a majority says it; elections,
    /// acknowledgements, purges, deletes and log-ins go on. It ends a quarter above the threshold, so that it does not
    /// flutter.
    pub low: bool,
}

/// Where one payload of a batch went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrittenRecord {
    pub key: GroupKey,
    pub index: u64,
    /// 0 for a body.
    pub term: u64,
    pub body: bool,
    pub location: Location,
}

/// Raft's term, vote and commit index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    pub term: u64,
    /// The member voted for in `term`; 0 for none.
    pub vote: u64,
    pub commit: u64,
}

/// A machine's state at an index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checkpoint {
    pub index: u64,
    pub term: u64,
    /// The membership at `index`, as the replica encoded it.
    pub conf: Bytes,
    /// The machine, as it encoded itself.
    pub machine: Bytes,
}

/// One entry of a recovered log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecoveredEntry {
    pub index: u64,
    pub term: u64,
    pub location: Location,
}

/// What the disk knows of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveredGroup {
    pub key: GroupKey,
    /// `commit` is at least the checkpoint's index: a checkpoint is only ever taken of what is committed.
    pub hard_state: Option<HardState>,
    pub checkpoint: Option<Checkpoint>,
    /// The log starts after this index.
    pub compacted: u64,
    /// Ascending and without gaps, unless `corruption` names what is missing.
    pub entries: Vec<RecoveredEntry>,
    /// Payloads below the prefix, ascending by index. May hold some that the machine no longer needs.
    pub bodies: Vec<(u64, Location)>,
    /// When set, this replica must neither campaign, vote nor acknowledge (design §3.2).
    pub corruption: Option<Corruption>,
}

/// What a group lost to a damaged disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Corruption {
    /// Entries or bodies that were written and cannot be read, where the indexes are known.
    pub missing: Vec<RangeInclusive<u64>>,
    /// The latest term and vote may be lost: both copies are damaged.
    pub hard_state: bool,
    /// The checkpoint that counts is missing or damaged.
    pub checkpoint: bool,
    /// Records of this group that nobody can name may be lost: an unreadable batch header, a missing segment.
    pub unknown: bool,
    /// The cause, in words.
    pub why: String,
}

/// Something the recovery saw that an operator may want to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The file it is about.
    pub file: String,
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.file, self.what)
    }
}

/// Everything that was on disk when the journal was opened. All of it is durable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// The latest [`Op::Identity`]; none on a blank disk.
    pub identity: Option<Bytes>,
    /// Ascending by key.
    pub groups: Vec<RecoveredGroup>,
    /// Records that nobody can name are lost: a group that was on this disk may not be among `groups`, and what it has
    /// promised is forgotten. Where the disk has an identity, it is said again at every opening, with every group damaged,
    /// until an [`Op::Identity`] is durable: there the caller keeps it from then on.
    pub forgetful: bool,
    pub findings: Vec<Finding>,
}

/// How a journal is laid out.
#[derive(Clone, Copy, Debug)]
pub struct JournalConfig {
    /// Preallocated size of a segment; a batch that does not fit a fresh one makes that segment larger.
    pub segment_bytes: u64,
    /// Batches start at multiples of this: a power of two, at least the unit that the disk may tear. 4096 fits any
    /// disk and any page cache.
    pub block_bytes: u32,
    /// Drawn at random at each start. Epochs of new files derive from it, so that blocks of an older file that show up
    /// in a newer one are told apart.
    pub nonce: u64,
    /// With fewer free bytes on the file system, [`Space::low`] is set; 0 for never.
    pub low_space_bytes: u64,
    /// Kept in a file of its own, for the time when the disk is full; 0 for none. It should hold a segment or two.
    pub reserve_bytes: u64,
    /// A checkpoint of at most so many bytes is kept in the log and not in a file of its own. It is in memory too, and is
    /// written again whenever its segment goes.
    pub small_checkpoint_bytes: usize,
}

impl Default for JournalConfig {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            block_bytes: 4096,
            nonce: 0,
            low_space_bytes: 0,
            reserve_bytes: 0,
            small_checkpoint_bytes: 1024,
        }
    }
}

/// Why the journal cannot go on. Apart from [`JournalError::BatchTooLarge`] all are final: the process ends.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("no space left for {operation} of {file}")]
    NoSpace { operation: &'static str, file: String },
    #[error("{operation} of {file} failed: {source}")]
    Io { operation: &'static str, file: String, source: io::Error },
    #[error("an earlier write failed; nothing is written after that until the process starts again")]
    Poisoned,
    #[error("a batch of {bytes} bytes is over the limit of {limit}")]
    BatchTooLarge { bytes: u64, limit: u64 },
    #[error("both copies of the identity are damaged; this disk cannot say which member it belongs to")]
    IdentityDamaged,
    /// The member has an identity, so it had a log, with votes and confirmed messages in it. Going on without would be
    /// to forget them.
    #[error("the identity of a member is there, but no segment of its log is, or none that can be read")]
    LogMissing,
    #[error("{file} has format version {version}, this program knows {known}")]
    UnknownVersion { file: String, version: u16, known: u16 },
}

impl JournalError {
    pub(crate) fn io(operation: &'static str, file: &str, source: io::Error) -> Self {
        if source.kind() == io::ErrorKind::StorageFull || source.kind() == io::ErrorKind::QuotaExceeded {
            return Self::NoSpace { operation, file: file.to_owned() };
        }
        Self::Io { operation, file: file.to_owned(), source }
    }
}
