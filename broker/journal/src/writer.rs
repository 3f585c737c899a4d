//! The writing side: batches in, one write and one sync each, proofs of durability out.

use crate::accounting::Accounting;
use crate::checkpoint::{self, checkpoint_name};
use crate::chore;
use crate::filesystem::{FileSystem, StoredFile};
use crate::footer::FooterBuilder;
use crate::identity::{self, StoredIdentity};
use crate::keeper::Keeper;
use crate::reader::{JournalReader, ReadableSegment};
use crate::record::{
    BatchHeader, HardStatePayload, Kind, LISTED_GROUP_BYTES, ListedGroup, Mark, Record, bare_record, corrupt_record,
    indexes_record,
};
use crate::recovery;
use crate::segment::{SealedSegment, SegmentHeader, align_up, file_epoch, segment_name};
use crate::space::SpaceWatch;
use crate::types::{
    Batch, Checkpoint, Corruption, GroupKey, HardState, JournalConfig, JournalError, Location, Op, Recovered, Written,
    WrittenRecord,
};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Locations have 32-bit offsets, and a segment may exceed its size by one batch.
const MAX_BATCH_BYTES: u64 = 1 << 30;
/// A buffer that grew beyond this for one large batch is given back.
const KEPT_BUFFER_BYTES: usize = 8 << 20;

/// The log of one member, open for writing. One thread owns it; [`JournalReader`]s may be anywhere.
pub struct Journal<F: FileSystem> {
    fs: F,
    config: JournalConfig,
    reader: JournalReader<F>,
    accounting: Accounting,
    active: Active<F>,
    older: BTreeMap<u32, SealedSegment>,
    next_sequence: u64,
    identity_changes: u64,
    buffer: Vec<u8>,
    poisoned: bool,
    pub(crate) keeper: Keeper<F>,
}

/// The segment that is written to.
struct Active<F: FileSystem> {
    number: u32,
    first_sequence: u64,
    segment: Arc<ReadableSegment<F::File>>,
    /// Where the next batch starts.
    position: u64,
    footer: FooterBuilder,
}

/// A segment that is full, and its footer, which is not written yet.
pub(crate) struct Unsealed<F: FileSystem> {
    pub sealed: SealedSegment,
    pub segment: Arc<ReadableSegment<F::File>>,
    pub footer: FooterBuilder,
}

/// What a recovery hands to the writer.
pub(crate) struct Resume<F: FileSystem> {
    pub fs: F,
    pub config: JournalConfig,
    pub reader: JournalReader<F>,
    pub accounting: Accounting,
    pub older: BTreeMap<u32, SealedSegment>,
    /// The sizes of the footers that are there.
    pub footers: BTreeMap<u32, u32>,
    pub unsealed: Vec<Unsealed<F>>,
    pub next_segment: u32,
    pub next_sequence: u64,
    pub identity_changes: u64,
}

/// Records of one call, and what must happen around their write.
#[derive(Default)]
struct Plan {
    records: Vec<Record>,
    /// Those that become files, and the files' names.
    checkpoints: Vec<(String, GroupKey, Checkpoint)>,
    identity: Option<Bytes>,
    /// Checkpoint files that no longer count afterwards.
    superseded: Vec<String>,
}

impl<F: FileSystem> Journal<F> {
    /// Opens the journal in `fs`, which may be blank. What it reports as recovered is durable. Nobody else may have it
    /// open: the caller holds a lock.
    pub fn open(fs: F, config: JournalConfig) -> Result<(Self, Recovered), JournalError> {
        recovery::open(fs, config)
    }

    /// Starts a new segment behind what a recovery found.
    pub(crate) fn resume(resume: Resume<F>) -> Result<Self, JournalError> {
        let Resume { fs, mut config, reader, accounting, older, next_segment, next_sequence, .. } = resume;
        config.segment_bytes = config.segment_bytes.min(MAX_BATCH_BYTES);
        let mut keeper = Keeper::new(SpaceWatch::open(&fs, &config)?, next_segment, resume.footers, resume.unsealed);
        let file = create_file(&fs, &config, &mut keeper)?;
        let active = begin_segment(&config, &reader, file, next_sequence, &older)?;
        Ok(Self {
            fs,
            config,
            reader,
            accounting,
            active,
            older,
            next_sequence,
            identity_changes: resume.identity_changes,
            buffer: Vec::new(),
            poisoned: false,
            keeper,
        })
    }

    /// A reader of this journal's payloads.
    pub fn reader(&self) -> JournalReader<F> {
        self.reader.clone()
    }

    /// Makes one batch durable; see [`Journal::write_many`].
    pub fn write(&mut self, batch: &Batch) -> Result<Written, JournalError> {
        let mut written = self.write_many(std::slice::from_ref(batch))?;
        Ok(written.pop().unwrap_or_default())
    }

    /// Makes all batches durable with one sync, in their order; a crash keeps either all or none of the records.
    /// After an error other than [`JournalError::BatchTooLarge`] nothing of them may be taken as written *or* lost,
    /// and the journal refuses everything from then on: after a failed sync the page cache cannot be trusted.
    pub fn write_many(&mut self, batches: &[Batch]) -> Result<Vec<Written>, JournalError> {
        if self.poisoned {
            return Err(JournalError::Poisoned);
        }
        let plan = self.plan(batches)?;
        self.note_aside(batches);
        for op in batches.iter().flat_map(|batch| &batch.ops) {
            if let Op::MovesTaken { id } = op {
                self.moves_taken(*id);
            }
        }
        self.poisoned = true;
        let locations = self.carry_out(plan)?;
        self.poisoned = false;
        Ok(report(batches, &locations))
    }

    /// Number of segment files, the open one included.
    pub fn segment_count(&self) -> usize {
        self.older.len() + 1
    }

    /// Bytes that an older segment takes, its footer included.
    pub(crate) fn segment_bytes_of(&self, number: u32) -> u64 {
        let end = self.older.get(&number).map_or(0, |sealed| sealed.end);
        u64::from(end) + u64::from(self.keeper.footers.get(&number).copied().unwrap_or(0))
    }

    /// Bytes that the segments take, apart from what is reserved and not yet written.
    pub fn used_bytes(&self) -> u64 {
        self.older.keys().map(|number| self.segment_bytes_of(*number)).sum::<u64>() + self.active.position
    }

    fn plan(&self, batches: &[Batch]) -> Result<Plan, JournalError> {
        let mut plan = Plan::default();
        let mut marks: BTreeMap<GroupKey, Mark> = BTreeMap::new();
        for op in batches.iter().flat_map(|batch| &batch.ops) {
            if let Some(key) = op.key()
                && matches!(op, Op::Checkpoint { .. } | Op::Destroy { .. })
            {
                let old = marks.remove(&key).or_else(|| self.accounting.mark(key).cloned());
                plan.superseded.extend(old.and_then(|mark| checkpoint_name(key, &mark)));
            }
            match op {
                Op::Checkpoint { key, index, term, conf, machine } => {
                    // Several in one call have several names.
                    let sequence = (self.next_sequence << 16) + plan.checkpoints.len() as u64;
                    let checkpoint =
                        Checkpoint { index: *index, term: *term, conf: conf.clone(), machine: machine.clone() };
                    let mark = checkpoint::mark_for(*key, &checkpoint, sequence, self.config.small_checkpoint_bytes);
                    plan.records.push(mark.record(*key, *term));
                    plan.checkpoints.extend(checkpoint_name(*key, &mark).map(|name| (name, *key, checkpoint)));
                    marks.insert(*key, mark);
                }
                Op::Identity(bytes) => plan.identity = Some(bytes.clone()),
                _ => plan.records.extend(record_of(op)),
            }
        }
        let bytes = records_bytes(&plan.records);
        if bytes > MAX_BATCH_BYTES {
            return Err(JournalError::BatchTooLarge { bytes, limit: MAX_BATCH_BYTES });
        }
        Ok(plan)
    }

    fn carry_out(&mut self, mut plan: Plan) -> Result<Vec<Location>, JournalError> {
        for (name, key, checkpoint) in &plan.checkpoints {
            checkpoint::store(&self.fs, name, *key, checkpoint)?;
        }
        if !plan.checkpoints.is_empty() {
            self.sync_dir()?;
        }
        let locations = self.append(&mut plan.records, true)?;
        if let Some(bytes) = plan.identity {
            self.identity_changes += 1;
            // The caller was told of what is lost when it opened the journal; from here on it remembers that itself.
            let stored = StoredIdentity { changes: self.identity_changes, forgetful: false, bytes };
            identity::store(&self.fs, &stored)?;
        }
        plan.superseded.into_iter().for_each(|name| self.keeper.aside.let_go(name));
        Ok(locations)
    }

    /// Writes the records as one batch and syncs. With `retire`, bodies that wait to be moved go along, and segments
    /// without a live record go; what has to be kept of them is added to the records.
    pub(crate) fn append(&mut self, records: &mut Vec<Record>, retire: bool) -> Result<Vec<Location>, JournalError> {
        if records.is_empty() && !(retire && self.has_own_records()) {
            return Ok(Vec::new());
        }
        let bytes = records_bytes(records) + (records.len() * LISTED_GROUP_BYTES) as u64;
        let is_fresh = self.active.first_sequence == self.next_sequence;
        if !is_fresh && self.active.position + bytes > self.config.segment_bytes {
            self.roll()?;
        }
        let active = self.active.number;
        for record in records.iter() {
            self.accounting.apply(record, active, record.payload.len() as u32);
        }
        let asked_for = records.len();
        if retire {
            self.add_moves(records);
            self.add_marks(records);
        }
        let going = if retire { self.accounting.retire(active, records) } else { Vec::new() };
        let locations = self.encode(records);
        self.write_buffer()?;
        for (record, location) in records.iter().zip(&locations) {
            self.active.footer.record(record, *location);
        }
        self.moves_written(&locations[asked_for..]);
        self.marks_written();
        self.keeper.relocation.earn(self.buffer.len() as u64);
        if self.buffer.capacity() > KEPT_BUFFER_BYTES {
            self.buffer = Vec::new();
        }
        for number in going {
            self.reader.remove(number);
            self.older.remove(&number);
            self.accounting.removed(number);
            self.keeper.removed(number);
            self.keeper.aside.let_go(segment_name(number));
        }
        Ok(locations)
    }

    /// Makes the buffer durable at the end of the open segment.
    fn write_buffer(&mut self) -> Result<(), JournalError> {
        let name = segment_name(self.active.number);
        let file = &self.active.segment.file;
        file.write_at(self.active.position, &self.buffer).map_err(|error| JournalError::io("write", &name, error))?;
        file.sync_data().map_err(|error| JournalError::io("sync", &name, error))?;
        self.active.footer.content(&self.buffer);
        self.active.position += self.buffer.len() as u64;
        self.next_sequence += 1;
        Ok(())
    }

    /// Fills the buffer with the batch, whole blocks of it.
    fn encode(&mut self, records: &[Record]) -> Vec<Location> {
        let mut groups: BTreeMap<GroupKey, ListedGroup> = BTreeMap::new();
        for record in records {
            groups.entry(record.key).or_insert_with(|| ListedGroup::new(record.key)).add(record);
        }
        let epoch = self.active.segment.epoch;
        let header = BatchHeader {
            epoch,
            sequence: self.next_sequence,
            durable: self.next_sequence - 1,
            records_bytes: records_bytes(records) as u32,
            records: records.len() as u32,
            offset: self.active.position as u32,
            groups: groups.into_values().collect(),
        };
        self.buffer.clear();
        self.buffer.extend_from_slice(&header.encode());
        let mut locations = Vec::with_capacity(records.len());
        for record in records {
            let offset = (self.active.position + self.buffer.len() as u64) as u32;
            locations.push(Location { segment: self.active.number, offset, len: record.payload.len() as u32 });
            record.encode(epoch, offset, &mut self.buffer);
        }
        let whole = align_up(self.buffer.len() as u64, u64::from(self.config.block_bytes));
        self.buffer.resize(whole as usize, 0);
        locations
    }

    /// Ends the open segment and starts the next. Everything in the old one is synced already; its footer is a chore.
    fn roll(&mut self) -> Result<(), JournalError> {
        let last_sequence = self.next_sequence - 1;
        let sealed = SealedSegment {
            number: self.active.number,
            end: self.active.position as u32,
            epoch: self.active.segment.epoch,
            first_sequence: self.active.first_sequence,
            last_sequence,
            proven: last_sequence,
        };
        self.older.insert(sealed.number, sealed);
        let file = match self.keeper.take_spare() {
            Some(spare) => spare,
            None => {
                self.remove_gone()?;
                create_file(&self.fs, &self.config, &mut self.keeper)?
            }
        };
        let next = begin_segment(&self.config, &self.reader, file, self.next_sequence, &self.older)?;
        let Active { segment, footer, .. } = std::mem::replace(&mut self.active, next);
        self.keeper.unsealed.push_back(Unsealed { sealed, segment, footer });
        Ok(())
    }

    pub(crate) fn older(&self) -> &BTreeMap<u32, SealedSegment> {
        &self.older
    }

    pub(crate) fn accounting(&self) -> &Accounting {
        &self.accounting
    }

    pub(crate) fn accounting_mut(&mut self) -> &mut Accounting {
        &mut self.accounting
    }

    pub(crate) fn open_segment(&self, number: u32) -> Option<Arc<ReadableSegment<F::File>>> {
        self.reader.segment(number)
    }

    /// The directory that it is in.
    pub fn file_system(&self) -> &F {
        &self.fs
    }

    pub(crate) fn segment_bytes(&self) -> u64 {
        self.config.segment_bytes
    }

    pub(crate) fn small_checkpoint_bytes(&self) -> usize {
        self.config.small_checkpoint_bytes
    }

    pub(crate) fn next_sequence(&self) -> u64 {
        self.next_sequence
    }

    pub(crate) fn active_number(&self) -> u32 {
        self.active.number
    }

    /// How far the open segment is filled.
    pub(crate) fn active_bytes(&self) -> u64 {
        self.active.position
    }

    pub(crate) fn is_poisoned(&self) -> bool {
        self.poisoned
    }

    /// Refuses everything from now on.
    pub(crate) fn poison(&mut self) {
        self.poisoned = true;
    }

    /// What was begun under [`Journal::poison`] went well.
    pub(crate) fn unpoison(&mut self) {
        self.poisoned = false;
    }

    fn sync_dir(&self) -> Result<(), JournalError> {
        self.fs.sync_dir().map_err(|error| JournalError::io("sync", "the data directory", error))
    }

    pub(crate) fn remove(&self, name: &str) -> Result<(), JournalError> {
        chore::remove(&self.fs, name)
    }
}

/// Makes a file with a durable name for a segment, here and now. On a full disk the reserve is spent for it.
fn create_file<F: FileSystem>(
    fs: &F,
    config: &JournalConfig,
    keeper: &mut Keeper<F>,
) -> Result<(u32, F::File), JournalError> {
    let number = keeper.new_number();
    let name = segment_name(number);
    let create = || fs.create(&name, config.segment_bytes).map_err(|error| JournalError::io("create", &name, error));
    let file = match create() {
        Err(error @ JournalError::NoSpace { .. }) => {
            if !keeper.space.spend_reserve(fs)? {
                return Err(error);
            }
            create()?
        }
        result => result?,
    };
    fs.sync_dir().map_err(|error| JournalError::io("sync", "the data directory", error))?;
    Ok((number, file))
}

/// Makes a file with a durable name a segment, with a durable header. The header is synced before any batch follows, so
/// an unreadable header with a batch behind it is damage, and a file without either is one that was made ahead of time.
fn begin_segment<F: FileSystem>(
    config: &JournalConfig,
    reader: &JournalReader<F>,
    (number, file): (u32, F::File),
    first_sequence: u64,
    older: &BTreeMap<u32, SealedSegment>,
) -> Result<Active<F>, JournalError> {
    let name = segment_name(number);
    let epoch = file_epoch(config.nonce, number);
    let header = SegmentHeader {
        number,
        block_bytes: config.block_bytes,
        epoch,
        first_sequence,
        file_bytes: file.len().map_err(|error| JournalError::io("read", &name, error))?,
        older: older.values().copied().collect(),
    };
    let bytes = header.encode();
    file.write_at(0, &bytes).map_err(|error| JournalError::io("write", &name, error))?;
    file.sync_data().map_err(|error| JournalError::io("sync", &name, error))?;
    let segment = Arc::new(ReadableSegment { file, epoch });
    reader.insert(number, Arc::clone(&segment));
    let mut footer = FooterBuilder::default();
    footer.content(&bytes);
    Ok(Active { number, first_sequence, segment, position: bytes.len() as u64, footer })
}

fn records_bytes(records: &[Record]) -> u64 {
    records.iter().map(|record| record.stored_bytes() as u64).sum()
}

/// The record of an operation that is nothing but one.
fn record_of(op: &Op) -> Option<Record> {
    Some(match op {
        Op::Entry { key, index, term, payload } => {
            Record { kind: Kind::Entry, key: *key, index: *index, term: *term, payload: payload.clone() }
        }
        Op::Body { key, index, payload } => {
            Record { kind: Kind::Body, key: *key, index: *index, term: 0, payload: payload.clone() }
        }
        Op::HardState { key, term, vote, commit } => {
            HardStatePayload::record(*key, HardState { term: *term, vote: *vote, commit: *commit })
        }
        Op::Compact { key, up_to, live } => indexes_record(Kind::Compact, *key, *up_to, live.iter().copied()),
        Op::Dead { key, indexes } => {
            let mut sorted = indexes.clone();
            sorted.sort_unstable();
            sorted.dedup();
            indexes_record(Kind::Dead, *key, 0, sorted)
        }
        Op::Reset { key, index, term } => bare_record(Kind::Reset, *key, *index, *term),
        Op::Repaired { key } => corrupt_record(*key, &Corruption::default()),
        Op::Destroy { key } => bare_record(Kind::Destroy, *key, 0, 0),
        Op::Checkpoint { .. } | Op::CheckpointAside { .. } | Op::Identity(_) | Op::MovesTaken { .. } => return None,
    })
}

/// Matches locations to the operations that they came from. The plan keeps one record per operation and the order.
fn report(batches: &[Batch], locations: &[Location]) -> Vec<Written> {
    let mut locations = locations.iter();
    let mut all = Vec::with_capacity(batches.len());
    for batch in batches {
        let mut written = Written { batch: batch.id, ..Written::default() };
        let has_record = |op: &&Op| !matches!(op, Op::CheckpointAside { .. } | Op::Identity(_) | Op::MovesTaken { .. });
        for op in batch.ops.iter().filter(has_record) {
            let Some(location) = locations.next().copied() else { break };
            match op {
                Op::Entry { key, index, term, .. } => {
                    written.records.push(WrittenRecord { key: *key, index: *index, term: *term, body: false, location })
                }
                Op::Body { key, index, .. } => {
                    written.records.push(WrittenRecord { key: *key, index: *index, term: 0, body: true, location })
                }
                Op::Checkpoint { key, index, .. } => written.checkpoints.push((*key, *index)),
                _ => {}
            }
        }
        all.push(written);
    }
    all
}
