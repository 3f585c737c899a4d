//! Frames of the peer links: `length: u32` (of the payload, big-endian), `checksum: u32` (crc32c over the length and the
//! payload), then the payload.
//!
//! TLS already protects the bytes on the wire; the checksum also covers this program's own buffers, so that a fault
//! there ends a link and never reaches a journal.

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Bytes before each payload.
pub const HEADER_BYTES: usize = 8;

/// The largest payload. A message body of 128 MiB travels in one entry; everything else is far smaller (snapshot chunks
/// are at most 1 MiB, and the member keeps to [`holdfast_engine::FRAME_ROOM_BYTES`]). Room is taken as bytes arrive, never by what a length claims.
pub const MAX_PAYLOAD_BYTES: usize = 144 << 20;
const _: () = assert!(MAX_PAYLOAD_BYTES >= (128 << 20) + holdfast_engine::FRAME_ROOM_BYTES);

/// How much is read from a link at once, and how much room a reader keeps.
const READ_BYTES: usize = 64 << 10;

/// A link's bytes that are not frames. The link is closed.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("a frame claims {0} bytes, over the limit of {MAX_PAYLOAD_BYTES}")]
    TooLarge(usize),
    #[error("a frame's checksum is wrong (stated {stated:08x}, computed {computed:08x})")]
    Checksum { stated: u32, computed: u32 },
    #[error("the connection ended inside a frame")]
    CutShort,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The header to send before `payload`.
///
/// Payloads over [`MAX_PAYLOAD_BYTES`] cannot be framed; the caller checks.
pub fn header(payload: &[u8]) -> Bytes {
    debug_assert!(payload.len() <= MAX_PAYLOAD_BYTES);
    let length = payload.len() as u32;
    let mut out = BytesMut::with_capacity(HEADER_BYTES);
    out.put_u32(length);
    out.put_u32(checksum(length, payload));
    out.freeze()
}

fn checksum(length: u32, payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&length.to_be_bytes()), payload)
}

/// Cuts a stream of bytes into payloads, without copying them.
#[derive(Default)]
pub struct FrameReader {
    buffer: BytesMut,
}

impl FrameReader {
    /// The next payload, or `None` at the end of the stream (which must be between two frames).
    pub async fn next(&mut self, stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<Bytes>, FrameError> {
        loop {
            if let Some(payload) = self.take()? {
                return Ok(Some(payload));
            }
            self.buffer.reserve(READ_BYTES);
            if stream.read_buf(&mut self.buffer).await? == 0 {
                return if self.buffer.is_empty() { Ok(None) } else { Err(FrameError::CutShort) };
            }
        }
    }

    /// A whole payload that is already here, if there is one.
    pub fn take(&mut self) -> Result<Option<Bytes>, FrameError> {
        let Some(mut head) = self.buffer.get(..HEADER_BYTES) else { return Ok(None) };
        let (length, stated) = (head.get_u32(), head.get_u32());
        let size = length as usize;
        if size > MAX_PAYLOAD_BYTES {
            return Err(FrameError::TooLarge(size));
        }
        if self.buffer.len() < HEADER_BYTES + size {
            return Ok(None);
        }
        self.buffer.advance(HEADER_BYTES);
        let payload = self.buffer.split_to(size).freeze();
        match checksum(length, &payload) {
            computed if computed == stated => Ok(Some(payload)),
            computed => Err(FrameError::Checksum { stated, computed }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(payloads: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        for payload in payloads {
            out.extend_from_slice(&header(payload));
            out.extend_from_slice(payload);
        }
        out
    }

    fn read_all(bytes: &[u8], piece: usize) -> Result<Vec<Bytes>, FrameError> {
        let mut reader = FrameReader::default();
        let mut out = Vec::new();
        for part in bytes.chunks(piece) {
            reader.buffer.extend_from_slice(part);
            while let Some(payload) = reader.take()? {
                out.push(payload);
            }
        }
        Ok(out)
    }

    #[test]
    fn frames_come_back_whole_however_the_stream_is_split() {
        let payloads: [&[u8]; 4] = [b"one", b"", &[7; 3000], b"last"];
        let bytes = framed(&payloads);
        for piece in [1, 2, 7, 8, 9, 1000, bytes.len()] {
            assert_eq!(read_all(&bytes, piece).unwrap(), payloads, "in pieces of {piece}");
        }
    }

    #[test]
    fn a_changed_byte_anywhere_in_a_frame_never_yields_a_wrong_payload() {
        let bytes = framed(&[b"payload"]);
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 0x10;
            assert!(!matches!(read_all(&bad, 64), Ok(payloads) if !payloads.is_empty()), "byte {at}");
        }
    }

    #[test]
    fn a_length_over_the_limit_is_refused_before_room_is_taken_for_it() {
        let mut bytes = (MAX_PAYLOAD_BYTES as u32 + 1).to_be_bytes().to_vec();
        bytes.extend_from_slice(&[0; 4]);
        assert!(matches!(read_all(&bytes, 8), Err(FrameError::TooLarge(_))));
    }

    #[tokio::test]
    async fn a_stream_that_ends_inside_a_frame_is_an_error_and_between_frames_is_not() {
        let bytes = framed(&[b"payload"]);
        let mut whole = &bytes[..];
        let mut reader = FrameReader::default();
        assert_eq!(reader.next(&mut whole).await.unwrap().unwrap(), &b"payload"[..]);
        assert!(reader.next(&mut whole).await.unwrap().is_none());
        let mut cut = &bytes[..bytes.len() - 1];
        assert!(matches!(FrameReader::default().next(&mut cut).await, Err(FrameError::CutShort)));
    }
}
