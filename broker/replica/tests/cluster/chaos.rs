//! Everything at random, by seed. The harness checks the invariants after every output; in the end all must agree.
//! `HOLDFAST_SEEDS=n` runs more of them, `HOLDFAST_SEED=x` one.

use holdfast_queue::ids::MemberId;
use holdfast_replica::{HostConfig, MembershipChange};

use crate::harness::{Cluster, GROUP, Rng, key};
use crate::ledger::{Ledger, put_sized, take};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn nothing_confirmed_is_lost_whatever_fails() {
    let seeds = match number("HOLDFAST_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("HOLDFAST_SEEDS").unwrap_or(40),
    };
    let mut total = 0;
    for seed in seeds {
        let outcome = std::panic::catch_unwind(|| run(seed));
        match outcome {
            Ok(confirmed) => total += confirmed,
            Err(panic) => {
                eprintln!("HOLDFAST_SEED={seed} cargo test -p holdfast-replica --test cluster chaos");
                std::panic::resume_unwind(panic);
            }
        }
    }
    assert!(total > 0);
}

#[test]
fn equal_seeds_give_equal_lives() {
    let life = |seed| {
        let cluster = live(seed, 400, false);
        (cluster.transcript, cluster.sent, cluster.now)
    };
    assert_eq!(life(3), life(3));
    assert_ne!(life(3), life(4));
}

#[test]
fn the_real_journal_finds_at_a_start_what_the_model_finds() {
    for seed in 1_000..1_002 {
        let mut cluster = live(seed, 120, true);
        for id in 1..=4 {
            cluster.crash(id);
            cluster.restart(id);
        }
    }
}

fn config(rng: &mut Rng) -> HostConfig {
    HostConfig {
        checkpoint_entries: 20 + rng.below(60),
        cache_bytes: rng.below(20_000) as usize,
        snapshot_chunk_bytes: 100 + rng.below(2_000) as usize,
        snapshot_window: 1 + rng.below(4) as usize,
        snapshot_give_up: std::time::Duration::from_secs(1 + rng.below(5)),
        max_log_bytes: 2_000 + rng.below(20_000),
        max_append_bytes: 100 + rng.below(4_000),
        max_inflight_appends: 1 + rng.below(20) as usize,
        quiesce_ticks: 5 + rng.below(20),
        ..HostConfig::default()
    }
}

/// How many commands were confirmed.
fn run(seed: u64) -> usize {
    live(seed, 400, false).confirmed()
}

/// A life of so many steps; `mirror`: on real journals too.
fn live(seed: u64, steps: u64, mirror: bool) -> Cluster {
    let mut rng = Rng::new(seed ^ 0xabcd);
    let mut cluster = Cluster::with_config(4, seed, config(&mut rng));
    cluster.split_writes = true;
    for id in 1..=4 {
        if mirror {
            cluster.member(id).disk.mirror();
        }
    }
    cluster.create(&[1, 2, 3], Some(1));
    cluster.delay_us = (100, 100 + rng.below(20_000));
    cluster.disk_us = (100, 100 + rng.below(30_000));
    let mut next = 0;
    for _ in 0..steps {
        publish(&mut cluster, &mut rng, &mut next);
        disturb(&mut cluster, &mut rng);
        cluster.run_ms(rng.below(60));
    }
    settle(&mut cluster);
    cluster
}

/// Some commands, to whoever takes them, stale leaders included.
fn publish(cluster: &mut Cluster, rng: &mut Rng, next: &mut u64) {
    for id in cluster.alive() {
        if cluster.host(id).status(GROUP).is_none() {
            continue;
        }
        for _ in 0..rng.below(6) {
            *next += 1;
            let _ = cluster.propose(id, put_sized(*next, rng.below(100) as usize));
        }
        let live = cluster.host(id).machine(GROUP).map(|ledger| ledger.live.clone()).unwrap_or_default();
        for index in live.into_iter().take(rng.below(6) as usize) {
            let _ = cluster.propose(id, take(index));
        }
    }
}

fn disturb(cluster: &mut Cluster, rng: &mut Rng) {
    let id = 1 + rng.below(4);
    let other = 1 + rng.below(4);
    let running = cluster.members[&id].host.is_some();
    match rng.below(40) {
        0 | 1 if running => cluster.crash(id),
        2..=5 if !running => cluster.restart(id),
        6 if running => cluster.pause(id),
        7..=9 if cluster.members[&id].paused => cluster.resume(id),
        10 => cluster.member(id).stalled = true,
        11..=13 => cluster.member(id).stalled = false,
        14 => cluster.isolate(id),
        15 => {
            cluster.cut.insert((id, other));
        }
        16..=18 => cluster.heal(),
        19 => cluster.suspect(id),
        20..=22 => cluster.hear(id),
        23 => cluster.loss_percent = rng.below(30),
        24 | 25 => cluster.loss_percent = 0,
        26 if cluster.alive().contains(&id) => {
            let _ = cluster.with(id, |host, _| host.transfer_leader(GROUP, MemberId(other)));
        }
        27 => change_membership(cluster, rng, other),
        28 if cluster.alive().contains(&id) => {
            cluster.with(id, |host, now| host.drain(now + std::time::Duration::from_secs(1), now));
        }
        _ => {}
    }
}

/// Takes one member out or in, in one step or by a joint change; never below two voters. A member that comes back has
/// another replica.
fn change_membership(cluster: &mut Cluster, rng: &mut Rng, member: u64) {
    let Some(leader) = cluster.leading() else { return };
    let status = cluster.status(leader);
    let current = cluster.current_replica(member);
    let present = status.voters.iter().chain(&status.learners).find(|replica| replica.member == MemberId(member));
    let other = status.voters.iter().find(|voter| voter.member.0 != leader && voter.member.0 != member).copied();
    let change = match present.copied() {
        _ if status.joint => MembershipChange::LeaveJoint,
        Some(present) if present != current => MembershipChange::Remove(present),
        Some(present) if status.learners.contains(&present) => match other {
            Some(other) if status.voters.len() > 2 && rng.percent(50) => {
                let (promote, demote, remove) = (vec![present], vec![other], vec![]);
                if rng.percent(50) {
                    MembershipChange::Swap { promote, demote, remove }
                } else {
                    MembershipChange::Swap { promote, demote: remove, remove: demote }
                }
            }
            _ => MembershipChange::Promote(present),
        },
        Some(present) if status.voters.len() > 3 && rng.percent(50) => MembershipChange::Remove(present),
        Some(_) => return,
        None => {
            // Only a leader that is proven to be one knows that the replica there is out for good.
            if cluster.alive().contains(&member) && cluster.may_emit(leader) {
                cluster.rejoin(member);
            }
            MembershipChange::AddLearner(cluster.current_replica(member))
        }
    };
    let _ = cluster.with(leader, |host, _| host.change_membership(GROUP, &change));
}

/// All faults end; then everyone must agree.
fn settle(cluster: &mut Cluster) {
    cluster.heal();
    cluster.loss_percent = 0;
    cluster.delay_us = (200, 500);
    cluster.disk_us = (200, 500);
    for id in 1..=4 {
        cluster.member(id).stalled = false;
        if cluster.members[&id].paused {
            cluster.resume(id);
        }
        if cluster.members[&id].host.is_none() {
            cluster.restart(id);
        }
        if cluster.host(id).status(GROUP).is_none() {
            // What it had was never durable, so it never spoke: it may begin again as the same one.
            let generation = cluster.current_replica(id).generation;
            cluster.with(id, |host, now| host.join_group(key(), generation, Ledger::default(), now)).unwrap();
        }
    }
    for id in 1..=4 {
        cluster.hear(id);
    }
    cluster.run_until(20_000, |cluster| cluster.leading().is_some());
    cluster.run_until(20_000, agreed);
    for id in 1..=4 {
        let quarantined = &cluster.members[&id].quarantined;
        assert!(quarantined.is_empty(), "member {id}: {quarantined:?}");
    }
}

/// The leader and all members of its group have applied the same.
fn agreed(cluster: &mut Cluster) -> bool {
    let Some(leader) = cluster.leading() else { return false };
    let status = cluster.status(leader);
    let ledger = cluster.ledger(leader);
    let mut replicas = status.voters.iter().chain(&status.learners);
    replicas.all(|replica| {
        let member = replica.member.0;
        // A learner may have been added for a replica that its member has given up since.
        let here = cluster.host(member).status(GROUP).is_some_and(|there| there.generation == Some(replica.generation));
        let gone = !here && status.learners.contains(replica);
        gone || here && cluster.ledger(member) == ledger && cluster.status(member).applied == status.last
    })
}
