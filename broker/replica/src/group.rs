//! One replica of one Raft group.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use holdfast_journal::{BatchId, EntryReader, GroupKey};
use holdfast_queue::Machine;
use holdfast_queue::ids::{GroupId, MemberId, ReplicaId};
use holdfast_queue::time::Instant;
use raft::eraftpb::{ConfState, HardState, MessageType};
use raft::{Config, ProgressState, RawNode, StateRole};

use crate::api::{GroupStatus, HostOutput, PeerStatus, ProposalId, ProposeError, Role, is_machine_payload};
use crate::birth::BIRTH_INDEX;
use crate::change_known::ChangeKnown;
use crate::conf::StoredConf;
use crate::context::{Context, Header, mix};
use crate::envelope::{Body, entry};
use crate::log::GroupLog;
use crate::snapshot_receive::{Incoming, Install};
use crate::snapshot_send::{Outgoing, Prepared};

/// What was last said of the leadership.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Leadership {
    pub leader: u64,
    pub term: u64,
    pub me_leading: bool,
}

/// A replica that takes part. Its invariants:
/// - `applied` is what the machine has taken in; raft-rs' own mark follows it, and lags only while a snapshot is written
///   and where a follower of group 0 is ahead of its disk;
/// - what leaves in the name of a term leaves after that term and vote are durable, but for answers to heartbeats;
/// - nothing that a Ready hands out "after persisting" leaves before its batch and all earlier ones are reported written.
pub(crate) struct Group<M: Machine, R: EntryReader> {
    pub key: GroupKey,
    pub id: GroupId,
    /// Who this replica is in the group.
    pub me: ReplicaId,
    pub raw: RawNode<GroupLog<R>>,
    pub machine: M,
    pub applied: u64,
    /// Term and vote that are known durable.
    pub durable_vote: (u64, u64),
    /// The hard state that was last handed to the journal.
    pub written_state: HardState,
    /// The last batch that holds something of this group, until it is finished.
    pub last_write: Option<BatchId>,

    /// The leader last heard, in which term, and the newest time that it put on an envelope.
    pub echo: Option<(ReplicaId, u64, Instant)>,
    /// The voters; of a joint membership, both halves.
    pub voter_halves: Vec<Vec<u64>>,
    /// Index of the last membership change that was applied; 0 for the founders.
    pub changed_at: u64,
    /// Who knows of that change.
    pub change_known: ChangeKnown,
    /// On the leader: when each peer's last heard message from us was sent.
    pub heard: BTreeMap<u64, Instant>,
    /// Leadership as it was last announced.
    pub announced: Leadership,
    /// Outputs of a leader that cannot prove its lease at the moment.
    pub withheld: VecDeque<HostOutput<M::Effect>>,

    pub quiesced: bool,
    /// Ticks since something other than a heartbeat happened.
    pub idle_ticks: u64,
    /// A leader, and its term, of which it is known that it leads no more.
    pub gone: Option<(u64, u64)>,
    /// Ranked campaigns since the last leader.
    pub campaigns: u32,
    /// Quiesced although a suspected member lacks something.
    pub quiesced_without: bool,
    /// On the leader: replicas whose member began another run and which have not answered since.
    pub unheard: BTreeSet<u64>,

    /// The last durable checkpoint.
    pub checkpoint: u64,
    /// The checkpoint that the journal is storing: its id, and its index.
    pub checkpoint_pending: Option<(u64, u64)>,
    /// Size of the machine in the last checkpoint taken since the start, bytes.
    pub checkpoint_size: u64,
    /// Entries and bytes applied since the last checkpoint.
    pub applied_since: (u64, u64),
    /// How often the journal has said that the log keeps old segments, since the log was last compacted.
    pub pinning: u32,
    /// From the leader: how far all live replicas hold the log.
    pub floor: u64,
    /// Payloads below the prefix that died while a snapshot that needs them is being sent, or a backup is about to begin.
    pub deferred_dead: Vec<u64>,

    pub prepared: Option<Prepared>,
    pub outgoing: BTreeMap<ReplicaId, Outgoing>,
    pub incoming: Option<Incoming<M>>,
    /// The snapshot that raft-rs is about to hand out in a Ready.
    pub install: Option<Install<M>>,
    /// A snapshot's log position is being written; until then raft-rs must not campaign (it would look for entries that
    /// are gone, and panic).
    pub installing: bool,
    /// An entry is being applied: should that panic, the machine is neither before nor behind it.
    pub applying: bool,
    /// Offer nothing as being here already: a payload that should have been was not.
    pub distrust_bodies: bool,
}

/// What a replica starts from.
pub(crate) struct Start<M, R> {
    pub key: GroupKey,
    /// Which of this member's replicas of the group it is.
    pub generation: u32,
    /// Index of the membership change that is in force.
    pub changed_at: u64,
    pub log: GroupLog<R>,
    pub machine: M,
    /// The index that the machine stands at.
    pub applied: u64,
    /// Term and vote on disk (or on their way there).
    pub vote: (u64, u64),
    pub commit: u64,
}

impl<M: Machine, R: EntryReader> Group<M, R> {
    pub fn new<E>(start: Start<M, R>, cx: &Context<E>, logger: &slog::Logger) -> raft::Result<Self> {
        let me = ReplicaId { member: cx.me, generation: start.generation };
        let config = Config {
            id: me.raft_id(),
            election_tick: ticks(cx.config.election_ticks),
            heartbeat_tick: ticks(cx.config.heartbeat_ticks),
            applied: start.applied,
            max_size_per_msg: cx.config.max_append_bytes,
            max_inflight_msgs: cx.config.max_inflight_appends,
            check_quorum: true,
            pre_vote: true,
            max_uncommitted_size: cx.config.max_uncommitted_bytes,
            max_committed_size_per_ready: cx.config.max_apply_bytes,
            ..Config::default()
        };
        let (term, vote) = start.vote;
        let written_state = HardState { term, vote, commit: start.commit, ..HardState::default() };
        let raw = RawNode::new(&config, start.log, logger)?;
        let mut group = Self {
            key: start.key,
            id: GroupId(start.key.group),
            me,
            raw,
            machine: start.machine,
            applied: start.applied,
            durable_vote: start.vote,
            written_state,
            last_write: None,
            echo: None,
            voter_halves: Vec::new(),
            changed_at: start.changed_at,
            change_known: ChangeKnown::new(start.changed_at),
            heard: BTreeMap::new(),
            announced: Leadership { term, ..Leadership::default() },
            withheld: VecDeque::new(),
            quiesced: false,
            idle_ticks: 0,
            gone: None,
            campaigns: 0,
            quiesced_without: false,
            unheard: BTreeSet::new(),
            checkpoint: start.applied,
            checkpoint_pending: None,
            checkpoint_size: 0,
            applied_since: (0, 0),
            pinning: 0,
            floor: 0,
            deferred_dead: Vec::new(),
            prepared: None,
            outgoing: BTreeMap::new(),
            incoming: None,
            install: None,
            installing: false,
            applying: false,
            distrust_bodies: false,
        };
        group.note_membership();
        group.set_election_timeout(cx);
        Ok(group)
    }

    /// The membership may have changed.
    pub fn note_membership(&mut self) {
        let conf = self.conf();
        self.voter_halves = vec![conf.voters, conf.voters_outgoing];
        self.voter_halves.retain(|half| !half.is_empty());
    }

    pub fn log(&self) -> &GroupLog<R> {
        self.raw.store()
    }

    pub fn log_mut(&mut self) -> &mut GroupLog<R> {
        self.raw.mut_store()
    }

    pub fn term(&self) -> u64 {
        self.raw.raft.term
    }

    pub fn is_leader(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    /// The leader as far as this replica knows, itself included.
    pub fn leader(&self) -> Option<ReplicaId> {
        (self.raw.raft.leader_id != 0).then_some(ReplicaId::from_raft_id(self.raw.raft.leader_id))
    }

    /// Leads, and its machine has caught up with what earlier terms committed (Raft §8).
    pub fn is_leading(&self) -> bool {
        // The birth has term 1 too, and is no entry of the leader's.
        self.is_leader() && self.applied > BIRTH_INDEX && self.raw.raft.apply_to_current_term()
    }

    pub fn commit(&self) -> u64 {
        self.raw.raft.raft_log.committed
    }

    pub fn last(&self) -> u64 {
        self.raw.raft.raft_log.last_index()
    }

    pub fn conf(&self) -> ConfState {
        self.raw.raft.prs().conf().to_conf_state()
    }

    /// The membership as this replica's checkpoints hold it.
    pub fn stored_conf(&self) -> StoredConf {
        StoredConf { conf: self.conf(), changed_at: self.changed_at, generation: self.me.generation }
    }

    /// Voters of either half of the membership, ascending.
    pub fn voters(&self) -> Vec<ReplicaId> {
        let conf = self.raw.raft.prs().conf();
        let mut voters: Vec<_> = conf.voters().ids().iter().map(ReplicaId::from_raft_id).collect();
        voters.sort_unstable();
        voters
    }

    pub fn learners(&self) -> Vec<ReplicaId> {
        let conf = self.raw.raft.prs().conf();
        let mut learners: Vec<_> = conf.learners().iter().copied().map(ReplicaId::from_raft_id).collect();
        learners.sort_unstable();
        learners
    }

    /// All other replicas, ascending.
    pub fn peers(&self) -> Vec<ReplicaId> {
        let all = self.raw.raft.prs().iter().map(|(id, _)| ReplicaId::from_raft_id(*id));
        let mut peers: Vec<_> = all.filter(|replica| *replica != self.me).collect();
        peers.sort_unstable();
        peers
    }

    /// The replica of a member, if it has one; it has one at most.
    pub fn replica_on(&self, member: MemberId) -> Option<ReplicaId> {
        let mut all = self.raw.raft.prs().iter().map(|(id, _)| ReplicaId::from_raft_id(*id));
        all.find(|replica| replica.member == member)
    }

    /// What goes on an envelope to `to`.
    pub fn header<E>(&self, to: ReplicaId, cx: &Context<E>) -> Header {
        self.header_in(self.term(), to, cx)
    }

    /// The same for a message of an earlier term that was held back.
    pub fn header_in<E>(&self, term: u64, to: ReplicaId, cx: &Context<E>) -> Header {
        let echo = match self.echo {
            Some((from, heard_in, at)) if from == to && heard_in == term => at,
            _ => Instant(0),
        };
        let floor = if self.is_leader() { self.matched_by_live(cx) } else { 0 };
        Header { key: self.key, from: self.me.generation, to, term, echo, floor }
    }

    /// On the leader: how far every live replica holds the log.
    pub fn matched_by_live<E>(&self, cx: &Context<E>) -> u64 {
        self.raw
            .raft
            .prs()
            .iter()
            .filter(|(id, _)| cx.is_up(**id))
            .map(|(_, progress)| progress.matched)
            .min()
            .unwrap_or(0)
    }

    /// Replaces raft-rs' own draw, which comes from the thread's random numbers, by one that the seed decides. Called
    /// after whatever may have made it draw. While the leader is suspected the ranked campaign decides who goes first,
    /// so the own clock runs as long as it may.
    pub fn set_election_timeout<E>(&mut self, cx: &Context<E>) {
        let lost = self.is_leader_lost(cx);
        let raft = &mut self.raw.raft;
        let shortest = cx.config.election_ticks;
        let extra = if lost {
            // raft-rs gives no vote to others while it heard its leader lately; what a dead one left in the buffers must
            // not count as that.
            raft.election_elapsed = raft.election_elapsed.max(raft.election_timeout());
            shortest - 1
        } else {
            let role = raft.state as u64;
            mix(&[cx.seed, cx.me.0, self.key.group, raft.term, role, raft.leader_id]) % shortest
        };
        raft.set_randomized_election_timeout(ticks(shortest + extra));
    }

    /// Appends a payload on the leader.
    pub fn propose<E>(&mut self, payload: Bytes, cx: &mut Context<E>) -> Result<ProposalId, ProposeError> {
        if !is_machine_payload(&payload) {
            return Err(ProposeError::BadPayload);
        }
        // raft-rs forwards a follower's proposal to its leader; that never happens here.
        if !self.is_leader() {
            return Err(self.not_leader());
        }
        self.wake(cx);
        let mut message = raft::eraftpb::Message::default();
        message.set_msg_type(MessageType::MsgPropose);
        message.from = self.raw.raft.id;
        message.set_entries(vec![entry(0, 0, payload)].into());
        self.raw.step(message).map_err(|_| ProposeError::Busy)?;
        Ok(ProposalId { index: self.last(), term: self.term() })
    }

    /// Starts the clock again. A leader tells its followers that it is there, and begins its election clock anew.
    pub fn wake<E>(&mut self, cx: &mut Context<E>) {
        self.idle_ticks = 0;
        if !self.quiesced {
            return;
        }
        self.quiesced = false;
        self.quiesced_without = false;
        cx.active.insert(self.id);
        self.raw.raft.election_elapsed = 0;
        if self.is_leader() {
            self.raw.ping();
        }
    }

    /// Wakes, and tells the leader to: without its heartbeats this replica would campaign against it.
    pub fn wake_with_leader<E>(&mut self, cx: &mut Context<E>) {
        let was_quiesced = self.quiesced;
        self.wake(cx);
        if let Some(leader) = self.leader()
            && was_quiesced
            && leader != self.me
        {
            let header = self.header(leader, cx);
            cx.send(header, Body::Wake);
        }
    }

    pub fn status<E>(&self, cx: &Context<E>) -> GroupStatus {
        let role = match self.raw.raft.state {
            StateRole::Leader => Role::Leader,
            StateRole::Candidate | StateRole::PreCandidate => Role::Candidate,
            StateRole::Follower if self.raw.raft.promotable() => Role::Follower,
            StateRole::Follower => Role::Learner,
        };
        GroupStatus {
            key: self.key,
            generation: Some(self.me.generation),
            role,
            term: self.term(),
            leader: self.leader().map(|leader| leader.member),
            me_leading: self.is_leading(),
            commit: self.commit(),
            applied: self.applied,
            last: self.last(),
            compacted: self.log().prefix().0,
            checkpoint: self.checkpoint,
            log_bytes: self.log().bytes(),
            voters: self.voters(),
            learners: self.learners(),
            joint: self.is_joint(),
            changed_at: self.changed_at,
            change_durable: self.is_change_durable(),
            peers: if self.is_leader() { self.peer_status(cx) } else { Vec::new() },
            quiesced: self.quiesced,
            quarantined: None,
        }
    }

    fn peer_status<E>(&self, cx: &Context<E>) -> Vec<PeerStatus> {
        let prs = self.raw.raft.prs();
        let mut peers: Vec<_> = prs
            .iter()
            .map(|(id, progress)| PeerStatus {
                replica: ReplicaId::from_raft_id(*id),
                voter: prs.conf().voters().contains(*id),
                matched: progress.matched,
                lag: self.last().saturating_sub(progress.matched),
                live: cx.is_up(*id) && !self.unheard.contains(id),
                snapshot: progress.state == ProgressState::Snapshot,
                snapshot_percent: self.outgoing.get(&ReplicaId::from_raft_id(*id)).map(Outgoing::percent),
            })
            .collect();
        peers.sort_unstable_by_key(|peer| peer.replica);
        peers
    }
}

fn ticks(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}
