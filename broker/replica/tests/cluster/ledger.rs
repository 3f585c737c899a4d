//! A machine that remembers everything, so that replicas can be compared.

use std::collections::BTreeSet;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use holdfast_queue::codec::DecodeError;
use holdfast_queue::{ApplyMeta, Machine};

/// Commands: `1` and a number puts a message in; `2` and the index of its entry takes it out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    /// What was put in: index and number.
    pub messages: Vec<(u64, u64)>,
    pub live: BTreeSet<u64>,
    dead: Vec<u64>,
}

pub fn put(number: u64) -> Bytes {
    put_sized(number, 0)
}

/// The same with so many bytes of ballast.
pub fn put_sized(number: u64, ballast: usize) -> Bytes {
    let mut payload = BytesMut::new();
    payload.put_u8(1);
    payload.put_u64(number);
    payload.put_bytes(7, ballast);
    payload.freeze()
}

pub fn take(index: u64) -> Bytes {
    let mut payload = BytesMut::new();
    payload.put_u8(2);
    payload.put_u64(index);
    payload.freeze()
}

impl Ledger {
    pub fn numbers(&self) -> Vec<u64> {
        self.messages.iter().map(|(_, number)| *number).collect()
    }
}

impl Machine for Ledger {
    /// The payload, so that tests can compare what was applied.
    type Effect = Bytes;

    fn apply(&mut self, meta: &ApplyMeta, payload: &Bytes, effects: &mut Vec<Bytes>) -> Result<(), DecodeError> {
        let mut rest = payload.clone();
        if rest.len() < 9 {
            return Err(DecodeError::Truncated);
        }
        match rest.get_u8() {
            1 => {
                self.messages.push((meta.index, rest.get_u64()));
                self.live.insert(meta.index);
            }
            2 => {
                let index = rest.get_u64();
                if self.live.remove(&index) {
                    self.dead.push(index);
                }
            }
            tag => return Err(DecodeError::UnknownTag { what: "ledger", tag }),
        }
        effects.push(payload.clone());
        Ok(())
    }

    fn snapshot(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u64(self.messages.len() as u64);
        for (index, number) in &self.messages {
            out.put_u64(*index);
            out.put_u64(*number);
            out.put_u8(u8::from(self.live.contains(index)));
        }
        out.freeze()
    }

    fn restore(bytes: &Bytes) -> Result<Self, DecodeError> {
        let mut rest = bytes.clone();
        let mut ledger = Ledger::default();
        let count = rest.try_get_u64().map_err(|_| DecodeError::Truncated)?;
        for _ in 0..count {
            if rest.len() < 17 {
                return Err(DecodeError::Truncated);
            }
            let (index, number) = (rest.get_u64(), rest.get_u64());
            ledger.messages.push((index, number));
            if rest.get_u8() == 1 {
                ledger.live.insert(index);
            }
        }
        Ok(ledger)
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
