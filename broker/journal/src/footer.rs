//! The footer of a sealed segment: what is in the segment and where, so that a start need not read it, and a checksum of
//! it all, so that a look at it need not know what it means.
//!
//! ```text
//! footer   magic8 crc4 version2 pad2 number4 content4 bytes4 content_crc4 epoch8 first8 proven8 records8 │ record × records
//! record   kind1 group index+ term+ offset+ len │ payload, unless it is an entry's or a body's
//! ```
//! It begins where the segment's last batch ends, which the header of the next segment knows. Numbers of a record are
//! variable-length; those with a plus are differences to the record before (of the same group, but for the offset). The
//! first record of a group brings the group's key. It speaks of proven batches only: one that may not have reached the
//! disk has a copy in the next segment.

use crate::encoding::{Cursor, put_varint};
use crate::filesystem::StoredFile;
use crate::record::{Kind, RECORD_HEADER_BYTES, Record, crc_around};
use crate::segment::SealedSegment;
use crate::types::{GroupKey, Incarnation, Location};
use bytes::Bytes;
use std::collections::BTreeMap;

const MAGIC: [u8; 8] = *b"HFFOOTER";
const VERSION: u16 = 1;
const HEADER_BYTES: usize = 64;

/// Collects a footer while its segment is written.
#[derive(Debug, Default)]
pub(crate) struct FooterBuilder {
    bytes: Vec<u8>,
    groups: BTreeMap<GroupKey, Previous>,
    next_offset: u32,
    records: u64,
    content_bytes: u32,
    content_crc: u32,
}

/// What the last record of a group was.
#[derive(Clone, Copy, Debug)]
struct Previous {
    number: u64,
    index: u64,
    term: u64,
}

/// Entries and bodies are found by their place; of all other records the footer has the payload.
fn is_elsewhere(kind: Kind) -> bool {
    matches!(kind, Kind::Entry | Kind::Body)
}

fn zigzag(from: u64, to: u64) -> u64 {
    let difference = to.wrapping_sub(from) as i64;
    ((difference << 1) ^ (difference >> 63)) as u64
}

fn unzigzag(from: u64, coded: u64) -> u64 {
    from.wrapping_add((coded >> 1) ^ (coded & 1).wrapping_neg())
}

impl FooterBuilder {
    /// The segment's next bytes: its header, or a batch.
    pub(crate) fn content(&mut self, bytes: &[u8]) {
        self.content_crc = crc32c::crc32c_append(self.content_crc, bytes);
        self.content_bytes += bytes.len() as u32;
    }

    /// The segment's next record.
    pub(crate) fn record(&mut self, record: &Record, location: Location) {
        let known = self.groups.len() as u64;
        let mut is_new = false;
        let previous = self.groups.entry(record.key).or_insert_with(|| {
            is_new = true;
            Previous { number: known, index: 0, term: 0 }
        });
        let out = &mut self.bytes;
        out.push(record.kind as u8);
        put_varint(out, previous.number);
        if is_new {
            put_varint(out, record.key.group);
            put_varint(out, u64::from(record.key.incarnation.counter));
            out.extend_from_slice(&record.key.incarnation.nonce.to_le_bytes());
        }
        put_varint(out, zigzag(previous.index, record.index));
        put_varint(out, zigzag(previous.term, record.term));
        put_varint(out, u64::from(location.offset.wrapping_sub(self.next_offset)));
        put_varint(out, u64::from(location.len));
        if !is_elsewhere(record.kind) {
            out.extend_from_slice(&record.payload);
        }
        (previous.index, previous.term) = (record.index, record.term);
        self.next_offset = location.offset + RECORD_HEADER_BYTES as u32 + location.len;
        self.records += 1;
    }

    /// The footer's bytes.
    pub(crate) fn finish(self, segment: &SealedSegment) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_BYTES + self.bytes.len());
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        for number in [segment.number, self.content_bytes, self.bytes.len() as u32, self.content_crc] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        for number in [segment.epoch, segment.first_sequence, segment.proven, self.records] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&self.bytes);
        let crc = crc_around(&out, 8);
        out[8..12].copy_from_slice(&crc.to_le_bytes());
        out
    }
}

/// A footer that verifies.
#[derive(Clone, Debug)]
pub(crate) struct Footer {
    pub number: u32,
    pub epoch: u64,
    pub first_sequence: u64,
    /// The last batch that it speaks of.
    pub proven: u64,
    pub records: u64,
    /// The checksum is of so many bytes from the start of the file.
    pub content_bytes: u32,
    pub content_crc: u32,
    /// Of the footer itself.
    pub stored_bytes: u32,
    bytes: Bytes,
}

impl Footer {
    /// The footer at `end` of the file; none if there is none, it is damaged, or the disk cannot read it.
    pub(crate) fn load(file: &impl StoredFile, end: u32) -> Option<Self> {
        let mut header = [0; HEADER_BYTES];
        if file.read_at(u64::from(end), &mut header).ok()? < HEADER_BYTES || header[..8] != MAGIC {
            return None;
        }
        let mut cursor = Cursor(&header[8..]);
        let crc = cursor.u32()?;
        let version = cursor.u16()?;
        cursor.u16()?;
        let number = cursor.u32()?;
        let content_bytes = cursor.u32()?;
        let bytes = cursor.u32()?;
        let content_crc = cursor.u32()?;
        let (epoch, first_sequence) = (cursor.u64()?, cursor.u64()?);
        let (proven, records) = (cursor.u64()?, cursor.u64()?);
        let stored_bytes = bytes.checked_add(HEADER_BYTES as u32)?;
        if version != VERSION || file.len().ok()? < u64::from(end) + u64::from(stored_bytes) {
            return None;
        }
        let mut whole = vec![0; stored_bytes as usize];
        let count = file.read_at(u64::from(end), &mut whole).ok()?;
        if count < whole.len() || crc_around(&whole, 8) != crc {
            return None;
        }
        let bytes = Bytes::from(whole).slice(HEADER_BYTES..);
        Some(Self { number, epoch, first_sequence, proven, records, content_bytes, content_crc, stored_bytes, bytes })
    }

    /// Whether it is the footer of the segment that a newer one lists.
    pub(crate) fn belongs_to(&self, sealed: &SealedSegment) -> bool {
        (self.number, self.epoch, self.first_sequence, self.proven)
            == (sealed.number, sealed.epoch, sealed.first_sequence, sealed.proven)
    }

    /// Its records, in order. Those of entries and bodies have no payload.
    pub(crate) fn records(&self) -> FooterRecords {
        let left = self.records;
        FooterRecords {
            segment: self.number,
            bytes: self.bytes.clone(),
            position: 0,
            groups: Vec::new(),
            next_offset: 0,
            left,
        }
    }
}

/// Goes through the records of a footer.
pub(crate) struct FooterRecords {
    segment: u32,
    bytes: Bytes,
    /// Of the next record.
    position: usize,
    groups: Vec<(GroupKey, Previous)>,
    next_offset: u32,
    left: u64,
}

impl FooterRecords {
    /// True when all records were given. After the end of the iteration it is false only for a footer that another
    /// program wrote.
    pub(crate) fn is_complete(&self) -> bool {
        self.left == 0
    }

    fn decode(&mut self) -> Option<(Record, Location)> {
        let mut cursor = Cursor(self.bytes.get(self.position..)?);
        let kind = Kind::from_byte(cursor.u8()?)?;
        let number = cursor.varint()?;
        if number == self.groups.len() as u64 {
            let group = cursor.varint()?;
            let counter = u32::try_from(cursor.varint()?).ok()?;
            let key = GroupKey { group, incarnation: Incarnation { counter, nonce: cursor.u64()? } };
            self.groups.push((key, Previous { number, index: 0, term: 0 }));
        }
        let (key, previous) = self.groups.get_mut(usize::try_from(number).ok()?)?;
        let index = unzigzag(previous.index, cursor.varint()?);
        let term = unzigzag(previous.term, cursor.varint()?);
        let offset = self.next_offset.wrapping_add(u32::try_from(cursor.varint()?).ok()?);
        let len = u32::try_from(cursor.varint()?).ok()?;
        let mut position = self.bytes.len() - cursor.0.len();
        let mut payload = Bytes::new();
        if !is_elsewhere(kind) {
            cursor.bytes(len as usize)?;
            payload = self.bytes.slice(position..position + len as usize);
            position += len as usize;
        }
        (previous.index, previous.term) = (index, term);
        self.next_offset = offset.checked_add(RECORD_HEADER_BYTES as u32)?.checked_add(len)?;
        self.position = position;
        let record = Record { kind, key: *key, index, term, payload };
        Some((record, Location { segment: self.segment, offset, len }))
    }
}

impl Iterator for FooterRecords {
    type Item = (Record, Location);

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        let found = self.decode()?;
        self.left -= 1;
        Some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filesystem::{FileSystem, RealFileSystem};
    use crate::record::indexes_record;

    fn records() -> Vec<(Record, Location)> {
        let mut all = Vec::new();
        let mut offset = 4096;
        for step in 0..500u64 {
            let key = GroupKey { group: step % 7, incarnation: Incarnation { counter: 1, nonce: step % 7 * 91 } };
            let record = match step % 5 {
                4 => indexes_record(Kind::Dead, key, 0, [step, step + 9]),
                3 => Record { kind: Kind::Body, key, index: step / 2, term: 0, payload: Bytes::new() },
                _ => Record { kind: Kind::Entry, key, index: step, term: step / 50, payload: Bytes::new() },
            };
            let len = if is_elsewhere(record.kind) { 100 + step as u32 % 13 } else { record.payload.len() as u32 };
            all.push((record, Location { segment: 9, offset, len }));
            offset += RECORD_HEADER_BYTES as u32 + len + if step % 10 == 9 { 512 } else { 0 };
        }
        all
    }

    fn sealed() -> SealedSegment {
        SealedSegment { number: 9, end: 512, epoch: 77, first_sequence: 3, last_sequence: 12, proven: 12 }
    }

    fn stored() -> (tempfile::TempDir, std::fs::File, Vec<(Record, Location)>, usize) {
        let mut builder = FooterBuilder::default();
        builder.content(&[1; 512]);
        let all = records();
        all.iter().for_each(|(record, location)| builder.record(record, *location));
        let bytes = builder.finish(&sealed());
        let root = tempfile::tempdir().expect("a directory");
        let file = RealFileSystem::new(root.path()).expect("a file system").create("a", 0).expect("create");
        file.write_at(512, &bytes).expect("write");
        (root, file, all, bytes.len())
    }

    #[test]
    fn every_record_reads_back_with_its_place() {
        let (_root, file, all, bytes) = stored();
        let footer = Footer::load(&file, 512).expect("the footer verifies");
        assert!(footer.belongs_to(&sealed()));
        assert!(!footer.belongs_to(&SealedSegment { epoch: 78, ..sealed() }));
        assert_eq!((footer.content_bytes, footer.content_crc), (512, crc32c::crc32c(&[1; 512])));
        assert_eq!(footer.records().collect::<Vec<_>>(), all);
        assert!(bytes < all.len() * 16, "{bytes} bytes for {} records", all.len());
    }

    #[test]
    fn a_changed_or_cut_footer_does_not_verify() {
        let (_root, file, _, bytes) = stored();
        for at in (0..bytes).step_by(7) {
            let mut byte = [0];
            file.read_at(512 + at as u64, &mut byte).expect("read");
            file.write_at(512 + at as u64, &[byte[0] ^ 4]).expect("write");
            assert!(Footer::load(&file, 512).is_none(), "byte {at}");
            file.write_at(512 + at as u64, &byte).expect("write");
        }
        assert!(Footer::load(&file, 512).is_some());
        file.set_len(512 + bytes as u64 - 1).expect("cut");
        assert!(Footer::load(&file, 512).is_none());
    }
}
