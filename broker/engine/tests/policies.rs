//! Policies that change while their queues serve.

mod common;

use common::{Cluster, short};
use holdfast_engine::admin::{AdminAction, AdminErrorKind, AdminReply, QueueReport};
use holdfast_queue::arguments::{Arguments, Value};
use holdfast_queue::ids::GroupId;
use holdfast_queue::meta::{ApplyTo, NewPolicy, PolicyKind};
use holdfast_queue::time::Duration;
use holdfast_wire::{FieldTable, FieldValue, Method};

/// The first queue's group.
const QUEUE: GroupId = GroupId(1);

fn put(kind: PolicyKind, pattern: &str, definition: Arguments) -> AdminAction {
    let policy = NewPolicy { pattern: pattern.into(), apply_to: ApplyTo::Queues, priority: 0, definition };
    AdminAction::PutPolicy { kind, vhost: "/".into(), name: "p".into(), policy }
}

fn copies(count: i64) -> Arguments {
    Arguments::from([("min-in-sync-replicas", Value::I64(count))])
}

fn queue(cluster: &mut Cluster, member: usize) -> QueueReport {
    match cluster.admin(member, AdminAction::Queues { limit: 10 }) {
        Ok(AdminReply::Queues(queues)) => queues.into_iter().find(|queue| queue.name == "q").expect("declared"),
        other => panic!("{other:?} instead of queues"),
    }
}

#[test]
fn the_copies_that_confirms_wait_for_change_with_the_policy_while_members_die_and_nothing_confirmed_is_lost() {
    let mut cluster = Cluster::ready(3);
    let mut client = cluster.client(1);
    client.declare(&mut cluster, "q");
    client.confirm_select(&mut cluster);
    let mut published = 0;
    let mut publish = |client: &mut common::Client, cluster: &mut Cluster| {
        published += 1;
        client.publish(cluster, "q", &published.to_string());
        let outcome = client.method_within(cluster, Duration::from_millis(200));
        match outcome {
            Some(Method::BasicAck { delivery_tag, .. }) if delivery_tag == published => true,
            Some(Method::BasicNack { delivery_tag, .. }) if delivery_tag == published => false,
            other => panic!("{other:?} for publish {published}"),
        }
    };
    assert!(publish(&mut client, &mut cluster));
    assert_eq!(cluster.admin(2, put(PolicyKind::User, "q", copies(3))), Ok(AdminReply::Done));
    assert!(publish(&mut client, &mut cluster), "all three are here");
    let dead = (0..3).find(|at| *at != 1 && cluster.leader_of(QUEUE) != Some(*at)).expect("a follower elsewhere");
    cluster.kill(dead);
    cluster.run(Duration::from_secs(1));
    assert!(!publish(&mut client, &mut cluster), "the policy asks for three");
    assert_eq!(cluster.admin(1, put(PolicyKind::User, "q", copies(2))), Ok(AdminReply::Done));
    cluster.run(Duration::from_millis(100));
    assert!(publish(&mut client, &mut cluster));
    assert_eq!(cluster.admin(1, put(PolicyKind::Operator, "", copies(3))), Ok(AdminReply::Done));
    cluster.run(Duration::from_millis(100));
    assert!(!publish(&mut client, &mut cluster), "an operator's promise is kept above the user's");
    let delete = AdminAction::DeletePolicy { kind: PolicyKind::Operator, vhost: "/".into(), name: "p".into() };
    assert_eq!(cluster.admin(1, delete.clone()), Ok(AdminReply::Done));
    cluster.run(Duration::from_millis(100));
    assert!(publish(&mut client, &mut cluster));
    assert!(cluster.admin(1, delete).is_err_and(|error| error.kind == AdminErrorKind::NotFound));
    let idle = Arguments::from([("max-length", Value::I64(5))]);
    let refused = cluster.admin(1, put(PolicyKind::User, "q", idle)).expect_err("it is not honoured yet");
    assert!(refused.error.contains("nothing would come of max-length"), "{refused:?}");
    assert_eq!(client.declare(&mut cluster, "q"), (4, 0), "what was confirmed, and nothing of what was refused");
}

#[test]
fn the_listing_tells_what_counts_for_a_queue_and_which_replicas_are_synchronised() {
    let mut cluster = Cluster::ready(3);
    let mut client = cluster.client(0);
    client.declare(&mut cluster, "q");
    let plain = queue(&mut cluster, 0);
    assert_eq!((plain.policy, plain.replicas_wanted, plain.min_in_sync_replicas), (None, 3, 0));
    let two = Arguments::from([("ha-mode", Value::string("exactly")), ("ha-params", Value::I64(2))]);
    assert_eq!(cluster.admin(1, put(PolicyKind::User, "^q$", two)), Ok(AdminReply::Done));
    cluster.kill(2);
    cluster.run(Duration::from_secs(1));
    let listed = queue(&mut cluster, 0);
    assert_eq!(listed.policy.and_then(|policy| policy.user).as_deref(), Some("p"));
    assert_eq!((listed.leader.as_deref(), listed.replicas_wanted), (Some("m0"), 2));
    let of = |name: &str| listed.replicas.iter().find(|it| it.name == name).and_then(|it| it.synchronised);
    assert_eq!((of("m0"), of("m1")), (Some(true), Some(true)));
    assert_ne!(of("m2"), Some(true), "it is dead, or has left already");
    assert!(queue(&mut cluster, 1).replicas.iter().all(|replica| replica.synchronised.is_none()), "the leader knows");
}

#[test]
fn a_queue_whose_leader_is_to_be_balanced_is_not_led_where_it_is_declared() {
    let mut cluster = Cluster::ready(3);
    let mut client = cluster.client(0);
    client.declare(&mut cluster, "here");
    assert_eq!(cluster.leader_of(QUEUE), Some(0));
    let locator = FieldValue::LongStr(bytes::Bytes::from_static(b"balanced"));
    let declare = Method::QueueDeclare {
        queue: short("there"),
        passive: false,
        durable: true,
        exclusive: false,
        auto_delete: false,
        no_wait: false,
        arguments: FieldTable::from_entries([("x-queue-leader-locator", locator)]).expect("short names"),
    };
    assert!(matches!(client.call(&mut cluster, 1, declare), Method::QueueDeclareOk { .. }));
    cluster.wait("the queue is led", |cluster| cluster.leader_of(GroupId(2)).is_some());
    assert_ne!(cluster.leader_of(GroupId(2)), Some(0));
    client.confirm_select(&mut cluster);
    client.publish(&mut cluster, "there", "message");
    client.wait_confirmed(&mut cluster, 1);
}
