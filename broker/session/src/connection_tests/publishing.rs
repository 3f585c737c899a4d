use holdfast_wire::BasicProperties;

use super::*;
use crate::Refusal;

fn publish_of(requests: &[Request]) -> &Publish {
    match requests {
        [Request::Publish(publish)] => publish,
        other => panic!("not a publish: {other:?}"),
    }
}

/// Channel 1 in confirm mode with `count` publishes.
fn with_publishes(count: usize) -> (Script, ChannelId) {
    let (mut script, channel) = Script::with_channel();
    script.send(1, Method::ConfirmSelect { no_wait: false });
    script.answer_sync(channel);
    assert_eq!(script.methods(), [(1, Method::ConfirmSelectOk {})]);
    for _ in 0..count {
        script.publish(1, "q");
    }
    script.requests();
    (script, channel)
}

#[test]
fn a_message_keeps_its_properties_and_body_byte_for_byte() {
    let (mut script, channel) = Script::with_channel();
    let properties = BasicProperties { delivery_mode: Some(2), app_id: Some(short("a")), ..Default::default() };
    let body = Bytes::from((0..20_000u32).flat_map(u32::to_be_bytes).collect::<Vec<u8>>());
    for (seq, body) in [(1, body), (2, Bytes::new())] {
        script.bytes(publish_frames(1, "key", &properties.encode(), &body));
        let requests = script.requests();
        let publish = publish_of(&requests);
        assert_eq!((publish.channel, publish.seq, publish.confirm), (channel, seq, false));
        assert_eq!((&publish.exchange, &publish.routing_key, publish.mandatory), (&short(""), &short("key"), true));
        assert_eq!((&publish.properties, &publish.body), (&properties.encode(), &body));
    }
}

#[test]
fn confirms_are_joined_up_to_the_first_gap() {
    let (mut script, channel) = with_publishes(6);
    for seq in [5, 2, 1] {
        script.connection.confirm(channel, seq);
    }
    assert_eq!(script.methods(), [(1, ack(2, true)), (1, ack(5, false))]);
    for seq in [3, 4, 6, 6] {
        script.connection.confirm(channel, seq);
    }
    assert_eq!(script.methods(), [(1, ack(6, true))]);
}

#[test]
fn refused_publishes_are_nacked_and_split_the_runs() {
    let (mut script, channel) = with_publishes(5);
    for seq in [1, 2, 5] {
        script.connection.confirm(channel, seq);
    }
    script.connection.reject_publish(channel, 3);
    script.connection.reject_publish(channel, 4);
    let nack = Method::BasicNack { delivery_tag: 4, multiple: true, requeue: false };
    assert_eq!(script.methods(), [(1, ack(2, true)), (1, nack), (1, ack(5, false))]);
}

#[test]
fn confirm_numbers_start_with_confirm_select() {
    let (mut script, channel) = Script::with_channel();
    script.publish(1, "before");
    script.send(1, Method::ConfirmSelect { no_wait: true });
    script.publish(1, "after");
    script.connection.confirm(channel, 1);
    script.connection.confirm(channel, 2);
    assert_eq!(script.methods(), [(1, ack(1, false))]);
}

#[test]
fn a_mandatory_message_comes_back_before_its_confirm() {
    let (mut script, channel) = with_publishes(1);
    let (properties, body) = (Properties::default(), Bytes::from_static(b"body"));
    script.connection.return_message(channel, &short("x"), &short("k"), &properties, &body);
    script.connection.confirm(channel, 1);
    let (exchange, routing_key) = (short("x"), short("k"));
    let returned = Method::BasicReturn { reply_code: 312, reply_text: short("NO_ROUTE"), exchange, routing_key };
    let content = Seen::Content(1, returned, properties.into_bytes(), body);
    assert_eq!(script.seen(), [content, Seen::Method(1, ack(1, false))]);
}

#[test]
fn a_publish_to_no_exchange_closes_the_channel_after_earlier_confirms() {
    let (mut script, channel) = with_publishes(2);
    script.connection.confirm(channel, 1);
    script.connection.fail_publish(channel, Refusal::new(ReplyCode::NotFound, "no exchange 'x' in vhost '/'"), 0);
    let seen = script.methods();
    assert_eq!(seen[0], (1, ack(1, false)));
    let reply_text = short("NOT_FOUND - no exchange 'x' in vhost '/'");
    assert_eq!(seen[1], (1, Method::ChannelClose { reply_code: 404, reply_text, class_id: 60, method_id: 40 }));
}

#[test]
fn what_follows_a_failed_publish_is_dropped_and_a_close_is_answered_when_what_came_before_is_durable() {
    let (mut script, channel) = Script::with_channel();
    let other = script.open_channel(2);
    script.publish(1, "bad");
    script.publish(1, "later");
    script.publish(2, "other");
    script.send(1, channel_close());
    assert!(matches!(script.connection.poll_request(), Some(Request::Publish(_))));
    script.connection.fail_publish(channel, Refusal::new(ReplyCode::NotFound, "no exchange"), 0);
    let requests = script.requests();
    assert!(
        matches!(
            &requests[..],
            [Request::Publish(publish), Request::ChannelLost { .. }, Request::CloseChannel { .. }] if publish.channel == other
        ),
        "{requests:?}"
    );
    let seen = script.methods();
    assert!(matches!(seen[..], [(1, Method::ChannelClose { .. })]), "{seen:?}");
    script.reply(channel, Reply::Done);
    assert_eq!(script.methods(), [(1, Method::ChannelCloseOk {})]);
    script.open_channel(1);
}

#[test]
fn properties_that_lie_are_refused() {
    let other_user = BasicProperties { user_id: Some(short("root")), ..Default::default() };
    let expiration = |text| BasicProperties { expiration: Some(short(text)), ..Default::default() };
    let cases = [
        (other_user, "PRECONDITION_FAILED - user_id property set to 'root' but authenticated user was 'guest'"),
        (expiration("-1"), "PRECONDITION_FAILED - invalid expiration '-1': no_integer"),
        (expiration("99999999999"), "PRECONDITION_FAILED - invalid expiration '99999999999': value_too_large"),
        // Storing it and never letting it expire would be a silent change of meaning.
        (
            expiration("60000"),
            "PRECONDITION_FAILED - expiration '60000': this version does not support message TTL yet",
        ),
    ];
    for (properties, text) in cases {
        let (mut script, _) = Script::with_channel();
        script.bytes(publish_frames(1, "q", &properties.encode(), &Bytes::from_static(b"x")));
        script.expect_close(1, ReplyCode::PreconditionFailed, text, (60, 40));
    }
    let honest = BasicProperties { user_id: Some(short("guest")), ..Default::default() };
    let (mut script, _) = Script::with_channel();
    script.bytes(publish_frames(1, "q", &honest.encode(), &Bytes::from_static(b"x")));
    assert_eq!(script.requests().len(), 1);
}

#[test]
fn headers_that_no_consumer_could_decode_close_the_publisher_s_connection() {
    let raw = |header: &[u8]| {
        let mut out = BytesMut::new();
        publish_method("q", false).encode(1, &mut out);
        ContentHeader::encode(1, 1, header, &mut out);
        out.freeze()
    };
    let deep = (0..15_000).fold(FieldTable::default(), |inner, _| {
        FieldTable::from_entries([("k", FieldValue::Table(inner))]).expect("a short key")
    });
    let deep = BasicProperties { headers: Some(deep), ..Default::default() }.encode();
    let cases = [
        (&b"\x20\0\0\0\0\x03\x01kZ"[..], "SYNTAX_ERROR - unknown field type 0x5a in a table"),
        (deep.as_bytes(), "SYNTAX_ERROR - field table is nested more than 64 levels deep"),
    ];
    for (header, text) in cases {
        let (mut script, _) = Script::with_channel();
        script.bytes(raw(header));
        script.expect_close(0, ReplyCode::SyntaxError, text, (0, 0));
    }
}

#[test]
fn immediate_is_not_implemented() {
    let (mut script, _) = Script::with_channel();
    script.send(1, publish_method("q", true));
    let mut header = BytesMut::new();
    ContentHeader::encode(1, 0, &[0, 0], &mut header);
    script.bytes(header.freeze());
    script.expect_close(0, ReplyCode::NotImplemented, "NOT_IMPLEMENTED - immediate=true", (60, 40));
}

#[test]
fn a_message_over_the_limit_is_refused_before_its_body_is_taken() {
    let config = Config { message_max_bytes: 10, ..Config::default() };
    let mut script = Script::open_with(config);
    let channel = script.open_channel(1);
    script.bytes(publish_frames(1, "q", &Properties::default(), &Bytes::from_static(b"eleven octe")));
    let text = "PRECONDITION_FAILED - message size 11 is larger than configured max size 10";
    script.expect_close(1, ReplyCode::PreconditionFailed, text, (60, 40));
    assert_eq!(script.requests(), [Request::ChannelLost { channel }]);
}

#[test]
fn bodies_under_way_on_all_channels_together_are_bounded() {
    let config = Config { assembly_max_bytes: 9000, ..Config::default() };
    let mut script = Script::open_with(config);
    for number in 1..=3 {
        script.open_channel(number);
        let whole = publish_frames(number, "q", &Properties::default(), &Bytes::from(vec![0; 4500]));
        script.bytes(whole.slice(..whole.len() - 420));
    }
    let seen = script.methods();
    assert!(matches!(seen[..], [(0, Method::ConnectionClose { reply_code: 506, .. })]), "{seen:?}");
}

#[test]
fn what_is_held_back_stops_the_reading_until_it_drains() {
    let config = Config { assembly_max_bytes: 1000, ..Config::default() };
    let mut script = Script::open_with(config);
    let channel = script.open_channel(1);
    script.send(1, declare("q"));
    for _ in 0..10 {
        script.publish(1, "q");
    }
    assert!(!script.connection.wants_input());
    script.requests();
    script.reply(channel, Reply::Declared { queue: short("q"), messages: 0, consumers: 0 });
    assert!(script.connection.wants_input());
    assert_eq!(script.requests().len(), 10);
    assert_eq!(script.connection.shared.held_bytes, 0);
}

#[test]
fn content_frames_out_of_place_are_unexpected() {
    let header = |class: u8, weight: u8| {
        let mut out = BytesMut::new();
        ContentHeader::encode(1, 4, &[0, 0], &mut out);
        out[8] = class;
        out[10] = weight;
        out.freeze()
    };
    let body = || Bytes::from_static(b"\x03\0\x01\0\0\0\x02xx\xce");
    let method = || publish_method("q", false).to_frame(1);
    let none = "UNEXPECTED_FRAME - expected method frame, got non method frame instead";
    let no_header = "UNEXPECTED_FRAME - expected content header for class 60, got non content header frame instead";
    let no_body = "UNEXPECTED_FRAME - expected content body, got non content body frame instead";
    let class = "UNEXPECTED_FRAME - expected content header for class 60, got one for class 50 instead";
    let cases = [
        (vec![header(60, 0)], none, (0, 0)),
        (vec![body()], none, (0, 0)),
        (vec![method(), body()], no_header, (60, 40)),
        (vec![method(), method()], no_header, (60, 40)),
        (vec![method(), header(60, 1)], no_header, (60, 40)),
        (vec![method(), header(50, 0)], class, (60, 40)),
        (vec![method(), header(60, 0), method()], no_body, (60, 40)),
    ];
    for (frames, text, blamed) in cases {
        let (mut script, _) = Script::with_channel();
        frames.into_iter().for_each(|frame| script.bytes(frame));
        script.expect_close(0, ReplyCode::UnexpectedFrame, text, blamed);
    }
}

#[test]
fn a_body_longer_than_announced_is_a_frame_error() {
    let (mut script, _) = Script::with_channel();
    script.send(1, publish_method("q", false));
    let mut rest = BytesMut::new();
    ContentHeader::encode(1, 1, &[0, 0], &mut rest);
    rest.extend_from_slice(b"\x03\0\x01\0\0\0\x02xx\xce");
    script.bytes(rest.freeze());
    let text = "FRAME_ERROR - content body is 1 octets longer than announced";
    script.expect_close(0, ReplyCode::FrameError, text, (60, 40));
}

#[test]
fn a_transaction_passes_its_publishes_and_acks_on_at_commit() {
    let (mut script, channel) = Script::with_channel();
    let consumer = script.consume(channel, "c", false);
    script.connection.deliver(channel, consumer, delivery(9, 1));
    script.seen();
    script.send(1, Method::TxSelect {});
    script.reply(channel, Reply::Done);
    script.requests();
    script.publish(1, "dropped");
    script.send(1, ack(1, false));
    script.send(1, Method::TxRollback {});
    assert_eq!(script.methods(), [(1, Method::TxSelectOk {}), (1, Method::TxRollbackOk {})]);
    assert_eq!(script.requests(), []);
    script.publish(1, "kept");
    script.send(1, ack(1, false));
    script.send(1, Method::TxCommit {});
    match &script.requests()[..] {
        [Request::Call { call: Call::CommitTx { publishes, settles }, .. }] => {
            assert_eq!(publishes.iter().map(|publish| publish.seq).collect::<Vec<_>>(), [2]);
            assert_eq!(settles.iter().map(|settle| settle.first).collect::<Vec<_>>(), [1]);
        }
        other => panic!("not a commit: {other:?}"),
    }
    script.reply(channel, Reply::Done);
    assert_eq!(script.methods(), [(1, Method::TxCommitOk {})]);
    assert_eq!(script.connection.shared.held_bytes, 0);
}

#[test]
fn confirm_and_tx_mode_exclude_each_other() {
    let (mut script, _) = with_publishes(0);
    script.send(1, Method::TxSelect {});
    let text = "PRECONDITION_FAILED - cannot switch from confirm to tx mode";
    script.expect_close(1, ReplyCode::PreconditionFailed, text, (90, 10));
    let (mut script, channel) = Script::with_channel();
    script.send(1, Method::TxSelect {});
    script.reply(channel, Reply::Done);
    script.seen();
    script.send(1, Method::ConfirmSelect { no_wait: false });
    let text = "PRECONDITION_FAILED - cannot switch from tx to confirm mode";
    script.expect_close(1, ReplyCode::PreconditionFailed, text, (85, 10));
    let (mut script, _) = Script::with_channel();
    script.send(1, Method::TxCommit {});
    let text = "PRECONDITION_FAILED - channel is not transactional";
    script.expect_close(1, ReplyCode::PreconditionFailed, text, (90, 20));
}
