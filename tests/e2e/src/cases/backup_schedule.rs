//! A schedule under load, in real minutes: what it makes, what it keeps, and what an operator that was away makes up for.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::Context;
use super::backup::{self, CLUSTER};
use crate::failover::Load;
use crate::install::OPERATOR_NAMESPACE;
use crate::kubernetes::{Kubernetes, eventually};
use crate::load::declare_durable_queue;
use crate::pika;

const RATE: u64 = 300;
const MESSAGES: u32 = 2_000;
const STEP: Duration = Duration::from_secs(90);
/// A tick and what belongs to it.
const TICK: Duration = Duration::from_secs(110);
const KEPT: usize = 3;

pub(super) async fn run(context: &Context) -> Result<()> {
    let kubernetes = &context.kubernetes;
    remove(kubernetes).await?;
    let result = scheduled(kubernetes).await;
    operator(1).await?;
    let removed = remove(kubernetes).await;
    result.and(removed)
}

async fn scheduled(kubernetes: &Kubernetes) -> Result<()> {
    let brokers = backup::cluster(kubernetes, "1Gi").await?;
    let pods = kubernetes.broker_pods(CLUSTER).await?;
    pika::publish(&brokers.uri(&pods[0]), "waiting", MESSAGES).await?;
    declare_durable_queue(&brokers.endpoints(), "busy", STEP).await?;
    let load = Load::start(&brokers, "busy", 3, RATE * 800, RATE, Duration::from_secs(900));
    load.wait_for_published(RATE * 3, STEP).await?;

    // The first one comes at once: not so late in its minute that the next tick finds it at work.
    let second = since_1970()? % 60;
    if second > 25 {
        tokio::time::sleep(Duration::from_secs(62 - second)).await;
    }
    kubernetes
        .apply(&format!(
            "apiVersion: holdfast.dev/v1alpha1\nkind: MessageQueueBackupSchedule\nmetadata: {{name: minutely}}\nspec:\n  \
             cluster: {{name: {CLUSTER}}}\n  schedule: \"* * * * *\"\n  immediate: true\n  retention: {{count: {KEPT}}}\n  \
             backup: {{volumeSnapshot: {{className: holdfast-atomic}}}}\n"
        ))
        .await?;
    let mut made = BTreeSet::new();
    for count in 1..=3 {
        until_made(kubernetes, &mut made, count).await?;
    }
    println!("e2e: three ticks: {made:?}");

    // Away over two ticks.
    operator(0).await?;
    let (_, before) = latest(&made)?;
    while minutes_since(before)? < 2 {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    operator(1).await?;
    let returned = Instant::now();
    until_made(kubernetes, &mut made, 4).await?;
    let (name, at) = latest(&made)?;
    println!(
        "e2e: away for the ticks after {before}: {name} is complete {:.1} s after",
        returned.elapsed().as_secs_f64()
    );
    ensure!(at >= before + 2, "{name} is of an older tick than the last that was missed");
    // One of its own: had the other one that was missed been made up for too, there were more by now.
    for count in 5..=6 {
        until_made(kubernetes, &mut made, count).await?;
    }
    kubernetes
        .kubectl(&["patch", "mqbs", "minutely", "--type=merge", "--patch={\"spec\": {\"suspend\": true}}"])
        .await?;
    three_are_kept(kubernetes, &made).await?;
    let verdict = load.finish_early().await?;
    ensure!(verdict.is_clean(), "the ledger is not clean: {verdict:?}");
    let image = kubernetes.get(&["mqc", CLUSTER]).await?["status"]["image"].as_str().context("an image")?.to_owned();
    for (name, status) in backups(kubernetes).await? {
        backup::reads_back(kubernetes, &name, &status, &image).await?;
    }
    println!("{}", kubernetes.kubectl(&["get", "mqbs,mqb,volumesnapshots"]).await?);
    println!("e2e: six ticks, {KEPT} usable backups; {} messages confirmed meanwhile, none lost", verdict.confirmed);
    Ok(())
}

/// The three newest, their snapshots, and nothing else: neither in the API nor with the driver.
async fn three_are_kept(kubernetes: &Kubernetes, made: &BTreeSet<String>) -> Result<()> {
    let newest: BTreeSet<String> = made.iter().rev().take(KEPT).cloned().collect();
    eventually("exactly the three newest are kept", STEP, || async {
        let kept = backups(kubernetes).await?;
        let names: BTreeSet<String> = kept.keys().cloned().collect();
        ensure!(names == newest, "kept are {names:?}, the newest are {newest:?}");
        let complete = kept.values().all(|status| status["phase"] == "Completed");
        ensure!(complete, "not all are complete: {kept:?}");
        let of_backup = |status: &Value| status["snapshots"].as_array().cloned().unwrap_or_default();
        let expected: BTreeSet<String> = kept.values().flat_map(of_backup).map(|s| text(&s["name"])).collect();
        let snapshots = kubernetes.get(&["volumesnapshots"]).await?;
        let snapshots = snapshots["items"].as_array().cloned().unwrap_or_default();
        ensure!(snapshots.iter().all(|snapshot| snapshot["status"]["readyToUse"] == true), "not all can be used");
        let found: BTreeSet<String> = snapshots.iter().map(|s| text(&s["metadata"]["name"])).collect();
        ensure!(found == expected, "there are {found:?}, and the backups have {expected:?}");
        // A content goes when the driver has said that its snapshot is gone.
        let contents = kubernetes.get(&["volumesnapshotcontents"]).await?;
        let contents = contents["items"].as_array().map_or(0, Vec::len);
        ensure!(contents == expected.len(), "{contents} contents of {} snapshots", expected.len());
        Ok(())
    })
    .await
}

/// Waits until so many backups have been made and the newest is complete; older ones may be gone by then.
async fn until_made(kubernetes: &Kubernetes, made: &mut BTreeSet<String>, count: usize) -> Result<()> {
    let end = Instant::now() + TICK;
    loop {
        let now = backups(kubernetes).await?;
        made.extend(now.keys().cloned());
        let failed = now.iter().find(|(_, status)| status["phase"] == "Failed");
        ensure!(failed.is_none(), "a backup failed: {failed:?}");
        let newest = made.last().and_then(|name| now.get(name));
        if made.len() >= count && newest.is_some_and(|status| status["phase"] == "Completed") {
            ensure!(made.len() == count, "more than {count} were made: {made:?}");
            return Ok(());
        }
        ensure!(Instant::now() < end, "the backup number {count} is not complete: {made:?}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// The schedule's backups, with their status.
async fn backups(kubernetes: &Kubernetes) -> Result<BTreeMap<String, Value>> {
    let list = kubernetes.get(&["mqb"]).await?;
    let items = list["items"].as_array().cloned().unwrap_or_default();
    Ok(items.into_iter().map(|mut item| (text(&item["metadata"]["name"]), item["status"].take())).collect())
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// The newest backup, and the minute of its tick, which its name ends with.
fn latest(made: &BTreeSet<String>) -> Result<(&str, i64)> {
    let name = made.last().context("a backup")?;
    let digits = name.rsplit('-').next().unwrap_or_default();
    let part = |from: usize, to: usize| digits.get(from..to).and_then(|part| part.parse::<i64>().ok());
    let (day, hour, minute) = (part(6, 8), part(8, 10), part(10, 12));
    let (day, hour, minute) = (day.context("a day")?, hour.context("an hour")?, minute.context("a minute")?);
    Ok((name, (day * 24 + hour) * 60 + minute))
}

/// Whole minutes since the minute of a tick, within a month.
fn minutes_since(tick: i64) -> Result<i64> {
    let seconds = i64::try_from(since_1970()?)?;
    // 1970 began on a Thursday the first: only the difference within the day counts, over midnight too.
    let day_minute = seconds / 60 % 1440;
    Ok((day_minute - tick % 1440).rem_euclid(1440))
}

fn since_1970() -> Result<u64> {
    Ok(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs())
}

/// So many operators, and no more.
async fn operator(replicas: usize) -> Result<()> {
    let operator = Kubernetes { namespace: OPERATOR_NAMESPACE.to_owned() };
    operator.kubectl(&["scale", "deployment", "--all", &format!("--replicas={replicas}")]).await?;
    eventually("the operators are as many", STEP, || async {
        let pods = operator.get(&["pods", "--selector=app.kubernetes.io/component=operator"]).await?;
        let count = pods["items"].as_array().map_or(0, Vec::len);
        ensure!(count == replicas, "there are {count}");
        Ok(())
    })
    .await
}

/// Removes all that this case made.
async fn remove(kubernetes: &Kubernetes) -> Result<()> {
    kubernetes.kubectl(&["delete", "mqbs", "--all", "--wait=true", "--timeout=30s"]).await?;
    backup::remove(kubernetes).await
}
