//! Steps 4 and 5: make the backup that is due, and remove the ones that are not kept.

use kube::{
    Api, ResourceExt,
    api::{DeleteParams, PostParams},
};

use super::{
    super::{Context, Doing, Error},
    plan::{Plan, Removal},
};
use crate::api::v1alpha1::{
    MessageQueueBackup, MessageQueueBackupSchedule, MessageQueueBackupSpec, Reason, SCHEDULE_LABEL, object_labels,
};

/// What came of the plan.
#[derive(Debug, Default)]
pub struct Outcome {
    pub failure: Option<Error>,
    /// For Events.
    pub done: Vec<(Reason, String)>,
    /// Was the time that was due acted on?
    pub acted: bool,
}

/// Does what the plan says.
pub async fn apply(ctx: &Context, schedule: &MessageQueueBackupSchedule, plan: &Plan) -> Outcome {
    let mut outcome = Outcome::default();
    if let Err(error) = carry_out(ctx, schedule, plan, &mut outcome).await {
        outcome.failure = Some(error);
    }
    outcome
}

async fn carry_out(
    ctx: &Context,
    schedule: &MessageQueueBackupSchedule,
    plan: &Plan,
    outcome: &mut Outcome,
) -> Result<(), Error> {
    let backups = Api::<MessageQueueBackup>::namespaced(ctx.client.clone(), &schedule.namespace().unwrap_or_default());
    // First the new one: should this process end in between, there is one too many instead of one too few.
    if let Some(name) = &plan.create {
        match backups.create(&PostParams::default(), &backup(schedule, plan, name)).await {
            Ok(_) => outcome.done.push((Reason::BackupBegun, format!("made {name}"))),
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => return Err(error).doing(|| format!("cannot make backup {name}")),
        }
    }
    if let Some((time, active)) = &plan.left_out {
        outcome.done.push((Reason::BackupLeftOut, format!("no backup for {time}: {active} is still at work")));
    }
    outcome.acted = true;
    for (name, why) in &plan.remove {
        match backups.delete(name, &DeleteParams::background()).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => continue,
            Err(error) => return Err(error).doing(|| format!("cannot delete backup {name}")),
        }
        let why = match why {
            Removal::Surplus => "no rule of retention asks for it",
            Removal::Failed => "it failed, and newer ones did",
            Removal::Replaced => "it was at work when the next one was due",
        };
        outcome.done.push((Reason::BackupRemoved, format!("removed {name}: {why}")));
    }
    Ok(())
}

/// Nobody owns it: backups outlive their schedule, and a schedule of the same name takes care of them again.
fn backup(schedule: &MessageQueueBackupSchedule, plan: &Plan, name: &str) -> MessageQueueBackup {
    let verification = schedule.spec.verification.as_ref().filter(|_| plan.verify);
    let spec = MessageQueueBackupSpec {
        cluster: schedule.spec.cluster.clone(),
        template: schedule.spec.backup.clone(),
        verification: verification.map(|verification| verification.how.clone()),
    };
    let mut backup = MessageQueueBackup::new(name, spec);
    let mut labels = object_labels(&schedule.spec.cluster.name, "backup");
    labels.insert(SCHEDULE_LABEL.into(), schedule.name_any());
    backup.metadata.labels = Some(labels);
    backup
}
