//! Planted bugs. Each breaks one rule that keeps messages safe; the simulator must find each of them within a stated
//! number of seeds, or it looks in the wrong place.
//!
//! Those that live at the seam between member, journal and disk are planted here, in the driver, so that production
//! code stays clean.

use holdfast_journal::{Batch, Location, Op, Recovered, Written, WrittenRecord};

/// A rule to break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// A write is called durable when it begins (the confirm leaves before the fdatasync).
    WrittenBeforeSync,
    /// The same, on members that lead: a leader counts itself before its own write.
    LeaderCountsItselfEarly,
    /// The same, on members that lead nothing: append replies and votes before they are persisted.
    FollowerRepliesEarly,
    /// Hard states are not written: votes and terms are forgotten (Raft §5.2).
    VoteForgotten,
    /// The last entry of each group is dropped at recovery, as if corruption were a torn tail.
    DurableTailCut,
    /// Groups at term 1 without entries are forgotten at recovery, so that they are born again.
    BirthForgotten,
    /// Entries of every eighth batch do not reach the disk.
    EntriesDropped,
    /// Live bodies below the compacted prefix are forgotten.
    LiveBodiesDropped,
    /// Checkpoints lose their index: what was applied is applied again on top of it.
    CheckpointIndexLost,
    /// The identity is forgotten: a member that had voted comes back as a blank one.
    IdentityForgotten,
}

impl Mutation {
    /// All of them.
    pub const ALL: &'static [Self] = &[
        Self::WrittenBeforeSync,
        Self::LeaderCountsItselfEarly,
        Self::FollowerRepliesEarly,
        Self::VoteForgotten,
        Self::DurableTailCut,
        Self::BirthForgotten,
        Self::EntriesDropped,
        Self::LiveBodiesDropped,
        Self::CheckpointIndexLost,
        Self::IdentityForgotten,
    ];

    /// Its name on the command line.
    #[must_use]
    pub fn name(self) -> String {
        format!("{self:?}")
    }
}

/// What a broken member hands to its journal.
#[must_use]
pub fn at_journal(mutation: Option<Mutation>, mut batch: Batch) -> Batch {
    match mutation {
        Some(Mutation::VoteForgotten) => batch.ops.retain(|op| !matches!(op, Op::HardState { .. })),
        Some(Mutation::EntriesDropped) if batch.id.0 % 8 == 7 => {
            batch.ops.retain(|op| !matches!(op, Op::Entry { .. }));
        }
        Some(Mutation::LiveBodiesDropped) => {
            for op in &mut batch.ops {
                if let Op::Compact { live, .. } = op {
                    live.clear();
                }
            }
        }
        _ => {}
    }
    batch
}

/// What a broken member believes its disk to hold.
pub fn at_recovery(mutation: Option<Mutation>, recovered: &mut Recovered) {
    match mutation {
        Some(Mutation::DurableTailCut) => {
            for group in &mut recovered.groups {
                group.entries.pop();
            }
        }
        Some(Mutation::BirthForgotten) => {
            recovered.groups.retain(|group| {
                let young = group.hard_state.is_some_and(|state| state.term <= 1);
                !(young && group.checkpoint.is_none() && group.key.group != 0)
            });
        }
        Some(Mutation::CheckpointIndexLost) => {
            for group in &mut recovered.groups {
                if let Some(checkpoint) = &mut group.checkpoint {
                    checkpoint.index = checkpoint.index.saturating_sub(1).max(group.compacted);
                }
            }
        }
        Some(Mutation::IdentityForgotten) => {
            recovered.identity = None;
            recovered.groups.clear();
        }
        _ => {}
    }
}

/// What a journal would report for these batches if it had written them.
#[must_use]
pub fn pretend_written(batches: &[Batch]) -> Vec<Written> {
    batches.iter().map(pretend_one).collect()
}

fn pretend_one(batch: &Batch) -> Written {
    let mut written = Written { batch: batch.id, ..Written::default() };
    for op in &batch.ops {
        let (key, index, term, body, len) = match op {
            Op::Entry { key, index, term, payload } => (*key, *index, *term, false, payload.len()),
            Op::Body { key, index, payload } => (*key, *index, 0, true, payload.len()),
            Op::Checkpoint { key, index, .. } => {
                written.checkpoints.push((*key, *index));
                continue;
            }
            _ => continue,
        };
        let location = Location { segment: u32::MAX, offset: 0, len: len as u32 };
        written.records.push(WrittenRecord { key, index, term, body, location });
    }
    written
}
