//! Schedules against the API server in memory: what is made, what is kept, and what an absence costs.

use holdfast::{
    api::v1alpha1::{MessageQueueBackupSchedule, MessageQueueBackupScheduleStatus},
    controllers::messagequeuebackupschedule,
};

use super::*;

const SCHEDULE: &str = "/apis/holdfast.dev/v1alpha1/namespaces/shop/messagequeuebackupschedules/nightly";
const BACKUPS: &str = "/apis/holdfast.dev/v1alpha1/namespaces/shop/messagequeuebackups/";
const DAY: i64 = 86_400;

async fn world(change: Value) -> World {
    let world = World::new(json!({}));
    let mut spec = json!({ "cluster": { "name": "demo" }, "schedule": "0 3 * * *" });
    spec.as_object_mut().expect("an object").extend(change.as_object().cloned().unwrap_or_default());
    world.api.put(SCHEDULE, json!({
        "apiVersion": "holdfast.dev/v1alpha1", "kind": "MessageQueueBackupSchedule", "spec": spec,
        "metadata": { "name": "nightly", "namespace": "shop", "generation": 1, "creationTimestamp": world.now().to_string() },
    }));
    world
}

fn schedule(world: &World) -> MessageQueueBackupSchedule {
    serde_json::from_value(world.api.get(SCHEDULE).expect("the schedule")).expect("a schedule")
}

fn status(world: &World) -> MessageQueueBackupScheduleStatus {
    schedule(world).status.unwrap_or_default()
}

async fn pass(world: &World) {
    let pass = messagequeuebackupschedule::reconcile(Arc::new(schedule(world)), world.ctx.clone());
    tokio::time::timeout(PATIENCE, pass).await.expect("a pass hangs").expect("a pass");
}

fn names(world: &World) -> Vec<String> {
    world.api.below(BACKUPS).iter().filter_map(|path| path.rsplit('/').next()).map(str::to_owned).collect()
}

/// What the backups' own controller does.
fn end_backups(world: &World, phase: &str) {
    for path in world.api.below(BACKUPS) {
        let at = world.now().to_string();
        world.api.change(&path, |backup| {
            if backup["status"].is_null() {
                let completed = if phase == "Completed" { json!(at) } else { Value::Null };
                backup["metadata"]["creationTimestamp"] = json!(at);
                backup["status"] = json!({ "phase": phase, "completedAt": completed, "conditions": [{
                    "type": "Ready", "status": "False", "reason": "x", "message": "the disk is on fire", "lastTransitionTime": at,
                }]});
            }
        });
    }
}

async fn days(world: &World, days: i64, phase: &str) {
    for _ in 0..days {
        world.seconds.fetch_add(DAY, Ordering::Relaxed);
        pass(world).await;
        end_backups(world, phase);
        pass(world).await;
    }
}

#[tokio::test]
async fn six_days_with_three_kept_leave_exactly_three() {
    let world = world(json!({ "retention": { "count": 3 } })).await;
    days(&world, 6, "Completed").await;
    let names = names(&world);
    assert_eq!(names.len(), 3, "{names:?}");
    // The removal starts another pass.
    pass(&world).await;
    let status = status(&world);
    assert_eq!((status.kept, status.last_completed.map(|last| last.name)), (3, names.last().cloned()));
    let first = world.api.get(&format!("{BACKUPS}{}", names[0])).expect("a backup");
    assert_eq!(first["metadata"]["labels"]["holdfast.dev/backup-schedule"], "nightly");
    assert!(first["metadata"]["ownerReferences"].is_null(), "backups outlive their schedule");
}

#[tokio::test]
async fn an_operator_that_was_away_for_days_makes_one_backup() {
    let world = world(json!({})).await;
    pass(&world).await;
    world.seconds.fetch_add(5 * DAY, Ordering::Relaxed);
    for _ in 0..3 {
        pass(&world).await;
    }
    assert_eq!(names(&world).len(), 1);
}

#[tokio::test]
async fn a_pass_that_is_repeated_because_its_status_was_not_written_makes_no_second_backup() {
    let world = world(json!({ "immediate": true })).await;
    world.api.refuse(http::Method::PATCH, "messagequeuebackupschedules/nightly/status", 500, "try again", 1);
    let failed = messagequeuebackupschedule::reconcile(Arc::new(schedule(&world)), world.ctx.clone()).await;
    assert!(failed.is_err());
    pass(&world).await;
    assert_eq!(names(&world).len(), 1);
    assert!(world.api.events().contains(&"BackupBegun".to_owned()));
}

#[tokio::test]
async fn failures_are_told_and_the_newest_are_kept_for_a_look_at_them() {
    let world = world(json!({ "retention": { "count": 2 }, "failedHistoryLimit": 2 })).await;
    days(&world, 2, "Completed").await;
    days(&world, 4, "Failed").await;
    assert_eq!(names(&world).len(), 4, "{:?}", names(&world));
    let health = |world: &World| {
        let conditions = status(world).conditions;
        conditions.into_iter().find(|c| c.type_ == "BackupHealthy").expect("a condition")
    };
    assert_eq!(health(&world).status, "False");
    assert!(health(&world).message.contains("the disk is on fire"), "{}", health(&world).message);
    days(&world, 1, "Completed").await;
    assert_eq!(health(&world).status, "True");
}

#[tokio::test]
async fn a_schedule_that_makes_no_sense_says_so_and_makes_nothing() {
    let world = world(json!({ "timeZone": "Mars/Olympus" })).await;
    days(&world, 2, "Completed").await;
    let status = status(&world);
    assert!(status.conditions.iter().any(|c| c.type_ == "Stalled" && c.message.contains("IANA")), "{status:#?}");
    assert_eq!(names(&world), Vec::<String>::new());
}

#[tokio::test]
async fn the_cluster_says_whether_its_schedules_bring_good_backups_in_time() {
    let world = world(json!({ "backup": { "deadlineSeconds": 600 } })).await;
    let conditions = |world: &World| {
        let status = world.status();
        let found = |type_| status.condition(type_).map(|c| (c.status.clone(), c.reason.clone(), c.message.clone()));
        (found(ConditionType::BackupHealthy), found(ConditionType::BackupVerified))
    };
    let told = |world: &World| conditions(world).0.map(|(status, reason, _)| (status, reason));
    let is = |status: &str, reason: &str| Some((status.to_owned(), reason.to_owned()));
    world.settle().await;
    assert_eq!((told(&world), conditions(&world).1), (is("Unknown", "Pending"), None));
    days(&world, 1, "Completed").await;
    world.pass().await.expect("a pass");
    assert_eq!(told(&world), is("True", "BackupCompleted"));

    // The schedule's own controller may be what does not work.
    world.seconds.fetch_add(2 * DAY, Ordering::Relaxed);
    world.pass().await.expect("a pass");
    assert_eq!(told(&world), is("False", "BackupOverdue"));
    let message = conditions(&world).0.expect("a condition").2;
    assert!(message.contains("nightly") && message.contains("the last good backup is nightly-"), "{message}");
    days(&world, 1, "Failed").await;
    world.pass().await.expect("a pass");
    assert_eq!(told(&world), is("False", "BackupFailed"));
    days(&world, 1, "Completed").await;
    let at = world.now().to_string();
    let newest = names(&world).pop().expect("a backup");
    world.api.change(&format!("{BACKUPS}{newest}"), |backup| {
        backup["status"]["verification"] = json!({
            "result": "Damaged", "cluster": "v", "startedAt": at, "endedAt": at, "message": "segment 7 is changed",
        });
    });
    pass(&world).await;
    world.pass().await.expect("a pass");
    let (healthy, verified) = conditions(&world);
    assert_eq!(healthy.map(|(status, ..)| status), Some("True".into()));
    let (status, reason, message) = verified.expect("a condition");
    assert_eq!((status.as_str(), reason.as_str()), ("False", "BackupDamaged"));
    assert!(message.contains("segment 7"), "{message}");

    world.api.remove(SCHEDULE);
    world.pass().await.expect("a pass");
    assert_eq!(conditions(&world), (None, None), "nothing is said without a schedule");
}
