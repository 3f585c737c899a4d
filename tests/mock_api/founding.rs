//! A cluster comes to be, once; what was there before it is told apart; failures in between are made up for.

use http::Method;

use super::*;

#[tokio::test]
async fn a_new_cluster_is_written_founded_once_and_becomes_ready() {
    let world = World::new(json!({}));
    world.pass().await.expect("a pass");
    let writes = world.api.take_writes();
    let set = position(&writes, "statefulsets/demo-0");
    for before in
        ["secrets/demo-ca", "secrets/demo-tls", "services/demo-nodes", "configmaps/demo-0", "serviceaccounts/demo"]
    {
        assert!(position(&writes, before) < set, "{before} comes before the pod that needs it");
    }
    world.settle().await;
    assert_eq!(world.bootstraps(), 1);
    let status = world.status();
    assert_eq!(status.ready_members.as_deref(), Some("3/3"));
    assert!(status.decisions.iter().any(|d| d.reason == "Bootstrapped"), "{:?}", status.decisions);
    assert_eq!(
        status.members.iter().filter_map(|m| m.zone.as_deref()).collect::<Vec<_>>(),
        ["zone-1", "zone-2", "zone-3"]
    );
    assert_eq!(status.binding.map(|b| b.name).as_deref(), Some("demo-default-user"));
    assert_eq!(world.condition(ConditionType::ZoneFaultTolerant).0, "True");
    assert!(world.status().condition(ConditionType::Reconciling).is_none());
    // And then nothing is written any more.
    world.api.take_writes();
    world.pass().await.expect("a pass");
    assert_eq!(world.api.take_writes(), Vec::<String>::new());
}

#[tokio::test]
async fn the_identity_is_on_volumes_secret_and_status_before_a_broker_hears_of_it() {
    let world = World::new(json!({}));
    world.pass().await.expect("a pass");
    world.start_pods();
    world.api.take_writes();
    world.pass().await.expect("a pass");
    assert_eq!(world.bootstraps(), 0, "recorded first");
    let writes = world.api.take_writes();
    let status = position(&writes, "demo/status");
    assert!(position(&writes, "secrets/demo-identity") < status);
    for member in 0..3 {
        assert!(position(&writes, &format!("data-demo-{member}-0")) < status);
    }
    let id = world.status().cluster_id.expect("recorded");
    let volume = world.api.get(&format!("{VOLUMES}data-demo-2-0")).expect("a volume");
    assert_eq!(volume["metadata"]["annotations"]["holdfast.dev/cluster-id"], json!(id));
    world.pass().await.expect("a pass");
    assert_eq!(world.bootstraps(), 1);
}

#[tokio::test]
async fn a_crash_between_recording_and_founding_uses_the_same_id() {
    let world = World::new(json!({}));
    world.pass().await.expect("a pass");
    world.start_pods();
    world.api.refuse(Method::PATCH, "demo/status", 500, "etcd is away", 1);
    world.pass().await.expect_err("the status cannot be written");
    let volume = world.api.get(&format!("{VOLUMES}data-demo-0-0")).expect("a volume");
    let recorded = volume["metadata"]["annotations"]["holdfast.dev/cluster-id"].clone();
    assert_eq!((world.status().cluster_id, world.bootstraps()), (None, 0));
    world.settle().await;
    assert_eq!(json!(world.status().cluster_id), recorded);
    assert_eq!(world.bootstraps(), 1);
}

#[tokio::test]
async fn an_identity_that_a_successor_recorded_is_not_written_over() {
    let world = World::new(json!({}));
    world.pass().await.expect("a pass");
    world.start_pods();
    // This operator was paused after it had looked; another one has taken over and recorded an id of its own.
    for n in 0..3 {
        world.api.meanwhile(Method::PATCH, "secrets/demo-identity", &format!("{VOLUMES}data-demo-{n}-0"), |volume| {
            let founder = "demo-0-0/disk-1";
            volume["metadata"]["annotations"] =
                json!({ "holdfast.dev/cluster-id": "the-successors", "holdfast.dev/founder": founder });
        });
    }
    for _ in 0..3 {
        let _ = world.pass().await;
    }
    for n in 0..3 {
        let volume = world.api.get(&format!("{VOLUMES}data-demo-{n}-0")).expect("a volume");
        assert_eq!(volume["metadata"]["annotations"]["holdfast.dev/cluster-id"], json!("the-successors"));
    }
    assert_eq!(world.status().cluster_id.as_deref(), Some("the-successors"));
}

#[tokio::test]
async fn a_founding_that_was_refused_is_asked_again_of_the_same_member() {
    use holdfast::broker_admin::AdminError;
    let world = World::new(json!({}));
    let busy =
        AdminError::Refused { member: "demo-0-0".into(), status: 503, error: "disk slow".into(), hint: String::new() };
    world.brokers.refuse("bootstrap", busy.clone());
    for _ in 0..4 {
        let _ = world.pass().await;
        world.start_pods();
    }
    assert!(world.bootstraps() >= 1);
    let message = world.status().condition(ConditionType::Ready).expect("Ready").message.clone();
    assert!(message.contains("disk slow"), "{message}");
    world.brokers.refuse("nothing", busy);
    world.settle().await;
    assert!(world.brokers.calls().iter().filter(|c| c.starts_with("bootstrap")).all(|c| c == "bootstrap demo-0-0"));
}

#[tokio::test]
async fn a_cluster_deleted_with_retain_and_applied_again_is_the_same_one() {
    let world = World::new(json!({}));
    world.settle().await;
    let (id, first_password) = (world.status().cluster_id, world.brokers.password("holdfast"));
    // The garbage collector takes all but the volumes; brokers keep what is on their disks.
    for path in world.api.below("/") {
        if path.contains("/namespaces/shop/") && !path.starts_with(VOLUMES) {
            world.api.remove(&path);
        }
    }
    let again = World { ctx: world.ctx.clone(), ..world };
    again.create(json!({}));
    again.settle().await;
    assert_eq!(again.status().cluster_id, id);
    assert_eq!(again.bootstraps(), 1, "not founded a second time");
    let second = again.brokers.password("holdfast");
    assert_ne!(second, first_password, "the generated user is set anew");
    let secret = again.api.get(&format!("{SECRETS}demo-default-user")).expect("the Secret");
    assert_eq!(secret["data"]["username"], json!("aG9sZGZhc3Q="));
}

#[tokio::test]
async fn a_new_object_touches_nothing_before_the_leftovers_of_a_deleted_one_are_gone() {
    let world = World::new(json!({ "storage": { "deletionPolicy": "Delete" } }));
    world.settle().await;
    let volume = world.api.get(&format!("{VOLUMES}data-demo-0-0")).expect("a volume");
    assert_eq!(volume["metadata"]["ownerReferences"][0]["uid"], json!(world.mqc().metadata.uid));
    let former = world.status().cluster_id;
    // Deleted and applied again at once: everything is still there, and belongs to the object that is gone.
    world.api.remove(CLUSTER);
    world.create(json!({ "storage": { "deletionPolicy": "Delete" } }));
    world.api.take_writes();
    world.pass().await.expect("a pass");
    assert_eq!(world.api.take_writes(), [format!("PATCH {CLUSTER}/status")]);
    let ready = world.status().condition(ConditionType::Ready).expect("Ready").clone();
    assert!(ready.message.contains("PersistentVolumeClaim data-demo-0-0"), "{}", ready.message);
    // The garbage collector takes the volumes, and with them the disks.
    world.api.collect_garbage();
    assert_eq!(world.api.below(VOLUMES), Vec::<String>::new());
    (0..3).for_each(|n| world.brokers.silence(&format!("demo-{n}-0")));
    world.settle().await;
    assert_ne!(world.status().cluster_id, former, "another cluster");
    assert!(world.status().condition(ConditionType::Stalled).is_none());
}

#[tokio::test]
async fn a_cluster_applied_again_with_fewer_members_starts_all_that_hold_data() {
    let world = World::new(json!({ "members": 5 }));
    world.settle().await;
    let uuids = || -> Vec<Value> {
        let volumes = world.api.below(VOLUMES);
        let annotations = volumes.iter().map(|v| world.api.get(v).expect("listed")["metadata"]["annotations"].clone());
        annotations.map(|a| a["holdfast.dev/member-uuid"].clone()).collect()
    };
    assert_eq!(uuids(), ["disk-1", "disk-2", "disk-3", "disk-4", "disk-5"]);
    world.api.remove(CLUSTER);
    world.api.collect_garbage();
    assert_eq!(world.api.below(VOLUMES).len(), 5);
    world.create(json!({ "members": 3 }));
    world.settle().await;
    assert_eq!(world.status().member_count, 5);
    assert_eq!(world.condition(ConditionType::Degraded), ("True".into(), "MembersNotRemovable".into()));
}

#[tokio::test]
async fn blank_disks_under_a_known_id_are_reported_and_never_founded_over() {
    let world = World::new(json!({}));
    world.settle().await;
    for member in 0..3 {
        world.new_disk(&format!("demo-{member}-0"));
    }
    for _ in 0..3 {
        world.pass().await.expect("a pass");
    }
    assert_eq!(world.condition(ConditionType::Stalled), ("True".into(), "DataLost".into()));
    assert_eq!(world.condition(ConditionType::Ready).0, "False");
    assert_eq!(world.bootstraps(), 1);
}

#[tokio::test]
async fn a_refused_object_is_named_in_the_status_and_tried_again() {
    let world = World::new(json!({}));
    world.api.refuse(Method::PATCH, "statefulsets/demo-1", 403, "exceeded quota", 1);
    world.pass().await.expect_err("reported");
    let (status, reason) = world.condition(ConditionType::Ready);
    assert_eq!((status.as_str(), reason.as_str()), ("False", "ApplyFailed"));
    let message = world.status().condition(ConditionType::Ready).expect("Ready").message.clone();
    assert!(message.contains("StatefulSet demo-1") && message.contains("exceeded quota"), "{message}");
    world.settle().await;
}

#[tokio::test]
async fn a_conflict_is_told_and_the_next_pass_writes_what_the_first_could_not() {
    for part in ["configmaps/demo-1", "secrets/demo-identity", "persistentvolumeclaims/data-demo-2-0", "demo/status"] {
        let world = World::new(json!({}));
        world.pass().await.expect("a pass");
        world.start_pods();
        // It is rendered again only where it is missing.
        world.api.remove("/api/v1/namespaces/shop/configmaps/demo-1");
        world.api.refuse(Method::PATCH, part, 409, "the object has been modified", 1);
        let error = world.pass().await.expect_err(part);
        assert!(error.to_string().contains("cannot"), "{part}: {error}");
        assert_eq!(world.bootstraps(), 0, "{part}");
        world.settle().await;
        assert_eq!(world.bootstraps(), 1, "{part}");
    }
}

#[tokio::test]
async fn a_missing_storage_class_is_named() {
    let world = World::new(json!({ "storage": { "storageClassName": "fast" } }));
    world.pass().await.expect("a pass");
    world.start_pods();
    for path in world.api.below(VOLUMES) {
        world.api.change(&path, |volume| volume["status"]["phase"] = json!("Pending"));
    }
    world.pass().await.expect("a pass");
    let degraded = world.status().condition(ConditionType::Degraded).expect("Degraded").clone();
    assert_eq!(degraded.reason, "StorageClassMissing");
    assert!(degraded.message.contains("'fast'"), "{}", degraded.message);
}

#[tokio::test]
async fn a_paused_cluster_gets_a_status_and_no_other_write() {
    let world = World::new(json!({}));
    world.settle().await;
    world.set_spec("image", json!("broker:2"));
    world.set_spec("paused", json!(true));
    world.api.remove(&format!("{SETS}demo-2"));
    world.api.take_writes();
    world.pass().await.expect("a pass");
    let writes = world.api.take_writes();
    assert!(writes.iter().all(|w| w.ends_with("/status")), "{writes:?}");
    assert_eq!(world.condition(ConditionType::Paused).0, "True");
}

#[tokio::test]
async fn an_object_of_another_operator_is_not_touched() {
    let world = World::new(json!({ "controllerName": "example.org/other" }));
    world.pass().await.expect("a pass");
    assert_eq!(world.api.take_writes(), Vec::<String>::new());
}
