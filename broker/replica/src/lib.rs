//! Hosts many Raft groups over one journal.
//!
//! [`Host`] owns one raft-rs `RawNode` and one [`holdfast_queue::Machine`] for each group of a member. It is sans-io:
//! envelopes, written batches and ticks go in, [`HostOutput`]s come out; only payloads that left memory are read from disk
//! directly.
//!
//! | module | holds |
//! |---|---|
//! | `host` | the member's groups; panics are caught here, one group each |
//! | `birth` | create, join, restore, destroy |
//! | `group`, `ready` | one replica; the Ready loop |
//! | `writes` | batches on their way to the journal, and what waits for them |
//! | `log` | raft-rs' view of the log: terms in memory, payloads in memory or on disk |
//! | `receive`, `envelope`, `parking` | messages from peers and their encoding |
//! | `copies` | on how many disks an entry is |
//! | `membership`, `change_known` | changes of the membership: which are taken, and when they may be acted upon |
//! | `leadership` | the lease, effects that wait for it, transfers |
//! | `clock`, `suspicion` | ticks, quiescence; ranked elections when a member dies |
//! | `salvage` | a stopped member's copy of a group, read for a forced recovery |
//! | `upkeep` | bodies that the journal moved, logs that it wants shorter, payloads that it lost |
//! | `compaction`, `snapshot_send`, `snapshot_receive` | checkpoints, and Raft snapshots beside Raft |
//!
//! Invariants:
//! - A vote or an answer leaves only after the write that it speaks of, and all before it, are reported durable; an answer
//!   to a heartbeat speaks of none.
//! - A leader does not count itself before its own write is durable, and does not speak in a term whose vote is not.
//! - An entry is applied only when it is committed and durable here; on a follower of group 0, when it is committed.
//! - The hard state is in the same batch as the entries that came with it.
//! - A checkpoint's batch makes a commit index at or above it durable.
//! - Reports about writes of an earlier life of a group, or of entries that were truncated since, change nothing.

mod api;
mod birth;
mod bytes_reader;
mod change_known;
mod clock;
mod compaction;
mod conf;
mod config;
mod context;
mod copies;
mod envelope;
mod group;
mod guard;
mod healing;
mod host;
mod leadership;
mod log;
mod membership;
mod mending;
mod parking;
mod ready;
mod receive;
mod salvage;
mod sharing;
mod snapshot_receive;
mod snapshot_send;
mod suspicion;
mod upkeep;
mod writes;

pub use api::{
    CreateError, GroupBirth, GroupStatus, HostOutput, MembershipChange, PayloadError, PeerStatus, ProposalId,
    ProposeError, Role, TransferError, group_key,
};
pub use config::HostConfig;
pub use envelope::{ENVELOPE_VERSION, Envelope, EnvelopeError};
pub use guard::is_guarded;
pub use host::Host;
pub use membership::CAUGHT_UP_LAG;
pub use salvage::{GroupCopy, VoterHalves};
