//! AMQP clients: those that declare, and one that asks whether a member serves.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::future::try_join_all;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};

/// Connections to each member, and channels of each, that declare at the same time.
const CONNECTIONS: usize = 4;
const CHANNELS: usize = 16;
/// Queues that a restarted member is asked for.
const SAMPLE: u64 = 100;
/// How long one declare may take.
const DECLARE_WITHIN: Duration = Duration::from_secs(60);
/// An attempt to be served that takes longer is begun anew.
const ATTEMPT: Duration = Duration::from_secs(30);
const RETRY_AFTER: Duration = Duration::from_millis(20);

/// How the declares went.
pub struct Declared {
    pub seconds: f64,
    /// Declares a second in each tenth of the queues, in order.
    pub rates: Vec<f64>,
    pub p50_ms: f64,
    pub p99_ms: f64,
}

fn name(number: u64) -> String {
    format!("many-{number}")
}

/// Declares durable queues through all members at once.
pub async fn declare(uris: &[String], queues: u64) -> Result<Declared> {
    let mut channels = Vec::new();
    let mut connections = Vec::new();
    for uri in uris {
        for _ in 0..CONNECTIONS {
            let connection = Connection::connect(uri, ConnectionProperties::default()).await?;
            for _ in 0..CHANNELS {
                channels.push(connection.create_channel().await?);
            }
            connections.push(connection);
        }
    }
    let next = Arc::new(AtomicU64::new(0));
    let began = Instant::now();
    let work = channels.into_iter().map(|channel| tokio::spawn(declare_some(channel, next.clone(), queues)));
    let mut done: Vec<(Instant, Duration)> = Vec::new();
    for part in try_join_all(work).await? {
        done.extend(part?);
    }
    for connection in connections {
        connection.close(200, "done".into()).await?;
    }
    done.sort_unstable();
    let ends: Vec<f64> = done.iter().map(|(at, _)| at.duration_since(began).as_secs_f64()).collect();
    let tenth = (ends.len() / 10).max(1);
    let mut rates = Vec::new();
    let mut since = 0.0;
    for part in ends.chunks(tenth) {
        let until = part[part.len() - 1];
        rates.push(part.len() as f64 / (until - since).max(1e-9));
        since = until;
    }
    let mut took: Vec<f64> = done.iter().map(|(_, took)| took.as_secs_f64() * 1000.0).collect();
    took.sort_unstable_by(f64::total_cmp);
    let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize];
    Ok(Declared { seconds: since, rates, p50_ms: at(0.5), p99_ms: at(0.99) })
}

async fn declare_some(channel: Channel, next: Arc<AtomicU64>, queues: u64) -> Result<Vec<(Instant, Duration)>> {
    let mut done = Vec::new();
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= queues {
            return Ok(done);
        }
        let began = Instant::now();
        let declare = channel.queue_declare(name(number).into(), QueueDeclareOptions::durable(), FieldTable::default());
        tokio::time::timeout(DECLARE_WITHIN, declare)
            .await
            .with_context(|| format!("declaring {}", name(number)))??;
        done.push((Instant::now(), began.elapsed()));
    }
}

/// Waits until a member takes a connection and a sample of all queues can be declared passively and published to, with
/// confirms, through it.
pub async fn wait_until_served(uri: &str, queues: u64, until: Instant) -> Result<()> {
    loop {
        let served = match tokio::time::timeout(ATTEMPT, is_served(uri, queues)).await {
            Ok(served) => served,
            Err(_) => Err(anyhow::anyhow!("no answer within {ATTEMPT:?}")),
        };
        match served {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() >= until => return Err(error.context(format!("{uri} does not serve"))),
            Err(_) => tokio::time::sleep(RETRY_AFTER).await,
        }
    }
}

async fn is_served(uri: &str, queues: u64) -> Result<()> {
    let connection = Connection::connect(uri, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let sample = SAMPLE.min(queues);
    let mut confirms = Vec::new();
    for number in (0..sample).map(|step| step * queues / sample) {
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
        channel.queue_declare(name(number).into(), passive, FieldTable::default()).await?;
        let properties = BasicProperties::default().with_delivery_mode(2);
        let options = BasicPublishOptions::default();
        let publish = channel.basic_publish("".into(), name(number).into(), options, b"served?", properties);
        confirms.push(publish.await?);
    }
    for confirm in try_join_all(confirms).await? {
        ensure!(matches!(confirm, Confirmation::Ack(None)), "a publish was not confirmed: {confirm:?}");
    }
    connection.close(200, "served".into()).await?;
    Ok(())
}
