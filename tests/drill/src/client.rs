//! One client that does what clients do beside publishing and consuming, with every step bounded.

use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::StreamExt as _;
use holdfast_e2e::load::{Endpoints, connect, within};
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicGetOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    QueueDeclareOptions, QueueDeleteOptions, QueuePurgeOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection};

/// A connection with one channel in confirm mode.
pub struct Client {
    connection: Connection,
    channel: Channel,
}

impl Client {
    /// Connects and logs in, at the member of this number or another.
    ///
    /// # Errors
    /// When nobody answers.
    pub async fn connect(endpoints: &Endpoints, preferred: usize) -> Result<Self> {
        let connection = connect(endpoints, preferred).await?;
        let channel = within("channel.open", connection.create_channel()).await?;
        within("confirm.select", channel.confirm_select(ConfirmSelectOptions::default())).await?;
        Ok(Self { connection, channel })
    }

    /// A durable queue.
    ///
    /// # Errors
    /// The broker's, or no reply.
    pub async fn declare(&self, queue: &str) -> Result<()> {
        let declare = self.channel.queue_declare(queue.into(), QueueDeclareOptions::durable(), FieldTable::default());
        within("queue.declare", declare).await.map(|_| ())
    }

    /// Publishes so many messages of a few bytes and waits for their confirms.
    ///
    /// # Errors
    /// The broker's, or no confirm.
    pub async fn publish(&self, queue: &str, count: u64) -> Result<()> {
        let mut confirms = Vec::new();
        for number in 0..count {
            let body = number.to_string();
            let properties = BasicProperties::default().with_delivery_mode(2);
            let options = BasicPublishOptions::default();
            let publish = self.channel.basic_publish("".into(), queue.into(), options, body.as_bytes(), properties);
            confirms.push(within("basic.publish", publish).await?);
        }
        for confirm in confirms {
            let confirmed = tokio::time::timeout(Duration::from_secs(10), confirm).await;
            anyhow::ensure!(confirmed.context("no confirm within 10 s")??.is_ack(), "a message was refused");
        }
        Ok(())
    }

    /// Gets and acks up to so many messages; the acks are durable after it.
    ///
    /// # Errors
    /// The broker's, or no reply.
    pub async fn take(&mut self, count: u64, queue: &str) -> Result<u64> {
        for taken in 0..count {
            let get = self.channel.basic_get(queue.into(), BasicGetOptions::default());
            let Some(message) = within("basic.get", get).await? else { return Ok(taken) };
            let ack = async { message.ack(BasicAckOptions::default()).await.map(|_| ()) };
            within("basic.ack", ack).await?;
        }
        Ok(count)
    }

    /// Leaves in order.
    ///
    /// # Errors
    /// The broker's, or no reply.
    pub async fn close(self) -> Result<()> {
        within("connection.close", self.connection.close(200, "done".into())).await
    }

    /// Consumes with this prefetch and acks nothing; says how many messages came until none came for two seconds.
    /// They are its own until it is dropped.
    ///
    /// # Errors
    /// The broker's, or no reply.
    pub async fn hold(&self, queue: &str, prefetch: u16) -> Result<u64> {
        within("basic.qos", self.channel.basic_qos(prefetch, BasicQosOptions::default())).await?;
        let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
        let consume = self.channel.basic_consume(queue.into(), "".into(), options, arguments);
        let mut deliveries = within("basic.consume", consume).await?;
        let mut held = 0;
        while let Ok(next) = tokio::time::timeout(Duration::from_secs(2), deliveries.next()).await {
            next.context("the consumer was cancelled")??;
            held += 1;
        }
        Ok(held)
    }

    /// Purges a queue; says how many messages were in it.
    ///
    /// # Errors
    /// The broker's, or no reply.
    pub async fn purge(&self, queue: &str) -> Result<u64> {
        within("queue.purge", self.channel.queue_purge(queue.into(), QueuePurgeOptions::default())).await.map(u64::from)
    }

    /// Deletes a queue.
    ///
    /// # Errors
    /// The broker's, or no reply.
    pub async fn delete(&self, queue: &str) -> Result<()> {
        within("queue.delete", self.channel.queue_delete(queue.into(), QueueDeleteOptions::default())).await.map(|_| ())
    }
}
