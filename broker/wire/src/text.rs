use std::fmt;

use bytes::Bytes;

use crate::WireError;

/// A string of at most 255 octets (AMQP 0-9-1 §4.2.5.3), a slice of the frame that it came in.
///
/// Those decoded from method arguments are UTF-8; those in property lists are whatever the client sent.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShortStr(Bytes);

impl ShortStr {
    /// The empty string.
    pub const EMPTY: ShortStr = ShortStr(Bytes::new());

    /// Takes the bytes as they are; [`WireError::StringTooLong`] beyond 255 octets.
    pub fn new(bytes: impl Into<Bytes>) -> Result<ShortStr, WireError> {
        let bytes = bytes.into();
        if bytes.len() > 255 { Err(WireError::StringTooLong(bytes.len())) } else { Ok(ShortStr(bytes)) }
    }

    /// A literal; what is beyond 255 octets is cut off.
    pub fn from_static(text: &'static str) -> ShortStr {
        ShortStr(Bytes::from_static(&text.as_bytes()[..cut(text)]))
    }

    /// A copy of `text`, cut at the last character that fits into 255 octets (for reply texts).
    pub fn truncated(text: &str) -> ShortStr {
        ShortStr(Bytes::copy_from_slice(&text.as_bytes()[..cut(text)]))
    }

    /// The octets.
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    /// The octets, without copying.
    pub fn into_bytes(self) -> Bytes {
        self.0
    }

    /// The text; empty if it is not UTF-8.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// True for the string of no octets.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A copy that shares no memory with the frame it came from: for what outlives a message by far.
    pub fn detached(&self) -> ShortStr {
        ShortStr(Bytes::copy_from_slice(&self.0))
    }

    /// For octets that were read behind a one-octet length.
    pub(crate) fn from_length_checked(bytes: Bytes) -> ShortStr {
        debug_assert!(bytes.len() <= 255);
        ShortStr(bytes)
    }
}

/// The largest length of at most 255 octets that ends on a character of `text`.
fn cut(text: &str) -> usize {
    let mut end = text.len().min(255);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    end
}

impl fmt::Display for ShortStr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Debug for ShortStr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

impl PartialEq<str> for ShortStr {
    fn eq(&self, other: &str) -> bool {
        self.0 == other.as_bytes()
    }
}

impl PartialEq<&str> for ShortStr {
    fn eq(&self, other: &&str) -> bool {
        self.0 == other.as_bytes()
    }
}

/// A string of up to 4 GiB of any octets (AMQP 0-9-1 §4.2.5.3); frames bound it in practice.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LongStr(Bytes);

impl LongStr {
    /// Takes the bytes as they are.
    pub fn new(bytes: impl Into<Bytes>) -> LongStr {
        LongStr(bytes.into())
    }

    /// The octets.
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    /// The octets, without copying.
    pub fn into_bytes(self) -> Bytes {
        self.0
    }
}

impl fmt::Debug for LongStr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}
