use super::*;

/// Channel 1 with consumer `c` and `count` deliveries from queue 9, numbered from 1.
fn with_deliveries(count: u64) -> (Script, ChannelId, u32) {
    let (mut script, channel) = Script::with_channel();
    let consumer = script.consume(channel, "c", false);
    for number in 1..=count {
        script.connection.deliver(channel, consumer, delivery(9, number));
    }
    script.seen();
    (script, channel, consumer)
}

fn delivery_tags(seen: &[Seen]) -> Vec<u64> {
    let tag_of = |seen: &Seen| match seen {
        Seen::Content(_, Method::BasicDeliver { delivery_tag, .. } | Method::BasicGetOk { delivery_tag, .. }, ..) => {
            Some(*delivery_tag)
        }
        _ => None,
    };
    seen.iter().filter_map(tag_of).collect()
}

#[test]
fn a_delivery_carries_tag_origin_properties_and_body() {
    let (mut script, channel) = Script::with_channel();
    let consumer = script.consume(channel, "c", false);
    let body = Bytes::from(vec![7; 300_000]);
    let sent = Delivery { redelivered: true, body: body.clone(), ..delivery(9, 1) };
    script.connection.deliver(channel, consumer, sent);
    assert!(script.connection.queued_bytes() > 300_000);
    let method = Method::BasicDeliver {
        consumer_tag: short("c"),
        delivery_tag: 1,
        redelivered: true,
        exchange: short("x"),
        routing_key: short("k"),
    };
    assert_eq!(script.seen(), [Seen::Content(1, method, Bytes::from_static(&[0, 0]), body)]);
    assert_eq!(script.connection.queued_bytes(), 0);
}

#[test]
fn acks_name_consumer_queue_and_delivery_numbers() {
    let (mut script, _, consumer) = with_deliveries(7);
    script.send(1, ack(2, false));
    script.send(1, Method::BasicReject { delivery_tag: 3, requeue: true });
    script.send(1, Method::BasicNack { delivery_tag: 5, multiple: true, requeue: false });
    script.send(1, ack(0, true));
    let expected = [
        (consumer, 9, 2, 2, Outcome::Ack),
        (consumer, 9, 3, 3, Outcome::Requeue),
        (consumer, 9, 1, 1, Outcome::Reject),
        (consumer, 9, 4, 5, Outcome::Reject),
        (consumer, 9, 6, 7, Outcome::Ack),
    ];
    assert_eq!(script.settles(), expected);
}

#[test]
fn single_acks_in_a_row_become_one_range() {
    let (mut script, _, consumer) = with_deliveries(5);
    for tag in 1..=5 {
        script.send(1, ack(tag, false));
    }
    assert_eq!(script.settles(), [(consumer, 9, 1, 5, Outcome::Ack)]);
}

#[test]
fn a_multiple_ack_over_two_consumers_is_one_range_for_each() {
    let (mut script, channel) = Script::with_channel();
    let (a, b) = (script.consume(channel, "a", false), script.consume(channel, "b", false));
    for number in 1..=3 {
        script.connection.deliver(channel, a, delivery(9, number));
        script.connection.deliver(channel, b, delivery(10, number + 100));
    }
    script.send(1, ack(6, true));
    assert_eq!(script.settles(), [(a, 9, 1, 3, Outcome::Ack), (b, 10, 101, 103, Outcome::Ack)]);
}

#[test]
fn an_unknown_delivery_tag_closes_the_channel() {
    let cases = [
        (ack(4, false), 4, 80),
        (ack(0, false), 0, 80),
        (ack(9, true), 9, 80),
        (Method::BasicReject { delivery_tag: 5, requeue: true }, 5, 90),
        (Method::BasicNack { delivery_tag: 5, multiple: true, requeue: true }, 5, 120),
    ];
    for (method, tag, id) in cases {
        let (mut script, channel, _) = with_deliveries(3);
        script.send(1, method);
        let text = format!("PRECONDITION_FAILED - unknown delivery tag {tag}");
        script.expect_close(1, ReplyCode::PreconditionFailed, &text, (60, id));
        assert_eq!(script.requests(), [Request::ChannelLost { channel }]);
    }
    let (mut script, ..) = with_deliveries(3);
    script.send(1, ack(1, false));
    script.send(1, ack(1, false));
    script.expect_close(1, ReplyCode::PreconditionFailed, "PRECONDITION_FAILED - unknown delivery tag 1", (60, 80));
}

#[test]
fn ack_of_all_is_fine_when_there_is_nothing() {
    let (mut script, ..) = with_deliveries(0);
    script.send(1, ack(0, true));
    assert_eq!((script.settles(), script.seen()), (vec![], vec![]));
}

#[test]
fn deliveries_without_ack_are_settled_once_their_octets_are_handed_out() {
    let (mut script, channel) = Script::with_channel();
    let consumer = script.consume(channel, "c", true);
    for number in 1..=4 {
        script.connection.deliver(channel, consumer, delivery(9, number));
    }
    assert_eq!(script.requests(), []);
    assert_eq!(delivery_tags(&script.seen()), [1, 2, 3, 4]);
    assert_eq!(script.settles(), [(consumer, 9, 1, 4, Outcome::Ack)]);
    script.send(1, ack(1, false));
    script.expect_close(1, ReplyCode::PreconditionFailed, "PRECONDITION_FAILED - unknown delivery tag 1", (60, 80));
}

#[test]
fn get_takes_one_message_with_a_tag_of_its_own() {
    let (mut script, channel) = Script::with_channel();
    for (no_ack, tag) in [(false, 1), (true, 2)] {
        script.send(1, Method::BasicGet { queue: short("q"), no_ack });
        let consumer = match &script.requests()[..] {
            [Request::Call { call: Call::Get { consumer, queue, no_ack: asked }, .. }] => {
                assert_eq!((queue, *asked), (&short("q"), no_ack));
                *consumer
            }
            other => panic!("not a get: {other:?}"),
        };
        script.reply(channel, Reply::Got { delivery: delivery(9, 1), remaining: 5 });
        assert_eq!(delivery_tags(&script.seen()), [tag]);
        if !no_ack {
            script.send(1, ack(1, false));
        }
        assert_eq!(script.settles(), [(consumer, 9, 1, 1, Outcome::Ack)]);
    }
}

#[test]
fn a_consumer_tag_is_made_up_where_the_client_gives_none() {
    let (mut script, channel) = Script::with_channel();
    let mut tags = std::collections::BTreeSet::new();
    for _ in 0..3 {
        script.send(1, consume("q", "", false));
        script.reply(channel, Reply::Done);
        match &script.methods()[..] {
            [(1, Method::BasicConsumeOk { consumer_tag })] => {
                assert!(consumer_tag.as_str().starts_with("amq.ctag-"));
                tags.insert(consumer_tag.clone());
            }
            other => panic!("not consuming: {other:?}"),
        }
    }
    assert_eq!(tags.len(), 3);
}

#[test]
fn a_consumer_tag_cannot_be_used_twice_on_a_channel() {
    let (mut script, channel) = Script::with_channel();
    script.consume(channel, "c", false);
    script.send(1, consume("q", "c", false));
    script.expect_close(0, ReplyCode::NotAllowed, "NOT_ALLOWED - attempt to reuse consumer tag 'c'", (60, 20));
}

#[test]
fn qos_sets_the_prefetch_of_consumers_to_come() {
    let (mut script, channel) = Script::with_channel();
    script.send(1, Method::BasicQos { prefetch_size: 0, prefetch_count: 17, global: false });
    assert!(script.methods().is_empty(), "the reply proves earlier acks, so the engine gives it");
    script.answer_sync(channel);
    assert_eq!(script.methods(), [(1, Method::BasicQosOk {})]);
    script.send(1, consume("q", "c", false));
    assert!(matches!(script.requests()[..], [Request::Call { call: Call::Consume { prefetch: 17, .. }, .. }]));
}

#[test]
fn a_global_prefetch_holds_deliveries_back_until_there_is_room() {
    let (mut script, channel) = Script::with_channel();
    script.send(1, Method::BasicQos { prefetch_size: 0, prefetch_count: 2, global: true });
    script.answer_sync(channel);
    script.seen();
    let (a, b) = (script.consume(channel, "a", false), script.consume(channel, "b", false));
    for number in 1..=3 {
        script.connection.deliver(channel, a, delivery(9, number));
        script.connection.deliver(channel, b, delivery(10, number));
    }
    assert_eq!(delivery_tags(&script.seen()), [1, 2]);
    script.send(1, ack(1, false));
    assert_eq!(delivery_tags(&script.seen()), [3]);
    script.requests();
    script.send(1, Method::BasicCancel { consumer_tag: short("b"), no_wait: false });
    script.requests();
    script.reply(channel, Reply::Done);
    assert_eq!(script.settles(), [(b, 10, 2, 3, Outcome::Requeue)]);
    script.send(1, Method::BasicQos { prefetch_size: 0, prefetch_count: 0, global: true });
    assert_eq!(delivery_tags(&script.seen()), [4]);
}

#[test]
fn recover_gives_back_all_that_is_unacknowledged() {
    let (mut script, channel, consumer) = with_deliveries(4);
    script.send(1, ack(2, false));
    script.send(1, Method::BasicRecover { requeue: true });
    assert!(script.methods().is_empty());
    let expected = [
        (consumer, 9, 2, 2, Outcome::Ack),
        (consumer, 9, 1, 1, Outcome::Requeue),
        (consumer, 9, 3, 4, Outcome::Requeue),
    ];
    assert_eq!(script.settles(), expected);
    script.reply(channel, Reply::Done);
    assert_eq!(script.methods(), [(1, Method::BasicRecoverOk {})]);
    script.send(1, Method::BasicRecoverAsync { requeue: true });
    assert_eq!((script.settles(), script.seen()), (vec![], vec![]));
}

#[test]
fn what_arrives_after_a_cancel_goes_back() {
    let (mut script, channel, consumer) = with_deliveries(1);
    script.send(1, Method::BasicCancel { consumer_tag: short("c"), no_wait: false });
    let call = Call::Cancel { consumer, tag: short("c") };
    assert_eq!(script.requests(), [Request::Call { channel, call }]);
    script.connection.deliver(channel, consumer, delivery(9, 2));
    script.reply(channel, Reply::Done);
    let seen = script.seen();
    assert_eq!(delivery_tags(&seen), [2]);
    assert_eq!(seen.last(), Some(&Seen::Method(1, Method::BasicCancelOk { consumer_tag: short("c") })));
    script.connection.deliver(channel, consumer, delivery(9, 3));
    assert_eq!((script.settles(), script.seen()), (vec![(consumer, 9, 3, 3, Outcome::Requeue)], vec![]));
    script.send(1, ack(2, true));
    assert_eq!(script.settles(), [(consumer, 9, 1, 2, Outcome::Ack)]);
}

#[test]
fn a_cancel_of_an_unknown_tag_is_answered() {
    let (mut script, _) = Script::with_channel();
    script.send(1, Method::BasicCancel { consumer_tag: short("none"), no_wait: false });
    assert_eq!(script.methods(), [(1, Method::BasicCancelOk { consumer_tag: short("none") })]);
    assert_eq!(script.requests(), []);
}

#[test]
fn a_consumer_that_the_broker_ends_is_told_if_the_client_knows_how() {
    let (mut script, channel, consumer) = with_deliveries(1);
    script.connection.cancel_consumer(channel, consumer);
    script.connection.cancel_consumer(channel, consumer);
    assert_eq!(script.methods(), [(1, Method::BasicCancel { consumer_tag: short("c"), no_wait: true })]);
    let (mut script, channel, consumer) = with_deliveries(1);
    script.connection.shared.client.reads_cancel = false;
    script.connection.cancel_consumer(channel, consumer);
    assert_eq!(script.methods(), []);
}

#[test]
fn a_refused_consumer_frees_its_tag_with_its_channel() {
    let (mut script, channel) = Script::with_channel();
    script.send(1, consume("q", "c", false));
    let refusal = crate::Refusal::new(ReplyCode::AccessRefused, "queue 'q' in vhost '/' in exclusive use");
    script.requests();
    script.reply(channel, Reply::Failed(refusal));
    let text = "ACCESS_REFUSED - queue 'q' in vhost '/' in exclusive use";
    script.expect_close(1, ReplyCode::AccessRefused, text, (60, 20));
}
