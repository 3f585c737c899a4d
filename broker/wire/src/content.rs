use bytes::{BufMut, Bytes, BytesMut};

use crate::frame::{FRAME_END, FRAME_OVERHEAD_BYTES, FrameKind};
use crate::{ArgumentReader, BASIC_CLASS, Properties, WireError};

/// A content header (AMQP 0-9-1 §4.2.6.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContentHeader {
    /// The class of the method it belongs to.
    pub class_id: u16,
    /// Unused, zero.
    pub weight: u16,
    /// Octets of body that follow.
    pub body_bytes: u64,
    /// The property list, checked and kept as received.
    pub properties: Properties,
}

impl ContentHeader {
    /// Decodes the payload of a header frame.
    pub fn decode(payload: Bytes) -> Result<ContentHeader, WireError> {
        let mut from = ArgumentReader::new(payload);
        let class_id = from.short()?;
        let weight = from.short()?;
        let body_bytes = from.long_long()?;
        let properties = Properties::parse(from.rest())?;
        Ok(ContentHeader { class_id, weight, body_bytes, properties })
    }

    /// Appends a whole header frame of the basic class; `properties` as [`Properties::as_bytes`] gives them.
    pub fn encode(channel: u16, body_bytes: u64, properties: &[u8], out: &mut BytesMut) {
        out.put_u8(FrameKind::Header as u8);
        out.put_u16(channel);
        out.put_u32(12 + properties.len() as u32);
        out.put_u16(BASIC_CLASS);
        out.put_u16(0);
        out.put_u64(body_bytes);
        out.put_slice(properties);
        out.put_u8(FRAME_END);
    }
}

/// Cuts a body into the payloads of body frames of at most `frame_max` octets each (0 = one frame), without copying.
/// An empty body has no frame.
pub fn body_frames(body: &Bytes, frame_max: u32) -> impl Iterator<Item = Bytes> + '_ {
    let piece = match frame_max {
        0 => body.len().max(1),
        max => (max as usize).saturating_sub(FRAME_OVERHEAD_BYTES).max(1),
    };
    (0..body.len()).step_by(piece).map(move |at| body.slice(at..(at + piece).min(body.len())))
}

/// Appends a body frame's head for `payload_bytes` octets; the payload and [`write_frame_end`] follow.
pub fn write_body_frame(channel: u16, payload_bytes: usize, out: &mut BytesMut) {
    out.put_u8(FrameKind::Body as u8);
    out.put_u16(channel);
    out.put_u32(payload_bytes as u32);
}

/// Appends the end octet.
pub fn write_frame_end(out: &mut BytesMut) {
    out.put_u8(FRAME_END);
}
