//! At most one leader of a group in a term (Raft §5.2, election safety).

use std::collections::BTreeMap;

use crate::process::{GroupView, Process};

/// Who led which group in which term.
#[derive(Default)]
pub struct OneLeader {
    seen: BTreeMap<(u64, (u32, u64), u64), usize>,
    /// What each member led at the last look: most looks show nothing new.
    latest: BTreeMap<(usize, u64), GroupView>,
}

impl OneLeader {
    /// Remembers what a member leads now.
    ///
    /// # Errors
    /// When another member led the same group in the same term.
    pub fn check(&mut self, member: usize, process: &Process) -> Result<(), String> {
        let Some(running) = &process.running else { return Ok(()) };
        for view in running.views().filter(|view| view.leading) {
            let view = GroupView { applied: 0, ..view };
            if self.latest.get(&(member, view.group.0)) == Some(&view) {
                continue;
            }
            self.latest.insert((member, view.group.0), view);
            let key = (view.group.0, view.incarnation, view.term);
            let first = *self.seen.entry(key).or_insert(member);
            if first != member {
                return Err(format!(
                    "group {} had two leaders in term {}: m{first} and m{member}",
                    view.group.0, view.term
                ));
            }
        }
        Ok(())
    }

    /// Leaderships seen.
    #[must_use]
    pub fn count(&self) -> usize {
        self.seen.len()
    }
}
