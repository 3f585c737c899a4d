//! Planted bugs. Each breaks one rule that keeps messages safe; the simulator must find each of them within a stated
//! number of seeds, or it looks in the wrong place.
//!
//! Those that live at the seam between member, journal and disk are planted in the driver, so that production code stays
//! clean. The rest need a hook in a production crate, which is compiled only with the feature `mutants`.

use holdfast_journal::{Batch, Op, Recovered, RecoveredGroup};

use crate::disk::SimDisk;
use crate::plan::Profile;

/// A rule to break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// A write is called durable without an fdatasync: confirms leave before their messages are on any disk.
    SyncSkipped,
    /// The same, where a write holds entries of a group that the member leads: it counts itself too early.
    LeaderCountsItselfEarly,
    /// The same for all other writes: append replies and votes leave before they are persisted.
    FollowerRepliesEarly,
    /// Hard states are not written: votes and terms are forgotten (Raft §5.2).
    VoteForgotten,
    /// The last entry of each group is dropped at recovery, as if corruption were a torn tail.
    DurableTailCut,
    /// Queue groups still at term 1 are forgotten at recovery, so that they are born again.
    BirthForgotten,
    /// Entries of every eighth batch do not reach the disk.
    EntriesDropped,
    /// Live bodies below the compacted prefix are forgotten.
    LiveBodiesDropped,
    /// Checkpoints lose their index: what was applied is applied again on top of it.
    CheckpointIndexLost,
    /// Confirms leave on a majority where more copies were asked for.
    CopiesNotAwaited,
    /// The identity is forgotten: a member that had voted comes back as a blank one.
    IdentityForgotten,
    /// A sync that failed is called again, and succeeds without having written anything.
    FailedSyncRetried,
    /// Damage in the middle of the log is taken for a torn tail: the log is cut there, and the replica serves.
    CorruptionCutAsTornTail,
    /// A torn tail is taken for damage: the replica stays out.
    TornTailCalledCorruption,
    /// A write that installs a Raft snapshot is called durable without an fdatasync.
    SnapshotCountedEarly,
    /// Deleted groups stay on disk, and their replicas are not compared with the metadata.
    #[cfg(feature = "mutants")]
    DeletedGroupKept,
    /// A report that an entry is durable is taken for the one that replaced it.
    #[cfg(feature = "mutants")]
    LateReportAccepted,
    /// Commands that a home sends again are applied again.
    #[cfg(feature = "mutants")]
    ResendNotDeduplicated,
    /// Some acknowledged messages go back to their queue.
    #[cfg(feature = "mutants")]
    AckedReturns,
    /// What a dead session had not acknowledged is dropped.
    #[cfg(feature = "mutants")]
    UnackedDropped,
    /// Votes and append replies leave before what they speak of is durable.
    #[cfg(feature = "mutants")]
    RepliesBeforePersisted,
    /// A replica that found out while it ran that its disk lost messages goes on without them.
    #[cfg(feature = "mutants")]
    MendedWithHoles,
}

impl Mutation {
    /// All of them.
    pub const ALL: &'static [Self] = &[
        Self::SyncSkipped,
        Self::LeaderCountsItselfEarly,
        Self::FollowerRepliesEarly,
        Self::VoteForgotten,
        Self::DurableTailCut,
        Self::BirthForgotten,
        Self::EntriesDropped,
        Self::LiveBodiesDropped,
        Self::CheckpointIndexLost,
        Self::IdentityForgotten,
        Self::CopiesNotAwaited,
        Self::FailedSyncRetried,
        Self::CorruptionCutAsTornTail,
        Self::TornTailCalledCorruption,
        Self::SnapshotCountedEarly,
        #[cfg(feature = "mutants")]
        Self::DeletedGroupKept,
        #[cfg(feature = "mutants")]
        Self::LateReportAccepted,
        #[cfg(feature = "mutants")]
        Self::ResendNotDeduplicated,
        #[cfg(feature = "mutants")]
        Self::AckedReturns,
        #[cfg(feature = "mutants")]
        Self::UnackedDropped,
        #[cfg(feature = "mutants")]
        Self::RepliesBeforePersisted,
        #[cfg(feature = "mutants")]
        Self::MendedWithHoles,
    ];

    /// True for one that shows in replicas and journals alone, where leaders change and disks stall most often: what a
    /// late report says is wrong only of an entry that was truncated and written anew while the disk stood still.
    #[must_use]
    pub fn is_of_replication_alone(self) -> bool {
        const ALONE: &[Mutation] = &[
            #[cfg(feature = "mutants")]
            Mutation::LateReportAccepted,
        ];
        ALONE.contains(&self)
    }

    /// The runs of whole members that look for bugs of its kind.
    #[must_use]
    pub fn profile(self) -> Profile {
        match self {
            Self::CorruptionCutAsTornTail => Profile::Fault(17),
            Self::FailedSyncRetried => Profile::Fault(21),
            Self::SnapshotCountedEarly => Profile::Fault(27),
            #[cfg(feature = "mutants")]
            Self::ResendNotDeduplicated => Profile::Mixed,
            #[cfg(feature = "mutants")]
            Self::MendedWithHoles => Profile::Rot,
            _ => Profile::Small,
        }
    }

    /// Its name on the command line.
    #[must_use]
    pub fn name(self) -> String {
        format!("{self:?}")
    }
}

/// Plants a bug that lives inside the queue machine, for the run that this thread is about to do.
pub fn plant(mutation: Option<Mutation>) {
    #[cfg(feature = "mutants")]
    {
        use holdfast_queue::mutants::Mutant;
        holdfast_queue::mutants::plant(match mutation {
            Some(Mutation::ResendNotDeduplicated) => Some(Mutant::ResendNotDeduplicated),
            Some(Mutation::AckedReturns) => Some(Mutant::AckedReturns),
            Some(Mutation::UnackedDropped) => Some(Mutant::UnackedDropped),
            Some(Mutation::RepliesBeforePersisted) => Some(Mutant::RepliesBeforePersisted),
            Some(Mutation::DeletedGroupKept) => Some(Mutant::DeletedGroupKept),
            Some(Mutation::LateReportAccepted) => Some(Mutant::LateReportAccepted),
            Some(Mutation::MendedWithHoles) => Some(Mutant::MendedWithHoles),
            _ => None,
        });
    }
    let _ = mutation;
}

/// A broken member's disk, before its process starts on it.
pub fn at_disk(mutation: Option<Mutation>, disk: &SimDisk) {
    if mutation == Some(Mutation::FailedSyncRetried) {
        disk.retry_syncs();
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
                let young = group.hard_state.is_none_or(|state| state.term <= 1);
                !young || group.key.group == 0
            });
        }
        Some(Mutation::CheckpointIndexLost) => {
            for group in &mut recovered.groups {
                if let Some(checkpoint) = &mut group.checkpoint {
                    checkpoint.index = checkpoint.index.saturating_sub(1).max(group.compacted);
                }
            }
        }
        Some(Mutation::CorruptionCutAsTornTail) => {
            for group in &mut recovered.groups {
                cut_at_damage(group);
            }
        }
        Some(Mutation::TornTailCalledCorruption) => {
            let is_torn = recovered.findings.iter().any(|finding| finding.what.contains("torn"));
            for group in recovered.groups.iter_mut().filter(|_| is_torn) {
                let why = "a torn tail, called damage".to_owned();
                group.corruption.get_or_insert_default().why = why;
            }
        }
        Some(Mutation::IdentityForgotten) => {
            recovered.identity = None;
            recovered.groups.clear();
        }
        _ => {}
    }
}

/// What a recovery that knows only torn tails makes of a damaged log: all before the first gap counts.
fn cut_at_damage(group: &mut RecoveredGroup) {
    if group.corruption.take().is_none() {
        return;
    }
    let mut next = group.compacted + 1;
    group.entries.retain(|entry| {
        let follows = entry.index == next;
        next += u64::from(follows);
        follows
    });
    let last = next - 1;
    if let (Some(state), Some(checkpoint)) = (&mut group.hard_state, &group.checkpoint) {
        state.commit = state.commit.min(last.max(checkpoint.index));
    }
}
