//! Clients that come and go faster than a cluster likes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use holdfast_e2e::load::Endpoints;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::client::Client;
use crate::run::Run;
use crate::workload::{LIVE, Whose};

/// Clients that connect and leave at the same time.
const CONNECTING: usize = 16;
/// Clients that declare and delete at the same time.
const DECLARING: usize = 4;
/// How long they do.
const CHURN: Duration = Duration::from_secs(20);
/// File descriptors that a member may have.
const DESCRIPTORS: usize = 256;

fn churn(
    clients: usize,
    endpoints: &Endpoints,
    stop: &Arc<AtomicBool>,
    queues: bool,
) -> (Arc<AtomicU64>, Vec<JoinHandle<()>>) {
    let done = Arc::new(AtomicU64::new(0));
    let tasks = (0..clients).map(|number| {
        let (endpoints, stop, done) = (endpoints.clone(), stop.clone(), done.clone());
        tokio::spawn(async move {
            let queue = format!("churn-{number}");
            while !stop.load(Ordering::Relaxed) {
                let Ok(client) = Client::connect(&endpoints, number).await else {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                };
                while queues && !stop.load(Ordering::Relaxed) {
                    if client.declare(&queue).await.is_err() || client.delete(&queue).await.is_err() {
                        break;
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                }
                if !queues && client.close().await.is_ok() {
                    done.fetch_add(1, Ordering::Relaxed);
                }
            }
        })
    });
    (done.clone(), tasks.collect())
}

pub async fn churn_through_a_failover(run: &mut Run) -> Result<()> {
    let (endpoints, stop) = (run.cluster.endpoints(), Arc::new(AtomicBool::new(false)));
    let (connections, mut tasks) = churn(CONNECTING, &endpoints, &stop, false);
    let (queues, more) = churn(DECLARING, &endpoints, &stop, true);
    tasks.extend(more);
    tokio::time::sleep(CHURN / 2).await;
    let leader = run.cluster.leader_of(LIVE).await?;
    let watch = run.workload.watch(&run.cluster, &[leader]);
    run.cluster.members[leader].kill().await?;
    run.record_gap(&watch, CHURN / 4).await;
    run.cluster.members[leader].start()?;
    tokio::time::sleep(CHURN / 4).await;
    stop.store(true, Ordering::Relaxed);
    for task in tasks {
        tokio::time::timeout(Duration::from_secs(30), task).await.context("a client that churns has hung")??;
    }
    let rate = |count: &AtomicU64| count.load(Ordering::Relaxed) / CHURN.as_secs();
    run.note(format!("{} connections and {} queues a second", rate(&connections), rate(&queues)));
    run.whole_again().await
}

pub async fn no_descriptors(run: &mut Run) -> Result<()> {
    let struck = run.cluster.leader_of(LIVE).await?;
    run.cluster.members[struck].kill().await?;
    let limit = format!("--nofile={DESCRIPTORS}");
    run.cluster.members[struck].wrapper = vec!["prlimit".into(), limit, "--".into()];
    run.cluster.members[struck].start()?;
    run.whole_again().await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let watch = run.workload.watch(&run.cluster, &[struck]);
    let mut held = Vec::new();
    // Not only clients can connect: the ports of the peers, the admin API and the probes are tried as well.
    let member = &run.cluster.members[struck];
    let ports = [member.clients(), member.peers(), member.admin(), member.probes()];
    for number in 0..2 * ports.len() * DESCRIPTORS {
        let connect = TcpStream::connect(ports[number % ports.len()]);
        if let Ok(Ok(stream)) = tokio::time::timeout(Duration::from_millis(200), connect).await {
            held.push(stream);
        }
    }
    run.note(format!("{} connections held open at a member with {DESCRIPTORS} descriptors", held.len()));
    run.record_gap(&watch, Duration::from_secs(8)).await;
    drop(held);
    run.record_return(std::time::Instant::now(), Whose::Everyone).await?;
    let member = &mut run.cluster.members[struck];
    if let Some(code) = member.ended_by_itself() {
        let words = member.last_words();
        run.broken(format!("it ended with {code:?}: {words}"));
    }
    let uri = run.cluster.members[struck].uri();
    Client::connect(&holdfast_e2e::load::fixed_endpoints(vec![uri]), 0)
        .await
        .context("log in when descriptors are free")?;
    Ok(())
}
