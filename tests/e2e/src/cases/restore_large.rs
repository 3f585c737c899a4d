//! What a backup and a restore take where there is much: 100 busy queues, a gigabyte of messages.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::future::try_join_all;
use lapin::options::{QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::FieldTable;
use serde::Serialize;
use serde_json::Value;

use super::Context;
use super::backup;
use crate::brokers::Brokers;
use crate::install;
use crate::kubernetes::Kubernetes;
use crate::ledger::Ledger;
use crate::load::{Endpoints, Producer, Whereabouts, connect, within};
use crate::report;

const AGAIN: &str = "again";
/// Bound on one step.
const STEP: Duration = Duration::from_secs(180);
/// Queues that are published to while a barrier is taken, and messages a second to each.
const BUSY: u32 = 100;
const BUSY_RATE: u64 = 10;
const BARRIERS: u32 = 3;
/// A gigabyte, over some queues: so many messages in each.
const LARGE_QUEUES: u32 = 8;
const LARGE_MESSAGES: u64 = 12_500;
const LARGE_BODY: usize = 10_000;
/// Connections, and channels of each, that declare queues.
const CONNECTIONS: usize = 3;
const CHANNELS: usize = 8;

/// What the project set itself (README).
const PAUSE_FIGURE_MS: i64 = 100;
const GIGABYTE_FIGURE: Duration = Duration::from_secs(60);

#[derive(Default, Serialize)]
struct Report {
    pause_ms: Vec<i64>,
    gigabyte_backup_s: f64,
    gigabyte_restored_s: f64,
}

pub(super) async fn run(context: &Context) -> Result<()> {
    let kubernetes = &context.kubernetes;
    remove(kubernetes).await?;
    let result = measured(kubernetes).await;
    if result.is_err() {
        install::print_state_of(&kubernetes.namespace).await;
    }
    let removed = remove(kubernetes).await;
    result.and(removed)
}

async fn measured(kubernetes: &Kubernetes) -> Result<()> {
    let brokers = backup::cluster(kubernetes, "8Gi").await?;
    let mut report = Report { pause_ms: busy(kubernetes, &brokers).await?, ..Report::default() };

    let names: Vec<String> = (0..LARGE_QUEUES).map(|number| format!("large-{number}")).collect();
    on_channels(&brokers.endpoints(), &names, Call::Declare).await?;
    let began = Instant::now();
    publish(&brokers, &names, LARGE_MESSAGES, 0, LARGE_BODY).await?;
    println!("e2e: a gigabyte is published after {:.1} s", began.elapsed().as_secs_f64());
    let (backup_s, restored_s, totals) = there_and_back(kubernetes, "gigabyte").await?;
    ensure!(number(&totals["bytes"]) >= 1_000_000_000, "the backup is of {totals}");
    (report.gigabyte_backup_s, report.gigabyte_restored_s) = (backup_s, restored_s);
    has(kubernetes, &names, LARGE_MESSAGES).await?;

    report::write("restore-large", &report)?;
    // The one in the middle: what a machine that is busy with something else does to one of them is not the barrier's.
    let mut pauses = report.pause_ms.clone();
    pauses.sort_unstable();
    let pause = *pauses.get(pauses.len() / 2).context("no barrier")?;
    ensure!(pause <= PAUSE_FIGURE_MS, "the pauses were {pauses:?} ms");
    let (seconds, figure) = (report.gigabyte_restored_s, GIGABYTE_FIGURE.as_secs_f64());
    ensure!(seconds <= figure, "the restore of a gigabyte took {seconds:.1} s, and should take {figure} s at most");
    Ok(())
}

/// How long confirms stood still at each barrier, while as many queues are published to.
async fn busy(kubernetes: &Kubernetes, brokers: &Brokers) -> Result<Vec<i64>> {
    let names: Vec<String> = (0..BUSY).map(|number| format!("busy-{number}")).collect();
    on_channels(&brokers.endpoints(), &names, Call::Declare).await?;
    let load = publish(brokers, &names, BUSY_RATE * 40, BUSY_RATE, 1024);
    let barriers = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        let mut pauses = Vec::new();
        for number in 0..BARRIERS {
            let status = completed(kubernetes, &format!("busy-{number}")).await?;
            pauses.push(status["barrier"]["pauseMs"].as_i64().context("barrier.pauseMs")?);
        }
        anyhow::Ok(pauses)
    };
    let (sent, pauses) = tokio::join!(load, barriers);
    sent?;
    let pauses: Vec<i64> = pauses?;
    println!("e2e: the barrier's pause at {BUSY} busy queues: {pauses:?} ms");
    on_channels(&brokers.endpoints(), &names, Call::Delete).await?;
    Ok(pauses)
}

/// Seconds that a backup takes, and from applying another cluster of the same size that begins with it to Ready.
async fn there_and_back(kubernetes: &Kubernetes, name: &str) -> Result<(f64, f64, Value)> {
    let began = Instant::now();
    let status = completed(kubernetes, name).await?;
    let backup_s = began.elapsed().as_secs_f64();
    let manifest = install::three_member_cluster(AGAIN)
        .replace("storage: {size: 1Gi}", "storage: {size: 8Gi, storageClassName: holdfast-csi}")
        + &format!("  bootstrap: {{recovery: {{backup: {{name: {name}}}}}}}\n");
    let began = Instant::now();
    kubernetes.apply(&manifest).await?;
    // Longer than it should take: how long it did take is what is asked.
    kubernetes.wait_for_condition(AGAIN, "Ready", "True", STEP * 2).await?;
    let restored_s = began.elapsed().as_secs_f64();
    println!(
        "e2e: {name}: backed up in {backup_s:.1} s, restored and Ready in {restored_s:.1} s: {}",
        status["totals"]
    );
    Ok((backup_s, restored_s, status["totals"].clone()))
}

async fn completed(kubernetes: &Kubernetes, name: &str) -> Result<Value> {
    kubernetes.apply(&backup::backup(name, "holdfast-atomic")).await?;
    let end = Instant::now() + STEP;
    loop {
        let status = kubernetes.get(&["mqb", name]).await?["status"].clone();
        match status["phase"].as_str() {
            Some("Completed") => return Ok(status),
            Some("Failed") => anyhow::bail!("backup {name} failed: {}", status["failures"]),
            _ => ensure!(Instant::now() < end, "backup {name} does not end: {status}"),
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

fn number(value: &Value) -> i64 {
    value.as_i64().unwrap_or_default()
}

/// Publishes so many messages to each queue, with confirms, and waits for all.
async fn publish(brokers: &Brokers, queues: &[String], each: u64, rate: u64, body_bytes: usize) -> Result<()> {
    let uris = (brokers.endpoints())().await;
    let endpoints = crate::load::fixed_endpoints(uris);
    let ledger = Arc::new(Ledger::default());
    let (published, whereabouts) = (Arc::new(AtomicU64::new(0)), Arc::new(Whereabouts::default()));
    let deadline = Instant::now() + STEP;
    let producers = queues.iter().zip(0..).map(|(queue, id)| {
        let producer = Producer {
            id,
            member: id as usize % 3,
            queue: queue.clone(),
            total: each,
            rate,
            body_bytes,
            published: published.clone(),
            whereabouts: whereabouts.clone(),
        };
        tokio::spawn(producer.run(endpoints.clone(), ledger.clone(), deadline))
    });
    for producer in producers.collect::<Vec<_>>() {
        producer.await??;
    }
    Ok(())
}

/// What is done with each of many queues.
#[derive(Clone, Copy)]
enum Call {
    Declare,
    Delete,
}

async fn done_with(channel: &lapin::Channel, queue: &str, call: Call) -> Result<()> {
    if matches!(call, Call::Delete) {
        let deleted = channel.queue_delete(queue.into(), QueueDeleteOptions::default());
        return within("queue.delete", deleted).await.map(drop);
    }
    let declared = channel.queue_declare(queue.into(), QueueDeclareOptions::durable(), FieldTable::default());
    within("queue.declare", declared).await.map(drop)
}

/// Over several channels of each of several connections at once.
async fn on_channels(endpoints: &Endpoints, queues: &[String], call: Call) -> Result<()> {
    let mut channels = Vec::new();
    let mut connections = Vec::new();
    for member in 0..CONNECTIONS {
        let connection = connect(endpoints, member).await?;
        for _ in 0..CHANNELS {
            let channel = within("channel.open", connection.create_channel()).await?;
            channels.push(channel);
        }
        connections.push(connection);
    }
    let count = channels.len();
    let each = channels.iter().enumerate().map(|(number, channel)| async move {
        for queue in queues.iter().skip(number).step_by(count) {
            done_with(channel, queue, call).await.with_context(|| queue.clone())?;
        }
        anyhow::Ok(())
    });
    try_join_all(each).await?;
    for connection in connections {
        within("connection.close", connection.close(200, "done".into())).await?;
    }
    Ok(())
}

/// The copy says that it has so many messages in each of these queues. That they are the same ones its broker has compared
/// with the manifest's sums before it founded the cluster.
async fn has(kubernetes: &Kubernetes, queues: &[String], each: u64) -> Result<()> {
    let brokers = Brokers::connect(kubernetes, AGAIN).await?;
    let connection = connect(&brokers.endpoints(), 2).await?;
    let channel = within("channel.open", connection.create_channel()).await?;
    for queue in queues {
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
        let found = channel.queue_declare(queue.as_str().into(), passive, FieldTable::default());
        let found = u64::from(within("queue.declare", found).await?.message_count());
        ensure!(found == each, "{queue} has {found} of {each} messages");
    }
    within("connection.close", connection.close(200, "done".into())).await
}

/// Removes all that this case made.
async fn remove(kubernetes: &Kubernetes) -> Result<()> {
    install::remove_cluster(kubernetes, AGAIN, true).await?;
    backup::remove(kubernetes).await
}
