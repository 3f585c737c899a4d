//! Who a member is: what it must know before it may act, kept in its data directory.
//!
//! A member's identity is a UUID on its disk, not its name: a blank disk is a new member (design §3.1). It is written
//! before it is acted upon, as an identity record of the journal.

use holdfast_journal::Recovered;
use holdfast_queue::ids::{GroupId, Incarnation, MemberId};

/// The UUID of a data directory.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MemberUuid(pub u128);

impl std::fmt::Display for MemberUuid {
    /// The usual form with hyphens.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let v = self.0;
        write!(
            f,
            "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            (v >> 96) as u32,
            (v >> 80) as u16,
            (v >> 64) as u16,
            (v >> 48) as u16,
            v & 0xffff_ffff_ffff
        )
    }
}

impl std::fmt::Debug for MemberUuid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

/// Membership of a cluster, absent on a blank member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    pub cluster_id: String,
    /// Raised by a forced recovery; a member with a lower one refuses to take part.
    pub cluster_epoch: u64,
    /// Group 0's life in that epoch. Two forced recoveries that do not know of each other make equal epochs and differ here:
    /// their members refuse each other.
    pub meta_incarnation: Incarnation,
    /// This member's Raft id, never used again for another disk.
    pub member: MemberId,
    /// True until the metadata is here: only a member that never had it may begin with an empty replica of group 0. Any
    /// other that finds none has lost its log, and with it what it voted for and acknowledged.
    pub joining: bool,
    /// Which of this member's replicas of group 0 is the present one.
    pub meta_generation: u32,
    /// Addresses of other members, so that a restarted member finds them before it has read group 0.
    pub peers: Vec<String>,
}

/// What is persisted about a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub uuid: MemberUuid,
    pub membership: Option<Membership>,
    /// The highest `X-Holdfast-Token` seen; lower ones are refused.
    pub admin_token: u64,
    /// Parts of this disk were lost, and with them perhaps whole replicas and what they had promised. Until it is clear
    /// which, nothing that is missing here is made again as what it was.
    pub forgetful: bool,
}

/// A data directory that its member cannot go on with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// It does not say whose it is.
    #[error("the identity record of the data directory cannot be read: {0}")]
    Unreadable(&'static str),
    /// The member had the metadata, and they are gone: so may be votes and messages that it has acknowledged.
    #[error(
        "the data directory is that of member {member} of cluster {cluster_id}, but its log is gone: there is no group 0 \
         in it. Replace the volume by an empty one, with which the member joins anew"
    )]
    LogGone { member: MemberId, cluster_id: String },
}

const VERSION: u8 = 3;

impl Identity {
    /// The identity of a data directory that belongs to no cluster yet.
    pub fn blank(uuid: MemberUuid) -> Self {
        Self { uuid, membership: None, admin_token: 0, forgetful: false }
    }

    /// A member that has had the metadata must find a replica of group 0, damaged or not; or the journal must know that it
    /// has lost something, so that successors are asked for.
    pub(crate) fn check_log(&self, recovered: &Recovered) -> Result<(), IdentityError> {
        match &self.membership {
            _ if self.forgetful || recovered.forgetful => Ok(()),
            Some(own) if !own.joining && !recovered.groups.iter().any(|group| group.key.group == GroupId::META.0) => {
                Err(IdentityError::LogGone { member: own.member, cluster_id: own.cluster_id.clone() })
            }
            _ => Ok(()),
        }
    }

    /// The record's bytes: a version, then the fields, big-endian, strings with a 16-bit length.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        out.extend_from_slice(&self.uuid.0.to_be_bytes());
        out.extend_from_slice(&self.admin_token.to_be_bytes());
        out.push(u8::from(self.forgetful));
        match &self.membership {
            None => out.push(0),
            Some(m) => {
                out.push(1);
                put_str(&mut out, &m.cluster_id);
                out.extend_from_slice(&m.cluster_epoch.to_be_bytes());
                out.extend_from_slice(&m.meta_incarnation.counter.to_be_bytes());
                out.extend_from_slice(&m.meta_incarnation.nonce.to_be_bytes());
                out.extend_from_slice(&m.member.0.to_be_bytes());
                out.push(u8::from(m.joining));
                out.extend_from_slice(&m.meta_generation.to_be_bytes());
                out.extend_from_slice(&(m.peers.len() as u16).to_be_bytes());
                for peer in &m.peers {
                    put_str(&mut out, peer);
                }
            }
        }
        out
    }

    /// Reads a record back; anything that [`Identity::encode`] does not write is an error.
    pub fn decode(bytes: &[u8]) -> Result<Self, IdentityError> {
        let mut r = Reader(bytes);
        if r.take(1)?[0] != VERSION {
            return Err(IdentityError::Unreadable("unknown version"));
        }
        let uuid = MemberUuid(u128::from_be_bytes(r.take(16)?.try_into().expect("16 bytes")));
        let admin_token = r.u64()?;
        let forgetful = r.take(1)?[0] != 0;
        let membership = match r.take(1)?[0] {
            0 => None,
            1 => {
                let cluster_id = r.string()?;
                let cluster_epoch = r.u64()?;
                let meta_incarnation = Incarnation { counter: r.u32()?, nonce: r.u64()? };
                let member = MemberId(r.u64()?);
                let joining = r.take(1)?[0] != 0;
                let meta_generation = r.u32()?;
                let count = r.u16()?;
                let peers = (0..count).map(|_| r.string()).collect::<Result<_, _>>()?;
                Some(Membership {
                    cluster_id,
                    cluster_epoch,
                    meta_incarnation,
                    member,
                    joining,
                    meta_generation,
                    peers,
                })
            }
            _ => return Err(IdentityError::Unreadable("unknown kind of membership")),
        };
        if !r.0.is_empty() {
            return Err(IdentityError::Unreadable("trailing bytes"));
        }
        Ok(Self { uuid, membership, admin_token, forgetful })
    }
}

fn put_str(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u16).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], IdentityError> {
        let (head, tail) = self.0.split_at_checked(n).ok_or(IdentityError::Unreadable("cut short"))?;
        self.0 = tail;
        Ok(head)
    }

    fn u16(&mut self) -> Result<u16, IdentityError> {
        Ok(u16::from_be_bytes(self.take(2)?.try_into().expect("2 bytes")))
    }

    fn u32(&mut self) -> Result<u32, IdentityError> {
        Ok(u32::from_be_bytes(self.take(4)?.try_into().expect("4 bytes")))
    }

    fn u64(&mut self) -> Result<u64, IdentityError> {
        Ok(u64::from_be_bytes(self.take(8)?.try_into().expect("8 bytes")))
    }

    fn string(&mut self) -> Result<String, IdentityError> {
        let len = self.u16()? as usize;
        String::from_utf8(self.take(len)?.to_vec()).map_err(|_| IdentityError::Unreadable("text is not UTF-8"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_survives_its_record_and_a_cut_record_is_refused() {
        let identity = Identity {
            uuid: MemberUuid(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef),
            membership: Some(Membership {
                cluster_id: "c1".into(),
                cluster_epoch: 3,
                meta_incarnation: Incarnation { counter: 2, nonce: 11 },
                member: MemberId(7),
                joining: true,
                meta_generation: 4,
                peers: vec!["a:1".into(), "b:2".into()],
            }),
            admin_token: 9,
            forgetful: true,
        };
        let bytes = identity.encode();
        assert_eq!(Identity::decode(&bytes), Ok(identity));
        for cut in 0..bytes.len() {
            assert!(Identity::decode(&bytes[..cut]).is_err());
        }
    }

    #[test]
    fn a_uuid_reads_as_people_write_it() {
        assert_eq!(
            MemberUuid(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef).to_string(),
            "01234567-89ab-cdef-0123-456789abcdef"
        );
    }
}
