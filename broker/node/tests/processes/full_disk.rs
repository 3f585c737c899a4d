//! A disk that fills up under load: publishers wait, everybody else goes on, and afterwards nothing is missing.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions,
    QueueDeleteOptions, QueuePurgeOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};
use tokio::time::timeout;

use crate::cluster::{Cluster, PATIENCE, eventually, uri};

const QUEUE: &str = "orders";
/// Three members with segments of 16 MiB reserve 64 MiB each, and publishers wait below 64 MiB.
const DISK_MIB: u64 = 640;
/// What is left when the disk is filled: below the limit, and enough for what is on its way.
const LEFT_MIB: u64 = 40;
/// How long the disk stays full.
const FULL_FOR: Duration = Duration::from_secs(8);

async fn connect(cluster: &Cluster, member: usize) -> (Connection, Channel) {
    let address = uri(cluster.members()[member].amqp);
    let connection = Connection::connect(&address, ConnectionProperties::default()).await.expect("log-in goes on");
    let channel = connection.create_channel().await.unwrap();
    (connection, channel)
}

/// Publishes messages 0, 1, 2 … one after the other, each once the one before is confirmed, until told to stop.
async fn publish(channel: Channel, mut stop: tokio::sync::oneshot::Receiver<()>) -> u64 {
    for number in 0.. {
        if stop.try_recv().is_ok() {
            return number;
        }
        let body = format!("{number:08}{}", "x".repeat(2000));
        let properties = BasicProperties::default().with_delivery_mode(2);
        let options = BasicPublishOptions::default();
        let confirm = channel.basic_publish("".into(), QUEUE.into(), options, body.as_bytes(), properties).await;
        let confirmation = timeout(PATIENCE, confirm.unwrap()).await.expect("confirmed in the end").unwrap();
        assert!(matches!(confirmation, Confirmation::Ack(_)), "{confirmation:?}");
    }
    unreachable!("numbers do not end")
}

async fn alarmed_members(cluster: &Cluster) -> Option<usize> {
    let members = cluster.members();
    let health = cluster.get(&members[0], "/v1/health").await?;
    Some(health["alarms"].as_array()?.iter().filter(|alarm| alarm["disk"] == true).count())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_stops_publishers_alone_and_loses_nothing() {
    let cluster = Cluster::start_on_small_disk(DISK_MIB).await;
    let (publisher, published) = connect(&cluster, 0).await;
    published
        .queue_declare(QUEUE.into(), QueueDeclareOptions { durable: true, ..Default::default() }, FieldTable::default())
        .await
        .unwrap();
    published.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let load = tokio::spawn(publish(published, stopped));
    let (_consumer, consumed) = connect(&cluster, 1).await;
    let mut deliveries = consumed
        .basic_consume(QUEUE.into(), "c".into(), BasicConsumeOptions::default(), FieldTable::default())
        .await
        .unwrap();
    let mut seen = BTreeSet::new();
    let mut take = async |seen: &mut BTreeSet<u64>, patience| -> bool {
        let Ok(delivery) = timeout(patience, deliveries.next()).await else { return false };
        let delivery = delivery.expect("the consumer goes on").unwrap();
        seen.insert(std::str::from_utf8(&delivery.data[..8]).unwrap().parse().unwrap());
        delivery.ack(BasicAckOptions::default()).await.unwrap();
        true
    };
    while seen.len() < 50 {
        assert!(take(&mut seen, PATIENCE).await);
    }

    let filler = cluster.fill_disk(LEFT_MIB);
    eventually("every member's alarm", || async { (alarmed_members(&cluster).await? == 3).then_some(()) }).await;
    eventually("the publisher to be told", || async { publisher.status().blocked().then_some(()) }).await;
    while take(&mut seen, Duration::from_secs(1)).await {}
    let at_rest = seen.len();
    let (other, on_other) = connect(&cluster, 2).await;
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    on_other.queue_declare("other".into(), durable, FieldTable::default()).await.unwrap();
    on_other.queue_purge("other".into(), QueuePurgeOptions::default()).await.unwrap();
    on_other.queue_delete("other".into(), QueueDeleteOptions::default()).await.unwrap();
    assert!(!other.status().blocked(), "it publishes nothing");
    assert!(!take(&mut seen, FULL_FOR).await, "nothing is published while the disk is full");
    assert!(cluster.members().iter().all(|member| member.pid.is_some()), "no member has ended");

    std::fs::remove_file(filler).unwrap();
    eventually("the publisher to go on", || async { (!publisher.status().blocked()).then_some(()) }).await;
    while seen.len() < at_rest + 50 {
        assert!(take(&mut seen, PATIENCE).await);
    }
    stop.send(()).unwrap();
    let confirmed = load.await.unwrap();
    while (seen.len() as u64) < confirmed {
        assert!(take(&mut seen, PATIENCE).await, "{} of {confirmed} confirmed messages came", seen.len());
    }
    assert!(seen.into_iter().eq(0..confirmed));
    assert_eq!(alarmed_members(&cluster).await, Some(0));
}
