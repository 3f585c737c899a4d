//! A replica that lost known parts of its log to a damaged disk: its peers give them back, and it goes on as itself.
//!
//! Why that is safe: until all of it is durable again, the replica does nothing at all. It neither votes, campaigns nor
//! acknowledges, just as if it were off, so nobody counts on an entry that it does not have. What it takes from a peer is
//! provably what it had: an entry of the same index *and* term is the same entry (Raft §5.3, log matching), and so is one
//! that both know to be committed (Raft §5.4.3). Its term and vote, its membership and its checkpoint must be intact;
//! otherwise it is replaced by another one, which knows nothing and has promised nothing.
//!
//! No leader is needed for it, so a group of two voters heals, of which the other alone is no majority.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use holdfast_journal::{EntryReader, GroupKey, Location, MovedBody, Op, RecoveredEntry, RecoveredGroup, WrittenRecord};
use holdfast_queue::Machine;
use holdfast_queue::ids::{GroupId, MemberId, ReplicaId};
use holdfast_queue::time::Instant;
use raft::Storage;
use tracing::info;

use crate::api::HostOutput;
use crate::bytes_reader::{Malformed, Reader, put_bytes, put_varint};
use crate::conf::StoredConf;
use crate::context::{Context, Header};
use crate::envelope::{Body, Envelope};
use crate::group::Group;
use crate::host::{Host, Replica};
use crate::writes::After;

/// Peers are asked again after this.
pub(crate) const ASK_EVERY: Duration = Duration::from_millis(250);
/// A replica that has not found everything by then asks to be replaced, and goes on looking meanwhile.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// Indexes in one question.
pub(crate) const MOST_ASKED: usize = 256;
/// A replica that lost more entries is copied as a whole.
pub(crate) const MOST_MISSING: u64 = 10_000;
/// The log is written anew from the first entry that was lost, in one batch; one that is longer is copied as a whole.
pub(crate) const MOST_REWRITTEN_BYTES: usize = 64 << 20;

/// What is known of something that was lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Its term is one of these, if that is of interest: it is not for a payload at or below the checkpoint.
    pub terms: RangeInclusive<u64>,
    pub is_body: bool,
    /// It is known to be committed.
    pub committed: bool,
}

impl Wanted {
    fn exact_term(&self) -> Option<u64> {
        (self.terms.start() == self.terms.end()).then_some(*self.terms.start())
    }

    /// The entry's term, if a peer's entry of this index is provably the one that was lost.
    pub fn term_of(&self, found: &FoundEntry) -> Option<u64> {
        let both_committed = self.committed && found.committed;
        if self.is_body {
            return both_committed.then_some(0);
        }
        match (found.term, self.exact_term()) {
            (Some(theirs), Some(ours)) => (theirs == ours).then_some(ours),
            (Some(theirs), None) => (both_committed && self.terms.contains(&theirs)).then_some(theirs),
            (None, ours) => ours.filter(|_| both_committed),
        }
    }
}

/// What peers do not have any more.
#[derive(Default)]
pub(crate) struct Compacted {
    /// Entries above what the replica had applied, and the peers that have compacted them.
    entries: BTreeMap<u64, BTreeSet<ReplicaId>>,
    /// Messages that were given up, and need not come back.
    pub dead: BTreeSet<u64>,
}

impl Compacted {
    /// Takes from a peer's answer what is provably what was lost, and notes what the peer cannot prove any more. A message
    /// that it has given up is dead by the log up to a committed index, so it is not wanted any more. True if there is less
    /// to be found now.
    pub fn sort_out(
        &mut self,
        peer: ReplicaId,
        answer: (Vec<FoundEntry>, &[u64]),
        wanted: &mut BTreeMap<u64, Wanted>,
        found: &mut BTreeMap<u64, (u64, Bytes)>,
    ) -> bool {
        let (entries, gone) = answer;
        let before = wanted.len();
        for entry in entries {
            let Some(one) = wanted.get(&entry.index) else { continue };
            if let Some(term) = one.term_of(&entry) {
                wanted.remove(&entry.index);
                found.insert(entry.index, (term, entry.payload));
            } else if !one.is_body && entry.term.is_none() {
                self.entries.entry(entry.index).or_default().insert(peer);
            }
        }
        for index in gone {
            match wanted.get(index) {
                Some(one) if one.is_body => {
                    wanted.remove(index);
                    self.dead.insert(*index);
                }
                Some(_) => drop(self.entries.entry(*index).or_default().insert(peer)),
                None => {}
            }
        }
        wanted.len() < before
    }

    /// True if something that is wanted is gone at all of these: nobody will ever give it back.
    pub fn is_hopeless(&self, wanted: &BTreeMap<u64, Wanted>, peers: impl IntoIterator<Item = ReplicaId>) -> bool {
        let gone = self.entries.iter().filter(|(index, _)| wanted.contains_key(index));
        let mut gone = gone.map(|(_, peers)| peers).peekable();
        if gone.peek().is_none() {
            return false;
        }
        let peers: BTreeSet<ReplicaId> = peers.into_iter().collect();
        gone.any(|at| peers.is_subset(at))
    }
}

/// An entry that a peer has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FoundEntry {
    pub index: u64,
    /// None below the peer's prefix.
    pub term: Option<u64>,
    /// The peer knows it to be committed.
    pub committed: bool,
    pub payload: Bytes,
}

/// A replica that waits for what it lost.
pub(crate) struct Mending {
    /// What the disk has; its corruption is in the other fields.
    recovered: RecoveredGroup,
    stored: StoredConf,
    /// What happened to the disk, in words.
    pub why: String,
    since: Instant,
    ask_at: Instant,
    /// It took too long: it asks to be replaced.
    pub overdue: bool,
    wanted: BTreeMap<u64, Wanted>,
    compacted: Compacted,
    /// Term and payload of what was found.
    found: BTreeMap<u64, (u64, Bytes)>,
    /// Something between the prefix and the checkpoint is lost: the log begins at the checkpoint from now on.
    folds: bool,
    /// Messages that the machine needs at the checkpoint, ascending.
    live: Vec<u64>,
    /// The last index of the log.
    last: u64,
    entries_written: Vec<RecoveredEntry>,
    bodies_written: Vec<(u64, Location)>,
}

impl Mending {
    pub fn key(&self) -> GroupKey {
        self.recovered.key
    }

    pub fn generation(&self) -> u32 {
        self.stored.generation
    }

    /// What has to be found; the group itself when it cannot be mended in this way.
    fn new<M: Machine>(recovered: RecoveredGroup, now: Instant) -> Result<Self, Box<RecoveredGroup>> {
        let plan = || {
            let corruption = recovered.corruption.as_ref()?;
            let lost = corruption.missing.iter().map(|range| range.end() - range.start() + 1).sum::<u64>();
            let known = !corruption.hard_state && !corruption.checkpoint && !corruption.unknown;
            // Members wait for their metadata at a start; a replica of group 0 is fetched anew at once.
            if !known || lost == 0 || lost > MOST_MISSING || recovered.key.group == GroupId::META.0 {
                return None;
            }
            let checkpoint = recovered.checkpoint.as_ref()?;
            let stored = StoredConf::decode(&checkpoint.conf).ok()?;
            let live = M::restore(&checkpoint.machine).ok()?.live_indexes();
            let missing: BTreeSet<u64> = corruption.missing.iter().cloned().flatten().collect();
            let wanted = wanted(&recovered, &missing, &live)?;
            Some((corruption.why.clone(), stored, live, missing, wanted))
        };
        let Some((why, stored, live, missing, wanted)) = plan() else { return Err(Box::new(recovered)) };
        let checkpoint = recovered.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.index);
        let last_entry = recovered.entries.last().map_or(checkpoint, |entry| entry.index);
        Ok(Self {
            stored,
            why,
            since: now,
            ask_at: now,
            overdue: false,
            wanted,
            compacted: Compacted::default(),
            found: BTreeMap::new(),
            folds: missing.range(recovered.compacted + 1..).next().is_some_and(|first| *first <= checkpoint),
            live,
            last: last_entry.max(missing.last().copied().unwrap_or(0)).max(checkpoint),
            entries_written: Vec::new(),
            bodies_written: Vec::new(),
            recovered: RecoveredGroup { corruption: None, ..recovered },
        })
    }

    fn checkpoint(&self) -> u64 {
        self.recovered.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.index)
    }

    /// All other replicas of the group, as the checkpoint knows them.
    fn peers(&self, me: MemberId) -> BTreeSet<ReplicaId> {
        let conf = &self.stored.conf;
        let all = [&conf.voters, &conf.learners, &conf.voters_outgoing, &conf.learners_next].into_iter().flatten();
        all.map(|id| ReplicaId::from_raft_id(*id)).filter(|peer| peer.member != me).collect()
    }

    fn header(&self, to: ReplicaId) -> Header {
        let term = self.recovered.hard_state.map_or(0, |state| state.term);
        Header { key: self.key(), from: self.generation(), to, term, echo: Instant(0), floor: 0 }
    }

    fn question(&self) -> Body {
        Body::Fetch { indexes: self.wanted.keys().copied().take(MOST_ASKED).collect() }
    }

    /// True if something of it was wanted.
    fn take(&mut self, peer: ReplicaId, entries: Vec<FoundEntry>, gone: &[u64]) -> bool {
        self.compacted.sort_out(peer, (entries, gone), &mut self.wanted, &mut self.found)
    }

    /// What is here of these entries, as [`Group::found`] says it of a replica that runs: so that two that lost different
    /// things mend each other.
    fn found<R: EntryReader>(&self, indexes: &[u64], most_bytes: u64, reader: &R) -> (Vec<FoundEntry>, Vec<u64>) {
        let mut answer = Answer::new(most_bytes);
        let commit = self.recovered.hard_state.map_or(0, |state| state.commit).max(self.checkpoint());
        for index in indexes.iter().copied().take(MOST_ASKED) {
            let is_body = index <= self.recovered.compacted;
            let entry = self.recovered.entries.binary_search_by_key(&index, |entry| entry.index);
            let body = self.recovered.bodies.binary_search_by_key(&index, |(index, _)| *index);
            let (term, payload) = match (self.found.get(&index), entry, body) {
                (Some((term, payload)), _, _) => (*term, Ok(payload.clone())),
                (None, Ok(at), _) => {
                    let entry = &self.recovered.entries[at];
                    (entry.term, reader.read(entry.location))
                }
                (None, _, Ok(at)) => (0, reader.read(self.recovered.bodies[at].1)),
                (None, Err(_), Err(_)) => {
                    if is_body && !self.wanted.contains_key(&index) {
                        answer.gone.push(index);
                    }
                    continue;
                }
            };
            let Ok(payload) = payload else { continue };
            let found = FoundEntry { index, term: (term > 0).then_some(term), committed: index <= commit, payload };
            if !answer.add(found) {
                break;
            }
        }
        (answer.entries, answer.gone)
    }

    fn has(&self, index: u64) -> bool {
        let (entries, bodies) = (&self.recovered.entries, &self.recovered.bodies);
        self.found.contains_key(&index)
            || entries.binary_search_by_key(&index, |entry| entry.index).is_ok()
            || bodies.binary_search_by_key(&index, |(index, _)| *index).is_ok()
    }

    /// What makes the log whole on disk. None if something more turned out to be unreadable, which is wanted then.
    ///
    /// # Errors
    /// Why it cannot be done.
    fn repair<R: EntryReader>(&mut self, reader: &R) -> Result<Option<Vec<Op>>, String> {
        let (key, checkpoint) = (self.key(), self.checkpoint());
        let mut ops = Vec::new();
        let mut bytes = 0;
        // An entry drops what the log has from its index on, so all that follows is written again.
        if let Some(first) = self.found.range(checkpoint + 1..).next().map(|(index, _)| *index) {
            let from = self.recovered.entries.partition_point(|entry| entry.index < first);
            let mut here = self.recovered.entries[from..].iter();
            for index in first..=self.last {
                let (term, payload) = if let Some(found) = self.found.get(&index) {
                    found.clone()
                } else {
                    let entry = here.find(|entry| entry.index >= index).filter(|entry| entry.index == index);
                    let entry = entry.ok_or_else(|| format!("its log is not whole at index {index}"))?;
                    match reader.read(entry.location) {
                        Ok(payload) => (entry.term, payload),
                        Err(_) => {
                            let wanted = Wanted { terms: entry.term..=entry.term, is_body: false, committed: false };
                            self.wanted.insert(index, wanted);
                            continue;
                        }
                    }
                };
                bytes += payload.len();
                ops.push(Op::Entry { key, index, term, payload });
            }
        }
        if !self.wanted.is_empty() {
            return Ok(None);
        }
        if bytes > MOST_REWRITTEN_BYTES {
            return Err(format!("{bytes} bytes of the log would have to be written again"));
        }
        for (index, (_, payload)) in self.found.range(..=checkpoint) {
            ops.push(Op::Body { key, index: *index, payload: payload.clone() });
        }
        if self.folds {
            let live = self.live.iter().copied().filter(|index| self.has(*index)).collect();
            ops.push(Op::Compact { key, up_to: checkpoint, live });
        }
        if !self.compacted.dead.is_empty() {
            ops.push(Op::Dead { key, indexes: self.compacted.dead.iter().copied().collect() });
        }
        ops.push(Op::Repaired { key });
        Ok(Some(ops))
    }

    /// Something was written anew.
    pub fn placed(&mut self, record: &WrittenRecord) {
        let WrittenRecord { index, term, location, .. } = *record;
        match record.body {
            true => self.bodies_written.push((index, location)),
            false => self.entries_written.push(RecoveredEntry { index, term, location }),
        }
    }

    /// The journal moved a body.
    pub fn body_moved(&mut self, moved: &MovedBody) {
        let bodies = &mut self.recovered.bodies;
        if let Ok(at) = bodies.binary_search_by_key(&moved.index, |(index, _)| *index)
            && bodies[at].1 == moved.from
        {
            bodies[at].1 = moved.to;
        }
    }

    /// What a start would find on the disk now.
    fn mended(self) -> RecoveredGroup {
        let checkpoint = self.checkpoint();
        let Self { mut recovered, entries_written, bodies_written, folds, .. } = self;
        if let Some(first) = entries_written.first() {
            recovered.entries.truncate(recovered.entries.partition_point(|entry| entry.index < first.index));
            recovered.entries.extend(entries_written);
        }
        recovered.bodies.extend(bodies_written);
        if folds {
            let above = recovered.entries.split_off(recovered.entries.partition_point(|one| one.index <= checkpoint));
            let below = std::mem::replace(&mut recovered.entries, above);
            recovered.bodies.extend(below.into_iter().map(|entry| (entry.index, entry.location)));
            recovered.compacted = checkpoint;
        }
        // Of an index that is there twice the body counts, as in the journal: it comes first, and the order is kept.
        recovered.bodies.sort_by_key(|(index, _)| *index);
        recovered.bodies.dedup_by_key(|(index, _)| *index);
        recovered
    }
}

/// What has to be found, of what is missing: what the machine needs at its checkpoint, and all that comes after it. None
/// if nobody could prove to have it.
fn wanted(recovered: &RecoveredGroup, missing: &BTreeSet<u64>, live: &[u64]) -> Option<BTreeMap<u64, Wanted>> {
    let (state, checkpoint) = (recovered.hard_state?, recovered.checkpoint.as_ref()?);
    let commit = state.commit.max(checkpoint.index);
    let mut all = BTreeMap::new();
    for index in missing.iter().copied() {
        if index <= checkpoint.index {
            if live.binary_search(&index).is_ok() {
                all.insert(index, Wanted { terms: 0..=0, is_body: true, committed: true });
            }
            continue;
        }
        let at = recovered.entries.partition_point(|entry| entry.index < index);
        let before = at.checked_sub(1).map_or(0, |before| recovered.entries[before].term).max(checkpoint.term);
        let after = recovered.entries.get(at).map_or(state.term, |entry| entry.term);
        let wanted = Wanted { terms: before..=after, is_body: false, committed: index <= commit };
        if before > after || (!wanted.committed && wanted.exact_term().is_none()) {
            return None;
        }
        all.insert(index, wanted);
    }
    Some(all)
}

impl<M: Machine, R: EntryReader> Host<M, R> {
    /// Waits for what a replica has lost, if it can be had; gives the group back otherwise.
    pub(crate) fn begin_mending(&mut self, recovered: RecoveredGroup) -> Result<(), Box<RecoveredGroup>> {
        let mending = Mending::new::<M>(recovered, self.cx.now)?;
        let id = GroupId(mending.key().group);
        info!(group = %id, wanted = mending.wanted.len(), why = mending.why, "damaged: asks its peers for what it lost");
        let nothing_wanted = mending.wanted.is_empty();
        self.replicas.insert(id, Replica::Mending(Box::new(mending)));
        self.mending.insert(id);
        if nothing_wanted {
            self.write_repair(id);
        }
        Ok(())
    }

    /// Asks again what was not answered.
    pub(crate) fn tend_mending(&mut self) {
        let now = self.cx.now;
        for id in self.mending.iter().copied().collect::<Vec<_>>() {
            self.tend_healing(id);
        }
        for id in &self.mending {
            let Some(Replica::Mending(mending)) = self.replicas.get_mut(id) else { continue };
            if now >= mending.ask_at && !mending.wanted.is_empty() {
                mending.ask_at = now + ASK_EVERY;
                for peer in mending.peers(self.cx.me) {
                    self.cx.send(mending.header(peer), mending.question());
                }
            }
            if now.since(mending.since) >= PATIENCE && !mending.overdue {
                mending.overdue = true;
                let why = format!("no peer has what it lost: {}", mending.why);
                self.cx.outbox.push_back(HostOutput::Quarantined { group: *id, why });
            }
        }
    }

    /// A peer asks for entries that it lost, or answers.
    pub(crate) fn handle_repair(&mut self, from: MemberId, envelope: Envelope) {
        let id = envelope.group();
        let Envelope { generations, body, .. } = envelope;
        let peer = ReplicaId { member: from, generation: generations.from };
        match (self.replicas.get_mut(&id), body) {
            (Some(Replica::Running(group)), Body::Fetch { indexes }) if generations.to == group.me.generation => {
                group.answer_fetch(peer, &indexes, &mut self.cx);
            }
            // What it still has it gives, so that two that lost different things mend each other.
            (Some(Replica::Healing(healing)), Body::Fetch { indexes })
                if generations.to == healing.group.me.generation =>
            {
                healing.group.answer_fetch(peer, &indexes, &mut self.cx);
            }
            (Some(Replica::Healing(healing)), Body::Fetched { entries, gone })
                if generations.to == healing.group.me.generation =>
            {
                self.take_found(id, peer, entries, &gone);
            }
            (Some(Replica::Mending(mending)), Body::Fetch { indexes }) if generations.to == mending.generation() => {
                let (entries, gone) = mending.found(&indexes, self.cx.config.max_append_bytes, &self.reader);
                if !(entries.is_empty() && gone.is_empty()) {
                    self.cx.send(mending.header(peer), Body::Fetched { entries, gone });
                }
            }
            (Some(Replica::Mending(mending)), Body::Fetched { entries, gone })
                if generations.to == mending.generation() =>
            {
                let news = mending.take(peer, entries, &gone);
                let is_hopeless = mending.compacted.is_hopeless(&mending.wanted, mending.peers(self.cx.me));
                if is_hopeless && !mending.overdue {
                    mending.overdue = true;
                    let why = format!("its peers have compacted what it lost: {}", mending.why);
                    self.cx.outbox.push_back(HostOutput::Quarantined { group: id, why });
                }
                if mending.wanted.is_empty() && news {
                    self.write_repair(id);
                } else if news {
                    self.cx.send(mending.header(peer), mending.question());
                }
            }
            _ => {}
        }
    }

    /// Everything was found: it is written, and the replica begins when that is durable.
    fn write_repair(&mut self, id: GroupId) {
        let Some(Replica::Mending(mending)) = self.replicas.get_mut(&id) else { return };
        let key = mending.key();
        match mending.repair(&self.reader) {
            Ok(None) => {}
            Ok(Some(ops)) => {
                let mut batch = None;
                for op in ops {
                    batch = Some(self.cx.writes.push(op));
                }
                if let Some(batch) = batch {
                    // It is the batch that is being filled, so it is not finished.
                    let _ = self.cx.writes.after(batch, After::Mended { key });
                }
            }
            Err(why) => self.quarantine(id, why),
        }
    }

    /// What was lost is durable again: the replica takes part from here on.
    pub(crate) fn mended(&mut self, id: GroupId) {
        let Some(Replica::Mending(mending)) = self.replicas.remove(&id) else { return };
        self.mending.remove(&id);
        let entries = mending.found.len();
        info!(group = %id, entries, "mended: it takes part again");
        self.cx.outbox.push_back(HostOutput::Mended { group: id, entries });
        self.start_recovered(mending.mended());
    }
}

impl<M: Machine, R: EntryReader> Group<M, R> {
    fn answer_fetch(&self, to: ReplicaId, indexes: &[u64], cx: &mut Context<M::Effect>) {
        let (entries, gone) = self.found(indexes, cx.config.max_append_bytes);
        if !(entries.is_empty() && gone.is_empty()) {
            cx.send(self.header(to, cx), Body::Fetched { entries, gone });
        }
    }

    /// What is here of these entries, up to about so many bytes; and which of them were given up, because no message in
    /// them is alive any more.
    fn found(&self, indexes: &[u64], most_bytes: u64) -> (Vec<FoundEntry>, Vec<u64>) {
        let mut answer = Answer::new(most_bytes);
        // What Raft takes for committed may be on its way into this log still, where something else is until then.
        let committed = self.applied.max(self.written_state.commit);
        for index in indexes.iter().copied().take(MOST_ASKED) {
            let payload = match self.log().payload(index) {
                Some(Ok(payload)) => payload,
                None if index <= self.log().prefix().0 && !self.installing => {
                    answer.gone.push(index);
                    continue;
                }
                _ => continue,
            };
            let term = (index > self.log().prefix().0).then(|| self.log().term(index).ok()).flatten();
            if !answer.add(FoundEntry { index, term, committed: index <= committed, payload }) {
                break;
            }
        }
        (answer.entries, answer.gone)
    }
}

/// An answer to a question, while it is made.
struct Answer {
    entries: Vec<FoundEntry>,
    gone: Vec<u64>,
    bytes: u64,
    most_bytes: u64,
}

impl Answer {
    fn new(most_bytes: u64) -> Self {
        Self { entries: Vec::new(), gone: Vec::new(), bytes: 0, most_bytes }
    }

    /// False if it has no room for that; there is room for one in any case.
    fn add(&mut self, found: FoundEntry) -> bool {
        self.bytes += found.payload.len() as u64;
        let has_room = self.bytes <= self.most_bytes || self.entries.is_empty();
        if has_room {
            self.entries.push(found);
        }
        has_room
    }
}

pub(crate) fn put_indexes(out: &mut BytesMut, indexes: &[u64]) {
    put_varint(out, indexes.len() as u64);
    indexes.iter().for_each(|index| put_varint(out, *index));
}

pub(crate) fn read_indexes(reader: &mut Reader) -> Result<Vec<u64>, Malformed> {
    // Each takes a byte at least, so a false count ends at the end of the input.
    (0..reader.varint()?).map(|_| reader.varint()).collect()
}

impl FoundEntry {
    pub fn encode(&self, out: &mut BytesMut) {
        put_varint(out, self.index);
        // No entry is of term 0.
        put_varint(out, self.term.unwrap_or(0));
        out.put_u8(u8::from(self.committed));
        out.put_u32_le(crc32c::crc32c(&self.payload));
        put_bytes(out, &self.payload);
    }

    pub fn decode(reader: &mut Reader) -> Result<Self, Malformed> {
        let (index, term) = (reader.varint()?, reader.varint()?);
        let committed = reader.flag()?;
        let crc = reader.u32()?;
        let payload = reader.bytes()?;
        if crc32c::crc32c(&payload) != crc {
            return Err(Malformed);
        }
        Ok(Self { index, term: (term > 0).then_some(term), committed, payload })
    }
}
