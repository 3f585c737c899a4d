//! Keeps a `MessageQueueCluster` as its spec says, in six steps.

use std::{sync::Arc, time::Duration};

use kube::{ResourceExt, runtime::controller::Action};

use super::{Context, DEFAULT_CONTROLLER_NAME, Error};
use crate::api::v1alpha1::MessageQueueCluster;

mod apply;
pub mod build;
pub mod observe;
pub mod plan;
mod recover;
mod remove;
pub mod status;
pub mod validate;
mod watch;

pub use apply::AppliedCache;
pub use observe::Memory;
pub use watch::run;

/// One pass over one cluster. It is repeated at every change of a child, and every few seconds for the brokers' health.
pub async fn reconcile(mqc: Arc<MessageQueueCluster>, ctx: Arc<Context>) -> Result<Action, Error> {
    if mqc.metadata.deletion_timestamp.is_some() || !mqc.is_for(&ctx.settings.controller_name, DEFAULT_CONTROLLER_NAME)
    {
        return Ok(Action::await_change());
    }
    let now = (ctx.clock)();
    let started = std::time::Instant::now();

    let observed = observe::observe(&ctx, &mqc, now).await?;
    let validation = validate::validate(&mqc, &observed, &ctx.settings);
    let plan = plan::plan(&mqc, &validation, &observed, &uuid::Uuid::new_v4().to_string(), now);
    let outcome = match build::build(&mqc, &validation, &observed, &plan, now) {
        Ok(children) => apply::apply(&ctx, &mqc, &validation, &observed, &plan, children).await,
        Err(error) => apply::Outcome::failed(error),
    };
    let next_write = status::report(&ctx, &mqc, &validation, &observed, &plan, &outcome, now).await?;

    ctx.telemetry.reconciled(started.elapsed(), outcome.failure.is_some());
    match outcome.failure {
        Some(error) => Err(error),
        None => Ok(Action::requeue(next_write.unwrap_or(plan.next).min(plan.next))),
    }
}

/// What happens after an error: it is written down, and the pass is repeated after a while that grows with no one.
pub fn after_error(mqc: Arc<MessageQueueCluster>, error: &Error, ctx: Arc<Context>) -> Action {
    tracing::warn!(cluster = %mqc.name_any(), namespace = %mqc.namespace_or_default(), "{error}");
    ctx.telemetry.failed();
    Action::requeue(Duration::from_secs(3))
}
