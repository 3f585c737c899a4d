//! The load of a run: one queue whose messages are consumed as they come, and one that keeps them on disk until the
//! fault is over. Each has a ledger of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use holdfast_e2e::ledger::{Ledger, Verdict};
use holdfast_e2e::load::{Consumer, Endpoints, Producer, Whereabouts, declare_durable_queue, wait_until_drained};
use serde::Serialize;
use tokio::task::JoinHandle;

use crate::cluster::Cluster;

/// The queue with consumers.
pub const LIVE: &str = "live";
/// The queue that is read only at the end.
pub const KEPT: &str = "kept";
/// The queue of [`Workload::pile_up`].
pub const BACKLOG: &str = "backlog";
/// Bytes of each message of these two.
const BODY_BYTES: usize = 1024;
/// How long clients go on trying; a run is over long before.
const LIFETIME: Duration = Duration::from_secs(1800);
/// How long it may take until everything sent is confirmed, and until the next of what is confirmed is received.
const SETTLING: Duration = Duration::from_secs(120);
/// How long it may take until everything confirmed is received, as long as it goes on.
const DRAINING: Duration = Duration::from_secs(600);

/// What the producers of a queue send together.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Messages a second; 0 is as fast as confirms allow.
    pub rate: u64,
    /// Messages at most.
    pub total: u64,
    /// Bytes of each.
    pub body_bytes: usize,
}

impl Pace {
    /// At this rate until they are told to end.
    fn endless(rate: u64) -> Self {
        Self { rate, total: u64::MAX / 2, body_bytes: BODY_BYTES }
    }
}

/// Producers and consumers of one queue.
pub struct Stream {
    /// What its clients were told.
    pub ledger: Arc<Ledger>,
    queue: &'static str,
    whereabouts: Arc<Whereabouts>,
    stop: Arc<AtomicBool>,
    producers: Vec<JoinHandle<Result<()>>>,
    consumers: Vec<JoinHandle<()>>,
}

impl Stream {
    /// Declares the queue, anew, and starts one producer for each member.
    ///
    /// # Errors
    /// When it cannot be declared.
    pub async fn start(endpoints: &Endpoints, queue: &'static str, members: usize, pace: Pace) -> Result<Self> {
        declare_durable_queue(endpoints, queue, Duration::from_secs(30)).await?;
        let mut stream = Self {
            ledger: Arc::default(),
            queue,
            whereabouts: Arc::default(),
            stop: Arc::default(),
            producers: Vec::new(),
            consumers: Vec::new(),
        };
        let published = Arc::new(AtomicU64::new(0));
        for member in 0..members {
            let producer = Producer {
                id: u32::try_from(member)?,
                member,
                queue: queue.to_owned(),
                total: pace.total / members as u64,
                rate: pace.rate.div_ceil(members as u64),
                body_bytes: pace.body_bytes,
                published: published.clone(),
                whereabouts: stream.whereabouts.clone(),
            };
            let run = producer.run(endpoints.clone(), stream.ledger.clone(), Instant::now() + LIFETIME);
            stream.producers.push(tokio::spawn(run));
        }
        Ok(stream)
    }

    /// Starts one consumer at each member.
    pub fn consume(&mut self, endpoints: &Endpoints, members: usize) {
        for member in 0..members {
            let id = u32::try_from(self.consumers.len()).unwrap_or(u32::MAX);
            let consumer = Consumer { id, member, queue: self.queue.to_owned(), prefetch: 200 };
            let run = consumer.run(endpoints.clone(), self.ledger.clone(), self.stop.clone());
            self.consumers.push(tokio::spawn(run));
        }
    }

    /// Sends producers that are elsewhere back to the members that they prefer.
    pub fn send_home(&self) {
        self.whereabouts.send_home();
    }

    /// The longest time that a producer was without a confirm, of those not connected to any of `struck` before.
    fn longest_gap(&self, watch: &Watch, window: Duration) -> Duration {
        let spared = watch.spared.iter().find(|(queue, _)| *queue == self.queue);
        spared.map_or(Duration::ZERO, |(_, spared)| self.ledger.longest_confirm_gap(watch.from, window, spared))
    }

    /// Producers that are connected to none of these members.
    fn spared(&self, struck: &[String]) -> Vec<u32> {
        let mut spared = self.whereabouts.split("").1;
        for uri in struck {
            let there = self.whereabouts.split(uri).0;
            spared.retain(|producer| !there.contains(producer));
        }
        spared
    }

    /// No producer sends anything new; waits until what was sent is confirmed.
    async fn settle(&mut self) -> Result<()> {
        self.whereabouts.send_no_more();
        for mut producer in std::mem::take(&mut self.producers) {
            let settled = tokio::time::timeout(SETTLING, &mut producer).await;
            if settled.is_err() {
                producer.abort();
            }
            let queue = self.queue;
            settled.with_context(|| format!("{queue}: a producer still waits for confirms"))???;
        }
        Ok(())
    }

    async fn drain(&mut self) -> Verdict {
        wait_until_drained(&self.ledger, SETTLING, DRAINING).await;
        self.stop.store(true, Ordering::Relaxed);
        for mut consumer in std::mem::take(&mut self.consumers) {
            if tokio::time::timeout(Duration::from_secs(20), &mut consumer).await.is_err() {
                consumer.abort();
            }
        }
        let verdict = self.ledger.verdict();
        if verdict.lost > 0 {
            eprintln!("{}: some of the lost: {:?}", self.queue, self.ledger.some_lost());
        }
        verdict
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.producers.iter().for_each(JoinHandle::abort);
        self.consumers.iter().for_each(JoinHandle::abort);
    }
}

/// From when, and on which producers, gaps between confirms are watched.
pub struct Watch {
    /// When the fault began.
    pub from: Instant,
    spared: Vec<(&'static str, Vec<u32>)>,
}

impl Watch {
    /// The same producers, from this moment.
    pub fn again(&self) -> Self {
        Self { from: Instant::now(), spared: self.spared.clone() }
    }
}

/// Whose confirms are waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// Of any one producer of each queue: the service is there.
    Anyone,
    /// Of every producer: none of them is stuck.
    Everyone,
}

/// Both streams.
pub struct Workload {
    /// Consumed as it comes.
    pub live: Stream,
    /// Read at the end.
    pub kept: Stream,
    /// What a fault has added.
    backlog: Option<Stream>,
    endpoints: Endpoints,
}

impl Workload {
    /// Declares both queues and starts their clients. Rates are messages a second of all producers together.
    ///
    /// # Errors
    /// When a queue cannot be declared.
    pub async fn start(cluster: &Cluster, live_rate: u64, kept_rate: u64) -> Result<Self> {
        let (endpoints, members) = (cluster.endpoints(), cluster.members.len());
        let mut live = Stream::start(&endpoints, LIVE, members, Pace::endless(live_rate)).await?;
        live.consume(&endpoints, members);
        let kept = Stream::start(&endpoints, KEPT, members, Pace::endless(kept_rate)).await?;
        Ok(Self { live, kept, backlog: None, endpoints })
    }

    fn streams(&self) -> [&Stream; 2] {
        [&self.live, &self.kept]
    }

    /// Begins to watch, at this moment, the producers that are not connected to any of the `struck` members.
    pub fn watch(&self, cluster: &Cluster, struck: &[usize]) -> Watch {
        let uris: Vec<String> = struck.iter().map(|number| cluster.members[*number].uri()).collect();
        let spared = self.streams().map(|stream| (stream.queue, stream.spared(&uris)));
        Watch { from: Instant::now(), spared: spared.to_vec() }
    }

    /// The longest time since then that any one of those producers was without a confirm, until `window` is over.
    pub async fn longest_gap(&self, watch: &Watch, window: Duration) -> Duration {
        tokio::time::sleep_until((watch.from + window).into()).await;
        self.streams().map(|stream| stream.longest_gap(watch, window)).into_iter().max().unwrap_or_default()
    }

    /// Waits until both queues have confirmed something after `from` to some producer, or to each one, and gives the
    /// time that it took.
    ///
    /// # Errors
    /// When that does not happen within `limit`.
    pub async fn confirmed_after(&self, from: Instant, whose: Whose, limit: Duration) -> Result<Duration> {
        let mut silent: Vec<(&Stream, Vec<u32>)> = Vec::new();
        for stream in self.streams() {
            let all = stream.spared(&[]);
            match whose {
                Whose::Anyone => silent.push((stream, all)),
                Whose::Everyone => silent.extend(all.into_iter().map(|producer| (stream, vec![producer]))),
            }
        }
        let mut last = from;
        loop {
            silent.retain(|(stream, producers)| match stream.ledger.first_confirm_after(from, producers) {
                Some(at) => {
                    last = last.max(at);
                    false
                }
                None => true,
            });
            if silent.is_empty() {
                return Ok(last - from);
            }
            let names: Vec<_> = silent.iter().map(|(stream, producers)| (stream.queue, producers)).collect();
            anyhow::ensure!(from.elapsed() < limit, "no confirm for {names:?} within {} s", limit.as_secs());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Confirms of both queues that were read in this time.
    pub fn confirms_between(&self, from: Instant, to: Instant) -> usize {
        self.streams().map(|stream| stream.ledger.confirms_between(from, to)).iter().sum()
    }

    /// Sends producers back to the members that they prefer.
    pub fn send_home(&self) {
        self.streams().iter().for_each(|stream| stream.send_home());
    }

    /// Publishes so many small messages to a third queue, as fast as confirms allow, and waits until they are confirmed.
    /// It is read at the end too.
    ///
    /// # Errors
    /// When the queue cannot be declared, or something is not confirmed within `limit`.
    pub async fn pile_up(&mut self, count: u64, limit: Duration) -> Result<()> {
        let members = self.live.consumers.len();
        let pace = Pace { rate: 0, total: count, body_bytes: 100 };
        let mut backlog = Stream::start(&self.endpoints, BACKLOG, members, pace).await?;
        for producer in std::mem::take(&mut backlog.producers) {
            tokio::time::timeout(limit, producer).await.context("the backlog's producers")???;
        }
        self.backlog = Some(backlog);
        Ok(())
    }

    /// The latency of confirms in the time that ends now, of the producers that `watch` spares: that which 99 of 100
    /// messages to the queue with consumers did not exceed.
    pub fn p99_since(&self, watch: &Watch) -> Option<Duration> {
        let (_, spared) = watch.spared.iter().find(|(queue, _)| *queue == LIVE)?;
        self.live.ledger.confirm_latency(watch.from, Instant::now(), spared, 99)
    }

    /// Consumers for what was kept so far, before the end.
    pub fn read_kept(&mut self) {
        let members = self.live.consumers.len();
        self.kept.consume(&self.endpoints, members);
    }

    /// Lets everything be confirmed, reads all queues to their ends and judges.
    ///
    /// # Errors
    /// When not everything that was sent is confirmed in the end.
    pub async fn finish(mut self) -> (Findings, Result<()>) {
        let (live, kept) = tokio::join!(self.live.settle(), self.kept.settle());
        if self.kept.consumers.is_empty() {
            self.read_kept();
        }
        let (of_live, of_kept) = tokio::join!(self.live.drain(), self.kept.drain());
        let mut verdicts = vec![of_live, of_kept];
        if let Some(mut backlog) = self.backlog.take() {
            backlog.consume(&self.endpoints, 2);
            verdicts.push(backlog.drain().await);
        }
        (Findings::of(&verdicts), live.and(kept))
    }
}

/// What the ledgers found, summed up.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Findings {
    /// Messages whose confirm was read.
    pub confirmed: u64,
    /// Confirmed messages that nobody received.
    pub lost: u64,
    /// Deliveries, not flagged as redelivered, beyond the number of sendings.
    pub duplicates: u64,
    /// Deliveries after the message's ack was durable.
    pub acked_redelivered: u64,
    /// Messages that were overtaken by a later one of their producer.
    pub order_broken: u64,
    /// The broken promises in words.
    pub violations: Vec<String>,
}

impl Findings {
    fn of(verdicts: &[Verdict]) -> Self {
        let mut findings = Self::default();
        for verdict in verdicts {
            findings.confirmed += verdict.confirmed;
            findings.lost += verdict.lost;
            findings.duplicates += verdict.duplicates;
            let count = |words: &str| verdict.violations.iter().filter(|text| text.contains(words)).count() as u64;
            findings.acked_redelivered += count("after its ack was durable");
            findings.order_broken += count("was overtaken by");
            findings.violations.extend(verdict.violations.iter().cloned());
        }
        findings
    }

    /// No promise was broken.
    pub fn is_clean(&self) -> bool {
        self.lost == 0 && self.duplicates == 0 && self.violations.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_promises_are_counted_by_their_kind() {
        let verdict = Verdict {
            confirmed: 5,
            consumed: 4,
            lost: 1,
            duplicates: 0,
            unknown: 0,
            violations: vec![
                "a was delivered again, as new, to consumer 1 after its ack was durable".into(),
                "b was overtaken by 7 of the same producer".into(),
                "a body of 3 bytes arrived damaged".into(),
            ],
        };
        let findings = Findings::of(&[verdict.clone(), verdict]);
        assert_eq!((findings.confirmed, findings.lost), (10, 2));
        assert_eq!((findings.acked_redelivered, findings.order_broken, findings.violations.len()), (2, 2, 6));
        assert!(!findings.is_clean());
        assert!(Findings::of(&[]).is_clean());
    }
}
