//! Paths of the admin API, and their mapping to the engine's requests.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use holdfast_engine::admin::{AdminAction, AdminError, AdminErrorKind, AdminReply, AdminRequest, UserCredentials};
use holdfast_queue::ids::GroupId;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::json::{
    BootstrapBody, Disk, DrainBody, ErrorBody, MembersBody, PasswordBody, ReplicationBody, TransferBody, groups,
    health, members, rebalance, status, users,
};
use crate::inbox::Inbox;

/// Carries a number that grows with each holder of the operator's lease.
pub const TOKEN_HEADER: &str = "X-Holdfast-Token";
/// Groups in an answer, unless `limit` says otherwise.
const GROUPS_LIMIT: usize = 1000;
/// How long disk figures are used again; finding them walks the data directory.
const DISK_FIGURES_FOR: Duration = Duration::from_secs(5);

/// What the handlers share.
pub struct Admin {
    inbox: Inbox,
    data_dir: PathBuf,
    disk: Mutex<Option<(Instant, Disk)>>,
}

pub(super) type Shared = State<Arc<Admin>>;
pub(super) type Answer = Result<Response, Refusal>;

/// The routes, for a server that has checked the caller's certificate.
pub fn router(inbox: Inbox, data_dir: PathBuf) -> Router {
    let admin = Arc::new(Admin::new(inbox, data_dir));
    Router::new()
        .route("/v1/health", get(get_health))
        .route("/v1/bootstrap", post(bootstrap))
        .route("/v1/groups", get(get_groups))
        .route("/v1/groups/{id}/transfer", post(transfer))
        .route("/v1/drain-leaders", post(drain_leaders))
        .route("/v1/users", get(get_users))
        .route("/v1/users/{name}", put(put_user).delete(delete_user))
        .route("/v1/members", get(get_members).put(put_members))
        .route("/v1/replication", put(put_replication))
        .merge(super::policies::router())
        .route("/v1/members/{name}", delete(remove_member))
        .route("/v1/rebalance", get(get_rebalance))
        .fallback(|| async { Refusal::new(AdminErrorKind::NotFound, "there is no such path", "paths start with /v1/") })
        .method_not_allowed_fallback(|| async {
            let refusal = ErrorBody {
                error: "that method is not for this path".into(),
                hint: "GET reads, POST acts, PUT sets, DELETE removes".into(),
            };
            (StatusCode::METHOD_NOT_ALLOWED, axum::Json(refusal))
        })
        .with_state(admin)
}

/// A refusal as it goes to the caller.
pub(super) struct Refusal(AdminError);

impl Refusal {
    pub(super) fn new(kind: AdminErrorKind, error: impl Into<String>, hint: impl Into<String>) -> Self {
        Self(AdminError { kind, error: error.into(), hint: hint.into() })
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (status(self.0.kind), axum::Json(ErrorBody::from(self.0))).into_response()
    }
}

impl Admin {
    pub(super) fn new(inbox: Inbox, data_dir: PathBuf) -> Self {
        Self { inbox, data_dir, disk: Mutex::new(None) }
    }

    pub(super) fn data_dir(&self) -> &std::path::Path {
        &self.data_dir
    }

    pub(super) async fn ask(&self, headers: &HeaderMap, action: AdminAction) -> Result<AdminReply, Refusal> {
        let request = AdminRequest { token: token(headers)?, action };
        match self.inbox.admin(request).await {
            Ok(answer) => answer.map_err(Refusal),
            Err(_) => Err(Refusal::new(AdminErrorKind::Unavailable, "this member is stopping", "ask another member")),
        }
    }

    async fn disk(&self) -> Disk {
        let known = *self.disk.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, disk)) = known
            && at.elapsed() < DISK_FIGURES_FOR
        {
            return disk;
        }
        let dir = self.data_dir.clone();
        let disk = tokio::task::spawn_blocking(move || measure(&dir)).await.unwrap_or_default();
        *self.disk.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), disk));
        disk
    }
}

/// Bytes used by a directory and free on its file system; zero where the system does not tell.
pub fn measure(dir: &std::path::Path) -> Disk {
    let free_bytes = rustix::fs::statvfs(dir).map_or(0, |stat| stat.f_bavail * stat.f_frsize);
    Disk { used_bytes: used_bytes(dir, &mut HashSet::new()), free_bytes }
}

/// A file that is held for a backup has several names, and takes its room once.
fn used_bytes(dir: &std::path::Path, seen: &mut HashSet<(u64, u64)>) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let mut used = 0;
    for entry in entries.filter_map(Result::ok) {
        used += match entry.metadata() {
            Ok(meta) if meta.is_dir() => used_bytes(&entry.path(), seen),
            Ok(meta) if meta.nlink() > 1 && !seen.insert((meta.dev(), meta.ino())) => 0,
            Ok(meta) => meta.blocks() * 512,
            Err(_) => 0,
        };
    }
    used
}

pub(super) fn token(headers: &HeaderMap) -> Result<Option<u64>, Refusal> {
    let Some(value) = headers.get(TOKEN_HEADER) else { return Ok(None) };
    let number = value.to_str().ok().and_then(|text| text.parse().ok());
    number.map(Some).ok_or_else(|| {
        let error = format!("the header {TOKEN_HEADER} is not a number");
        Refusal::new(AdminErrorKind::BadRequest, error, "send a decimal number, or leave the header out")
    })
}

pub(super) fn parse<T: DeserializeOwned>(body: &Bytes) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|error| {
        Refusal::new(AdminErrorKind::BadRequest, format!("the body does not fit: {error}"), "send JSON as documented")
    })
}

pub(super) fn done() -> Answer {
    Ok(axum::Json(json!({})).into_response())
}

/// The engine answered with something else than was asked: a defect, but no reason to end the process.
pub(super) fn surprise() -> Refusal {
    Refusal::new(
        AdminErrorKind::Unavailable,
        "the answer does not fit the request",
        "this is a defect; please report it",
    )
}

async fn get_health(State(admin): Shared, headers: HeaderMap) -> Answer {
    let disk = admin.disk().await;
    match admin.ask(&headers, AdminAction::Health).await? {
        AdminReply::Health(report) => {
            Ok(axum::Json::<Value>(health(&report, env!("CARGO_PKG_VERSION"), disk)).into_response())
        }
        _ => Err(surprise()),
    }
}

async fn bootstrap(State(admin): Shared, headers: HeaderMap, body: Bytes) -> Answer {
    let body: BootstrapBody = parse(&body)?;
    if crate::received::Received::is_any(admin.data_dir()) {
        let hint =
            "POST /v1/restore/{backup}/apply founds the cluster out of it; DELETE /v1/restore/{backup} gives it up";
        return Err(Refusal::new(AdminErrorKind::Conflict, "a backup is being restored on this member", hint));
    }
    let action = AdminAction::Bootstrap {
        cluster_id: body.cluster_id,
        members: body.members.into_iter().map(Into::into).collect(),
        user: credentials(body.user.name, body.user.password).await?,
        default_replication_factor: body.default_replication_factor,
        default_min_in_sync_replicas: body.default_min_in_sync_replicas,
    };
    admin.ask(&headers, action).await?;
    done()
}

/// The `limit` of a query.
pub(super) fn limit_of(query: Option<&str>, default: usize) -> Result<usize, Refusal> {
    match query.unwrap_or_default() {
        "" => Ok(default),
        text => text.strip_prefix("limit=").and_then(|number| number.parse().ok()).ok_or_else(|| {
            Refusal::new(AdminErrorKind::BadRequest, format!("cannot read the query `{text}`"), "write ?limit=NUMBER")
        }),
    }
}

async fn get_groups(State(admin): Shared, headers: HeaderMap, RawQuery(query): RawQuery) -> Answer {
    let limit = limit_of(query.as_deref(), GROUPS_LIMIT)?;
    match admin.ask(&headers, AdminAction::Groups { limit }).await? {
        AdminReply::Groups(list) => Ok(axum::Json::<Value>(groups(&list)).into_response()),
        _ => Err(surprise()),
    }
}

async fn transfer(State(admin): Shared, headers: HeaderMap, Path(id): Path<String>, body: Bytes) -> Answer {
    let id = id.parse().map_err(|_| {
        Refusal::new(
            AdminErrorKind::BadRequest,
            format!("`{id}` is not the number of a group"),
            "GET /v1/groups lists them",
        )
    })?;
    let body: TransferBody = parse(&body)?;
    admin.ask(&headers, AdminAction::Transfer { group: GroupId(id), to: body.to }).await?;
    done()
}

async fn drain_leaders(State(admin): Shared, headers: HeaderMap, body: Bytes) -> Answer {
    let body = if body.is_empty() { DrainBody::default() } else { parse(&body)? };
    match admin.ask(&headers, AdminAction::DrainLeaders { deadline_ms: body.deadline_ms }).await? {
        AdminReply::Drained { remaining } => Ok(axum::Json(json!({ "remaining": remaining })).into_response()),
        _ => Err(surprise()),
    }
}

async fn put_user(State(admin): Shared, headers: HeaderMap, Path(name): Path<String>, body: Bytes) -> Answer {
    let body: PasswordBody = parse(&body)?;
    admin.ask(&headers, AdminAction::PutUser(credentials(name, body.password).await?)).await?;
    done()
}

async fn get_users(State(admin): Shared, headers: HeaderMap) -> Answer {
    match admin.ask(&headers, AdminAction::Users).await? {
        AdminReply::Users(list) => Ok(axum::Json::<Value>(users(&list)).into_response()),
        _ => Err(surprise()),
    }
}

async fn delete_user(State(admin): Shared, headers: HeaderMap, Path(name): Path<String>) -> Answer {
    admin.ask(&headers, AdminAction::DeleteUser { name }).await?;
    done()
}

async fn get_members(State(admin): Shared, headers: HeaderMap) -> Answer {
    match admin.ask(&headers, AdminAction::Members).await? {
        AdminReply::Members(list) => Ok(axum::Json::<Value>(members(&list)).into_response()),
        _ => Err(surprise()),
    }
}

async fn put_members(State(admin): Shared, headers: HeaderMap, body: Bytes) -> Answer {
    let body: MembersBody = parse(&body)?;
    let members = body.members.into_iter().map(Into::into).collect();
    admin.ask(&headers, AdminAction::PutMembers { members }).await?;
    done()
}

async fn put_replication(State(admin): Shared, headers: HeaderMap, body: Bytes) -> Answer {
    let body: ReplicationBody = parse(&body)?;
    let default_min_in_sync_replicas = body.default_min_in_sync_replicas;
    admin.ask(&headers, AdminAction::PutReplication { default_min_in_sync_replicas }).await?;
    done()
}

async fn remove_member(State(admin): Shared, headers: HeaderMap, Path(name): Path<String>) -> Answer {
    admin.ask(&headers, AdminAction::RemoveMember { name }).await?;
    done()
}

async fn get_rebalance(State(admin): Shared, headers: HeaderMap) -> Answer {
    match admin.ask(&headers, AdminAction::Rebalance).await? {
        AdminReply::Rebalance(report) => Ok(axum::Json::<Value>(rebalance(&report)).into_response()),
        _ => Err(surprise()),
    }
}

pub(super) async fn credentials(name: String, password: String) -> Result<UserCredentials, Refusal> {
    if name.is_empty() || password.is_empty() {
        return Err(Refusal::new(AdminErrorKind::BadRequest, "the user's name or password is empty", "send both"));
    }
    let hashed = tokio::task::spawn_blocking(move || crate::passwords::hash(password.as_bytes())).await;
    match hashed {
        Ok(Ok(password_hash)) => Ok(UserCredentials { name, password_hash }),
        Ok(Err(error)) => Err(Refusal::new(AdminErrorKind::BadRequest, error, "choose another password")),
        Err(_) => Err(surprise()),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::inbox::{Arrival, Lanes};
    use holdfast_engine::admin::UserReport;
    use http_body_util::BodyExt;
    use hyper::Request;
    use tower::ServiceExt;

    /// Answers every request of the engine with `answer`, and gives back what was asked last.
    async fn engine(mut lanes: Lanes, answer: Result<AdminReply, AdminError>) -> Option<AdminRequest> {
        let mut last = None;
        while let Some(held) = lanes.control.recv().await {
            if let Arrival::Admin { body, reply } = held.arrival {
                let _ = reply.send(answer.clone());
                last = Some(body);
            }
        }
        last
    }

    pub(in crate::admin) async fn call(
        method: &str,
        path: &str,
        token: Option<&str>,
        body: &str,
        answer: Result<AdminReply, AdminError>,
    ) -> (u16, Value, Option<AdminRequest>) {
        let (inbox, lanes) = Inbox::new();
        let asked = tokio::spawn(engine(lanes, answer));
        let router = router(inbox, std::env::temp_dir().join("holdfast-no-such-directory"));
        let mut request = Request::builder().method(method).uri(path);
        if let Some(token) = token {
            request = request.header(TOKEN_HEADER, token);
        }
        let response = router.oneshot(request.body(axum::body::Body::from(body.to_string())).unwrap()).await.unwrap();
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&bytes).unwrap(), asked.await.unwrap())
    }

    #[tokio::test]
    async fn a_bootstrap_request_reaches_the_engine_with_a_hashed_password() {
        let body = r#"{"clusterId":"c","members":[{"name":"a","address":"a:1","zone":"z"}],"user":{"name":"guest","password":"pw"}}"#;
        let (status, _, asked) = call("POST", "/v1/bootstrap", Some("3"), body, Ok(AdminReply::Done)).await;
        assert_eq!(status, 200);
        let asked = asked.unwrap();
        assert_eq!(asked.token, Some(3));
        let AdminAction::Bootstrap { cluster_id, members, user, default_replication_factor, .. } = asked.action else {
            panic!("a bootstrap");
        };
        assert_eq!((cluster_id.as_str(), members.len(), default_replication_factor), ("c", 1, 3));
        assert!(user.password_hash.starts_with("$argon2id$"));
    }

    #[tokio::test]
    async fn refusals_carry_a_status_a_reason_and_a_hint() {
        let conflict = AdminError { kind: AdminErrorKind::Conflict, error: "taken".into(), hint: "use another".into() };
        let (status, body, _) = call("PUT", "/v1/users/u", None, r#"{"password":"p"}"#, Err(conflict)).await;
        assert_eq!((status, &body), (409, &json!({"error": "taken", "hint": "use another"})));
        let cases = [
            ("GET", "/v1/nothing", None, "", 404),
            ("DELETE", "/v1/health", None, "", 405),
            ("GET", "/v1/health", Some("x"), "", 400),
            ("GET", "/v1/groups?limit=many", None, "", 400),
            ("POST", "/v1/groups/x/transfer", None, r#"{"to":"a"}"#, 400),
            ("POST", "/v1/bootstrap", None, "{", 400),
            ("POST", "/v1/bootstrap", None, r#"{"clusterID":"c"}"#, 400),
            ("PUT", "/v1/users/u", None, r#"{"password":""}"#, 400),
            ("PUT", "/v1/replication", None, r#"{"defaultMinInSyncReplicas":-1}"#, 400),
        ];
        for (method, path, token, body, expected) in cases {
            let (status, answer, _) = call(method, path, token, body, Ok(AdminReply::Done)).await;
            assert_eq!(status, expected, "{method} {path}: {answer}");
            assert!(answer["error"].is_string() && answer["hint"].is_string(), "{method} {path}: {answer}");
        }
    }

    #[tokio::test]
    async fn the_least_number_of_copies_is_given_at_bootstrap_and_changed_later() {
        let body = r#"{"clusterId":"c","members":[],"user":{"name":"u","password":"p"},"defaultMinInSyncReplicas":2}"#;
        let (_, _, asked) = call("POST", "/v1/bootstrap", None, body, Ok(AdminReply::Done)).await;
        let AdminAction::Bootstrap { default_min_in_sync_replicas, .. } = asked.unwrap().action else {
            panic!("a bootstrap");
        };
        assert_eq!(default_min_in_sync_replicas, 2);
        let body = r#"{"defaultMinInSyncReplicas":3}"#;
        let (status, _, asked) = call("PUT", "/v1/replication", None, body, Ok(AdminReply::Done)).await;
        assert_eq!(status, 200);
        assert_eq!(asked.unwrap().action, AdminAction::PutReplication { default_min_in_sync_replicas: 3 });
    }

    #[tokio::test]
    async fn users_and_members_are_listed_and_users_deleted() {
        let user = UserReport { name: "app".into(), tags: vec!["monitoring".into()], vhosts: vec!["/".into()] };
        let (status, body, asked) = call("GET", "/v1/users", None, "", Ok(AdminReply::Users(vec![user]))).await;
        assert_eq!((status, body), (200, json!({"users": [{"name": "app", "tags": ["monitoring"], "vhosts": ["/"]}]})));
        assert_eq!(asked.unwrap().action, AdminAction::Users);
        let (status, _, asked) = call("DELETE", "/v1/users/app", Some("4"), "", Ok(AdminReply::Done)).await;
        let asked = asked.unwrap();
        assert_eq!((status, asked.token), (200, Some(4)));
        assert_eq!(asked.action, AdminAction::DeleteUser { name: "app".into() });
        let (status, body, asked) = call("GET", "/v1/members", None, "", Ok(AdminReply::Members(Vec::new()))).await;
        assert_eq!((status, body), (200, json!({"members": []})));
        assert_eq!(asked.unwrap().action, AdminAction::Members);
    }

    #[tokio::test]
    async fn draining_answers_with_what_remains() {
        let drained = Ok(AdminReply::Drained { remaining: 2 });
        let (status, body, asked) = call("POST", "/v1/drain-leaders", None, "", drained).await;
        assert_eq!((status, body), (200, json!({"remaining": 2})));
        assert_eq!(asked.unwrap().action, AdminAction::DrainLeaders { deadline_ms: 5000 });
    }
}
