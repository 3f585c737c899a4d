//! Segment files: their names, headers, and the list of older segments that each header keeps.
//!
//! The list says which older files must be there and how far each of them is good, so a missing or cut file is
//! noticed, and a removed one that shows up again after a power loss is not replayed.

use crate::encoding::Cursor;
use crate::record::crc_around;
use crate::types::JournalError;

const MAGIC: [u8; 8] = *b"HFSEGMNT";
const VERSION: u16 = 2;
const FIXED_BYTES: usize = 56;
const LISTED_BYTES: usize = 40;

pub(crate) fn segment_name(number: u32) -> String {
    format!("segment-{number:010}.log")
}

pub(crate) fn segment_number(name: &str) -> Option<u32> {
    let digits = name.strip_prefix("segment-")?.strip_suffix(".log")?;
    (digits.len() == 10).then(|| digits.parse().ok())?
}

/// The epoch of a file made by this start of the program (splitmix64).
pub(crate) fn file_epoch(nonce: u64, number: u32) -> u64 {
    let mut mixed = nonce.wrapping_add((u64::from(number) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

pub(crate) fn align_up(bytes: u64, block: u64) -> u64 {
    bytes.div_ceil(block) * block
}

/// An older segment, as a newer one remembers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SealedSegment {
    pub number: u32,
    /// Where its last batch ends; what follows is not part of the log.
    pub end: u32,
    pub epoch: u64,
    pub first_sequence: u64,
    pub last_sequence: u64,
    /// Batches above this one were written again into the newer segment.
    pub proven: u64,
}

/// The start of a segment file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub number: u32,
    pub block_bytes: u32,
    pub epoch: u64,
    pub first_sequence: u64,
    /// What the file was preallocated to. The open segment's file is never shorter, unless somebody cut it.
    pub file_bytes: u64,
    pub older: Vec<SealedSegment>,
}

impl SegmentHeader {
    /// Bytes before the first batch.
    pub(crate) fn stored_bytes(&self) -> u64 {
        align_up((FIXED_BYTES + self.older.len() * LISTED_BYTES) as u64, u64::from(self.block_bytes))
    }

    /// The header, filled up with zero bytes to the first batch.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let bytes = FIXED_BYTES + self.older.len() * LISTED_BYTES;
        let mut out = Vec::with_capacity(self.stored_bytes() as usize);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&(bytes as u32).to_le_bytes());
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        for number in [self.block_bytes, self.number, self.older.len() as u32] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        for number in [self.epoch, self.first_sequence, self.file_bytes] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        for sealed in &self.older {
            out.extend_from_slice(&sealed.number.to_le_bytes());
            out.extend_from_slice(&sealed.end.to_le_bytes());
            for number in [sealed.epoch, sealed.first_sequence, sealed.last_sequence, sealed.proven] {
                out.extend_from_slice(&number.to_le_bytes());
            }
        }
        let crc = crc_around(&out, 8);
        out[8..12].copy_from_slice(&crc.to_le_bytes());
        out.resize(self.stored_bytes() as usize, 0);
        out
    }

    /// None when it is damaged. A header of a later format is an error, not damage.
    pub(crate) fn decode(file: &[u8], name: &str) -> Result<Option<Self>, JournalError> {
        let Some((version, header)) = Self::parse(file) else { return Ok(None) };
        if version != VERSION {
            return Err(JournalError::UnknownVersion { file: name.to_owned(), version, known: VERSION });
        }
        Ok(header)
    }

    /// The version, and the header when it is of ours; none when the checksum does not fit.
    fn parse(file: &[u8]) -> Option<(u16, Option<Self>)> {
        let mut cursor = Cursor(file);
        let magic = cursor.bytes(8)?;
        let crc = cursor.u32()?;
        let bytes = file.get(..cursor.u32()? as usize)?;
        if magic != MAGIC || bytes.len() < FIXED_BYTES || crc_around(bytes, 8) != crc {
            return None;
        }
        let version = cursor.u16()?;
        cursor.u16()?;
        Some((version, Self::parse_body(&mut cursor)))
    }

    fn parse_body(cursor: &mut Cursor<'_>) -> Option<Self> {
        let block_bytes = cursor.u32()?;
        let number = cursor.u32()?;
        let count = cursor.u32()?;
        let epoch = cursor.u64()?;
        let first_sequence = cursor.u64()?;
        let file_bytes = cursor.u64()?;
        let mut older = Vec::new();
        for _ in 0..count {
            older.push(SealedSegment {
                number: cursor.u32()?,
                end: cursor.u32()?,
                epoch: cursor.u64()?,
                first_sequence: cursor.u64()?,
                last_sequence: cursor.u64()?,
                proven: cursor.u64()?,
            });
        }
        block_bytes.is_power_of_two().then_some(Self { number, block_bytes, epoch, first_sequence, file_bytes, older })
    }
}
