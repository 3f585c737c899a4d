use std::collections::BTreeMap;

use bytes::Bytes;
use holdfast_wire::FrameDecoder;
use proptest::prelude::*;

use super::*;

/// What a client takes `frames` to say: the outcome of each publish, as RabbitMQ's clients keep count.
fn heard_by_client(frames: Vec<Bytes>, published: u64) -> BTreeMap<u64, bool> {
    let mut decoder = FrameDecoder::new();
    frames.into_iter().for_each(|bytes| decoder.feed(bytes));
    let mut heard: BTreeMap<u64, bool> = BTreeMap::new();
    while let Some(frame) = decoder.next_frame(0).expect("well framed") {
        let (tag, multiple, accepted) = match Method::decode(frame.payload).expect("well formed") {
            Method::BasicAck { delivery_tag, multiple } => (delivery_tag, multiple, true),
            Method::BasicNack { delivery_tag, multiple, .. } => (delivery_tag, multiple, false),
            other => panic!("not a confirm: {other:?}"),
        };
        assert!(tag <= published);
        for seq in if multiple { 1..=tag } else { tag..=tag } {
            heard.entry(seq).or_insert(accepted);
        }
    }
    heard
}

proptest! {
    #[test]
    fn the_client_hears_each_outcome_once_and_right(
        order in prop::collection::vec(any::<prop::sample::Index>(), 40),
        outcomes in prop::collection::vec(any::<bool>(), 40),
        flush_after in prop::collection::vec(any::<bool>(), 40),
    ) {
        let mut confirms = Confirms::new(0);
        (1..=40).for_each(|seq| confirms.published(seq));
        let mut left: Vec<u64> = (1..=40).collect();
        let mut expected = BTreeMap::new();
        let mut out = Outbox::default();
        for step in 0..40 {
            let seq = left.remove(order[step].index(left.len()));
            confirms.resolve(seq, outcomes[step]);
            expected.insert(seq, outcomes[step]);
            if flush_after[step] {
                confirms.flush(1, &mut out);
            }
        }
        confirms.flush(1, &mut out);
        let frames = std::iter::from_fn(|| out.transmit()).collect();
        prop_assert_eq!(heard_by_client(frames, 40), expected);
    }
}
