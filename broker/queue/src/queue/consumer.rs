//! A consumer of a queue, and what it was given and has not settled.

use super::ready::Held;
use crate::codec::codec_struct;
use crate::packed::{Packed, PackedMap, Record, difference, follow, put_varint};
use bytes::Bytes;

/// A delivery that is not settled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Unsettled {
    /// The delivery's number.
    pub(super) number: u64,
    pub(super) message: Held,
}

/// One byte more than the message, for deliveries in a row.
impl Record for Unsettled {
    type Key = u64;

    fn key(&self) -> u64 {
        self.number
    }

    fn pack(&self, before: &Self, out: &mut Vec<u8>) {
        put_varint(difference(before.number, self.number), out);
        self.message.pack(&before.message, out);
    }

    fn unpack(before: &Self, input: &mut Packed<'_>) -> Option<Self> {
        let number = follow(before.number, input.varint()?);
        Some(Unsettled { number, message: Held::unpack(&before.message, input)? })
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct Consumer {
    /// The client's consumer tag.
    pub(super) tag: Bytes,
    pub(super) no_ack: bool,
    pub(super) exclusive: bool,
    /// Most unsettled deliveries at a time; 0 = no limit.
    pub(super) prefetch: u32,
    pub(super) priority: i32,
    /// The highest delivery number that may go out.
    pub(super) credit_to: u64,
    /// The highest delivery number that went out.
    pub(super) last: u64,
    /// It gets nothing any more and lives on only for what it has not settled. So does every `basic.get` from the
    /// start.
    pub(super) cancelled: bool,
    /// It stands in the rotation.
    pub(super) queued: bool,
    pub(super) unacked: PackedMap<Unsettled>,
}

codec_struct! {
    Consumer { tag, no_ack, exclusive, prefetch, priority, credit_to, last, cancelled, queued, unacked }
}

impl Consumer {
    /// Whether it may be given one more message.
    pub(super) fn has_room(&self) -> bool {
        !self.cancelled
            && self.last < self.credit_to
            && (self.prefetch == 0 || self.unacked.len() < self.prefetch as usize)
    }

    /// Gives it a message; the delivery's number.
    pub(super) fn take(&mut self, message: Held) -> u64 {
        self.last += 1;
        self.unacked.insert(Unsettled { number: self.last, message });
        self.last
    }
}
