//! What goes wrong around a backup: no class, a driver that hangs, snapshots that are damaged, no snapshots at all in this
//! Kubernetes, and an operator that is killed at each step. Publishers go on, and nothing stays behind.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::Context;
use super::backup::{self, CLUSTER, nothing_is_held};
use crate::brokers::Brokers;
use crate::failover::Load;
use crate::install::OPERATOR_NAMESPACE;
use crate::kubernetes::{Kubernetes, eventually};
use crate::load::declare_durable_queue;
use crate::pika;

const RATE: u64 = 300;
const MESSAGES: u32 = 2_000;
/// Bound on one step; the operator's Lease lasts 15 s.
const STEP: Duration = Duration::from_secs(90);
const LOOK: Duration = Duration::from_millis(50);
/// Of the backup whose driver hangs, in seconds.
const DEADLINE: u64 = 15;
/// Nobody may be without a confirm for longer while a driver hangs, the machine's own hiccups included.
const GAP: Duration = Duration::from_secs(3);
const SNAPSHOTS: &str = "volumesnapshots.snapshot.storage.k8s.io";

/// Where the operator is killed.
const KILLS: [&str; 6] = ["barrier", "manifest", "cutting", "waiting", "release", "done"];

pub(super) async fn run(context: &Context) -> Result<()> {
    let kubernetes = &context.kubernetes;
    remove(kubernetes).await?;
    let result = faults(kubernetes).await;
    let removed = remove(kubernetes).await;
    result.and(removed)
}

async fn faults(kubernetes: &Kubernetes) -> Result<()> {
    kubernetes.apply(&classes("hang")).await?;
    let brokers = backup::cluster(kubernetes, "1Gi").await?;
    let pods = kubernetes.broker_pods(CLUSTER).await?;
    pika::publish(&brokers.uri(&pods[0]), "waiting", MESSAGES).await?;
    declare_durable_queue(&brokers.endpoints(), "busy", STEP).await?;
    let load = Load::start(&brokers, "busy", 3, RATE * 800, RATE, Duration::from_secs(900));
    load.wait_for_published(RATE * 3, STEP).await?;

    no_class(kubernetes, &brokers).await?;
    hung(kubernetes, &brokers, &load).await?;
    for kill in KILLS {
        operator_dies_at(kubernetes, &brokers, kill).await?;
    }
    for (class, what) in [("e2e-truncating", "truncated"), ("e2e-deleting", "missing")] {
        damaged(kubernetes, class, what).await?;
    }
    no_snapshots(kubernetes, &brokers).await?;
    let verdict = load.finish_early().await?;
    ensure!(verdict.is_clean(), "the ledger is not clean: {verdict:?}");
    println!("e2e: {} messages confirmed meanwhile, none lost", verdict.confirmed);
    Ok(())
}

async fn no_class(kubernetes: &Kubernetes, brokers: &Brokers) -> Result<()> {
    let manifest = backup::backup("no-class", "absent") + "  deadlineSeconds: 10\n";
    kubernetes.apply(&manifest).await?;
    let failed = ended(kubernetes, "no-class").await?;
    let why = failure(&failed)?;
    ensure!(why.contains("SnapshotClassMissing") && why.contains("absent"), "{why}");
    ensure!(failed["barrier"].is_null(), "brokers were asked: {failed}");
    nothing_is_held(kubernetes, brokers).await?;
    println!("e2e: no class: {why}");
    Ok(())
}

async fn hung(kubernetes: &Kubernetes, brokers: &Brokers, load: &Load) -> Result<()> {
    let began = Instant::now();
    let manifest = backup::backup("hung", "e2e-fault") + &format!("  deadlineSeconds: {DEADLINE}\n");
    kubernetes.apply(&manifest).await?;
    let failed = ended(kubernetes, "hung").await?;
    let took = began.elapsed();
    let why = failure(&failed)?;
    ensure!(why.contains("DeadlineExceeded") && why.contains("VolumeSnapshot hung-1-0"), "{why}");
    ensure!(took <= Duration::from_secs(DEADLINE + 10), "it failed after {took:?}");
    nothing_is_held(kubernetes, brokers).await?;
    // While the driver still hangs: what waits for it is its snapshots, not the backup.
    kubernetes.kubectl(&["delete", "mqb", "hung", "--wait=true", "--timeout=15s"]).await?;
    let gap = load.ledger.longest_confirm_gap(began, took, &[0, 1, 2]);
    println!("e2e: a hung driver: {why}; after {:.1} s, the longest gap of confirms {gap:?}", took.as_secs_f64());
    ensure!(gap <= GAP, "a publisher was without a confirm for {gap:?}");
    heal(kubernetes).await?;
    no_snapshot_is_left(kubernetes).await
}

/// The operator is killed when the backup is at that step, or as soon as it is beyond.
async fn operator_dies_at(kubernetes: &Kubernetes, brokers: &Brokers, kill: &str) -> Result<()> {
    let name = format!("killed-{kill}");
    let operator = Operator::find().await?;
    kubernetes.apply(&backup::backup(&name, "holdfast-torn")).await?;
    let seen = eventually(&format!("{name} is at its step"), STEP, || async {
        let status = status(kubernetes, &name).await?;
        let holds = if kill == "manifest" { held(kubernetes, brokers).await? } else { 0 };
        ensure!(is_at(kill, &status, holds), "it is {status}");
        Ok(status)
    })
    .await?;
    operator.kill().await?;
    let seen = seen["phase"].as_str().unwrap_or("Pending").to_owned();
    let began = Instant::now();
    let last = ended(kubernetes, &name).await?;
    let (phase, tries) = (last["phase"].as_str().unwrap_or_default(), &last["attempt"]);
    println!(
        "e2e: killed at {kill} (it was {seen}): {phase} in try {tries}, {:.1} s later; failures: {}",
        began.elapsed().as_secs_f64(),
        last["failures"]
    );
    match phase {
        "Completed" => {
            let snapshots = last["snapshots"].as_array().cloned().unwrap_or_default();
            let ready = snapshots.iter().all(|snapshot| snapshot["readyToUse"] == true);
            ensure!(snapshots.len() >= 2 && ready, "{name} is complete with {snapshots:?}");
        }
        _ => drop(failure(&last)?),
    }
    eventually("nothing is held", STEP, || nothing_is_held(kubernetes, brokers)).await?;
    kubernetes.kubectl(&["delete", "mqb", &name, "--wait=true", "--timeout=30s"]).await?;
    // Also of tries that came to nothing.
    no_snapshot_is_left(kubernetes).await
}

fn is_at(kill: &str, status: &Value, holds: usize) -> bool {
    let steps = ["Barrier", "Cutting", "Finishing", "Completed"];
    let at = status["phase"].as_str().and_then(|phase| steps.iter().position(|step| *step == phase));
    let snapshots = status["snapshots"].as_array().map_or(&[][..], Vec::as_slice);
    let is_cut = !snapshots.is_empty() && snapshots.iter().all(|one| one["creationTime"].is_string());
    match kill {
        "barrier" => at >= Some(0),
        "manifest" => at >= Some(1) || holds > 0,
        "cutting" => at >= Some(1),
        "waiting" => at >= Some(2) || (at == Some(1) && is_cut),
        "release" => at >= Some(2),
        _ => at == Some(3),
    }
}

/// A file is damaged in every copy: the backup is not taken for a good one.
async fn damaged(kubernetes: &Kubernetes, class: &str, what: &str) -> Result<()> {
    kubernetes.apply(&(backup::backup(what, class) + "  verification: {deadlineSeconds: 120}\n")).await?;
    let complete = ended(kubernetes, what).await?;
    ensure!(complete["phase"] == "Completed", "{complete}");
    let verification = eventually(&format!("backup {what} is looked at"), STEP * 2, || async {
        let verification = status(kubernetes, what).await?["verification"].clone();
        ensure!(verification["endedAt"].is_string(), "{verification}");
        Ok(verification)
    })
    .await?;
    println!("e2e: {class}: {verification}");
    let message = verification["message"].as_str().unwrap_or_default();
    ensure!(verification["result"] == "Damaged", "{verification}");
    ensure!(message.contains("identity-1") && message.contains(what), "not said which file is {what}: {message}");
    kubernetes.kubectl(&["delete", "mqb", what, "--wait=true", "--timeout=60s"]).await.map(drop)
}

/// A Kubernetes without the kind; and with it again, a backup as always.
async fn no_snapshots(kubernetes: &Kubernetes, brokers: &Brokers) -> Result<()> {
    no_snapshot_is_left(kubernetes).await?;
    let mut definition = kubernetes.get(&["crd", SNAPSHOTS]).await?;
    if let Some(object) = definition.as_object_mut() {
        object.remove("status");
    }
    let annotations = definition["metadata"]["annotations"].clone();
    definition["metadata"] = serde_json::json!({ "name": SNAPSHOTS, "annotations": annotations });
    kubernetes.kubectl(&["delete", "crd", SNAPSHOTS, "--wait=true", "--timeout=30s"]).await?;
    let outcome = async {
        kubernetes.apply(&(backup::backup("no-kind", "holdfast-atomic") + "  deadlineSeconds: 10\n")).await?;
        let failed = ended(kubernetes, "no-kind").await?;
        let why = failure(&failed)?;
        ensure!(why.contains("SnapshotsNotInstalled") && why.contains("install the snapshot CRDs"), "{why}");
        println!("e2e: no kind: {why}");
        nothing_is_held(kubernetes, brokers).await
    }
    .await;
    // The kind returns whatever happened, for the cases that follow.
    kubernetes.apply(&definition.to_string()).await?;
    outcome?;
    kubernetes.kubectl(&["wait", "crd", SNAPSHOTS, "--for=condition=Established", "--timeout=30s"]).await?;
    let began = Instant::now();
    kubernetes.apply(&backup::backup("again", "holdfast-atomic")).await?;
    let complete = ended(kubernetes, "again").await?;
    ensure!(complete["phase"] == "Completed", "{complete}");
    println!("e2e: with the kind again, a backup is complete after {:.1} s", began.elapsed().as_secs_f64());
    Ok(())
}

struct Operator {
    kubernetes: Kubernetes,
    pod: String,
    process: u32,
}

impl Operator {
    /// The one that works now.
    async fn find() -> Result<Self> {
        let kubernetes = Kubernetes { namespace: OPERATOR_NAMESPACE.to_owned() };
        let (pod, process) = eventually("an operator's process", STEP, || async {
            let selector = "--selector=app.kubernetes.io/component=operator";
            let list = kubernetes.get(&["pods", selector]).await?;
            let names =
                list["items"].as_array().into_iter().flatten().filter_map(|pod| pod["metadata"]["name"].as_str());
            for name in names {
                let pod = kubernetes.pod(name).await?;
                if let (true, false, Some(process)) =
                    (pod.ready, pod.terminating, pod.process_ids("holdfast-operator").first())
                {
                    return Ok((name.to_owned(), *process));
                }
            }
            bail!("there is none")
        })
        .await?;
        Ok(Self { kubernetes, pod, process })
    }

    /// SIGKILL; and its pod goes, so that the next one starts at once instead of after kubelet's back-off.
    async fn kill(&self) -> Result<()> {
        crate::kubernetes::run("kill", &["-KILL", &self.process.to_string()], None).await?;
        let args = ["delete", "pod", &self.pod, "--grace-period=0", "--force", "--wait=false"];
        self.kubernetes.kubectl(&args).await.map(drop)
    }
}

async fn status(kubernetes: &Kubernetes, name: &str) -> Result<Value> {
    Ok(kubernetes.get(&["mqb", name]).await?["status"].clone())
}

/// The status once the backup is complete or has failed.
async fn ended(kubernetes: &Kubernetes, name: &str) -> Result<Value> {
    let end = Instant::now() + STEP;
    loop {
        let status = status(kubernetes, name).await?;
        if matches!(status["phase"].as_str(), Some("Completed" | "Failed")) {
            return Ok(status);
        }
        ensure!(Instant::now() < end, "backup {name} does not end: {status}");
        tokio::time::sleep(LOOK).await;
    }
}

/// Why it failed, which it must have.
fn failure(status: &Value) -> Result<String> {
    ensure!(status["phase"] == "Failed", "it did not fail: {status}");
    Ok(status["failures"][0].as_str().context("no reason")?.to_owned())
}

async fn held(kubernetes: &Kubernetes, brokers: &Brokers) -> Result<usize> {
    let pods = kubernetes.broker_pods(CLUSTER).await?;
    let holds = brokers.admin(pods.first().context("a pod")?, "/v1/backup/barriers").await?;
    Ok(holds["holds"].as_array().map_or(0, Vec::len))
}

async fn no_snapshot_is_left(kubernetes: &Kubernetes) -> Result<()> {
    eventually("no snapshot is left", STEP, || async {
        let left = kubernetes.kubectl(&["get", "volumesnapshots,volumesnapshotcontents", "--output=name"]).await?;
        ensure!(left.trim().is_empty(), "{left}");
        Ok(())
    })
    .await
}

/// The classes of this case; one of them has the driver's `fault`.
fn classes(fault: &str) -> String {
    let class = |name: &str, parameters: &str| {
        format!(
            "---\napiVersion: snapshot.storage.k8s.io/v1\nkind: VolumeSnapshotClass\n\
             metadata: {{name: {name}, labels: {{case: backup-faults}}}}\n\
             driver: csi.holdfast.dev\ndeletionPolicy: Delete\nparameters: {{{parameters}}}\n"
        )
    };
    class("e2e-fault", &format!("fault: {fault}"))
        + &class("e2e-truncating", "fault: truncate-file, faultFile: identity-1")
        + &class("e2e-deleting", "fault: delete-file, faultFile: identity-1")
}

/// The sidecar looks the class up for every attempt, and parameters cannot be changed: another class takes its name.
async fn heal(kubernetes: &Kubernetes) -> Result<()> {
    kubernetes.kubectl(&["delete", "volumesnapshotclass", "e2e-fault", "--ignore-not-found"]).await?;
    kubernetes.apply(&classes("none")).await.map(drop)
}

/// Removes all that this case made.
async fn remove(kubernetes: &Kubernetes) -> Result<()> {
    heal(kubernetes).await?;
    backup::remove(kubernetes).await?;
    no_snapshot_is_left(kubernetes).await?;
    let classes = ["delete", "volumesnapshotclass", "--selector=case=backup-faults", "--wait=true", "--timeout=30s"];
    kubernetes.kubectl(&classes).await.map(drop)
}
