//! What goes into a host and what comes out of it.

use bytes::Bytes;
use holdfast_journal::{Batch, GroupKey, Incarnation as JournalIncarnation, ReadError};
use holdfast_queue::ids::{GroupId, Incarnation, MemberId, ReplicaId};

use crate::envelope::Envelope;

/// The journal's name of a group's life.
pub fn group_key(group: GroupId, incarnation: Incarnation) -> GroupKey {
    let incarnation = JournalIncarnation { counter: incarnation.counter, nonce: incarnation.nonce };
    GroupKey { group: group.0, incarnation }
}

/// A new group, as the metadata describes it. Every founding voter and learner is given the same one (only the member
/// differs), so a declare needs no election (design §3.1).
#[derive(Clone, Debug)]
pub struct GroupBirth<M> {
    pub key: GroupKey,
    /// The founding voters. Never the voters of a later membership: a replica that is added later joins by
    /// [`crate::Host::join_group`].
    pub voters: Vec<MemberId>,
    /// The founding learners.
    pub learners: Vec<MemberId>,
    /// The voter that leads term 1 without an election; without one the voters elect a leader.
    pub leader: Option<MemberId>,
    /// The machine before the first command, the same on every member.
    pub machine: M,
}

/// Where a proposal went: if an entry with this index *and* term is applied, it is this one. If an entry with this
/// index and another term is applied, the proposal is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProposalId {
    pub index: u64,
    pub term: u64,
}

/// Why a group cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CreateError {
    /// A group of this number is here, under this or another incarnation.
    #[error("group {} is already here under incarnation {}", .present.group, .present.incarnation.counter)]
    Exists { present: GroupKey },
    /// This member is neither among the founding voters nor the learners.
    #[error("this member is not in the new group")]
    NotAMember,
    /// The chosen leader is not a voter.
    #[error("the chosen leader {leader} is not among the voters")]
    LeaderNotAVoter { leader: MemberId },
    /// A group needs a voter.
    #[error("a group needs at least one voter")]
    NoVoters,
}

/// Why a proposal was refused. Nothing was appended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    #[error("this member does not lead the group")]
    NotLeader {
        /// Who leads, as far as this member knows.
        leader: Option<MemberId>,
    },
    /// Too much is waiting for a majority, or leadership is being handed over: try again soon.
    #[error("the group cannot take more at the moment")]
    Busy,
    #[error("this member has no such group")]
    UnknownGroup,
    /// The replica does not take part until it is repaired.
    #[error("this member's replica is quarantined")]
    Quarantined,
    /// Empty, or it begins with the byte that the host keeps for itself (255).
    #[error("a payload must not be empty or begin with byte 255")]
    BadPayload,
    /// Another membership change is not applied yet.
    #[error("another membership change is under way")]
    ChangePending,
    /// The change has no sense for the present membership.
    #[error("{0}")]
    BadChange(String),
}

/// Why leadership stays here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransferError {
    #[error("this member does not lead the group")]
    NotLeader,
    #[error("member {0} is not a voter of the group")]
    NotAVoter(MemberId),
    #[error("member {0} does not answer")]
    NotLive(MemberId),
    #[error("member {to} lags {entries} entries behind")]
    Lagging { to: MemberId, entries: u64 },
    #[error("a membership change or a transfer is under way")]
    Busy,
}

/// One membership change. One that moves at most one voter is simple (Raft §4.1), [`MembershipChange::Swap`] goes through
/// joint consensus (Raft §4.3): after it, every decision needs a majority of the old *and* of the new voters, until
/// [`MembershipChange::LeaveJoint`].
///
/// None of them is taken that would leave the group without a majority of live voters that hold all that is committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MembershipChange {
    /// A replica that gets the log without a vote. Refused while its member has another replica of the group.
    AddLearner(ReplicaId),
    /// A learner becomes a voter. Refused while it lags.
    Promote(ReplicaId),
    /// A voter or learner leaves. A leader cannot remove itself: transfer first.
    Remove(ReplicaId),
    /// Several changes at once; the group is joint until it is told to leave.
    Swap {
        /// Learners that become voters. Refused while they lag.
        promote: Vec<ReplicaId>,
        /// Voters that become learners.
        demote: Vec<ReplicaId>,
        /// Voters or learners that leave. They are part of the group until the joint membership is left.
        remove: Vec<ReplicaId>,
    },
    /// The old voters of a joint membership count no more.
    LeaveJoint,
}

/// Why a payload cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PayloadError {
    #[error("this member has no such group")]
    UnknownGroup,
    /// Compacted away, not written yet, or no message in it is live.
    #[error("there is no payload at index {0}")]
    NoPayload(u64),
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// What a host wants done. Outputs of one kind must be carried out in order; a `Write` need not wait for the `Send`s
/// before it, nor they for it.
#[derive(Debug)]
pub enum HostOutput<E> {
    /// To the member, over its link. May be lost, late, twice or out of order.
    Send { to: MemberId, envelope: Envelope },
    /// To the journal, in order.
    Write(Batch),
    /// The entry of this index is applied.
    Applied {
        group: GroupId,
        index: u64,
        term: u64,
        /// Let the effects out: this member leads, has applied its own term's first entry, and a majority was heard
        /// within the election timeout. Otherwise the effects are for information only; a new leader derives what
        /// is owed from its state.
        leading: bool,
        effects: Vec<E>,
    },
    /// Leadership as this member sees it. `me_leading` is true only after the first entry of its own term is applied:
    /// from here on the machine's state is the group's, and what is owed can be derived from it.
    LeaderChanged { group: GroupId, leader: Option<MemberId>, term: u64, me_leading: bool },
    /// The machine was replaced by the one of a Raft snapshot at this index.
    SnapshotInstalled { group: GroupId, index: u64 },
    /// The membership changed with the entry of this index. On the leader it may be acted upon from now on, see
    /// [`GroupStatus::change_durable`]; elsewhere this replica will know it after any restart. The voters of a joint one
    /// are those of both halves.
    MembershipChanged { group: GroupId, index: u64, voters: Vec<ReplicaId>, learners: Vec<ReplicaId> },
    /// A peer speaks for a later incarnation, or for another one of equal counter: this replica is stale, or the two
    /// do not belong together (design §3.1).
    OtherIncarnation { group: GroupId, from: MemberId, theirs: Incarnation },
    /// Records of the replica were found to be damaged while it ran: it stands still until its peers have given them back.
    Mending { group: GroupId, why: String },
    /// A replica that had lost something has it again, so many entries of it from others, and goes on as itself.
    Mended { group: GroupId, entries: usize },
    /// The replica stopped taking part: its disk or its state cannot be trusted.
    Quarantined { group: GroupId, why: String },
}

/// What a replica is at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Leader,
    Follower,
    /// Campaigning, in either round.
    Candidate,
    Learner,
    /// Waiting for its birth record to be durable.
    Forming,
    Quarantined,
}

/// One replica of a group as its leader sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    pub replica: ReplicaId,
    pub voter: bool,
    /// The last index known to be on its disk.
    pub matched: u64,
    /// Entries that it lacks.
    pub lag: u64,
    /// It is not suspected.
    pub live: bool,
    /// A Raft snapshot is on its way to it.
    pub snapshot: bool,
    /// How much of that snapshot was sent, in percent.
    pub snapshot_percent: Option<u8>,
}

/// A group as this member sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupStatus {
    pub key: GroupKey,
    /// Which of this member's replicas of the group this is; none where a quarantined one cannot say so any more.
    pub generation: Option<u32>,
    pub role: Role,
    pub term: u64,
    pub leader: Option<MemberId>,
    /// True after the first entry of its own term is applied.
    pub me_leading: bool,
    pub commit: u64,
    pub applied: u64,
    pub last: u64,
    /// The log starts after this index.
    pub compacted: u64,
    /// The index of the last durable checkpoint.
    pub checkpoint: u64,
    /// Payload bytes above the prefix.
    pub log_bytes: u64,
    /// Ascending; of a joint membership those of both halves.
    pub voters: Vec<ReplicaId>,
    pub learners: Vec<ReplicaId>,
    /// A joint membership waits to be left.
    pub joint: bool,
    /// Index of the last membership change that was applied; 0 for the founders.
    pub changed_at: u64,
    /// That change is known here, on disk, to be committed; and, on the leader, on so many disks that every majority of
    /// the voters has one of them. Nobody may act on it before: a replica that was let go and destroyed could still be
    /// needed to elect one that has forgotten that it was.
    pub change_durable: bool,
    /// On the leader only, itself included; ascending.
    pub peers: Vec<PeerStatus>,
    pub quiesced: bool,
    /// Why the replica is quarantined.
    pub quarantined: Option<String>,
}

impl GroupStatus {
    /// A replica that takes no part knows nothing else of its group.
    pub(crate) fn quarantined(key: GroupKey, generation: Option<u32>, why: &str) -> Self {
        GroupStatus {
            key,
            generation,
            role: Role::Quarantined,
            term: 0,
            leader: None,
            me_leading: false,
            commit: 0,
            applied: 0,
            last: 0,
            compacted: 0,
            checkpoint: 0,
            log_bytes: 0,
            voters: Vec::new(),
            learners: Vec::new(),
            joint: false,
            changed_at: 0,
            change_durable: true,
            peers: Vec::new(),
            quiesced: false,
            quarantined: Some(why.to_owned()),
        }
    }
}

/// A payload as the log holds it, and whether the host wrote it for itself.
pub(crate) const HOST_PAYLOAD: u8 = 0xff;

/// Machines never see these.
pub(crate) fn is_machine_payload(payload: &Bytes) -> bool {
    payload.first().is_some_and(|first| *first != HOST_PAYLOAD)
}
