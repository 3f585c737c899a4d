//! Names of things that more than one member talks about. None of them is ever reused.

use std::fmt;

macro_rules! number {
    ($(#[$meta:meta])* $name:ident) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

number!(
    /// A Raft group. Group 0 holds the metadata, every other one holds queues.
    GroupId
);
number!(
    /// A queue, numbered by the metadata machine. A queue that is deleted and declared again is another queue.
    QueueId
);
number!(
    /// A member's Raft id. A member that lost its disk comes back under a new one.
    MemberId
);
number!(
    /// One run of a member's process: drawn at random at each start, so it ends when the process does.
    BootId
);

/// One replica of a group: the member that holds it, and which of its replicas there it is. A member that left a group
/// and comes back, or whose replica was damaged, gets another generation: to Raft it is somebody else, so that no vote
/// and no acknowledgement of the earlier one counts for it (design §3.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicaId {
    /// Where it is.
    pub member: MemberId,
    /// 0 for the founders of a group; grows with each replica that is added to the group later.
    pub generation: u32,
}

impl ReplicaId {
    /// The replica of a member that is in the group from its birth.
    pub const fn founder(member: MemberId) -> ReplicaId {
        ReplicaId { member, generation: 0 }
    }

    /// What Raft calls it: the generation above the member's number, which has 32 bits.
    pub const fn raft_id(self) -> u64 {
        ((self.generation as u64) << 32) | self.member.0
    }

    /// The replica that Raft calls so.
    pub const fn from_raft_id(id: u64) -> ReplicaId {
        ReplicaId { member: MemberId(id & 0xffff_ffff), generation: (id >> 32) as u32 }
    }
}

impl fmt::Display for ReplicaId {
    /// The member, and the generation if it is not the first one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.generation {
            0 => write!(f, "{}", self.member),
            generation => write!(f, "{}.{generation}", self.member),
        }
    }
}

impl GroupId {
    /// The group that holds the metadata.
    pub const META: GroupId = GroupId(0);
}

/// Tells a group from its earlier lives (design §3.1). Compared before the term; equal counters with different nonces
/// refuse each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation {
    /// Grows with every recovery of the group.
    pub counter: u32,
    /// Two recoveries that do not know of each other differ here.
    pub nonce: u64,
}

/// A client connection, named by the run of the member that holds it (its *home*).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId {
    /// The home member's run. When it ends, so does the session.
    pub boot: BootId,
    /// The connection's number within that run.
    pub conn: u64,
}

/// An open channel of a session. The generation tells a channel from an earlier one of the same number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChannelRef {
    /// The connection.
    pub session: SessionId,
    /// The channel's number on the wire.
    pub channel: u16,
    /// Grows each time the session opens a channel of this number.
    pub generation: u32,
}

/// A consumer, or the one-shot consumer of a `basic.get`. The home numbers those of a channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConsumerId {
    /// The channel that consumes.
    pub channel: ChannelRef,
    /// Never used twice on one channel, not even after a cancel.
    pub number: u32,
}

impl ConsumerId {
    /// The run of the member that holds this consumer's session.
    pub fn boot(&self) -> BootId {
        self.channel.session.boot
    }
}

/// Where a message's content is: the Raft entry that published it, and the byte offset of its command in the entry's
/// payload ([`crate::codec::message_at`]). The order of these is the order in which the group took the messages in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageRef {
    /// Raft index of the entry.
    pub index: u64,
    /// Byte offset of the publish command in the entry's payload.
    pub sub: u32,
}
