//! A cluster that is deleted and applied again with its volumes retained.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{CLUSTER, Context};
use crate::brokers::Brokers;
use crate::install;
use crate::pika;

/// Messages that wait in the queue while the cluster does not exist.
const MESSAGES: u32 = 500;

pub(super) async fn run(context: &Context) -> Result<()> {
    let brokers = context.brokers().await?;
    let before = cluster_id(context).await?;
    let pods = brokers.kubernetes.broker_pods(CLUSTER).await?;
    pika::publish(&brokers.uri(&pods[0]), "retained", MESSAGES).await?;
    install::remove_cluster(&context.kubernetes, CLUSTER, false).await?;
    println!("e2e: deleted; the claims stay. Applying it again");
    install::cluster(&context.kubernetes, CLUSTER, &install::three_member_cluster(CLUSTER)).await?;
    let after = cluster_id(context).await?;
    ensure!(before == after, "the cluster id was {before} and is {after}");
    // The generated user may have been set anew: its Secret is read again.
    let brokers = Brokers::connect(&context.kubernetes, CLUSTER).await?;
    context.kubernetes.wait_for_condition(CLUSTER, "Ready", "True", Duration::from_secs(60)).await?;
    let pods = brokers.kubernetes.broker_pods(CLUSTER).await?;
    let received = pika::consume(&brokers.uri(&pods[2]), "retained", MESSAGES).await?;
    ensure!(received == MESSAGES, "{received} of {MESSAGES} messages came back");
    Ok(())
}

async fn cluster_id(context: &Context) -> Result<String> {
    let object = context.kubernetes.get(&["mqc", CLUSTER]).await?;
    let id = object["status"]["clusterID"].as_str().unwrap_or_default().to_owned();
    ensure!(!id.is_empty(), "status.clusterID is empty");
    Ok(id)
}
