//! What all groups of a host share.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use holdfast_journal::GroupKey;
use holdfast_queue::ids::{BootId, GroupId, MemberId, ReplicaId};
use holdfast_queue::time::{Duration, Instant};

use crate::api::HostOutput;
use crate::config::HostConfig;
use crate::envelope::{Body, Envelope, Generations};
use crate::writes::Writes;

/// Everything that a group touches apart from itself.
pub(crate) struct Context<E> {
    pub config: HostConfig,
    pub me: MemberId,
    pub seed: u64,
    /// The time of the call that is being served.
    pub now: Instant,
    pub outbox: VecDeque<HostOutput<E>>,
    pub writes: Writes,
    pub cache: Cache,
    /// Members that the engine holds for dead or unreachable.
    pub suspected: BTreeSet<MemberId>,
    pub boots: BTreeMap<MemberId, BootId>,
    /// Groups whose Raft state may have something to hand out.
    pub dirty: BTreeSet<GroupId>,
    /// Groups whose clock runs.
    pub active: BTreeSet<GroupId>,
    /// Campaigns to come, by time; of equal times active groups come first.
    pub campaigns: BTreeSet<(Instant, bool, GroupId)>,
    /// Names checkpoints, so that a late report of one is told from a report of the one that is waited for.
    pub last_checkpoint_id: u64,
    /// Leaderships are handed away until then.
    pub draining_until: Option<Instant>,
    /// Until then nothing is checkpointed, compacted or given up: a backup is about to hold the journal's files, which must
    /// still show every group as it was at the barrier.
    pub history_until: Instant,
    /// How long the oldest batch of other hosts of this member has been at the journal.
    pub disk_age: Duration,
}

impl<E> Context<E> {
    /// True while the replica's member is not suspected.
    pub fn is_up(&self, raft_id: u64) -> bool {
        self.is_live(ReplicaId::from_raft_id(raft_id).member)
    }

    pub fn is_live(&self, member: MemberId) -> bool {
        !self.suspected.contains(&member)
    }

    /// True while what groups went through is to stay on disk.
    pub fn keeps_history(&self) -> bool {
        self.now < self.history_until
    }

    /// Stamps an envelope and puts it out.
    pub fn send(&mut self, header: Header, body: Body) {
        let envelope = Envelope {
            cluster: self.config.cluster,
            key: header.key,
            generations: Generations { from: header.from, to: header.to.generation },
            term: header.term,
            sent_at: self.now,
            echo: header.echo,
            floor: header.floor,
            body,
        };
        self.outbox.push_back(HostOutput::Send { to: header.to.member, envelope });
    }
}

/// What a group says in every envelope.
#[derive(Clone, Copy)]
pub(crate) struct Header {
    pub key: GroupKey,
    /// The sender's generation.
    pub from: u32,
    pub to: ReplicaId,
    pub term: u64,
    pub echo: Instant,
    pub floor: u64,
}

/// The budget for durable payloads in memory, all groups together: the oldest leave first.
pub(crate) struct Cache {
    budget: usize,
    bytes: usize,
    queue: VecDeque<(GroupId, u64, usize)>,
    /// When the last payload came in.
    last_added: Instant,
}

impl Cache {
    pub fn new(budget: usize) -> Self {
        Self { budget, bytes: 0, queue: VecDeque::new(), last_added: Instant(0) }
    }

    /// A payload of `bytes` became durable and is in memory.
    pub fn add(&mut self, group: GroupId, index: u64, bytes: usize, now: Instant) {
        self.last_added = now;
        // The index entry itself takes memory too.
        let bytes = bytes + 64;
        self.bytes += bytes;
        self.queue.push_back((group, index, bytes));
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn set_budget(&mut self, bytes: usize) {
        self.budget = bytes;
    }

    /// The next payload to drop, while over budget.
    pub fn next_to_evict(&mut self) -> Option<(GroupId, u64)> {
        if self.bytes <= self.budget {
            return None;
        }
        let (group, index, bytes) = self.queue.pop_front()?;
        self.bytes -= bytes;
        Some((group, index))
    }

    /// All of it, when nothing came in for `idle`.
    pub fn take_idle(&mut self, now: Instant, idle: Duration) -> VecDeque<(GroupId, u64, usize)> {
        if self.queue.is_empty() || now.since(self.last_added) < idle {
            return VecDeque::new();
        }
        self.bytes = 0;
        std::mem::take(&mut self.queue)
    }
}

/// A well-mixed hash of numbers (splitmix64's finaliser), for seeded choices.
pub(crate) fn mix(numbers: &[u64]) -> u64 {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for number in numbers {
        state = (state ^ number).wrapping_add(0x9e37_79b9_7f4a_7c15);
        state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        state ^= state >> 31;
    }
    state
}
