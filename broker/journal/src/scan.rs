//! Reading the batches of one segment, and telling a torn tail from corruption.

use crate::record::{BatchHeader, ListedGroup, RECORD_HEADER_BYTES, Record, RecordHeader};
use crate::segment::align_up;
use crate::types::{GroupKey, Location};
use bytes::Bytes;
use std::collections::BTreeMap;

/// What is known of a segment before its batches are read.
pub(crate) struct ScanPlan {
    pub number: u32,
    pub epoch: u64,
    pub block_bytes: u32,
    /// Where the first batch starts; none when the header is damaged and it has to be searched.
    pub start: Option<u64>,
    pub first_sequence: u64,
    pub limit: ScanLimit,
}

/// How far the segment goes.
pub(crate) enum ScanLimit {
    /// The newest segment: until its bytes stop making sense.
    Open,
    /// An older one, as the newest header lists it.
    Sealed { last_sequence: u64, proven: u64 },
}

/// The next thing in a segment.
pub(crate) enum Scanned {
    Batch(ScannedBatch),
    /// Batches that were durable and whose headers cannot be read.
    Lost {
        first_sequence: u64,
        offset: u64,
    },
}

/// A batch, whole or in part.
pub(crate) struct ScannedBatch {
    pub sequence: u64,
    pub offset: u64,
    pub records: Vec<(Record, Location)>,
    /// Groups whose records in this batch are damaged. `records` holds none of theirs.
    pub damaged: Vec<ListedGroup>,
}

/// What a scan found apart from batches.
pub(crate) struct ScanEnd {
    /// The end of the last batch.
    pub cut: u64,
    /// Sequence of the last batch that is there or was lost; `first_sequence - 1` when there is none.
    pub last_sequence: u64,
    /// Bytes were dropped behind the cut.
    pub torn: bool,
}

/// Reads a segment from start to end, handing each finding to `sink`.
pub(crate) fn scan(plan: &ScanPlan, file: &Bytes, sink: &mut dyn FnMut(Scanned)) -> ScanEnd {
    Scanner { plan, file }.run(sink)
}

/// Epoch and sequence of the first intact batch in a file whose header cannot be read.
pub(crate) fn find_first_batch(file: &[u8], block_bytes: u32) -> Option<(u64, u64)> {
    blocks(file, 0, block_bytes)
        .find_map(|offset| BatchHeader::decode(file, offset, None))
        .map(|header| (header.epoch, header.sequence))
}

fn blocks(file: &[u8], from: u64, block_bytes: u32) -> impl Iterator<Item = usize> {
    (align_up(from, u64::from(block_bytes)) as usize..file.len()).step_by(block_bytes as usize)
}

struct Scanner<'a> {
    plan: &'a ScanPlan,
    file: &'a Bytes,
}

impl Scanner<'_> {
    fn run(&self, sink: &mut dyn FnMut(Scanned)) -> ScanEnd {
        let plan = self.plan;
        let mut expected = plan.first_sequence;
        let mut position = match plan.start {
            Some(start) => start,
            None => self.find_from(0, expected).map_or(self.file.len() as u64, |header| u64::from(header.offset)),
        };
        let mut cut = position;
        let mut torn = false;
        while !self.past_last(expected) {
            let header = BatchHeader::decode(self.file, position as usize, Some(plan.epoch))
                .filter(|header| header.sequence == expected);
            let batch = header.as_ref().and_then(|header| self.read_batch(header));
            match (batch, header) {
                (Some(batch), Some(header)) if batch.damaged.is_empty() || self.is_proven(expected, position) => {
                    position = self.end_of(&header);
                    cut = position;
                    expected += 1;
                    sink(Scanned::Batch(batch));
                }
                (None, _) if self.is_proven(expected, position) => {
                    sink(Scanned::Lost { first_sequence: expected, offset: position });
                    let Some(next) = self.find_from(position + 1, expected + 1) else {
                        expected = self.last_expected(expected) + 1;
                        cut = self.file.len() as u64;
                        break;
                    };
                    position = u64::from(next.offset);
                    expected = next.sequence;
                }
                _ => {
                    torn = self.file.get(position as usize..).is_some_and(|rest| rest.iter().any(|byte| *byte != 0));
                    break;
                }
            }
        }
        ScanEnd { cut, last_sequence: expected - 1, torn }
    }

    fn past_last(&self, sequence: u64) -> bool {
        matches!(self.plan.limit, ScanLimit::Sealed { last_sequence, .. } if sequence > last_sequence)
    }

    fn last_expected(&self, sequence: u64) -> u64 {
        match self.plan.limit {
            ScanLimit::Sealed { last_sequence, .. } => last_sequence,
            ScanLimit::Open => sequence,
        }
    }

    /// Whether the batch of this sequence, expected at `position`, was durable once.
    fn is_proven(&self, sequence: u64, position: u64) -> bool {
        match self.plan.limit {
            ScanLimit::Sealed { proven, .. } => sequence <= proven,
            ScanLimit::Open => {
                self.find_from(position + 1, sequence + 1).is_some_and(|later| later.durable >= sequence)
            }
        }
    }

    /// The first intact batch header at or after `from` with at least this sequence.
    fn find_from(&self, from: u64, sequence: u64) -> Option<BatchHeader> {
        blocks(self.file, from, self.plan.block_bytes)
            .filter_map(|offset| BatchHeader::decode(self.file, offset, Some(self.plan.epoch)))
            .find(|header| header.sequence >= sequence)
    }

    fn end_of(&self, header: &BatchHeader) -> u64 {
        let bytes = BatchHeader::stored_bytes(header.groups.len()) as u64 + u64::from(header.records_bytes);
        align_up(u64::from(header.offset) + bytes, u64::from(self.plan.block_bytes))
    }

    /// None when the file ends within the batch's header.
    fn read_batch(&self, header: &BatchHeader) -> Option<ScannedBatch> {
        let start = header.offset as usize + BatchHeader::stored_bytes(header.groups.len());
        let end = (start + header.records_bytes as usize).min(self.file.len());
        if start > end {
            return None;
        }
        let mut records = Vec::with_capacity(header.records.min(1 << 16) as usize);
        let mut position = start;
        while position < end {
            match self.read_record(position, end) {
                Some(record) => {
                    position += record.0.stored_bytes();
                    records.push(record);
                }
                None => position += 1,
            }
        }
        let damaged = self.damaged_groups(header, &records);
        records.retain(|(record, _)| damaged.iter().all(|listed| listed.key != record.key));
        Some(ScannedBatch { sequence: header.sequence, offset: u64::from(header.offset), records, damaged })
    }

    fn damaged_groups(&self, header: &BatchHeader, records: &[(Record, Location)]) -> Vec<ListedGroup> {
        if records.len() == header.records as usize {
            return Vec::new();
        }
        let mut counts: BTreeMap<GroupKey, u32> = BTreeMap::new();
        for (record, _) in records {
            *counts.entry(record.key).or_default() += 1;
        }
        let is_damaged = |listed: &&ListedGroup| counts.get(&listed.key).copied().unwrap_or(0) != listed.records;
        header.groups.iter().filter(is_damaged).copied().collect()
    }

    fn read_record(&self, position: usize, end: usize) -> Option<(Record, Location)> {
        let header = RecordHeader::decode(&self.file[position..end], self.plan.epoch, position as u32)?;
        let start = position + RECORD_HEADER_BYTES;
        let payload_end = start.checked_add(header.len as usize).filter(|payload_end| *payload_end <= end)?;
        if !header.verify(&self.file[start..payload_end]) {
            return None;
        }
        let payload = self.file.slice(start..payload_end);
        let location = Location { segment: self.plan.number, offset: position as u32, len: header.len };
        let RecordHeader { kind, key, index, term, .. } = header;
        Some((Record { kind, key, index, term, payload }, location))
    }
}
