use proptest::prelude::*;

use super::*;

/// A deterministic source of field values.
pub(super) struct Source(pub u64);

impl Source {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.0 >> 11
    }

    fn text(&mut self, limit: u64) -> Vec<u8> {
        let length = self.next() % limit;
        (0..length).map(|_| b'a' + (self.next() % 26) as u8).collect()
    }
}

pub(super) trait Sample {
    fn sample(source: &mut Source) -> Self;
}

macro_rules! sample_numbers {
    ($($kind:ty)*) => {$(
        impl Sample for $kind {
            fn sample(source: &mut Source) -> Self { source.next() as $kind }
        }
    )*};
}
sample_numbers!(u8 u16 u32 u64);

impl Sample for bool {
    fn sample(source: &mut Source) -> Self {
        source.next() & 1 == 1
    }
}

impl Sample for ShortStr {
    fn sample(source: &mut Source) -> Self {
        ShortStr::new(source.text(256)).expect("at most 255")
    }
}

impl Sample for LongStr {
    fn sample(source: &mut Source) -> Self {
        LongStr::new(source.text(1000))
    }
}

impl Sample for FieldTable {
    fn sample(source: &mut Source) -> Self {
        let value = crate::FieldValue::I64(source.next() as i64);
        FieldTable::from_entries([(source.text(10), value)]).expect("short keys")
    }
}

/// The payload of the one frame in `frame`.
fn payload(frame: &Bytes) -> Bytes {
    frame.slice(7..frame.len() - 1)
}

proptest! {
    #[test]
    fn every_method_reads_back_as_it_was_written(seed: u64) {
        for method in Method::samples(&mut Source(seed)) {
            let frame = method.to_frame(7);
            prop_assert_eq!(Method::decode(payload(&frame)), Ok(method));
        }
    }

    #[test]
    fn amq_protocol_reads_every_method_and_writes_the_same_bytes(seed: u64) {
        use amq_protocol::frame::{gen_frame, parse_frame};
        // It takes for reserved, and writes as zero, what deprecated fields hold.
        let drops_fields = |id: MethodId| id.class == 30 || id == MethodId { class: 60, method: 10 };
        let samples = Method::samples(&mut Source(seed)).into_iter().filter(|method| !drops_fields(method.id()));
        for method in samples {
            let frame = method.to_frame(7);
            let (rest, read) = parse_frame(&frame[..]).map_err(|error| TestCaseError::fail(format!("{}: {error}", method.name())))?;
            prop_assert!(rest.is_empty());
            let written = gen_frame(&read)(Vec::new().into()).expect("writes to memory").write;
            prop_assert_eq!(&written[..], &frame[..], "{}", method.name());
        }
    }

    #[test]
    fn a_method_cut_short_or_grown_is_an_error_and_no_panic(seed: u64, cut in 1usize..20) {
        for method in Method::samples(&mut Source(seed)) {
            let whole = payload(&method.to_frame(1));
            let shorter = whole.slice(..whole.len().saturating_sub(cut));
            prop_assert!(Method::decode(shorter).is_err());
            let mut longer = whole.to_vec();
            longer.push(0);
            prop_assert_eq!(Method::decode(longer.into()), Err(WireError::TrailingBytes(1)));
        }
    }

    #[test]
    fn arbitrary_arguments_never_panic(seed: u64, arguments: Vec<u8>) {
        for method in Method::samples(&mut Source(seed)) {
            let id = method.id();
            let mut bytes = BytesMut::new();
            bytes.put_u16(id.class);
            bytes.put_u16(id.method);
            bytes.put_slice(&arguments);
            if let Ok(decoded) = Method::decode(bytes.freeze()) {
                let again = Method::decode(payload(&decoded.to_frame(0)));
                prop_assert_eq!(again, Ok(decoded));
            }
        }
    }
}

fn short(text: &'static str) -> ShortStr {
    ShortStr::from_static(text)
}

#[test]
fn the_bytes_of_common_methods_are_those_of_the_specification() {
    let cases: [(Method, &[u8]); 5] = [
        (
            Method::ConnectionTune { channel_max: 2047, frame_max: 131_072, heartbeat_s: 60 },
            b"\x01\x00\x00\x00\x00\x00\x0c\x00\x0a\x00\x1e\x07\xff\x00\x02\x00\x00\x00\x3c\xce",
        ),
        (
            Method::ConnectionOpen { virtual_host: short("/") },
            b"\x01\x00\x00\x00\x00\x00\x08\x00\x0a\x00\x28\x01/\x00\x00\xce",
        ),
        (
            Method::BasicPublish {
                exchange: short("x"),
                routing_key: short("key"),
                mandatory: true,
                immediate: false,
            },
            b"\x01\x00\x00\x00\x00\x00\x0d\x00\x3c\x00\x28\x00\x00\x01x\x03key\x01\xce",
        ),
        (
            Method::BasicNack { delivery_tag: 258, multiple: true, requeue: true },
            b"\x01\x00\x00\x00\x00\x00\x0d\x00\x3c\x00\x78\x00\x00\x00\x00\x00\x00\x01\x02\x03\xce",
        ),
        (
            Method::QueueDeclare {
                queue: short("q"),
                passive: false,
                durable: true,
                exclusive: false,
                auto_delete: false,
                no_wait: true,
                arguments: FieldTable::from_entries([("x-max-priority", crate::FieldValue::I32(9))])
                    .expect("short key"),
            },
            b"\x01\x00\x00\x00\x00\x00\x21\x00\x32\x00\x0a\x00\x00\x01q\x12\x00\x00\x00\x14\x0ex-max-priorityI\x00\x00\x00\x09\xce",
        ),
    ];
    for (method, bytes) in cases {
        let channel = 0;
        assert_eq!(method.to_frame(channel), bytes, "{}", method.name());
        assert_eq!(Method::decode(Bytes::from_static(&bytes[7..bytes.len() - 1])), Ok(method));
    }
}

#[test]
fn a_routing_key_that_is_not_utf8_is_a_frame_error() {
    let bytes = b"\x00\x3c\x00\x28\x00\x00\x00\x02\xff\xfe\x00";
    let error = Method::decode(Bytes::from_static(bytes)).expect_err("not UTF-8");
    assert_eq!(error, WireError::Utf8);
    assert_eq!(error.reply_code(), crate::ReplyCode::FrameError);
}

#[test]
fn an_unknown_method_is_named_by_its_ids() {
    let decoded = Method::decode(Bytes::from_static(b"\x00\x3c\x03\xe7"));
    assert_eq!(decoded, Err(WireError::UnknownMethod { class: 60, method: 999 }));
}
