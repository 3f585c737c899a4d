//! Barriers: a consistent cut while clients publish, and what becomes of it when members go away in the middle.

mod common;

use common::Cluster;
use holdfast_engine::admin::{AdminAction, AdminError, AdminErrorKind, AdminReply};
use holdfast_engine::backup::{BarrierReport, BarrierRequest, HoldOrder};
use holdfast_engine::{AdminRequestId, Input};
use holdfast_queue::arguments::{Arguments, Value};
use holdfast_queue::ids::GroupId;
use holdfast_queue::meta::{ApplyTo, NewPolicy, PolicyKind};
use holdfast_queue::time::Duration;

/// The first queue's group.
const QUEUE: GroupId = GroupId(1);

fn barrier(id: &str, allow_partial: bool) -> AdminAction {
    AdminAction::Barrier(BarrierRequest { id: id.into(), hold_seconds: 60, allow_partial })
}

fn ask(cluster: &mut Cluster, member: usize, id: &str, allow_partial: bool) -> Result<BarrierReport, AdminError> {
    match cluster.admin(member, barrier(id, allow_partial)) {
        Ok(AdminReply::Barrier(report)) => Ok(*report),
        Err(error) => Err(error),
        other => panic!("{other:?} instead of a barrier"),
    }
}

/// Asks without waiting for the answer.
fn begin(cluster: &mut Cluster, member: usize, id: &str) -> AdminRequestId {
    let request = AdminRequestId(1 << 40);
    let body = holdfast_engine::admin::AdminRequest { token: None, action: barrier(id, false) };
    cluster.input(member, Input::Admin { request, body });
    cluster.settle();
    request
}

/// Three members, a queue that member 0 leads, and a client of member 1 that has published once.
fn loaded() -> (Cluster, common::Client) {
    let mut cluster = Cluster::ready(3);
    cluster.client(0).declare(&mut cluster, "q");
    assert_eq!(cluster.leader_of(QUEUE), Some(0));
    let mut client = cluster.client(1);
    client.confirm_select(&mut cluster);
    client.publish(&mut cluster, "q", "1");
    client.wait_confirmed(&mut cluster, 1);
    (cluster, client)
}

#[test]
fn a_barrier_cuts_every_group_at_or_above_all_that_was_confirmed_and_clients_go_on() {
    let (mut cluster, mut client) = loaded();
    let confirmed = cluster.member(0).host().expect("started").applied(QUEUE);
    let report = ask(&mut cluster, 2, "b1", false).expect("all are here");
    let groups: Vec<u64> = report.places.iter().map(|place| place.group.0).collect();
    assert_eq!((groups.as_slice(), report.manifest.missing.len()), ([0, 1].as_slice(), 0));
    assert!(report.places[1].index >= confirmed, "{report:?}");
    client.publish(&mut cluster, "q", "2");
    client.wait_confirmed(&mut cluster, 2);
}

#[test]
fn groups_that_have_fallen_asleep_are_part_of_it() {
    let (mut cluster, _client) = loaded();
    cluster.run(Duration::from_secs(20));
    let host = cluster.member(0).host().expect("started");
    assert!(host.status(QUEUE).is_some_and(|status| status.quiesced), "asleep");
    let report = ask(&mut cluster, 1, "b1", false).expect("it wakes");
    assert_eq!(report.places.len(), 2);
}

#[test]
fn behind_the_gate_nothing_leaves_and_when_it_opens_everything_does_in_order() {
    let (mut cluster, mut client) = loaded();
    let mut consumer = cluster.client(2);
    consumer.consume(&mut cluster, "q", "c", true);
    assert_eq!(consumer.receive(&mut cluster).body, "1");
    gate_leader(&mut cluster);
    let mut near = Vec::new();
    for number in 2..=3 {
        client.publish(&mut cluster, "q", &number.to_string());
        near.extend(client.method_within(&mut cluster, Duration::from_millis(100)));
    }
    assert_eq!(near, [], "confirms wait behind the gate");
    assert_eq!(consumer.method_within(&mut cluster, Duration::from_millis(100)), None, "deliveries too");
    cluster.let_through(0, 2);
    client.wait_confirmed(&mut cluster, 3);
    assert_eq!([consumer.receive(&mut cluster).body, consumer.receive(&mut cluster).body], ["2", "3"]);
}

/// Member 2 coordinates a barrier; member 0 has closed its gate, and member 2 does not hear of it.
fn gate_leader(cluster: &mut Cluster) {
    cluster.settle();
    cluster.stopped.push((0, 2));
    begin(cluster, 2, "gated");
    // The first answer arrives, and the one from behind the gate does not.
    cluster.let_through(0, 2);
    cluster.stopped.push((0, 2));
    cluster.settle();
}

#[test]
fn the_gate_opens_by_itself_when_the_coordinator_dies_and_another_barrier_can_begin() {
    let (mut cluster, mut client) = loaded();
    gate_leader(&mut cluster);
    cluster.kill(2);
    client.publish(&mut cluster, "q", "2");
    assert_eq!(client.method_within(&mut cluster, Duration::from_millis(500)), None);
    let busy = ask(&mut cluster, 1, "b2", false).expect_err("the members are engaged");
    assert_eq!(busy.kind, AdminErrorKind::Conflict, "{busy:?}");
    client.wait_confirmed(&mut cluster, 2);
    cluster.run(Duration::from_secs(10));
    let report = ask(&mut cluster, 1, "b3", false).expect("two of three are a quorum");
    assert_eq!(report.places.len(), 2);
}

#[test]
fn a_leader_that_dies_behind_the_gate_is_followed_by_another_one_and_nothing_is_lost() {
    let (mut cluster, mut client) = loaded();
    gate_leader(&mut cluster);
    client.publish(&mut cluster, "q", "2");
    cluster.settle();
    cluster.kill(0);
    client.wait_confirmed(&mut cluster, 2);
    cluster.wait("the barrier is done", |cluster| cluster.answered(AdminRequestId(1 << 40)));
    let done = cluster.answer(AdminRequestId(1 << 40));
    let Ok(AdminReply::Barrier(report)) = done else { panic!("{done:?}") };
    let applied = cluster.member(1).host().expect("started").applied(QUEUE);
    assert!(report.places.len() == 2 && report.places[1].index <= applied, "{report:?}");
    assert_eq!(client.declare(&mut cluster, "q"), (2, 0));
}

#[test]
fn a_leadership_that_is_handed_over_behind_the_gate_does_not_break_it() {
    let (mut cluster, mut client) = loaded();
    gate_leader(&mut cluster);
    let transfer = AdminAction::Transfer { group: QUEUE, to: "m1".into() };
    assert_eq!(cluster.admin(0, transfer), Ok(AdminReply::Done));
    client.publish(&mut cluster, "q", "2");
    cluster.let_through(0, 2);
    cluster.wait("the barrier is done", |cluster| cluster.answered(AdminRequestId(1 << 40)));
    assert!(cluster.answer(AdminRequestId(1 << 40)).is_ok());
    client.wait_confirmed(&mut cluster, 2);
    assert_eq!(client.declare(&mut cluster, "q"), (2, 0));
}

#[test]
fn a_group_without_a_quorum_fails_the_barrier_by_the_name_of_its_queue_unless_it_may_be_left_out() {
    let mut cluster = Cluster::ready(3);
    let one = Arguments::from([("ha-mode", Value::string("exactly")), ("ha-params", Value::I64(1))]);
    let policy = NewPolicy { pattern: "^lone$".into(), apply_to: ApplyTo::Queues, priority: 0, definition: one };
    let put = AdminAction::PutPolicy { kind: PolicyKind::User, vhost: "/".into(), name: "p".into(), policy };
    assert_eq!(cluster.admin(0, put), Ok(AdminReply::Done));
    cluster.client(0).declare(&mut cluster, "lone");
    cluster.client(1).declare(&mut cluster, "q");
    cluster.kill(0);
    cluster.run(Duration::from_secs(5));
    let error = ask(&mut cluster, 1, "b1", false).expect_err("a queue is away");
    assert!(error.kind == AdminErrorKind::Unavailable && error.error.contains("//lone"), "{error:?}");
    let report = ask(&mut cluster, 1, "b2", true).expect("it may be left out");
    assert_eq!(report.manifest.missing.len(), 1);
    assert_eq!(report.manifest.missing[0].queues, ["//lone"]);
    assert_eq!(report.places.iter().map(|place| place.group.0).collect::<Vec<_>>(), [0, 2]);
}

#[test]
fn requests_that_make_no_sense_are_refused() {
    let mut cluster = Cluster::ready(1);
    for (id, hold_seconds) in [("", 60), ("../b", 60), (".b", 60), ("b c", 60), ("b", 0), ("b", 86_401)] {
        let wanted = BarrierRequest { id: id.into(), hold_seconds, allow_partial: false };
        let error = cluster.admin(0, AdminAction::Barrier(wanted)).expect_err("no sense");
        assert_eq!(error.kind, AdminErrorKind::BadRequest, "{id:?} {hold_seconds}: {error:?}");
    }
    assert!(ask(&mut cluster, 0, "b", false).is_ok(), "one member is a cluster too");
}

/// The orders to members that `wanted` picks.
fn orders(cluster: &Cluster, wanted: impl Fn(&HoldOrder) -> bool) -> Vec<usize> {
    cluster.holds.iter().filter(|(_, order)| wanted(order)).map(|(at, _)| *at).collect()
}

#[test]
fn every_member_holds_its_files_and_stores_the_same_manifest_before_the_caller_hears_of_it() {
    let (mut cluster, _client) = loaded();
    let report = ask(&mut cluster, 1, "b1", false).expect("all are here");
    let makes = orders(&cluster, |order| matches!(order, HoldOrder::Make { hold, .. } if hold == "b1"));
    assert_eq!(makes.len(), 3);
    let file = report.manifest.to_file();
    assert_eq!(file.1, report.manifest_sha256);
    let stores = orders(&cluster, |order| matches!(order, HoldOrder::Store { manifest, .. } if *manifest == file.0));
    assert_eq!(stores.len(), 3);
    assert!(report.manifest.groups.iter().all(|group| group.holders == ["m0", "m1", "m2"]), "{report:?}");
}

#[test]
fn one_member_that_cannot_hold_is_left_out_and_two_fail_the_barrier_and_release_what_was_held() {
    let (mut cluster, mut client) = loaded();
    cluster.unable_to_hold.push(0);
    let report = ask(&mut cluster, 1, "b1", false).expect("two members are enough");
    assert!(report.manifest.groups.iter().all(|group| group.holders == ["m1", "m2"]), "{report:?}");
    cluster.unable_to_hold.push(2);
    let error = ask(&mut cluster, 1, "b2", false).expect_err("one is not");
    assert!(error.error.contains("1 members hold all of it, and 2 should"), "{error:?}");
    cluster.settle();
    let releases = orders(&cluster, |order| matches!(order, HoldOrder::Release { hold, .. } if hold == "b2"));
    assert_eq!(releases.len(), 3);
    client.publish(&mut cluster, "q", "2");
    client.wait_confirmed(&mut cluster, 2);
}

#[test]
fn a_member_whose_replica_is_far_behind_does_not_hold_up_the_others_for_ever() {
    let (mut cluster, mut client) = loaded();
    cluster.stall_disk(2);
    for number in 2..5 {
        client.publish(&mut cluster, "q", &number.to_string());
        client.wait_confirmed(&mut cluster, number);
    }
    let report = ask(&mut cluster, 1, "b1", false).expect("two have all of it");
    let queue = report.manifest.groups.iter().find(|group| group.place.group == QUEUE.0).expect("it is there");
    assert_eq!(queue.holders, ["m0", "m1"]);
}
