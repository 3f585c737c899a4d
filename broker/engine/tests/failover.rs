//! Leaders and members go away while sessions live on.

mod common;

use common::{Cluster, declare};
use holdfast_engine::Input;
use holdfast_engine::admin::{AdminAction, AdminReply};
use holdfast_journal::{Corruption, Recovered};
use holdfast_queue::ids::GroupId;
use holdfast_queue::time::Duration;
use holdfast_wire::Method;

/// The first queue's group.
const QUEUE: GroupId = GroupId(1);

/// Two members that do not lead the queue, one of which does not lead group 0 either if that can be.
fn others(cluster: &Cluster) -> (usize, usize, usize) {
    let leader = cluster.leader_of(QUEUE).expect("led");
    ((leader + 1) % 3, (leader + 2) % 3, leader)
}

#[test]
fn a_transfer_redelivers_nothing_to_a_living_session_and_loses_nothing() {
    let mut cluster = Cluster::ready(3);
    let mut publisher = cluster.client(0);
    publisher.declare(&mut cluster, "q");
    publisher.confirm_select(&mut cluster);
    let (here, there, leader) = others(&cluster);
    let mut consumer = cluster.client(here);
    consumer.qos(&mut cluster, 5);
    consumer.consume(&mut cluster, "q", "c", false);
    for number in 1..=10 {
        publisher.publish(&mut cluster, "q", &number.to_string());
    }
    let first: Vec<_> = (1..=5).map(|_| consumer.receive(&mut cluster)).collect();
    let transfer = AdminAction::Transfer { group: QUEUE, to: format!("m{there}") };
    assert_eq!(cluster.admin(leader, transfer), Ok(AdminReply::Done));
    cluster.wait("the other member leads", |cluster| cluster.leader_of(QUEUE) == Some(there));
    publisher.publish(&mut cluster, "q", "11");
    publisher.wait_confirmed(&mut cluster, 11);
    consumer.expect_silence(&mut cluster);
    for (number, received) in (1..).zip(&first) {
        assert_eq!(received.body, number.to_string());
        consumer.ack(&mut cluster, received.tag, false);
    }
    for number in 6..=11 {
        let received = consumer.receive(&mut cluster);
        assert_eq!((received.body.as_str(), received.redelivered), (number.to_string().as_str(), false));
        consumer.ack(&mut cluster, received.tag, false);
    }
    assert_eq!(publisher.declare(&mut cluster, "q"), (0, 1));
}

#[test]
fn a_dead_leader_costs_clients_on_other_members_a_pause_of_less_than_1500_ms() {
    let mut cluster = Cluster::ready(3);
    let mut setup = cluster.client(0);
    setup.declare(&mut cluster, "q");
    let (here, there, leader) = others(&cluster);
    let mut publisher = cluster.client(here);
    publisher.confirm_select(&mut cluster);
    let mut consumer = cluster.client(there);
    consumer.consume(&mut cluster, "q", "c", false);
    for number in 1..=20 {
        publisher.publish(&mut cluster, "q", &number.to_string());
    }
    publisher.wait_confirmed(&mut cluster, 20);
    let mut received = Vec::new();
    for _ in 1..=20 {
        received.push(consumer.receive(&mut cluster));
    }
    cluster.kill(leader);
    let killed_at = cluster.now;
    for number in 21..=40 {
        publisher.publish(&mut cluster, "q", &number.to_string());
    }
    publisher.wait_confirmed(&mut cluster, 40);
    let gap = cluster.now.since(killed_at);
    assert!(gap < Duration::from_millis(1_500), "{gap:?}");
    for _ in 21..=40 {
        received.push(consumer.receive(&mut cluster));
    }
    for (number, message) in (1..).zip(&received) {
        assert_eq!((message.body.as_str(), message.redelivered), (number.to_string().as_str(), false));
    }
    consumer.ack(&mut cluster, received[39].tag, true);
    cluster.run(Duration::from_secs(1));
    assert_eq!(publisher.declare(&mut cluster, "q"), (0, 1));
    let health = cluster.member(cluster.leader_of(QUEUE).expect("led")).health();
    assert!(health.last_failover.is_some());
    assert!(!health.zone_fault_tolerant);
}

#[test]
fn what_a_dead_member_s_sessions_held_returns_after_its_run_is_declared_over() {
    let mut cluster = Cluster::ready(3);
    let mut setup = cluster.client(0);
    setup.declare(&mut cluster, "q");
    let (here, there, _) = others(&cluster);
    let mut publisher = cluster.client(here);
    publisher.confirm_select(&mut cluster);
    publisher.publish(&mut cluster, "q", "kept");
    publisher.wait_confirmed(&mut cluster, 1);
    let mut dying = cluster.client(there);
    dying.consume(&mut cluster, "q", "c", false);
    assert_eq!(dying.receive(&mut cluster).body, "kept");
    assert!(matches!(dying.call(&mut cluster, 1, declare("mine", false, true)), Method::QueueDeclareOk { .. }));
    cluster.kill(there);
    assert_eq!(publisher.get(&mut cluster, "q"), None);
    cluster.run(Duration::from_secs(13));
    let back = publisher.get(&mut cluster, "q").expect("returned");
    assert_eq!((back.body.as_str(), back.redelivered), ("kept", true));
    let answer = publisher.call(&mut cluster, 1, declare("mine", false, true));
    assert!(matches!(answer, Method::QueueDeclareOk { .. }), "the exclusive queue went with its member: {answer:?}");
}

#[test]
fn without_a_majority_nothing_is_confirmed() {
    let mut cluster = Cluster::ready(3);
    let mut setup = cluster.client(0);
    setup.declare(&mut cluster, "q");
    let (here, there, leader) = others(&cluster);
    let mut publisher = cluster.client(leader);
    publisher.confirm_select(&mut cluster);
    cluster.kill(here);
    cluster.kill(there);
    publisher.publish(&mut cluster, "q", "x");
    assert_eq!(publisher.method_within(&mut cluster, Duration::from_secs(8)), None);
    publisher.publish_to(&mut cluster, "", "nowhere", true, "y");
    assert_eq!(publisher.method_within(&mut cluster, Duration::from_secs(8)), None, "the lease has run out");
    assert!(!cluster.member(leader).health().quorum);
}

/// The leader heard the home, so it answered on their link, where nothing arrived: the home waited until the link broke.
#[test]
fn what_a_leader_says_goes_through_a_third_member_while_its_link_with_a_home_carries_one_way_only() {
    let mut cluster = Cluster::ready(3);
    let mut setup = cluster.client(0);
    setup.declare(&mut cluster, "q");
    let (here, _, leader) = others(&cluster);
    let mut client = cluster.client(here);
    client.confirm_select(&mut cluster);
    cluster.losses.push((leader, here, 0));
    for number in 1..=20 {
        let sent = cluster.now;
        client.publish(&mut cluster, "q", &number.to_string());
        client.wait_confirmed(&mut cluster, number);
        let took = cluster.now.since(sent);
        assert!(took < Duration::from_millis(1_500), "{took:?} for message {number}");
        cluster.run(Duration::from_millis(500));
    }
    cluster.losses.clear();
    assert_eq!(client.get(&mut cluster, "q").map(|message| message.body).as_deref(), Some("1"));
}

/// The next leader's word for a consumer of the deposed one comes through a third member, since their own link stands and
/// carries nothing; what was on that link comes later, and is there already.
#[test]
fn a_consumer_at_a_deposed_leader_misses_and_repeats_nothing_while_their_link_carries_nothing() {
    let mut cluster = Cluster::ready(3);
    let mut setup = cluster.client(0);
    setup.declare(&mut cluster, "q");
    let (here, next, deposed) = others(&cluster);
    let mut publisher = cluster.client(here);
    publisher.confirm_select(&mut cluster);
    let mut consumer = cluster.client(deposed);
    consumer.consume(&mut cluster, "q", "c", false);
    cluster.stopped = vec![(next, deposed), (here, deposed)];
    let transfer = AdminAction::Transfer { group: QUEUE, to: format!("m{next}") };
    let _ = cluster.admin(deposed, transfer);
    let leads = |cluster: &Cluster, at: usize| cluster.member(at).host().is_some_and(|host| host.is_leading(QUEUE));
    cluster.wait("the next leader leads", |cluster| leads(cluster, next));
    assert!(leads(&cluster, deposed), "nothing tells it");
    cluster.let_through(here, deposed);
    for number in 1..=6 {
        publisher.publish(&mut cluster, "q", &number.to_string());
        publisher.wait_confirmed(&mut cluster, number);
        cluster.run(Duration::from_millis(300));
    }
    cluster.let_through(next, deposed);
    for number in 1..=6 {
        let received = consumer.receive(&mut cluster);
        assert_eq!((received.body.as_str(), received.redelivered), (number.to_string().as_str(), false));
    }
}

#[test]
fn a_home_that_cannot_reach_the_leader_talks_to_it_through_a_third_member() {
    let mut cluster = Cluster::ready(3);
    let mut setup = cluster.client(0);
    setup.declare(&mut cluster, "q");
    let (here, _, leader) = others(&cluster);
    let mut client = cluster.client(here);
    client.confirm_select(&mut cluster);
    client.publish(&mut cluster, "q", "before");
    client.wait_confirmed(&mut cluster, 1);
    cluster.cut(here, leader);
    client.publish(&mut cluster, "q", "after");
    client.wait_confirmed(&mut cluster, 2);
    assert_eq!(client.get(&mut cluster, "q").map(|message| message.body).as_deref(), Some("before"));
    cluster.run(Duration::from_secs(15));
    assert_eq!(client.get(&mut cluster, "q").map(|message| message.body).as_deref(), Some("after"));
    let term = |cluster: &Cluster| cluster.member(leader).host().expect("started").term(QUEUE);
    let before = term(&cluster);
    cluster.run(Duration::from_secs(15));
    assert_eq!(term(&cluster), before, "terms do not climb");
    client.declare(&mut cluster, "another");
}

#[test]
fn shutting_down_hands_leaderships_over_and_tells_clients() {
    let mut cluster = Cluster::ready(3);
    let mut client = cluster.client(0);
    client.declare(&mut cluster, "q");
    let leader = cluster.leader_of(QUEUE).expect("led");
    let mut told = cluster.client(leader);
    cluster.input(leader, Input::Shutdown);
    match told.method(&mut cluster).1 {
        Method::ConnectionClose { reply_code, reply_text, .. } => {
            assert_eq!((reply_code, reply_text.as_str()), (320, "CONNECTION_FORCED - broker shutting down"));
        }
        other => panic!("{other:?} instead of a close"),
    }
    assert_ne!(cluster.leader_of(QUEUE), Some(leader));
    cluster.wait("it exits", |cluster| !cluster.exits.is_empty());
    assert!(cluster.exits[0].1);
}

/// Records of any group may be lost, as after a missing segment.
fn lose_records(recovered: &mut Recovered) {
    for group in &mut recovered.groups {
        group.corruption = Some(Corruption { unknown: true, why: "planted".into(), ..Corruption::default() });
    }
}

#[test]
fn a_member_whose_replica_of_the_metadata_is_damaged_holds_nobody_up_and_its_last_run_ends() {
    let mut cluster = Cluster::ready(3);
    let mut setup = cluster.client(0);
    setup.declare(&mut cluster, "q");
    let broken = 2;
    let mut publisher = cluster.client(0);
    publisher.confirm_select(&mut cluster);
    publisher.publish(&mut cluster, "q", "held");
    publisher.wait_confirmed(&mut cluster, 1);
    let mut dying = cluster.client(broken);
    dying.consume(&mut cluster, "q", "c", false);
    assert_eq!(dying.receive(&mut cluster).body, "held");
    cluster.kill(broken);
    cluster.restart(broken, lose_records);
    for number in 0..8 {
        let asked = cluster.now;
        setup.declare(&mut cluster, &format!("q{number}"));
        let took = cluster.now.since(asked);
        assert!(took < Duration::from_secs(4), "declare {number} took {took:?}");
    }
    cluster.run(Duration::from_secs(14));
    let back = publisher.get(&mut cluster, "q").expect("what the last run held comes back");
    assert_eq!((back.body.as_str(), back.redelivered), ("held", true));
}

/// It was back before anybody suspected it, and the others took its first restart for its first start: they went on to trust a
/// leader that could not lead, and no member logged a client in any more.
#[test]
fn a_leader_of_the_metadata_that_is_back_at_once_with_damage_is_replaced() {
    let mut cluster = Cluster::ready(3);
    let broken = cluster.leader_of(GroupId::META).expect("led");
    cluster.run(Duration::from_secs(3));
    cluster.kill(broken);
    cluster.restart(broken, lose_records);
    let asked = cluster.now;
    let mut client = cluster.client((broken + 1) % 3);
    client.declare(&mut cluster, "q");
    let took = cluster.now.since(asked);
    assert!(took < Duration::from_secs(4), "{took:?}");
}

/// The leader went by what the replica had acknowledged before it was damaged: its drill struck the next replica then.
#[test]
fn a_replica_that_is_back_with_damage_is_in_sync_only_after_another_has_taken_its_place() {
    let mut cluster = Cluster::ready(3);
    let mut client = cluster.client(0);
    client.declare(&mut cluster, "q");
    client.confirm_select(&mut cluster);
    client.publish(&mut cluster, "q", "kept");
    client.wait_confirmed(&mut cluster, 1);
    let (broken, _, leader) = others(&cluster);
    let in_sync = |cluster: &mut Cluster| match cluster.admin(leader, AdminAction::Groups { limit: 10 }) {
        Ok(AdminReply::Groups(groups)) => {
            groups.into_iter().find(|one| one.group == QUEUE).expect("it").in_sync_replicas
        }
        other => panic!("{other:?}"),
    };
    cluster.run(Duration::from_secs(3));
    assert_eq!(in_sync(&mut cluster), Some(3));
    cluster.kill(broken);
    cluster.restart(broken, lose_records);
    assert_eq!(in_sync(&mut cluster), Some(2));
    cluster.run(Duration::from_millis(200));
    assert_eq!(in_sync(&mut cluster), Some(2));
    cluster.run(Duration::from_secs(20));
    assert_eq!(in_sync(&mut cluster), Some(3), "{:#?}", cluster.events);
}

/// Which of the member's replicas of group 0 is here.
fn metadata_generation(cluster: &Cluster, at: usize) -> Option<u32> {
    cluster.member(at).host().and_then(|host| host.generation(GroupId::META)).flatten()
}

/// The new replica's records are durable before the identity is: a crash can come between them.
#[test]
fn a_replica_of_the_metadata_that_was_made_just_before_a_crash_is_never_made_a_second_time_as_what_it_was() {
    let mut cluster = Cluster::ready(3);
    let at = 2;
    let first = metadata_generation(&cluster, at).expect("a replica");
    cluster.kill(at);
    let identity = cluster.stored_identity(at);
    cluster.restart(at, lose_records);
    let renewed = |cluster: &Cluster, above: u32| {
        cluster.member(at).ready() && metadata_generation(cluster, at).is_some_and(|generation| generation > above)
    };
    cluster.wait("another replica", |cluster| renewed(cluster, first));
    let second = metadata_generation(&cluster, at).expect("a replica");
    cluster.kill(at);
    cluster.store_identity(at, identity);
    cluster.restart(at, |_| ());
    cluster.wait("it goes on with that", |cluster| cluster.member(at).ready());
    assert_eq!(metadata_generation(&cluster, at), Some(second));
    cluster.run(Duration::from_secs(11));
    cluster.kill(at);
    cluster.events.clear();
    cluster.restart(at, lose_records);
    cluster.wait("a third one", |cluster| renewed(cluster, second));
    let fetched = |text: &&String| text.contains("it is fetched anew");
    let fetched: Vec<&String> = cluster.events.iter().filter(fetched).collect();
    assert!(fetched.len() == 1 && fetched[0].ends_with(&format!("({})", second + 1)), "{fetched:?}");
}

#[test]
fn a_member_that_applies_nothing_delays_declares_by_one_lease_at_most() {
    let mut cluster = Cluster::ready(3);
    let mut client = cluster.client(0);
    client.declare(&mut cluster, "before");
    let stuck = (0..3).find(|at| cluster.leader_of(GroupId::META) != Some(*at) && *at != 0).expect("three members");
    cluster.stall_disk(stuck);
    let asked = cluster.now;
    for number in 0..8 {
        client.declare(&mut cluster, &format!("q{number}"));
    }
    let took = cluster.now.since(asked);
    assert!(took < Duration::from_secs(6), "eight declares took {took:?}");
    cluster.resume_disk(stuck);
    let mut there = cluster.client(stuck);
    there.declare(&mut cluster, "after");
}

/// A queue on three members, led by the last one given; a consumer at the first, and a publisher at the second of 64
/// messages of 100 kB, of which the consumer gets none before the leader dies.
fn with_missed_deliveries() -> (Cluster, common::Client, usize, usize) {
    let mut cluster = Cluster::ready(3);
    cluster.largest_body = 100_000;
    let mut setup = cluster.client(0);
    setup.declare(&mut cluster, "q");
    let (here, there, leader) = others(&cluster);
    let mut publisher = cluster.client(there);
    publisher.confirm_select(&mut cluster);
    let mut consumer = cluster.client(here);
    consumer.consume(&mut cluster, "q", "c", false);
    cluster.losses.push((leader, here, 10_000));
    let body = "x".repeat(100_000);
    for number in 1..=64 {
        publisher.publish_in_frames(&mut cluster, "q", &body);
        publisher.wait_confirmed(&mut cluster, number);
    }
    cluster.kill(leader);
    (cluster, consumer, here, there)
}

fn expect_64(cluster: &mut Cluster, consumer: &mut common::Client) {
    for number in 1..=64 {
        let received = consumer.receive(cluster);
        assert_eq!((received.tag, received.body.len(), received.redelivered), (number, 100_000, false));
    }
}

#[test]
fn missed_deliveries_that_fit_no_frame_together_come_in_several() {
    let (mut cluster, mut consumer, ..) = with_missed_deliveries();
    expect_64(&mut cluster, &mut consumer);
}

#[test]
fn missed_deliveries_are_asked_for_again_when_the_answer_is_lost() {
    let (mut cluster, mut consumer, here, there) = with_missed_deliveries();
    for leader in [here, there] {
        cluster.losses.push((leader, here, 50_000));
    }
    cluster.run(Duration::from_secs(5));
    cluster.losses.clear();
    expect_64(&mut cluster, &mut consumer);
}

/// Makes a member lead a group.
fn lead(cluster: &mut Cluster, group: GroupId, to: usize) {
    let leader = cluster.leader_of(group).expect("led");
    if leader != to {
        let transfer = AdminAction::Transfer { group, to: format!("m{to}") };
        assert_eq!(cluster.admin(leader, transfer), Ok(AdminReply::Done));
        cluster.wait("it leads", |cluster| cluster.leader_of(group) == Some(to));
    }
}

#[test]
fn a_leader_whose_metadata_is_behind_ends_no_living_run() {
    let mut cluster = Cluster::ready(3);
    let mut publisher = cluster.client(0);
    publisher.declare(&mut cluster, "q");
    publisher.confirm_select(&mut cluster);
    let (home, meta, behind) = (1, 0, 2);
    lead(&mut cluster, GroupId::META, meta);
    // From here on one member hears nothing from the leader of group 0, but enough of the other to lead a queue.
    cluster.losses.push((meta, behind, 0));
    cluster.kill(home);
    cluster.restart(home, |_| {});
    cluster.wait("it is back", |cluster| cluster.member(home).ready());
    lead(&mut cluster, QUEUE, home);
    let mut consumer = cluster.client(home);
    consumer.consume(&mut cluster, "q", "c", false);
    publisher.publish(&mut cluster, "q", "held");
    publisher.wait_confirmed(&mut cluster, 1);
    let held = consumer.receive(&mut cluster);
    lead(&mut cluster, QUEUE, behind);
    cluster.run(Duration::from_secs(2));
    cluster.losses.clear();
    consumer.expect_silence(&mut cluster);
    assert!(!consumer.is_closed(&cluster), "its run lives: {:#?}", cluster.events);
    consumer.ack(&mut cluster, held.tag, false);
    publisher.publish(&mut cluster, "q", "next");
    publisher.wait_confirmed(&mut cluster, 2);
    let next = consumer.receive(&mut cluster);
    assert_eq!((next.body.as_str(), next.redelivered), ("next", false));
    assert_eq!(publisher.get(&mut cluster, "q"), None);
}

#[test]
fn what_a_run_had_under_way_when_it_ended_leaves_no_consumer_behind() {
    let mut cluster = Cluster::ready(3);
    let mut setup = cluster.client(0);
    setup.declare(&mut cluster, "q");
    let (leader, home, other) = (0, 1, 2);
    lead(&mut cluster, QUEUE, leader);
    let mut client = cluster.client(home);
    // The group's leader has the first that this run says, and cannot commit it: it is large.
    cluster.losses.extend([(leader, home, 10_000), (leader, other, 10_000)]);
    client.publish_in_frames(&mut cluster, "q", &"x".repeat(20_000));
    client.send(&mut cluster, 1, common::consume("q", "c", false));
    cluster.settle();
    cluster.kill(home);
    cluster.restart(home, |_| {});
    cluster.wait("its next run is registered", |cluster| cluster.member(home).ready());
    cluster.losses.clear();
    cluster.run(Duration::from_secs(5));
    let back = setup.get(&mut cluster, "q").expect("nobody holds it");
    assert_eq!(back.body.len(), 20_000);
}

#[test]
fn what_a_home_told_a_run_s_transient_queues_outlives_its_last_queue_there() {
    let mut cluster = Cluster::ready(3);
    let (owner, home) = (1, 2);
    lead(&mut cluster, GroupId::META, 0);
    let mut churner = cluster.client(0);
    let mut holder = cluster.client(owner);
    let mut publisher = cluster.client(home);
    publisher.confirm_select(&mut cluster);
    let transient = |cluster: &mut Cluster, client: &mut common::Client, name: &str| {
        let answer = client.call(cluster, 1, declare(name, false, false));
        assert!(matches!(answer, Method::QueueDeclareOk { .. }), "{answer:?}");
    };
    transient(&mut cluster, &mut holder, "first");
    for number in 1..=5 {
        publisher.publish(&mut cluster, "first", &number.to_string());
        publisher.wait_confirmed(&mut cluster, number);
    }
    let delete =
        Method::QueueDelete { queue: common::short("first"), if_unused: false, if_empty: false, no_wait: false };
    assert!(matches!(holder.call(&mut cluster, 1, delete), Method::QueueDeleteOk { .. }));
    // The home is out of touch while the log of group 0 is compacted, and then gets a Raft snapshot of it.
    cluster.cut(home, 0);
    cluster.cut(home, owner);
    let applied = |cluster: &Cluster, at: usize| cluster.member(at).host().expect("started").applied(GroupId::META);
    let (behind, cut_at) = (applied(&cluster, home), cluster.now);
    for number in 0..250 {
        transient(&mut cluster, &mut churner, &format!("churn{number}"));
    }
    let compacted = cluster.member(0).host().expect("started").status(GroupId::META).expect("there").compacted;
    assert!(compacted > behind, "{compacted} is above {behind}");
    assert!(cluster.now.since(cut_at) < Duration::from_secs(9), "the home's run lives");
    cluster.mend();
    cluster.wait("it has caught up", |cluster| applied(cluster, home) == applied(cluster, 0));
    transient(&mut cluster, &mut holder, "second");
    publisher.publish(&mut cluster, "second", "kept");
    publisher.wait_confirmed(&mut cluster, 6);
    assert_eq!(holder.get(&mut cluster, "second").map(|message| message.body).as_deref(), Some("kept"));
}

#[test]
fn a_member_whose_log_is_gone_refuses_to_start_and_says_what_to_do() {
    let mut cluster = Cluster::ready(3);
    cluster.kill(2);
    let refusal = cluster.try_restart(2, |recovered| recovered.groups.clear()).expect_err("it could vote twice");
    let text = refusal.to_string();
    assert!(text.contains("member 3 of cluster c1") && text.contains("Replace the volume by an empty one"), "{text}");
    cluster.restart(2, |_| {});
    cluster.wait("nothing is missing", |cluster| cluster.member(2).ready());
}
