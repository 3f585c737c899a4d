//! The Ready loop: what raft-rs hands out, in the order that keeps it safe.
//!
//! Each Ready goes through the same steps: its hard state, snapshot and entries go into the pending batch together and
//! into the log's index; raft-rs is told that they are on their way (`advance_append_async`); a leader's messages leave
//! at once, all others after the batch is durable; what is committed *and* durable here is applied (on followers of
//! group 0 what is committed, see [`Group::apply_early`]). The other half is [`Group::written`], when the batch is durable.

use holdfast_journal::{BatchId, EntryReader, Op};
use holdfast_queue::ids::{GroupId, ReplicaId};
#[cfg(feature = "mutants")]
use holdfast_queue::mutants::{Mutant, is_planted};
use holdfast_queue::{ApplyMeta, Machine};
use raft::eraftpb::{Entry, EntryType, Message, MessageType};
use raft::{GetEntriesContext, ProgressState, Ready, StateRole};
use tracing::{debug, error, info};

use crate::api::HostOutput;
use crate::context::Context;
use crate::envelope::{Body, entry_payload, travels};
use crate::group::{Group, Leadership};
use crate::writes::After;

impl<M: Machine, R: EntryReader> Group<M, R> {
    /// Handles all that raft-rs has ready.
    pub fn process(&mut self, cx: &mut Context<M::Effect>) {
        loop {
            while self.raw.has_ready() {
                self.process_one(cx);
            }
            self.announce(cx);
            // Preparing a snapshot may give raft-rs something to send.
            if !self.prepare_wanted_snapshot(cx) {
                break;
            }
        }
        self.note_dead(cx);
        self.maybe_checkpoint(cx);
        self.release_withheld(cx);
    }

    fn process_one(&mut self, cx: &mut Context<M::Effect>) {
        let mut ready = self.raw.ready();
        let number = ready.number();
        let snapshot = (!ready.snapshot().is_empty()).then(|| ready.snapshot().get_metadata().index);
        let (write, vote) = self.collect_write(&ready, snapshot, cx);
        let mut now = ready.take_messages();
        let mut later = ready.take_persisted_messages();
        let committed = ready.take_committed_entries();
        self.raw.advance_append_async(ready);
        // A leader's messages may overtake its own write, but not the vote that made it leader: a single voter is leader
        // before its vote is durable, and after a crash it would lead the same term with another log.
        if self.durable_vote.0 != self.term() {
            later.append(&mut now);
        }
        #[cfg(feature = "mutants")]
        if is_planted(Mutant::RepliesBeforePersisted) {
            now.append(&mut later);
        }
        for message in now {
            self.send_message(message, cx);
        }
        self.send_later(write, number, vote, snapshot, later, cx);
        self.apply_all(committed, cx);
        self.apply_early(cx);
    }

    /// Puts the Ready's hard state, snapshot and entries into the pending batch. A new commit index alone can wait: it
    /// goes with the next entry or vote, which is early enough, since whoever holds a later membership change also
    /// holds the commit of the one before.
    fn collect_write(
        &mut self,
        ready: &Ready,
        snapshot: Option<u64>,
        cx: &mut Context<M::Effect>,
    ) -> (Option<BatchId>, Option<(u64, u64)>) {
        let state = self.raw.raft.hard_state();
        let new_vote = (state.term, state.vote) != (self.written_state.term, self.written_state.vote);
        if !new_vote && snapshot.is_none() && ready.entries().is_empty() {
            return (None, None);
        }
        let mut batch = None;
        if state != self.written_state {
            batch = Some(self.push_hard_state(cx));
        }
        if snapshot.is_some() {
            batch = Some(self.collect_snapshot(ready.snapshot(), cx));
        }
        for entry in ready.entries() {
            let payload = entry_payload(entry).clone();
            let (index, term) = (entry.index, entry.term);
            batch = Some(cx.writes.push(Op::Entry { key: self.key, index, term, payload }));
        }
        if let Some(batch) = batch {
            self.log_mut().append(ready.entries(), batch);
            self.last_write = Some(batch);
        }
        (batch, Some((state.term, state.vote)))
    }

    /// Puts raft-rs' present hard state into the pending batch.
    pub fn push_hard_state(&mut self, cx: &mut Context<M::Effect>) -> BatchId {
        let state = self.raw.raft.hard_state();
        let (term, vote, commit) = (state.term, state.vote, state.commit);
        self.written_state = state;
        cx.writes.push(Op::HardState { key: self.key, term, vote, commit })
    }

    /// Lets `messages` leave, and raft-rs know, once everything of this group that is being written is durable.
    fn send_later(
        &mut self,
        write: Option<BatchId>,
        number: u64,
        vote: Option<(u64, u64)>,
        snapshot: Option<u64>,
        mut messages: Vec<Message>,
        cx: &mut Context<M::Effect>,
    ) {
        // An answer to a heartbeat promises nothing: a slow disk must not make it look like a dead member, and what a new
        // leader is to send next it sends after such an answer. Even its term may be forgotten: it says that another one
        // leads in it, whom a majority elected that has it on disk.
        let early = |message: &mut Message| message.get_msg_type() == MessageType::MsgHeartbeatResponse;
        for message in messages.extract_if(.., early).collect::<Vec<_>>() {
            self.send_message(message, cx);
        }
        let mut after = After::Ready { key: self.key, number, vote, snapshot, messages };
        if let Some(batch) = write.or(self.last_write) {
            match cx.writes.after(batch, after) {
                Ok(()) => return,
                Err(back) => after = back,
            }
        }
        self.last_write = None;
        self.written(after, cx);
    }

    /// A batch that this group waited for is durable.
    pub fn written(&mut self, after: After, cx: &mut Context<M::Effect>) {
        match after {
            After::Ready { number, vote, snapshot, messages, .. } => {
                if let Some(vote) = vote {
                    self.durable_vote = vote;
                }
                self.raw.on_persist_ready(number);
                if let Some(index) = snapshot {
                    self.installing = false;
                    self.checkpoint = index;
                    self.raw.advance_apply_to(index);
                }
                for message in messages {
                    self.send_message(message, cx);
                }
            }
            After::Change { index, .. } => self.change_written(index, cx),
            After::Bodies { from, snapshot, next, last, .. } => {
                self.chunk_written(from, snapshot, next, last, cx);
            }
            After::Born { .. } | After::Mended { .. } => {}
        }
    }

    /// Sends a message of raft-rs. Its snapshots only start a transfer; what it would forward is dropped.
    fn send_message(&mut self, mut message: Message, cx: &mut Context<M::Effect>) {
        let to = ReplicaId::from_raft_id(message.to);
        match message.get_msg_type() {
            MessageType::MsgSnapshot => self.begin_sending(to, &message, cx),
            kind if travels(kind) => {
                let ahead = matches!(kind, MessageType::MsgRequestPreVote | MessageType::MsgRequestPreVoteResponse);
                let term = if ahead { self.term() } else { message.term };
                let header = self.header_in(term, to, cx);
                // Local fields; the wire has its own.
                (message.from, message.to) = (0, 0);
                cx.send(header, Body::Raft(Box::new(message)));
            }
            kind => debug!(group = %self.id, ?kind, "not sent: never forwarded"),
        }
    }

    fn apply_all(&mut self, committed: Vec<Entry>, cx: &mut Context<M::Effect>) {
        let Some(last) = committed.last().map(|entry| entry.index) else { return };
        for entry in committed.iter().filter(|entry| entry.index > self.applied).collect::<Vec<_>>() {
            debug_assert_eq!(entry.index, self.applied + 1);
            self.applying = true;
            match entry.get_entry_type() {
                EntryType::EntryNormal => self.apply_payload(entry, cx),
                _ => self.apply_change(entry, cx),
            }
            self.applying = false;
        }
        self.raw.advance_apply_to(last);
        self.announce(cx);
    }

    /// A follower of group 0 applies what is committed before its own disk has it: members route by it, and must not stop
    /// because one disk stands still. Whatever they write because of it is in the same journal, behind the entry itself.
    /// Membership changes wait, as everything in the other groups does: nobody asks followers for that.
    fn apply_early(&mut self, cx: &mut Context<M::Effect>) {
        let raft = &self.raw.raft;
        let (next, commit) = (self.applied + 1, self.commit());
        if self.id != GroupId::META || raft.state != StateRole::Follower || self.installing || next > commit {
            return;
        }
        let Ok(entries) = raft.raft_log.slice(next, commit + 1, None, GetEntriesContext::empty(false)) else { return };
        for entry in entries.iter().take_while(|entry| entry.get_entry_type() == EntryType::EntryNormal) {
            self.apply_payload(entry, cx);
        }
    }

    fn apply_payload(&mut self, entry: &Entry, cx: &mut Context<M::Effect>) {
        let (index, term) = (entry.index, entry.term);
        self.applied = index;
        self.applied_since.0 += 1;
        self.applied_since.1 += entry.data.len() as u64;
        if entry.data.is_empty() {
            // A leader's first entry (Raft §8). Effects go out from here on, and not before.
            if self.is_leader() && term == self.term() {
                self.raw.advance_apply_to(index);
                self.announce(cx);
            }
            return;
        }
        let mut effects = Vec::new();
        let meta = ApplyMeta { index, term };
        if let Err(error) = self.machine.apply(&meta, &entry.data, &mut effects) {
            error!(group = %self.id, index, %error, "a malformed payload was committed; it changes nothing");
        }
        let leading = self.announced.me_leading;
        let output = HostOutput::Applied { group: self.id, index, term, leading, effects };
        self.emit(output, cx);
    }

    /// Says who leads, when that changed.
    pub fn announce(&mut self, cx: &mut Context<M::Effect>) {
        let now = Leadership { leader: self.raw.raft.leader_id, term: self.term(), me_leading: self.is_leading() };
        if now == self.announced {
            return;
        }
        let before = std::mem::replace(&mut self.announced, now);
        if now.leader != 0 {
            self.campaigns = 0;
        }
        if before.me_leading && (!now.me_leading || before.term != now.term) {
            self.release_as_follower(cx);
        }
        if !self.is_leader() {
            self.stop_sending_snapshots();
            self.heard.clear();
            self.unheard.clear();
        }
        let group = self.id;
        info!(%group, leader = now.leader, term = now.term, me_leading = now.me_leading, "leadership");
        let leader = self.leader().map(|leader| leader.member);
        let output = HostOutput::LeaderChanged { group, leader, term: now.term, me_leading: now.me_leading };
        if now.me_leading {
            self.emit(output, cx);
            self.tell_change_again(cx);
        } else {
            cx.outbox.push_back(output);
        }
    }

    /// Works around raft-rs 0.7.0, which lets a probe's next index fall to or below what is matched; a follower whose
    /// answers then say nothing new is never sent more (fixed upstream by #557, after the release).
    pub fn mend_probe(&mut self, from: ReplicaId) {
        if let Some(progress) = self.raw.raft.mut_prs().get_mut(from.raft_id())
            && progress.state == ProgressState::Probe
            && progress.next_idx <= progress.matched
        {
            progress.next_idx = progress.matched + 1;
        }
    }
}
