//! Whose turn it is among the consumers of a queue.

use crate::codec::{Codec, DecodeError, Reader, Writer};
use crate::ids::ConsumerId;
use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};

/// Consumers that (may) have room, in turn, the highest priority first.
#[derive(Clone, Debug, Default)]
pub(super) struct Rotation {
    classes: BTreeMap<Reverse<i32>, VecDeque<ConsumerId>>,
}

impl Rotation {
    /// Puts a consumer at the end of its class.
    pub(super) fn push(&mut self, priority: i32, consumer: ConsumerId) {
        self.classes.entry(Reverse(priority)).or_default().push_back(consumer);
    }

    /// Takes the consumer whose turn it is. An emptied class stays until [`Rotation::tidy`], since its consumer usually
    /// comes straight back.
    pub(super) fn next(&mut self) -> Option<ConsumerId> {
        self.classes.values_mut().find_map(VecDeque::pop_front)
    }

    /// Drops empty classes.
    pub(super) fn tidy(&mut self) {
        self.classes.retain(|_, class| !class.is_empty());
    }

    /// Takes a consumer out.
    pub(super) fn remove(&mut self, priority: i32, consumer: &ConsumerId) {
        if let Some(class) = self.classes.get_mut(&Reverse(priority)) {
            class.retain(|other| other != consumer);
        }
        self.tidy();
    }
}

impl Codec for Rotation {
    fn encode(&self, out: &mut Writer) {
        let classes: Vec<_> = self.classes.iter().filter(|(_, class)| !class.is_empty()).collect();
        out.varint(classes.len() as u64);
        for (Reverse(priority), class) in classes {
            priority.encode(out);
            out.varint(class.len() as u64);
            for consumer in class {
                consumer.encode(out);
            }
        }
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        let classes: Vec<(i32, Vec<ConsumerId>)> = Codec::decode(input)?;
        Ok(Rotation {
            classes: classes.into_iter().map(|(priority, class)| (Reverse(priority), class.into())).collect(),
        })
    }
}
