//! Tables: what is seen, and what is decided.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::{super::observe::*, super::validate, *};
use crate::{
    api::v1alpha1::Founder,
    broker_admin::{AdminError, GroupCounts, Health, KnownMember, MemberState},
    controllers::Settings,
};

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
                    serving: true,
                    ..PodFacts::default()
                }),
                volume: Some(VolumeFacts {
                    requested: Some("10Gi".into()),
                    capacity: Some("10Gi".into()),
                    cluster_id: Some(ID.into()),
                    founder: Some("demo-0-0/disk-0".into()),
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
    let mut facts =
        SecretFacts { authority: Some(secret(json!({"tls.crt": "Y2E="}), json!({}))), ..SecretFacts::default() };
    let authority = Observed { secrets: facts.clone(), ..Observed::default() };
    facts.tls = Some(secret(
        json!({}),
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
            (volume.cluster_id, volume.founder) = (None, None);
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
fn founding_goes_through_the_latch_in_this_order() {
    let new = mqc(json!({}), json!({}));
    // Not every member answers.
    let mut observed = unrecorded(seen(&new, blank));
    member(&mut observed, 2).answer = Some(Err(silence(2)));
    assert!(matches!(decide(&new, &observed).latch, Latch::Wait(why) if why.contains("demo-2-0")));
    // All do, and nothing is known: write it down, ask nobody.
    let observed = unrecorded(seen(&new, blank));
    let founder = Founder { member: "demo-0-0".into(), uuid: "disk-0".into() };
    let record = Latch::Record { cluster_id: FRESH.into(), founder: Some(founder), adopted: false };
    assert_eq!(decide(&new, &observed).latch, record);
    // Written on the volumes only, as after a crash: the same id again, no fresh one.
    let observed = seen(&new, blank);
    assert!(matches!(decide(&new, &observed).latch, Latch::Record { cluster_id, .. } if cluster_id == ID));
    // Written everywhere: ask the founder.
    let mqc = founded();
    assert_eq!(decide(&mqc, &seen(&mqc, blank)).latch, Latch::Found { cluster_id: ID.into(), member: 0 });
}

#[test]
fn a_known_cluster_with_blank_disks_is_lost_and_never_founded_again() {
    let mqc = founded();
    let other_disks = |n| Health { member_uuid: format!("another-{n}"), ..blank(n) };
    assert!(matches!(decide(&mqc, &seen(&mqc, other_disks)).latch, Latch::DataLost(_)));
    // A majority suffices.
    let mut observed = seen(&mqc, other_disks);
    member(&mut observed, 2).answer = Some(Err(silence(2)));
    assert!(matches!(decide(&mqc, &observed).latch, Latch::DataLost(_)));
    // Also when the third disk remembers: it has no majority.
    let mut observed = seen(&mqc, other_disks);
    *health(&mut observed, 2) = Health { quorum: false, ..started(2) };
    assert!(matches!(decide(&mqc, &observed).latch, Latch::DataLost(_)));
    // One blank disk of three is a member to join, not a loss.
    let mut observed = seen(&mqc, started);
    *health(&mut observed, 2) = other_disks(2);
    assert!(matches!(decide(&mqc, &observed).latch, Latch::Founded { .. }));
    // Members that merely do not answer are no loss either.
    let mut observed = seen(&mqc, started);
    for n in 0..3 {
        member(&mut observed, n).answer = Some(Err(silence(n)));
    }
    assert!(matches!(decide(&mqc, &observed).latch, Latch::Wait(_)));
}

#[test]
fn disks_of_an_earlier_object_are_adopted_and_foreign_ones_refused() {
    let applied_again = mqc(json!({}), json!({}));
    let latch = decide(&applied_again, &unrecorded(seen(&applied_again, started))).latch;
    assert_eq!(latch, Latch::Record { cluster_id: ID.into(), founder: None, adopted: true });

    let mqc = founded();
    let mut observed = seen(&mqc, started);
    health(&mut observed, 1).cluster_id = Some("stranger".into());
    assert!(matches!(decide(&mqc, &observed).latch, Latch::Foreign(why) if why.contains("stranger")));
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
fn a_roll_takes_one_healthy_member_at_a_time_and_the_metadata_leader_last() {
    let (mqc, mut observed) = changed();
    let first = decide(&mqc, &observed);
    assert_eq!(first.removal.as_ref().map(|r| r.member), Some(1), "demo-0-0 leads the metadata");
    assert_eq!(first.write, BTreeSet::from([1]), "templates of others are not written before their turn");
    assert_eq!(first.outdated.len(), 3);
    for done in [1, 2] {
        let inputs = Some(cluster(&mqc, &observed).inputs(done, "leaf-1"));
        pod(&mut observed, done).inputs = inputs.clone();
        member(&mut observed, done).stateful_set.as_mut().expect("a set").inputs = inputs;
    }
    assert_eq!(decide(&mqc, &observed).removal.map(|r| r.member), Some(0));
}

#[test]
fn a_roll_waits_for_whatever_makes_another_member_indispensable() {
    type Spoil = fn(&mut Observed);
    let table: [(&str, Spoil); 7] = [
        ("not ready", |o| pod(o, 2).ready = false),
        ("going away", |o| pod(o, 2).going = true),
        ("silent", |o| member(o, 2).answer = Some(Err(silence(2)))),
        ("out of touch", |o| health(o, 2).quorum = false),
        ("behind", |o| health(o, 2).groups.lagging = 1),
        ("under-replicated", |o| health(o, 0).groups.under_replicated = 1),
        ("leaderless", |o| health(o, 0).groups.without_leader = 1),
    ];
    for (what, spoil) in table {
        let (mqc, mut observed) = changed();
        spoil(&mut observed);
        let plan = decide(&mqc, &observed);
        assert!(plan.removal.is_none() && plan.write.is_empty() && plan.held.len() == 1, "{what}: {plan:?}");
    }
}

#[test]
fn members_that_run_no_broker_are_repaired_without_asking_anybody() {
    let (mqc, mut observed) = changed();
    for n in 0..3 {
        member(&mut observed, n).answer = None;
        let pod = pod(&mut observed, n);
        (pod.running, pod.ready) = (false, false);
        pod.waiting = Some(("ImagePullBackOff".into(), "no such image".into()));
    }
    let plan = decide(&mqc, &observed);
    assert_eq!(plan.write, BTreeSet::from([0, 1, 2]));
    assert_eq!(plan.removal.map(|r| r.member), Some(0), "still one at a time");
}

#[test]
fn the_replica_count_and_storage_are_no_reason_to_restart() {
    let observed = seen(&founded(), started);
    let mut mqc = founded();
    mqc.spec.storage.size = "20Gi".into();
    mqc.spec.health.interval_seconds = 9;
    let plan = decide(&mqc, &observed);
    assert!(plan.outdated.is_empty() && plan.removal.is_none());
    assert_eq!(plan.grow, BTreeSet::from([0, 1, 2]));
    mqc.spec.hibernate = true;
    let plan = decide(&mqc, &observed);
    assert_eq!((plan.write.len(), plan.removal), (3, None), "scaled to zero, not removed one by one");
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
fn a_silent_broker_gets_no_new_connections_until_it_answers() {
    let mqc = founded();
    for (silent_seconds, off) in [(14, false), (15, true)] {
        let mut observed = seen(&mqc, started);
        member(&mut observed, 1).answer = Some(Err(silence(1)));
        member(&mut observed, 1).silent_since = Some(now() - jiff::SignedDuration::from_secs(silent_seconds));
        let changes = decide(&mqc, &observed).serving;
        assert_eq!(changes.get("demo-1-0"), off.then_some(&false), "{silent_seconds} s");
    }
    let mut observed = seen(&mqc, started);
    pod(&mut observed, 1).serving = false;
    assert_eq!(decide(&mqc, &observed).serving, BTreeMap::from([("demo-1-0".into(), true)]));
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
