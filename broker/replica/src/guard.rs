//! raft-rs panics where its state makes no sense, and where its storage cannot read an entry. One replica is out of service
//! then, and nothing else.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use holdfast_journal::EntryReader;
use holdfast_queue::Machine;
use holdfast_queue::ids::GroupId;
use tracing::error;

use crate::api::HostOutput;
use crate::context::Context;
use crate::envelope::Body;
use crate::group::Group;
use crate::host::{Host, Replica};

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// True while a panic of this thread would end one replica and not the process: for a panic hook, so that it can say so.
#[must_use]
pub fn is_guarded() -> bool {
    GUARDED.get()
}

/// Runs `call`; what it said when it panicked.
pub(crate) fn guarded<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    let before = GUARDED.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(call));
    GUARDED.set(before);
    outcome.map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        text.unwrap_or_else(|| "a panic without a message".to_owned())
    })
}

impl<M: Machine, R: EntryReader> Host<M, R> {
    /// Runs `call` on a running group. raft-rs panics where its state makes no sense: then this replica is quarantined,
    /// and no other.
    pub(crate) fn guarded<T>(
        &mut self,
        id: GroupId,
        call: impl FnOnce(&mut Group<M, R>, &mut Context<M::Effect>) -> T,
    ) -> Option<T> {
        let Some(Replica::Running(group)) = self.replicas.get_mut(&id) else { return None };
        let cx = &mut self.cx;
        let outcome = guarded(|| {
            let result = call(group, cx);
            group.set_election_timeout(cx);
            if group.raw.has_ready() {
                cx.dirty.insert(id);
            }
            result
        });
        let unreadable = group.log().take_unreadable();
        match outcome {
            Ok(result) => {
                if !unreadable.is_empty() {
                    self.heal(id, &unreadable, "an entry of the log cannot be read".to_owned(), false);
                }
                Some(result)
            }
            // raft-rs panics when it cannot read what it needs. It has handed nothing out, so it may begin again; the machine
            // stands where it stood.
            Err(why) if !unreadable.is_empty() && !group.applying => {
                self.heal(id, &unreadable, why, true);
                None
            }
            Err(why) => {
                self.quarantine(id, why);
                None
            }
        }
    }

    /// Takes a replica out of service. Its peers hear it, so that none waits for it as a leader.
    pub(crate) fn quarantine(&mut self, id: GroupId, why: String) {
        let Some(replica) = self.replicas.get(&id) else { return };
        let key = replica.key();
        error!(group = %id, why, "quarantined");
        let generation = self.generation(id).flatten();
        if let Replica::Running(group) = replica {
            for peer in group.peers() {
                let header = group.header(peer, &self.cx);
                self.cx.send(header, Body::Resigned);
            }
        }
        self.replicas.insert(id, Replica::Quarantined { key, generation, why: why.clone() });
        self.forget(id);
        self.cx.outbox.push_back(HostOutput::Quarantined { group: id, why });
    }

    pub(crate) fn forget(&mut self, id: GroupId) {
        self.cx.active.remove(&id);
        self.mending.remove(&id);
        self.cx.dirty.remove(&id);
        self.cx.campaigns.retain(|(_, _, group)| *group != id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_under_guard_is_told_and_the_guard_ends_with_it() {
        assert!(!is_guarded());
        assert_eq!(guarded(|| u32::from(is_guarded())), Ok(1));
        assert_eq!(guarded(|| panic!("no {}", "sense")).map(|(): ()| 0), Err("no sense".to_owned()));
        assert!(!is_guarded());
    }
}
