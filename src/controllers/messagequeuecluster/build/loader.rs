//! The Jobs that bring a backup to a new cluster's first member, one for each snapshot.

use k8s_openapi::api::batch::v1::Job;
use serde_json::{Value, json};

use super::{
    super::{
        observe::restore::Source,
        plan::restore::{COMPONENT, Loader, Restore},
        validate::{ValidatedCluster, quantity_bytes},
    },
    Object,
    member::{DATA_PATH, GROUP, TLS_PATH},
};
use crate::{api::v1alpha1::object_labels, broker_admin::ADMIN_PORT};

/// A loader that is done, or has given up, is removed after so long; one that is still needed is then made anew.
const KEPT_SECONDS: u32 = 120;
/// Its pod is started again so often.
const RETRIES: u32 = 4;

/// None where no founder is known yet.
pub fn objects(cluster: &ValidatedCluster, restore: &Restore, founder: u32) -> Vec<Object> {
    let Some(source) = &restore.source else { return Vec::new() };
    restore.loaders.iter().map(|loader| object(cluster, source, loader, founder)).collect()
}

fn object(cluster: &ValidatedCluster, source: &Source, loader: &Loader, founder: u32) -> Object {
    let labels = object_labels(&cluster.names.cluster, COMPONENT);
    let spec = json!({ "spec": {
        "backoffLimit": RETRIES,
        "ttlSecondsAfterFinished": KEPT_SECONDS,
        "template": { "metadata": { "labels": labels }, "spec": pod(cluster, source, loader, founder) },
    }});
    Object::new::<Job>(&cluster.names, &cluster.owner, loader.name.clone(), labels, spec)
}

fn pod(cluster: &ValidatedCluster, source: &Source, loader: &Loader, founder: u32) -> Value {
    let template = &cluster.template;
    let mut spec = json!({
        "restartPolicy": "OnFailure",
        "serviceAccountName": cluster.names.client_service(),
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "securityContext": {
            "runAsNonRoot": true,
            "fsGroup": GROUP,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "containers": [container(cluster, source, founder)],
        "volumes": [
            { "name": "snapshot", "ephemeral": { "volumeClaimTemplate": { "spec": claim(cluster, source, loader) } } },
            { "name": "tls", "secret": { "secretName": cluster.names.tls_secret(), "defaultMode": 0o440 } },
        ],
    });
    if cluster.proves_backup {
        spec["initContainers"] = json!([verifier(cluster, source)]);
    }
    if !template.image_pull_secrets.is_empty() {
        spec["imagePullSecrets"] = json!(template.image_pull_secrets);
    }
    // Where members may run, so may what feeds them.
    let overrides = template.overrides.as_ref().map(|overrides| &overrides["spec"]);
    for key in ["tolerations", "priorityClassName", "runtimeClassName"] {
        if let Some(value) = overrides.map(|spec| &spec[key]).filter(|value| !value.is_null()) {
            spec[key] = value.clone();
        }
    }
    spec
}

fn manifest(source: &Source) -> String {
    format!("{DATA_PATH}/data/journal/holds/{}/manifest.json", source.barrier)
}

/// Sends what the founder lacks.
fn container(cluster: &ValidatedCluster, source: &Source, founder: u32) -> Value {
    let args = json!([
        "restore",
        "push",
        "--manifest",
        manifest(source),
        "--manifest-sha256",
        source.manifest_sha256,
        "--from",
        format!("{DATA_PATH}/data"),
        "--to",
        format!("https://{}:{ADMIN_PORT}", cluster.names.host(founder)),
        "--ca",
        format!("{TLS_PATH}/ca.crt"),
        "--cert",
        format!("{TLS_PATH}/tls.crt"),
        "--key",
        format!("{TLS_PATH}/tls.key"),
    ]);
    program(cluster, "loader", &args)
}

/// Reads all of the snapshot first: what another one has too would not be sent, nor looked at.
fn verifier(cluster: &ValidatedCluster, source: &Source) -> Value {
    let args = json!(["journal", "verify", "--manifest", manifest(source), format!("{DATA_PATH}/data")]);
    program(cluster, "verifier", &args)
}

fn program(cluster: &ValidatedCluster, name: &str, args: &Value) -> Value {
    let mut container = json!({
        "name": name,
        "image": cluster.template.image,
        "command": ["holdfast-broker"],
        "args": args,
        // Its last words are in the pod's status, and from there in the cluster's.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"] },
        },
        "volumeMounts": [
            { "name": "snapshot", "mountPath": DATA_PATH, "readOnly": true },
            { "name": "tls", "mountPath": TLS_PATH, "readOnly": true },
        ],
    });
    if let Some(policy) = cluster.template.image_pull_policy {
        container["imagePullPolicy"] = json!(policy);
    }
    container
}

/// A volume that lives as long as the pod, made from the snapshot.
fn claim(cluster: &ValidatedCluster, source: &Source, loader: &Loader) -> Value {
    // Storage refuses a volume that is smaller than the snapshot's.
    let bytes = |size: &str| quantity_bytes(size).unwrap_or(0.0);
    let own = &cluster.storage_size.0;
    let size = loader.snapshot.restore_size.as_ref().filter(|size| bytes(size) > 0.0).unwrap_or(own);
    let mut spec = json!({
        "accessModes": ["ReadWriteOnce"],
        "resources": { "requests": { "storage": size } },
        "dataSource": { "apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": loader.snapshot.name },
    });
    if let Some(class) = source.storage_class.as_ref().or(cluster.storage_class.as_ref()) {
        spec["storageClassName"] = json!(class);
    }
    spec
}
