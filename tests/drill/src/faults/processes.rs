//! Processes that are killed or paused.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use holdfast_e2e::load::fixed_endpoints;
use http::Method;
use rand::Rng as _;
use rand::seq::{IndexedRandom as _, SliceRandom as _};

use crate::client::Client;
use crate::run::Run;
use crate::workload::{LIVE, Whose};

/// How long a killed leader stays away.
const AWAY: Duration = Duration::from_secs(2);
/// After this time of a majority's absence every confirm that was on its way to a client has been read.
const LAST_CONFIRMS: Duration = Duration::from_secs(2);

pub async fn kill_leaders(run: &mut Run) -> Result<()> {
    for _ in 0..run.strikes(12) {
        let leader = run.cluster.leader_of(LIVE).await?;
        let watch = run.workload.watch(&run.cluster, &[leader]);
        run.cluster.members[leader].kill().await?;
        run.record_gap(&watch, AWAY).await;
        run.whole_again().await?;
    }
    Ok(())
}

pub async fn kill_anyone(run: &mut Run) -> Result<()> {
    for _ in 0..run.strikes(8) {
        let next = Instant::now() + Duration::from_secs(5);
        let struck = run.rng.random_range(0..run.cluster.members.len());
        let watch = run.workload.watch(&run.cluster, &[struck]);
        run.cluster.members[struck].kill().await?;
        run.cluster.members[struck].start()?;
        run.record_gap(&watch, Duration::from_secs(4)).await;
        run.workload.send_home();
        tokio::time::sleep_until(next.into()).await;
    }
    Ok(())
}

pub async fn kill_everyone(run: &mut Run) -> Result<()> {
    for _ in 0..run.strikes(5) {
        for member in &mut run.cluster.members {
            member.strike()?;
        }
        for member in &mut run.cluster.members {
            member.ended(Duration::from_secs(20)).await?;
        }
        let mut order: Vec<usize> = (0..run.cluster.members.len()).collect();
        order.shuffle(&mut run.rng);
        let mut majority = Instant::now();
        for (place, number) in order.into_iter().enumerate() {
            run.cluster.members[number].start()?;
            if place == 1 {
                majority = Instant::now();
            }
            tokio::time::sleep(Duration::from_millis(run.rng.random_range(0..2000))).await;
        }
        run.record_return(majority, Whose::Anyone).await?;
        run.whole_again().await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    Ok(())
}

pub async fn pause_leaders(run: &mut Run) -> Result<()> {
    for seconds in [6, 30, 6, 6] {
        let leader = run.cluster.leader_of(LIVE).await?;
        let watch = run.workload.watch(&run.cluster, &[leader]);
        run.cluster.members[leader].pause()?;
        run.record_gap(&watch, Duration::from_secs(seconds)).await;
        run.cluster.members[leader].resume()?;
        let resumed = Instant::now();
        run.record_return(resumed, Whose::Everyone).await?;
        run.whole_again().await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    Ok(())
}

pub async fn pause_majority(run: &mut Run) -> Result<()> {
    for _ in 0..run.strikes(2) {
        let all: Vec<usize> = (0..run.cluster.members.len()).collect();
        let paused: Vec<usize> = all.choose_multiple(&mut run.rng, all.len() / 2 + 1).copied().collect();
        for number in &paused {
            run.cluster.members[*number].pause()?;
        }
        let quiet = Instant::now() + LAST_CONFIRMS;
        tokio::time::sleep_until((quiet + Duration::from_secs(8)).into()).await;
        let resumed = Instant::now();
        let confirms = run.workload.confirms_between(quiet, resumed);
        if confirms > 0 {
            run.broken(format!("{confirms} confirms while a majority was paused"));
        }
        for number in &paused {
            run.cluster.members[*number].resume()?;
        }
        run.record_return(resumed, Whose::Everyone).await?;
        run.whole_again().await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    Ok(())
}

pub async fn lose_majority(run: &mut Run) -> Result<()> {
    for _ in 0..run.strikes(2) {
        let left = run.rng.random_range(0..run.cluster.members.len());
        for number in 0..run.cluster.members.len() {
            if number != left {
                run.cluster.members[number].kill().await?;
            }
        }
        let quiet = Instant::now() + LAST_CONFIRMS;
        tokio::time::sleep_until((quiet + Duration::from_secs(8)).into()).await;
        let confirms = run.workload.confirms_between(quiet, Instant::now());
        if confirms > 0 {
            run.broken(format!("{confirms} confirms while two of three were gone"));
        }
        let health = run.cluster.call(left, Method::GET, "/v1/health", None).await?;
        ensure!(health["quorum"] == false, "the last member says that it has a majority: {health}");
        let attempt = Client::connect(&fixed_endpoints(vec![run.cluster.members[left].uri()]), 0).await;
        let told = match attempt {
            Ok(client) => client.declare("nobody-can-make-this").await,
            Err(error) => Err(error),
        };
        match told {
            Ok(()) => run.broken("a queue was declared while two of three were gone"),
            Err(error) => run.note(format!("a client of the last member is told: {error:#}")),
        }
        for member in &mut run.cluster.members {
            if member.pid().is_none() {
                member.start()?;
            }
        }
        run.record_return(Instant::now(), Whose::Everyone).await?;
        run.whole_again().await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    Ok(())
}

/// Told to end, each in turn, as in a rolling restart.
pub async fn roll(run: &mut Run) -> Result<()> {
    for _ in 0..run.strikes(2) {
        for number in 0..run.cluster.members.len() {
            let watch = run.workload.watch(&run.cluster, &[number]);
            let member = &mut run.cluster.members[number];
            member.ask_to_end()?;
            let code = member.ended(Duration::from_secs(20)).await?;
            if code != Some(0) {
                let words = member.last_words();
                run.broken(format!("drill-{number} was asked to end and ended with {code:?}: {words}"));
            }
            run.cluster.members[number].start()?;
            run.record_gap(&watch, Duration::from_secs(4)).await;
            run.whole_again().await?;
        }
    }
    Ok(())
}

/// One is paused when another dies; when the first goes on, the dead one's part is the others'.
pub async fn pause_one_lose_another(run: &mut Run) -> Result<()> {
    for _ in 0..run.strikes(1) {
        let dead = run.cluster.leader_of(LIVE).await?;
        let paused = (dead + 1) % run.cluster.members.len();
        run.cluster.members[paused].pause()?;
        tokio::time::sleep(Duration::from_secs(3)).await;
        run.cluster.members[dead].kill().await?;
        tokio::time::sleep(Duration::from_secs(30)).await;
        run.cluster.members[paused].resume()?;
        run.record_return(Instant::now(), Whose::Anyone).await?;
        // The dead member's sessions are given up after ten seconds, and clients may take as long to notice.
        let delivered = run.all_delivered(Duration::from_secs(40)).await;
        if let Err(error) = delivered {
            let health = run.cluster.call(paused, Method::GET, "/v1/health", None).await;
            run.broken(format!("{error:#}; {health:?}"));
        }
        run.whole_again().await?;
    }
    Ok(())
}
