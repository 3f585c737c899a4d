use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::{ShortStr, WireError};

/// Tables and arrays nested deeper than this are refused: decoding is recursive.
const MAX_DEPTH: usize = 64;

/// A field table in its encoded form (without the length prefix), checked throughout when it was parsed.
///
/// RabbitMQ's reading of the types applies where it differs from the specification's grammar (§4.2.5.5):
/// `b` and `B` are a signed and an unsigned octet, `s` and `u` signed and unsigned 16 bits, `I` and `i` signed and
/// unsigned 32 bits, `l` signed 64 bits, `x` octets, `V` nothing; `L` and `U` are unknown.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct FieldTable(Bytes);

/// A field array in its encoded form (without the length prefix), checked with the table that holds it.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct FieldArray(Bytes);

/// One value of a field table or array.
#[derive(Debug, Clone, PartialEq)]
pub enum FieldValue {
    /// `t`.
    Bool(bool),
    /// `b`.
    I8(i8),
    /// `B`.
    U8(u8),
    /// `s`.
    I16(i16),
    /// `u`.
    U16(u16),
    /// `I`.
    I32(i32),
    /// `i`.
    U32(u32),
    /// `l`.
    I64(i64),
    /// `f`.
    F32(f32),
    /// `d`.
    F64(f64),
    /// `D`: value / 10^scale.
    Decimal {
        /// Digits after the point.
        scale: u8,
        /// The digits.
        value: u32,
    },
    /// `S`.
    LongStr(Bytes),
    /// `x`.
    Octets(Bytes),
    /// `A`.
    Array(FieldArray),
    /// `T`: seconds since 1970.
    Timestamp(u64),
    /// `F`.
    Table(FieldTable),
    /// `V`.
    Void,
}

impl FieldTable {
    /// Checks a table's contents, nested ones included.
    pub fn parse(bytes: Bytes) -> Result<FieldTable, WireError> {
        check_table(&bytes, 0)?;
        Ok(FieldTable(bytes))
    }

    /// A table of these entries, in this order. Keys over 255 octets are [`WireError::StringTooLong`].
    pub fn from_entries<K: AsRef<[u8]>>(
        entries: impl IntoIterator<Item = (K, FieldValue)>,
    ) -> Result<FieldTable, WireError> {
        let mut out = BytesMut::new();
        for (key, value) in entries {
            let key = key.as_ref();
            let length = u8::try_from(key.len()).map_err(|_| WireError::StringTooLong(key.len()))?;
            out.put_u8(length);
            out.put_slice(key);
            value.encode(&mut out);
        }
        Ok(FieldTable(out.freeze()))
    }

    /// The encoded entries, without the length prefix.
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    /// True without entries.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The entries in their order on the wire.
    pub fn iter(&self) -> TableIter {
        TableIter(self.0.clone())
    }

    /// The first value under `key`.
    pub fn get(&self, key: &str) -> Option<FieldValue> {
        self.iter().find(|(name, _)| name.as_bytes() == key.as_bytes()).map(|(_, value)| value)
    }

    /// The same table with `key` set to `value`: in place of its first entry, at the end if it had none.
    pub fn with(&self, key: &str, value: FieldValue) -> Result<FieldTable, WireError> {
        let mut entries: Vec<(ShortStr, FieldValue)> = self.iter().collect();
        match entries.iter_mut().find(|(name, _)| name.as_bytes() == key.as_bytes()) {
            Some(entry) => entry.1 = value,
            None => entries.push((ShortStr::new(Bytes::copy_from_slice(key.as_bytes()))?, value)),
        }
        FieldTable::from_entries(entries.iter().map(|(name, value)| (name.as_bytes(), value.clone())))
    }
}

impl std::fmt::Debug for FieldTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

/// Iterates over a table's entries.
#[derive(Debug, Clone)]
pub struct TableIter(Bytes);

impl Iterator for TableIter {
    type Item = (ShortStr, FieldValue);

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let length = usize::from(self.0.get_u8());
        let key = ShortStr::from_length_checked(self.0.split_to(length.min(self.0.len())));
        decode_value(&mut self.0).map(|value| (key, value))
    }
}

impl FieldArray {
    /// An array of these values.
    pub fn from_values(values: impl IntoIterator<Item = FieldValue>) -> FieldArray {
        let mut out = BytesMut::new();
        for value in values {
            value.encode(&mut out);
        }
        FieldArray(out.freeze())
    }

    /// The values in order.
    pub fn iter(&self) -> impl Iterator<Item = FieldValue> + use<> {
        let mut rest = self.0.clone();
        std::iter::from_fn(move || if rest.is_empty() { None } else { decode_value(&mut rest) })
    }
}

impl std::fmt::Debug for FieldArray {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl FieldValue {
    /// A long string.
    pub fn text(text: &str) -> FieldValue {
        FieldValue::LongStr(Bytes::copy_from_slice(text.as_bytes()))
    }

    /// The value as an integer, whatever its width, as RabbitMQ reads numeric arguments.
    pub fn as_i64(&self) -> Option<i64> {
        match self {
            FieldValue::I8(v) => Some(i64::from(*v)),
            FieldValue::U8(v) => Some(i64::from(*v)),
            FieldValue::I16(v) => Some(i64::from(*v)),
            FieldValue::U16(v) => Some(i64::from(*v)),
            FieldValue::I32(v) => Some(i64::from(*v)),
            FieldValue::U32(v) => Some(i64::from(*v)),
            FieldValue::I64(v) => Some(*v),
            _ => None,
        }
    }

    /// The text of a long string that is UTF-8.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            FieldValue::LongStr(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    /// RabbitMQ's name for the type, as its 406 texts give it.
    pub fn type_name(&self) -> &'static str {
        match self {
            FieldValue::Bool(_) => "bool",
            FieldValue::I8(_) => "byte",
            FieldValue::U8(_) => "unsignedbyte",
            FieldValue::I16(_) => "short",
            FieldValue::U16(_) => "unsignedshort",
            FieldValue::I32(_) => "signedint",
            FieldValue::U32(_) => "unsignedint",
            FieldValue::I64(_) => "long",
            FieldValue::F32(_) => "float",
            FieldValue::F64(_) => "double",
            FieldValue::Decimal { .. } => "decimal",
            FieldValue::LongStr(_) => "longstr",
            FieldValue::Octets(_) => "binary",
            FieldValue::Array(_) => "array",
            FieldValue::Timestamp(_) => "timestamp",
            FieldValue::Table(_) => "table",
            FieldValue::Void => "void",
        }
    }

    fn encode(&self, out: &mut BytesMut) {
        let mut long = |octet: u8, bytes: &[u8]| {
            out.put_u8(octet);
            out.put_u32(bytes.len() as u32);
            out.put_slice(bytes);
        };
        match self {
            FieldValue::LongStr(bytes) => long(b'S', bytes),
            FieldValue::Octets(bytes) => long(b'x', bytes),
            FieldValue::Array(array) => long(b'A', &array.0),
            FieldValue::Table(table) => long(b'F', &table.0),
            FieldValue::Bool(v) => out.put_slice(&[b't', u8::from(*v)]),
            FieldValue::I8(v) => out.put_slice(&[b'b', v.to_be_bytes()[0]]),
            FieldValue::U8(v) => out.put_slice(&[b'B', *v]),
            FieldValue::I16(v) => {
                out.put_u8(b's');
                out.put_i16(*v);
            }
            FieldValue::U16(v) => {
                out.put_u8(b'u');
                out.put_u16(*v);
            }
            FieldValue::I32(v) => {
                out.put_u8(b'I');
                out.put_i32(*v);
            }
            FieldValue::U32(v) => {
                out.put_u8(b'i');
                out.put_u32(*v);
            }
            FieldValue::I64(v) => {
                out.put_u8(b'l');
                out.put_i64(*v);
            }
            FieldValue::F32(v) => {
                out.put_u8(b'f');
                out.put_f32(*v);
            }
            FieldValue::F64(v) => {
                out.put_u8(b'd');
                out.put_f64(*v);
            }
            FieldValue::Decimal { scale, value } => {
                out.put_slice(&[b'D', *scale]);
                out.put_u32(*value);
            }
            FieldValue::Timestamp(v) => {
                out.put_u8(b'T');
                out.put_u64(*v);
            }
            FieldValue::Void => out.put_u8(b'V'),
        }
    }
}

/// How many octets follow the type octet: fixed, or a length of four octets and that many.
enum Extent {
    Fixed(usize),
    Counted,
}

fn extent_of(octet: u8) -> Result<Extent, WireError> {
    Ok(match octet {
        b'V' => Extent::Fixed(0),
        b't' | b'b' | b'B' => Extent::Fixed(1),
        b's' | b'u' => Extent::Fixed(2),
        b'I' | b'i' | b'f' => Extent::Fixed(4),
        b'D' => Extent::Fixed(5),
        b'l' | b'd' | b'T' => Extent::Fixed(8),
        b'S' | b'x' | b'A' | b'F' => Extent::Counted,
        other => return Err(WireError::FieldType(other)),
    })
}

fn check_table(mut bytes: &[u8], depth: usize) -> Result<(), WireError> {
    while let Some((&length, rest)) = bytes.split_first() {
        let rest = rest.get(usize::from(length)..).ok_or(WireError::Truncated)?;
        bytes = check_value(rest, depth)?;
    }
    Ok(())
}

/// Checks the value at the start of `bytes` and returns what follows it.
fn check_value(bytes: &[u8], depth: usize) -> Result<&[u8], WireError> {
    if depth >= MAX_DEPTH {
        return Err(WireError::TooDeep(MAX_DEPTH));
    }
    let (&octet, rest) = bytes.split_first().ok_or(WireError::Truncated)?;
    let (rest, length) = match extent_of(octet)? {
        Extent::Fixed(length) => (rest, length),
        Extent::Counted => {
            let (length, rest) = rest.split_first_chunk::<4>().ok_or(WireError::Truncated)?;
            (rest, u32::from_be_bytes(*length) as usize)
        }
    };
    let (value, rest) = rest.split_at_checked(length).ok_or(WireError::Truncated)?;
    match octet {
        b'F' => check_table(value, depth + 1)?,
        b'A' => {
            let mut inner = value;
            while !inner.is_empty() {
                inner = check_value(inner, depth + 1)?;
            }
        }
        _ => {}
    }
    Ok(rest)
}

/// Takes one value; `None` only for bytes that were never checked.
fn decode_value(from: &mut Bytes) -> Option<FieldValue> {
    if from.is_empty() {
        return None;
    }
    let octet = from.get_u8();
    let length = match extent_of(octet).ok()? {
        Extent::Fixed(length) => length,
        Extent::Counted if from.len() >= 4 => from.get_u32() as usize,
        Extent::Counted => return None,
    };
    if from.len() < length {
        return None;
    }
    let mut value = from.split_to(length);
    Some(match octet {
        b't' => FieldValue::Bool(value.get_u8() != 0),
        b'b' => FieldValue::I8(value.get_i8()),
        b'B' => FieldValue::U8(value.get_u8()),
        b's' => FieldValue::I16(value.get_i16()),
        b'u' => FieldValue::U16(value.get_u16()),
        b'I' => FieldValue::I32(value.get_i32()),
        b'i' => FieldValue::U32(value.get_u32()),
        b'l' => FieldValue::I64(value.get_i64()),
        b'f' => FieldValue::F32(value.get_f32()),
        b'd' => FieldValue::F64(value.get_f64()),
        b'D' => FieldValue::Decimal { scale: value.get_u8(), value: value.get_u32() },
        b'T' => FieldValue::Timestamp(value.get_u64()),
        b'S' => FieldValue::LongStr(value),
        b'x' => FieldValue::Octets(value),
        b'A' => FieldValue::Array(FieldArray(value)),
        b'F' => FieldValue::Table(FieldTable(value)),
        _ => FieldValue::Void,
    })
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
