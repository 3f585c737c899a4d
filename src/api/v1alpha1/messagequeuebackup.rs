//! `MessageQueueBackup` (`mqb`): one consistent copy of a cluster, as volume snapshots of the members that together hold
//! every queue. Data only; methods are in `messagequeuebackup_ext`.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One consistent copy of a cluster. Its spec does not change: make another one instead.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "holdfast.dev",
    version = "v1alpha1",
    kind = "MessageQueueBackup",
    plural = "messagequeuebackups",
    shortname = "mqb",
    category = "messagequeue",
    namespaced,
    doc = "One consistent copy of a MessageQueueCluster. Its spec does not change: make another one instead.",
    status = "MessageQueueBackupStatus",
    derive = "PartialEq",
    printcolumn(name = "Cluster", type_ = "string", json_path = ".spec.cluster.name"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Messages", type_ = "integer", json_path = ".status.totals.messages"),
    printcolumn(name = "Queues", type_ = "integer", json_path = ".status.totals.queues"),
    printcolumn(name = "Completed", type_ = "date", json_path = ".status.completedAt"),
    printcolumn(name = "Verified", type_ = "string", json_path = ".status.verification.result"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Pause-Ms", type_ = "integer", json_path = ".status.barrier.pauseMs", priority = 1),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason", priority = 1),
    validation = Rule::new("size(self.metadata.name) <= 60")
        .message("metadata.name has more than 60 characters: names of snapshots are made from it; use a shorter one"),
    validation = Rule::new("self.spec == oldSelf.spec")
        .message("a backup's spec cannot change: make another MessageQueueBackup")
)]
#[serde(rename_all = "camelCase")]
pub struct MessageQueueBackupSpec {
    /// The cluster that is backed up.
    pub cluster: ClusterReference,

    #[serde(flatten)]
    pub template: MessageQueueBackupTemplate,

    /// The backup is proven by restoring it, once it is complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verification: Option<VerificationSpec>,
}

/// How a backup is proven: a cluster of one member, with an identity of its own, begins with it and is removed again. Its
/// broker compares what it has then, queue by queue, with the sums that the backed-up cluster's brokers wrote down.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct VerificationSpec {
    /// Seconds after which a restore that is not complete has failed.
    #[serde(default = "verification_deadline_seconds")]
    #[schemars(range(min = 10, max = 86400))]
    pub deadline_seconds: i32,
    /// Size of the volume. Default: as much as all snapshots of the backup are of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 20))]
    #[x_kube(validation = Rule::new("self.matches('^[0-9]+([.][0-9]+)?(Ki|Mi|Gi|Ti|Pi|k|M|G|T|P)?$')").message("storageSize must be a quantity such as 10Gi or 500Mi"))]
    pub storage_size: Option<String>,
    /// Storage class of that volume and of the snapshots that are read. Default: the backed-up cluster's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub storage_class_name: Option<String>,
}

fn verification_deadline_seconds() -> i32 {
    3600
}

/// A cluster in the same namespace.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct ClusterReference {
    #[schemars(length(min = 1, max = 40))]
    pub name: String,
}

/// How a backup is made: everything of it but its cluster.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct MessageQueueBackupTemplate {
    /// Where the copy goes.
    #[serde(default)]
    pub method: BackupMethod,

    /// For `method: VolumeSnapshot`.
    #[serde(default)]
    pub volume_snapshot: VolumeSnapshotSpec,

    /// Queues without a majority of their replicas are left out and named in the status, instead of failing the backup.
    #[serde(default)]
    pub allow_partial: bool,

    /// Seconds after which a backup that is not complete has failed.
    #[serde(default = "deadline_seconds")]
    #[schemars(range(min = 10, max = 86400))]
    pub deadline_seconds: i32,

    /// How often a backup that failed is begun anew, within the deadline.
    #[serde(default = "retries")]
    #[schemars(range(min = 0, max = 10))]
    pub retries: i32,
}

/// An hour: what a snapshot of some hundred gigabytes takes at the slower cloud providers.
fn deadline_seconds() -> i32 {
    3600
}

fn retries() -> i32 {
    2
}

impl Default for MessageQueueBackupTemplate {
    fn default() -> Self {
        Self {
            method: BackupMethod::default(),
            volume_snapshot: VolumeSnapshotSpec::default(),
            allow_partial: false,
            deadline_seconds: deadline_seconds(),
            retries: retries(),
        }
    }
}

/// Where a backup's copy goes.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackupMethod {
    /// Snapshots of members' volumes, by the storage's CSI driver.
    #[default]
    VolumeSnapshot,
}

/// How the snapshots are made.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct VolumeSnapshotSpec {
    /// The VolumeSnapshotClass. Default: the storage's default class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub class_name: Option<String>,

    /// Which members' volumes are snapshotted.
    #[serde(default)]
    pub members: SnapshotMembers,

    /// Until when the brokers keep the files of the backup as they are.
    #[serde(default)]
    pub hold_until: HoldUntil,

    /// What the snapshots belong to: they go when it goes.
    #[serde(default)]
    pub owner: SnapshotOwner,

    /// Labels for the snapshots, beside the operator's own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "super::schema::labels")]
    pub labels: BTreeMap<String, String>,
}

/// Which members' volumes are snapshotted.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SnapshotMembers {
    /// As few as hold every queue twice, or once where it has one replica only, spread over zones.
    #[default]
    Covering,
    /// All that answer.
    All,
}

/// Until when the brokers keep the files of the backup as they are.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HoldUntil {
    /// Until every snapshot has a `creationTime`: right where that is when the snapshot was cut.
    #[default]
    Cut,
    /// Until every snapshot is `readyToUse`: for classes that copy the live volume after that time.
    ReadyToUse,
}

/// What the snapshots belong to.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SnapshotOwner {
    /// They go with this MessageQueueBackup.
    #[default]
    Backup,
    /// They go with the MessageQueueCluster.
    Cluster,
    /// They stay, with their labels and annotations, until somebody deletes them.
    None,
}

/// How far a backup is.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackupPhase {
    /// Something that it needs is not there, or another backup of the cluster is at work.
    #[default]
    Pending,
    /// The brokers draw the line.
    Barrier,
    /// The brokers hold their files; the storage cuts.
    Cutting,
    /// Every snapshot is cut and nothing is held any more; the storage finishes them.
    Finishing,
    Completed,
    Failed,
}

/// What the operator found and did. Written by the operator only.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct MessageQueueBackupStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    #[serde(default)]
    pub phase: BackupPhase,
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<String>,
    /// The try that this status speaks of, from 1.
    #[serde(default)]
    pub attempt: i32,
    /// Why the tries before it failed, newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<String>,
    /// The line that the brokers drew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub barrier: Option<BarrierStatus>,
    /// What is in the backup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub totals: Option<BackupTotals>,
    /// Queues that were left out (`allowPartial`), at most 20.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<String>,
    /// The cluster as it was: what a restore needs to know beside the snapshots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<BackedUpCluster>,
    /// How the restore went that proves it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verification: Option<VerificationStatus>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub snapshots: Vec<SnapshotStatus>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// The line that the brokers drew through every queue.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct BarrierStatus {
    /// Its name on the brokers: written here before they hear of it.
    pub id: String,
    /// The members that were asked to hold files for it, and must be told when they need not any more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub asked: Vec<String>,
    /// RFC 3339: everything that was confirmed before it is in the backup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// For how long nothing was confirmed or delivered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause_ms: Option<i64>,
    /// Of the manifest, hexadecimal. It is a file on every disk of the backup, and names all files of the backup with their
    /// checksums, and what is in each queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest_sha256: Option<String>,
    /// When all members were told that they need not hold anything any more, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub released_at: Option<String>,
}

/// How the restore went that proves a backup.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct VerificationStatus {
    #[serde(default)]
    pub result: VerificationResult,
    /// The MessageQueueCluster that is made for it, and removed afterwards.
    pub cluster: String,
    /// RFC 3339.
    pub started_at: String,
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<String>,
    /// From asking for the cluster to its serving.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<i64>,
    /// That were there, and as they should be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub messages: Option<i64>,
    /// What is damaged, or what it failed of, or is at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// What came of a verification.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VerificationResult {
    #[default]
    Running,
    /// Every queue was restored as it had been.
    Verified,
    /// Some file or queue is not as the manifest says. What is whole can still be restored.
    Damaged,
    /// It could not be found out.
    Failed,
}

/// What is in a backup.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct BackupTotals {
    #[serde(default)]
    pub queues: i64,
    #[serde(default)]
    pub messages: i64,
    /// Of the messages' contents.
    #[serde(default)]
    pub bytes: i64,
}

/// The cluster as it was.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct BackedUpCluster {
    #[serde(rename = "clusterID")]
    pub cluster_id: String,
    pub members: i32,
    /// Of each volume.
    pub storage_size: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_class_name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replication_factor: Option<i32>,
}

/// The snapshot of one member's volume.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotStatus {
    /// Of the VolumeSnapshot.
    pub name: String,
    pub member: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// When the storage says that it was cut, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creation_time: Option<String>,
    #[serde(default)]
    pub ready_to_use: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore_size: Option<String>,
    /// The storage's own words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}
