//! Tables: what is seen, and what is decided.

use std::{net::IpAddr, sync::OnceLock};

use k8s_openapi::ByteString;
use serde_json::{Value, json};

use super::{super::observe::*, super::validate, *};
use crate::{
    api::v1alpha1::Founder,
    broker_admin::{AdminError, GroupCounts, Health, KnownMember, MemberState},
    certificates::{self, KeyedCertificate},
    controllers::Settings,
};

mod latch;
mod roll;

const ID: &str = "cluster-1";
const FRESH: &str = "fresh";
const ZONES: [&str; 3] = ["zone-1", "zone-2", "zone-3"];

fn now() -> Timestamp {
    "2026-11-22T10:00:00Z".parse().expect("a time")
}

fn mqc(spec: Value, status: Value) -> MessageQueueCluster {
    serde_json::from_value(json!({
        "apiVersion": "holdfast.dev/v1alpha1", "kind": "MessageQueueCluster",
        "metadata": { "name": "demo", "namespace": "ns", "uid": "u" }, "spec": spec, "status": status,
    }))
    .expect("a cluster")
}

fn founded() -> MessageQueueCluster {
    mqc(json!({"image": "b:1"}), json!({ "clusterID": ID, "founder": { "member": "demo-0-0", "uuid": "disk-0" } }))
}

fn blank(member: u32) -> Health {
    Health { name: format!("demo-{member}-0"), member_uuid: format!("disk-{member}"), ..Health::default() }
}

fn started(member: u32) -> Health {
    let known = |n: u32| KnownMember {
        name: format!("demo-{n}-0"),
        id: Some(u64::from(n) + 1),
        zone: ZONES[n as usize].into(),
        live: true,
        ready: true,
    };
    Health {
        cluster_id: Some(ID.into()),
        state: MemberState::Started,
        ready: true,
        quorum: true,
        metadata_leader: Some("demo-0-0".into()),
        zone: ZONES[member as usize].into(),
        zone_fault_tolerant: true,
        members: (0..3).map(known).collect(),
        groups: GroupCounts { total: 4, leading: if member == 0 { 2 } else { 1 }, ..GroupCounts::default() },
        ..blank(member)
    }
}

fn silence(member: u32) -> AdminError {
    AdminError::NoAnswer { member: format!("demo-{member}-0"), why: "timeout".into() }
}

/// Three members whose template is up to date with `mqc`'s spec.
fn seen(mqc: &MessageQueueCluster, health: impl Fn(u32) -> Health) -> Observed {
    let mut observed = Observed { secrets: secrets(mqc), ..Observed::default() };
    let inputs = |n| cluster(mqc, &Observed::default()).inputs(n, "leaf-1");
    for number in 0..3u32 {
        observed.members.insert(
            number,
            MemberFacts {
                stateful_set: Some(StatefulSetFacts { inputs: Some(inputs(number)), replicas: 1, claim_size: None }),
                has_config: true,
                pod: Some(PodFacts {
                    name: format!("demo-{number}-0"),
                    uid: format!("pod-{number}"),
                    ip: Some(IpAddr::from([10, 0, 0, number as u8])),
                    inputs: Some(inputs(number)),
                    node: Some(format!("n{number}")),
                    zone: Some(ZONES[number as usize].into()),
                    ready: true,
                    running: true,
                    created: Some(now() - jiff::SignedDuration::from_hours(1)),
                    serving: true,
                    ..PodFacts::default()
                }),
                volume: Some(VolumeFacts {
                    version: None,
                    requested: Some("10Gi".into()),
                    capacity: Some("10Gi".into()),
                    cluster_id: Some(ID.into()),
                    founder: Some("demo-0-0/disk-0".into()),
                    member_uuid: Some(format!("disk-{number}")),
                    bound: true,
                }),
                answer: Some(Ok(health(number))),
                ..MemberFacts::default()
            },
        );
    }
    observed
}

fn secrets(mqc: &MessageQueueCluster) -> SecretFacts {
    let secret = |data: Value, annotations: Value| {
        serde_json::from_value(
            json!({ "metadata": { "annotations": annotations, "resourceVersion": "7" }, "data": data }),
        )
        .expect("a Secret")
    };
    static AUTHORITY: OnceLock<KeyedCertificate> = OnceLock::new();
    let pair = AUTHORITY.get_or_init(|| certificates::new_authority("ns/demo", now()).expect("an authority"));
    let text = |text: &str| json!(ByteString(text.as_bytes().to_vec()));
    let authority = json!({ "tls.crt": text(&pair.certificate), "tls.key": text(&pair.key) });
    let mut facts = SecretFacts { authority: Some(secret(authority, json!({}))), ..SecretFacts::default() };
    let authority = Observed { secrets: facts.clone(), ..Observed::default() };
    facts.tls = Some(secret(
        json!({ "ca.crt": text(&pair.certificate) }),
        json!({
            LEAF_ANNOTATION: "leaf-1",
            RENEW_ANNOTATION: "2027-01-01T00:00:00Z",
            NAMES_ANNOTATION: certified_names(&cluster(mqc, &Observed::default()), &authority),
        }),
    ));
    facts.user = Some(secret(json!({}), json!({})));
    // "cluster-1"
    facts.identity = Some(secret(json!({"clusterId": "Y2x1c3Rlci0x"}), json!({})));
    facts
}

fn cluster(mqc: &MessageQueueCluster, observed: &Observed) -> ValidatedCluster {
    let settings = Settings { broker_image: "default:1".into(), controller_name: "c".into() };
    validate::validate(mqc, observed, &settings).cluster.expect("valid")
}

fn decide(mqc: &MessageQueueCluster, observed: &Observed) -> Plan {
    let settings = Settings { broker_image: "default:1".into(), controller_name: "c".into() };
    plan(mqc, &validate::validate(mqc, observed, &settings), observed, FRESH, now())
}

fn member(observed: &mut Observed, number: u32) -> &mut MemberFacts {
    observed.members.get_mut(&number).expect("a member")
}

fn pod(observed: &mut Observed, number: u32) -> &mut PodFacts {
    member(observed, number).pod.as_mut().expect("a pod")
}

fn health(observed: &mut Observed, number: u32) -> &mut Health {
    member(observed, number).answer.as_mut().expect("asked").as_mut().expect("an answer")
}

fn unrecorded(mut observed: Observed) -> Observed {
    observed.secrets.identity = None;
    for member in observed.members.values_mut() {
        if let Some(volume) = &mut member.volume {
            (volume.cluster_id, volume.founder, volume.member_uuid) = (None, None, None);
        }
    }
    observed
}

#[test]
fn a_healthy_cluster_is_left_alone() {
    let mqc = founded();
    let plan = decide(&mqc, &seen(&mqc, started));
    assert_eq!(plan.latch, Latch::Founded { cluster_id: ID.into() });
    assert!(plan.write.is_empty() && plan.removal.is_none() && plan.drain.is_empty() && plan.serving.is_empty());
    assert_eq!((plan.membership, plan.grow.len(), plan.leaf), (None, 0, Leaf::Keep { id: "leaf-1".into() }));
}

#[test]
fn an_adopted_cluster_gets_the_generated_user_anew_and_an_edited_password_too() {
    let mut mqc = founded();
    assert!(decide(&mqc, &seen(&mqc, started)).set_user);
    for (version, due) in [("7", false), ("6", true)] {
        mqc.status =
            serde_json::from_value(json!({ "clusterID": ID, "binding": {"name": "s", "resourceVersion": version} }))
                .ok();
        assert_eq!(decide(&mqc, &seen(&mqc, started)).set_user, due);
    }
}

/// The cluster runs `b:1`, and the spec now says `b:2`.
fn changed() -> (MessageQueueCluster, Observed) {
    let observed = seen(&founded(), started);
    let mut mqc = founded();
    mqc.spec.image = Some("b:2".into());
    (mqc, observed)
}

#[test]
fn leaders_leave_a_member_that_is_going_away_if_another_can_take_them() {
    let mqc = founded();
    let mut observed = seen(&mqc, started);
    pod(&mut observed, 0).node_going = true;
    assert_eq!(decide(&mqc, &observed).drain, vec![0]);
    pod(&mut observed, 1).going = true;
    assert_eq!(decide(&mqc, &observed).drain, vec![0, 1]);
    health(&mut observed, 0).groups.leading = 0;
    assert_eq!(decide(&mqc, &observed).drain, vec![1]);
    pod(&mut observed, 2).ready = false;
    pod(&mut observed, 0).going = true;
    assert_eq!(decide(&mqc, &observed).drain, Vec::<u32>::new(), "nobody is left to take them");
}

#[test]
fn leaders_that_nobody_can_take_are_not_asked_for_in_every_pass() {
    let mqc = founded();
    let mut observed = seen(&mqc, started);
    pod(&mut observed, 0).node_going = true;
    for (seconds, kept, asked) in [(59, 2, false), (60, 2, true), (1, 1, true)] {
        member(&mut observed, 0).kept_leaders = Some((now() - jiff::SignedDuration::from_secs(seconds), kept));
        assert_eq!(!decide(&mqc, &observed).drain.is_empty(), asked, "{seconds} s ago {kept} stayed");
    }
}

#[test]
fn a_silent_broker_gets_no_new_connections_until_it_answers() {
    let mqc = founded();
    for (silent_seconds, off) in [(14, false), (15, true)] {
        let mut observed = seen(&mqc, started);
        member(&mut observed, 1).answer = Some(Err(silence(1)));
        member(&mut observed, 1).silent_since = Some(now() - jiff::SignedDuration::from_secs(silent_seconds));
        let changes = decide(&mqc, &observed).serving;
        assert_eq!(changes.get("demo-1-0"), off.then_some(&false), "{silent_seconds} s");
    }
    let mut mqc = mqc;
    mqc.spec.health.success_threshold = 2;
    let mut observed = seen(&mqc, started);
    pod(&mut observed, 1).serving = false;
    for (answers, back) in [(1, false), (2, true)] {
        member(&mut observed, 1).answers_in_row = answers;
        assert_eq!(decide(&mqc, &observed).serving.get("demo-1-0"), back.then_some(&true), "{answers} answers");
    }
}

#[test]
fn a_lost_authority_is_not_replaced_while_a_pod_is_there_and_restarts_nobody() {
    let mqc = founded();
    let other = || certificates::new_authority("ns/demo", now()).expect("an authority");
    type Loss = Box<dyn Fn(&mut Observed)>;
    let table: [(&str, Loss); 3] = [
        ("deleted", Box::new(|o| o.secrets.authority = None)),
        ("unusable", Box::new(|o| data(&mut o.secrets.authority, "tls.key", "nonsense"))),
        (
            "another",
            Box::new(move |o| {
                let other = other();
                data(&mut o.secrets.authority, "tls.crt", &other.certificate);
                data(&mut o.secrets.authority, "tls.key", &other.key);
            }),
        ),
    ];
    for (what, lose) in &table {
        let mut observed = seen(&mqc, started);
        lose(&mut observed);
        let plan = decide(&mqc, &observed);
        assert_eq!(plan.leaf, Leaf::Keep { id: "leaf-1".into() }, "{what}");
        assert!(plan.write.is_empty() && plan.removal.is_none() && plan.outdated.is_empty(), "{what}: {plan:?}");
        // Once no pod is left, there is nobody to part from.
        observed.members.values_mut().for_each(|m| (m.pod, m.answer) = (None, None));
        assert!(matches!(decide(&mqc, &observed).leaf, Leaf::Issue { .. }), "{what}");
    }
}

fn data(secret: &mut Option<k8s_openapi::api::core::v1::Secret>, key: &str, value: &str) {
    let data = secret.as_mut().expect("a Secret").data.get_or_insert_default();
    data.insert(key.into(), ByteString(value.as_bytes().to_vec()));
}

#[test]
fn an_invalid_template_stops_nothing_but_what_depends_on_it() {
    let (mut mqc, mut observed) = changed();
    mqc.spec.pod = Some(json!({ "spec": { "containers": 7 } }));
    pod(&mut observed, 0).node_going = true;
    pod(&mut observed, 1).serving = false;
    member(&mut observed, 1).answers_in_row = 1;
    pod(&mut observed, 2).zone = Some("zone-9".into());
    let plan = decide(&mqc, &observed);
    assert!(!plan.hands_off && plan.write.is_empty() && plan.removal.is_none(), "{plan:?}");
    assert_eq!((plan.drain, plan.serving.len(), plan.membership.is_some()), (vec![0], 1, true));
}

#[test]
fn a_member_whose_node_is_unreachable_for_too_long_is_reported_and_left_alone() {
    let mqc = founded();
    let mut observed = seen(&mqc, started);
    for (seconds, lost) in [(299, false), (300, true)] {
        pod(&mut observed, 1).node_unreachable_since = Some(now() - jiff::SignedDuration::from_secs(seconds));
        let plan = decide(&mqc, &observed);
        let held = plan.held.iter().find(|b| b.reason == Reason::MemberLost);
        assert_eq!(held.is_some_and(|b| b.message.contains("demo-1-0 is lost: its node n1")), lost, "{seconds} s");
        assert!(plan.removal.is_none());
    }
}

#[test]
fn the_brokers_are_told_how_many_copies_confirms_wait_for_when_that_changes() {
    let mut mqc = founded();
    let observed = seen(&mqc, started);
    let told = |mqc: &MessageQueueCluster| decide(mqc, &observed).set_min_in_sync;
    assert_eq!(told(&mqc), Some(0), "an adopted cluster may have another figure");
    let status = mqc.status.as_mut().expect("a status");
    status.replication = serde_json::from_value(json!({ "factor": 3, "minInSyncReplicas": 0 })).ok();
    assert_eq!(told(&mqc), None);
    mqc.spec.replication = serde_json::from_value(json!({ "minInSyncReplicas": 2 })).ok();
    assert_eq!(told(&mqc), Some(2));
    mqc.spec.replication = serde_json::from_value(json!({ "minInSyncReplicas": 4 })).ok();
    assert_eq!(told(&mqc), None, "refused: it stays as it is");
}

#[test]
fn a_cluster_that_outgrew_its_factor_says_so() {
    let mut mqc = founded();
    let observed = seen(&mqc, started);
    let said = |mqc: &MessageQueueCluster| {
        decide(mqc, &observed).held.into_iter().find(|b| b.reason == Reason::FactorFixedAtFounding)
    };
    for (factor, told) in [(1, true), (3, false)] {
        mqc.status.as_mut().expect("a status").replication = serde_json::from_value(json!({ "factor": factor })).ok();
        assert_eq!(said(&mqc).is_some_and(|b| b.message.contains("replication.factor: 3")), told, "{factor}");
    }
    mqc.status.as_mut().expect("a status").replication = serde_json::from_value(json!({ "factor": 1 })).ok();
    mqc.spec.replication = serde_json::from_value(json!({ "factor": 1 })).ok();
    assert_eq!(said(&mqc), None, "it was asked for");
}

#[test]
fn when_no_broker_answers_the_operator_is_cut_off_and_takes_none_off() {
    let mqc = founded();
    let mut observed = seen(&mqc, started);
    for n in 0..3 {
        member(&mut observed, n).answer = Some(Err(silence(n)));
        member(&mut observed, n).silent_since = Some(now() - jiff::SignedDuration::from_secs(600));
    }
    assert!(decide(&mqc, &observed).serving.is_empty());
}

#[test]
fn the_brokers_are_told_of_new_members_and_of_zones_that_changed() {
    let mqc = founded();
    let mut observed = seen(&mqc, started);
    pod(&mut observed, 2).zone = Some("zone-9".into());
    let told = decide(&mqc, &observed).membership.expect("told");
    assert_eq!(told.iter().map(|m| m.zone.as_str()).collect::<Vec<_>>(), ["zone-1", "zone-2", "zone-9"]);
    // A zone that cannot be read just now is no change.
    pod(&mut observed, 2).zone = None;
    assert_eq!(decide(&mqc, &observed).membership, None);
    // A new member is listed once its pod has a node.
    let mut larger = founded();
    larger.spec.members = 4;
    assert_eq!(decide(&larger, &observed).membership, None);
}

/// Another hash of the same names has every member restarted when an operator is installed.
#[test]
fn the_names_of_a_certificate_have_the_hash_that_they_always_had() {
    let mut mqc = founded();
    mqc.spec.listeners.extra_sans = vec!["mq.example.org".into(), "10.0.0.1".into()];
    assert_eq!(certified(&cluster(&mqc, &Observed::default()), "authority"), "313236dabe9a9d08");
}

#[test]
fn a_leaf_is_issued_anew_for_other_names_another_authority_or_when_its_time_comes() {
    let mqc = founded();
    let mut observed = seen(&mqc, started);
    let issued = Leaf::Issue { id: now().as_millisecond().to_string() };
    let mut renamed = founded();
    renamed.spec.listeners.extra_sans = vec!["mq.example.org".into()];
    assert_eq!(decide(&renamed, &observed).leaf, issued);
    let annotations = |o: &mut Observed, key: &str, value: &str| {
        let tls = o.secrets.tls.as_mut().expect("a Secret");
        tls.metadata.annotations.get_or_insert_default().insert(key.into(), value.into());
    };
    annotations(&mut observed, RENEW_ANNOTATION, "2026-11-22T09:59:59Z");
    let plan = decide(&mqc, &observed);
    assert_eq!(plan.leaf, issued);
    assert_eq!(plan.outdated.len(), 3, "brokers read certificates at start, so members are rolled");
}

#[test]
fn a_paused_cluster_is_only_looked_at() {
    let (mut mqc, observed) = changed();
    mqc.spec.paused = true;
    let plan = decide(&mqc, &observed);
    assert!(plan.hands_off && plan.removal.is_none() && plan.write.is_empty() && !plan.set_user);
}
