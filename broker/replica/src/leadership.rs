//! The leader's lease, and handing leadership over.

use holdfast_journal::EntryReader;
use holdfast_queue::Machine;
use holdfast_queue::ids::{MemberId, ReplicaId};
use holdfast_queue::time::Instant;
use raft::ProgressState;
use tracing::info;

use crate::api::{HostOutput, TransferError};
use crate::context::Context;
use crate::group::Group;

/// A target for leadership may lack this many entries; raft-rs sends them before it hands over.
const TRANSFER_LAG: u64 = 1_000;

impl<M: Machine, R: EntryReader> Group<M, R> {
    /// True if a majority answered, in this term, to something that this leader sent within the election timeout. The
    /// times are the leader's own, when it *sent*: answers that waited in a buffer while the process was paused do not
    /// count.
    pub fn has_lease<E>(&self, now: Instant, cx: &Context<E>) -> bool {
        if !self.is_leading() {
            return false;
        }
        let timeout = cx.config.election_timeout();
        let recent =
            |id: &u64| *id == self.me.raft_id() || self.heard.get(id).is_some_and(|at| now.since(*at) < timeout);
        let majority = |half: &Vec<u64>| half.iter().filter(|id| recent(id)).count() > half.len() / 2;
        self.voter_halves.iter().all(majority)
    }

    /// A peer that follows this leader in this term echoed one of its times.
    pub fn note_heard(&mut self, from: ReplicaId, echo: Instant) {
        if echo > Instant(0) {
            let at = self.heard.entry(from.raft_id()).or_default();
            *at = (*at).max(echo);
        }
    }

    /// Puts an output out, or keeps it until the lease is proven, in order.
    pub fn emit(&mut self, output: HostOutput<M::Effect>, cx: &mut Context<M::Effect>) {
        if self.announced.me_leading && !(self.withheld.is_empty() && self.has_lease(cx.now, cx)) {
            self.withheld.push_back(output);
        } else {
            cx.outbox.push_back(output);
        }
    }

    /// The lease may be back.
    pub fn release_withheld(&mut self, cx: &mut Context<M::Effect>) {
        if !self.withheld.is_empty() && self.has_lease(cx.now, cx) {
            cx.outbox.extend(self.withheld.drain(..));
        }
    }

    /// Leadership is lost before the lease came back: the new leader derives what is owed.
    pub fn release_as_follower(&mut self, cx: &mut Context<M::Effect>) {
        for output in self.withheld.drain(..) {
            match output {
                HostOutput::Applied { group, index, term, effects, .. } => {
                    let leading = false;
                    cx.outbox.push_back(HostOutput::Applied { group, index, term, leading, effects });
                }
                HostOutput::LeaderChanged { .. } => {}
                other => cx.outbox.push_back(other),
            }
        }
    }

    /// Starts to hand leadership to `to`. Proposals are refused until that is done or an election timeout has passed.
    pub fn transfer(&mut self, to: MemberId, cx: &mut Context<M::Effect>) -> Result<(), TransferError> {
        if !self.is_leader() {
            return Err(TransferError::NotLeader);
        }
        let Some(voter) = self.voters().into_iter().find(|voter| voter.member == to) else {
            return Err(TransferError::NotAVoter(to));
        };
        let id = voter.raft_id();
        if voter == self.me {
            return Ok(());
        }
        let quiesced = self.quiesced;
        let Some(progress) = self.raw.raft.prs().get(id) else {
            return Err(TransferError::NotAVoter(to));
        };
        let timeout = cx.config.election_timeout();
        let heard = self.heard.get(&id).is_some_and(|at| cx.now.since(*at) < timeout);
        // A quiesced follower is silent; for it the members' own heartbeats speak.
        if !cx.is_live(to) || !(heard || quiesced) {
            return Err(TransferError::NotLive(to));
        }
        let entries = self.last().saturating_sub(progress.matched);
        if progress.state != ProgressState::Replicate || entries > TRANSFER_LAG {
            return Err(TransferError::Lagging { to, entries });
        }
        if self.raw.raft.has_pending_conf() || self.raw.raft.lead_transferee.is_some_and(|other| other != id) {
            return Err(TransferError::Busy);
        }
        self.wake(cx);
        info!(group = %self.id, %to, "handing leadership over");
        self.raw.transfer_leader(id);
        Ok(())
    }

    /// This member's disk is slow: a voter whose disk already has what this one has not takes over. Where none has, all are
    /// slow, and handing over would only add elections.
    pub fn leave_slow_disk(&mut self, cx: &mut Context<M::Effect>) {
        let last = self.last();
        let matched =
            |voter: &ReplicaId| self.raw.raft.prs().get(voter.raft_id()).map_or(0, |progress| progress.matched);
        if self.raw.raft.raft_log.persisted < last && self.raw.raft.lead_transferee.is_none() {
            let faster: Vec<_> = self.voters().into_iter().filter(|voter| matched(voter) == last).collect();
            let _ = faster.into_iter().any(|voter| self.transfer(voter.member, cx).is_ok());
        }
    }

    /// Hands leadership to the voter that holds most of the log. False if there is none to take it.
    pub fn transfer_away(&mut self, cx: &mut Context<M::Effect>) -> bool {
        if self.raw.raft.lead_transferee.is_some() {
            return true;
        }
        let mut targets: Vec<_> = self
            .voters()
            .into_iter()
            .filter(|voter| *voter != self.me)
            .filter_map(|voter| Some((self.raw.raft.prs().get(voter.raft_id())?.matched, voter.member)))
            .collect();
        // Most of the log first; of equals, spread by group so that not one member gets all.
        let rotate = |voter: MemberId| voter.0.wrapping_add(self.key.group) % (targets.len() as u64).max(1);
        let order: Vec<_> = targets.iter().map(|(_, voter)| rotate(*voter)).collect();
        let mut ranked: Vec<_> = targets.drain(..).zip(order).collect();
        ranked.sort_by_key(|((matched, _), order)| (std::cmp::Reverse(*matched), *order));
        ranked.into_iter().any(|((_, voter), _)| self.transfer(voter, cx).is_ok())
    }
}
