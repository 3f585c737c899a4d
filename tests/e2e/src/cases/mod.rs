//! The end-to-end cases, each a sentence of what a user may rely on. They share one operator and one cluster.

mod backup;
mod backup_faults;
mod backup_schedule;
mod bad_spec;
mod changes;
mod chart;
mod csi;
mod drain;
mod failover;
mod ready;
mod restore;
mod restore_large;
mod retain;
mod seed;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use futures::future::BoxFuture;
use serde::Serialize;

use crate::brokers::Brokers;
use crate::install::{self, Images, Release};
use crate::kubernetes::Kubernetes;
use crate::report;

/// Namespace and name of the cluster that the cases share.
const NAMESPACE: &str = "holdfast-e2e";
const CLUSTER: &str = "mq";

/// What a case works with.
pub struct Context {
    kubernetes: Kubernetes,
    strikes: u32,
    ready: Duration,
}

impl Context {
    async fn brokers(&self) -> Result<Brokers> {
        self.kubernetes.wait_for_condition(CLUSTER, "Ready", "True", Duration::from_secs(120)).await?;
        Brokers::connect(&self.kubernetes, CLUSTER).await
    }
}

/// One case.
pub struct Case {
    /// What `CASE=` selects.
    pub name: &'static str,
    /// What it shows.
    pub shows: &'static str,
    /// It takes minutes, or measures: it runs only when it is named.
    pub by_name_only: bool,
    run: for<'a> fn(&'a Context) -> BoxFuture<'a, Result<()>>,
}

/// Every case, in the order in which they run.
pub const CASES: &[Case] = &[
    Case {
        name: "ready",
        shows: "an applied cluster is Ready in time, spread over zones, and idles in little memory",
        by_name_only: false,
        run: |c| Box::pin(ready::run(c)),
    },
    Case {
        name: "seed",
        shows: "messages published without confirms survive SIGKILL of every broker pod",
        by_name_only: false,
        run: |c| Box::pin(seed::run(c)),
    },
    Case {
        name: "leader-kill",
        shows: "a killed leader loses nothing and confirms go on",
        by_name_only: false,
        run: |c| Box::pin(failover::leader_kill(c)),
    },
    Case {
        name: "all-killed",
        shows: "all pods killed at once lose nothing",
        by_name_only: false,
        run: |c| Box::pin(failover::all_killed(c)),
    },
    Case {
        name: "operator-absent",
        shows: "a failover needs no operator",
        by_name_only: false,
        run: |c| Box::pin(failover::operator_absent(c)),
    },
    Case {
        name: "drain",
        shows: "a drained node's leaders move before its pod is evicted, and no client waits for long",
        by_name_only: false,
        run: |c| Box::pin(drain::run(c)),
    },
    Case {
        name: "roll",
        shows: "a changed pod template reaches one member at a time, under load, and nothing is lost",
        by_name_only: false,
        run: |c| Box::pin(changes::roll(c)),
    },
    Case {
        name: "hibernate",
        shows: "a hibernated cluster has no pods, and all its messages when it wakes",
        by_name_only: false,
        run: |c| Box::pin(changes::hibernate(c)),
    },
    Case {
        name: "scale-up",
        shows: "kubectl scale from three members to five, under load, and the newest serves every queue",
        by_name_only: false,
        run: |c| Box::pin(changes::scale_up(c)),
    },
    Case {
        name: "volumes",
        shows: "a missing storage class, a volume that cannot grow, and one that may, are said in the conditions",
        by_name_only: false,
        run: |c| Box::pin(changes::volumes(c)),
    },
    Case {
        name: "csi",
        shows: "the test storage cuts, tears, restores and grows volumes in every zone, and its faults are visible",
        by_name_only: false,
        run: |c| Box::pin(csi::run(c)),
    },
    Case {
        name: "backup",
        shows: "a backup under load, atomic or torn, with the operator killed in the middle, loses nothing and reads back whole",
        by_name_only: false,
        run: |c| Box::pin(backup::run(c)),
    },
    Case {
        name: "restore",
        shows: "a backup begins new clusters, beside the original and in its stead; one is proven by it, and a damaged one is not",
        by_name_only: false,
        run: |c| Box::pin(restore::run(c)),
    },
    Case {
        name: "backup-faults",
        shows: "no class, no snapshots, a hung driver, damaged copies, an operator killed at each step: said, and nothing stays held",
        by_name_only: true,
        run: |c| Box::pin(backup_faults::run(c)),
    },
    Case {
        name: "backup-schedule",
        shows: "six ticks leave the three backups that are to be kept; ticks that an operator missed collapse into one",
        by_name_only: true,
        run: |c| Box::pin(backup_schedule::run(c)),
    },
    Case {
        name: "restore-large",
        shows: "a barrier over 100 busy queues is short, and a gigabyte of messages is restored in time: both are measured",
        by_name_only: true,
        run: |c| Box::pin(restore_large::run(c)),
    },
    Case {
        name: "chart",
        shows: "what Helm renders is accepted by a real API server",
        by_name_only: false,
        run: |c| Box::pin(chart::run(c)),
    },
    Case {
        name: "bad-spec",
        shows: "a bad spec is refused with what to write instead",
        by_name_only: false,
        run: |c| Box::pin(bad_spec::run(c)),
    },
    Case {
        name: "retain",
        shows: "a deleted cluster applied again has the same identity and messages",
        by_name_only: false,
        run: |c| Box::pin(retain::run(c)),
    },
];

#[derive(Serialize)]
struct Outcome {
    case: &'static str,
    passed: bool,
    seconds: f64,
    error: Option<String>,
}

/// Runs the selected cases (when `only` is empty, all but those that run only by name) and writes `target/reports/e2e.json`.
///
/// # Errors
/// When a case is unknown, the cluster cannot be set up, or a case fails.
pub async fn run_cases(images: &Images, only: &[String], strikes: u32) -> Result<()> {
    let is_selected = |case: &&Case| match only {
        [] => !case.by_name_only,
        only => only.iter().any(|name| name == case.name),
    };
    let selected: Vec<&Case> = CASES.iter().filter(is_selected).collect();
    if selected.is_empty() || (!only.is_empty() && selected.len() != only.len()) {
        let known: Vec<&str> = CASES.iter().map(|case| case.name).collect();
        bail!("no case of that name; there are: {}", known.join(", "));
    }
    let kubernetes = Kubernetes { namespace: NAMESPACE.to_owned() };
    println!("e2e: installing the operator and a cluster of three members");
    Release::of_the_local_cluster().install(images).await?;
    install::namespace(&kubernetes).await?;
    // A cluster of an earlier run would be Ready at once, and prove nothing about these images.
    install::remove_cluster(&kubernetes, CLUSTER, true).await?;
    install::offer_released_volumes().await?;
    let ready = install::cluster(&kubernetes, CLUSTER, &install::three_member_cluster(CLUSTER)).await?;
    let context = Context { kubernetes, strikes, ready };
    let mut outcomes = Vec::new();
    for case in selected {
        println!("e2e: {} - {}", case.name, case.shows);
        let start = Instant::now();
        let limit = Duration::from_secs(300) + Duration::from_secs(20) * strikes;
        let result = tokio::time::timeout(limit, (case.run)(&context)).await;
        let result = result.with_context(|| format!("not done within {} s", limit.as_secs())).and_then(|inner| inner);
        let error = result.err().map(|error| format!("{error:#}"));
        let seconds = start.elapsed().as_secs_f64();
        println!(
            "e2e: {} {} in {seconds:.1} s{}",
            case.name,
            if error.is_none() { "passed" } else { "FAILED" },
            error.as_ref().map_or_else(String::new, |error| format!(": {error}"))
        );
        outcomes.push(Outcome { case: case.name, passed: error.is_none(), seconds, error });
    }
    let failed = outcomes.iter().filter(|outcome| !outcome.passed).count();
    report::write("e2e", &outcomes)?;
    println!("{} passed, {failed} failed", outcomes.len() - failed);
    if failed > 0 {
        bail!("{failed} cases failed");
    }
    Ok(())
}
