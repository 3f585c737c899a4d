use proptest::prelude::*;

use super::*;

fn frame_bytes(kind: u8, channel: u16, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![kind];
    out.extend(channel.to_be_bytes());
    out.extend((payload.len() as u32).to_be_bytes());
    out.extend(payload);
    out.push(FRAME_END);
    out
}

/// All frames of `stream` when it arrives in these pieces.
fn decode_in_pieces(stream: &[u8], sizes: &[usize], frame_max: u32) -> (Vec<Frame>, Option<WireError>) {
    let mut decoder = FrameDecoder::new();
    let mut frames = Vec::new();
    let mut rest = Bytes::copy_from_slice(stream);
    let mut sizes = sizes.iter().copied().cycle();
    while !rest.is_empty() {
        let size = sizes.next().unwrap_or(1).clamp(1, rest.len());
        decoder.feed(rest.split_to(size));
        loop {
            match decoder.next_frame(frame_max) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            }
        }
    }
    (frames, None)
}

fn a_frame() -> impl Strategy<Value = (u8, u16, Vec<u8>)> {
    (prop::sample::select(vec![1u8, 2, 3, 8]), any::<u16>(), prop::collection::vec(any::<u8>(), 0..60))
}

proptest! {
    #[test]
    fn frames_are_the_same_however_the_stream_is_split(
        frames in prop::collection::vec(a_frame(), 1..12),
        sizes in prop::collection::vec(1usize..90, 1..20),
    ) {
        let stream: Vec<u8> = frames.iter().flat_map(|(kind, channel, payload)| frame_bytes(*kind, *channel, payload)).collect();
        let (whole, error) = decode_in_pieces(&stream, &[stream.len()], 0);
        prop_assert_eq!(error, None);
        let as_sent: Vec<(u8, u16, Vec<u8>)> =
            whole.iter().map(|frame| (frame.kind as u8, frame.channel, frame.payload.to_vec())).collect();
        prop_assert_eq!(as_sent, frames);
        prop_assert_eq!(&decode_in_pieces(&stream, &sizes, 0).0, &whole);
        prop_assert_eq!(&decode_in_pieces(&stream, &[1], 0).0, &whole);
    }

    #[test]
    fn arbitrary_bytes_never_panic_and_fail_alike_however_split(
        stream in prop::collection::vec(any::<u8>(), 0..200),
        sizes in prop::collection::vec(1usize..30, 1..10),
    ) {
        let whole = decode_in_pieces(&stream, &[stream.len().max(1)], 4096);
        prop_assert_eq!(decode_in_pieces(&stream, &sizes, 4096), whole);
    }
}

#[test]
fn a_frame_over_frame_max_is_refused_by_its_head_alone() {
    let bytes = frame_bytes(3, 1, &[0; 4089]);
    let too_large = WireError::FrameTooLarge { size_bytes: 4089, limit_bytes: 4088 };
    assert_eq!(decode_in_pieces(&bytes[..7], &[7], 4096).1, Some(too_large));
    assert_eq!(decode_in_pieces(&frame_bytes(3, 1, &[0; 4088]), &[5000], 4096).1, None);
}

#[test]
fn a_frame_without_its_end_octet_is_refused() {
    let mut bytes = frame_bytes(1, 0, b"abcd");
    *bytes.last_mut().expect("not empty") = 0xCD;
    assert_eq!(decode_in_pieces(&bytes, &[3], 0).1, Some(WireError::FrameEnd(0xCD)));
}

#[test]
fn an_unknown_frame_type_is_refused() {
    assert_eq!(decode_in_pieces(&frame_bytes(4, 0, b""), &[9], 0).1, Some(WireError::FrameType(4)));
}

#[test]
fn a_frame_that_came_in_one_piece_is_not_copied() {
    let stream = Bytes::from(frame_bytes(3, 1, &[7; 100]));
    let mut decoder = FrameDecoder::new();
    decoder.feed(stream.clone());
    let frame = decoder.next_frame(0).expect("well formed").expect("whole");
    assert_eq!(frame.payload.as_ptr(), stream[7..].as_ptr());
}

#[test]
fn the_protocol_header_is_told_from_others_as_early_as_possible() {
    let header_of = |pieces: &[&'static [u8]]| {
        let mut decoder = FrameDecoder::new();
        pieces.iter().for_each(|piece| decoder.feed(Bytes::from_static(piece)));
        decoder.protocol_header()
    };
    let other = |bytes| Some(ProtocolHeader::Other { received: Bytes::from_static(bytes) });
    assert_eq!(header_of(&[]), None);
    assert_eq!(header_of(&[b"AM", b"QP\0\0"]), None);
    assert_eq!(header_of(&[b"AM", b"QP\0\0", b"\x09\x01"]), Some(ProtocolHeader::Amqp091));
    assert_eq!(header_of(&[b"AMQP\x01\x01\x00\x0a"]), other(b"AMQP\x01\x01\x00\x0a"));
    assert_eq!(header_of(&[b"G"]), other(b"G"));
}
