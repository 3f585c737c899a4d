//! How a leader finds out what a follower has.

use std::time::Duration;

use holdfast_queue::ids::MemberId;
use holdfast_replica::HostConfig;

use crate::harness::Cluster;

/// Member 3 does not get these entries, and rejects the empty append that follows the next heartbeat. Gives the rejection
/// at the moment in which the leader has taken it in, probes from what it knows, and waits for the answer.
fn lose(cluster: &mut Cluster, entries: std::ops::Range<u64>) -> (u64, u64, bytes::Bytes) {
    cluster.rejections = Some(Vec::new());
    cluster.cut.insert((1, 3));
    cluster.put(1, entries);
    cluster.run_us(100);
    cluster.cut.remove(&(1, 3));
    loop {
        cluster.run_us(50);
        let sent = cluster.rejections.as_ref().and_then(|sent| sent.first());
        if let Some(rejection) = sent.filter(|(from, to, _)| (*from, *to) == (3, 1)).cloned() {
            // It takes 500 us to the leader.
            cluster.run_us(600);
            return rejection;
        }
    }
}

fn matched(cluster: &mut Cluster) -> u64 {
    let peers = cluster.status(1).peers;
    peers.iter().find(|peer| peer.replica.member == MemberId(3)).map_or(0, |peer| peer.matched)
}

/// The fix of raft-rs that is in no release yet (#557): a rejection that comes late takes the leader's next index for a
/// follower to or below what that follower is known to have. Whatever the follower then answers is no news, so the leader
/// sends the same again, for ever. (Once more is committed the follower's answers say so, and that ends it: so here
/// nothing can be.)
#[test]
fn a_late_rejection_does_not_keep_a_leader_from_ever_sending_more() {
    // One entry in each message: otherwise one message reaches beyond what is known already.
    let config = HostConfig { max_append_bytes: 1, slow_disk: Duration::from_secs(60), ..HostConfig::default() };
    let mut cluster = Cluster::with_config(3, 557, config);
    cluster.create(&[1, 2, 3], Some(1));
    cluster.run_ms(100);
    // Member 3 alone is no majority: the leader's own disk does not answer, and member 2 hears nothing.
    cluster.member(1).stalled = true;
    cluster.cut.extend([(1, 2), (2, 1)]);
    let late = lose(&mut cluster, 0..5);
    cluster.run_ms(300);
    let last = cluster.status(1).last;
    assert_eq!(matched(&mut cluster), last, "it has caught up since");
    assert!(cluster.status(3).commit < last - 2, "and nothing new is committed");

    lose(&mut cluster, 5..6);
    let (from, to, bytes) = late;
    cluster.deliver(from, to, bytes);
    // The answer to the probe is lost.
    cluster.cut.insert((3, 1));
    cluster.run_ms(5);
    cluster.cut.remove(&(3, 1));
    cluster.run_ms(400);
    assert_eq!((matched(&mut cluster), cluster.status(1).last), (last + 1, last + 1));

    cluster.member(1).stalled = false;
    cluster.heal();
    cluster.run_ms(2_000);
    cluster.assert_converged();
    assert_eq!(cluster.status(1).term, 1);
}
