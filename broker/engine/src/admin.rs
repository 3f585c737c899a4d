//! Requests of the admin API, typed; the node maps them to HTTP and JSON.

use holdfast_queue::ids::{BootId, GroupId, MemberId};
use holdfast_queue::in_place::RestoreStep;
use holdfast_queue::meta::{EffectivePolicy, NewPolicy, PolicyKind};

use crate::alarms::Alarms;
use crate::backup::{BarrierReport, BarrierRequest};
use crate::identity::MemberUuid;

/// A member as the operator expects it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpectedMember {
    pub name: String,
    /// `host:port` of its peer listener.
    pub address: String,
    pub zone: String,
}

/// A user, its password already hashed (PHC string).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserCredentials {
    pub name: String,
    pub password_hash: String,
}

/// One request. `token` is the value of `X-Holdfast-Token`, if the request had one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminRequest {
    pub token: Option<u64>,
    pub action: AdminAction,
}

/// What an admin request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminAction {
    /// `GET /v1/health`.
    Health,
    /// `POST /v1/bootstrap`, idempotent by cluster id.
    Bootstrap {
        cluster_id: String,
        members: Vec<ExpectedMember>,
        user: UserCredentials,
        default_replication_factor: u8,
        /// Copies that a confirm waits for at least, for queues without a policy; 0 = a majority.
        default_min_in_sync_replicas: u8,
    },
    /// `GET /v1/groups`.
    Groups { limit: usize },
    /// `POST /v1/groups/{id}/transfer`.
    Transfer { group: GroupId, to: String },
    /// `POST /v1/drain-leaders`: answered when none is left, or at the deadline.
    DrainLeaders { deadline_ms: u64 },
    /// `PUT /v1/users/{name}`: a new user may do everything in `/`, a known one keeps its permissions and tags.
    PutUser(UserCredentials),
    /// `GET /v1/users`.
    Users,
    /// `DELETE /v1/users/{name}`; its connections to this member are closed, those to others as they hear of it.
    DeleteUser { name: String },
    /// `GET /v1/members`.
    Members,
    /// `PUT /v1/replication`: the cluster's defaults.
    PutReplication { default_min_in_sync_replicas: u8 },
    /// `PUT /v1/policies/{vhost}/{name}` and `/v1/operator-policies/{vhost}/{name}`.
    PutPolicy { kind: PolicyKind, vhost: String, name: String, policy: NewPolicy },
    /// `DELETE` of the same.
    DeletePolicy { kind: PolicyKind, vhost: String, name: String },
    /// `GET /v1/policies` and `/v1/operator-policies`.
    Policies { kind: PolicyKind },
    /// `GET /v1/queues`.
    Queues { limit: usize },
    /// `POST /v1/queues/{vhost}/{name}/actions`.
    QueueAction { vhost: String, name: String, action: QueueAction },
    /// `PUT /v1/members`: the whole list of expected members.
    PutMembers { members: Vec<ExpectedMember> },
    /// `DELETE /v1/members/{name}`: asks a member to leave. The contract:
    ///
    /// - The answer `{}` means that the wish is in the metadata; the member is taken off the list of expected members, gets
    ///   no new replicas, and its replicas move to others, leaderships first, a few groups at a time. It serves meanwhile.
    /// - It is over when the member is no longer among `members` of `GET /v1/health` of any other member. The process that
    ///   was removed is refused by the others from then on; stop it, and only then delete its volume.
    /// - How far it is, and what holds it, is in `GET /v1/rebalance` (`leaving`, `moves`).
    /// - 409 refuses, with the group and the reason: fewer voters than a group should have would be left, or a group would
    ///   be without a majority that answers. Nothing has changed then.
    /// - A repeat is harmless. A member cannot be called back; a blank disk under its name may join once it is expected
    ///   again. 404: no such member (any more).
    RemoveMember { name: String },
    /// `GET /v1/rebalance`: which groups change their replicas. Only the leader of group 0 knows: others answer 503, and
    /// name it in the hint (it is `metadataLeader` of `GET /v1/health`).
    Rebalance,
    /// `POST /v1/backup/barriers`: a cut through all groups, and the files that it needs held on every member. Answered
    /// when all of it is done.
    Barrier(BarrierRequest),
    /// `POST /v1/restore-in-place`: a step of a restore into this cluster.
    RestoreStep(Box<RestoreStep>),
}

/// A successful answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminReply {
    Health(Box<Health>),
    /// The request took effect (bootstrap, transfer asked for, user or members stored).
    Done,
    Groups(Vec<GroupReport>),
    Policies(Vec<PolicyReport>),
    Queues(Vec<QueueReport>),
    /// By name.
    Users(Vec<UserReport>),
    Members(Vec<MemberHealth>),
    /// Leaderships that this member still has.
    Drained {
        remaining: usize,
    },
    Rebalance(Box<RebalanceReport>),
    Barrier(Box<BarrierReport>),
    /// How far the restore of a queue in place is.
    InPlace {
        /// Messages that are there; 0 for a queue that is complete, which others use.
        messages: u64,
        complete: bool,
    },
}

/// How a group's move stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MoveState {
    /// It goes on.
    Running,
    /// Something must happen first; it is tried again every few seconds.
    Held,
    Done,
}

impl MoveState {
    /// As the admin API spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Held => "held",
            Self::Done => "done",
        }
    }
}

/// A group that changes its replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MoveReport {
    pub group: GroupId,
    /// Queues in it, as `vhost/name`.
    pub queues: Vec<String>,
    /// Names of the members that hold it.
    pub from: Vec<String>,
    /// Names of the members that should hold it.
    pub to: Vec<String>,
    pub state: MoveState,
    /// What is being done, or what holds it.
    pub why: String,
    /// Wall clock, ms since 1970, when this coordinator first let it move.
    pub since_ms: u64,
}

/// The answer of `GET /v1/rebalance`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RebalanceReport {
    /// Running and held ones, at most 100, then the last 20 that are done.
    pub moves: Vec<MoveReport>,
    /// Groups whose replicas are not where they should be, group 0 left out.
    pub unsettled: usize,
    /// Of these, how many wait for their turn.
    pub waiting: usize,
    /// Group 0 is where it should be.
    pub metadata_settled: bool,
    /// Names of members that are on their way out.
    pub leaving: Vec<String>,
    /// What is done about groups that are led elsewhere than they should be, or why nothing is.
    pub leaders: String,
}

/// A refused or failed request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminError {
    pub kind: AdminErrorKind,
    /// What went wrong.
    pub error: String,
    /// What to do about it.
    pub hint: String,
}

/// The kinds of failure, as HTTP statuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdminErrorKind {
    /// 400
    BadRequest,
    /// 404
    NotFound,
    /// 409: initialised under another cluster id, a stale token.
    Conflict,
    /// 503: no quorum, not started, or no answer in time. The request may be repeated.
    Unavailable,
}

/// How far a member is in joining a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberState {
    /// Belongs to no cluster.
    Blank,
    /// Has an identity, but has not yet reached the commit indexes it saw at start.
    Joining,
    Started,
}

impl MemberState {
    /// As the admin API spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Blank => "blank",
            Self::Joining => "joining",
            Self::Started => "started",
        }
    }
}

/// One user of `GET /v1/users`; never its password's hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserReport {
    pub name: String,
    pub tags: Vec<String>,
    /// Virtual hosts in which it has permissions.
    pub vhosts: Vec<String>,
}

/// Counts of the replicas on this member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupCounts {
    pub total: usize,
    pub leading: usize,
    pub without_leader: usize,
    /// Led here, with a voter more than 1,000 entries behind.
    pub lagging: usize,
    pub quarantined: usize,
    /// Led here, with fewer voters than it should have, or one that does not answer.
    pub under_replicated: usize,
}

/// One member as seen from here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberHealth {
    pub name: String,
    /// None while it is expected but has not joined.
    pub id: Option<MemberId>,
    pub zone: String,
    pub live: bool,
    pub ready: bool,
}

/// A failover that this member's groups went through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failover {
    /// Wall clock, ms since 1970, when the new leader served.
    pub at_ms: u64,
    /// From the last sign of the old leader to the new leader serving.
    pub duration_ms: u64,
}

/// The constant-size summary of `GET /v1/health`. The node adds version and disk figures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    pub uuid: MemberUuid,
    pub member: Option<MemberId>,
    pub name: String,
    pub zone: String,
    pub boot: BootId,
    pub cluster_id: Option<String>,
    pub cluster_epoch: u64,
    pub state: MemberState,
    pub ready: bool,
    /// Name of the member that leads group 0.
    pub metadata_leader: Option<String>,
    /// True while this member's metadata lease is fresh, so a majority of group 0 was heard lately.
    pub quorum: bool,
    pub groups: GroupCounts,
    pub last_failover: Option<Failover>,
    pub failovers: u64,
    pub members: Vec<MemberHealth>,
    /// Names of the members with an alarm, this one among them, and which alarms.
    pub alarms: Vec<(String, Alarms)>,
    /// Connections here that an alarm has blocked.
    pub blocked_connections: usize,
    /// Would every group led here keep a quorum of caught-up voters if any one zone went away?
    pub zone_fault_tolerant: bool,
    /// Why not, in words, naming the zone and a group.
    pub zone_fault_blocker: Option<String>,
}

/// One voter or learner of a group, as its leader sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaReport {
    pub member: MemberId,
    pub name: String,
    pub voter: bool,
    /// Highest index known to be on its disk; 0 when this member does not lead the group.
    pub matched: u64,
    /// Entries it is behind; 0 when unknown.
    pub lag: u64,
}

/// One group of `GET /v1/groups`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupReport {
    pub group: GroupId,
    /// Queues in it, as `vhost/name`; empty for group 0.
    pub queues: Vec<String>,
    /// Voters that it should have, with the members that are expected; 0 while there is no metadata here.
    pub voters_expected: usize,
    pub leader: Option<String>,
    pub leading: bool,
    pub term: u64,
    pub commit: u64,
    pub applied: u64,
    pub quarantined: bool,
    /// Voters that answer and lack little of the log; none when this member does not lead the group.
    pub in_sync_replicas: Option<usize>,
    /// Copies that a confirm of its queues waits for at least; 0 = a majority.
    pub min_in_sync_replicas: u32,
    pub replicas: Vec<ReplicaReport>,
}

/// One policy of `GET /v1/policies`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyReport {
    pub vhost: String,
    pub name: String,
    pub policy: NewPolicy,
}

/// What can be done with a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueAction {
    /// Replicas that wait to be synchronised fetch all messages.
    Sync,
    /// Those that were asked for and are not done wait again.
    CancelSync,
}

/// One queue of `GET /v1/queues`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueReport {
    pub vhost: String,
    pub name: String,
    /// None for a transient queue.
    pub group: Option<GroupId>,
    /// What policies come to for it, if any matches.
    pub policy: Option<EffectivePolicy>,
    /// Member that leads it, or that holds a transient queue.
    pub leader: Option<String>,
    /// Voters that it is meant to have.
    pub replicas_wanted: usize,
    /// Copies that a confirm waits for at least; 0 = a majority.
    pub min_in_sync_replicas: u32,
    /// Where it is.
    pub replicas: Vec<QueueReplica>,
    /// Members that it is to move to.
    pub moving_to: Vec<String>,
    /// Members that should hold it too, and wait to be synchronised (`ha-sync-mode: manual`).
    pub unsynchronised: Vec<String>,
}

/// A replica of a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueReplica {
    pub name: String,
    pub voter: bool,
    /// It answers and lacks little of the log; none when the leader is another member, which knows it.
    pub synchronised: Option<bool>,
}
