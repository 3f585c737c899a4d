//! Brokers that do not answer, nodes that go, members that come.

use holdfast::broker_admin::MemberState;

use super::*;

#[tokio::test]
async fn a_silent_broker_leaves_the_client_service_and_comes_back() {
    let world = World::new(json!({ "health": { "intervalSeconds": 5, "failureThreshold": 3 } }));
    world.settle().await;
    let label = |member: u32| {
        world.api.get(&format!("{PODS}demo-{member}-0")).expect("a pod")["metadata"]["labels"]["holdfast.dev/serving"]
            .clone()
    };
    let health = world.brokers.get("demo-1-0").expect("a broker");
    world.brokers.silence("demo-1-0");
    world.pass().await.expect("a pass");
    assert_eq!(label(1), json!("true"), "not at the first sign");
    world.pass().await.expect("a pass");
    world.pass().await.expect("a pass");
    assert_eq!((label(1), label(0)), (json!("false"), json!("true")));
    world.brokers.set("demo-1-0", health);
    world.pass().await.expect("a pass");
    assert_eq!(label(1), json!("true"));
}

#[tokio::test]
async fn one_missed_answer_changes_no_condition_and_is_written_nowhere() {
    let world = World::new(json!({ "health": { "failureThreshold": 5 } }));
    world.settle().await;
    world.pass().await.expect("a pass");
    world.api.take_writes();
    let health = world.brokers.get("demo-1-0").expect("a broker");
    world.brokers.silence("demo-1-0");
    world.pass().await.expect("a pass");
    world.brokers.set("demo-1-0", health);
    world.pass().await.expect("a pass");
    assert_eq!(world.api.take_writes(), Vec::<String>::new());
    // A silence that lasts is told.
    world.brokers.silence("demo-1-0");
    for _ in 0..4 {
        world.pass().await.expect("a pass");
    }
    assert_eq!(world.condition(ConditionType::Ready), ("False".into(), "MembersNotReady".into()));
}

#[tokio::test]
async fn a_new_pod_is_not_blamed_for_the_silence_of_the_former() {
    let world = World::new(json!({}));
    world.settle().await;
    world.brokers.silence("demo-1-0");
    world.pass().await.expect("a pass");
    let pod = format!("{PODS}demo-1-0");
    world.api.remove(&pod);
    world.pass().await.expect("a pass");
    world.api.run_pods();
    world.pass().await.expect("a pass");
    let serving = world.api.get(&pod).expect("a pod")["metadata"]["labels"]["holdfast.dev/serving"].clone();
    assert_eq!(serving, json!("true"), "it has been silent since this pass only");
}

#[tokio::test]
async fn a_cluster_founded_small_keeps_its_factor_and_says_so() {
    let world = World::new(json!({ "members": 1 }));
    world.settle().await;
    assert_eq!(world.status().replication.and_then(|r| r.factor), Some(1));
    world.set_spec("members", json!(3));
    for _ in 0..3 {
        world.pass().await.expect("a pass");
        world.start_pods();
    }
    assert_eq!(world.condition(ConditionType::ZoneFaultTolerant), ("False".into(), "FactorFixedAtFounding".into()));
    assert_eq!(world.status().replication.and_then(|r| r.factor), Some(1));
    assert!(world.api.events().contains(&"FactorFixedAtFounding".to_owned()));
}

#[tokio::test]
async fn a_node_that_is_gone_for_long_is_told_once_and_nothing_is_deleted() {
    let world = World::new(json!({ "health": { "replaceAfterSeconds": 60 } }));
    world.settle().await;
    let at = world.now().to_string();
    world.api.change("/api/v1/nodes/n2", |node| {
        let ready = json!({ "type": "Ready", "status": "Unknown", "lastTransitionTime": at });
        node["status"] = json!({ "conditions": [ready] });
    });
    world.brokers.silence("demo-1-0");
    world.api.take_writes();
    for _ in 0..9 {
        world.pass().await.expect("a pass");
    }
    assert_eq!(world.condition(ConditionType::Degraded), ("True".into(), "MemberLost".into()));
    assert!(world.status().decisions.iter().any(|d| d.reason == "MemberLost" && d.message.contains("n2")));
    assert_eq!(world.api.events().iter().filter(|e| *e == "MemberLost").count(), 1);
    assert!(world.api.take_writes().iter().all(|w| !w.ends_with("/eviction") && !w.starts_with("DELETE")));
}

#[tokio::test]
async fn leaders_leave_a_cordoned_node() {
    let world = World::new(json!({}));
    world.settle().await;
    world.api.change("/api/v1/nodes/n1", |node| node["spec"]["unschedulable"] = json!(true));
    world.pass().await.expect("a pass");
    assert!(world.brokers.calls().contains(&"drain_leaders demo-0-0".to_owned()));
    assert_eq!(world.brokers.get("demo-0-0").expect("a broker").groups.leading, 0);
}

#[tokio::test]
async fn a_node_that_is_kept_for_brokers_by_a_taint_is_not_going_away() {
    let toleration = json!({ "key": "dedicated", "operator": "Equal", "value": "mq", "effect": "NoExecute" });
    let world = World::new(json!({ "pod": { "spec": { "tolerations": [toleration] } } }));
    world.settle().await;
    let taint = |value: &str| json!([{ "key": "dedicated", "value": value, "effect": "NoExecute" }]);
    let drained = || world.brokers.calls().iter().filter(|call| call.starts_with("drain_leaders")).count();
    world.api.change("/api/v1/nodes/n1", |node| node["spec"]["taints"] = taint("mq"));
    world.pass().await.expect("a pass");
    assert_eq!(drained(), 0);
    world.api.change("/api/v1/nodes/n1", |node| node["spec"]["taints"] = taint("another"));
    world.pass().await.expect("a pass");
    assert_eq!(drained(), 1);
}

#[tokio::test]
async fn nodes_that_get_their_zone_labels_late_are_told_to_the_brokers_once() {
    let world = World::new(json!({}));
    let label = |zone: Value| {
        for (n, node) in ["n1", "n2", "n3"].into_iter().enumerate() {
            let zone = if zone.is_null() { Value::Null } else { json!(format!("zone-{n}")) };
            world.api.change(&format!("/api/v1/nodes/{node}"), |node| {
                node["metadata"]["labels"] = json!({ "topology.kubernetes.io/zone": zone });
                if zone.is_null() {
                    node["metadata"]["labels"] = json!({});
                }
            });
        }
    };
    label(Value::Null);
    world.settle().await;
    assert_eq!(world.condition(ConditionType::ZoneFaultTolerant), ("False".into(), "UnknownZones".into()));
    label(json!("given"));
    for _ in 0..3 {
        world.pass().await.expect("a pass");
    }
    assert_eq!(world.condition(ConditionType::ZoneFaultTolerant).0, "True");
    let told = world.brokers.calls().iter().filter(|call| call.starts_with("put_members")).count();
    assert_eq!(told, 1, "each time is a commit in the brokers' metadata");
}

#[tokio::test]
async fn a_scaled_up_cluster_tells_the_brokers_of_the_new_members() {
    let world = World::new(json!({}));
    world.settle().await;
    world.set_spec("members", json!(5));
    for _ in 0..3 {
        world.pass().await.expect("a pass");
        world.start_pods();
    }
    assert!(world.brokers.calls().contains(&"put_members demo-0-0".to_owned()));
    let known: Vec<String> =
        world.brokers.get("demo-0-0").expect("a broker").members.into_iter().map(|m| m.name).collect();
    assert_eq!(known, ["demo-0-0", "demo-1-0", "demo-2-0", "demo-3-0", "demo-4-0"]);
    assert_eq!(
        world.brokers.get("demo-3-0").map(|h| h.state),
        Some(MemberState::Blank),
        "joining is the brokers' affair"
    );
    assert_eq!(world.bootstraps(), 1);
}
