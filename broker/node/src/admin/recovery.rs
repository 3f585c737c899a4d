//! Forced recovery through the admin API of members that run and have no majority: each surveys its own disk, anybody makes
//! the plan of all surveys, and each carries out its own part, with its journal standing still. A member that has done so
//! ends (exit code 75), and goes on in the new epoch when it is started again.
//!
//! A queue of two replicas can have lost its majority while the members still have one of the metadata. Then nothing but the
//! queue stands still, and freezing them stops all queues until they have been started again: that has to be asked for, with
//! `evenWithMajority`. While such a freeze is in force they are surveyed and recovered as if they had no majority; the plan
//! is refused if no group needs it.
//!
//! | path | does |
//! |---|---|
//! | `POST /v1/recovery/freeze` | `{"seconds": 300}`: nothing becomes durable for so long, so that the plan stays true; 0 ends it, but not under a survey or an apply. `"evenWithMajority": true` for a queue that has lost its majority alone |
//! | `GET /v1/recovery/survey` | what this member's disk holds; one survey or apply at a time |
//! | `POST /v1/recovery/plan` | `{"found": [surveys of all members that are left]}`: the plan and its hash |
//! | `POST /v1/recovery/apply` | `{"planHash": …, "nonce": "16 hex digits", "found": […]}`: this member's part of it |

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::HeaderMap;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use holdfast_engine::admin::{AdminAction, AdminErrorKind, AdminReply};
use holdfast_engine::recovery::PlanError;
use serde::Deserialize;
use serde_json::json;

use super::routes::{Admin, Answer, Refusal, parse, surprise};
use crate::failure::{ExitKind, Failure};
use crate::inbox::Inbox;
use crate::journal_pause::{NoStandstill, Standstill};
use crate::journal_thread::JournalBrake;
use crate::recovery_dirs::{StoppedDir, Surveyed};
use crate::recovery_plan::HashedPlan;

/// Surveys of ten thousands of queues on several members.
const BODY_LIMIT: usize = 256 << 20;
/// A freeze ends by itself after this at most.
const LONGEST_FREEZE: Duration = Duration::from_secs(900);
/// The journal stands still while it is read or rebuilt, for so long at most.
const WORK_WITHIN: Duration = Duration::from_secs(3600);
/// Time for the answer to leave before the process ends.
const LAST_ANSWER: Duration = Duration::from_millis(500);

/// What the handlers share.
struct Recovery {
    admin: Admin,
    brake: JournalBrake,
    end_process: fn(Failure),
}

type Shared = State<Arc<Recovery>>;

/// The routes, for a server that has checked the caller's certificate. `end_process` ends this process with a failure's
/// exit code.
pub fn router(inbox: Inbox, data_dir: PathBuf, brake: JournalBrake, end_process: fn(Failure)) -> Router {
    let recovery = Arc::new(Recovery { admin: Admin::new(inbox, data_dir), brake, end_process });
    Router::new()
        .route("/v1/recovery/freeze", post(freeze))
        .route("/v1/recovery/survey", get(survey))
        .route("/v1/recovery/plan", post(plan))
        .route("/v1/recovery/apply", post(apply))
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(recovery)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FreezeBody {
    seconds: u64,
    #[serde(default)]
    even_with_majority: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PlanBody {
    found: Vec<Surveyed>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ApplyBody {
    plan_hash: String,
    nonce: String,
    found: Vec<Surveyed>,
}

fn conflict(error: impl Into<String>, hint: &str) -> Refusal {
    Refusal::new(AdminErrorKind::Conflict, error, hint)
}

fn failed(failure: Failure) -> Refusal {
    Refusal::new(AdminErrorKind::Unavailable, failure.problem, failure.remedy)
}

fn busy() -> Refusal {
    conflict("a survey or an apply is under way in this member", "ask again when it is done")
}

impl Recovery {
    /// A member that is in touch with a majority needs no recovery, and must not stand still, unless that was asked for.
    async fn refuse_quorum(&self, headers: &HeaderMap, asked_for: bool) -> Result<(), Refusal> {
        match self.admin.ask(headers, AdminAction::Health).await? {
            AdminReply::Health(health) if health.quorum && !asked_for => Err(conflict(
                "this member is in touch with a majority: there is nothing to recover",
                "a recovery is for members whose majority is gone for good; if a queue has lost its own, freeze all members \
                 with evenWithMajority first",
            )),
            AdminReply::Health(_) => Ok(()),
            _ => Err(surprise()),
        }
    }

    /// Does `work` on the directory while nothing is written to its journal, nor other work done there. A freeze that is
    /// in force goes on. The work goes on when the caller does not wait for it any more.
    async fn standing_still<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self, StoppedDir, &Standstill) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let this = Arc::clone(self);
        let done = tokio::task::spawn_blocking(move || {
            let standstill = this.brake.stand_still_for(WORK_WITHIN).map_err(|error| match error {
                NoStandstill::Busy => busy(),
                NoStandstill::Stuck => Refusal::new(
                    AdminErrorKind::Unavailable,
                    "the journal does not come to a standstill",
                    "its disk may be stuck; try again",
                ),
            })?;
            let dir = StoppedDir::paused(this.admin.data_dir()).map_err(failed)?;
            let dir =
                dir.ok_or_else(|| conflict("this member belongs to no cluster yet", "leave it out: it joins anew"))?;
            work(&this, dir, &standstill)
        });
        done.await.map_err(|_| surprise())?
    }

    /// This member's part. True if it was done before.
    fn apply(
        &self,
        dir: &StoppedDir,
        standstill: &Standstill,
        made: &HashedPlan,
        nonce: u64,
        found: &[Surveyed],
    ) -> Result<bool, Refusal> {
        if dir.surveyed.before(&made.hash).is_some() {
            return Ok(true);
        }
        if !found.iter().any(|one| one.survey == dir.surveyed.survey) {
            return Err(conflict(
                "this member's disk is not as the plan has it: nothing was changed",
                "freeze all members, survey them again, and make a new plan",
            ));
        }
        if !made.plan.parts().any(|uuid| uuid == dir.surveyed.survey.uuid) {
            return Err(conflict("this member has no part in the plan", "give it an empty volume: it joins anew"));
        }
        let prepared = dir.prepare(&made.plan, &made.hash, nonce).map_err(failed)?;
        // Whatever comes of it: what this process knows and what is on the disk may differ from here on.
        if !standstill.never_resume() {
            dir.discard(&prepared);
            let error = format!("making the new journal took more than {} seconds", WORK_WITHIN.as_secs());
            return Err(conflict(
                format!("{error}, and this member went on meanwhile: nothing was changed"),
                "stop the member and recover its directory with `holdfast-broker recover apply`",
            ));
        }
        let exchanged = dir.exchange(&prepared);
        let end_process = self.end_process;
        let end = match &exchanged {
            Ok(()) => Failure::new(
                ExitKind::Temporary,
                format!("the cluster was recovered and goes on at epoch {}", made.plan.next_epoch()),
                "start this member again",
            ),
            Err(failure) => failure.clone(),
        };
        std::thread::spawn(move || {
            std::thread::sleep(LAST_ANSWER);
            end_process(end);
        });
        exchanged.map(|()| false).map_err(failed)
    }
}

async fn freeze(State(recovery): Shared, headers: HeaderMap, body: Bytes) -> Answer {
    let FreezeBody { seconds, even_with_majority } = parse(&body)?;
    let wanted = Duration::from_secs(seconds);
    if wanted > LONGEST_FREEZE {
        let error = format!("{seconds} seconds are too long");
        let hint = format!("give at most {}; it can be asked for again", LONGEST_FREEZE.as_secs());
        return Err(Refusal::new(AdminErrorKind::BadRequest, error, hint));
    }
    if wanted.is_zero() {
        if !recovery.brake.thaw() {
            return Err(busy());
        }
        return Ok(axum::Json(json!({ "frozenForSeconds": 0 })).into_response());
    }
    recovery.refuse_quorum(&headers, even_with_majority).await?;
    let this = Arc::clone(&recovery);
    match tokio::task::spawn_blocking(move || this.brake.freeze(wanted)).await {
        Ok(true) => Ok(axum::Json(json!({ "frozenForSeconds": seconds })).into_response()),
        Ok(false) => Err(conflict("the journal does not come to a standstill", "its disk may be stuck; try again")),
        Err(_) => Err(surprise()),
    }
}

async fn survey(State(recovery): Shared, headers: HeaderMap) -> Answer {
    recovery.refuse_quorum(&headers, recovery.brake.is_frozen()).await?;
    let surveyed = recovery.standing_still(|_, dir, _| Ok(dir.surveyed)).await?;
    Ok(axum::Json(surveyed).into_response())
}

fn make(found: &[Surveyed], hash: Option<&str>) -> Result<HashedPlan, Refusal> {
    let refused = |error: PlanError| conflict(error.to_string(), "survey all members that are left, each once");
    HashedPlan::make(found, hash).map_err(refused)
}

async fn plan(body: Bytes) -> Answer {
    let PlanBody { found } = parse(&body)?;
    Ok(axum::Json(make(&found, None)?.as_json()).into_response())
}

async fn apply(State(recovery): Shared, headers: HeaderMap, body: Bytes) -> Answer {
    let ApplyBody { plan_hash, nonce, found } = parse(&body)?;
    let nonce = u64::from_str_radix(&nonce, 16).map_err(|_| {
        let error = format!("the nonce `{nonce}` is not a number in hex");
        Refusal::new(AdminErrorKind::BadRequest, error, "draw 64 bits at random, the same for all members")
    })?;
    recovery.refuse_quorum(&headers, recovery.brake.is_frozen()).await?;
    let made = make(&found, Some(&plan_hash))?;
    if made.hash != plan_hash || !made.plan.is_needed {
        let error = match made.plan.is_needed {
            true => format!("these surveys make the plan {}, not {plan_hash}: nothing was changed", made.hash),
            false => "a majority of every group is there: nothing was changed".to_owned(),
        };
        return Err(conflict(error, "make the plan of these surveys first, and read it"));
    }
    let epoch = made.plan.next_epoch();
    let part = move |this: &Recovery, dir: StoppedDir, standstill: &Standstill| {
        this.apply(&dir, standstill, &made, nonce, &found)
    };
    let before = recovery.standing_still(part).await?;
    Ok(axum::Json(json!({ "epoch": epoch, "doneBefore": before })).into_response())
}
