//! A member that belongs to no cluster yet is given a backup, and becomes the founder of a new cluster out of it.
//!
//! | path | does |
//! |---|---|
//! | `PUT /v1/restore/{backup}/manifest?sha256=HEX` | begins: the body is the manifest. The same again is harmless |
//! | `GET /v1/restore/{backup}/members/{member}/files` | which of that member's files are here, whether any more of them are `needed`, and whether that is only `later`, if another copy does not come whole |
//! | `PUT /v1/restore/{backup}/members/{member}/files/{name}` | the body is a file of that member's hold, in the length that counts. A repeat is harmless |
//! | `GET /v1/restore` | how far it is |
//! | `POST /v1/restore/{backup}/apply` | the body is that of a bootstrap: makes this member the founder. Answered at once; `GET` tells how it goes on. The process ends with code 75 when it is done, to be started again. Asked again after that, under the same cluster id: done |
//! | `DELETE /v1/restore/{backup}` | gives it up, and removes what was received |

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Path, RawQuery, State};
use axum::http::HeaderMap;
use axum::response::IntoResponse;
use axum::routing::{delete, get, post, put};
use holdfast_engine::admin::{AdminAction, AdminErrorKind, AdminReply, Health};
use holdfast_engine::identity::MemberUuid;
use holdfast_engine::restore::{Coverage, NewCluster};
use holdfast_queue::meta::{ExpectedMember, NewUser};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc};

use super::json::BootstrapBody;
use super::routes::{Admin, Answer, Refusal, credentials, done, parse, surprise, token};
use crate::clock::{random_u64, random_u128};
use crate::failure::{ExitKind, Failure};
use crate::inbox::Inbox;
use crate::journal_pause::NoStandstill;
use crate::journal_thread::JournalBrake;
use crate::received::{Incoming, Received, Refused, Turn};
use crate::restored_journal::{self, RestoreRecord};

/// A manifest of ten thousands of queues on several members.
const MANIFEST_LIMIT: usize = 256 << 20;
/// Files that are received at a time; each has a thread that writes it.
const FILES_AT_ONCE: usize = 2;
/// Pieces of a file that wait for the disk.
const PIECES_WAITING: usize = 4;
/// A sender that is silent for so long has gone.
const SILENT_FOR: Duration = Duration::from_secs(60);
/// The journal stands still while the new one is made, for so long at most.
const WORK_WITHIN: Duration = Duration::from_secs(3600);
/// Time for the last answers to leave before the process ends.
const LAST_ANSWER: Duration = Duration::from_millis(1500);
/// Received files leave so much room at least.
const SPARE_BYTES: u64 = 64 << 20;

/// What is done with what was received.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Work {
    None,
    Building {
        cluster_id: String,
    },
    Failed {
        error: String,
    },
    /// This process is about to end.
    Done,
}

#[derive(Debug)]
struct Desk {
    received: Option<Received>,
    work: Work,
    /// The restore that has made this member's journal.
    made_by: Option<RestoreRecord>,
}

struct Restore {
    admin: Admin,
    brake: JournalBrake,
    end_process: fn(Failure),
    desk: Mutex<Desk>,
    room: Semaphore,
}

type Shared = State<Arc<Restore>>;

/// The routes, for a server that has checked the caller's certificate. `end_process` ends this process with a failure's
/// exit code.
///
/// # Errors
/// What was received before cannot be read.
pub fn router(
    inbox: Inbox,
    data_dir: PathBuf,
    brake: JournalBrake,
    end_process: fn(Failure),
) -> Result<Router, Failure> {
    let made_by = restored_journal::record_of(&data_dir)?;
    let received = Received::open(&data_dir).map_err(|error| {
        let problem = format!("what was received of a backup in {} cannot be read: {error}", data_dir.display());
        Failure::new(ExitKind::Io, problem, "check the volume")
    })?;
    let desk = Mutex::new(Desk { received, work: Work::None, made_by });
    let (admin, room) = (Admin::new(inbox, data_dir), Semaphore::new(FILES_AT_ONCE));
    let restore = Arc::new(Restore { admin, brake, end_process, desk, room });
    Ok(Router::new()
        .route("/v1/restore", get(status))
        .route("/v1/restore/{backup}", delete(give_up))
        .route("/v1/restore/{backup}/manifest", put(begin).layer(DefaultBodyLimit::max(MANIFEST_LIMIT)))
        .route("/v1/restore/{backup}/members/{member}/files", get(files))
        .route("/v1/restore/{backup}/members/{member}/files/{name}", put(file))
        .route("/v1/restore/{backup}/apply", post(apply))
        .with_state(restore))
}

fn conflict(error: impl Into<String>, hint: &str) -> Refusal {
    Refusal::new(AdminErrorKind::Conflict, error, hint)
}

fn refused(refused: Refused) -> Refusal {
    let (kind, hint) = match &refused {
        Refused::Bad(_) => (AdminErrorKind::BadRequest, "send another copy of it"),
        Refused::NoSuchFile(_) => (AdminErrorKind::NotFound, "the manifest names what is part of the backup"),
        Refused::Io(_) => (AdminErrorKind::Unavailable, "see this member's disk, then send it again"),
    };
    Refusal::new(kind, refused.to_string(), hint)
}

fn no_such_restore(backup: &str) -> Refusal {
    let hint = "begin with its manifest; GET /v1/restore tells what is here";
    Refusal::new(AdminErrorKind::NotFound, format!("nothing of backup '{backup}' is here"), hint)
}

impl Desk {
    fn of(&mut self, backup: &str) -> Result<&mut Received, Refusal> {
        match &mut self.received {
            Some(received) if received.backup == backup => Ok(received),
            _ => Err(no_such_restore(backup)),
        }
    }

    /// Refuses while the new journal is made, or was.
    fn refuse_work(&self) -> Result<(), Refusal> {
        match self.work {
            Work::None | Work::Failed { .. } => Ok(()),
            Work::Building { .. } => Err(conflict("the new cluster is being made of it", "wait: GET /v1/restore")),
            Work::Done => Err(conflict("it is done, and this member is about to end", "start the member again")),
        }
    }

    fn as_json(&self) -> Value {
        let received = self.received.as_ref();
        let progress = received.map(Received::progress).unwrap_or_default();
        let made_by = self.made_by.as_ref();
        let state = match (&self.work, received) {
            (Work::Building { .. }, _) => "building",
            (Work::Failed { .. }, _) => "failed",
            (Work::Done, _) => "done",
            (Work::None, Some(_)) if progress.uncovered == 0 => "complete",
            (Work::None, Some(_)) => "receiving",
            (Work::None, None) if made_by.is_some() => "done",
            (Work::None, None) => "none",
        };
        let error = match &self.work {
            Work::Failed { error } => Some(error),
            _ => None,
        };
        let backup = received.map(|it| &it.backup).or(made_by.map(|it| &it.backup));
        let sum = received.map(|it| &it.manifest_sha256).or(made_by.map(|it| &it.manifest_sha256));
        json!({
            "backup": backup,
            "manifestSha256": sum,
            "clusterId": made_by.map(|it| &it.cluster_id),
            "state": state,
            "filesPresent": progress.files_present,
            "bytesPresent": progress.bytes_present,
            "bytesNeeded": progress.bytes_needed,
            "uncoveredGroups": progress.uncovered,
            "error": error,
        })
    }
}

impl Restore {
    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something of a member's copy came.
    fn heard_of(&self, backup: &str, member: &str) {
        if let Ok(received) = self.desk().of(backup) {
            received.heard_of(member, Instant::now());
        }
    }

    /// What this member is, by an operator that was not overtaken.
    async fn health(&self, headers: &HeaderMap) -> Result<Box<Health>, Refusal> {
        match self.admin.ask(headers, AdminAction::Health).await? {
            AdminReply::Health(health) => Ok(health),
            _ => Err(surprise()),
        }
    }

    /// A member that is in a cluster takes nothing.
    async fn blank(&self, headers: &HeaderMap) -> Result<Box<Health>, Refusal> {
        let health = self.health(headers).await?;
        match &health.cluster_id {
            Some(id) => {
                let hint = "a restore takes a member with an empty directory";
                Err(conflict(format!("this member belongs to cluster '{id}' already"), hint))
            }
            None => Ok(health),
        }
    }
}

/// Work that waits for a disk.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Refusal> {
    tokio::task::spawn_blocking(work).await.map_err(|_| surprise())
}

fn answer(desk: &Desk) -> Answer {
    Ok(axum::Json(desk.as_json()).into_response())
}

async fn status(State(restore): Shared) -> Answer {
    answer(&restore.desk())
}

async fn begin(
    State(restore): Shared,
    headers: HeaderMap,
    Path(backup): Path<String>,
    RawQuery(query): RawQuery,
    body: Bytes,
) -> Answer {
    let sha256 = query.as_deref().and_then(|query| query.strip_prefix("sha256=")).map(str::to_owned);
    let sha256 = sha256.ok_or_else(|| {
        let error = "the sum of the manifest is missing";
        Refusal::new(AdminErrorKind::BadRequest, error, "write ?sha256=HEX, as the barrier's answer gave it")
    })?;
    restore.blank(&headers).await?;
    let this = Arc::clone(&restore);
    blocking(move || {
        let mut desk = this.desk();
        desk.refuse_work()?;
        if let Some(other) = &desk.received {
            if other.backup == backup && other.manifest_sha256.eq_ignore_ascii_case(&sha256) {
                return answer(&desk);
            }
            let error = format!("backup '{}' is being restored here", other.backup);
            return Err(conflict(error, "DELETE it first, if it is not wanted"));
        }
        let received = Received::begin(this.admin.data_dir(), &backup, &sha256, &body).map_err(refused)?;
        desk.received = Some(received);
        answer(&desk)
    })
    .await?
}

async fn files(State(restore): Shared, Path((backup, member)): Path<(String, String)>) -> Answer {
    let mut desk = restore.desk();
    let received = desk.of(&backup)?;
    let files = received.files_of(&member).map_err(refused)?;
    let now = Instant::now();
    let turn = received.turn_of(&member, now);
    received.heard_of(&member, now);
    let file =
        |(file, present): &(holdfast_engine::backup::FileEntry, bool)| json!({ "name": file.name, "present": present });
    let files: Vec<Value> = files.iter().map(file).collect();
    let (needed, later) = (turn != Turn::Never, turn == Turn::Later);
    Ok(axum::Json(json!({ "needed": needed, "later": later, "files": files })).into_response())
}

async fn file(
    State(restore): Shared,
    headers: HeaderMap,
    Path((backup, member, name)): Path<(String, String, String)>,
    body: Body,
) -> Answer {
    restore.blank(&headers).await?;
    let Ok(_permit) = restore.room.acquire().await else { return Err(surprise()) };
    let incoming = {
        let mut desk = restore.desk();
        desk.refuse_work()?;
        let received = desk.of(&backup)?;
        let length = received.entry(&member, &name).map_err(refused)?.length;
        if received.has(&member, &name) {
            return done();
        }
        let free = rustix::fs::statvfs(restore.admin.data_dir()).map_or(0, |stat| stat.f_bavail * stat.f_frsize);
        if free < length + SPARE_BYTES {
            let error =
                format!("there is no room for {name}: {} bytes are needed, and {free} are free", length + SPARE_BYTES);
            let hint = "make the volume larger; the same again takes as much for the new journal";
            return Err(Refusal::new(AdminErrorKind::Unavailable, error, hint));
        }
        received.expect(&member, &name).map_err(refused)?
    };
    let came = || restore.heard_of(&backup, &member);
    receive(incoming, body, came).await?;
    // Who gave the restore up meanwhile has no use for the file; it went with its directory.
    restore.desk().of(&backup)?.arrived(&member, &name);
    done()
}

/// Stores what comes, a few pieces ahead of the disk at most.
async fn receive(incoming: Incoming, mut body: Body, came: impl Fn()) -> Result<(), Refusal> {
    let (pieces, mut arriving) = mpsc::channel::<Bytes>(PIECES_WAITING);
    let (whole, is_whole) = std::sync::mpsc::channel::<()>();
    let writing = tokio::task::spawn_blocking(move || {
        let mut incoming = incoming;
        while let Some(piece) = arriving.blocking_recv() {
            incoming.take(&piece)?;
        }
        match is_whole.recv() {
            Ok(()) => incoming.finish(),
            Err(_) => Ok(()), // The sender has gone.
        }
    });
    let gone = |why: String| {
        Refusal::new(AdminErrorKind::Unavailable, format!("the file did not come whole: {why}"), "send it again")
    };
    let mut trouble = None;
    loop {
        let piece = match tokio::time::timeout(SILENT_FOR, body.frame()).await {
            Ok(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
            Ok(Some(Err(error))) => break trouble = Some(gone(error.to_string())),
            Ok(None) => break,
            Err(_) => break trouble = Some(gone(format!("nothing came for {} seconds", SILENT_FOR.as_secs()))),
        };
        came();
        // Fails when the writer has found something wrong, which it says itself.
        if !piece.is_empty() && pieces.send(piece).await.is_err() {
            break;
        }
    }
    if trouble.is_none() {
        let _ = whole.send(());
    }
    drop((pieces, whole));
    let written = writing.await.map_err(|_| surprise())?;
    match trouble {
        Some(trouble) => Err(trouble),
        None => written.map_err(refused),
    }
}

async fn give_up(State(restore): Shared, headers: HeaderMap, Path(backup): Path<String>) -> Answer {
    restore.health(&headers).await?;
    let this = Arc::clone(&restore);
    blocking(move || {
        let mut desk = this.desk();
        match &desk.received {
            Some(received) if received.backup != backup => return Err(no_such_restore(&backup)),
            None => return done(),
            Some(_) => {}
        }
        desk.refuse_work()?;
        Received::remove(this.admin.data_dir()).map_err(|error| refused(error.into()))?;
        (desk.received, desk.work) = (None, Work::None);
        done()
    })
    .await?
}

async fn apply(State(restore): Shared, headers: HeaderMap, Path(backup): Path<String>, body: Bytes) -> Answer {
    let body: BootstrapBody = parse(&body)?;
    let health = restore.health(&headers).await?;
    if let Some(cluster) = &health.cluster_id {
        let desk = restore.desk();
        let is_it = |made: &RestoreRecord| made.backup == backup && made.cluster_id == body.cluster_id;
        if *cluster == body.cluster_id && desk.made_by.as_ref().is_some_and(is_it) {
            return answer(&desk);
        }
        let error = format!("this member belongs to cluster '{cluster}' already, and not by this restore");
        return Err(conflict(error, "a restore takes a member with an empty directory"));
    }
    if body.cluster_id.is_empty() || body.cluster_id.len() > 255 {
        return Err(Refusal::new(AdminErrorKind::BadRequest, "the cluster id must have 1 to 255 bytes", ""));
    }
    let token = token(&headers)?.unwrap_or(0);
    let new = new_cluster(&health, body, token).await?;
    let received = {
        let mut desk = restore.desk();
        match &desk.work {
            Work::Building { cluster_id } if *cluster_id == new.cluster_id => return answer(&desk),
            _ => desk.refuse_work()?,
        }
        let received = desk.of(&backup)?.clone();
        let progress = received.progress();
        if progress.uncovered > 0 {
            let queues = progress.uncovered_queues.join(", ");
            let error = format!("{} groups are in no copy that is here whole ({queues} …)", progress.uncovered);
            return Err(conflict(error, "send the files of a member that has them"));
        }
        let members = Coverage::of(&received.manifest).chosen(&received.whole());
        let needed = restored_journal::bytes_needed(&received.manifest, &members);
        restored_journal::refuse_lack_of_room(restore.admin.data_dir(), needed).map_err(failed)?;
        desk.work = Work::Building { cluster_id: new.cluster_id.clone() };
        received
    };
    let this = Arc::clone(&restore);
    let name = "restore".to_owned();
    let building = std::thread::Builder::new().name(name).spawn(move || this.build(&received, new));
    if let Err(error) = building {
        restore.desk().work = Work::None;
        return Err(failed(Failure::new(ExitKind::Internal, format!("cannot start a thread: {error}"), "try again")));
    }
    answer(&restore.desk())
}

fn failed(failure: Failure) -> Refusal {
    Refusal::new(AdminErrorKind::Unavailable, failure.problem, failure.remedy)
}

async fn new_cluster(health: &Health, body: BootstrapBody, admin_token: u64) -> Result<NewCluster, Refusal> {
    let members = body.members.iter();
    let expected: Vec<ExpectedMember> = members
        .map(|member| {
            let (name, address, zone) = (member.name.clone(), member.address.clone(), member.zone.clone());
            ExpectedMember { name, address, zone }
        })
        .collect();
    let Some(own) = expected.iter().find(|member| member.name == health.name).cloned() else {
        let error = format!("this member, '{}', is not among those listed", health.name);
        return Err(Refusal::new(AdminErrorKind::BadRequest, error, "restore on a member of the list"));
    };
    let user = credentials(body.user.name, body.user.password).await?;
    let drawn = |error: std::io::Error| {
        Refusal::new(AdminErrorKind::Unavailable, format!("no random numbers: {error}"), "try again")
    };
    Ok(NewCluster {
        cluster_id: body.cluster_id,
        name: own.name,
        zone: own.zone,
        address: own.address,
        uuid: MemberUuid(random_u128().map_err(drawn)?),
        admin_token,
        expected,
        defaults: Some((u32::from(body.default_replication_factor), u32::from(body.default_min_in_sync_replicas))),
        user: Some(NewUser { name: user.name, hash: user.password_hash, tags: vec!["administrator".into()] }),
        nonce: random_u64().map_err(drawn)?,
    })
}

impl Restore {
    /// Makes this member the founder. Whatever comes of it, this member is blank or the founder, and nothing between.
    fn build(&self, received: &Received, new: NewCluster) {
        let made = self.make(received, new);
        let mut desk = self.desk();
        let end = match made {
            Ok(record) => {
                let cluster = record.cluster_id.clone();
                (desk.work, desk.received, desk.made_by) = (Work::Done, None, Some(record));
                Failure::new(
                    ExitKind::Temporary,
                    format!("backup {} was restored: this member is the founder of cluster {cluster}", received.backup),
                    "start this member again",
                )
            }
            Err((failure, must_end)) => {
                tracing::error!("the restore of backup {} failed: {failure}", received.backup);
                desk.work = Work::Failed { error: format!("{} ({})", failure.problem, failure.remedy) };
                if !must_end {
                    return;
                }
                failure
            }
        };
        drop(desk);
        std::thread::sleep(LAST_ANSWER);
        (self.end_process)(end);
    }

    /// The failure tells whether this process may go on.
    fn make(&self, received: &Received, mut new: NewCluster) -> Result<RestoreRecord, (Failure, bool)> {
        let goes_on = |failure: Failure| (failure, false);
        let data_dir = self.admin.data_dir();
        let standstill = self.brake.stand_still_for(WORK_WITHIN).map_err(|error| {
            let why = match error {
                NoStandstill::Busy => "a survey or an apply is under way in this member",
                NoStandstill::Stuck => "the journal does not come to a standstill: its disk may be stuck",
            };
            goes_on(Failure::new(ExitKind::Temporary, why, "try again"))
        })?;
        // What counts is on the disk: it may have joined a cluster since it was asked.
        let seen = restored_journal::refuse_used(data_dir).map_err(goes_on)?;
        new.admin_token = new.admin_token.max(seen);
        let record = RestoreRecord {
            backup: received.backup.clone(),
            manifest_sha256: received.manifest_sha256.clone(),
            cluster_id: new.cluster_id.clone(),
        };
        let copies = received.copies().map_err(|error| {
            goes_on(Failure::new(ExitKind::Io, format!("what was received cannot be read: {error}"), "try again"))
        })?;
        let restored =
            restored_journal::prepare(data_dir, &received.manifest, &copies, &new, &record).map_err(goes_on)?;
        if !standstill.never_resume() {
            let _ = restored_journal::tidy(data_dir);
            let problem = format!("making the new journal took more than {} seconds", WORK_WITHIN.as_secs());
            return Err(goes_on(Failure::new(ExitKind::Temporary, problem, "use `holdfast-broker restore build`")));
        }
        // From here on this process must end: what it knows and what is on the disk differ.
        restored_journal::put_in_place(data_dir).map_err(|failure| (failure, true))?;
        tracing::info!("restored {} queues with {} messages", restored.queues, restored.messages);
        restored_journal::clear_away(data_dir);
        Ok(record)
    }
}
