//! Nanoseconds that one connection takes per publish with its confirm, and per delivery with its acknowledgement.
//! `cargo run --release -p holdfast-session --example throughput`

use std::time::Instant;

use bytes::{Bytes, BytesMut};
use holdfast_session::{Call, ChannelId, Config, Connection, Delivery, Reply, Request};
use holdfast_wire::{
    ContentHeader, FieldTable, LongStr, Method, PROTOCOL_HEADER, Properties, ShortStr, write_body_frame,
    write_frame_end,
};

const BODY_BYTES: usize = 1024;
const MESSAGES: u64 = 2_000_000;
/// Messages that a read, or an engine's round, brings.
const BATCH: u64 = 50;

fn main() {
    let (mut connection, channel) = open();
    println!("publish + confirm: {:4} ns", publishes(&mut connection, channel));
    let consumer = consume(&mut connection, channel);
    println!("deliver + ack:     {:4} ns", deliveries(&mut connection, channel, consumer));
}

fn short(text: &'static str) -> ShortStr {
    ShortStr::from_static(text)
}

fn send(connection: &mut Connection, channel: u16, method: &Method) {
    connection.handle_bytes(method.to_frame(channel), 0);
}

/// Throws away what the client would read.
fn drain(connection: &mut Connection) -> usize {
    std::iter::from_fn(|| connection.poll_transmit(0)).map(|bytes| bytes.len()).sum()
}

fn open() -> (Connection, ChannelId) {
    let mut connection = Connection::new(Config::default(), 0);
    connection.handle_bytes(Bytes::from_static(&PROTOCOL_HEADER), 0);
    let start_ok = Method::ConnectionStartOk {
        client_properties: FieldTable::default(),
        mechanism: short("PLAIN"),
        response: LongStr::new("\0guest\0guest"),
        locale: short("en_US"),
    };
    send(&mut connection, 0, &start_ok);
    connection.reply_authenticated(true, 0);
    send(&mut connection, 0, &Method::ConnectionTuneOk { channel_max: 2047, frame_max: 131_072, heartbeat_s: 0 });
    send(&mut connection, 0, &Method::ConnectionOpen { virtual_host: short("/") });
    connection.reply_vhost(Ok(()), 0);
    send(&mut connection, 1, &Method::ChannelOpen {});
    send(&mut connection, 1, &Method::ConfirmSelect { no_wait: true });
    drain(&mut connection);
    let channel = std::iter::from_fn(|| connection.poll_request()).find_map(|request| match request {
        Request::OpenChannel { channel } => Some(channel),
        _ => None,
    });
    (connection, channel.expect("a channel was opened"))
}

fn publishes(connection: &mut Connection, channel: ChannelId) -> u128 {
    let mut read = BytesMut::new();
    for _ in 0..BATCH {
        let (exchange, routing_key) = (short("exchange"), short("routing.key"));
        Method::BasicPublish { exchange, routing_key, mandatory: false, immediate: false }.encode(1, &mut read);
        ContentHeader::encode(1, BODY_BYTES as u64, Properties::default().as_bytes(), &mut read);
        write_body_frame(1, BODY_BYTES, &mut read);
        read.extend_from_slice(&[7; BODY_BYTES]);
        write_frame_end(&mut read);
    }
    let read = read.freeze();
    let (start, mut seen, mut bytes) = (Instant::now(), 0, 0);
    while seen < MESSAGES {
        connection.handle_bytes(read.clone(), 0);
        while let Some(Request::Publish(publish)) = connection.poll_request() {
            seen += 1;
            // A batch is confirmed while the next one comes in, last message first: a window is always open.
            if let Some(seq) = publish.seq.checked_sub(2 * (publish.seq % BATCH)) {
                connection.confirm(channel, seq);
            }
        }
        bytes += drain(connection);
    }
    assert!(bytes > 0);
    start.elapsed().as_nanos() / u128::from(MESSAGES)
}

fn consume(connection: &mut Connection, channel: ChannelId) -> u32 {
    let consume = Method::BasicConsume {
        queue: short("q"),
        consumer_tag: short("consumer"),
        no_local: false,
        no_ack: false,
        exclusive: false,
        no_wait: false,
        arguments: FieldTable::default(),
    };
    send(connection, 1, &consume);
    let consumer = std::iter::from_fn(|| connection.poll_request()).find_map(|request| match request {
        Request::Call { call: Call::Consume { consumer, .. }, .. } => Some(consumer),
        _ => None,
    });
    connection.reply(channel, Reply::Done, 0);
    drain(connection);
    consumer.expect("consuming")
}

fn deliveries(connection: &mut Connection, channel: ChannelId, consumer: u32) -> u128 {
    let delivery = Delivery {
        queue: 1,
        number: 0,
        redelivered: false,
        exchange: short("exchange"),
        routing_key: short("routing.key"),
        properties: Properties::default().into_bytes(),
        body: Bytes::from(vec![7; BODY_BYTES]),
    };
    let (start, mut number, mut settled) = (Instant::now(), 0, 0);
    let mut acks = BytesMut::new();
    while number < MESSAGES {
        for _ in 0..BATCH {
            number += 1;
            connection.deliver(channel, consumer, Delivery { number, ..delivery.clone() });
            Method::BasicAck { delivery_tag: number, multiple: false }.encode(1, &mut acks);
        }
        drain(connection);
        connection.handle_bytes(acks.split().freeze(), 0);
        while let Some(Request::Settle(settle)) = connection.poll_request() {
            settled += settle.last + 1 - settle.first;
        }
    }
    assert_eq!(settled, number);
    start.elapsed().as_nanos() / u128::from(MESSAGES)
}
