//! A scripted client against a [`Connection`], and the rules as tests.

mod closing;
mod consuming;
mod handshake;
mod ordering;
mod publishing;
mod streams;

use bytes::{Bytes, BytesMut};
use holdfast_wire::{
    ContentHeader, FieldTable, FieldValue, FrameDecoder, FrameKind, LongStr, Method, PROTOCOL_HEADER, Properties,
    ReplyCode, ShortStr, body_frames, write_body_frame, write_frame_end,
};

use crate::{Call, ChannelId, Config, Connection, Credentials, Delivery, Outcome, Publish, Reply, Request, Settle};

/// What a client sees.
#[derive(Debug, Clone, PartialEq)]
enum Seen {
    Method(u16, Method),
    Content(u16, Method, Bytes, Bytes),
    Heartbeat,
}

/// One client and its connection, with a clock.
struct Script {
    connection: Connection,
    now_us: u64,
    decoder: FrameDecoder,
}

fn short(text: &'static str) -> ShortStr {
    ShortStr::from_static(text)
}

fn all_capabilities() -> FieldTable {
    let names = ["authentication_failure_close", "consumer_cancel_notify", "connection.blocked"];
    let capabilities = FieldTable::from_entries(names.map(|name| (name, FieldValue::Bool(true))));
    FieldTable::from_entries([("capabilities", FieldValue::Table(capabilities.expect("short keys")))])
        .expect("short keys")
}

fn start_ok(mechanism: &'static str, response: &'static [u8], client_properties: FieldTable) -> Method {
    let response = LongStr::new(response);
    Method::ConnectionStartOk { client_properties, mechanism: short(mechanism), response, locale: short("en_US") }
}

fn tune_ok(channel_max: u16, frame_max: u32, heartbeat_s: u16) -> Method {
    Method::ConnectionTuneOk { channel_max, frame_max, heartbeat_s }
}

fn connection_close() -> Method {
    Method::ConnectionClose { reply_code: 200, reply_text: short("bye"), class_id: 0, method_id: 0 }
}

fn channel_close() -> Method {
    Method::ChannelClose { reply_code: 200, reply_text: short("bye"), class_id: 0, method_id: 0 }
}

fn declare(queue: &'static str) -> Method {
    Method::QueueDeclare {
        queue: short(queue),
        passive: false,
        durable: true,
        exclusive: false,
        auto_delete: false,
        no_wait: false,
        arguments: FieldTable::default(),
    }
}

fn consume(queue: &'static str, tag: &'static str, no_ack: bool) -> Method {
    Method::BasicConsume {
        queue: short(queue),
        consumer_tag: short(tag),
        no_local: false,
        no_ack,
        exclusive: false,
        no_wait: false,
        arguments: FieldTable::default(),
    }
}

fn ack(delivery_tag: u64, multiple: bool) -> Method {
    Method::BasicAck { delivery_tag, multiple }
}

fn delivery(queue: u64, number: u64) -> Delivery {
    Delivery {
        queue,
        number,
        redelivered: false,
        exchange: short("x"),
        routing_key: short("k"),
        properties: Bytes::from_static(&[0, 0]),
        body: Bytes::from(format!("m{number}")),
    }
}

/// A whole publish, as frames.
fn publish_frames(channel: u16, routing_key: &'static str, properties: &Properties, body: &Bytes) -> Bytes {
    let mut out = BytesMut::new();
    publish_method(routing_key, false).encode(channel, &mut out);
    ContentHeader::encode(channel, body.len() as u64, properties.as_bytes(), &mut out);
    for piece in body_frames(body, 4096) {
        write_body_frame(channel, piece.len(), &mut out);
        out.extend_from_slice(&piece);
        write_frame_end(&mut out);
    }
    out.freeze()
}

fn publish_method(routing_key: &'static str, immediate: bool) -> Method {
    Method::BasicPublish { exchange: short(""), routing_key: short(routing_key), mandatory: true, immediate }
}

impl Script {
    fn new(config: Config) -> Script {
        Script { connection: Connection::new(config, 0), now_us: 0, decoder: FrameDecoder::new() }
    }

    /// A client that has sent the protocol header and read `connection.start`.
    fn started() -> Script {
        let mut script = Script::new(Config::default());
        script.bytes(Bytes::copy_from_slice(&PROTOCOL_HEADER));
        assert!(matches!(script.seen()[..], [Seen::Method(0, Method::ConnectionStart { .. })]));
        script
    }

    /// A client whose virtual host is open.
    fn open() -> Script {
        Script::open_with(Config::default())
    }

    fn open_with(config: Config) -> Script {
        Script::open_as(config, all_capabilities())
    }

    /// A client that says so of itself.
    fn open_as(config: Config, client_properties: FieldTable) -> Script {
        let mut script = Script::new(config);
        script.bytes(Bytes::copy_from_slice(&PROTOCOL_HEADER));
        script.send(0, start_ok("PLAIN", b"\0guest\0secret", client_properties));
        script.connection.reply_authenticated(true, 0);
        script.send(0, tune_ok(2047, 131_072, 60));
        script.send(0, Method::ConnectionOpen { virtual_host: short("/") });
        script.connection.reply_vhost(Ok(()), 0);
        script.seen();
        script.requests();
        script
    }

    /// A client with channel 1 open, and its id.
    fn with_channel() -> (Script, ChannelId) {
        let mut script = Script::open();
        let id = script.open_channel(1);
        (script, id)
    }

    fn open_channel(&mut self, number: u16) -> ChannelId {
        self.send(number, Method::ChannelOpen {});
        assert_eq!(self.seen(), [Seen::Method(number, Method::ChannelOpenOk {})]);
        match self.requests()[..] {
            [Request::OpenChannel { channel }] => channel,
            ref other => panic!("not an opened channel: {other:?}"),
        }
    }

    /// A consumer on queue `q`; its number.
    fn consume(&mut self, channel: ChannelId, tag: &'static str, no_ack: bool) -> u32 {
        self.send(channel.number, consume("q", tag, no_ack));
        let number = match &self.requests()[..] {
            [Request::Call { call: Call::Consume { consumer, .. }, .. }] => *consumer,
            other => panic!("not a consume: {other:?}"),
        };
        self.reply(channel, Reply::Done);
        assert_eq!(self.methods(), [(channel.number, Method::BasicConsumeOk { consumer_tag: short(tag) })]);
        number
    }

    fn bytes(&mut self, bytes: Bytes) {
        self.connection.handle_bytes(bytes, self.now_us);
    }

    fn send(&mut self, channel: u16, method: Method) {
        self.bytes(method.to_frame(channel));
    }

    fn publish(&mut self, channel: u16, routing_key: &'static str) {
        self.bytes(publish_frames(channel, routing_key, &Properties::default(), &Bytes::from_static(b"body")));
    }

    fn reply(&mut self, channel: ChannelId, reply: Reply) {
        self.connection.reply(channel, reply, self.now_us);
    }

    /// Lets time pass; timers fire when they are due.
    fn wait(&mut self, us: u64) {
        let end_us = self.now_us + us;
        while let Some(due_us) = self.connection.poll_timeout().filter(|due_us| *due_us <= end_us) {
            self.now_us = self.now_us.max(due_us);
            self.connection.handle_timeout(self.now_us);
        }
        self.now_us = end_us;
    }

    fn requests(&mut self) -> Vec<Request> {
        std::iter::from_fn(|| self.connection.poll_request()).collect()
    }

    fn settles(&mut self) -> Vec<(u32, u64, u64, u64, Outcome)> {
        let settle_of = |request| match request {
            Request::Settle(Settle { consumer, queue, first, last, outcome, .. }) => {
                Some((consumer, queue, first, last, outcome))
            }
            Request::Call { call: Call::Sync, .. } => None,
            other => panic!("not a settlement: {other:?}"),
        };
        self.requests().into_iter().filter_map(settle_of).collect()
    }

    /// Takes the request for a synchronous reply, the only one there is, and answers it.
    fn answer_sync(&mut self, channel: ChannelId) {
        assert_eq!(self.requests(), [Request::Call { channel, call: Call::Sync }]);
        self.reply(channel, Reply::Done);
    }

    /// Everything the client can read by now.
    fn seen(&mut self) -> Vec<Seen> {
        while let Some(bytes) = self.connection.poll_transmit(self.now_us) {
            self.decoder.feed(bytes);
        }
        let mut seen = Vec::new();
        while let Some(frame) = self.decoder.next_frame(131_072).expect("the server frames well") {
            let channel = frame.channel;
            match (frame.kind, seen.last_mut()) {
                (FrameKind::Heartbeat, _) => seen.push(Seen::Heartbeat),
                (FrameKind::Method, _) => {
                    let method = Method::decode(frame.payload).expect("the server encodes well");
                    let empty = Bytes::new();
                    seen.push(match method.has_content() {
                        true => Seen::Content(channel, method, empty.clone(), empty),
                        false => Seen::Method(channel, method),
                    });
                }
                (FrameKind::Header, Some(Seen::Content(of, _, properties, _))) if *of == channel => {
                    *properties = ContentHeader::decode(frame.payload).expect("well formed").properties.into_bytes();
                }
                (FrameKind::Body, Some(Seen::Content(of, _, _, body))) if *of == channel => {
                    *body = [&body[..], &frame.payload[..]].concat().into();
                }
                (kind, last) => panic!("{kind:?} frame after {last:?}"),
            }
        }
        seen
    }

    /// The methods that the client can read by now; there must be nothing else.
    fn methods(&mut self) -> Vec<(u16, Method)> {
        let method_of = |seen| match seen {
            Seen::Method(channel, method) => (channel, method),
            other => panic!("not a bare method: {other:?}"),
        };
        self.seen().into_iter().map(method_of).collect()
    }

    /// Asserts that all the client reads is this `channel.close` or, on channel 0, `connection.close`.
    #[track_caller]
    fn expect_close(&mut self, channel: u16, code: ReplyCode, text: &str, blamed: (u16, u16)) {
        let (reply_code, reply_text) = (code.number(), ShortStr::truncated(text));
        let (class_id, method_id) = blamed;
        let close = if channel == 0 {
            Method::ConnectionClose { reply_code, reply_text, class_id, method_id }
        } else {
            Method::ChannelClose { reply_code, reply_text, class_id, method_id }
        };
        assert_eq!(self.methods(), [(channel, close)]);
    }
}
