//! The bytes of records and batch headers.
//!
//! ```text
//! record   magic2 kind1 version1 crc4 len4 counter4 epoch8 group8 nonce8 index8 term8 │ payload
//! batch    magic4 crc4 epoch8 sequence8 durable8 records_bytes4 records4 offset4 groups4 │ listed group × groups
//! listed   group8 nonce8 counter4 flags4 records4 pad4 first8 last8 term8 vote8 commit8
//! ```
//! All numbers are little-endian. A crc covers everything but itself, payload or list included, and that of a record its
//! offset in the file besides, though that is not stored: a block that belongs elsewhere is told from one that belongs
//! here by the epoch of the file and by the offset, which a batch header has as a number. The hard states of a batch stand in its list as well as in records: a lost vote cannot be fetched from a peer, so it is kept twice.

use crate::encoding::{Cursor, put_indexes, put_varint};
use crate::runs::Runs;
use crate::types::{Corruption, GroupKey, HardState, Incarnation};
use bytes::Bytes;

pub(crate) const RECORD_HEADER_BYTES: usize = 56;
pub(crate) const BATCH_HEADER_BYTES: usize = 48;
pub(crate) const LISTED_GROUP_BYTES: usize = 72;
const RECORD_MAGIC: u16 = 0x4648;
const RECORD_VERSION: u8 = 2;
const BATCH_MAGIC: u32 = 0x5442_4648;

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Entry = 1,
    HardState = 2,
    Body = 3,
    /// A checkpoint counts from here on.
    Mark = 4,
    Compact = 5,
    Dead = 6,
    Reset = 7,
    Destroy = 8,
    /// A group's whole state, so that records before it may vanish.
    Summary = 9,
    /// What a group lost, so that it is still known when the damaged file is gone.
    Corrupt = 10,
    /// Segment files that are about to be removed.
    Removed = 11,
}

impl Kind {
    pub(crate) fn from_byte(byte: u8) -> Option<Self> {
        use Kind::{Body, Compact, Corrupt, Dead, Destroy, Entry, HardState, Mark, Removed, Reset, Summary};
        [Entry, HardState, Body, Mark, Compact, Dead, Reset, Destroy, Summary, Corrupt, Removed]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

/// A record apart from where it lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub kind: Kind,
    pub key: GroupKey,
    pub index: u64,
    pub term: u64,
    pub payload: Bytes,
}

impl Record {
    pub(crate) fn stored_bytes(&self) -> usize {
        RECORD_HEADER_BYTES + self.payload.len()
    }

    /// Appends the record for this offset of a file of this epoch.
    pub(crate) fn encode(&self, epoch: u64, offset: u32, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&RECORD_MAGIC.to_le_bytes());
        out.extend_from_slice(&[self.kind as u8, RECORD_VERSION, 0, 0, 0, 0]);
        out.extend_from_slice(&(self.payload.len() as u32).to_le_bytes());
        out.extend_from_slice(&self.key.incarnation.counter.to_le_bytes());
        for number in [epoch, self.key.group, self.key.incarnation.nonce, self.index, self.term] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&self.payload);
        let crc = crc32c::crc32c_append(crc_around(&out[start..], 4), &offset.to_le_bytes());
        out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
    }
}

/// A record's header as found on disk; only [`RecordHeader::verify`] says whether it is true.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RecordHeader {
    pub kind: Kind,
    pub key: GroupKey,
    pub index: u64,
    pub term: u64,
    pub len: u32,
    offset: u32,
    crc: u32,
    header_crc: u32,
}

impl RecordHeader {
    /// None when the bytes, found at this offset, cannot be a record of a file of this epoch.
    pub(crate) fn decode(bytes: &[u8], epoch: u64, offset: u32) -> Option<Self> {
        let bytes = bytes.get(..RECORD_HEADER_BYTES)?;
        let mut cursor = Cursor(bytes);
        let magic = cursor.u16()?;
        let kind = Kind::from_byte(cursor.u8()?)?;
        let version = cursor.u8()?;
        let crc = cursor.u32()?;
        let len = cursor.u32()?;
        let counter = cursor.u32()?;
        let found_epoch = cursor.u64()?;
        if magic != RECORD_MAGIC || version != RECORD_VERSION || found_epoch != epoch {
            return None;
        }
        let group = cursor.u64()?;
        let nonce = cursor.u64()?;
        Some(Self {
            kind,
            key: GroupKey { group, incarnation: Incarnation { counter, nonce } },
            index: cursor.u64()?,
            term: cursor.u64()?,
            len,
            offset,
            crc,
            header_crc: crc_around(bytes, 4),
        })
    }

    /// Whether header and payload are what was written, and written there.
    pub(crate) fn verify(&self, payload: &[u8]) -> bool {
        let crc = || crc32c::crc32c_append(crc32c::crc32c_append(self.header_crc, payload), &self.offset.to_le_bytes());
        payload.len() == self.len as usize && crc() == self.crc
    }
}

/// crc32c of `bytes` without the four at `hole`.
pub(crate) fn crc_around(bytes: &[u8], hole: usize) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&bytes[..hole]), &bytes[hole + 4..])
}

/// What a batch holds of one group, so that damage to the records can be told apart by group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ListedGroup {
    pub key: GroupKey,
    pub records: u32,
    /// Lowest entry index written, and the last index of the log after the batch; none without entries.
    pub entries: Option<(u64, u64)>,
    pub hard_state: Option<HardState>,
    /// Records other than entries, bodies and hard states are there.
    pub control: bool,
}

impl ListedGroup {
    const ENTRIES: u32 = 1;
    const HARD_STATE: u32 = 2;
    const CONTROL: u32 = 4;

    pub(crate) fn new(key: GroupKey) -> Self {
        Self { key, records: 0, entries: None, hard_state: None, control: false }
    }

    /// Counts one more record of the batch.
    pub(crate) fn add(&mut self, record: &Record) {
        self.records += 1;
        match record.kind {
            Kind::Entry => {
                let first = self.entries.map_or(record.index, |(first, _)| first.min(record.index));
                self.entries = Some((first, record.index));
            }
            Kind::HardState => self.hard_state = HardStatePayload::decode(record).map(|payload| payload.0),
            Kind::Body => {}
            _ => self.control = true,
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let mut flags = 0;
        for (set, flag) in [
            (self.entries.is_some(), Self::ENTRIES),
            (self.hard_state.is_some(), Self::HARD_STATE),
            (self.control, Self::CONTROL),
        ] {
            flags |= if set { flag } else { 0 };
        }
        let (first, last) = self.entries.unwrap_or_default();
        let hard_state = self.hard_state.unwrap_or_default();
        out.extend_from_slice(&self.key.group.to_le_bytes());
        out.extend_from_slice(&self.key.incarnation.nonce.to_le_bytes());
        for number in [self.key.incarnation.counter, flags, self.records, 0] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        for number in [first, last, hard_state.term, hard_state.vote, hard_state.commit] {
            out.extend_from_slice(&number.to_le_bytes());
        }
    }

    fn decode(cursor: &mut Cursor<'_>) -> Option<Self> {
        let group = cursor.u64()?;
        let nonce = cursor.u64()?;
        let counter = cursor.u32()?;
        let flags = cursor.u32()?;
        let records = cursor.u32()?;
        cursor.u32()?;
        let entries = (cursor.u64()?, cursor.u64()?);
        let hard_state = HardState { term: cursor.u64()?, vote: cursor.u64()?, commit: cursor.u64()? };
        Some(Self {
            key: GroupKey { group, incarnation: Incarnation { counter, nonce } },
            records,
            entries: (flags & Self::ENTRIES != 0).then_some(entries),
            hard_state: (flags & Self::HARD_STATE != 0).then_some(hard_state),
            control: flags & Self::CONTROL != 0,
        })
    }
}

/// The header of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BatchHeader {
    pub epoch: u64,
    /// Consecutive over the whole log.
    pub sequence: u64,
    /// The highest batch known durable when this one was written.
    pub durable: u64,
    pub records_bytes: u32,
    pub records: u32,
    /// Where in its file the batch starts.
    pub offset: u32,
    pub groups: Vec<ListedGroup>,
}

impl BatchHeader {
    pub(crate) fn stored_bytes(groups: usize) -> usize {
        BATCH_HEADER_BYTES + groups * LISTED_GROUP_BYTES
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(Self::stored_bytes(self.groups.len()));
        out.extend_from_slice(&BATCH_MAGIC.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        for number in [self.epoch, self.sequence, self.durable] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        for number in [self.records_bytes, self.records, self.offset, self.groups.len() as u32] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        for group in &self.groups {
            group.encode(&mut out);
        }
        let crc = crc_around(&out, 4);
        out[4..8].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// None when there is no intact batch header at this offset of the file. `epoch` is checked when it is known.
    pub(crate) fn decode(file: &[u8], offset: usize, epoch: Option<u64>) -> Option<Self> {
        let bytes = file.get(offset..)?;
        let mut cursor = Cursor(bytes);
        if cursor.u32()? != BATCH_MAGIC {
            return None;
        }
        let crc = cursor.u32()?;
        let header = Self {
            epoch: cursor.u64()?,
            sequence: cursor.u64()?,
            durable: cursor.u64()?,
            records_bytes: cursor.u32()?,
            records: cursor.u32()?,
            offset: cursor.u32()?,
            groups: Vec::new(),
        };
        let groups = cursor.u32()? as usize;
        if header.offset as usize != offset || epoch.is_some_and(|epoch| epoch != header.epoch) {
            return None;
        }
        let whole = bytes.get(..BATCH_HEADER_BYTES.checked_add(groups.checked_mul(LISTED_GROUP_BYTES)?)?)?;
        if crc_around(whole, 4) != crc {
            return None;
        }
        let groups = (0..groups).map(|_| ListedGroup::decode(&mut cursor)).collect::<Option<_>>()?;
        Some(Self { groups, ..header })
    }
}

/// Payload of [`Kind::HardState`]; the term is the record's.
pub(crate) struct HardStatePayload(pub HardState);

impl HardStatePayload {
    pub(crate) fn record(key: GroupKey, state: HardState) -> Record {
        let mut payload = Vec::with_capacity(16);
        payload.extend_from_slice(&state.vote.to_le_bytes());
        payload.extend_from_slice(&state.commit.to_le_bytes());
        Record { kind: Kind::HardState, key, index: 0, term: state.term, payload: payload.into() }
    }

    pub(crate) fn decode(record: &Record) -> Option<Self> {
        let mut cursor = Cursor(&record.payload);
        Some(Self(HardState { term: record.term, vote: cursor.u64()?, commit: cursor.u64()? }))
    }
}

/// Payload of [`Kind::Mark`]: where the checkpoint of the record's index is. A number that no file has stands before one
/// that is in the record itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    pub index: u64,
    pub place: CheckpointPlace,
}

/// Where a checkpoint is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CheckpointPlace {
    /// In a file that this names; never 0.
    File { sequence: u64 },
    /// Here, as [`crate::checkpoint::encode`] wrote it.
    Here(Bytes),
}

impl Mark {
    pub(crate) fn record(&self, key: GroupKey, term: u64) -> Record {
        let payload = match &self.place {
            CheckpointPlace::File { sequence } => Bytes::copy_from_slice(&sequence.to_le_bytes()),
            CheckpointPlace::Here(bytes) => [&[0; 8], &bytes[..]].concat().into(),
        };
        Record { kind: Kind::Mark, key, index: self.index, term, payload }
    }

    pub(crate) fn decode(record: &Record) -> Option<Self> {
        let mut cursor = Cursor(&record.payload);
        let place = match cursor.u64()? {
            // Copied, since the record may be part of a buffer that holds a whole segment.
            0 => CheckpointPlace::Here(Bytes::copy_from_slice(cursor.0)),
            sequence => CheckpointPlace::File { sequence },
        };
        Some(Self { index: record.index, place })
    }
}

/// A record whose payload is a list of indexes.
pub(crate) fn indexes_record(kind: Kind, key: GroupKey, index: u64, indexes: impl IntoIterator<Item = u64>) -> Record {
    let mut payload = Vec::new();
    put_indexes(&mut payload, indexes);
    Record { kind, key, index, term: 0, payload: payload.into() }
}

/// The list in such a record.
pub(crate) fn indexes_of(record: &Record) -> Option<Runs> {
    Cursor(&record.payload).indexes()
}

/// A record without a payload.
pub(crate) fn bare_record(kind: Kind, key: GroupKey, index: u64, term: u64) -> Record {
    Record { kind, key, index, term, payload: Bytes::new() }
}

/// Payload of [`Kind::Summary`]: the record's index is the compacted prefix, its term the last index of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Summary {
    pub hard_state: Option<HardState>,
    pub mark: Option<Mark>,
    pub compacted: u64,
    pub last: u64,
    pub live_bodies: Runs,
}

impl Summary {
    pub(crate) fn record(&self, key: GroupKey) -> Record {
        let mut payload = vec![u8::from(self.hard_state.is_some()) | u8::from(self.mark.is_some()) << 1];
        if let Some(state) = self.hard_state {
            for number in [state.term, state.vote, state.commit] {
                put_varint(&mut payload, number);
            }
        }
        if let Some(mark) = &self.mark {
            put_varint(&mut payload, mark.index);
            match &mark.place {
                CheckpointPlace::File { sequence } => put_varint(&mut payload, *sequence),
                CheckpointPlace::Here(bytes) => {
                    put_varint(&mut payload, 0);
                    put_varint(&mut payload, bytes.len() as u64);
                    payload.extend_from_slice(bytes);
                }
            }
        }
        put_indexes(&mut payload, self.live_bodies.iter());
        Record { kind: Kind::Summary, key, index: self.compacted, term: self.last, payload: payload.into() }
    }

    pub(crate) fn decode(record: &Record) -> Option<Self> {
        let mut cursor = Cursor(&record.payload);
        let flags = cursor.u8()?;
        let mut hard_state = None;
        if flags & 1 != 0 {
            hard_state = Some(HardState { term: cursor.varint()?, vote: cursor.varint()?, commit: cursor.varint()? });
        }
        let mut mark = None;
        if flags & 2 != 0 {
            let index = cursor.varint()?;
            let place = match cursor.varint()? {
                0 => {
                    let bytes = usize::try_from(cursor.varint()?).ok()?;
                    CheckpointPlace::Here(Bytes::copy_from_slice(cursor.bytes(bytes)?))
                }
                sequence => CheckpointPlace::File { sequence },
            };
            mark = Some(Mark { index, place });
        }
        let live_bodies = cursor.indexes()?;
        Some(Self { hard_state, mark, compacted: record.index, last: record.term, live_bodies })
    }
}

/// The record that keeps a group's corruption known. One without anything says that it is repaired.
pub(crate) fn corrupt_record(key: GroupKey, corruption: &Corruption) -> Record {
    let flags =
        u8::from(corruption.hard_state) | u8::from(corruption.checkpoint) << 1 | u8::from(corruption.unknown) << 2;
    let mut payload = vec![flags];
    put_varint(&mut payload, corruption.missing.len() as u64);
    for range in &corruption.missing {
        put_varint(&mut payload, *range.start());
        put_varint(&mut payload, *range.end());
    }
    payload.extend_from_slice(corruption.why.as_bytes());
    Record { kind: Kind::Corrupt, key, index: 0, term: 0, payload: payload.into() }
}

/// What [`corrupt_record`] wrote.
pub(crate) fn corruption_of(record: &Record) -> Option<Corruption> {
    let mut cursor = Cursor(&record.payload);
    let flags = cursor.u8()?;
    let mut missing = Vec::new();
    for _ in 0..cursor.varint()? {
        missing.push(cursor.varint()?..=cursor.varint()?);
    }
    Some(Corruption {
        missing,
        hard_state: flags & 1 != 0,
        checkpoint: flags & 2 != 0,
        unknown: flags & 4 != 0,
        why: String::from_utf8_lossy(cursor.0).into_owned(),
    })
}
