//! Argument tables of declares and bindings, and message headers: AMQP 0-9-1 §4.2.5.5 field tables with the types as
//! RabbitMQ reads them.

use crate::codec::{Codec, DecodeError, Reader, Writer};
use bytes::Bytes;

/// A field value. Floats are kept as their bits, so that tables compare and hash by content.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Value {
    /// `t`
    Bool(bool),
    /// `b`
    I8(i8),
    /// `B`
    U8(u8),
    /// `s`
    I16(i16),
    /// `u`
    U16(u16),
    /// `I`
    I32(i32),
    /// `i`
    U32(u32),
    /// `l` and `L`
    I64(i64),
    /// `f`, as bits
    F32(u32),
    /// `d`, as bits
    F64(u64),
    /// `D`: a number of decimal places and a value
    Decimal(u8, u32),
    /// `S`
    LongString(Bytes),
    /// `A`
    Array(Vec<Value>),
    /// `T`: seconds since the Unix epoch
    Timestamp(u64),
    /// `F`
    Table(Arguments),
    /// `V`
    Void,
    /// `x`
    Binary(Bytes),
}

impl Value {
    /// A string value.
    pub fn string(text: impl Into<String>) -> Value {
        Value::LongString(Bytes::from(text.into()))
    }

    /// The value of any of the integer types.
    pub fn as_integer(&self) -> Option<i64> {
        Some(match self {
            Value::I8(value) => i64::from(*value),
            Value::U8(value) => i64::from(*value),
            Value::I16(value) => i64::from(*value),
            Value::U16(value) => i64::from(*value),
            Value::I32(value) => i64::from(*value),
            Value::U32(value) => i64::from(*value),
            Value::I64(value) => *value,
            _ => return None,
        })
    }

    /// The value of a string.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Value::LongString(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    /// RabbitMQ's name of the type, as its error texts give it.
    pub fn type_name(&self) -> &'static str {
        match self {
            Value::Bool(_) => "bool",
            Value::I8(_) => "byte",
            Value::U8(_) => "unsignedbyte",
            Value::I16(_) => "short",
            Value::U16(_) => "unsignedshort",
            Value::I32(_) => "signedint",
            Value::U32(_) => "unsignedint",
            Value::I64(_) => "long",
            Value::F32(_) => "float",
            Value::F64(_) => "double",
            Value::Decimal(..) => "decimal",
            Value::LongString(_) => "longstr",
            Value::Array(_) => "array",
            Value::Timestamp(_) => "timestamp",
            Value::Table(_) => "table",
            Value::Void => "void",
            Value::Binary(_) => "binary",
        }
    }

    /// Whether two values mean the same: RabbitMQ does not tell integer types apart, nor the two floats.
    pub fn equivalent(&self, other: &Value) -> bool {
        if let (Some(mine), Some(theirs)) = (self.as_integer(), other.as_integer()) {
            return mine == theirs;
        }
        match (self.as_float(), other.as_float()) {
            (Some(mine), Some(theirs)) => mine == theirs,
            _ => self == other,
        }
    }

    fn as_float(&self) -> Option<f64> {
        match self {
            Value::F32(bits) => Some(f64::from(f32::from_bits(*bits))),
            Value::F64(bits) => Some(f64::from_bits(*bits)),
            _ => None,
        }
    }
}

/// A field table: names and values in the order in which the client wrote them. The first of a repeated name counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Arguments(pub Vec<(String, Value)>);

impl Arguments {
    /// The value under a name.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    /// Names and values in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<const N: usize> From<[(&str, Value); N]> for Arguments {
    fn from(pairs: [(&str, Value); N]) -> Arguments {
        Arguments(pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
    }
}

impl Codec for Arguments {
    fn encode(&self, out: &mut Writer) {
        self.0.encode(out);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        input.nested(Vec::decode).map(Arguments)
    }
}

impl Codec for Value {
    fn encode(&self, out: &mut Writer) {
        match self {
            Value::Bool(value) => tagged(out, b't', value),
            Value::I8(value) => tagged(out, b'b', value),
            Value::U8(value) => tagged(out, b'B', value),
            Value::I16(value) => tagged(out, b's', value),
            Value::U16(value) => tagged(out, b'u', value),
            Value::I32(value) => tagged(out, b'I', value),
            Value::U32(value) => tagged(out, b'i', value),
            Value::I64(value) => tagged(out, b'l', value),
            Value::F32(bits) => tagged(out, b'f', bits),
            Value::F64(bits) => tagged(out, b'd', bits),
            Value::Decimal(places, value) => {
                tagged(out, b'D', places);
                value.encode(out);
            }
            Value::LongString(value) => tagged(out, b'S', value),
            Value::Array(values) => tagged(out, b'A', values),
            Value::Timestamp(value) => tagged(out, b'T', value),
            Value::Table(table) => tagged(out, b'F', table),
            Value::Void => out.u8(b'V'),
            Value::Binary(value) => tagged(out, b'x', value),
        }
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(match input.u8()? {
            b't' => Value::Bool(Codec::decode(input)?),
            b'b' => Value::I8(Codec::decode(input)?),
            b'B' => Value::U8(Codec::decode(input)?),
            b's' => Value::I16(Codec::decode(input)?),
            b'u' => Value::U16(Codec::decode(input)?),
            b'I' => Value::I32(Codec::decode(input)?),
            b'i' => Value::U32(Codec::decode(input)?),
            b'l' => Value::I64(Codec::decode(input)?),
            b'f' => Value::F32(Codec::decode(input)?),
            b'd' => Value::F64(Codec::decode(input)?),
            b'D' => Value::Decimal(Codec::decode(input)?, Codec::decode(input)?),
            b'S' => Value::LongString(Codec::decode(input)?),
            b'A' => Value::Array(input.nested(Vec::decode)?),
            b'T' => Value::Timestamp(Codec::decode(input)?),
            b'F' => Value::Table(Codec::decode(input)?),
            b'V' => Value::Void,
            b'x' => Value::Binary(Codec::decode(input)?),
            tag => return Err(DecodeError::UnknownTag { what: "argument value", tag }),
        })
    }
}

fn tagged(out: &mut Writer, tag: u8, value: &impl Codec) {
    out.u8(tag);
    value.encode(out);
}

/// The value alone, as error texts show it.
impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(number) = self.as_integer() {
            return write!(f, "{number}");
        }
        match self {
            Value::Bool(value) => write!(f, "{value}"),
            Value::LongString(bytes) | Value::Binary(bytes) => f.write_str(&String::from_utf8_lossy(bytes)),
            Value::Timestamp(value) => write!(f, "{value}"),
            Value::F32(bits) => write!(f, "{}", f32::from_bits(*bits)),
            Value::F64(bits) => write!(f, "{}", f64::from_bits(*bits)),
            other => write!(f, "{other:?}"),
        }
    }
}
