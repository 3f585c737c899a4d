//! Bodies of the admin API's requests and answers.

use holdfast_engine::Alarms;
use holdfast_engine::admin::{
    AdminError, AdminErrorKind, ExpectedMember, Failover, GroupReport, Health, MemberHealth, MoveReport,
    RebalanceReport, ReplicaReport, UserReport,
};
use serde::{Deserialize, Serialize};

/// `POST /v1/bootstrap`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BootstrapBody {
    pub cluster_id: String,
    pub members: Vec<MemberBody>,
    pub user: UserBody,
    #[serde(default = "three")]
    pub default_replication_factor: u8,
    /// Copies that a confirm waits for at least, for queues without a policy; 0 = a majority.
    #[serde(default)]
    pub default_min_in_sync_replicas: u8,
}

fn three() -> u8 {
    3
}

/// An expected member.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MemberBody {
    pub name: String,
    /// `host:port` of its peer listener.
    pub address: String,
    #[serde(default)]
    pub zone: String,
}

impl From<MemberBody> for ExpectedMember {
    fn from(body: MemberBody) -> Self {
        Self { name: body.name, address: body.address, zone: body.zone }
    }
}

/// A user as the bootstrap request makes it.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UserBody {
    pub name: String,
    pub password: String,
}

impl std::fmt::Debug for UserBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UserBody").field("name", &self.name).finish_non_exhaustive()
    }
}

/// `PUT /v1/members`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MembersBody {
    pub members: Vec<MemberBody>,
}

/// `PUT /v1/replication`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ReplicationBody {
    pub default_min_in_sync_replicas: u8,
}

/// `PUT /v1/users/{name}`.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PasswordBody {
    pub password: String,
}

/// `POST /v1/groups/{id}/transfer`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TransferBody {
    /// Name of the member that should lead.
    pub to: String,
}

/// `POST /v1/drain-leaders`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DrainBody {
    pub deadline_ms: u64,
}

impl Default for DrainBody {
    fn default() -> Self {
        Self { deadline_ms: 5000 }
    }
}

/// Every error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    pub error: String,
    pub hint: String,
}

impl From<AdminError> for ErrorBody {
    fn from(error: AdminError) -> Self {
        Self { error: error.error, hint: error.hint }
    }
}

/// The HTTP status of a refusal.
pub fn status(kind: AdminErrorKind) -> http::StatusCode {
    match kind {
        AdminErrorKind::BadRequest => http::StatusCode::BAD_REQUEST,
        AdminErrorKind::NotFound => http::StatusCode::NOT_FOUND,
        AdminErrorKind::Conflict => http::StatusCode::CONFLICT,
        AdminErrorKind::Unavailable => http::StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// What the process adds to the engine's health.
#[derive(Clone, Copy, Debug, Default)]
pub struct Disk {
    pub used_bytes: u64,
    pub free_bytes: u64,
}

/// The answer of `GET /v1/health`.
pub fn health(health: &Health, version: &str, disk: Disk) -> serde_json::Value {
    let groups = &health.groups;
    serde_json::json!({
        "memberUuid": health.uuid.to_string(),
        "memberId": health.member.map(|id| id.0),
        "name": health.name,
        "zone": health.zone,
        "version": version,
        "bootId": format!("{:016x}", health.boot.0),
        "clusterId": health.cluster_id,
        "clusterEpoch": health.cluster_epoch,
        "state": health.state.as_str(),
        "ready": health.ready,
        "metadataLeader": health.metadata_leader,
        "quorum": health.quorum,
        "groups": {
            "total": groups.total,
            "leading": groups.leading,
            "withoutLeader": groups.without_leader,
            "lagging": groups.lagging,
            "quarantined": groups.quarantined,
            "underReplicated": groups.under_replicated,
        },
        "diskBytesUsed": disk.used_bytes,
        "diskBytesFree": disk.free_bytes,
        "lastFailover": health.last_failover.map(failover),
        "failovers": health.failovers,
        "members": health.members.iter().map(member).collect::<Vec<_>>(),
        "alarms": health.alarms.iter().map(alarm).collect::<Vec<_>>(),
        "blockedConnections": health.blocked_connections,
        "zoneFaultTolerant": health.zone_fault_tolerant,
        "zoneFaultBlocker": health.zone_fault_blocker,
    })
}

fn alarm((member, alarms): &(String, Alarms)) -> serde_json::Value {
    serde_json::json!({ "member": member, "memory": alarms.memory, "disk": alarms.disk })
}

fn failover(failover: Failover) -> serde_json::Value {
    serde_json::json!({ "atMs": failover.at_ms, "durationMs": failover.duration_ms })
}

fn member(member: &MemberHealth) -> serde_json::Value {
    serde_json::json!({
        "name": member.name,
        "id": member.id.map(|id| id.0),
        "zone": member.zone,
        "live": member.live,
        "ready": member.ready,
    })
}

/// The answer of `GET /v1/users`.
pub fn users(users: &[UserReport]) -> serde_json::Value {
    let user = |user: &UserReport| serde_json::json!({ "name": user.name, "tags": user.tags, "vhosts": user.vhosts });
    serde_json::json!({ "users": users.iter().map(user).collect::<Vec<_>>() })
}

/// The answer of `GET /v1/members`.
pub fn members(members: &[MemberHealth]) -> serde_json::Value {
    serde_json::json!({ "members": members.iter().map(member).collect::<Vec<_>>() })
}

/// The answer of `GET /v1/groups`.
pub fn groups(groups: &[GroupReport]) -> serde_json::Value {
    serde_json::json!({ "groups": groups.iter().map(group).collect::<Vec<_>>() })
}

fn group(group: &GroupReport) -> serde_json::Value {
    serde_json::json!({
        "id": group.group.0,
        "queues": group.queues,
        "votersExpected": group.voters_expected,
        "leader": group.leader,
        "leading": group.leading,
        "term": group.term,
        "commit": group.commit,
        "applied": group.applied,
        "quarantined": group.quarantined,
        "inSyncReplicas": group.in_sync_replicas,
        "minInSyncReplicas": group.min_in_sync_replicas,
        "replicas": group.replicas.iter().map(replica).collect::<Vec<_>>(),
    })
}

/// The answer of `GET /v1/rebalance`.
pub fn rebalance(report: &RebalanceReport) -> serde_json::Value {
    let group_move = |one: &MoveReport| {
        serde_json::json!({
            "group": one.group.0,
            "queues": one.queues,
            "from": one.from,
            "to": one.to,
            "state": one.state.as_str(),
            "why": one.why,
            "sinceMs": one.since_ms,
        })
    };
    serde_json::json!({
        "moves": report.moves.iter().map(group_move).collect::<Vec<_>>(),
        "unsettled": report.unsettled,
        "waiting": report.waiting,
        "metadataSettled": report.metadata_settled,
        "leaving": report.leaving,
        "leaders": report.leaders,
    })
}

fn replica(replica: &ReplicaReport) -> serde_json::Value {
    serde_json::json!({
        "memberId": replica.member.0,
        "name": replica.name,
        "voter": replica.voter,
        "match": replica.matched,
        "lag": replica.lag,
    })
}
