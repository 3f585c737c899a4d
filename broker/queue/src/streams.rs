//! Exactly once from home to group: what arrives twice is applied once, in order, and answered alike.
//!
//! **The rule.** All that a home member tells a group is one stream, numbered 1, 2, 3 … per (boot, group); a group's
//! state holds the last number per boot. The next number is applied, an older one is not (its confirm and its
//! remembered reply are given again), a gap is refused with the number expected. A stream never seen starts at 1.
//!
//! **Why per boot and not per channel.** A channel's end is a command in the same stream, so nothing of that channel
//! can follow it, and no memory of closed channels is needed to refuse a late copy. Acks, subscriptions and closes need
//! the same protection as publishes, and get it from the same number. Order per channel follows from order per home.
//!
//! **Ends.** `BootEnded` drops the stream. The last [`ENDED_KEPT`] ended boots are remembered and their late batches
//! refused: without that, a batch from before the end would start a stream anew and store its messages twice. Boots are
//! random and never come back, and a leader takes no batch from a boot that its metadata does not show as running, so
//! the bound only has to outlast what is under way.
//!
//! Replies are kept until the home says that it has them ([`Origin::answered`]), as in the client sessions of the Raft
//! dissertation, §6.3.

use crate::codec::{Codec, DecodeError, Origin, Reader, Writer};
use crate::ids::BootId;
use std::collections::{BTreeMap, VecDeque};

/// How many ended boots a group remembers.
pub const ENDED_KEPT: usize = 256;

/// What a group knows of the homes that talk to it.
#[derive(Clone, Debug)]
pub struct Streams<R> {
    boots: BTreeMap<BootId, Stream<R>>,
    /// Oldest end first.
    ended: VecDeque<BootId>,
}

#[derive(Clone, Debug)]
struct Stream<R> {
    last: u64,
    replies: BTreeMap<u64, R>,
}

/// What to do with a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Apply all but the first `skip` commands, which were applied before.
    Apply {
        /// How many.
        skip: usize,
    },
    /// Apply nothing: earlier commands are missing.
    Gap {
        /// The number that must come next.
        expected: u64,
    },
    /// Apply nothing: the boot has ended.
    Ended,
}

impl<R> Default for Streams<R> {
    fn default() -> Streams<R> {
        Streams { boots: BTreeMap::new(), ended: VecDeque::new() }
    }
}

impl<R: Clone> Streams<R> {
    /// Takes a batch of `count` commands in, and forgets the replies that its home has.
    pub fn admit(&mut self, origin: &Origin, count: usize) -> Admission {
        if self.ended.contains(&origin.boot) {
            return Admission::Ended;
        }
        let last = self.last(origin.boot);
        if origin.first > last.saturating_add(1) {
            return Admission::Gap { expected: last + 1 };
        }
        let stream = self.boots.entry(origin.boot).or_insert_with(|| Stream { last: 0, replies: BTreeMap::new() });
        while stream.replies.first_key_value().is_some_and(|(seq, _)| *seq <= origin.answered) {
            stream.replies.pop_first();
        }
        let end = origin.first.saturating_add(count as u64).saturating_sub(1);
        stream.last = stream.last.max(end);
        let skip = usize::try_from(last + 1 - origin.first).unwrap_or(usize::MAX);
        #[cfg(feature = "mutants")]
        if crate::mutants::is_planted(crate::mutants::Mutant::ResendNotDeduplicated) {
            return Admission::Apply { skip: 0 };
        }
        Admission::Apply { skip: skip.min(count) }
    }

    /// Of a batch that was taken in, the commands from `seq` on were not applied after all: it comes again.
    pub fn refuse_from(&mut self, boot: BootId, seq: u64) {
        if let Some(stream) = self.boots.get_mut(&boot) {
            stream.last = stream.last.min(seq.saturating_sub(1));
        }
    }

    /// Remembers the reply to a request until its home has it.
    pub fn remember(&mut self, boot: BootId, seq: u64, reply: R) {
        if let Some(stream) = self.boots.get_mut(&boot) {
            stream.replies.insert(seq, reply);
        }
    }

    /// The reply that was given to a request, if it was one and its home may still lack it.
    pub fn remembered(&self, boot: BootId, seq: u64) -> Option<&R> {
        self.boots.get(&boot)?.replies.get(&seq)
    }

    /// The highest number applied from a home; 0 if none.
    pub fn last(&self, boot: BootId) -> u64 {
        self.boots.get(&boot).map_or(0, |stream| stream.last)
    }

    /// Ends a boot's stream for good.
    pub fn end(&mut self, boot: BootId) {
        self.boots.remove(&boot);
        if self.ended.contains(&boot) {
            return;
        }
        if self.ended.len() == ENDED_KEPT {
            self.ended.pop_front();
        }
        self.ended.push_back(boot);
    }

    /// Whether the boot is among those remembered as ended.
    pub fn has_ended(&self, boot: BootId) -> bool {
        self.ended.contains(&boot)
    }

    /// Boots with a stream, and their last numbers.
    pub fn boots(&self) -> impl Iterator<Item = (BootId, u64)> {
        self.boots.iter().map(|(boot, stream)| (*boot, stream.last))
    }

    /// All replies that homes may still lack.
    pub fn unanswered(&self) -> impl Iterator<Item = (BootId, u64, &R)> {
        self.boots.iter().flat_map(|(boot, stream)| stream.replies.iter().map(|(seq, reply)| (*boot, *seq, reply)))
    }
}

impl<R: Codec> Codec for Stream<R> {
    fn encode(&self, out: &mut Writer) {
        self.last.encode(out);
        self.replies.encode(out);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Stream { last: Codec::decode(input)?, replies: Codec::decode(input)? })
    }
}

impl<R: Codec> Codec for Streams<R> {
    fn encode(&self, out: &mut Writer) {
        self.boots.encode(out);
        out.varint(self.ended.len() as u64);
        for boot in &self.ended {
            boot.encode(out);
        }
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        let boots = Codec::decode(input)?;
        let ended: Vec<BootId> = Codec::decode(input)?;
        Ok(Streams { boots, ended: ended.into() })
    }
}
