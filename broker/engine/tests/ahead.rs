//! A member knows less of the metadata than another: because nothing reaches it, or because its disk stands still.

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
    let (leader, holder, third) = members(&cluster);
    let mut publisher = cluster.client(third);
    publisher.confirm_select(&mut cluster);
    let mut declarer = cluster.client(holder);
    cluster.losses.push((leader, holder, 0));
    declarer.send(&mut cluster, 1, declare("fast", false, false));
    // Mandatory messages come back as long as the publisher's member does not know the queue.
    let is_routed = (0..20).any(|_| {
        publisher.publish_to(&mut cluster, "", "fast", true, "kept");
        cluster.run(Duration::from_millis(10));
        let methods = publisher.methods(&mut cluster);
        let is_returned = methods.iter().any(|method| matches!(method, Method::BasicReturn { .. }));
        let is_confirmed = methods.iter().any(|method| matches!(method, Method::BasicAck { .. }));
        assert_eq!(is_confirmed, is_returned, "it was confirmed by a member that has no such queue");
        !is_returned
    });
    assert!(is_routed, "the publisher's member never learnt of the queue");
    assert_eq!(publisher.method_within(&mut cluster, Duration::from_millis(200)), None);
    cluster.losses.clear();
    let again = cluster.now;
    let confirm = publisher.method(&mut cluster).1;
    assert!(matches!(confirm, Method::BasicAck { .. }), "{confirm:?}");
    let waited = cluster.now.since(again);
    assert!(waited < Duration::from_millis(1_000), "{waited:?} after the holder could know the queue");
    assert!(matches!(declarer.method(&mut cluster).1, Method::QueueDeclareOk { .. }));
    assert_eq!(declarer.get(&mut cluster, "fast").map(|message| message.body).as_deref(), Some("kept"));
}

/// A member whose disk stood still could not apply what others declared, so it got no lease any more, and its publishers
/// waited for its disk although two others had theirs.
#[test]
fn a_disk_that_stands_still_stops_neither_the_publishers_there_nor_the_declares_elsewhere() {
    let mut cluster = Cluster::ready(3);
    let (leader, slow, third) = members(&cluster);
    let mut elsewhere = cluster.client(leader);
    elsewhere.declare(&mut cluster, "orders");
    let mut publisher = cluster.client(slow);
    publisher.confirm_select(&mut cluster);
    cluster.stall_disk(slow);
    for second in 1..=10 {
        let begun = cluster.now;
        elsewhere.declare(&mut cluster, &format!("queue {second}"));
        publisher.publish(&mut cluster, "orders", "kept");
        publisher.wait_confirmed(&mut cluster, second);
        let took = cluster.now.since(begun);
        assert!(took < Duration::from_millis(500), "{took:?} in second {second}");
        cluster.run(Duration::from_secs(1));
    }
    cluster.resume_disk(slow);
    cluster.run(Duration::from_secs(1));
    let mut reader = cluster.client(third);
    assert_eq!(reader.declare(&mut cluster, "orders"), (10, 0));
    assert!(cluster.member(slow).ready() && cluster.member(slow).health().quorum);
}
