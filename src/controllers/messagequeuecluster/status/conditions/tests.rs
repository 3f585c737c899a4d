//! Tables: what is seen, and what each condition says of it.

use std::time::Duration;

use serde_json::json;

use super::{
    super::super::{
        observe::{PodFacts, StatefulSetFacts},
        plan::{Latch, Leaf, Plan},
        validate::validate,
    },
    *,
};
use crate::{
    api::v1alpha1::MessageQueueCluster,
    broker_admin::{AdminError, GroupCounts, Health},
    controllers::Settings,
};

/// Everything a picture borrows.
struct Scene {
    cluster: Option<ValidatedCluster>,
    blockers: Vec<Blocker>,
    observed: Observed,
    plan: Plan,
    failure: Option<String>,
    held: Vec<Blocker>,
    user_is_set: bool,
    was_founded: bool,
}

impl Scene {
    /// Three founded, ready members in three zones.
    fn healthy() -> Self {
        Self::of(json!({}))
    }

    fn of(spec: serde_json::Value) -> Self {
        let mqc: MessageQueueCluster = serde_json::from_value(json!({
            "apiVersion": "holdfast.dev/v1alpha1", "kind": "MessageQueueCluster",
            "metadata": { "name": "demo", "namespace": "ns" }, "spec": spec,
        }))
        .expect("a cluster");
        let settings = Settings { broker_image: "b:1".into(), controller_name: "c".into() };
        let cluster = validate(&mqc, &Observed::default(), &settings).cluster.expect("valid");
        let members = cluster.members.iter().map(|n| (*n, member(*n)));
        Self {
            observed: Observed { members: members.collect(), ..Observed::default() },
            cluster: Some(cluster),
            blockers: vec![],
            plan: Plan {
                restore: None,
                hands_off: false,
                latch: Latch::Founded { cluster_id: "c1".into() },
                leaf: Leaf::Keep { id: "l".into() },
                write: Default::default(),
                outdated: Default::default(),
                removal: None,
                drain: vec![],
                serving: Default::default(),
                grow: Default::default(),
                membership: None,
                set_user: false,
                set_min_in_sync: None,
                recovery: None,
                held: vec![],
                next: Duration::from_secs(5),
            },
            failure: None,
            held: vec![],
            user_is_set: true,
            was_founded: true,
        }
    }

    fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    fn picture(&self) -> Picture<'_> {
        Picture {
            cluster: self.cluster.as_ref(),
            blockers: &self.blockers,
            observed: &self.observed,
            plan: &self.plan,
            failure: self.failure.clone(),
            held: &self.held,
            user_is_set: self.user_is_set,
            was_founded: self.was_founded,
        }
    }

    fn pod(&mut self, number: u32) -> &mut PodFacts {
        self.observed.members.get_mut(&number).expect("a member").pod.as_mut().expect("a pod")
    }

    fn answer(&mut self, number: u32) -> &mut Health {
        let member = self.observed.members.get_mut(&number).expect("a member");
        member.answer.as_mut().expect("asked").as_mut().expect("an answer")
    }

    fn silence(&mut self, number: u32) {
        let member = format!("demo-{number}-0");
        let error = AdminError::NoAnswer { member, why: "timeout".into() };
        self.observed.members.get_mut(&number).expect("a member").answer = Some(Err(error));
    }
}

fn member(number: u32) -> MemberFacts {
    let name = format!("demo-{number}-0");
    MemberFacts {
        stateful_set: Some(StatefulSetFacts::default()),
        pod: Some(PodFacts {
            name: name.clone(),
            zone: Some(format!("zone-{}", number % 3)),
            ready: true,
            running: true,
            serving: true,
            ..PodFacts::default()
        }),
        answer: Some(Ok(Health {
            name,
            cluster_id: Some("c1".into()),
            state: MemberState::Started,
            ready: true,
            quorum: true,
            zone_fault_tolerant: true,
            groups: GroupCounts { total: 3, ..GroupCounts::default() },
            ..Health::default()
        })),
        ..MemberFacts::default()
    }
}

fn starting(scene: &mut Scene) {
    scene.was_founded = false;
    scene.user_is_set = false;
    scene.plan.latch = Latch::Wait("waiting for demo-0-0 to answer".into());
    for n in 0..3 {
        scene.observed.members.get_mut(&n).expect("a member").answer = None;
        let pod = scene.pod(n);
        (pod.ready, pod.running) = (false, false);
    }
}

fn blocker(reason: Reason) -> Blocker {
    Blocker { reason, message: format!("{reason} in words") }
}

type Expected = (Truth, Reason);

#[test]
fn ready_names_the_first_thing_that_is_missing() {
    use Truth::{False, True};
    let table: Vec<(&str, Scene, Expected)> = vec![
        ("healthy", Scene::healthy(), (True, Reason::AllMembersReady)),
        ("starting", Scene::healthy().with(starting), (False, Reason::WaitingForMembers)),
        (
            "image missing",
            Scene::healthy().with(starting).with(|s| s.pod(1).waiting = Some(("ErrImagePull".into(), "404".into()))),
            (False, Reason::ImagePullFailed),
        ),
        (
            "no room",
            Scene::healthy().with(starting).with(|s| s.pod(1).unschedulable = Some("0/3 nodes".into())),
            (False, Reason::Unschedulable),
        ),
        (
            "no storage class",
            Scene::healthy().with(starting).with(|s| s.blockers = vec![blocker(Reason::StorageClassMissing)]),
            (False, Reason::StorageClassMissing),
        ),
        (
            "founding",
            Scene::healthy().with(starting).with(|s| s.plan.latch = Latch::Found { cluster_id: "c".into(), member: 0 }),
            (False, Reason::Bootstrapping),
        ),
        ("one member down", Scene::healthy().with(|s| s.silence(1)), (False, Reason::MembersNotReady)),
        (
            "a majority down",
            Scene::healthy().with(|s| {
                s.silence(1);
                s.silence(2);
                s.answer(0).quorum = false;
            }),
            (False, Reason::QuorumLost),
        ),
        ("user not set", Scene::healthy().with(|s| s.user_is_set = false), (False, Reason::SettingUser)),
        ("rolling", Scene::healthy().with(|s| s.plan.outdated = [1].into()), (False, Reason::RollingOut)),
        (
            "invalid spec",
            Scene::healthy().with(|s| {
                s.cluster = None;
                s.blockers = vec![blocker(Reason::InvalidSpec)];
            }),
            (False, Reason::InvalidSpec),
        ),
        (
            "an invalid change to what runs",
            Scene::healthy().with(|s| s.blockers = vec![blocker(Reason::InvalidSpec)]),
            (False, Reason::InvalidSpec),
        ),
        (
            "data lost",
            Scene::healthy().with(|s| s.plan.latch = Latch::DataLost("gone".into())),
            (False, Reason::DataLost),
        ),
        (
            "a write failed while something is missing",
            Scene::healthy().with(|s| {
                s.failure = Some("quota".into());
                s.user_is_set = false;
            }),
            (False, Reason::ApplyFailed),
        ),
        (
            "a write failed while all is well",
            Scene::healthy().with(|s| s.failure = Some("a hiccup".into())),
            (True, Reason::AllMembersReady),
        ),
        (
            "hibernated",
            Scene::of(json!({"hibernate": true})).with(|s| s.observed.members.clear()),
            (True, Reason::Hibernated),
        ),
        ("going to sleep", Scene::of(json!({"hibernate": true})), (False, Reason::Hibernated)),
    ];
    for (what, scene, expected) in table {
        let verdict = ready(&scene.picture());
        assert_eq!((verdict.status, verdict.reason), expected, "{what}: {}", verdict.message);
    }
}

#[test]
fn available_asks_for_a_majority_and_a_pod_that_takes_connections() {
    use Truth::{False, True, Unknown};
    let table: Vec<(&str, Scene, Expected)> = vec![
        ("healthy", Scene::healthy(), (True, Reason::Quorum)),
        ("one member down", Scene::healthy().with(|s| s.silence(1)), (True, Reason::Quorum)),
        ("new", Scene::healthy().with(starting), (False, Reason::Bootstrapping)),
        (
            "no majority",
            Scene::healthy().with(|s| (0..3).for_each(|n| s.answer(n).quorum = false)),
            (False, Reason::QuorumLost),
        ),
        (
            "no pod ready",
            Scene::healthy().with(|s| (0..3).for_each(|n| s.pod(n).ready = false)),
            (False, Reason::WaitingForMembers),
        ),
        ("cut off", Scene::healthy().with(|s| (0..3).for_each(|n| s.silence(n))), (Unknown, Reason::NoAnswer)),
        ("hibernated", Scene::of(json!({"hibernate": true})), (False, Reason::Hibernated)),
    ];
    for (what, scene, expected) in table {
        let verdict = available(&scene.picture());
        assert_eq!((verdict.status, verdict.reason), expected, "{what}: {}", verdict.message);
    }
}

#[test]
fn degraded_is_true_for_whatever_needs_attention() {
    use Truth::{False, True};
    let table: Vec<(&str, Scene, Expected)> = vec![
        ("healthy", Scene::healthy(), (False, Reason::Healthy)),
        ("new", Scene::healthy().with(starting), (False, Reason::Healthy)),
        ("one member down", Scene::healthy().with(|s| s.silence(1)), (True, Reason::MembersNotReady)),
        (
            "quarantine",
            Scene::healthy().with(|s| s.answer(1).groups.quarantined = 1),
            (True, Reason::ReplicaQuarantined),
        ),
        ("behind", Scene::healthy().with(|s| s.answer(1).groups.lagging = 1), (True, Reason::ReplicasCatchingUp)),
        (
            "a refused change",
            Scene::healthy().with(|s| s.blockers = vec![blocker(Reason::MembersNotRemovable)]),
            (True, Reason::MembersNotRemovable),
        ),
        (
            "a volume that does not grow",
            Scene::healthy().with(|s| s.held = vec![blocker(Reason::StorageGrowthRefused)]),
            (True, Reason::StorageGrowthRefused),
        ),
        (
            "crashing",
            Scene::healthy().with(|s| s.pod(1).waiting = Some(("CrashLoopBackOff".into(), String::new()))),
            (True, Reason::BrokerCrashing),
        ),
        (
            "a lost member",
            Scene::healthy().with(|s| {
                s.silence(1);
                s.plan.held = vec![blocker(Reason::MemberLost)];
            }),
            (True, Reason::MemberLost),
        ),
        (
            "being founded",
            Scene::healthy().with(starting).with(|s| s.plan.latch = Latch::Found { cluster_id: "c".into(), member: 0 }),
            (False, Reason::Healthy),
        ),
        ("rolling as planned", Scene::healthy().with(|s| s.plan.outdated = [1].into()), (False, Reason::Healthy)),
    ];
    for (what, scene, expected) in table {
        let verdict = degraded(&scene.picture());
        assert_eq!((verdict.status, verdict.reason), expected, "{what}: {}", verdict.message);
    }
}

#[test]
fn progressing_says_what_the_operator_is_doing() {
    use Truth::{False, True};
    let table: Vec<(&str, Scene, Expected)> = vec![
        ("healthy", Scene::healthy(), (False, Reason::Idle)),
        ("new", Scene::healthy().with(starting), (True, Reason::CreatingMembers)),
        ("one member down", Scene::healthy().with(|s| s.silence(1)), (False, Reason::Idle)),
        (
            "joining",
            Scene::healthy().with(|s| s.answer(1).state = MemberState::Joining),
            (True, Reason::JoiningMembers),
        ),
        (
            "growing",
            Scene::of(json!({"members": 5})).with(|s| drop(s.observed.members.remove(&4))),
            (True, Reason::Scaling),
        ),
        ("rolling", Scene::healthy().with(|s| s.plan.outdated = [1].into()), (True, Reason::RollingOut)),
        ("paused", Scene::of(json!({"paused": true})).with(|s| s.plan.outdated = [1].into()), (False, Reason::Idle)),
        ("lost", Scene::healthy().with(|s| s.plan.latch = Latch::DataLost("gone".into())), (False, Reason::Idle)),
    ];
    for (what, scene, expected) in table {
        let verdict = progressing(&scene.picture());
        assert_eq!((verdict.status, verdict.reason), expected, "{what}: {}", verdict.message);
    }
}

#[test]
fn zone_fault_tolerance_needs_members_zones_and_every_brokers_word() {
    use Truth::{False, True, Unknown};
    let table: Vec<(&str, Scene, Expected)> = vec![
        ("healthy", Scene::healthy(), (True, Reason::EveryQueueSpansZones)),
        ("two members", Scene::of(json!({"members": 2})), (False, Reason::TooFewMembers)),
        ("unlabelled node", Scene::healthy().with(|s| s.pod(2).zone = None), (False, Reason::UnknownZones)),
        ("two zones", Scene::healthy().with(|s| s.pod(2).zone = Some("zone-0".into())), (False, Reason::TooFewZones)),
        (
            "a broker objects",
            Scene::healthy().with(|s| s.answer(2).zone_fault_tolerant = false),
            (False, Reason::ReplicasNotSpread),
        ),
        (
            "founded too small",
            Scene::healthy().with(|s| s.plan.held = vec![blocker(Reason::FactorFixedAtFounding)]),
            (False, Reason::FactorFixedAtFounding),
        ),
        ("a broker is silent", Scene::healthy().with(|s| s.silence(2)), (False, Reason::NoAnswer)),
        ("new", Scene::healthy().with(starting), (Unknown, Reason::NoAnswer)),
    ];
    for (what, scene, expected) in table {
        let verdict = zone_fault_tolerant(&scene.picture());
        assert_eq!((verdict.status, verdict.reason), expected, "{what}: {}", verdict.message);
    }
}

#[test]
fn reconciling_and_stalled_are_present_only_while_true_and_never_together() {
    let present = |scene: &Scene| {
        let picture = scene.picture();
        (reconciling(&picture).map(|v| v.reason), stalled(&picture).map(|v| v.reason))
    };
    assert_eq!(present(&Scene::healthy()), (None, None));
    assert_eq!(present(&Scene::healthy().with(starting)), (Some(Reason::WaitingForMembers), None));
    let lost = Scene::healthy().with(|s| s.plan.latch = Latch::DataLost("gone".into()));
    assert_eq!(present(&lost), (None, Some(Reason::DataLost)));
    let invalid = Scene::healthy().with(|s| {
        s.cluster = None;
        s.blockers = vec![blocker(Reason::InvalidSpec)];
    });
    assert_eq!(present(&invalid), (None, Some(Reason::InvalidSpec)));
    let serving = Scene::healthy().with(|s| s.blockers = vec![blocker(Reason::InvalidSpec)]);
    assert_eq!(present(&serving), (None, Some(Reason::InvalidSpec)));
    assert_eq!(available(&serving.picture()).status, Truth::True);
}

#[test]
fn messages_say_what_to_do() {
    let scene = Scene::healthy().with(starting).with(|s| {
        s.pod(0).unschedulable =
            Some("0/1 nodes are available: 1 node(s) didn't match pod topology spread constraints".into());
    });
    assert!(ready(&scene.picture()).message.contains("ScheduleAnyway"));
    let scene = Scene::healthy().with(|s| s.answer(1).zone_fault_tolerant = false);
    let scene = scene.with(|s| s.answer(1).zone_fault_blocker = Some("queue orders lives in zone-1 only".into()));
    assert!(zone_fault_tolerant(&scene.picture()).message.contains("queue orders"));
}
