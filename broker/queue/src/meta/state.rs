//! What the metadata holds.

use super::access::Grant;
use super::command::{Binding, Destination, ExpectedMember};
use crate::arguments::Arguments;
use crate::codec::{codec_enum, codec_struct};
use crate::ids::{BootId, GroupId, Incarnation, MemberId, QueueId, SessionId};
use std::collections::{BTreeMap, BTreeSet};

/// The cluster as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterInfo {
    /// Its id, from the operator.
    pub cluster_id: String,
    /// Grows with each forced recovery.
    pub epoch: u64,
    /// Replicas of a queue without a policy.
    pub replication_factor: u32,
    /// Who should be in it.
    pub expected: Vec<ExpectedMember>,
}

/// A member of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemberInfo {
    /// The identity in its data directory.
    pub uuid: String,
    /// Its name.
    pub name: String,
    /// Its failure zone; empty if there are none.
    pub zone: String,
    /// Where its peers reach it, host and port.
    pub address: String,
    /// Its present run; `None` once that was declared over and no new one began.
    pub boot: Option<BootId>,
}

/// A user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserInfo {
    /// The hash of its password, opaque here.
    pub hash: String,
    /// Management tags.
    pub tags: Vec<String>,
}

/// A virtual host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vhost {
    /// By name; the default exchange's is empty.
    pub exchanges: BTreeMap<String, ExchangeInfo>,
    /// By name.
    pub queues: BTreeMap<String, QueueId>,
    /// By where they lead.
    pub bindings: BTreeMap<Destination, BTreeSet<Binding>>,
    /// By user.
    pub(super) grants: BTreeMap<String, Grant>,
}

/// How an exchange picks bindings (AMQP 0-9-1 §3.1.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExchangeKind {
    /// The routing key equals the binding's.
    #[default]
    Direct,
    /// All bindings.
    Fanout,
    /// The routing key matches the binding's pattern.
    Topic,
    /// The message's headers match the binding's arguments.
    Headers,
}

codec_enum!(ExchangeKind, "exchange kind" { 1 => Direct, 2 => Fanout, 3 => Topic, 4 => Headers });

impl ExchangeKind {
    /// The kind as clients write it.
    pub fn name(self) -> &'static str {
        match self {
            ExchangeKind::Direct => "direct",
            ExchangeKind::Fanout => "fanout",
            ExchangeKind::Topic => "topic",
            ExchangeKind::Headers => "headers",
        }
    }

    /// The kind that a client wrote.
    pub fn from_name(name: &str) -> Option<ExchangeKind> {
        let all = [ExchangeKind::Direct, ExchangeKind::Fanout, ExchangeKind::Topic, ExchangeKind::Headers];
        all.into_iter().find(|kind| kind.name() == name)
    }
}

/// An exchange.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExchangeInfo {
    /// How it routes.
    pub kind: ExchangeKind,
    /// As declared.
    pub durable: bool,
    /// Goes with its last binding.
    pub auto_delete: bool,
    /// Takes no publishes from clients.
    pub internal: bool,
    /// All arguments, known or not.
    pub arguments: Arguments,
}

/// A queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueInfo {
    /// Its virtual host.
    pub vhost: String,
    /// Its name.
    pub name: String,
    /// As declared.
    pub durable: bool,
    /// The connection that it belongs to, if it is exclusive.
    pub exclusive: Option<SessionId>,
    /// Goes with its last consumer.
    pub auto_delete: bool,
    /// All arguments, known or not.
    pub arguments: Arguments,
    /// Where its messages are.
    pub placement: Placement,
}

/// Where a queue's messages are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placement {
    /// In a Raft group.
    Replicated {
        /// Which.
        group: GroupId,
    },
    /// In the memory of one run of a member, gone with it.
    Transient {
        /// Which.
        owner: Owner,
    },
}

codec_enum!(Placement, "placement" { 1 => Replicated { group }, 2 => Transient { owner } });

/// The run of a member that holds a transient queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The member.
    pub member: MemberId,
    /// Its run.
    pub boot: BootId,
}

/// A Raft group and where its replicas are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupInfo {
    /// Which life of the group.
    pub incarnation: Incarnation,
    /// Members that vote.
    pub voters: Vec<MemberId>,
    /// Members that only follow.
    pub learners: Vec<MemberId>,
    /// The member that led it at birth, and should lead it again when nothing speaks against it.
    pub preferred_leader: MemberId,
    /// The queues in it.
    pub queues: BTreeSet<QueueId>,
}

codec_struct! {
    ClusterInfo { cluster_id, epoch, replication_factor, expected }
    MemberInfo { uuid, name, zone, address, boot }
    UserInfo { hash, tags }
    Vhost { exchanges, queues, bindings, grants }
    ExchangeInfo { kind, durable, auto_delete, internal, arguments }
    QueueInfo { vhost, name, durable, exclusive, auto_delete, arguments, placement }
    Owner { member, boot }
    GroupInfo { incarnation, voters, learners, preferred_leader, queues }
}
