//! What one member is made of: its ConfigMap and its StatefulSet of at most one pod.

use k8s_openapi::api::{apps::v1::StatefulSet, core::v1::ConfigMap};
use serde_json::{Value, json};

use super::{
    super::{observe::Observed, validate::ValidatedCluster},
    Object,
    merge::merge,
};
use crate::api::v1alpha1::{BROKER_CONTAINER, INPUTS_ANNOTATION, SERVING_LABEL, WhenUnsatisfiable};

const CONFIG_PATH: &str = "/etc/holdfast/config";
pub(super) const TLS_PATH: &str = "/etc/holdfast/tls";
/// A folder below the volume's root, which may hold a `lost+found`.
pub(super) const DATA_PATH: &str = "/var/lib/holdfast";
/// The group of the broker's files; its user is the image's.
pub(super) const GROUP: i64 = 65532;
/// Leaders are handed over within this time when a pod is deleted.
const GRACE_SECONDS: i64 = 30;

/// The ConfigMap comes first: a pod that starts in between must find it.
pub fn objects(cluster: &ValidatedCluster, observed: &Observed, number: u32, leaf: &str) -> [Object; 2] {
    let names = &cluster.names;
    let labels = names.member_labels(number);
    let inputs = cluster.inputs(number, leaf);
    let config = json!({ "data": { "config.yaml": config(cluster, number) } });
    let set = json!({ "spec": {
        "replicas": i32::from(!cluster.hibernate),
        "serviceName": names.nodes_service(),
        "podManagementPolicy": "Parallel",
        "revisionHistoryLimit": 2,
        "updateStrategy": { "type": "OnDelete" },
        "persistentVolumeClaimRetentionPolicy": { "whenDeleted": "Retain", "whenScaled": "Retain" },
        "selector": { "matchLabels": member_selector(cluster, number) },
        "template": template(cluster, number, &inputs),
        "volumeClaimTemplates": [claim(cluster, observed, number)],
    }});
    [
        Object::new::<ConfigMap>(names, &cluster.owner, names.member(number), labels.clone(), config),
        Object::new::<StatefulSet>(names, &cluster.owner, names.member(number), labels, set)
            .annotated(json!({ INPUTS_ANNOTATION: inputs })),
    ]
}

fn member_selector(cluster: &ValidatedCluster, number: u32) -> Value {
    let mut selector = cluster.names.selector();
    selector.insert(crate::api::v1alpha1::MEMBER_LABEL.into(), number.to_string());
    json!(selector)
}

/// The broker's configuration file. A zone is written only where the spec pins one: otherwise it is known only once the
/// pod has a node, and the brokers learn it through the admin API.
fn config(cluster: &ValidatedCluster, number: u32) -> String {
    let name = cluster.names.pod(number);
    let zone = cluster.pinned_zone(number).map(|zone| format!(", zone: {}", json!(zone))).unwrap_or_default();
    let listen = |enabled: bool, port: u16| match enabled {
        true => format!("\"[::]:{port}\""),
        false => "\"off\"".to_owned(),
    };
    format!(
        "member: {{name: {name}{zone}}}\n\
         dataDir: {DATA_PATH}/data\n\
         listeners:\n\
         \x20 amqp: {amqp}\n\
         \x20 amqps: {amqps}\n\
         \x20 peer: \"[::]:5680\"\n\
         \x20 admin: \"[::]:5690\"\n\
         \x20 http: \"[::]:15692\"\n\
         advertise: {{peer: \"{peer}\"}}\n\
         tls: {{ca: {TLS_PATH}/ca.crt, cert: {TLS_PATH}/tls.crt, key: {TLS_PATH}/tls.key}}\n",
        amqp = listen(cluster.template.amqp, 5672),
        amqps = listen(cluster.template.amqps, 5671),
        peer = cluster.names.peer_address(number),
    )
}

/// The volume template, which never changes once it exists: volumes grow by themselves.
fn claim(cluster: &ValidatedCluster, observed: &Observed, number: u32) -> Value {
    let set = observed.members.get(&number).and_then(|m| m.stateful_set.as_ref());
    let size = set.and_then(|s| s.claim_size.clone()).unwrap_or_else(|| cluster.storage_size.0.clone());
    let mut spec = json!({
        "accessModes": ["ReadWriteOnce"],
        "resources": { "requests": { "storage": size } },
    });
    if let Some(class) = &cluster.storage_class {
        spec["storageClassName"] = json!(class);
    }
    json!({ "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": { "name": "data" }, "spec": spec })
}

fn template(cluster: &ValidatedCluster, number: u32, inputs: &str) -> Value {
    let names = &cluster.names;
    let mut labels = names.member_labels(number);
    labels.insert(SERVING_LABEL.into(), "true".into());
    let mut template = json!({
        "metadata": { "labels": labels, "annotations": { INPUTS_ANNOTATION: inputs } },
        "spec": pod_spec(cluster, number),
    });
    if let Some(overrides) = &cluster.template.overrides {
        let own = template["metadata"].clone();
        merge(&mut template, overrides);
        // Selectors and the operator's own bookkeeping are not the user's to change.
        merge(&mut template["metadata"], &own);
    }
    template
}

fn pod_spec(cluster: &ValidatedCluster, number: u32) -> Value {
    let names = &cluster.names;
    let mut spec = json!({
        "serviceAccountName": names.client_service(),
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "securityContext": {
            "runAsNonRoot": true,
            "fsGroup": GROUP,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "affinity": affinity(cluster, number),
        "containers": [broker(cluster)],
        "volumes": [
            { "name": "config", "configMap": { "name": names.member(number) } },
            { "name": "tls", "secret": { "secretName": names.tls_secret(), "defaultMode": 0o440 } },
        ],
    });
    if cluster.pinned_zone(number).is_none() {
        spec["topologySpreadConstraints"] = json!([{
            "maxSkew": 1,
            "topologyKey": cluster.template.topology_key,
            "whenUnsatisfiable": match cluster.template.when_unsatisfiable {
                WhenUnsatisfiable::DoNotSchedule => "DoNotSchedule",
                WhenUnsatisfiable::ScheduleAnyway => "ScheduleAnyway",
            },
            "labelSelector": { "matchLabels": names.selector() },
        }]);
    }
    if !cluster.template.image_pull_secrets.is_empty() {
        spec["imagePullSecrets"] = json!(cluster.template.image_pull_secrets);
    }
    spec
}

/// Two members share a node only where there is no other.
fn affinity(cluster: &ValidatedCluster, number: u32) -> Value {
    let mut affinity = json!({ "podAntiAffinity": { "preferredDuringSchedulingIgnoredDuringExecution": [{
        "weight": 100,
        "podAffinityTerm": {
            "topologyKey": "kubernetes.io/hostname",
            "labelSelector": { "matchLabels": cluster.names.selector() },
        },
    }]}});
    if let Some(zone) = cluster.pinned_zone(number) {
        affinity["nodeAffinity"] = json!({ "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [{
            "matchExpressions": [{ "key": cluster.template.topology_key, "operator": "In", "values": [zone] }],
        }]}});
    }
    affinity
}

fn broker(cluster: &ValidatedCluster) -> Value {
    let template = &cluster.template;
    let listeners = [(template.amqp, "amqp", 5672), (template.amqps, "amqps", 5671)];
    let mut ports: Vec<Value> =
        listeners.iter().filter(|l| l.0).map(|(_, name, port)| container_port(name, *port)).collect();
    ports.extend([container_port("peer", 5680), container_port("admin", 5690), container_port("http", 15692)]);
    let mut broker = json!({
        "name": BROKER_CONTAINER,
        "image": template.image,
        "command": ["holdfast-broker"],
        "args": ["run", "--config", format!("{CONFIG_PATH}/config.yaml")],
        "ports": ports,
        "resources": template.resources,
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"] },
        },
        "startupProbe": probe("/livez", 1, 600),
        "livenessProbe": probe("/livez", 10, 6),
        "readinessProbe": probe("/readyz", 2, 3),
        "lifecycle": { "preStop": { "exec": { "command": ["holdfast-broker", "pre-stop"] } } },
        "volumeMounts": [
            { "name": "data", "mountPath": DATA_PATH },
            { "name": "config", "mountPath": CONFIG_PATH, "readOnly": true },
            { "name": "tls", "mountPath": TLS_PATH, "readOnly": true },
        ],
    });
    if let Some(policy) = template.image_pull_policy {
        broker["imagePullPolicy"] = json!(policy);
    }
    broker
}

fn container_port(name: &str, port: u16) -> Value {
    json!({ "name": name, "containerPort": port, "protocol": "TCP" })
}

fn probe(path: &str, period_seconds: u32, failures: u32) -> Value {
    json!({
        "httpGet": { "path": path, "port": "http" },
        "periodSeconds": period_seconds,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    })
}
