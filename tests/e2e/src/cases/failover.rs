//! Leaders and whole clusters that die under load.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde::Serialize;

use super::{CLUSTER, Context};
use crate::failover::{Failover, Load, Strike};
use crate::install::OPERATOR_NAMESPACE;
use crate::kubernetes::{Kubernetes, eventually};
use crate::ledger::Verdict;
use crate::load::declare_durable_queue;
use crate::report;

/// The figure of the README: 19 of 20 failovers leave a gap of at most this for clients on other members.
const GAP_FIGURE_MS: u64 = 1500;
const RATE: u64 = 1_000;

#[derive(Serialize)]
struct Report {
    strikes: u32,
    gap_figure_ms: u64,
    gap_19th_of_20_ms: u64,
    failovers: Vec<Failover>,
    verdict: Verdict,
}

pub(super) async fn leader_kill(context: &Context) -> Result<()> {
    let brokers = context.brokers().await?;
    let queue = "leader-kill";
    declare_durable_queue(&brokers.endpoints(), queue, Duration::from_secs(20)).await?;
    // Each strike is watched for some seconds and the pod must be back before the next: the load outlasts them all.
    let seconds = 10 + 14 * u64::from(context.strikes);
    let load = Load::start(&brokers, queue, 3, RATE * seconds, RATE, Duration::from_secs(seconds * 3));
    load.wait_for_published(RATE * 3, Duration::from_secs(60)).await?;
    let mut failovers = Vec::new();
    for number in 0..context.strikes {
        let kind = if number % 2 == 0 { Strike::Sigkill } else { Strike::ForceDelete };
        let failover = load.strike(&brokers, queue, kind).await?;
        println!("e2e: strike {} of {}: {failover:?}", number + 1, context.strikes);
        failovers.push(failover);
    }
    let verdict = load.finish().await?;
    let mut gaps: Vec<u64> = failovers.iter().map(|failover| failover.gap_elsewhere_ms).collect();
    gaps.sort_unstable();
    let rank = (gaps.len() * 19).div_ceil(20).max(1) - 1;
    let gap = gaps.get(rank).copied().unwrap_or(0);
    println!(
        "e2e: {} strikes, confirmed {}, lost {}, longest gap, 19th of 20: {gap} ms of {GAP_FIGURE_MS} ms",
        failovers.len(),
        verdict.confirmed,
        verdict.lost
    );
    report::write(
        "leader-kill",
        &Report {
            strikes: context.strikes,
            gap_figure_ms: GAP_FIGURE_MS,
            gap_19th_of_20_ms: gap,
            failovers,
            verdict: verdict.clone(),
        },
    )?;
    ensure!(verdict.is_clean(), "the ledger is not clean: {verdict:?}");
    ensure!(gap <= GAP_FIGURE_MS, "the gap of {gap} ms is over {GAP_FIGURE_MS} ms");
    Ok(())
}

pub(super) async fn all_killed(context: &Context) -> Result<()> {
    let brokers = context.brokers().await?;
    let queue = "all-killed";
    declare_durable_queue(&brokers.endpoints(), queue, Duration::from_secs(20)).await?;
    let load = Load::start(&brokers, queue, 3, RATE * 15, RATE, Duration::from_secs(120));
    load.wait_for_published(RATE * 5, Duration::from_secs(60)).await?;
    for pod in brokers.kubernetes.broker_pods(CLUSTER).await? {
        pod.sigkill().await?;
    }
    let verdict = load.finish().await?;
    println!("e2e: {verdict:?}");
    ensure!(verdict.is_clean(), "the ledger is not clean: {verdict:?}");
    context.brokers().await.map(|_| ())
}

pub(super) async fn operator_absent(context: &Context) -> Result<()> {
    let brokers = context.brokers().await?;
    let queue = "operator-absent";
    declare_durable_queue(&brokers.endpoints(), queue, Duration::from_secs(20)).await?;
    let operator = Kubernetes { namespace: OPERATOR_NAMESPACE.to_owned() };
    operator.kubectl(&["scale", "deployment", "--all", "--replicas=0"]).await?;
    eventually("the operator's pod is gone", Duration::from_secs(60), || async {
        let pods = operator.get(&["pods"]).await?;
        ensure!(pods["items"].as_array().is_some_and(Vec::is_empty), "it is there");
        Ok(())
    })
    .await?;
    let outcome = async {
        let load = Load::start(&brokers, queue, 3, RATE * 12, RATE, Duration::from_secs(120));
        load.wait_for_published(RATE * 3, Duration::from_secs(60)).await?;
        let failover = load.strike(&brokers, queue, Strike::ForceDelete).await?;
        println!("e2e: without an operator: {failover:?}");
        load.finish().await
    }
    .await;
    // The operator returns whatever happened, for the cases that follow.
    operator.kubectl(&["scale", "deployment", "--all", "--replicas=1"]).await?;
    operator.kubectl(&["wait", "deployment", "--all", "--for=condition=Available", "--timeout=60s"]).await?;
    let verdict = outcome?;
    ensure!(verdict.is_clean(), "the ledger is not clean: {verdict:?}");
    context.brokers().await.map(|_| ())
}
