//! Pure methods of `MessageQueueCluster`: names, labels and defaults that follow from the object alone.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, OwnerReference};
use kube::{Resource, ResourceExt};

use super::{
    ConditionType, HealthSpec, MessageQueueCluster, MessageQueueClusterSpec, MessageQueueClusterStatus, RolloutSpec,
};

/// The value of `app.kubernetes.io/managed-by`, and the field manager of everything but statuses.
pub const MANAGER: &str = "holdfast-operator";
/// The field manager of statuses.
pub const STATUS_MANAGER: &str = "holdfast-operator-status";
/// The value of `app.kubernetes.io/name`.
pub const APP_NAME: &str = "holdfast";
/// Whether a pod takes client connections; the client Service selects `"true"`.
pub const SERVING_LABEL: &str = "holdfast.dev/serving";
/// A member's number, on its pod, StatefulSet, ConfigMap and PVC.
pub const MEMBER_LABEL: &str = "holdfast.dev/member";
/// The hash of what a member's template was rendered from, on its StatefulSet and its pod.
pub const INPUTS_ANNOTATION: &str = "holdfast.dev/inputs";
/// The cluster a volume belongs to, written before any broker hears of it.
pub const CLUSTER_ID_ANNOTATION: &str = "holdfast.dev/cluster-id";
/// The founder's name and disk, beside the cluster id: `name/uuid`.
pub const FOUNDER_ANNOTATION: &str = "holdfast.dev/founder";
/// The data directory on a volume that belongs, or belonged, to the cluster: a blank one where this is set is a loss.
pub const MEMBER_UUID_ANNOTATION: &str = "holdfast.dev/member-uuid";
/// The broker's container in a pod.
pub const BROKER_CONTAINER: &str = "broker";

impl MessageQueueCluster {
    /// Namespace, which every object of this kind has.
    pub fn namespace_or_default(&self) -> String {
        self.namespace().unwrap_or_else(|| "default".into())
    }

    /// Names of the children.
    pub fn names(&self) -> Names {
        Names { cluster: self.name_any(), namespace: self.namespace_or_default() }
    }

    /// The owner reference of every child that goes when this object goes.
    pub fn owner(&self) -> Option<OwnerReference> {
        self.controller_owner_ref(&())
    }

    /// Is this object the business of the operator called `controller_name`? Objects that name none are the business of
    /// the default one.
    pub fn is_for(&self, controller_name: &str, default: &str) -> bool {
        self.spec.controller_name.as_deref().unwrap_or(default) == controller_name
    }

    /// The present status, or an empty one.
    pub fn status_or_default(&self) -> MessageQueueClusterStatus {
        self.status.clone().unwrap_or_default()
    }
}

impl MessageQueueClusterSpec {
    /// Replicas of a queue that does not say: 1 for one or two members, 3 for more.
    pub fn replication_factor(&self) -> i32 {
        let given = self.replication.as_ref().and_then(|replication| replication.factor);
        given.unwrap_or_else(|| default_factor(self.members))
    }
}

/// Replicas of a queue in a cluster of so many members, if nobody says.
pub fn default_factor(members: i32) -> i32 {
    if members < 3 { 1 } else { 3 }
}

impl HealthSpec {
    /// Between two questions to each broker while all is well.
    pub fn interval(&self) -> Duration {
        Duration::from_secs(self.interval_seconds.max(1) as u64)
    }

    /// For how long a silence is put up with.
    pub fn patience(&self) -> Duration {
        self.interval() * self.failure_threshold.max(1) as u32
    }

    /// For how long a node may be unreachable before its member counts as lost.
    pub fn replace_after(&self) -> Duration {
        Duration::from_secs(self.replace_after_seconds.max(1) as u64)
    }

    /// For how long there may be no majority before queues whose policies say so are recovered by force.
    pub fn recover_after(&self) -> Duration {
        Duration::from_secs(self.recover_after_seconds.max(1) as u64)
    }
}

impl RolloutSpec {
    /// For how long a pod is kept because queues could not go on without it.
    pub fn small_queue_wait(&self) -> Duration {
        Duration::from_secs(self.small_queue_wait_seconds.max(0) as u64)
    }

    /// Time for leaders to move.
    pub fn drain_deadline(&self) -> Duration {
        Duration::from_secs(self.drain_seconds.max(1) as u64)
    }
}

impl MessageQueueClusterStatus {
    /// The condition of that type, if it is present.
    pub fn condition(&self, type_: ConditionType) -> Option<&Condition> {
        let name = type_.to_string();
        self.conditions.iter().find(|c| c.type_ == name)
    }

    /// Is the condition present with status `True`?
    pub fn is(&self, type_: ConditionType) -> bool {
        self.condition(type_).is_some_and(|c| c.status == "True")
    }
}

/// Names of the children, all made from the cluster's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Names {
    pub cluster: String,
    pub namespace: String,
}

impl Names {
    /// The client Service, the ServiceAccount and the PodDisruptionBudget.
    pub fn client_service(&self) -> String {
        self.cluster.clone()
    }
    /// The headless Service that gives each pod its name, ready or not.
    pub fn nodes_service(&self) -> String {
        format!("{}-nodes", self.cluster)
    }
    /// StatefulSet and ConfigMap of member `number`.
    pub fn member(&self, number: u32) -> String {
        format!("{}-{number}", self.cluster)
    }
    /// The one pod of member `number`: the broker's own name.
    pub fn pod(&self, number: u32) -> String {
        format!("{}-{number}-0", self.cluster)
    }
    /// The volume of member `number`.
    pub fn volume(&self, number: u32) -> String {
        Self::claim(&self.pod(number))
    }
    /// The number of the member whose pod has this name: `<cluster>-<number>-0`.
    pub fn number(pod: &str) -> &str {
        pod.strip_suffix("-0").unwrap_or(pod).rsplit('-').next().unwrap_or(pod)
    }
    /// The volume of the member whose pod has this name.
    pub fn claim(pod: &str) -> String {
        format!("data-{pod}")
    }
    /// The name that member `number`'s certificate is checked against, and that peers dial.
    pub fn host(&self, number: u32) -> String {
        format!("{}.{}.{}.svc", self.pod(number), self.nodes_service(), self.namespace)
    }
    /// What peers of member `number` dial.
    pub fn peer_address(&self, number: u32) -> String {
        format!("{}:5680", self.host(number))
    }
    /// User, password and address for clients.
    pub fn user_secret(&self) -> String {
        format!("{}-default-user", self.cluster)
    }
    /// Certificate authority; never mounted.
    pub fn authority_secret(&self) -> String {
        format!("{}-ca", self.cluster)
    }
    /// The brokers' certificate.
    pub fn tls_secret(&self) -> String {
        format!("{}-tls", self.cluster)
    }
    /// The cluster id and its founder.
    pub fn identity_secret(&self) -> String {
        format!("{}-identity", self.cluster)
    }

    /// The labels that select a cluster's pods. They are in selectors, so they never change.
    pub fn selector(&self) -> BTreeMap<String, String> {
        BTreeMap::from([
            ("app.kubernetes.io/name".into(), APP_NAME.into()),
            ("app.kubernetes.io/instance".into(), self.cluster.clone()),
            ("app.kubernetes.io/component".into(), "broker".into()),
        ])
    }

    /// The selector as a string, for list calls and the scale subresource.
    pub fn selector_string(&self) -> String {
        self.selector().iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",")
    }

    /// The labels of every child.
    pub fn labels(&self) -> BTreeMap<String, String> {
        let mut labels = self.selector();
        labels.insert("app.kubernetes.io/part-of".into(), APP_NAME.into());
        labels.insert("app.kubernetes.io/managed-by".into(), MANAGER.into());
        labels
    }

    /// The labels of a child that belongs to one member.
    pub fn member_labels(&self, number: u32) -> BTreeMap<String, String> {
        let mut labels = self.labels();
        labels.insert(MEMBER_LABEL.into(), number.to_string());
        labels
    }
}
