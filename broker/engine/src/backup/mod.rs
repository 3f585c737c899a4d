//! Backups that are consistent over the whole cluster (design §3.6).
//!
//! | module | holds |
//! |---|---|
//! | `attempt` | one attempt at a cut: who is asked what, and when the places are good |
//! | `gate` | a member's part: nothing leaves its groups meanwhile |
//! | `coordinator` | from a request to the answer: attempts, seals, the manifest |
//! | `sealing` | when a member's disk holds what the cut needs |
//! | `files`, `manifest` | a hold's files, what they hold, and how a copy is checked |
//! | `message` | what members say to each other about it |
//!
//! The cut is one place in the log of each group, and no entry marks it: the marker is the leader's commit index at some
//! moment after the gate closed there. That saves a write in every group, idle or not, and it cuts as an entry would: what
//! was confirmed before is at or below it, and nothing of an entry above it has left before all groups had their place.
//! A client can only act upon what has left, so whatever it did because of an entry above one group's place is above the
//! place of every other group too. What left before the gate closed may be at or below a place that is taken later; that
//! is in the backup, and hurts nobody.

mod attempt;
mod coordinator;
pub mod files;
mod gate;
mod manifest;
mod message;
mod sealing;

use bytes::Bytes;

pub(crate) use coordinator::Coordination;
pub use coordinator::{BarrierRequest, is_hold_name};
pub(crate) use gate::Gate;
pub use manifest::{
    FORMAT, FileEntry, GroupEntry, IncompleteGroup, Manifest, MemberEntry, MemberPart, MissingGroup, PlaceEntry,
    QueueEntry, StateEntry, Totals,
};
pub(crate) use message::BarrierMessage;
pub use message::Place;
#[cfg(test)]
pub(crate) use message::samples;
pub(crate) use sealing::Sealing;

/// What a member knows of backups.
#[derive(Default)]
pub(crate) struct Backup {
    pub gate: Gate,
    /// The barrier that this member coordinates.
    coordination: Option<Coordination>,
    /// The cut that this member seals, or has sealed last.
    sealing: Option<Sealing>,
}

/// A barrier as the admin API tells of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BarrierReport {
    /// Where each group is cut, ascending.
    pub places: Vec<Place>,
    /// Of the manifest's file, which is in the hold of every member that it lists.
    pub manifest_sha256: String,
    pub manifest: Manifest,
}

/// What the driver is to do about holds, in order, and in order with what is handed to the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HoldOrder {
    /// Hold the journal's files as they are once all that was handed to it before is durable
    /// ([`holdfast_journal::Journal::hold`]) and say so; then, beside other work, note until when
    /// ([`files::set_note`]), read them ([`files::describe`]), and say what they are.
    Make {
        barrier: u64,
        hold: String,
        /// This member's name.
        member: String,
        /// Wall clock, ms since 1970.
        expires_at_ms: u64,
        places: Vec<Place>,
    },
    /// Store the manifest in a hold, durably.
    Store { barrier: u64, hold: String, manifest: Bytes },
    /// Remove the hold, if this barrier made it.
    Release { barrier: u64, hold: String },
}

/// What the driver has done about a hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HoldNews {
    /// The files are held.
    Held { barrier: u64 },
    /// What they are: a [`MemberPart`] as JSON, or why nothing is held.
    Described { barrier: u64, part: Result<Bytes, String> },
    /// The manifest is durable, or why not.
    Stored { barrier: u64, outcome: Result<(), String> },
}
