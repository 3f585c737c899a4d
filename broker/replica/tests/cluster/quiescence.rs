//! Groups that have nothing to do, and what wakes them.

use holdfast_queue::ids::{BootId, GroupId, Incarnation, MemberId};
use holdfast_replica::{GroupBirth, group_key};

use crate::harness::Cluster;
use crate::ledger::{Ledger, put};

fn quiesced(seed: u64) -> Cluster {
    let mut cluster = Cluster::settled(seed);
    cluster.put(1, 0..10);
    cluster.run_until(5_000, |cluster| (1..=3).all(|id| cluster.status(id).quiesced));
    cluster
}

#[test]
fn an_idle_group_falls_silent() {
    let mut cluster = quiesced(1);
    cluster.run_ms(2_000);
    let sent = cluster.sent;
    cluster.run_ms(60_000);
    assert_eq!(cluster.sent, sent);
    assert!((1..=3).all(|id| cluster.host(id).next_deadline().is_none()));
    assert_eq!(cluster.leading(), Some(1));
}

#[test]
fn a_proposal_wakes_the_group_and_it_rests_again() {
    let mut cluster = quiesced(2);
    cluster.run_ms(10_000);
    cluster.propose(1, put(77)).unwrap();
    cluster.run_ms(10);
    assert_eq!(cluster.confirmed(), 11);
    assert!(!cluster.status(1).quiesced);
    cluster.run_until(3_000, |cluster| (1..=3).all(|id| cluster.status(id).quiesced));
    cluster.assert_converged();
}

#[test]
fn asking_a_quiesced_leader_for_its_lease_brings_the_lease_back() {
    let mut cluster = quiesced(10);
    cluster.run_ms(10_000);
    assert!(!cluster.may_emit(1));
    cluster.pump(1);
    cluster.run_ms(10);
    assert!(cluster.may_emit(1));
}

#[test]
fn a_quiesced_group_whose_leader_dies_elects_another() {
    let mut cluster = quiesced(3);
    cluster.run_ms(10_000);
    cluster.crash(1);
    cluster.suspect(1);
    cluster.run_until(300, |cluster| cluster.leading().is_some());
}

#[test]
fn a_quiesced_group_whose_leader_restarted_unnoticed_elects_another() {
    let mut cluster = quiesced(4);
    cluster.crash(1);
    cluster.restart(1);
    cluster.run_until(1_000, |cluster| cluster.leading().is_some());
    assert!(cluster.leading() != Some(1) || cluster.status(1).term > 1);
}

#[test]
fn a_quiesced_group_goes_on_without_a_dead_member_which_then_catches_up() {
    let mut cluster = quiesced(5);
    cluster.crash(3);
    cluster.suspect(3);
    cluster.put(1, 10..20);
    cluster.run_until(5_000, |cluster| (1..=2).all(|id| cluster.status(id).quiesced));
    cluster.run_ms(5_000);
    cluster.restart(3);
    cluster.run_until(1_000, |cluster| cluster.status(3).applied == cluster.status(1).applied);
    cluster.assert_converged();
    assert_eq!(cluster.leading(), Some(1));
}

#[test]
fn a_member_that_was_unreachable_and_is_heard_again_catches_up() {
    let mut cluster = quiesced(6);
    cluster.isolate(3);
    cluster.suspect(3);
    cluster.put(1, 10..20);
    cluster.run_until(5_000, |cluster| (1..=2).all(|id| cluster.status(id).quiesced));
    cluster.heal();
    cluster.hear(3);
    cluster.run_until(1_000, |cluster| cluster.status(3).applied == cluster.status(1).applied);
    assert_eq!(cluster.status(1).term, 1);
}

#[test]
fn a_leader_that_does_not_hear_a_live_member_stays_awake() {
    let mut cluster = Cluster::settled(11);
    cluster.cut.insert((3, 1));
    cluster.run_ms(5_000);
    assert!(!cluster.status(1).quiesced);
    cluster.heal();
    cluster.run_until(3_000, |cluster| (1..=3).all(|id| cluster.status(id).quiesced));
}

#[test]
fn a_lost_quiesce_message_costs_no_leadership() {
    for seed in 0..10 {
        let mut cluster = Cluster::settled(seed);
        cluster.put(1, 0..3);
        cluster.loss_percent = 30;
        cluster.run_ms(20_000);
        cluster.loss_percent = 0;
        cluster.run_until(10_000, |cluster| (1..=3).all(|id| cluster.status(id).quiesced));
    }
}

#[test]
fn a_thousand_quiesced_groups_cost_nothing() {
    let mut cluster = Cluster::new(3, 8);
    for group in 100..1_100 {
        let key = group_key(GroupId(group), Incarnation::default());
        let leader = Some(MemberId(group % 3 + 1));
        let voters = [1, 2, 3].map(MemberId).to_vec();
        let birth = GroupBirth { key, voters, learners: Vec::new(), leader, machine: Ledger::default() };
        for id in 1..=3 {
            let birth = birth.clone();
            cluster.with(id, |host, now| host.create_group(birth, now)).unwrap();
        }
    }
    cluster.run_ms(4_000);
    assert!((1..=3).all(|id| cluster.host(id).next_deadline().is_none()));
    let sent = cluster.sent;
    cluster.run_ms(60_000);
    assert_eq!(cluster.sent, sent);
    // All of them have a leader again soon after one member dies.
    cluster.crash(1);
    cluster.suspect(1);
    cluster.run_ms(1_500);
    let led = cluster.host(2).leaderships() + cluster.host(3).leaderships();
    assert_eq!(led, 1_000);
}

#[test]
fn a_returning_member_without_anything_new_wakes_nobody() {
    let mut cluster = quiesced(9);
    let boot = BootId(1_001 + 2_000);
    cluster.with(1, |host, now| host.member_returned(MemberId(3), boot, now));
    assert!(cluster.status(1).quiesced);
}
