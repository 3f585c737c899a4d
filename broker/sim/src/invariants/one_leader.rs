//! At most one leader of a group in a term (Raft §5.2, election safety).

use std::collections::BTreeMap;

use crate::process::Process;

/// Who led which group in which term.
#[derive(Default)]
pub struct OneLeader {
    seen: BTreeMap<(u64, (u32, u64), u64), usize>,
}

impl OneLeader {
    /// Remembers who leads now.
    ///
    /// # Errors
    /// When another member led the same group in the same term.
    pub fn check(&mut self, now_us: u64, processes: &[Process]) -> Result<(), String> {
        for (index, process) in processes.iter().enumerate() {
            let Some(running) = &process.running else { continue };
            if process.is_paused(now_us) {
                continue;
            }
            for view in running.views().iter().filter(|view| view.leading) {
                let key = (view.group.0, view.incarnation, view.term);
                let first = *self.seen.entry(key).or_insert(index);
                if first != index {
                    return Err(format!(
                        "group {} had two leaders in term {}: m{first} and m{index}",
                        view.group.0, view.term
                    ));
                }
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
