//! Membership changes: which are taken, and what follows when one is applied.

use holdfast_journal::EntryReader;
use holdfast_queue::Machine;
use holdfast_queue::ids::ReplicaId;
use raft::eraftpb::Entry;
use tracing::{error, info, warn};

use crate::api::{MembershipChange, ProposalId, ProposeError};
use crate::conf::{decode_change, encode_change, raft_change};
use crate::context::Context;
use crate::envelope::entry_payload;
use crate::group::Group;
use crate::writes::After;

/// A replica that lacks no more entries than this counts as one that has everything: under load the last few are always
/// on their way.
pub const CAUGHT_UP_LAG: u64 = 100;

fn bad<T>(text: String) -> Result<T, ProposeError> {
    Err(ProposeError::BadChange(text))
}

impl<M: Machine, R: EntryReader> Group<M, R> {
    /// True while decisions need majorities of two sets of voters.
    pub fn is_joint(&self) -> bool {
        self.voter_halves.len() > 1
    }

    pub fn not_leader(&self) -> ProposeError {
        ProposeError::NotLeader { leader: self.leader().map(|leader| leader.member) }
    }

    /// Proposes a membership change on the leader.
    pub fn change_membership(
        &mut self,
        change: &MembershipChange,
        cx: &mut Context<M::Effect>,
    ) -> Result<ProposalId, ProposeError> {
        if !self.is_leader() {
            return Err(self.not_leader());
        }
        self.check_change(change, cx)?;
        // A leader that has not committed in its own term may not know the last change of an earlier one.
        if !self.is_leading() || self.raw.raft.has_pending_conf() || self.raw.raft.lead_transferee.is_some() {
            return Err(ProposeError::ChangePending);
        }
        self.wake(cx);
        self.raw
            .propose_conf_change(encode_change(change).to_vec(), raft_change(change))
            .map_err(|_| ProposeError::Busy)?;
        Ok(ProposalId { index: self.last(), term: self.term() })
    }

    fn check_change<E>(&self, change: &MembershipChange, cx: &Context<E>) -> Result<(), ProposeError> {
        if self.is_joint() != (*change == MembershipChange::LeaveJoint) {
            return bad(match self.is_joint() {
                true => "the group is between two memberships; the joint one must be left first".into(),
                false => "the group has one membership only; there is no joint one to leave".into(),
            });
        }
        let nobody = &[];
        match change {
            MembershipChange::AddLearner(replica) => self.check_addition(*replica),
            MembershipChange::Promote(replica) => self.check_voters(&[*replica], nobody, cx),
            MembershipChange::Remove(replica) => self.check_voters(nobody, &[*replica], cx),
            MembershipChange::Swap { promote, demote, remove } => {
                let learners = self.learners();
                if let Some(replica) = demote.iter().find(|replica| learners.contains(replica)) {
                    return bad(format!("replica {replica} does not vote"));
                }
                let leaving: Vec<ReplicaId> = demote.iter().chain(remove).copied().collect();
                self.check_voters(promote, &leaving, cx)
            }
            MembershipChange::LeaveJoint => Ok(()),
        }
    }

    fn check_addition(&self, replica: ReplicaId) -> Result<(), ProposeError> {
        if replica.member.0 == 0 || replica.member.0 > u64::from(u32::MAX) {
            return bad(format!("{} is no member's number", replica.member));
        }
        match self.replica_on(replica.member) {
            Some(present) => bad(format!("member {} is in the group already, as replica {present}", replica.member)),
            None => Ok(()),
        }
    }

    /// `promote` are to vote, `leave` to vote no more (or to go): the voters that are left must be able to go on at once.
    fn check_voters<E>(&self, promote: &[ReplicaId], leave: &[ReplicaId], cx: &Context<E>) -> Result<(), ProposeError> {
        let (voters, learners) = (self.voters(), self.learners());
        for replica in promote {
            if !learners.contains(replica) {
                return bad(format!("replica {replica} is not a learner of the group"));
            }
            if !self.is_caught_up(*replica, cx) {
                return bad(format!("replica {replica} does not hold the whole log yet"));
            }
        }
        for replica in leave {
            if *replica == self.me {
                return bad("a leader cannot remove itself; transfer leadership first".into());
            }
            if !voters.contains(replica) && !learners.contains(replica) {
                return bad(format!("replica {replica} is not in the group"));
            }
        }
        let left: Vec<ReplicaId> =
            voters.iter().chain(promote).filter(|replica| !leave.contains(replica)).copied().collect();
        let able = left.iter().filter(|replica| self.is_caught_up(**replica, cx)).count();
        if left != voters && able <= left.len() / 2 {
            let text =
                format!("of the {} voters that would be left only {able} are up and have everything", left.len());
            return bad(text);
        }
        Ok(())
    }

    /// On the leader: the replica answers and holds about all that is committed.
    fn is_caught_up<E>(&self, replica: ReplicaId, cx: &Context<E>) -> bool {
        let progress = self.raw.raft.prs().get(replica.raft_id());
        replica == self.me
            || cx.is_live(replica.member)
                && progress
                    .is_some_and(|progress| progress.matched > 0 && progress.matched + CAUGHT_UP_LAG >= self.commit())
    }

    /// A membership change is committed.
    pub fn apply_change(&mut self, entry: &Entry, cx: &mut Context<M::Effect>) {
        self.applied = entry.index;
        self.applied_since.0 += 1;
        let change = match decode_change(entry_payload(entry)) {
            Ok(change) => change,
            Err(_) => {
                error!(group = %self.id, index = entry.index, "a malformed membership change was committed");
                return;
            }
        };
        if let Err(error) = self.raw.apply_conf_change(&raft_change(&change)) {
            // The same on every replica, since it depends on the membership alone.
            warn!(group = %self.id, index = entry.index, ?change, %error, "a membership change had no effect");
            return;
        }
        self.changed_at = entry.index;
        self.note_membership();
        let (voters, learners) = (self.voters(), self.learners());
        let joint = self.is_joint();
        info!(group = %self.id, index = entry.index, ?change, ?voters, ?learners, joint, "membership changed");
        self.heard.retain(|id, _| voters.contains(&ReplicaId::from_raft_id(*id)));
        self.outgoing.retain(|to, _| voters.contains(to) || learners.contains(to));
        if self.is_leader() && !voters.contains(&self.me) {
            let term = self.term();
            self.raw.raft.become_follower(term, 0);
        }
        // The commit index is written at leisure otherwise. Here others act on the change (a replica that was let go is
        // destroyed), so whoever stays must know it after any restart: it might need the vote of one that is gone.
        let batch = self.push_hard_state(cx);
        self.last_write = Some(batch);
        let after = After::Change { key: self.key, index: entry.index };
        if let Err(after) = cx.writes.after(batch, after) {
            self.written(after, cx);
        }
    }
}
