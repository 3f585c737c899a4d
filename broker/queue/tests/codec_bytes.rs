//! Whatever the bytes, decoding answers; whatever the value, it comes back.

mod support;

use bytes::Bytes;
use holdfast_queue::arguments::{Arguments, Value};
use holdfast_queue::codec::{Batch, Codec, DecodeError, Entry, EntryBuilder, Message, Origin, message_at};
use holdfast_queue::ids::{BootId, SessionId};
use holdfast_queue::meta::{Binding, Destination, MetaCommand, MetaEffect, MetaMachine};
use holdfast_queue::queue::{Outcome, QueueCommand, QueueEffect, QueueMachine};
use holdfast_queue::{AnyMachine, Machine};
use proptest::prelude::*;
use support::*;

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(Value::Bool),
        any::<i8>().prop_map(Value::I8),
        any::<u16>().prop_map(Value::U16),
        any::<i64>().prop_map(Value::I64),
        any::<u64>().prop_map(Value::F64),
        (any::<u8>(), any::<u32>()).prop_map(|(places, value)| Value::Decimal(places, value)),
        prop::collection::vec(any::<u8>(), 0..20).prop_map(|bytes| Value::LongString(bytes.into())),
        any::<u64>().prop_map(Value::Timestamp),
        Just(Value::Void),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
            prop::collection::vec(("[a-z]{0,5}", inner), 0..4).prop_map(|pairs| Value::Table(Arguments(pairs))),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arguments_come_back(pairs in prop::collection::vec(("[a-z-]{0,8}", value()), 0..6)) {
        let arguments = Arguments(pairs);
        prop_assert_eq!(Arguments::from_bytes(&arguments.to_bytes()), Ok(arguments));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), sub in any::<u32>()) {
        let bytes = Bytes::from(bytes);
        let _ = Entry::<QueueCommand>::from_bytes(&bytes);
        let _ = Entry::<MetaCommand>::from_bytes(&bytes);
        let _ = Batch::<QueueCommand>::from_bytes(&bytes);
        let _ = QueueEffect::from_bytes(&bytes);
        let _ = MetaEffect::from_bytes(&bytes);
        let _ = message_at(&bytes, sub);
        let _ = message_at(&bytes, sub % 200);
        let _ = AnyMachine::restore(&bytes);
    }

    #[test]
    fn a_flipped_byte_in_an_entry_never_panics(at in any::<prop::sample::Index>(), flip in 1..=255u8) {
        let commands = vec![create(), publish("body"), subscribe(consumer(1), 3), settle(consumer(1), 1, 4, Outcome::Ack)];
        let origin = Some(Origin { boot: HOME, first: 1, answered: 0 });
        let mut entry = EntryBuilder::new();
        entry.push(&Batch { origin, commands });
        let mut payload = entry.finish(9).to_vec();
        let at = at.index(payload.len());
        payload[at] ^= flip;
        let payload = Bytes::from(payload);
        let mut machine = QueueMachine::new();
        let _ = machine.apply(&Default::default(), &payload, &mut Vec::new());
        let _ = MetaMachine::new().apply(&Default::default(), &payload, &mut Vec::new());
        prop_assert!(QueueMachine::restore(&machine.snapshot()).is_ok());
    }
}

#[test]
fn an_entry_comes_back_and_shares_memory_with_its_bodies() {
    let message = Message {
        exchange: Bytes::from_static(b"amq.topic"),
        routing_key: Bytes::from_static(b"a.b"),
        properties: Bytes::from_static(&[0, 0]),
        body: Bytes::from(vec![7; 1000]),
    };
    let command = QueueCommand::Publish { queue: QUEUE, message: message.clone() };
    let batch = Batch { origin: Some(Origin { boot: HOME, first: 5, answered: 3 }), commands: vec![create(), command] };
    let mut builder = EntryBuilder::new();
    builder.push(&batch);
    let payload = builder.finish(77);
    let entry = Entry::<QueueCommand>::from_bytes(&payload).expect("an entry");
    assert_eq!((entry.time_ms, entry.batches.len(), entry.batches[0].origin), (77, 1, batch.origin));
    let positioned = &entry.batches[0].commands[1];
    let found = message_at(&payload, positioned.sub).expect("a publish");
    assert_eq!(found, message);
    assert!(payload.as_ptr_range().contains(&found.body.as_ptr()));
    assert!(message_at(&payload, entry.batches[0].commands[0].sub).is_err());
}

#[test]
fn metadata_commands_come_back() {
    let session = SessionId { boot: BootId(u64::MAX), conn: 3 };
    let binding = Binding {
        source: "amq.topic".into(),
        destination: Destination::Queue { name: "q".into() },
        routing_key: Bytes::from_static(b"#.\xff"),
        arguments: Arguments::from([("x-match", Value::string("any"))]),
    };
    let command = MetaCommand::Bind { vhost: "/".into(), binding, session };
    assert_eq!(MetaCommand::from_bytes(&command.to_bytes()), Ok(command));
}

#[test]
fn values_that_nest_too_deeply_are_refused_and_do_not_exhaust_the_stack() {
    let mut deep = [b'A', 1].repeat(100_000);
    deep.push(b'V');
    let refused = Value::from_bytes(&Bytes::from(deep));
    assert!(matches!(refused, Err(DecodeError::Invalid(_) | DecodeError::Truncated)), "{refused:?}");
}

#[test]
fn an_entry_of_another_version_is_refused() {
    let mut payload = EntryBuilder::new().finish(0).to_vec();
    payload[0] = 9;
    let refused = Entry::<QueueCommand>::from_bytes(&Bytes::from(payload));
    assert_eq!(refused, Err(DecodeError::UnknownVersion { what: "entry", version: 9 }));
}
