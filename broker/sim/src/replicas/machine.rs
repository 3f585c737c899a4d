//! A machine whose state is its history: anything lost, doubled or reordered shows in it for ever.

use std::collections::BTreeSet;

use bytes::Bytes;
use holdfast_queue::codec::DecodeError;
use holdfast_queue::machine::{ApplyMeta, Machine};

/// Every command is a number that is never used again. Even ones stay live, odd ones end the liveness of the one before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// Index and number of each command, in the order of the log.
    pub applied: Vec<(u64, u64)>,
    live: BTreeSet<u64>,
    dead: Vec<u64>,
}

/// The payload of a command: its number, and filler that depends on it.
#[must_use]
pub fn payload(number: u64) -> Bytes {
    let filler = (number * 37 % 900) as usize;
    let mut bytes = number.to_be_bytes().to_vec();
    bytes.resize(8 + filler, number as u8);
    bytes.into()
}

/// The number in a payload that is intact.
#[must_use]
pub fn number_of(bytes: &Bytes) -> Option<u64> {
    let number = u64::from_be_bytes(bytes.get(..8)?.try_into().ok()?);
    (*bytes == payload(number)).then_some(number)
}

impl History {
    /// Whether the entry at this index is still needed.
    #[must_use]
    pub fn is_live(&self, index: u64) -> bool {
        self.live.contains(&index)
    }
}

impl Machine for History {
    type Effect = u64;

    fn apply(&mut self, meta: &ApplyMeta, payload: &Bytes, effects: &mut Vec<u64>) -> Result<(), DecodeError> {
        if payload.is_empty() {
            return Ok(());
        }
        let number = number_of(payload).ok_or(DecodeError::Truncated)?;
        self.applied.push((meta.index, number));
        self.live.insert(meta.index);
        if number % 4 != 0
            && let Some(oldest) = self.live.first().copied()
            && oldest < meta.index
        {
            self.live.remove(&oldest);
            self.dead.push(oldest);
        }
        effects.push(number);
        Ok(())
    }

    fn snapshot(&self) -> Bytes {
        let mut out = Vec::with_capacity(self.applied.len() * 17);
        for (index, number) in &self.applied {
            out.extend_from_slice(&index.to_be_bytes());
            out.extend_from_slice(&number.to_be_bytes());
            out.push(u8::from(self.live.contains(index)));
        }
        out.into()
    }

    fn restore(bytes: &Bytes) -> Result<Self, DecodeError> {
        let mut history = Self::default();
        for record in bytes.chunks(17) {
            let [index, number] = [0, 8].map(|at| {
                let field = record.get(at..at + 8).and_then(|field| field.try_into().ok());
                field.map(u64::from_be_bytes).ok_or(DecodeError::Truncated)
            });
            let (index, number) = (index?, number?);
            history.applied.push((index, number));
            if record.get(16) == Some(&1) {
                history.live.insert(index);
            }
        }
        Ok(history)
    }

    fn live_indexes(&self) -> Vec<u64> {
        self.live.iter().copied().collect()
    }

    fn take_dead(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.dead)
    }

    fn digest(&self) -> u64 {
        u64::from(crc32c::crc32c(&self.snapshot()))
    }
}
