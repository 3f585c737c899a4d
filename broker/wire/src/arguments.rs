use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::{FieldTable, LongStr, ShortStr, WireError};

/// Reads a method's arguments in order; consecutive bits share octets (AMQP 0-9-1 §4.2.5.2).
#[derive(Debug)]
pub struct ArgumentReader {
    rest: Bytes,
    bits: u8,
    /// Bits of `bits` already read; 8 when the next bit starts a new octet.
    bits_used: u8,
}

impl ArgumentReader {
    /// Starts at the first octet of `payload`.
    pub fn new(payload: Bytes) -> ArgumentReader {
        ArgumentReader { rest: payload, bits: 0, bits_used: 8 }
    }

    fn need(&mut self, count: usize) -> Result<(), WireError> {
        self.bits_used = 8;
        if self.rest.len() < count { Err(WireError::Truncated) } else { Ok(()) }
    }

    /// One bit of the current octet, lowest first.
    pub fn bit(&mut self) -> Result<bool, WireError> {
        if self.bits_used == 8 {
            self.bits = self.octet()?;
            self.bits_used = 0;
        }
        let bit = self.bits & (1 << self.bits_used) != 0;
        self.bits_used += 1;
        Ok(bit)
    }

    /// One octet.
    pub fn octet(&mut self) -> Result<u8, WireError> {
        self.need(1)?;
        Ok(self.rest.get_u8())
    }

    /// Two octets, big-endian.
    pub fn short(&mut self) -> Result<u16, WireError> {
        self.need(2)?;
        Ok(self.rest.get_u16())
    }

    /// Four octets, big-endian.
    pub fn long(&mut self) -> Result<u32, WireError> {
        self.need(4)?;
        Ok(self.rest.get_u32())
    }

    /// Eight octets, big-endian.
    pub fn long_long(&mut self) -> Result<u64, WireError> {
        self.need(8)?;
        Ok(self.rest.get_u64())
    }

    /// A one-octet length and as many octets, whatever they are.
    pub fn short_bytes(&mut self) -> Result<ShortStr, WireError> {
        let length = usize::from(self.octet()?);
        self.need(length)?;
        Ok(ShortStr::from_length_checked(self.rest.split_to(length)))
    }

    /// A short string, which must be UTF-8 as RabbitMQ asks of method arguments.
    pub fn short_str(&mut self) -> Result<ShortStr, WireError> {
        let text = self.short_bytes()?;
        if std::str::from_utf8(text.as_bytes()).is_err() {
            return Err(WireError::Utf8);
        }
        Ok(text)
    }

    /// A four-octet length and as many octets.
    pub fn long_str(&mut self) -> Result<LongStr, WireError> {
        Ok(LongStr::new(self.long_bytes()?))
    }

    /// A field table, checked throughout.
    pub fn table(&mut self) -> Result<FieldTable, WireError> {
        FieldTable::parse(self.long_bytes()?)
    }

    /// The octets behind a four-octet length.
    pub(crate) fn long_bytes(&mut self) -> Result<Bytes, WireError> {
        let length = self.long()?;
        let length = usize::try_from(length).map_err(|_| WireError::Truncated)?;
        self.need(length)?;
        Ok(self.rest.split_to(length))
    }

    /// What has not been read.
    pub fn rest(self) -> Bytes {
        self.rest
    }

    /// [`WireError::TrailingBytes`] unless everything was read.
    pub fn finish(self) -> Result<(), WireError> {
        if self.rest.is_empty() { Ok(()) } else { Err(WireError::TrailingBytes(self.rest.len())) }
    }
}

/// Writes a method's arguments; the mirror of [`ArgumentReader`].
#[derive(Debug)]
pub struct ArgumentWriter<'a> {
    out: &'a mut BytesMut,
    /// Bits used of the octet at the end of `out`; 8 when the next bit starts a new one.
    bits_used: u8,
}

impl<'a> ArgumentWriter<'a> {
    /// Appends to `out`.
    pub fn new(out: &'a mut BytesMut) -> ArgumentWriter<'a> {
        ArgumentWriter { out, bits_used: 8 }
    }

    fn aligned(&mut self) -> &mut BytesMut {
        self.bits_used = 8;
        self.out
    }

    /// One bit, packed with its neighbours.
    pub fn bit(&mut self, bit: bool) {
        if self.bits_used == 8 {
            self.out.put_u8(0);
            self.bits_used = 0;
        }
        if let (true, Some(octet)) = (bit, self.out.last_mut()) {
            *octet |= 1 << self.bits_used;
        }
        self.bits_used += 1;
    }

    /// One octet.
    pub fn octet(&mut self, value: u8) {
        self.aligned().put_u8(value);
    }

    /// Two octets, big-endian.
    pub fn short(&mut self, value: u16) {
        self.aligned().put_u16(value);
    }

    /// Four octets, big-endian.
    pub fn long(&mut self, value: u32) {
        self.aligned().put_u32(value);
    }

    /// Eight octets, big-endian.
    pub fn long_long(&mut self, value: u64) {
        self.aligned().put_u64(value);
    }

    /// A short string.
    pub fn short_str(&mut self, text: &ShortStr) {
        let out = self.aligned();
        out.put_u8(text.as_bytes().len() as u8);
        out.put_slice(text.as_bytes());
    }

    /// Octets behind a four-octet length.
    pub fn long_bytes(&mut self, bytes: &[u8]) {
        let out = self.aligned();
        out.put_u32(bytes.len() as u32);
        out.put_slice(bytes);
    }
}

/// A type that method arguments can have.
pub(crate) trait Argument: Sized {
    fn read(from: &mut ArgumentReader) -> Result<Self, WireError>;
    fn write(&self, to: &mut ArgumentWriter<'_>);
}

macro_rules! scalar_argument {
    ($($kind:ty, $method:ident;)*) => {$(
        impl Argument for $kind {
            fn read(from: &mut ArgumentReader) -> Result<Self, WireError> { from.$method() }
            fn write(&self, to: &mut ArgumentWriter<'_>) { to.$method(*self) }
        }
    )*};
}

scalar_argument! { bool, bit; u8, octet; u16, short; u32, long; u64, long_long; }

impl Argument for ShortStr {
    fn read(from: &mut ArgumentReader) -> Result<Self, WireError> {
        from.short_str()
    }
    fn write(&self, to: &mut ArgumentWriter<'_>) {
        to.short_str(self);
    }
}

impl Argument for LongStr {
    fn read(from: &mut ArgumentReader) -> Result<Self, WireError> {
        from.long_str()
    }
    fn write(&self, to: &mut ArgumentWriter<'_>) {
        to.long_bytes(self.as_bytes());
    }
}

impl Argument for FieldTable {
    fn read(from: &mut ArgumentReader) -> Result<Self, WireError> {
        from.table()
    }
    fn write(&self, to: &mut ArgumentWriter<'_>) {
        to.long_bytes(self.as_bytes());
    }
}
