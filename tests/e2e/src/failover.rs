//! A load on one queue through every member while its leader is killed: what the demo and the leader-kill case share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde::Serialize;
use tokio::task::JoinHandle;

use crate::brokers::Brokers;
use crate::kubernetes::{Pod, eventually};
use crate::ledger::{Ledger, Verdict};
use crate::load::{Consumer, Producer, Whereabouts, wait_until_drained};

/// How a leader is taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Strike {
    /// SIGKILL to its process; the pod stays and restarts its container.
    Sigkill,
    /// `kubectl delete pod --force --grace-period=0`.
    ForceDelete,
}

/// What one strike did.
#[derive(Clone, Debug, Serialize)]
pub struct Failover {
    /// How.
    pub strike: Strike,
    /// The member that led before.
    pub leader_before: String,
    /// The member that leads after.
    pub leader_after: String,
    /// Publishing clients that were connected to the struck member.
    pub clients_on_struck: usize,
    /// Publishing clients that were connected to other members.
    pub clients_elsewhere: usize,
    /// The longest time that any client on another member was without a confirm, in milliseconds.
    pub gap_elsewhere_ms: u64,
    /// The same for clients on the struck member, which have to connect anew; 0 if there was none.
    pub gap_on_struck_ms: u64,
}

/// How long after a strike confirms are watched.
const WATCH: Duration = Duration::from_secs(6);

/// A load that runs: one producer and one consumer for each member.
pub struct Load {
    /// Its ledger.
    pub ledger: Arc<Ledger>,
    /// Messages sent so far, over all producers.
    pub published: Arc<AtomicU64>,
    /// Where its producers are connected.
    pub whereabouts: Arc<Whereabouts>,
    stop: Arc<AtomicBool>,
    producers: Vec<JoinHandle<Result<()>>>,
    consumers: Vec<JoinHandle<()>>,
    total: u64,
}

impl Load {
    /// Starts producers of `total` messages together, at `rate` a second together, and consumers that ack.
    #[must_use]
    pub fn start(brokers: &Brokers, queue: &str, members: usize, total: u64, rate: u64, limit: Duration) -> Self {
        let ledger = Arc::new(Ledger::default());
        let published = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let deadline = Instant::now() + limit;
        let mut load = Self {
            ledger: ledger.clone(),
            published: published.clone(),
            whereabouts: Arc::default(),
            stop: stop.clone(),
            producers: Vec::new(),
            consumers: Vec::new(),
            total,
        };
        let share = members as u64;
        for member in 0..members {
            let id = u32::try_from(member).unwrap_or(u32::MAX);
            let extra = u64::from((member as u64) < total % share);
            let producer = Producer {
                id,
                member,
                queue: queue.to_owned(),
                total: total / share + extra,
                rate: rate / share,
                body_bytes: 1024,
                published: published.clone(),
                whereabouts: load.whereabouts.clone(),
            };
            load.producers.push(tokio::spawn(producer.run(brokers.endpoints(), ledger.clone(), deadline)));
            let consumer = Consumer { id, member, queue: queue.to_owned(), prefetch: 200 };
            load.consumers.push(tokio::spawn(consumer.run(brokers.endpoints(), ledger.clone(), stop.clone())));
        }
        load
    }

    /// Waits until so many messages were sent.
    ///
    /// # Errors
    /// When that does not happen in time.
    pub async fn wait_for_published(&self, count: u64, limit: Duration) -> Result<()> {
        let end = Instant::now() + limit;
        while self.published.load(Ordering::Relaxed) < count {
            if Instant::now() >= end {
                bail!(
                    "only {} of {count} messages were sent within {} s",
                    self.published.load(Ordering::Relaxed),
                    limit.as_secs()
                );
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Takes the leader away, watches confirms, waits for another leader and for the pod to be Ready again.
    ///
    /// # Errors
    /// When nobody leads, or the pod does not return.
    pub async fn strike(&self, brokers: &Brokers, queue: &str, strike: Strike) -> Result<Failover> {
        let before = brokers.leader_of(queue).await?;
        let (on_struck, elsewhere) = self.whereabouts.split(&brokers.uri(&before));
        let at = Instant::now();
        match strike {
            Strike::Sigkill => before.sigkill().await?,
            Strike::ForceDelete => {
                let args = ["delete", "pod", &before.name, "--force", "--grace-period=0", "--wait=false"];
                brokers.kubernetes.kubectl(&args).await?;
            }
        }
        tokio::time::sleep_until((at + WATCH).into()).await;
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let gap_elsewhere_ms = millis(self.ledger.longest_confirm_gap(at, WATCH, &elsewhere));
        let gap_on_struck_ms = millis(self.ledger.longest_confirm_gap(at, WATCH, &on_struck));
        let after = eventually("another leader", Duration::from_secs(20), || brokers.leader_of(queue)).await?;
        self.wait_for_return(brokers, &before).await?;
        self.whereabouts.send_home();
        Ok(Failover {
            strike,
            clients_on_struck: on_struck.len(),
            clients_elsewhere: elsewhere.len(),
            leader_before: before.name,
            leader_after: after.name,
            gap_elsewhere_ms,
            gap_on_struck_ms,
        })
    }

    /// A container that was killed several times in ten minutes waits in kubelet's back-off (10 s, doubled each time);
    /// its pod is deleted then, since a new pod starts at once.
    async fn wait_for_return(&self, brokers: &Brokers, struck: &Pod) -> Result<()> {
        if is_back(brokers, struck, Duration::from_secs(15)).await.is_ok() {
            return Ok(());
        }
        let args = ["delete", "pod", &struck.name, "--grace-period=1", "--wait=false", "--ignore-not-found"];
        brokers.kubernetes.kubectl(&args).await?;
        is_back(brokers, struck, Duration::from_secs(60)).await
    }

    /// As [`Load::finish`], but nothing more is sent: what is on its way is confirmed, whatever the total was to be.
    ///
    /// # Errors
    /// When a producer could not get that confirmed in time.
    pub async fn finish_early(mut self) -> Result<Verdict> {
        self.whereabouts.send_no_more();
        for producer in std::mem::take(&mut self.producers) {
            producer.await??;
        }
        self.total = self.published.load(Ordering::Relaxed);
        self.finish().await
    }

    /// Waits for the producers, drains the queue, stops the consumers and gives the verdict.
    ///
    /// # Errors
    /// When a producer could not get everything confirmed in time.
    pub async fn finish(self) -> Result<Verdict> {
        for producer in self.producers {
            producer.await??;
        }
        wait_until_drained(&self.ledger, Duration::from_secs(30), Duration::from_secs(120)).await;
        self.stop.store(true, Ordering::Relaxed);
        for consumer in self.consumers {
            let abort = consumer.abort_handle();
            if tokio::time::timeout(Duration::from_secs(15), consumer).await.is_err() {
                abort.abort();
            }
        }
        let verdict = self.ledger.verdict();
        if verdict.lost > 0 {
            eprintln!("some of the lost: {:?}", self.ledger.some_lost());
        }
        anyhow::ensure!(
            verdict.confirmed == self.total,
            "{} of {} messages were confirmed",
            verdict.confirmed,
            self.total
        );
        Ok(verdict)
    }
}

async fn is_back(brokers: &Brokers, struck: &Pod, limit: Duration) -> Result<()> {
    eventually(&format!("pod {} is Ready again", struck.name), limit, || async {
        let pods = brokers.kubernetes.broker_pods(&brokers.cluster).await?;
        let back = pods.iter().any(|pod| pod.name == struck.name && pod.ready && !pod.terminating);
        anyhow::ensure!(back, "it is not");
        Ok(())
    })
    .await
}
