//! Who leads, and since when.

use std::time::Duration;

use holdfast_queue::ids::{Incarnation, MemberId};
use holdfast_replica::{GroupBirth, ProposeError, Role, TransferError, group_key};

use crate::harness::{Cluster, GROUP, key};
use crate::ledger::{Ledger, put};

#[test]
fn a_group_is_led_by_the_chosen_member_without_an_election() {
    let mut cluster = Cluster::new(3, 1);
    cluster.create(&[1, 2, 3], Some(2));
    cluster.run_until(50, |cluster| cluster.leading() == Some(2));
    assert_eq!(cluster.status(2).term, 1);
    cluster.put(2, 0..10);
    cluster.run_ms(20);
    assert_eq!(cluster.confirmed(), 10);
    cluster.run_ms(200);
    cluster.assert_converged();
}

#[test]
fn without_a_chosen_leader_the_voters_elect_one() {
    let mut cluster = Cluster::new(3, 2);
    cluster.create(&[1, 2, 3], None);
    cluster.run_until(1_500, |cluster| cluster.leading().is_some());
}

#[test]
fn the_chosen_leader_is_silent_until_its_birth_record_is_durable() {
    let mut cluster = Cluster::new(3, 3);
    cluster.member(1).stalled = true;
    cluster.create(&[1, 2, 3], Some(1));
    cluster.run_ms(300);
    assert_eq!(cluster.role(1), Role::Forming);
    assert_eq!(cluster.propose(1, put(1)), Err(ProposeError::Busy));
    assert_eq!(cluster.sent, 0);
    cluster.member(1).stalled = false;
    cluster.run_until(50, |cluster| cluster.leading() == Some(1));
}

#[test]
fn a_chosen_leader_that_is_late_follows_the_leader_that_was_elected_meanwhile() {
    let mut cluster = Cluster::new(3, 3);
    cluster.member(1).stalled = true;
    cluster.create(&[1, 2, 3], Some(1));
    cluster.run_until(3_000, |cluster| matches!(cluster.leading(), Some(2 | 3)));
    let leader = cluster.leading().unwrap();
    cluster.put(leader, 0..5);
    cluster.member(1).stalled = false;
    cluster.run_ms(500);
    assert_eq!(cluster.leading(), Some(leader));
    cluster.assert_converged();
}

#[test]
fn a_birth_record_found_at_a_restart_makes_no_leader() {
    let mut cluster = Cluster::new(3, 4);
    cluster.create(&[1, 2, 3], Some(1));
    cluster.isolate(1);
    cluster.run_ms(50);
    cluster.crash(1);
    cluster.restart(1);
    cluster.run_ms(100);
    assert_eq!(cluster.role(1), Role::Follower);
    cluster.heal();
    cluster.run_until(3_000, |cluster| cluster.leading().is_some());
    let leader = cluster.leading().unwrap();
    assert!(cluster.status(leader).term > 1);
}

#[test]
fn a_birth_record_that_was_lost_may_be_written_again() {
    let mut cluster = Cluster::new(3, 5);
    cluster.member(1).stalled = true;
    cluster.create(&[1, 2, 3], Some(1));
    cluster.crash(1);
    cluster.member(1).stalled = false;
    cluster.restart(1);
    let birth = cluster.birth(&[1, 2, 3], Some(1));
    cluster.with(1, |host, now| host.create_group(birth, now)).unwrap();
    cluster.run_until(50, |cluster| cluster.leading() == Some(1));
}

#[test]
fn messages_for_a_group_that_is_not_known_yet_wait_for_it() {
    let mut cluster = Cluster::new(3, 6);
    let birth = cluster.birth(&[1, 2, 3], Some(1));
    for id in [1, 2] {
        let birth = birth.clone();
        cluster.with(id, |host, now| host.create_group(birth, now)).unwrap();
    }
    cluster.run_ms(20);
    cluster.with(3, |host, now| host.create_group(birth, now)).unwrap();
    cluster.run_ms(10);
    assert_eq!(cluster.status(3).leader, Some(MemberId(1)));
    assert_eq!(cluster.status(3).last, cluster.status(1).last);
}

#[test]
fn a_follower_takes_no_proposal_and_forwards_none() {
    let mut cluster = Cluster::settled(7);
    let sent = cluster.sent;
    let refused = cluster.propose(2, put(1));
    assert_eq!(refused, Err(ProposeError::NotLeader { leader: Some(MemberId(1)) }));
    assert_eq!(cluster.sent, sent);
}

#[test]
fn a_payload_of_the_hosts_own_kind_is_refused() {
    let mut cluster = Cluster::settled(8);
    assert_eq!(cluster.propose(1, vec![255, 1, 2].into()), Err(ProposeError::BadPayload));
    assert_eq!(cluster.propose(1, Vec::new().into()), Err(ProposeError::BadPayload));
}

#[test]
fn a_killed_leader_is_replaced_at_once_when_its_member_is_suspected() {
    for seed in 0..20 {
        let mut cluster = Cluster::settled(seed);
        cluster.put(1, 0..20);
        cluster.run_ms(2);
        cluster.crash(1);
        cluster.suspect(1);
        cluster.run_until(200, |cluster| cluster.leading().is_some());
        let leader = cluster.leading().unwrap();
        cluster.put(leader, 100..110);
        cluster.run_ms(300);
        cluster.restart(1);
        cluster.run_ms(500);
        cluster.assert_converged();
    }
}

#[test]
fn a_killed_leader_is_replaced_without_a_suspicion_too() {
    let mut cluster = Cluster::settled(9);
    cluster.crash(1);
    cluster.run_until(2_500, |cluster| cluster.leading().is_some());
}

#[test]
fn a_wrong_suspicion_changes_no_term() {
    let mut cluster = Cluster::settled(10);
    cluster.with(2, |host, now| host.member_suspected(MemberId(1), now));
    cluster.run_ms(3_000);
    assert_eq!(cluster.leading(), Some(1));
    assert_eq!(cluster.status(1).term, 1);
}

#[test]
fn a_stale_leader_lets_nothing_out_after_a_pause() {
    let mut cluster = Cluster::settled(11);
    cluster.put(1, 0..5);
    cluster.run_ms(50);
    // Proposed, sent and answered, but the answers arrive only after the pause.
    cluster.put(1, 5..10);
    cluster.pause(1);
    cluster.run_ms(1);
    cluster.suspect(1);
    cluster.run_until(2_000, |cluster| cluster.leading().is_some());
    cluster.run_ms(30_000);
    assert!(!cluster.may_emit(1));
    let before = cluster.truth.confirmed[&GROUP].clone();
    cluster.resume(1);
    assert!(!cluster.may_emit(1));
    let proposed = cluster.propose(1, put(99));
    cluster.complete_write(1);
    assert_eq!(cluster.truth.confirmed[&GROUP], before, "{proposed:?}");
    cluster.hear(1);
    cluster.run_ms(1_000);
    assert_ne!(cluster.leading(), Some(1));
    cluster.assert_converged();
    assert!(!cluster.ledger(2).numbers().contains(&99));
}

#[test]
fn a_leader_without_a_majority_withholds_effects_and_steps_down() {
    let mut cluster = Cluster::settled(12);
    cluster.put(1, 0..3);
    cluster.run_ms(20);
    cluster.isolate(1);
    cluster.run_ms(599);
    assert!(!cluster.may_emit(1));
    cluster.run_ms(1_500);
    assert_ne!(cluster.role(1), Role::Leader);
    cluster.heal();
    cluster.run_ms(1_000);
    cluster.assert_converged();
}

#[test]
fn terms_do_not_climb_while_a_link_flaps() {
    let mut cluster = Cluster::settled(13);
    for _ in 0..30 {
        cluster.isolate(3);
        cluster.run_ms(1_000);
        cluster.heal();
        cluster.run_ms(1_000);
    }
    assert_eq!(cluster.status(1).term, 1);
    assert_eq!(cluster.leading(), Some(1));
}

#[test]
fn leadership_goes_to_the_named_member() {
    let mut cluster = Cluster::settled(14);
    cluster.put(1, 0..10);
    cluster.with(1, |host, _| host.transfer_leader(GROUP, MemberId(3))).unwrap();
    cluster.run_until(200, |cluster| cluster.leading() == Some(3));
    cluster.put(3, 10..20);
    cluster.run_ms(300);
    cluster.assert_converged();
    assert_eq!(cluster.ledger(1).numbers().len(), 20);
}

#[test]
fn leadership_never_goes_to_a_member_that_lags_or_is_silent() {
    let mut cluster = Cluster::settled(15);
    let transfer = |cluster: &mut Cluster, to| cluster.with(1, |host, _| host.transfer_leader(GROUP, MemberId(to)));
    assert_eq!(transfer(&mut cluster, 9), Err(TransferError::NotAVoter(MemberId(9))));
    cluster.isolate(3);
    cluster.run_ms(700);
    assert_eq!(transfer(&mut cluster, 3), Err(TransferError::NotLive(MemberId(3))));
    cluster.put(1, 0..2_000);
    cluster.run_ms(500);
    cluster.heal();
    cluster.member(3).stalled = true;
    cluster.run_ms(400);
    assert!(matches!(transfer(&mut cluster, 3), Err(TransferError::Lagging { .. })));
    assert_eq!(cluster.leading(), Some(1));
}

#[test]
fn a_draining_member_hands_all_its_leaderships_away() {
    let mut cluster = Cluster::new(3, 16);
    for group in 10..30 {
        let key = group_key(holdfast_queue::ids::GroupId(group), Incarnation::default());
        let voters = [1, 2, 3].map(MemberId).to_vec();
        let birth =
            GroupBirth { key, voters, learners: Vec::new(), leader: Some(MemberId(1)), machine: Ledger::default() };
        for id in 1..=3 {
            let birth = birth.clone();
            cluster.with(id, |host, now| host.create_group(birth, now)).unwrap();
        }
    }
    cluster.run_ms(100);
    assert_eq!(cluster.host(1).leaderships(), 20);
    cluster.with(1, |host, now| host.drain(now + Duration::from_secs(5), now));
    cluster.run_until(1_000, |cluster| cluster.host(1).leaderships() == 0);
    cluster.run_ms(500);
    let (second, third) = (cluster.host(2).leaderships(), cluster.host(3).leaderships());
    assert_eq!(second + third, 20);
    assert!(second >= 5 && third >= 5, "{second} and {third}");
}

#[test]
fn a_leader_with_a_stalled_disk_hands_over() {
    let mut cluster = Cluster::settled(17);
    cluster.member(1).stalled = true;
    cluster.put(1, 0..3);
    cluster.run_until(2_500, |cluster| matches!(cluster.leading(), Some(2 | 3)));
    let leader = cluster.leading().unwrap();
    assert_eq!(cluster.ledger(leader).numbers(), [0, 1, 2]);
    cluster.member(1).stalled = false;
    cluster.run_ms(1_000);
    cluster.assert_converged();
}

#[test]
fn when_all_disks_stall_nobody_hands_over() {
    let mut cluster = Cluster::settled(19);
    for id in 1..=3 {
        cluster.member(id).stalled = true;
    }
    cluster.put(1, 0..3);
    cluster.run_ms(10_000);
    for id in 1..=3 {
        cluster.member(id).stalled = false;
    }
    cluster.run_ms(500);
    assert_eq!(cluster.leading(), Some(1));
    assert_eq!(cluster.status(1).term, 1);
    assert_eq!(cluster.confirmed(), 3);
}

#[test]
fn another_incarnation_is_reported_when_it_is_later_and_ignored_when_it_is_earlier() {
    let mut cluster = Cluster::settled(18);
    let mut later = key();
    later.incarnation.counter = 2;
    let birth = GroupBirth { key: later, ..cluster.birth(&[1, 2, 3], Some(2)) };
    cluster.with(2, |host, _| host.destroy_group(key()));
    cluster.with(2, |host, now| host.create_group(birth, now)).unwrap();
    cluster.run_ms(200);
    assert!(cluster.member(1).other_incarnations.contains(&2));
    assert!(cluster.member(2).other_incarnations.is_empty());
    assert_eq!(cluster.status(1).term, 1);
    assert_eq!(cluster.leading(), Some(1));
}
