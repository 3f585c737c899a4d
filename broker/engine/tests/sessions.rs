//! Sessions: what a close promises, what an error leaves behind, and what becomes of deliveries.

mod common;

use bytes::Bytes;
use common::{Client, Cluster, consume, declare, short};
use holdfast_queue::ids::GroupId;
use holdfast_queue::time::Duration;
use holdfast_wire::{FieldTable, Method};

fn connection_close() -> Method {
    Method::ConnectionClose { reply_code: 200, reply_text: short("bye"), class_id: 0, method_id: 0 }
}

fn channel_close() -> Method {
    Method::ChannelClose { reply_code: 200, reply_text: short("bye"), class_id: 0, method_id: 0 }
}

/// The code of a close by the broker, and its text.
fn refusal(method: &Method) -> (u16, String) {
    match method {
        Method::ChannelClose { reply_code, reply_text, .. }
        | Method::ConnectionClose { reply_code, reply_text, .. } => (*reply_code, reply_text.as_str().to_owned()),
        other => panic!("{other:?} instead of a close"),
    }
}

/// 100 messages to `q` that no disk has, without confirms.
fn publish_while_disks_are_slow(cluster: &mut Cluster, publisher: &mut Client) {
    publisher.declare(cluster, "q");
    (0..3).for_each(|at| cluster.stall_disk(at));
    for number in 0..100 {
        publisher.publish(cluster, "q", &number.to_string());
    }
}

#[test]
fn a_closed_channel_is_told_so_only_when_what_it_published_is_durable() {
    let mut cluster = Cluster::ready(3);
    let mut publisher = cluster.client(2);
    publish_while_disks_are_slow(&mut cluster, &mut publisher);
    publisher.send(&mut cluster, 1, channel_close());
    assert_eq!(publisher.method_within(&mut cluster, Duration::from_millis(200)), None);
    (0..3).for_each(|at| cluster.resume_disk(at));
    assert_eq!(publisher.method(&mut cluster).1, Method::ChannelCloseOk {});
    assert_eq!(cluster.client(0).declare(&mut cluster, "q"), (100, 0));
}

#[test]
fn a_closed_connection_is_told_so_only_when_a_failed_channel_s_publishes_are_durable_too() {
    let mut cluster = Cluster::ready(3);
    let mut publisher = cluster.client(2);
    publish_while_disks_are_slow(&mut cluster, &mut publisher);
    publisher.publish_to(&mut cluster, "none", "k", false, "nowhere");
    assert_eq!(refusal(&publisher.method(&mut cluster).1).0, 404);
    publisher.send(&mut cluster, 1, Method::ChannelCloseOk {});
    publisher.send(&mut cluster, 0, connection_close());
    assert_eq!(publisher.method_within(&mut cluster, Duration::from_millis(200)), None);
    (0..3).for_each(|at| cluster.resume_disk(at));
    assert_eq!(publisher.method(&mut cluster).1, Method::ConnectionCloseOk {});
    assert_eq!(cluster.client(0).declare(&mut cluster, "q"), (100, 0));
}

#[test]
fn what_a_channel_sent_after_a_publish_that_failed_is_dropped_even_if_all_of_it_waited() {
    let mut cluster = Cluster::ready(3);
    let mut publisher = cluster.client(0);
    publisher.declare(&mut cluster, "q");
    cluster.cut(0, 1);
    cluster.cut(0, 2);
    cluster.run(Duration::from_secs(5));
    publisher.publish(&mut cluster, "q", "before");
    publisher.publish_to(&mut cluster, "none", "k", false, "nowhere");
    publisher.publish(&mut cluster, "q", "after");
    cluster.mend();
    assert_eq!(refusal(&publisher.method(&mut cluster).1).0, 404);
    let mut reader = cluster.client(1);
    assert_eq!(reader.get(&mut cluster, "q").map(|message| message.body).as_deref(), Some("before"));
    assert_eq!(reader.get(&mut cluster, "q"), None);
}

#[test]
fn a_log_in_that_cannot_be_checked_for_want_of_a_quorum_is_refused_in_words() {
    let mut cluster = Cluster::ready(3);
    cluster.cut(0, 1);
    cluster.cut(0, 2);
    cluster.run(Duration::from_secs(5));
    let mut client = cluster.connect(0);
    let (code, text) = refusal(&client.try_log_in(&mut cluster, "guest", "guest", "/"));
    assert_eq!(code, 320);
    assert!(text.contains("not in touch with a majority"), "{text}");
}

#[test]
fn a_get_whose_reply_was_lost_with_its_queue_is_answered_all_the_same() {
    let mut cluster = Cluster::ready(3);
    let mut owner = cluster.client(0);
    assert!(matches!(owner.call(&mut cluster, 1, declare("t", false, false)), Method::QueueDeclareOk { .. }));
    owner.publish(&mut cluster, "t", "one");
    let mut getter = cluster.client(1);
    cluster.losses.push((0, 1, 0));
    getter.send(&mut cluster, 1, Method::BasicGet { queue: short("t"), no_ack: false });
    cluster.settle();
    cluster.losses.clear();
    let delete = Method::QueueDelete { queue: short("t"), if_unused: false, if_empty: false, no_wait: false };
    assert!(matches!(owner.call(&mut cluster, 1, delete), Method::QueueDeleteOk { .. }));
    assert_eq!(refusal(&getter.method(&mut cluster).1).0, 404);
}

#[test]
fn deliveries_that_were_lost_with_the_answer_to_a_cancel_go_back_to_the_queue() {
    let mut cluster = Cluster::ready(3);
    let mut publisher = cluster.client(0);
    publisher.declare(&mut cluster, "q");
    publisher.confirm_select(&mut cluster);
    let leader = cluster.leader_of(GroupId(1)).expect("a leader");
    let (home, third) = ((leader + 1) % 3, (leader + 2) % 3);
    let mut consumer = cluster.client(home);
    consumer.consume(&mut cluster, "q", "c", false);
    cluster.losses.push((leader, home, 0));
    let mut other = if leader == 0 { publisher } else { cluster.client(third) };
    for number in 1..=10 {
        other.publish(&mut cluster, "q", &number.to_string());
    }
    cluster.settle();
    consumer.send(&mut cluster, 1, Method::BasicCancel { consumer_tag: short("c"), no_wait: false });
    cluster.run(Duration::from_millis(50));
    cluster.kill(leader);
    cluster.losses.clear();
    let cancelled = Method::BasicCancelOk { consumer_tag: short("c") };
    assert_eq!(consumer.method(&mut cluster).1, cancelled);
    let mut reader = cluster.client(third);
    for number in 1..=10 {
        assert_eq!(reader.get(&mut cluster, "q").map(|message| message.body), Some(number.to_string()));
    }
}

#[test]
fn a_declare_of_an_auto_delete_queue_on_its_way_out_makes_a_new_one() {
    let mut cluster = Cluster::ready(3);
    let auto_delete = || Method::QueueDeclare {
        queue: short("auto"),
        passive: false,
        durable: true,
        exclusive: false,
        auto_delete: true,
        no_wait: false,
        arguments: FieldTable::default(),
    };
    let mut first = cluster.client(0);
    assert!(matches!(first.call(&mut cluster, 1, auto_delete()), Method::QueueDeclareOk { .. }));
    first.publish(&mut cluster, "auto", "old");
    first.consume(&mut cluster, "auto", "c", false);
    first.receive(&mut cluster);
    let mut second = cluster.client(1);
    // Both are under way at once: the queue is gone in its own group while the metadata still shows it.
    first.send(&mut cluster, 1, Method::BasicCancel { consumer_tag: short("c"), no_wait: false });
    second.send(&mut cluster, 1, auto_delete());
    match second.method(&mut cluster).1 {
        Method::QueueDeclareOk { message_count, consumer_count, .. } => {
            assert_eq!((message_count, consumer_count), (0, 0));
        }
        other => panic!("{other:?} instead of declare-ok"),
    }
    cluster.run(Duration::from_secs(1));
    second.confirm_select(&mut cluster);
    second.publish(&mut cluster, "auto", "new");
    second.wait_confirmed(&mut cluster, 1);
    assert_eq!(second.get(&mut cluster, "auto").map(|message| message.body).as_deref(), Some("new"));
}

#[test]
fn an_auto_delete_queue_goes_with_its_last_consumer_and_not_before() {
    let mut cluster = Cluster::ready(3);
    let mut client = cluster.client(0);
    let declare = Method::QueueDeclare {
        queue: short("auto"),
        passive: false,
        durable: true,
        exclusive: false,
        auto_delete: true,
        no_wait: false,
        arguments: FieldTable::default(),
    };
    assert!(matches!(client.call(&mut cluster, 1, declare), Method::QueueDeclareOk { .. }));
    client.consume(&mut cluster, "auto", "one", false);
    let mut other = cluster.client(2);
    other.consume(&mut cluster, "auto", "two", false);
    let cancel = Method::BasicCancel { consumer_tag: short("one"), no_wait: false };
    assert_eq!(client.call(&mut cluster, 1, cancel), Method::BasicCancelOk { consumer_tag: short("one") });
    client.publish_to(&mut cluster, "", "auto", true, "kept");
    assert_eq!(other.receive(&mut cluster).body, "kept");
    other.drop_connection(&mut cluster);
    cluster.run(Duration::from_millis(200));
    client.publish_to(&mut cluster, "", "auto", true, "late");
    assert_eq!(client.returned(&mut cluster).0, 312);
}

#[test]
fn an_exclusive_consumer_is_alone_across_members() {
    let mut cluster = Cluster::ready(3);
    let mut owner = cluster.client(0);
    owner.declare(&mut cluster, "q");
    let exclusive = |tag: &str| match consume("q", tag, false) {
        Method::BasicConsume { queue, consumer_tag, no_local, no_ack, no_wait, arguments, .. } => {
            Method::BasicConsume { queue, consumer_tag, no_local, no_ack, exclusive: true, no_wait, arguments }
        }
        other => other,
    };
    let consuming = |tag: &str| Method::BasicConsumeOk { consumer_tag: short(tag) };
    assert_eq!(owner.call(&mut cluster, 1, exclusive("c")), consuming("c"));
    for method in [consume("q", "d", false), exclusive("d")] {
        let mut other = cluster.client(1);
        assert_eq!(refusal(&other.call(&mut cluster, 1, method)).0, 403);
    }
    owner.drop_connection(&mut cluster);
    let mut next = cluster.client(2);
    assert_eq!(next.call(&mut cluster, 1, exclusive("c")), consuming("c"));
}

#[test]
fn recover_returns_what_is_unacknowledged_to_its_place_marked_redelivered() {
    let mut cluster = Cluster::ready(3);
    let mut client = cluster.client(1);
    client.declare(&mut cluster, "q");
    for body in ["one", "two", "three"] {
        client.publish(&mut cluster, "q", body);
    }
    let one = client.get(&mut cluster, "q").expect("one");
    client.get(&mut cluster, "q").expect("two");
    client.ack(&mut cluster, one.tag, false);
    let recover = Method::BasicRecover { requeue: true };
    assert_eq!(client.call(&mut cluster, 1, recover), Method::BasicRecoverOk {});
    let mut other = cluster.client(2);
    let two = other.get(&mut cluster, "q").expect("two again");
    assert_eq!((two.body.as_str(), two.redelivered), ("two", true));
    let three = other.get(&mut cluster, "q").expect("three");
    assert_eq!((three.body.as_str(), three.redelivered), ("three", false));
}

#[test]
fn rejected_messages_come_back_only_where_that_was_asked_for() {
    let mut cluster = Cluster::ready(3);
    let mut client = cluster.client(0);
    client.declare(&mut cluster, "q");
    for body in ["one", "two"] {
        client.publish(&mut cluster, "q", body);
    }
    let (one, two) = (client.get(&mut cluster, "q").expect("one"), client.get(&mut cluster, "q").expect("two"));
    client.send(&mut cluster, 1, Method::BasicReject { delivery_tag: one.tag, requeue: true });
    client.send(&mut cluster, 1, Method::BasicReject { delivery_tag: two.tag, requeue: false });
    let again = client.get(&mut cluster, "q").expect("one again");
    assert_eq!((again.body.as_str(), again.redelivered), ("one", true));
    assert_eq!(client.get(&mut cluster, "q"), None);
}

#[test]
fn what_a_cancelled_consumer_holds_can_still_be_acknowledged() {
    let mut cluster = Cluster::ready(3);
    let mut client = cluster.client(1);
    client.declare(&mut cluster, "q");
    for body in ["one", "two"] {
        client.publish(&mut cluster, "q", body);
    }
    client.consume(&mut cluster, "q", "c", false);
    let (one, two) = (client.receive(&mut cluster), client.receive(&mut cluster));
    let cancel = Method::BasicCancel { consumer_tag: short("c"), no_wait: false };
    assert_eq!(client.call(&mut cluster, 1, cancel), Method::BasicCancelOk { consumer_tag: short("c") });
    client.publish(&mut cluster, "q", "three");
    client.ack(&mut cluster, one.tag, false);
    client.nack(&mut cluster, two.tag, true);
    let bodies = [client.get(&mut cluster, "q"), client.get(&mut cluster, "q")].map(|it| it.expect("a message").body);
    assert_eq!(bodies, ["two", "three"]);
    assert_eq!(client.get(&mut cluster, "q"), None);
}

#[test]
fn a_silent_client_loses_its_session_and_what_it_held_comes_back() {
    let mut cluster = Cluster::ready(3);
    let mut publisher = cluster.client(0);
    publisher.declare(&mut cluster, "q");
    publisher.publish(&mut cluster, "q", "one");
    let mut silent = cluster.connect(1);
    silent.heartbeat_s = 1;
    silent.log_in(&mut cluster, "guest", "guest", "/");
    silent.open_channel(&mut cluster, 1);
    silent.consume(&mut cluster, "q", "c", false);
    assert_eq!(silent.receive(&mut cluster).body, "one");
    cluster.run(Duration::from_millis(1_500));
    assert!(!silent.is_closed(&cluster));
    cluster.run(Duration::from_secs(1));
    assert!(silent.is_closed(&cluster));
    let again = publisher.get(&mut cluster, "q").expect("it came back");
    assert_eq!((again.body.as_str(), again.redelivered), ("one", true));
}

#[test]
fn a_prefetch_of_a_whole_channel_leaves_the_other_messages_to_other_workers() {
    let mut cluster = Cluster::ready(3);
    let mut publisher = cluster.client(0);
    publisher.declare(&mut cluster, "jobs");
    let mut workers = [cluster.client(1), cluster.client(2)];
    for worker in &mut workers {
        let qos = Method::BasicQos { prefetch_size: 0, prefetch_count: 1, global: true };
        assert_eq!(worker.call(&mut cluster, 1, qos), Method::BasicQosOk {});
        worker.consume(&mut cluster, "jobs", "c", false);
    }
    for number in 0..50 {
        publisher.publish(&mut cluster, "jobs", &number.to_string());
    }
    let [one, two] = &mut workers;
    let (first, other) = (one.receive(&mut cluster), two.receive(&mut cluster));
    one.expect_silence(&mut cluster);
    assert_eq!(publisher.declare(&mut cluster, "jobs"), (48, 2));
    // The first is slow; the second does all the rest.
    let mut done = other;
    for _ in 0..48 {
        two.ack(&mut cluster, done.tag, false);
        done = two.receive(&mut cluster);
        assert!(!done.redelivered);
    }
    two.ack(&mut cluster, done.tag, false);
    one.drop_connection(&mut cluster);
    let last = two.receive(&mut cluster);
    assert_eq!((last.body, last.redelivered), (first.body, true));
}

#[test]
fn a_prefetch_of_a_whole_channel_can_be_raised_and_lifted_while_it_consumes() {
    let mut cluster = Cluster::ready(3);
    let mut client = cluster.client(0);
    client.declare(&mut cluster, "q");
    let qos = |prefetch_count| Method::BasicQos { prefetch_size: 0, prefetch_count, global: true };
    assert_eq!(client.call(&mut cluster, 1, qos(2)), Method::BasicQosOk {});
    client.consume(&mut cluster, "q", "c", false);
    let mut publisher = cluster.client(1);
    for number in 0..200 {
        publisher.publish(&mut cluster, "q", &number.to_string());
    }
    for number in 0..2 {
        assert_eq!(client.receive(&mut cluster).body, number.to_string());
    }
    client.expect_silence(&mut cluster);
    client.send(&mut cluster, 1, qos(5));
    assert_eq!(client.method(&mut cluster).1, Method::BasicQosOk {});
    for number in 2..5 {
        assert_eq!(client.receive(&mut cluster).body, number.to_string());
    }
    client.expect_silence(&mut cluster);
    client.send(&mut cluster, 1, qos(0));
    assert_eq!(client.method(&mut cluster).1, Method::BasicQosOk {});
    for number in 5..200 {
        assert_eq!(client.receive(&mut cluster).body, number.to_string());
    }
}

#[test]
fn a_client_of_another_protocol_or_an_unknown_vhost_leaves_a_line_with_its_address() {
    let mut cluster = Cluster::ready(1);
    let mut tls = cluster.connect(0);
    tls.send_bytes(&mut cluster, Bytes::from_static(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"));
    let mut http = cluster.connect(0);
    http.send_bytes(&mut cluster, Bytes::from_static(b"GET / HTTP/1.1\r\n\r\n"));
    let mut nowhere = cluster.connect(0);
    assert_eq!(refusal(&nowhere.try_log_in(&mut cluster, "guest", "guest", "/none")).0, 530);
    let mut garbage = cluster.client(0);
    garbage.send_bytes(&mut cluster, Bytes::from_static(b"\x07\x00\x01\x00\x00\x00\x00\xce"));
    cluster.run(Duration::from_millis(100));
    let wanted = [
        "client 1 is lost: it does not speak AMQP 0-9-1: it began with \"\\x16\\x03\\x01\\x02\\x00\\x01\\x00\\x01\" (TLS",
        "client 2 is lost: it does not speak AMQP 0-9-1: it began with \"GET / HT\" (text, such as HTTP)",
        "client 3 is lost: it was closed with 530 NOT_ALLOWED - vhost '/none' not found",
        "client 4 is lost: it was closed with 501 FRAME_ERROR - unknown frame type 7",
    ];
    for text in wanted {
        let lines = cluster.events.iter().filter(|line| line.contains(text)).count();
        assert_eq!(lines, 1, "{text}: {:#?}", cluster.events);
    }
}
