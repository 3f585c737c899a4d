//! Members that come and go.

use holdfast_queue::ids::MemberId;
use holdfast_replica::MembershipChange::{AddLearner, Promote, Remove};
use holdfast_replica::{MembershipChange, ProposalId, ProposeError, Role};

use crate::harness::{Cluster, GROUP, key};
use crate::ledger::Ledger;

fn change(cluster: &mut Cluster, id: u64, change: MembershipChange) -> Result<ProposalId, ProposeError> {
    cluster.with(id, |host, _| host.change_membership(GROUP, change))
}

fn join(cluster: &mut Cluster, id: u64) {
    cluster.with(id, |host, now| host.join_group(key(), Ledger::default(), now)).unwrap();
}

/// A group of one that takes in `id` as a voter.
fn grow(cluster: &mut Cluster, id: u64) {
    let leader = cluster.leading().unwrap();
    join(cluster, id);
    change(cluster, leader, AddLearner(MemberId(id))).unwrap();
    cluster.run_until(2_000, |cluster| change(cluster, leader, Promote(MemberId(id))).is_ok());
    cluster.run_until(500, |cluster| cluster.status(id).voters.contains(&MemberId(id)));
}

#[test]
fn a_group_of_one_grows_to_three_voters() {
    let mut cluster = Cluster::new(3, 1);
    cluster.create(&[1], Some(1));
    cluster.run_ms(20);
    cluster.put(1, 0..10);
    cluster.run_ms(20);
    grow(&mut cluster, 2);
    cluster.put(1, 10..20);
    grow(&mut cluster, 3);
    cluster.put(1, 20..30);
    cluster.run_ms(300);
    cluster.assert_converged();
    assert_eq!(cluster.status(3).voters, [1, 2, 3].map(MemberId));
    cluster.crash(1);
    cluster.suspect(1);
    cluster.run_until(1_500, |cluster| cluster.leading().is_some());
    cluster.restart(1);
    cluster.run_ms(1_500);
    cluster.assert_converged();
}

#[test]
fn a_joiner_that_restarts_before_it_has_anything_goes_on_joining() {
    let mut cluster = Cluster::new(2, 2);
    cluster.create(&[1], Some(1));
    cluster.run_ms(20);
    join(&mut cluster, 2);
    cluster.run_ms(20);
    cluster.crash(2);
    cluster.restart(2);
    assert_eq!(cluster.role(2), Role::Learner);
    change(&mut cluster, 1, AddLearner(MemberId(2))).unwrap();
    cluster.put(1, 0..5);
    cluster.run_ms(1_000);
    cluster.assert_converged();
}

#[test]
fn changes_without_sense_are_refused_in_words() {
    let mut cluster = Cluster::settled(3);
    for bad in
        [AddLearner(MemberId(2)), Promote(MemberId(2)), Promote(MemberId(7)), Remove(MemberId(7)), Remove(MemberId(1))]
    {
        assert!(matches!(change(&mut cluster, 1, bad), Err(ProposeError::BadChange(_))), "{bad:?}");
    }
    let refused = change(&mut cluster, 2, AddLearner(MemberId(4)));
    assert_eq!(refused, Err(ProposeError::NotLeader { leader: Some(MemberId(1)) }));
}

#[test]
fn a_learner_that_lags_is_not_promoted_and_one_change_waits_for_the_other() {
    let mut cluster = Cluster::settled(4);
    change(&mut cluster, 1, AddLearner(MemberId(4))).unwrap();
    assert_eq!(change(&mut cluster, 1, AddLearner(MemberId(5))), Err(ProposeError::ChangePending));
    cluster.run_ms(100);
    assert!(matches!(change(&mut cluster, 1, Promote(MemberId(4))), Err(ProposeError::BadChange(_))));
}

#[test]
fn a_removed_replica_campaigns_no_more() {
    let mut cluster = Cluster::settled(5);
    change(&mut cluster, 1, Remove(MemberId(3))).unwrap();
    cluster.run_ms(10_000);
    assert_eq!(cluster.leading(), Some(1));
    assert_eq!(cluster.status(1).term, 1);
    assert_eq!(cluster.status(1).voters, [1, 2].map(MemberId));
    cluster.suspect(1);
    cluster.run_ms(2_000);
    assert_ne!(cluster.leading(), Some(3));
}

#[test]
fn a_removed_replica_that_does_not_know_it_disturbs_nobody() {
    let mut cluster = Cluster::settled(6);
    cluster.isolate(3);
    change(&mut cluster, 1, Remove(MemberId(3))).unwrap();
    cluster.run_ms(1_000);
    cluster.heal();
    cluster.run_ms(20_000);
    assert_eq!(cluster.leading(), Some(1));
    assert_eq!(cluster.status(1).term, 1);
}

#[test]
fn a_member_that_is_replaced_gets_everything() {
    let mut cluster = Cluster::new(4, 7);
    cluster.create(&[1, 2, 3], Some(1));
    cluster.run_ms(50);
    cluster.put(1, 0..100);
    cluster.run_ms(50);
    cluster.crash(3);
    cluster.suspect(3);
    change(&mut cluster, 1, Remove(MemberId(3))).unwrap();
    cluster.run_ms(50);
    grow(&mut cluster, 4);
    cluster.run_ms(500);
    cluster.assert_converged();
    assert_eq!(cluster.status(4).voters, [1, 2, 4].map(MemberId));
}

#[test]
fn the_membership_survives_a_restart_of_all() {
    let mut cluster = Cluster::new(3, 8);
    cluster.create(&[1], Some(1));
    cluster.run_ms(20);
    grow(&mut cluster, 2);
    grow(&mut cluster, 3);
    cluster.run_ms(5);
    for id in 1..=3 {
        cluster.crash(id);
    }
    for id in 1..=3 {
        cluster.restart(id);
        cluster.run_ms(3_000);
        let alone = id == 1;
        assert_eq!(cluster.leading().is_none(), alone, "member 1 must not lead alone");
    }
    cluster.assert_converged();
}

#[test]
fn a_destroyed_group_leaves_nothing_and_late_reports_about_it_change_nothing() {
    let mut cluster = Cluster::settled(9);
    cluster.put(1, 0..10);
    cluster.with(1, |host, _| host.destroy_group(key()));
    assert!(cluster.host(1).status(GROUP).is_none());
    let mut next = key();
    next.incarnation.counter += 1;
    let birth = holdfast_replica::GroupBirth { key: next, ..cluster.birth(&[1], Some(1)) };
    cluster.with(1, |host, now| host.create_group(birth, now)).unwrap();
    cluster.run_ms(500);
    assert_eq!(cluster.host(1).status(GROUP).unwrap().last, 2);
    let recovered = cluster.members[&1].disk.recovered();
    assert_eq!(recovered.iter().map(|group| group.key).collect::<Vec<_>>(), [next]);
}
