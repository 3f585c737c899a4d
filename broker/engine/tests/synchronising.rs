//! `ha-sync-mode: manual` on members that run: replicas that wait, and what they are asked for by.

mod common;

use common::{Client, Cluster};
use holdfast_engine::admin::{AdminAction, AdminErrorKind, AdminReply, QueueAction, QueueReport};
use holdfast_queue::arguments::{Arguments, Value};
use holdfast_queue::ids::GroupId;
use holdfast_queue::meta::{ApplyTo, NewPolicy, PolicyKind};
use holdfast_queue::time::Duration;

/// The first queue's group.
const QUEUE: GroupId = GroupId(1);

fn set_policy(cluster: &mut Cluster, replicas: i64) {
    let definition = Arguments::from([
        ("ha-mode", Value::string("exactly")),
        ("ha-params", Value::I64(replicas)),
        ("ha-sync-mode", Value::string("manual")),
    ]);
    let policy = NewPolicy { pattern: "q".into(), apply_to: ApplyTo::Queues, priority: 0, definition };
    let put = AdminAction::PutPolicy { kind: PolicyKind::User, vhost: "/".into(), name: "p".into(), policy };
    assert_eq!(cluster.admin(0, put), Ok(AdminReply::Done));
}

fn act(cluster: &mut Cluster, queue: &str, action: QueueAction) -> Result<AdminReply, AdminErrorKind> {
    let ask = AdminAction::QueueAction { vhost: "/".into(), name: queue.into(), action };
    cluster.admin(0, ask).map_err(|error| error.kind)
}

fn report(cluster: &mut Cluster) -> QueueReport {
    let leader = cluster.leader_of(QUEUE).expect("led");
    match cluster.admin(leader, AdminAction::Queues { limit: 10 }) {
        Ok(AdminReply::Queues(queues)) => queues.into_iter().find(|queue| queue.name == "q").expect("declared"),
        other => panic!("{other:?} instead of queues"),
    }
}

fn voters(cluster: &Cluster) -> usize {
    let status = |at: usize| cluster.member(at).host()?.status(QUEUE).filter(|it| it.me_leading && !it.joint);
    (0..3).filter(|at| cluster.is_alive(*at)).find_map(status).map_or(0, |status| status.voters.len())
}

/// A queue with these messages and one replica, which the policy wants to have three.
fn grown(messages: &[&str]) -> (Cluster, Client) {
    let mut cluster = Cluster::ready(3);
    set_policy(&mut cluster, 1);
    let mut client = cluster.client(0);
    client.declare(&mut cluster, "q");
    client.confirm_select(&mut cluster);
    for (at, body) in messages.iter().enumerate() {
        client.publish(&mut cluster, "q", body);
        client.wait_confirmed(&mut cluster, at as u64 + 1);
    }
    set_policy(&mut cluster, 3);
    (cluster, client)
}

#[test]
fn replicas_of_a_queue_with_messages_wait_until_they_are_asked_for_and_have_everything_then() {
    let (mut cluster, mut client) = grown(&["one", "two"]);
    cluster.run(Duration::from_secs(10));
    let listed = report(&mut cluster);
    assert_eq!(listed.unsynchronised, ["m1", "m2"]);
    let synchronised: Vec<_> = listed.replicas.iter().map(|it| (it.name.as_str(), it.synchronised)).collect();
    assert_eq!(synchronised, [("m0", Some(true)), ("m1", Some(false)), ("m2", Some(false))]);
    assert_eq!((voters(&cluster), listed.replicas_wanted), (1, 3));
    assert!((1..3).all(|at| cluster.member(at).host().is_some_and(|host| !host.is_present(QUEUE))));
    assert_eq!(cluster.member(0).health().groups.under_replicated, 0, "it has what it is to have for now");
    // New messages do not change that, and it serves.
    client.publish(&mut cluster, "q", "three");
    client.wait_confirmed(&mut cluster, 3);
    cluster.run(Duration::from_secs(5));
    assert_eq!(voters(&cluster), 1);
    assert_eq!(act(&mut cluster, "q", QueueAction::Sync), Ok(AdminReply::Done));
    cluster.wait("all three vote", |cluster| voters(cluster) == 3);
    cluster.wait("it is settled", |cluster| cluster.member(0).health().groups.under_replicated == 0);
    cluster.run(Duration::from_secs(1));
    let listed = report(&mut cluster);
    assert!(listed.replicas.iter().all(|it| it.voter && it.synchronised == Some(true)), "{:?}", listed.replicas);
    cluster.kill(0);
    let mut reader = cluster.client(1);
    for body in ["one", "two", "three"] {
        assert_eq!(reader.get(&mut cluster, "q").map(|message| message.body).as_deref(), Some(body));
    }
}

#[test]
fn a_queue_without_messages_is_synchronised_by_itself_and_so_is_one_whose_old_messages_are_consumed() {
    let (cluster, _client) = grown(&[]);
    let mut cluster = cluster;
    cluster.wait("there is nothing to wait for", |cluster| voters(cluster) == 3);
    let (mut cluster, mut client) = grown(&["old", "older"]);
    cluster.run(Duration::from_secs(3));
    client.publish(&mut cluster, "q", "new");
    client.wait_confirmed(&mut cluster, 3);
    let first = client.get(&mut cluster, "q").expect("a message");
    client.ack(&mut cluster, first.tag, false);
    cluster.run(Duration::from_secs(3));
    assert_eq!(voters(&cluster), 1, "one of the old messages is left");
    // A leader that does not know what its predecessor knew: the marker is in the metadata.
    client.drop_connection(&mut cluster);
    cluster.kill(0);
    cluster.restart(0, |_| ());
    cluster.wait("it is led again", |cluster| cluster.leader_of(QUEUE).is_some());
    let mut client = cluster.client(1);
    let second = client.get(&mut cluster, "q").expect("a message");
    assert_eq!(second.body, "older");
    client.ack(&mut cluster, second.tag, false);
    cluster.wait("only what came later is left", |cluster| voters(cluster) == 3);
    cluster.kill(0);
    let mut reader = cluster.client(2);
    assert_eq!(reader.get(&mut cluster, "q").map(|message| message.body).as_deref(), Some("new"));
}

#[test]
fn a_synchronisation_that_is_cancelled_leaves_the_replica_waiting() {
    let (mut cluster, _client) = grown(&["one"]);
    cluster.run(Duration::from_secs(2));
    cluster.kill(2);
    assert_eq!(act(&mut cluster, "q", QueueAction::Sync), Ok(AdminReply::Done));
    cluster.wait("the one that runs votes", |cluster| voters(cluster) == 2);
    assert_eq!(report(&mut cluster).moving_to, ["m2"]);
    assert_eq!(act(&mut cluster, "q", QueueAction::CancelSync), Ok(AdminReply::Done));
    cluster.run(Duration::from_secs(1));
    cluster.restart(2, |_| ());
    cluster.wait("it is back", |cluster| cluster.member(2).ready());
    cluster.run(Duration::from_secs(10));
    assert_eq!(report(&mut cluster).unsynchronised, ["m2"]);
    assert_eq!(voters(&cluster), 2);
    assert_eq!(act(&mut cluster, "none", QueueAction::Sync), Err(AdminErrorKind::NotFound));
}
