//! What members say to each other, and its encoding.
//!
//! A frame is a row of messages, each a tag and its fields in the format of [`holdfast_queue::codec`]. Frames keep their
//! order on one link; nothing else is assumed of the network. Arbitrary bytes give an error, never a panic.

use bytes::Bytes;
use holdfast_queue::codec::{Codec, DecodeError, Message, Reader, Writer};
use holdfast_queue::ids::{BootId, ConsumerId, GroupId, Incarnation, MemberId, QueueId};
use holdfast_queue::meta::MetaEffect;
use holdfast_queue::queue::QueueEffect;

use crate::alarms::Alarms;
use crate::backup::BarrierMessage;

/// The version of this protocol; another one is refused at the hello.
pub(crate) const PROTOCOL_VERSION: u32 = 4;

/// The first message on a link, from both ends, and again when what it says has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    pub protocol: u32,
    /// None on a blank member.
    pub cluster_id: Option<String>,
    pub cluster_epoch: u64,
    /// Group 0's life in that epoch.
    pub meta_incarnation: Incarnation,
    pub uuid: u128,
    pub member: Option<MemberId>,
    pub boot: BootId,
    pub name: String,
    pub zone: String,
    /// Where the sender's peer listener is reached.
    pub address: String,
}

/// Sent to each peer every 150 ms (design §3.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Heartbeat {
    pub boot: BootId,
    /// Members that the sender hears on links, so that others can reach them through it; and its answer to each of them
    /// that what comes on theirs arrives.
    pub hears: Vec<MemberId>,
    /// Age of the oldest journal write that is not finished, ms.
    pub write_age_ms: u64,
    pub ready: bool,
    /// The sender's own alarms.
    pub alarms: Alarms,
    /// The sender's transient queues hold too much.
    pub transient_full: bool,
    /// It hands its leaderships away, and should not be given any.
    pub draining: bool,
}

/// Takes a blank member into the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Invite {
    pub cluster_id: String,
    pub cluster_epoch: u64,
    pub member: MemberId,
    /// Of group 0.
    pub incarnation: Incarnation,
    /// Of the replica of group 0 that the member is to have.
    pub generation: u32,
    /// Addresses of the members that there are.
    pub peers: Vec<String>,
}

/// An effect of a queue group for a session's home.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HomeEffect {
    pub effect: QueueEffect,
    /// The message, for effects that bring one.
    pub content: Option<Message>,
    /// With a confirm: voters that have everything up to its number on disk.
    pub copies: u8,
}

/// One message between members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PeerMessage {
    Hello(Hello),
    /// The sender will not talk to this member; the reason is for people.
    Refused {
        reason: String,
    },
    Heartbeat(Heartbeat),
    Invite(Invite),
    /// An encoded [`holdfast_replica::Envelope`].
    Envelope(Bytes),
    /// An encoded batch of commands from a home, for the group's leader.
    Commands {
        group: GroupId,
        batch: Bytes,
    },
    /// A home asks a group's leader for all that it is owed.
    Attach {
        group: GroupId,
        boot: BootId,
    },
    /// All that was owed was sent before this.
    Attached {
        group: GroupId,
        term: u64,
    },
    /// Who leads these groups, each in the term given, as their leaders have said.
    Leaders {
        groups: Vec<(GroupId, (MemberId, u64))>,
    },
    /// Frame contents for a member that the sender cannot reach itself; the receiver passes them on.
    Relay {
        from: MemberId,
        to: MemberId,
        messages: Bytes,
    },
    /// The sender does not lead the group; it last knew this leader.
    NotLeading {
        group: GroupId,
        leader: Option<MemberId>,
    },
    /// A home asks again for what a consumer was sent after a delivery number.
    DeliveriesAfter {
        group: GroupId,
        queue: QueueId,
        consumer: ConsumerId,
        after: u64,
    },
    /// The answer: complete up to `through`; numbers that are not listed were settled or returned.
    Outstanding {
        group: GroupId,
        queue: QueueId,
        consumer: ConsumerId,
        through: u64,
        deliveries: Vec<HomeEffect>,
    },
    QueueEffect {
        group: GroupId,
        effect: HomeEffect,
    },
    /// An answer to a member's metadata command, good once the member itself has applied group 0 up to `index`.
    MetaEffect {
        effect: MetaEffect,
        index: u64,
    },
    /// A member asks group 0's leader for a metadata lease, and says what it has applied of group 0.
    LeaseRequest {
        round: u64,
        applied: u64,
        /// The sender's run.
        boot: BootId,
    },
    /// Group 0's leader asks its voters whether they still follow it.
    LeaseProbe {
        round: u64,
    },
    /// A voter answers with its term of group 0.
    LeaseProbeAck {
        round: u64,
        term: u64,
    },
    LeaseGrant {
        round: u64,
        commit: u64,
    },
    /// A member has applied group 0 up to here.
    MetaApplied {
        index: u64,
    },
    /// A group's leader has too few voters in sync for what its queues want, or enough again.
    InSync {
        group: GroupId,
        term: u64,
        /// Voters that answer and lack little of the log.
        replicas: u32,
    },
    /// From group 0's leader to another group's: bring the group closer to its target. Good for a second.
    Permit {
        group: GroupId,
    },
    /// The answer: how the move stands.
    MoveNote {
        group: GroupId,
        note: MoveNote,
    },
    /// From group 0's leader to another group's: hand the group over to this member.
    Lead {
        group: GroupId,
        to: MemberId,
    },
    /// The sender's replica of group 0, of this generation, is damaged.
    MetadataDamaged {
        generation: u32,
    },
    /// Group 0 no longer has the receiver's damaged replica: it may join again, under this generation.
    RejoinMetadata {
        generation: u32,
    },
    Barrier(BarrierMessage),
}

/// How a group's move stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MoveNote {
    /// It cannot go on by itself at the moment.
    pub held: bool,
    /// What is being done, or why nothing can be.
    pub text: String,
}

fn put_incarnation(incarnation: Incarnation, out: &mut Writer) {
    out.fixed32(incarnation.counter);
    out.fixed64(incarnation.nonce);
}

fn incarnation(input: &mut Reader) -> Result<Incarnation, DecodeError> {
    Ok(Incarnation { counter: input.fixed32()?, nonce: input.fixed64()? })
}

impl Codec for Hello {
    fn encode(&self, out: &mut Writer) {
        self.protocol.encode(out);
        self.cluster_id.encode(out);
        self.cluster_epoch.encode(out);
        put_incarnation(self.meta_incarnation, out);
        out.fixed64((self.uuid >> 64) as u64);
        out.fixed64(self.uuid as u64);
        self.member.encode(out);
        self.boot.encode(out);
        self.name.encode(out);
        self.zone.encode(out);
        self.address.encode(out);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self {
            protocol: Codec::decode(input)?,
            cluster_id: Codec::decode(input)?,
            cluster_epoch: Codec::decode(input)?,
            meta_incarnation: incarnation(input)?,
            uuid: (u128::from(input.fixed64()?) << 64) | u128::from(input.fixed64()?),
            member: Codec::decode(input)?,
            boot: Codec::decode(input)?,
            name: Codec::decode(input)?,
            zone: Codec::decode(input)?,
            address: Codec::decode(input)?,
        })
    }
}

impl Codec for Heartbeat {
    fn encode(&self, out: &mut Writer) {
        self.boot.encode(out);
        self.hears.encode(out);
        self.write_age_ms.encode(out);
        self.ready.encode(out);
        self.alarms.memory.encode(out);
        self.alarms.disk.encode(out);
        self.transient_full.encode(out);
        self.draining.encode(out);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self {
            boot: Codec::decode(input)?,
            hears: Codec::decode(input)?,
            write_age_ms: Codec::decode(input)?,
            ready: Codec::decode(input)?,
            alarms: Alarms { memory: Codec::decode(input)?, disk: Codec::decode(input)? },
            transient_full: Codec::decode(input)?,
            draining: Codec::decode(input)?,
        })
    }
}

impl Codec for Invite {
    fn encode(&self, out: &mut Writer) {
        self.cluster_id.encode(out);
        self.cluster_epoch.encode(out);
        self.member.encode(out);
        put_incarnation(self.incarnation, out);
        self.generation.encode(out);
        self.peers.encode(out);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self {
            cluster_id: Codec::decode(input)?,
            cluster_epoch: Codec::decode(input)?,
            member: Codec::decode(input)?,
            incarnation: incarnation(input)?,
            generation: Codec::decode(input)?,
            peers: Codec::decode(input)?,
        })
    }
}

impl Codec for HomeEffect {
    fn encode(&self, out: &mut Writer) {
        self.effect.encode(out);
        self.content.encode(out);
        if matches!(self.effect, QueueEffect::Confirm { .. }) {
            out.u8(self.copies);
        }
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        let (effect, content) = (Codec::decode(input)?, Codec::decode(input)?);
        let copies = if matches!(effect, QueueEffect::Confirm { .. }) { input.u8()? } else { 0 };
        Ok(Self { effect, content, copies })
    }
}

impl Codec for PeerMessage {
    fn encode(&self, out: &mut Writer) {
        match self {
            Self::Hello(hello) => tagged(out, 1, |out| hello.encode(out)),
            Self::Refused { reason } => tagged(out, 2, |out| reason.encode(out)),
            Self::Heartbeat(heartbeat) => tagged(out, 3, |out| heartbeat.encode(out)),
            Self::Invite(invite) => tagged(out, 4, |out| invite.encode(out)),
            Self::Envelope(bytes) => tagged(out, 5, |out| out.bytes(bytes)),
            Self::Commands { group, batch } => tagged(out, 6, |out| {
                group.encode(out);
                out.bytes(batch);
            }),
            Self::Attach { group, boot } => tagged(out, 7, |out| {
                group.encode(out);
                boot.encode(out);
            }),
            Self::Attached { group, term } => tagged(out, 8, |out| {
                group.encode(out);
                term.encode(out);
            }),
            Self::Leaders { groups } => tagged(out, 9, |out| groups.encode(out)),
            Self::Relay { from, to, messages } => tagged(out, 20, |out| {
                from.encode(out);
                to.encode(out);
                out.bytes(messages);
            }),
            Self::NotLeading { group, leader } => tagged(out, 10, |out| {
                group.encode(out);
                leader.encode(out);
            }),
            Self::DeliveriesAfter { group, queue, consumer, after } => tagged(out, 11, |out| {
                group.encode(out);
                queue.encode(out);
                consumer.encode(out);
                after.encode(out);
            }),
            Self::Outstanding { group, queue, consumer, through, deliveries } => tagged(out, 19, |out| {
                group.encode(out);
                queue.encode(out);
                consumer.encode(out);
                through.encode(out);
                deliveries.encode(out);
            }),
            Self::QueueEffect { group, effect } => tagged(out, 12, |out| {
                group.encode(out);
                effect.encode(out);
            }),
            Self::MetaEffect { effect, index } => tagged(out, 13, |out| {
                effect.encode(out);
                index.encode(out);
            }),
            Self::LeaseRequest { round, applied, boot } => tagged(out, 14, |out| {
                round.encode(out);
                applied.encode(out);
                boot.encode(out);
            }),
            Self::LeaseProbe { round } => tagged(out, 15, |out| round.encode(out)),
            Self::LeaseProbeAck { round, term } => tagged(out, 16, |out| {
                round.encode(out);
                term.encode(out);
            }),
            Self::LeaseGrant { round, commit } => tagged(out, 17, |out| {
                round.encode(out);
                commit.encode(out);
            }),
            Self::MetaApplied { index } => tagged(out, 18, |out| index.encode(out)),
            Self::InSync { group, term, replicas } => tagged(out, 21, |out| {
                group.encode(out);
                term.encode(out);
                replicas.encode(out);
            }),
            Self::Permit { group } => tagged(out, 30, |out| group.encode(out)),
            Self::MoveNote { group, note } => tagged(out, 31, |out| {
                group.encode(out);
                note.held.encode(out);
                note.text.encode(out);
            }),
            Self::Lead { group, to } => tagged(out, 32, |out| {
                group.encode(out);
                to.encode(out);
            }),
            Self::MetadataDamaged { generation } => tagged(out, 33, |out| generation.encode(out)),
            Self::RejoinMetadata { generation } => tagged(out, 34, |out| generation.encode(out)),
            Self::Barrier(message) => tagged(out, 35, |out| message.encode(out)),
        }
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(match input.u8()? {
            1 => Self::Hello(Codec::decode(input)?),
            2 => Self::Refused { reason: Codec::decode(input)? },
            3 => Self::Heartbeat(Codec::decode(input)?),
            4 => Self::Invite(Codec::decode(input)?),
            5 => Self::Envelope(input.bytes()?),
            6 => Self::Commands { group: Codec::decode(input)?, batch: input.bytes()? },
            7 => Self::Attach { group: Codec::decode(input)?, boot: Codec::decode(input)? },
            8 => Self::Attached { group: Codec::decode(input)?, term: Codec::decode(input)? },
            9 => Self::Leaders { groups: Codec::decode(input)? },
            20 => Self::Relay { from: Codec::decode(input)?, to: Codec::decode(input)?, messages: input.bytes()? },
            10 => Self::NotLeading { group: Codec::decode(input)?, leader: Codec::decode(input)? },
            11 => Self::DeliveriesAfter {
                group: Codec::decode(input)?,
                queue: Codec::decode(input)?,
                consumer: Codec::decode(input)?,
                after: Codec::decode(input)?,
            },
            12 => Self::QueueEffect { group: Codec::decode(input)?, effect: Codec::decode(input)? },
            13 => Self::MetaEffect { effect: Codec::decode(input)?, index: Codec::decode(input)? },
            14 => Self::LeaseRequest {
                round: Codec::decode(input)?,
                applied: Codec::decode(input)?,
                boot: Codec::decode(input)?,
            },
            15 => Self::LeaseProbe { round: Codec::decode(input)? },
            16 => Self::LeaseProbeAck { round: Codec::decode(input)?, term: Codec::decode(input)? },
            17 => Self::LeaseGrant { round: Codec::decode(input)?, commit: Codec::decode(input)? },
            18 => Self::MetaApplied { index: Codec::decode(input)? },
            21 => Self::InSync {
                group: Codec::decode(input)?,
                term: Codec::decode(input)?,
                replicas: Codec::decode(input)?,
            },
            30 => Self::Permit { group: Codec::decode(input)? },
            31 => Self::MoveNote {
                group: Codec::decode(input)?,
                note: MoveNote { held: Codec::decode(input)?, text: Codec::decode(input)? },
            },
            32 => Self::Lead { group: Codec::decode(input)?, to: Codec::decode(input)? },
            33 => Self::MetadataDamaged { generation: Codec::decode(input)? },
            34 => Self::RejoinMetadata { generation: Codec::decode(input)? },
            35 => Self::Barrier(Codec::decode(input)?),
            19 => Self::Outstanding {
                group: Codec::decode(input)?,
                queue: Codec::decode(input)?,
                consumer: Codec::decode(input)?,
                through: Codec::decode(input)?,
                deliveries: Codec::decode(input)?,
            },
            tag => return Err(DecodeError::UnknownTag { what: "peer message", tag }),
        })
    }
}

fn tagged(out: &mut Writer, tag: u8, fields: impl FnOnce(&mut Writer)) {
    out.u8(tag);
    fields(out);
}

/// The first byte of a frame whose rest is one encoded envelope; no message has this tag.
pub(crate) const ENVELOPE_FRAME: u8 = 255;

/// Reads the messages of a frame in turn; the first error ends it.
pub(crate) struct Frame {
    envelope: Option<Bytes>,
    rest: Reader,
}

impl Frame {
    pub(crate) fn new(bytes: Bytes) -> Self {
        if bytes.first() == Some(&ENVELOPE_FRAME) {
            return Self { envelope: Some(bytes.slice(1..)), rest: Reader::new(Bytes::new()) };
        }
        Self { envelope: None, rest: Reader::new(bytes) }
    }
}

impl Iterator for Frame {
    type Item = Result<PeerMessage, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(envelope) = self.envelope.take() {
            return Some(Ok(PeerMessage::Envelope(envelope)));
        }
        if self.rest.remaining() == 0 {
            return None;
        }
        let message = PeerMessage::decode(&mut self.rest);
        if message.is_err() {
            self.rest = Reader::new(Bytes::new());
        }
        Some(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    fn samples() -> Vec<PeerMessage> {
        let consumer = ConsumerId::default();
        let mut samples = vec![
            PeerMessage::Hello(Hello {
                protocol: 1,
                cluster_id: Some("c".into()),
                cluster_epoch: 2,
                meta_incarnation: Incarnation { counter: 1, nonce: 8 },
                uuid: u128::MAX - 5,
                member: Some(MemberId(3)),
                boot: BootId(9),
                name: "demo-0-0".into(),
                zone: "z".into(),
                address: "a:1".into(),
            }),
            PeerMessage::Heartbeat(Heartbeat {
                boot: BootId(1),
                hears: vec![MemberId(2)],
                write_age_ms: 3,
                ready: true,
                alarms: Alarms { memory: true, disk: false },
                transient_full: true,
                draining: true,
            }),
            PeerMessage::Invite(Invite {
                cluster_id: "c".into(),
                cluster_epoch: 1,
                member: MemberId(2),
                incarnation: Incarnation { counter: 1, nonce: 7 },
                generation: 3,
                peers: vec!["a:1".into()],
            }),
            PeerMessage::Commands { group: GroupId(300), batch: Bytes::from_static(b"xyz") },
            PeerMessage::Leaders {
                groups: vec![(GroupId(1), (MemberId(2), 2)), (GroupId(u64::MAX), (MemberId(1), 1))],
            },
            PeerMessage::Relay { from: MemberId(1), to: MemberId(2), messages: Bytes::from_static(b"m") },
            PeerMessage::DeliveriesAfter { group: GroupId(1), queue: QueueId(2), consumer, after: 3 },
            PeerMessage::QueueEffect {
                group: GroupId(4),
                effect: HomeEffect {
                    effect: QueueEffect::Confirm { boot: BootId(1), seq: 5 },
                    content: Some(Message { body: Bytes::from_static(b"body"), ..Message::default() }),
                    copies: 3,
                },
            },
            PeerMessage::LeaseProbeAck { round: 1, term: 2 },
            PeerMessage::InSync { group: GroupId(4), term: 3, replicas: 2 },
            PeerMessage::MoveNote { group: GroupId(9), note: MoveNote { held: true, text: "why".into() } },
            PeerMessage::MetadataDamaged { generation: 2 },
        ];
        samples.extend(crate::backup::samples().into_iter().map(PeerMessage::Barrier));
        samples
    }

    #[test]
    fn a_frame_gives_back_the_messages_that_were_put_in() {
        let mut out = Writer::default();
        for message in samples() {
            message.encode(&mut out);
        }
        let back: Result<Vec<_>, _> = Frame::new(out.into_bytes()).collect();
        assert_eq!(back.as_deref(), Ok(samples().as_slice()));
    }

    #[test]
    fn damaged_frames_end_in_an_error_and_never_in_a_panic() {
        let mut rng = Rng::new(1);
        for message in samples() {
            let bytes = message.to_bytes();
            for _ in 0..2_000 {
                let mut damaged = bytes.to_vec();
                damaged.truncate(rng.next_u64() as usize % (damaged.len() + 1));
                for _ in 0..=rng.next_u64() % 4 {
                    let len = damaged.len();
                    if len > 0 {
                        damaged[rng.next_u64() as usize % len] = rng.next_u64() as u8;
                    }
                }
                let results: Vec<_> = Frame::new(Bytes::from(damaged)).collect();
                assert!(results.iter().rev().skip(1).all(Result::is_ok));
            }
        }
    }
}
