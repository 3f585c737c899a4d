//! What a user's own scripts do, with the AMQP client that most of them use: pika, in Python.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::kubernetes::run as run_program;

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

/// Declares the durable queue, publishes `count` persistent messages to it without confirms, and closes.
///
/// # Errors
/// When pika is not installed, or the script fails: its output is in the error.
pub async fn publish(uri: &str, queue: &str, count: u32) -> Result<()> {
    script(PUBLISH, uri, queue, count).await.map(|_| ())
}

/// Consumes and acks up to `count` messages, which must come in the order of their publishing, and gives their number.
///
/// # Errors
/// When pika is not installed, or the script fails: its output is in the error.
pub async fn consume(uri: &str, queue: &str, count: u32) -> Result<u32> {
    Ok(script(CONSUME, uri, queue, count).await?.trim().parse()?)
}
