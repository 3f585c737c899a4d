//! The whole child set of several specs, as YAML. `cargo insta accept` after looking at a change.

use holdfast::{
    api::v1alpha1::MessageQueueCluster,
    broker_admin::Health,
    controllers::{
        Settings,
        messagequeuecluster::{
            build::{Object, build},
            observe::{MemberFacts, Observed, VolumeFacts},
            plan::plan,
            validate::validate,
        },
    },
};
use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{ConfigMap, PersistentVolumeClaim, Secret, Service, ServiceAccount},
    policy::v1::PodDisruptionBudget,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

fn children(spec: Value) -> Vec<Object> {
    children_of(spec, &Observed::default())
}

fn children_of(spec: Value, observed: &Observed) -> Vec<Object> {
    let mqc: MessageQueueCluster = serde_json::from_value(json!({
        "apiVersion": "holdfast.dev/v1alpha1",
        "kind": "MessageQueueCluster",
        "metadata": { "name": "demo", "namespace": "shop", "uid": "11111111-2222-3333-4444-555555555555" },
        "spec": spec,
    }))
    .expect("a cluster");
    let settings = Settings { broker_image: "holdfast/broker:dev".into(), controller_name: "c".into() };
    let now = "2026-11-22T10:00:00Z".parse().expect("a time");
    let validation = validate(&mqc, observed, &settings);
    assert_eq!(validation.blockers, vec![]);
    let plan = plan(&mqc, &validation, observed, "fresh-id", now);
    let children = build(&mqc, &validation, observed, &plan, now).expect("children");
    children.shared.into_iter().chain(children.members).chain(children.volumes).collect()
}

/// All objects, without what is secret or different each time; three identical members are shown by the first.
fn golden(spec: Value) -> String {
    let mut text = String::new();
    for mut object in children(spec) {
        check_shape(&object);
        if object.resource.kind == "Secret" {
            redact(&mut object.body);
        }
        text.push_str("---\n");
        text.push_str(&serde_saphyr::to_string(&object.body).expect("YAML"));
    }
    text
}

fn redact(secret: &mut Value) {
    const PLAIN: [&str; 4] = ["host", "port", "type", "provider"];
    for (key, value) in secret["data"].as_object_mut().into_iter().flatten() {
        if !PLAIN.contains(&key.as_str()) {
            *value = json!("REDACTED");
        }
    }
    if let Some(names) = secret["metadata"]["annotations"].get_mut("holdfast.dev/certified-names") {
        *names = json!("DEPENDS ON THE AUTHORITY");
    }
}

/// A field that Kubernetes does not know would be dropped on the way through its type.
fn check_shape(object: &Object) {
    fn through<T: Serialize + DeserializeOwned>(body: &Value) -> Value {
        let typed: T = serde_json::from_value(body.clone()).expect("the right types");
        serde_json::to_value(typed).expect("JSON")
    }
    let known = match object.resource.kind.as_str() {
        "StatefulSet" => through::<StatefulSet>(&object.body),
        "ConfigMap" => through::<ConfigMap>(&object.body),
        "Secret" => through::<Secret>(&object.body),
        "PersistentVolumeClaim" => through::<PersistentVolumeClaim>(&object.body),
        "Service" => through::<Service>(&object.body),
        "ServiceAccount" => through::<ServiceAccount>(&object.body),
        "PodDisruptionBudget" => through::<PodDisruptionBudget>(&object.body),
        other => panic!("unexpected kind {other}"),
    };
    assert_eq!(without_empty(&known), without_empty(&object.body), "{} {}", object.resource.kind, object.name);
}

fn without_empty(value: &Value) -> Value {
    match value {
        Value::Object(map) => map
            .iter()
            .map(|(k, v)| (k.clone(), without_empty(v)))
            .filter(|(_, v)| !v.as_object().is_some_and(serde_json::Map::is_empty))
            .collect(),
        Value::Array(items) => items.iter().map(without_empty).collect(),
        other => other.clone(),
    }
}

#[test]
fn three_members_with_every_default() {
    insta::assert_snapshot!("defaults", golden(json!({})));
}

#[test]
fn one_member_has_no_disruption_budget_and_one_replica() {
    insta::assert_snapshot!(
        "one_member",
        golden(json!({ "members": 1, "storage": { "size": "1Gi", "storageClassName": "fast" } }))
    );
}

#[test]
fn zones_pin_members_and_overrides_are_merged() {
    insta::assert_snapshot!(
        "zones_and_overrides",
        golden(json!({
            "members": 3,
            "image": "registry.example/broker:7",
            "imagePullPolicy": "Always",
            "imagePullSecrets": [{ "name": "pull" }],
            "placement": { "zones": ["zone-a", "zone-b", "zone-c"] },
            "resources": { "requests": { "cpu": "250m", "memory": "256Mi" }, "limits": { "memory": "1Gi" } },
            "pod": {
                "metadata": { "labels": { "team": "shop", "app.kubernetes.io/instance": "not-yours" }, "annotations": { "note": "1" } },
                "spec": {
                    "priorityClassName": "important",
                    "tolerations": [{ "key": "mq", "operator": "Exists" }],
                    "securityContext": { "fsGroup": null },
                    "containers": [{ "name": "broker", "env": [{ "name": "RUST_LOG", "value": "debug" }] }],
                },
            },
            "listeners": {
                "amqp": { "enabled": false },
                "service": { "type": "LoadBalancer", "annotations": { "example.org/lb": "internal" } },
                "advertisedAddress": "mq.example.org",
                "extraSans": ["10.9.8.7"],
            },
        }))
    );
}

/// What is written about whose the volumes are, before any broker hears of it; and the one case in which they go.
#[test]
fn volumes_that_go_with_their_cluster_are_owned_by_it_and_carry_its_identity() {
    let member = |n: u32| {
        let volume = VolumeFacts { bound: true, version: Some("7".into()), ..VolumeFacts::default() };
        let health = Health { member_uuid: format!("disk-{n}"), ..Health::default() };
        (n, MemberFacts { volume: Some(volume), answer: Some(Ok(health)), ..MemberFacts::default() })
    };
    let observed = Observed { members: (0..2).map(member).collect(), ..Observed::default() };
    let children = children_of(json!({ "members": 2, "storage": { "deletionPolicy": "Delete" } }), &observed);
    let told = |o: &&Object| o.resource.kind == "PersistentVolumeClaim" || o.name == "demo-identity";
    let mut text = String::new();
    for object in children.iter().filter(told) {
        check_shape(object);
        text.push_str("---\n");
        text.push_str(&serde_saphyr::to_string(&object.body).expect("YAML"));
    }
    insta::assert_snapshot!("volumes_and_identity", text);
}

#[test]
fn a_hibernated_cluster_keeps_its_sets_at_zero() {
    let sets: Vec<_> = children(json!({ "hibernate": true }))
        .into_iter()
        .filter(|o| o.resource.kind == "StatefulSet")
        .map(|o| o.body["spec"]["replicas"].clone())
        .collect();
    assert_eq!(sets, [json!(0), json!(0), json!(0)]);
}

#[test]
fn every_pod_meets_the_restricted_pod_security_standard() {
    for object in children(json!({})).into_iter().filter(|o| o.resource.kind == "StatefulSet") {
        let pod = &object.body["spec"]["template"]["spec"];
        assert_eq!(pod["securityContext"]["runAsNonRoot"], json!(true));
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], json!("RuntimeDefault"));
        assert_eq!(pod["automountServiceAccountToken"], json!(false));
        for container in pod["containers"].as_array().expect("containers") {
            assert_eq!(container["securityContext"]["allowPrivilegeEscalation"], json!(false));
            assert_eq!(container["securityContext"]["capabilities"]["drop"], json!(["ALL"]));
        }
    }
}
