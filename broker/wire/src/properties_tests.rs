use amq_protocol::protocol::basic::gen_properties;
use proptest::prelude::*;

use super::*;
use crate::FieldValue;

fn short() -> impl Strategy<Value = Option<ShortStr>> {
    prop::option::of("[ -~]{0,40}".prop_map(|text| ShortStr::truncated(&text)))
}

fn headers() -> impl Strategy<Value = Option<FieldTable>> {
    let entries = prop::collection::btree_map("[a-z]{1,8}", any::<i64>().prop_map(FieldValue::I64), 0..4);
    prop::option::of(entries.prop_map(|entries| FieldTable::from_entries(entries).expect("short keys")))
}

prop_compose! {
    fn some_properties()(
        texts in prop::collection::vec(short(), 10),
        headers in headers(),
        delivery_mode: Option<u8>,
        priority: Option<u8>,
        timestamp: Option<u64>,
    ) -> BasicProperties {
        let mut texts = texts.into_iter();
        let mut next = || texts.next().flatten();
        BasicProperties {
            content_type: next(), content_encoding: next(), headers, delivery_mode, priority,
            correlation_id: next(), reply_to: next(), expiration: next(), message_id: next(), timestamp,
            kind: next(), user_id: next(), app_id: next(), cluster_id: next(),
        }
    }
}

/// amq-protocol's encoding of the same properties.
fn oracle_encoding(properties: &BasicProperties) -> Vec<u8> {
    let mut out = amq_protocol::protocol::BasicProperties::default();
    macro_rules! carry {
        ($($field:ident => $with:ident),*) => {$(
            if let Some(text) = &properties.$field { out = out.$with(text.as_str().into()); }
        )*};
    }
    carry!(content_type => with_content_type, content_encoding => with_content_encoding,
        correlation_id => with_correlation_id, reply_to => with_reply_to, expiration => with_expiration,
        message_id => with_message_id, kind => with_type, user_id => with_user_id, app_id => with_app_id,
        cluster_id => with_cluster_id);
    if let Some(table) = &properties.headers {
        let mut headers = amq_protocol::types::FieldTable::default();
        for (key, value) in table.iter() {
            let number = value.as_i64().expect("only integers");
            headers.insert(key.as_str().into(), amq_protocol::types::AMQPValue::LongLongInt(number));
        }
        out = out.with_headers(headers);
    }
    if let Some(mode) = properties.delivery_mode {
        out = out.with_delivery_mode(mode);
    }
    if let Some(priority) = properties.priority {
        out = out.with_priority(priority);
    }
    if let Some(timestamp) = properties.timestamp {
        out = out.with_timestamp(timestamp);
    }
    let mut bytes = Vec::new();
    gen_properties(&out)(Vec::new().into()).map(|done| bytes = done.write).expect("writes to memory");
    bytes
}

proptest! {
    #[test]
    fn properties_read_back_and_match_amq_protocol(properties in some_properties()) {
        let encoded = properties.encode();
        prop_assert_eq!(&encoded.as_bytes()[..], &oracle_encoding(&properties)[..]);
        let parsed = Properties::parse(encoded.into_bytes()).expect("well formed");
        prop_assert_eq!(parsed.view().expect("well formed"), properties.clone());
        prop_assert_eq!(parsed.headers().expect("well formed"), properties.headers);
        prop_assert_eq!(parsed.delivery_mode(), properties.delivery_mode);
        prop_assert_eq!(parsed.priority(), properties.priority);
        prop_assert_eq!(parsed.correlation_id(), properties.correlation_id);
        prop_assert_eq!(parsed.reply_to(), properties.reply_to);
        prop_assert_eq!(parsed.expiration(), properties.expiration);
        prop_assert_eq!(parsed.message_id(), properties.message_id);
        prop_assert_eq!(parsed.user_id(), properties.user_id);
    }

    #[test]
    fn other_headers_leave_all_else_as_it_was(properties in some_properties(), headers in headers()) {
        let changed = properties.encode().with_headers(headers.as_ref());
        let expected = BasicProperties { headers, ..properties };
        prop_assert_eq!(changed, expected.encode());
    }

    #[test]
    fn arbitrary_octets_are_properties_or_an_error(octets: Vec<u8>) {
        if let Ok(parsed) = Properties::parse(octets.clone().into()) {
            prop_assert_eq!(&parsed.as_bytes()[..], &octets[..]);
            let _ = parsed.view();
            let _ = parsed.with_headers(None).view();
        }
    }
}

#[test]
fn a_second_word_of_flags_is_refused() {
    assert_eq!(Properties::parse(Bytes::from_static(b"\x00\x01\x00\x00")), Err(WireError::PropertyFlags(1)));
}

#[test]
fn malformed_headers_are_refused_with_the_list() {
    let cases: [(&'static [u8], WireError); 4] = [
        (b"\x30\x00\x00\x00\x00\x03\x01kL\x02", WireError::FieldType(b'L')),
        (b"\x30\x00\x00\x00\x00\x03\x01kZ\x02", WireError::FieldType(b'Z')),
        (b"\x30\x00\x00\x00\x00\x04\x01kI\x07\x02", WireError::Truncated),
        (b"\x30\x00\x00\x00\x00\x03\x09kt\x02", WireError::Truncated),
    ];
    for (bytes, error) in cases {
        assert_eq!(Properties::parse(Bytes::from_static(bytes)), Err(error));
    }
}

#[test]
fn headers_nested_too_deeply_are_refused_with_the_list() {
    let nested = |levels: usize| {
        let table = (0..levels).fold(FieldTable::default(), |inner, _| {
            FieldTable::from_entries([("k", FieldValue::Table(inner))]).expect("a short key")
        });
        let properties = BasicProperties { headers: Some(table), ..BasicProperties::default() };
        Properties::parse(properties.encode().into_bytes())
    };
    assert!(nested(60).is_ok());
    assert_eq!(nested(15_000).map(|_| ()), Err(WireError::TooDeep(64)));
}
