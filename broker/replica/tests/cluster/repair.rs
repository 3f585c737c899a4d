//! Replicas whose disk is damaged.

use holdfast_queue::ids::MemberId;
use holdfast_replica::MembershipChange::{AddLearner, Promote, Remove};
use holdfast_replica::Role;

use crate::harness::{Cluster, GROUP};

/// Member 3 starts again and finds its disk damaged.
fn damaged(seed: u64, hard_state: bool) -> Cluster {
    let mut cluster = Cluster::settled(seed);
    cluster.put(1, 0..50);
    cluster.run_ms(100);
    cluster.crash(3);
    cluster.suspect(3);
    cluster.member(3).disk.corrupt(hard_state);
    cluster.restart(3);
    cluster
}

#[test]
fn a_damaged_replica_neither_votes_nor_acknowledges_nor_campaigns() {
    for hard_state in [false, true] {
        let mut cluster = damaged(1, hard_state);
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
}

#[test]
fn a_damaged_replica_is_let_go_and_its_member_seeded_anew_as_somebody_else() {
    for hard_state in [false, true] {
        let mut cluster = damaged(2, hard_state);
        let old = cluster.current_replica(3);
        cluster.with(1, |host, _| host.change_membership(GROUP, &Remove(old))).unwrap();
        cluster.run_ms(100);
        assert_eq!(cluster.status(1).voters.len(), 2);
        cluster.put(1, 50..70);
        cluster.rejoin(3);
        let new = cluster.current_replica(3);
        assert_eq!((new.member, new.generation), (MemberId(3), 1));
        cluster.with(1, |host, _| host.change_membership(GROUP, &AddLearner(new))).unwrap();
        cluster.run_until(5_000, |cluster| {
            cluster.with(1, |host, _| host.change_membership(GROUP, &Promote(new))).is_ok()
        });
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
}
