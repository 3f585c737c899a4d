//! All groups of one member.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use holdfast_journal::{Batch, BatchId, EntryReader, GroupKey, Op, Written};
use holdfast_queue::Machine;
use holdfast_queue::ids::{BootId, GroupId, Incarnation, MemberId};
use holdfast_queue::time::Instant;
use slog::Discard;
use tracing::{info, trace};

use crate::api::{GroupStatus, HostOutput, MembershipChange, PayloadError, ProposalId, ProposeError, TransferError};
use crate::birth::Forming;
use crate::config::HostConfig;
use crate::context::{Cache, Context};
use crate::envelope::{Body, Envelope};
use crate::group::Group;
use crate::healing::Healing;
use crate::mending::Mending;
use crate::parking::Parking;
use crate::writes::{After, Writes};

/// A group's place in the host.
pub(crate) enum Replica<M: Machine, R: EntryReader> {
    /// Born to lead; its birth record is not durable yet.
    Forming(Box<Forming<M>>),
    Running(Box<Group<M, R>>),
    /// Waits for parts of its log that the disk lost.
    Mending(Box<Mending>),
    /// Found out while it ran that the disk lost something, and waits for it.
    Healing(Box<Healing<M, R>>),
    /// Takes no part until it is repaired; its disk is left as it is.
    Quarantined {
        key: GroupKey,
        /// Which replica it is, if that is known.
        generation: Option<u32>,
        why: String,
    },
}

impl<M: Machine, R: EntryReader> Replica<M, R> {
    pub fn key(&self) -> GroupKey {
        match self {
            Replica::Forming(forming) => forming.key(),
            Replica::Mending(mending) => mending.key(),
            Replica::Running(group) => group.key,
            Replica::Healing(healing) => healing.group.key,
            Replica::Quarantined { key, .. } => *key,
        }
    }
}

/// Many Raft groups of one member over one journal: calls in, [`HostOutput`]s out, no clock, no I/O but reads of
/// payloads. Call [`Host::poll`] until it is empty after any other call.
pub struct Host<M: Machine, R: EntryReader> {
    pub(crate) replicas: BTreeMap<GroupId, Replica<M, R>>,
    pub(crate) cx: Context<M::Effect>,
    pub(crate) reader: R,
    pub(crate) parking: Parking,
    pub(crate) logger: slog::Logger,
    /// Replicas that wait for what they lost.
    pub(crate) mending: BTreeSet<GroupId>,
    last_tick: Instant,
    /// Quiesced groups whose lease was asked for.
    wake_wanted: RefCell<BTreeMap<GroupId, Instant>>,
}

impl<M: Machine, R: EntryReader> Host<M, R> {
    /// A host without groups. Equal seeds and equal calls give equal outputs.
    pub fn new(config: HostConfig, me: MemberId, seed: u64, reader: R, now: Instant) -> Self {
        let parking = Parking::new(config.parked_messages, config.parked_groups, config.park_for);
        let cx = Context {
            cache: Cache::new(config.cache_bytes),
            config,
            me,
            seed,
            now,
            outbox: VecDeque::new(),
            writes: Writes::new(),
            suspected: BTreeSet::new(),
            boots: BTreeMap::new(),
            dirty: BTreeSet::new(),
            active: BTreeSet::new(),
            campaigns: BTreeSet::new(),
            last_checkpoint_id: 0,
            draining_until: None,
            disk_age: Duration::ZERO,
            history_until: Instant(0),
        };
        let logger = slog::Logger::root(Discard, slog::o!());
        let (replicas, mending) = (BTreeMap::new(), BTreeSet::new());
        Self { replicas, cx, reader, parking, logger, mending, last_tick: now, wake_wanted: RefCell::default() }
    }

    /// Tells the time to the calls that do not take it. A driver that calls nothing for a while (all groups may be asleep)
    /// says it before it proposes: leases are measured from what it says.
    pub fn set_time(&mut self, now: Instant) {
        self.cx.now = self.cx.now.max(now);
    }

    /// This member's Raft id.
    pub fn me(&self) -> MemberId {
        self.cx.me
    }

    /// Makes the member known under its Raft id, which a member that joins learns late. Only while there are no groups.
    pub fn set_me(&mut self, me: MemberId) {
        debug_assert!(self.replicas.is_empty());
        self.cx.me = me;
    }

    /// All groups here, ascending.
    pub fn groups(&self) -> impl Iterator<Item = GroupId> + '_ {
        self.replicas.keys().copied()
    }

    /// How many groups are here.
    pub fn group_count(&self) -> usize {
        self.replicas.len()
    }

    /// Groups whose replica here takes no part and is not about to, ascending.
    pub fn quarantined_groups(&self) -> impl Iterator<Item = GroupId> + '_ {
        self.replicas.keys().copied().filter(|group| self.is_quarantined(*group))
    }

    /// True if there is a replica here that is not quarantined.
    pub fn is_present(&self, group: GroupId) -> bool {
        matches!(self.replicas.get(&group), Some(Replica::Running(_) | Replica::Forming(_)))
    }

    /// The life of the group that is here.
    pub fn key(&self, group: GroupId) -> Option<GroupKey> {
        self.replicas.get(&group).map(Replica::key)
    }

    /// Which of this member's replicas of a group is here: the outer none if there is none, the inner one if it is too
    /// damaged to say.
    pub fn generation(&self, group: GroupId) -> Option<Option<u32>> {
        match self.replicas.get(&group)? {
            Replica::Forming(_) => Some(Some(0)),
            Replica::Running(group) => Some(Some(group.me.generation)),
            Replica::Mending(mending) => Some(Some(mending.generation())),
            Replica::Healing(healing) => Some(Some(healing.group.me.generation)),
            Replica::Quarantined { generation, .. } => Some(*generation),
        }
    }

    /// True if the replica that is here takes no part. One that waits for what its disk lost counts only when it has waited
    /// for long.
    pub fn is_quarantined(&self, group: GroupId) -> bool {
        match self.replicas.get(&group) {
            Some(Replica::Quarantined { .. }) => true,
            Some(Replica::Mending(mending)) => mending.overdue,
            Some(Replica::Healing(healing)) => healing.overdue,
            _ => false,
        }
    }

    /// True while this member hands its leaderships away.
    pub fn is_draining(&self) -> bool {
        self.cx.draining_until.is_some()
    }

    pub(crate) fn running(&self, group: GroupId) -> Option<&Group<M, R>> {
        match self.replicas.get(&group) {
            Some(Replica::Running(group)) => Some(group),
            _ => None,
        }
    }

    /// The group's machine: up to date on a leader that is announced as leading, behind on others.
    pub fn machine(&self, group: GroupId) -> Option<&M> {
        match self.replicas.get(&group)? {
            Replica::Forming(forming) => Some(forming.machine()),
            Replica::Running(group) => Some(&group.machine),
            Replica::Healing(_) | Replica::Mending(_) | Replica::Quarantined { .. } => None,
        }
    }

    /// The payload of an entry that holds a live message, or is in the log: from memory, else from disk.
    pub fn payload(&self, group: GroupId, index: u64) -> Result<Bytes, PayloadError> {
        let group = self.running(group).ok_or(PayloadError::UnknownGroup)?;
        Ok(group.log().payload(index).ok_or(PayloadError::NoPayload(index))??)
    }

    /// True if this member leads the group and has applied the first entry of its term.
    pub fn is_leading(&self, group: GroupId) -> bool {
        self.running(group).is_some_and(Group::is_leading)
    }

    /// True if effects may leave now: this member leads, and a majority was heard within the election timeout. `Applied`
    /// outputs respect it already; ask again before sending something that was derived later (`state_enter`). A leader of
    /// a quiesced group has heard nobody for long: asking wakes the group, so ask again soon.
    pub fn may_emit(&self, group: GroupId, now: Instant) -> bool {
        let Some(replica) = self.running(group) else { return false };
        let may = replica.has_lease(now, &self.cx);
        if !may && replica.quiesced && replica.is_leader() {
            self.wake_wanted.borrow_mut().insert(group, now);
        }
        may
    }

    /// The index up to which the group's machine here has applied the log; 0 without a running replica.
    pub fn applied(&self, group: GroupId) -> u64 {
        self.running(group).map_or(0, |group| group.applied)
    }

    /// The index up to which the group's log is known here to be committed; 0 without a running replica.
    pub fn commit(&self, group: GroupId) -> u64 {
        self.running(group).map_or(0, Group::commit)
    }

    /// The group's Raft term as this member knows it; 0 without a running replica.
    pub fn term(&self, group: GroupId) -> u64 {
        self.running(group).map_or(0, Group::term)
    }

    /// On the group's leader: voters, itself included, that have the committed entry of this index on disk. 0 elsewhere.
    pub fn copies(&self, group: GroupId, index: u64) -> usize {
        self.running(group).map_or(0, |group| group.copies(index))
    }

    /// On the group's leader: the highest committed index that at least `copies` voters have on disk. 0 elsewhere.
    pub fn durable_on(&self, group: GroupId, copies: usize) -> u64 {
        self.running(group).map_or(0, |group| group.durable_on(copies))
    }

    /// On the group's leader: voters, itself included, that answer and lack little of the log. 0 elsewhere.
    pub fn voters_in_sync(&self, group: GroupId) -> usize {
        self.running(group).map_or(0, |group| group.voters_in_sync(&self.cx))
    }

    /// The same, where a voter counts only once it has answered this leader: a replica that is damaged never does.
    pub fn voters_known_in_sync(&self, group: GroupId) -> usize {
        self.running(group).map_or(0, |group| group.voters_known_in_sync(&self.cx))
    }

    /// On the group's leader: whether the member's replica, voting or not, answers and lacks little of the log. A learner
    /// that has not said what it has does not.
    pub fn is_in_sync(&self, group: GroupId, member: MemberId) -> bool {
        let replica_in = |group: &Group<M, R>| Some(group.is_in_sync(group.replica_on(member)?.raft_id(), &self.cx));
        self.running(group).and_then(replica_in).unwrap_or(false)
    }

    /// Groups whose clock runs, ascending; all others are quiesced, forming or quarantined.
    pub fn awake_groups(&self) -> impl Iterator<Item = GroupId> + '_ {
        self.cx.active.iter().copied()
    }

    /// Who leads the group, as far as this member knows.
    pub fn leader(&self, group: GroupId) -> Option<MemberId> {
        self.running(group)?.leader().map(|leader| leader.member)
    }

    /// The group as this member sees it.
    pub fn status(&self, group: GroupId) -> Option<GroupStatus> {
        match self.replicas.get(&group)? {
            Replica::Forming(forming) => Some(forming.status()),
            Replica::Running(group) => Some(group.status(&self.cx)),
            Replica::Mending(mending) => {
                Some(GroupStatus::quarantined(mending.key(), Some(mending.generation()), &mending.why))
            }
            Replica::Healing(healing) => {
                let group = &healing.group;
                Some(GroupStatus::quarantined(group.key, Some(group.me.generation), &healing.why))
            }
            Replica::Quarantined { key, generation, why } => Some(GroupStatus::quarantined(*key, *generation, why)),
        }
    }

    /// How long the oldest batch has been at the journal; zero when none is.
    pub fn oldest_write_age(&self, now: Instant) -> Duration {
        self.cx.writes.oldest_age(now)
    }

    /// Appends a payload to the group's log on its leader. Whether it is committed shows in `Applied`.
    pub fn propose(&mut self, group: GroupId, payload: Bytes) -> Result<ProposalId, ProposeError> {
        self.with_leader(group, |group, cx| group.propose(payload, cx))
    }

    /// Proposes a membership change on the group's leader.
    pub fn change_membership(&mut self, group: GroupId, change: &MembershipChange) -> Result<ProposalId, ProposeError> {
        self.with_leader(group, |group, cx| group.change_membership(change, cx))
    }

    fn with_leader(
        &mut self,
        group: GroupId,
        call: impl FnOnce(&mut Group<M, R>, &mut Context<M::Effect>) -> Result<ProposalId, ProposeError>,
    ) -> Result<ProposalId, ProposeError> {
        match self.replicas.get(&group) {
            None => Err(ProposeError::UnknownGroup),
            Some(Replica::Forming(_)) => Err(ProposeError::Busy),
            Some(Replica::Healing(_) | Replica::Mending(_) | Replica::Quarantined { .. }) => {
                Err(ProposeError::Quarantined)
            }
            Some(Replica::Running(_)) => self.guarded(group, call).unwrap_or(Err(ProposeError::Quarantined)),
        }
    }

    /// Starts to hand the group's leadership to `to`; it is done when `LeaderChanged` says so.
    pub fn transfer_leader(&mut self, group: GroupId, to: MemberId) -> Result<(), TransferError> {
        self.guarded(group, |group, cx| group.transfer(to, cx)).unwrap_or(Err(TransferError::NotLeader))
    }

    /// Hands all leaderships away, trying again until `until`; meanwhile this member does not campaign. Progress shows in
    /// [`Host::leaderships`].
    pub fn drain(&mut self, until: Instant, now: Instant) {
        self.cx.now = now;
        self.cx.draining_until = Some(until);
        self.transfer_all_away();
    }

    fn transfer_all_away(&mut self) {
        for group in self.leading_groups() {
            self.guarded(group, |group, cx| group.transfer_away(cx));
        }
    }

    fn leading_groups(&self) -> Vec<GroupId> {
        let leads = |replica: &Replica<M, R>| matches!(replica, Replica::Running(group) if group.is_leader());
        self.replicas.iter().filter(|(_, replica)| leads(replica)).map(|(id, _)| *id).collect()
    }

    /// Wakes a quiesced group, for instance because a client waits for it.
    pub fn wake(&mut self, group: GroupId) {
        self.guarded(group, |group, cx| group.wake_with_leader(cx));
    }

    /// Writes the member's identity with the next batch; durable when that batch is reported written.
    pub fn write_identity(&mut self, identity: Bytes) -> BatchId {
        self.cx.writes.push(Op::Identity(identity))
    }

    /// Takes in an envelope from another member.
    pub fn handle_envelope(&mut self, from: MemberId, envelope: Envelope, now: Instant) {
        self.cx.now = now;
        if envelope.cluster != self.cx.config.cluster {
            trace!(%from, "an envelope of another cluster");
            return;
        }
        let id = envelope.group();
        let Some(replica) = self.replicas.get(&id) else {
            self.parking.park(from, envelope, now);
            return;
        };
        let (ours, theirs) = (replica.key().incarnation, envelope.key.incarnation);
        if ours != theirs {
            // The counter decides; equal counters with different nonces refuse each other.
            if theirs.counter >= ours.counter {
                let theirs = Incarnation { counter: theirs.counter, nonce: theirs.nonce };
                self.cx.outbox.push_back(HostOutput::OtherIncarnation { group: id, from, theirs });
            }
            return;
        }
        if matches!(envelope.body, Body::Fetch { .. } | Body::Fetched { .. }) {
            return self.handle_repair(from, envelope);
        }
        match replica {
            Replica::Forming(_) => self.parking.park(from, envelope, now),
            Replica::Running(_) => {
                self.guarded(id, |group, cx| group.handle(from, envelope, cx));
            }
            Replica::Healing(_) | Replica::Mending(_) | Replica::Quarantined { .. } => {}
        }
    }

    /// A batch is durable.
    pub fn handle_written(&mut self, written: &Written, now: Instant) {
        self.cx.now = now;
        for finished in self.cx.writes.written(written) {
            for record in &finished.records {
                let id = GroupId(record.key.group);
                let group = match self.replicas.get_mut(&id) {
                    Some(Replica::Running(group)) if group.key == record.key => &mut **group,
                    Some(Replica::Healing(healing)) if healing.group.key == record.key => &mut healing.group,
                    Some(Replica::Mending(mending)) if mending.key() == record.key => {
                        mending.placed(record);
                        continue;
                    }
                    _ => continue,
                };
                if record.body {
                    group.body_written(record.index, record.location);
                } else if group.log_mut().durable(record.index, finished.batch, record.location) {
                    self.cx.cache.add(id, record.index, record.location.len as usize, now);
                }
            }
            for after in finished.after {
                self.finish(after, finished.batch);
            }
        }
        self.trim_cache();
    }

    fn finish(&mut self, after: After, batch: BatchId) {
        let key = after.key();
        let id = GroupId(key.group);
        match self.replicas.get(&id) {
            // A late report about an earlier life says nothing about this one.
            Some(replica) if replica.key() != key => {}
            Some(Replica::Forming(_)) => self.begin_to_lead(id),
            Some(Replica::Mending(_)) => self.mended(id),
            Some(Replica::Healing(_)) if matches!(after, After::Mended { .. }) => self.healed(id),
            Some(Replica::Running(_)) => {
                self.guarded(id, |group, cx| {
                    if group.last_write == Some(batch) {
                        group.last_write = None;
                    }
                    group.written(after, cx);
                });
            }
            _ => {}
        }
    }

    fn trim_cache(&mut self) {
        while let Some((id, index)) = self.cx.cache.next_to_evict() {
            self.evict(id, index);
        }
    }

    fn drop_idle_cache(&mut self) {
        let idle = self.cx.config.cache_idle;
        for (id, index, _) in self.cx.cache.take_idle(self.cx.now, idle) {
            self.evict(id, index);
        }
    }

    fn evict(&mut self, id: GroupId, index: u64) {
        match self.replicas.get_mut(&id) {
            Some(Replica::Running(group)) => group.log_mut().evict(index),
            Some(Replica::Healing(healing)) => healing.group.log_mut().evict(index),
            _ => {}
        }
    }

    /// Lets time pass. Only groups that are awake are looked at.
    pub fn tick(&mut self, now: Instant) {
        self.cx.now = now;
        self.run_campaigns();
        let tick = self.cx.config.tick;
        let missed = now.since(self.last_tick).as_micros() / tick.as_micros().max(1);
        if missed == 0 {
            return;
        }
        // After a pause of the process one tick is enough: messages that wait must be read before anyone campaigns.
        self.last_tick = if missed == 1 { self.last_tick + tick } else { now };
        self.drop_idle_cache();
        for id in self.cx.active.iter().copied().collect::<Vec<_>>() {
            self.guarded(id, |group, cx| group.tick(cx));
        }
        self.parking.expire(now);
        self.tend_mending();
        self.cx.writes.flush_lazy(now, self.cx.config.election_timeout());
        if self.cx.draining_until.is_some_and(|until| now >= until) {
            self.cx.draining_until = None;
        }
        if self.cx.draining_until.is_some() {
            self.transfer_all_away();
        } else if self.oldest_write_age(now).max(self.cx.disk_age) > self.cx.config.slow_disk {
            for group in self.leading_groups() {
                self.guarded(group, |group, cx| group.leave_slow_disk(cx));
            }
        }
    }

    fn run_campaigns(&mut self) {
        for _ in 0..self.cx.config.campaigns_per_tick {
            let Some(first @ (due, _, id)) = self.cx.campaigns.first().copied() else { return };
            if due > self.cx.now {
                return;
            }
            self.cx.campaigns.remove(&first);
            let again = self.guarded(id, |group, cx| group.campaign(cx)).unwrap_or(false);
            if again {
                self.cx.campaigns.insert((self.cx.now + self.cx.config.campaign_retry, false, id));
            }
        }
    }

    /// When [`Host::tick`] is due next; none if nothing runs by time.
    pub fn next_deadline(&self) -> Option<Instant> {
        let ticking = !self.cx.active.is_empty()
            || !self.parking.is_empty()
            || !self.mending.is_empty()
            || self.cx.writes.has_lazy()
            || self.cx.draining_until.is_some();
        let tick = ticking.then(|| self.last_tick + self.cx.config.tick);
        let campaign = self.cx.campaigns.first().map(|(due, _, _)| *due);
        tick.into_iter().chain(campaign).min()
    }

    /// The member is silent or unreachable: the groups that it leads look for another leader.
    pub fn member_suspected(&mut self, member: MemberId, now: Instant) {
        self.cx.now = now;
        if member == self.cx.me || !self.cx.suspected.insert(member) {
            return;
        }
        info!(%member, "suspected");
        for id in self.running_groups() {
            self.guarded(id, |group, cx| {
                if group.leader().map(|leader| leader.member) == Some(member) {
                    group.leader_lost(cx);
                }
            });
        }
        self.run_campaigns();
    }

    /// The member is heard (again), in this run of it.
    pub fn member_returned(&mut self, member: MemberId, boot: BootId, now: Instant) {
        self.cx.now = now;
        let restarted = self.cx.boots.insert(member, boot).is_some_and(|before| before != boot);
        if !self.cx.suspected.remove(&member) && !restarted {
            return;
        }
        info!(%member, restarted, "returned");
        for id in self.running_groups() {
            self.guarded(id, |group, cx| group.peer_returned(member, restarted, cx));
        }
    }

    pub(crate) fn running_groups(&self) -> Vec<GroupId> {
        let running = |replica: &Replica<M, R>| matches!(replica, Replica::Running(_));
        self.replicas.iter().filter(|(_, replica)| running(replica)).map(|(id, _)| *id).collect()
    }

    /// The next thing to do; none until something is fed in again. What was fed in before is handled here, together.
    pub fn poll(&mut self) -> Option<HostOutput<M::Effect>> {
        if let Some(output) = self.cx.outbox.pop_front() {
            return Some(output);
        }
        for (id, now) in self.wake_wanted.take() {
            self.set_time(now);
            self.guarded(id, |group, cx| group.wake(cx));
        }
        while let Some(id) = self.cx.dirty.pop_first() {
            self.guarded(id, |group, cx| group.process(cx));
        }
        if let Some(output) = self.cx.outbox.pop_front() {
            return Some(output);
        }
        self.take_batch().map(HostOutput::Write)
    }

    fn take_batch(&mut self) -> Option<Batch> {
        self.cx.writes.take_batch(self.cx.now)
    }
}
