use bytes::{BufMut, Bytes, BytesMut};

use crate::{ArgumentReader, ArgumentWriter, FieldTable, ShortStr, WireError};

/// The flag of each property (AMQP 0-9-1 §1.8.2), in the order of the list.
mod flag {
    pub const CONTENT_TYPE: u16 = 1 << 15;
    pub const CONTENT_ENCODING: u16 = 1 << 14;
    pub const HEADERS: u16 = 1 << 13;
    pub const DELIVERY_MODE: u16 = 1 << 12;
    pub const PRIORITY: u16 = 1 << 11;
    pub const CORRELATION_ID: u16 = 1 << 10;
    pub const REPLY_TO: u16 = 1 << 9;
    pub const EXPIRATION: u16 = 1 << 8;
    pub const MESSAGE_ID: u16 = 1 << 7;
    pub const TIMESTAMP: u16 = 1 << 6;
    pub const KIND: u16 = 1 << 5;
    pub const USER_ID: u16 = 1 << 4;
    pub const APP_ID: u16 = 1 << 3;
    pub const CLUSTER_ID: u16 = 1 << 2;
    /// Bit 0 announces a further word of flags, bit 1 has no property.
    pub const UNDEFINED: u16 = 0b11;
}

/// A message's properties as the publisher encoded them: the flag word and the values, kept byte for byte.
///
/// It is checked throughout when it is parsed: every string and the header table lie inside it, and the table's contents
/// are well formed, nested ones included. What a consumer cannot decode must never be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Properties(Bytes);

impl Default for Properties {
    fn default() -> Self {
        Properties(Bytes::from_static(&[0, 0]))
    }
}

/// All properties of the basic class, decoded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BasicProperties {
    /// MIME type.
    pub content_type: Option<ShortStr>,
    /// MIME encoding.
    pub content_encoding: Option<ShortStr>,
    /// Application headers.
    pub headers: Option<FieldTable>,
    /// 1 transient, 2 persistent.
    pub delivery_mode: Option<u8>,
    /// 0 to 255.
    pub priority: Option<u8>,
    /// For the application.
    pub correlation_id: Option<ShortStr>,
    /// Where a reply is expected.
    pub reply_to: Option<ShortStr>,
    /// Time to live, milliseconds in decimal.
    pub expiration: Option<ShortStr>,
    /// For the application.
    pub message_id: Option<ShortStr>,
    /// Seconds since 1970.
    pub timestamp: Option<u64>,
    /// The `type` property.
    pub kind: Option<ShortStr>,
    /// The publisher's user; a broker checks it.
    pub user_id: Option<ShortStr>,
    /// For the application.
    pub app_id: Option<ShortStr>,
    /// Deprecated.
    pub cluster_id: Option<ShortStr>,
}

impl Properties {
    /// Checks a property list, the contents of its header table included.
    pub fn parse(bytes: Bytes) -> Result<Properties, WireError> {
        let flags = match bytes.get(..2) {
            Some(word) => u16::from_be_bytes([word[0], word[1]]),
            None => return Err(WireError::Truncated),
        };
        if flags & flag::UNDEFINED != 0 {
            return Err(WireError::PropertyFlags(flags));
        }
        let end = skip(&bytes, flags, 0)?;
        if end != bytes.len() {
            return Err(WireError::TrailingBytes(bytes.len() - end));
        }
        let properties = Properties(bytes);
        if let Some(mut from) = properties.at(flag::HEADERS) {
            from.table()?;
        }
        Ok(properties)
    }

    /// The encoded list: flag word and values.
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    /// The encoded list, without copying.
    pub fn into_bytes(self) -> Bytes {
        self.0
    }

    fn flags(&self) -> u16 {
        u16::from_be_bytes([self.0[0], self.0[1]])
    }

    /// A reader placed at the property `flag`, if it is there.
    fn at(&self, flag: u16) -> Option<ArgumentReader> {
        let flags = self.flags();
        if flags & flag == 0 {
            return None;
        }
        let at = skip(&self.0, flags, flag).ok()?;
        Some(ArgumentReader::new(self.0.slice(at..)))
    }

    fn short(&self, flag: u16) -> Option<ShortStr> {
        self.at(flag)?.short_bytes().ok()
    }

    /// 1 transient, 2 persistent.
    pub fn delivery_mode(&self) -> Option<u8> {
        self.at(flag::DELIVERY_MODE)?.octet().ok()
    }

    /// 0 to 255.
    pub fn priority(&self) -> Option<u8> {
        self.at(flag::PRIORITY)?.octet().ok()
    }

    /// The header table.
    pub fn headers(&self) -> Result<Option<FieldTable>, WireError> {
        self.at(flag::HEADERS).map(|mut from| from.table()).transpose()
    }

    /// True if there is a header table, without looking at it.
    pub fn has_headers(&self) -> bool {
        self.flags() & flag::HEADERS != 0
    }

    /// Time to live, milliseconds in decimal.
    pub fn expiration(&self) -> Option<ShortStr> {
        self.short(flag::EXPIRATION)
    }

    /// The publisher's user.
    pub fn user_id(&self) -> Option<ShortStr> {
        self.short(flag::USER_ID)
    }

    /// Where a reply is expected.
    pub fn reply_to(&self) -> Option<ShortStr> {
        self.short(flag::REPLY_TO)
    }

    /// The application's message id.
    pub fn message_id(&self) -> Option<ShortStr> {
        self.short(flag::MESSAGE_ID)
    }

    /// The application's correlation id.
    pub fn correlation_id(&self) -> Option<ShortStr> {
        self.short(flag::CORRELATION_ID)
    }

    /// Everything, decoded.
    pub fn view(&self) -> Result<BasicProperties, WireError> {
        BasicProperties::decode(self.0.clone())
    }

    /// The same list with other headers (`None` removes them); all else stays byte for byte.
    pub fn with_headers(&self, headers: Option<&FieldTable>) -> Properties {
        let flags = self.flags();
        // `parse` has checked the extent, so both positions exist.
        let (Ok(start), Ok(end)) = (skip(&self.0, flags, flag::HEADERS), skip(&self.0, flags, flag::DELIVERY_MODE))
        else {
            return self.clone();
        };
        let new_flags = if headers.is_some() { flags | flag::HEADERS } else { flags & !flag::HEADERS };
        let table_bytes = headers.map_or(0, |table| 4 + table.as_bytes().len());
        let mut out = BytesMut::with_capacity(self.0.len() + table_bytes);
        out.put_u16(new_flags);
        out.put_slice(&self.0[2..start]);
        if let Some(table) = headers {
            ArgumentWriter::new(&mut out).long_bytes(table.as_bytes());
        }
        out.put_slice(&self.0[end..]);
        Properties(out.freeze())
    }
}

/// The position behind all values that come before the property `until` (0 = all of them).
fn skip(bytes: &[u8], flags: u16, until: u16) -> Result<usize, WireError> {
    let mut at = 2usize;
    let mut flag = flag::CONTENT_TYPE;
    while flag > flag::UNDEFINED && flag != until {
        if flags & flag != 0 {
            at += match flag {
                flag::HEADERS => {
                    let length = bytes.get(at..at + 4).ok_or(WireError::Truncated)?;
                    4 + u32::from_be_bytes([length[0], length[1], length[2], length[3]]) as usize
                }
                flag::DELIVERY_MODE | flag::PRIORITY => 1,
                flag::TIMESTAMP => 8,
                _ => 1 + usize::from(*bytes.get(at).ok_or(WireError::Truncated)?),
            };
            if at > bytes.len() {
                return Err(WireError::Truncated);
            }
        }
        flag >>= 1;
    }
    Ok(at)
}

impl BasicProperties {
    fn decode(bytes: Bytes) -> Result<BasicProperties, WireError> {
        let mut from = ArgumentReader::new(bytes);
        let flags = from.short()?;
        if flags & flag::UNDEFINED != 0 {
            return Err(WireError::PropertyFlags(flags));
        }
        let has = |flag: u16| flags & flag != 0;
        let short = |from: &mut ArgumentReader, flag| {
            if has(flag) { from.short_bytes().map(Some) } else { Ok(None) }
        };
        // Struct fields are evaluated as written, which is the order of the list.
        let decoded = BasicProperties {
            content_type: short(&mut from, flag::CONTENT_TYPE)?,
            content_encoding: short(&mut from, flag::CONTENT_ENCODING)?,
            headers: if has(flag::HEADERS) { Some(from.table()?) } else { None },
            delivery_mode: if has(flag::DELIVERY_MODE) { Some(from.octet()?) } else { None },
            priority: if has(flag::PRIORITY) { Some(from.octet()?) } else { None },
            correlation_id: short(&mut from, flag::CORRELATION_ID)?,
            reply_to: short(&mut from, flag::REPLY_TO)?,
            expiration: short(&mut from, flag::EXPIRATION)?,
            message_id: short(&mut from, flag::MESSAGE_ID)?,
            timestamp: if has(flag::TIMESTAMP) { Some(from.long_long()?) } else { None },
            kind: short(&mut from, flag::KIND)?,
            user_id: short(&mut from, flag::USER_ID)?,
            app_id: short(&mut from, flag::APP_ID)?,
            cluster_id: short(&mut from, flag::CLUSTER_ID)?,
        };
        from.finish()?;
        Ok(decoded)
    }

    /// Encodes the list as it stands in a header frame.
    pub fn encode(&self) -> Properties {
        let mut out = BytesMut::with_capacity(64);
        out.put_u16(0);
        let mut flags = 0;
        let mut to = ArgumentWriter::new(&mut out);
        let short = |to: &mut ArgumentWriter<'_>, flag, value: &Option<ShortStr>| {
            if let Some(text) = value {
                to.short_str(text);
                return flag;
            }
            0
        };
        flags |= short(&mut to, flag::CONTENT_TYPE, &self.content_type);
        flags |= short(&mut to, flag::CONTENT_ENCODING, &self.content_encoding);
        if let Some(table) = &self.headers {
            to.long_bytes(table.as_bytes());
            flags |= flag::HEADERS;
        }
        if let Some(mode) = self.delivery_mode {
            to.octet(mode);
            flags |= flag::DELIVERY_MODE;
        }
        if let Some(priority) = self.priority {
            to.octet(priority);
            flags |= flag::PRIORITY;
        }
        flags |= short(&mut to, flag::CORRELATION_ID, &self.correlation_id);
        flags |= short(&mut to, flag::REPLY_TO, &self.reply_to);
        flags |= short(&mut to, flag::EXPIRATION, &self.expiration);
        flags |= short(&mut to, flag::MESSAGE_ID, &self.message_id);
        if let Some(timestamp) = self.timestamp {
            to.long_long(timestamp);
            flags |= flag::TIMESTAMP;
        }
        flags |= short(&mut to, flag::KIND, &self.kind);
        flags |= short(&mut to, flag::USER_ID, &self.user_id);
        flags |= short(&mut to, flag::APP_ID, &self.app_id);
        flags |= short(&mut to, flag::CLUSTER_ID, &self.cluster_id);
        out[..2].copy_from_slice(&flags.to_be_bytes());
        Properties(out.freeze())
    }
}

#[cfg(test)]
#[path = "properties_tests.rs"]
mod tests;
