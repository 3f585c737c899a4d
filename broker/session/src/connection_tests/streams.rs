//! Whole exchanges, in whole and in pieces, and input that is no AMQP at all.

use proptest::prelude::*;

use super::*;

/// Answers every request as an engine with one empty world would, and notes what it was asked.
fn serve(script: &mut Script, log: &mut Vec<String>) {
    while let Some(request) = script.connection.poll_request() {
        log.push(format!("{request:?}"));
        let now_us = script.now_us;
        match request {
            Request::Authenticate(_) => script.connection.reply_authenticated(true, now_us),
            Request::OpenVhost { .. } => script.connection.reply_vhost(Ok(()), now_us),
            Request::CloseConnection => script.connection.reply_connection_closed(),
            Request::CloseChannel { channel } => script.reply(channel, Reply::Done),
            Request::Publish(publish) => script.connection.confirm(publish.channel, publish.seq),
            Request::Call { channel, call } => {
                let consumer = match &call {
                    Call::Consume { consumer, .. } => Some(*consumer),
                    _ => None,
                };
                script.reply(channel, answer(call));
                if let Some(consumer) = consumer {
                    script.connection.deliver(channel, consumer, delivery(1, 1));
                }
            }
            _ => {}
        }
    }
}

fn answer(call: Call) -> Reply {
    match call {
        Call::DeclareQueue { name, .. } => Reply::Declared { queue: name, messages: 0, consumers: 0 },
        Call::PurgeQueue { .. } | Call::DeleteQueue { .. } => Reply::Messages(0),
        Call::Get { .. } => Reply::Got { delivery: delivery(1, 1), remaining: 0 },
        _ => Reply::Done,
    }
}

/// A client's whole life, from header to close-ok, in two parts: the second acknowledges what was read after the first.
fn a_life() -> [Bytes; 2] {
    let mut out = BytesMut::from(&PROTOCOL_HEADER[..]);
    start_ok("PLAIN", b"\0guest\0guest", all_capabilities()).encode(0, &mut out);
    tune_ok(2047, 131_072, 60).encode(0, &mut out);
    Method::ConnectionOpen { virtual_host: short("/") }.encode(0, &mut out);
    Method::ChannelOpen {}.encode(1, &mut out);
    declare("q").encode(1, &mut out);
    Method::ConfirmSelect { no_wait: false }.encode(1, &mut out);
    out.extend_from_slice(&publish_frames(1, "q", &Properties::default(), &Bytes::from_static(b"one")));
    out.extend_from_slice(&publish_frames(1, "q", &Properties::default(), &Bytes::new()));
    consume("q", "c", false).encode(1, &mut out);
    let first = out.split().freeze();
    ack(1, false).encode(1, &mut out);
    Method::BasicGet { queue: short(""), no_ack: true }.encode(1, &mut out);
    channel_close().encode(1, &mut out);
    connection_close().encode(0, &mut out);
    [first, out.freeze()]
}

/// What the engine was asked and what the client read, when a life arrives in pieces of these sizes.
fn live(sizes: &[usize]) -> (Vec<String>, Vec<Seen>) {
    let mut script = Script::new(Config::default());
    let mut log = Vec::new();
    for mut rest in a_life() {
        for size in sizes.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            script.bytes(rest.split_to((*size).clamp(1, rest.len())));
            serve(&mut script, &mut log);
        }
    }
    let seen = script.seen();
    serve(&mut script, &mut log);
    assert!(script.connection.is_closed());
    (log, seen)
}

#[test]
fn a_whole_life_reads_as_the_specification_tells_it() {
    let (_, seen) = live(&[usize::MAX]);
    let names: Vec<&str> = seen
        .iter()
        .map(|seen| match seen {
            Seen::Method(_, method) | Seen::Content(_, method, ..) => method.name(),
            Seen::Heartbeat => "heartbeat",
        })
        .collect();
    let expected = [
        "connection.start",
        "connection.tune",
        "connection.open-ok",
        "channel.open-ok",
        "queue.declare-ok",
        "confirm.select-ok",
        "basic.consume-ok",
        "basic.deliver",
        "basic.get-ok",
        "basic.ack",
        "channel.close-ok",
        "connection.close-ok",
    ];
    assert_eq!(names, expected);
    assert!(seen.contains(&Seen::Method(1, ack(2, true))), "both publishes are confirmed in one");
}

#[test]
fn a_life_octet_by_octet_is_the_same_life() {
    assert_eq!(live(&[1]), live(&[usize::MAX]));
}

fn any_call_sequence() -> impl Strategy<Value = Vec<(u16, u8, u8)>> {
    prop::collection::vec((0u16..4, any::<u8>(), any::<u8>()), 0..60)
}

/// One of many well-formed methods, sensible at this moment or not.
fn method_for(kind: u8, value: u8) -> Method {
    let (tag, even) = (u64::from(value % 8), value & 1 == 0);
    match kind % 20 {
        0 => Method::ChannelOpen {},
        1 => channel_close(),
        2 => Method::ChannelCloseOk {},
        3 => declare(if even { "q" } else { "" }),
        4 => consume("q", if even { "" } else { "c" }, value % 4 > 1),
        5 => Method::BasicCancel { consumer_tag: short("c"), no_wait: even },
        6 => ack(tag, value & 16 != 0),
        7 => Method::BasicNack { delivery_tag: tag, multiple: value & 16 != 0, requeue: value & 32 != 0 },
        8 => Method::BasicGet { queue: short("q"), no_ack: even },
        9 => Method::BasicQos { prefetch_size: 0, prefetch_count: u16::from(value % 3), global: value & 16 != 0 },
        10 => Method::BasicRecover { requeue: true },
        11 => Method::ConfirmSelect { no_wait: even },
        12 => Method::TxSelect {},
        13 => Method::TxCommit {},
        14 => Method::TxRollback {},
        15 => publish_method("q", false),
        16 => Method::QueueDelete { queue: short(""), if_unused: false, if_empty: false, no_wait: false },
        17 => Method::BasicRecoverAsync { requeue: true },
        18 if value == 0 => connection_close(),
        _ => Method::ChannelFlow { active: true },
    }
}

proptest! {
    #[test]
    fn a_life_is_the_same_however_it_is_split(sizes in prop::collection::vec(1usize..200, 1..20)) {
        prop_assert_eq!(live(&sizes), live(&[usize::MAX]));
    }

    #[test]
    fn garbage_at_any_point_of_a_life_ends_well(at in 0usize..700, garbage: Vec<u8>) {
        let life = Bytes::from(a_life().concat());
        let mut script = Script::new(Config::default());
        let mut log = Vec::new();
        script.bytes(life.slice(..at.min(life.len())));
        serve(&mut script, &mut log);
        script.bytes(garbage.into());
        serve(&mut script, &mut log);
        script.seen_or_header();
        script.wait(200_000_000);
        prop_assert!(script.connection.is_closed());
    }

    #[test]
    fn any_order_of_methods_ends_well(calls in any_call_sequence(), late: bool) {
        let mut script = Script::open();
        let mut log = Vec::new();
        for (channel, kind, value) in calls {
            if kind % 20 == 15 && value & 1 == 0 {
                script.publish(channel, "q");
            } else {
                script.send(channel, method_for(kind, value));
            }
            if !late || value & 3 == 0 {
                serve(&mut script, &mut log);
                script.seen();
            }
        }
        serve(&mut script, &mut log);
        script.send(0, connection_close());
        serve(&mut script, &mut log);
        script.seen();
        serve(&mut script, &mut log);
        script.wait(20_000_000);
        prop_assert!(script.connection.is_closed());
        prop_assert_eq!(script.connection.queued_bytes(), 0);
    }
}

impl Script {
    /// Reads what there is; a lone protocol header, the answer to a wrong one, is no frame.
    fn seen_or_header(&mut self) {
        let mut all = BytesMut::new();
        while let Some(bytes) = self.connection.poll_transmit(self.now_us) {
            all.extend_from_slice(&bytes);
        }
        let all = all.freeze();
        if all != PROTOCOL_HEADER[..] {
            self.decoder.feed(all);
            self.seen();
        }
    }
}
