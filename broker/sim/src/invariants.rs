//! What must hold after every step, whatever the network, the disks and the processes do.

mod committed;
mod copies;
mod one_leader;

use crate::process::Process;

/// Every invariant with what it remembers.
#[derive(Default)]
pub struct Invariants {
    one_leader: one_leader::OneLeader,
    committed: committed::Committed,
    /// Who holds what; looked at when a confirm was read.
    pub copies: copies::OnDisks,
    steps: u64,
}

impl Invariants {
    /// Checks all of them.
    ///
    /// # Errors
    /// The broken one, in words.
    pub fn check(&mut self, now_us: u64, processes: &[Process]) -> Result<(), String> {
        self.steps += 1;
        self.one_leader.check(now_us, processes)?;
        // Digests cost the size of the state: a look every so often sees every applied index that lasts.
        if self.steps.is_multiple_of(64) {
            self.committed.check(processes)?;
        }
        Ok(())
    }

    /// Leaders seen, over all groups and terms.
    #[must_use]
    pub fn leaderships(&self) -> usize {
        self.one_leader.count()
    }
}
