//! `min-in-sync-replicas`: confirms that wait for more durable copies than a majority.
//!
//! A group's leader says with every confirm on how many voters' disks the commands up to that number are, and says it again
//! when enough of them have it ([`Member::release_copied`]). The home ends a publish only when as many copies are named as
//! its queue wanted when the publish came in, by metadata under a fresh lease: so a leader with old metadata can delay a
//! confirm, but never weaken it. Settlements and replies go on waiting for a majority alone.
//!
//! A leader whose voters answer in too small a number tells every member; homes then refuse publishes before they are
//! appended. What was appended and is not on enough disks within [`COPIES_WITHIN`] is nacked.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use holdfast_journal::EntryReader;
use holdfast_queue::ids::{BootId, GroupId, MemberId, QueueId};
use holdfast_queue::queue::QueueEffect;
use holdfast_queue::time::{Duration, Instant};

use crate::member::Member;
use crate::peer_message::PeerMessage;
use crate::requests::Tracked;

/// A publish that a majority has and too few others is nacked after this: a third of the 30 s after which Kafka's producers
/// (`request.timeout.ms`) and RabbitMQ's PerfTest (`--confirm-timeout`) give a confirm up, and long enough for a member to
/// restart.
pub(crate) const COPIES_WITHIN: Duration = Duration::from_secs(10);
/// A leader with too few voters in sync repeats it this often…
const TELL_EVERY: Duration = Duration::from_secs(1);
/// …and homes believe it for so long: that there are enough again may be said while a home cannot hear it.
const BELIEVE_FOR: Duration = Duration::from_secs(3);
/// Confirms that a leader keeps for one home until more disks have them; beyond it the last two become one.
const KEPT_PER_HOME: usize = 256;

/// Confirms of one group that too few disks had when they were sent: index of the entry and the home's number, by home.
#[derive(Debug, Default)]
struct ShortConfirms(BTreeMap<BootId, VecDeque<(u64, u64)>>);

impl ShortConfirms {
    fn add(&mut self, boot: BootId, index: u64, seq: u64) {
        let confirms = self.0.entry(boot).or_default();
        if confirms.back().is_some_and(|(last, _)| *last >= index) {
            return; // The home asked again; the later index covers it.
        }
        if confirms.len() >= KEPT_PER_HOME {
            confirms.pop_back();
        }
        confirms.push_back((index, seq));
    }

    /// Takes what is at or below `index`: of each home the last one.
    fn take_up_to(&mut self, index: u64) -> Vec<(BootId, u64, u64)> {
        let mut taken = Vec::new();
        self.0.retain(|boot, confirms| {
            let mut last = None;
            while confirms.front().is_some_and(|(at, _)| *at <= index) {
                last = confirms.pop_front();
            }
            taken.extend(last.map(|(at, seq)| (*boot, at, seq)));
            !confirms.is_empty()
        });
        taken
    }
}

/// What a member knows of copies, as a leader and as a home.
#[derive(Default)]
pub(crate) struct Copies {
    /// As a leader.
    short: BTreeMap<GroupId, ShortConfirms>,
    /// As a leader: groups whose queues want more copies than a majority, and what was last told of them: so few voters
    /// are in sync, or none while there are enough.
    watched: BTreeMap<GroupId, Option<u32>>,
    /// Something changed that may change the number of voters in sync of groups that are asleep.
    pub(crate) recheck: bool,
    next_telling: Instant,
    /// As a home: voters in sync as a leader last told, its term, and when that was.
    told: BTreeMap<GroupId, (u64, u32, Instant)>,
}

impl Copies {
    /// The group is not led here (any more).
    pub(crate) fn stop_leading(&mut self, group: GroupId) {
        self.short.remove(&group);
        self.watched.remove(&group);
    }

    /// The group is gone.
    pub(crate) fn forget(&mut self, group: GroupId) {
        self.stop_leading(group);
        self.told.remove(&group);
    }
}

impl<R: EntryReader> Member<R> {
    /// On how many disks the entry is whose confirm is about to leave. It is remembered if that is too few.
    pub(crate) fn count_copies(&mut self, group: GroupId, index: u64, effect: &QueueEffect) -> u8 {
        let QueueEffect::Confirm { boot, seq } = effect else { return 0 };
        if group == self.transient_group() {
            return 0; // Its queues ask for none.
        }
        let copies = self.host.as_ref().map_or(0, |host| host.copies(group, index));
        let wanted = self.metadata().map_or(0, |meta| meta.group_min_in_sync_replicas(group));
        if copies < wanted as usize {
            self.copies.short.entry(group).or_default().add(*boot, index, *seq);
        }
        u8::try_from(copies).unwrap_or(u8::MAX)
    }

    /// Repeats confirms whose entries are on enough disks now; true if there were any. Nothing leaves without the lease:
    /// a leader that was replaced may count a voter that is none any more.
    pub(crate) fn release_copied(&mut self) -> bool {
        if self.copies.short.is_empty() || self.gate_is_closed() {
            return false;
        }
        let mut any = false;
        for group in self.copies.short.keys().copied().collect::<Vec<_>>() {
            let Some(host) = self.host.as_ref() else { return any };
            let wanted = self.metadata().map_or(0, |meta| meta.group_min_in_sync_replicas(group)).max(1);
            let reached = host.durable_on(group, wanted as usize);
            let ready = |confirms: &VecDeque<(u64, u64)>| confirms.front().is_some_and(|(at, _)| *at <= reached);
            let Some(short) = self.copies.short.get_mut(&group) else { continue };
            if !short.0.values().any(ready) || !host.may_emit(group, self.now) {
                continue;
            }
            let taken = short.take_up_to(reached);
            if short.0.is_empty() {
                self.copies.short.remove(&group);
            }
            for (boot, index, seq) in taken {
                self.route_effect(group, index, QueueEffect::Confirm { boot, seq });
                any = true;
            }
        }
        any
    }

    /// This member leads the group, and its voters or what its queues want may have changed.
    pub(crate) fn watch_copies(&mut self, group: GroupId) {
        if !self.leaderships.led.contains_key(&group) {
            return;
        }
        let wanted = self.metadata().map_or(0, |meta| meta.group_min_in_sync_replicas(group));
        let voters = self.metadata().and_then(|meta| meta.group(group)).map_or(0, |info| info.voters.len());
        if wanted as usize > voters / 2 + 1 {
            self.copies.watched.entry(group).or_insert(None);
            self.copies.recheck = true;
        } else if self.copies.watched.remove(&group).flatten().is_some() {
            self.tell_in_sync(group);
        }
    }

    /// What queues want changed, perhaps everywhere.
    pub(crate) fn watch_all_copies(&mut self) {
        for group in self.leaderships.led.keys().copied().collect::<Vec<_>>() {
            self.watch_copies(group);
        }
    }

    /// Tells the members which groups led here have come to have too few voters in sync, or enough again.
    pub(crate) fn tick_copies(&mut self) {
        let Some(host) = self.host.as_ref().filter(|_| !self.copies.watched.is_empty()) else { return };
        let awake: BTreeSet<GroupId> = host.awake_groups().collect();
        let repeats = self.now >= self.copies.next_telling;
        if repeats {
            self.copies.next_telling = self.now + TELL_EVERY;
        }
        let all = std::mem::take(&mut self.copies.recheck);
        let mut news = Vec::new();
        for (group, told) in &mut self.copies.watched {
            if repeats && told.is_some() {
                news.push(*group);
            }
            if !all && !awake.contains(group) {
                continue;
            }
            let in_sync = u32::try_from(host.voters_in_sync(*group)).unwrap_or(u32::MAX);
            let wanted = self.leaderships.led.get(group).and(host.machine(GroupId::META)).and_then(|it| it.meta());
            let wanted = wanted.map_or(0, |meta| meta.group_min_in_sync_replicas(*group));
            let now = (in_sync < wanted).then_some(in_sync);
            if *told != now {
                *told = now;
                news.push(*group);
            }
        }
        news.dedup();
        for group in news {
            self.tell_in_sync(group);
        }
    }

    fn tell_in_sync(&mut self, group: GroupId) {
        for member in self.peers.iter().map(|(member, _)| member).collect::<Vec<_>>() {
            self.tell_in_sync_to(member, group);
        }
        let me = self.me();
        self.tell_in_sync_to(me, group);
    }

    fn tell_in_sync_to(&mut self, to: MemberId, group: GroupId) {
        let Some(term) = self.leaderships.led.get(&group).map(|leading| leading.term) else { return };
        let replicas = self.host.as_ref().map_or(0, |host| host.voters_in_sync(group));
        let replicas = u32::try_from(replicas).unwrap_or(u32::MAX);
        self.send_or_take(to, PeerMessage::InSync { group, term, replicas });
    }

    /// Tells one member, which has just been linked, what the others were told.
    pub(crate) fn tell_all_in_sync_to(&mut self, member: MemberId) {
        let lacking = self.copies.watched.iter().filter(|(_, told)| told.is_some());
        for group in lacking.map(|(group, _)| *group).collect::<Vec<_>>() {
            self.tell_in_sync_to(member, group);
        }
    }

    /// A group's leader says how many of its voters are in sync.
    pub(crate) fn in_sync_told(&mut self, group: GroupId, term: u64, replicas: u32) {
        let said = (term, replicas, self.now);
        let told = self.copies.told.entry(group).or_insert(said);
        if term >= told.0 {
            *told = said;
        }
    }

    /// As a home: the voters in sync, if they are known to be fewer than the queue wants. What a leader said counts until
    /// a later one is announced, or until it has said nothing for a while.
    fn lacking(&self, group: GroupId, wanted: u8) -> Option<u32> {
        let voters = self.metadata()?.group(group)?.voters.len() as u32;
        let announced = self.leaderships.announced.get(&group).map_or(0, |(_, term)| *term);
        let told = self.copies.told.get(&group);
        let told = told.filter(|(term, _, at)| *term >= announced && self.now.since(*at) < BELIEVE_FOR);
        let in_sync = told.map_or(voters, |(_, replicas, _)| voters.min(*replicas));
        (in_sync < u32::from(wanted)).then_some(in_sync)
    }

    /// Why a publish to these queues is refused before anything of it is appended, if it is.
    pub(crate) fn too_few_copies(&self, targets: &[Target]) -> Option<String> {
        let target = |target: &&Target| target.copies > 1 && self.lacking(target.group, target.copies).is_some();
        let Target { queue, group, copies } = *targets.iter().find(target)?;
        let in_sync = self.lacking(group, copies)?;
        let info = self.metadata()?.queue(queue)?;
        Some(format!(
            "queue '{}' in vhost '{}' has {in_sync} replicas in sync, and min-in-sync-replicas is {copies}",
            info.name, info.vhost
        ))
    }

    /// Nacks publishes that too few disks have for too long. Only where the client is told: without confirms, or once the
    /// client is closing, they go on waiting as they do for a majority.
    pub(crate) fn fail_overdue_publishes(&mut self) {
        let (now, clients) = (self.now, &self.clients);
        let told = |tracked: &Tracked| match tracked {
            Tracked::Publish { conn, channel, confirm: true, .. } => {
                clients.get(conn).is_some_and(|client| client.hears_of_publishes(*channel))
            }
            _ => false,
        };
        let mut failed = Vec::new();
        self.streams.visit_busy(|_, stream| {
            if stream.waits_for_copies() {
                failed.extend(stream.take_overdue_copies(now, COPIES_WITHIN, told));
            }
        });
        for tracked in failed {
            if let Tracked::Publish { conn, channel, seq, size, .. } = tracked {
                self.publish_failed(conn, channel, seq, size);
            }
        }
    }
}

/// A queue that a message goes to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pub(crate) queue: QueueId,
    pub(crate) group: GroupId,
    /// Durable copies that its confirm waits for; 0 and 1 = a majority, whatever that is.
    pub(crate) copies: u8,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn confirms_that_wait_for_copies_leave_once_for_each_home_and_in_a_bounded_number() {
        let (one, other) = (BootId(1), BootId(2));
        let mut short = ShortConfirms::default();
        for index in 1..=1_000 {
            short.add(one, index, index * 10);
        }
        short.add(other, 7, 1);
        short.add(other, 7, 1);
        assert_eq!(short.take_up_to(200), [(one, 200, 2_000), (other, 7, 1)]);
        assert_eq!(short.take_up_to(999), [(one, 255, 2_550)]);
        assert_eq!(short.take_up_to(1_000), [(one, 1_000, 10_000)], "the last is never given up");
        assert!(short.0.is_empty());
    }
}
