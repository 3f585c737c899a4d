//! `MessageQueueCluster` (`mqc`): one replicated broker cluster. Data only; methods are in `messagequeuecluster_ext`.
//!
//! Every list and string has a maximum, so that the cost of the CEL rules is bounded. The rules check single fields and
//! immutability; relations and what cannot be done *now* are conditions (design §4.2).

use std::collections::BTreeMap;

use k8s_openapi::{api::core::v1::LocalObjectReference, apimachinery::pkg::apis::meta::v1::Condition};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    bootstrap::{BootstrapSpec, RestoreStatus},
    schema,
};

/// A replicated AMQP 0-9-1 message-queue cluster: members spread over zones, each on a volume of its own.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "holdfast.dev",
    version = "v1alpha1",
    kind = "MessageQueueCluster",
    plural = "messagequeueclusters",
    shortname = "mqc",
    category = "messagequeue",
    namespaced,
    doc = "A replicated AMQP 0-9-1 message-queue cluster: members spread over zones, each on a volume of its own.",
    status = "MessageQueueClusterStatus",
    derive = "PartialEq",
    scale(
        spec_replicas_path = ".spec.members",
        status_replicas_path = ".status.memberCount",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Status", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Members", type_ = "string", json_path = ".status.readyMembers"),
    printcolumn(
        name = "Zone-Fault-Tolerant",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"ZoneFaultTolerant\")].status"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Leader", type_ = "string", json_path = ".status.quorum.metadataLeader", priority = 1),
    printcolumn(name = "Failovers", type_ = "integer", json_path = ".status.failovers.count", priority = 1),
    printcolumn(name = "Last-Failover-Ms", type_ = "integer", json_path = ".status.failovers.lastDurationMs", priority = 1),
    printcolumn(
        name = "Backups-Healthy",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"BackupHealthy\")].status",
        priority = 1
    ),
    printcolumn(name = "Image", type_ = "string", json_path = ".status.image", priority = 1),
    printcolumn(name = "Cluster-ID", type_ = "string", json_path = ".status.clusterID", priority = 1),
    validation = Rule::new("size(self.metadata.name) <= 40")
        .message("metadata.name has more than 40 characters: names of pods, Services and Secrets are made from it; use a shorter one"),
    validation = Rule::new("self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')")
        .message("metadata.name names Services: start with a letter, then lower-case letters, digits and '-', such as 'orders-1'")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.storage.storageClassName) == has(oldSelf.storage.storageClassName) && (!has(self.storage.storageClassName) || self.storage.storageClassName == oldSelf.storage.storageClassName)")
        .message("storage.storageClassName cannot change once the cluster exists: put the former value back"),
    validation = Rule::new("(has(self.replication) && has(self.replication.factor)) == (has(oldSelf.replication) && has(oldSelf.replication.factor)) && (!has(self.replication) || !has(self.replication.factor) || self.replication.factor == oldSelf.replication.factor)")
        .message("replication.factor is given to the brokers at bootstrap and cannot change: put the former value back (or leave it out, if it was left out)"),
    validation = Rule::new("!has(self.replication) || !has(self.replication.factor) || self.replication.factor <= self.members")
        .message("replication.factor is above members: raise members, or lower the factor to an odd number that is not above it"),
    validation = Rule::new("!(has(self.image) && has(self.version))")
        .message("set either image (a full reference) or version (a tag of the operator's default image), not both")
)]
pub struct MessageQueueClusterSpec {
    /// Brokers in the cluster. Three members over three zones outlive any one of them; 2 are allowed, but outlive none.
    /// To stop the cluster and keep its data, set `hibernate`.
    #[serde(default = "defaults::members")]
    #[schemars(range(max = 9))]
    #[x_kube(validation = Rule::new("self >= 1").message("members must be at least 1; to stop every broker and keep the data, set hibernate: true"))]
    pub members: i32,

    /// Full reference of the broker image. Default: the operator's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 500))]
    pub image: Option<String>,

    /// Tag of the operator's default broker image to use instead of the default tag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[A-Za-z0-9_][A-Za-z0-9._-]*$"))]
    pub version: Option<String>,

    /// When the image is pulled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_pull_policy: Option<ImagePullPolicy>,

    /// Secrets that the image is pulled with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub image_pull_secrets: Vec<LocalObjectReference>,

    /// The volume of each member.
    #[serde(default)]
    pub storage: StorageSpec,

    /// Where members run.
    #[serde(default)]
    pub placement: PlacementSpec,

    /// Copies of each queue, for queues that do not say it themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replication: Option<ReplicationSpec>,

    /// CPU and memory of each broker.
    #[serde(default)]
    pub resources: ResourcesSpec,

    /// A partial pod template (`metadata` and `spec`) that is merged over the one the operator makes: objects key by key,
    /// lists whose items have a `name` by that name, other lists as a whole; `null` removes a field. The broker's container is named `broker`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::free_object")]
    pub pod: Option<Value>,

    /// How clients reach the brokers.
    #[serde(default)]
    pub listeners: ListenersSpec,

    /// How the operator watches the brokers.
    #[serde(default)]
    pub health: HealthSpec,

    /// How members are restarted when their template changes: always one at a time.
    #[serde(default)]
    pub rollout: RolloutSpec,

    /// What a new cluster begins with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bootstrap: Option<BootstrapSpec>,

    /// While true the operator only reports: it changes nothing that belongs to this cluster. Brokers go on serving and failing over.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,

    /// While true no broker runs; volumes, and the messages on them, are kept.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hibernate: bool,

    /// The operator that looks after this cluster, where several share a Kubernetes cluster: its `--controller-name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 100))]
    pub controller_name: Option<String>,
}

/// When an image is pulled, as Kubernetes has it.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImagePullPolicy {
    Always,
    IfNotPresent,
    Never,
}

/// The volume of each member.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct StorageSpec {
    /// Size of each volume. It may grow, where the storage class allows it, but not go below a volume's capacity.
    #[serde(default = "defaults::storage_size")]
    #[schemars(length(min = 1, max = 20))]
    #[x_kube(validation = Rule::new("self.matches('^[0-9]+([.][0-9]+)?(Ki|Mi|Gi|Ti|Pi|k|M|G|T|P)?$')").message("size must be a quantity such as 10Gi or 500Mi"))]
    pub size: String,

    /// Storage class. Default: the Kubernetes cluster's default class. It cannot change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub storage_class_name: Option<String>,

    /// What becomes of the volumes when this object is deleted. With Retain, applying the object again brings the same
    /// cluster with the same messages back.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
}

/// What becomes of the volumes when the cluster object is deleted.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeletionPolicy {
    #[default]
    Retain,
    Delete,
}

/// Where members run.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PlacementSpec {
    /// The node label whose values are the zones.
    #[serde(default = "defaults::topology_key")]
    #[schemars(length(min = 1, max = 317))]
    pub topology_key: String,

    /// The zones to use. Member n is pinned to the n-th of them, starting again after the last.
    /// Default: the scheduler spreads the members over the zones that exist.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 9), inner(length(min = 1, max = 63)))]
    #[x_kube(validation = Rule::new("self.all(z, self.exists_one(other, other == z))").message("zones lists a zone twice: name each zone once"))]
    pub zones: Vec<String>,

    /// What happens when a member cannot be placed evenly over the zones. It has no effect where `zones` is given.
    #[serde(default)]
    pub when_unsatisfiable: WhenUnsatisfiable,
}

/// What happens when members cannot be spread evenly.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenUnsatisfiable {
    /// The member waits, and the condition Degraded says why.
    #[default]
    DoNotSchedule,
    /// The member starts wherever there is room, and the condition ZoneFaultTolerant may be False.
    ScheduleAnyway,
}

/// Copies of each queue.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.minInSyncReplicas) || !has(self.factor) || self.minInSyncReplicas <= self.factor").message("minInSyncReplicas is above factor, so nothing could ever be confirmed: lower it to factor or less"))]
pub struct ReplicationSpec {
    /// Replicas of each queue. Default: 1 for one or two members, else 3. It is given to the brokers once, at bootstrap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 9))]
    #[x_kube(validation = Rule::new("self >= 1 && self % 2 == 1").message("factor must be odd (1, 3 or 5): an even number of replicas outlives no more losses than one less"))]
    pub factor: Option<i32>,

    /// Durable copies of a message that its confirm waits for, for queues without a policy. A majority is always waited
    /// for, so a smaller number asks for nothing more. No pod is taken away while a queue would be left with fewer; where
    /// this equals the number of replicas, a restart makes publishers of the queue wait until the member is back.
    /// It may change at any time. Default: a majority.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 7))]
    #[x_kube(validation = Rule::new("self >= 1").message("minInSyncReplicas must be at least 1; leave it out for a majority"))]
    pub min_in_sync_replicas: Option<i32>,
}

/// CPU and memory of each broker, as in a container's `resources`.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ResourcesSpec {
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::quantities")]
    pub requests: BTreeMap<String, Value>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::quantities")]
    pub limits: BTreeMap<String, Value>,
}

/// How clients reach the brokers.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.amqp.enabled || self.amqps.enabled").message("no client could connect: leave at least one of listeners.amqp and listeners.amqps enabled"))]
pub struct ListenersSpec {
    /// AMQP without TLS, port 5672.
    #[serde(default)]
    pub amqp: ListenerSpec,
    /// AMQP over TLS, port 5671.
    #[serde(default)]
    pub amqps: ListenerSpec,
    /// The Service that clients connect to.
    #[serde(default)]
    pub service: ServiceSpec,
    /// The address that clients outside use; it goes into the connection Secret and the certificate. Default: the Service's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub advertised_address: Option<String>,
    /// More names and IP addresses for the brokers' certificate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20), inner(length(min = 1, max = 253)))]
    pub extra_sans: Vec<String>,
}

/// One listener.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct ListenerSpec {
    #[serde(default = "defaults::yes")]
    pub enabled: bool,
}

/// The Service that clients connect to.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ServiceSpec {
    #[serde(default, rename = "type")]
    pub type_: ServiceType,
    /// Annotations for the Service, for instance for a cloud's load balancer.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 50))]
    pub annotations: BTreeMap<String, String>,
}

/// The type of a Service.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(clippy::enum_variant_names)]
pub enum ServiceType {
    #[default]
    ClusterIP,
    NodePort,
    LoadBalancer,
}

/// How the operator watches the brokers.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct HealthSpec {
    /// Seconds between two questions to each broker while all is well.
    #[serde(default = "defaults::interval_seconds")]
    #[schemars(range(min = 1, max = 300))]
    pub interval_seconds: i32,
    /// A broker that did not answer for this many intervals is taken out of the client Service until it answers again.
    /// For as long, what it said last still counts in the conditions, while its pod is Ready.
    #[serde(default = "defaults::failure_threshold")]
    #[schemars(range(min = 1, max = 60))]
    pub failure_threshold: i32,
    /// A broker that was taken out of the client Service is put back after this many answers in a row.
    #[serde(default = "defaults::success_threshold")]
    #[schemars(range(min = 1, max = 60))]
    pub success_threshold: i32,
    /// A member whose node has been unreachable for this many seconds counts as lost: the condition Degraded and an Event
    /// say so. Members are not replaced yet, and nothing is deleted: bring the node back, or delete its Node object.
    #[serde(default = "defaults::replace_after_seconds")]
    #[schemars(range(min = 60, max = 86400))]
    pub replace_after_seconds: i32,
    /// Seconds without a majority after which the operator recovers the cluster by force, without a person, from the disks
    /// that are left: only if every queue that may lose something has a policy with `ha-promote-on-failure: always`, and
    /// only if all other members run on blank disks, so that the old ones cannot come back.
    #[serde(default = "defaults::recover_after_seconds")]
    #[schemars(range(min = 60, max = 86400))]
    pub recover_after_seconds: i32,
}

/// How members are restarted.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RolloutSpec {
    /// Seconds for which a pod is kept because queues have too few replicas to go on without it; after that it goes, and an
    /// Event says so.
    #[serde(default = "defaults::small_queue_wait_seconds")]
    #[schemars(range(min = 0, max = 3600))]
    pub small_queue_wait_seconds: i32,
    /// Seconds that a member gets to hand its leaders to others before its pod goes.
    #[serde(default = "defaults::drain_seconds")]
    #[schemars(range(min = 1, max = 20))]
    pub drain_seconds: i32,
}

/// Defaults that are no type's own.
mod defaults {
    pub fn members() -> i32 {
        3
    }
    pub fn storage_size() -> String {
        "10Gi".into()
    }
    pub fn topology_key() -> String {
        "topology.kubernetes.io/zone".into()
    }
    pub fn yes() -> bool {
        true
    }
    pub fn interval_seconds() -> i32 {
        5
    }
    pub fn failure_threshold() -> i32 {
        3
    }
    pub fn success_threshold() -> i32 {
        1
    }
    pub fn replace_after_seconds() -> i32 {
        300
    }
    /// Twice `replace_after_seconds`: a person who is called then still has time to bring a volume back.
    pub fn recover_after_seconds() -> i32 {
        600
    }
    pub fn small_queue_wait_seconds() -> i32 {
        60
    }
    pub fn drain_seconds() -> i32 {
        5
    }
}

impl Default for StorageSpec {
    fn default() -> Self {
        Self { size: defaults::storage_size(), storage_class_name: None, deletion_policy: DeletionPolicy::Retain }
    }
}

impl Default for PlacementSpec {
    fn default() -> Self {
        Self {
            topology_key: defaults::topology_key(),
            zones: Vec::new(),
            when_unsatisfiable: WhenUnsatisfiable::DoNotSchedule,
        }
    }
}

impl Default for ListenerSpec {
    fn default() -> Self {
        Self { enabled: true }
    }
}

impl Default for HealthSpec {
    fn default() -> Self {
        Self {
            interval_seconds: defaults::interval_seconds(),
            failure_threshold: defaults::failure_threshold(),
            success_threshold: defaults::success_threshold(),
            replace_after_seconds: defaults::replace_after_seconds(),
            recover_after_seconds: defaults::recover_after_seconds(),
        }
    }
}

impl Default for RolloutSpec {
    fn default() -> Self {
        Self {
            small_queue_wait_seconds: defaults::small_queue_wait_seconds(),
            drain_seconds: defaults::drain_seconds(),
        }
    }
}

/// What the operator found and did. Written by the operator only.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct MessageQueueClusterStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// The identity that the brokers were given, once, at bootstrap. Written before any broker hears of it.
    #[serde(default, rename = "clusterID", skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<String>,

    /// The one member that was asked to found the cluster. Asking it again is safe only while its disk is the same one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub founder: Option<Founder>,

    /// The backup that the cluster began with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore: Option<RestoreStatus>,

    /// The image that members are to run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,

    /// Members that exist.
    #[serde(default)]
    pub member_count: i32,

    /// Ready members of all members, such as `3/3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_members: Option<String>,

    /// Label selector of the pods, for the scale subresource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,

    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,

    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub members: Vec<MemberStatus>,

    /// What the brokers were told of replication.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replication: Option<ReplicationStatus>,

    /// The metadata group, without which nothing can be declared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quorum: Option<QuorumStatus>,

    /// Leader changes that the brokers made, by themselves, after a loss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failovers: Option<FailoverStatus>,

    /// What the operator did or holds back at present, at most 20, newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub decisions: Vec<Decision>,

    /// The Secret that clients connect with (servicebinding.io).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binding: Option<Binding>,
}

/// The member that was asked to found the cluster.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Founder {
    pub member: String,
    /// UUID of its data directory at that time.
    pub uuid: String,
}

/// One broker.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct MemberStatus {
    /// The name of its pod.
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// UUID of the data directory with which it belonged to this cluster, last seen. Kept while it is silent or blank.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// Is the broker started and its pod Ready?
    #[serde(default)]
    pub ready: bool,
    /// In words: what it waits for, or how far it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Groups that it leads.
    #[serde(default)]
    pub leaders: i64,
    /// Groups that it has a replica of.
    #[serde(default)]
    pub replicas: i64,
    /// Groups led here with a voter that is far behind.
    #[serde(default)]
    pub lagging: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_used_percent: Option<i32>,
}

/// What the brokers were told of replication.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ReplicationStatus {
    /// Replicas of a queue that does not say. Fixed when the cluster was founded; none where that was before this object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub factor: Option<i32>,
    /// Copies that a confirm waits for; 0 is a majority.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_in_sync_replicas: Option<i32>,
}

/// The metadata group.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct QuorumStatus {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata_leader: Option<String>,
    /// Is a majority in touch?
    #[serde(default)]
    pub present: bool,
    /// Brokers that answer.
    #[serde(default)]
    pub live: i32,
}

/// Leader changes after a loss.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct FailoverStatus {
    /// At least so many: brokers count from their start.
    #[serde(default)]
    pub count: i64,
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_at: Option<String>,
    /// From the last sign of the old leader to the new one serving.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_duration_ms: Option<i64>,
}

/// Something the operator did, or holds back.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Decision {
    /// `Done` or `Held`.
    pub outcome: Outcome,
    /// What kind of thing: a reason as in conditions.
    pub reason: String,
    /// What, and because of what.
    pub message: String,
    /// RFC 3339: when it was done, or since when it is held.
    pub since: String,
}

/// What became of a decision.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    Held,
}

/// The Secret that clients connect with.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Binding {
    pub name: String,
    /// The version of the Secret whose password the brokers have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource_version: Option<String>,
}
