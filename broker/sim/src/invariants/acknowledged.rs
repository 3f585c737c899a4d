//! What a member acknowledged is on its disk when it comes back: no committed entry that a leader knows to be matched
//! there may be missing, and no term in which it took part may be forgotten (Raft §5.1, persistent state; §5.4.2).

use std::collections::BTreeMap;

use holdfast_journal::GroupKey;
use holdfast_replica::Role;

use crate::process::Process;

/// An index and a term that a disk must hold.
#[derive(Clone, Copy, Debug, Default)]
struct Floor {
    index: u64,
    term: u64,
}

/// What each member must find on its disk.
#[derive(Default)]
pub struct Acknowledged {
    floors: BTreeMap<(usize, GroupKey), Floor>,
}

impl Acknowledged {
    /// Looks at what leaders know of a member that is about to end, itself included.
    pub fn about_to_end(&mut self, member: usize, processes: &[Process]) {
        let own = processes[member].running.as_ref().and_then(|running| running.member.host());
        let Some(me) = own.map(holdfast_engine::Hosts::me) else { return };
        for host in processes.iter().filter_map(|process| process.running.as_ref()?.member.host()) {
            for status in host.groups().filter_map(|group| host.status(group)) {
                if status.role != Role::Leader {
                    continue;
                }
                let Some(peer) = status.peers.iter().find(|peer| peer.replica.member == me) else { continue };
                if peer.matched == 0 {
                    continue;
                }
                let floor = self.floors.entry((member, status.key)).or_default();
                // Only what is committed stays: the rest may be replaced by another leader's entries.
                floor.index = floor.index.max(peer.matched.min(status.commit));
                if status.me_leading {
                    floor.term = floor.term.max(status.term);
                }
            }
        }
    }

    /// Compares with what a member found at its start.
    ///
    /// # Errors
    /// When something is missing.
    pub fn started(&mut self, member: usize, process: &Process) -> Result<(), String> {
        let Some(host) = process.running.as_ref().and_then(|running| running.member.host()) else { return Ok(()) };
        for status in host.groups().filter_map(|group| host.status(group)) {
            if let Some(why) = status.quarantined {
                return Err(format!("m{member} quarantines group {} on a sound disk: {why}", status.key.group));
            }
            let Some(floor) = self.floors.get(&(member, status.key)) else { continue };
            if status.last < floor.index {
                return Err(format!(
                    "m{member} had acknowledged index {} of group {}, which was committed; its disk ends at {}",
                    floor.index, status.key.group, status.last
                ));
            }
            if status.term < floor.term {
                return Err(format!(
                    "m{member} had matched a leader of term {} in group {}; its disk knows term {}",
                    floor.term, status.key.group, status.term
                ));
            }
        }
        Ok(())
    }

    /// The member's disk was damaged.
    pub fn forget(&mut self, member: usize) {
        self.floors.retain(|(of, _), _| *of != member);
    }
}
