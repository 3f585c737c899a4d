//! Reading payloads back, from any thread, while the writer goes on.

use crate::filesystem::{FileSystem, StoredFile};
use crate::record::{RECORD_HEADER_BYTES, RecordHeader};
use crate::types::Location;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, PoisonError, RwLock};

/// Fetches payloads by location. A clone is cheap and sees what its origin sees.
pub trait EntryReader: Clone + Send + 'static {
    /// The payload written there, or why it cannot be had.
    fn read(&self, location: Location) -> Result<Bytes, ReadError>;
}

/// Why a payload cannot be had. Except for `Gone` (a caller's mistake) it means a damaged disk: the replica that needs
/// the payload must stop serving it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    #[error("segment {} was removed, because nothing in it was live", .location.segment)]
    Gone { location: Location },
    #[error("the record in segment {} at {} does not verify", .location.segment, .location.offset)]
    Damaged { location: Location },
    #[error("reading segment {} at {} failed: {kind}", .location.segment, .location.offset)]
    Io { location: Location, kind: io::ErrorKind },
}

/// An open segment, as the reader needs it.
pub(crate) struct ReadableSegment<F> {
    pub file: F,
    pub epoch: u64,
}

impl<F: StoredFile> ReadableSegment<F> {
    /// The payload of the record there, verified.
    pub(crate) fn read(&self, location: Location) -> Result<Bytes, ReadError> {
        let mut buffer = vec![0; RECORD_HEADER_BYTES + location.len as usize];
        let count = self
            .file
            .read_at(u64::from(location.offset), &mut buffer)
            .map_err(|error| ReadError::Io { location, kind: error.kind() })?;
        let verified = count == buffer.len()
            && RecordHeader::decode(&buffer, self.epoch, location.offset)
                .is_some_and(|header| header.len == location.len && header.verify(&buffer[RECORD_HEADER_BYTES..]));
        if !verified {
            return Err(ReadError::Damaged { location });
        }
        Ok(Bytes::from(buffer).slice(RECORD_HEADER_BYTES..))
    }
}

/// The open segments, by number.
pub(crate) type Segments<F> = BTreeMap<u32, Arc<ReadableSegment<F>>>;

/// Reads what a [`crate::Journal`] wrote.
pub struct JournalReader<F: FileSystem> {
    segments: Arc<RwLock<Segments<F::File>>>,
}

impl<F: FileSystem> Clone for JournalReader<F> {
    fn clone(&self) -> Self {
        Self { segments: Arc::clone(&self.segments) }
    }
}

impl<F: FileSystem> JournalReader<F> {
    pub(crate) fn new(segments: Segments<F::File>) -> Self {
        Self { segments: Arc::new(RwLock::new(segments)) }
    }

    pub(crate) fn insert(&self, number: u32, segment: Arc<ReadableSegment<F::File>>) {
        self.segments.write().unwrap_or_else(PoisonError::into_inner).insert(number, segment);
    }

    pub(crate) fn remove(&self, number: u32) {
        self.segments.write().unwrap_or_else(PoisonError::into_inner).remove(&number);
    }

    pub(crate) fn segment(&self, number: u32) -> Option<Arc<ReadableSegment<F::File>>> {
        self.segments.read().unwrap_or_else(PoisonError::into_inner).get(&number).cloned()
    }
}

impl<F: FileSystem> EntryReader for JournalReader<F> {
    fn read(&self, location: Location) -> Result<Bytes, ReadError> {
        let segment = self.segment(location.segment).ok_or(ReadError::Gone { location })?;
        segment.read(location)
    }
}
