//! A small AMQP client without I/O, for producers and consumers that keep the ledger.
//!
//! It speaks real frames through `holdfast-wire`. When its connection ends, or a reply stays out too long, it says so
//! and the world connects it anew, to the next member.

mod mover;

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use holdfast_wire::{
    BasicProperties, ContentHeader, FieldTable, Frame, FrameDecoder, FrameKind, LongStr, Method, PROTOCOL_HEADER,
    ShortStr, write_body_frame, write_frame_end,
};

use crate::ledger::{Ledger, MessageId, encode_body};
use crate::rng::Rng;

const CHANNEL: u16 = 1;
/// Virtual time without a reply after which a client gives its connection up.
const PATIENCE_US: u64 = 15_000_000;
/// Publishes on their way, per producer.
const WINDOW: usize = 64;
/// Connections that a client makes at most, to number its channels.
const CHANNELS_PER_CLIENT: u32 = 10_000;
/// A client closes its connection in an orderly way about once in so many looks.
const TICKS_PER_CLOSE: u64 = 800;
/// Bodies are small, but for a few in a hundred.
const SMALL_BODY_BYTES: u64 = 600;
/// The largest body that is published.
pub const LARGEST_BODY_BYTES: usize = 100_000;
const LARGE_BODIES_PERCENT: u64 = 2;
/// Acks after which a consumer asks for a synchronous reply.
const ACKS_PER_SYNC: usize = 16;

/// What a client is for.
#[derive(Clone, Debug)]
pub enum Role {
    /// Publishes with confirms. What was not confirmed when its connection ended stays unknown, and is sent again as a
    /// new message: so the ledger tells the two apart.
    Producer {
        /// Messages that it wants confirmed, unless it is told to stop before.
        total: u64,
        /// Of a hundred looks it publishes in so many.
        eagerness: u64,
        /// Of a hundred connections so many ask for confirms; the others prove what they sent by closing.
        confirms: u64,
    },
    /// Consumes and acks; sometimes gives back, sometimes holds on for a while.
    Consumer {
        /// Unacked messages that it accepts; with `u16::MAX` it settles none before it drains.
        prefetch: u16,
    },
    /// Publishes what it is given to another queue, which must be there, and acks it once that is confirmed.
    Mover {
        /// Where to.
        to: &'static str,
    },
    /// Takes messages one by one with `basic.get`, and acks them.
    Getter,
    /// Declares queues, publishes a little into them, and deletes them again.
    Churner {
        /// Always the same queue: what was in a deleted one must not be in the next.
        same_name: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Disconnected,
    Handshake,
    Ready,
    /// It sent `connection.close`: whatever it published or acked before is durable once the answer is here.
    Closing,
}

/// One client.
pub struct Client {
    /// Tells clients apart.
    pub id: u32,
    /// The queue.
    pub queue: String,
    /// What it is for.
    pub role: Role,
    stage: Stage,
    decoder: FrameDecoder,
    outgoing: BytesMut,
    waiting_since: Option<u64>,
    gave_up: bool,
    connections: u32,
    rng: Rng,
    // A producer's.
    next_number: u64,
    confirmed: u64,
    /// By number, with the time at which each was sent.
    unconfirmed: BTreeMap<u64, u64>,
    /// The longest that a confirm took.
    pub slowest_confirm_us: u64,
    /// The time of sending of the latest message that was confirmed.
    pub confirmed_sent_us: u64,
    /// Without confirms only `connection.close-ok` proves anything.
    has_confirms: bool,
    // A consumer's.
    partial: Option<Partial>,
    /// A churner's queues so far.
    churned: u64,
    /// The queue that it declares next was deleted by it, or is a new one.
    deleted: bool,
    held: Vec<(u64, MessageId)>,
    /// A mover's deliveries, by the number of the publish that is to replace each.
    moving: BTreeMap<u64, (u64, MessageId)>,
    acked: Vec<MessageId>,
    awaiting_sync: Vec<MessageId>,
    draining: bool,
    /// Messages whose confirms it has read since the last look.
    pub confirms: Vec<MessageId>,
    /// Broken promises that only the client can see.
    pub complaint: Option<String>,
    /// What it did since the last look, in words.
    pub notes: Vec<String>,
}

struct Partial {
    tag: u64,
    redelivered: bool,
    size: Option<u64>,
    body: Vec<u8>,
}

impl Client {
    /// A client that has not connected yet.
    #[must_use]
    pub fn new(id: u32, queue: &str, role: Role, rng: Rng) -> Self {
        Self {
            id,
            queue: queue.to_owned(),
            role,
            stage: Stage::Disconnected,
            decoder: FrameDecoder::new(),
            outgoing: BytesMut::new(),
            waiting_since: None,
            gave_up: false,
            connections: 0,
            rng,
            next_number: 1,
            confirmed: 0,
            unconfirmed: BTreeMap::new(),
            slowest_confirm_us: 0,
            confirmed_sent_us: 0,
            has_confirms: true,
            partial: None,
            churned: 0,
            deleted: true,
            held: Vec::new(),
            moving: BTreeMap::new(),
            acked: Vec::new(),
            awaiting_sync: Vec::new(),
            draining: false,
            confirms: Vec::new(),
            complaint: None,
            notes: Vec::new(),
        }
    }

    /// True when it has a connection, however far it got.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.stage != Stage::Disconnected
    }

    /// True when it publishes with a ledger.
    #[must_use]
    pub fn is_producer(&self) -> bool {
        matches!(self.role, Role::Producer { .. })
    }

    /// True when a producer has nothing left to send and nothing unconfirmed.
    #[must_use]
    pub fn is_done(&self) -> bool {
        match self.role {
            Role::Producer { total, .. } => (self.draining || self.confirmed >= total) && self.unconfirmed.is_empty(),
            Role::Consumer { .. } | Role::Getter | Role::Mover { .. } => {
                self.held.is_empty() && self.acked.is_empty() && self.awaiting_sync.is_empty()
            }
            Role::Churner { .. } => self.draining && self.waiting_since.is_none(),
        }
    }

    /// From now on a consumer acks everything at once, and a producer publishes nothing new.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// True when it publishes on a connection that stands, and hears of each message.
    #[must_use]
    pub fn awaits_confirms(&self) -> bool {
        self.is_producer() && self.has_confirms && self.stage == Stage::Ready
    }

    /// Connections that it has made.
    #[must_use]
    pub fn connections(&self) -> u32 {
        self.connections
    }

    /// Since when it has been waiting for the broker without an answer.
    #[must_use]
    pub fn stuck_since(&self) -> Option<u64> {
        self.waiting_since.filter(|_| self.stage != Stage::Disconnected)
    }

    /// What it waits for, in words.
    #[must_use]
    pub fn waits_for(&self) -> String {
        let (confirms, acks) = (self.unconfirmed.len(), self.awaiting_sync.len());
        format!("{:?}, {confirms} publishes and {acks} acks not answered", self.stage)
    }

    /// A connection stands.
    pub fn connected(&mut self, now_us: u64) {
        self.stage = Stage::Handshake;
        self.decoder = FrameDecoder::new();
        self.outgoing.clear();
        self.outgoing.extend_from_slice(&PROTOCOL_HEADER);
        self.waiting_since = Some(now_us);
        self.gave_up = false;
        self.connections += 1;
        self.next_number = 1;
        self.unconfirmed.clear();
        if let Role::Producer { confirms, .. } = self.role {
            self.has_confirms = self.rng.chance(confirms);
        }
        self.partial = None;
        self.held.clear();
        self.moving.clear();
        // Their acks may or may not have arrived: nothing is claimed about them.
        self.acked.clear();
        self.awaiting_sync.clear();
    }

    /// The connection ended.
    pub fn disconnected(&mut self) {
        self.stage = Stage::Disconnected;
        self.outgoing.clear();
    }

    /// True once it wants its connection closed.
    #[must_use]
    pub fn wants_to_close(&self) -> bool {
        self.gave_up
    }

    /// Bytes to send.
    pub fn take_outgoing(&mut self) -> Option<Bytes> {
        (!self.outgoing.is_empty()).then(|| self.outgoing.split().freeze())
    }

    /// Bytes from the broker.
    pub fn received(&mut self, now_us: u64, bytes: Bytes, ledger: &mut Ledger) {
        self.decoder.feed(bytes);
        loop {
            match self.decoder.next_frame(0) {
                Ok(Some(frame)) => self.frame(now_us, frame, ledger),
                Ok(None) => return,
                Err(_) => {
                    self.gave_up = true;
                    return;
                }
            }
        }
    }

    /// Some time has passed: publish, ack, or give up waiting.
    pub fn tick(&mut self, now_us: u64, ledger: &mut Ledger) {
        if self.waiting_since.is_some_and(|since| now_us > since + PATIENCE_US) {
            self.gave_up = true;
        }
        if self.stage != Stage::Ready || self.gave_up {
            return;
        }
        match self.role {
            Role::Producer { total, eagerness, .. } => self.publish_some(now_us, total, eagerness, ledger),
            Role::Consumer { .. } => self.settle_some(now_us, ledger),
            Role::Getter => self.get_one(now_us),
            Role::Churner { .. } => self.churn(now_us),
            Role::Mover { to } => self.move_some(now_us, to),
        }
        let may_close = !self.draining && !matches!(self.role, Role::Mover { .. });
        if may_close && self.rng.range(0, TICKS_PER_CLOSE) == 0 {
            self.close(now_us, ledger);
        }
    }

    /// Ends the connection in an orderly way.
    fn close(&mut self, now_us: u64, ledger: &mut Ledger) {
        ledger.session_ended(self.session());
        self.stage = Stage::Closing;
        self.waiting_since = Some(now_us);
        self.notes.push("closes".into());
        let reply_text = ShortStr::from_static("done");
        self.send_connection(&Method::ConnectionClose { reply_code: 200, reply_text, class_id: 0, method_id: 0 });
    }

    fn closed(&mut self, ledger: &mut Ledger) {
        for number in std::mem::take(&mut self.unconfirmed).into_keys() {
            ledger.confirmed(self.message(number));
            self.confirms.push(self.message(number));
            self.confirmed += 1;
        }
        let mut durable = std::mem::take(&mut self.awaiting_sync);
        durable.append(&mut self.acked);
        self.acks_are_durable(&durable, ledger);
        self.gave_up = true;
    }

    fn acks_are_durable(&mut self, acked: &[MessageId], ledger: &mut Ledger) {
        if !acked.is_empty() {
            self.notes.push(format!("acks durable: {}", summary(acked)));
            ledger.acks_durable(acked);
        }
    }

    fn send(&mut self, method: &Method) {
        method.encode(CHANNEL, &mut self.outgoing);
    }

    fn send_connection(&mut self, method: &Method) {
        method.encode(0, &mut self.outgoing);
    }

    fn frame(&mut self, now_us: u64, frame: Frame, ledger: &mut Ledger) {
        match frame.kind {
            FrameKind::Method => match Method::decode(frame.payload) {
                Ok(method) => self.method(now_us, method, ledger),
                Err(_) => self.gave_up = true,
            },
            FrameKind::Header => {
                let size = ContentHeader::decode(frame.payload).map(|header| header.body_bytes);
                if let (Some(partial), Ok(size)) = (&mut self.partial, size) {
                    partial.size = Some(size);
                }
                self.finish_delivery(ledger);
            }
            FrameKind::Body => {
                if let Some(partial) = &mut self.partial {
                    partial.body.extend_from_slice(&frame.payload);
                }
                self.finish_delivery(ledger);
            }
            FrameKind::Heartbeat => {}
        }
    }

    fn method(&mut self, now_us: u64, method: Method, ledger: &mut Ledger) {
        match method {
            Method::ConnectionStart { .. } => self.send_connection(&Method::ConnectionStartOk {
                client_properties: FieldTable::default(),
                mechanism: ShortStr::from_static("PLAIN"),
                response: LongStr::new(&b"\0guest\0guest"[..]),
                locale: ShortStr::from_static("en_US"),
            }),
            Method::ConnectionTune { channel_max, frame_max, .. } => {
                self.send_connection(&Method::ConnectionTuneOk { channel_max, frame_max, heartbeat_s: 0 });
                self.send_connection(&Method::ConnectionOpen { virtual_host: ShortStr::from_static("/") });
            }
            Method::ConnectionOpenOk {} => self.send(&Method::ChannelOpen {}),
            Method::ChannelOpenOk {} if matches!(self.role, Role::Churner { .. }) => self.ready(),
            Method::ChannelOpenOk {} => self.declare(&self.queue.clone()),
            Method::QueueDeclareOk { message_count, .. } => self.declared(message_count),
            Method::QueueDeleteOk { .. } => {
                self.waiting_since = None;
                self.deleted = true;
                self.churned += 1;
            }
            Method::ConfirmSelectOk {} if matches!(self.role, Role::Mover { .. }) => self.qos(mover::PREFETCH),
            Method::ConfirmSelectOk {} => self.ready(),
            Method::BasicQosOk {} => self.qos_ok(now_us, ledger),
            Method::BasicConsumeOk { .. } => self.ready(),
            Method::BasicAck { delivery_tag, multiple } => self.confirmed(now_us, delivery_tag, multiple, ledger),
            Method::BasicNack { delivery_tag, multiple, .. } => self.refused(now_us, delivery_tag, multiple, ledger),
            Method::BasicGetOk { delivery_tag, redelivered, .. } => {
                self.got(ledger);
                self.partial = Some(Partial { tag: delivery_tag, redelivered, size: None, body: Vec::new() });
            }
            Method::BasicGetEmpty { .. } => self.got(ledger),
            Method::ConnectionCloseOk {} => self.closed(ledger),
            Method::BasicDeliver { delivery_tag, redelivered, .. } => {
                self.partial = Some(Partial { tag: delivery_tag, redelivered, size: None, body: Vec::new() });
            }
            // Closed by the broker, cancelled, or something that was never asked for: start again elsewhere.
            _ => self.gave_up = true,
        }
    }

    fn declare(&mut self, queue: &str) {
        let queue = ShortStr::truncated(queue);
        self.send(&Method::QueueDeclare {
            queue,
            passive: false,
            durable: true,
            exclusive: false,
            auto_delete: false,
            no_wait: false,
            arguments: FieldTable::default(),
        });
    }

    fn declared(&mut self, messages: u32) {
        match self.role {
            Role::Producer { .. } if self.has_confirms => self.send(&Method::ConfirmSelect { no_wait: false }),
            Role::Producer { .. } | Role::Getter => self.ready(),
            Role::Consumer { prefetch } => self.qos(prefetch),
            Role::Mover { .. } => self.send(&Method::ConfirmSelect { no_wait: false }),
            Role::Churner { .. } => {
                if messages > 0 && self.deleted {
                    self.complaint = Some(format!("a queue was made again and held {messages} messages"));
                }
                self.fill_and_delete();
            }
        }
    }

    fn qos(&mut self, prefetch: u16) {
        self.send(&Method::BasicQos { prefetch_size: 0, prefetch_count: prefetch, global: false });
    }

    fn qos_ok(&mut self, _now_us: u64, ledger: &mut Ledger) {
        self.waiting_since = None;
        if self.stage == Stage::Handshake {
            let queue = ShortStr::truncated(&self.queue);
            self.send(&Method::BasicConsume {
                queue,
                consumer_tag: ShortStr::default(),
                no_local: false,
                no_ack: false,
                exclusive: false,
                no_wait: false,
                arguments: FieldTable::default(),
            });
        } else {
            let durable = std::mem::take(&mut self.awaiting_sync);
            self.acks_are_durable(&durable, ledger);
        }
    }

    fn ready(&mut self) {
        self.stage = Stage::Ready;
        self.waiting_since = None;
    }

    fn publish_some(&mut self, now_us: u64, total: u64, eagerness: u64, ledger: &mut Ledger) {
        let burst = self.rng.range(1, 6);
        if !self.draining && !self.rng.chance(eagerness) {
            return;
        }
        for _ in 0..burst {
            let is_enough = self.draining || self.confirmed + self.unconfirmed.len() as u64 >= total;
            if is_enough || self.unconfirmed.len() >= WINDOW {
                if !self.has_confirms && !self.unconfirmed.is_empty() {
                    self.close(now_us, ledger);
                }
                return;
            }
            let id = self.message(self.next_number);
            self.unconfirmed.insert(self.next_number, now_us);
            self.next_number += 1;
            ledger.sent(id);
            self.publish(&self.queue.clone(), id);
            if self.has_confirms {
                self.waiting_since.get_or_insert(now_us);
            }
        }
    }

    /// A publishing channel is a producer of its own: order is promised per channel.
    fn message(&self, number: u64) -> MessageId {
        MessageId { producer: self.id * CHANNELS_PER_CLIENT + self.connections, number }
    }

    fn publish(&mut self, queue: &str, id: MessageId) {
        let is_large = self.rng.chance(LARGE_BODIES_PERCENT);
        let largest = if is_large { LARGEST_BODY_BYTES as u64 } else { SMALL_BODY_BYTES };
        let body = encode_body(id, self.rng.range(16, largest) as usize);
        let routing_key = ShortStr::truncated(queue);
        self.send(&Method::BasicPublish {
            exchange: ShortStr::default(),
            routing_key,
            mandatory: false,
            immediate: false,
        });
        let properties = BasicProperties { delivery_mode: Some(2), ..BasicProperties::default() }.encode();
        ContentHeader::encode(CHANNEL, body.len() as u64, properties.as_bytes(), &mut self.outgoing);
        write_body_frame(CHANNEL, body.len(), &mut self.outgoing);
        self.outgoing.extend_from_slice(&body);
        write_frame_end(&mut self.outgoing);
    }

    /// On a fresh channel, delivery tags and numbers are the same.
    fn take_tags(&mut self, tag: u64, multiple: bool) -> Vec<(u64, u64)> {
        let first = if multiple { 0 } else { tag };
        let later = self.unconfirmed.split_off(&(tag + 1));
        let taken = self.unconfirmed.split_off(&first);
        self.unconfirmed.extend(later);
        taken.into_iter().collect()
    }

    fn confirmed(&mut self, now_us: u64, tag: u64, multiple: bool, ledger: &mut Ledger) {
        let taken = self.take_tags(tag, multiple);
        if matches!(self.role, Role::Mover { .. }) {
            self.moved(taken.iter().map(|(number, _)| *number));
            self.waiting_since = (!self.unconfirmed.is_empty()).then_some(now_us);
            return;
        }
        for (number, sent_us) in taken {
            ledger.confirmed(self.message(number));
            self.confirms.push(self.message(number));
            self.confirmed += 1;
            self.slowest_confirm_us = self.slowest_confirm_us.max(now_us - sent_us);
            self.confirmed_sent_us = self.confirmed_sent_us.max(sent_us);
        }
        self.waiting_since = (!self.unconfirmed.is_empty()).then_some(now_us);
    }

    fn refused(&mut self, now_us: u64, tag: u64, multiple: bool, ledger: &mut Ledger) {
        let taken = self.take_tags(tag, multiple);
        if matches!(self.role, Role::Mover { .. }) {
            self.not_moved(taken.iter().map(|(number, _)| *number), ledger);
            self.waiting_since = (!self.unconfirmed.is_empty()).then_some(now_us);
            return;
        }
        for (number, _) in taken {
            ledger.refused(self.message(number));
        }
        self.waiting_since = (!self.unconfirmed.is_empty()).then_some(now_us);
    }

    /// Tells its connections apart, and them from those of other clients.
    #[must_use]
    pub fn session(&self) -> u32 {
        self.id * CHANNELS_PER_CLIENT + self.connections
    }

    fn finish_delivery(&mut self, ledger: &mut Ledger) {
        let complete = |partial: &Partial| partial.size.is_some_and(|size| partial.body.len() as u64 >= size);
        let Some(partial) = self.partial.take_if(|partial| complete(partial)) else { return };
        let session = self.session();
        if let Some(id) = ledger.delivered(session, &partial.body, partial.redelivered) {
            ledger.held(session, id, partial.redelivered);
            let flag = if partial.redelivered { ", redelivered" } else { "" };
            self.notes.push(format!("tag {}: {}.{}{flag}", partial.tag, id.producer, id.number));
            self.held.push((partial.tag, id));
        }
    }

    fn churned_queue(&self) -> String {
        let number = if matches!(self.role, Role::Churner { same_name: true }) { 0 } else { self.churned };
        format!("{}-{}-{number}", self.queue, self.id)
    }

    fn churn(&mut self, now_us: u64) {
        if self.waiting_since.is_none() && !self.draining && self.rng.chance(10) {
            self.waiting_since = Some(now_us);
            self.declare(&self.churned_queue());
        }
    }

    fn fill_and_delete(&mut self) {
        let queue = self.churned_queue();
        self.deleted = false;
        for number in 0..self.rng.range(0, 4) {
            self.publish(&queue, MessageId { producer: self.id * CHANNELS_PER_CLIENT, number });
        }
        let queue = ShortStr::truncated(&queue);
        self.send(&Method::QueueDelete { queue, if_unused: false, if_empty: false, no_wait: false });
    }

    fn get_one(&mut self, now_us: u64) {
        if self.waiting_since.is_some() || self.partial.is_some() {
            return;
        }
        for (tag, id) in std::mem::take(&mut self.held) {
            self.send(&Method::BasicAck { delivery_tag: tag, multiple: false });
            self.acked.push(id);
        }
        self.awaiting_sync = std::mem::take(&mut self.acked);
        self.waiting_since = Some(now_us);
        self.send(&Method::BasicGet { queue: ShortStr::truncated(&self.queue), no_ack: false });
    }

    /// A synchronous reply: earlier acks are durable.
    fn got(&mut self, ledger: &mut Ledger) {
        self.waiting_since = None;
        let durable = std::mem::take(&mut self.awaiting_sync);
        self.acks_are_durable(&durable, ledger);
    }

    fn settle_some(&mut self, now_us: u64, ledger: &mut Ledger) {
        if !self.draining && matches!(self.role, Role::Consumer { prefetch: u16::MAX }) {
            return;
        }
        let mut keep = Vec::new();
        for (tag, id) in std::mem::take(&mut self.held) {
            let roll = if self.draining { 0 } else { self.rng.range(0, 100) };
            match roll {
                0..70 => {
                    self.send(&Method::BasicAck { delivery_tag: tag, multiple: false });
                    self.notes.push(format!("acks tag {tag}"));
                    self.acked.push(id);
                }
                70..75 => {
                    self.send(&Method::BasicNack { delivery_tag: tag, multiple: false, requeue: true });
                    ledger.given_back(self.session(), id);
                }
                _ => keep.push((tag, id)),
            }
        }
        self.held = keep;
        let enough = self.acked.len() >= ACKS_PER_SYNC || (!self.acked.is_empty() && self.rng.chance(20));
        if enough && self.awaiting_sync.is_empty() {
            self.awaiting_sync = std::mem::take(&mut self.acked);
            self.waiting_since.get_or_insert(now_us);
            if let Role::Consumer { prefetch } = self.role {
                self.qos(prefetch);
            }
        }
    }
}

fn summary(ids: &[MessageId]) -> String {
    let names: Vec<String> = ids.iter().map(|id| format!("{}.{}", id.producer, id.number)).collect();
    names.join(" ")
}
