//! Queues that are declared before all members have joined.

mod common;

use common::{Client, Cluster};
use holdfast_engine::admin::{AdminAction, AdminReply, GroupReport};
use holdfast_queue::ids::GroupId;

const QUEUE: GroupId = GroupId(1);

/// A cluster of three that was founded by the first member while the others were not there.
fn founded_alone() -> (Cluster, Client) {
    let mut cluster = Cluster::blank(3);
    cluster.kill(1);
    cluster.kill(2);
    assert_eq!(cluster.bootstrap("c1"), Ok(AdminReply::Done));
    cluster.wait("the founder serves", |cluster| cluster.member(0).ready());
    let mut client = cluster.client(0);
    client.declare(&mut cluster, "orders");
    client.confirm_select(&mut cluster);
    client.publish(&mut cluster, "orders", "early");
    client.wait_confirmed(&mut cluster, 1);
    (cluster, client)
}

fn report(cluster: &mut Cluster, member: usize) -> GroupReport {
    let reply = cluster.admin(member, AdminAction::Groups { limit: 10 });
    let Ok(AdminReply::Groups(groups)) = reply else { panic!("{reply:?} instead of groups") };
    groups.into_iter().find(|group| group.group == QUEUE).expect("the queue's group")
}

fn voters(cluster: &Cluster) -> usize {
    let status =
        |at: usize| cluster.member(at).host()?.status(QUEUE).filter(|status| status.me_leading && !status.joint);
    (0..3).filter(|at| cluster.is_alive(*at)).find_map(status).map_or(0, |status| status.voters.len())
}

#[test]
fn a_queue_that_is_declared_before_all_members_joined_gets_its_replicas_by_itself_and_is_told_as_lacking_them() {
    let (mut cluster, _client) = founded_alone();
    assert_eq!(voters(&cluster), 1);
    assert_eq!(cluster.member(0).health().groups.under_replicated, 2, "group 0 and the queue's");
    assert_eq!(report(&mut cluster, 0).voters_expected, 3);
    cluster.restart(1, |_| ());
    cluster.wait("the second member has a copy", |cluster| voters(cluster) == 2);
    assert!(cluster.member(0).health().groups.under_replicated > 0, "it should have three");
    cluster.restart(2, |_| ());
    cluster.wait("the third member has a copy", |cluster| voters(cluster) == 3);
    let lacking =
        |cluster: &Cluster| -> usize { (0..3).map(|at| cluster.member(at).health().groups.under_replicated).sum() };
    cluster.wait("nothing is lacking any more", |cluster| lacking(cluster) == 0);
    let leader = cluster.leader_of(QUEUE).expect("led");
    assert_eq!(report(&mut cluster, leader).replicas.iter().filter(|replica| replica.voter).count(), 3);
    // What was confirmed when there was one copy outlives the member that had it.
    cluster.kill(0);
    let mut reader = cluster.client(1);
    assert_eq!(reader.get(&mut cluster, "orders").map(|message| message.body).as_deref(), Some("early"));
}
