//! Makes `MessageQueueBackup`s at the times of a `MessageQueueBackupSchedule`, and removes those that are not to be kept.

use std::sync::Arc;

use kube::{ResourceExt, runtime::controller::Action};

use super::{Context, Error, RETRY};
use crate::api::v1alpha1::MessageQueueBackupSchedule;

mod apply;
pub mod calendar;
mod observe;
pub mod plan;
pub mod retention;
mod status;
mod watch;

pub use watch::run;

/// One pass over one schedule. It is repeated when a backup of it changes, and when the next one is due.
pub async fn reconcile(schedule: Arc<MessageQueueBackupSchedule>, ctx: Arc<Context>) -> Result<Action, Error> {
    let Some(schedule) = ctx.fresh(&*schedule).await? else { return Ok(Action::await_change()) };
    if schedule.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let now = (ctx.clock)();
    let Some(observed) = observe::observe(&ctx, &schedule).await? else { return Ok(Action::await_change()) };
    let calendar = calendar::Calendar::of(&schedule.spec);
    let plan = plan::plan(&schedule, calendar.as_ref().map_err(Clone::clone), &observed, now);
    let outcome = apply::apply(&ctx, &schedule, &plan).await;
    status::report(&ctx, &schedule, &observed, &plan, &outcome, now).await?;
    match outcome.failure {
        Some(error) => Err(error),
        None => Ok(Action::requeue(plan.next)),
    }
}

/// What happens after an error: it is written down, and the pass is repeated.
pub fn after_error(schedule: Arc<MessageQueueBackupSchedule>, error: &Error, ctx: Arc<Context>) -> Action {
    tracing::warn!(schedule = %schedule.name_any(), namespace = %schedule.namespace().unwrap_or_default(), "{error}");
    ctx.telemetry.failed();
    Action::requeue(RETRY)
}
