//! What follows from commands: for the homes of sessions, and for the group's leader.

use crate::codec::{codec_enum, codec_struct};
use crate::ids::{BootId, ConsumerId, MessageRef, QueueId};
use crate::meta::Refusal;

/// What a command leads to. Only the leader lets effects out; a new leader derives those still owed from state
/// ([`super::QueueMachine::state_enter`]), so every home must take one that it has seen before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QueueEffect {
    /// All commands of this home numbered up to `seq` are in: they never need to be sent again.
    Confirm {
        /// The home.
        boot: BootId,
        /// The highest number applied.
        seq: u64,
    },
    /// A batch did not follow on the last one, or its command `expected` is for a queue that is yet to come: from there
    /// on it was not applied. The home sends again from `expected`.
    SequenceGap {
        /// The home.
        boot: BootId,
        /// The number that must come next.
        expected: u64,
    },
    /// A batch came from a run that has ended and was not applied. If that run lives, it must end its sessions.
    Ended {
        /// The home.
        boot: BootId,
    },
    /// The answer to the request numbered `seq`.
    Reply {
        /// The home.
        boot: BootId,
        /// The request's number.
        seq: u64,
        /// The answer.
        reply: QueueReply,
    },
    /// A message for a consumer.
    Deliver {
        /// What and to whom.
        delivery: Delivery,
    },
    /// The consumer is no more, without its asking.
    ConsumerCancelled {
        /// Which.
        consumer: ConsumerId,
        /// Of which queue.
        queue: QueueId,
        /// Why.
        reason: CancelReason,
    },
    /// From `state_enter` only: how far the consumer's deliveries went. A home that has seen fewer asks for
    /// [`super::QueueMachine::deliveries_after`].
    ConsumerAt {
        /// Which.
        consumer: ConsumerId,
        /// Of which queue.
        queue: QueueId,
        /// The highest delivery number so far; 0 if none.
        last: u64,
    },
    /// The queue is no more; the group's leader takes it out of the metadata.
    QueueDeleted {
        /// Which.
        queue: QueueId,
    },
    /// A home spoke to a queue that was neither made nor deleted here. The group's leader makes it, or says that it is
    /// deleted, as soon as its metadata tells.
    QueueUnknown {
        /// Which.
        queue: QueueId,
    },
}

codec_enum!(QueueEffect, "queue effect" {
    1 => Confirm { boot, seq },
    2 => SequenceGap { boot, expected },
    3 => Ended { boot },
    4 => Reply { boot, seq, reply },
    5 => Deliver { delivery },
    6 => ConsumerCancelled { consumer, queue, reason },
    7 => ConsumerAt { consumer, queue, last },
    8 => QueueDeleted { queue },
    9 => QueueUnknown { queue },
});

impl QueueEffect {
    /// The run of the member that this effect is for; `None` for what the group's leader does itself.
    pub fn home(&self) -> Option<BootId> {
        match self {
            QueueEffect::Confirm { boot, .. }
            | QueueEffect::SequenceGap { boot, .. }
            | QueueEffect::Ended { boot }
            | QueueEffect::Reply { boot, .. } => Some(*boot),
            QueueEffect::Deliver { delivery } => Some(delivery.consumer.boot()),
            QueueEffect::ConsumerCancelled { consumer, .. } | QueueEffect::ConsumerAt { consumer, .. } => {
                Some(consumer.boot())
            }
            QueueEffect::QueueDeleted { .. } | QueueEffect::QueueUnknown { .. } => None,
        }
    }
}

/// A message on its way to a consumer, without its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// From which queue.
    pub queue: QueueId,
    /// To which consumer.
    pub consumer: ConsumerId,
    /// Consecutive per consumer from 1: a home drops those that it has seen, and misses none without knowing.
    pub number: u64,
    /// Where the content is.
    pub message: MessageRef,
    /// Size of the content (properties and body), in bytes.
    pub size: u32,
    /// How often the message was delivered before and returned (`x-delivery-count`).
    pub delivery_count: u32,
}

codec_struct! {
    Delivery { queue, consumer, number, message, size, delivery_count }
}

impl Delivery {
    /// The `redelivered` flag of `basic.deliver`.
    pub fn redelivered(&self) -> bool {
        self.delivery_count > 0
    }
}

/// Why a consumer ended without its asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CancelReason {
    /// Its queue is gone.
    QueueDeleted,
}

codec_enum!(CancelReason, "cancel reason" { 1 => QueueDeleted });

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QueueReply {
    /// The queue is not here, or no more.
    NoSuchQueue,
    /// To `CreateQueue`: it is there.
    Created,
    /// To `Subscribe`. Deliveries follow.
    Subscribed,
    /// To `Subscribe`: another consumer is exclusive, or this one wants to be and is not alone.
    ExclusiveUse,
    /// To `Cancel`. No delivery to the consumer follows.
    Cancelled {
        /// The number of its last delivery; 0 if it had none, or was no consumer.
        last: u64,
    },
    /// To `Get`: a message.
    Got {
        /// It; its number is 1.
        delivery: Delivery,
        /// Ready messages left.
        remaining: u64,
    },
    /// To `Get`: there is none.
    Empty,
    /// To `Purge`.
    Purged {
        /// How many were dropped.
        messages: u64,
    },
    /// To `DeleteQueue`.
    Deleted {
        /// How many ready messages went with it.
        messages: u64,
    },
    /// To `DeleteQueue`: it has consumers.
    InUse,
    /// To `DeleteQueue`: it has ready messages.
    NotEmpty,
    /// To `Stat`.
    Stats {
        /// The counts.
        stats: QueueStats,
    },
    /// To `Stat`: the queue was here and is deleted, for good. (One that is not here yet is `NoSuchQueue`.)
    Gone,
    /// To `EndRestore`: it has ended, with as many messages as it should. (`Stats` otherwise.)
    RestoreEnded,
}

codec_enum!(QueueReply, "queue reply" {
    1 => NoSuchQueue,
    2 => Created,
    3 => Subscribed,
    4 => ExclusiveUse,
    5 => Cancelled { last },
    6 => Got { delivery, remaining },
    7 => Empty,
    8 => Purged { messages },
    9 => Deleted { messages },
    10 => InUse,
    11 => NotEmpty,
    12 => Stats { stats },
    13 => Gone,
    14 => RestoreEnded,
});

impl QueueReply {
    /// The channel error that the answer stands for, in RabbitMQ's words; `None` for the good ones.
    pub fn refusal(&self, vhost: &str, queue: &str) -> Option<Refusal> {
        let (code, text) = match self {
            QueueReply::NoSuchQueue | QueueReply::Gone => (404, format!("no queue '{queue}' in vhost '{vhost}'")),
            QueueReply::ExclusiveUse => (403, format!("queue '{queue}' in vhost '{vhost}' in exclusive use")),
            QueueReply::InUse => (406, format!("queue '{queue}' in vhost '{vhost}' in use")),
            QueueReply::NotEmpty => (406, format!("queue '{queue}' in vhost '{vhost}' not empty")),
            _ => return None,
        };
        Some(Refusal { code, text })
    }
}

/// Counts of a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueStats {
    /// Messages that wait for a consumer.
    pub ready: u64,
    /// Size of their contents, in bytes.
    pub ready_bytes: u64,
    /// Messages that were delivered and not settled.
    pub unacked: u64,
    /// Size of their contents, in bytes.
    pub unacked_bytes: u64,
    /// Consumers that were not cancelled.
    pub consumers: u64,
}

codec_struct! {
    QueueStats { ready, ready_bytes, unacked, unacked_bytes, consumers }
}
