//! What starts a pass: a change of a schedule or of one of its backups.

use std::sync::Arc;

use futures::StreamExt;
use kube::{
    Api, ResourceExt,
    runtime::{Controller, controller, reflector::ObjectRef, watcher},
};

use super::{super::Context, after_error, reconcile};
use crate::api::v1alpha1::{MessageQueueBackup, MessageQueueBackupSchedule, SCHEDULE_LABEL};

/// Looks after every schedule in `namespace`, or in all, until `shutdown`.
pub async fn run(
    ctx: Arc<Context>,
    namespace: Option<String>,
    shutdown: impl Future<Output = ()> + Send + Sync + 'static,
) {
    let schedules: Api<MessageQueueBackupSchedule> = ctx.scoped(namespace.as_deref());
    let backups: Api<MessageQueueBackup> = ctx.scoped(namespace.as_deref());
    let of_a_schedule = watcher::Config::default().labels(SCHEDULE_LABEL).any_semantic();
    Controller::new(schedules, watcher::Config::default().any_semantic())
        .watches(backups, of_a_schedule, |backup: MessageQueueBackup| {
            let name = backup.labels().get(SCHEDULE_LABEL)?;
            Some(ObjectRef::new(name).within(backup.metadata.namespace.as_deref()?))
        })
        .graceful_shutdown_on(shutdown)
        .run(reconcile, after_error, ctx)
        .for_each(|result| async move {
            if let Err(controller::Error::QueueError(error)) = result {
                tracing::warn!(%error, "cannot watch MessageQueueBackupSchedules");
            }
        })
        .await;
}
