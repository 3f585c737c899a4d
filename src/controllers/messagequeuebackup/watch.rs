//! What starts a pass: a change of a backup. While it is at work each pass asks for the next one, so that snapshots, whose
//! kind may not be installed, need not be watched.

use std::sync::Arc;

use futures::StreamExt;
use kube::{
    Api,
    runtime::{Controller, controller, watcher},
};

use super::{super::Context, after_error, reconcile};
use crate::api::v1alpha1::MessageQueueBackup;

/// Looks after every backup in `namespace`, or in all, until `shutdown`.
pub async fn run(
    ctx: Arc<Context>,
    namespace: Option<String>,
    shutdown: impl Future<Output = ()> + Send + Sync + 'static,
) {
    let backups: Api<MessageQueueBackup> = ctx.scoped(namespace.as_deref());
    Controller::new(backups, watcher::Config::default().any_semantic())
        .graceful_shutdown_on(shutdown)
        .run(reconcile, after_error, ctx)
        .for_each(|result| async move {
            if let Err(controller::Error::QueueError(error)) = result {
                tracing::warn!(%error, "cannot watch MessageQueueBackups");
            }
        })
        .await;
}
