//! Membership as bytes: in checkpoints, in snapshot offers, and as log entries.

use bytes::{BufMut, Bytes, BytesMut};
use raft::eraftpb::{ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState};

use crate::api::{HOST_PAYLOAD, MembershipChange};
use crate::bytes_reader::{Malformed, Reader, put_varint};
use holdfast_queue::ids::ReplicaId;

const CONF_VERSION: u8 = 2;

/// A group's membership at an index, and who this replica is in it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct StoredConf {
    /// By Raft ids.
    pub conf: ConfState,
    /// Index of the change that made it so; 0 for the founders.
    pub changed_at: u64,
    /// The generation of the replica that stores it; of no meaning in a snapshot on its way.
    pub generation: u32,
}

impl StoredConf {
    /// Lists are sorted, so that equal memberships are equal bytes.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u8(CONF_VERSION);
        put_varint(&mut out, u64::from(self.generation));
        put_varint(&mut out, self.changed_at);
        let conf = &self.conf;
        for list in [&conf.voters, &conf.learners, &conf.voters_outgoing, &conf.learners_next] {
            let mut sorted = list.to_vec();
            sorted.sort_unstable();
            put_varint(&mut out, sorted.len() as u64);
            for replica in sorted {
                put_varint(&mut out, replica);
            }
        }
        out.freeze()
    }

    pub fn decode(bytes: &Bytes) -> Result<StoredConf, Malformed> {
        let mut reader = Reader::new(bytes.clone());
        if reader.u8()? != CONF_VERSION {
            return Err(Malformed);
        }
        let generation = u32::try_from(reader.varint()?).map_err(|_| Malformed)?;
        let changed_at = reader.varint()?;
        let mut conf = ConfState::default();
        for list in [&mut conf.voters, &mut conf.learners, &mut conf.voters_outgoing, &mut conf.learners_next] {
            for _ in 0..reader.varint()? {
                list.push(reader.varint()?);
            }
        }
        reader.end()?;
        Ok(StoredConf { conf, changed_at, generation })
    }
}

const ADD_VOTER: u8 = 1;
const ADD_LEARNER: u8 = 2;
const REMOVE: u8 = 3;
const SWAP: u8 = 4;
const LEAVE_JOINT: u8 = 5;

fn put_replica(out: &mut BytesMut, replica: ReplicaId) {
    put_varint(out, replica.raft_id());
}

fn replica(reader: &mut Reader) -> Result<ReplicaId, Malformed> {
    Ok(ReplicaId::from_raft_id(reader.varint()?))
}

fn replicas(reader: &mut Reader) -> Result<Vec<ReplicaId>, Malformed> {
    let count = reader.varint()?;
    (0..count).map(|_| replica(reader)).collect()
}

/// A membership change as a log entry's payload.
pub(crate) fn encode_change(change: &MembershipChange) -> Bytes {
    let mut out = BytesMut::with_capacity(12);
    out.put_u8(HOST_PAYLOAD);
    match change {
        MembershipChange::Promote(replica) => {
            out.put_u8(ADD_VOTER);
            put_replica(&mut out, *replica);
        }
        MembershipChange::AddLearner(replica) => {
            out.put_u8(ADD_LEARNER);
            put_replica(&mut out, *replica);
        }
        MembershipChange::Remove(replica) => {
            out.put_u8(REMOVE);
            put_replica(&mut out, *replica);
        }
        MembershipChange::Swap { promote, demote, remove } => {
            out.put_u8(SWAP);
            for list in [promote, demote, remove] {
                put_varint(&mut out, list.len() as u64);
                list.iter().for_each(|replica| put_replica(&mut out, *replica));
            }
        }
        MembershipChange::LeaveJoint => out.put_u8(LEAVE_JOINT),
    }
    out.freeze()
}

pub(crate) fn decode_change(payload: &Bytes) -> Result<MembershipChange, Malformed> {
    let mut reader = Reader::new(payload.clone());
    if reader.u8()? != HOST_PAYLOAD {
        return Err(Malformed);
    }
    let change = match reader.u8()? {
        ADD_VOTER => MembershipChange::Promote(replica(&mut reader)?),
        ADD_LEARNER => MembershipChange::AddLearner(replica(&mut reader)?),
        REMOVE => MembershipChange::Remove(replica(&mut reader)?),
        SWAP => MembershipChange::Swap {
            promote: replicas(&mut reader)?,
            demote: replicas(&mut reader)?,
            remove: replicas(&mut reader)?,
        },
        LEAVE_JOINT => MembershipChange::LeaveJoint,
        _ => return Err(Malformed),
    };
    reader.end()?;
    Ok(change)
}

/// The change as raft-rs wants it.
pub(crate) fn raft_change(change: &MembershipChange) -> ConfChangeV2 {
    let mut raft = ConfChangeV2::default();
    let mut add = |replica: &ReplicaId, kind: ConfChangeType| {
        let mut single = ConfChangeSingle { node_id: replica.raft_id(), ..ConfChangeSingle::default() };
        single.set_change_type(kind);
        raft.mut_changes().push(single);
    };
    match change {
        MembershipChange::Promote(replica) => add(replica, ConfChangeType::AddNode),
        MembershipChange::AddLearner(replica) => add(replica, ConfChangeType::AddLearnerNode),
        MembershipChange::Remove(replica) => add(replica, ConfChangeType::RemoveNode),
        MembershipChange::Swap { promote, demote, remove } => {
            promote.iter().for_each(|replica| add(replica, ConfChangeType::AddNode));
            demote.iter().for_each(|replica| add(replica, ConfChangeType::AddLearnerNode));
            remove.iter().for_each(|replica| add(replica, ConfChangeType::RemoveNode));
            // Explicit: the entry by which raft-rs would leave by itself is one that our log cannot tell from a leader's
            // first entry, and it would stay away if the leader changed in between.
            raft.set_transition(ConfChangeTransition::Explicit);
        }
        // An empty change leaves.
        MembershipChange::LeaveJoint => {}
    }
    raft
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_queue::ids::MemberId;

    fn some(member: u64, generation: u32) -> ReplicaId {
        ReplicaId { member: MemberId(member), generation }
    }

    #[test]
    fn a_membership_survives_its_encoding_in_sorted_order() {
        let conf =
            ConfState { voters: vec![3, 1], learners: vec![9], voters_outgoing: vec![7], ..ConfState::default() };
        let stored = StoredConf { conf, changed_at: 12, generation: 4 };
        let decoded = StoredConf::decode(&stored.encode()).unwrap();
        assert_eq!(decoded.conf.voters, [1, 3]);
        assert_eq!((decoded.conf.learners, decoded.conf.voters_outgoing), (vec![9], vec![7]));
        assert_eq!((decoded.changed_at, decoded.generation), (12, 4));
    }

    #[test]
    fn a_change_survives_its_encoding_and_damage_is_an_error() {
        let swap = MembershipChange::Swap {
            promote: vec![some(1, 2), some(9, 0)],
            demote: vec![some(3, 0)],
            remove: vec![some(4, u32::MAX)],
        };
        for change in [
            MembershipChange::AddLearner(some(1, 7)),
            MembershipChange::Promote(some(200, 0)),
            MembershipChange::Remove(some(u64::from(u32::MAX), 1)),
            swap,
            MembershipChange::LeaveJoint,
        ] {
            let payload = encode_change(&change);
            assert_eq!(decode_change(&payload), Ok(change));
            assert_eq!(decode_change(&payload.slice(..payload.len() - 1)), Err(Malformed));
        }
        assert_eq!(decode_change(&Bytes::from_static(&[HOST_PAYLOAD, 9, 1])), Err(Malformed));
    }
}
