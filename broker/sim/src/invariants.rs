//! What must hold after every step, whatever the network, the disks and the processes do. What clients were promised is
//! in the ledger.

mod acknowledged;
mod committed;
mod converged;
mod copies;
mod one_leader;

pub use converged::{apart, converged, differences};

use crate::process::Process;

/// Every invariant with what it remembers.
#[derive(Default)]
pub struct Invariants {
    one_leader: one_leader::OneLeader,
    committed: committed::Committed,
    /// Who holds what; looked at when a confirm was read.
    pub copies: copies::OnDisks,
    acknowledged: acknowledged::Acknowledged,
}

impl Invariants {
    /// Checks all of them for a member that did something.
    ///
    /// # Errors
    /// The broken one, in words.
    pub fn check(&mut self, member: usize, process: &Process) -> Result<(), String> {
        self.one_leader.check(member, process)?;
        self.committed.check(member, process)
    }

    /// A process is about to end, with what others rely on.
    pub fn about_to_end(&mut self, member: usize, processes: &[Process]) {
        self.acknowledged.about_to_end(member, processes);
    }

    /// A process has started on what its disk holds.
    ///
    /// # Errors
    /// When its disk lacks what the member had acknowledged.
    pub fn started(&mut self, member: usize, process: &Process) -> Result<(), String> {
        self.acknowledged.started(member, process)
    }

    /// A member's disk was damaged: nothing more is known of it.
    pub fn forget(&mut self, member: usize) {
        self.acknowledged.forget(member);
    }

    /// Leaders seen, over all groups and terms.
    #[must_use]
    pub fn leaderships(&self) -> usize {
        self.one_leader.count()
    }
}
