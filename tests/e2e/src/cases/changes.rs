//! Changes that a user makes to a cluster while clients are connected: another template, more members, none at all.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Serialize;
use tokio::task::JoinHandle;

use super::{CLUSTER, Context};
use crate::brokers::Brokers;
use crate::failover::Load;
use crate::install;
use crate::kubernetes::{Kubernetes, Pod, eventually};
use crate::ledger::Verdict;
use crate::load::declare_durable_queue;
use crate::{pika, report};

const RATE: u64 = 1_000;
/// Messages that wait while no broker runs.
const MESSAGES: u32 = 500;
/// A change of three members' templates: each hands its leaders over, stops, starts and catches up.
const ROLLED_WITHIN: Duration = Duration::from_secs(180);

#[derive(Serialize)]
struct RollReport {
    rolled_s: f64,
    most_not_ready: usize,
    longest_gap_ms: u128,
    verdict: Verdict,
}

/// Watches the pods of a cluster and remembers the most that were not Ready at one time.
struct Watch {
    stop: Arc<AtomicBool>,
    task: JoinHandle<usize>,
}

impl Watch {
    fn start(kubernetes: &Kubernetes, cluster: &'static str, members: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (kubernetes, stopped) = (kubernetes.clone(), stop.clone());
        let task = tokio::spawn(async move {
            let mut most = 0;
            while !stopped.load(Ordering::Relaxed) {
                if let Ok(pods) = kubernetes.broker_pods(cluster).await {
                    let ready = pods.iter().filter(|pod| pod.ready && !pod.terminating).count();
                    most = most.max(members.saturating_sub(ready));
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            most
        });
        Self { stop, task }
    }

    async fn finish(self) -> Result<usize> {
        self.stop.store(true, Ordering::Relaxed);
        Ok(self.task.await?)
    }
}

pub(super) async fn roll(context: &Context) -> Result<()> {
    let brokers = context.brokers().await?;
    let queue = "roll";
    declare_durable_queue(&brokers.endpoints(), queue, Duration::from_secs(20)).await?;
    let before = brokers.kubernetes.broker_pods(CLUSTER).await?;
    let load = Load::start(&brokers, queue, 3, RATE * 60, RATE, Duration::from_secs(300));
    load.wait_for_published(RATE * 3, Duration::from_secs(60)).await?;
    let watch = Watch::start(&context.kubernetes, CLUSTER, before.len());
    let began = Instant::now();
    let rolled = patch(context, CLUSTER, r#"{"spec":{"pod":{"metadata":{"annotations":{"example.com/turn":"1"}}}}}"#);
    rolled.await?;
    let every_pod_is_new = || async {
        let now = brokers.kubernetes.broker_pods(CLUSTER).await?;
        let old: Vec<&str> =
            now.iter().filter(|pod| before.iter().any(|b| b.uid == pod.uid)).map(|pod| pod.name.as_str()).collect();
        ensure!(now.len() == before.len() && old.is_empty(), "still as they were: {old:?}");
        Ok(())
    };
    eventually("every pod has the new template", ROLLED_WITHIN, every_pod_is_new).await?;
    context.kubernetes.wait_for_condition(CLUSTER, "Ready", "True", Duration::from_secs(60)).await?;
    let took = began.elapsed();
    let most_not_ready = watch.finish().await?;
    let ledger = load.ledger.clone();
    let verdict = load.finish().await?;
    let gap = ledger.longest_confirm_gap(began, took, &[0, 1, 2]).as_millis();
    println!(
        "e2e: rolled in {:.1} s; at most {most_not_ready} not Ready at a time; longest gap of any client {gap} ms; {verdict:?}",
        took.as_secs_f64()
    );
    let report =
        RollReport { rolled_s: took.as_secs_f64(), most_not_ready, longest_gap_ms: gap, verdict: verdict.clone() };
    report::write("roll", &report)?;
    ensure!(verdict.is_clean(), "the ledger is not clean: {verdict:?}");
    ensure!(
        most_not_ready == 1,
        "{most_not_ready} members were not Ready at one time, where one is restarted at a time"
    );
    Ok(())
}

pub(super) async fn hibernate(context: &Context) -> Result<()> {
    let brokers = context.brokers().await?;
    let pods = brokers.kubernetes.broker_pods(CLUSTER).await?;
    pika::publish(&brokers.uri(&pods[0]), "hibernated", MESSAGES).await?;
    patch(context, CLUSTER, r#"{"spec":{"hibernate":true}}"#).await?;
    eventually("no broker runs", Duration::from_secs(90), || async {
        let pods = brokers.kubernetes.broker_pods(CLUSTER).await?;
        ensure!(pods.is_empty(), "{} pods are left", pods.len());
        Ok(())
    })
    .await?;
    wait_for_reason(context, CLUSTER, "Ready", "Hibernated").await?;
    let claims = context.kubernetes.get(&["pvc", &format!("--selector=app.kubernetes.io/instance={CLUSTER}")]).await?;
    ensure!(claims["items"].as_array().is_some_and(|items| items.len() == pods.len()), "a claim of {CLUSTER} is gone");
    patch(context, CLUSTER, r#"{"spec":{"hibernate":false}}"#).await?;
    wait_for_reason(context, CLUSTER, "Ready", "AllMembersReady").await?;
    let pods = brokers.kubernetes.broker_pods(CLUSTER).await?;
    let received = pika::consume(&brokers.uri(&pods[1]), "hibernated", MESSAGES).await?;
    ensure!(received == MESSAGES, "{received} of {MESSAGES} messages came back");
    Ok(())
}

/// Three members become five by the scale subresource, as `kubectl scale` and autoscalers use it.
pub(super) async fn scale_up(context: &Context) -> Result<()> {
    let cluster = "scaled";
    let kubernetes = &context.kubernetes;
    install::cluster(kubernetes, cluster, &install::three_member_cluster(cluster)).await?;
    let brokers = Brokers::connect(kubernetes, cluster).await?;
    let queue = "scaled";
    declare_durable_queue(&brokers.endpoints(), queue, Duration::from_secs(20)).await?;
    let load = Load::start(&brokers, queue, 3, RATE * 20, RATE, Duration::from_secs(200));
    load.wait_for_published(RATE * 3, Duration::from_secs(60)).await?;
    let began = Instant::now();
    kubernetes.kubectl(&["scale", "mqc", cluster, "--replicas=5"]).await?;
    let object = kubernetes.wait_for_condition(cluster, "Ready", "True", Duration::from_secs(120)).await?;
    let took = began.elapsed();
    let members = object["status"]["members"].as_array().map_or(0, Vec::len);
    ensure!(members == 5, "status names {members} members");
    let pods = kubernetes.broker_pods(cluster).await?;
    let newest = pods.iter().find(|pod| pod.name.ends_with("-4-0")).context("the pod of the fifth member")?;
    serves(&brokers, newest).await?;
    let verdict = load.finish().await?;
    println!("e2e: three members became five in {:.1} s; {verdict:?}", took.as_secs_f64());
    ensure!(verdict.is_clean(), "the ledger is not clean: {verdict:?}");
    remove(context, cluster).await
}

/// Clients of a new member reach every queue, also those that have no replica there.
async fn serves(brokers: &Brokers, pod: &Pod) -> Result<()> {
    pika::publish(&brokers.uri(pod), "through-the-newest", MESSAGES).await?;
    let received = pika::consume(&brokers.uri(pod), "through-the-newest", MESSAGES).await?;
    ensure!(received == MESSAGES, "{received} of {MESSAGES} messages came back from {}", pod.name);
    Ok(())
}

/// A storage class that is missing, one that does not let volumes grow, and one that does.
pub(super) async fn volumes(context: &Context) -> Result<()> {
    let (kubernetes, cluster) = (&context.kubernetes, "volumes");
    kubernetes.apply(&one_member(cluster, "{size: 1Gi, storageClassName: not-there}")).await?;
    let says = wait_for_reason(context, cluster, "Ready", "StorageClassMissing").await?;
    ensure!(says.contains("'not-there'") && says.contains("create it"), "the condition says: {says}");
    remove(context, cluster).await?;

    install::cluster(kubernetes, cluster, &one_member(cluster, "{size: 1Gi}")).await?;
    let grown = r#"{"spec":{"storage":{"size":"2Gi"}}}"#;
    patch(context, cluster, grown).await?;
    let says = wait_for_reason(context, cluster, "Degraded", "StorageGrowthRefused").await?;
    ensure!(says.contains("data-volumes-0-0"), "the refusal does not name the volume: {says}");
    // What an administrator does then.
    let outcome = async {
        kubernetes.kubectl(&["patch", "storageclass", "local", "--patch", r#"{"allowVolumeExpansion":true}"#]).await?;
        wait_for_reason(context, cluster, "Degraded", "Healthy").await?;
        let claim = kubernetes.get(&["pvc", "data-volumes-0-0"]).await?;
        let asked = &claim["spec"]["resources"]["requests"]["storage"];
        ensure!(asked == "2Gi", "the claim asks for {asked}");
        patch(context, cluster, r#"{"spec":{"storage":{"size":"1Gi"}}}"#).await?;
        let says = wait_for_reason(context, cluster, "Degraded", "StorageNotShrinkable").await?;
        ensure!(says.contains("set storage.size to 2Gi or more"), "the condition says: {says}");
        Ok(())
    }
    .await;
    let class = r#"{"allowVolumeExpansion":false}"#;
    kubernetes.kubectl(&["patch", "storageclass", "local", "--patch", class]).await?;
    outcome?;
    remove(context, cluster).await
}

fn one_member(name: &str, storage: &str) -> String {
    format!(
        "apiVersion: holdfast.dev/v1alpha1\nkind: MessageQueueCluster\nmetadata: {{name: {name}}}\n\
         spec:\n  members: 1\n  storage: {storage}\n"
    )
}

async fn patch(context: &Context, cluster: &str, patch: &str) -> Result<()> {
    context.kubernetes.kubectl(&["patch", "mqc", cluster, "--type=merge", "--patch", patch]).await.map(drop)
}

async fn remove(context: &Context, cluster: &str) -> Result<()> {
    install::remove_cluster(&context.kubernetes, cluster, true).await?;
    install::offer_released_volumes().await
}

/// Waits until a condition has the reason, and returns its message.
async fn wait_for_reason(context: &Context, cluster: &str, kind: &str, reason: &str) -> Result<String> {
    eventually(&format!("mqc/{cluster} {kind} for the reason {reason}"), Duration::from_secs(120), || async {
        let object = context.kubernetes.get(&["mqc", cluster]).await?;
        let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let condition = conditions.iter().find(|condition| condition["type"] == kind);
        match condition {
            Some(condition) if condition["reason"] == reason => {
                Ok(condition["message"].as_str().unwrap_or_default().to_owned())
            }
            Some(condition) => bail!("it is {condition}"),
            None => bail!("there is no such condition"),
        }
    })
    .await
}
