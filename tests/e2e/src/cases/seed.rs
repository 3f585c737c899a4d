//! The seed case as it stands in a user's hands: two pika scripts with a power cut of the software between them.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::{CLUSTER, Context};
use crate::kubernetes::{eventually, run as run_program};

/// Messages of the case.
const MESSAGES: u32 = 2_000;

/// Declares a durable queue, publishes with `delivery_mode=2`, closes. No confirms: the close waits for durability.
const PUBLISH: &str = r#"
import sys, pika
uri, queue, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
connection = pika.BlockingConnection(pika.URLParameters(uri))
channel = connection.channel()
channel.queue_declare(queue=queue, durable=True)
for number in range(count):
    channel.basic_publish(exchange="", routing_key=queue, body=b"message %d" % number,
                          properties=pika.BasicProperties(delivery_mode=2))
connection.close()
"#;

/// Gets every message in order, acks each, prints how many came.
const CONSUME: &str = r#"
import sys, pika
uri, queue, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
connection = pika.BlockingConnection(pika.URLParameters(uri))
channel = connection.channel()
received = 0
for method, properties, body in channel.consume(queue, inactivity_timeout=10):
    if method is None:
        break
    assert body == b"message %d" % received, (body, received)
    channel.basic_ack(method.delivery_tag)
    received += 1
    if received == count:
        break
channel.cancel()
connection.close()
print(received)
"#;

/// The Python that has pika: the project's own environment, made by `.ci/install`.
fn python() -> PathBuf {
    let cache = std::env::var_os("HOLDFAST_CACHE").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache/holdfast"),
        PathBuf::from,
    );
    cache.join("python/bin/python3")
}

async fn script(text: &str, uri: &str, queue: &str, count: u32) -> Result<String> {
    let python = python();
    let python = python.to_str().context("the path of Python")?;
    run_program(python, &["-c", text, uri, queue, &count.to_string()], None)
        .await
        .context("run .ci/install when pika is missing")
}

/// Publishes `count` messages with pika.
pub(super) async fn publish(uri: &str, queue: &str, count: u32) -> Result<()> {
    script(PUBLISH, uri, queue, count).await.map(|_| ())
}

/// Consumes with pika and returns how many messages came, in order.
pub(super) async fn consume(uri: &str, queue: &str, count: u32) -> Result<u32> {
    Ok(script(CONSUME, uri, queue, count).await?.trim().parse()?)
}

pub(super) async fn run(context: &Context) -> Result<()> {
    let brokers = context.brokers().await?;
    let pods = brokers.kubernetes.broker_pods(CLUSTER).await?;
    publish(&brokers.uri(&pods[0]), "seed", MESSAGES).await?;
    for pod in &pods {
        pod.sigkill().await?;
    }
    println!("e2e: every broker is killed; waiting for them to come back");
    let received = eventually("a member serves the queue", Duration::from_secs(60), || async {
        let pods = brokers.kubernetes.broker_pods(CLUSTER).await?;
        ensure!(
            pods.iter().all(|pod| pod.ready && !pod.process_ids("holdfast-broker").is_empty()),
            "not every pod is Ready"
        );
        consume(&brokers.uri(&pods[1]), "seed", MESSAGES).await
    })
    .await?;
    ensure!(received == MESSAGES, "{received} of {MESSAGES} messages came back");
    Ok(())
}
