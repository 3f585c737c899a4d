//! What a replicated state machine is to the crate that replicates it.

use crate::codec::DecodeError;
use crate::meta::{MetaEffect, MetaMachine};
use crate::queue::{QueueEffect, QueueMachine};
use bytes::Bytes;

/// Which log entry is being applied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ApplyMeta {
    /// Its Raft index.
    pub index: u64,
    /// Its Raft term.
    pub term: u64,
}

/// A deterministic state machine: the same payloads in the same order give the same state and the same effects on every
/// replica.
pub trait Machine: Sized {
    /// What applying leads to. Replicas drop them, the leader lets them out.
    type Effect;

    /// Applies a committed payload. An empty payload (Raft's own no-op) changes nothing.
    ///
    /// # Errors
    /// When the payload is malformed: nothing was changed, on any replica alike. Report it and go on.
    fn apply(&mut self, meta: &ApplyMeta, payload: &Bytes, effects: &mut Vec<Self::Effect>) -> Result<(), DecodeError>;

    /// The whole state, canonical: equal states give equal bytes. Versioned and checksummed.
    fn snapshot(&self) -> Bytes;

    /// The state in a snapshot.
    ///
    /// # Errors
    /// When it is damaged or of an unknown version.
    fn restore(bytes: &Bytes) -> Result<Self, DecodeError>;

    /// Indexes of the entries that hold a message which is still needed, ascending.
    fn live_indexes(&self) -> Vec<u64>;

    /// Indexes whose last needed message went since the last call, in the order in which they went.
    fn take_dead(&mut self) -> Vec<u64>;

    /// A hash of the state: replicas that applied the same entries agree on it.
    fn digest(&self) -> u64;
}

/// The machine of any group of a member.
// There are many queue machines and one of the other kind, which boxing would not make better.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Debug)]
pub enum AnyMachine {
    /// Of group 0.
    Meta(MetaMachine),
    /// Of any other group.
    Queue(QueueMachine),
}

/// An effect of any machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AnyEffect {
    /// Of the metadata.
    Meta(MetaEffect),
    /// Of a queue group.
    Queue(QueueEffect),
}

impl AnyMachine {
    /// The metadata, if it is that.
    pub fn meta(&self) -> Option<&MetaMachine> {
        match self {
            AnyMachine::Meta(machine) => Some(machine),
            AnyMachine::Queue(_) => None,
        }
    }

    /// The queues, if it is that.
    pub fn queue(&self) -> Option<&QueueMachine> {
        match self {
            AnyMachine::Meta(_) => None,
            AnyMachine::Queue(machine) => Some(machine),
        }
    }

    /// The effects that a new leader owes, derived from state, once its own no-op is applied (design §3.3).
    pub fn state_enter(&self) -> Vec<AnyEffect> {
        match self {
            AnyMachine::Meta(machine) => machine.state_enter().into_iter().map(AnyEffect::Meta).collect(),
            AnyMachine::Queue(machine) => machine.state_enter().into_iter().map(AnyEffect::Queue).collect(),
        }
    }
}

const META: u8 = 0;
const QUEUE: u8 = 1;

impl Machine for AnyMachine {
    type Effect = AnyEffect;

    fn apply(&mut self, meta: &ApplyMeta, payload: &Bytes, effects: &mut Vec<AnyEffect>) -> Result<(), DecodeError> {
        match self {
            AnyMachine::Meta(machine) => {
                let mut own = Vec::new();
                machine.apply(meta, payload, &mut own)?;
                effects.extend(own.into_iter().map(AnyEffect::Meta));
            }
            AnyMachine::Queue(machine) => {
                let mut own = Vec::new();
                machine.apply(meta, payload, &mut own)?;
                effects.extend(own.into_iter().map(AnyEffect::Queue));
            }
        }
        Ok(())
    }

    fn snapshot(&self) -> Bytes {
        let (tag, inner) = match self {
            AnyMachine::Meta(machine) => (META, machine.snapshot()),
            AnyMachine::Queue(machine) => (QUEUE, machine.snapshot()),
        };
        let mut out = Vec::with_capacity(inner.len() + 1);
        out.push(tag);
        out.extend_from_slice(&inner);
        Bytes::from(out)
    }

    fn restore(bytes: &Bytes) -> Result<AnyMachine, DecodeError> {
        match bytes.first() {
            Some(&META) => MetaMachine::restore(&bytes.slice(1..)).map(AnyMachine::Meta),
            Some(&QUEUE) => QueueMachine::restore(&bytes.slice(1..)).map(AnyMachine::Queue),
            Some(&tag) => Err(DecodeError::UnknownTag { what: "machine", tag }),
            None => Err(DecodeError::Truncated),
        }
    }

    fn live_indexes(&self) -> Vec<u64> {
        match self {
            AnyMachine::Meta(machine) => machine.live_indexes(),
            AnyMachine::Queue(machine) => machine.live_indexes(),
        }
    }

    fn take_dead(&mut self) -> Vec<u64> {
        match self {
            AnyMachine::Meta(machine) => machine.take_dead(),
            AnyMachine::Queue(machine) => machine.take_dead(),
        }
    }

    fn digest(&self) -> u64 {
        match self {
            AnyMachine::Meta(machine) => machine.digest(),
            AnyMachine::Queue(machine) => machine.digest(),
        }
    }
}
