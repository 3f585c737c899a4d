//! All replicas of one member, spread over its workers.
//!
//! Each group is with one worker for as long as the process runs. Envelopes, reports of the journal and ticks only arrive
//! at the workers (see [`Arrival`]) until the round's work is done; every other call that changes something finds its host
//! as it stands after all that arrived before. Calls that only look see it as it stood when the round began, as if what
//! arrived since had come a moment later.

use std::iter::Peekable;

use bytes::Bytes;
use holdfast_journal::{BatchId, EntryReader, GroupKey, RecoveredGroup, Upkeep, Written};
use holdfast_queue::ids::{BootId, GroupId, MemberId};
use holdfast_queue::time::{Duration, Instant};
use holdfast_queue::{AnyEffect, AnyMachine};
use holdfast_replica::{
    CreateError, Envelope, EnvelopeError, GroupBirth, GroupStatus, Host, HostConfig, HostOutput, MembershipChange,
    PayloadError, ProposalId, ProposeError, TransferError,
};

use crate::member::Member;
use crate::seam::Severity;
use crate::workers::{Arrival, Crew, Made, Worker, worker_of};

/// The upper bits of a batch's number name its worker; the first one's begin at 1 as ever.
const WORKER_SHIFT: u32 = 48;
/// More workers than this are of no use, and their numbers must fit above [`WORKER_SHIFT`].
pub const MOST_WORKERS: usize = 64;

/// The hosts of a member: to its callers as good as one [`Host`] that has all groups.
pub struct Hosts<R: EntryReader> {
    workers: Vec<Box<Worker<R>>>,
    me: MemberId,
    cache_bytes: usize,
}

impl<R: EntryReader> Hosts<R> {
    /// Hosts without groups, one for each worker; what `config` bounds for all groups together is shared out.
    pub(crate) fn new(count: usize, config: HostConfig, me: MemberId, seed: u64, reader: &R, now: Instant) -> Self {
        let count = count.clamp(1, MOST_WORKERS);
        let cache_bytes = config.cache_bytes;
        let share = HostConfig {
            cache_bytes: cache_bytes / count,
            parked_groups: config.parked_groups.div_ceil(count),
            campaigns_per_tick: config.campaigns_per_tick.div_ceil(count),
            ..config
        };
        let worker = |index: usize| {
            let host = Host::new(share.clone(), me, seed, reader.clone(), now);
            Box::new(Worker::new(index, host.numbered_from(BatchId(((index as u64) << WORKER_SHIFT) + 1))))
        };
        Self { workers: (0..count).map(worker).collect(), me, cache_bytes }
    }

    fn host(&self, group: GroupId) -> &Host<AnyMachine, R> {
        self.workers[worker_of(group, self.workers.len())].host()
    }

    fn host_mut(&mut self, group: GroupId) -> &mut Host<AnyMachine, R> {
        let at = worker_of(group, self.workers.len());
        self.workers[at].host_mut()
    }

    fn all(&self) -> impl Iterator<Item = &Host<AnyMachine, R>> {
        self.workers.iter().map(|worker| worker.host())
    }

    /// This member's Raft id.
    pub fn me(&self) -> MemberId {
        self.me
    }

    /// How many workers share the groups.
    pub fn worker_count(&self) -> usize {
        self.workers.len()
    }

    /// See [`Host::groups`].
    pub fn groups(&self) -> impl Iterator<Item = GroupId> + '_ {
        merged(self.all().map(Host::groups))
    }

    /// See [`Host::group_count`].
    pub fn group_count(&self) -> usize {
        self.all().map(Host::group_count).sum()
    }

    /// See [`Host::quarantined_groups`].
    pub fn quarantined_groups(&self) -> impl Iterator<Item = GroupId> + '_ {
        merged(self.all().map(Host::quarantined_groups))
    }

    /// See [`Host::awake_groups`].
    pub fn awake_groups(&self) -> impl Iterator<Item = GroupId> + '_ {
        merged(self.all().map(Host::awake_groups))
    }

    /// See [`Host::is_present`].
    pub fn is_present(&self, group: GroupId) -> bool {
        self.host(group).is_present(group)
    }

    /// See [`Host::key`].
    pub fn key(&self, group: GroupId) -> Option<GroupKey> {
        self.host(group).key(group)
    }

    /// See [`Host::generation`].
    pub fn generation(&self, group: GroupId) -> Option<Option<u32>> {
        self.host(group).generation(group)
    }

    /// See [`Host::is_quarantined`].
    pub fn is_quarantined(&self, group: GroupId) -> bool {
        self.host(group).is_quarantined(group)
    }

    /// See [`Host::is_draining`].
    pub fn is_draining(&self) -> bool {
        self.all().any(Host::is_draining)
    }

    /// See [`Host::machine`].
    pub fn machine(&self, group: GroupId) -> Option<&AnyMachine> {
        self.host(group).machine(group)
    }

    /// See [`Host::payload`].
    pub fn payload(&self, group: GroupId, index: u64) -> Result<Bytes, PayloadError> {
        self.host(group).payload(group, index)
    }

    /// See [`Host::is_leading`].
    pub fn is_leading(&self, group: GroupId) -> bool {
        self.host(group).is_leading(group)
    }

    /// See [`Host::may_emit`].
    pub fn may_emit(&self, group: GroupId, now: Instant) -> bool {
        self.host(group).may_emit(group, now)
    }

    /// See [`Host::applied`].
    pub fn applied(&self, group: GroupId) -> u64 {
        self.host(group).applied(group)
    }

    /// See [`Host::commit`].
    pub fn commit(&self, group: GroupId) -> u64 {
        self.host(group).commit(group)
    }

    /// See [`Host::keep_history`].
    pub(crate) fn keep_history(&mut self, until: Instant, now: Instant) {
        for worker in &mut self.workers {
            worker.host_mut().keep_history(until, now);
        }
    }

    /// See [`Host::term`].
    pub fn term(&self, group: GroupId) -> u64 {
        self.host(group).term(group)
    }

    /// See [`Host::copies`].
    pub fn copies(&self, group: GroupId, index: u64) -> usize {
        self.host(group).copies(group, index)
    }

    /// See [`Host::durable_on`].
    pub fn durable_on(&self, group: GroupId, copies: usize) -> u64 {
        self.host(group).durable_on(group, copies)
    }

    /// See [`Host::voters_in_sync`].
    pub fn voters_in_sync(&self, group: GroupId) -> usize {
        self.host(group).voters_in_sync(group)
    }

    /// See [`Host::voters_known_in_sync`].
    pub fn voters_known_in_sync(&self, group: GroupId) -> usize {
        self.host(group).voters_known_in_sync(group)
    }

    /// See [`Host::is_in_sync`].
    pub fn is_in_sync(&self, group: GroupId, member: MemberId) -> bool {
        self.host(group).is_in_sync(group, member)
    }

    /// See [`Host::leader`].
    pub fn leader(&self, group: GroupId) -> Option<MemberId> {
        self.host(group).leader(group)
    }

    /// See [`Host::status`].
    pub fn status(&self, group: GroupId) -> Option<GroupStatus> {
        self.host(group).status(group)
    }

    /// See [`Host::leaderships`].
    pub fn leaderships(&self) -> usize {
        self.all().map(Host::leaderships).sum()
    }

    /// See [`Host::oldest_write_age`].
    pub fn oldest_write_age(&self, now: Instant) -> Duration {
        self.all().map(|host| host.oldest_write_age(now)).max().unwrap_or_default()
    }

    /// See [`Host::next_deadline`].
    pub fn next_deadline(&self) -> Option<Instant> {
        self.all().filter_map(Host::next_deadline).min()
    }

    /// See [`Host::propose`].
    pub fn propose(&mut self, group: GroupId, payload: Bytes) -> Result<ProposalId, ProposeError> {
        self.host_mut(group).propose(group, payload)
    }

    /// See [`Host::change_membership`].
    pub fn change_membership(&mut self, group: GroupId, change: &MembershipChange) -> Result<ProposalId, ProposeError> {
        self.host_mut(group).change_membership(group, change)
    }

    /// See [`Host::transfer_leader`].
    pub fn transfer_leader(&mut self, group: GroupId, to: MemberId) -> Result<(), TransferError> {
        self.host_mut(group).transfer_leader(group, to)
    }

    /// See [`Host::drain`].
    pub fn drain(&mut self, until: Instant, now: Instant) {
        for worker in &mut self.workers {
            worker.host_mut().drain(until, now);
        }
    }

    /// See [`Host::create_group`].
    pub fn create_group(&mut self, birth: GroupBirth<AnyMachine>, now: Instant) -> Result<(), CreateError> {
        self.host_mut(GroupId(birth.key.group)).create_group(birth, now)
    }

    /// See [`Host::join_group`].
    pub fn join_group(
        &mut self,
        key: GroupKey,
        generation: u32,
        machine: AnyMachine,
        now: Instant,
    ) -> Result<(), CreateError> {
        self.host_mut(GroupId(key.group)).join_group(key, generation, machine, now)
    }

    /// See [`Host::restore_group`].
    pub fn restore_group(&mut self, recovered: RecoveredGroup, now: Instant) -> Result<(), CreateError> {
        self.host_mut(GroupId(recovered.key.group)).restore_group(recovered, now)
    }

    /// See [`Host::destroy_group`].
    pub fn destroy_group(&mut self, key: GroupKey) {
        self.host_mut(GroupId(key.group)).destroy_group(key);
    }

    /// See [`Host::payload_lost`].
    pub fn payload_lost(&mut self, group: GroupId, index: u64, why: &str) {
        self.host_mut(group).payload_lost(group, index, why);
    }

    /// See [`Host::write_identity`].
    pub fn write_identity(&mut self, identity: Bytes) -> BatchId {
        self.host_mut(GroupId::META).write_identity(identity)
    }

    /// See [`Host::handle_upkeep`]. The journal is answered once every host knows the new places.
    pub fn handle_upkeep(&mut self, upkeep: &Upkeep, now: Instant) {
        for worker in &mut self.workers {
            worker.host_mut().take_upkeep(upkeep, now);
        }
        self.host_mut(GroupId::META).answer_moves(upkeep, now);
    }

    /// An encoded envelope came from another member; an error if it cannot be said for which group.
    pub(crate) fn arrived(&mut self, from: MemberId, bytes: Bytes, now: Instant) -> Result<(), EnvelopeError> {
        let group = Envelope::group_of(&bytes)?;
        let at = worker_of(group, self.workers.len());
        self.workers[at].arrive(now, Arrival::Envelope { from, bytes });
        Ok(())
    }

    /// A batch is durable: its worker is told, if it is of one.
    pub(crate) fn written(&mut self, written: Written, now: Instant) {
        let worker = usize::try_from(written.batch.0 >> WORKER_SHIFT).ok().and_then(|at| self.workers.get_mut(at));
        if let Some(worker) = worker {
            worker.arrive(now, Arrival::Written(written));
        }
    }

    /// Time passes.
    pub(crate) fn tick(&mut self, now: Instant) {
        let disk_age = self.workers.iter().map(|worker| worker.write_age(now)).max().unwrap_or_default();
        let (count, whole) = (self.workers.len(), self.cache_bytes);
        let cached: usize = self.all().map(Host::cached_bytes).sum();
        for worker in &mut self.workers {
            let cache_bytes = cache_share(worker.host().cached_bytes(), cached, whole, count);
            worker.arrive(now, Arrival::Tick { disk_age, cache_bytes });
        }
    }

    /// See [`Host::member_suspected`].
    pub(crate) fn member_suspected(&mut self, member: MemberId, now: Instant) {
        for worker in &mut self.workers {
            worker.host_mut().member_suspected(member, now);
        }
    }

    /// See [`Host::member_returned`].
    pub(crate) fn member_returned(&mut self, member: MemberId, boot: BootId, now: Instant) {
        for worker in &mut self.workers {
            worker.host_mut().member_returned(member, boot, now);
        }
    }

    /// Has the crew take in all that arrived; what was made of it, empty when there is nothing to do.
    pub(crate) fn work(&mut self, crew: &mut dyn Crew<R>) -> Vec<Made> {
        let count = self.workers.len();
        self.workers = crew.work(std::mem::take(&mut self.workers));
        assert_eq!(self.workers.len(), count, "a crew gives every worker back");
        let mut made = Vec::new();
        for worker in &mut self.workers {
            made.extend(worker.take_made());
        }
        self.workers.sort_unstable_by_key(|worker| worker.index());
        made
    }
}

impl<R: EntryReader> Member<R> {
    /// Carries out what the replicas want; true if there was anything.
    pub(crate) fn drain_host(&mut self) -> bool {
        let mut any = false;
        loop {
            let Some(host) = self.host.as_mut() else { return any };
            let made = host.work(&mut *self.crew);
            if made.is_empty() {
                return any;
            }
            any = true;
            for one in made {
                match one {
                    Made::Envelope { to, bytes, is_frame } => self.send_envelope(to, bytes, is_frame),
                    Made::Malformed { from, error } => self.bad_envelope(from, &error),
                    Made::Output(output) => self.host_output(output),
                }
            }
        }
    }

    fn host_output(&mut self, output: HostOutput<AnyEffect>) {
        match output {
            HostOutput::Send { to, envelope } => self.send_envelope(to, envelope.encode(), false),
            HostOutput::Write(batch) => self.write(batch),
            HostOutput::Applied { group, index, leading, effects, .. } => self.applied(group, index, leading, effects),
            HostOutput::LeaderChanged { group, term, me_leading, .. } => self.leader_changed(group, term, me_leading),
            HostOutput::SnapshotInstalled { group: GroupId::META, .. } => self.compare_with_metadata(),
            HostOutput::SnapshotInstalled { .. } => {}
            HostOutput::MembershipChanged { group, .. } => self.membership_changed(group),
            HostOutput::OtherIncarnation { group, from, theirs } => self.event(
                Severity::Warning,
                format!("member {from} has another incarnation ({}) of group {group}", theirs.counter),
            ),
            HostOutput::Mending { group, why } => {
                self.metrics.journal_damages += 1;
                let text =
                    format!("the replica of group {group} is damaged and asks its peers for what it lost: {why}");
                self.event(Severity::Warning, text);
            }
            HostOutput::Mended { group, entries } => {
                self.metrics.journal_mended += entries as u64;
                self.metrics.replicas_mended += 1;
                let text = format!("the replica of group {group} is mended, with {entries} entries from its peers");
                self.event(Severity::Info, text);
            }
            HostOutput::Quarantined { group, why } => {
                self.metrics.replicas_quarantined += 1;
                self.leaderships.no_longer(group);
                self.copies.stop_leading(group);
                self.event(Severity::Error, format!("the replica of group {group} is quarantined: {why}"));
            }
        }
    }
}

/// What a host may keep in memory that has `own` bytes of `cached` by all `count` of them, out of `whole`: what it has and
/// an equal share of what is free, but its equal share of the whole in any case. So a single busy group soon has nearly
/// all of it, and gives it back once others are busy.
fn cache_share(own: usize, cached: usize, whole: usize, count: usize) -> usize {
    let (free, over) = (whole.saturating_sub(cached), cached.saturating_sub(whole));
    (own + free / count).saturating_sub(over / count).max(whole / count)
}

/// What several ascending iterators give, ascending.
fn merged<I: Iterator<Item = GroupId>>(iterators: impl Iterator<Item = I>) -> impl Iterator<Item = GroupId> {
    let mut heads: Vec<Peekable<I>> = iterators.map(Iterator::peekable).collect();
    std::iter::from_fn(move || {
        let head = |(at, head): (usize, &mut Peekable<I>)| Some((*head.peek()?, at));
        let (_, least) = heads.iter_mut().enumerate().filter_map(head).min()?;
        heads[least].next()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_busy_worker_comes_to_have_nearly_the_whole_cache_and_gives_it_back_to_others() {
        let (whole, count) = (1_000, 4);
        let mut kept = vec![0; count];
        let deal = |kept: &mut Vec<usize>, busy: &[usize]| {
            let cached = kept.iter().sum();
            let shares: Vec<usize> = kept.iter().map(|own| cache_share(*own, cached, whole, count)).collect();
            for (at, share) in shares.into_iter().enumerate() {
                kept[at] = if busy.contains(&at) { share } else { kept[at].min(share) };
            }
        };
        for _ in 0..50 {
            deal(&mut kept, &[2]);
        }
        assert!(kept[2] > 980 && kept[2] <= 1_000, "{kept:?}");
        for _ in 0..50 {
            deal(&mut kept, &[0, 2]);
        }
        assert!(kept[0] >= 250 && kept[2] >= 250 && kept.iter().sum::<usize>() <= 1_010, "{kept:?}");
    }

    #[test]
    fn groups_of_several_workers_are_named_in_ascending_order() {
        let parts = [vec![1, 5, 9], vec![], vec![0, 2, 12]];
        let all = merged(parts.iter().map(|part| part.iter().map(|group| GroupId(*group))));
        assert_eq!(all.map(|group| group.0).collect::<Vec<_>>(), [0, 1, 2, 5, 9, 12]);
    }
}
