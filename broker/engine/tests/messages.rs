//! Publishing and consuming through real AMQP bytes on three members.

mod common;

use common::{Cluster, consume, declare, short};
use holdfast_queue::ids::GroupId;
use holdfast_queue::time::Duration;
use holdfast_wire::{FieldTable, Method};

#[test]
fn blank_members_become_a_cluster_and_bootstrap_is_idempotent_by_id() {
    let mut cluster = Cluster::ready(3);
    assert!(cluster.now.0 < 3_000_000, "ready only after {} µs", cluster.now.0 - 1_000_000);
    assert!(cluster.bootstrap("c1").is_ok());
    assert!(cluster.bootstrap("c2").is_err());
    let leader = cluster.leader_of(GroupId::META).expect("group 0 is led");
    let status = cluster.member(leader).host().expect("started").status(GroupId::META).expect("here");
    assert_eq!(status.voters.len(), 3);
    assert!(cluster.member(leader).health().zone_fault_tolerant);
}

#[test]
fn a_message_goes_from_a_publisher_on_one_member_to_a_consumer_on_another() {
    let mut cluster = Cluster::ready(3);
    let mut publisher = cluster.client(1);
    assert_eq!(publisher.declare(&mut cluster, "q"), (0, 0));
    publisher.confirm_select(&mut cluster);
    for number in 1..=50 {
        publisher.publish(&mut cluster, "q", &format!("message {number}"));
    }
    publisher.wait_confirmed(&mut cluster, 50);
    assert_eq!(publisher.declare(&mut cluster, "q"), (50, 0));
    let mut consumer = cluster.client(2);
    consumer.qos(&mut cluster, 10);
    consumer.consume(&mut cluster, "q", "c", false);
    for number in 1..=50 {
        let received = consumer.receive(&mut cluster);
        assert_eq!((received.body, received.redelivered), (format!("message {number}"), false));
        consumer.ack(&mut cluster, received.tag, false);
    }
    assert_eq!(publisher.declare(&mut cluster, "q"), (0, 1));
}

#[test]
fn an_unroutable_mandatory_message_is_returned_before_it_is_confirmed() {
    let mut cluster = Cluster::ready(3);
    let mut client = cluster.client(0);
    client.confirm_select(&mut cluster);
    client.publish_to(&mut cluster, "", "nowhere", true, "lost");
    assert_eq!(client.returned(&mut cluster), (312, "lost".into()));
    client.wait_confirmed(&mut cluster, 1);
}

#[test]
fn a_message_is_routed_through_exchanges_to_each_queue_once() {
    let mut cluster = Cluster::ready(3);
    let mut client = cluster.client(0);
    for queue in ["a", "b"] {
        client.declare(&mut cluster, queue);
        for key in ["x.*", "#"] {
            let bind = Method::QueueBind {
                queue: short(queue),
                exchange: short("amq.topic"),
                routing_key: short(key),
                no_wait: false,
                arguments: FieldTable::default(),
            };
            assert_eq!(client.call(&mut cluster, 1, bind), Method::QueueBindOk {});
        }
    }
    client.confirm_select(&mut cluster);
    client.publish_to(&mut cluster, "amq.topic", "x.y", false, "both");
    client.wait_confirmed(&mut cluster, 1);
    let mut other = cluster.client(2);
    for queue in ["a", "b"] {
        assert_eq!(other.get(&mut cluster, queue).map(|message| message.body).as_deref(), Some("both"));
        assert_eq!(other.get(&mut cluster, queue), None);
    }
}

#[test]
fn requeued_messages_return_to_their_place_marked_redelivered_and_rejected_ones_do_not() {
    let mut cluster = Cluster::ready(3);
    let mut client = cluster.client(0);
    client.declare(&mut cluster, "q");
    for body in ["one", "two", "three"] {
        client.publish(&mut cluster, "q", body);
    }
    let first = client.get(&mut cluster, "q").expect("one");
    let second = client.get(&mut cluster, "q").expect("two");
    client.nack(&mut cluster, second.tag, false);
    client.nack(&mut cluster, first.tag, true);
    let again = client.get(&mut cluster, "q").expect("one again");
    assert_eq!((again.body.as_str(), again.redelivered), ("one", true));
    let third = client.get(&mut cluster, "q").expect("three");
    assert_eq!((third.body.as_str(), third.redelivered), ("three", false));
    client.ack(&mut cluster, third.tag, true);
    assert_eq!(client.get(&mut cluster, "q"), None);
}

#[test]
fn deliveries_without_acknowledgement_are_settled_by_the_broker() {
    let mut cluster = Cluster::ready(3);
    let mut client = cluster.client(0);
    client.declare(&mut cluster, "q");
    let mut consumer = cluster.client(1);
    consumer.consume(&mut cluster, "q", "c", true);
    for number in 0..3_000 {
        client.publish(&mut cluster, "q", &number.to_string());
    }
    for number in 0..3_000 {
        assert_eq!(consumer.receive(&mut cluster).body, number.to_string());
    }
    cluster.run(Duration::from_millis(500));
    consumer.drop_connection(&mut cluster);
    assert_eq!(client.declare(&mut cluster, "q"), (0, 0));
}

#[test]
fn a_client_that_does_not_read_stops_its_own_consumer_and_nobody_else_s() {
    let mut cluster = Cluster::ready(3);
    let mut publisher = cluster.client(0);
    publisher.declare(&mut cluster, "q");
    let body = "x".repeat(4096);
    let mut stalled = cluster.client(1);
    stalled.consume(&mut cluster, "q", "c", true);
    cluster.stalled.push(stalled.conn);
    for _ in 0..2_000 {
        publisher.publish(&mut cluster, "q", &body);
    }
    cluster.run(Duration::from_secs(1));
    let (left, _) = publisher.declare(&mut cluster, "q");
    assert!(left > 500, "only {left} messages stayed in the queue");
    let mut reader = cluster.client(2);
    reader.consume(&mut cluster, "q", "c", true);
    for _ in 0..left {
        reader.receive(&mut cluster);
    }
    assert_eq!(publisher.declare(&mut cluster, "q"), (0, 2));
}

#[test]
fn what_a_dead_session_did_not_settle_comes_back_marked_redelivered() {
    let mut cluster = Cluster::ready(3);
    let mut publisher = cluster.client(0);
    publisher.declare(&mut cluster, "q");
    for body in ["one", "two"] {
        publisher.publish(&mut cluster, "q", body);
    }
    let mut dying = cluster.client(1);
    dying.consume(&mut cluster, "q", "c", false);
    let one = dying.receive(&mut cluster);
    assert_eq!(dying.receive(&mut cluster).body, "two");
    dying.ack(&mut cluster, one.tag, false);
    cluster.settle();
    dying.drop_connection(&mut cluster);
    let mut living = cluster.client(2);
    living.consume(&mut cluster, "q", "c", false);
    let two = living.receive(&mut cluster);
    assert_eq!((two.body.as_str(), two.redelivered), ("two", true));
    living.expect_silence(&mut cluster);
}

#[test]
fn closing_waits_for_what_was_published_without_confirms() {
    let mut cluster = Cluster::ready(3);
    let mut publisher = cluster.client(2);
    publisher.declare(&mut cluster, "q");
    for number in 0..100 {
        publisher.publish(&mut cluster, "q", &number.to_string());
    }
    let close = Method::ConnectionClose { reply_code: 200, reply_text: short("bye"), class_id: 0, method_id: 0 };
    assert_eq!(publisher.call(&mut cluster, 0, close), Method::ConnectionCloseOk {});
    cluster.settle();
    assert!(publisher.is_closed(&cluster));
    let mut reader = cluster.client(0);
    assert_eq!(reader.declare(&mut cluster, "q"), (100, 0));
}

#[test]
fn purge_and_delete_tell_how_much_went_and_a_deleted_queue_cancels_its_consumers() {
    let mut cluster = Cluster::ready(3);
    let mut client = cluster.client(0);
    client.declare(&mut cluster, "q");
    for body in ["one", "two"] {
        client.publish(&mut cluster, "q", body);
    }
    let purge = Method::QueuePurge { queue: short("q"), no_wait: false };
    assert_eq!(client.call(&mut cluster, 1, purge), Method::QueuePurgeOk { message_count: 2 });
    let mut consumer = cluster.client(1);
    consumer.consume(&mut cluster, "q", "c", false);
    let delete = |if_unused| Method::QueueDelete { queue: short("q"), if_unused, if_empty: false, no_wait: false };
    let mut other = cluster.client(2);
    assert_eq!(refusal(&other.call(&mut cluster, 1, delete(true))), 406);
    assert_eq!(client.call(&mut cluster, 1, delete(false)), Method::QueueDeleteOk { message_count: 0 });
    assert!(matches!(consumer.method(&mut cluster).1, Method::BasicCancel { .. }));
    let group = GroupId(1);
    cluster.run(Duration::from_secs(1));
    for at in 0..3 {
        assert!(cluster.member(at).host().expect("started").key(group).is_none(), "the replica is gone");
    }
}

#[test]
fn a_message_of_100_mib_passes_and_small_ones_follow() {
    let mut cluster = Cluster::ready(3);
    cluster.largest_body = 100 << 20;
    let mut client = cluster.client(1);
    client.declare(&mut cluster, "q");
    client.confirm_select(&mut cluster);
    let large = "x".repeat(100 << 20);
    client.publish_in_frames(&mut cluster, "q", &large);
    client.publish(&mut cluster, "q", "small");
    client.wait_confirmed(&mut cluster, 2);
    let mut reader = cluster.client(2);
    assert_eq!(reader.get(&mut cluster, "q").map(|message| message.body == large), Some(true));
    assert_eq!(reader.get(&mut cluster, "q").map(|message| message.body).as_deref(), Some("small"));
}

#[test]
fn errors_are_those_that_clients_know() {
    let mut cluster = Cluster::ready(3);
    let mut wrong = cluster.connect(0);
    assert_eq!(refusal(&wrong.try_log_in(&mut cluster, "guest", "wrong", "/")), 403);
    let mut nowhere = cluster.connect(0);
    assert_eq!(refusal(&nowhere.try_log_in(&mut cluster, "guest", "guest", "/none")), 530);
    let mut owner = cluster.client(0);
    assert!(matches!(owner.call(&mut cluster, 1, declare("mine", false, true)), Method::QueueDeclareOk { .. }));
    owner.declare(&mut cluster, "shared");
    let cases = [
        (consume("none", "c", false), 404, "NOT_FOUND - no queue 'none' in vhost '/'"),
        (consume("mine", "c", false), 405, "RESOURCE_LOCKED - cannot obtain exclusive access to locked queue 'mine'"),
        (declare("shared", false, false), 406, "PRECONDITION_FAILED - inequivalent arg 'durable' for queue 'shared'"),
        (declare("amq.mine", true, false), 403, "ACCESS_REFUSED - queue name 'amq.mine' contains reserved prefix"),
        (Method::TxSelect {}, 540, "NOT_IMPLEMENTED"),
    ];
    for (method, code, start) in cases {
        let mut client = cluster.client(1);
        match client.call(&mut cluster, 1, method) {
            Method::ChannelClose { reply_code, reply_text, .. }
            | Method::ConnectionClose { reply_code, reply_text, .. } => {
                assert_eq!(reply_code, code);
                assert!(reply_text.as_str().starts_with(start), "{reply_text}");
            }
            other => panic!("{other:?} instead of {code}"),
        }
    }
    let mut publisher = cluster.client(2);
    publisher.publish_to(&mut cluster, "none", "k", false, "x");
    assert_eq!(refusal(&publisher.method(&mut cluster).1), 404);
}

#[test]
fn transient_queues_serve_all_members_and_go_with_their_connection() {
    let mut cluster = Cluster::ready(3);
    let mut owner = cluster.client(0);
    let Method::QueueDeclareOk { queue, .. } = owner.call(&mut cluster, 1, declare("", false, true)) else {
        panic!("no declare-ok");
    };
    assert!(queue.as_str().starts_with("amq.gen-"));
    owner.consume(&mut cluster, queue.as_str(), "c", false);
    let mut publisher = cluster.client(1);
    publisher.confirm_select(&mut cluster);
    for number in 1..=3 {
        publisher.publish(&mut cluster, queue.as_str(), &number.to_string());
    }
    publisher.wait_confirmed(&mut cluster, 3);
    for number in 1..=3 {
        let received = owner.receive(&mut cluster);
        assert_eq!(received.body, number.to_string());
        owner.ack(&mut cluster, received.tag, false);
    }
    owner.drop_connection(&mut cluster);
    cluster.run(Duration::from_millis(200));
    publisher.publish_to(&mut cluster, "", queue.as_str(), true, "late");
    assert_eq!(publisher.returned(&mut cluster).0, 312);
}

fn refusal(method: &Method) -> u16 {
    match method {
        Method::ChannelClose { reply_code, .. } | Method::ConnectionClose { reply_code, .. } => *reply_code,
        other => panic!("{other:?} instead of a close"),
    }
}
