//! Backups through the admin API. A barrier is asked for at any member and concerns all; holds are looked after at each.
//!
//! | path | does |
//! |---|---|
//! | `POST /v1/backup/barriers` | `{"id": …, "holdSeconds": 600, "allowPartial": false}`: a consistent cut, its files held on all members, the manifest on all their disks; answered when all of it is so. Asked for again while this member holds it: the same answer |
//! | `GET /v1/backup/barriers` | the holds of this member |
//! | `PUT /v1/backup/barriers/{id}` | `{"holdSeconds": 600}`: this member's hold lives for so long from now on; 404 if it has ended |
//! | `DELETE /v1/backup/barriers/{id}` | ends this member's hold; a repeat is harmless |

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::IntoResponse;
use axum::routing::{post, put};
use holdfast_engine::admin::{AdminAction, AdminErrorKind, AdminReply};
use holdfast_engine::backup::files::HoldNote;
use holdfast_engine::backup::{BarrierReport, BarrierRequest, Manifest, is_hold_name};
use serde::Deserialize;
use serde_json::{Value, json};

use super::routes::{Admin, Answer, Refusal, done, parse, surprise};
use crate::clock::wall_ms;
use crate::holds::{Held, HoldKeeper};
use crate::inbox::Inbox;
use crate::measured_files::MeasuredFiles;

/// A hold lives for so long unless the caller says otherwise: ten minutes, in which cloud volumes are snapshotted.
const DEFAULT_HOLD_SECONDS: u64 = 600;
/// And for so long at most at a time.
const LONGEST_HOLD_SECONDS: u64 = 24 * 3600;

struct Backup {
    admin: Admin,
    holds: HoldKeeper<MeasuredFiles>,
}

type Shared = State<Arc<Backup>>;

/// The routes, for a server that has checked the caller's certificate.
pub fn router(inbox: Inbox, data_dir: PathBuf, holds: HoldKeeper<MeasuredFiles>) -> Router {
    Router::new()
        .route("/v1/backup/barriers", post(begin).get(list))
        .route("/v1/backup/barriers/{id}", put(renew).delete(end))
        .with_state(Arc::new(Backup { admin: Admin::new(inbox, data_dir), holds }))
}

fn default_hold_seconds() -> u64 {
    DEFAULT_HOLD_SECONDS
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct BarrierBody {
    id: String,
    #[serde(default = "default_hold_seconds")]
    hold_seconds: u64,
    #[serde(default)]
    allow_partial: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RenewBody {
    hold_seconds: u64,
}

async fn begin(State(backup): Shared, headers: HeaderMap, body: Bytes) -> Answer {
    let BarrierBody { id, hold_seconds, allow_partial } = parse(&body)?;
    if is_hold_name(&id) {
        check_token(&backup, &headers).await?;
        match backup.holds.manifest(id.clone()).await.map_err(|error| failed(&error))? {
            Held::Nothing => {}
            Held::Manifest(bytes) => return answered_before(&bytes),
            Held::Unfinished => {
                let error = format!("the barrier '{id}' is under way, or its member ended before it was done");
                let hint = "ask again in a while; what is left of it ends with DELETE, or with its time";
                return Err(Refusal::new(AdminErrorKind::Conflict, error, hint));
            }
        }
    }
    let action = AdminAction::Barrier(BarrierRequest { id, hold_seconds, allow_partial });
    match backup.admin.ask(&headers, action).await? {
        AdminReply::Barrier(report) => {
            let BarrierReport { manifest, manifest_sha256, .. } = *report;
            Ok(axum::Json(barrier(&manifest, &manifest_sha256)).into_response())
        }
        _ => Err(surprise()),
    }
}

/// Whoever asked may have ended before it got the answer. The caller renews the holds that it needs, so one that has ended
/// on another member meanwhile shows.
fn answered_before(bytes: &[u8]) -> Answer {
    let manifest = Manifest::from_file(bytes)
        .map_err(|error| failed(&std::io::Error::other(format!("its manifest is damaged: {error}"))))?;
    let (_, sha256) = manifest.to_file();
    Ok(axum::Json(barrier(&manifest, &sha256)).into_response())
}

fn barrier(manifest: &Manifest, manifest_sha256: &str) -> Value {
    json!({
        "id": manifest.id,
        "clusterId": manifest.cluster_id,
        "clusterEpoch": manifest.cluster_epoch,
        "takenAtMs": manifest.taken_at_ms,
        "pauseMs": manifest.pause_ms,
        "manifestSha256": manifest_sha256,
        "totals": manifest.totals,
        "missing": manifest.missing,
        "members": manifest.members.iter().map(|member| &member.name).collect::<Vec<_>>(),
        "holders": holder_sets(manifest),
    })
}

/// Who holds a group whole, each set of names once: whoever snapshots volumes chooses members that have one of each set.
fn holder_sets(manifest: &Manifest) -> BTreeSet<&[String]> {
    manifest.groups.iter().map(|group| group.holders.as_slice()).collect()
}

/// The operator that was overtaken has no say in holds either.
async fn check_token(backup: &Backup, headers: &HeaderMap) -> Result<(), Refusal> {
    backup.admin.ask(headers, AdminAction::Health).await.map(drop)
}

fn failed(error: &std::io::Error) -> Refusal {
    Refusal::new(AdminErrorKind::Unavailable, format!("the hold cannot be changed: {error}"), "see this member's disk")
}

fn named(id: String) -> Result<String, Refusal> {
    match is_hold_name(&id) {
        true => Ok(id),
        false => Err(Refusal::new(AdminErrorKind::NotFound, format!("there is no hold '{id}'"), "GET lists them")),
    }
}

async fn list(State(backup): Shared) -> Answer {
    let hold = |note: &HoldNote| json!({ "id": note.id, "member": note.member, "expiresAtMs": note.expires_at_ms });
    let notes = backup.holds.list().await.map_err(|error| failed(&error))?;
    Ok(axum::Json(json!({ "holds": notes.iter().map(hold).collect::<Vec<_>>() })).into_response())
}

async fn renew(State(backup): Shared, headers: HeaderMap, Path(id): Path<String>, body: Bytes) -> Answer {
    let RenewBody { hold_seconds } = parse(&body)?;
    if hold_seconds == 0 || hold_seconds > LONGEST_HOLD_SECONDS {
        let error = format!("a hold of {hold_seconds} seconds is not possible");
        return Err(Refusal::new(AdminErrorKind::BadRequest, error, "ask for 1 to 86400"));
    }
    let id = named(id)?;
    check_token(&backup, &headers).await?;
    match backup.holds.renew(id.clone(), wall_ms() + hold_seconds * 1000).await {
        Ok(()) => done(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let hint = "it has ended, so what was not copied by then is no backup; ask for a new barrier";
            Err(Refusal::new(AdminErrorKind::NotFound, format!("there is no hold '{id}' on this member"), hint))
        }
        Err(error) => Err(failed(&error)),
    }
}

async fn end(State(backup): Shared, headers: HeaderMap, Path(id): Path<String>) -> Answer {
    let id = named(id)?;
    check_token(&backup, &headers).await?;
    backup.holds.remove(id).await.map_err(|error| failed(&error))?;
    done()
}
