use std::collections::VecDeque;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::WireError;

/// The last octet of every frame (AMQP 0-9-1 §4.2.3).
pub const FRAME_END: u8 = 0xCE;

/// What a frame takes beyond its payload: type, channel, size and end octet.
pub const FRAME_OVERHEAD_BYTES: usize = 8;

/// What a client sends first, and what a server answers to anything else (§4.2.2).
pub const PROTOCOL_HEADER: [u8; 8] = *b"AMQP\x00\x00\x09\x01";

const HEADER_BYTES: usize = 7;

/// The frame types of §4.2.3.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// A method and its arguments.
    Method = 1,
    /// A content header.
    Header = 2,
    /// A piece of a content body.
    Body = 3,
    /// A heartbeat.
    Heartbeat = 8,
}

/// One frame; the payload is a slice of what came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Its type.
    pub kind: FrameKind,
    /// Its channel; 0 is the connection.
    pub channel: u16,
    /// What is between header and end octet.
    pub payload: Bytes,
}

/// What the first eight octets of a connection are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProtocolHeader {
    /// `AMQP 0 0 9 1`.
    Amqp091,
    /// Something else, a different version or another protocol.
    Other {
        /// What came, at most eight octets.
        received: Bytes,
    },
}

/// Cuts a byte stream into frames. A frame that arrived in one piece is a slice of that piece; only one that was
/// split over pieces is copied together.
#[derive(Debug, Default)]
pub struct FrameDecoder {
    current: Bytes,
    later: VecDeque<Bytes>,
    partial: BytesMut,
}

impl FrameDecoder {
    /// An empty decoder.
    pub fn new() -> FrameDecoder {
        FrameDecoder::default()
    }

    /// Appends received bytes.
    pub fn feed(&mut self, bytes: Bytes) {
        if bytes.is_empty() {
            return;
        }
        if self.current.is_empty() { self.current = bytes } else { self.later.push_back(bytes) }
    }

    /// Octets fed and not yet returned.
    pub fn buffered_bytes(&self) -> usize {
        self.partial.len() + self.current.len() + self.later.iter().map(Bytes::len).sum::<usize>()
    }

    /// Takes the protocol header. `None` until the eight octets are there, or until they cannot match any more
    /// (a client that says `GET ` or starts a TLS handshake is told at once).
    pub fn protocol_header(&mut self) -> Option<ProtocolHeader> {
        self.gather(PROTOCOL_HEADER.len());
        if self.partial.is_empty() {
            return None;
        }
        if !PROTOCOL_HEADER.starts_with(&self.partial) {
            let most = self.partial.len().min(PROTOCOL_HEADER.len());
            return Some(ProtocolHeader::Other { received: Bytes::copy_from_slice(&self.partial[..most]) });
        }
        if self.partial.len() < PROTOCOL_HEADER.len() {
            return None;
        }
        self.partial.clear();
        Some(ProtocolHeader::Amqp091)
    }

    /// The next whole frame, of at most `frame_max` octets with its overhead (0 = no limit). After an error the
    /// stream has lost its framing and nothing more can be read from it.
    pub fn next_frame(&mut self, frame_max: u32) -> Result<Option<Frame>, WireError> {
        if self.partial.is_empty() {
            self.advance();
            if self.current.len() >= HEADER_BYTES {
                let total = frame_length(&self.current, frame_max)?;
                if self.current.len() >= total {
                    return parse(self.current.split_to(total)).map(Some);
                }
            }
        }
        self.gather(HEADER_BYTES);
        if self.partial.len() < HEADER_BYTES {
            return Ok(None);
        }
        let total = frame_length(&self.partial, frame_max)?;
        self.gather(total);
        if self.partial.len() < total {
            return Ok(None);
        }
        parse(self.partial.split().freeze()).map(Some)
    }

    fn advance(&mut self) {
        if self.current.is_empty()
            && let Some(next) = self.later.pop_front()
        {
            self.current = next;
        }
    }

    /// Moves octets to `partial` until it holds `total`, or nothing is left.
    fn gather(&mut self, total: usize) {
        while self.partial.len() < total {
            self.advance();
            if self.current.is_empty() {
                return;
            }
            let count = (total - self.partial.len()).min(self.current.len());
            self.partial.put_slice(&self.current[..count]);
            self.current.advance(count);
        }
    }
}

/// The length of the whole frame whose first seven octets are at the start of `head`.
fn frame_length(head: &[u8], frame_max: u32) -> Result<usize, WireError> {
    kind_of(head[0])?;
    let size_bytes = u32::from_be_bytes([head[3], head[4], head[5], head[6]]);
    let limit_bytes = match frame_max {
        0 => u32::MAX - FRAME_OVERHEAD_BYTES as u32,
        max => max.saturating_sub(FRAME_OVERHEAD_BYTES as u32),
    };
    if size_bytes > limit_bytes {
        return Err(WireError::FrameTooLarge { size_bytes, limit_bytes });
    }
    Ok(size_bytes as usize + FRAME_OVERHEAD_BYTES)
}

fn kind_of(octet: u8) -> Result<FrameKind, WireError> {
    match octet {
        1 => Ok(FrameKind::Method),
        2 => Ok(FrameKind::Header),
        3 => Ok(FrameKind::Body),
        8 => Ok(FrameKind::Heartbeat),
        other => Err(WireError::FrameType(other)),
    }
}

fn parse(mut whole: Bytes) -> Result<Frame, WireError> {
    let kind = kind_of(whole[0])?;
    let channel = u16::from_be_bytes([whole[1], whole[2]]);
    let end = whole[whole.len() - 1];
    if end != FRAME_END {
        return Err(WireError::FrameEnd(end));
    }
    whole.advance(HEADER_BYTES);
    whole.truncate(whole.len() - 1);
    Ok(Frame { kind, channel, payload: whole })
}

/// Appends a heartbeat frame (§4.2.7).
pub fn write_heartbeat(out: &mut BytesMut) {
    out.put_slice(&[FrameKind::Heartbeat as u8, 0, 0, 0, 0, 0, 0, FRAME_END]);
}

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;
