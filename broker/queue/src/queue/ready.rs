//! The messages of a queue that wait for a consumer, in the order in which they were published.

use crate::codec::{Codec, DecodeError, Reader, Writer};
use crate::ids::MessageRef;
use std::collections::{BTreeMap, VecDeque};

/// A message as the state knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Held {
    /// Where its content is; also its place in the queue.
    pub(super) at: MessageRef,
    /// Size of its content, in bytes.
    pub(super) size: u32,
    /// How often it was delivered and came back.
    pub(super) returns: u32,
}

/// A message that was never delivered: 16 bytes, since a queue may hold many millions.
#[derive(Clone, Copy, Debug)]
struct Fresh {
    index: u64,
    sub: u32,
    size: u32,
}

/// Ready messages in order. Only messages that were taken from the front come back, so those that came back are all
/// older than those that were never out: two lines, one after the other.
#[derive(Clone, Debug, Default)]
pub(super) struct ReadyLine {
    returned: BTreeMap<MessageRef, (u32, u32)>,
    fresh: VecDeque<Fresh>,
    bytes: u64,
}

impl ReadyLine {
    /// Adds a new message at the tail.
    pub(super) fn push(&mut self, at: MessageRef, size: u32) {
        self.fresh.push_back(Fresh { index: at.index, sub: at.sub, size });
        self.bytes += u64::from(size);
    }

    /// Returns a message to its place.
    pub(super) fn put_back(&mut self, message: Held) {
        self.returned.insert(message.at, (message.size, message.returns));
        self.bytes += u64::from(message.size);
    }

    /// Takes the oldest message.
    pub(super) fn pop(&mut self) -> Option<Held> {
        let message = match self.returned.pop_first() {
            Some((at, (size, returns))) => Held { at, size, returns },
            None => {
                let fresh = self.fresh.pop_front()?;
                shrink(&mut self.fresh);
                let at = MessageRef { index: fresh.index, sub: fresh.sub };
                Held { at, size: fresh.size, returns: 0 }
            }
        };
        self.bytes -= u64::from(message.size);
        Some(message)
    }

    pub(super) fn len(&self) -> usize {
        self.returned.len() + self.fresh.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.returned.is_empty() && self.fresh.is_empty()
    }

    /// Size of all contents, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Indexes of the entries of all messages, in order, one for each message.
    pub(super) fn indexes(&self) -> impl Iterator<Item = u64> {
        self.returned.keys().map(|at| at.index).chain(self.fresh.iter().map(|fresh| fresh.index))
    }
}

/// Gives memory back once a line that was long is nearly empty.
pub(super) fn shrink<T>(line: &mut VecDeque<T>) {
    if line.capacity() > 4096 && line.len() < line.capacity() / 4 {
        line.shrink_to(line.capacity() / 2);
    }
}

impl Codec for Held {
    fn encode(&self, out: &mut Writer) {
        self.at.encode(out);
        self.size.encode(out);
        self.returns.encode(out);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Held { at: Codec::decode(input)?, size: Codec::decode(input)?, returns: Codec::decode(input)? })
    }
}

impl Codec for ReadyLine {
    fn encode(&self, out: &mut Writer) {
        self.returned.encode(out);
        out.varint(self.fresh.len() as u64);
        let mut before = 0;
        for fresh in &self.fresh {
            out.varint(fresh.index.wrapping_sub(before));
            fresh.sub.encode(out);
            fresh.size.encode(out);
            before = fresh.index;
        }
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        let returned: BTreeMap<MessageRef, (u32, u32)> = Codec::decode(input)?;
        let mut bytes: u64 = returned.values().map(|(size, _)| u64::from(*size)).sum();
        let count = input.length()?;
        let mut fresh = VecDeque::with_capacity(count.min(input.remaining() / 3));
        let mut index = 0u64;
        for _ in 0..count {
            index = index.wrapping_add(input.varint()?);
            let message = Fresh { index, sub: Codec::decode(input)?, size: Codec::decode(input)? };
            bytes += u64::from(message.size);
            fresh.push_back(message);
        }
        Ok(ReadyLine { returned, fresh, bytes })
    }
}
