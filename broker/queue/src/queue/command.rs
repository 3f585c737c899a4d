//! What can be asked of the queues of a group.

use crate::codec::{Codec, DecodeError, Message, Reader, Writer, codec_enum, codec_struct};
use crate::ids::{BootId, ChannelRef, ConsumerId, QueueId, SessionId};
use bytes::Bytes;

/// A command to the machine of a queue group.
///
/// *Requests* are answered with a [`super::QueueReply`]; the others only count towards the batch's confirm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QueueCommand {
    /// Stores a message at the tail. Into a queue that is gone it is confirmed and dropped, as RabbitMQ does; for one
    /// that is yet to come it waits with its home.
    Publish {
        /// Where to.
        queue: QueueId,
        /// What.
        message: Message,
    },
    /// Request. Makes a queue. Repeating it changes nothing, and a queue that was deleted is not made again.
    CreateQueue {
        /// Its number, from the metadata.
        queue: QueueId,
        /// For texts and for recovery (design §3.5).
        vhost: String,
        /// For texts and for recovery.
        name: String,
        /// What the machine must know of its declaration.
        settings: QueueSettings,
    },
    /// Request. Removes a queue and what is in it. Said by the leader of one that is not there, it never comes.
    DeleteQueue {
        /// Which.
        queue: QueueId,
        /// Refuse when it has consumers.
        if_unused: bool,
        /// Refuse when it has ready messages.
        if_empty: bool,
    },
    /// Request. Starts a consumer.
    Subscribe {
        /// Of which queue.
        queue: QueueId,
        /// Its name, new.
        consumer: ConsumerId,
        /// The client's consumer tag, for listings.
        tag: Bytes,
        /// For listings only: the home settles the deliveries of such a consumer itself once they are written to the
        /// client, so that the death of a leader loses nothing. Give it a prefetch that bounds what is under way.
        no_ack: bool,
        /// No other consumer beside it.
        exclusive: bool,
        /// Most unacknowledged messages at a time; 0 = no limit.
        prefetch: u32,
        /// Deliveries up to this number may be sent; see [`QueueCommand::Credit`]. `u64::MAX` = as many as the prefetch
        /// allows.
        credit_to: u64,
        /// `x-priority`: consumers of a higher priority are served first.
        priority: i32,
    },
    /// Request. Ends a consumer. What it has not settled stays with it until it is settled or the channel closes (AMQP
    /// 0-9-1 basic.cancel).
    Cancel {
        /// Of which queue.
        queue: QueueId,
        /// Which.
        consumer: ConsumerId,
    },
    /// Ends deliveries. Numbers that are not outstanding (settled before, returned) are passed over.
    Settle {
        /// Of which queue.
        queue: QueueId,
        /// Of which consumer.
        consumer: ConsumerId,
        /// Which delivery numbers.
        spans: Vec<Span>,
        /// What becomes of the messages.
        outcome: Outcome,
    },
    /// Changes a consumer's prefetch.
    SetPrefetch {
        /// Of which queue.
        queue: QueueId,
        /// Of which consumer.
        consumer: ConsumerId,
        /// As in `Subscribe`.
        prefetch: u32,
    },
    /// Lets deliveries up to a number go out: the home raises it as the client reads, so a client that does not read
    /// stops its consumer and nobody else's. A lower number than before changes nothing.
    Credit {
        /// Of which queue.
        queue: QueueId,
        /// Of which consumer.
        consumer: ConsumerId,
        /// The highest delivery number that may be sent.
        up_to: u64,
    },
    /// Request. Takes one message, `basic.get`. It is held by `consumer` as delivery 1 until it is settled.
    Get {
        /// Of which queue.
        queue: QueueId,
        /// A one-shot name, new for every get.
        consumer: ConsumerId,
    },
    /// Request. Drops all ready messages.
    Purge {
        /// Of which queue.
        queue: QueueId,
    },
    /// Request. Counts.
    Stat {
        /// Of which queue.
        queue: QueueId,
    },
    /// Returns all that a channel has not settled to its place, `basic.recover(requeue=true)`.
    Recover {
        /// Which channel.
        channel: ChannelRef,
    },
    /// Ends the consumers of a channel and returns what they have not settled.
    ChannelClosed {
        /// Which channel.
        channel: ChannelRef,
    },
    /// Ends the consumers of a connection and returns what they have not settled.
    SessionClosed {
        /// Which connection.
        session: SessionId,
    },
    /// Ends all that a member's run left behind. Not numbered: the group's leader proposes it when the metadata says
    /// so.
    BootEnded {
        /// Which run.
        boot: BootId,
    },
    /// Stores a message of a backup at the tail of a queue that is being restored in place, if it is the next one. One
    /// that is there already, or comes after the end of the restore, is dropped.
    Restore {
        /// Where to.
        queue: QueueId,
        /// How many messages come before it.
        position: u64,
        /// How often it was delivered and came back.
        returns: u32,
        /// What.
        message: Message,
    },
    /// Request. Ends a restore in place, if the queue holds so many messages. A repeat is answered alike.
    EndRestore {
        /// Of which queue.
        queue: QueueId,
        /// How many.
        messages: u64,
    },
}

codec_enum!(QueueCommand, "queue command" {
    1 => Publish { queue, message },
    2 => CreateQueue { queue, vhost, name, settings },
    3 => DeleteQueue { queue, if_unused, if_empty },
    4 => Subscribe { queue, consumer, tag, no_ack, exclusive, prefetch, credit_to, priority },
    5 => Cancel { queue, consumer },
    6 => Settle { queue, consumer, spans, outcome },
    7 => SetPrefetch { queue, consumer, prefetch },
    8 => Credit { queue, consumer, up_to },
    9 => Get { queue, consumer },
    10 => Purge { queue },
    11 => Stat { queue },
    12 => Recover { channel },
    13 => ChannelClosed { channel },
    14 => SessionClosed { session },
    15 => BootEnded { boot },
    16 => Restore { queue, position, returns, message },
    17 => EndRestore { queue, messages },
});

impl QueueCommand {
    /// The queue that it is for; `None` where it is for all that somebody has here.
    pub fn queue(&self) -> Option<QueueId> {
        match self {
            QueueCommand::Publish { queue, .. }
            | QueueCommand::CreateQueue { queue, .. }
            | QueueCommand::DeleteQueue { queue, .. }
            | QueueCommand::Subscribe { queue, .. }
            | QueueCommand::Cancel { queue, .. }
            | QueueCommand::Settle { queue, .. }
            | QueueCommand::SetPrefetch { queue, .. }
            | QueueCommand::Credit { queue, .. }
            | QueueCommand::Get { queue, .. }
            | QueueCommand::Purge { queue }
            | QueueCommand::Stat { queue }
            | QueueCommand::Restore { queue, .. }
            | QueueCommand::EndRestore { queue, .. } => Some(*queue),
            QueueCommand::Recover { .. }
            | QueueCommand::ChannelClosed { .. }
            | QueueCommand::SessionClosed { .. }
            | QueueCommand::BootEnded { .. } => None,
        }
    }
}

/// A range of delivery numbers, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    /// The lowest.
    pub first: u64,
    /// The highest.
    pub last: u64,
}

impl Span {
    /// A single number.
    pub fn one(number: u64) -> Span {
        Span { first: number, last: number }
    }
}

impl Codec for Span {
    fn encode(&self, out: &mut Writer) {
        out.varint(self.first);
        out.varint(self.last.saturating_sub(self.first));
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        let first = input.varint()?;
        Ok(Span { first, last: first.saturating_add(input.varint()?) })
    }
}

/// What becomes of messages that a consumer settles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done with: it never comes back.
    Ack,
    /// Back to its place, marked redelivered.
    Requeue,
    /// Refused for good (dead-lettered once that is built; dropped until then).
    Reject,
}

codec_enum!(Outcome, "outcome" { 0 => Ack, 1 => Requeue, 2 => Reject });

/// What a queue's machine must know of its declaration and policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueSettings {
    /// The queue goes with its last consumer.
    pub auto_delete: bool,
}

codec_struct! {
    QueueSettings { auto_delete }
}
