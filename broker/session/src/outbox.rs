use std::collections::VecDeque;

use bytes::{BufMut, Bytes, BytesMut};
use holdfast_wire::{
    ContentHeader, FieldTable, FieldValue, Method, ShortStr, body_frames, write_body_frame, write_frame_end,
    write_heartbeat,
};

use crate::{ChannelId, Config, Request, Settle};

/// Pieces of a body from this size on are sent as they are; smaller ones are copied next to their frame's head.
const COPY_LIMIT_BYTES: usize = 16 << 10;

/// What all channels of a connection share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub config: Config,
    pub out: Outbox,
    pub client: Client,
    /// Octets of bodies under way, of methods held back, and of uncommitted publishes.
    pub held_bytes: usize,
    /// Octets of deliveries that the prefetch of a whole channel holds back.
    pub held_delivery_bytes: usize,
}

/// What is known of the client.
#[derive(Debug, Default)]
pub(crate) struct Client {
    pub user: Option<ShortStr>,
    pub vhost: Option<ShortStr>,
    pub properties: Option<FieldTable>,
    /// The log-in mechanism's name.
    pub mechanism: &'static str,
    pub reads_authentication_failure: bool,
    pub reads_cancel: bool,
    pub reads_blocked: bool,
}

impl Client {
    /// Takes over the client's properties and what they say of its abilities.
    pub fn introduce(&mut self, properties: FieldTable) {
        let capabilities = match properties.get("capabilities") {
            Some(FieldValue::Table(table)) => table,
            _ => FieldTable::default(),
        };
        let can = |name| capabilities.get(name) == Some(FieldValue::Bool(true));
        self.reads_authentication_failure = can("authentication_failure_close");
        self.reads_cancel = can("consumer_cancel_notify");
        self.reads_blocked = can("connection.blocked");
        self.properties = Some(properties);
    }
}

/// Requests for the engine and octets for the client.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    requests: VecDeque<Request>,
    ready: VecDeque<Bytes>,
    tail: BytesMut,
    ready_bytes: usize,
    /// Settlements of no-ack deliveries whose octets still wait here.
    handed: Vec<Settle>,
    /// Channels with confirms to send.
    pub confirming: Vec<u16>,
    /// Largest frame to the client, octets with overhead; 0 = no limit.
    pub frame_max: u32,
}

impl Outbox {
    pub fn request(&mut self, request: Request) {
        self.requests.push_back(request);
    }

    /// Adds a settlement, to the last one if it continues that.
    pub fn settle(&mut self, settle: Settle) {
        if let Some(Request::Settle(last)) = self.requests.back_mut()
            && extend(last, &settle)
        {
            return;
        }
        self.requests.push_back(Request::Settle(settle));
    }

    /// Adds a settlement that counts once all octets queued so far were handed out.
    pub fn settle_when_sent(&mut self, settle: Settle) {
        if !self.handed.last_mut().is_some_and(|last| extend(last, &settle)) {
            self.handed.push(settle);
        }
    }

    /// Drops what a channel has asked and the engine has not seen.
    pub fn drop_requests_of(&mut self, id: ChannelId) {
        self.requests.retain(|request| !request.is_of(id));
    }

    pub fn next_request(&mut self) -> Option<Request> {
        self.requests.pop_front()
    }

    pub fn method(&mut self, channel: u16, method: &Method) {
        method.encode(channel, &mut self.tail);
    }

    /// A method, its header and its body.
    pub fn content(&mut self, channel: u16, method: &Method, properties: &[u8], body: &Bytes) {
        method.encode(channel, &mut self.tail);
        ContentHeader::encode(channel, body.len() as u64, properties, &mut self.tail);
        for piece in body_frames(body, self.frame_max) {
            write_body_frame(channel, piece.len(), &mut self.tail);
            if piece.len() < COPY_LIMIT_BYTES {
                self.tail.put_slice(&piece);
            } else {
                self.seal();
                self.ready_bytes += piece.len();
                self.ready.push_back(piece);
            }
            write_frame_end(&mut self.tail);
        }
    }

    pub fn heartbeat(&mut self) {
        write_heartbeat(&mut self.tail);
    }

    pub fn raw(&mut self, bytes: &[u8]) {
        self.tail.put_slice(bytes);
    }

    pub fn queued_bytes(&self) -> usize {
        self.ready_bytes + self.tail.len()
    }

    /// The next octets. With the last of them the no-ack deliveries are settled.
    pub fn transmit(&mut self) -> Option<Bytes> {
        if self.ready.is_empty() {
            self.seal();
        }
        let bytes = self.ready.pop_front()?;
        self.ready_bytes -= bytes.len();
        if self.queued_bytes() == 0 {
            self.requests.extend(self.handed.drain(..).map(Request::Settle));
        }
        Some(bytes)
    }

    fn seal(&mut self) {
        if !self.tail.is_empty() {
            self.ready_bytes += self.tail.len();
            self.ready.push_back(self.tail.split().freeze());
        }
    }

    /// Drops settlements to come: the connection has ended and the engine takes everything back.
    pub fn forget_handed(&mut self) {
        self.handed.clear();
    }
}

/// Lengthens `last` by `next` if they are of one consumer, outcome and row.
pub(crate) fn extend(last: &mut Settle, next: &Settle) -> bool {
    let continues = last.channel == next.channel
        && last.consumer == next.consumer
        && last.queue == next.queue
        && last.outcome == next.outcome
        && last.last.checked_add(1) == Some(next.first);
    if continues {
        last.last = next.last;
    }
    continues
}
