//! Crashes: nothing confirmed is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, Instant};

use futures::StreamExt;
use holdfast_e2e::ledger::Ledger;
use holdfast_e2e::load::{Consumer, Producer, declare_durable_queue, wait_until_drained};
use holdfast_e2e::pika;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicGetOptions, BasicPublishOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};

use crate::cluster::{Cluster, PATIENCE, eventually, uri};

const QUEUE: &str = "orders";

async fn channel(cluster: &Cluster, member: usize) -> (Connection, Channel) {
    let address = cluster.members()[member].amqp;
    let connection = eventually("a connection", || async {
        Connection::connect(&uri(address), ConnectionProperties::default()).await.ok()
    })
    .await;
    let channel = connection.create_channel().await.unwrap();
    (connection, channel)
}

async fn publish(channel: &Channel, body: &str) -> lapin::PublisherConfirm {
    let properties = BasicProperties::default().with_delivery_mode(2);
    let publish =
        channel.basic_publish("".into(), QUEUE.into(), BasicPublishOptions::default(), body.as_bytes(), properties);
    publish.await.unwrap()
}

/// Every message now in the queue, taken without acknowledgement by `basic.get`.
async fn drain(cluster: &Cluster, member: usize) -> Vec<String> {
    let (connection, channel) = channel(cluster, member).await;
    let mut found = Vec::new();
    while let Some(message) =
        tokio::time::timeout(PATIENCE, channel.basic_get(QUEUE.into(), BasicGetOptions { no_ack: true }))
            .await
            .unwrap()
            .unwrap()
    {
        found.push(String::from_utf8(message.delivery.data).unwrap());
    }
    connection.close(200, "done".into()).await.unwrap();
    found
}

async fn confirmed_reaches(ledger: &Ledger, count: u64) {
    eventually(&format!("{count} confirms"), || async { (ledger.confirmed_count() >= count).then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_leaders_under_load_on_all_members_loses_no_confirmed_message() {
    const EACH: u64 = 1500;
    let cluster = Cluster::start().await;
    let endpoints = cluster.endpoints();
    declare_durable_queue(&endpoints, QUEUE, PATIENCE).await.unwrap();
    let (ledger, stop) = (Arc::new(Ledger::default()), Arc::new(AtomicBool::new(false)));
    let published = Arc::new(AtomicU64::new(0));
    let producers: Vec<_> = (0..3)
        .map(|member| {
            let producer = Producer {
                id: member as u32 + 1,
                member,
                queue: QUEUE.into(),
                total: EACH,
                rate: 250,
                body_bytes: 1024,
                published: published.clone(),
                whereabouts: Arc::default(),
            };
            tokio::spawn(producer.run(endpoints.clone(), ledger.clone(), Instant::now() + 2 * PATIENCE))
        })
        .collect();
    let consumers: Vec<_> = (0..2)
        .map(|member| {
            let consumer = Consumer { id: member as u32 + 1, member, queue: QUEUE.into(), prefetch: 100 };
            tokio::spawn(consumer.run(endpoints.clone(), ledger.clone(), stop.clone()))
        })
        .collect();
    for at in [EACH, 2 * EACH] {
        confirmed_reaches(&ledger, at).await;
        let leader = cluster.leader_of(QUEUE).await;
        let killed = Instant::now();
        cluster.kill(&leader);
        confirmed_reaches(&ledger, at + 300).await;
        let gap = ledger.longest_confirm_gap(killed, killed.elapsed(), &[1, 2, 3]);
        println!("killed {} at {at} confirms: longest gap {gap:?}", leader.name);
    }
    for producer in producers {
        producer.await.unwrap().unwrap();
    }
    wait_until_drained(&ledger, PATIENCE, PATIENCE).await;
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    for consumer in consumers {
        consumer.await.unwrap();
    }
    let verdict = ledger.verdict();
    println!("{verdict:?}");
    assert!(verdict.is_clean(), "{verdict:?}, lost {:?}", ledger.some_lost());
    assert_eq!(verdict.confirmed, 3 * EACH);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_script_that_publishes_without_confirms_and_closes_finds_every_message_after_all_members_were_killed() {
    const COUNT: u32 = 2_000;
    let cluster = Cluster::start().await;
    let members = cluster.members();
    pika::publish(&uri(members[0].amqp), "seed", COUNT).await.unwrap();
    for member in &members {
        cluster.kill(member);
    }
    cluster.ready().await;
    let members = cluster.members();
    assert_eq!(pika::consume(&uri(members[1].amqp), "seed", COUNT).await.unwrap(), COUNT, "in order, each once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_published_before_connection_close_is_there_after_all_members_were_killed() {
    const COUNT: usize = 300;
    let cluster = Cluster::start().await;
    let (connection, publisher) = channel(&cluster, 0).await;
    publisher.queue_declare(QUEUE.into(), QueueDeclareOptions::durable(), FieldTable::default()).await.unwrap();
    let sent: Vec<String> = (0..COUNT).map(|number| format!("message {number}")).collect();
    for body in &sent {
        publish(&publisher, body).await;
    }
    // No confirms: connection.close-ok waits until all of it is durable.
    connection.close(200, "done".into()).await.unwrap();
    for member in cluster.members() {
        cluster.kill(&member);
    }
    eventually("all members to be noticed dead or started again", || async {
        cluster.members().iter().all(|member| member.pid.is_some()).then_some(())
    })
    .await;
    cluster.ready().await;
    assert_eq!(drain(&cluster, 2).await, sent, "in order, each once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unacked_messages_of_a_killed_members_session_return_to_their_places_marked_redelivered() {
    let cluster = Cluster::start().await;
    let (publisher, channel_a) = channel(&cluster, 0).await;
    channel_a.queue_declare(QUEUE.into(), QueueDeclareOptions::durable(), FieldTable::default()).await.unwrap();
    for number in 0..10 {
        publish(&channel_a, &number.to_string()).await;
    }
    publisher.close(200, "done".into()).await.unwrap();
    let (_doomed, channel_b) = channel(&cluster, 1).await;
    let consume =
        channel_b.basic_consume(QUEUE.into(), "".into(), BasicConsumeOptions::default(), FieldTable::default());
    let mut deliveries = consume.await.unwrap();
    for number in 0..5 {
        let delivery = tokio::time::timeout(PATIENCE, deliveries.next()).await.unwrap().unwrap().unwrap();
        assert_eq!(delivery.data, number.to_string().as_bytes());
        if number == 0 {
            delivery.ack(BasicAckOptions::default()).await.unwrap();
        }
    }
    // A synchronous reply makes the ack durable.
    channel_b.basic_qos(100, lapin::options::BasicQosOptions::default()).await.unwrap();
    cluster.kill(&cluster.members()[1]);
    let (connection, channel_c) = channel(&cluster, 2).await;
    let consume =
        channel_c.basic_consume(QUEUE.into(), "".into(), BasicConsumeOptions::default(), FieldTable::default());
    let mut deliveries = consume.await.unwrap();
    let mut found = Vec::new();
    for _ in 1..10 {
        let delivery = tokio::time::timeout(PATIENCE, deliveries.next()).await.expect("a delivery").unwrap().unwrap();
        found.push((String::from_utf8(delivery.data.clone()).unwrap(), delivery.redelivered));
        delivery.ack(BasicAckOptions::default()).await.unwrap();
    }
    // All ten were delivered to the session that died, at once; the nine that it did not ack come back.
    let expected: Vec<(String, bool)> = (1..10).map(|number| (number.to_string(), true)).collect();
    assert_eq!(found, expected);
    connection.close(200, "done".into()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_told_to_stop_end_in_time_and_come_back_with_their_messages() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("cluster");
    let mut cluster = Cluster::start_in(&dir).await;
    let (connection, publisher) = channel(&cluster, 1).await;
    publisher.queue_declare(QUEUE.into(), QueueDeclareOptions::durable(), FieldTable::default()).await.unwrap();
    publish(&publisher, "kept").await;
    connection.close(200, "done".into()).await.unwrap();
    let began = Instant::now();
    assert_eq!(cluster.stop().await, Some(0));
    println!("stopped after {:.1} s", began.elapsed().as_secs_f64());
    assert!(began.elapsed() < Duration::from_secs(15));
    drop(cluster);
    let cluster = Cluster::start_in(&dir).await;
    assert_eq!(drain(&cluster, 0).await, ["kept"]);
}
