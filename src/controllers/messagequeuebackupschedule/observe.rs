//! Step 1: the schedule's backups, and whether its cluster is there.

use jiff::Timestamp;
use kube::{Api, ResourceExt, api::ListParams};

use super::super::{Context, Doing, Error};
use crate::api::v1alpha1::{
    BackupPhase, ConditionType, MessageQueueBackup, MessageQueueBackupSchedule, MessageQueueCluster, SCHEDULE_LABEL,
    VerificationStatus,
};

/// Everything a pass knows.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    pub has_cluster: bool,
    /// The schedule's backups that are not on their way out.
    pub backups: Vec<BackupFacts>,
}

/// One backup, as far as it matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackupFacts {
    pub name: String,
    pub created: Option<Timestamp>,
    pub phase: BackupPhase,
    pub completed: Option<Timestamp>,
    /// What its condition Ready says.
    pub message: String,
    /// Is it to be proven, or was it?
    pub is_verified: bool,
    /// What came of that.
    pub verification: Option<VerificationStatus>,
}

/// None where the schedule belongs to another operator, with its cluster.
pub async fn observe(ctx: &Context, schedule: &MessageQueueBackupSchedule) -> Result<Option<Observed>, Error> {
    let namespace = schedule.namespace().unwrap_or_default();
    let clusters = Api::<MessageQueueCluster>::namespaced(ctx.client.clone(), &namespace);
    let cluster = clusters
        .get_opt(&schedule.spec.cluster.name)
        .await
        .doing(|| format!("cannot read the cluster of schedule {}", schedule.name_any()))?;
    if cluster.as_ref().is_some_and(|cluster| !ctx.looks_after(cluster)) {
        return Ok(None);
    }
    let backups = Api::<MessageQueueBackup>::namespaced(ctx.client.clone(), &namespace)
        .list(&ListParams::default().labels(&format!("{SCHEDULE_LABEL}={}", schedule.name_any())))
        .await
        .doing(|| format!("cannot list the backups of schedule {}", schedule.name_any()))?;
    let backups = backups.iter().filter(|backup| backup.metadata.deletion_timestamp.is_none()).map(facts).collect();
    Ok(Some(Observed { has_cluster: cluster.is_some(), backups }))
}

fn facts(backup: &MessageQueueBackup) -> BackupFacts {
    let status = backup.status.clone().unwrap_or_default();
    let ready = status.conditions.iter().find(|c| c.type_ == ConditionType::Ready.to_string());
    BackupFacts {
        name: backup.name_any(),
        created: backup.metadata.creation_timestamp.as_ref().map(|time| time.0),
        phase: status.phase,
        completed: status.completed_at.as_ref().and_then(|at| at.parse().ok()),
        is_verified: backup.spec.verification.is_some(),
        verification: status.verification,
        message: ready.map(|c| c.message.clone()).unwrap_or_default(),
    }
}
