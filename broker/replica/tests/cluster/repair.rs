//! Replicas whose disk is damaged.

use holdfast_journal::{Damage, Upkeep};
use holdfast_queue::ids::MemberId;
use holdfast_replica::MembershipChange::{AddLearner, Promote, Remove};
use holdfast_replica::{HostConfig, PayloadError, Role};

use crate::harness::{Cluster, GROUP, key};

/// Member 3 starts again and finds that its disk has lost its vote.
fn without_its_vote(seed: u64) -> Cluster {
    let mut cluster = Cluster::settled(seed);
    cluster.put(1, 0..50);
    cluster.run_ms(100);
    cluster.crash(3);
    cluster.suspect(3);
    cluster.member(3).disk.lose_vote();
    cluster.restart(3);
    cluster
}

#[test]
fn a_replica_without_its_vote_neither_votes_nor_acknowledges_nor_campaigns() {
    let mut cluster = without_its_vote(1);
    assert_eq!(cluster.role(3), Role::Quarantined);
    assert_eq!(cluster.status(3).generation, Some(0), "it still knows which replica it is");
    cluster.put(1, 50..60);
    cluster.run_ms(200);
    assert_eq!(cluster.confirmed(), 60, "two of three go on");
    cluster.crash(1);
    cluster.suspect(1);
    cluster.run_ms(10_000);
    assert_eq!(cluster.leading(), None, "member 2 alone is no majority, and 3 gives no vote");
    cluster.restart(1);
    cluster.run_until(5_000, |cluster| cluster.leading().is_some());
}

#[test]
fn a_replica_without_its_vote_is_let_go_and_its_member_seeded_anew_as_somebody_else() {
    let mut cluster = without_its_vote(2);
    let old = cluster.current_replica(3);
    cluster.with(1, |host, _| host.change_membership(GROUP, &Remove(old))).unwrap();
    cluster.run_ms(100);
    assert_eq!(cluster.status(1).voters.len(), 2);
    cluster.put(1, 50..70);
    cluster.rejoin(3);
    let new = cluster.current_replica(3);
    assert_eq!((new.member, new.generation), (MemberId(3), 1));
    cluster.with(1, |host, _| host.change_membership(GROUP, &AddLearner(new))).unwrap();
    cluster.run_until(5_000, |cluster| cluster.with(1, |host, _| host.change_membership(GROUP, &Promote(new))).is_ok());
    cluster.run_ms(1_000);
    cluster.assert_converged();
    // It is as good as any other now: with one of the others gone it keeps the group going.
    cluster.crash(1);
    cluster.suspect(1);
    cluster.run_until(5_000, |cluster| cluster.leading().is_some());
    let leader = cluster.leading().unwrap();
    cluster.put(leader, 70..80);
    cluster.run_ms(200);
    assert_eq!(cluster.confirmed(), 80);
}

/// Two voters, of which either was damaged while both were off. One alone is no majority, so nobody leads before the
/// damaged one takes part again; and it takes no part before it has everything.
#[test]
fn a_group_of_two_with_one_damaged_record_heals_by_itself_and_has_lost_nothing() {
    for (seed, damaged) in [(3, 1), (4, 2), (5, 1), (6, 2)] {
        let mut cluster = Cluster::new(2, seed);
        cluster.create(&[1, 2], Some(1));
        cluster.run_until(5_000, |cluster| cluster.leading().is_some());
        cluster.put(1, 0..50);
        cluster.run_ms(200);
        assert_eq!(cluster.confirmed(), 50);
        for id in [1, 2] {
            cluster.crash(id);
        }
        let log: Vec<u64> = cluster.member(damaged).disk.log().iter().map(|(index, _)| *index).collect();
        cluster.member(damaged).disk.lose(&[log[20]]);
        cluster.restart(damaged);
        cluster.run_ms(3_000);
        assert_eq!(cluster.role(damaged), Role::Quarantined, "it waits for the other");
        cluster.restart(3 - damaged);
        cluster.run_until(5_000, |cluster| cluster.leading().is_some());
        let leader = cluster.leading().unwrap();
        cluster.put(leader, 50..60);
        cluster.run_ms(1_000);
        assert_eq!(cluster.confirmed(), 60);
        cluster.assert_converged();
    }
}

/// What a majority has confirmed is on the damaged disk and on one that is off. The third never had it, and must not lead
/// with the help of the damaged one, however long that takes.
#[test]
fn a_replica_that_lost_what_it_acknowledged_elects_nobody_before_it_has_it_again() {
    let mut cluster = Cluster::settled(7);
    cluster.put(1, 0..20);
    cluster.run_ms(200);
    cluster.isolate(2);
    cluster.put(1, 20..40);
    cluster.run_ms(200);
    assert_eq!(cluster.confirmed(), 40);
    cluster.crash(1);
    cluster.crash(3);
    let log: Vec<u64> = cluster.member(3).disk.log().iter().map(|(index, _)| *index).collect();
    cluster.member(3).disk.lose(&log[30..33]);
    cluster.heal();
    cluster.restart(3);
    cluster.run_ms(15_000);
    assert_eq!(cluster.leading(), None);
    assert!(cluster.host(3).is_quarantined(GROUP), "it has waited for long, and asks to be replaced");
    cluster.restart(1);
    cluster.run_until(5_000, |cluster| cluster.leading().is_some());
    cluster.run_until(5_000, |cluster| cluster.role(3) != Role::Quarantined);
    cluster.run_ms(1_000);
    assert_eq!(cluster.confirmed(), 40);
    cluster.assert_converged();
}

/// Below the checkpoint only what the machine needs has to come back: a message that is still queued, as a body; entries
/// that nobody needs are not asked for.
#[test]
fn a_message_below_the_checkpoint_comes_back_and_what_nobody_needs_is_let_go() {
    let config = HostConfig { checkpoint_entries: 10, ..HostConfig::default() };
    let mut cluster = Cluster::with_config(3, 8, config);
    cluster.create(&[1, 2, 3], Some(1));
    cluster.run_until(5_000, |cluster| cluster.leading().is_some());
    cluster.put(1, 0..45);
    cluster.run_ms(2_000);
    cluster.crash(3);
    cluster.suspect(3);
    let bodies = cluster.member(3).disk.bodies();
    assert!(bodies.len() > 10, "{bodies:?}");
    cluster.member(3).disk.lose(&[bodies[3], bodies[9]]);
    cluster.restart(3);
    cluster.run_until(5_000, |cluster| cluster.role(3) == Role::Follower);
    let payload = |cluster: &mut Cluster, id: u64| cluster.host(id).payload(GROUP, bodies[3]).unwrap();
    assert_eq!(payload(&mut cluster, 3), payload(&mut cluster, 1));
    cluster.run_ms(1_000);
    cluster.assert_converged();
}

/// Members of which each keeps nothing in memory, with `count` messages in the log, all applied.
pub fn running(members: u64, seed: u64, count: u64, checkpoint_entries: u64) -> Cluster {
    let config = HostConfig { checkpoint_entries, cache_bytes: 0, ..HostConfig::default() };
    let mut cluster = Cluster::with_config(members, seed, config);
    cluster.create(&(1..=members).collect::<Vec<_>>(), Some(1));
    cluster.run_until(5_000, |cluster| cluster.leading().is_some());
    // One entry each.
    for number in 0..count {
        cluster.put(1, number..number + 1);
        cluster.run_ms(20);
    }
    cluster.run_ms(2_000);
    assert_eq!(cluster.confirmed() as u64, count);
    cluster
}

/// The scrub of a running member finds that these records of its disk are damaged.
pub fn rot(cluster: &mut Cluster, id: u64, indexes: &[u64]) {
    indexes.iter().for_each(|index| cluster.member(id).disk.damage(*index));
    let damage = |index: &u64| Damage { key: key(), index: *index, why: "a rotten sector".to_owned() };
    let upkeep = Upkeep { damaged: indexes.iter().map(damage).collect(), ..Upkeep::default() };
    cluster.with(id, |host, now| host.handle_upkeep(&upkeep, now));
}

/// Whatever `id` has of these is what it should be.
fn assert_same(cluster: &mut Cluster, id: u64, other: u64, indexes: &[u64]) {
    for index in indexes {
        match cluster.host(id).payload(GROUP, *index) {
            Ok(payload) => assert_eq!(payload, cluster.host(other).payload(GROUP, *index).unwrap(), "{index}"),
            // No message is in it, so it needed no place.
            Err(error) => assert_eq!(error, PayloadError::NoPayload(*index)),
        }
    }
}

#[test]
fn a_running_follower_whose_disk_rots_is_mended_by_its_peers_and_not_copied_anew() {
    for (seed, checkpoint_entries) in [(31, 10), (32, 100_000)] {
        let mut cluster = running(3, seed, 45, checkpoint_entries);
        let bodies = cluster.member(3).disk.bodies();
        let log: Vec<u64> = cluster.member(3).disk.log().iter().map(|(index, _)| *index).collect();
        let from = |all: &[u64], at: usize| all.get(at).copied();
        let rotten: Vec<u64> =
            [from(&bodies, 3), from(&bodies, 9), from(&log, 4), from(&log, 30)].into_iter().flatten().collect();
        rot(&mut cluster, 3, &rotten);
        assert_eq!(cluster.role(3), Role::Quarantined, "it takes no part before it has them again");
        cluster.put(1, 45..50);
        cluster.run_until(2_000, |cluster| cluster.role(3) == Role::Follower);
        assert_same(&mut cluster, 3, 1, &rotten);
        cluster.put(1, 50..60);
        cluster.run_ms(2_000);
        assert_eq!((cluster.confirmed(), cluster.leading()), (60, Some(1)));
        let member = cluster.member(3);
        assert_eq!((member.mended, member.snapshots_installed, member.quarantined.len()), (1, 0, 0));
        cluster.assert_converged();
    }
}

#[test]
fn a_leader_whose_disk_rots_leaves_the_lead_and_is_mended_in_groups_of_two_and_three() {
    for (seed, members, checkpoint_entries) in [(33, 2, 10), (34, 2, 100_000), (35, 3, 10), (36, 3, 100_000)] {
        let mut cluster = running(members, seed, 30, checkpoint_entries);
        let log: Vec<u64> = cluster.member(1).disk.log().iter().map(|(index, _)| *index).collect();
        let bodies = cluster.member(1).disk.bodies();
        let rotten: Vec<u64> = bodies.first().into_iter().chain(log.first()).copied().collect();
        rot(&mut cluster, 1, &rotten);
        assert_eq!(cluster.leading(), None);
        cluster.run_until(5_000, |cluster| cluster.leading().is_some() && cluster.role(1) != Role::Quarantined);
        assert_same(&mut cluster, 1, 2, &rotten);
        let leader = cluster.leading().unwrap();
        cluster.put(leader, 30..40);
        cluster.run_ms(2_000);
        assert_eq!(cluster.confirmed(), 40);
        assert_eq!((cluster.member(1).mended, cluster.member(1).snapshots_installed), (1, 0));
        cluster.assert_converged();
    }
}

#[test]
fn both_voters_of_a_group_of_two_that_lost_different_things_mend_each_other() {
    for (seed, checkpoint_entries) in [(37, 10), (38, 100_000)] {
        let mut cluster = running(2, seed, 40, checkpoint_entries);
        let here = |cluster: &mut Cluster, id: u64| -> Vec<u64> {
            let bodies = cluster.member(id).disk.bodies();
            bodies.into_iter().chain(cluster.member(id).disk.log().iter().map(|(index, _)| *index)).collect()
        };
        let (first, second) = (here(&mut cluster, 1), here(&mut cluster, 2));
        let (first, second) = ([first[3], first[20]], [second[4], second[21]]);
        rot(&mut cluster, 1, &first);
        rot(&mut cluster, 2, &second);
        cluster.run_until(5_000, |cluster| cluster.leading().is_some());
        assert_same(&mut cluster, 1, 2, &first);
        assert_same(&mut cluster, 2, 1, &second);
        let leader = cluster.leading().unwrap();
        cluster.put(leader, 40..50);
        cluster.run_ms(2_000);
        assert_eq!(cluster.confirmed(), 50);
        cluster.assert_converged();
    }
}

#[test]
fn what_nobody_has_any_more_is_not_made_up_and_the_replica_asks_to_be_replaced() {
    let mut cluster = running(2, 39, 20, 100_000);
    let log = cluster.member(1).disk.log();
    let both = [log[10].0];
    rot(&mut cluster, 1, &both);
    rot(&mut cluster, 2, &both);
    cluster.run_ms(9_000);
    assert!(!cluster.host(1).is_quarantined(GROUP) && !cluster.host(2).is_quarantined(GROUP));
    cluster.run_ms(2_000);
    assert!(cluster.host(1).is_quarantined(GROUP) && cluster.host(2).is_quarantined(GROUP));
    assert_eq!(cluster.leading(), None);
}

#[test]
fn a_mended_replica_that_is_killed_at_any_time_starts_with_all_that_it_had() {
    for (seed, after_us) in [(40, 0), (41, 300), (42, 900), (43, 2_000), (44, 6_000)] {
        let mut cluster = running(2, seed, 30, 100_000);
        let log: Vec<u64> = cluster.member(1).disk.log().iter().map(|(index, _)| *index).collect();
        rot(&mut cluster, 1, &[log[5], log[17]]);
        cluster.run_us(after_us);
        cluster.crash(1);
        cluster.run_ms(100);
        cluster.restart(1);
        cluster.run_until(5_000, |cluster| cluster.leading().is_some());
        let leader = cluster.leading().unwrap();
        cluster.put(leader, 30..40);
        cluster.run_ms(2_000);
        assert_eq!(cluster.confirmed(), 40);
        cluster.assert_converged();
    }
}

/// Reading an entry of the log to apply or to send it finds the damage; Raft itself has no way to go on without it.
#[test]
fn damage_that_is_found_by_reading_the_log_is_mended_too() {
    let mut cluster = running(3, 45, 20, 100_000);
    cluster.isolate(3);
    cluster.put(1, 20..30);
    cluster.run_ms(500);
    let last = cluster.member(1).disk.log().last().unwrap().0;
    cluster.member(1).disk.damage(last);
    cluster.heal();
    cluster.run_until(5_000, |cluster| cluster.member(1).mended == 1);
    cluster.run_until(5_000, |cluster| cluster.leading().is_some());
    let leader = cluster.leading().unwrap();
    cluster.put(leader, 30..40);
    cluster.run_ms(2_000);
    assert_eq!(cluster.confirmed(), 40);
    cluster.assert_converged();
}
