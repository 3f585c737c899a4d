//! The frame of a snapshot: version, content, checksum.

use crate::codec::{DecodeError, Reader, Writer};
use bytes::Bytes;

const TRAILER: usize = 8;

/// FNV-1a: a plain hash that is the same on every machine. Not for adversaries: the journal has its own checksums.
pub(crate) fn digest(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// Frames what `content` writes.
pub(crate) fn seal(version: u8, content: impl FnOnce(&mut Writer)) -> Bytes {
    let mut out = Writer::default();
    out.u8(version);
    content(&mut out);
    let sum = digest(out.as_slice());
    out.fixed64(sum);
    out.into_bytes()
}

/// Checks the frame and reads its content.
///
/// # Errors
/// When the version is another, the checksum does not match, or the content is not what `read` takes.
pub(crate) fn open<T>(
    what: &'static str,
    version: u8,
    bytes: &Bytes,
    read: impl FnOnce(&mut Reader) -> Result<T, DecodeError>,
) -> Result<T, DecodeError> {
    let Some(end) = bytes.len().checked_sub(TRAILER).filter(|end| *end > 0) else {
        return Err(DecodeError::Truncated);
    };
    if bytes[0] != version {
        return Err(DecodeError::UnknownVersion { what, version: bytes[0] });
    }
    let expected = Reader::at(bytes.clone(), end).fixed64()?;
    let found = digest(&bytes[..end]);
    if found != expected {
        return Err(DecodeError::Checksum { found, expected });
    }
    let mut input = Reader::at(bytes.slice(..end), 1);
    let value = read(&mut input)?;
    input.finish()?;
    Ok(value)
}
