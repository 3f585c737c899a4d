//! What a queue does, case by case.

mod support;

use bytes::Bytes;
use holdfast_queue::codec::{Batch, EntryBuilder, Origin, message_at};
use holdfast_queue::ids::{BootId, ConsumerId, QueueId};
use holdfast_queue::queue::{
    CancelReason, Outcome, QueueCommand, QueueEffect, QueueMachine, QueueReply, QueueSettings,
};
use holdfast_queue::{ApplyMeta, Machine};
use support::*;

fn queue() -> Group<QueueMachine> {
    let mut group = Group::new(QueueMachine::new());
    group.lead(create());
    group
}

fn numbers(effects: &[QueueEffect]) -> Vec<(ConsumerId, u64, u64)> {
    deliveries(effects).iter().map(|delivery| (delivery.consumer, delivery.number, delivery.message.index)).collect()
}

#[test]
fn a_delivery_leads_back_to_the_content_it_was_published_with() {
    let mut group = queue();
    let mut entry = EntryBuilder::new();
    let batch = group.batch(HOME, vec![subscribe(consumer(1), 0), publish("one"), publish("two")]);
    entry.push(&batch);
    let payload = entry.finish(0);
    let delivered = deliveries(&group.apply_payload(&payload));
    let bodies: Vec<_> =
        delivered.iter().map(|it| message_at(&payload, it.message.sub).expect("a publish").body).collect();
    assert_eq!(bodies, [Bytes::from_static(b"one"), Bytes::from_static(b"two")]);
}

#[test]
fn what_is_sent_twice_is_stored_once_and_answered_alike() {
    let mut group = queue();
    let batch = group.batch(HOME, vec![publish("a"), publish("b"), QueueCommand::Stat { queue: QUEUE }]);
    let first = group.apply(std::slice::from_ref(&batch));
    let again = group.apply(std::slice::from_ref(&batch));
    assert_eq!(group.machine.stats(QUEUE).expect("a queue").ready, 2);
    assert_eq!(first, again);
    assert!(again.contains(&QueueEffect::Confirm { boot: HOME, seq: 3 }));
}

#[test]
fn an_overlapping_resend_stores_only_what_is_new() {
    let mut group = queue();
    group.send(HOME, vec![publish("1"), publish("2")]);
    let origin = Some(Origin { boot: HOME, first: 2, answered: 0 });
    let effects = group.apply(&[Batch { origin, commands: vec![publish("2"), publish("3")] }]);
    assert_eq!(effects, [QueueEffect::Confirm { boot: HOME, seq: 3 }]);
    assert_eq!(group.machine.stats(QUEUE).expect("a queue").ready, 3);
}

#[test]
fn a_gap_is_refused_with_the_number_expected() {
    let mut group = queue();
    let origin = Some(Origin { boot: HOME, first: 2, answered: 0 });
    let effects = group.apply(&[Batch { origin, commands: vec![publish("2")] }]);
    assert_eq!(effects, [QueueEffect::SequenceGap { boot: HOME, expected: 1 }]);
    assert_eq!(group.machine.stats(QUEUE).expect("a queue").ready, 0);
}

#[test]
fn a_late_resend_of_a_run_that_ended_is_refused() {
    let mut group = queue();
    let batch = group.batch(HOME, vec![publish("a"), subscribe(consumer(1), 1)]);
    group.apply(std::slice::from_ref(&batch));
    group.lead(QueueCommand::BootEnded { boot: HOME });
    group.reload();
    let effects = group.apply(&[batch]);
    assert_eq!(effects, [QueueEffect::Ended { boot: HOME }]);
    let stats = group.machine.stats(QUEUE).expect("a queue");
    assert_eq!((stats.ready, stats.unacked, stats.consumers), (1, 0, 0));
    assert!(group.machine.boots().is_empty());
}

#[test]
fn a_reply_is_forgotten_once_its_home_has_it() {
    let mut group = queue();
    group.send(HOME, vec![QueueCommand::Stat { queue: QUEUE }]);
    let owes_a_reply = |group: &Group<QueueMachine>| !replies(&group.machine.state_enter()).is_empty();
    assert!(owes_a_reply(&group));
    let origin = Some(Origin { boot: HOME, first: 2, answered: 1 });
    group.apply(&[Batch { origin, commands: vec![publish("x")] }]);
    assert!(!owes_a_reply(&group));
}

#[test]
fn consumers_with_room_take_turns() {
    let mut group = queue();
    let effects = group.send(
        HOME,
        vec![
            subscribe(consumer(1), 0),
            subscribe(consumer(2), 1),
            publish("a"),
            publish("b"),
            publish("c"),
            publish("d"),
        ],
    );
    let turns: Vec<_> = numbers(&effects).iter().map(|(consumer, number, _)| (consumer.number, *number)).collect();
    assert_eq!(turns, [(1, 1), (2, 1), (1, 2), (1, 3)]);
}

#[test]
fn a_higher_priority_is_served_first_as_long_as_it_has_room() {
    let mut group = queue();
    let QueueCommand::Subscribe { queue, consumer: id, tag, no_ack, exclusive, prefetch, credit_to, .. } =
        subscribe(consumer(2), 2)
    else {
        unreachable!()
    };
    let important =
        QueueCommand::Subscribe { queue, consumer: id, tag, no_ack, exclusive, prefetch, credit_to, priority: 5 };
    let effects =
        group.send(HOME, vec![subscribe(consumer(1), 0), important, publish("a"), publish("b"), publish("c")]);
    let turns: Vec<_> = numbers(&effects).iter().map(|(consumer, ..)| consumer.number).collect();
    assert_eq!(turns, [2, 2, 1]);
}

#[test]
fn a_requeued_message_comes_back_in_its_place_and_marked() {
    let mut group = queue();
    group.send(HOME, vec![subscribe(consumer(1), 2), publish("a"), publish("b"), publish("c")]);
    let effects = group.send(HOME, vec![settle(consumer(1), 1, 1, Outcome::Requeue)]);
    let [again] = deliveries(&effects)[..] else { panic!("one delivery, not {effects:?}") };
    assert_eq!((again.number, again.delivery_count, again.redelivered()), (3, 1, true));
    let effects = group.send(HOME, vec![settle(consumer(1), 2, 3, Outcome::Ack)]);
    let [next] = deliveries(&effects)[..] else { panic!("one delivery, not {effects:?}") };
    assert!(!next.redelivered());
}

#[test]
fn a_settle_that_comes_late_or_twice_changes_nothing() {
    let mut group = queue();
    group.send(HOME, vec![subscribe(consumer(1), 1), publish("a"), publish("b")]);
    group.send(HOME, vec![settle(consumer(1), 1, 1, Outcome::Ack)]);
    let before = group.machine.stats(QUEUE);
    group.send(HOME, vec![settle(consumer(1), 0, 1, Outcome::Requeue), settle(consumer(9), 1, 5, Outcome::Ack)]);
    assert_eq!(group.machine.stats(QUEUE), before);
}

#[test]
fn what_a_cancelled_consumer_holds_can_still_be_acked_and_comes_back_when_its_channel_closes() {
    let mut group = queue();
    group.send(HOME, vec![subscribe(consumer(1), 0), publish("a"), publish("b")]);
    let cancel = QueueCommand::Cancel { queue: QUEUE, consumer: consumer(1) };
    assert_eq!(replies(&group.send(HOME, vec![cancel])), [QueueReply::Cancelled { last: 2 }]);
    let stats = group.machine.stats(QUEUE).expect("a queue");
    assert_eq!((stats.ready, stats.unacked, stats.consumers), (0, 2, 0));
    group.send(HOME, vec![settle(consumer(1), 1, 1, Outcome::Ack)]);
    group.send(HOME, vec![QueueCommand::ChannelClosed { channel: consumer(1).channel }]);
    let stats = group.machine.stats(QUEUE).expect("a queue");
    assert_eq!((stats.ready, stats.unacked), (1, 0));
}

#[test]
fn credit_stops_one_consumer_and_starts_it_again() {
    let mut group = queue();
    let QueueCommand::Subscribe { queue, consumer: id, tag, no_ack, exclusive, prefetch, priority, .. } =
        subscribe(consumer(1), 0)
    else {
        unreachable!()
    };
    let slow =
        QueueCommand::Subscribe { queue, consumer: id, tag, no_ack, exclusive, prefetch, credit_to: 2, priority };
    let first = group.send(HOME, vec![slow, publish("a"), publish("b"), publish("c"), publish("d")]);
    assert_eq!(numbers(&first).len(), 2);
    assert!(numbers(&group.send(HOME, vec![settle(id, 1, 2, Outcome::Ack)])).is_empty());
    let more = group.send(HOME, vec![QueueCommand::Credit { queue: QUEUE, consumer: id, up_to: 3 }]);
    assert_eq!(deliveries(&more).iter().map(|it| it.number).collect::<Vec<_>>(), [3]);
    let less = group.send(HOME, vec![QueueCommand::Credit { queue: QUEUE, consumer: id, up_to: 1 }, publish("e")]);
    assert!(deliveries(&less).is_empty());
}

#[test]
fn an_exclusive_consumer_is_alone() {
    let mut group = queue();
    let exclusive = |number| match subscribe(consumer(number), 0) {
        QueueCommand::Subscribe { queue, consumer, tag, no_ack, prefetch, credit_to, priority, .. } => {
            let exclusive = true;
            QueueCommand::Subscribe { queue, consumer, tag, no_ack, exclusive, prefetch, credit_to, priority }
        }
        other => other,
    };
    let got = replies(&group.send(HOME, vec![subscribe(consumer(1), 0), exclusive(2)]));
    assert_eq!(got, [QueueReply::Subscribed, QueueReply::ExclusiveUse]);
    assert_eq!(
        got[1].refusal("/", "q").expect("an error").to_string(),
        "ACCESS_REFUSED - queue 'q' in vhost '/' in exclusive use"
    );
    let cancel = QueueCommand::Cancel { queue: QUEUE, consumer: consumer(1) };
    let got = replies(&group.send(HOME, vec![cancel, exclusive(3), subscribe(consumer(4), 0)]));
    assert_eq!(got, [QueueReply::Cancelled { last: 0 }, QueueReply::Subscribed, QueueReply::ExclusiveUse]);
}

#[test]
fn a_get_holds_one_message_until_it_is_settled() {
    let mut group = queue();
    let get = |number| QueueCommand::Get { queue: QUEUE, consumer: consumer(number) };
    let got = replies(&group.send(HOME, vec![publish("a"), publish("b"), get(1), get(2), get(3)]));
    let [QueueReply::Got { delivery, remaining: 1 }, QueueReply::Got { remaining: 0, .. }, QueueReply::Empty] =
        &got[..]
    else {
        panic!("{got:?}")
    };
    assert_eq!(delivery.number, 1);
    group.send(HOME, vec![settle(consumer(1), 1, 1, Outcome::Ack), settle(consumer(2), 1, 1, Outcome::Requeue)]);
    let stats = group.machine.stats(QUEUE).expect("a queue");
    assert_eq!((stats.ready, stats.unacked), (1, 0));
}

#[test]
fn a_publish_into_a_deleted_queue_is_confirmed_and_a_request_is_answered() {
    let mut group = queue();
    let delete = QueueCommand::DeleteQueue { queue: QUEUE, if_unused: false, if_empty: false };
    let effects = group.send(HOME, vec![subscribe(consumer(1), 1), publish("a"), delete]);
    assert!(effects.contains(&QueueEffect::QueueDeleted { queue: QUEUE }));
    let reason = CancelReason::QueueDeleted;
    assert!(effects.contains(&QueueEffect::ConsumerCancelled { consumer: consumer(1), queue: QUEUE, reason }));
    let effects = group.send(HOME, vec![create(), publish("b"), QueueCommand::Stat { queue: QUEUE }]);
    assert_eq!(replies(&effects), [QueueReply::NoSuchQueue, QueueReply::Gone]);
    assert!(effects.contains(&QueueEffect::Confirm { boot: HOME, seq: 6 }));
    assert!(group.machine.live_indexes().is_empty());
    assert!(group.machine.state_enter().contains(&QueueEffect::QueueDeleted { queue: QUEUE }));
}

#[test]
fn conditions_of_a_delete_are_checked() {
    let mut group = queue();
    let delete = |if_unused, if_empty| QueueCommand::DeleteQueue { queue: QUEUE, if_unused, if_empty };
    let got = replies(
        &group.send(HOME, vec![publish("a"), delete(false, true), subscribe(consumer(1), 1), delete(true, false)]),
    );
    assert_eq!(got, [QueueReply::NotEmpty, QueueReply::Subscribed, QueueReply::InUse]);
}

#[test]
fn an_auto_delete_queue_goes_with_its_last_consumer_and_not_before_its_first() {
    let mut group = Group::new(QueueMachine::new());
    let settings = QueueSettings { auto_delete: true };
    group.lead(QueueCommand::CreateQueue { queue: QUEUE, vhost: "/".into(), name: "q".into(), settings });
    let get = QueueCommand::Get { queue: QUEUE, consumer: consumer(9) };
    group.send(HOME, vec![publish("a"), get, settle(consumer(9), 1, 1, Outcome::Ack)]);
    group.send(HOME, vec![subscribe(consumer(1), 1), subscribe(consumer(2), 1)]);
    group.send(HOME, vec![QueueCommand::Cancel { queue: QUEUE, consumer: consumer(1) }]);
    assert!(group.machine.stats(QUEUE).is_some());
    let effects = group.send(HOME, vec![QueueCommand::ChannelClosed { channel: consumer(2).channel }]);
    assert!(effects.contains(&QueueEffect::QueueDeleted { queue: QUEUE }));
}

#[test]
fn a_new_leader_says_how_far_everyone_is_and_a_home_gets_what_it_lacks() {
    let mut group = queue();
    group.send(HOME, vec![subscribe(consumer(1), 0), publish("a"), publish("b"), publish("c")]);
    group.send(HOME, vec![settle(consumer(1), 2, 2, Outcome::Ack)]);
    group.reload();
    let owed = group.machine.state_enter();
    assert!(owed.contains(&QueueEffect::Confirm { boot: HOME, seq: 5 }));
    assert!(owed.contains(&QueueEffect::ConsumerAt { consumer: consumer(1), queue: QUEUE, last: 3 }));
    let rest = group.machine.deliveries_after(QUEUE, consumer(1), 0, 1).expect("a consumer");
    assert_eq!((rest.through, rest.deliveries.len()), (1, 1));
    let rest = group.machine.deliveries_after(QUEUE, consumer(1), 1, 10).expect("a consumer");
    assert_eq!((rest.through, rest.deliveries.iter().map(|it| it.number).collect::<Vec<_>>()), (3, vec![3]));
    assert_eq!(group.machine.deliveries_after(QUEUE, consumer(2), 0, 1), None);
}

#[test]
fn an_entry_is_dead_once_its_last_message_is_gone() {
    let mut group = queue();
    group.send(HOME, vec![publish("a"), publish("b")]);
    let index = group.index;
    group.send(HOME, vec![subscribe(consumer(1), 0)]);
    group.send(HOME, vec![settle(consumer(1), 2, 2, Outcome::Reject)]);
    assert_eq!((group.machine.live_indexes(), group.machine.take_dead()), (vec![index], vec![]));
    group.send(HOME, vec![settle(consumer(1), 1, 1, Outcome::Ack)]);
    assert_eq!((group.machine.live_indexes(), group.machine.take_dead()), (vec![], vec![index]));
    assert_eq!(group.machine.take_dead(), []);
}

#[test]
fn a_malformed_entry_changes_nothing() {
    let mut group = queue();
    let before = group.machine.digest();
    let mut entry = EntryBuilder::new();
    entry.push(&group.batch(HOME, vec![publish("a"), publish("b")]));
    let payload = entry.finish(0);
    let meta = ApplyMeta { index: 2, term: 1 };
    let mut effects = Vec::new();
    assert!(group.machine.apply(&meta, &payload.slice(..payload.len() - 1), &mut effects).is_err());
    assert_eq!((effects, group.machine.digest()), (vec![], before));
}

#[test]
fn a_damaged_snapshot_is_refused() {
    let mut group = queue();
    group.send(HOME, vec![publish("a"), subscribe(consumer(1), 1)]);
    let snapshot = group.machine.snapshot();
    for at in 0..snapshot.len() {
        let mut damaged = snapshot.to_vec();
        damaged[at] ^= 1;
        assert!(QueueMachine::restore(&Bytes::from(damaged)).is_err(), "byte {at}");
        assert!(QueueMachine::restore(&snapshot.slice(..at)).is_err(), "cut at {at}");
    }
}

#[test]
fn queues_of_one_group_do_not_mix() {
    let mut group = queue();
    let other = QueueId(8);
    group.lead(QueueCommand::CreateQueue {
        queue: other,
        vhost: "/".into(),
        name: "r".into(),
        settings: Default::default(),
    });
    group.send(HOME, vec![publish("a"), QueueCommand::Purge { queue: other }]);
    assert_eq!(group.machine.stats(QUEUE).expect("a queue").ready, 1);
    group.lead(QueueCommand::BootEnded { boot: BootId(999) });
    assert_eq!(group.machine.stats(other).expect("a queue").ready, 0);
}

#[test]
fn a_batch_ends_at_a_command_for_a_queue_that_is_yet_to_come_and_goes_on_there_when_it_is_sent_again() {
    let mut group = queue();
    let next = QueueId(QUEUE.0 + 1);
    let QueueCommand::Publish { message, .. } = publish("later") else { unreachable!() };
    let later = QueueCommand::Publish { queue: next, message };
    let commands = vec![publish("now"), later.clone(), publish("after it")];
    let batch = Batch { origin: Some(Origin { boot: HOME, first: 1, answered: 0 }), commands };
    let refused = [
        QueueEffect::SequenceGap { boot: HOME, expected: 2 },
        QueueEffect::QueueUnknown { queue: next },
        QueueEffect::Confirm { boot: HOME, seq: 1 },
    ];
    assert_eq!(group.apply(std::slice::from_ref(&batch)), refused);
    assert_eq!(group.apply(std::slice::from_ref(&batch)), refused);
    group.reload();
    assert_eq!(group.machine.stats(QUEUE).expect("a queue").ready, 1);
    let settings = QueueSettings::default();
    group.lead(QueueCommand::CreateQueue { queue: next, vhost: "/".into(), name: "next".into(), settings });
    assert_eq!(group.apply(std::slice::from_ref(&batch)), [QueueEffect::Confirm { boot: HOME, seq: 3 }]);
    let ready = |queue| group.machine.stats(queue).expect("a queue").ready;
    assert_eq!((ready(QUEUE), ready(next)), (2, 1));
}

#[test]
fn the_leader_can_say_of_a_queue_that_it_never_comes() {
    let mut group = queue();
    let never = QueueId(QUEUE.0 + 1);
    let stat = Batch {
        origin: Some(Origin { boot: HOME, first: 1, answered: 0 }),
        commands: vec![QueueCommand::Stat { queue: never }],
    };
    assert!(group.apply(std::slice::from_ref(&stat)).contains(&QueueEffect::QueueUnknown { queue: never }));
    group.lead(QueueCommand::DeleteQueue { queue: never, if_unused: false, if_empty: false });
    let reply = QueueEffect::Reply { boot: HOME, seq: 1, reply: QueueReply::Gone };
    assert_eq!(group.apply(&[stat]), [reply, QueueEffect::Confirm { boot: HOME, seq: 1 }]);
}
