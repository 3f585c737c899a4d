//! A member that has applied more of the metadata than the one that holds a queue.

mod common;

use common::{Cluster, declare};
use holdfast_queue::ids::GroupId;
use holdfast_queue::time::Duration;
use holdfast_wire::Method;

/// The leader of group 0, another member, and a third one.
fn members(cluster: &Cluster) -> (usize, usize, usize) {
    let leader = cluster.leader_of(GroupId::META).expect("led");
    (leader, (leader + 1) % 3, (leader + 2) % 3)
}

/// A queue of one member's memory is there for everybody once group 0 has committed it: the others may publish into it
/// before the member that holds it has learnt as much. What they published was confirmed and dropped.
#[test]
fn a_publish_into_a_queue_that_its_holder_does_not_know_yet_waits_for_it() {
    let mut cluster = Cluster::ready(3);
    let (leader, holder, _) = members(&cluster);
    let mut publisher = cluster.client(leader);
    publisher.confirm_select(&mut cluster);
    let mut declarer = cluster.client(holder);
    cluster.stall_disk(holder);
    declarer.send(&mut cluster, 1, declare("fast", false, false));
    // Mandatory messages come back as long as the publisher's member does not know the queue.
    let mut published = 0;
    let is_routed = loop {
        published += 1;
        publisher.publish_to(&mut cluster, "", "fast", true, "kept");
        cluster.run(Duration::from_millis(10));
        let methods = publisher.methods(&mut cluster);
        if !methods.iter().any(|method| matches!(method, Method::BasicReturn { .. })) {
            let confirmed = methods.iter().any(|method| matches!(method, Method::BasicAck { .. }));
            assert!(!confirmed, "it was confirmed by a member that has no such queue");
            break true;
        }
        if published == 100 {
            break false;
        }
    };
    assert!(is_routed, "the publisher's member never learnt of the queue");
    assert_eq!(publisher.method_within(&mut cluster, Duration::from_millis(1_500)), None);
    cluster.resume_disk(holder);
    let resumed = cluster.now;
    let confirm = publisher.method(&mut cluster).1;
    assert!(matches!(confirm, Method::BasicAck { .. }), "{confirm:?}");
    let waited = cluster.now.since(resumed);
    assert!(waited < Duration::from_millis(400), "{waited:?} after the holder knew the queue");
    assert!(matches!(declarer.method(&mut cluster).1, Method::QueueDeclareOk { .. }));
    assert_eq!(declarer.get(&mut cluster, "fast").map(|message| message.body).as_deref(), Some("kept"));
}
