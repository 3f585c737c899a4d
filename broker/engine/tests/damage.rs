//! Messages that rot on a disk while its member runs.

mod common;

use common::Cluster;
use holdfast_engine::Input;
use holdfast_journal::Upkeep;
use holdfast_queue::ids::GroupId;

/// The first queue's group.
const QUEUE: GroupId = GroupId(1);

/// A cluster with a queue of so many messages, whose members have none of them in memory; and who leads it.
fn with_messages_on_disk(count: u64) -> (Cluster, usize) {
    let mut cluster = Cluster::ready(3);
    let mut publisher = cluster.client(0);
    publisher.declare(&mut cluster, "q");
    publisher.confirm_select(&mut cluster);
    for number in 1..=count {
        publisher.publish(&mut cluster, "q", &text(number));
        publisher.wait_confirmed(&mut cluster, number);
    }
    for at in 0..3 {
        cluster.kill(at);
    }
    for at in 0..3 {
        cluster.restart(at, |_| {});
    }
    cluster.wait("all members are ready", |cluster| (0..3).all(|at| cluster.member(at).ready()));
    cluster.wait("the queue is led", |cluster| cluster.leader_of(QUEUE).is_some());
    let leader = cluster.leader_of(QUEUE).expect("just seen");
    (cluster, leader)
}

fn text(number: u64) -> String {
    format!("<message {number}>")
}

/// A client that is not at the member takes all of them, each once.
fn assert_all_come_once(cluster: &mut Cluster, at: usize, count: u64) {
    let mut consumer = cluster.client(at);
    consumer.qos(cluster, 10);
    consumer.consume(cluster, "q", "c", false);
    for number in 1..=count {
        let received = consumer.receive(cluster);
        assert_eq!(received.body, text(number));
        consumer.ack(cluster, received.tag, false);
    }
    consumer.expect_silence(cluster);
}

fn wait_until_mended(cluster: &mut Cluster, at: usize, entries: u64) {
    cluster.wait("what was lost is there again", |cluster| {
        let host = cluster.member(at).host().expect("in a cluster");
        let metrics = cluster.member(at).metrics();
        metrics.journal_mended >= entries && host.status(QUEUE).is_some_and(|status| status.quarantined.is_none())
    });
    let metrics = cluster.member(at).metrics();
    assert_eq!((metrics.journal_damages, metrics.replicas_mended, metrics.replicas_quarantined), (1, 1, 0));
}

#[test]
fn what_a_scrub_finds_damaged_is_mended_on_a_follower_and_on_the_leader_and_nothing_is_copied_anew() {
    for on_leader in [false, true] {
        let (mut cluster, leader) = with_messages_on_disk(150);
        let at = if on_leader { leader } else { (leader + 1) % 3 };
        // One lies below the log by now, the other one in it.
        let mut damaged = cluster.rot(at, &text(7));
        damaged.extend(cluster.rot(at, &text(149)));
        assert_eq!(damaged.len(), 2);
        cluster.input(at, Input::Upkeep(Upkeep { damaged: damaged.clone(), ..Upkeep::default() }));
        wait_until_mended(&mut cluster, at, 2);
        for lost in damaged {
            let payload = |at: usize| cluster.member(at).host().expect("in a cluster").payload(QUEUE, lost.index);
            assert_eq!(payload(at), payload((leader + 2) % 3));
        }
        assert_all_come_once(&mut cluster, (leader + 2) % 3, 150);
    }
}

#[test]
fn a_message_that_a_leader_cannot_read_for_its_consumer_comes_from_another_one_and_the_leader_is_mended() {
    let (mut cluster, leader) = with_messages_on_disk(150);
    assert_eq!(cluster.rot(leader, &text(5)).len(), 1);
    assert_all_come_once(&mut cluster, (leader + 1) % 3, 150);
    assert_ne!(cluster.leader_of(QUEUE), Some(leader), "it has left the lead to a member that can read it");
    wait_until_mended(&mut cluster, leader, 1);
}
