//! Receiving a Raft snapshot. Payloads go to the journal as they come; raft-rs hears of the snapshot only when all of
//! them are durable and the machine's state is whole, and answers the leader only when the log's new position is
//! durable too.

use bytes::{Bytes, BytesMut};
use holdfast_journal::{BatchId, EntryReader, Location, Op};
use holdfast_queue::Machine;
use holdfast_queue::ids::ReplicaId;
use holdfast_queue::time::Instant;
use raft::StateRole;
use raft::eraftpb::{Message, MessageType, Snapshot, SnapshotMetadata};
use tracing::{info, warn};

use crate::api::HostOutput;
use crate::bytes_reader::{Malformed, Reader};
use crate::conf::StoredConf;
use crate::context::Context;
use crate::envelope::{Body, SnapshotAnswer, SnapshotChunk, SnapshotOffer, SnapshotState};
use crate::group::Group;
use crate::log::{Bodies, PlacedBody, Seeker};
use crate::snapshot_send::first_payload;
use crate::writes::After;

/// A snapshot that is coming in.
pub(crate) struct Incoming<M> {
    from: ReplicaId,
    term: u64,
    offer: SnapshotOffer,
    /// Payloads up to here are in this replica's log.
    have: u64,
    /// What is expected next.
    position: u64,
    machine_bytes: BytesMut,
    /// The machine, once its bytes are complete and verified, and its live indexes.
    machine: Option<(M, Bytes, Vec<u64>)>,
    pub(crate) bodies: Bodies,
    last_heard: Instant,
    /// The position for which a missing piece was last reported.
    asked_again: Option<u64>,
}

/// A snapshot that is complete, between raft-rs' decision to take it and its Ready.
pub(crate) struct Install<M> {
    index: u64,
    machine: M,
    machine_bytes: Bytes,
    conf: StoredConf,
    live: Vec<u64>,
    pub(crate) bodies: Bodies,
}

impl<M: Machine, R: EntryReader> Group<M, R> {
    /// A leader offers a snapshot, for the first time or after a cut.
    pub fn snapshot_offered(&mut self, from: ReplicaId, term: u64, offer: SnapshotOffer, cx: &mut Context<M::Effect>) {
        let raft = &self.raw.raft;
        let of_use = term >= raft.term
            && raft.state != StateRole::Leader
            && offer.index > self.commit()
            && (1..=cx.config.max_machine_bytes).contains(&offer.machine_bytes);
        if !of_use || self.installing {
            // A later answer of raft-rs' says more than this could.
            let done = offer.index <= self.commit() || self.installing;
            let state = if done { SnapshotState::Done } else { SnapshotState::Refused };
            self.answer_snapshot(from, offer.id, state, cx);
            return;
        }
        self.wake(cx);
        let continued =
            self.incoming.as_ref().is_some_and(|incoming| incoming.from == from && incoming.offer.id == offer.id);
        if !continued {
            let have = if self.distrust_bodies { 0 } else { self.commit().min(raft_persisted(self)) };
            info!(group = %self.id, %from, index = offer.index, have, "receiving a raft snapshot");
            self.incoming = Some(Incoming {
                from,
                term,
                offer,
                have,
                position: 0,
                machine_bytes: BytesMut::new(),
                machine: None,
                bodies: Bodies::default(),
                last_heard: cx.now,
                asked_again: None,
            });
        }
        self.want_more(cx);
    }

    fn want_more(&mut self, cx: &mut Context<M::Effect>) {
        let Some(incoming) = &mut self.incoming else { return };
        incoming.last_heard = cx.now;
        let state = SnapshotState::Want { position: incoming.position, have: incoming.have };
        let (from, id) = (incoming.from, incoming.offer.id);
        self.answer_snapshot(from, id, state, cx);
    }

    fn answer_snapshot(&mut self, to: ReplicaId, id: u64, state: SnapshotState, cx: &mut Context<M::Effect>) {
        let header = self.header(to, cx);
        cx.send(header, Body::SnapshotAnswer(SnapshotAnswer { id, state }));
    }

    /// A piece of the snapshot.
    pub fn snapshot_chunk(&mut self, from: ReplicaId, chunk: SnapshotChunk, cx: &mut Context<M::Effect>) {
        let Some(incoming) = &mut self.incoming else { return };
        if incoming.from != from || incoming.offer.id != chunk.id || chunk.position < incoming.position {
            return;
        }
        if chunk.position > incoming.position || crc32c::crc32c(&chunk.piece) != chunk.crc {
            // Something is missing. Say so once; if that is lost too, the sender asks after a while.
            let position = incoming.position;
            if incoming.asked_again.replace(position) != Some(position) {
                self.answer_snapshot(from, chunk.id, SnapshotState::Again { position }, cx);
            }
            return;
        }
        incoming.last_heard = cx.now;
        let taken = if chunk.position < incoming.offer.machine_bytes {
            incoming.take_machine(&chunk)
        } else {
            incoming.take_payloads(&chunk)
        };
        match taken {
            Ok(payloads) => {
                incoming.position = chunk.next;
                self.store_payloads(from, &chunk, payloads, cx);
            }
            Err(Malformed) => {
                warn!(group = %self.id, %from, "a raft snapshot does not verify");
                self.incoming = None;
                self.answer_snapshot(from, chunk.id, SnapshotState::Refused, cx);
            }
        }
    }

    fn store_payloads(
        &mut self,
        from: ReplicaId,
        chunk: &SnapshotChunk,
        payloads: Vec<(u64, Bytes)>,
        cx: &mut Context<M::Effect>,
    ) {
        let key = self.key;
        let mut batch: Option<BatchId> = None;
        for (index, payload) in payloads {
            batch = Some(cx.writes.push(Op::Body { key, index, payload }));
        }
        let (snapshot, next, last) = (chunk.id, chunk.next, chunk.last);
        let Some(batch) = batch else {
            self.chunk_written(from, snapshot, next, last, cx);
            return;
        };
        self.last_write = Some(batch);
        let _ = cx.writes.after(batch, After::Bodies { key, from, snapshot, next, last });
    }

    /// A payload of the snapshot is durable.
    pub fn body_written(&mut self, index: u64, location: Location) {
        self.log_mut().push_body(index, location);
        if let Some(incoming) = &mut self.incoming {
            incoming.bodies.insert(PlacedBody { index, location });
        }
    }

    /// Everything up to a chunk's end is durable.
    pub fn chunk_written(
        &mut self,
        from: ReplicaId,
        snapshot: u64,
        next: u64,
        last: bool,
        cx: &mut Context<M::Effect>,
    ) {
        let Some(incoming) = &self.incoming else { return };
        if incoming.from != from || incoming.offer.id != snapshot {
            return;
        }
        if last {
            self.step_snapshot(cx);
        } else {
            let state = SnapshotState::Want { position: next, have: incoming.have };
            self.answer_snapshot(from, snapshot, state, cx);
        }
    }

    /// Everything is here: raft-rs decides whether it still wants it.
    fn step_snapshot(&mut self, cx: &mut Context<M::Effect>) {
        let Some(incoming) = self.incoming.take() else { return };
        if self.install.is_some() {
            // Another one was taken a moment ago and is about to be written.
            self.answer_snapshot(incoming.from, incoming.offer.id, SnapshotState::Done, cx);
            return;
        }
        let (from, term, offer) = (incoming.from, incoming.term, incoming.offer);
        let (Some((machine, machine_bytes, live)), Ok(conf)) = (incoming.machine, StoredConf::decode(&offer.conf))
        else {
            self.answer_snapshot(from, offer.id, SnapshotState::Refused, cx);
            return;
        };
        let mut came = Seeker::new(incoming.bodies.iter());
        let here = live.iter().zip(self.log().body_locations(&live));
        let found = here.map(|(index, here)| {
            let here = here.filter(|_| *index <= incoming.have);
            let location = came.seek(*index).or(here).ok_or(*index)?;
            Ok(PlacedBody { index: *index, location })
        });
        let bodies = match found.collect::<Result<Bodies, u64>>() {
            Ok(bodies) => bodies,
            Err(index) => {
                warn!(group = %self.id, index, "a payload that should be here is not; asking for all of them");
                self.distrust_bodies = true;
                self.answer_snapshot(from, offer.id, SnapshotState::Refused, cx);
                return;
            }
        };
        let (index, index_term) = (offer.index, offer.index_term);
        let conf = StoredConf { generation: self.me.generation, ..conf };
        let metadata = SnapshotMetadata {
            conf_state: Some(conf.conf.clone()).into(),
            index,
            term: index_term,
            ..SnapshotMetadata::default()
        };
        let mut snapshot = Snapshot::default();
        snapshot.set_metadata(metadata);
        let mut message = Message { from: from.raft_id(), to: self.me.raft_id(), term, ..Message::default() };
        message.set_msg_type(MessageType::MsgSnapshot);
        message.set_snapshot(snapshot);
        self.install = Some(Install { index, machine, machine_bytes, conf, live, bodies });
        let _ = self.raw.step(message);
        if self.raw.snap().is_none() {
            // raft-rs has more than this by now, or another leader.
            self.install = None;
        }
        self.answer_snapshot(from, offer.id, SnapshotState::Done, cx);
    }

    /// Puts the snapshot that a Ready hands out into the pending batch, and into this replica.
    pub fn collect_snapshot(&mut self, snapshot: &Snapshot, cx: &mut Context<M::Effect>) -> BatchId {
        let (index, term) = (snapshot.get_metadata().index, snapshot.get_metadata().term);
        let install = self.install.take().filter(|install| install.index == index);
        // Without the machine that belongs to it this replica must not go on; the panic quarantines it.
        let Some(install) = install else { panic!("raft takes a snapshot at {index} that was not received") };
        let (key, conf, live) = (self.key, install.conf.encode(), install.live);
        self.changed_at = install.conf.changed_at;
        // The checkpoint that the snapshot became is in the batch that everything later waits for.
        self.change_known.here = self.changed_at;
        cx.writes.push(Op::Checkpoint { key, index, term, conf, machine: install.machine_bytes });
        cx.writes.push(Op::Reset { key, index, term });
        let batch = cx.writes.push(Op::Compact { key, up_to: index, live });
        self.log_mut().reset(index, term, install.bodies);
        self.machine = install.machine;
        self.applied = index;
        self.applied_since = (0, 0);
        self.checkpoint_pending = None;
        self.deferred_dead.clear();
        self.distrust_bodies = false;
        self.installing = true;
        self.note_membership();
        info!(group = %self.id, index, term, "installed a raft snapshot");
        cx.outbox.push_back(HostOutput::SnapshotInstalled { group: self.id, index });
        batch
    }

    /// Forgets a transfer whose sender fell silent.
    pub fn tick_receiving(&mut self, cx: &Context<M::Effect>) {
        let lost = self
            .incoming
            .as_ref()
            .is_some_and(|incoming| cx.now.since(incoming.last_heard) >= cx.config.snapshot_give_up);
        if lost {
            self.incoming = None;
        }
    }
}

fn raft_persisted<M: Machine, R: EntryReader>(group: &Group<M, R>) -> u64 {
    group.raw.raft.raft_log.persisted
}

impl<M: Machine> Incoming<M> {
    /// Takes a piece of the machine; the last one completes and verifies it.
    fn take_machine(&mut self, chunk: &SnapshotChunk) -> Result<Vec<(u64, Bytes)>, Malformed> {
        let total = self.offer.machine_bytes;
        self.machine_bytes.extend_from_slice(&chunk.piece);
        let size = self.machine_bytes.len() as u64;
        if size < total {
            return if chunk.next == size && !chunk.last { Ok(Vec::new()) } else { Err(Malformed) };
        }
        let bytes = self.machine_bytes.split().freeze();
        if size > total || crc32c::crc32c(&bytes) != self.offer.machine_crc {
            return Err(Malformed);
        }
        let machine = M::restore(&bytes).map_err(|_| Malformed)?;
        let live = machine.live_indexes();
        let end = total + live.len() as u64;
        let next = first_payload(total, &live, self.have);
        if chunk.next != next || chunk.last != (next == end) {
            return Err(Malformed);
        }
        self.machine = Some((machine, bytes, live));
        Ok(Vec::new())
    }

    /// Takes payloads, which must be those of the live indexes, in order.
    fn take_payloads(&mut self, chunk: &SnapshotChunk) -> Result<Vec<(u64, Bytes)>, Malformed> {
        let (_, _, live) = self.machine.as_ref().ok_or(Malformed)?;
        let total = self.offer.machine_bytes;
        let mut number = usize::try_from(chunk.position - total).map_err(|_| Malformed)?;
        let mut payloads = Vec::new();
        let mut reader = Reader::new(chunk.piece.clone());
        while !reader.is_empty() {
            let index = reader.varint()?;
            if live.get(number) != Some(&index) {
                return Err(Malformed);
            }
            payloads.push((index, reader.bytes()?));
            number += 1;
        }
        let next = total + number as u64;
        if payloads.is_empty() || chunk.next != next || chunk.last != (number == live.len()) {
            return Err(Malformed);
        }
        Ok(payloads)
    }
}
