//! The only door to a running broker: its admin API (mTLS, JSON), behind a trait, with a fake for tests.
//!
//! Each call is one short-lived connection to the pod's IP, checked against the pod's own name in the certificate: a
//! recycled IP cannot answer for another broker. Every call carries the operator's token, which grows with each holder
//! of the Lease; brokers refuse a lower one.

use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, StatusCode, client::conn::http1};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

mod backup;
mod fake;
mod recovery;
mod restore;

pub use backup::{Barrier, BarrierRequest, BarrierTotals, MissingGroup};
pub use fake::FakeBrokers;
pub use recovery::{PersonNeeded, PlannedCluster, PlannedGroup, PlannedPosition, PlannedQueue, RecoveryPlan};
pub use restore::{RestoreProgress, RestoreState};

/// The admin listener's port.
pub const ADMIN_PORT: u16 = 5690;
/// A broker that takes longer than this to say how it is counts as not answering.
const QUICK: Duration = Duration::from_secs(2);
/// Time for answers that need a commit by a majority.
const COMMIT: Duration = Duration::from_secs(10);
/// Bounds memory. A group takes half a kilobyte in the list of all groups, which is asked for before a pod is taken away;
/// a list that is longer counts as no answer, so then none is.
const MAX_ANSWER_BYTES: usize = 64 << 20;
/// More than fit into an answer.
const MAX_GROUPS: u32 = 1_000_000;

/// A broker to talk to.
#[derive(Clone)]
pub struct Door {
    /// The member's name, which is its pod's.
    pub member: String,
    /// The name its certificate must hold.
    pub host: String,
    pub address: SocketAddr,
    pub tls: Arc<ClientConfig>,
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.member, self.address)
    }
}

/// How far a broker is in belonging to a cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum MemberState {
    /// Its disk belongs to no cluster.
    #[default]
    Blank,
    Joining,
    Started,
}

/// `GET /v1/health`: a broker's summary of itself, of constant size. Fields that an older broker lacks are defaults.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Health {
    pub member_uuid: String,
    pub member_id: Option<u64>,
    pub name: String,
    pub zone: String,
    pub version: String,
    pub cluster_id: Option<String>,
    pub cluster_epoch: u64,
    pub state: MemberState,
    pub ready: bool,
    pub metadata_leader: Option<String>,
    pub quorum: bool,
    pub groups: GroupCounts,
    pub disk_bytes_used: u64,
    pub disk_bytes_free: u64,
    pub last_failover: Option<Failover>,
    pub failovers: u64,
    pub members: Vec<KnownMember>,
    pub zone_fault_tolerant: bool,
    pub zone_fault_blocker: Option<String>,
}

/// Counts of the groups a broker has a replica of; the last three speak of those it leads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GroupCounts {
    pub total: u64,
    pub leading: u64,
    pub without_leader: u64,
    pub quarantined: u64,
    pub lagging: u64,
    pub under_replicated: u64,
}

/// A leader change after a loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Failover {
    /// Milliseconds since 1970.
    pub at_ms: u64,
    pub duration_ms: u64,
}

/// A member as the cluster's metadata has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct KnownMember {
    pub name: String,
    /// None while it is expected, but has not joined.
    pub id: Option<u64>,
    pub zone: String,
    pub live: bool,
    pub ready: bool,
}

/// A member as the operator wants it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpectedMember {
    pub name: String,
    /// `host:port` of its peer listener.
    pub address: String,
    pub zone: String,
}

/// A user and its password, in clear.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    pub name: String,
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "user {}", self.name)
    }
}

/// `POST /v1/bootstrap`: found the cluster. Idempotent by its id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Bootstrap {
    pub cluster_id: String,
    pub members: Vec<ExpectedMember>,
    pub user: Credentials,
    pub default_replication_factor: i32,
    /// Copies that a confirm waits for; 0 is a majority.
    pub default_min_in_sync_replicas: i32,
}

/// One group of `GET /v1/groups`, as far as it matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Group {
    pub id: u64,
    /// Does the member that was asked lead it? Only then it knows who is caught up.
    pub leading: bool,
    /// Voters that answer and lack little.
    pub in_sync_replicas: Option<usize>,
    /// Copies that confirms wait for; 0 is a majority.
    pub min_in_sync_replicas: usize,
    pub replicas: Vec<Replica>,
}

/// A replica of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Replica {
    /// The member's name.
    pub name: String,
    pub voter: bool,
}

/// What becomes of a group when a member stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Without {
    /// It goes on; or the member that was asked does not lead it.
    Enough,
    /// It has too few voters to go on without that one, even when all are caught up.
    TooFewVoters,
    /// It would go on if the other voters were caught up.
    TooFewInSync { left: usize, needed: usize },
}

impl Group {
    /// What becomes of it without `member`: it needs a majority of its voters, and as many as confirms wait for. Where that
    /// is every voter, publishers have to wait whoever stops, so one less has to do.
    pub fn without(&self, member: &str) -> Without {
        let voters = self.replicas.iter().filter(|r| r.voter).count();
        if !self.leading || !self.replicas.iter().any(|r| r.voter && r.name == member) {
            return Without::Enough;
        }
        let needed = (voters / 2 + 1).max(self.min_in_sync_replicas.min(voters.saturating_sub(1)));
        if voters - 1 < needed {
            return Without::TooFewVoters;
        }
        let left = self.in_sync_replicas.unwrap_or(0).saturating_sub(1);
        if left < needed { Without::TooFewInSync { left, needed } } else { Without::Enough }
    }
}

/// Why a broker did not do what it was asked.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum AdminError {
    /// No connection, no answer in time, or not over TLS as its certificate says.
    #[error("{member} does not answer: {why}")]
    NoAnswer { member: String, why: String },
    /// An answer with an error.
    #[error("{member} refuses ({status}): {error}{}", if hint.is_empty() { String::new() } else { format!("; {hint}") })]
    Refused { member: String, status: u16, error: String, hint: String },
}

/// A call's result, when it comes.
pub type Call<'a, T> = BoxFuture<'a, Result<T, AdminError>>;

/// What the operator may ask of a broker.
pub trait BrokerAdmin: Send + Sync {
    /// How are you?
    fn health<'a>(&'a self, door: &'a Door) -> Call<'a, Health>;
    /// Found the cluster; only ever asked of one member, behind the latch of `plan::latch`.
    fn bootstrap<'a>(&'a self, door: &'a Door, request: &'a Bootstrap) -> Call<'a, ()>;
    /// Set the whole list of members, with their zones.
    fn put_members<'a>(&'a self, door: &'a Door, members: &'a [ExpectedMember]) -> Call<'a, ()>;
    /// Create the user, or set its password.
    fn put_user<'a>(&'a self, door: &'a Door, user: &'a Credentials) -> Call<'a, ()>;
    /// Set how many copies confirms wait for, for queues without a policy; 0 is a majority.
    fn put_min_in_sync<'a>(&'a self, door: &'a Door, copies: i32) -> Call<'a, ()>;
    /// Every group that the broker has a replica of.
    fn groups<'a>(&'a self, door: &'a Door) -> Call<'a, Vec<Group>>;
    /// Hand every leadership away within `deadline`; answers how many are left.
    fn drain_leaders<'a>(&'a self, door: &'a Door, deadline: Duration) -> Call<'a, u64>;
    /// Nothing becomes durable there for so long; refused where a majority is in touch. Zero ends it.
    fn recovery_freeze<'a>(&'a self, door: &'a Door, time: Duration) -> Call<'a, ()>;
    /// What its disk holds: for [`BrokerAdmin::recovery_plan`] and [`BrokerAdmin::recovery_apply`].
    fn recovery_survey<'a>(&'a self, door: &'a Door) -> Call<'a, Value>;
    /// What a recovery from these disks would do; nothing is changed.
    fn recovery_plan<'a>(&'a self, door: &'a Door, found: &'a [Value]) -> Call<'a, RecoveryPlan>;
    /// Carries that member's part of the plan out; it ends, and starts again in the new epoch.
    fn recovery_apply<'a>(&'a self, door: &'a Door, plan_hash: &'a str, nonce: u64, found: &'a [Value])
    -> Call<'a, ()>;
    /// How far a blank member is in receiving a backup.
    fn restore_progress<'a>(&'a self, door: &'a Door) -> Call<'a, RestoreProgress>;
    /// Found the cluster with what was received of that backup; the member ends, and starts again as the founder. Only
    /// ever asked of one member, behind the same latch as [`BrokerAdmin::bootstrap`].
    fn restore_apply<'a>(&'a self, door: &'a Door, backup: &'a str, request: &'a Bootstrap) -> Call<'a, ()>;
    /// Forget what was received of that backup.
    fn restore_discard<'a>(&'a self, door: &'a Door, backup: &'a str) -> Call<'a, ()>;
    /// Draw a line through every queue, and have the members hold their files.
    fn draw_barrier<'a>(&'a self, door: &'a Door, request: &'a BarrierRequest) -> Call<'a, Barrier>;
    /// Hold the files of that line for so long from now; refused where they are held no more.
    fn renew_hold<'a>(&'a self, door: &'a Door, barrier: &'a str, time: Duration) -> Call<'a, ()>;
    /// Hold the files no more; also where they are not held.
    fn release_hold<'a>(&'a self, door: &'a Door, barrier: &'a str) -> Call<'a, ()>;
}

/// The implementation that talks to real brokers.
pub struct HttpAdmin {
    token: Arc<AtomicU64>,
}

impl HttpAdmin {
    /// `token` is the Lease holder's, as [`crate::lease`] keeps it.
    pub fn new(token: Arc<AtomicU64>) -> Self {
        Self { token }
    }

    async fn call<T: DeserializeOwned>(
        &self,
        door: &Door,
        method: Method,
        path: &str,
        body: Option<Value>,
        limit: Duration,
    ) -> Result<T, AdminError> {
        let no_answer = |why: String| AdminError::NoAnswer { member: door.member.clone(), why };
        let exchange = exchange(door, method, path, body, self.token.load(Ordering::Relaxed));
        let (status, answer) = tokio::time::timeout(limit, exchange)
            .await
            .map_err(|_| no_answer(format!("nothing within {} s", limit.as_secs())))?
            .map_err(|error| no_answer(error.to_string()))?;
        if !status.is_success() {
            return Err(refusal(door, status, &answer));
        }
        let text: &[u8] = if answer.is_empty() { b"null" } else { &answer };
        serde_json::from_slice(text)
            .map_err(|error| no_answer(format!("its answer to {path} is not understood: {error}")))
    }
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

async fn exchange(
    door: &Door,
    method: Method,
    path: &str,
    body: Option<Value>,
    token: u64,
) -> Result<(StatusCode, Bytes), Failure> {
    let socket = TcpStream::connect(door.address).await?;
    let name = ServerName::try_from(door.host.clone())?;
    let stream = TlsConnector::from(door.tls.clone()).connect(name, socket).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", &door.host)
        .header("content-type", "application/json")
        .header("x-holdfast-token", token)
        .body(Full::new(body.map_or_else(Bytes::new, |b| b.to_string().into())))?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let bytes = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await?.to_bytes();
        Ok::<_, Failure>((status, bytes))
    };
    // The connection must be polled for the answer to come; it ends with this call, whatever happens.
    let mut connection = std::pin::pin!(connection.fuse());
    let mut answer = std::pin::pin!(answer);
    loop {
        tokio::select! {
            done = &mut answer => return done,
            ended = &mut connection, if !futures::future::FusedFuture::is_terminated(&*connection) => ended?,
        }
    }
}

fn refusal(door: &Door, status: StatusCode, answer: &[u8]) -> AdminError {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Said {
        error: String,
        hint: String,
    }
    let said: Said = serde_json::from_slice(answer).unwrap_or_else(|_| Said {
        error: String::from_utf8_lossy(answer).chars().take(200).collect(),
        hint: String::new(),
    });
    AdminError::Refused { member: door.member.clone(), status: status.as_u16(), error: said.error, hint: said.hint }
}

impl BrokerAdmin for HttpAdmin {
    fn health<'a>(&'a self, door: &'a Door) -> Call<'a, Health> {
        self.call(door, Method::GET, "/v1/health", None, QUICK).boxed()
    }

    fn bootstrap<'a>(&'a self, door: &'a Door, request: &'a Bootstrap) -> Call<'a, ()> {
        done(self.call(door, Method::POST, "/v1/bootstrap", Some(json!(request)), COMMIT))
    }

    fn put_members<'a>(&'a self, door: &'a Door, members: &'a [ExpectedMember]) -> Call<'a, ()> {
        done(self.call(door, Method::PUT, "/v1/members", Some(json!({ "members": members })), COMMIT))
    }

    fn put_user<'a>(&'a self, door: &'a Door, user: &'a Credentials) -> Call<'a, ()> {
        async move {
            let path = format!("/v1/users/{}", user.name);
            done(self.call(door, Method::PUT, &path, Some(json!({ "password": user.password })), COMMIT)).await
        }
        .boxed()
    }

    fn put_min_in_sync<'a>(&'a self, door: &'a Door, copies: i32) -> Call<'a, ()> {
        let body = json!({ "defaultMinInSyncReplicas": copies });
        done(self.call(door, Method::PUT, "/v1/replication", Some(body), COMMIT))
    }

    fn groups<'a>(&'a self, door: &'a Door) -> Call<'a, Vec<Group>> {
        async move {
            #[derive(Deserialize)]
            struct Groups {
                groups: Vec<Group>,
            }
            let path = format!("/v1/groups?limit={MAX_GROUPS}");
            Ok(self.call::<Groups>(door, Method::GET, &path, None, COMMIT).await?.groups)
        }
        .boxed()
    }

    fn drain_leaders<'a>(&'a self, door: &'a Door, deadline: Duration) -> Call<'a, u64> {
        async move {
            #[derive(Deserialize)]
            struct Drained {
                remaining: u64,
            }
            let body = json!({ "deadlineMs": deadline.as_millis() as u64 });
            let drained: Drained =
                self.call(door, Method::POST, "/v1/drain-leaders", Some(body), deadline + QUICK).await?;
            Ok(drained.remaining)
        }
        .boxed()
    }

    fn recovery_freeze<'a>(&'a self, door: &'a Door, time: Duration) -> Call<'a, ()> {
        let body = json!({ "seconds": time.as_secs() });
        done(self.call(door, Method::POST, "/v1/recovery/freeze", Some(body), COMMIT))
    }

    fn recovery_survey<'a>(&'a self, door: &'a Door) -> Call<'a, Value> {
        self.call(door, Method::GET, "/v1/recovery/survey", None, DISK_WORK).boxed()
    }

    fn recovery_plan<'a>(&'a self, door: &'a Door, found: &'a [Value]) -> Call<'a, RecoveryPlan> {
        self.call(door, Method::POST, "/v1/recovery/plan", Some(json!({ "found": found })), DISK_WORK).boxed()
    }

    fn recovery_apply<'a>(
        &'a self,
        door: &'a Door,
        plan_hash: &'a str,
        nonce: u64,
        found: &'a [Value],
    ) -> Call<'a, ()> {
        let body = json!({ "planHash": plan_hash, "nonce": format!("{nonce:016x}"), "found": found });
        done(self.call(door, Method::POST, "/v1/recovery/apply", Some(body), DISK_WORK))
    }

    fn restore_progress<'a>(&'a self, door: &'a Door) -> Call<'a, RestoreProgress> {
        self.call(door, Method::GET, "/v1/restore", None, QUICK).boxed()
    }

    fn restore_apply<'a>(&'a self, door: &'a Door, backup: &'a str, request: &'a Bootstrap) -> Call<'a, ()> {
        async move {
            let path = format!("/v1/restore/{backup}/apply");
            done(self.call(door, Method::POST, &path, Some(json!(request)), DISK_WORK)).await
        }
        .boxed()
    }

    fn restore_discard<'a>(&'a self, door: &'a Door, backup: &'a str) -> Call<'a, ()> {
        async move {
            let path = format!("/v1/restore/{backup}");
            done(self.call(door, Method::DELETE, &path, None, COMMIT)).await
        }
        .boxed()
    }

    fn draw_barrier<'a>(&'a self, door: &'a Door, request: &'a BarrierRequest) -> Call<'a, Barrier> {
        self.call(door, Method::POST, "/v1/backup/barriers", Some(json!(request)), DISK_WORK).boxed()
    }

    fn renew_hold<'a>(&'a self, door: &'a Door, barrier: &'a str, time: Duration) -> Call<'a, ()> {
        async move {
            let path = format!("/v1/backup/barriers/{barrier}");
            done(self.call(door, Method::PUT, &path, Some(json!({ "holdSeconds": time.as_secs() })), QUICK)).await
        }
        .boxed()
    }

    fn release_hold<'a>(&'a self, door: &'a Door, barrier: &'a str) -> Call<'a, ()> {
        async move {
            let path = format!("/v1/backup/barriers/{barrier}");
            done(self.call(door, Method::DELETE, &path, None, QUICK)).await
        }
        .boxed()
    }
}

/// Time to read or rewrite all that a disk holds. Of a barrier too: the cut takes a moment, but its manifest has the checksum
/// of every file.
const DISK_WORK: Duration = Duration::from_secs(900);

/// Whatever a broker says beside "yes" is ignored.
fn done<'a>(call: impl Future<Output = Result<Value, AdminError>> + Send + 'a) -> Call<'a, ()> {
    call.map(|answer| answer.map(|_| ())).boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_can_go_where_enough_caught_up_voters_are_left() {
        use Without::{Enough, TooFewInSync, TooFewVoters};
        let table = [
            // voters, in sync, copies that confirms wait for
            (3, 3, 0, Enough),
            (3, 2, 0, TooFewInSync { left: 1, needed: 2 }),
            (1, 1, 0, TooFewVoters),
            (2, 2, 0, TooFewVoters),
            (5, 4, 0, Enough),
            (5, 4, 4, TooFewInSync { left: 3, needed: 4 }),
            (3, 3, 3, Enough),
            (3, 2, 3, TooFewInSync { left: 1, needed: 2 }),
        ];
        for (voters, in_sync, copies, expected) in table {
            let replica = |n| Replica { name: format!("demo-{n}-0"), voter: n < voters };
            let mut group = Group {
                id: 1,
                leading: true,
                in_sync_replicas: Some(in_sync),
                min_in_sync_replicas: copies,
                replicas: (0..6).map(replica).collect(),
            };
            let row = (voters, in_sync, copies);
            assert_eq!(group.without("demo-0-0"), expected, "{row:?}");
            assert_eq!(group.without("demo-5-0"), Enough, "a learner is no loss: {row:?}");
            group.leading = false;
            assert_eq!(group.without("demo-0-0"), Enough, "the leader is asked: {row:?}");
        }
    }
}
