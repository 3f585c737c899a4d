//! A stopped member's copy of a group, for a forced recovery: read as a start would, with all of its log applied, whether
//! or not that was ever known to be committed.
//!
//! Why all of it: an entry above the known commit index may have been confirmed, since the index is written at leisure. An
//! election among the copies that are left would keep it too. What of it was never confirmed may then appear, as it may
//! after any election.

use bytes::Bytes;
use holdfast_journal::{EntryReader, GroupKey, HardState, Location, Op, RecoveredGroup};
use holdfast_queue::ids::ReplicaId;
use holdfast_queue::{ApplyMeta, Machine};
use raft::eraftpb::ConfState;

use crate::api::{HOST_PAYLOAD, MembershipChange};
use crate::birth::first_known_term;
use crate::conf::{StoredConf, decode_change};

/// One membership: the voters, or the two halves of a joint one, of each of which every decision needs a majority.
pub type VoterHalves = Vec<Vec<ReplicaId>>;

/// A copy that can be read as a whole, apart from the messages' contents.
#[derive(Debug)]
pub struct GroupCopy<M> {
    pub key: GroupKey,
    /// Which of its member's replicas of the group it is.
    pub generation: u32,
    /// Where its log ends; 0 for a replica that has joined and never got anything.
    pub last_index: u64,
    /// The term of that entry: of two copies an election prefers the higher (term, index).
    pub last_term: u64,
    /// The latest term that it knows.
    pub term: u64,
    /// Known to be committed.
    pub commit: u64,
    /// The memberships that may count: the one at the commit index and each that the log goes on to. Whether a change
    /// above the commit index was committed is not known here.
    pub memberships: Vec<VoterHalves>,
    /// After the last entry.
    pub machine: M,
    /// Ascending by index; holds more than the machine needs.
    payloads: Vec<(u64, Location)>,
}

impl<M: Machine> GroupCopy<M> {
    /// Reads what a disk holds of a group.
    ///
    /// # Errors
    /// Why the copy cannot be used, in words.
    pub fn read<R: EntryReader>(recovered: RecoveredGroup, reader: &R) -> Result<Self, String> {
        Self::read_up_to(recovered, reader, u64::MAX)
    }

    /// The same, without the entries above `up_to`: the group as a backup cuts it. What a disk knows of the commit index does
    /// not matter then, since whoever names the place knows that it was committed.
    ///
    /// # Errors
    /// Why the copy cannot be used, in words: among other reasons, that it does not reach that far, or that its checkpoint is
    /// of a later state, from which no way leads back.
    pub fn read_cut<R: EntryReader>(recovered: RecoveredGroup, reader: &R, up_to: u64) -> Result<Self, String> {
        let state = recovered.hard_state.map(|state| HardState { commit: state.commit.min(up_to), ..state });
        let checkpointed = recovered.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.index);
        if checkpointed > up_to {
            return Err(format!("its checkpoint is of index {checkpointed}, above {up_to}"));
        }
        let copy = Self::read_up_to(RecoveredGroup { hard_state: state, ..recovered }, reader, up_to)?;
        match copy.last_index == up_to {
            true => Ok(copy),
            false => Err(format!("its log ends at {}, below {up_to}", copy.last_index)),
        }
    }

    fn read_up_to<R: EntryReader>(recovered: RecoveredGroup, reader: &R, up_to: u64) -> Result<Self, String> {
        if let Some(corruption) = recovered.corruption {
            return Err(corruption.why);
        }
        let (Some(state), Some(checkpoint)) = (recovered.hard_state, recovered.checkpoint) else {
            return Err("its hard state or its first checkpoint is not on disk".into());
        };
        let stored = StoredConf::decode(&checkpoint.conf).map_err(|_| "its membership cannot be read".to_owned())?;
        let machine =
            M::restore(&checkpoint.machine).map_err(|error| format!("its checkpoint cannot be read: {error}"))?;
        first_known_term(&checkpoint, recovered.compacted, &recovered.entries)?;
        let commit = state.commit.max(checkpoint.index);
        let mut copy = Self {
            key: recovered.key,
            generation: stored.generation,
            last_index: checkpoint.index,
            last_term: checkpoint.term,
            term: state.term,
            commit,
            memberships: vec![halves_of(&stored.conf)],
            machine,
            payloads: recovered.bodies,
        };
        for entry in recovered.entries.into_iter().take_while(|entry| entry.index <= up_to) {
            copy.payloads.push((entry.index, entry.location));
            if entry.index <= checkpoint.index {
                continue;
            }
            if entry.index != copy.last_index + 1 || entry.term < copy.last_term {
                return Err(format!("its log is not whole at index {}", entry.index));
            }
            (copy.last_index, copy.last_term) = (entry.index, entry.term);
            let payload = reader.read(entry.location).map_err(|error| error.to_string())?;
            copy.apply(&payload);
        }
        if copy.term < copy.last_term {
            return Err(format!("its term {} is older than its log's {}", copy.term, copy.last_term));
        }
        if commit > copy.last_index {
            return Err(format!("its log ends at {} although {commit} was committed", copy.last_index));
        }
        copy.machine.take_dead();
        Ok(copy)
    }

    fn apply(&mut self, payload: &Bytes) {
        match payload.first() {
            // A leader's first entry.
            None => {}
            Some(&HOST_PAYLOAD) => {
                // One that is malformed changes nothing, as in a running group.
                let Ok(change) = decode_change(payload) else { return };
                let after = changed(self.memberships.last().cloned().unwrap_or_default(), &change);
                if self.last_index <= self.commit {
                    self.memberships.clear();
                }
                self.memberships.push(after);
            }
            Some(_) => {
                let meta = ApplyMeta { index: self.last_index, term: self.last_term };
                // As in a running group, a malformed payload changes nothing.
                let _ = self.machine.apply(&meta, payload, &mut Vec::new());
            }
        }
    }

    /// The contents of messages that the machine needs, and where they are, ascending by index.
    ///
    /// # Errors
    /// When one is not there: the copy is not whole after all.
    pub fn live_payloads(&self) -> Result<Vec<(u64, Location)>, String> {
        let mut known = self.payloads.iter();
        let mut place = |index: u64| {
            let found = known.find(|(at, _)| *at >= index).filter(|(at, _)| *at == index);
            found.copied().ok_or_else(|| format!("the contents of entry {index} are not on disk"))
        };
        self.machine.live_indexes().into_iter().map(&mut place).collect()
    }

    /// What makes `replica` the only voter of a new life of the group, which goes on where this copy ends. The contents
    /// of messages are written before, as bodies of `key`; `machine` and `live` are the state and what it needs of them.
    ///
    /// The term is one above all that this copy knows. No promise of an earlier life counts for this one, so nobody is
    /// voted for.
    pub fn reborn(&self, key: GroupKey, replica: ReplicaId, machine: Bytes, live: Vec<u64>) -> Vec<Op> {
        let conf = ConfState { voters: vec![replica.raft_id()], ..ConfState::default() };
        // A group that was recovered is never taken for one that is just being born: its membership has changed.
        let conf = StoredConf { conf, changed_at: self.last_index, generation: replica.generation }.encode();
        let (index, term) = (self.last_index, self.last_term);
        vec![
            Op::HardState { key, term: self.term + 1, vote: 0, commit: index },
            Op::Checkpoint { key, index, term, conf, machine },
            Op::Reset { key, index, term },
            Op::Compact { key, up_to: index, live },
        ]
    }
}

fn replicas(ids: &[u64]) -> Vec<ReplicaId> {
    ids.iter().copied().map(ReplicaId::from_raft_id).collect()
}

fn halves_of(conf: &ConfState) -> VoterHalves {
    [&conf.voters, &conf.voters_outgoing]
        .into_iter()
        .filter(|half| !half.is_empty())
        .map(|half| replicas(half))
        .collect()
}

/// The membership after a change, as far as voters go.
fn changed(before: VoterHalves, change: &MembershipChange) -> VoterHalves {
    let mut halves = before;
    let voters = halves.first().cloned().unwrap_or_default();
    let without = |leaving: &[ReplicaId]| -> Vec<ReplicaId> {
        voters.iter().copied().filter(|replica| !leaving.contains(replica)).collect()
    };
    match change {
        MembershipChange::AddLearner(_) => {}
        MembershipChange::Promote(replica) => {
            let mut after = without(&[*replica]);
            after.push(*replica);
            halves = vec![after];
        }
        MembershipChange::Remove(replica) => halves = vec![without(&[*replica])],
        MembershipChange::Swap { promote, demote, remove } => {
            let leaving: Vec<ReplicaId> = demote.iter().chain(remove).chain(promote).copied().collect();
            let mut after = without(&leaving);
            after.extend(promote);
            halves = vec![after, voters];
        }
        MembershipChange::LeaveJoint => halves.truncate(1),
    }
    halves
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_queue::ids::MemberId;

    fn replica(member: u64) -> ReplicaId {
        ReplicaId::founder(MemberId(member))
    }

    #[test]
    fn a_joint_membership_has_two_halves_until_it_is_left() {
        let before = vec![vec![replica(1), replica(2), replica(3)]];
        let swap =
            MembershipChange::Swap { promote: vec![replica(4)], demote: vec![replica(1)], remove: vec![replica(2)] };
        let joint = changed(before, &swap);
        assert_eq!(joint, [vec![replica(3), replica(4)], vec![replica(1), replica(2), replica(3)]]);
        assert_eq!(changed(joint, &MembershipChange::LeaveJoint), [vec![replica(3), replica(4)]]);
    }

    #[test]
    fn a_change_by_one_leaves_one_set_of_voters() {
        let before = vec![vec![replica(1), replica(2)]];
        let more = changed(before.clone(), &MembershipChange::Promote(replica(3)));
        assert_eq!(more, [vec![replica(1), replica(2), replica(3)]]);
        assert_eq!(changed(more, &MembershipChange::Remove(replica(1))), [vec![replica(2), replica(3)]]);
        assert_eq!(changed(before.clone(), &MembershipChange::AddLearner(replica(9))), before);
    }
}
