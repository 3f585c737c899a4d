//! Ticks, and when a group needs none (design §3.1).

use holdfast_journal::EntryReader;
use holdfast_queue::Machine;
use holdfast_queue::ids::ReplicaId;
use raft::{Progress, StateRole};
use tracing::debug;

use crate::context::Context;
use crate::envelope::Body;
use crate::group::Group;

impl<M: Machine, R: EntryReader> Group<M, R> {
    /// One tick of an active group.
    pub fn tick(&mut self, cx: &mut Context<M::Effect>) {
        if !self.installing {
            self.raw.tick();
        }
        self.idle_ticks += 1;
        self.tick_sending(cx);
        self.tick_receiving(cx);
        self.maybe_compact(cx);
        self.release_withheld(cx);
        self.ask_for_change(cx);
        if self.idle_ticks >= cx.config.quiesce_ticks && self.may_quiesce(cx) {
            self.quiesce(cx);
        }
    }

    /// Only a leader quiesces, and only when every live replica has the whole log and knows that it is committed, and
    /// nothing is under way.
    fn may_quiesce(&self, cx: &Context<M::Effect>) -> bool {
        let raft = &self.raw.raft;
        let last = self.last();
        self.is_leading()
            && self.commit() == last
            && self.applied == last
            && raft.raft_log.persisted == last
            && raft.lead_transferee.is_none()
            && !raft.has_pending_conf()
            && !self.is_joint()
            && self.is_change_durable()
            && self.outgoing.is_empty()
            && self.prepared.is_none()
            && self.withheld.is_empty()
            && !self.raw.has_ready()
            && self.has_lease(cx.now, cx)
            && self.peers().into_iter().filter(|peer| cx.is_live(peer.member)).all(|peer| {
                let timeout = cx.config.election_timeout();
                let heard = self.heard.get(&peer.raft_id()).is_some_and(|at| cx.now.since(*at) < timeout);
                let has = |progress: &Progress| progress.matched == last && progress.committed_index == last;
                heard && raft.prs().get(peer.raft_id()).is_some_and(has)
            })
    }

    fn quiesce(&mut self, cx: &mut Context<M::Effect>) {
        let (last, commit) = (self.last(), self.commit());
        let (live, dead): (Vec<_>, Vec<_>) = self.peers().into_iter().partition(|peer| cx.is_live(peer.member));
        for peer in live {
            let header = self.header(peer, cx);
            cx.send(header, Body::Quiesce { last, commit });
        }
        debug!(group = %self.id, last, "quiesced");
        self.quiesced_without = !dead.is_empty();
        self.rest(cx);
    }

    fn rest(&mut self, cx: &mut Context<M::Effect>) {
        self.quiesced = true;
        cx.active.remove(&self.id);
        self.raw.raft.maybe_free_inflight_buffers();
    }

    /// The leader stops its clock. A follower that has anything else than the leader keeps it awake.
    pub fn quiesce_as_follower(
        &mut self,
        from: ReplicaId,
        term: u64,
        (last, commit): (u64, u64),
        cx: &mut Context<M::Effect>,
    ) {
        let raft = &self.raw.raft;
        let same = raft.state == StateRole::Follower
            && raft.term == term
            && raft.leader_id == from.raft_id()
            && self.last() == last
            && raft.raft_log.persisted == last
            && self.commit() == commit
            && self.applied == commit
            && self.incoming.is_none()
            && !self.is_leader_lost(cx);
        if same {
            self.rest(cx);
        } else {
            self.wake(cx);
            let header = self.header(from, cx);
            cx.send(header, Body::Wake);
        }
    }
}
