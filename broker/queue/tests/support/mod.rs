//! One group with a log of its own, and the homes that send to it.

// Each test binary uses a part of this.
#![allow(dead_code)]

use bytes::Bytes;
use holdfast_queue::codec::{Batch, Codec, EntryBuilder, Message, Origin};
use holdfast_queue::ids::{BootId, ChannelRef, ConsumerId, QueueId, SessionId};
use holdfast_queue::meta::{ExpectedMember, MetaCommand, MetaMachine, NewMember};
use holdfast_queue::queue::{Delivery, Outcome, QueueCommand, QueueEffect, QueueReply, Span};
use holdfast_queue::{ApplyMeta, Machine};
use std::collections::BTreeMap;

/// A machine that is fed whole entries.
pub struct Group<M: Machine> {
    pub machine: M,
    pub index: u64,
    sent: BTreeMap<BootId, u64>,
}

impl<M: Machine> Group<M> {
    pub fn new(machine: M) -> Group<M> {
        Group { machine, index: 0, sent: BTreeMap::new() }
    }

    /// Numbers commands as the next ones of a home.
    pub fn batch<C>(&mut self, boot: BootId, commands: Vec<C>) -> Batch<C> {
        let sent = self.sent.entry(boot).or_default();
        let first = *sent + 1;
        *sent += commands.len() as u64;
        Batch { origin: Some(Origin { boot, first, answered: 0 }), commands }
    }

    /// Applies batches as one entry.
    pub fn apply<C: Codec>(&mut self, batches: &[Batch<C>]) -> Vec<M::Effect> {
        self.apply_payload(&Self::payload(batches))
    }

    /// The payload of an entry.
    pub fn payload<C: Codec>(batches: &[Batch<C>]) -> Bytes {
        let mut entry = EntryBuilder::new();
        for batch in batches {
            entry.push_encoded::<C>(&batch.to_bytes()).expect("a batch reads back");
        }
        entry.finish(1_000)
    }

    pub fn apply_payload(&mut self, payload: &Bytes) -> Vec<M::Effect> {
        self.index += 1;
        let mut effects = Vec::new();
        let meta = ApplyMeta { index: self.index, term: 1 };
        self.machine.apply(&meta, payload, &mut effects).expect("a well-formed entry");
        effects
    }

    /// Sends commands from a home in one entry.
    pub fn send<C: Codec>(&mut self, boot: BootId, commands: Vec<C>) -> Vec<M::Effect> {
        let batch = self.batch(boot, commands);
        self.apply(&[batch])
    }

    /// Sends a command of the group's own leader.
    pub fn lead<C: Codec>(&mut self, command: C) -> Vec<M::Effect> {
        self.apply(&[Batch { origin: None, commands: vec![command] }])
    }

    /// Puts the machine through its own snapshot.
    pub fn reload(&mut self) {
        self.machine = M::restore(&self.machine.snapshot()).expect("a snapshot reads back");
    }
}

/// A cluster `c` of so many members, as `member` has them: all of them are expected, and the first one founded it.
pub fn founded(members: u64, replication_factor: u32, member: impl Fn(u64) -> NewMember) -> Group<MetaMachine> {
    let mut group = Group::new(MetaMachine::new());
    let expected = |n| ExpectedMember { name: member(n).name, ..ExpectedMember::default() };
    group.lead(MetaCommand::Init {
        cluster_id: "c".into(),
        epoch: 1,
        expected: (1..=members).map(expected).collect(),
        replication_factor,
        default_min_in_sync_replicas: 0,
        user: None,
        first: member(1),
    });
    for n in 2..=members {
        group.lead(MetaCommand::AddMember { member: member(n) });
    }
    group
}

pub const QUEUE: QueueId = QueueId(7);
pub const HOME: BootId = BootId(0xa11ce);

pub fn channel(boot: BootId, conn: u64, channel: u16) -> ChannelRef {
    ChannelRef { session: SessionId { boot, conn }, channel, generation: 1 }
}

/// The `number`th consumer of channel 1 of connection 1 at [`HOME`].
pub fn consumer(number: u32) -> ConsumerId {
    ConsumerId { channel: channel(HOME, 1, 1), number }
}

pub fn create() -> QueueCommand {
    QueueCommand::CreateQueue { queue: QUEUE, vhost: "/".into(), name: "q".into(), settings: Default::default() }
}

pub fn publish(body: &str) -> QueueCommand {
    let message = Message { body: Bytes::copy_from_slice(body.as_bytes()), ..Message::default() };
    QueueCommand::Publish { queue: QUEUE, message }
}

pub fn subscribe(consumer: ConsumerId, prefetch: u32) -> QueueCommand {
    QueueCommand::Subscribe {
        queue: QUEUE,
        consumer,
        tag: Bytes::from_static(b"tag"),
        no_ack: false,
        exclusive: false,
        prefetch,
        credit_to: u64::MAX,
        priority: 0,
    }
}

pub fn settle(consumer: ConsumerId, first: u64, last: u64, outcome: Outcome) -> QueueCommand {
    QueueCommand::Settle { queue: QUEUE, consumer, spans: vec![Span { first, last }], outcome }
}

pub fn deliveries(effects: &[QueueEffect]) -> Vec<Delivery> {
    let delivery = |effect: &QueueEffect| match effect {
        QueueEffect::Deliver { delivery } => Some(*delivery),
        _ => None,
    };
    effects.iter().filter_map(delivery).collect()
}

pub fn replies(effects: &[QueueEffect]) -> Vec<QueueReply> {
    let reply = |effect: &QueueEffect| match effect {
        QueueEffect::Reply { reply, .. } => Some(reply.clone()),
        _ => None,
    };
    effects.iter().filter_map(reply).collect()
}
