//! What can be asked of the cluster's metadata.

use super::policies::{NewPolicy, PolicyKind};
use super::state::Vhost;
use crate::arguments::Arguments;
use crate::codec::{codec_enum, codec_struct};
use crate::ids::{BootId, GroupId, MemberId, QueueId, ReplicaId, SessionId};
use bytes::Bytes;

/// A command to the metadata machine. Each is answered with a [`super::MetaReply`] if it came in a numbered batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetaCommand {
    /// Makes the cluster, once; a repeat under the same id is answered alike, under another refused.
    Init {
        /// The cluster's id, kept outside the disks by the operator (design §3.5).
        cluster_id: String,
        /// Grows with each forced recovery.
        epoch: u64,
        /// Who should be in it.
        expected: Vec<ExpectedMember>,
        /// Replicas of a queue without a policy; 0 = by the number of expected members (1, 3, 3 for 1, 3, 5).
        replication_factor: u32,
        /// Copies that a confirm waits for at least, for queues without a policy; 0 = a majority.
        default_min_in_sync_replicas: u32,
        /// The first user, who may do everything in the vhost `/`.
        user: Option<NewUser>,
        /// The member that runs group 0 alone at first; it gets id 1.
        first: NewMember,
    },
    /// Changes who should be in the cluster.
    SetExpected {
        /// All of them.
        expected: Vec<ExpectedMember>,
    },
    /// Admits a member and gives it an id; a repeat for the same UUID is answered alike and updates the rest.
    AddMember {
        /// Who.
        member: NewMember,
    },
    /// Takes a member out of the cluster. It must hold no replica any more.
    RemoveMember {
        /// Who.
        member: MemberId,
    },
    /// A run of a member began; the run before it has ended.
    BootStarted {
        /// Whose.
        member: MemberId,
        /// The new run.
        boot: BootId,
    },
    /// A run of a member is over, with all its sessions and transient queues.
    BootEnded {
        /// Which.
        boot: BootId,
    },
    /// A connection is over, with its exclusive queues.
    SessionEnded {
        /// Which.
        session: SessionId,
    },
    /// Records the voters and learners that a group has come to have (after the group's own membership change).
    SetReplicas {
        /// Which group; 0 for the metadata itself.
        group: GroupId,
        /// Its voters; during a joint change those of both sides.
        voters: Vec<ReplicaId>,
        /// Its learners.
        learners: Vec<ReplicaId>,
        /// Index of the change in the group's log: a record that comes late changes nothing.
        changed_at: u64,
    },
    /// Sets where a group's replicas should be, and who should lead it. The mover brings the group there.
    SetTarget {
        /// Which group.
        group: GroupId,
        /// Members that should vote.
        voters: Vec<MemberId>,
        /// Members that should only follow.
        learners: Vec<MemberId>,
        /// One of the voters.
        preferred_leader: MemberId,
    },
    /// A replica is damaged beyond repair: its member is to get another one, under a new Raft id. A replica that the
    /// group should not have (any more) is no error.
    RenewReplica {
        /// Which group.
        group: GroupId,
        /// The damaged one.
        replica: ReplicaId,
    },
    /// Asks a member to leave: its replicas are to go elsewhere. Refused, with the reason, when a group could not have as
    /// many voters as it should. A repeat takes group 0 from it too, once it holds nothing else.
    RetireMember {
        /// Who.
        member: MemberId,
    },
    /// Where a group's log ended when its leader first heard of a replica that waits to be synchronised.
    MarkUnsynchronised {
        /// Which group.
        group: GroupId,
        /// Whose replica.
        member: MemberId,
        /// The index.
        marker: u64,
    },
    /// Has replicas that wait to be synchronised fetch all messages, and vote after that.
    Synchronise {
        /// Which group.
        group: GroupId,
        /// Whose replica; none: all that wait.
        member: Option<MemberId>,
    },
    /// Replicas that were to be synchronised and do not vote yet wait again.
    CancelSynchronise {
        /// Which group.
        group: GroupId,
    },
    /// Makes a virtual host with its pre-declared exchanges.
    PutVhost {
        /// Its name.
        name: String,
    },
    /// Removes a virtual host and all in it.
    DeleteVhost {
        /// Its name.
        name: String,
    },
    /// Makes a user or replaces it.
    PutUser {
        /// All about it.
        user: NewUser,
    },
    /// Removes a user and its permissions.
    DeleteUser {
        /// Its name.
        name: String,
    },
    /// Sets what a user may do in a virtual host: regular expressions over resource names.
    SetPermissions {
        /// Where.
        vhost: String,
        /// Who.
        user: String,
        /// Declare and delete.
        configure: String,
        /// Publish and bind into.
        write: String,
        /// Consume and bind from.
        read: String,
    },
    /// Takes a user's permissions in a virtual host away.
    ClearPermissions {
        /// Where.
        vhost: String,
        /// Who.
        user: String,
    },
    /// `exchange.declare`, not passive.
    DeclareExchange {
        /// Where.
        vhost: String,
        /// Its name.
        name: String,
        /// `direct`, `fanout`, `topic` or `headers`.
        kind: String,
        /// Survives a restart (kept and compared; here every exchange survives).
        durable: bool,
        /// Goes with its last binding.
        auto_delete: bool,
        /// Takes no publishes from clients.
        internal: bool,
        /// All arguments, known or not.
        arguments: Arguments,
    },
    /// `exchange.delete`. One that is not there is no error.
    DeleteExchange {
        /// Where.
        vhost: String,
        /// Its name.
        name: String,
        /// Refuse when something is bound to it.
        if_unused: bool,
    },
    /// `queue.bind` and `exchange.bind`. A repeat changes nothing.
    Bind {
        /// Where.
        vhost: String,
        /// What.
        binding: Binding,
        /// Who asks: an exclusive queue is bound only by its own connection.
        session: SessionId,
    },
    /// `queue.unbind` and `exchange.unbind`. One that is not there is no error.
    Unbind {
        /// Where.
        vhost: String,
        /// What.
        binding: Binding,
        /// Who asks.
        session: SessionId,
    },
    /// `queue.declare`, not passive. An exclusive or not durable queue lives on the declaring member alone; any other
    /// gets a group.
    DeclareQueue {
        /// Where.
        vhost: String,
        /// Its name, never empty (the home makes up those of server-named queues).
        name: String,
        /// Survives a restart.
        durable: bool,
        /// Belongs to the declaring connection.
        exclusive: bool,
        /// Goes with its last consumer.
        auto_delete: bool,
        /// All arguments, known or not.
        arguments: Arguments,
        /// Who asks.
        session: SessionId,
    },
    /// Takes a queue and its bindings out. Conditions were checked by the queue's own machine. One that is not there is
    /// no error.
    DeleteQueue {
        /// Which.
        queue: QueueId,
    },
    /// Changes how many copies a confirm waits for, for queues without a policy.
    SetDefaultMinInSync {
        /// How many; 0 = a majority.
        min_in_sync_replicas: u32,
    },
    /// Makes a policy or replaces it, and moves replicas accordingly.
    PutPolicy {
        /// Whose.
        kind: PolicyKind,
        /// Where.
        vhost: String,
        /// Its name.
        name: String,
        /// All about it.
        policy: NewPolicy,
    },
    /// Removes a policy, and moves replicas accordingly.
    DeletePolicy {
        /// Whose.
        kind: PolicyKind,
        /// Where.
        vhost: String,
        /// Its name.
        name: String,
    },
    /// Makes a virtual host for a restore in place, with exchanges and policies. A repeat changes nothing.
    BeginVhostRestore {
        /// Its name.
        vhost: String,
        /// The restore's.
        id: String,
        /// As the backup has it; queues, bindings and permissions are not taken yet.
        content: Vhost,
    },
    /// Makes a queue for a restore in place, which nobody can use yet. A repeat changes nothing.
    BeginQueueRestore {
        /// Where.
        vhost: String,
        /// Its name.
        name: String,
        /// The restore's.
        id: String,
        /// As it was declared.
        auto_delete: bool,
        /// As it was declared.
        arguments: Arguments,
    },
    /// A queue that is being restored has all its messages.
    CompleteQueueRestore {
        /// Where.
        vhost: String,
        /// Its name.
        name: String,
        /// The restore's.
        id: String,
    },
    /// A virtual host that is being restored has all its queues.
    CompleteVhostRestore {
        /// Its name.
        vhost: String,
        /// The restore's.
        id: String,
        /// As the backup has it: the bindings and permissions.
        content: Vhost,
    },
    /// Takes out what a restore has begun and not completed.
    AbandonRestore {
        /// Where.
        vhost: String,
        /// Which queue; empty: the whole virtual host.
        name: String,
        /// The restore's name; empty: whichever it is.
        id: String,
    },
}

codec_enum!(MetaCommand, "metadata command" {
    1 => Init { cluster_id, epoch, expected, replication_factor, default_min_in_sync_replicas, user, first },
    2 => SetExpected { expected },
    3 => AddMember { member },
    4 => RemoveMember { member },
    5 => BootStarted { member, boot },
    6 => BootEnded { boot },
    7 => SessionEnded { session },
    8 => SetReplicas { group, voters, learners, changed_at },
    9 => PutVhost { name },
    10 => DeleteVhost { name },
    11 => PutUser { user },
    12 => DeleteUser { name },
    13 => SetPermissions { vhost, user, configure, write, read },
    14 => ClearPermissions { vhost, user },
    15 => DeclareExchange { vhost, name, kind, durable, auto_delete, internal, arguments },
    16 => DeleteExchange { vhost, name, if_unused },
    17 => Bind { vhost, binding, session },
    18 => Unbind { vhost, binding, session },
    19 => DeclareQueue { vhost, name, durable, exclusive, auto_delete, arguments, session },
    20 => DeleteQueue { queue },
    40 => SetTarget { group, voters, learners, preferred_leader },
    41 => RenewReplica { group, replica },
    42 => RetireMember { member },
    43 => MarkUnsynchronised { group, member, marker },
    44 => Synchronise { group, member },
    45 => CancelSynchronise { group },
    60 => SetDefaultMinInSync { min_in_sync_replicas },
    61 => PutPolicy { kind, vhost, name, policy },
    62 => DeletePolicy { kind, vhost, name },
    70 => BeginVhostRestore { vhost, id, content },
    71 => BeginQueueRestore { vhost, name, id, auto_delete, arguments },
    72 => CompleteQueueRestore { vhost, name, id },
    73 => CompleteVhostRestore { vhost, id, content },
    74 => AbandonRestore { vhost, name, id },
});

/// A member that the operator wants in the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExpectedMember {
    /// Its name, such as `demo-0`.
    pub name: String,
    /// Where its peers reach it, host and port.
    pub address: String,
    /// Its failure zone; empty if there are none.
    pub zone: String,
}

/// A member that joins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewMember {
    /// The identity in its data directory.
    pub uuid: String,
    /// Its name.
    pub name: String,
    /// Its failure zone.
    pub zone: String,
    /// Where its peers reach it, host and port.
    pub address: String,
    /// Its present run, if it runs.
    pub boot: Option<BootId>,
}

/// A user as it is set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewUser {
    /// Its name.
    pub name: String,
    /// The hash of its password, opaque here.
    pub hash: String,
    /// Management tags, such as `administrator`.
    pub tags: Vec<String>,
}

codec_struct! {
    ExpectedMember { name, address, zone }
    NewMember { uuid, name, zone, address, boot }
    NewUser { name, hash, tags }
    Binding { source, destination, routing_key, arguments }
}

/// A rule that carries messages from an exchange on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Binding {
    /// Name of the exchange that messages come from.
    pub source: String,
    /// Where they go.
    pub destination: Destination,
    /// The key or pattern.
    pub routing_key: Bytes,
    /// All arguments; those of a headers exchange are what it matches.
    pub arguments: Arguments,
}

/// Where a binding leads, by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Destination {
    /// A queue.
    Queue {
        /// Its name.
        name: String,
    },
    /// Another exchange.
    Exchange {
        /// Its name.
        name: String,
    },
}

codec_enum!(Destination, "destination" { 1 => Queue { name }, 2 => Exchange { name } });
