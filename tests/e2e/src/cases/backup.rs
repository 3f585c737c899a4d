//! A backup of a cluster under load, by a storage that copies live files slowly: cut, let go, restored, read, damaged.

use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Serialize;
use serde_json::Value;

use super::Context;
use crate::brokers::Brokers;
use crate::failover::Load;
use crate::install::{self, OPERATOR_NAMESPACE};
use crate::kubernetes::{Kubernetes, eventually};
use crate::load::declare_durable_queue;
use crate::{pika, report};

pub(super) const CLUSTER: &str = "kept";
const RATE: u64 = 1_000;
/// Messages that nobody consumes: every backup holds them.
const MESSAGES: u32 = 2_000;
/// Bound on one step.
const STEP: Duration = Duration::from_secs(60);
/// Between two looks at a hold.
const LOOK: Duration = Duration::from_millis(200);

#[derive(Default, Serialize)]
struct Report {
    pause_ms: Vec<i64>,
    cut_to_released_ms: Vec<i64>,
    p99_before_ms: u128,
    p99_atomic_ms: u128,
    p99_torn_ms: u128,
    messages: i64,
}

pub(super) async fn run(context: &Context) -> Result<()> {
    let kubernetes = &context.kubernetes;
    remove(kubernetes).await?;
    let result = backed_up(kubernetes).await;
    let removed = remove(kubernetes).await;
    result.and(removed)
}

async fn backed_up(kubernetes: &Kubernetes) -> Result<()> {
    let brokers = cluster(kubernetes, "1Gi").await?;
    let pods = kubernetes.broker_pods(CLUSTER).await?;
    pika::publish(&brokers.uri(&pods[0]), "waiting", MESSAGES).await?;
    declare_durable_queue(&brokers.endpoints(), "busy", STEP).await?;
    let load = Load::start(&brokers, "busy", 3, RATE * 240, RATE, Duration::from_secs(280));
    load.wait_for_published(RATE * 5, STEP).await?;
    let mut report = Report::default();
    let began = Instant::now();
    load.wait_for_published(RATE * 15, STEP).await?;
    report.p99_before_ms = p99(&load, began)?;

    // What is missing is named before anything is asked of a broker.
    kubernetes.apply(&backup("no-class", "absent")).await?;
    eventually("the missing class is named", STEP, || async {
        let reason = ready(kubernetes, "no-class").await?.1;
        ensure!(reason == "SnapshotClassMissing", "the reason is {reason}");
        Ok(())
    })
    .await?;
    kubernetes.kubectl(&["delete", "mqb", "no-class", "--wait=true"]).await?;

    let began = Instant::now();
    let atomic = completed(kubernetes, "atomic", "holdfast-atomic", false).await?;
    note(&mut report, &atomic)?;
    report.p99_atomic_ms = p99(&load, began)?;
    let began = Instant::now();
    let torn = completed(kubernetes, "torn", "holdfast-torn", true).await?;
    note(&mut report, &torn)?;
    report.p99_torn_ms = p99(&load, began)?;
    nothing_is_held(kubernetes, &brokers).await?;
    let verdict = load.finish_early().await?;
    ensure!(verdict.is_clean(), "the ledger is not clean: {verdict:?}");

    let image = kubernetes.get(&["mqc", CLUSTER]).await?["status"]["image"].as_str().context("an image")?.to_owned();
    for (name, status) in [("atomic", &atomic), ("torn", &torn)] {
        reads_back(kubernetes, name, status, &image).await?;
    }
    println!("{}", kubernetes.kubectl(&["get", "mqb", "-o", "wide"]).await?);
    println!(
        "e2e: confirms stood still for {:?} ms; holds ended {:?} ms after the last cut was seen; p99 of confirms {} ms before, {} ms during the atomic backup, {} ms during the torn one",
        report.pause_ms, report.cut_to_released_ms, report.p99_before_ms, report.p99_atomic_ms, report.p99_torn_ms
    );
    report::write("backup", &report)
}

/// Three members on volumes that can be snapshot.
pub(super) async fn cluster(kubernetes: &Kubernetes, size: &str) -> Result<Brokers> {
    let storage = format!("storage: {{size: {size}, storageClassName: holdfast-csi}}");
    let manifest = install::three_member_cluster(CLUSTER).replace("storage: {size: 1Gi}", &storage);
    install::cluster(kubernetes, CLUSTER, &manifest).await?;
    Brokers::connect(kubernetes, CLUSTER).await
}

fn p99(load: &Load, began: Instant) -> Result<u128> {
    let latency = load.ledger.confirm_latency(began, Instant::now(), &[0, 1, 2], 99);
    Ok(latency.context("nothing was confirmed")?.as_millis())
}

fn note(report: &mut Report, status: &Value) -> Result<()> {
    let messages = status["totals"]["messages"].as_i64().unwrap_or_default();
    ensure!(messages >= i64::from(MESSAGES), "{messages} messages in the backup, of {MESSAGES} that nobody consumed");
    report.messages = messages;
    report.pause_ms.push(status["barrier"]["pauseMs"].as_i64().context("barrier.pauseMs")?);
    report.cut_to_released_ms.extend(status["heldAfterCutMs"].as_i64());
    Ok(())
}

/// Makes a backup and waits until it is complete; on the way, the operator's pod dies if so asked, while the storage copies.
async fn completed(kubernetes: &Kubernetes, name: &str, class: &str, operator_dies: bool) -> Result<Value> {
    kubernetes.apply(&backup(name, class)).await?;
    let (mut cut_at, mut died, end) = (None, !operator_dies, Instant::now() + STEP * 3);
    let mut held_after_cut = None;
    loop {
        let object = kubernetes.get(&["mqb", name]).await?;
        let mut status = object["status"].clone();
        let snapshots = status["snapshots"].as_array().cloned().unwrap_or_default();
        if cut_at.is_none() && !snapshots.is_empty() && snapshots.iter().all(|one| one["creationTime"].is_string()) {
            cut_at = Some(Instant::now());
        }
        if held_after_cut.is_none() && status["barrier"]["releasedAt"].is_string() {
            held_after_cut = cut_at.map(|at| at.elapsed());
        }
        match status["phase"].as_str() {
            Some("Cutting") if !died => {
                died = true;
                let operator = Kubernetes { namespace: OPERATOR_NAMESPACE.to_owned() };
                let args =
                    ["delete", "pod", "--selector=app.kubernetes.io/component=operator", "--grace-period=0", "--force"];
                operator.kubectl(&args).await?;
            }
            Some("Completed") => {
                ensure!(died, "{name} was complete before the operator could be ended");
                let count = snapshots.len();
                ensure!(count >= 2, "every queue is held twice, by two snapshots at least; there are {count}");
                let held = held_after_cut.map_or(0, |held| i64::try_from(held.as_millis()).unwrap_or(i64::MAX));
                status["heldAfterCutMs"] = held.into();
                return Ok(status);
            }
            Some("Failed") => bail!("backup {name} failed: {}", status["failures"]),
            _ => {}
        }
        ensure!(Instant::now() < end, "backup {name} is not complete: {status}");
        tokio::time::sleep(LOOK).await;
    }
}

/// Status and reason of the condition Ready.
pub(super) async fn ready(kubernetes: &Kubernetes, backup: &str) -> Result<(String, String)> {
    let object = kubernetes.get(&["mqb", backup]).await?;
    let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let ready = conditions.into_iter().find(|condition| condition["type"] == "Ready").context("no condition Ready")?;
    let text = |key: &str| ready[key].as_str().unwrap_or_default().to_owned();
    Ok((text("status"), text("reason")))
}

pub(super) async fn nothing_is_held(kubernetes: &Kubernetes, brokers: &Brokers) -> Result<()> {
    for pod in kubernetes.broker_pods(CLUSTER).await? {
        let holds = brokers.admin(&pod, "/v1/backup/barriers").await?;
        ensure!(holds["holds"].as_array().is_some_and(Vec::is_empty), "{} still holds: {holds}", pod.name);
    }
    Ok(())
}

/// Each snapshot, restored into a volume of another zone, is what the manifest on it says; a changed byte is named.
pub(super) async fn reads_back(kubernetes: &Kubernetes, name: &str, status: &Value, image: &str) -> Result<()> {
    let hold = status["barrier"]["id"].as_str().context("barrier.id")?;
    let snapshots = status["snapshots"].as_array().context("snapshots")?;
    for (number, snapshot) in snapshots.iter().enumerate() {
        let source = snapshot["name"].as_str().context("the snapshot's name")?;
        let claim = format!("{source}-restored");
        let zone = number % 3 + 1;
        kubernetes.apply(&(restored(&claim, source) + &holder(&claim, zone))).await?;
        let data = mounted(kubernetes, &claim).await?;
        let (passed, said) = verify(kubernetes, &claim, zone, hold, image, "first").await?;
        ensure!(passed, "snapshot {source} does not read back: {said}");
        println!("e2e: {source}: {}", said.lines().last().unwrap_or_default());
        if number == 0 {
            let file = flip_a_byte(&data.join("data/journal/holds").join(hold))?;
            let (passed, said) = verify(kubernetes, &claim, zone, hold, image, "second").await?;
            ensure!(!passed && said.contains(&file), "a changed byte in {file} of {source} was not named: {said}");
            println!("e2e: {name}: a changed byte in {file} is named");
        }
    }
    Ok(())
}

/// In the middle of the largest file.
fn flip_a_byte(hold: &std::path::Path) -> Result<String> {
    let files = std::fs::read_dir(hold).with_context(|| format!("read {hold:?}"))?;
    let sizes = files.flatten().filter(|file| file.file_name().to_string_lossy().starts_with("segment"));
    let (length, path) = sizes
        .filter_map(|file| Some((file.metadata().ok()?.len(), file.path())))
        .max()
        .with_context(|| format!("no segment in {hold:?}"))?;
    let mut file = std::fs::OpenOptions::new().read(true).write(true).open(&path)?;
    // Near the start: what is reserved at the end of the newest segment counts for nothing.
    let place = SeekFrom::Start(length.min(64 << 10) / 2);
    let mut byte = [0];
    file.seek(place)?;
    file.read_exact(&mut byte)?;
    file.seek(place)?;
    file.write_all(&[byte[0] ^ 1])?;
    file.sync_all()?;
    Ok(path.file_name().unwrap_or_default().to_string_lossy().into_owned())
}

/// Runs the broker's own check in a pod beside the volume; answers whether it ended with 0, and what it said.
async fn verify(
    kubernetes: &Kubernetes,
    claim: &str,
    zone: usize,
    hold: &str,
    image: &str,
    turn: &str,
) -> Result<(bool, String)> {
    let name = format!("{claim}-{turn}");
    let manifest = format!("/data/data/journal/holds/{hold}/manifest.json");
    kubernetes
        .apply(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{case: backup}}}}\nspec:\n  \
             restartPolicy: Never\n  nodeSelector: {{topology.kubernetes.io/zone: zone-{zone}}}\n  \
             securityContext: {{runAsNonRoot: true, runAsUser: 65532, fsGroup: 65532}}\n  containers:\n  - name: verify\n    \
             image: {image}\n    imagePullPolicy: IfNotPresent\n    \
             args: [journal, verify, --manifest, {manifest}, /data/data]\n    \
             volumeMounts: [{{name: data, mountPath: /data}}]\n  volumes:\n  \
             - {{name: data, persistentVolumeClaim: {{claimName: {claim}}}}}\n"
        ))
        .await?;
    let phase = eventually(&format!("pod {name} ends"), STEP, || async {
        let pod = kubernetes.get(&["pod", &name]).await?;
        match pod["status"]["phase"].as_str() {
            Some(phase @ ("Succeeded" | "Failed")) => Ok(phase.to_owned()),
            other => bail!("it is {other:?}"),
        }
    })
    .await?;
    Ok((phase == "Succeeded", kubernetes.kubectl(&["logs", &name]).await?))
}

/// The mounted volume as the pod's process sees it. There are no tools in the pods' images.
async fn mounted(kubernetes: &Kubernetes, name: &str) -> Result<PathBuf> {
    eventually(&format!("pod {name} runs with its volume"), STEP, || async {
        let pod = kubernetes.pod(name).await?;
        ensure!(pod.ready, "it is not ready");
        let folders = pod.process_ids("pause").into_iter().map(|id| PathBuf::from(format!("/proc/{id}/root/data")));
        folders.into_iter().find(|folder| folder.is_dir()).context("none of its processes has /data")
    })
    .await
}

pub(super) fn backup(name: &str, class: &str) -> String {
    format!(
        "apiVersion: holdfast.dev/v1alpha1\nkind: MessageQueueBackup\nmetadata: {{name: {name}}}\nspec:\n  \
         cluster: {{name: {CLUSTER}}}\n  volumeSnapshot: {{className: {class}, holdUntil: ReadyToUse}}\n"
    )
}

fn restored(claim: &str, snapshot: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: {claim}, labels: {{case: backup}}}}\nspec:\n  \
         storageClassName: holdfast-csi\n  accessModes: [ReadWriteOnce]\n  resources: {{requests: {{storage: 1Gi}}}}\n  \
         dataSource: {{apiGroup: snapshot.storage.k8s.io, kind: VolumeSnapshot, name: {snapshot}}}\n"
    )
}

fn holder(name: &str, zone: usize) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{case: backup}}}}\nspec:\n  \
         nodeSelector: {{topology.kubernetes.io/zone: zone-{zone}}}\n  terminationGracePeriodSeconds: 0\n  \
         securityContext: {{runAsNonRoot: true, runAsUser: 65532, fsGroup: 65532}}\n  containers:\n  \
         - name: holder\n    image: docker.io/holdfast/pause:1\n    imagePullPolicy: Never\n    \
         volumeMounts: [{{name: data, mountPath: /data}}]\n  volumes:\n  \
         - {{name: data, persistentVolumeClaim: {{claimName: {name}}}}}\n"
    )
}

/// Removes all that this case made.
pub(super) async fn remove(kubernetes: &Kubernetes) -> Result<()> {
    kubernetes.kubectl(&["delete", "pod", "--selector=case=backup", "--wait=true", "--timeout=30s"]).await?;
    kubernetes.kubectl(&["delete", "mqb", "--all", "--wait=true", "--timeout=30s"]).await?;
    kubernetes.kubectl(&["delete", "pvc", "--selector=case=backup", "--wait=true", "--timeout=30s"]).await?;
    install::remove_cluster(kubernetes, CLUSTER, true).await
}
