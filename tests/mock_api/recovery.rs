//! Forced recovery without a person: when it goes ahead, and all the cases in which it does not.

use holdfast::broker_admin::{
    MemberState, PersonNeeded, PlannedCluster, PlannedGroup, PlannedPosition, PlannedQueue, RecoveryPlan,
};

use super::*;

/// Seconds of a pass, as [`World::pass`] counts them.
const PASS: i64 = 11;

fn plan(person: Option<&str>) -> RecoveryPlan {
    let group = |group, outcome: &str, name: &str| PlannedGroup {
        group,
        outcome: outcome.into(),
        source: 1,
        queues: vec![PlannedQueue { vhost: "/".into(), name: name.into() }],
        position: Some(PlannedPosition { stamped_ms: 1_800_000_000_000 }),
    };
    RecoveryPlan {
        plan_hash: "abc".into(),
        needed: true,
        person_needed: PersonNeeded { on_failure: person.map(str::to_owned), on_shutdown: None },
        plan: PlannedCluster {
            epoch: 1,
            absent: vec!["demo-1-0".into(), "demo-2-0".into()],
            names: (1..=3).map(|id| (id, format!("demo-{}-0", id - 1))).collect(),
            groups: vec![
                PlannedGroup { source: 1, ..PlannedGroup::default() },
                group(1, "unknown", "orders"),
                group(2, "whole", "events"),
            ],
        },
    }
}

/// A cluster of three that has lost two disks: their members run on blank ones.
async fn halved(plan: RecoveryPlan) -> World {
    let world = World::new(json!({ "health": { "recoverAfterSeconds": 120 } }));
    world.settle().await;
    world.brokers.set_recovery_plan(plan);
    for pod in ["demo-1-0", "demo-2-0"] {
        world.new_disk(pod);
    }
    lose_quorum(&world, "demo-0-0");
    world
}

fn lose_quorum(world: &World, member: &str) {
    let health = world.brokers.get(member).expect("a broker");
    world.brokers.set(member, Health { quorum: false, ready: true, metadata_leader: None, ..health });
}

async fn passes(world: &World, seconds: i64) {
    for _ in 0..seconds / PASS {
        world.pass().await.expect("a pass");
    }
}

fn recovery_calls(world: &World) -> Vec<String> {
    let kinds = ["freeze", "survey", "plan", "apply"];
    world.brokers.calls().into_iter().filter(|call| kinds.iter().any(|kind| call.starts_with(kind))).collect()
}

fn applied(world: &World) -> bool {
    recovery_calls(world).iter().any(|call| call.starts_with("apply"))
}

#[tokio::test]
async fn queues_whose_policies_say_always_go_on_from_the_disk_that_is_left_and_what_was_lost_is_told() {
    let world = halved(plan(None)).await;
    passes(&world, 110).await;
    assert_eq!(recovery_calls(&world), Vec::<String>::new(), "not before the stated time");
    assert_eq!(world.condition(ConditionType::Stalled), ("True".into(), "DataLost".into()));
    passes(&world, 40).await;
    let of = |call: &str| format!("{call} demo-0-0");
    assert_eq!(recovery_calls(&world), ["freeze 300", "survey", "plan of 1", "apply abc of 1"].map(of));
    let status = world.status();
    let told = status.decisions.iter().find(|d| d.reason == "RecoveredByPolicy").expect("a decision");
    for part in ["demo-1-0, demo-2-0 are blank", "epoch 2", "orders in / (after 2027-", "1 queues", "without a person"]
    {
        assert!(told.message.contains(part), "{part}: {}", told.message);
    }
    assert!(!told.message.contains("events"), "nothing of it is lost");
    assert!(world.api.events().contains(&"RecoveredByPolicy".to_owned()));
    passes(&world, 300).await;
    assert_eq!(recovery_calls(&world).len(), 4, "once");
}

#[tokio::test]
async fn a_queue_without_such_a_policy_waits_for_a_person_who_is_told_which_and_nothing_stays_frozen() {
    let world = halved(plan(Some("queue 'orders' in vhost '/' has no policy that says so"))).await;
    passes(&world, 200).await;
    assert!(!applied(&world));
    assert_eq!(recovery_calls(&world).last().map(String::as_str), Some("freeze 0 demo-0-0"));
    let status = world.status();
    assert!(status.decisions.iter().any(|d| d.reason == "RecoveryHeld" && d.message.contains("'orders'")));
    assert_eq!(world.api.events().iter().filter(|event| *event == "RecoveryHeld").count(), 1, "once, not at each pass");
}

#[tokio::test]
async fn nothing_is_recovered_while_a_member_that_is_missing_may_still_have_its_disk() {
    // It is silent.
    let world = halved(plan(None)).await;
    world.brokers.silence("demo-2-0");
    passes(&world, 300).await;
    assert_eq!(recovery_calls(&world), Vec::<String>::new());
    // All run on their disks, and cannot reach each other.
    let world = World::new(json!({ "health": { "recoverAfterSeconds": 120 } }));
    world.settle().await;
    world.brokers.set_recovery_plan(plan(None));
    (0..3).for_each(|n| lose_quorum(&world, &format!("demo-{n}-0")));
    passes(&world, 300).await;
    assert_eq!(recovery_calls(&world), Vec::<String>::new());
    // The plan misses a disk of a member that nobody knows of.
    let mut other = plan(None);
    other.plan.absent.push("demo-7-0".into());
    let world = halved(other).await;
    passes(&world, 200).await;
    assert!(!applied(&world));
    assert!(world.status().decisions.iter().any(|d| d.reason == "RecoveryHeld" && d.message.contains("demo-7-0")));
}

#[tokio::test]
async fn a_majority_that_comes_back_in_time_or_a_cluster_that_is_paused_is_left_alone() {
    let world = halved(plan(None)).await;
    passes(&world, 110).await;
    let health = world.brokers.get("demo-0-0").expect("a broker");
    world.brokers.set("demo-0-0", Health { quorum: true, ..health });
    passes(&world, 22).await;
    lose_quorum(&world, "demo-0-0");
    passes(&world, 110).await;
    assert_eq!(recovery_calls(&world), Vec::<String>::new(), "the time begins anew");
    world.set_spec("paused", json!(true));
    passes(&world, 300).await;
    assert_eq!(recovery_calls(&world), Vec::<String>::new());
    // A broker of before these policies says nothing of them: a person decides.
    let old: RecoveryPlan = serde_json::from_value(json!({ "planHash": "abc", "needed": true })).expect("a plan");
    let world = halved(old).await;
    passes(&world, 200).await;
    assert!(!applied(&world));
    assert_eq!(world.brokers.get("demo-1-0").map(|health| health.state), Some(MemberState::Blank));
}

#[tokio::test]
async fn a_recovery_that_was_cut_off_is_told_as_not_finished_and_tried_again() {
    let world = halved(plan(None)).await;
    let error = holdfast::broker_admin::AdminError::NoAnswer { member: "demo-0-0".into(), why: "reset".into() };
    world.brokers.refuse("apply abc of 1", error);
    passes(&world, 260).await;
    let tries = recovery_calls(&world).iter().filter(|call| call.starts_with("apply")).count();
    assert!((2..4).contains(&tries), "{tries} in two minutes: each reads all that the disk holds");
    let status = world.status();
    assert!(status.decisions.iter().any(|d| d.reason == "RecoveryHeld" && d.message.contains("not finished")));
    assert!(status.decisions.iter().all(|d| d.reason != "RecoveredByPolicy"));
}
