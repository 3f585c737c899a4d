//! Members that come and go.

use holdfast_queue::ids::{MemberId, ReplicaId};
use holdfast_replica::MembershipChange::{AddLearner, LeaveJoint, Promote, Remove, Swap};
use holdfast_replica::{MembershipChange, ProposalId, ProposeError, Role};

use crate::harness::{Cluster, GROUP, key};
use crate::ledger::Ledger;

fn change(cluster: &mut Cluster, id: u64, change: MembershipChange) -> Result<ProposalId, ProposeError> {
    cluster.with(id, |host, _| host.change_membership(GROUP, &change))
}

/// A founder's replica.
fn founder(id: u64) -> ReplicaId {
    ReplicaId::founder(MemberId(id))
}

/// The replica of a member that joined later.
fn joined(id: u64) -> ReplicaId {
    ReplicaId { member: MemberId(id), generation: 1 }
}

fn join(cluster: &mut Cluster, id: u64) {
    cluster.with(id, |host, now| host.join_group(key(), 1, Ledger::default(), now)).unwrap();
}

/// A group of one that takes in `id` as a voter.
fn grow(cluster: &mut Cluster, id: u64) {
    let leader = cluster.leading().unwrap();
    join(cluster, id);
    change(cluster, leader, AddLearner(joined(id))).unwrap();
    cluster.run_until(2_000, |cluster| change(cluster, leader, Promote(joined(id))).is_ok());
    cluster.run_until(500, |cluster| cluster.status(id).voters.contains(&joined(id)));
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
    assert_eq!(cluster.status(3).voters, [founder(1), joined(2), joined(3)]);
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
    change(&mut cluster, 1, AddLearner(joined(2))).unwrap();
    cluster.put(1, 0..5);
    cluster.run_ms(1_000);
    cluster.assert_converged();
}

#[test]
fn changes_without_sense_are_refused_in_words() {
    let mut cluster = Cluster::settled(3);
    let swap =
        |promote: Vec<ReplicaId>, demote: Vec<ReplicaId>, remove: Vec<ReplicaId>| Swap { promote, demote, remove };
    for bad in [
        AddLearner(founder(2)),
        AddLearner(joined(2)),
        Promote(founder(2)),
        Promote(founder(7)),
        Remove(founder(7)),
        Remove(joined(2)),
        Remove(founder(1)),
        LeaveJoint,
        swap(vec![founder(7)], vec![], vec![founder(2)]),
        swap(vec![], vec![founder(1)], vec![]),
        swap(vec![], vec![], vec![founder(1), founder(2)]),
    ] {
        let refused = change(&mut cluster, 1, bad.clone());
        assert!(matches!(refused, Err(ProposeError::BadChange(_))), "{bad:?}");
    }
    let refused = change(&mut cluster, 2, AddLearner(joined(4)));
    assert_eq!(refused, Err(ProposeError::NotLeader { leader: Some(MemberId(1)) }));
}

#[test]
fn a_learner_that_lags_is_not_promoted_and_one_change_waits_for_the_other() {
    let mut cluster = Cluster::settled(4);
    change(&mut cluster, 1, AddLearner(joined(4))).unwrap();
    assert_eq!(change(&mut cluster, 1, AddLearner(joined(5))), Err(ProposeError::ChangePending));
    cluster.run_ms(100);
    assert!(matches!(change(&mut cluster, 1, Promote(joined(4))), Err(ProposeError::BadChange(_))));
}

#[test]
fn a_removed_replica_campaigns_no_more() {
    let mut cluster = Cluster::settled(5);
    change(&mut cluster, 1, Remove(founder(3))).unwrap();
    cluster.run_ms(10_000);
    assert_eq!(cluster.leading(), Some(1));
    assert_eq!(cluster.status(1).term, 1);
    assert_eq!(cluster.status(1).voters, [1, 2].map(founder));
    cluster.suspect(1);
    cluster.run_ms(2_000);
    assert_ne!(cluster.leading(), Some(3));
}

#[test]
fn a_removed_replica_that_does_not_know_it_disturbs_nobody() {
    let mut cluster = Cluster::settled(6);
    cluster.isolate(3);
    change(&mut cluster, 1, Remove(founder(3))).unwrap();
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
    change(&mut cluster, 1, Remove(founder(3))).unwrap();
    cluster.run_ms(50);
    grow(&mut cluster, 4);
    cluster.run_ms(500);
    cluster.assert_converged();
    assert_eq!(cluster.status(4).voters, [founder(1), founder(2), joined(4)]);
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

/// The leader's group of three exchanges member 3 for 4, up to the joint membership.
fn begin_swap(cluster: &mut Cluster) {
    cluster.create(&[1, 2, 3], Some(1));
    cluster.run_ms(50);
    cluster.put(1, 0..20);
    join(cluster, 4);
    change(cluster, 1, AddLearner(joined(4))).unwrap();
    let swap = Swap { promote: vec![joined(4)], demote: vec![], remove: vec![founder(3)] };
    cluster.run_until(2_000, |cluster| change(cluster, 1, swap.clone()).is_ok());
    cluster.run_until(500, |cluster| [1, 2].iter().all(|id| cluster.status(*id).joint));
}

#[test]
fn a_voter_is_exchanged_for_another_in_one_joint_change() {
    let mut cluster = Cluster::new(4, 11);
    begin_swap(&mut cluster);
    assert_eq!(
        change(&mut cluster, 1, AddLearner(joined(5))),
        Err(ProposeError::BadChange("the group is between two memberships; the joint one must be left first".into()))
    );
    change(&mut cluster, 1, LeaveJoint).unwrap();
    cluster.run_ms(500);
    let status = cluster.status(1);
    assert_eq!(status.voters, [founder(1), founder(2), joined(4)]);
    assert!(!status.joint && status.changed_at > 0);
    cluster.put(1, 20..30);
    cluster.run_ms(200);
    assert_eq!(cluster.ledger(4).numbers().len(), 30);
}

#[test]
fn a_joint_membership_needs_a_majority_of_both_and_is_left_by_whoever_leads_then() {
    let mut cluster = Cluster::new(4, 12);
    begin_swap(&mut cluster);
    // Members 1 and 2 are a majority of either half; 3 and 4 are of neither.
    for id in [1, 2] {
        cluster.isolate(id);
        cluster.suspect(id);
    }
    cluster.run_ms(5_000);
    assert!([3, 4].iter().all(|id| !cluster.host(*id).is_leading(GROUP)), "no majority of either half is there");
    cluster.heal();
    for id in 1..=4 {
        cluster.hear(id);
    }
    cluster.run_until(5_000, |cluster| cluster.leading().is_some());
    // A restart of all in the middle of it: the joint membership is on disk, and the next leader can leave it.
    for id in 1..=4 {
        cluster.crash(id);
    }
    for id in 1..=4 {
        cluster.restart(id);
    }
    cluster.run_until(10_000, |cluster| cluster.leading().is_some());
    let leader = cluster.leading().unwrap();
    assert!(cluster.status(leader).joint);
    cluster.run_until(2_000, |cluster| change(cluster, leader, LeaveJoint).is_ok());
    cluster.run_ms(500);
    assert_eq!(cluster.status(leader).voters, [founder(1), founder(2), joined(4)]);
    assert_eq!(cluster.ledger(leader).numbers().len(), 20);
}

#[test]
fn a_voter_may_not_go_when_those_that_stay_are_no_live_majority() {
    let mut cluster = Cluster::settled(13);
    cluster.crash(2);
    cluster.suspect(2);
    let refused = change(&mut cluster, 1, Remove(founder(3)));
    assert!(matches!(refused, Err(ProposeError::BadChange(why)) if why.contains("only 1 are up")));
    assert!(change(&mut cluster, 1, Remove(founder(2))).is_ok());
}

#[test]
fn the_vote_of_a_removed_replica_does_not_count_for_its_successor_on_the_same_member() {
    let mut cluster = Cluster::settled(14);
    cluster.put(1, 0..10);
    cluster.run_ms(50);
    cluster.isolate(3);
    change(&mut cluster, 1, Remove(founder(3))).unwrap();
    cluster.run_ms(100);
    change(&mut cluster, 1, AddLearner(joined(3))).unwrap();
    cluster.run_ms(100);
    // The old replica does not know, campaigns, and would give anybody its vote: nobody takes it for the new one.
    cluster.heal();
    cluster.run_ms(5_000);
    assert_eq!((cluster.leading(), cluster.status(1).term), (Some(1), 1));
    let old = cluster.status(3);
    assert_eq!((old.generation, old.voters.len()), (Some(0), 3), "what is meant for the new one changes nothing here");
    cluster.with(3, |host, _| host.destroy_group(key()));
    join(&mut cluster, 3);
    cluster.run_until(2_000, |cluster| change(cluster, 1, Promote(joined(3))).is_ok());
    cluster.run_ms(1_000);
    cluster.assert_converged();
    cluster.crash(3);
    cluster.restart(3);
    assert_eq!(cluster.status(3).generation, Some(1));
    cluster.run_ms(1_000);
    cluster.assert_converged();
}

/// What was let go is destroyed once a change may be acted upon. Then the leader is lost for good, which any majority must
/// survive, and of the two that are left one has forgotten that the joint membership was left: it counts on the replica
/// that was destroyed.
#[test]
fn a_change_is_acted_upon_once_every_majority_knows_it_and_those_that_are_left_elect_without_the_ones_let_go() {
    for (seed, knower, forgetful) in [(15, 2, 4), (16, 4, 2)] {
        let mut cluster = Cluster::new(4, seed);
        begin_swap(&mut cluster);
        cluster.run_ms(100);
        change(&mut cluster, 1, LeaveJoint).unwrap();
        while cluster.status(1).joint {
            cluster.run_us(100);
        }
        // The leader has just applied it; the others do not know yet that it is committed.
        for id in [2, 4] {
            cluster.member(id).stalled = true;
        }
        cluster.run_ms(300);
        assert!(!cluster.status(1).change_durable, "only the leader's disk knows it");
        cluster.member(knower).stalled = false;
        cluster.run_until(1_000, |cluster| cluster.status(1).change_durable);
        for id in 1..=4 {
            cluster.crash(id);
        }
        cluster.member(forgetful).stalled = false;
        for id in [2, 4] {
            cluster.restart(id);
        }
        assert!(cluster.status(forgetful).joint, "it has forgotten");
        for id in [1, 3] {
            cluster.suspect(id);
        }
        cluster.run_until(10_000, |cluster| cluster.leading().is_some());
        let leader = cluster.leading().unwrap();
        cluster.put(leader, 20..30);
        cluster.run_ms(1_000);
        assert_eq!(cluster.ledger(forgetful).numbers().len(), 30);
    }
}

#[test]
fn a_leader_that_came_after_a_change_finds_out_who_knows_it() {
    let mut cluster = Cluster::settled(17);
    change(&mut cluster, 1, Remove(founder(3))).unwrap();
    cluster.run_until(500, |cluster| cluster.status(1).voters.len() == 2);
    cluster.run_ms(100);
    cluster.with(1, |host, _| host.transfer_leader(GROUP, MemberId(2))).unwrap();
    cluster.run_until(2_000, |cluster| cluster.leading() == Some(2));
    cluster.run_until(1_000, |cluster| cluster.status(2).change_durable);
}
