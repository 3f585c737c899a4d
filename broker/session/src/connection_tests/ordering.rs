use super::*;
use crate::Refusal;

fn declared(queue: &'static str) -> Reply {
    Reply::Declared { queue: short(queue), messages: 3, consumers: 1 }
}

fn calls(requests: Vec<Request>) -> Vec<Call> {
    let call_of = |request| match request {
        Request::Call { call, .. } => call,
        other => panic!("not a call: {other:?}"),
    };
    requests.into_iter().map(call_of).collect()
}

fn no_arguments() -> FieldTable {
    FieldTable::default()
}

#[test]
fn a_publish_does_not_overtake_the_declare_before_it() {
    let (mut script, channel) = Script::with_channel();
    script.send(1, declare("q"));
    script.publish(1, "q");
    script.send(1, declare("r"));
    assert!(matches!(script.requests()[..], [Request::Call { call: Call::DeclareQueue { .. }, .. }]));
    script.reply(channel, declared("q"));
    let ok = Method::QueueDeclareOk { queue: short("q"), message_count: 3, consumer_count: 1 };
    assert_eq!(script.methods(), [(1, ok)]);
    let requests = script.requests();
    assert!(matches!(&requests[..], [Request::Publish(_), Request::Call { call: Call::DeclareQueue { .. }, .. }]));
}

#[test]
fn channels_do_not_wait_for_each_other() {
    let (mut script, _) = Script::with_channel();
    script.open_channel(2);
    script.send(1, declare("q"));
    script.publish(2, "q");
    assert_eq!(script.requests().len(), 2);
}

#[test]
fn no_wait_calls_keep_their_place_and_are_not_answered() {
    let (mut script, channel) = Script::with_channel();
    let exchange = short("x");
    script.send(1, Method::ExchangeDelete { exchange: exchange.clone(), if_unused: true, no_wait: true });
    script.publish(1, "q");
    assert_eq!(calls(script.requests()), [Call::DeleteExchange { name: exchange, if_unused: true }]);
    script.reply(channel, Reply::Done);
    assert_eq!(script.methods(), []);
    assert!(matches!(script.requests()[..], [Request::Publish(_)]));
}

#[test]
fn every_synchronous_method_gets_the_answer_of_its_kind() {
    let (x, q, k) = (|| short("x"), || short("q"), || short("k"));
    let arguments = no_arguments;
    let exchange_declare = Method::ExchangeDeclare {
        exchange: x(),
        kind: short("topic"),
        passive: false,
        durable: true,
        auto_delete: false,
        internal: false,
        no_wait: false,
        arguments: arguments(),
    };
    let bind = Method::ExchangeBind {
        destination: x(),
        source: q(),
        routing_key: k(),
        no_wait: false,
        arguments: arguments(),
    };
    let unbind = Method::ExchangeUnbind {
        destination: x(),
        source: q(),
        routing_key: k(),
        no_wait: false,
        arguments: arguments(),
    };
    let queue_bind =
        Method::QueueBind { queue: q(), exchange: x(), routing_key: k(), no_wait: false, arguments: arguments() };
    let queue_unbind = Method::QueueUnbind { queue: q(), exchange: x(), routing_key: k(), arguments: arguments() };
    let delete = Method::QueueDelete { queue: q(), if_unused: false, if_empty: true, no_wait: false };
    let cases = [
        (exchange_declare, Reply::Done, Method::ExchangeDeclareOk {}),
        (bind, Reply::Done, Method::ExchangeBindOk {}),
        (unbind, Reply::Done, Method::ExchangeUnbindOk {}),
        (queue_bind, Reply::Done, Method::QueueBindOk {}),
        (queue_unbind, Reply::Done, Method::QueueUnbindOk {}),
        (
            Method::QueuePurge { queue: q(), no_wait: false },
            Reply::Messages(7),
            Method::QueuePurgeOk { message_count: 7 },
        ),
        (delete, Reply::Messages(8), Method::QueueDeleteOk { message_count: 8 }),
        (Method::BasicGet { queue: q(), no_ack: true }, Reply::Empty, Method::BasicGetEmpty {}),
        (Method::TxSelect {}, Reply::Done, Method::TxSelectOk {}),
    ];
    let (mut script, channel) = Script::with_channel();
    for (method, reply, answer) in cases {
        script.send(1, method);
        assert_eq!(calls(script.requests()).len(), 1);
        script.reply(channel, reply);
        assert_eq!(script.methods(), [(1, answer)]);
    }
}

#[test]
fn an_empty_queue_name_means_the_queue_declared_last() {
    let (mut script, channel) = Script::with_channel();
    script.send(1, declare(""));
    script.reply(channel, declared("amq.gen-1"));
    script.requests();
    script.send(
        1,
        Method::QueueBind {
            queue: short(""),
            exchange: short("x"),
            routing_key: short(""),
            no_wait: true,
            arguments: no_arguments(),
        },
    );
    let (queue, routing_key) = (short("amq.gen-1"), short("amq.gen-1"));
    let bound = Call::BindQueue { queue, exchange: short("x"), routing_key, arguments: no_arguments() };
    assert_eq!(calls(script.requests()), [bound]);
}

#[test]
fn an_empty_queue_name_without_a_queue_before_is_not_found() {
    let (mut script, _) = Script::with_channel();
    script.send(1, Method::QueuePurge { queue: short(""), no_wait: false });
    script.expect_close(1, ReplyCode::NotFound, "NOT_FOUND - no previously declared queue", (50, 30));
}

#[test]
fn line_ends_are_stripped_from_names() {
    let (mut script, _) = Script::with_channel();
    script.send(1, declare("a\r\nb\n"));
    assert!(matches!(&calls(script.requests())[..], [Call::DeclareQueue { name, .. }] if *name == "ab"));
}

#[test]
fn a_soft_error_closes_the_channel_and_what_follows_on_it_is_ignored() {
    let (mut script, channel) = Script::with_channel();
    script.send(1, declare("q"));
    script.publish(1, "q");
    script.requests();
    script.reply(channel, Reply::Failed(Refusal::new(ReplyCode::NotFound, "no queue 'q' in vhost '/'")));
    script.expect_close(1, ReplyCode::NotFound, "NOT_FOUND - no queue 'q' in vhost '/'", (50, 10));
    assert_eq!(script.requests(), [Request::ChannelLost { channel }]);
    script.publish(1, "q");
    script.send(1, declare("q"));
    script.reply(channel, declared("q"));
    script.connection.deliver(channel, 1, delivery(1, 1));
    assert_eq!((script.requests(), script.seen()), (vec![], vec![]));
    script.send(1, Method::ChannelCloseOk {});
    let again = script.open_channel(1);
    assert_ne!(again, channel);
}

#[test]
fn a_close_that_crosses_an_error_is_answered_once_what_came_before_is_durable() {
    for answers_first in [true, false] {
        let (mut script, channel) = Script::with_channel();
        script.send(1, declare("q"));
        script.send(1, channel_close());
        script.requests();
        script.reply(channel, Reply::Failed(Refusal::new(ReplyCode::NotFound, "no")));
        let seen = script.methods();
        assert!(matches!(seen[..], [(1, Method::ChannelClose { .. })]), "{seen:?}");
        assert_eq!(script.requests(), [Request::ChannelLost { channel }, Request::CloseChannel { channel }]);
        if answers_first {
            script.send(1, Method::ChannelCloseOk {});
        }
        script.reply(channel, Reply::Done);
        assert_eq!(script.methods(), [(1, Method::ChannelCloseOk {})]);
        if !answers_first {
            script.send(1, Method::ChannelCloseOk {});
        }
        script.open_channel(1);
    }
}

#[test]
fn a_client_that_closes_a_failed_channel_and_answers_our_close_may_open_it_again_at_once() {
    let (mut script, channel) = Script::with_channel();
    script.send(1, declare("q"));
    script.requests();
    script.reply(channel, Reply::Failed(Refusal::new(ReplyCode::NotFound, "no")));
    script.send(1, channel_close());
    script.send(1, Method::ChannelCloseOk {});
    script.methods();
    script.requests();
    let again = script.open_channel(1);
    script.reply(channel, Reply::Done);
    assert_eq!(script.methods(), [], "the close-ok of another life of the channel");
    assert_ne!(again, channel);
}

#[test]
fn a_hard_error_closes_the_connection() {
    let (mut script, channel) = Script::with_channel();
    script.send(1, declare("q"));
    script.requests();
    script.reply(channel, Reply::Failed(Refusal::new(ReplyCode::NotImplemented, "streams")));
    script.expect_close(0, ReplyCode::NotImplemented, "NOT_IMPLEMENTED - streams", (50, 10));
    assert!(matches!(script.requests()[..], [Request::ConnectionLost { .. }]));
    script.send(0, Method::ConnectionCloseOk {});
    assert!(script.connection.is_closed());
}

#[test]
fn misuse_of_channels_is_a_hard_error() {
    let deliver_ok = Method::BasicRecoverOk {};
    let qos = Method::BasicQos { prefetch_size: 1, prefetch_count: 1, global: false };
    let cases = [
        (2, ack(1, false), ReplyCode::ChannelError, "CHANNEL_ERROR - expected 'channel.open'", (60, 80)),
        (1, Method::ChannelOpen {}, ReplyCode::ChannelError, "CHANNEL_ERROR - second 'channel.open' seen", (20, 10)),
        (1, deliver_ok, ReplyCode::CommandInvalid, "COMMAND_INVALID - unimplemented method", (60, 111)),
        (1, qos, ReplyCode::NotImplemented, "NOT_IMPLEMENTED - prefetch_size!=0 (1)", (60, 10)),
        (
            1,
            Method::ChannelFlow { active: false },
            ReplyCode::NotImplemented,
            "NOT_IMPLEMENTED - active=false",
            (20, 20),
        ),
        (
            1,
            Method::BasicRecover { requeue: false },
            ReplyCode::NotImplemented,
            "NOT_IMPLEMENTED - requeue=false",
            (60, 110),
        ),
    ];
    for (channel, method, code, text, blamed) in cases {
        let (mut script, _) = Script::with_channel();
        script.send(channel, method);
        script.expect_close(0, code, text, blamed);
    }
}

#[test]
fn channels_are_counted_against_the_negotiated_maximum() {
    let mut script = Script::open_with(Config::default());
    script.connection.channel_max = 2;
    script.open_channel(1);
    script.open_channel(2);
    script.send(3, Method::ChannelOpen {});
    let text = "NOT_ALLOWED - number of channels opened (2) has reached the negotiated channel_max (2)";
    script.expect_close(0, ReplyCode::NotAllowed, text, (20, 10));
}

#[test]
fn a_channel_number_over_the_negotiated_maximum_is_not_allowed() {
    let mut script = Script::open_with(Config::default());
    script.connection.channel_max = 10;
    script.open_channel(10);
    script.send(11, Method::ChannelOpen {});
    let text = "NOT_ALLOWED - channel number 11 is over the negotiated channel_max (10)";
    script.expect_close(0, ReplyCode::NotAllowed, text, (20, 10));
}

#[test]
fn a_late_reply_for_an_earlier_use_of_the_number_is_dropped() {
    let (mut script, old) = Script::with_channel();
    script.send(1, channel_close());
    script.reply(old, Reply::Done);
    assert_eq!(script.methods(), [(1, Method::ChannelCloseOk {})]);
    script.requests();
    let new = script.open_channel(1);
    script.send(1, declare("q"));
    script.reply(old, declared("wrong"));
    script.connection.confirm(old, 1);
    assert_eq!(script.methods(), []);
    script.reply(new, declared("q"));
    assert_eq!(script.methods().len(), 1);
}
