//! Pure methods of `MessageQueueBackup`: names and labels that follow from the object alone.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use kube::ResourceExt;

use super::{
    APP_NAME, BackupPhase, MANAGER, MessageQueueBackup, MessageQueueBackupStatus, MessageQueueBackupTemplate, Names,
    VerificationResult,
};

/// The schedule that a backup was made by.
pub const SCHEDULE_LABEL: &str = "holdfast.dev/backup-schedule";
/// The backup that a snapshot belongs to.
pub const BACKUP_LABEL: &str = "holdfast.dev/backup";
/// UID of the backup that a snapshot belongs to: a later one of the same name does not take it for its own.
pub const BACKUP_UID_LABEL: &str = "holdfast.dev/backup-uid";
/// The backup that a cluster was made to prove.
pub const VERIFICATION_LABEL: &str = "holdfast.dev/verification-of";
/// The line that a snapshot holds, by its name on the brokers.
pub const BARRIER_ANNOTATION: &str = "holdfast.dev/barrier";
/// SHA-256 of the manifest that is a file on the snapshotted disk.
pub const MANIFEST_ANNOTATION: &str = "holdfast.dev/manifest-sha256";
/// What a restore needs to know of the cluster, as JSON.
pub const CLUSTER_ANNOTATION: &str = "holdfast.dev/cluster";

impl MessageQueueBackup {
    /// The present status, or an empty one.
    pub fn status_or_default(&self) -> MessageQueueBackupStatus {
        self.status.clone().unwrap_or_default()
    }

    /// The name of the snapshot of a member in one try.
    pub fn snapshot_name(&self, attempt: i32, member: &str) -> String {
        // The number is enough, since a backup is of one cluster.
        let number = Names::number(member);
        format!("{}-{attempt}-{number}", self.name_any())
    }

    /// What the line of one try is called on the brokers. A UID is unique, and so is this.
    pub fn barrier_id(&self, attempt: i32) -> String {
        format!("{}-{attempt}", self.uid().unwrap_or_default())
    }

    /// The cluster that it is restored into to prove it.
    pub fn verification_cluster(&self) -> String {
        let uid: String = self.uid().unwrap_or_default().chars().filter(char::is_ascii_alphanumeric).take(12).collect();
        format!("verify-{uid}")
    }

    /// Is it to be proven, and is that not over?
    pub fn is_to_be_verified(&self) -> bool {
        let status = self.status_or_default();
        let over = status.verification.is_some_and(|verification| verification.result != VerificationResult::Running);
        self.spec.verification.is_some() && status.phase == BackupPhase::Completed && !over
    }

    /// When it was asked for, or began; `now` if neither is known.
    pub fn begun(&self, now: Timestamp) -> Timestamp {
        let started = self.status.as_ref().and_then(|status| status.started_at.as_ref()?.parse().ok());
        started.or(self.metadata.creation_timestamp.as_ref().map(|time| time.0)).unwrap_or(now)
    }
}

impl MessageQueueBackupTemplate {
    /// After this time a backup that is not complete has failed.
    pub fn deadline(&self) -> Duration {
        Duration::from_secs(self.deadline_seconds.max(1) as u64)
    }
}

impl BackupPhase {
    /// Nothing more is done.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Completed | Self::Failed)
    }
}

/// Labels of what belongs to a cluster and is no part of it.
pub fn object_labels(cluster: &str, component: &str) -> BTreeMap<String, String> {
    let pairs = [
        ("app.kubernetes.io/name", APP_NAME),
        ("app.kubernetes.io/instance", cluster),
        ("app.kubernetes.io/component", component),
        ("app.kubernetes.io/part-of", APP_NAME),
        ("app.kubernetes.io/managed-by", MANAGER),
    ];
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}
