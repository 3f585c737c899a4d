//! Producers and consumers: real clients (lapin) that keep the ledger while brokers die under them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt as _};
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};

use crate::ledger::{Ledger, MessageId, encode_body};

/// Where members can be reached now: AMQP URIs in member order. Asked again after every broken connection.
pub type Endpoints = Arc<dyn Fn() -> BoxFuture<'static, Vec<String>> + Send + Sync>;

/// Bound on one attempt to connect, and on a synchronous method's reply.
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);
/// Bound on saying goodbye on a connection that has failed.
const GOODBYE: Duration = Duration::from_secs(1);
/// Publishes on their way, per producer.
const WINDOW: usize = 1000;
/// Acks after which a consumer asks for a synchronous reply, which makes them durable.
const ACKS_PER_SYNC: usize = 100;
/// A consumer that is idle asks for the reply after this time.
const IDLE_SYNC: Duration = Duration::from_millis(200);

/// To which member each producer of a load is connected, by URI, and the call to go back to the member that it prefers.
#[derive(Default)]
pub struct Whereabouts {
    connected: Mutex<BTreeMap<u32, String>>,
    homeward: AtomicU64,
    ending: AtomicBool,
}

impl Whereabouts {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u32, String>> {
        self.connected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Producers that are connected to `uri`, and those that are connected elsewhere.
    #[must_use]
    pub fn split(&self, uri: &str) -> (Vec<u32>, Vec<u32>) {
        let connected = self.lock();
        let (there, elsewhere): (Vec<_>, Vec<_>) = connected.iter().partition(|(_, at)| *at == uri);
        let ids = |these: Vec<(&u32, &String)>| these.into_iter().map(|(id, _)| *id).collect();
        (ids(there), ids(elsewhere))
    }

    /// Sends every producer that lost its preferred member back to it: it settles what is on its way, then moves.
    pub fn send_home(&self) {
        self.homeward.fetch_add(1, Ordering::Relaxed);
    }

    /// Tells every producer to send nothing new: it ends when what is on its way is confirmed.
    pub fn send_no_more(&self) {
        self.ending.store(true, Ordering::Relaxed);
    }
}

/// Opens a connection to the endpoint at `preferred`, or to the next ones when that one is away.
///
/// # Errors
/// When no endpoint accepted a connection within its time.
pub async fn connect(endpoints: &Endpoints, preferred: usize) -> Result<Connection> {
    connect_somewhere(endpoints, preferred).await.map(|(connection, _)| connection)
}

async fn connect_somewhere(endpoints: &Endpoints, preferred: usize) -> Result<(Connection, String)> {
    let uris = endpoints().await;
    let mut last = anyhow::anyhow!("no member has an address");
    for step in 0..uris.len() {
        let uri = &uris[(preferred + step) % uris.len()];
        let attempt = Connection::connect(uri, ConnectionProperties::default());
        match tokio::time::timeout(Duration::from_secs(3), attempt).await {
            Ok(Ok(connection)) => return Ok((connection, uri.clone())),
            Ok(Err(error)) => last = error.into(),
            Err(_) => last = anyhow::anyhow!("no answer within 3 s"),
        }
    }
    Err(last.context("no member accepts connections"))
}

/// Bounds a synchronous method.
///
/// # Errors
/// The client's error, or the time having run out.
pub async fn within<T>(what: &str, call: impl Future<Output = lapin::Result<T>>) -> Result<T> {
    tokio::time::timeout(REPLY_TIMEOUT, call)
        .await
        .with_context(|| format!("{what}: no reply within {} s", REPLY_TIMEOUT.as_secs()))?
        .with_context(|| what.to_owned())
}

/// Declares a durable queue with nothing in it from an earlier run, trying again until `deadline`.
///
/// # Errors
/// The last error when the time has run out.
pub async fn declare_durable_queue(endpoints: &Endpoints, queue: &str, deadline: Duration) -> Result<()> {
    let end = Instant::now() + deadline;
    loop {
        let attempt = async {
            let connection = connect(endpoints, 0).await?;
            let channel = within("channel.open", connection.create_channel()).await?;
            within("queue.delete", channel.queue_delete(queue.into(), QueueDeleteOptions::default())).await?;
            let declare = channel.queue_declare(queue.into(), QueueDeclareOptions::durable(), FieldTable::default());
            within("queue.declare", declare).await?;
            within("connection.close", connection.close(200, "done".into())).await
        };
        match attempt.await {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() > end => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// A producer of `total` messages at a steady rate.
pub struct Producer {
    /// The number that its messages carry.
    pub id: u32,
    /// Index of the member that it prefers.
    pub member: usize,
    /// The queue, reached through the default exchange.
    pub queue: String,
    /// Messages to send.
    pub total: u64,
    /// Messages a second; 0 is as fast as confirms allow.
    pub rate: u64,
    /// Bytes of each body.
    pub body_bytes: usize,
    /// Counts publishes over all producers of a run.
    pub published: Arc<AtomicU64>,
    /// Where the producers of the run are.
    pub whereabouts: Arc<Whereabouts>,
}

/// How a connection of a producer ended well.
enum Ended {
    AllConfirmed,
    /// To connect to the preferred member again.
    Moving,
}

impl Producer {
    /// Sends every message and waits until each is confirmed, through as many connections as it takes.
    ///
    /// # Errors
    /// When `deadline` passes first: says how many are still unconfirmed and why the last connection ended.
    pub async fn run(self, endpoints: Endpoints, ledger: Arc<Ledger>, deadline: Instant) -> Result<()> {
        let mut progress = Progress { next: 1, resend: VecDeque::new() };
        let start = Instant::now();
        let mut last_error = None;
        loop {
            let time_left = deadline.saturating_duration_since(Instant::now());
            let attempt =
                tokio::time::timeout(time_left, self.one_connection(&endpoints, &ledger, &mut progress, start)).await;
            match attempt {
                Ok(Ok(Ended::AllConfirmed)) => {
                    ledger.finished(self.id);
                    return Ok(());
                }
                Ok(Ok(Ended::Moving)) => continue,
                Ok(Err(error)) => last_error = Some(error),
                Err(_) => {
                    let unsent = self.total + 1 - progress.next;
                    let why = last_error.map_or_else(|| "none".to_owned(), |error| format!("{error:#}"));
                    anyhow::bail!(
                        "producer {}: time is up, {unsent} unsent and {} unconfirmed; last connection error: {why}",
                        self.id,
                        progress.resend.len()
                    );
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn one_connection(
        &self,
        endpoints: &Endpoints,
        ledger: &Ledger,
        progress: &mut Progress,
        start: Instant,
    ) -> Result<Ended> {
        let mut calls_heard = self.whereabouts.homeward.load(Ordering::Relaxed);
        let mut moving = false;
        let (connection, uri) = connect_somewhere(endpoints, self.member).await?;
        self.whereabouts.lock().insert(self.id, uri.clone());
        let channel = within("channel.open", connection.create_channel()).await?;
        within("confirm.select", channel.confirm_select(ConfirmSelectOptions::default())).await?;
        let mut pending = FuturesUnordered::new();
        // Everything on its way stays in `resend` until it is confirmed, so that dropping this future loses nothing.
        let mut to_send: VecDeque<u64> = progress.resend.iter().copied().collect();
        loop {
            let calls = self.whereabouts.homeward.load(Ordering::Relaxed);
            if calls != calls_heard {
                calls_heard = calls;
                moving = endpoints().await.get(self.member).is_some_and(|home| *home != uri);
            }
            let number = match to_send.front() {
                None if moving => None,
                Some(number) => Some(*number),
                None if progress.next <= self.total && !self.whereabouts.ending.load(Ordering::Relaxed) => {
                    Some(progress.next)
                }
                None => None,
            };
            let due = number.map(|number| if to_send.is_empty() { self.due(start, number) } else { Instant::now() });
            if number.is_none() && pending.is_empty() {
                within("connection.close", connection.close(200, "done".into())).await?;
                return Ok(if moving { Ended::Moving } else { Ended::AllConfirmed });
            }
            tokio::select! {
                biased;
                Some((number, outcome)) = pending.next(), if !pending.is_empty() => {
                    self.settle(ledger, progress, number, outcome)?;
                }
                () = sleep_until(due), if due.is_some() && pending.len() < WINDOW => {
                    let number = number.unwrap_or(progress.next);
                    if to_send.pop_front().is_none() {
                        progress.next += 1;
                        progress.resend.push_back(number);
                        self.published.fetch_add(1, Ordering::Relaxed);
                    }
                    let confirm = self.publish(&channel, ledger, number).await?;
                    pending.push(async move { (number, confirm.await) });
                }
            }
        }
    }

    fn due(&self, start: Instant, number: u64) -> Instant {
        match self.rate {
            0 => start,
            rate => start + Duration::from_micros((number - 1) * 1_000_000 / rate),
        }
    }

    async fn publish(&self, channel: &Channel, ledger: &Ledger, number: u64) -> Result<lapin::PublisherConfirm> {
        let id = MessageId { producer: self.id, number };
        let body = encode_body(id, self.body_bytes);
        ledger.sent(id);
        let properties = BasicProperties::default().with_delivery_mode(2);
        let publish = channel.basic_publish(
            "".into(),
            self.queue.as_str().into(),
            BasicPublishOptions::default(),
            &body,
            properties,
        );
        within("basic.publish", publish).await
    }

    fn settle(
        &self,
        ledger: &Ledger,
        progress: &mut Progress,
        number: u64,
        outcome: lapin::Result<Confirmation>,
    ) -> Result<()> {
        let id = MessageId { producer: self.id, number };
        match outcome? {
            Confirmation::Ack(_) => ledger.confirmed(id),
            Confirmation::Nack(_) => ledger.refused(id),
            Confirmation::NotRequested => anyhow::bail!("the channel is not in confirm mode"),
        }
        progress.resend.retain(|sent| *sent != number);
        Ok(())
    }
}

struct Progress {
    next: u64,
    resend: VecDeque<u64>,
}

async fn sleep_until(due: Option<Instant>) {
    if let Some(due) = due {
        tokio::time::sleep_until(due.into()).await;
    }
}

/// A consumer that acks everything it gets until it is told to stop.
pub struct Consumer {
    /// Tells consumers apart.
    pub id: u32,
    /// Index of the member that it prefers.
    pub member: usize,
    /// The queue.
    pub queue: String,
    /// Unacked messages that it accepts.
    pub prefetch: u16,
}

impl Consumer {
    /// Consumes until `stop` is set, through as many connections as it takes.
    pub async fn run(self, endpoints: Endpoints, ledger: Arc<Ledger>, stop: Arc<AtomicBool>) {
        let mut connection_number = 0;
        while !stop.load(Ordering::Relaxed) {
            // A new connection is a new consumer to the order check: what its predecessor held may come again.
            let order_id = self.id * 1000 + connection_number;
            connection_number += 1;
            if self.one_connection(&endpoints, &ledger, &stop, order_id).await.is_err() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }

    async fn one_connection(
        &self,
        endpoints: &Endpoints,
        ledger: &Ledger,
        stop: &AtomicBool,
        order_id: u32,
    ) -> Result<()> {
        let connection = connect(endpoints, self.member).await?;
        let ended = self.consume_on(&connection, ledger, stop, order_id).await;
        if ended.is_err() {
            // A connection on which a call was given up stays open and goes on being a consumer, unless it is closed.
            let _ = tokio::time::timeout(GOODBYE, connection.close(200, "given up".into())).await;
        }
        ended
    }

    async fn consume_on(
        &self,
        connection: &Connection,
        ledger: &Ledger,
        stop: &AtomicBool,
        order_id: u32,
    ) -> Result<()> {
        let channel = within("channel.open", connection.create_channel()).await?;
        within("basic.qos", channel.basic_qos(self.prefetch, BasicQosOptions::default())).await?;
        let consume = channel.basic_consume(
            self.queue.as_str().into(),
            "".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        );
        let mut deliveries = within("basic.consume", consume).await?;
        let mut acked = Vec::new();
        loop {
            let next = tokio::time::timeout(IDLE_SYNC, deliveries.next()).await;
            let idle = next.is_err();
            match next {
                Ok(Some(delivery)) => {
                    let delivery = delivery?;
                    if let Some(id) = ledger.delivered(order_id, &delivery.data, delivery.redelivered) {
                        acked.push(id);
                    }
                    within("basic.ack", async { delivery.ack(BasicAckOptions::default()).await.map(|_| ()) }).await?;
                }
                Ok(None) => anyhow::bail!("the consumer was cancelled"),
                Err(_) => {}
            }
            if acked.len() >= ACKS_PER_SYNC || (idle && !acked.is_empty()) {
                // Any synchronous reply will do; qos is harmless when it repeats the same value.
                within("basic.qos", channel.basic_qos(self.prefetch, BasicQosOptions::default())).await?;
                ledger.acks_durable(&acked);
                acked.clear();
            }
            if idle && stop.load(Ordering::Relaxed) {
                return within("connection.close", connection.close(200, "done".into())).await;
            }
        }
    }
}

/// Waits until every confirmed message has been received, or for `patience` none of those that are missing has come, or
/// `limit` is over: a slow machine is no loss, and what stands still is.
pub async fn wait_until_drained(ledger: &Ledger, patience: Duration, limit: Duration) {
    let end = Instant::now() + limit;
    let mut missing = ledger.undelivered_count();
    let mut progress = Instant::now();
    while missing > 0 && progress.elapsed() < patience && Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let left = ledger.undelivered_count();
        if left < missing {
            progress = Instant::now();
        }
        missing = left;
    }
}

/// Fixed endpoints, for brokers that keep their addresses.
#[must_use]
pub fn fixed_endpoints(uris: Vec<String>) -> Endpoints {
    Arc::new(move || {
        let uris = uris.clone();
        Box::pin(async move { uris })
    })
}
