//! How commands, effects and snapshots look in the log and on peer links: our own, versioned, compact, and zero-copy
//! for bodies.
//!
//! Integers are LEB128 varints (signed ones zigzagged), random identifiers eight bytes little-endian, strings and bytes
//! length-prefixed, enums a tag byte. Decoding takes any bytes: it answers with an error, never with a panic or a large
//! allocation.

mod buffer;
mod entry;
mod types;

pub use buffer::{Codec, DecodeError, Reader, Writer};
pub use entry::{Batch, Entry, EntryBuilder, Message, Origin, Positioned, message_at};

pub(crate) use buffer::{codec_enum, codec_struct};
