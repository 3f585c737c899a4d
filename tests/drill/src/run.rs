//! One run of one fault: a cluster of its own, the load, the fault, the verdict.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use holdfast_e2e::kubernetes::eventually;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use serde::Serialize;

use crate::cluster::Cluster;
use crate::faults::Fault;
use crate::network::Network;
use crate::workload::{Findings, KEPT, LIVE, Whose, Workload};

/// The bound on a whole run: a drill that hangs is a drill that failed.
const RUN_LIMIT: Duration = Duration::from_secs(600);
/// How long the cluster may take to be whole after the fault.
const RECOVERY: Duration = Duration::from_secs(60);
/// What a member says when it has a defect, and when raft-rs has panicked in one replica: that is none where the replica's log
/// could not be read.
const DEFECT: &str = "panicked at";
const IN_A_REPLICA: &str = "raft ended in one replica";
const UNREADABLE: &str = "Damaged";

/// What all runs share.
pub struct Settings {
    /// The broker's program.
    pub broker: PathBuf,
    /// Where runs have their directories.
    pub work: PathBuf,
    /// Strikes in one run, when asked for.
    pub strikes: Option<u32>,
}

/// A run under way: what faults work with.
pub struct Run {
    /// The cluster.
    pub cluster: Cluster,
    /// Its network.
    pub network: Arc<Network>,
    /// Its load.
    pub workload: Workload,
    /// What is left to chance.
    pub rng: StdRng,
    strikes: Option<u32>,
    record: Record,
}

/// What a run writes down.
#[derive(Default)]
struct Record {
    gaps: Vec<Duration>,
    returns: Vec<Duration>,
    notes: Vec<String>,
    broken: Vec<String>,
    late: Vec<String>,
}

impl Run {
    /// How often to strike, where a fault strikes several times.
    pub fn strikes(&self, default: u32) -> u32 {
        self.strikes.unwrap_or(default)
    }

    /// Waits until `window` after now, and writes down the longest time without a confirm of any producer that is not
    /// connected to one of the `struck` members. Begin with [`Workload::watch`] before the strike.
    pub async fn record_gap(&mut self, watch: &crate::workload::Watch, window: Duration) {
        let gap = self.workload.longest_gap(watch, window).await;
        self.record.gaps.push(gap);
    }

    /// Writes down how long it took until both queues confirmed something again, to one or to each producer.
    ///
    /// # Errors
    /// When they do not within a minute.
    pub async fn record_return(&mut self, from: Instant, whose: Whose) -> Result<()> {
        let took = self.workload.confirmed_after(from, whose, RECOVERY).await?;
        self.record.returns.push(took);
        Ok(())
    }

    /// For the report.
    pub fn note(&mut self, words: impl Into<String>) {
        self.record.notes.push(words.into());
    }

    /// A promise of the fault list that was broken, other than those that the ledger sees.
    pub fn broken(&mut self, words: impl Into<String>) {
        self.record.broken.push(words.into());
    }

    /// A stated time that was not kept: nothing is broken by it.
    pub fn late(&mut self, words: impl Into<String>) {
        self.record.late.push(words.into());
    }

    /// The machine under a member loses power: nobody hears of it, and what was not synced is gone.
    ///
    /// # Errors
    /// What the system said.
    pub async fn power_off(&mut self, number: usize) -> Result<()> {
        self.network.plug(number, false).await?;
        self.cluster.members[number].lose_power().await
    }

    /// Its power is back.
    ///
    /// # Errors
    /// What the system said.
    pub async fn power_on(&mut self, number: usize) -> Result<()> {
        self.network.plug(number, true).await?;
        self.cluster.members[number].start()
    }

    /// Waits until every member has all of both queues.
    ///
    /// # Errors
    /// When that takes more than a minute: says what is missing.
    pub async fn all_in_sync(&self) -> Result<()> {
        let members = self.cluster.members.len().min(3);
        for queue in [LIVE, KEPT] {
            eventually(&format!("every replica of {queue} in sync"), RECOVERY, || async {
                let group = self.cluster.group_of(queue).await?;
                let voters =
                    group["replicas"].as_array().map_or(0, |all| all.iter().filter(|r| r["voter"] == true).count());
                anyhow::ensure!(voters == members && group["inSyncReplicas"] == members, "it is {group}");
                Ok(())
            })
            .await?;
        }
        Ok(())
    }

    /// What was confirmed until now to the queue with consumers reaches one of them soon: nobody sits on it.
    ///
    /// # Errors
    /// When the time is up: says how many did not.
    pub async fn all_delivered(&self, limit: Duration) -> Result<()> {
        let now = Instant::now();
        eventually("what was confirmed is delivered", limit, || async {
            let waiting = self.workload.live.ledger.undelivered_since(now);
            anyhow::ensure!(waiting.is_empty(), "{} messages wait, the first {:?}", waiting.len(), waiting.first());
            Ok(())
        })
        .await
    }

    /// The network is whole, every process runs, every member is ready, and clients are where they want to be.
    ///
    /// # Errors
    /// When that is not so within a minute.
    pub async fn whole_again(&mut self) -> Result<()> {
        self.network.heal().await?;
        for number in 0..self.cluster.members.len() {
            self.network.plug(number, true).await?;
        }
        for member in &mut self.cluster.members {
            if member.pid().is_none() && !member.retired {
                member.start()?;
            }
            let _ = member.resume();
        }
        self.cluster.ready(RECOVERY).await?;
        self.workload.send_home();
        Ok(())
    }
}

/// How a run ended.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    /// Nothing was lost, redelivered, reordered or otherwise broken, and the run came to its end.
    pub safe: bool,
    /// Why the run did not come to its end.
    pub failure: Option<String>,
    /// What the ledgers found.
    pub findings: Findings,
    /// Broken promises that the ledgers do not see.
    pub broken: Vec<String>,
    /// The longest times without a confirm, in ms, one for each strike that is timed.
    pub gaps_ms: Vec<u64>,
    /// Times from the end of a fault to the next confirms, in ms.
    pub returns_ms: Vec<u64>,
    /// Stated times that were not kept, other than those two.
    pub late: Vec<String>,
    /// What else was seen.
    pub notes: Vec<String>,
    /// Where disks and logs were left.
    pub kept: Option<PathBuf>,
}

impl Outcome {
    /// One line.
    pub fn in_words(&self) -> String {
        let f = &self.findings;
        let head = if self.safe { "safe" } else { "BROKEN" };
        let mut words = format!(
            "{head}; confirmed {}, lost {}, acked redelivered {}, order broken {}; gaps {:?} ms, back {:?} ms",
            f.confirmed, f.lost, f.acked_redelivered, f.order_broken, self.gaps_ms, self.returns_ms
        );
        let mut told: Vec<String> = self.notes.clone();
        told.extend(self.late.iter().map(|text| format!("LATE: {text}")));
        told.extend(self.broken.iter().map(|text| format!("BROKEN: {text}")));
        told.extend(f.violations.iter().take(5).map(|text| format!("BROKEN: {text}")));
        told.extend(self.failure.iter().map(|text| format!("FAILED: {text}")));
        told.extend(self.kept.iter().map(|path| format!("kept in {}", path.display())));
        for line in told {
            words.push_str("\n      ");
            words.push_str(&line);
        }
        words
    }
}

/// Runs a fault once. Disks and logs stay only when something is wrong.
pub async fn run_once(settings: &Settings, network: &Arc<Network>, fault: &Fault, seed: u64) -> Outcome {
    let dir = settings.work.join(format!("{}-seed-{seed}", fault.name));
    let _ = std::fs::remove_dir_all(&dir);
    let mut outcome = Outcome::default();
    let result = async {
        std::fs::create_dir_all(&dir)?;
        let mut cluster = Cluster::form(&dir, &settings.broker, fault.shape).await.context("a cluster to break")?;
        let workload = Workload::start(&cluster, fault.live_rate, fault.kept_rate).await;
        let workload = match workload {
            Ok(workload) => workload,
            Err(error) => {
                cluster.end().await;
                return Err(error);
            }
        };
        let rng = StdRng::seed_from_u64(seed);
        let network = network.clone();
        let mut run = Run { cluster, network, workload, rng, strikes: settings.strikes, record: Record::default() };
        let struck = strike(&mut run, fault).await;
        judge(run, struck, &mut outcome).await;
        Ok(())
    };
    if let Err(error) = result.await {
        outcome.failure = Some(format!("{error:#}"));
    }
    outcome.safe = outcome.failure.is_none() && outcome.findings.is_clean() && outcome.broken.is_empty();
    if outcome.safe {
        let _ = std::fs::remove_dir_all(&dir);
    } else {
        outcome.kept = keep(&dir);
    }
    outcome
}

async fn strike(run: &mut Run, fault: &Fault) -> Result<()> {
    run.workload.confirmed_after(Instant::now(), Whose::Everyone, RECOVERY).await.context("before the fault")?;
    // Some messages are to be there before anything happens to them.
    tokio::time::sleep(Duration::from_secs(2)).await;
    tokio::time::timeout(RUN_LIMIT, (fault.run)(run)).await.context("the run's time is up")?
}

async fn judge(mut run: Run, struck: Result<()>, outcome: &mut Outcome) {
    let whole = run.whole_again().await.context("after the fault");
    let Run { mut cluster, workload, network, record, .. } = run;
    let (findings, settled) = workload.finish().await;
    let _ = network.lift_rates().await;
    for member in &mut cluster.members {
        outcome.broken.extend(member.died_unasked());
        let log = member.log();
        let is_defect =
            |line: &&str| line.contains(DEFECT) || (line.contains(IN_A_REPLICA) && !line.contains(UNREADABLE));
        let defects = log.lines().filter(is_defect);
        outcome.broken.extend(defects.map(|line| format!("{}: {line}", member.name)));
    }
    cluster.end().await;
    let millis =
        |times: Vec<Duration>| times.iter().map(|t| u64::try_from(t.as_millis()).unwrap_or(u64::MAX)).collect();
    outcome.findings = findings;
    outcome.broken.extend(record.broken);
    outcome.notes = record.notes;
    outcome.late = record.late;
    outcome.gaps_ms = millis(record.gaps);
    outcome.returns_ms = millis(record.returns);
    outcome.failure = struck.and(whole).and(settled).err().map(|error| format!("{error:#}"));
}

/// Moves the directory of a failed run out of the way of the next one of the same name.
fn keep(dir: &Path) -> Option<PathBuf> {
    let stamp = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).ok()?.as_secs();
    let kept = dir.with_file_name(format!("kept-{}-{stamp}", dir.file_name()?.to_string_lossy()));
    std::fs::rename(dir, &kept).ok()?;
    Some(kept)
}
