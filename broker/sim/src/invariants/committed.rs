//! What is applied at an index is the same on every member and never changes (Raft §5.4, state machine safety).

use std::collections::BTreeMap;

use crate::process::Process;

/// Group, incarnation and index.
type Place = (u64, (u32, u64), u64);
/// A digest and the member that had it first.
type Seen = (u64, usize);

/// The digest of each group's machine after each index that was looked at.
#[derive(Default)]
pub struct Committed {
    digests: BTreeMap<Place, Seen>,
}

impl Committed {
    /// Compares every machine with what was seen at the same index before, here or elsewhere.
    ///
    /// # Errors
    /// When two machines differ at the same index.
    pub fn check(&mut self, processes: &[Process]) -> Result<(), String> {
        for (index, process) in processes.iter().enumerate() {
            let Some(running) = &process.running else { continue };
            for view in running.views() {
                let Some(digest) = running.digest(view.group) else { continue };
                let key = (view.group.0, view.incarnation, view.applied);
                let (first, by) = *self.digests.entry(key).or_insert((digest, index));
                if first != digest {
                    return Err(format!(
                        "group {} at index {} differs between m{by} and m{index}",
                        view.group.0, view.applied
                    ));
                }
            }
        }
        Ok(())
    }
}
