//! Makes a `MessageQueueBackup`: the brokers draw a line through every queue and hold their files, the storage takes
//! snapshots of the members that together hold everything, and the brokers are told that they need not hold any more.

use std::sync::Arc;

use kube::{ResourceExt, runtime::controller::Action};

use super::{Context, Error, RETRY};
use crate::api::v1alpha1::MessageQueueBackup;

mod apply;
pub mod build;
pub mod cover;
pub mod observe;
pub mod plan;
mod status;
pub mod verification;
mod watch;

pub use watch::run;

/// One pass over one backup. What is about to be done is in the status before it is done, so that another process can go
/// on, and clean up, where this one ended.
pub async fn reconcile(backup: Arc<MessageQueueBackup>, ctx: Arc<Context>) -> Result<Action, Error> {
    let Some(backup) = ctx.fresh(&*backup).await? else { return Ok(Action::await_change()) };
    let now = (ctx.clock)();
    if backup.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    if backup.status.as_ref().is_some_and(|s| s.phase.is_over()) {
        return verification::go_on(&ctx, &backup, now).await;
    }
    let Some(observed) = observe::observe(&ctx, &backup, now).await? else { return Ok(Action::await_change()) };
    let plan = plan::plan(&backup, &observed, now);
    let outcome = apply::apply(&ctx, &backup, &observed, &plan).await;
    status::report(&ctx, &backup, &observed, &plan, &outcome, now).await?;
    match outcome.failure {
        Some(error) => Err(error),
        None => Ok(Action::requeue(plan.next)),
    }
}

/// What happens after an error: it is written down, and the pass is repeated.
pub fn after_error(backup: Arc<MessageQueueBackup>, error: &Error, ctx: Arc<Context>) -> Action {
    tracing::warn!(backup = %backup.name_any(), namespace = %backup.namespace().unwrap_or_default(), "{error}");
    ctx.telemetry.failed();
    Action::requeue(RETRY)
}
