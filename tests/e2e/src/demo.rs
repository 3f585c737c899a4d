//! `make demo`: the main job in front of a stranger's eyes.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde::Serialize;

use crate::brokers::Brokers;
use crate::failover::{Failover, Load, Strike};
use crate::install::{self, Images, READY_WITHIN, Release};
use crate::kubernetes::{Kubernetes, run};
use crate::ledger::Verdict;
use crate::load::declare_durable_queue;
use crate::report;

/// Namespace and name of the demo's cluster.
pub const NAMESPACE: &str = "holdfast-demo";
const CLUSTER: &str = "demo";
/// The operator that looks after the demo on somebody else's cluster.
const CONTROLLER: &str = "holdfast.dev/demo";
const QUEUE: &str = "orders";
const MESSAGES: u64 = 20_000;
const RATE: u64 = 1_000;
const FIRST_STRIKE_AT: u64 = 7_000;
const SECOND_STRIKE_AT: u64 = 14_000;

#[derive(Serialize)]
struct Report {
    ready_s: f64,
    confirmed: u64,
    consumed: u64,
    lost: u64,
    duplicates: u64,
    longest_confirm_gap_ms: u64,
    failovers: Vec<Failover>,
}

/// Installs, loads, strikes twice and prints the ledger. The cluster stays up.
///
/// # Errors
/// What failed, and what was lost if anything was.
pub async fn run_demo(images: &Images, existing: bool) -> Result<()> {
    let kubernetes = Kubernetes { namespace: NAMESPACE.to_owned() };
    let release = if existing {
        Release { name: "holdfast-demo", namespace: NAMESPACE, controller: Some(CONTROLLER) }
    } else {
        Release::of_the_local_cluster()
    };
    say("installing the operator with Helm (charts/holdfast)");
    release.install(images).await?;
    install::namespace(&kubernetes).await?;
    let manifest = prepare(&kubernetes, existing).await?;
    say("applying a MessageQueueCluster of three members over three zones");
    let ready = install::cluster(&kubernetes, CLUSTER, &manifest).await?;
    say(&format!("Ready after {:.1} s (the figure to reach is {} s)", ready.as_secs_f64(), READY_WITHIN.as_secs()));

    let mut brokers = Brokers::connect(&kubernetes, CLUSTER).await?;
    if existing {
        brokers = brokers.through_the_api_server().await?;
    }
    declare_durable_queue(&brokers.endpoints(), QUEUE, Duration::from_secs(20)).await?;
    say(&format!(
        "publishing {MESSAGES} persistent 1 KiB messages at {RATE}/s through all three members, consumers acking"
    ));
    let load = Load::start(&brokers, QUEUE, 3, MESSAGES, RATE, Duration::from_secs(180));
    load.wait_for_published(FIRST_STRIKE_AT, Duration::from_secs(60)).await?;
    // On another's cluster the process is out of reach: there both strikes delete the pod.
    let first = if existing { Strike::ForceDelete } else { Strike::Sigkill };
    let mut failovers = vec![strike(&load, &brokers, FIRST_STRIKE_AT, first).await?];
    load.wait_for_published(SECOND_STRIKE_AT, Duration::from_secs(60)).await?;
    failovers.push(strike(&load, &brokers, SECOND_STRIKE_AT, Strike::ForceDelete).await?);
    let verdict = load.finish().await?;
    kubernetes.wait_for_condition(CLUSTER, "Ready", "True", Duration::from_secs(60)).await?;

    let longest = failovers.iter().map(|failover| failover.gap_elsewhere_ms).max().unwrap_or(0);
    print_ledger(&verdict, &failovers);
    println!("{}", kubernetes.kubectl(&["get", "mqc", "--output=wide"]).await?);
    report::write(
        "demo",
        &Report {
            ready_s: ready.as_secs_f64(),
            confirmed: verdict.confirmed,
            consumed: verdict.consumed,
            lost: verdict.lost,
            duplicates: verdict.duplicates,
            longest_confirm_gap_ms: longest,
            failovers,
        },
    )?;
    print_what_next(existing);
    ensure!(verdict.is_clean(), "the ledger is not clean: {verdict:?}");
    Ok(())
}

/// Removes what an earlier demo left (it would be Ready at once), and gives the manifest to apply.
async fn prepare(kubernetes: &Kubernetes, existing: bool) -> Result<String> {
    if !kubernetes.kubectl(&["get", "mqc", CLUSTER, "--ignore-not-found"]).await?.is_empty() {
        say("removing the cluster of an earlier demo");
    }
    install::remove_cluster(kubernetes, CLUSTER, true).await?;
    if existing {
        return Ok(install::three_member_cluster_of(CONTROLLER, CLUSTER));
    }
    install::offer_released_volumes().await?;
    Ok(install::three_member_cluster(CLUSTER))
}

async fn strike(load: &Load, brokers: &Brokers, at: u64, strike: Strike) -> Result<Failover> {
    let leader = brokers.leader_of(QUEUE).await?;
    let how = match strike {
        Strike::Sigkill => "SIGKILL to the process of",
        Strike::ForceDelete => "force-deleting the pod of",
    };
    say(&format!("message {at}: {how} the queue's leader, {} on node {}", leader.name, leader.node));
    let failover = load.strike(brokers, QUEUE, strike).await?;
    say(&format!(
        "{} leads now; longest gap between confirms: {} ms for clients on other members, {} ms for clients that lost their member",
        failover.leader_after, failover.gap_elsewhere_ms, failover.gap_on_struck_ms
    ));
    Ok(failover)
}

fn print_ledger(verdict: &Verdict, failovers: &[Failover]) {
    println!("\n  The ledger, kept by the clients");
    println!("  confirmed   {:>7}", verdict.confirmed);
    println!("  consumed    {:>7}", verdict.consumed);
    println!("  lost        {:>7}", verdict.lost);
    println!("  duplicates  {:>7}", verdict.duplicates);
    for failover in failovers {
        println!(
            "  {:?}: {} led before, {} after; longest gap {} ms (clients on the struck member: {} ms)",
            failover.strike,
            failover.leader_before,
            failover.leader_after,
            failover.gap_elsewhere_ms,
            failover.gap_on_struck_ms
        );
    }
    println!();
}

fn print_what_next(existing: bool) {
    if existing {
        println!(
            "The cluster stays up. Remove it: kubectl -n {NAMESPACE} delete mqc {CLUSTER} && \
             helm uninstall holdfast-demo -n {NAMESPACE} && kubectl delete namespace {NAMESPACE}"
        );
        return;
    }
    println!("The cluster stays up. Look around:");
    println!("  tests/cluster/cluster exec -- kubectl -n {NAMESPACE} get mqc,pods -o wide");
    println!("  tests/cluster/cluster exec -- kubectl -n {NAMESPACE} describe mqc {CLUSTER}");
    println!("Remove everything: make cluster-down");
}

/// One line of progress.
pub fn say(line: &str) {
    println!("demo: {line}");
}

/// True when `kubectl` reaches an API server.
pub async fn api_server_answers() -> bool {
    run("kubectl", &["get", "--raw=/readyz", "--request-timeout=5s"], None).await.is_ok()
}
