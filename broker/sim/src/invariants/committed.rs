//! What is applied at an index is the same on every member and never changes (Raft §5.4, state machine safety).

use std::collections::BTreeMap;

use crate::process::Process;

/// Digests cost the size of the state, so every index of this kind is looked at, on whichever member applies it.
const EVERY: u64 = 8;

/// Group, incarnation and index.
type Place = (u64, (u32, u64), u64);
/// A digest and the member that had it first.
type Seen = (u64, usize);

/// The digest of each group's machine after each index that was looked at.
#[derive(Default)]
pub struct Committed {
    digests: BTreeMap<Place, Seen>,
    /// What each member had applied of each group at the last look.
    latest: BTreeMap<(usize, u64), u64>,
}

impl Committed {
    /// Compares a member's machines with what was seen at the same index before, here or elsewhere.
    ///
    /// # Errors
    /// When two machines differ at the same index.
    pub fn check(&mut self, member: usize, process: &Process) -> Result<(), String> {
        let Some(running) = &process.running else { return Ok(()) };
        for view in running.views() {
            let latest = self.latest.entry((member, view.group.0)).or_default();
            if *latest == view.applied {
                continue;
            }
            *latest = view.applied;
            if !view.applied.is_multiple_of(EVERY) {
                continue;
            }
            let Some(digest) = running.digest(view.group) else { continue };
            let key = (view.group.0, view.incarnation, view.applied);
            let (first, by) = *self.digests.entry(key).or_insert((digest, member));
            if first != digest {
                return Err(format!(
                    "group {} at index {} differs between m{by} and m{member}",
                    view.group.0, view.applied
                ));
            }
        }
        Ok(())
    }
}
