//! The payload of a log entry: batches of commands from home members.
//!
//! ```text
//! entry   = version u8 | time_ms u64 le | batch…
//! batch   = 0 | body            (from the group's own leader, not numbered)
//!         | 1 | boot u64 le | first varint | answered varint | body
//! body    = count u32 le | bytes u32 le | (length u32 le | command)…
//! ```

use super::{Codec, DecodeError, Reader, Writer};
use crate::queue::QueueCommand;
use bytes::Bytes;

const ENTRY_VERSION: u8 = 1;
const ENTRY_HEADER: usize = 9;

/// Which home member sent a batch, and where the batch stands in all that it ever sent to this group.
///
/// Everything that a home tells a group (publishes, acks, subscriptions, closes) is one stream of commands numbered 1,
/// 2, 3 … per (boot, group): see [`crate::streams::Streams`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The home member's run.
    pub boot: crate::ids::BootId,
    /// Number of the batch's first command; the others follow without gaps. At least 1.
    pub first: u64,
    /// The home has the replies to all its requests numbered up to this; the group may forget them. 0 if none.
    pub answered: u64,
}

impl Origin {
    /// Reads who sent a batch from its head, as it travels to the group's leader.
    ///
    /// # Errors
    /// When it does not begin like a batch.
    pub fn of(batch: &Bytes) -> Result<Option<Origin>, DecodeError> {
        decode_origin(&mut Reader::new(batch.clone()))
    }
}

/// Commands that travel together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch<C> {
    /// Who sent them; `None` for commands of the group's own leader, which are idempotent and not numbered.
    pub origin: Option<Origin>,
    /// The commands in order.
    pub commands: Vec<C>,
}

/// A decoded command and where it stands in the entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Positioned<C> {
    /// Byte offset of the command in the payload, the `sub` of a [`crate::ids::MessageRef`].
    pub sub: u32,
    /// The command.
    pub command: C,
}

/// A decoded payload of a log entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry<C> {
    /// Group time, stamped by the leader, in milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// What the members sent, in the order in which the leader took it.
    pub batches: Vec<Batch<Positioned<C>>>,
}

/// The content of a published message, its byte strings sharing memory with the entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// Name of the exchange it was published to; empty for the default one.
    pub exchange: Bytes,
    /// Its routing key.
    pub routing_key: Bytes,
    /// The content header's property flags and property list, byte for byte.
    pub properties: Bytes,
    /// The body.
    pub body: Bytes,
}

super::codec_struct! {
    Message { exchange, routing_key, properties, body }
}

impl<C: Codec> Batch<C> {
    fn encode(&self, out: &mut Writer) {
        match &self.origin {
            None => out.u8(0),
            Some(origin) => {
                out.u8(1);
                origin.boot.encode(out);
                out.varint(origin.first);
                out.varint(origin.answered);
            }
        }
        let counts = out.len();
        out.fixed32(saturate(self.commands.len()));
        out.fixed32(0);
        let start = out.len();
        for command in &self.commands {
            let at = out.len();
            out.fixed32(0);
            command.encode(out);
            out.patch32(at, saturate(out.len() - at - 4));
        }
        out.patch32(counts + 4, saturate(out.len() - start));
    }

    /// The batch as it travels to the group's leader.
    pub fn to_bytes(&self) -> Bytes {
        let mut out = Writer::default();
        self.encode(&mut out);
        out.into_bytes()
    }

    /// Reads a batch as it travels to the group's leader.
    ///
    /// # Errors
    /// When the bytes are not one whole batch of commands of this kind.
    pub fn from_bytes(bytes: &Bytes) -> Result<Batch<C>, DecodeError> {
        let mut input = Reader::new(bytes.clone());
        let batch = decode_batch(&mut input)?;
        input.finish()?;
        Ok(Batch { origin: batch.origin, commands: batch.commands.into_iter().map(|one| one.command).collect() })
    }
}

fn saturate(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

fn decode_batch<C: Codec>(input: &mut Reader) -> Result<Batch<Positioned<C>>, DecodeError> {
    let origin = decode_origin(input)?;
    let count = input.fixed32()? as usize;
    let bytes = input.fixed32()? as usize;
    if bytes > input.remaining() || count > bytes {
        return Err(DecodeError::Truncated);
    }
    let end = input.position() + bytes;
    let mut commands = Vec::with_capacity(count.min(bytes / 5));
    for _ in 0..count {
        let sub = u32::try_from(input.position()).map_err(|_| DecodeError::Invalid("an entry is over 4 GiB"))?;
        commands.push(Positioned { sub, command: decode_sized(input)? });
    }
    if input.position() != end {
        return Err(DecodeError::Invalid("a batch is not as long as it says"));
    }
    Ok(Batch { origin, commands })
}

fn decode_origin(input: &mut Reader) -> Result<Option<Origin>, DecodeError> {
    match input.u8()? {
        0 => Ok(None),
        1 => {
            let origin = Origin { boot: Codec::decode(input)?, first: input.varint()?, answered: input.varint()? };
            if origin.first == 0 { Err(DecodeError::Invalid("a batch is numbered from 0")) } else { Ok(Some(origin)) }
        }
        tag => Err(DecodeError::UnknownTag { what: "batch origin", tag }),
    }
}

fn decode_sized<C: Codec>(input: &mut Reader) -> Result<C, DecodeError> {
    let len = input.fixed32()? as usize;
    if len > input.remaining() {
        return Err(DecodeError::Truncated);
    }
    let end = input.position() + len;
    let command = C::decode(input)?;
    if input.position() == end { Ok(command) } else { Err(DecodeError::Invalid("a command is not as long as it says")) }
}

impl<C: Codec> Entry<C> {
    /// Reads the payload of a log entry.
    ///
    /// # Errors
    /// When any of it is malformed: an entry is applied whole or not at all.
    pub fn from_bytes(payload: &Bytes) -> Result<Entry<C>, DecodeError> {
        let mut input = Reader::new(payload.clone());
        let version = input.u8()?;
        if version != ENTRY_VERSION {
            return Err(DecodeError::UnknownVersion { what: "entry", version });
        }
        let time_ms = input.fixed64()?;
        let mut batches = Vec::new();
        while input.remaining() > 0 {
            batches.push(decode_batch(&mut input)?);
        }
        Ok(Entry { time_ms, batches })
    }
}

/// Builds the payload of one log entry on the group's leader, with one copy of each body.
pub struct EntryBuilder {
    out: Writer,
}

impl Default for EntryBuilder {
    fn default() -> EntryBuilder {
        EntryBuilder::new()
    }
}

impl EntryBuilder {
    /// An entry without batches.
    pub fn new() -> EntryBuilder {
        EntryBuilder::with_capacity(0)
    }

    /// An entry without batches, with room for so many bytes.
    pub fn with_capacity(bytes: usize) -> EntryBuilder {
        let mut out = Writer::with_capacity(bytes);
        out.u8(ENTRY_VERSION);
        out.fixed64(0);
        EntryBuilder { out }
    }

    /// Adds a batch that this member's own sessions made.
    pub fn push<C: Codec>(&mut self, batch: &Batch<C>) {
        batch.encode(&mut self.out);
    }

    /// Adds a batch as another member sent it ([`Batch::to_bytes`]), after checking that it is one, since a malformed
    /// batch would make the whole entry a no-op.
    ///
    /// # Errors
    /// When the bytes are not one whole batch of commands `C`; the entry is as before.
    pub fn push_encoded<C: Codec>(&mut self, batch: &Bytes) -> Result<(), DecodeError> {
        Batch::<C>::from_bytes(batch)?;
        self.out.raw(batch);
        Ok(())
    }

    /// Whether no batch was added yet.
    pub fn is_empty(&self) -> bool {
        self.out.len() == ENTRY_HEADER
    }

    /// Size of the payload so far, in bytes. Keep it under 4 GiB.
    pub fn len(&self) -> usize {
        self.out.len()
    }

    /// The payload, stamped with group time in milliseconds since the Unix epoch.
    pub fn finish(mut self, time_ms: u64) -> Bytes {
        self.out.patch64(1, time_ms);
        self.out.into_bytes()
    }
}

/// The message that the command at offset `sub` of an entry's payload published. Costs the same wherever in the entry
/// it is.
///
/// # Errors
/// When no publish command starts there.
pub fn message_at(payload: &Bytes, sub: u32) -> Result<Message, DecodeError> {
    let mut input = Reader::at(payload.clone(), sub as usize);
    match decode_sized(&mut input)? {
        QueueCommand::Publish { message, .. } | QueueCommand::Restore { message, .. } => Ok(message),
        _ => Err(DecodeError::Invalid("the command is not a publish")),
    }
}
