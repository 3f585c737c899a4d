//! When a membership change may be acted upon: who knows, on disk, that it is committed.
//!
//! Once a change is recorded, the replicas that were let go are destroyed. A replica that has forgotten that the change is
//! committed (commit indexes are written at leisure) counts on the membership before it, whose majority may need one that
//! is gone. So a change is acted upon only when every majority of the new voters has one among it that knows: that one
//! campaigns with the new membership, and raft-rs tells the commit index with every request for a vote and with every
//! refusal, so whoever asks or is asked learns it too. With fewer, the loss of the leader for good, which any majority
//! must survive, could leave a majority that elects nobody.

use holdfast_journal::EntryReader;
use holdfast_queue::Machine;
use holdfast_queue::ids::ReplicaId;

use crate::api::HostOutput;
use crate::context::Context;
use crate::envelope::Body;
use crate::group::Group;

/// What a replica knows of who knows its group's changes.
#[derive(Debug, Default)]
pub(crate) struct ChangeKnown {
    /// The last membership change that is known here, on disk, to be committed: after a restart this replica still has it.
    pub here: u64,
    /// The same of others, by Raft id, as they said.
    elsewhere: std::collections::BTreeMap<u64, u64>,
    /// The last change that was told as one to act upon.
    told: u64,
}

impl ChangeKnown {
    /// At a start with this change in force.
    pub fn new(changed_at: u64) -> Self {
        Self { here: changed_at, told: changed_at, ..Self::default() }
    }
}

impl<M: Machine, R: EntryReader> Group<M, R> {
    /// True when the last change may be acted upon. Only the leader knows of the others; elsewhere this disk alone counts.
    pub fn is_change_durable(&self) -> bool {
        let changed_at = self.changed_at;
        if changed_at == 0 || self.change_known.here < changed_at || !self.is_leader() {
            return self.change_known.here >= changed_at;
        }
        self.voter_halves.iter().all(|half| {
            let knows = half.iter().filter(|id| self.is_change_known_by(**id)).count();
            // So many have one in common with every majority.
            knows >= half.len().div_ceil(2)
        })
    }

    fn is_change_known_by(&self, id: u64) -> bool {
        let known = if id == self.me.raft_id() {
            Some(self.change_known.here)
        } else {
            self.change_known.elsewhere.get(&id).copied()
        };
        known.is_some_and(|known| known >= self.changed_at)
    }

    /// The commit index of the membership change at `index` is durable here.
    pub fn change_written(&mut self, index: u64, cx: &mut Context<M::Effect>) {
        self.change_known.here = self.change_known.here.max(index);
        if let Some(leader) = self.leader().filter(|leader| *leader != self.me) {
            self.say_change(leader, cx);
        }
        self.tell_change(cx);
        self.ask_for_change(cx);
    }

    /// On the leader: asks voters who have not said that they know the last change.
    pub fn ask_for_change(&mut self, cx: &mut Context<M::Effect>) {
        if !self.is_leader() || self.change_known.here < self.changed_at || self.is_change_durable() {
            return;
        }
        let asked: Vec<ReplicaId> =
            self.voters().into_iter().filter(|voter| !self.is_change_known_by(voter.raft_id())).collect();
        for voter in asked {
            self.say_change(voter, cx);
        }
    }

    fn say_change(&mut self, to: ReplicaId, cx: &mut Context<M::Effect>) {
        let header = self.header(to, cx);
        cx.send(header, Body::ChangeKnown { index: self.change_known.here });
    }

    /// Another replica says which change it knows. A follower answers its leader with what it knows itself.
    pub fn change_known_by(&mut self, from: ReplicaId, index: u64, cx: &mut Context<M::Effect>) {
        let known = self.change_known.elsewhere.entry(from.raft_id()).or_default();
        *known = index.max(*known);
        if self.leader() == Some(from) {
            self.say_change(from, cx);
        }
        self.tell_change(cx);
    }

    /// Says that the last change may be acted upon, once.
    fn tell_change(&mut self, cx: &mut Context<M::Effect>) {
        if self.change_known.told >= self.changed_at || !self.is_change_durable() {
            return;
        }
        self.change_known.told = self.changed_at;
        let (voters, learners) = (self.voters(), self.learners());
        self.emit(HostOutput::MembershipChanged { group: self.id, index: self.changed_at, voters, learners }, cx);
    }

    /// This replica has come to lead: its predecessor may have told nobody.
    pub fn tell_change_again(&mut self, cx: &mut Context<M::Effect>) {
        self.change_known.told = 0;
        self.tell_change(cx);
        self.ask_for_change(cx);
    }
}
