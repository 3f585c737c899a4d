use super::*;
use crate::{LostReason, Refusal};

#[test]
fn channel_close_ok_waits_until_the_engine_says_durable() {
    let (mut script, channel) = Script::with_channel();
    script.send(1, Method::ConfirmSelect { no_wait: true });
    script.publish(1, "q");
    script.send(1, channel_close());
    assert!(matches!(script.requests()[..], [Request::Publish(_), Request::CloseChannel { .. }]));
    assert_eq!(script.methods(), []);
    script.connection.confirm(channel, 1);
    script.reply(channel, Reply::Done);
    assert_eq!(script.methods(), [(1, ack(1, false)), (1, Method::ChannelCloseOk {})]);
}

#[test]
fn connection_close_ok_waits_for_calls_and_then_for_durability() {
    let (mut script, channel) = Script::with_channel();
    script.send(1, declare("q"));
    script.publish(1, "q");
    script.send(0, connection_close());
    assert_eq!(script.requests().len(), 1, "the close waits for the declare and for the publish behind it");
    script.reply(channel, Reply::Declared { queue: short("q"), messages: 0, consumers: 0 });
    assert!(matches!(script.requests()[..], [Request::Publish(_), Request::CloseConnection]));
    assert!(!script.connection.is_closed());
    script.connection.reply_connection_closed();
    let seen = script.methods();
    assert!(matches!(seen[..], [(1, Method::QueueDeclareOk { .. }), (0, Method::ConnectionCloseOk {})]), "{seen:?}");
    assert!(script.connection.is_closed());
}

#[test]
fn nothing_is_delivered_to_a_client_that_closes() {
    let (mut script, channel) = Script::with_channel();
    let consumer = script.consume(channel, "c", false);
    script.send(0, connection_close());
    script.connection.deliver(channel, consumer, delivery(9, 1));
    assert_eq!(script.seen(), []);
    assert_eq!(script.requests(), [Request::CloseConnection]);
}

#[test]
fn a_call_that_fails_while_the_client_closes_does_not_hold_the_close_up() {
    let (mut script, channel) = Script::with_channel();
    script.send(1, declare("q"));
    script.send(0, connection_close());
    script.requests();
    script.reply(channel, Reply::Failed(Refusal::new(ReplyCode::NotFound, "no")));
    assert_eq!(script.requests(), [Request::ChannelLost { channel }, Request::CloseConnection]);
}

#[test]
fn a_close_by_the_broker_waits_for_close_ok_but_not_for_ever() {
    for answers in [true, false] {
        let mut script = Script::open();
        script.connection.close(Refusal::new(ReplyCode::ConnectionForced, "broker shutting down"), 0);
        script.expect_close(0, ReplyCode::ConnectionForced, "CONNECTION_FORCED - broker shutting down", (0, 0));
        assert!(matches!(script.requests()[..], [Request::ConnectionLost { why: LostReason::Error(_) }]));
        assert!(!script.connection.is_closed());
        if answers {
            script.send(0, Method::ConnectionCloseOk {});
        } else {
            script.wait(10_000_000);
        }
        assert!(script.connection.is_closed());
    }
}

#[test]
fn a_close_that_crosses_ours_gets_no_close_ok_since_what_came_before_it_was_dropped() {
    let (mut script, _) = Script::with_channel();
    script.requests();
    script.connection.close(Refusal::new(ReplyCode::ConnectionForced, "bye"), 0);
    script.seen();
    script.publish(1, "dropped");
    script.send(0, connection_close());
    assert_eq!(script.methods(), []);
    assert!(script.connection.is_closed());
}

/// Seed 3884 of the simulator: its publishes were refused while the close was on its way.
#[test]
fn a_close_of_a_client_that_has_not_seen_a_publish_refused_gets_no_close_ok() {
    let refusal = || Refusal::new(ReplyCode::PreconditionFailed, "too few copies");
    let text = "PRECONDITION_FAILED - too few copies";
    for closes_first in [true, false] {
        let (mut script, channel) = Script::with_channel();
        script.publish(1, "refused");
        if closes_first {
            script.send(0, connection_close());
        }
        script.requests();
        script.connection.fail_publish(channel, refusal(), 0);
        if !closes_first {
            let seen = script.methods();
            assert!(matches!(seen[..], [(1, Method::ChannelClose { .. })]), "{seen:?}");
            script.send(0, connection_close());
        }
        script.expect_close(0, ReplyCode::PreconditionFailed, text, (60, 40));
        script.connection.reply_connection_closed();
        assert_eq!(script.methods(), []);
    }
    let (mut script, channel) = Script::with_channel();
    script.publish(1, "refused");
    script.requests();
    script.connection.fail_publish(channel, refusal(), 0);
    script.send(1, Method::ChannelCloseOk {});
    script.requests();
    script.send(0, connection_close());
    assert_eq!(script.requests(), [Request::CloseConnection], "it knows");
}

#[test]
fn a_client_that_waits_for_its_close_ok_hears_that_the_broker_closes() {
    let mut script = Script::open();
    script.send(0, connection_close());
    assert_eq!(script.requests(), [Request::CloseConnection]);
    script.connection.close(Refusal::new(ReplyCode::ConnectionForced, "declared dead"), 0);
    script.expect_close(0, ReplyCode::ConnectionForced, "CONNECTION_FORCED - declared dead", (0, 0));
    script.connection.reply_connection_closed();
    assert_eq!(script.methods(), [], "what came before is not known to be durable");
    script.send(0, Method::ConnectionCloseOk {});
    assert!(script.connection.is_closed());
}

#[test]
fn broken_framing_is_told_and_the_rest_is_not_read() {
    let too_large = "FRAME_ERROR - frame payload of 131065 octets is over the limit of 131064";
    let cases: [(&'static [u8], &str); 3] = [
        (b"\x03\0\x01\0\x01\xff\xf9", too_large),
        (b"\x08\0\0\0\0\0\0\xcf", "FRAME_ERROR - frame ends with octet 0xcf instead of 0xce"),
        (b"\x07\0\0\0\0\0\0\xce", "FRAME_ERROR - unknown frame type 7"),
    ];
    for (bytes, text) in cases {
        let mut script = Script::open();
        script.bytes(Bytes::from_static(bytes));
        script.expect_close(0, ReplyCode::FrameError, text, (0, 0));
        script.bytes(Bytes::from_static(b"whatever"));
        assert!(!script.connection.is_closed());
        script.send(0, Method::ConnectionCloseOk {});
        assert!(script.connection.is_closed());
    }
}

#[test]
fn undecodable_methods_name_what_is_wrong() {
    let cases = [
        (
            &b"\x01\0\x01\0\0\0\x04\0\x3c\x03\xe7\xce"[..],
            ReplyCode::NotImplemented,
            "NOT_IMPLEMENTED - unknown method id (60, 999)",
            (60, 999),
        ),
        (
            b"\x01\0\x01\0\0\0\x05\0\x3c\0\x50\0\xce",
            ReplyCode::FrameError,
            "FRAME_ERROR - payload ends inside a field",
            (0, 0),
        ),
        (
            b"\x01\0\x01\0\0\0\x0c\0\x32\0\x0a\0\0\x03a\xffb\0\0\xce",
            ReplyCode::FrameError,
            "FRAME_ERROR - Malformed UTF-8 in shortstr",
            (0, 0),
        ),
    ];
    for (bytes, code, text, blamed) in cases {
        let (mut script, _) = Script::with_channel();
        script.bytes(Bytes::from_static(bytes));
        script.expect_close(0, code, text, blamed);
    }
}

#[test]
fn a_client_that_closes_gets_no_close_ok_when_the_broker_closes_before_all_is_durable() {
    let (mut script, _) = Script::with_channel();
    script.send(1, declare("q"));
    script.publish(1, "q");
    script.send(0, connection_close());
    script.requests();
    script.connection.close(Refusal::new(ReplyCode::ConnectionForced, "broker shutting down"), 5);
    let seen = script.methods();
    assert!(matches!(seen[..], [(0, Method::ConnectionClose { .. })]), "{seen:?}");
    script.send(0, Method::ConnectionCloseOk {});
    assert!(script.connection.is_closed());
}
