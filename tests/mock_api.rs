//! Whole passes against an API server and brokers in memory: order of writes, failures in between, and what is never done.

mod support;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use holdfast::{
    api::v1alpha1::{ConditionType, MessageQueueCluster, MessageQueueClusterStatus},
    broker_admin::{FakeBrokers, Health, MemberState},
    controllers::{Context, DEFAULT_CONTROLLER_NAME, Error, Settings, messagequeuecluster::reconcile},
};
use http::Method;
use jiff::Timestamp;
use kube::runtime::{
    controller::Action,
    events::{Recorder, Reporter},
};
use serde_json::{Value, json};
use support::FakeApi;

const CLUSTER: &str = "/apis/holdfast.dev/v1alpha1/namespaces/shop/messagequeueclusters/demo";
const SETS: &str = "/apis/apps/v1/namespaces/shop/statefulsets/";
const PODS: &str = "/api/v1/namespaces/shop/pods/";
const SECRETS: &str = "/api/v1/namespaces/shop/secrets/";
const VOLUMES: &str = "/api/v1/namespaces/shop/persistentvolumeclaims/";
/// A pass that needs longer than this hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// An operator, an API server, brokers, and a clock.
struct World {
    api: FakeApi,
    brokers: Arc<FakeBrokers>,
    ctx: Arc<Context>,
    seconds: Arc<AtomicI64>,
    disks: Mutex<u32>,
}

impl World {
    fn new(spec: Value) -> Self {
        let (api, client) = FakeApi::start();
        let brokers = Arc::new(FakeBrokers::default());
        let seconds = Arc::new(AtomicI64::new(1_800_000_000));
        let clock = seconds.clone();
        let reporter = Reporter { controller: "test".into(), instance: None };
        let ctx = Arc::new(Context {
            recorder: Recorder::new(client.clone(), reporter),
            client,
            brokers: brokers.clone(),
            settings: Settings { broker_image: "broker:1".into(), controller_name: DEFAULT_CONTROLLER_NAME.into() },
            telemetry: Arc::default(),
            memory: Default::default(),
            applied: Default::default(),
            clock: Box::new(move || Timestamp::from_second(clock.load(Ordering::Relaxed)).expect("a time")),
        });
        let world = Self { api, brokers, ctx, seconds, disks: Mutex::new(0) };
        world.create(spec);
        world
    }

    fn create(&self, spec: Value) {
        self.api.put(
            CLUSTER,
            json!({
                "apiVersion": "holdfast.dev/v1alpha1", "kind": "MessageQueueCluster",
                "metadata": { "name": "demo", "namespace": "shop", "generation": 1 }, "spec": spec,
            }),
        );
    }

    fn mqc(&self) -> MessageQueueCluster {
        serde_json::from_value(self.api.get(CLUSTER).expect("the cluster object")).expect("a cluster")
    }

    fn status(&self) -> MessageQueueClusterStatus {
        self.mqc().status_or_default()
    }

    fn condition(&self, type_: ConditionType) -> (String, String) {
        let status = self.status();
        let condition = status.condition(type_).unwrap_or_else(|| panic!("no condition {type_}"));
        (condition.status.clone(), condition.reason.clone())
    }

    async fn pass(&self) -> Result<Action, Error> {
        // Beyond the shortest time between two writes of a status.
        self.seconds.fetch_add(11, Ordering::Relaxed);
        tokio::time::timeout(PATIENCE, reconcile(Arc::new(self.mqc()), self.ctx.clone())).await.expect("a pass hangs")
    }

    /// Pods start; a broker whose disk is new is blank.
    fn start_pods(&self) {
        for pod in self.api.run_pods() {
            if self.brokers.get(&pod).is_none() {
                self.new_disk(&pod);
            }
        }
    }

    fn new_disk(&self, pod: &str) {
        let mut disks = self.disks.lock().expect("disks");
        *disks += 1;
        let uuid = format!("disk-{disks}");
        self.brokers.set(pod, Health { name: pod.into(), member_uuid: uuid, version: "1".into(), ..Health::default() });
    }

    async fn settle(&self) {
        for _ in 0..12 {
            self.pass().await.expect("a pass");
            self.start_pods();
            if self.condition(ConditionType::Ready).0 == "True" {
                return;
            }
        }
        panic!("not Ready: {:?}", self.status().conditions);
    }

    fn bootstraps(&self) -> usize {
        self.brokers.calls().iter().filter(|call| call.starts_with("bootstrap")).count()
    }

    fn image_of(&self, member: u32) -> Value {
        let set = self.api.get(&format!("{SETS}demo-{member}")).expect("a set");
        set["spec"]["template"]["spec"]["containers"][0]["image"].clone()
    }

    fn set_spec(&self, key: &str, value: Value) {
        self.api.change(CLUSTER, |object| {
            object["spec"][key] = value;
            object["metadata"]["generation"] = json!(object["metadata"]["generation"].as_i64().unwrap_or(1) + 1);
        });
    }
}

fn position(writes: &[String], what: &str) -> usize {
    writes.iter().position(|w| w.contains(what)).unwrap_or_else(|| panic!("{what} was not written: {writes:#?}"))
}

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
