//! What members say to each other about groups, and its encoding.
//!
//! The encoding is our own: network bytes never reach raft-rs' protobuf parser (CVE-2025-53605). It is versioned, every
//! length is checked against what is there, and arbitrary bytes give an error, never a panic.

use bytes::{BufMut, Bytes, BytesMut};
use holdfast_journal::GroupKey;
use holdfast_queue::ids::{GroupId, Incarnation};
use holdfast_queue::time::Instant;
use raft::eraftpb::{Entry, EntryType, Message, MessageType};

use crate::api::{HOST_PAYLOAD, group_key};
use crate::bytes_reader::{Malformed, Reader, put_bytes, put_varint};
use crate::mending::{FoundEntry, put_indexes, read_indexes};

/// The version that this program writes. A reader refuses any other.
pub const ENVELOPE_VERSION: u8 = 2;

/// One message about one group. The two times let a leader know when a follower last heard it, on its own clock.
#[derive(Clone, Debug, PartialEq)]
pub struct Envelope {
    /// A hash of the sender's cluster id.
    pub(crate) cluster: u64,
    pub(crate) key: GroupKey,
    /// Which replica of its member sends this, and which one of the receiver's is meant: what an earlier one said, or was
    /// told, is of no meaning for a later one.
    pub(crate) generations: Generations,
    /// The sender's Raft term.
    pub(crate) term: u64,
    /// The sender's monotonic clock.
    pub(crate) sent_at: Instant,
    /// The newest `sent_at` that the sender took in from the receiver as its leader in this term; zero for none.
    pub(crate) echo: Instant,
    /// From a leader: every live replica holds the log up to here, so it may be compacted.
    pub(crate) floor: u64,
    pub(crate) body: Body,
}

/// The replicas that an envelope is between, by their members' generations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Generations {
    pub from: u32,
    pub to: u32,
}

/// The kinds of envelope.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Body {
    /// A Raft message; `from`, `to` and `term` are not on the wire twice.
    Raft(Box<Message>),
    /// The leader stops its clock; so does a follower that has exactly this.
    Quiesce {
        last: u64,
        commit: u64,
    },
    /// Start the clock again. A leader answers with a heartbeat round.
    Wake,
    /// The last membership change that the sender knows, on disk, to be committed. A follower answers its leader's with
    /// its own.
    ChangeKnown {
        index: u64,
    },
    /// The sender's replica is quarantined or gone: do not count on it as a leader.
    Resigned,
    /// A Raft snapshot is offered, or offered again after a cut.
    SnapshotOffer(SnapshotOffer),
    SnapshotChunk(SnapshotChunk),
    SnapshotAnswer(SnapshotAnswer),
    /// The sender's disk lost these entries.
    Fetch {
        indexes: Vec<u64>,
    },
    /// Some of the entries that were asked for.
    Fetched {
        entries: Vec<FoundEntry>,
        /// Of the others, those that the sender has given up: no message in them is alive.
        gone: Vec<u64>,
    },
}

/// The frame of a Raft snapshot: its place in the log and its size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SnapshotOffer {
    /// Drawn by the sender for each snapshot.
    pub id: u64,
    pub index: u64,
    pub index_term: u64,
    /// The membership at `index`.
    pub conf: Bytes,
    pub machine_bytes: u64,
    pub machine_crc: u32,
}

/// A piece of a snapshot: machine bytes while `position` is below the machine's size, payloads after that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SnapshotChunk {
    pub id: u64,
    /// Where this piece belongs: a byte of the machine, or its size plus the number of a payload.
    pub position: u64,
    /// The position after this piece.
    pub next: u64,
    /// Nothing follows.
    pub last: bool,
    /// Of `piece`.
    pub crc: u32,
    pub piece: Bytes,
}

/// How far a snapshot got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SnapshotAnswer {
    pub id: u64,
    pub state: SnapshotState,
}

/// The receiver's side of a snapshot transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SnapshotState {
    /// Send on from here. Payloads at or below `have` are there already.
    Want { position: u64, have: u64 },
    /// Something was lost on the way; send everything from here again.
    Again { position: u64 },
    /// Everything is there.
    Done,
    /// This snapshot is of no use here; Raft goes on.
    Refused,
}

/// Why bytes are no envelope.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    #[error("envelope version {0} is unknown")]
    Version(u8),
    #[error("malformed envelope")]
    Malformed,
}

impl From<Malformed> for EnvelopeError {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

const KIND_RAFT: u8 = 0;
const KIND_QUIESCE: u8 = 1;
const KIND_WAKE: u8 = 2;
const KIND_RESIGNED: u8 = 3;
const KIND_SNAPSHOT_OFFER: u8 = 4;
const KIND_SNAPSHOT_CHUNK: u8 = 5;
const KIND_SNAPSHOT_ANSWER: u8 = 6;
const KIND_CHANGE_KNOWN: u8 = 7;
const KIND_FETCH: u8 = 8;
const KIND_FETCHED: u8 = 9;

impl Envelope {
    /// The group that this is about.
    pub fn group(&self) -> GroupId {
        GroupId(self.key.group)
    }

    /// The group that encoded bytes are about, without a look at what follows.
    pub fn group_of(bytes: &Bytes) -> Result<GroupId, EnvelopeError> {
        let mut reader = Reader::new(bytes.clone());
        let version = reader.u8()?;
        if version != ENVELOPE_VERSION {
            return Err(EnvelopeError::Version(version));
        }
        reader.u64()?;
        Ok(GroupId(reader.varint()?))
    }

    /// What kind of envelope this is, in a word, for logs and metrics.
    pub fn kind(&self) -> &'static str {
        match self.body {
            Body::Raft(_) => "raft",
            Body::Quiesce { .. } => "quiesce",
            Body::Wake => "wake",
            Body::ChangeKnown { .. } => "change known",
            Body::Resigned => "resigned",
            Body::SnapshotOffer(_) => "snapshot offer",
            Body::SnapshotChunk(_) => "snapshot chunk",
            Body::SnapshotAnswer(_) => "snapshot answer",
            Body::Fetch { .. } => "fetch",
            Body::Fetched { .. } => "fetched",
        }
    }

    /// The bytes for the wire.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(64 + self.body_bytes());
        self.encode_to(&mut out);
        out.freeze()
    }

    /// Appends the bytes for the wire, about 64 and [`Envelope::body_bytes`].
    pub fn encode_to(&self, out: &mut BytesMut) {
        out.put_u8(ENVELOPE_VERSION);
        out.put_u64_le(self.cluster);
        put_varint(out, self.key.group);
        put_varint(out, u64::from(self.key.incarnation.counter));
        out.put_u64_le(self.key.incarnation.nonce);
        put_varint(out, u64::from(self.generations.from));
        put_varint(out, u64::from(self.generations.to));
        put_varint(out, self.term);
        put_varint(out, self.sent_at.0);
        put_varint(out, self.echo.0);
        put_varint(out, self.floor);
        self.body.encode(out);
    }

    /// Reads one whole envelope; payloads are slices of `bytes`.
    pub fn decode(bytes: Bytes) -> Result<Envelope, EnvelopeError> {
        let mut reader = Reader::new(bytes);
        let version = reader.u8()?;
        if version != ENVELOPE_VERSION {
            return Err(EnvelopeError::Version(version));
        }
        let cluster = reader.u64()?;
        let group = GroupId(reader.varint()?);
        let counter = u32::try_from(reader.varint()?).map_err(|_| Malformed)?;
        let key = group_key(group, Incarnation { counter, nonce: reader.u64()? });
        let mut generation = || u32::try_from(reader.varint()?).map_err(|_| Malformed);
        let generations = Generations { from: generation()?, to: generation()? };
        let term = reader.varint()?;
        let sent_at = Instant(reader.varint()?);
        let echo = Instant(reader.varint()?);
        let floor = reader.varint()?;
        let body = Body::decode(&mut reader, term)?;
        reader.end()?;
        Ok(Envelope { cluster, key, generations, term, sent_at, echo, floor, body })
    }

    /// Roughly how many bytes the encoding takes, for budgets.
    pub fn body_bytes(&self) -> usize {
        match &self.body {
            Body::Raft(message) => message.entries.iter().map(|entry| 24 + entry.data.len()).sum(),
            Body::SnapshotChunk(chunk) => chunk.piece.len(),
            Body::SnapshotOffer(offer) => offer.conf.len(),
            Body::Fetched { entries, .. } => entries.iter().map(|entry| 24 + entry.payload.len()).sum(),
            _ => 0,
        }
    }
}

impl Body {
    fn encode(&self, out: &mut BytesMut) {
        match self {
            Body::Raft(message) => {
                out.put_u8(KIND_RAFT);
                encode_message(out, message);
            }
            Body::Quiesce { last, commit } => {
                out.put_u8(KIND_QUIESCE);
                put_varint(out, *last);
                put_varint(out, *commit);
            }
            Body::Wake => out.put_u8(KIND_WAKE),
            Body::ChangeKnown { index } => {
                out.put_u8(KIND_CHANGE_KNOWN);
                put_varint(out, *index);
            }
            Body::Resigned => out.put_u8(KIND_RESIGNED),
            Body::SnapshotOffer(offer) => {
                out.put_u8(KIND_SNAPSHOT_OFFER);
                out.put_u64_le(offer.id);
                put_varint(out, offer.index);
                put_varint(out, offer.index_term);
                put_bytes(out, &offer.conf);
                put_varint(out, offer.machine_bytes);
                out.put_u32_le(offer.machine_crc);
            }
            Body::SnapshotChunk(chunk) => {
                out.put_u8(KIND_SNAPSHOT_CHUNK);
                out.put_u64_le(chunk.id);
                put_varint(out, chunk.position);
                put_varint(out, chunk.next);
                out.put_u8(u8::from(chunk.last));
                out.put_u32_le(chunk.crc);
                put_bytes(out, &chunk.piece);
            }
            Body::Fetch { indexes } => {
                out.put_u8(KIND_FETCH);
                put_indexes(out, indexes);
            }
            Body::Fetched { entries, gone } => {
                out.put_u8(KIND_FETCHED);
                put_varint(out, entries.len() as u64);
                entries.iter().for_each(|entry| entry.encode(out));
                put_indexes(out, gone);
            }
            Body::SnapshotAnswer(answer) => {
                out.put_u8(KIND_SNAPSHOT_ANSWER);
                out.put_u64_le(answer.id);
                match answer.state {
                    SnapshotState::Want { position, have } => {
                        out.put_u8(0);
                        put_varint(out, position);
                        put_varint(out, have);
                    }
                    SnapshotState::Again { position } => {
                        out.put_u8(3);
                        put_varint(out, position);
                    }
                    SnapshotState::Done => out.put_u8(1),
                    SnapshotState::Refused => out.put_u8(2),
                }
            }
        }
    }

    fn decode(reader: &mut Reader, term: u64) -> Result<Body, Malformed> {
        Ok(match reader.u8()? {
            KIND_RAFT => Body::Raft(Box::new(decode_message(reader, term)?)),
            KIND_QUIESCE => Body::Quiesce { last: reader.varint()?, commit: reader.varint()? },
            KIND_WAKE => Body::Wake,
            KIND_CHANGE_KNOWN => Body::ChangeKnown { index: reader.varint()? },
            KIND_RESIGNED => Body::Resigned,
            KIND_SNAPSHOT_OFFER => Body::SnapshotOffer(SnapshotOffer {
                id: reader.u64()?,
                index: reader.varint()?,
                index_term: reader.varint()?,
                conf: reader.bytes()?,
                machine_bytes: reader.varint()?,
                machine_crc: reader.u32()?,
            }),
            KIND_SNAPSHOT_CHUNK => Body::SnapshotChunk(SnapshotChunk {
                id: reader.u64()?,
                position: reader.varint()?,
                next: reader.varint()?,
                last: reader.flag()?,
                crc: reader.u32()?,
                piece: reader.bytes()?,
            }),
            KIND_SNAPSHOT_ANSWER => {
                let id = reader.u64()?;
                let state = match reader.u8()? {
                    0 => SnapshotState::Want { position: reader.varint()?, have: reader.varint()? },
                    1 => SnapshotState::Done,
                    2 => SnapshotState::Refused,
                    3 => SnapshotState::Again { position: reader.varint()? },
                    _ => return Err(Malformed),
                };
                Body::SnapshotAnswer(SnapshotAnswer { id, state })
            }
            KIND_FETCH => Body::Fetch { indexes: read_indexes(reader)? },
            KIND_FETCHED => {
                let count = reader.varint()?;
                // Each takes eight bytes at least, so a false count ends at the end of the input.
                let entries = (0..count).map(|_| FoundEntry::decode(reader)).collect::<Result<_, _>>()?;
                Body::Fetched { entries, gone: read_indexes(reader)? }
            }
            _ => return Err(Malformed),
        })
    }
}

/// The messages that members exchange. Proposals, reads and transfers are never forwarded, snapshots go out of band.
const MESSAGE_KINDS: [MessageType; 9] = [
    MessageType::MsgAppend,
    MessageType::MsgAppendResponse,
    MessageType::MsgRequestVote,
    MessageType::MsgRequestVoteResponse,
    MessageType::MsgHeartbeat,
    MessageType::MsgHeartbeatResponse,
    MessageType::MsgTimeoutNow,
    MessageType::MsgRequestPreVote,
    MessageType::MsgRequestPreVoteResponse,
];

/// True for messages that may travel as [`Body::Raft`].
pub(crate) fn travels(kind: MessageType) -> bool {
    MESSAGE_KINDS.contains(&kind)
}

fn encode_message(out: &mut BytesMut, message: &Message) {
    let kind = MESSAGE_KINDS.iter().position(|kind| *kind == message.get_msg_type());
    out.put_u8(kind.map_or(u8::MAX, |kind| kind as u8));
    // A pre-vote speaks for a term that its sender is not in yet.
    put_varint(out, message.term);
    put_varint(out, message.log_term);
    put_varint(out, message.index);
    put_varint(out, message.commit);
    put_varint(out, message.commit_term);
    out.put_u8(u8::from(message.reject));
    put_varint(out, message.reject_hint);
    put_varint(out, message.request_snapshot);
    put_bytes(out, &message.context);
    put_varint(out, message.entries.len() as u64);
    let mut previous = message.index;
    for entry in message.entries.iter() {
        debug_assert_eq!(entry.index, previous + 1);
        previous = entry.index;
        put_varint(out, entry.term);
        put_bytes(out, entry_payload(entry));
    }
}

fn decode_message(reader: &mut Reader, envelope_term: u64) -> Result<Message, Malformed> {
    let kind = *MESSAGE_KINDS.get(usize::from(reader.u8()?)).ok_or(Malformed)?;
    let mut message = Message::default();
    message.set_msg_type(kind);
    message.term = reader.varint()?;
    message.log_term = reader.varint()?;
    message.index = reader.varint()?;
    message.commit = reader.varint()?;
    message.commit_term = reader.varint()?;
    message.reject = reader.flag()?;
    message.reject_hint = reader.varint()?;
    message.request_snapshot = reader.varint()?;
    message.context = reader.bytes()?;
    let count = reader.varint()?;
    if count > 0 && kind != MessageType::MsgAppend {
        return Err(Malformed);
    }
    let mut entries = Vec::new();
    let mut index = message.index;
    for _ in 0..count {
        // Each entry takes at least two bytes, so a false count ends at the end of the input.
        index = index.checked_add(1).ok_or(Malformed)?;
        let term = reader.varint()?;
        entries.push(entry(index, term, reader.bytes()?));
    }
    message.set_entries(entries.into());
    check_terms(&message, envelope_term)?;
    Ok(message)
}

/// Raft's own rules that raft-rs answers with a panic, or by treating the message as its own.
fn check_terms(message: &Message, envelope_term: u64) -> Result<(), Malformed> {
    let speaks_ahead =
        matches!(message.get_msg_type(), MessageType::MsgRequestPreVote | MessageType::MsgRequestPreVoteResponse);
    if message.term == 0 || (message.term != envelope_term && !speaks_ahead) {
        return Err(Malformed);
    }
    let mut term = message.log_term;
    for entry in message.entries.iter() {
        if entry.term < term || entry.term > message.term {
            return Err(Malformed);
        }
        term = entry.term;
    }
    Ok(())
}

/// What the log and the wire hold of an entry. The kind is told by the first byte.
pub(crate) fn entry_payload(entry: &Entry) -> &Bytes {
    // A proposed membership change carries raft-rs' protobuf in `data` and our own form in `context`.
    if entry.get_entry_type() == EntryType::EntryNormal { &entry.data } else { &entry.context }
}

/// The entry for a payload from the log or the wire.
pub(crate) fn entry(index: u64, term: u64, payload: Bytes) -> Entry {
    let mut entry = Entry { index, term, ..Entry::default() };
    if payload.first() == Some(&HOST_PAYLOAD) {
        entry.set_entry_type(EntryType::EntryConfChangeV2);
        entry.context = payload;
    } else {
        entry.data = payload;
    }
    entry
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample(body: Body) -> Envelope {
        let key = group_key(GroupId(7), Incarnation { counter: 3, nonce: 0xdead_beef });
        let generations = Generations { from: 300, to: 2 };
        Envelope {
            cluster: 1,
            key,
            generations,
            term: 9,
            sent_at: Instant(123_456_789),
            echo: Instant(5),
            floor: 77,
            body,
        }
    }

    fn append() -> Message {
        let mut message = Message { term: 9, log_term: 4, index: 10, commit: 8, ..Message::default() };
        message.set_msg_type(MessageType::MsgAppend);
        let conf = Bytes::from_static(&[HOST_PAYLOAD, 1, 2]);
        let entries =
            vec![entry(11, 4, Bytes::from_static(b"\x01hello")), entry(12, 9, Bytes::new()), entry(13, 9, conf)];
        message.set_entries(entries.into());
        message
    }

    fn samples() -> Vec<Envelope> {
        let mut vote = Message { term: 10, index: 3, log_term: 2, commit: 1, commit_term: 1, ..Message::default() };
        vote.set_msg_type(MessageType::MsgRequestPreVote);
        vec![
            sample(Body::Raft(Box::new(append()))),
            sample(Body::Raft(Box::new(vote))),
            sample(Body::Quiesce { last: 300, commit: 299 }),
            sample(Body::Wake),
            sample(Body::ChangeKnown { index: 300 }),
            sample(Body::Resigned),
            sample(Body::SnapshotOffer(SnapshotOffer {
                id: 1,
                index: 2,
                index_term: 3,
                conf: Bytes::from_static(b"c"),
                machine_bytes: 4,
                machine_crc: 5,
            })),
            sample(Body::SnapshotChunk(SnapshotChunk {
                id: 1,
                position: 0,
                next: 3,
                last: true,
                crc: 9,
                piece: Bytes::from_static(b"abc"),
            })),
            sample(Body::SnapshotAnswer(SnapshotAnswer { id: 1, state: SnapshotState::Want { position: 5, have: 6 } })),
            sample(Body::SnapshotAnswer(SnapshotAnswer { id: 1, state: SnapshotState::Again { position: 300 } })),
            sample(Body::SnapshotAnswer(SnapshotAnswer { id: 1, state: SnapshotState::Refused })),
            sample(Body::Fetch { indexes: vec![1, 300] }),
            sample(Body::Fetched {
                entries: vec![
                    FoundEntry { index: 7, term: Some(3), committed: false, payload: Bytes::from_static(b"lost") },
                    FoundEntry { index: 300, term: None, committed: true, payload: Bytes::new() },
                ],
                gone: vec![4, 500],
            }),
        ]
    }

    #[test]
    fn every_kind_of_envelope_survives_the_wire() {
        for envelope in samples() {
            assert_eq!(Envelope::group_of(&envelope.encode()), Ok(envelope.group()));
            assert_eq!(Envelope::decode(envelope.encode()), Ok(envelope));
        }
    }

    #[test]
    fn a_truncated_or_extended_envelope_is_an_error() {
        for envelope in samples() {
            let bytes = envelope.encode();
            for length in 0..bytes.len() {
                assert!(Envelope::decode(bytes.slice(..length)).is_err());
            }
            let mut longer = bytes.to_vec();
            longer.push(0);
            assert_eq!(Envelope::decode(longer.into()), Err(EnvelopeError::Malformed));
        }
    }

    #[test]
    fn an_unknown_version_is_named() {
        let mut bytes = samples()[0].encode().to_vec();
        bytes[0] = 9;
        assert_eq!(Envelope::decode(bytes.into()), Err(EnvelopeError::Version(9)));
    }

    #[test]
    fn an_entry_from_a_later_term_than_its_message_is_refused() {
        let mut message = append();
        message.term = 8;
        let mut envelope = sample(Body::Raft(Box::new(message)));
        envelope.term = 8;
        assert_eq!(Envelope::decode(envelope.encode()), Err(EnvelopeError::Malformed));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Envelope::decode(bytes.into());
        }

        #[test]
        fn a_changed_byte_never_panics(sample in 0usize..13, at in 0usize..100, byte in any::<u8>()) {
            let mut bytes = samples()[sample].encode().to_vec();
            let at = at % bytes.len();
            bytes[at] = byte;
            let _ = Envelope::decode(bytes.into());
        }
    }
}
