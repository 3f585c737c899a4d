//! Elections when a member dies: the surviving voters of its groups campaign in a ranked order (design §3.1).

use holdfast_journal::EntryReader;
use holdfast_queue::Machine;
use holdfast_queue::ids::{MemberId, ReplicaId};
use raft::StateRole;
use raft::eraftpb::Message;
use tracing::debug;

use crate::context::Context;
use crate::group::Group;

/// After so many rounds without a leader the ordinary election clock goes on alone.
const RANKED_CAMPAIGNS: u32 = 8;

impl<M: Machine, R: EntryReader> Group<M, R> {
    /// The leader does not lead any more: it started anew, or gave the group up.
    pub fn leader_gone(&mut self, cx: &mut Context<M::Effect>) {
        self.gone = Some((self.raw.raft.leader_id, self.term()));
        self.leader_lost(cx);
    }

    /// The leader of this term leads after all: it came to lead in its new run, and that was heard, through a third member,
    /// before that it had begun one. Should it have been a late word of the last run, the group is awake, and the election
    /// clock finds out.
    pub fn leader_speaks(&mut self, from: ReplicaId) {
        if self.gone == Some((from.raft_id(), self.term())) {
            self.gone = None;
        }
    }

    /// True if the leader of this term is suspected, or is known to be gone.
    pub fn is_leader_lost<E>(&self, cx: &Context<E>) -> bool {
        let leader = self.raw.raft.leader_id;
        leader != 0 && (!cx.is_up(leader) || self.gone == Some((leader, self.term())))
    }

    /// The leader is gone or suspected: votes are given from now on, and this replica's turn to campaign is set. A
    /// pre-vote keeps a wrong suspicion harmless.
    pub fn leader_lost(&mut self, cx: &mut Context<M::Effect>) {
        let was_quiesced = self.quiesced;
        self.wake(cx);
        if !self.may_campaign() {
            return;
        }
        let survivors: Vec<_> = self.voters().into_iter().filter(|voter| cx.is_live(voter.member)).collect();
        let Some(position) = survivors.iter().position(|voter| *voter == self.me) else { return };
        // Rotated by group, so that one survivor does not get all the leaderships.
        let count = survivors.len() as u64;
        let first = self.key.group % count;
        let rank = (position as u64 + count - first) % count;
        let wait = cx.config.election_timeout() * u32::try_from(rank).unwrap_or(u32::MAX);
        cx.campaigns.insert((cx.now + wait, was_quiesced, self.id));
    }

    fn may_campaign(&self) -> bool {
        self.raw.raft.promotable() && !self.is_leader() && !self.installing
    }

    /// This replica's turn has come. True if it should have another one, should this round find no majority.
    pub fn campaign(&mut self, cx: &mut Context<M::Effect>) -> bool {
        let leader_lives = self.leader().is_some() && !self.is_leader_lost(cx);
        if leader_lives || !self.may_campaign() || cx.draining_until.is_some() {
            return false;
        }
        self.wake(cx);
        // A round of real votes is left alone: the votes may only be waiting for a disk.
        if self.raw.raft.state != StateRole::Candidate {
            debug!(group = %self.id, term = self.term(), "campaigning");
            let _ = self.raw.campaign();
        }
        self.campaigns += 1;
        self.campaigns < RANKED_CAMPAIGNS
    }

    /// A candidate that lacks what is here cannot win with this vote: campaign at once instead of a timeout later.
    pub fn outrank(&mut self, pre_vote: &Message, cx: &mut Context<M::Effect>) {
        let leader_lives = self.leader().is_some() && !self.is_leader_lost(cx);
        if leader_lives || !self.may_campaign() {
            return;
        }
        let mine = (self.raw.raft.raft_log.last_term(), self.last());
        if (pre_vote.log_term, pre_vote.index) < mine && self.raw.raft.state == StateRole::Follower {
            cx.campaigns.insert((cx.now, false, self.id));
        }
    }

    /// The member runs again, or is heard again. `restarted`: it is another run, which leads nothing.
    pub fn peer_returned(&mut self, member: MemberId, restarted: bool, cx: &mut Context<M::Effect>) {
        let Some(replica) = self.replica_on(member) else { return };
        if self.is_leader() {
            let progress = self.raw.raft.prs().get(replica.raft_id());
            let lacks = progress.is_some_and(|peer| peer.matched < self.last());
            if restarted {
                // What it acknowledged may be damaged now. Its next answer shows that it is not.
                self.unheard.insert(replica.raft_id());
            }
            if restarted || lacks || self.quiesced_without {
                self.wake(cx);
            }
        } else if restarted && self.leader().map(|leader| leader.member) == Some(member) {
            self.leader_gone(cx);
        }
    }
}
