//! What members say to each other about a barrier.

use bytes::Bytes;
use holdfast_queue::codec::{Codec, DecodeError, Reader, Writer};
use holdfast_queue::ids::{GroupId, Incarnation};

/// Where the barrier cuts a group: all entries up to `index` are in the backup, none above.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub group: GroupId,
    pub incarnation: Incarnation,
    /// Of the leader that said so; the entry may be of an earlier one.
    pub term: u64,
    pub index: u64,
}

/// What a member says of a group that it leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Led {
    pub place: Place,
    /// A majority followed it in that term when it answered.
    pub proven: bool,
}

/// One message of a barrier. `barrier` names one attempt; it is drawn at random.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum BarrierMessage {
    /// Which groups are led by the receiver, and where do they stand? With `gate`, from now on nothing leaves them.
    Ask { barrier: u64, round: u32, gate: bool },
    /// The answer. `groups` are those that the metadata shows at the place of group 0, from its leader behind the gate.
    Answer { barrier: u64, round: u32, busy: bool, led: Vec<Led>, groups: Vec<GroupId> },
    /// The attempt is over: whatever was held back leaves. With a cut that has places, the receiver seals what it holds of
    /// it, in a hold of this name and for so long.
    End { barrier: u64, hold: String, hold_ms: u64, cut: Vec<Place> },
    /// The sender has sealed: what its hold has, or why there is none.
    Sealed { barrier: u64, part: Result<Bytes, String> },
    /// The manifest, for each hold's directory.
    Manifest { barrier: u64, hold: String, manifest: Bytes },
    /// The sender has stored it, or why not.
    Stored { barrier: u64, outcome: Result<(), String> },
    /// The backup failed: its hold is of no use.
    Release { barrier: u64, hold: String },
}

impl Codec for Place {
    fn encode(&self, out: &mut Writer) {
        self.group.encode(out);
        self.incarnation.encode(out);
        self.term.encode(out);
        self.index.encode(out);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self {
            group: Codec::decode(input)?,
            incarnation: Codec::decode(input)?,
            term: Codec::decode(input)?,
            index: Codec::decode(input)?,
        })
    }
}

impl Codec for Led {
    fn encode(&self, out: &mut Writer) {
        self.place.encode(out);
        self.proven.encode(out);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self { place: Codec::decode(input)?, proven: Codec::decode(input)? })
    }
}

impl Codec for BarrierMessage {
    fn encode(&self, out: &mut Writer) {
        match self {
            Self::Ask { barrier, round, gate } => {
                out.u8(1);
                out.fixed64(*barrier);
                round.encode(out);
                gate.encode(out);
            }
            Self::Answer { barrier, round, busy, led, groups } => {
                out.u8(2);
                out.fixed64(*barrier);
                round.encode(out);
                busy.encode(out);
                led.encode(out);
                groups.encode(out);
            }
            Self::End { barrier, hold, hold_ms, cut } => {
                out.u8(3);
                out.fixed64(*barrier);
                hold.encode(out);
                hold_ms.encode(out);
                cut.encode(out);
            }
            Self::Sealed { barrier, part } => {
                out.u8(4);
                out.fixed64(*barrier);
                put_outcome(part, out, |part, out| out.bytes(part));
            }
            Self::Manifest { barrier, hold, manifest } => {
                out.u8(5);
                out.fixed64(*barrier);
                hold.encode(out);
                out.bytes(manifest);
            }
            Self::Stored { barrier, outcome } => {
                out.u8(6);
                out.fixed64(*barrier);
                put_outcome(outcome, out, |(), _| {});
            }
            Self::Release { barrier, hold } => {
                out.u8(7);
                out.fixed64(*barrier);
                hold.encode(out);
            }
        }
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        let tag = input.u8()?;
        let barrier = input.fixed64()?;
        Ok(match tag {
            1 => Self::Ask { barrier, round: Codec::decode(input)?, gate: Codec::decode(input)? },
            2 => Self::Answer {
                barrier,
                round: Codec::decode(input)?,
                busy: Codec::decode(input)?,
                led: Codec::decode(input)?,
                groups: Codec::decode(input)?,
            },
            3 => Self::End {
                barrier,
                hold: Codec::decode(input)?,
                hold_ms: Codec::decode(input)?,
                cut: Codec::decode(input)?,
            },
            4 => Self::Sealed { barrier, part: outcome(input, Reader::bytes)? },
            5 => Self::Manifest { barrier, hold: Codec::decode(input)?, manifest: input.bytes()? },
            6 => Self::Stored { barrier, outcome: outcome(input, |_| Ok(()))? },
            7 => Self::Release { barrier, hold: Codec::decode(input)? },
            tag => return Err(DecodeError::UnknownTag { what: "barrier message", tag }),
        })
    }
}

fn put_outcome<T>(outcome: &Result<T, String>, out: &mut Writer, put: impl FnOnce(&T, &mut Writer)) {
    outcome.is_ok().encode(out);
    match outcome {
        Ok(value) => put(value, out),
        Err(why) => why.encode(out),
    }
}

fn outcome<T>(
    input: &mut Reader,
    read: impl FnOnce(&mut Reader) -> Result<T, DecodeError>,
) -> Result<Result<T, String>, DecodeError> {
    Ok(if bool::decode(input)? { Ok(read(input)?) } else { Err(Codec::decode(input)?) })
}

#[cfg(test)]
pub(crate) fn samples() -> Vec<BarrierMessage> {
    let incarnation = Incarnation { counter: 2, nonce: 77 };
    let place = Place { group: GroupId(300), incarnation, term: 4, index: 1 << 40 };
    vec![
        BarrierMessage::Ask { barrier: u64::MAX, round: 3, gate: true },
        BarrierMessage::Answer {
            barrier: 1,
            round: 3,
            busy: false,
            led: vec![Led { place, proven: true }],
            groups: vec![GroupId(1), GroupId(u64::MAX)],
        },
        BarrierMessage::End { barrier: 1, hold: "nightly".into(), hold_ms: 60_000, cut: vec![place] },
        BarrierMessage::Sealed { barrier: 1, part: Ok(Bytes::from_static(b"{}")) },
        BarrierMessage::Sealed { barrier: 1, part: Err("no room".into()) },
        BarrierMessage::Manifest { barrier: 1, hold: "nightly".into(), manifest: Bytes::from_static(b"{}") },
        BarrierMessage::Stored { barrier: 1, outcome: Ok(()) },
        BarrierMessage::Stored { barrier: 1, outcome: Err("no room".into()) },
        BarrierMessage::Release { barrier: 1, hold: "nightly".into() },
    ]
}
