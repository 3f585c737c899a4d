//! A new cluster that begins with a backup: what is asked of storage and founder, and that it never begins with nothing.

use holdfast::broker_admin::{RestoreProgress, RestoreState};

use super::*;

const BACKUP: &str = "/apis/holdfast.dev/v1alpha1/namespaces/shop/messagequeuebackups/nightly";
const SNAPSHOTS: &str = "/apis/snapshot.storage.k8s.io/v1/namespaces/shop/volumesnapshots";
const JOBS: &str = "/apis/batch/v1/namespaces/shop/jobs/";

fn snapshot(world: &World, name: &str, barrier: &str, ready: bool) {
    world.api.put(
        &format!("{SNAPSHOTS}/{name}"),
        json!({
            "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot",
            "metadata": { "name": name, "namespace": "shop", "annotations": {
                "holdfast.dev/barrier": barrier, "holdfast.dev/manifest-sha256": "5ea1",
            }},
            "status": { "readyToUse": ready, "restoreSize": "7Gi" },
        }),
    );
}

fn backup(world: &World, phase: &str) {
    world.api.put(BACKUP, json!({
        "apiVersion": "holdfast.dev/v1alpha1", "kind": "MessageQueueBackup",
        "metadata": { "name": "nightly", "namespace": "shop" },
        "spec": { "cluster": { "name": "gone" } },
        "status": {
            "phase": phase, "barrier": { "id": "b-1", "manifestSha256": "5ea1" },
            "snapshots": [{ "name": "nightly-1-0", "member": "gone-0-0" }, { "name": "nightly-1-2", "member": "gone-2-0" }],
        },
    }));
}

/// Passes until the founder is known and asked nothing yet.
async fn begun(recovery: Value) -> World {
    let world = World::new(json!({ "bootstrap": { "recovery": recovery } }));
    for _ in 0..5 {
        world.pass().await.expect("a pass");
        world.start_pods();
    }
    assert!(world.status().founder.is_some());
    world
}

fn from_backup() -> Value {
    json!({ "backup": { "name": "nightly" } })
}

fn progress(state: RestoreState, present: u64) -> RestoreProgress {
    RestoreProgress {
        backup: Some("b-1".into()),
        manifest_sha256: Some("5ea1".into()),
        state,
        bytes_present: present << 20,
        bytes_needed: 90 << 20,
        error: None,
    }
}

async fn pass(world: &World) {
    world.pass().await.expect("a pass");
}

#[tokio::test]
async fn a_new_cluster_begins_with_the_backup_and_its_spec_may_keep_saying_so() {
    let world = begun(from_backup()).await;
    backup(&world, "Completed");
    snapshot(&world, "nightly-1-0", "b-1", true);
    snapshot(&world, "nightly-1-2", "b-1", true);
    pass(&world).await;
    let jobs = world.api.below(JOBS);
    assert_eq!(jobs.len(), 2, "{jobs:?}");
    let job = world.api.get(&jobs[0]).expect("a job");
    assert_eq!(job["metadata"]["ownerReferences"][0]["kind"], "MessageQueueCluster");
    let pod = &job["spec"]["template"]["spec"];
    let claim = &pod["volumes"][0]["ephemeral"]["volumeClaimTemplate"]["spec"];
    assert_eq!(claim["resources"]["requests"]["storage"], "7Gi");
    assert!(claim["dataSource"]["name"].as_str().is_some_and(|name| name.starts_with("nightly-1-")), "{claim}");
    let args = pod["containers"][0]["args"].to_string();
    for part in ["journal/holds/b-1/manifest.json", "5ea1", "https://demo-0-0.demo-nodes.shop.svc:5690"] {
        assert!(args.contains(part), "{part} in {args}");
    }

    world.brokers.set_restore(progress(RestoreState::Receiving, 30));
    // Made anew if it is gone before all has arrived.
    world.api.remove(&jobs[0]);
    pass(&world).await;
    pass(&world).await;
    assert_eq!(world.api.below(JOBS), jobs);
    assert_eq!(world.condition(ConditionType::Ready), ("False".into(), "Restoring".into()));
    let ready = world.status().condition(ConditionType::Ready).expect("a condition").message.clone();
    assert!(ready.contains("30 of 90 MiB"), "{ready}");

    world.brokers.set_restore(progress(RestoreState::Complete, 90));
    jobs.iter().for_each(|job| world.api.remove(job));
    world.settle().await;
    assert_eq!(world.bootstraps(), 0, "it begins with the backup, not with nothing");
    assert!(world.brokers.calls().contains(&"restore b-1 demo-0-0".to_owned()), "{:?}", world.brokers.calls());
    assert_eq!(world.api.below(JOBS), Vec::<String>::new(), "nothing is sent twice");
    let restore = world.status().restore.expect("a restore");
    assert_eq!((restore.barrier.as_str(), restore.completed_at.is_some()), ("b-1", true));

    world.api.remove(BACKUP);
    let calls = world.brokers.calls().len();
    for _ in 0..3 {
        pass(&world).await;
    }
    assert_eq!(world.brokers.calls().len(), calls, "it ran once: {:?}", world.brokers.calls());
    assert_eq!(world.condition(ConditionType::Ready).0, "True");
}

#[tokio::test]
async fn without_its_backup_a_new_cluster_waits_and_says_for_what() {
    type Change = fn(&World);
    let table: [(&str, Change); 6] = [
        ("there is no MessageQueueBackup nightly", |_| ()),
        ("failed", |world| backup(world, "Failed")),
        ("waiting for backup nightly", |world| backup(world, "Cutting")),
        ("there is no VolumeSnapshot nightly-1-0", |world| backup(world, "Completed")),
        ("nightly-1-2 is not ready to use", |world| {
            snapshot(world, "nightly-1-0", "b-1", true);
            snapshot(world, "nightly-1-2", "b-1", false);
        }),
        ("nightly-1-2 is of another backup", |world| snapshot(world, "nightly-1-2", "b-2", true)),
    ];
    let world = begun(from_backup()).await;
    for (words, change) in table {
        change(&world);
        pass(&world).await;
        assert_eq!(world.condition(ConditionType::Ready), ("False".into(), "RestoreBlocked".into()), "{words}");
        let message = world.status().condition(ConditionType::Degraded).expect("a condition").message.clone();
        assert!(message.contains(words), "{words} in: {message}");
    }
    assert_eq!((world.bootstraps(), world.api.below(JOBS).len()), (0, 0));
    snapshot(&world, "nightly-1-2", "b-1", true);
    world.brokers.set_restore(progress(RestoreState::Complete, 90));
    world.settle().await;
    assert_eq!(world.bootstraps(), 0);
}

#[tokio::test]
async fn snapshots_alone_are_enough_and_what_a_loader_fails_with_is_told() {
    let world = begun(json!({ "volumeSnapshots": ["a", "b"] })).await;
    snapshot(&world, "a", "b-1", true);
    snapshot(&world, "b", "b-1", true);
    pass(&world).await;
    let jobs = world.api.below(JOBS);
    assert_eq!(jobs.len(), 2);
    let job = world.api.get(&jobs[0]).expect("a job");
    let name = job["metadata"]["name"].as_str().expect("a name");
    world.api.put(&format!("{PODS}{name}-x"), json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": format!("{name}-x"), "namespace": "shop", "labels": job["metadata"]["labels"],
            "ownerReferences": [{ "apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": "u" }],
        },
        "spec": { "containers": [] },
        "status": { "containerStatuses": [{
            "name": "loader", "image": "x", "imageID": "", "ready": false, "restartCount": 1, "state": {},
            "lastState": { "terminated": {
                "exitCode": 65, "message": "some log\nsegment-0000000001.log is changed\n  what to do: push another copy\n",
            } },
        }]},
    }));
    pass(&world).await;
    assert_eq!(world.condition(ConditionType::Ready), ("False".into(), "RestoreBlocked".into()));
    let message = world.status().condition(ConditionType::Ready).expect("a condition").message.clone();
    assert!(message.contains("segment-0000000001.log is changed") && !message.contains("some log"), "{message}");
    assert_eq!(world.bootstraps(), 0);
}

#[tokio::test]
async fn a_founder_that_has_received_another_backup_forgets_it() {
    let world = begun(json!({ "volumeSnapshots": ["a"] })).await;
    snapshot(&world, "a", "b-2", true);
    world.brokers.set_restore(progress(RestoreState::Complete, 90));
    pass(&world).await;
    assert!(world.brokers.calls().contains(&"discard b-1 demo-0-0".to_owned()), "{:?}", world.brokers.calls());
    assert_eq!(world.api.below(JOBS).len(), 0, "not before it has");
    pass(&world).await;
    assert_eq!(world.api.below(JOBS).len(), 1);
    assert_eq!(world.bootstraps(), 0);
}

#[tokio::test]
async fn a_cluster_that_proves_a_backup_has_each_snapshot_read_whole_before_anything_is_sent() {
    let world = begun(json!({ "volumeSnapshots": ["a"] })).await;
    snapshot(&world, "a", "b-1", true);
    world.api.change(CLUSTER, |cluster| {
        cluster["metadata"]["labels"] = json!({ "holdfast.dev/verification-of": "nightly" });
    });
    pass(&world).await;
    let job = world.api.get(&world.api.below(JOBS)[0]).expect("a job");
    let verifier = &job["spec"]["template"]["spec"]["initContainers"][0];
    let args = verifier["args"].to_string();
    assert!(args.starts_with(r#"["journal","verify","--manifest""#), "{args}");
}
