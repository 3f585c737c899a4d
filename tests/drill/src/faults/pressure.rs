//! Slow disks, slow followers, little memory, much in the queues.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::client::Client;
use crate::member::Injection;
use crate::run::Run;
use crate::seclusion::memory_group;
use crate::workload::{BACKLOG, LIVE, Watch, Whose};

/// A million messages.
const MANY: u64 = 1_000_000;
/// How long it may take to publish them.
const PILING_UP: Duration = Duration::from_secs(300);
/// What each member may take.
const MEMORY_MIB: u64 = 256;
/// How long latencies are watched at a time.
const PHASE: Duration = Duration::from_secs(15);
/// How much worse a slow follower may make them.
const TIMES_WORSE: u32 = 3;

pub async fn stall_disks(run: &mut Run) -> Result<()> {
    for of_leader in [true, false, true, false] {
        let leader = run.cluster.leader_of(LIVE).await?;
        let struck = if of_leader { leader } else { (leader + 1) % run.cluster.members.len() };
        let watch = run.workload.watch(&run.cluster, &[struck]);
        let stall = Injection::into(&run.cluster.members[struck], "fdatasync:delay_enter=10000000:when=1").await?;
        run.record_gap(&watch, Duration::from_secs(12)).await;
        drop(stall);
        let after = run.cluster.leader_of(LIVE).await?;
        let what = if of_leader { "the leader" } else { "a follower" };
        run.note(format!("{what}, drill-{struck}, stalled; drill-{after} leads after"));
        if of_leader && after == struck {
            run.late("a leader with a stalled disk did not hand over");
        }
        run.whole_again().await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    Ok(())
}

/// The latency of the spared producers over the next while. They are those that were spared at first: one that gave up on
/// the paused member and went elsewhere brings what has waited for as long as that with it.
async fn latency(run: &Run, spared: &Watch) -> Result<Duration> {
    let watch = spared.again();
    tokio::time::sleep(PHASE).await;
    run.workload.p99_since(&watch).context("no confirms at all")
}

pub async fn slow_follower(run: &mut Run) -> Result<()> {
    let leader = run.cluster.leader_of(LIVE).await?;
    let follower = (leader + 1) % run.cluster.members.len();
    let spared = run.workload.watch(&run.cluster, &[follower]);
    let undisturbed = latency(run, &spared).await?;
    run.note(format!("undisturbed: {undisturbed:.1?}"));
    for phase in ["paused", "catching up after a pause", "at 1 Mbit/s", "catching up after 1 Mbit/s"] {
        match phase {
            "paused" => run.cluster.members[follower].pause()?,
            "at 1 Mbit/s" => run.network.limit_rate(follower, 1000).await?,
            _ => {
                run.cluster.members[follower].resume()?;
                run.network.lift_rates().await?;
            }
        }
        let seen = latency(run, &spared).await?;
        run.note(format!("{phase}: {seen:.1?}"));
        if seen > undisturbed * TIMES_WORSE {
            run.late(format!("{phase}: the 99th percentile went from {undisturbed:.1?} to {seen:.1?}"));
        }
    }
    run.all_in_sync().await
}

pub async fn little_memory(run: &mut Run) -> Result<()> {
    let group = memory_group()?;
    for number in 0..run.cluster.members.len() {
        let member = &mut run.cluster.members[number];
        let own = group.join(&member.name);
        std::fs::create_dir_all(&own)?;
        let limit = ["memory.limit_in_bytes", "memory.max"].map(|file| own.join(file));
        let file = limit.iter().find(|file| file.exists()).context("a memory limit")?;
        std::fs::write(file, (MEMORY_MIB << 20).to_string()).with_context(|| file.display().to_string())?;
        let enter = format!("echo $$ >{}/cgroup.procs && exec \"$@\"", own.display());
        member.wrapper = ["sh", "-c", &enter, "sh"].map(str::to_owned).to_vec();
        member.kill().await?;
        member.start()?;
        run.whole_again().await?;
    }
    run.workload.pile_up(MANY, PILING_UP).await?;
    let client = Client::connect(&run.cluster.endpoints(), 0).await?;
    let held = client.hold(BACKLOG, u16::MAX).await?;
    tokio::time::sleep(Duration::from_secs(10)).await;
    drop(client);
    for number in 0..run.cluster.members.len() {
        if let Some(code) = run.cluster.members[number].ended_by_itself() {
            let words = run.cluster.members[number].last_words();
            run.broken(format!("drill-{number} ended with {code:?} under {MEMORY_MIB} MiB: {words}"));
        }
    }
    let resident: Vec<String> = run.cluster.members.iter().map(|m| format!("{} MiB", m.resident_mib())).collect();
    run.note(format!("{MANY} queued, {held} held unacked; resident {}", resident.join(", ")));
    Ok(())
}

pub async fn restart_with_backlog(run: &mut Run) -> Result<()> {
    run.workload.pile_up(MANY, PILING_UP).await?;
    for _ in 0..run.strikes(2) {
        for member in &mut run.cluster.members {
            member.strike()?;
        }
        for member in &mut run.cluster.members {
            member.ended(Duration::from_secs(20)).await?;
        }
        let started = Instant::now();
        for member in &mut run.cluster.members {
            member.start()?;
        }
        run.record_return(started, Whose::Anyone).await?;
        run.whole_again().await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    Ok(())
}
