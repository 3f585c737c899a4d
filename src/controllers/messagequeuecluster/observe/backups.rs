//! The cluster's backup schedules: whether the last backup is good and young enough, and what came of proving one.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{Api, ResourceExt, api::ListParams};

use super::super::super::{Context, Doing, Error, messagequeuebackupschedule::calendar::Calendar};
use crate::api::v1alpha1::{BackupMention, ConditionType, MessageQueueBackupSchedule, MessageQueueCluster};

/// A schedule of the cluster, as far as it matters here.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ScheduleFacts {
    pub name: String,
    pub suspended: bool,
    pub last_completed: Option<BackupMention>,
    /// The first tick after the last good backup, if a backup that began then should be complete by now.
    pub overdue: Option<Timestamp>,
    /// What the schedule says of its last backup, and of the last one that was restored to prove it.
    pub healthy: Option<Condition>,
    pub verified: Option<Condition>,
}

/// The schedules of the cluster, by name. None where their kind is not installed, or may not be read.
pub async fn observe(ctx: &Context, mqc: &MessageQueueCluster, now: Timestamp) -> Result<Vec<ScheduleFacts>, Error> {
    let namespace = mqc.namespace().unwrap_or_default();
    let api = Api::<MessageQueueBackupSchedule>::namespaced(ctx.client.clone(), &namespace);
    let found = match api.list(&ListParams::default()).await {
        Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404) => return Ok(Vec::new()),
        found => found.doing(|| format!("cannot list the backup schedules of {}", mqc.name_any()))?,
    };
    let name = mqc.name_any();
    let mut facts: Vec<_> = found.iter().filter(|s| s.spec.cluster.name == name).map(|s| facts(s, now)).collect();
    facts.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(facts)
}

fn facts(schedule: &MessageQueueBackupSchedule, now: Timestamp) -> ScheduleFacts {
    let status = schedule.status.clone().unwrap_or_default();
    let condition = |type_: ConditionType| status.conditions.iter().find(|c| c.type_ == type_.to_string()).cloned();
    ScheduleFacts {
        name: schedule.name_any(),
        suspended: schedule.spec.suspend,
        overdue: overdue(schedule, status.last_completed.as_ref(), now),
        healthy: condition(ConditionType::BackupHealthy),
        verified: condition(ConditionType::BackupVerified),
        last_completed: status.last_completed,
    }
}

/// A schedule that never had a backup counts from its creation.
fn overdue(schedule: &MessageQueueBackupSchedule, last: Option<&BackupMention>, now: Timestamp) -> Option<Timestamp> {
    let created = schedule.metadata.creation_timestamp.as_ref().map(|time| time.0);
    let since = last.and_then(|last| last.at.parse().ok()).or(created)?;
    let due = Calendar::of(&schedule.spec).ok()?.next(since)?;
    let may_take = schedule.spec.backup.deadline();
    (now > due && now.duration_since(due).unsigned_abs() > may_take).then_some(due)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn schedule(cron: &str, status: Value) -> MessageQueueBackupSchedule {
        serde_json::from_value(json!({
            "apiVersion": "holdfast.dev/v1alpha1", "kind": "MessageQueueBackupSchedule",
            "metadata": { "name": "s", "namespace": "ns", "creationTimestamp": "2026-11-20T12:00:00Z" },
            "spec": { "cluster": { "name": "demo" }, "schedule": cron, "backup": { "deadlineSeconds": 600 } },
            "status": status,
        }))
        .expect("a schedule")
    }

    #[test]
    fn a_schedule_is_overdue_when_a_tick_after_its_last_good_backup_had_time_enough() {
        let last = |at: &str| json!({ "lastCompleted": { "name": "b", "at": at } });
        let table = [
            // cron, status, now, overdue since
            ("0 3 * * *", json!({}), "2026-11-21T03:05:00Z", None),
            ("0 3 * * *", json!({}), "2026-11-21T03:11:00Z", Some("2026-11-21T03:00:00Z")),
            ("0 3 * * *", last("2026-11-21T03:02:00Z"), "2026-11-22T03:09:00Z", None),
            ("0 3 * * *", last("2026-11-21T03:02:00Z"), "2026-11-24T12:00:00Z", Some("2026-11-22T03:00:00Z")),
            ("* * * * *", last("2026-11-21T03:02:10Z"), "2026-11-21T03:12:00Z", None),
            ("* * * * *", last("2026-11-21T03:02:10Z"), "2026-11-21T03:14:00Z", Some("2026-11-21T03:03:00Z")),
            ("nonsense", json!({}), "2026-11-24T12:00:00Z", None),
        ];
        for (row, (cron, status, now, expected)) in table.into_iter().enumerate() {
            let found = facts(&schedule(cron, status), now.parse().expect("a time")).overdue;
            assert_eq!(found, expected.map(|at| at.parse().expect("a time")), "row {row}");
        }
    }
}
