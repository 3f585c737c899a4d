//! Membership as bytes: in checkpoints, in snapshot offers, and as log entries.

use bytes::{BufMut, Bytes, BytesMut};
use raft::eraftpb::{ConfChange, ConfChangeType, ConfState};

use crate::api::{HOST_PAYLOAD, MembershipChange};
use crate::bytes_reader::{Malformed, Reader, put_varint};
use holdfast_queue::ids::MemberId;

const CONF_VERSION: u8 = 1;

/// The membership, lists sorted, so that equal memberships are equal bytes.
pub(crate) fn encode_conf(conf: &ConfState) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u8(CONF_VERSION);
    out.put_u8(u8::from(conf.auto_leave));
    for list in [&conf.voters, &conf.learners, &conf.voters_outgoing, &conf.learners_next] {
        let mut sorted = list.to_vec();
        sorted.sort_unstable();
        put_varint(&mut out, sorted.len() as u64);
        for member in sorted {
            put_varint(&mut out, member);
        }
    }
    out.freeze()
}

pub(crate) fn decode_conf(bytes: &Bytes) -> Result<ConfState, Malformed> {
    let mut reader = Reader::new(bytes.clone());
    if reader.u8()? != CONF_VERSION {
        return Err(Malformed);
    }
    let mut conf = ConfState { auto_leave: reader.flag()?, ..ConfState::default() };
    for list in [&mut conf.voters, &mut conf.learners, &mut conf.voters_outgoing, &mut conf.learners_next] {
        for _ in 0..reader.varint()? {
            list.push(reader.varint()?);
        }
    }
    reader.end()?;
    Ok(conf)
}

const ADD_VOTER: u8 = 1;
const ADD_LEARNER: u8 = 2;
const REMOVE: u8 = 3;

/// A membership change as a log entry's payload.
pub(crate) fn encode_change(change: MembershipChange) -> Bytes {
    let (kind, member) = match change {
        MembershipChange::Promote(member) => (ADD_VOTER, member),
        MembershipChange::AddLearner(member) => (ADD_LEARNER, member),
        MembershipChange::Remove(member) => (REMOVE, member),
    };
    let mut out = BytesMut::with_capacity(12);
    out.put_u8(HOST_PAYLOAD);
    out.put_u8(kind);
    put_varint(&mut out, member.0);
    out.freeze()
}

pub(crate) fn decode_change(payload: &Bytes) -> Result<MembershipChange, Malformed> {
    let mut reader = Reader::new(payload.clone());
    if reader.u8()? != HOST_PAYLOAD {
        return Err(Malformed);
    }
    let kind = reader.u8()?;
    let member = MemberId(reader.varint()?);
    reader.end()?;
    match kind {
        ADD_VOTER => Ok(MembershipChange::Promote(member)),
        ADD_LEARNER => Ok(MembershipChange::AddLearner(member)),
        REMOVE => Ok(MembershipChange::Remove(member)),
        _ => Err(Malformed),
    }
}

/// The change as raft-rs wants it.
pub(crate) fn raft_change(change: MembershipChange) -> ConfChange {
    let (kind, member) = match change {
        MembershipChange::Promote(member) => (ConfChangeType::AddNode, member),
        MembershipChange::AddLearner(member) => (ConfChangeType::AddLearnerNode, member),
        MembershipChange::Remove(member) => (ConfChangeType::RemoveNode, member),
    };
    let mut raft = ConfChange { node_id: member.0, ..ConfChange::default() };
    raft.set_change_type(kind);
    raft
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_membership_survives_its_encoding_in_sorted_order() {
        let conf = ConfState { voters: vec![3, 1], learners: vec![9], auto_leave: true, ..ConfState::default() };
        let decoded = decode_conf(&encode_conf(&conf)).unwrap();
        assert_eq!(decoded.voters, [1, 3]);
        assert_eq!(decoded.learners, [9]);
        assert!(decoded.auto_leave);
    }

    #[test]
    fn a_change_survives_its_encoding_and_damage_is_an_error() {
        for change in [
            MembershipChange::AddLearner(MemberId(1)),
            MembershipChange::Promote(MemberId(200)),
            MembershipChange::Remove(MemberId(u64::MAX)),
        ] {
            let payload = encode_change(change);
            assert_eq!(decode_change(&payload), Ok(change));
            assert_eq!(decode_change(&payload.slice(..payload.len() - 1)), Err(Malformed));
        }
        assert_eq!(decode_change(&Bytes::from_static(&[HOST_PAYLOAD, 9, 1])), Err(Malformed));
    }
}
