//! Whole passes against an API server and brokers in memory: order of writes, failures in between, and what is never done.

mod backups;
mod changes;
mod founding;
mod health;
mod recovery;
mod restore;
mod schedules;
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
    broker_admin::{FakeBrokers, Health},
    controllers::{Context, DEFAULT_CONTROLLER_NAME, Error, Settings, messagequeuecluster::reconcile},
};
use jiff::Timestamp;
use kube::Client;
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

/// An operator that knows nothing yet.
fn operator(client: Client, brokers: Arc<FakeBrokers>, clock: Arc<AtomicI64>) -> Arc<Context> {
    let reporter = Reporter { controller: "test".into(), instance: None };
    Arc::new(Context {
        recorder: Recorder::new(client.clone(), reporter),
        client,
        brokers,
        settings: Settings { broker_image: "broker:1".into(), controller_name: DEFAULT_CONTROLLER_NAME.into() },
        telemetry: Arc::default(),
        memory: Default::default(),
        applied: Default::default(),
        clock: Box::new(move || Timestamp::from_second(clock.load(Ordering::Relaxed)).expect("a time")),
    })
}

impl World {
    fn new(spec: Value) -> Self {
        let (api, client) = FakeApi::start();
        let brokers = Arc::new(FakeBrokers::default());
        let seconds = Arc::new(AtomicI64::new(1_800_000_000));
        let ctx = operator(client, brokers.clone(), seconds.clone());
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

    fn now(&self) -> Timestamp {
        (self.ctx.clock)()
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
