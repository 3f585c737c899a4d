//! Sending a Raft snapshot: the machine's state and the live payloads that the follower lacks, in chunks beside Raft.
//!
//! While a snapshot is prepared or being sent, nothing that it needs is given up: compaction and the release of dead
//! payloads wait. A transfer goes on where it was after a cut, ends by `report_snapshot` in every case, and is given up
//! after a while without progress.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use holdfast_journal::EntryReader;
use holdfast_queue::Machine;
use holdfast_queue::ids::ReplicaId;
use holdfast_queue::time::Instant;
use raft::eraftpb::{Message, Snapshot, SnapshotMetadata};
use raft::{SnapshotStatus, Storage};
use tracing::{info, warn};

use crate::bytes_reader::{put_bytes, put_varint};
use crate::conf::StoredConf;
use crate::context::{Context, mix};
use crate::envelope::{Body, SnapshotChunk, SnapshotOffer, SnapshotState};
use crate::group::Group;

/// A machine's state at an index, ready to be sent to any follower.
pub(crate) struct Prepared {
    content: Arc<Content>,
    since: Instant,
}

struct Content {
    offer: SnapshotOffer,
    machine: Bytes,
    /// Indexes of the payloads with live messages, ascending.
    live: Vec<u64>,
}

/// A snapshot on its way to one follower.
pub(crate) struct Outgoing {
    content: Arc<Content>,
    /// What to send next.
    position: u64,
    /// Ends of the chunks on the way.
    on_the_way: VecDeque<u64>,
    /// Payloads up to here are there already.
    have: u64,
    /// The follower has not said yet where to go on.
    asked: bool,
    last_heard: Instant,
    last_sent: Instant,
}

impl<M: Machine, R: EntryReader> Group<M, R> {
    /// True while payloads must be kept for a snapshot.
    pub fn is_sending(&self) -> bool {
        self.prepared.is_some() || !self.outgoing.is_empty()
    }

    /// Prepares the snapshot that raft-rs asked for in vain, and lets it ask again. True if there may be more to do.
    pub fn prepare_wanted_snapshot(&mut self, cx: &mut Context<M::Effect>) -> bool {
        let wanted = self.log().take_snapshot_wanted();
        if wanted.is_empty() || !self.is_leader() || self.installing {
            return false;
        }
        let live = self.machine.live_indexes();
        if !self.log().has_payloads(&live) {
            return false;
        }
        let Ok(term) = self.log().term(self.applied) else { return false };
        let metadata = SnapshotMetadata {
            conf_state: Some(self.conf()).into(),
            index: self.applied,
            term,
            ..SnapshotMetadata::default()
        };
        let machine = self.machine.snapshot();
        let offer = SnapshotOffer {
            id: mix(&[cx.seed, cx.now.0, cx.me.0, self.key.group, self.applied]),
            index: self.applied,
            index_term: term,
            conf: StoredConf { conf: self.conf(), changed_at: self.changed_at, generation: 0 }.encode(),
            machine_bytes: machine.len() as u64,
            machine_crc: crc32c::crc32c(&machine),
        };
        let content = Arc::new(Content { offer, machine, live });
        self.prepared = Some(Prepared { content, since: cx.now });
        let mut snapshot = Snapshot::default();
        snapshot.set_metadata(metadata);
        self.log_mut().set_snapshot(Some(snapshot));
        for to in wanted {
            if self.raw.raft.prs().get(to).is_some() {
                self.raw.raft.send_append(to);
            }
        }
        true
    }

    /// raft-rs decided to send the prepared snapshot to `to`.
    pub fn begin_sending(&mut self, to: ReplicaId, message: &Message, cx: &mut Context<M::Effect>) {
        let index = message.get_snapshot().get_metadata().index;
        let content = match &self.prepared {
            Some(prepared) if prepared.content.offer.index == index => Arc::clone(&prepared.content),
            _ => {
                self.raw.report_snapshot(to.raft_id(), SnapshotStatus::Failure);
                return;
            }
        };
        info!(group = %self.id, %to, index, live = content.live.len(), "sending a raft snapshot");
        let outgoing = Outgoing {
            content,
            position: 0,
            on_the_way: VecDeque::new(),
            have: 0,
            asked: true,
            last_heard: cx.now,
            last_sent: cx.now,
        };
        let offer = outgoing.content.offer.clone();
        self.outgoing.insert(to, outgoing);
        self.wake(cx);
        let header = self.header(to, cx);
        cx.send(header, Body::SnapshotOffer(offer));
    }

    /// The follower says how far it is.
    pub fn snapshot_answered(&mut self, from: ReplicaId, id: u64, state: SnapshotState, cx: &mut Context<M::Effect>) {
        let Some(outgoing) = self.outgoing.get_mut(&from) else { return };
        if outgoing.content.offer.id != id {
            return;
        }
        outgoing.last_heard = cx.now;
        match state {
            SnapshotState::Done => self.end_sending(from, SnapshotStatus::Finish, cx),
            SnapshotState::Refused => self.end_sending(from, SnapshotStatus::Failure, cx),
            SnapshotState::Again { position } => {
                outgoing.position = position;
                outgoing.on_the_way.clear();
                self.send_chunks(from, cx);
            }
            SnapshotState::Want { position, have } => {
                outgoing.have = have;
                if outgoing.asked {
                    outgoing.asked = false;
                    outgoing.position = position;
                    outgoing.on_the_way.clear();
                }
                while outgoing.on_the_way.front().is_some_and(|end| *end <= position) {
                    outgoing.on_the_way.pop_front();
                }
                self.send_chunks(from, cx);
            }
        }
    }

    /// Fills the window.
    fn send_chunks(&mut self, to: ReplicaId, cx: &mut Context<M::Effect>) {
        while let Some(outgoing) = self.outgoing.get(&to) {
            let full = outgoing.on_the_way.len() >= cx.config.snapshot_window;
            let content = Arc::clone(&outgoing.content);
            if full || outgoing.asked || outgoing.position >= content.end() {
                return;
            }
            let chunk = match self.chunk(&content, outgoing.position, outgoing.have, cx.config.snapshot_chunk_bytes) {
                Some(chunk) => chunk,
                None => {
                    warn!(group = %self.id, %to, "a payload for a raft snapshot cannot be read");
                    self.end_sending(to, SnapshotStatus::Failure, cx);
                    return;
                }
            };
            if let Some(outgoing) = self.outgoing.get_mut(&to) {
                outgoing.position = chunk.next;
                outgoing.on_the_way.push_back(chunk.next);
                outgoing.last_sent = cx.now;
            }
            let header = self.header(to, cx);
            cx.send(header, Body::SnapshotChunk(chunk));
        }
    }

    /// The piece at `position`; none if a payload cannot be read.
    fn chunk(&self, content: &Content, position: u64, have: u64, limit: usize) -> Option<SnapshotChunk> {
        let machine_bytes = content.offer.machine_bytes;
        let (piece, next) = if position < machine_bytes {
            let from = usize::try_from(position).ok()?;
            let to = content.machine.len().min(from + limit);
            let next = if to == content.machine.len() { content.first_payload(have) } else { to as u64 };
            (content.machine.slice(from..to), next)
        } else {
            let mut piece = BytesMut::new();
            let mut number = usize::try_from(position - machine_bytes).ok()?;
            while let Some(index) = content.live.get(number) {
                let payload = self.log().payload(*index)?.ok()?;
                if !piece.is_empty() && piece.len() + payload.len() > limit {
                    break;
                }
                put_varint(&mut piece, *index);
                put_bytes(&mut piece, &payload);
                number += 1;
            }
            (piece.freeze(), machine_bytes + number as u64)
        };
        let (id, last, crc) = (content.offer.id, next >= content.end(), crc32c::crc32c(&piece));
        Some(SnapshotChunk { id, position, next, last, crc, piece })
    }

    /// Ends a transfer; raft-rs goes on with that follower.
    fn end_sending(&mut self, to: ReplicaId, status: SnapshotStatus, cx: &mut Context<M::Effect>) {
        if self.outgoing.remove(&to).is_none() {
            return;
        }
        info!(group = %self.id, %to, ?status, "raft snapshot ended");
        self.raw.report_snapshot(to.raft_id(), status);
        self.drop_unused_snapshot(cx);
    }

    fn drop_unused_snapshot(&mut self, cx: &mut Context<M::Effect>) {
        if self.outgoing.is_empty() {
            self.prepared = None;
            self.log_mut().set_snapshot(None);
            self.note_dead(cx);
        }
    }

    /// This replica does not lead any more: nobody waits for reports.
    pub fn stop_sending_snapshots(&mut self) {
        self.outgoing.clear();
        self.prepared = None;
        self.log_mut().set_snapshot(None);
    }

    /// Asks followers that fell silent where to go on, and gives up on those that stay so.
    pub fn tick_sending(&mut self, cx: &mut Context<M::Effect>) {
        let mut silent = Vec::new();
        let mut lost = Vec::new();
        for (to, outgoing) in &self.outgoing {
            if cx.now.since(outgoing.last_heard) >= cx.config.snapshot_give_up {
                lost.push(*to);
            } else if cx.now.since(outgoing.last_heard.max(outgoing.last_sent)) >= cx.config.snapshot_resend {
                silent.push(*to);
            }
        }
        for to in lost {
            self.end_sending(to, SnapshotStatus::Failure, cx);
        }
        for to in silent {
            let header = self.header(to, cx);
            if let Some(outgoing) = self.outgoing.get_mut(&to) {
                outgoing.asked = true;
                outgoing.last_sent = cx.now;
                let offer = outgoing.content.offer.clone();
                cx.send(header, Body::SnapshotOffer(offer));
            }
        }
        let unused = self.outgoing.is_empty()
            && self.prepared.as_ref().is_some_and(|one| cx.now.since(one.since) >= cx.config.snapshot_resend);
        if unused {
            self.drop_unused_snapshot(cx);
        }
    }
}

impl Outgoing {
    /// How much was sent, in percent: one half is the machine, the other its payloads.
    pub fn percent(&self) -> u8 {
        let machine = self.content.offer.machine_bytes.max(1);
        let payloads = self.content.live.len().max(1) as u64;
        let halves = self.position.min(machine) * 50 / machine + self.position.saturating_sub(machine) * 50 / payloads;
        u8::try_from(halves).unwrap_or(100).min(100)
    }
}

impl Content {
    /// The position after everything.
    fn end(&self) -> u64 {
        self.offer.machine_bytes + self.live.len() as u64
    }

    /// Where the payloads begin for a follower that has those up to `have`.
    fn first_payload(&self, have: u64) -> u64 {
        first_payload(self.offer.machine_bytes, &self.live, have)
    }
}

/// The position of the first payload above `have`; both sides must come to the same.
pub(crate) fn first_payload(machine_bytes: u64, live: &[u64], have: u64) -> u64 {
    machine_bytes + live.partition_point(|index| *index <= have) as u64
}
