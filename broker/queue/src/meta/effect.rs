//! What follows from metadata commands.

use crate::codec::{codec_enum, codec_struct};
use crate::ids::{BootId, GroupId, Incarnation, MemberId, QueueId};
use std::fmt;

/// What a metadata command leads to. The first four leave on the leader only; `Changed` concerns every member that
/// applies it. A member that starts or takes a snapshot gets no `Changed` for what came before: it compares itself with
/// the whole state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetaEffect {
    /// All commands of this home numbered up to `seq` are in.
    Confirm {
        /// The home.
        boot: BootId,
        /// The highest number applied.
        seq: u64,
    },
    /// A batch did not follow on the last one and was not applied. The home sends again from `expected`.
    SequenceGap {
        /// The home.
        boot: BootId,
        /// The number that must come next.
        expected: u64,
    },
    /// A batch came from a run that has ended and was not applied.
    Ended {
        /// The home.
        boot: BootId,
    },
    /// The answer to the command numbered `seq`.
    Reply {
        /// The home.
        boot: BootId,
        /// The command's number.
        seq: u64,
        /// The answer.
        reply: MetaReply,
    },
    /// The metadata changed.
    Changed {
        /// How.
        change: Change,
    },
}

codec_enum!(MetaEffect, "metadata effect" {
    1 => Confirm { boot, seq },
    2 => SequenceGap { boot, expected },
    3 => Ended { boot },
    4 => Reply { boot, seq, reply },
    5 => Changed { change },
});

/// The answer to a metadata command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetaReply {
    /// Done, or as it was already.
    Done,
    /// To `DeclareQueue`.
    QueueDeclared {
        /// The queue.
        queue: QueueId,
        /// It was not there before.
        created: bool,
    },
    /// To `AddMember` and `Init`.
    MemberAdded {
        /// The member's id.
        member: MemberId,
    },
    /// No.
    Refused {
        /// Why.
        refusal: Refusal,
    },
}

codec_enum!(MetaReply, "metadata reply" {
    1 => Done,
    2 => QueueDeclared { queue, created },
    3 => MemberAdded { member },
    4 => Refused { refusal },
});

/// An AMQP error: the code says whether it closes the channel or the connection (AMQP 0-9-1 §1.2 constants).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The AMQP reply code.
    pub code: u16,
    /// What is wrong, without the code's name.
    pub text: String,
}

codec_struct! {
    Refusal { code, text }
}

impl Refusal {
    /// The code's name.
    pub fn name(&self) -> &'static str {
        match self.code {
            403 => "ACCESS_REFUSED",
            404 => "NOT_FOUND",
            405 => "RESOURCE_LOCKED",
            406 => "PRECONDITION_FAILED",
            503 => "COMMAND_INVALID",
            530 => "NOT_ALLOWED",
            540 => "NOT_IMPLEMENTED",
            _ => "INTERNAL_ERROR",
        }
    }
}

/// The reply text as RabbitMQ gives it: `PRECONDITION_FAILED - inequivalent arg …`.
impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} - {}", self.name(), self.text)
    }
}

/// A change of the metadata that members act upon. Routes need no notice: they are asked of the machine's router.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The cluster was made, or who should be in it changed.
    Cluster,
    /// A member was admitted, or its address, zone or run changed.
    Member {
        /// Which.
        member: MemberId,
    },
    /// A member was taken out.
    MemberRemoved {
        /// Which.
        member: MemberId,
    },
    /// A run ended: group leaders propose [`crate::queue::QueueCommand::BootEnded`], and the run itself, if it hears
    /// this, drops its sessions.
    BootEnded {
        /// Whose.
        member: MemberId,
        /// Which.
        boot: BootId,
    },
    /// A group was born: its voters make their replicas.
    GroupCreated {
        /// Which.
        group: GroupId,
    },
    /// A group's recorded voters or learners changed.
    GroupChanged {
        /// Which.
        group: GroupId,
    },
    /// A group is gone: replicas are destroyed.
    GroupDestroyed {
        /// Which.
        group: GroupId,
        /// Which life of it.
        incarnation: Incarnation,
    },
    /// A queue was declared; see [`super::MetaMachine::queue`].
    QueueCreated {
        /// Which.
        queue: QueueId,
    },
    /// A queue is gone. The home of a transient one drops it.
    QueueDeleted {
        /// Which.
        queue: QueueId,
        /// The run that held it, if it was transient.
        owner: Option<BootId>,
    },
    /// Users or permissions changed.
    Access,
    /// How many copies queues want changed.
    Replication,
}

codec_enum!(Change, "change" {
    1 => Cluster,
    2 => Member { member },
    3 => MemberRemoved { member },
    4 => BootEnded { member, boot },
    5 => GroupCreated { group },
    6 => GroupChanged { group },
    7 => GroupDestroyed { group, incarnation },
    8 => QueueCreated { queue },
    9 => QueueDeleted { queue, owner },
    10 => Access,
    20 => Replication,
});
