//! Checkpoints, compaction and Raft snapshots.

use holdfast_replica::HostConfig;

use crate::harness::{Cluster, GROUP};
use crate::ledger::{put, put_sized, take};

fn config() -> HostConfig {
    HostConfig {
        checkpoint_entries: 50,
        cache_bytes: 2_000,
        snapshot_chunk_bytes: 150,
        snapshot_window: 2,
        ..HostConfig::default()
    }
}

/// Member 3 was away while 1 and 2 went so far that only a snapshot can help it: of the messages, every third was taken.
fn far_behind(seed: u64) -> Cluster {
    let mut cluster = Cluster::with_config(3, seed, config());
    cluster.create(&[1, 2, 3], Some(1));
    cluster.run_ms(50);
    cluster.put(1, 0..20);
    cluster.run_ms(100);
    cluster.isolate(3);
    cluster.suspect(3);
    for number in 20..200 {
        let id = cluster.propose(1, put_sized(number, 50)).unwrap();
        if number % 3 == 0 {
            cluster.propose(1, take(id.index)).unwrap();
        }
        if number % 10 == 0 {
            cluster.run_ms(5);
        }
    }
    cluster.run_ms(100);
    assert!(cluster.status(1).compacted > 100, "{:?}", cluster.status(1));
    cluster
}

fn come_back(cluster: &mut Cluster) {
    cluster.heal();
    cluster.hear(3);
}

fn chunks(cluster: &Cluster) -> u64 {
    cluster.kinds.get("snapshot chunk").copied().unwrap_or(0)
}

/// Every live message can be read on every member.
fn assert_readable(cluster: &mut Cluster) {
    for id in cluster.alive() {
        let ledger = cluster.ledger(id);
        for (index, number) in ledger.messages.iter().filter(|(index, _)| ledger.live.contains(index)) {
            let payload = cluster.host(id).payload(GROUP, *index).unwrap();
            assert_eq!(payload[..9], put(*number)[..], "member {id}, index {index}");
        }
    }
}

fn assert_caught_up(cluster: &mut Cluster) {
    let leader = cluster.leading().unwrap();
    cluster.run_until(5_000, |cluster| cluster.status(3).applied == cluster.status(leader).applied);
    cluster.run_ms(300);
    cluster.assert_converged();
    assert_readable(cluster);
}

#[test]
fn a_checkpoint_shortens_the_log_and_a_restart_begins_there() {
    let mut cluster = Cluster::with_config(3, 1, config());
    cluster.create(&[1, 2, 3], Some(1));
    cluster.run_ms(50);
    for number in 0..300 {
        cluster.propose(1, put(number)).unwrap();
        cluster.run_ms(1);
    }
    cluster.run_ms(500);
    for id in 1..=3 {
        let status = cluster.status(id);
        assert!(status.compacted >= 200, "{status:?}");
        cluster.crash(id);
    }
    for id in 1..=3 {
        cluster.restart(id);
    }
    cluster.run_until(3_000, |cluster| cluster.leading().is_some());
    cluster.run_ms(500);
    cluster.assert_converged();
    assert_eq!(cluster.ledger(2).numbers(), (0..300).collect::<Vec<_>>());
    assert_readable(&mut cluster);
}

#[test]
fn the_log_is_kept_for_a_live_member_that_lags() {
    let mut cluster = Cluster::with_config(3, 2, config());
    cluster.create(&[1, 2, 3], Some(1));
    cluster.run_ms(50);
    cluster.isolate(3);
    cluster.put(1, 0..200);
    cluster.run_ms(400);
    for id in [1, 2] {
        assert!(cluster.status(id).checkpoint > 100);
        assert!(cluster.status(id).compacted <= 2, "{:?}", cluster.status(id));
    }
    cluster.heal();
    cluster.run_ms(1_500);
    cluster.assert_converged();
    assert_eq!(cluster.members[&3].snapshots_installed, 0);
}

#[test]
fn a_log_over_its_limit_is_compacted_although_a_live_member_lags() {
    let config = HostConfig { max_log_bytes: 5_000, ..config() };
    let mut cluster = Cluster::with_config(3, 3, config);
    cluster.create(&[1, 2, 3], Some(1));
    cluster.run_ms(50);
    cluster.isolate(3);
    for number in 0..200 {
        cluster.propose(1, put_sized(number, 100)).unwrap();
    }
    cluster.run_ms(300);
    assert!(cluster.status(1).compacted > 100);
    come_back(&mut cluster);
    assert_caught_up(&mut cluster);
    assert_eq!(cluster.members[&3].snapshots_installed, 1);
}

#[test]
fn a_member_that_was_away_gets_a_snapshot_with_the_messages_that_it_lacks() {
    let mut cluster = far_behind(4);
    come_back(&mut cluster);
    assert_caught_up(&mut cluster);
    assert_eq!(cluster.members[&3].snapshots_installed, 1);
    let bodies = cluster.members[&3].disk.bodies();
    assert!(bodies.len() > 100);
    // What the journal kept is enough for a restart.
    cluster.crash(3);
    cluster.restart(3);
    assert_caught_up(&mut cluster);
}

#[test]
fn payloads_that_are_there_already_are_not_sent_again() {
    let mut full = far_behind(5);
    let mut half = far_behind(5);
    come_back(&mut full);
    assert_caught_up(&mut full);
    // The second time around, member 3 lacks only what came since.
    for cluster in [&mut full, &mut half] {
        cluster.run_ms(10);
    }
    let first = chunks(&full);
    full.isolate(3);
    full.suspect(3);
    for number in 500..620 {
        full.propose(1, put_sized(number, 1)).unwrap();
        full.run_ms(1);
    }
    full.run_ms(100);
    come_back(&mut full);
    assert_caught_up(&mut full);
    assert_eq!(full.members[&3].snapshots_installed, 2);
    let second = chunks(&full) - first;
    let machine = full.ledger(1).messages.len() as u64 * 17 / 150;
    assert!(second < machine + 15, "{second} chunks for a machine of {machine}, {first} the first time");
}

#[test]
fn a_snapshot_goes_on_where_it_was_cut() {
    let mut whole = far_behind(6);
    come_back(&mut whole);
    assert_caught_up(&mut whole);
    let total = chunks(&whole);
    assert!(total > 30, "{total}");
    for percent in [10, 50, 90] {
        let mut cluster = far_behind(6);
        come_back(&mut cluster);
        cluster.run_until(2_000, |cluster| chunks(cluster) >= total * percent / 100);
        cluster.isolate(3);
        cluster.run_ms(2_000);
        cluster.heal();
        assert_caught_up(&mut cluster);
        assert_eq!(cluster.members[&3].snapshots_installed, 1);
        let sent = chunks(&cluster);
        assert!(sent <= total + 4, "{sent} chunks instead of {total}, cut at {percent} %");
    }
}

#[test]
fn a_snapshot_survives_lost_and_reordered_chunks() {
    for seed in 0..5 {
        let mut cluster = far_behind(seed);
        cluster.loss_percent = 20;
        cluster.delay_us = (200, 8_000);
        come_back(&mut cluster);
        let leader = cluster.leading().unwrap();
        cluster.run_until(60_000, |cluster| cluster.status(3).applied == cluster.status(leader).applied);
        cluster.loss_percent = 0;
        cluster.run_ms(2_000);
        cluster.assert_converged();
        assert_readable(&mut cluster);
    }
}

#[test]
fn a_leader_change_in_the_middle_of_a_snapshot_starts_another_one() {
    for percent in [10, 50, 90] {
        let mut whole = far_behind(7);
        come_back(&mut whole);
        assert_caught_up(&mut whole);
        let total = chunks(&whole);
        let mut cluster = far_behind(7);
        come_back(&mut cluster);
        cluster.run_until(2_000, |cluster| chunks(cluster) >= total * percent / 100);
        cluster.crash(1);
        cluster.suspect(1);
        cluster.run_until(2_000, |cluster| cluster.leading().is_some());
        assert_caught_up(&mut cluster);
        cluster.restart(1);
        cluster.run_ms(1_000);
        assert_caught_up(&mut cluster);
    }
}

#[test]
fn a_receiver_that_restarts_in_the_middle_of_a_snapshot_gets_it_from_the_start() {
    let mut cluster = far_behind(8);
    come_back(&mut cluster);
    cluster.run_until(2_000, |cluster| chunks(cluster) >= 20);
    cluster.crash(3);
    cluster.run_ms(100);
    cluster.restart(3);
    cluster.run_until(5_000, |cluster| cluster.members[&3].snapshots_installed == 1);
    assert_caught_up(&mut cluster);
}

#[test]
fn messages_that_are_taken_while_a_snapshot_is_sent_stay_readable_for_it() {
    let mut cluster = far_behind(9);
    come_back(&mut cluster);
    cluster.run_until(2_000, |cluster| chunks(cluster) >= 5);
    let live = cluster.ledger(1).live;
    for index in live.into_iter().rev() {
        cluster.propose(1, take(index)).unwrap();
        cluster.run_ms(1);
    }
    assert_caught_up(&mut cluster);
    assert_eq!(cluster.members[&3].snapshots_installed, 1);
    assert_eq!(cluster.kinds["snapshot offer"], 1, "the transfer did not have to start again");
    // Afterwards they are given up.
    for number in 1_000..1_100 {
        cluster.propose(1, put(number)).unwrap();
        cluster.run_ms(1);
    }
    cluster.run_ms(2_000);
    assert!(cluster.members[&1].disk.bodies().iter().all(|index| *index > 200));
}

#[test]
fn a_crash_at_any_moment_of_an_installation_leaves_a_replica_that_can_go_on() {
    for step in 0..40 {
        let mut cluster = far_behind(10);
        come_back(&mut cluster);
        cluster.run_until(2_000, |cluster| chunks(cluster) >= 40);
        cluster.run_ms(step);
        cluster.crash(3);
        cluster.restart(3);
        assert!(cluster.members[&3].quarantined.is_empty(), "{:?}", cluster.members[&3].quarantined);
        assert_caught_up(&mut cluster);
    }
}
