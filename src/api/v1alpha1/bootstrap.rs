//! `spec.bootstrap` of a `MessageQueueCluster`: what a new cluster begins with, and how far that is. Data only.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a new cluster begins with.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct BootstrapSpec {
    /// The backup that a new cluster begins with. It is looked at once, while every disk is blank, so it may stay here.
    /// Without it, a new cluster begins with nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery: Option<RecoverySource>,
}

/// The backup that a new cluster begins with: users, queues, policies and messages, under an identity of its own.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.backup) != has(self.volumeSnapshots)").message("name either a backup or volumeSnapshots, not both"))]
pub struct RecoverySource {
    /// A completed MessageQueueBackup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<BackupReference>,
    /// The VolumeSnapshots of one backup that together hold everything, where no MessageQueueBackup is left, or in another
    /// Kubernetes cluster. Their annotations, which the operator gave them, say what is on them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 9), inner(length(min = 1, max = 253)))]
    pub volume_snapshots: Vec<String>,
    /// The storage class by which the snapshots are read, where it is another one than `storage.storageClassName`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub storage_class_name: Option<String>,
}

/// A `MessageQueueBackup` in the same namespace.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct BackupReference {
    #[schemars(length(min = 1, max = 60))]
    pub name: String,
}

/// How far the beginning from a backup is.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct RestoreStatus {
    /// The barrier that the backup was cut at.
    pub barrier: String,
    /// Of the backup's manifest, hexadecimal.
    pub manifest_sha256: String,
    /// Of files, as the first member has received them.
    #[serde(default)]
    pub bytes_present: i64,
    #[serde(default)]
    pub bytes_needed: i64,
    /// Snapshots on which something is not as the manifest says, in the words of who read them. Another copy had it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub damaged: Vec<String>,
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
    /// When the cluster had been founded with what is in the backup, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<String>,
}
