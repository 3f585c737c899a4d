//! Measures three broker processes with many idle replicated queues: how fast they are declared, what they cost while
//! nothing happens, and how long one member, and all of them, take to serve again after SIGKILL.
//!
//! usage: many_queues PROGRAM DIRECTORY REPORT      `QUEUES` (10000) and `IDLE_SECONDS` (60) change the run

mod clients;
mod cluster;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::cluster::{Cluster, Usage};

/// What issue 4 wants at 10,000 queues.
const LEAST_DECLARES_PER_S: f64 = 500.0;
const MOST_RESIDENT_MIB: f64 = 150.0;
const MOST_CPU_PERCENT: f64 = 1.0;
/// Issue 5's, when all of them are active.
const MOST_PAUSE_MS: f64 = 3_000.0;
const MOST_ONE_RESTARTED_S: f64 = 5.0;
const MOST_ALL_RESTARTED_S: f64 = 10.0;

/// After the last declare groups quiesce, caches are dropped and compactions end.
const SETTLE: Duration = Duration::from_secs(20);
/// Bound on each restart: several times what is to be reached.
const RESTART_PATIENCE: Duration = Duration::from_secs(120);

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let (Some(program), Some(dir), Some(report)) = (args.next(), args.next(), args.next()) else {
        bail!("usage: many_queues PROGRAM DIRECTORY REPORT");
    };
    let queues = number("QUEUES", 10_000)?;
    let idle = Duration::from_secs(number("IDLE_SECONDS", 60)?);
    let mut cluster = Cluster::found(program.into(), PathBuf::from(dir)).await?;
    let load_before = load_average();
    let result = measure(&mut cluster, queues, idle).await;
    cluster.end();
    let mut result = result?;
    result["queues"] = queues.into();
    result["load_average"] = json!({ "before": load_before, "after": load_average() });
    std::fs::write(&report, format!("{result:#}\n")).with_context(|| format!("cannot write {report}"))?;
    println!("report: {report}");
    match misses(&result).as_slice() {
        [] => Ok(()),
        misses => bail!("not reached: {}", misses.join("; ")),
    }
}

async fn measure(cluster: &mut Cluster, queues: u64, idle: Duration) -> Result<Value> {
    let empty = cluster.usage()?;
    let declared = clients::declare(&cluster.uris(), queues).await?;
    println!("{queues} queues declared in {:.1} s: {:.0}/s", declared.seconds, queues as f64 / declared.seconds);
    println!("  each tenth of them, declares/s: {}", in_words(&declared.rates));
    let busy = cluster.usage()?;
    tokio::time::sleep(SETTLE).await;

    let (before, began) = (cluster.usage()?, Instant::now());
    tokio::time::sleep(idle).await;
    let (after, seconds) = (cluster.usage()?, began.elapsed().as_secs_f64());
    let cpu: Vec<f64> =
        before.iter().zip(&after).map(|(b, a)| 100.0 * (a.cpu_seconds - b.cpu_seconds) / seconds).collect();
    let resident: Vec<f64> = after.iter().map(Usage::resident_mib).collect();
    println!("idle for {seconds:.0} s: resident MiB {}; % of a core {}", in_words(&resident), in_words(&cpu));

    let (pause_ms, held_s) = cluster.barrier().await?;
    println!("a barrier through all of them: a pause of {pause_ms:.0} ms; held and read after {held_s:.1} s");
    let one = cluster.kill_and_start(&[0], queues, RESTART_PATIENCE).await?;
    println!("one member restarted: s to serve {}", in_words(&one));
    tokio::time::sleep(SETTLE).await;
    let all = cluster.kill_and_start(&[0, 1, 2], queues, RESTART_PATIENCE).await?;
    println!("all members restarted at once: s to serve {}", in_words(&all));
    tokio::time::sleep(SETTLE).await;
    let restarted: Vec<f64> = cluster.usage()?.iter().map(Usage::resident_mib).collect();
    println!("resident MiB after it {}", in_words(&restarted));
    Ok(json!({
        "declares_per_s": queues as f64 / declared.seconds,
        "declares_per_s_of_each_tenth": declared.rates,
        "declare_latency_ms": { "p50": declared.p50_ms, "p99": declared.p99_ms },
        "cpu_seconds_per_1000_declares": per_thousand(&empty, &busy, queues),
        "resident_mib_empty": empty.iter().map(Usage::resident_mib).collect::<Vec<_>>(),
        "resident_mib": resident,
        "idle_cpu_percent": cpu,
        "barrier_pause_ms": pause_ms,
        "barrier_held_s": held_s,
        "one_restarted_s": one,
        "all_restarted_s": all,
        "resident_mib_after_restart": restarted,
    }))
}

fn per_thousand(before: &[Usage], after: &[Usage], queues: u64) -> Vec<f64> {
    let each = before.iter().zip(after).map(|(b, a)| (a.cpu_seconds - b.cpu_seconds) * 1000.0 / queues as f64);
    each.collect()
}

/// What falls short of the issue, in words.
fn misses(result: &Value) -> Vec<String> {
    let worst = |key: &str| result[key].as_array().into_iter().flatten().filter_map(Value::as_f64).fold(0.0, f64::max);
    let mut misses = Vec::new();
    let mut at_most = |what: &str, seen: f64, most: f64| {
        if seen > most {
            misses.push(format!("{what}: {seen:.1}, at most {most}"));
        }
    };
    at_most("resident MiB", worst("resident_mib"), MOST_RESIDENT_MIB);
    at_most("% of a core while idle", worst("idle_cpu_percent"), MOST_CPU_PERCENT);
    at_most("ms that a barrier pauses", result["barrier_pause_ms"].as_f64().unwrap_or(f64::MAX), MOST_PAUSE_MS);
    at_most("s until one restarted member serves", worst("one_restarted_s"), MOST_ONE_RESTARTED_S);
    at_most("s until all restarted members serve", worst("all_restarted_s"), MOST_ALL_RESTARTED_S);
    let rate = result["declares_per_s"].as_f64().unwrap_or(0.0);
    if rate < LEAST_DECLARES_PER_S {
        misses.push(format!("declares/s: {rate:.0}, at least {LEAST_DECLARES_PER_S}"));
    }
    misses
}

fn number(name: &str, default: u64) -> Result<u64> {
    match std::env::var(name) {
        Ok(text) => text.parse().with_context(|| format!("{name}={text} is not a number")),
        Err(_) => Ok(default),
    }
}

/// How busy the machine was in the last minute.
fn load_average() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or(0.0)
}

fn in_words(values: &[f64]) -> String {
    values.iter().map(|value| format!("{value:.1}")).collect::<Vec<_>>().join(", ")
}
