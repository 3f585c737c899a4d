//! [`Codec`] for the types that the formats are made of.

use super::{Codec, DecodeError, Reader, Writer, codec_struct};
use crate::ids::{
    BootId, ChannelRef, ConsumerId, GroupId, Incarnation, MemberId, MessageRef, QueueId, ReplicaId, SessionId,
};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};

macro_rules! varint {
    ($($ty:ty),*) => { $(
        impl Codec for $ty {
            fn encode(&self, out: &mut Writer) {
                out.varint(u64::from(*self));
            }

            fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
                <$ty>::try_from(input.varint()?).map_err(|_| DecodeError::Invalid("an integer is out of range"))
            }
        }
    )* };
}

varint!(u8, u16, u32, u64);

macro_rules! zigzag {
    ($($ty:ty),*) => { $(
        impl Codec for $ty {
            fn encode(&self, out: &mut Writer) {
                out.zigzag(i64::from(*self));
            }

            fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
                <$ty>::try_from(input.zigzag()?).map_err(|_| DecodeError::Invalid("an integer is out of range"))
            }
        }
    )* };
}

zigzag!(i8, i16, i32, i64);

macro_rules! numbered {
    ($($ty:ident),*) => { $(
        impl Codec for $ty {
            fn encode(&self, out: &mut Writer) {
                out.varint(self.0);
            }

            fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
                input.varint().map($ty)
            }
        }
    )* };
}

numbered!(GroupId, QueueId, MemberId);

impl Codec for BootId {
    fn encode(&self, out: &mut Writer) {
        out.fixed64(self.0);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        input.fixed64().map(BootId)
    }
}

impl Codec for Incarnation {
    fn encode(&self, out: &mut Writer) {
        out.varint(u64::from(self.counter));
        out.fixed64(self.nonce);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Incarnation { counter: Codec::decode(input)?, nonce: input.fixed64()? })
    }
}

codec_struct! {
    SessionId { boot, conn }
    ChannelRef { session, channel, generation }
    ConsumerId { channel, number }
    MessageRef { index, sub }
    ReplicaId { member, generation }
}

impl Codec for bool {
    fn encode(&self, out: &mut Writer) {
        out.u8(u8::from(*self));
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        match input.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(DecodeError::Invalid("a boolean is neither 0 nor 1")),
        }
    }
}

impl Codec for Bytes {
    fn encode(&self, out: &mut Writer) {
        out.bytes(self);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        input.bytes()
    }
}

impl Codec for String {
    fn encode(&self, out: &mut Writer) {
        out.bytes(self.as_bytes());
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        let bytes = input.bytes()?;
        let text = std::str::from_utf8(&bytes).map_err(|_| DecodeError::Invalid("a name is not UTF-8"))?;
        Ok(text.to_owned())
    }
}

impl<T: Codec> Codec for Option<T> {
    fn encode(&self, out: &mut Writer) {
        self.is_some().encode(out);
        if let Some(value) = self {
            value.encode(out);
        }
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        if bool::decode(input)? { T::decode(input).map(Some) } else { Ok(None) }
    }
}

impl<A: Codec, B: Codec> Codec for (A, B) {
    fn encode(&self, out: &mut Writer) {
        self.0.encode(out);
        self.1.encode(out);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok((A::decode(input)?, B::decode(input)?))
    }
}

/// Every element takes at least one byte, so a count above what is left is refused before anything is allocated.
impl<T: Codec> Codec for Vec<T> {
    fn encode(&self, out: &mut Writer) {
        out.varint(self.len() as u64);
        for value in self {
            value.encode(out);
        }
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        let count = input.length()?;
        (0..count).map(|_| T::decode(input)).collect()
    }
}

impl<T: Codec + Ord> Codec for BTreeSet<T> {
    fn encode(&self, out: &mut Writer) {
        out.varint(self.len() as u64);
        for value in self {
            value.encode(out);
        }
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        let count = input.length()?;
        (0..count).map(|_| T::decode(input)).collect()
    }
}

impl<K: Codec + Ord, V: Codec> Codec for BTreeMap<K, V> {
    fn encode(&self, out: &mut Writer) {
        out.varint(self.len() as u64);
        for (key, value) in self {
            key.encode(out);
            value.encode(out);
        }
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        let count = input.length()?;
        (0..count).map(|_| Ok((K::decode(input)?, V::decode(input)?))).collect()
    }
}
