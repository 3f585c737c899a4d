//! From the words of the wire to those of the machines and back.

use holdfast_queue::arguments::{Arguments, Value};
use holdfast_session::Refusal;
use holdfast_wire::{FieldTable, FieldValue, ReplyCode};

/// A field table as the machines read it.
pub(crate) fn arguments_of(table: &FieldTable) -> Arguments {
    Arguments(table.iter().map(|(name, value)| (name.to_string(), value_of(value))).collect())
}

fn value_of(value: FieldValue) -> Value {
    match value {
        FieldValue::Bool(value) => Value::Bool(value),
        FieldValue::I8(value) => Value::I8(value),
        FieldValue::U8(value) => Value::U8(value),
        FieldValue::I16(value) => Value::I16(value),
        FieldValue::U16(value) => Value::U16(value),
        FieldValue::I32(value) => Value::I32(value),
        FieldValue::U32(value) => Value::U32(value),
        FieldValue::I64(value) => Value::I64(value),
        FieldValue::F32(value) => Value::F32(value.to_bits()),
        FieldValue::F64(value) => Value::F64(value.to_bits()),
        FieldValue::Decimal { scale, value } => Value::Decimal(scale, value),
        FieldValue::LongStr(value) => Value::LongString(value),
        FieldValue::Octets(value) => Value::Binary(value),
        FieldValue::Array(array) => Value::Array(array.iter().map(value_of).collect()),
        FieldValue::Timestamp(value) => Value::Timestamp(value),
        FieldValue::Table(table) => Value::Table(arguments_of(&table)),
        FieldValue::Void => Value::Void,
    }
}

/// A machine's refusal as the session tells it; an unknown code is a fault of ours.
pub(crate) fn refusal_of(refusal: holdfast_queue::meta::Refusal) -> Refusal {
    let code = ReplyCode::from_number(refusal.code).unwrap_or(ReplyCode::InternalError);
    Refusal::new(code, refusal.text)
}
