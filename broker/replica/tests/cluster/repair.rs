//! Replicas whose disk is damaged.

use holdfast_queue::ids::MemberId;
use holdfast_replica::MembershipChange::{AddLearner, Promote, Remove};
use holdfast_replica::{HostConfig, Role};

use crate::harness::{Cluster, GROUP};

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
