use amq_protocol::types as oracle;
use proptest::prelude::*;

use super::*;

fn a_value() -> impl Strategy<Value = FieldValue> {
    let octets = || prop::collection::vec(any::<u8>(), 0..20).prop_map(Bytes::from);
    let leaf = prop_oneof![
        any::<bool>().prop_map(FieldValue::Bool),
        any::<i8>().prop_map(FieldValue::I8),
        any::<u8>().prop_map(FieldValue::U8),
        any::<i16>().prop_map(FieldValue::I16),
        any::<u16>().prop_map(FieldValue::U16),
        any::<i32>().prop_map(FieldValue::I32),
        any::<u32>().prop_map(FieldValue::U32),
        any::<i64>().prop_map(FieldValue::I64),
        (-1e9f32..1e9).prop_map(FieldValue::F32),
        (-1e9f64..1e9).prop_map(FieldValue::F64),
        (any::<u8>(), any::<u32>()).prop_map(|(scale, value)| FieldValue::Decimal { scale, value }),
        octets().prop_map(FieldValue::LongStr),
        octets().prop_map(FieldValue::Octets),
        any::<u64>().prop_map(FieldValue::Timestamp),
        Just(FieldValue::Void),
    ];
    leaf.prop_recursive(3, 20, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4)
                .prop_map(|values| FieldValue::Array(FieldArray::from_values(values))),
            prop::collection::vec(("[a-z]{0,8}", inner), 0..4).prop_map(|entries| FieldValue::Table(table(entries))),
        ]
    })
}

fn table(entries: Vec<(String, FieldValue)>) -> FieldTable {
    FieldTable::from_entries(entries).expect("keys are short")
}

/// The same value in amq-protocol's types.
fn translated(value: &FieldValue) -> oracle::AMQPValue {
    use oracle::AMQPValue as V;
    match value {
        FieldValue::Bool(v) => V::Boolean(*v),
        FieldValue::I8(v) => V::ShortShortInt(*v),
        FieldValue::U8(v) => V::ShortShortUInt(*v),
        FieldValue::I16(v) => V::ShortInt(*v),
        FieldValue::U16(v) => V::ShortUInt(*v),
        FieldValue::I32(v) => V::LongInt(*v),
        FieldValue::U32(v) => V::LongUInt(*v),
        FieldValue::I64(v) => V::LongLongInt(*v),
        FieldValue::F32(v) => V::Float(*v),
        FieldValue::F64(v) => V::Double(*v),
        FieldValue::Decimal { scale, value } => V::DecimalValue(oracle::DecimalValue { scale: *scale, value: *value }),
        FieldValue::LongStr(v) => V::LongString(v.to_vec().into()),
        FieldValue::Octets(v) => V::ByteArray(v.to_vec().into()),
        FieldValue::Array(v) => V::FieldArray(v.iter().map(|value| translated(&value)).collect::<Vec<_>>().into()),
        FieldValue::Timestamp(v) => V::Timestamp(*v),
        FieldValue::Table(v) => V::FieldTable(translated_table(v)),
        FieldValue::Void => V::Void,
    }
}

fn translated_table(table: &FieldTable) -> oracle::FieldTable {
    let mut out = oracle::FieldTable::default();
    for (key, value) in table.iter() {
        out.insert(key.as_str().into(), translated(&value));
    }
    out
}

proptest! {
    #[test]
    fn a_table_reads_back_as_it_was_built(entries in prop::collection::vec(("[a-z]{0,8}", a_value()), 0..6)) {
        let built = table(entries.clone());
        let parsed = FieldTable::parse(built.as_bytes().clone());
        prop_assert_eq!(parsed.as_ref(), Ok(&built));
        let read: Vec<(String, FieldValue)> = built.iter().map(|(key, value)| (key.to_string(), value)).collect();
        prop_assert_eq!(read, entries);
    }

    #[test]
    fn amq_protocol_reads_the_same_values(entries in prop::collection::btree_map("[a-z]{1,8}", a_value(), 0..6)) {
        let built = table(entries.into_iter().collect());
        let mut encoded = (built.as_bytes().len() as u32).to_be_bytes().to_vec();
        encoded.extend_from_slice(built.as_bytes());
        let (rest, read) = oracle::parsing::parse_field_table(&encoded[..]).expect("readable");
        prop_assert!(rest.is_empty());
        prop_assert_eq!(read, translated_table(&built));
    }

    #[test]
    fn arbitrary_octets_are_a_table_or_an_error(octets: Vec<u8>) {
        if let Ok(parsed) = FieldTable::parse(octets.into()) {
            let count = parsed.iter().count();
            let again = FieldTable::from_entries(parsed.iter().map(|(key, value)| (key.into_bytes(), value)));
            prop_assert_eq!(again.expect("keys were short").iter().count(), count);
        }
    }
}

#[test]
fn unknown_types_are_refused_those_of_the_specification_included() {
    for octet in [b'L', b'U', b'z', 0] {
        let bytes = [1, b'k', octet, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(FieldTable::parse(Bytes::copy_from_slice(&bytes)), Err(WireError::FieldType(octet)));
    }
}

#[test]
fn signed_and_unsigned_types_are_those_of_rabbitmq() {
    let bytes = b"\x01bb\xff\x01BB\xff\x01ss\xff\xff\x01uu\xff\xff\x01II\xff\xff\xff\xff\x01ii\xff\xff\xff\xff\x01ll\xff\xff\xff\xff\xff\xff\xff\xff";
    let parsed = FieldTable::parse(Bytes::from_static(bytes)).expect("well formed");
    let numbers: Vec<Option<i64>> = parsed.iter().map(|(_, value)| value.as_i64()).collect();
    assert_eq!(numbers, [-1, 255, -1, 65535, -1, 4_294_967_295, -1].map(Some));
}

#[test]
fn a_table_nested_without_end_is_refused_and_does_not_overflow_the_stack() {
    let mut bytes: Vec<u8> = Vec::new();
    for depth in 0..20_000u32 {
        let mut outer = vec![b'A'];
        outer.extend((depth * 5).to_be_bytes());
        bytes.splice(0..0, outer);
    }
    bytes.splice(0..0, *b"\x01k");
    assert_eq!(FieldTable::parse(bytes.into()), Err(WireError::TooDeep(MAX_DEPTH)));
}

#[test]
fn setting_a_key_keeps_its_place_and_the_others() {
    let before = table(vec![("a".into(), FieldValue::I32(1)), ("b".into(), FieldValue::Void)]);
    let after = before.with("a", FieldValue::text("x")).expect("short key").with("c", FieldValue::U8(2));
    let after = after.expect("short key");
    let entries: Vec<(String, FieldValue)> = after.iter().map(|(key, value)| (key.to_string(), value)).collect();
    let expected = [("a", FieldValue::text("x")), ("b", FieldValue::Void), ("c", FieldValue::U8(2))];
    assert_eq!(entries, expected.map(|(key, value)| (key.to_owned(), value)));
}
