//! Proves a backup: a cluster of one member begins with it, which its broker only does when every queue is as the backed-up
//! cluster's brokers wrote down; then the cluster is removed.

use std::time::Duration;

use jiff::Timestamp;
use kube::{
    Api, Resource, ResourceExt,
    api::{DeleteParams, PostParams},
    runtime::{controller::Action, events::EventType},
};
use serde_json::{Value, json};

use super::super::{
    Context, Doing, Error,
    status::{announce, write_status},
};
use crate::{
    api::v1alpha1::{
        BackedUpCluster, ConditionType, MessageQueueBackup, MessageQueueBackupStatus, MessageQueueCluster, Reason,
        VERIFICATION_LABEL, VerificationResult, VerificationStatus,
    },
    controllers::messagequeuecluster::validate::quantity_bytes,
};

/// Between two looks at the cluster.
const LOOK: Duration = Duration::from_secs(2);

/// What is to be done next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Nothing,
    /// It is written down that the cluster will be there, then it is made.
    Begin(VerificationStatus),
    /// The cluster is made (again, if somebody removed it).
    Make,
    /// It is at it; what is said of that has changed, or not.
    Wait(VerificationStatus),
    /// Nothing more is to be found out.
    End(VerificationStatus),
    /// The cluster is still there.
    Remove,
}

/// One pass over a backup that is complete.
pub async fn go_on(ctx: &Context, backup: &MessageQueueBackup, now: Timestamp) -> Result<Action, Error> {
    if backup.spec.verification.is_none() {
        return Ok(Action::await_change());
    }
    let name = backup.verification_cluster();
    let clusters = Api::<MessageQueueCluster>::namespaced(ctx.client.clone(), &backup.namespace().unwrap_or_default());
    let found = clusters.get_opt(&name).await.doing(|| format!("cannot read cluster {name}"))?;
    let step = step(backup, found.as_ref(), now);
    match step {
        Step::Nothing => return Ok(Action::await_change()),
        Step::Begin(status) => note(ctx, backup, status).await?,
        Step::Make => {
            let cluster =
                cluster(backup).map_err(kube::Error::SerdeError).doing(|| format!("cannot make cluster {name}"))?;
            match clusters.create(&PostParams::default(), &cluster).await {
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                other => drop(other.doing(|| format!("cannot make cluster {name}"))?),
            }
        }
        Step::Wait(status) => {
            if backup.status_or_default().verification.as_ref() != Some(&status) {
                note(ctx, backup, status).await?;
            }
        }
        Step::End(status) => {
            let (type_, reason) = match status.result {
                VerificationResult::Verified => (EventType::Normal, Reason::Verified),
                VerificationResult::Damaged => (EventType::Warning, Reason::BackupDamaged),
                _ => (EventType::Warning, Reason::VerificationFailed),
            };
            let message = status.message.clone().unwrap_or_default();
            note(ctx, backup, status).await?;
            announce(ctx, &backup.object_ref(&()), type_, reason, &message).await;
        }
        Step::Remove => match clusters.delete(&name, &DeleteParams::background()).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            other => drop(other.doing(|| format!("cannot delete cluster {name}"))?),
        },
    }
    Ok(Action::requeue(LOOK))
}

async fn note(ctx: &Context, backup: &MessageQueueBackup, verification: VerificationStatus) -> Result<(), Error> {
    let status = MessageQueueBackupStatus { verification: Some(verification), ..backup.status_or_default() };
    write_status(ctx, backup, &status).await
}

/// Decides. Pure.
pub fn step(backup: &MessageQueueBackup, cluster: Option<&MessageQueueCluster>, now: Timestamp) -> Step {
    let status = backup.status_or_default();
    let cluster = cluster.filter(|cluster| cluster.metadata.deletion_timestamp.is_none());
    if !backup.is_to_be_verified() {
        return if cluster.is_some() && status.verification.is_some() { Step::Remove } else { Step::Nothing };
    }
    let Some(verification) = status.verification else {
        return Step::Begin(VerificationStatus {
            cluster: backup.verification_cluster(),
            started_at: now.to_string(),
            ..VerificationStatus::default()
        });
    };
    let Some(cluster) = cluster else { return Step::Make };
    let end = |result, message: String| {
        let started = verification.started_at.parse::<Timestamp>().unwrap_or(now);
        let verified = result == VerificationResult::Verified;
        Step::End(VerificationStatus {
            result,
            ended_at: Some(now.to_string()),
            seconds: Some(now.duration_since(started).as_secs()),
            messages: verified.then(|| status.totals.unwrap_or_default().messages),
            message: Some(message),
            ..verification.clone()
        })
    };
    let seen = cluster.status_or_default();
    let restored = seen.restore.as_ref().filter(|restore| restore.completed_at.is_some());
    let ready = seen.condition(ConditionType::Ready);
    let said = ready.map(|c| format!("{}: {}", c.reason, c.message)).unwrap_or_default();
    if let (Some(restored), true) = (restored, seen.is(ConditionType::Ready)) {
        return match restored.damaged.is_empty() {
            true => end(VerificationResult::Verified, "restored, and every queue is as it was".into()),
            false => end(
                VerificationResult::Damaged,
                format!("it can be restored, from what other snapshots have; {}", restored.damaged.join("; ")),
            ),
        };
    }
    if ready.is_some_and(|c| c.reason == Reason::BackupDamaged.to_string()) {
        return end(VerificationResult::Damaged, ready.map(|c| c.message.clone()).unwrap_or_default());
    }
    let started = verification.started_at.parse::<Timestamp>().unwrap_or(now);
    let deadline = backup.spec.verification.as_ref().map_or(0, |spec| spec.deadline_seconds.max(1) as u64);
    if now.duration_since(started).unsigned_abs() >= Duration::from_secs(deadline) {
        return end(VerificationResult::Failed, format!("not restored after {deadline} s; {said}"));
    }
    Step::Wait(VerificationStatus { message: Some(said).filter(|said| !said.is_empty()), ..verification })
}

/// One member is enough to prove what is there, and all of it must fit on its volume.
fn cluster(backup: &MessageQueueBackup) -> Result<MessageQueueCluster, serde_json::Error> {
    let status = backup.status_or_default();
    let BackedUpCluster { image, storage_size, storage_class_name, .. } = status.cluster.unwrap_or_default();
    let spec = backup.spec.verification.as_ref();
    let class = spec.and_then(|spec| spec.storage_class_name.clone()).or(storage_class_name);
    let bytes = quantity_bytes(&storage_size).unwrap_or(0.0) * status.snapshots.len().max(1) as f64;
    let size = spec.and_then(|spec| spec.storage_size.clone()).unwrap_or_else(|| format!("{bytes:.0}"));
    let mut body = json!({
        "apiVersion": MessageQueueCluster::api_version(&()),
        "kind": MessageQueueCluster::kind(&()),
        "metadata": {
            "name": backup.verification_cluster(),
            "namespace": backup.namespace(),
            "labels": { VERIFICATION_LABEL: backup.name_any() },
            "ownerReferences": [backup.owner_ref(&())],
        },
        "spec": {
            "members": 1,
            "storage": { "size": size, "storageClassName": class, "deletionPolicy": "Delete" },
            "placement": { "whenUnsatisfiable": "ScheduleAnyway" },
            "bootstrap": { "recovery": { "backup": { "name": backup.name_any() } } },
        },
    });
    if let Some(image) = image {
        body["spec"]["image"] = Value::String(image);
    }
    serde_json::from_value(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-11-23T03:10:00Z";

    fn backup(status: Value) -> MessageQueueBackup {
        let mut all = json!({
            "phase": "Completed", "totals": { "messages": 77 },
            "cluster": { "clusterID": "c", "members": 3, "storageSize": "2Gi", "image": "broker:1" },
            "snapshots": [{ "name": "a", "member": "x-0-0" }, { "name": "b", "member": "x-1-0" }],
        });
        all.as_object_mut().expect("an object").extend(status.as_object().cloned().unwrap_or_default());
        serde_json::from_value(json!({
            "apiVersion": "holdfast.dev/v1alpha1", "kind": "MessageQueueBackup",
            "metadata": { "name": "nightly", "namespace": "shop", "uid": "1234-5678-9abc" },
            "spec": { "cluster": { "name": "demo" }, "verification": { "deadlineSeconds": 600 } }, "status": all,
        }))
        .expect("a backup")
    }

    fn running() -> Value {
        json!({ "verification": { "cluster": "verify-123456789abc", "startedAt": "2026-11-23T03:09:00Z" } })
    }

    fn seen(ready: (&str, &str), restore: Value) -> MessageQueueCluster {
        let cluster = cluster(&backup(json!({}))).expect("a cluster");
        let status = json!({ "restore": restore, "conditions": [{
            "type": "Ready", "status": ready.0, "reason": ready.1, "message": "so it is", "lastTransitionTime": NOW,
        }]});
        MessageQueueCluster { status: Some(serde_json::from_value(status).expect("a status")), ..cluster }
    }

    fn result(step: &Step) -> Option<VerificationResult> {
        match step {
            Step::Begin(status) | Step::Wait(status) | Step::End(status) => Some(status.result),
            Step::Nothing | Step::Make | Step::Remove => None,
        }
    }

    #[test]
    fn a_backup_is_proven_by_a_cluster_that_began_with_it_and_by_nothing_less() {
        use VerificationResult::{Damaged, Failed, Running, Verified};
        let now = NOW.parse().expect("a time");
        let restored =
            |damaged: Value| json!({ "barrier": "b", "manifestSha256": "s", "completedAt": NOW, "damaged": damaged });
        let table = [
            (seen(("False", "Restoring"), Value::Null), Running),
            (seen(("True", "AllMembersReady"), Value::Null), Running),
            (seen(("False", "MembersNotReady"), restored(json!([]))), Running),
            (seen(("True", "AllMembersReady"), restored(json!([]))), Verified),
            (seen(("True", "AllMembersReady"), restored(json!(["VolumeSnapshot a: segment 7 is changed"]))), Damaged),
            (seen(("False", "BackupDamaged"), Value::Null), Damaged),
        ];
        for (row, (cluster, expected)) in table.into_iter().enumerate() {
            let step = step(&backup(running()), Some(&cluster), now);
            assert_eq!(result(&step), Some(expected), "row {row}: {step:?}");
            assert_eq!(matches!(step, Step::End(_)), expected != Running, "row {row}");
            if let Step::End(status) = step {
                assert_eq!(status.messages, (expected == Verified).then_some(77));
                assert_eq!(status.seconds, Some(60));
            }
        }
        let late = step(
            &backup(running()),
            Some(&seen(("False", "Unschedulable"), Value::Null)),
            "2026-11-23T04:00:00Z".parse().expect("a time"),
        );
        assert_eq!(result(&late), Some(Failed));
        assert!(matches!(late, Step::End(status) if status.message.as_deref().is_some_and(|m| m.contains("so it is"))));
    }

    #[test]
    fn the_cluster_is_made_after_it_was_written_down_and_removed_after_its_result_was() {
        let now = NOW.parse().expect("a time");
        assert_eq!(result(&step(&backup(json!({})), None, now)), Some(VerificationResult::Running));
        assert_eq!(step(&backup(running()), None, now), Step::Make);
        let mut over = running();
        over["verification"]["result"] = json!("Verified");
        assert_eq!(
            step(&backup(over.clone()), Some(&seen(("True", "AllMembersReady"), Value::Null)), now),
            Step::Remove
        );
        assert_eq!(step(&backup(over), None, now), Step::Nothing);
        let failed = json!({ "phase": "Failed" });
        assert_eq!(step(&backup(failed), None, now), Step::Nothing);
    }

    #[test]
    fn all_that_is_in_the_snapshots_fits_on_the_one_volume() {
        let cluster = cluster(&backup(json!({}))).expect("a cluster");
        assert_eq!(quantity_bytes(&cluster.spec.storage.size), quantity_bytes("4Gi"));
        assert_eq!((cluster.spec.members, cluster.spec.image.as_deref()), (1, Some("broker:1")));
        assert_eq!(cluster.owner_references()[0].kind, "MessageQueueBackup");
    }
}
