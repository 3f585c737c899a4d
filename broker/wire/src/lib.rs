//! AMQP 0-9-1 codec: frames, methods, content headers and field tables, without I/O.
//!
//! Everything decoded is a slice of the bytes that came in: a `basic.publish` costs no allocation for its exchange,
//! routing key, properties or body. Every decoder is total: bad input gives a [`WireError`], never a panic.
//!
//! - [`FrameDecoder`] cuts a byte stream, split anywhere, into [`Frame`]s.
//! - [`Method`] is every method of 0-9-1 with RabbitMQ's extensions, in both directions.
//! - [`ContentHeader`] and [`Properties`] keep a message's property list byte for byte, with a typed view on demand.
//! - [`FieldTable`] is a checked table in its encoded form, with an iterator and a builder.

mod arguments;
mod content;
mod error;
mod frame;
mod method;
mod properties;
mod table;
mod text;

pub use arguments::{ArgumentReader, ArgumentWriter};
pub use content::{ContentHeader, body_frames, write_body_frame, write_frame_end};
pub use error::{ReplyCode, WireError};
pub use frame::{
    FRAME_END, FRAME_OVERHEAD_BYTES, Frame, FrameDecoder, FrameKind, PROTOCOL_HEADER, ProtocolHeader, write_heartbeat,
};
pub use method::{Method, MethodId};
pub use properties::{BasicProperties, Properties};
pub use table::{FieldArray, FieldTable, FieldValue, TableIter};
pub use text::{LongStr, ShortStr};

/// The class of every method and header that carries content.
pub const BASIC_CLASS: u16 = 60;
