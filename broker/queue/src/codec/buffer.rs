//! The reader and the writer, and the trait that ties types to them.

use bytes::{BufMut, Bytes, BytesMut};

/// How deep arrays and tables may nest.
const MAX_DEPTH: u8 = 32;

/// Why bytes are not what they should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end in the middle of something.
    #[error("the bytes end in the middle of a value")]
    Truncated,
    /// A version of the format that this build does not know.
    #[error("{what}: version {version} is not known")]
    UnknownVersion {
        /// What was being read.
        what: &'static str,
        /// The version found.
        version: u8,
    },
    /// An enum's tag that this build does not know.
    #[error("{what}: tag {tag} is not known")]
    UnknownTag {
        /// What was being read.
        what: &'static str,
        /// The tag found.
        tag: u8,
    },
    /// A value that its type cannot have.
    #[error("{0}")]
    Invalid(&'static str),
    /// A snapshot whose checksum does not match its content.
    #[error("checksum {found:#018x}, expected {expected:#018x}")]
    Checksum {
        /// What the content hashes to.
        found: u64,
        /// What the snapshot says.
        expected: u64,
    },
}

/// A type with a place in the format.
pub trait Codec: Sized {
    /// Appends the value.
    fn encode(&self, out: &mut Writer);

    /// Reads one value.
    ///
    /// # Errors
    /// When the bytes are not one.
    fn decode(input: &mut Reader) -> Result<Self, DecodeError>;

    /// The value alone, as bytes.
    fn to_bytes(&self) -> Bytes {
        let mut out = Writer::default();
        self.encode(&mut out);
        out.into_bytes()
    }

    /// Reads a value that fills `bytes`; byte strings in it share memory with them.
    ///
    /// # Errors
    /// When the bytes are not exactly one value.
    fn from_bytes(bytes: &Bytes) -> Result<Self, DecodeError> {
        let mut input = Reader::new(bytes.clone());
        let value = Self::decode(&mut input)?;
        input.finish()?;
        Ok(value)
    }
}

/// A growing buffer.
#[derive(Default)]
pub struct Writer {
    buffer: BytesMut,
}

impl Writer {
    /// A writer with room for `capacity` bytes.
    pub fn with_capacity(capacity: usize) -> Writer {
        Writer { buffer: BytesMut::with_capacity(capacity) }
    }

    /// Bytes written so far.
    pub fn len(&self) -> usize {
        self.buffer.len()
    }

    /// Whether nothing was written yet.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Appends one byte.
    pub fn u8(&mut self, value: u8) {
        self.buffer.put_u8(value);
    }

    /// Appends an integer in as few bytes as it needs.
    pub fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.buffer.put_u8(value as u8 | 0x80);
            value >>= 7;
        }
        self.buffer.put_u8(value as u8);
    }

    /// Appends a signed integer in as few bytes as it needs.
    pub fn zigzag(&mut self, value: i64) {
        self.varint(((value << 1) ^ (value >> 63)) as u64);
    }

    /// Appends four bytes.
    pub fn fixed32(&mut self, value: u32) {
        self.buffer.put_u32_le(value);
    }

    /// Appends eight bytes.
    pub fn fixed64(&mut self, value: u64) {
        self.buffer.put_u64_le(value);
    }

    /// Appends a length and the bytes.
    pub fn bytes(&mut self, value: &[u8]) {
        self.varint(value.len() as u64);
        self.buffer.put_slice(value);
    }

    /// Appends the bytes as they are.
    pub fn raw(&mut self, value: &[u8]) {
        self.buffer.put_slice(value);
    }

    /// Overwrites four bytes that were written before, at `at`.
    pub(crate) fn patch32(&mut self, at: usize, value: u32) {
        self.buffer[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    /// Overwrites eight bytes that were written before, at `at`.
    pub(crate) fn patch64(&mut self, at: usize, value: u64) {
        self.buffer[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }

    /// What was written.
    pub fn as_slice(&self) -> &[u8] {
        &self.buffer
    }

    /// What was written, without a copy.
    pub fn into_bytes(self) -> Bytes {
        self.buffer.freeze()
    }
}

/// A cursor over shared bytes.
pub struct Reader {
    bytes: Bytes,
    at: usize,
    depth: u8,
}

impl Reader {
    /// Reads from the start of `bytes`.
    pub fn new(bytes: Bytes) -> Reader {
        Reader { bytes, at: 0, depth: 0 }
    }

    /// Reads from the middle; a position past the end reads as truncated.
    pub fn at(bytes: Bytes, position: usize) -> Reader {
        let at = position.min(bytes.len());
        Reader { bytes, at, depth: 0 }
    }

    /// Where the next byte comes from.
    pub fn position(&self) -> usize {
        self.at
    }

    /// Bytes not read yet.
    pub fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn take(&mut self, len: usize) -> Result<&[u8], DecodeError> {
        if len > self.remaining() {
            return Err(DecodeError::Truncated);
        }
        let start = self.at;
        self.at += len;
        Ok(&self.bytes[start..start + len])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    /// One byte.
    ///
    /// # Errors
    /// At the end.
    pub fn u8(&mut self) -> Result<u8, DecodeError> {
        let [byte] = self.array()?;
        Ok(byte)
    }

    /// A varint.
    ///
    /// # Errors
    /// At the end, or when it does not fit 64 bits.
    pub fn varint(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(DecodeError::Invalid("an integer does not fit 64 bits"))
    }

    /// A signed varint.
    ///
    /// # Errors
    /// As [`Reader::varint`].
    pub fn zigzag(&mut self) -> Result<i64, DecodeError> {
        let raw = self.varint()?;
        Ok((raw >> 1) as i64 ^ -((raw & 1) as i64))
    }

    /// Four bytes.
    ///
    /// # Errors
    /// At the end.
    pub fn fixed32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_le_bytes)
    }

    /// Eight bytes.
    ///
    /// # Errors
    /// At the end.
    pub fn fixed64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_le_bytes)
    }

    /// A length-prefixed slice, sharing memory with the input.
    ///
    /// # Errors
    /// When it is longer than what is there.
    pub fn bytes(&mut self) -> Result<Bytes, DecodeError> {
        let len = self.length()?;
        let start = self.at;
        self.take(len)?;
        Ok(self.bytes.slice(start..start + len))
    }

    /// A length that what is left could hold.
    ///
    /// # Errors
    /// When it could not.
    pub fn length(&mut self) -> Result<usize, DecodeError> {
        let len = usize::try_from(self.varint()?).map_err(|_| DecodeError::Truncated)?;
        if len > self.remaining() { Err(DecodeError::Truncated) } else { Ok(len) }
    }

    /// Skips bytes.
    ///
    /// # Errors
    /// When there are fewer.
    pub fn skip(&mut self, len: usize) -> Result<(), DecodeError> {
        self.take(len).map(|_| ())
    }

    /// Runs `read` one level deeper, so that hostile nesting cannot exhaust the stack.
    pub(crate) fn nested<T>(
        &mut self,
        read: impl FnOnce(&mut Reader) -> Result<T, DecodeError>,
    ) -> Result<T, DecodeError> {
        if self.depth == MAX_DEPTH {
            return Err(DecodeError::Invalid("values nest too deeply"));
        }
        self.depth += 1;
        let value = read(self);
        self.depth -= 1;
        value
    }

    /// Checks that all was read.
    ///
    /// # Errors
    /// When bytes are left.
    pub fn finish(&self) -> Result<(), DecodeError> {
        if self.remaining() == 0 { Ok(()) } else { Err(DecodeError::Invalid("bytes are left over after the value")) }
    }
}

/// Gives a struct a [`Codec`]: its fields in the order listed.
macro_rules! codec_struct {
    ($($ty:ident { $($field:ident),* $(,)? })*) => { $(
        impl $crate::codec::Codec for $ty {
            fn encode(&self, out: &mut $crate::codec::Writer) {
                $( $crate::codec::Codec::encode(&self.$field, out); )*
            }

            fn decode(input: &mut $crate::codec::Reader) -> Result<Self, $crate::codec::DecodeError> {
                Ok($ty { $( $field: $crate::codec::Codec::decode(input)? ),* })
            }
        }
    )* };
}

/// Gives an enum of unit and struct variants a [`Codec`]: a tag, then the variant's fields in the order listed. Tags
/// are never reused.
macro_rules! codec_enum {
    ($ty:ident, $what:literal { $($tag:literal => $variant:ident $({ $($field:ident),* $(,)? })?),* $(,)? }) => {
        impl $crate::codec::Codec for $ty {
            fn encode(&self, out: &mut $crate::codec::Writer) {
                match self {
                    $( $ty::$variant $({ $($field),* })? => {
                        out.u8($tag);
                        $( $( $crate::codec::Codec::encode($field, out); )* )?
                    } )*
                }
            }

            fn decode(input: &mut $crate::codec::Reader) -> Result<Self, $crate::codec::DecodeError> {
                Ok(match input.u8()? {
                    $( $tag => $ty::$variant $({ $($field: $crate::codec::Codec::decode(input)?),* })?, )*
                    tag => return Err($crate::codec::DecodeError::UnknownTag { what: $what, tag }),
                })
            }
        }
    };
}

pub(crate) use {codec_enum, codec_struct};
