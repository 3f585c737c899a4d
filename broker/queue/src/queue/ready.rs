//! The messages of a queue that wait for a consumer, in the order in which they were published.

use crate::codec::{Codec, DecodeError, Reader, Writer};
use crate::ids::MessageRef;
use crate::packed::{Packed, PackedMap, Record, difference, follow, put_varint};

/// A message as the state knows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Held {
    /// Where its content is; also its place in the queue.
    pub(super) at: MessageRef,
    /// Size of its content, in bytes.
    pub(super) size: u32,
    /// How often it was delivered and came back.
    pub(super) returns: u32,
}

/// Neighbours are alike: three bytes for messages of one size that were never out.
impl Record for Held {
    type Key = MessageRef;

    fn key(&self) -> MessageRef {
        self.at
    }

    fn pack(&self, before: &Self, out: &mut Vec<u8>) {
        // An index takes 62 bits at most: a million entries a second need 100,000 years for more.
        let returned = u64::from(self.returns > 0);
        put_varint(difference(before.at.index, self.at.index) << 1 | returned, out);
        put_varint(difference(u64::from(before.at.sub), u64::from(self.at.sub)), out);
        put_varint(difference(u64::from(before.size), u64::from(self.size)), out);
        if returned == 1 {
            put_varint(u64::from(self.returns), out);
        }
    }

    fn unpack(before: &Self, input: &mut Packed<'_>) -> Option<Self> {
        let head = input.varint()?;
        let index = follow(before.at.index, head >> 1);
        let at = MessageRef { index, sub: input.follow32(before.at.sub)? };
        let size = input.follow32(before.size)?;
        let returns = if head & 1 == 1 { input.varint32()? } else { 0 };
        Some(Held { at, size, returns })
    }
}

/// Ready messages in order.
#[derive(Clone, Debug, Default)]
pub(super) struct ReadyLine {
    line: PackedMap<Held>,
    bytes: u64,
}

impl ReadyLine {
    /// Adds a new message at the tail.
    pub(super) fn push(&mut self, at: MessageRef, size: u32) {
        self.put_back(Held { at, size, returns: 0 });
    }

    /// Returns a message to its place.
    pub(super) fn put_back(&mut self, message: Held) {
        self.line.insert(message);
        self.bytes += u64::from(message.size);
    }

    /// Takes the oldest message.
    pub(super) fn pop(&mut self) -> Option<Held> {
        let message = self.line.pop_first()?;
        self.bytes -= u64::from(message.size);
        Some(message)
    }

    pub(super) fn len(&self) -> usize {
        self.line.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.line.is_empty()
    }

    /// Size of all contents, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// All of them, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = Held> {
        self.line.iter()
    }

    /// Indexes of the entries of all messages, in order, one for each message.
    pub(super) fn indexes(&self) -> impl Iterator<Item = u64> {
        self.line.iter().map(|message| message.at.index)
    }
}

impl Codec for ReadyLine {
    fn encode(&self, out: &mut Writer) {
        self.line.encode(out);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        let line: PackedMap<Held> = Codec::decode(input)?;
        let bytes = line.iter().map(|message| u64::from(message.size)).sum();
        Ok(ReadyLine { line, bytes })
    }
}
