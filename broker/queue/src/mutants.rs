//! Planted bugs, for the simulator's test of itself: a simulator that misses one of them looks in the wrong place.
//! Compiled only with the feature `mutants`, which no production build sets.

use std::cell::Cell;

/// A rule of a queue machine, or of the replicas under it, to break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// Commands that a home sends again are applied again.
    ResendNotDeduplicated,
    /// Some acknowledged messages go back to their queue.
    AckedReturns,
    /// What a dead session had not acknowledged is dropped.
    UnackedDropped,
    /// Votes and append replies leave before what they speak of is durable.
    RepliesBeforePersisted,
    /// Replicas of deleted groups are neither destroyed nor compared with the metadata.
    DeletedGroupKept,
    /// A report that an entry is durable is taken for the one that replaced it.
    LateReportAccepted,
    /// A replica that found out that its disk lost messages goes on without them.
    MendedWithHoles,
}

thread_local! {
    static PLANTED: Cell<Option<Mutant>> = const { Cell::new(None) };
}

/// Plants a bug in everything that runs on this thread, or none.
pub fn plant(mutant: Option<Mutant>) {
    PLANTED.set(mutant);
}

/// Asked where the rule is kept.
pub fn is_planted(mutant: Mutant) -> bool {
    PLANTED.get() == Some(mutant)
}
