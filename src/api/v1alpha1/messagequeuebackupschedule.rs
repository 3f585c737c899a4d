//! `MessageQueueBackupSchedule` (`mqbs`): backups at times, and how many of them are kept. Data only; methods are in
//! `messagequeuebackupschedule_ext`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::messagequeuebackup::{ClusterReference, MessageQueueBackupTemplate, VerificationSpec};

/// Makes a `MessageQueueBackup` at the times of a cron expression, and removes the ones that are not to be kept.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "holdfast.dev",
    version = "v1alpha1",
    kind = "MessageQueueBackupSchedule",
    plural = "messagequeuebackupschedules",
    shortname = "mqbs",
    category = "messagequeue",
    namespaced,
    doc = "Makes a MessageQueueBackup at the times of a cron expression, and removes the ones that are not to be kept.",
    status = "MessageQueueBackupScheduleStatus",
    derive = "PartialEq",
    printcolumn(name = "Cluster", type_ = "string", json_path = ".spec.cluster.name"),
    printcolumn(name = "Schedule", type_ = "string", json_path = ".spec.schedule"),
    printcolumn(name = "Suspend", type_ = "boolean", json_path = ".spec.suspend"),
    printcolumn(name = "Last", type_ = "date", json_path = ".status.lastScheduleTime"),
    printcolumn(name = "Last-Completed", type_ = "string", json_path = ".status.lastCompleted.name"),
    printcolumn(
        name = "Healthy",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"BackupHealthy\")].status"
    ),
    printcolumn(
        name = "Verified",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"BackupVerified\")].status"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Zone", type_ = "string", json_path = ".spec.timeZone", priority = 1),
    printcolumn(name = "Next", type_ = "string", json_path = ".status.nextScheduleTime", priority = 1),
    validation = Rule::new("size(self.metadata.name) <= 40")
        .message("metadata.name has more than 40 characters: names of backups and snapshots are made from it; use a shorter one")
)]
#[serde(rename_all = "camelCase")]
pub struct MessageQueueBackupScheduleSpec {
    /// The cluster that is backed up.
    pub cluster: ClusterReference,

    /// When: minute, hour, day of month, month, day of week, as in cron(5); `@daily` and the like too. A time that a
    /// change of clocks skips comes when the clock has moved, one that it repeats comes once.
    #[schemars(length(min = 1, max = 100))]
    #[x_kube(validation = Rule::new("self.matches('^@(yearly|annually|monthly|weekly|daily|hourly)$') || self.matches('^([^ ]+ ){4}[^ ]+$')")
        .message("schedule has five fields with one space between them, such as '0 3 * * *' (minute, hour, day of month, month, day of week)"))]
    pub schedule: String,

    /// The time zone of `schedule` and of the days, weeks and months of `retention`, by its IANA name.
    #[serde(default = "utc")]
    #[schemars(length(min = 1, max = 64))]
    pub time_zone: String,

    /// While true nothing is begun and nothing is removed.
    #[serde(default)]
    pub suspend: bool,

    /// A first backup is made at once, when the schedule is created.
    #[serde(default)]
    pub immediate: bool,

    /// What happens when a backup is due while the last one is at work.
    #[serde(default)]
    pub concurrency_policy: ConcurrencyPolicy,

    /// Which completed backups are kept: those that any of the rules asks for. Without a rule all are.
    #[serde(default)]
    pub retention: RetentionSpec,

    /// Failed backups that are kept, the newest, for a look at why.
    #[serde(default = "failed_limit")]
    #[schemars(range(min = 0, max = 100))]
    pub failed_history_limit: i32,

    /// Backups are proven by restoring them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verification: Option<ScheduledVerificationSpec>,

    /// What each backup is like.
    #[serde(default)]
    pub backup: MessageQueueBackupTemplate,
}

/// Which backups are proven, and how.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ScheduledVerificationSpec {
    /// Each so-manieth backup is restored.
    #[serde(default = "each")]
    #[schemars(range(min = 1, max = 1000))]
    pub every: i32,
    #[serde(flatten)]
    pub how: VerificationSpec,
}

fn each() -> i32 {
    1
}

fn utc() -> String {
    "Etc/UTC".into()
}

/// As a CronJob keeps failed Jobs, but for three instead of one: retries of one night look alike.
fn failed_limit() -> i32 {
    3
}

/// What happens when a backup is due while the last one is at work.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ConcurrencyPolicy {
    /// The new one is left out.
    #[default]
    Forbid,
    /// The one at work is deleted, and the new one is made.
    Replace,
}

/// Which completed backups are kept.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct RetentionSpec {
    /// The newest so many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub count: Option<i32>,
    /// All that are younger than so many days.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 36500))]
    pub days: Option<i32>,
    /// The newest of each of the last so many days that have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub daily: Option<i32>,
    /// The newest of each of the last so many weeks (from Monday) that have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub weekly: Option<i32>,
    /// The newest of each of the last so many months that have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub monthly: Option<i32>,
}

/// What the operator did. Written by the operator only.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct MessageQueueBackupScheduleStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The last time that was due and was acted on, RFC 3339: written before the backup is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_schedule_time: Option<String>,
    /// The next time that is due, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_schedule_time: Option<String>,
    /// The newest backup that completed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_completed: Option<BackupMention>,
    /// The newest backup that was proven by restoring it. It is never removed by `retention`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_verified: Option<BackupMention>,
    /// The newest backup that failed, if it is newer than `lastCompleted`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failed: Option<BackupMention>,
    /// The backup at work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<String>,
    /// Completed backups of this schedule that are there.
    #[serde(default)]
    pub kept: i32,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// A backup, by name.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct BackupMention {
    pub name: String,
    /// When it was done, RFC 3339.
    pub at: String,
}
