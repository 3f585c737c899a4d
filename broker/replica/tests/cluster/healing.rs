//! Replicas that find damage while they run, where that is not just a matter of asking a sound peer.

use holdfast_queue::time::Duration;
use holdfast_replica::{HostConfig, Role};

use crate::harness::{Cluster, GROUP};
use crate::ledger::take;
use crate::repair::{rot, running};

/// Raft takes a new leader's entries for committed while they are still on their way into the log, where the entries lie
/// that they replace. An answer at that moment called those committed, and a replica that had lost the true ones took them.
#[test]
fn an_entry_that_is_about_to_be_replaced_is_not_given_to_a_peer_as_committed() {
    let config = HostConfig { cache_bytes: 0, checkpoint_entries: 100_000, ..HostConfig::default() };
    let mut cluster = Cluster::with_config(3, 50, config);
    cluster.create(&[1, 2, 3], Some(1));
    cluster.run_until(5_000, |cluster| cluster.leading().is_some());
    cluster.isolate(1);
    let first = cluster.member(1).disk.log().last().unwrap().0 + 1;
    // Nobody hears of these.
    cluster.put(1, 900..905);
    cluster.run_ms(20);
    cluster.suspect(1);
    cluster.run_until(5_000, |cluster| cluster.leading().is_some_and(|leader| leader != 1));
    let leader = cluster.leading().unwrap();
    let third = 5 - leader;
    for number in 0..10 {
        cluster.put(leader, number..number + 1);
        cluster.run_ms(20);
    }
    cluster.run_ms(500);
    // The old leader has heard of the new one; the entries that it gets then wait while it stands still.
    let term = cluster.status(leader).term;
    cluster.heal();
    cluster.hear(1);
    for _ in 0..50_000 {
        if cluster.status(1).term == term {
            break;
        }
        cluster.run_us(100);
    }
    cluster.pause(1);
    cluster.run_ms(5);
    // Of its peers the third reaches the old leader only, and asks it behind the leader's entries.
    cluster.cut.extend([(third, leader), (leader, third)]);
    let lost = first + 2;
    let expected = cluster.host(leader).payload(GROUP, lost).unwrap();
    rot(&mut cluster, third, &[lost]);
    cluster.run_ms(20);
    let is_old = cluster.member(1).disk.log().iter().any(|(index, its)| (*index, *its < term) == (lost, true));
    assert!(is_old, "what is to be replaced is still there");
    cluster.resume(1);
    cluster.run_until(5_000, |cluster| cluster.member(third).mended == 1);
    assert_eq!(cluster.host(third).payload(GROUP, lost).unwrap(), expected);
}

/// A follower had taken in an entry, and fell behind before it heard that it was committed. The others have compacted it
/// since: nobody can prove any more that what it lost is what they have.
#[test]
fn an_entry_that_all_peers_have_compacted_is_not_waited_for() {
    let mut cluster = running(3, 51, 25, 10);
    let last = cluster.member(3).disk.log().last().unwrap().0;
    cluster.put(1, 25..26);
    cluster.run_us(700);
    cluster.isolate(3);
    cluster.run_ms(50);
    let log = cluster.member(3).disk.log();
    let lost = log.last().unwrap().0;
    assert_eq!(lost, last + 1, "it got the entry");
    assert_eq!(cluster.status(3).applied, last, "and did not hear that it is committed");
    cluster.suspect(3);
    for number in 26..80 {
        cluster.put(1, number..number + 1);
        cluster.run_ms(20);
    }
    let is_compacted = |cluster: &mut Cluster, id: u64| cluster.member(id).disk.log()[0].0 > lost;
    assert!(is_compacted(&mut cluster, 1) && is_compacted(&mut cluster, 2));
    cluster.heal();
    rot(&mut cluster, 3, &[lost]);
    cluster.run_ms(1_000);
    assert!(cluster.host(3).is_quarantined(GROUP), "it asks to be replaced at once");
    assert!(cluster.member(3).quarantined[0].contains("compacted"), "{:?}", cluster.member(3).quarantined);
    assert_eq!(cluster.role(3), Role::Quarantined);
}

/// Neither voter starts before it has what the other can give it.
#[test]
fn two_voters_that_lost_different_things_while_they_were_off_mend_each_other() {
    for (seed, checkpoint_entries) in [(52, 10), (53, 100_000)] {
        let mut cluster = running(2, seed, 40, checkpoint_entries);
        for (id, places) in [(1, [3, 20]), (2, [4, 21])] {
            cluster.crash(id);
            let disk = &mut cluster.member(id).disk;
            let here: Vec<u64> = disk.bodies().into_iter().chain(disk.log().iter().map(|(index, _)| *index)).collect();
            disk.lose(&places.map(|place| here[place]));
        }
        cluster.restart(1);
        cluster.restart(2);
        cluster.run_until(5_000, |cluster| cluster.leading().is_some());
        let leader = cluster.leading().unwrap();
        cluster.put(leader, 40..50);
        cluster.run_ms(2_000);
        assert_eq!(cluster.confirmed(), 50);
        assert_eq!(cluster.member(1).mended + cluster.member(2).mended, 2);
        cluster.assert_converged();
    }
}

/// While it was off the message was taken and given up: no peer has it, and none needs it.
#[test]
fn a_message_that_was_taken_meanwhile_does_not_hold_up_the_start_of_a_replica_that_lost_it() {
    let mut cluster = running(3, 54, 45, 10);
    cluster.crash(3);
    cluster.suspect(3);
    let lost = cluster.member(3).disk.bodies()[5];
    cluster.member(3).disk.lose(&[lost]);
    cluster.propose(1, take(lost)).unwrap();
    for number in 45..80 {
        cluster.put(1, number..number + 1);
        cluster.run_ms(20);
    }
    cluster.run_ms(2_000);
    assert!(cluster.host(1).payload(GROUP, lost).is_err() && cluster.host(2).payload(GROUP, lost).is_err());
    cluster.restart(3);
    cluster.run_until(3_000, |cluster| cluster.role(3) == Role::Follower);
    cluster.run_ms(2_000);
    assert!(cluster.member(3).quarantined.is_empty());
    cluster.assert_converged();
}

/// While a backup is about to hold the files nothing is compacted, so what is damaged in the log stays there for so long.
/// That is nobody's fault, and no reason to copy the replica anew.
#[test]
fn a_barrier_does_not_use_up_the_patience_of_a_replica_that_has_what_it_lost() {
    let mut cluster = running(3, 55, 30, 100_000);
    let log: Vec<u64> = cluster.member(3).disk.log().iter().map(|(index, _)| *index).collect();
    let until = cluster.now + Duration::from_secs(25);
    cluster.with(3, |host, now| host.keep_history(until, now));
    rot(&mut cluster, 3, &[log[7]]);
    cluster.put(1, 30..40);
    cluster.run_ms(24_000);
    assert_eq!(cluster.member(3).mended, 0);
    assert!(!cluster.host(3).is_quarantined(GROUP), "{:?}", cluster.member(3).quarantined);
    cluster.run_until(3_000, |cluster| cluster.role(3) == Role::Follower);
    cluster.run_ms(1_000);
    assert_eq!((cluster.confirmed(), cluster.member(3).mended), (40, 1));
    cluster.assert_converged();
}
