//! How a leader finds out what a follower has.

use holdfast_replica::HostConfig;

use crate::harness::Cluster;

/// Member 3 loses `count` entries on the way, but not what says that they are committed: so it rejects an append that
/// begins after them.
fn lose(cluster: &mut Cluster, from: u64, count: u64) {
    cluster.isolate(3);
    cluster.put(1, from..from + count);
    // Before the entries are committed.
    cluster.run_us(100);
    cluster.heal();
}

/// The fix of raft-rs that is in no release yet (#557): a rejection that comes late takes the leader's next index for a
/// follower to or below what that follower is known to have. Whatever the follower then answers is no news, so the leader
/// sends the same again, for ever.
#[test]
fn a_late_rejection_does_not_keep_a_leader_from_ever_sending_more() {
    // One entry in each message: otherwise one message reaches beyond what is known already.
    let config = HostConfig { max_append_bytes: 1, ..HostConfig::default() };
    let mut cluster = Cluster::with_config(3, 557, config);
    cluster.create(&[1, 2, 3], Some(1));
    cluster.run_ms(50);
    cluster.put(1, 0..3);
    cluster.run_ms(50);
    cluster.rejections = Some(Vec::new());
    lose(&mut cluster, 3, 5);
    cluster.run_ms(200);
    let rejections = cluster.rejections.take().unwrap();
    let late = rejections.into_iter().rfind(|(from, to, _)| (*from, *to) == (3, 1)).expect("member 3 rejected");
    let matched = cluster.status(1).last;
    assert_eq!(cluster.status(3).last, matched, "it has caught up since");

    // Again, up to the moment in which the leader probes from what it knows, and waits for the answer.
    cluster.rejections = Some(Vec::new());
    lose(&mut cluster, 8, 1);
    while cluster.rejections.as_ref().is_some_and(Vec::is_empty) {
        cluster.run_us(50);
    }
    cluster.run_us(600);
    cluster.cut.insert((3, 1));
    let (from, to, bytes) = late;
    cluster.cut.remove(&(from, to));
    cluster.deliver(from, to, bytes);
    cluster.cut.insert((from, to));
    cluster.run_ms(5);
    cluster.heal();
    cluster.run_until(3_000, |cluster| {
        let leader = cluster.status(1);
        leader.peers.iter().all(|peer| peer.matched == leader.last)
    });
    assert_eq!(cluster.status(1).term, 1);
}
