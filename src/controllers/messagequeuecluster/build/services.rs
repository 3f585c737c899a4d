//! ServiceAccount, Services and PodDisruptionBudget.

use k8s_openapi::api::{
    core::v1::{Service, ServiceAccount},
    policy::v1::PodDisruptionBudget,
};
use serde_json::{Value, json};

use super::{super::validate::ValidatedCluster, Object, shared};
use crate::api::v1alpha1::SERVING_LABEL;

/// Brokers never call the Kubernetes API, so their account has no token.
pub fn account(cluster: &ValidatedCluster) -> Object {
    let fields = json!({ "automountServiceAccountToken": false });
    shared::<ServiceAccount>(cluster, cluster.names.client_service(), fields)
}

/// The headless Service: a name for each pod from the moment it has an IP, ready or not, since members have to find
/// each other before any of them is ready.
pub fn nodes(cluster: &ValidatedCluster) -> Object {
    let mut ports = client_ports(cluster);
    ports.extend([port("peer", 5680, "holdfast.dev/peer"), port("admin", 5690, "https"), port("http", 15692, "http")]);
    let fields = json!({ "spec": {
        "clusterIP": "None",
        "publishNotReadyAddresses": true,
        "ipFamilyPolicy": "PreferDualStack",
        "selector": cluster.names.selector(),
        "ports": ports,
    }});
    shared::<Service>(cluster, cluster.names.nodes_service(), fields)
}

/// Where clients connect: ready pods that answer the operator.
pub fn clients(cluster: &ValidatedCluster) -> Object {
    let mut selector = cluster.names.selector();
    selector.insert(SERVING_LABEL.into(), "true".into());
    let service = &cluster.listeners.service;
    let fields = json!({ "spec": {
        "type": service.type_,
        "ipFamilyPolicy": "PreferDualStack",
        "selector": selector,
        "ports": client_ports(cluster),
    }});
    let object = shared::<Service>(cluster, cluster.names.client_service(), fields);
    match service.annotations.is_empty() {
        true => object,
        false => object.annotated(json!(service.annotations)),
    }
}

/// One pod at a time, and broken pods whenever somebody asks. A single member has none: it could never be drained.
pub fn disruption_budget(cluster: &ValidatedCluster) -> Option<Object> {
    let members = cluster.members.len();
    let fields = json!({ "spec": {
        "minAvailable": members.checked_sub(1).filter(|least| *least > 0)?,
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
        "selector": { "matchLabels": cluster.names.selector() },
    }});
    Some(shared::<PodDisruptionBudget>(cluster, cluster.names.client_service(), fields))
}

fn client_ports(cluster: &ValidatedCluster) -> Vec<Value> {
    let listeners = [(cluster.listeners.amqp.enabled, "amqp", 5672), (cluster.listeners.amqps.enabled, "amqps", 5671)];
    listeners.into_iter().filter(|(enabled, ..)| *enabled).map(|(_, name, number)| port(name, number, name)).collect()
}

fn port(name: &str, number: u16, protocol: &str) -> Value {
    json!({ "name": name, "port": number, "targetPort": name, "protocol": "TCP", "appProtocol": protocol })
}
