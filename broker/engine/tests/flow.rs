//! Alarms and budgets: whatever clients do, what a member keeps for them stays within bounds, and goes on afterwards.

mod common;

use bytes::{Bytes, BytesMut};
use common::{Client, Cluster, consume, declare, publish_frames, short};
use holdfast_engine::{Budgets, Input, Memory};
use holdfast_journal::{Space, Upkeep};
use holdfast_queue::time::Duration;
use holdfast_wire::{ContentHeader, Method};

const MIB: usize = 1 << 20;

fn disk(cluster: &mut Cluster, at: usize, low: bool) {
    let space = Space { total_bytes: 1 << 30, free_bytes: if low { 1 << 20 } else { 1 << 29 }, reserve_bytes: 0, low };
    cluster.input(at, Input::Upkeep(Upkeep { space: Some(space), ..Upkeep::default() }));
    cluster.run(Duration::from_millis(500));
}

fn memory(cluster: &mut Cluster, at: usize, used_bytes: u64) {
    cluster.input(at, Input::Memory(Memory { used_bytes, high_watermark_bytes: 1000 }));
    cluster.run(Duration::from_millis(500));
}

fn is_paused(cluster: &Cluster, client: &Client) -> bool {
    cluster.paused.contains(&(client.at, client.conn))
}

fn blocked(reason: &str) -> Method {
    Method::ConnectionBlocked { reason: short(reason) }
}

/// Publishes without waiting for anything.
fn publish_many(cluster: &mut Cluster, client: &mut Client, queue: &str, count: usize, body_bytes: usize) {
    let body = "x".repeat(body_bytes);
    for number in 0..count {
        client.publish_in_frames(cluster, queue, &format!("{number:08}{body}"));
        cluster.settle();
    }
}

#[test]
fn a_full_disk_on_any_member_blocks_publishers_and_nobody_else() {
    let mut cluster = Cluster::ready(3);
    let mut publisher = cluster.client(0);
    publisher.declare(&mut cluster, "q");
    publisher.confirm_select(&mut cluster);
    let mut consumer = cluster.client(1);
    consumer.consume(&mut cluster, "q", "c", false);
    disk(&mut cluster, 2, true);
    assert!(!is_paused(&cluster, &publisher), "it has not published since");
    assert!(cluster.member(0).metrics().cluster_alarm && !cluster.member(0).metrics().disk_alarm);

    publisher.publish(&mut cluster, "q", "the last one");
    assert_eq!(publisher.method(&mut cluster).1, blocked("low on disk"));
    publisher.wait_confirmed(&mut cluster, 1);
    assert!(is_paused(&cluster, &publisher));
    assert_eq!(cluster.member(0).metrics().blocked_connections, 1);
    publisher.publish(&mut cluster, "q", "one that waits");

    let received = consumer.receive(&mut cluster);
    assert_eq!(received.body, "the last one");
    consumer.ack(&mut cluster, received.tag, false);
    consumer.expect_silence(&mut cluster);
    let mut other = cluster.client(2);
    other.declare(&mut cluster, "q2");
    let purged = other.call(&mut cluster, 1, Method::QueuePurge { queue: short("q2"), no_wait: false });
    assert_eq!(purged, Method::QueuePurgeOk { message_count: 0 });
    let delete = Method::QueueDelete { queue: short("q2"), if_unused: false, if_empty: false, no_wait: false };
    assert_eq!(other.call(&mut cluster, 1, delete), Method::QueueDeleteOk { message_count: 0 });
    assert!(!is_paused(&cluster, &other) && !is_paused(&cluster, &consumer));

    disk(&mut cluster, 2, false);
    assert_eq!(publisher.method(&mut cluster).1, Method::ConnectionUnblocked {});
    publisher.wait_confirmed(&mut cluster, 2);
    assert_eq!(consumer.receive(&mut cluster).body, "one that waits");
    assert_eq!(cluster.member(0).metrics().blocked_connections, 0);
}

#[test]
fn a_memory_alarm_ends_a_little_below_the_watermark_and_two_alarms_end_with_the_last() {
    let mut cluster = Cluster::ready(1);
    let mut publisher = cluster.client(0);
    publisher.declare(&mut cluster, "q");
    memory(&mut cluster, 0, 1000);
    assert!(!cluster.member(0).metrics().memory_alarm, "as much as the watermark is not more");
    memory(&mut cluster, 0, 1001);
    publisher.publish(&mut cluster, "q", "m");
    assert_eq!(publisher.method(&mut cluster).1, blocked("low on memory"));
    memory(&mut cluster, 0, 960);
    assert!(cluster.member(0).metrics().memory_alarm, "no flutter");
    disk(&mut cluster, 0, true);
    memory(&mut cluster, 0, 950);
    assert!(!cluster.member(0).metrics().memory_alarm);
    publisher.expect_silence(&mut cluster);
    disk(&mut cluster, 0, false);
    assert_eq!(publisher.method(&mut cluster).1, Method::ConnectionUnblocked {});
}

#[test]
fn the_alarm_of_a_member_that_died_blocks_nobody() {
    let mut cluster = Cluster::ready(3);
    let mut publisher = cluster.client(0);
    publisher.declare(&mut cluster, "q");
    publisher.confirm_select(&mut cluster);
    disk(&mut cluster, 2, true);
    publisher.publish(&mut cluster, "q", "m");
    assert_eq!(publisher.method(&mut cluster).1, blocked("low on disk"));
    cluster.kill(2);
    cluster.run(Duration::from_secs(2));
    let methods = publisher.methods(&mut cluster);
    assert!(methods.contains(&Method::ConnectionUnblocked {}), "{methods:?}");
}

#[test]
fn publishers_on_many_connections_and_channels_stop_at_the_members_budget_while_nothing_is_confirmed() {
    let budgets = Budgets { unconfirmed_bytes: 8 * MIB, ..Budgets::default() };
    let mut cluster = Cluster::ready_with(3, budgets);
    let mut publishers: Vec<Client> = (0..10).map(|_| cluster.client(0)).collect();
    publishers[0].declare(&mut cluster, "q");
    cluster.kill(1);
    cluster.kill(2);
    cluster.run(Duration::from_millis(300));
    for _ in 0..20 {
        for publisher in &mut publishers {
            publish_many(&mut cluster, publisher, "q", 1, MIB / 2);
        }
    }
    let kept = cluster.member(0).metrics().unconfirmed_bytes as usize;
    // 100 MiB were sent.
    assert!(kept <= budgets.unconfirmed_bytes + MIB, "{kept} bytes are kept");
    let paused = publishers.iter().filter(|publisher| is_paused(&cluster, publisher)).count();
    assert_eq!(paused, 10, "each has something under way, or waits for the lease");
}

#[test]
fn clients_that_do_not_read_keep_little_in_memory_and_later_get_everything_once_and_in_order() {
    let budgets = Budgets { backlog_bytes: (12 * MIB) as u64, ..Budgets::default() };
    let mut cluster = Cluster::ready_with(3, budgets);
    for home in [0, 1, 2] {
        let queue = format!("q{home}");
        let mut publisher = cluster.client(0);
        publisher.declare(&mut cluster, &queue);
        publisher.confirm_select(&mut cluster);
        publish_many(&mut cluster, &mut publisher, &queue, 120, MIB / 4);
        publisher.wait_confirmed(&mut cluster, 120);
        // One that acknowledges nothing, with a window that its prefetch alone would bound.
        let mut reader = cluster.client(home);
        cluster.stalled.push(reader.conn);
        reader.qos(&mut cluster, 60);
        for tag in ["a", "b"] {
            reader.consume_unanswered(&mut cluster, &queue, tag);
        }
        cluster.run(Duration::from_secs(3));
        let kept = cluster.member(home).metrics().backlog_bytes as usize;
        assert!(kept > MIB && kept <= 10 * MIB, "member {home} keeps {kept} bytes of 30 MiB");
        cluster.unstall(&reader);
        cluster.run(Duration::from_secs(3));
        let bodies = reader.bodies_by_consumer(&mut cluster);
        let numbers: Vec<usize> = bodies.iter().map(|(_, body)| body[..8].parse().expect("a number")).collect();
        let mut sorted = numbers.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..120).collect::<Vec<_>>(), "on member {home}");
        for tag in ["a", "b"] {
            let of_one: Vec<_> = bodies.iter().zip(&numbers).filter(|((to, _), _)| to == tag).map(|(_, n)| n).collect();
            assert!(of_one.is_sorted(), "{of_one:?}");
        }
        reader.drop_connection(&mut cluster);
    }
}

#[test]
fn whoever_publishes_to_transient_queues_that_hold_too_much_waits_until_they_are_consumed() {
    let budgets = Budgets { transient_bytes: 2 * MIB, ..Budgets::default() };
    let mut cluster = Cluster::ready_with(2, budgets);
    let mut owner = cluster.client(0);
    assert!(matches!(owner.call(&mut cluster, 1, declare("t", false, false)), Method::QueueDeclareOk { .. }));
    cluster.run(Duration::from_millis(500));
    let mut publishers = [cluster.client(0), cluster.client(1)];
    for publisher in &mut publishers {
        for _ in 0..20 {
            publish_many(&mut cluster, publisher, "t", 1, MIB / 4);
            cluster.run(Duration::from_millis(200));
        }
        assert!(is_paused(&cluster, publisher));
    }
    let kept = cluster.member(0).metrics().transient_bytes as usize;
    assert!(kept > 2 * MIB && kept < 3 * MIB, "{kept} bytes of 10 MiB");
    owner.consume(&mut cluster, "t", "c", true);
    cluster.run(Duration::from_secs(5));
    assert_eq!(owner.bodies_by_consumer(&mut cluster).len(), 40);
    assert!(!publishers.iter().any(|publisher| is_paused(&cluster, publisher)));
    assert!(cluster.member(0).metrics().transient_bytes < 1000, "commands, but no messages");
}

#[test]
fn messages_that_never_become_complete_cost_the_largest_sender_its_connection() {
    let budgets = Budgets { assembling_bytes: 4 * MIB, ..Budgets::default() };
    let mut cluster = Cluster::ready_with(1, budgets);
    let mut clients: Vec<Client> = (0..4).map(|_| cluster.client(0)).collect();
    let pieces = [2, 2, 12, 2];
    for (client, pieces) in clients.iter_mut().zip(pieces) {
        let mut out = BytesMut::new();
        let (exchange, routing_key) = (short(""), short("q"));
        Method::BasicPublish { exchange, routing_key, mandatory: false, immediate: false }.encode(1, &mut out);
        ContentHeader::encode(1, 100 << 20, &[0, 0], &mut out);
        for _ in 0..pieces * 4 {
            holdfast_wire::write_body_frame(1, 125_000, &mut out);
            out.extend_from_slice(&Bytes::from(vec![1; 125_000]));
            holdfast_wire::write_frame_end(&mut out);
        }
        client.send_bytes(&mut cluster, out.freeze());
    }
    cluster.run(Duration::from_millis(200));
    let closes = clients.iter_mut().map(|client| client.methods(&mut cluster));
    let closed: Vec<bool> = closes
        .map(|methods| methods.iter().any(|method| matches!(method, Method::ConnectionClose { reply_code: 506, .. })))
        .collect();
    assert_eq!(closed, [false, false, true, false]);
    assert!(cluster.member(0).metrics().assembling_bytes as usize <= budgets.assembling_bytes);
}

#[test]
fn a_channels_prefetch_holds_deliveries_back_within_the_same_bounds() {
    let mut cluster = Cluster::ready(1);
    let mut publisher = cluster.client(0);
    publisher.declare(&mut cluster, "q");
    publisher.confirm_select(&mut cluster);
    publish_many(&mut cluster, &mut publisher, "q", 80, MIB / 4);
    publisher.wait_confirmed(&mut cluster, 80);
    let mut reader = cluster.client(0);
    let qos = Method::BasicQos { prefetch_size: 0, prefetch_count: 1, global: true };
    assert_eq!(reader.call(&mut cluster, 1, qos), Method::BasicQosOk {});
    assert!(matches!(reader.call(&mut cluster, 1, consume("q", "c", false)), Method::BasicConsumeOk { .. }));
    cluster.run(Duration::from_secs(1));
    let kept = cluster.member(0).metrics().backlog_bytes as usize;
    assert!(kept <= 10 * MIB, "{kept} bytes of 20 MiB");
    for number in 0..80 {
        let received = reader.receive(&mut cluster);
        assert_eq!(received.body[..8].parse(), Ok(number));
        reader.ack(&mut cluster, received.tag, false);
    }
}

#[test]
fn gets_on_many_channels_of_a_client_that_does_not_read_wait_and_are_all_answered_later() {
    const COUNT: usize = 60;
    let mut cluster = Cluster::ready(3);
    let mut publisher = cluster.client(0);
    publisher.declare(&mut cluster, "q");
    publisher.confirm_select(&mut cluster);
    publish_many(&mut cluster, &mut publisher, "q", COUNT, MIB / 2);
    publisher.wait_confirmed(&mut cluster, COUNT as u64);
    for home in [0, 1] {
        let mut reader = cluster.client(home);
        for channel in 2..=COUNT as u16 {
            reader.open_channel(&mut cluster, channel);
        }
        cluster.stalled.push(reader.conn);
        for channel in 1..=COUNT as u16 {
            reader.send(&mut cluster, channel, Method::BasicGet { queue: short("q"), no_ack: false });
        }
        cluster.run(Duration::from_secs(2));
        let kept = cluster.member(home).metrics().backlog_bytes as usize;
        assert!(kept > MIB && kept <= 17 * MIB, "{kept} bytes of 30 MiB");
        cluster.unstall(&reader);
        cluster.run(Duration::from_secs(2));
        let answers = reader.methods(&mut cluster);
        let got = answers.iter().filter(|method| matches!(method, Method::BasicGetOk { .. })).count();
        assert_eq!(got, COUNT, "on member {home}");
        reader.drop_connection(&mut cluster);
        cluster.run(Duration::from_secs(1));
    }
}

#[test]
fn a_publish_that_reaches_no_queue_blocks_its_connection_too() {
    let mut cluster = Cluster::ready(1);
    let mut publisher = cluster.client(0);
    disk(&mut cluster, 0, true);
    publisher.send_bytes(&mut cluster, publish_frames("", "nowhere", false, "m"));
    assert_eq!(publisher.method(&mut cluster).1, blocked("low on disk"));
}
