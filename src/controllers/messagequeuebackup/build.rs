//! Step 4: the VolumeSnapshots. Pure.

use serde_json::{Value, json};

use kube::{Resource, ResourceExt};

use super::observe::ClusterFacts;
use crate::api::v1alpha1::{
    BACKUP_LABEL, BACKUP_UID_LABEL, BARRIER_ANNOTATION, CLUSTER_ANNOTATION, MANIFEST_ANNOTATION, MEMBER_LABEL,
    MessageQueueBackup, MessageQueueCluster, Names, SCHEDULE_LABEL, SnapshotOwner, SnapshotStatus, object_labels,
};

/// The VolumeSnapshot of one member. Labels and annotations say all that a restore needs, so that a snapshot which outlives
/// its backup, or is taken over from another Kubernetes cluster, can be restored by its name.
pub fn volume_snapshot(backup: &MessageQueueBackup, cluster: &ClusterFacts, snapshot: &SnapshotStatus) -> Value {
    let spec = &backup.spec.template.volume_snapshot;
    let status = backup.status_or_default();
    let barrier = status.barrier.unwrap_or_default();
    let mut labels = spec.labels.clone();
    labels.extend(object_labels(&backup.spec.cluster.name, "backup"));
    labels.insert(BACKUP_LABEL.into(), backup.name_any());
    labels.insert(BACKUP_UID_LABEL.into(), backup.uid().unwrap_or_default());
    labels.insert(MEMBER_LABEL.into(), Names::number(&snapshot.member).to_owned());
    if let Some(schedule) = backup.labels().get(SCHEDULE_LABEL) {
        labels.insert(SCHEDULE_LABEL.into(), schedule.clone());
    }
    let owner = match spec.owner {
        SnapshotOwner::Backup => backup.owner_ref(&()).map(|owner| json!([owner])),
        SnapshotOwner::Cluster => Some(json!([{
            "apiVersion": MessageQueueCluster::api_version(&()), "kind": MessageQueueCluster::kind(&()),
            "name": backup.spec.cluster.name, "uid": cluster.uid,
        }])),
        SnapshotOwner::None => None,
    };
    let mut body = json!({
        "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot",
        "metadata": {
            "name": snapshot.name,
            "namespace": backup.namespace().unwrap_or_default(),
            "labels": labels,
            "annotations": {
                BARRIER_ANNOTATION: barrier.id,
                MANIFEST_ANNOTATION: barrier.manifest_sha256.unwrap_or_default(),
                CLUSTER_ANNOTATION: json!(status.cluster).to_string(),
            },
        },
        "spec": { "source": { "persistentVolumeClaimName": Names::claim(&snapshot.member) } },
    });
    if let Some(owner) = owner {
        body["metadata"]["ownerReferences"] = owner;
    }
    if let Some(class) = &spec.class_name {
        body["spec"]["volumeSnapshotClassName"] = json!(class);
    }
    body
}
