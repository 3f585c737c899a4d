//! What may be said when: the seam where Raft brokers have lost data.

use crate::harness::{Cluster, GROUP};
use crate::ledger::put;
use holdfast_journal::{CheckpointStored, Upkeep};
use holdfast_queue::ids::{MemberId, ReplicaId};
use holdfast_replica::HostConfig;

#[test]
fn nothing_is_confirmed_before_a_majority_has_it_on_disk() {
    let mut cluster = Cluster::settled(1);
    for id in [1, 3] {
        cluster.member(id).stalled = true;
    }
    cluster.put(1, 0..1);
    cluster.run_ms(100);
    // The leader sent it at once and one follower holds it; the leader itself does not count yet.
    assert_eq!(cluster.members[&2].disk.log().last(), Some(&(3, 1)));
    assert_eq!(cluster.confirmed(), 0);
    assert_eq!(cluster.status(1).commit, 2);
    cluster.member(1).stalled = false;
    cluster.run_ms(10);
    assert_eq!(cluster.confirmed(), 1);
}

#[test]
fn two_followers_commit_while_the_leaders_disk_is_slow_but_the_leader_applies_only_what_it_holds() {
    let mut cluster = Cluster::settled(2);
    cluster.member(1).stalled = true;
    cluster.put(1, 0..1);
    cluster.run_ms(100);
    assert_eq!(cluster.status(1).commit, 3);
    assert_eq!(cluster.status(1).applied, 2);
    cluster.member(1).stalled = false;
    cluster.run_ms(10);
    assert_eq!(cluster.status(1).applied, 3);
}

#[test]
fn a_follower_answers_only_after_its_write_is_done() {
    let mut cluster = Cluster::settled(3);
    cluster.isolate(3);
    cluster.member(2).stalled = true;
    cluster.put(1, 0..1);
    cluster.run_ms(200);
    assert_eq!(cluster.status(1).peers[1].matched, 2);
    cluster.member(2).stalled = false;
    cluster.run_ms(20);
    assert_eq!(cluster.status(1).peers[1].matched, 3);
}

#[test]
fn a_vote_leaves_only_after_it_is_durable() {
    let mut cluster = Cluster::settled(4);
    cluster.crash(1);
    cluster.member(2).stalled = true;
    cluster.member(3).stalled = true;
    cluster.suspect(1);
    cluster.run_ms(3_000);
    assert_eq!(cluster.leading(), None);
    assert_eq!(cluster.members[&2].disk.hard_state().unwrap().term, 1);
    for id in [2, 3] {
        cluster.member(id).stalled = false;
    }
    cluster.run_until(2_000, |cluster| cluster.leading().is_some());
}

#[test]
fn a_single_voter_says_nothing_in_a_term_whose_vote_is_not_durable() {
    let mut cluster = Cluster::new(2, 5);
    cluster.create(&[1], Some(1));
    cluster.run_ms(20);
    cluster.with(2, |host, now| host.join_group(crate::harness::key(), 1, Default::default(), now)).unwrap();
    let add = holdfast_replica::MembershipChange::AddLearner(ReplicaId { member: MemberId(2), generation: 1 });
    cluster.with(1, |host, _| host.change_membership(GROUP, &add)).unwrap();
    cluster.run_until(1_000, |cluster| cluster.status(2).leader == Some(MemberId(1)));
    cluster.put(1, 0..3);
    cluster.run_ms(100);
    cluster.crash(1);
    cluster.restart(1);
    cluster.member(1).stalled = true;
    cluster.run_until(2_000, |cluster| cluster.status(1).term == 2);
    let sent = cluster.sent;
    cluster.run_ms(50);
    assert_eq!(cluster.sent, sent, "the leader of term 2 speaks before its vote is durable");
    cluster.crash(1);
    cluster.member(1).stalled = false;
    cluster.restart(1);
    cluster.run_until(2_000, |cluster| cluster.leading() == Some(1));
    cluster.put(1, 3..6);
    cluster.run_ms(500);
    cluster.assert_converged();
}

#[test]
fn entries_that_replace_others_before_these_are_durable_are_the_ones_that_count() {
    for seed in 0..30 {
        let mut cluster = Cluster::settled(seed);
        // Member 3 takes entries of term 1 that it cannot write, and that nobody else gets.
        cluster.member(3).stalled = true;
        cluster.cut.insert((1, 2));
        cluster.cut.insert((2, 1));
        cluster.put(1, 0..5);
        cluster.run_ms(20);
        cluster.crash(1);
        cluster.suspect(1);
        // Member 2 cannot win against 3, which has more; so 1 comes back without what it had not written, or with it.
        cluster.heal();
        cluster.restart(1);
        cluster.run_ms(2_000);
        let leader = cluster.leading().expect("two members with working disks elect a leader");
        cluster.put(leader, 100..105);
        cluster.run_ms(100);
        // Now the disk reports one batch after the other: first the old entries, then those that replaced them.
        for _ in 0..50 {
            cluster.complete_write(3);
            cluster.run_ms(1);
        }
        cluster.member(3).stalled = false;
        cluster.run_ms(1_000);
        cluster.assert_converged();
        let logs: Vec<_> = (1..=3).map(|id| cluster.members[&id].disk.log()).collect();
        assert!(logs.iter().all(|log| *log == logs[0]), "{logs:?}");
    }
}

#[test]
fn a_divergent_tail_is_replaced_by_what_was_committed() {
    let mut cluster = Cluster::settled(7);
    cluster.put(1, 0..5);
    cluster.run_ms(100);
    cluster.isolate(1);
    cluster.put(1, 50..60);
    cluster.run_ms(10);
    cluster.suspect(1);
    cluster.run_until(2_000, |cluster| matches!(cluster.leading(), Some(2 | 3)));
    let leader = cluster.leading().unwrap();
    cluster.put(leader, 5..9);
    cluster.run_ms(100);
    cluster.heal();
    cluster.hear(1);
    cluster.run_ms(1_000);
    cluster.assert_converged();
    assert_eq!(cluster.ledger(1).numbers(), (0..9).collect::<Vec<_>>());
}

#[test]
fn power_loss_of_all_members_keeps_what_was_confirmed() {
    for seed in 0..20 {
        let mut cluster = Cluster::settled(seed);
        cluster.disk_us = (1_000, 5_000);
        cluster.put(1, 0..50);
        cluster.run_ms(3);
        cluster.put(1, 50..60);
        cluster.run_ms(seed % 5);
        for id in 1..=3 {
            cluster.crash(id);
        }
        for id in [2, 3, 1] {
            cluster.restart(id);
            cluster.run_ms(100);
        }
        cluster.run_until(3_000, |cluster| cluster.leading().is_some());
        cluster.run_ms(500);
        cluster.assert_converged();
    }
}

#[test]
fn payloads_are_read_back_from_disk_when_memory_has_no_room() {
    let config = holdfast_replica::HostConfig { cache_bytes: 0, ..Default::default() };
    let mut cluster = Cluster::with_config(3, 9, config);
    cluster.create(&[1, 2, 3], Some(1));
    cluster.run_ms(50);
    cluster.isolate(3);
    cluster.put(1, 0..300);
    cluster.run_ms(100);
    for index in 3..303 {
        assert_eq!(cluster.host(1).payload(GROUP, index).unwrap(), put(index - 3));
    }
    cluster.heal();
    cluster.run_ms(1_000);
    cluster.assert_converged();
}

#[test]
fn a_reader_that_fails_stops_the_group_and_no_other() {
    let mut cluster = Cluster::settled(10);
    cluster.put(1, 0..10);
    cluster.run_ms(100);
    let mut groups = cluster.members[&2].disk.recovered();
    let mut broken = groups.remove(0);
    for entry in &mut broken.entries {
        entry.location.offset = u32::MAX;
    }
    cluster.crash(2);
    let mut sound = broken.clone();
    sound.entries.clear();
    sound.key.group = 99;
    sound.hard_state = sound.hard_state.map(|state| holdfast_journal::HardState { commit: 1, ..state });
    let (now, reader) = (cluster.now, cluster.members[&2].disk.reader.clone());
    let mut host = holdfast_replica::Host::new(Default::default(), MemberId(2), 1, reader, now);
    host.restore_group(broken, now).unwrap();
    host.restore_group(sound, now).unwrap();
    cluster.isolate(2);
    cluster.member(2).host = Some(host);
    cluster.pump(2);
    cluster.run_ms(11_000);
    assert_eq!(cluster.members[&2].quarantined.len(), 1);
    assert_eq!(cluster.role(2), holdfast_replica::Role::Quarantined);
    let other = cluster.host(2).status(holdfast_queue::ids::GroupId(99)).unwrap();
    assert_ne!(other.role, holdfast_replica::Role::Quarantined);
    // The others have all that cannot be read here.
    cluster.heal();
    cluster.run_until(5_000, |cluster| cluster.role(2) == holdfast_replica::Role::Follower);
}

#[test]
fn a_leader_that_finds_damage_says_so_and_the_others_go_on_at_once() {
    let config = holdfast_replica::HostConfig { cache_bytes: 0, ..Default::default() };
    let mut cluster = Cluster::with_config(3, 11, config);
    cluster.create(&[1, 2, 3], Some(1));
    cluster.run_ms(50);
    cluster.isolate(3);
    cluster.put(1, 0..50);
    cluster.run_ms(100);
    cluster.members[&1].disk.damage(20);
    cluster.heal();
    cluster.run_until(1_000, |cluster| cluster.members[&1].mended == 1);
    cluster.run_until(800, |cluster| cluster.leading() == Some(2));
    cluster.run_ms(500);
    assert_eq!(cluster.ledger(2).numbers().len(), 50);
    assert_eq!(cluster.ledger(3), cluster.ledger(2));
}

#[test]
fn only_the_report_of_the_checkpoint_that_is_waited_for_lets_the_log_be_compacted() {
    let mut cluster = Cluster::with_config(1, 8, HostConfig { checkpoint_entries: 10, ..HostConfig::default() });
    cluster.create(&[1], Some(1));
    cluster.run_ms(100);
    cluster.member(1).disk.holds_checkpoints = true;
    cluster.put(1, 0..30);
    cluster.run_ms(500);
    let born = (1, 1);
    let known = |cluster: &mut Cluster| (cluster.status(1).checkpoint, cluster.status(1).compacted);
    assert_eq!(known(&mut cluster), born, "nothing is stored yet");
    let report = |cluster: &mut Cluster, checkpoint: CheckpointStored| {
        let upkeep = Upkeep { checkpoints: vec![checkpoint], ..Upkeep::default() };
        cluster.with(1, |host, now| host.handle_upkeep(&upkeep, now));
        cluster.run_ms(500);
    };
    let stored = cluster.member(1).disk.store_checkpoints();
    let [stored] = stored[..] else { panic!("one checkpoint at a time: {stored:?}") };
    report(&mut cluster, CheckpointStored { id: stored.id + 1, ..stored });
    assert_eq!(known(&mut cluster), born, "it may be of an earlier life");
    report(&mut cluster, stored);
    let (checkpoint, compacted) = known(&mut cluster);
    assert!(checkpoint > 1 && compacted == checkpoint, "{checkpoint}, {compacted}");
    report(&mut cluster, stored);
    assert_eq!(known(&mut cluster), (checkpoint, compacted), "it was told once");
}

#[test]
fn after_a_checkpoint_for_which_there_was_no_room_the_next_one_is_taken() {
    let mut cluster = Cluster::with_config(1, 9, HostConfig { checkpoint_entries: 10, ..HostConfig::default() });
    cluster.create(&[1], Some(1));
    cluster.run_ms(100);
    cluster.member(1).disk.holds_checkpoints = true;
    cluster.put(1, 0..30);
    cluster.run_ms(500);
    let stored = cluster.member(1).disk.store_checkpoints();
    let checkpoints = vec![CheckpointStored { stored: false, ..stored[0] }];
    cluster.with(1, |host, now| host.handle_upkeep(&Upkeep { checkpoints, ..Upkeep::default() }, now));
    assert_eq!(cluster.status(1).checkpoint, 1);
    cluster.member(1).disk.holds_checkpoints = false;
    cluster.put(1, 30..60);
    cluster.run_ms(500);
    assert!(cluster.status(1).checkpoint > 30);
}
