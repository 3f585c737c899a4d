//! Links that are cut, flap, lose packets or are slow.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::network::Place;
use crate::run::Run;
use crate::workload::{LIVE, Whose};

/// How long a cut lasts: several election timeouts.
const CUT: Duration = Duration::from_secs(8);

fn others(run: &Run, number: usize) -> Vec<usize> {
    (0..run.cluster.members.len()).filter(|other| *other != number).collect()
}

pub async fn cut_leader_off(run: &mut Run) -> Result<()> {
    for _ in 0..run.strikes(4) {
        let leader = run.cluster.leader_of(LIVE).await?;
        let watch = run.workload.watch(&run.cluster, &[leader]);
        for other in others(run, leader) {
            run.network.cut(Place::Member(leader), Place::Member(other)).await?;
        }
        run.record_gap(&watch, CUT).await;
        heal(run, Whose::Everyone).await?;
    }
    Ok(())
}

pub async fn cut_one_way(run: &mut Run) -> Result<()> {
    for outward in [true, false, true, false] {
        let leader = run.cluster.leader_of(LIVE).await?;
        let watch = run.workload.watch(&run.cluster, &[leader]);
        for other in others(run, leader) {
            let (from, to) = if outward { (leader, other) } else { (other, leader) };
            run.network.cut_one_way(Place::Member(from), Place::Member(to)).await?;
        }
        run.record_gap(&watch, CUT).await;
        heal(run, Whose::Everyone).await?;
    }
    Ok(())
}

async fn heal(run: &mut Run, whose: Whose) -> Result<()> {
    run.network.heal().await?;
    run.record_return(Instant::now(), whose).await?;
    run.whole_again().await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    Ok(())
}

/// Each of the three pairs in turn cannot talk, while both can talk to the third.
pub async fn cut_pairs(run: &mut Run) -> Result<()> {
    for _ in 0..run.strikes(1) {
        for pair in [(0, 1), (1, 2), (0, 2)] {
            // Clients of either may be the ones that wait: those of the third must not.
            let watch = run.workload.watch(&run.cluster, &[pair.0, pair.1]);
            run.network.cut(Place::Member(pair.0), Place::Member(pair.1)).await?;
            run.record_gap(&watch, CUT).await;
            heal(run, Whose::Everyone).await?;
        }
    }
    Ok(())
}

/// A link from the leader to one follower that is there for a second and away for a second.
pub async fn flap(run: &mut Run) -> Result<()> {
    const FLAPS: u32 = 12;
    let leader = run.cluster.leader_of(LIVE).await?;
    let follower = (leader + 1) % run.cluster.members.len();
    let term = |group: serde_json::Value| group["term"].as_u64().context("a term");
    let before = term(run.cluster.group_of(LIVE).await?)?;
    let watch = run.workload.watch(&run.cluster, &[leader, follower]);
    for _ in 0..FLAPS {
        run.network.cut(Place::Member(leader), Place::Member(follower)).await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        run.network.heal().await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    run.record_gap(&watch, watch.from.elapsed()).await;
    let climbed = term(run.cluster.group_of(LIVE).await?)? - before;
    run.note(format!("the term climbed by {climbed} in {FLAPS} flaps"));
    if climbed > 2 {
        run.broken(format!("terms climb: by {climbed} in {FLAPS} flaps"));
    }
    Ok(())
}

/// Publishes get to the broker and their confirms do not get back; then the wait ends, or the member dies.
pub async fn cut_publishers_off(run: &mut Run) -> Result<()> {
    for strike in 0..run.strikes(4) as usize {
        let struck = strike % run.cluster.members.len();
        let watch = run.workload.watch(&run.cluster, &[struck]);
        run.network.cut_one_way(Place::Member(struck), Place::Clients).await?;
        if strike % 2 == 0 {
            run.record_gap(&watch, CUT).await;
        } else {
            tokio::time::sleep(Duration::from_secs(2)).await;
            run.cluster.members[struck].kill().await?;
            run.record_gap(&watch, CUT).await;
        }
        heal(run, Whose::Anyone).await?;
    }
    Ok(())
}

/// Every link between members loses a fifth of its packets.
pub async fn lossy_links(run: &mut Run) -> Result<()> {
    let members = run.cluster.members.len();
    let pairs = (0..members).flat_map(|one| (0..members).map(move |other| (one, other)));
    for (one, other) in pairs.filter(|(one, other)| one != other) {
        run.network.lose(Place::Member(one), Place::Member(other), 20).await?;
    }
    let began = Instant::now();
    tokio::time::sleep(Duration::from_secs(25)).await;
    let confirms = run.workload.confirms_between(began, Instant::now());
    run.note(format!("{confirms} confirms in 25 s with a fifth of the packets between members lost"));
    heal(run, Whose::Everyone).await
}

/// One follower is behind a link of 1 Mbit/s, a fraction of what is published.
pub async fn thin_link(run: &mut Run) -> Result<()> {
    let leader = run.cluster.leader_of(LIVE).await?;
    let follower = (leader + 1) % run.cluster.members.len();
    let watch = run.workload.watch(&run.cluster, &[follower]);
    run.network.limit_rate(follower, 1000).await?;
    run.record_gap(&watch, Duration::from_secs(25)).await;
    run.network.lift_rates().await?;
    heal(run, Whose::Everyone).await?;
    let lifted = Instant::now();
    run.all_in_sync().await?;
    run.note(format!("caught up {:.1} s after", lifted.elapsed().as_secs_f64()));
    Ok(())
}
