//! `min-in-sync-replicas`: what is confirmed is on as many disks as was asked for, and what cannot be is refused.

mod common;

use common::{Client, Cluster};
use holdfast_engine::admin::{AdminAction, AdminReply, GroupReport};
use holdfast_queue::ids::GroupId;
use holdfast_queue::time::Duration;
use holdfast_wire::Method;

/// The first queue's group.
const QUEUE: GroupId = GroupId(1);

fn ready(members: usize, min_in_sync_replicas: u8) -> Cluster {
    let mut cluster = Cluster::blank(members);
    cluster.default_min_in_sync_replicas = min_in_sync_replicas;
    assert_eq!(cluster.bootstrap("c1"), Ok(AdminReply::Done));
    cluster.wait("all members are ready", |cluster| (0..members).all(|at| cluster.member(at).ready()));
    cluster
}

/// A client on member 0, which leads the queue that the client declares and publishes to with confirms.
fn publisher(cluster: &mut Cluster) -> Client {
    let mut client = cluster.client(0);
    client.declare(cluster, "q");
    client.confirm_select(cluster);
    assert_eq!(cluster.leader_of(QUEUE), Some(0));
    client
}

/// Cuts a member off, and lets the time pass after which everybody knows.
fn cut_off(cluster: &mut Cluster, member: usize, members: usize) {
    for other in (0..members).filter(|other| *other != member) {
        cluster.cut(member, other);
    }
}

fn nack(delivery_tag: u64) -> Option<Method> {
    Some(Method::BasicNack { delivery_tag, multiple: false, requeue: false })
}

fn ack(delivery_tag: u64) -> Option<Method> {
    Some(Method::BasicAck { delivery_tag, multiple: false })
}

fn report(cluster: &mut Cluster, member: usize) -> GroupReport {
    match cluster.admin(member, AdminAction::Groups { limit: 10 }) {
        Ok(AdminReply::Groups(groups)) => groups.into_iter().find(|group| group.group == QUEUE).expect("here"),
        other => panic!("{other:?} instead of groups"),
    }
}

#[test]
fn with_all_replicas_in_sync_publishes_are_confirmed_and_the_group_goes_to_sleep() {
    let mut cluster = ready(3, 3);
    let mut client = publisher(&mut cluster);
    for number in 1..=20 {
        client.publish(&mut cluster, "q", &number.to_string());
    }
    client.wait_confirmed(&mut cluster, 20);
    let group = report(&mut cluster, 0);
    assert_eq!((group.in_sync_replicas, group.min_in_sync_replicas), (Some(3), 3));
    assert_eq!(report(&mut cluster, 1).in_sync_replicas, None, "only the leader knows");
    cluster.wait("the group sleeps", |cluster| {
        cluster.member(0).host().and_then(|host| host.status(QUEUE)).is_some_and(|status| status.quiesced)
    });
}

#[test]
fn with_fewer_replicas_in_touch_a_publish_is_refused_before_it_is_appended() {
    let mut cluster = ready(3, 3);
    let mut client = publisher(&mut cluster);
    let mut elsewhere = cluster.client(1);
    elsewhere.confirm_select(&mut cluster);
    cluster.kill(2);
    cluster.run(Duration::from_secs(1));
    client.publish(&mut cluster, "q", "refused");
    elsewhere.publish(&mut cluster, "q", "refused too");
    assert_eq!(client.method_within(&mut cluster, Duration::from_millis(50)), nack(1));
    assert_eq!(elsewhere.method_within(&mut cluster, Duration::from_millis(50)), nack(1));
    assert_eq!(client.declare(&mut cluster, "q"), (0, 0), "nothing was appended");
    let group = report(&mut cluster, 0);
    assert_eq!((group.in_sync_replicas, group.min_in_sync_replicas), (Some(2), 3));
    // Without confirms the channel says it, since nothing else can.
    let mut plain = cluster.client(1);
    plain.publish(&mut cluster, "q", "refused as well");
    let Method::ChannelClose { reply_code: 406, reply_text, .. } = plain.method(&mut cluster).1 else {
        panic!("the channel ends");
    };
    assert!(reply_text.as_str().contains("2 replicas in sync, and min-in-sync-replicas is 3"), "{reply_text}");
}

#[test]
fn a_home_that_could_not_hear_that_there_are_enough_replicas_again_takes_publishes_all_the_same() {
    let mut cluster = ready(3, 3);
    drop(publisher(&mut cluster));
    let mut elsewhere = cluster.client(1);
    elsewhere.confirm_select(&mut cluster);
    cut_off(&mut cluster, 2, 3);
    cluster.run(Duration::from_secs(2));
    elsewhere.publish(&mut cluster, "q", "refused");
    assert_eq!(elsewhere.method_within(&mut cluster, Duration::from_millis(50)), nack(1));
    // The leader and this home lose each other at the moment at which the third member is back.
    cluster.mend();
    cluster.cut(0, 1);
    cluster.run(Duration::from_secs(4));
    cluster.mend();
    cluster.run(Duration::from_secs(1));
    elsewhere.publish(&mut cluster, "q", "on three disks");
    assert_eq!(elsewhere.method_within(&mut cluster, Duration::from_millis(500)), ack(2));
}

#[test]
fn the_default_can_be_changed_while_a_queue_serves_and_a_lower_one_lets_publishes_through_again() {
    let mut cluster = ready(3, 0);
    let mut client = publisher(&mut cluster);
    cluster.kill(2);
    cluster.run(Duration::from_secs(1));
    client.publish(&mut cluster, "q", "on two disks");
    assert_eq!(client.method_within(&mut cluster, Duration::from_millis(50)), ack(1));
    let put = |min| AdminAction::PutReplication { default_min_in_sync_replicas: min };
    assert_eq!(cluster.admin(1, put(3)), Ok(AdminReply::Done));
    cluster.run(Duration::from_millis(100));
    client.publish(&mut cluster, "q", "refused");
    assert_eq!(client.method_within(&mut cluster, Duration::from_millis(50)), nack(2));
    assert_eq!(cluster.admin(1, put(2)), Ok(AdminReply::Done));
    client.publish(&mut cluster, "q", "on two disks again");
    assert_eq!(client.method_within(&mut cluster, Duration::from_millis(50)), ack(3));
    assert!(cluster.admin(1, put(8)).is_err_and(|error| error.error.contains("at most 7 replicas")));
}

#[test]
fn what_was_appended_and_is_on_too_few_disks_after_ten_seconds_is_nacked_and_may_still_be_delivered() {
    let mut cluster = ready(3, 3);
    let mut client = publisher(&mut cluster);
    cut_off(&mut cluster, 2, 3);
    client.publish(&mut cluster, "q", "on two disks");
    assert_eq!(client.method_within(&mut cluster, Duration::from_millis(9_900)), None, "a majority is not enough");
    assert_eq!(client.method_within(&mut cluster, Duration::from_millis(300)), nack(1));
    assert_eq!(client.get(&mut cluster, "q").map(|message| message.body).as_deref(), Some("on two disks"));
}

#[test]
fn a_replica_that_comes_back_in_time_lets_the_confirm_go() {
    let mut cluster = ready(3, 3);
    let mut client = publisher(&mut cluster);
    let mut elsewhere = cluster.client(1);
    elsewhere.confirm_select(&mut cluster);
    cut_off(&mut cluster, 2, 3);
    client.publish(&mut cluster, "q", "from the leader's member");
    elsewhere.publish(&mut cluster, "q", "from another one");
    assert_eq!(client.method_within(&mut cluster, Duration::from_secs(4)), None);
    cluster.mend();
    assert_eq!(client.method_within(&mut cluster, Duration::from_secs(1)), ack(1));
    assert_eq!(elsewhere.method_within(&mut cluster, Duration::from_secs(1)), ack(1));
    client.publish(&mut cluster, "q", "as before");
    assert_eq!(client.method_within(&mut cluster, Duration::from_millis(50)), ack(2));
}

#[test]
fn a_new_leader_owes_the_confirms_that_its_predecessor_held_back() {
    let mut cluster = ready(5, 4);
    let mut client = publisher(&mut cluster);
    cut_off(&mut cluster, 3, 5);
    cut_off(&mut cluster, 4, 5);
    client.publish(&mut cluster, "q", "on three disks");
    assert_eq!(client.method_within(&mut cluster, Duration::from_secs(2)), None);
    let transfer = AdminAction::Transfer { group: QUEUE, to: "m1".into() };
    assert_eq!(cluster.admin(0, transfer), Ok(AdminReply::Done));
    cluster.wait("the other member leads", |cluster| cluster.leader_of(QUEUE) == Some(1));
    assert_eq!(client.method_within(&mut cluster, Duration::from_secs(3)), None, "still on three disks");
    cluster.mend();
    assert_eq!(client.method_within(&mut cluster, Duration::from_secs(2)), ack(1));
}

#[test]
fn close_ok_waits_for_the_copies_that_no_nack_can_be_sent_for() {
    let mut cluster = ready(3, 3);
    drop(publisher(&mut cluster));
    let mut plain = cluster.client(1);
    cut_off(&mut cluster, 2, 3);
    plain.publish(&mut cluster, "q", "without confirms");
    let (reply_text, class_id, method_id) = (common::short("bye"), 0, 0);
    plain.send(&mut cluster, 0, Method::ConnectionClose { reply_code: 200, reply_text, class_id, method_id });
    assert_eq!(plain.method_within(&mut cluster, Duration::from_secs(12)), None);
    cluster.mend();
    assert_eq!(plain.method_within(&mut cluster, Duration::from_secs(3)), Some(Method::ConnectionCloseOk {}));
}

#[test]
fn acks_and_replies_need_a_majority_only() {
    let mut cluster = ready(3, 3);
    let mut client = publisher(&mut cluster);
    client.publish(&mut cluster, "q", "one");
    client.wait_confirmed(&mut cluster, 1);
    let received = client.get(&mut cluster, "q").expect("published");
    cluster.kill(2);
    client.ack(&mut cluster, received.tag, false);
    client.qos(&mut cluster, 1);
    assert_eq!(client.declare(&mut cluster, "q"), (0, 0));
}
