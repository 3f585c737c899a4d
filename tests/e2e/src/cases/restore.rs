//! A backup begins new clusters: beside the one it was made of, in its stead, and for a moment to be proven; a damaged one
//! does not, and says in which file.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use serde_json::Value;

use super::Context;
use crate::brokers::Brokers;
use crate::failover::Load;
use crate::install;
use crate::kubernetes::{Kubernetes, eventually};
use crate::load::declare_durable_queue;
use crate::{pika, report};

const CLUSTER: &str = "first";
const AGAIN: &str = "again";
const RATE: u64 = 1_000;
/// Messages that nobody consumes before the backup.
const MESSAGES: u32 = 20_000;
/// Bound on one step.
const STEP: Duration = Duration::from_secs(90);

#[derive(Default, Serialize)]
struct Report {
    messages: i64,
    bytes: i64,
    restored_ready_s: f64,
    verified_s: i64,
}

pub(super) async fn run(context: &Context) -> Result<()> {
    let kubernetes = &context.kubernetes;
    remove(kubernetes).await?;
    let result = restored(kubernetes).await;
    if result.is_err() {
        install::print_state_of(&kubernetes.namespace).await;
    }
    let removed = remove(kubernetes).await;
    result.and(removed)
}

async fn restored(kubernetes: &Kubernetes) -> Result<()> {
    let manifest = install::three_member_cluster(CLUSTER)
        .replace("storage: {size: 1Gi}", "storage: {size: 1Gi, storageClassName: holdfast-csi}");
    install::cluster(kubernetes, CLUSTER, &manifest).await?;
    let brokers = Brokers::connect(kubernetes, CLUSTER).await?;
    let pods = kubernetes.broker_pods(CLUSTER).await?;
    pika::publish(&brokers.uri(&pods[0]), "waiting", MESSAGES).await?;
    declare_durable_queue(&brokers.endpoints(), "busy", STEP).await?;
    let load = Load::start(&brokers, "busy", 3, RATE * 240, RATE, Duration::from_secs(280));
    load.wait_for_published(RATE * 3, STEP).await?;
    kubernetes.apply(&backup("torn", "holdfast-torn")).await?;
    let torn = ended(kubernetes, "torn").await?;
    ensure!(torn["phase"] == "Completed", "the backup is {torn}");
    let mut report = Report::default();
    (report.messages, report.bytes) = (number(&torn["totals"]["messages"]), number(&torn["totals"]["bytes"]));

    // Beside the original, which goes on under load.
    let took = install::cluster(kubernetes, AGAIN, &from_backup("backup: {name: torn}")).await?;
    report.restored_ready_s = took.as_secs_f64();
    println!("e2e: {} messages restored, Ready after {:.1} s", report.messages, report.restored_ready_s);
    is_another(kubernetes).await?;
    has_all(kubernetes, MESSAGES).await?;
    install::remove_cluster(kubernetes, AGAIN, true).await?;
    let verdict = load.finish_early().await?;
    ensure!(verdict.is_clean(), "the original's ledger is not clean: {verdict:?}");
    let left = pika::consume(&brokers.uri(&kubernetes.broker_pods(CLUSTER).await?[0]), "waiting", MESSAGES).await?;
    ensure!(
        left == MESSAGES,
        "the original has {left} of {MESSAGES} messages: what the copy's clients took was the copy's"
    );

    pika::publish(&brokers.uri(&kubernetes.broker_pods(CLUSTER).await?[0]), "waiting", MESSAGES).await?;
    report.verified_s = proven(kubernetes).await?;
    println!("e2e: a backup was proven by restoring it within {} s", report.verified_s);

    // Everything lost but the snapshots: the backup's own object too.
    let snapshots: Vec<&str> =
        torn["snapshots"].as_array().context("snapshots")?.iter().filter_map(|s| s["name"].as_str()).collect();
    install::remove_cluster(kubernetes, CLUSTER, true).await?;
    kubernetes.kubectl(&["delete", "mqb", "torn", "--cascade=orphan", "--wait=true"]).await?;
    let source = format!("volumeSnapshots: [{}]", snapshots.join(", "));
    install::cluster(kubernetes, AGAIN, &from_backup(&source)).await?;
    has_all(kubernetes, MESSAGES).await?;
    println!("e2e: with nothing left but {} snapshots, all {MESSAGES} messages are back", snapshots.len());
    report::write("restore", &report)
}

/// A backup whose snapshots are as they should be is verified; one in which a byte of every copy is flipped is not, and the file
/// is named; neither leaves a cluster behind.
async fn proven(kubernetes: &Kubernetes) -> Result<i64> {
    kubernetes
        .apply(
            "apiVersion: snapshot.storage.k8s.io/v1\nkind: VolumeSnapshotClass\nmetadata: {name: damaging, labels: {case: restore}}\n\
             driver: csi.holdfast.dev\ndeletionPolicy: Delete\nparameters: {mode: atomic, fault: flip-byte, faultFile: identity-1}\n",
        )
        .await?;
    let mut seconds = 0;
    for (name, class, result) in [("proven", "holdfast-atomic", "Verified"), ("damaged", "damaging", "Damaged")] {
        let manifest = format!("{}  verification: {{deadlineSeconds: 120}}\n", backup(name, class));
        kubernetes.apply(&manifest).await?;
        ended(kubernetes, name).await?;
        let verification = eventually(&format!("backup {name} is looked at"), STEP * 2, || async {
            let verification = kubernetes.get(&["mqb", name]).await?["status"]["verification"].clone();
            ensure!(verification["endedAt"].is_string(), "{verification}");
            Ok(verification)
        })
        .await?;
        println!("e2e: {name}: {verification}");
        ensure!(verification["result"] == result, "it should be {result}: {verification}");
        let message = verification["message"].as_str().unwrap_or_default();
        ensure!(result == "Verified" || message.contains("identity-1"), "the damaged file is not named: {message}");
        if result == "Verified" {
            ensure!(number(&verification["messages"]) == i64::from(MESSAGES), "{verification}");
            seconds = number(&verification["seconds"]);
        }
        let cluster = verification["cluster"].as_str().context("a cluster")?.to_owned();
        eventually(&format!("cluster {cluster} is gone"), STEP, || async {
            let left = kubernetes.kubectl(&["get", "mqc,pod", "--output=name"]).await?;
            ensure!(!left.contains(&cluster), "{left}");
            Ok(())
        })
        .await?;
    }
    Ok(seconds)
}

fn number(value: &Value) -> i64 {
    value.as_i64().unwrap_or_default()
}

/// The copy has an identity of its own, and knows none of the original's members.
async fn is_another(kubernetes: &Kubernetes) -> Result<()> {
    let (first, again) = (kubernetes.get(&["mqc", CLUSTER]).await?, kubernetes.get(&["mqc", AGAIN]).await?);
    let id = |cluster: &Value| cluster["status"]["clusterID"].as_str().map(str::to_owned);
    ensure!(id(&first).is_some() && id(&first) != id(&again), "both are cluster {:?}", id(&first));
    ensure!(again["status"]["restore"]["completedAt"].is_string(), "{}", again["status"]);
    let brokers = Brokers::connect(kubernetes, AGAIN).await?;
    let pods = kubernetes.broker_pods(AGAIN).await?;
    let members = brokers.admin(&pods[0], "/v1/members").await?.to_string();
    ensure!(!members.contains("first-0-0"), "the copy knows the original's members: {members}");
    Ok(())
}

async fn has_all(kubernetes: &Kubernetes, count: u32) -> Result<()> {
    let brokers = Brokers::connect(kubernetes, AGAIN).await?;
    let pods = kubernetes.broker_pods(AGAIN).await?;
    // The member that joined last serves what was restored to the first.
    let last = pods.last().context("a pod")?;
    let found = pika::consume(&brokers.uri(last), "waiting", count).await?;
    ensure!(found == count, "{found} of {count} messages were restored");
    Ok(())
}

/// The status once the backup is complete or has failed.
async fn ended(kubernetes: &Kubernetes, name: &str) -> Result<Value> {
    let end = Instant::now() + STEP * 2;
    loop {
        let status = kubernetes.get(&["mqb", name]).await?["status"].clone();
        if matches!(status["phase"].as_str(), Some("Completed" | "Failed")) {
            return Ok(status);
        }
        ensure!(Instant::now() < end, "backup {name} does not end: {status}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

fn backup(name: &str, class: &str) -> String {
    format!(
        "apiVersion: holdfast.dev/v1alpha1\nkind: MessageQueueBackup\nmetadata: {{name: {name}}}\nspec:\n  \
         cluster: {{name: {CLUSTER}}}\n  volumeSnapshot: {{className: {class}, holdUntil: ReadyToUse}}\n"
    )
}

/// Of another size than the original.
fn from_backup(source: &str) -> String {
    format!(
        "apiVersion: holdfast.dev/v1alpha1\nkind: MessageQueueCluster\nmetadata: {{name: {AGAIN}}}\nspec:\n  members: 2\n  \
         storage: {{size: 2Gi, storageClassName: holdfast-csi}}\n  bootstrap: {{recovery: {{{source}}}}}\n"
    )
}

/// Removes all that this case made.
async fn remove(kubernetes: &Kubernetes) -> Result<()> {
    kubernetes.kubectl(&["delete", "mqb", "--all", "--wait=true", "--timeout=60s"]).await?;
    for cluster in [AGAIN, CLUSTER] {
        install::remove_cluster(kubernetes, cluster, true).await?;
    }
    kubernetes.kubectl(&["delete", "volumesnapshot", "--all", "--wait=true", "--timeout=60s"]).await?;
    let class = ["delete", "volumesnapshotclass", "--selector=case=restore", "--wait=true", "--timeout=30s"];
    kubernetes.kubectl(&class).await.map(drop)
}
