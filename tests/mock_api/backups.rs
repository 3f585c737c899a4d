//! A backup, step by step: what is asked of brokers and storage, in which order, and what is left behind when it fails.

use std::collections::BTreeSet;

use holdfast::{
    api::v1alpha1::{BackupPhase, MessageQueueBackup, MessageQueueBackupStatus, Reason, VerificationResult},
    broker_admin::{AdminError, Barrier, BarrierTotals},
    controllers::messagequeuebackup,
};
use http::Method;

use super::*;

const BACKUP: &str = "/apis/holdfast.dev/v1alpha1/namespaces/shop/messagequeuebackups/first";
const SNAPSHOTS: &str = "/apis/snapshot.storage.k8s.io/v1/namespaces/shop/volumesnapshots";
const CLASS: &str = "/apis/snapshot.storage.k8s.io/v1/volumesnapshotclasses/fast";

/// A cluster that is Ready, a class of snapshots, and what its brokers answer to a barrier.
async fn world() -> World {
    let world = World::new(json!({}));
    world.settle().await;
    add_class(&world);
    let everywhere: BTreeSet<String> = (0..3).map(|n| format!("demo-{n}-0")).collect();
    world.brokers.set_barrier(Barrier {
        taken_at_ms: 1_800_000_000_000,
        pause_ms: 12,
        manifest_sha256: "5ea1".into(),
        totals: BarrierTotals { queues: 3, messages: 1000, message_bytes: 4096 },
        missing: Vec::new(),
        members: everywhere.clone(),
        holders: vec![everywhere],
    });
    world.api.take_writes();
    world
}

fn add_class(world: &World) {
    world.api.put(CLASS, json!({
        "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotClass", "driver": "x", "deletionPolicy": "Delete",
        "metadata": { "name": "fast", "annotations": { "snapshot.storage.kubernetes.io/is-default-class": "true" } },
    }));
}

fn create(world: &World, name: &str, template: Value) {
    let mut spec = json!({ "cluster": { "name": "demo" } });
    spec.as_object_mut().expect("an object").extend(template.as_object().cloned().unwrap_or_default());
    let path = BACKUP.replace("first", name);
    world.api.put(&path, json!({
        "apiVersion": "holdfast.dev/v1alpha1", "kind": "MessageQueueBackup", "spec": spec,
        "metadata": { "name": name, "namespace": "shop", "generation": 1, "creationTimestamp": world.now().to_string() },
    }));
}

fn backup(world: &World, name: &str) -> MessageQueueBackup {
    let object = world.api.get(&BACKUP.replace("first", name)).expect("the backup");
    serde_json::from_value(object).expect("a backup")
}

fn status(world: &World) -> MessageQueueBackupStatus {
    backup(world, "first").status.unwrap_or_default()
}

async fn step_of(world: &World, name: &str) {
    world.seconds.fetch_add(1, Ordering::Relaxed);
    let pass = messagequeuebackup::reconcile(Arc::new(backup(world, name)), world.ctx.clone());
    let _ = tokio::time::timeout(PATIENCE, pass).await.expect("a pass hangs");
}

async fn step(world: &World) {
    step_of(world, "first").await;
}

async fn until(world: &World, phase: BackupPhase) {
    for _ in 0..40 {
        if status(world).phase == phase {
            return;
        }
        step(world).await;
    }
    panic!("not {phase:?}: {:#?}", status(world));
}

/// What the storage does: every snapshot that is asked for is cut.
fn storage_cuts(world: &World, ready: bool) {
    for path in world.api.below(&format!("{SNAPSHOTS}/")) {
        let at = world.now().to_string();
        world.api.change(&path, |snapshot| {
            snapshot["status"] = json!({ "creationTime": at, "readyToUse": ready, "restoreSize": "10Gi" });
        });
    }
}

fn snapshots(world: &World) -> Vec<String> {
    let names = world.api.below(&format!("{SNAPSHOTS}/"));
    names.iter().filter_map(|path| path.rsplit('/').next()).map(str::to_owned).collect()
}

fn reason(world: &World) -> String {
    status(world).conditions.first().map(|condition| condition.reason.clone()).unwrap_or_default()
}

#[tokio::test]
async fn a_backup_holds_before_it_cuts_and_lets_go_once_all_is_cut() {
    let world = world().await;
    create(&world, "first", json!({}));
    step(&world).await;
    let begun = status(&world);
    assert_eq!((begun.phase, begun.attempt), (BackupPhase::Barrier, 1));
    assert_eq!(begun.barrier.expect("written before the brokers hear of it").asked.len(), 3);
    assert_eq!(world.brokers.holds().len(), 0);

    until(&world, BackupPhase::Cutting).await;
    assert_eq!(snapshots(&world), Vec::<String>::new(), "the line is in the status first");
    step(&world).await;
    assert_eq!(snapshots(&world), ["first-1-0", "first-1-1"], "two members hold everything twice");
    let one = world.api.get(&format!("{SNAPSHOTS}/first-1-0")).expect("a snapshot");
    assert_eq!(one["spec"]["source"]["persistentVolumeClaimName"], "data-demo-0-0");
    assert_eq!(one["metadata"]["annotations"]["holdfast.dev/manifest-sha256"], "5ea1");
    assert_eq!(one["metadata"]["ownerReferences"][0]["kind"], "MessageQueueBackup");

    step(&world).await;
    assert_eq!(world.brokers.holds().len(), 3, "nothing is cut yet");
    storage_cuts(&world, false);
    until(&world, BackupPhase::Finishing).await;
    step(&world).await;
    assert_eq!(world.brokers.holds().len(), 0, "also those who were not snapshotted");
    step(&world).await;
    assert_eq!(reason(&world), Reason::SnapshotsFinishing.to_string());
    storage_cuts(&world, true);
    until(&world, BackupPhase::Completed).await;

    let done = status(&world);
    assert_eq!(done.totals.map(|totals| (totals.queues, totals.messages)), Some((3, 1000)));
    assert!(done.snapshots.iter().all(|s| s.ready_to_use && s.creation_time.is_some()), "{done:#?}");
    assert_eq!(done.barrier.and_then(|barrier| barrier.pause_ms), Some(12));
    let calls = world.brokers.calls();
    let drawn = calls.iter().position(|call| call.starts_with("draw_barrier")).expect("a line");
    assert!(calls[drawn + 1].starts_with("renew_hold"), "the hold is proven before a snapshot is asked for: {calls:?}");
}

#[tokio::test]
async fn an_operator_that_dies_after_any_step_is_followed_by_one_that_goes_on() {
    for deaths in 0..8 {
        let mut world = world().await;
        create(&world, "first", json!({}));
        for _ in 0..deaths {
            step(&world).await;
            storage_cuts(&world, deaths % 2 == 0);
        }
        world.ctx = operator(world.ctx.client.clone(), world.brokers.clone(), world.seconds.clone());
        for _ in 0..10 {
            step(&world).await;
            storage_cuts(&world, true);
        }
        let done = status(&world);
        assert_eq!((done.phase, done.attempt), (BackupPhase::Completed, 1), "after {deaths}: {done:#?}");
        assert_eq!(snapshots(&world).len(), 2, "after {deaths}");
        assert_eq!(world.brokers.holds().len(), 0, "after {deaths}");
    }
}

#[tokio::test]
async fn a_pass_whose_status_was_not_written_is_repeated_without_harm() {
    for at in 0..7 {
        let world = world().await;
        create(&world, "first", json!({}));
        for number in 0..16 {
            if number == at {
                world.api.refuse(Method::PATCH, "/messagequeuebackups/first/status", 500, "try again", 1);
            }
            step(&world).await;
            storage_cuts(&world, true);
        }
        let done = status(&world);
        assert_eq!((done.phase, done.failures.len()), (BackupPhase::Completed, 0), "at {at}: {done:#?}");
        assert_eq!((snapshots(&world).len(), world.brokers.holds().len()), (2, 0), "at {at}");
    }
}

#[tokio::test]
async fn what_is_missing_is_named_waited_for_and_then_given_up() {
    let world = world().await;
    world.api.remove(CLASS);
    create(&world, "first", json!({}));
    step(&world).await;
    assert_eq!((status(&world).phase, reason(&world).as_str()), (BackupPhase::Pending, "SnapshotClassMissing"));
    world.seconds.fetch_add(60, Ordering::Relaxed);
    until(&world, BackupPhase::Failed).await;
    assert!(status(&world).failures[0].contains("volumeSnapshot.className"), "{:?}", status(&world).failures);
    assert!(world.brokers.calls().iter().all(|call| !call.starts_with("draw_barrier")));

    create(&world, "second", json!({ "volumeSnapshot": { "className": "fast" } }));
    step_of(&world, "second").await;
    add_class(&world);
    step_of(&world, "second").await;
    let second = backup(&world, "second").status.unwrap_or_default();
    assert_eq!(second.phase, BackupPhase::Barrier, "it came in time");

    world.api.refuse(Method::GET, "volumesnapshots", 404, "the server could not find the requested resource", 100);
    create(&world, "third", json!({}));
    step_of(&world, "third").await;
    let third = backup(&world, "third").status.unwrap_or_default();
    assert_eq!(third.conditions[0].reason, "SnapshotsNotInstalled");
}

#[tokio::test]
async fn a_hold_that_ended_costs_the_try_its_snapshots_and_the_next_try_succeeds() {
    let world = world().await;
    create(&world, "first", json!({}));
    until(&world, BackupPhase::Cutting).await;
    step(&world).await;
    world.brokers.end_holds("demo-1-0");
    storage_cuts(&world, true);
    until(&world, BackupPhase::Pending).await;
    assert_eq!((snapshots(&world).len(), world.brokers.holds().len()), (0, 0));
    assert!(status(&world).failures[0].contains("HoldEnded"), "{:?}", status(&world).failures);
    until(&world, BackupPhase::Cutting).await;
    step(&world).await;
    storage_cuts(&world, true);
    until(&world, BackupPhase::Completed).await;
    assert_eq!(snapshots(&world), ["first-2-0", "first-2-1"]);
    assert_eq!(world.brokers.holds().len(), 0);
}

#[tokio::test]
async fn a_broker_that_restarts_while_the_storage_cuts_costs_nothing() {
    let world = world().await;
    create(&world, "first", json!({}));
    until(&world, BackupPhase::Cutting).await;
    step(&world).await;
    let health = world.brokers.get("demo-1-0").expect("a broker");
    world.brokers.silence("demo-1-0");
    storage_cuts(&world, true);
    for _ in 0..5 {
        step(&world).await;
    }
    assert_eq!(status(&world).phase, BackupPhase::Cutting, "nobody can say yet whether it held");
    world.brokers.set("demo-1-0", health);
    until(&world, BackupPhase::Completed).await;
    assert_eq!(status(&world).attempt, 1);
}

#[tokio::test]
async fn a_driver_that_hangs_fails_the_backup_at_its_deadline_and_leaves_nothing_held() {
    let world = world().await;
    create(&world, "first", json!({ "deadlineSeconds": 30 }));
    until(&world, BackupPhase::Failed).await;
    let failed = status(&world);
    assert!(failed.failures[0].contains("DeadlineExceeded"), "{:?}", failed.failures);
    assert!(failed.failures[0].contains("first-1-0") && failed.failures[0].contains("csi-snapshotter"));
    assert_eq!((snapshots(&world).len(), world.brokers.holds().len()), (0, 0));
    assert!(failed.conditions.iter().any(|condition| condition.type_ == "Stalled"));
    let writes = world.api.take_writes().len();
    step(&world).await;
    assert_eq!(world.api.take_writes().len(), 0, "it is over ({writes} writes before)");
}

#[tokio::test]
async fn a_line_that_the_brokers_refuse_is_tried_again_as_often_as_asked() {
    let world = world().await;
    let refused = AdminError::Refused {
        member: "demo-0-0".into(),
        status: 503,
        error: "orders in / has no majority".into(),
        hint: "wait, or set allowPartial".into(),
    };
    world.brokers.refuse("draw_barrier", refused);
    create(&world, "first", json!({ "retries": 1 }));
    until(&world, BackupPhase::Failed).await;
    let failed = status(&world);
    assert_eq!((failed.attempt, failed.failures.len()), (2, 2));
    assert!(failed.failures[0].contains("orders in /"), "{:?}", failed.failures);
}

#[tokio::test]
async fn a_pass_that_began_with_an_older_copy_goes_on_from_what_was_written_since() {
    let world = world().await;
    create(&world, "first", json!({}));
    let mut older = backup(&world, "first");
    for pass in 0..8 {
        let before = Arc::new(older);
        older = backup(&world, "first");
        for _ in 0..2 {
            let pass = messagequeuebackup::reconcile(before.clone(), world.ctx.clone());
            tokio::time::timeout(PATIENCE, pass).await.expect("a pass hangs").expect("a pass");
        }
        storage_cuts(&world, pass > 3);
    }
    let done = status(&world);
    assert_eq!((done.phase, done.attempt, done.failures.len()), (BackupPhase::Completed, 1, 0), "{done:#?}");
    let drawn = world.brokers.calls().iter().filter(|call| call.starts_with("draw_barrier")).count();
    assert_eq!(drawn, 1, "{:?}", world.brokers.calls());
}

#[tokio::test]
async fn a_line_that_is_being_drawn_already_is_waited_for() {
    let world = world().await;
    let busy = AdminError::Refused {
        member: "demo-0-0".into(),
        status: 409,
        error: "the barrier 'first' is under way".into(),
        hint: "wait until it is done".into(),
    };
    world.brokers.refuse("draw_barrier", busy);
    create(&world, "first", json!({ "retries": 0 }));
    for _ in 0..6 {
        step(&world).await;
    }
    assert_eq!((status(&world).phase, status(&world).failures.len()), (BackupPhase::Barrier, 0));
    world.brokers.accept();
    until(&world, BackupPhase::Cutting).await;
}

#[tokio::test]
async fn one_backup_of_a_cluster_is_at_work_at_a_time_the_oldest_first() {
    let world = world().await;
    create(&world, "first", json!({}));
    world.seconds.fetch_add(5, Ordering::Relaxed);
    create(&world, "second", json!({}));
    step_of(&world, "second").await;
    let second = || backup(&world, "second").status.unwrap_or_default();
    assert_eq!((second().phase, second().conditions[0].reason.as_str()), (BackupPhase::Pending, "OtherBackup"));
    for _ in 0..12 {
        step(&world).await;
        storage_cuts(&world, true);
    }
    assert_eq!(status(&world).phase, BackupPhase::Completed);
    step_of(&world, "second").await;
    assert_eq!(second().phase, BackupPhase::Barrier);
}

#[tokio::test]
async fn snapshots_belong_to_what_the_backup_says() {
    for (owner, kind) in
        [("Backup", json!("MessageQueueBackup")), ("Cluster", json!("MessageQueueCluster")), ("None", Value::Null)]
    {
        let world = world().await;
        let snapshot = json!({ "owner": owner, "members": "All", "labels": { "team": "orders" }, "className": "fast" });
        create(&world, "first", json!({ "volumeSnapshot": snapshot }));
        until(&world, BackupPhase::Cutting).await;
        step(&world).await;
        assert_eq!(snapshots(&world).len(), 3);
        let one = world.api.get(&format!("{SNAPSHOTS}/first-1-2")).expect("a snapshot");
        assert_eq!(one["metadata"]["ownerReferences"][0]["kind"], kind, "{owner}");
        assert_eq!(one["metadata"]["labels"]["team"], "orders");
        assert_eq!(one["spec"]["volumeSnapshotClassName"], "fast");
        let cluster = one["metadata"]["annotations"]["holdfast.dev/cluster"].as_str().expect("an annotation");
        assert!(cluster.contains(&world.status().cluster_id.expect("founded")), "{cluster}");
    }
}

#[tokio::test]
async fn a_complete_backup_is_proven_in_a_cluster_of_its_own_that_goes_again() {
    const CLUSTERS: &str = "/apis/holdfast.dev/v1alpha1/namespaces/shop/messagequeueclusters/verify-";
    let world = world().await;
    create(&world, "first", json!({ "verification": {} }));
    until(&world, BackupPhase::Cutting).await;
    step(&world).await;
    assert_eq!(world.api.below(CLUSTERS), Vec::<String>::new(), "not before it is complete");
    storage_cuts(&world, true);
    until(&world, BackupPhase::Completed).await;
    step(&world).await;
    assert_eq!(status(&world).verification.map(|v| v.result), Some(VerificationResult::Running));
    step(&world).await;
    let path = world.api.below(CLUSTERS).pop().expect("a cluster");
    let cluster = world.api.get(&path).expect("a cluster");
    assert_eq!(cluster["spec"]["bootstrap"]["recovery"]["backup"]["name"], "first");
    assert_eq!(cluster["spec"]["members"], 1);
    let at = world.now().to_string();
    world.api.change(&path, |cluster| {
        cluster["status"] = json!({
            "restore": { "barrier": "b", "manifestSha256": "5ea1", "completedAt": at },
            "conditions": [{ "type": "Ready", "status": "True", "reason": "AllMembersReady", "message": "", "lastTransitionTime": at }],
        });
    });
    step(&world).await;
    let verification = status(&world).verification.expect("a verification");
    assert_eq!((verification.result, verification.messages), (VerificationResult::Verified, Some(1000)));
    assert!(world.api.get(&path).is_some(), "the result is written down first");
    step(&world).await;
    assert!(world.api.get(&path).is_none());
    assert!(world.api.events().contains(&"Verified".to_owned()));
    let done = status(&world);
    for _ in 0..3 {
        step(&world).await;
    }
    assert_eq!((status(&world), world.api.below(CLUSTERS)), (done, Vec::new()));
}
