//! What is changed on a cluster that runs: templates, pods, Secrets, and what others changed on its objects.

use holdfast::broker_admin::{Group, Replica};
use http::Method;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::core::PartialObjectMeta;

use super::*;

#[tokio::test]
async fn a_new_image_rolls_one_member_at_a_time_and_drains_each_first() {
    let world = World::new(json!({}));
    world.settle().await;
    world.set_spec("image", json!("broker:2"));
    let mut order = Vec::new();
    for _ in 0..12 {
        world.api.take_writes();
        world.pass().await.expect("a pass");
        let evicted: Vec<String> = world.api.take_writes().into_iter().filter(|w| w.ends_with("/eviction")).collect();
        assert!(evicted.len() <= 1, "one at a time");
        for write in evicted {
            let pod =
                write.trim_start_matches("POST ").trim_start_matches(PODS).trim_end_matches("/eviction").to_owned();
            assert!(world.brokers.calls().contains(&format!("drain_leaders {pod}")), "{pod} was drained first");
            let updated = (0..3).filter(|n| world.image_of(*n) == json!("broker:2")).count();
            order.push(pod);
            assert_eq!(updated, order.len(), "a template is written when its member's turn comes");
        }
        world.start_pods();
    }
    assert_eq!(order, ["demo-1-0", "demo-2-0", "demo-0-0"], "the metadata's leader last");
    assert_eq!(world.condition(ConditionType::Ready).0, "True");
}

#[tokio::test]
async fn a_roll_stops_while_a_broker_cannot_be_asked() {
    let world = World::new(json!({}));
    world.settle().await;
    world.brokers.silence("demo-2-0");
    world.set_spec("image", json!("broker:2"));
    for _ in 0..3 {
        world.pass().await.expect("a pass");
    }
    assert!(world.api.take_writes().iter().all(|w| !w.ends_with("/eviction")));
    let held = world.status().decisions;
    assert!(held.iter().any(|d| d.reason == "RemovalHeld" && d.message.contains("demo-2-0")), "{held:?}");
    assert_eq!((0..2).filter(|n| world.image_of(*n) == json!("broker:2")).count(), 0);
}

#[tokio::test]
async fn a_pod_is_kept_while_a_queue_lacks_caught_up_voters_and_for_a_while_where_it_has_too_few() {
    let voters = |names: &[&str]| names.iter().map(|n| Replica { name: (*n).into(), voter: true }).collect::<Vec<_>>();
    let group = |names: &[&str], in_sync| Group {
        id: 7,
        leading: true,
        in_sync_replicas: Some(in_sync),
        replicas: voters(names),
        ..Group::default()
    };
    let world = World::new(json!({ "rollout": { "smallQueueWaitSeconds": 40, "drainSeconds": 2 } }));
    world.settle().await;
    world.brokers.set_groups("demo-2-0", vec![group(&["demo-0-0", "demo-1-0", "demo-2-0"], 2)]);
    world.set_spec("image", json!("broker:2"));
    let evicted = || world.api.take_writes().iter().any(|w| w.ends_with("/eviction"));
    for _ in 0..8 {
        world.pass().await.expect("a pass");
        assert!(!evicted(), "demo-1-0 is the second of two that are caught up");
    }
    let held = world.status().decisions;
    assert!(held.iter().any(|d| d.message.contains("group 7 would have 1 of the 2")), "{held:?}");
    // Two voters never have a majority without one of them: 40 s are waited, and an Event says so.
    world.brokers.set_groups("demo-2-0", vec![group(&["demo-1-0", "demo-2-0"], 2)]);
    for _ in 0..4 {
        world.pass().await.expect("a pass");
        assert!(!evicted());
    }
    assert!(world.api.events().contains(&"SmallQueueWait".to_owned()), "{:?}", world.api.events());
    world.pass().await.expect("a pass");
    assert!(evicted());
}

#[tokio::test]
async fn a_broker_that_cannot_be_asked_to_hand_its_leaders_over_keeps_its_pod() {
    let world = World::new(json!({}));
    world.settle().await;
    world.api.change(&format!("{PODS}demo-1-0"), |pod| pod["status"]["podIP"] = Value::Null);
    world.set_spec("image", json!("broker:2"));
    world.pass().await.expect("a pass");
    assert!(world.api.below(PODS).contains(&format!("{PODS}demo-1-0")));
    let held = world.status().decisions;
    assert!(held.iter().any(|d| d.message.contains("demo-1-0 stays for now: its broker cannot be asked")), "{held:?}");
}

#[tokio::test]
async fn a_pod_stays_when_another_fails_between_the_plan_and_the_eviction() {
    let world = World::new(json!({}));
    world.settle().await;
    world.set_spec("image", json!("broker:2"));
    world.api.meanwhile(Method::GET, "pods/demo-1-0", &format!("{PODS}demo-2-0"), |pod| {
        pod["status"]["conditions"][0]["status"] = json!("False");
    });
    world.pass().await.expect("a pass");
    assert!(world.api.take_writes().iter().all(|w| !w.ends_with("/eviction")));
    let held = world.status().decisions;
    assert!(held.iter().any(|d| d.message == "demo-1-0 stays for now: demo-2-0 is not ready"), "{held:?}");
}

#[tokio::test]
async fn an_eviction_that_the_budget_refuses_is_held_and_tried_again() {
    let world = World::new(json!({}));
    world.settle().await;
    world.set_spec("image", json!("broker:2"));
    world.api.refuse(Method::POST, "/eviction", 429, "it would violate the disruption budget", 1);
    world.pass().await.expect("a refusal is no failure");
    assert!(world.status().decisions.iter().any(|d| d.message.contains("disruption budget")));
    world.settle().await;
}

#[tokio::test]
async fn a_cluster_born_with_a_bad_image_heals_when_the_image_is_corrected() {
    let world = World::new(json!({ "image": "no-such:1" }));
    world.pass().await.expect("a pass");
    world.api.run_pods();
    for member in 0..3 {
        world.api.change(&format!("{PODS}demo-{member}-0"), |pod| {
            pod["status"]["conditions"][0]["status"] = json!("False");
            pod["status"]["containerStatuses"][0]["state"] =
                json!({ "waiting": { "reason": "ImagePullBackOff", "message": "not found" } });
        });
    }
    world.pass().await.expect("a pass");
    assert_eq!(world.condition(ConditionType::Degraded), ("True".into(), "ImagePullFailed".into()));
    world.set_spec("image", json!("broker:2"));
    world.settle().await;
}

#[tokio::test]
async fn a_lost_authority_is_told_and_made_anew_only_after_every_broker_has_stopped() {
    let world = World::new(json!({}));
    world.settle().await;
    let tls = || world.api.get(&format!("{SECRETS}demo-tls")).expect("a Secret")["data"].clone();
    let before = tls();
    world.api.remove(&format!("{SECRETS}demo-ca"));
    world.api.take_writes();
    for _ in 0..3 {
        world.pass().await.expect("a pass");
    }
    let writes = world.api.take_writes();
    assert!(writes.iter().all(|w| !w.contains("secrets/")), "{writes:?}");
    let degraded = world.status().condition(ConditionType::Degraded).expect("Degraded").clone();
    assert_eq!(degraded.reason, "CertificatesInvalid");
    assert!(degraded.message.contains("hibernate: true"), "{}", degraded.message);
    assert_eq!(world.condition(ConditionType::Ready).0, "True", "brokers serve, and can still be asked");
    world.set_spec("hibernate", json!(true));
    world.settle().await;
    world.pass().await.expect("a pass");
    world.set_spec("hibernate", json!(false));
    world.settle().await;
    assert_ne!(tls()["ca.crt"], before["ca.crt"]);
    assert_eq!(world.condition(ConditionType::Degraded).0, "False");
}

#[tokio::test]
async fn a_lost_note_on_a_set_is_written_again_and_restarts_nobody() {
    let world = World::new(json!({}));
    world.settle().await;
    let set = format!("{SETS}demo-1");
    let noted = || world.api.get(&set).expect("a set")["metadata"]["annotations"]["holdfast.dev/inputs"].clone();
    let before = noted();
    world.api.change(&set, |set| set["metadata"]["annotations"] = json!({}));
    world.api.take_writes();
    for _ in 0..5 {
        world.pass().await.expect("a pass");
        world.start_pods();
    }
    assert!(world.api.take_writes().iter().all(|w| !w.ends_with("/eviction")));
    assert_eq!(noted(), before);
}

#[tokio::test]
async fn a_shared_object_that_somebody_changed_is_written_again_when_the_watch_shows_it() {
    let world = World::new(json!({}));
    world.settle().await;
    let path = "/apis/policy/v1/namespaces/shop/poddisruptionbudgets/demo";
    let seen = || -> PartialObjectMeta<PodDisruptionBudget> {
        serde_json::from_value(world.api.get(path).expect("a budget")).expect("metadata")
    };
    world.api.change(path, |budget| budget["metadata"]["generation"] = json!(1));
    world.ctx.applied.saw(&seen(), false);
    world.pass().await.expect("a pass");
    world.ctx.applied.saw(&seen(), false);
    world.api.take_writes();
    world.pass().await.expect("a pass");
    assert_eq!(world.api.take_writes(), Vec::<String>::new(), "what was seen is what was written");
    // Labels do not raise the generation.
    world.api.change(path, |budget| budget["metadata"]["labels"] = json!({ "mine": "yes" }));
    world.ctx.applied.saw(&seen(), false);
    world.pass().await.expect("a pass");
    let labels = world.api.get(path).expect("a budget")["metadata"]["labels"].clone();
    assert_eq!(labels["app.kubernetes.io/instance"], json!("demo"));
}

#[tokio::test]
async fn an_invalid_template_is_refused_while_the_cluster_goes_on_as_it_was() {
    let world = World::new(json!({}));
    world.settle().await;
    world.set_spec("pod", json!({ "spec": { "containers": 7 } }));
    world.pass().await.expect("a pass");
    assert_eq!(world.condition(ConditionType::Ready), ("False".into(), "InvalidSpec".into()));
    assert_eq!(world.condition(ConditionType::Available).0, "True");
    world.brokers.silence("demo-1-0");
    for _ in 0..3 {
        world.pass().await.expect("a pass");
    }
    let pod = world.api.get(&format!("{PODS}demo-1-0")).expect("a pod");
    assert_eq!(pod["metadata"]["labels"]["holdfast.dev/serving"], json!("false"), "pods are still looked after");
    assert!(world.api.below(SETS).len() == 3);
}

#[tokio::test]
async fn hibernation_stops_every_broker_and_waking_brings_the_same_cluster_back() {
    let world = World::new(json!({}));
    world.settle().await;
    let id = world.status().cluster_id;
    world.set_spec("hibernate", json!(true));
    world.settle().await;
    world.pass().await.expect("a pass");
    assert_eq!(world.condition(ConditionType::Ready), ("True".into(), "Hibernated".into()));
    assert_eq!(world.condition(ConditionType::Available).0, "False");
    assert_eq!(world.api.below(PODS), Vec::<String>::new());
    world.set_spec("hibernate", json!(false));
    world.settle().await;
    assert_eq!((world.status().cluster_id, world.bootstraps()), (id, 1));
}
