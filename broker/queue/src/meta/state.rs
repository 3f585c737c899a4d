//! What the metadata holds.

use super::access::Grant;
use super::command::{Binding, Destination, ExpectedMember};
use super::policies::Policy;
use crate::arguments::Arguments;
use crate::codec::{codec_enum, codec_struct};
use crate::ids::{BootId, GroupId, Incarnation, MemberId, QueueId, ReplicaId, SessionId};
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
    /// Copies that a confirm waits for at least, for queues without a policy; 0 = a majority.
    pub default_min_in_sync_replicas: u32,
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
    /// Whether it stays.
    pub standing: Standing,
}

/// Whether a member stays in the cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    /// It may hold replicas.
    #[default]
    Present,
    /// It was asked to leave: its replicas are moved to others, then it is removed.
    Leaving,
    /// A blank disk has come under its name: it is fenced, its replicas are moved to the new one, then it is removed.
    Replaced {
        /// The member with the new disk.
        by: MemberId,
    },
}

codec_enum!(Standing, "standing" { 1 => Present, 2 => Leaving, 3 => Replaced { by } });

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
    /// Users' policies by name.
    pub(super) policies: BTreeMap<String, Policy>,
    /// Operators' policies by name.
    pub(super) operator_policies: BTreeMap<String, Policy>,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

/// A Raft group: where its replicas are, and where they should be. Whoever decides where they should be (a declaration, a
/// policy, a member that leaves) sets the target; the mover brings the group there, one change at a time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupInfo {
    /// Which life of the group.
    pub incarnation: Incarnation,
    /// The voter that leads the first term without an election. It never changes, since founders that make their replicas
    /// late must come to the same as those that were in time.
    pub first_leader: MemberId,
    /// Replicas that vote, ascending, as the group's leader has last recorded; while a joint change is under way those of
    /// both sides of it.
    pub voters: Vec<ReplicaId>,
    /// Replicas that only follow, ascending.
    pub learners: Vec<ReplicaId>,
    /// Index in the group's log of the membership change that made them so; 0 while the founders are the members.
    pub changed_at: u64,
    /// Where its replicas should be.
    pub target: Target,
    /// The highest generation that was given to a replica of the group.
    pub last_generation: u32,
    /// The queues in it.
    pub queues: BTreeSet<QueueId>,
    /// Voters that it has come to have, and is still meant to have: so many are restored without being asked, whatever the
    /// policy says of synchronising. 0 where nobody knows.
    pub copies: u32,
}

/// Where a group's replicas should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// Replicas that should vote, ascending.
    pub voters: Vec<ReplicaId>,
    /// Replicas that should only follow, ascending.
    pub learners: Vec<ReplicaId>,
    /// The member that should lead when nothing speaks against it; one of the voters.
    pub preferred_leader: MemberId,
    /// Members that should hold a voter too, and wait to be synchronised; ascending.
    pub unsynchronised: Vec<Unsynchronised>,
}

/// A replica that is wanted and waits to be synchronised. It holds nothing and is no part of its group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unsynchronised {
    /// Where it is to be.
    pub member: MemberId,
    /// Where the group's log ended when its leader first heard of it: once no message up to here is left, it is
    /// synchronised without being asked for.
    pub marker: Option<u64>,
}

impl Target {
    /// All replicas, voters first.
    pub fn replicas(&self) -> impl Iterator<Item = ReplicaId> + '_ {
        self.voters.iter().chain(&self.learners).copied()
    }

    /// The replica that a member should hold, if any.
    pub fn replica_on(&self, member: MemberId) -> Option<ReplicaId> {
        self.replicas().find(|replica| replica.member == member)
    }
}

impl GroupInfo {
    /// A group that has its founders, and should keep them.
    pub(super) fn founded(incarnation: Incarnation, founders: &[MemberId], leader: MemberId) -> GroupInfo {
        let mut voters: Vec<ReplicaId> = founders.iter().copied().map(ReplicaId::founder).collect();
        voters.sort_unstable();
        let copies = u32::try_from(voters.len()).unwrap_or(u32::MAX);
        let target = Target { voters: voters.clone(), preferred_leader: leader, ..Target::default() };
        GroupInfo { incarnation, first_leader: leader, voters, target, copies, ..GroupInfo::default() }
    }

    /// All replicas that the group is known to have, voters first.
    pub fn replicas(&self) -> impl Iterator<Item = ReplicaId> + '_ {
        self.voters.iter().chain(&self.learners).copied()
    }

    /// True when the replicas are where they should be (who leads is another matter), but for those that wait to be
    /// synchronised.
    pub fn is_settled(&self) -> bool {
        self.voters == self.target.voters && self.learners == self.target.learners
    }

    /// True if the member holds a replica, or should come to hold one.
    pub fn concerns(&self, member: MemberId) -> bool {
        self.replicas().chain(self.target.replicas()).any(|replica| replica.member == member)
    }

    /// True if this replica is part of the group, or should be. One that is neither any more never will be again.
    pub fn knows(&self, replica: ReplicaId) -> bool {
        self.replicas().chain(self.target.replicas()).any(|known| known == replica)
    }
}

codec_struct! {
    ClusterInfo { cluster_id, epoch, replication_factor, default_min_in_sync_replicas, expected }
    MemberInfo { uuid, name, zone, address, boot, standing }
    UserInfo { hash, tags }
    Vhost { exchanges, queues, bindings, grants, policies, operator_policies }
    ExchangeInfo { kind, durable, auto_delete, internal, arguments }
    QueueInfo { vhost, name, durable, exclusive, auto_delete, arguments, placement }
    Owner { member, boot }
    Target { voters, learners, preferred_leader, unsynchronised }
    Unsynchronised { member, marker }
    GroupInfo { incarnation, first_leader, voters, learners, changed_at, target, last_generation, queues, copies }
}
