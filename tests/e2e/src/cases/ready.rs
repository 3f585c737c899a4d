//! From `kubectl apply` to `Ready`, and what an idle cluster costs.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

use super::{CLUSTER, Context};
use crate::install::{OPERATOR_NAMESPACE, READY_WITHIN};
use crate::kubernetes::{Kubernetes, Pod};
use crate::report;

/// Resident memory that the README promises for an idle broker and an idle operator.
const IDLE_MEMORY_MIB: f64 = 40.0;

#[derive(Serialize)]
struct Report {
    ready_s: f64,
    broker_mib: Vec<f64>,
    operator_mib: f64,
}

pub(super) async fn run(context: &Context) -> Result<()> {
    context.brokers().await?;
    let kubernetes = &context.kubernetes;
    let pods = kubernetes.broker_pods(CLUSTER).await?;
    let nodes: BTreeSet<&str> = pods.iter().map(|pod| pod.node.as_str()).collect();
    ensure!(pods.len() == 3 && nodes.len() == 3, "three pods on three nodes, found {pods:?}");
    let object = kubernetes.get(&["mqc", CLUSTER]).await?;
    let members = object["status"]["members"].as_array().cloned().unwrap_or_default();
    let zones: BTreeSet<&str> = members.iter().filter_map(|member| member["zone"].as_str()).collect();
    ensure!(zones.len() == 3, "status.members names three zones, found {members:?}");
    println!("{}", kubernetes.kubectl(&["get", "mqc", "-o", "wide"]).await?);

    println!("e2e: one idle minute before memory is read");
    tokio::time::sleep(Duration::from_secs(60)).await;
    let broker_mib: Vec<f64> = pods.iter().map(|pod| resident_mib(pod, "holdfast-broker")).collect::<Result<_>>()?;
    let operator_mib = operator_memory().await?;
    let ready_s = context.ready.as_secs_f64();
    println!(
        "e2e: Ready after {ready_s:.1} s; resident after one idle minute: brokers {broker_mib:.1?} MiB, operator {operator_mib:.1} MiB"
    );
    report::write("ready", &Report { ready_s, broker_mib: broker_mib.clone(), operator_mib })?;
    ensure!(context.ready <= READY_WITHIN, "Ready took {ready_s:.1} s, over {} s", READY_WITHIN.as_secs());
    let most = broker_mib.iter().copied().fold(operator_mib, f64::max);
    ensure!(most <= IDLE_MEMORY_MIB, "{most:.1} MiB resident is over {IDLE_MEMORY_MIB} MiB");
    Ok(())
}

async fn operator_memory() -> Result<f64> {
    let kubernetes = Kubernetes { namespace: OPERATOR_NAMESPACE.to_owned() };
    let list = kubernetes.get(&["pods"]).await?;
    let uid = list["items"][0]["metadata"]["uid"].as_str().context("the operator's pod")?.to_owned();
    let pod = Pod {
        name: "operator".to_owned(),
        uid,
        ip: String::new(),
        node: String::new(),
        ready: true,
        terminating: false,
    };
    resident_mib(&pod, "holdfast-operator")
}

fn resident_mib(pod: &Pod, program: &str) -> Result<f64> {
    let pid = *pod.process_ids(program).first().with_context(|| format!("the process of pod {}", pod.name))?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("VmRSS")?;
    let kib: f64 = line.split_whitespace().nth(1).context("VmRSS has a value")?.parse()?;
    Ok(kib / 1024.0)
}
