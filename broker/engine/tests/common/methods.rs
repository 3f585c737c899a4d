//! What a client asks for.

use bytes::{Bytes, BytesMut};
use holdfast_queue::time::Duration;
use holdfast_wire::{ContentHeader, FieldTable, Method};

use super::{Client, Cluster, short};

pub fn declare(queue: &str, durable: bool, exclusive: bool) -> Method {
    Method::QueueDeclare {
        queue: short(queue),
        passive: false,
        durable,
        exclusive,
        auto_delete: false,
        no_wait: false,
        arguments: FieldTable::default(),
    }
}

pub fn consume(queue: &str, tag: &str, no_ack: bool) -> Method {
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

/// A persistent message on channel 1.
pub fn publish_frames(exchange: &str, key: &str, mandatory: bool, body: &str) -> Bytes {
    let mut out = BytesMut::new();
    let (exchange, routing_key) = (short(exchange), short(key));
    Method::BasicPublish { exchange, routing_key, mandatory, immediate: false }.encode(1, &mut out);
    ContentHeader::encode(1, body.len() as u64, &[0x10, 0, 2], &mut out);
    if !body.is_empty() {
        holdfast_wire::write_body_frame(1, body.len(), &mut out);
        out.extend_from_slice(body.as_bytes());
        holdfast_wire::write_frame_end(&mut out);
    }
    out.freeze()
}

impl Client {
    /// Subscribes without waiting for the answer.
    pub fn consume_unanswered(&mut self, cluster: &mut Cluster, queue: &str, tag: &str) {
        self.send(cluster, 1, consume(queue, tag, false));
        cluster.run(Duration::from_millis(100));
    }

    /// All messages that are here already, with their consumer's tag, whatever else came between them.
    pub fn bodies_by_consumer(&mut self, cluster: &mut Cluster) -> Vec<(String, String)> {
        let mut bodies = Vec::new();
        while let Some(frame) = self.frame(cluster) {
            let method = Method::decode(frame.payload).expect("well formed");
            if let Method::BasicDeliver { consumer_tag, .. } = method {
                bodies.push((consumer_tag.as_str().to_owned(), self.content(cluster)));
            }
        }
        bodies
    }
}
