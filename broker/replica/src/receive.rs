//! What a group does with an envelope from a peer.

use holdfast_journal::EntryReader;
use holdfast_queue::Machine;
use holdfast_queue::ids::{MemberId, ReplicaId};
use raft::eraftpb::{Message, MessageType};
use tracing::trace;

use crate::context::Context;
use crate::envelope::{Body, Envelope};
use crate::group::Group;

impl<M: Machine, R: EntryReader> Group<M, R> {
    /// Takes in an envelope for this life of the group.
    pub fn handle(&mut self, from: MemberId, envelope: Envelope, cx: &mut Context<M::Effect>) {
        let Envelope { generations, term, sent_at, echo, floor, body, .. } = envelope;
        if generations.to != self.me.generation {
            // It is meant for another replica of this member: one that is gone, or one that is still to come.
            trace!(group = %self.id, %from, generation = generations.to, "for another replica");
            return;
        }
        let from = ReplicaId { member: from, generation: generations.from };
        match body {
            Body::Raft(message) => self.step(from, *message, cx),
            Body::Quiesce { last, commit } => {
                self.quiesce_as_follower(from, term, (last, commit), cx);
            }
            Body::Wake => self.wake(cx),
            Body::ChangeKnown { index } => self.change_known_by(from, index, cx),
            Body::Resigned => {
                if self.leader() == Some(from) && term >= self.term() {
                    self.leader_gone(cx);
                }
            }
            // The host answers these itself: they are no matter of Raft's.
            Body::Fetch { .. } | Body::Fetched { .. } => return,
            Body::SnapshotOffer(offer) => self.snapshot_offered(from, term, offer, cx),
            Body::SnapshotChunk(chunk) => self.snapshot_chunk(from, chunk, cx),
            Body::SnapshotAnswer(answer) => self.snapshot_answered(from, answer.id, answer.state, cx),
        }
        if term != self.term() {
            return;
        }
        if self.leader() == Some(from) {
            let newest = match self.echo {
                Some((leader, heard_in, at)) if leader == from && heard_in == term => at.max(sent_at),
                _ => sent_at,
            };
            self.echo = Some((from, term, newest));
            self.floor = floor;
        }
        if self.is_leader() {
            self.note_heard(from, echo);
            self.release_withheld(cx);
        }
    }

    fn step(&mut self, from: ReplicaId, mut message: Message, cx: &mut Context<M::Effect>) {
        message.from = from.raft_id();
        message.to = self.me.raft_id();
        let (kind, term) = (message.get_msg_type(), message.term);
        self.wake_for(&message, cx);
        match kind {
            // Only the leader may name its successor, and a replica whose log is being replaced cannot campaign.
            MessageType::MsgTimeoutNow if self.leader() != Some(from) || self.installing => return,
            MessageType::MsgRequestPreVote => self.outrank(&message, cx),
            _ => {}
        }
        if let Err(error) = self.raw.step(message) {
            trace!(group = %self.id, %from, ?kind, %error, "raft dropped a message");
        }
        if matches!(kind, MessageType::MsgAppend | MessageType::MsgHeartbeat) && term == self.term() {
            self.leader_speaks(from);
        }
        if matches!(kind, MessageType::MsgAppendResponse | MessageType::MsgHeartbeatResponse) {
            self.unheard.remove(&from.raft_id());
        }
        if kind == MessageType::MsgAppendResponse {
            self.mend_probe(from);
        }
    }

    /// Anything but the tail of what led to the quiescence wakes a quiesced group; votes also wake the leader.
    fn wake_for(&mut self, message: &Message, cx: &mut Context<M::Effect>) {
        let current = message.term == self.term();
        match message.get_msg_type() {
            MessageType::MsgHeartbeat | MessageType::MsgHeartbeatResponse if !self.quiesced => {}
            MessageType::MsgHeartbeatResponse if current => {}
            MessageType::MsgAppendResponse if current && !message.reject && self.quiesced => {}
            MessageType::MsgRequestPreVote | MessageType::MsgRequestVote => self.wake_with_leader(cx),
            _ => self.wake(cx),
        }
    }
}
