//! `kubectl drain` of the node that the queue's leader is on.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde::Serialize;

use super::{CLUSTER, Context};
use crate::failover::Load;
use crate::kubernetes::eventually;
use crate::load::declare_durable_queue;
use crate::report;

const RATE: u64 = 1_000;
/// A leader that is moved in time leaves no election behind: clients on other members wait for less than one.
const GAP_FIGURE: Duration = Duration::from_millis(1500);

#[derive(Serialize)]
struct Report {
    leader_before: String,
    leader_after: String,
    drained_after_s: f64,
    gap_elsewhere_ms: u128,
}

pub(super) async fn run(context: &Context) -> Result<()> {
    let brokers = context.brokers().await?;
    let queue = "drain";
    declare_durable_queue(&brokers.endpoints(), queue, Duration::from_secs(20)).await?;
    let load = Load::start(&brokers, queue, 3, RATE * 25, RATE, Duration::from_secs(150));
    load.wait_for_published(RATE * 3, Duration::from_secs(60)).await?;
    let before = brokers.leader_of(queue).await?;
    let (_, elsewhere) = load.whereabouts.split(&brokers.uri(&before));
    let began = Instant::now();
    let drain = ["drain", &before.node, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=90s"];
    let selector = format!("--pod-selector=app.kubernetes.io/instance={CLUSTER}");
    let drained = brokers.kubernetes.kubectl(&[&drain[..], &[&selector]].concat()).await;
    let drained_after = began.elapsed();
    let outcome = async {
        drained?;
        let after = eventually("another leader", Duration::from_secs(20), || brokers.leader_of(queue)).await?;
        ensure!(after.name != before.name, "{} still leads the queue after its node was drained", before.name);
        Ok::<_, anyhow::Error>(after)
    }
    .await;
    // The node takes pods again whatever happened, for the cases that follow.
    brokers.kubernetes.kubectl(&["uncordon", &before.node]).await?;
    let after = outcome?;
    let ledger = load.ledger.clone();
    let verdict = load.finish().await?;
    let gap = ledger.longest_confirm_gap(began, drained_after, &elsewhere);
    let (seconds, millis) = (drained_after.as_secs_f64(), gap.as_millis());
    println!(
        "e2e: drained in {seconds:.1} s; {} led before, {} after; longest gap elsewhere {millis} ms",
        before.name, after.name
    );
    report::write(
        "drain",
        &Report {
            leader_before: before.name,
            leader_after: after.name,
            drained_after_s: seconds,
            gap_elsewhere_ms: millis,
        },
    )?;
    ensure!(verdict.is_clean(), "the ledger is not clean: {verdict:?}");
    ensure!(gap <= GAP_FIGURE, "the gap of {millis} ms is over {} ms", GAP_FIGURE.as_millis());
    context.brokers().await.map(|_| ())
}
