//! The seed case as it stands in a user's hands: two pika scripts with a power cut of the software between them.
//! The same on processes without Kubernetes is a test of `holdfast-node`.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{CLUSTER, Context};
use crate::kubernetes::eventually;
use crate::pika;

/// Messages of the case.
const MESSAGES: u32 = 2_000;

pub(super) async fn run(context: &Context) -> Result<()> {
    let brokers = context.brokers().await?;
    let pods = brokers.kubernetes.broker_pods(CLUSTER).await?;
    pika::publish(&brokers.uri(&pods[0]), "seed", MESSAGES).await?;
    for pod in &pods {
        pod.sigkill().await?;
    }
    println!("e2e: every broker is killed; waiting for them to come back");
    let received = eventually("a member serves the queue", Duration::from_secs(60), || async {
        let pods = brokers.kubernetes.broker_pods(CLUSTER).await?;
        ensure!(
            pods.iter().all(|pod| pod.ready && !pod.process_ids("holdfast-broker").is_empty()),
            "not every pod is Ready"
        );
        pika::consume(&brokers.uri(&pods[1]), "seed", MESSAGES).await
    })
    .await?;
    ensure!(received == MESSAGES, "{received} of {MESSAGES} messages came back");
    Ok(())
}
