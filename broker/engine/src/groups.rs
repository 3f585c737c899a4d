//! The leader's side of groups: proposals out of what homes send, and effects back to the homes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use holdfast_journal::EntryReader;
use holdfast_queue::codec::{Batch, DecodeError, EntryBuilder, Message, Origin, message_at};
use holdfast_queue::ids::{BootId, ConsumerId, GroupId, MemberId, MessageRef, QueueId};
use holdfast_queue::meta::MetaCommand;
use holdfast_queue::queue::{Delivery, QueueCommand, QueueEffect, QueueReply};
use holdfast_queue::time::Instant;
use holdfast_queue::{AnyEffect, AnyMachine};
use holdfast_replica::{PayloadError, ProposeError};

use crate::consuming::place_of;
use crate::member::Member;
use crate::peer_message::{HomeEffect, PeerMessage};
use crate::seam::Severity;
use crate::stream::MAX_BATCH_BYTES;

/// Deliveries that one answer to [`PeerMessage::DeliveriesAfter`] holds at most, and about how many bytes of them. The
/// first comes whatever its size.
const OUTSTANDING_LIMIT: usize = 256;
const OUTSTANDING_BYTES: usize = MAX_BATCH_BYTES;
/// Bytes of payloads of one group that wait for the host to take them. Batches beyond are dropped: their homes keep them
/// and send them again.
const REFUSED_BYTES: usize = 32 << 20;
/// The same for all groups together.
const ALL_REFUSED_BYTES: usize = 128 << 20;

/// A group that this member leads.
pub(crate) struct Leading {
    pub(crate) term: u64,
    /// The group's queues were compared with fresh metadata: from then on it takes in what homes send.
    adopted: bool,
    /// What this round's entry will hold; none while nothing was collected, since a member leads many groups.
    entry: Option<EntryBuilder>,
    /// Size of the last entry.
    size_hint: usize,
    /// Finished payloads that the host could not take yet.
    refused: VecDeque<Bytes>,
    refused_bytes: usize,
}

/// Groups led here, and who leads the others as far as their leaders said.
#[derive(Default)]
pub(crate) struct Leaderships {
    pub(crate) led: BTreeMap<GroupId, Leading>,
    pub(crate) announced: BTreeMap<GroupId, (MemberId, u64)>,
    dirty: Vec<GroupId>,
    /// Groups led here with payloads that the host could not take yet, and perhaps others.
    refused: BTreeSet<GroupId>,
    /// Groups led here that wait for fresh metadata before they take anything in.
    unadopted: BTreeSet<GroupId>,
    /// Groups led here whose runs are to be compared with all that the metadata had committed at that time.
    unswept: BTreeMap<GroupId, Instant>,
    /// Groups that this member came to lead in this round.
    news: Vec<GroupId>,
    /// The payload that deliveries were last read from, since those of one entry come in a row.
    last_payload: Option<(GroupId, u64, Bytes)>,
}

impl Leading {
    fn new(term: u64) -> Self {
        Self { term, adopted: false, entry: None, size_hint: 0, refused: VecDeque::new(), refused_bytes: 0 }
    }

    fn entry(&mut self) -> &mut EntryBuilder {
        let size = self.size_hint;
        self.entry.get_or_insert_with(|| EntryBuilder::with_capacity(size))
    }
}

impl Leaderships {
    /// This member does not lead the group any more.
    pub(crate) fn no_longer(&mut self, group: GroupId) {
        self.led.remove(&group);
        self.unadopted.remove(&group);
        self.unswept.remove(&group);
    }

    /// Indexes of the transient queues begin anew.
    pub(crate) fn forget_payload(&mut self) {
        self.last_payload = None;
    }

    /// Bytes of payloads that wait for the host to take them, of all groups.
    pub(crate) fn refused_bytes(&self) -> usize {
        let waiting = self.refused.iter().filter_map(|group| self.led.get(group));
        waiting.map(|leading| leading.refused_bytes).sum()
    }
}

impl<R: EntryReader> Member<R> {
    /// Takes a batch from a home of this group into the round's entry.
    pub(crate) fn take_commands(&mut self, group: GroupId, from: MemberId, batch: &Bytes) {
        if self.transient_group() == group {
            return self.transient_encoded(batch);
        }
        if !self.leaderships.led.contains_key(&group) {
            let leader = self.leaderships.announced.get(&group).map(|(leader, _)| *leader);
            return self.send(from, PeerMessage::NotLeading { group, leader });
        }
        // The run that sent it, which may be an earlier one than its member's present run.
        let origin = match Origin::of(batch) {
            Ok(origin) => origin,
            Err(error) => return self.malformed(group, from, &error),
        };
        if let Some(boot) = origin.map(|origin| origin.boot)
            && self.metadata().is_some_and(|meta| meta.has_ended(boot))
        {
            let effect = HomeEffect { effect: QueueEffect::Ended { boot }, content: None, copies: 0 };
            return self.send(from, PeerMessage::QueueEffect { group, effect });
        }
        if self.takes_no_more(group) {
            return;
        }
        let Some(leading) = self.leaderships.led.get_mut(&group).filter(|leading| leading.adopted) else { return };
        let pushed = if group == GroupId::META {
            leading.entry().push_encoded::<MetaCommand>(batch)
        } else {
            leading.entry().push_encoded::<QueueCommand>(batch)
        };
        if let Err(error) = pushed {
            return self.malformed(group, from, &error);
        }
        self.leaderships.dirty.push(group);
        self.bound_entry(group);
    }

    fn malformed(&mut self, group: GroupId, from: MemberId, error: &DecodeError) {
        self.event(Severity::Error, format!("member {from} sent a malformed batch for group {group}: {error}"));
    }

    /// Takes a batch of this member's own sessions.
    pub(crate) fn take_own_commands(&mut self, group: GroupId, batch: &Batch<QueueCommand>) {
        if self.transient_group() == group {
            return self.transient_batch(batch);
        }
        if self.leaderships.led.get(&group).is_some_and(|leading| leading.adopted) && !self.takes_no_more(group) {
            self.collect(group, batch);
        }
    }

    /// Takes a batch into the round's entry.
    fn collect(&mut self, group: GroupId, batch: &Batch<QueueCommand>) {
        if let Some(leading) = self.leaderships.led.get_mut(&group) {
            leading.entry().push(batch);
            self.leaderships.dirty.push(group);
            self.bound_entry(group);
        }
    }

    /// True while so much waits for the host that what homes send is dropped: they keep it, find out by the gap or by the
    /// silence, and send it again.
    fn takes_no_more(&self, group: GroupId) -> bool {
        let waiting = self.leaderships.led.get(&group).map_or(0, |leading| leading.refused_bytes);
        waiting >= REFUSED_BYTES || (waiting > 0 && self.flow.refused_bytes >= ALL_REFUSED_BYTES)
    }

    /// Takes a batch of this member's own requests to the metadata.
    pub(crate) fn take_own_meta_commands(&mut self, batch: &Batch<MetaCommand>) {
        if let Some(leading) = self.leaderships.led.get_mut(&GroupId::META) {
            leading.entry().push(batch);
            self.leaderships.dirty.push(GroupId::META);
        }
    }

    /// Proposes commands of the leader itself: idempotent and not numbered.
    pub(crate) fn propose_own(&mut self, group: GroupId, commands: Vec<QueueCommand>) {
        if !commands.is_empty() {
            self.collect(group, &Batch { origin: None, commands });
        }
    }

    fn bound_entry(&mut self, group: GroupId) {
        let full = |entry: &EntryBuilder| entry.len() >= MAX_BATCH_BYTES;
        if self.leaderships.led.get(&group).is_some_and(|leading| leading.entry.as_ref().is_some_and(full)) {
            self.propose_entry(group);
        }
    }

    /// Proposes what was collected in this round.
    pub(crate) fn propose_entries(&mut self) -> bool {
        let mut dirty = std::mem::take(&mut self.leaderships.dirty);
        dirty.sort_unstable();
        dirty.dedup();
        let any = !dirty.is_empty();
        for group in dirty {
            self.propose_entry(group);
        }
        any
    }

    fn propose_entry(&mut self, group: GroupId) {
        let time_ms = self.wall_ms;
        let Some(leading) = self.leaderships.led.get_mut(&group) else { return };
        if let Some(entry) = leading.entry.take().filter(|entry| !entry.is_empty()) {
            leading.size_hint = entry.len().min(2 * MAX_BATCH_BYTES);
            leading.refused_bytes += entry.len();
            leading.refused.push_back(entry.finish(time_ms));
        }
        self.propose_refused(group);
    }

    /// Proposes finished payloads in order, until the host takes no more.
    fn propose_refused(&mut self, group: GroupId) {
        let Some(host) = self.host.as_mut() else { return };
        let Some(leading) = self.leaderships.led.get_mut(&group) else { return };
        while let Some(payload) = leading.refused.pop_front() {
            match host.propose(group, payload.clone()) {
                Ok(_) => {
                    leading.refused_bytes -= payload.len();
                    self.metrics.proposals += 1;
                }
                Err(ProposeError::Busy) => {
                    leading.refused.push_front(payload);
                    self.leaderships.refused.insert(group);
                    return;
                }
                Err(_) => {
                    // No leader any more: homes send again to the next one.
                    leading.refused.clear();
                    leading.refused_bytes = 0;
                    return;
                }
            }
        }
    }

    /// Tries again what a host could not take.
    pub(crate) fn retry_proposals(&mut self) {
        for group in std::mem::take(&mut self.leaderships.refused) {
            self.propose_refused(group);
        }
    }

    /// The machine of a group has taken an entry in.
    pub(crate) fn applied(&mut self, group: GroupId, index: u64, leading: bool, effects: Vec<AnyEffect>) {
        if group == GroupId::META {
            return self.metadata_applied(index, leading, effects);
        }
        if !self.leaderships.led.contains_key(&group) {
            return;
        }
        self.end_late_runs(group, &effects);
        if !leading {
            return;
        }
        let waits = self.backup.gate.holds_back(group, self.now);
        for effect in effects {
            match effect {
                AnyEffect::Queue(effect) if waits => self.backup.gate.hold_back(group, index, effect),
                AnyEffect::Queue(effect) => self.route_effect(group, index, effect),
                AnyEffect::Meta(_) => {}
            }
        }
    }

    /// A batch of a run that has ended was on its way when the group was told: what it made ends too.
    fn end_late_runs(&mut self, group: GroupId, effects: &[AnyEffect]) {
        let Some(meta) = self.metadata() else { return };
        let ended = effects.iter().filter_map(|effect| match effect {
            AnyEffect::Queue(QueueEffect::Confirm { boot, .. }) => meta.has_ended(*boot).then_some(*boot),
            _ => None,
        });
        let commands = ended.map(|boot| QueueCommand::BootEnded { boot }).collect();
        self.propose_own(group, commands);
    }

    /// Lets an effect of the entry at `index` out to its home, or acts upon it.
    pub(crate) fn route_effect(&mut self, group: GroupId, index: u64, effect: QueueEffect) {
        let Some(boot) = effect.home() else {
            match effect {
                QueueEffect::QueueDeleted { queue } => self.forget_deleted_queue(queue),
                QueueEffect::QueueUnknown { queue } => self.queue_unknown(group, queue),
                _ => {}
            }
            return;
        };
        let home = if boot == self.boot { None } else { self.member_of_boot(boot) };
        if boot != self.boot && home.is_none() {
            return; // It asks for what it lacks when it is back.
        }
        let effect = self.without_what_is_too_much(effect, home);
        let copies = self.count_copies(group, index, &effect);
        let Some(effect) = self.with_content(group, effect) else { return };
        let effect = HomeEffect { copies, ..effect };
        match home {
            None => self.home_effect(group, effect),
            Some(member) => self.send(member, PeerMessage::QueueEffect { group, effect }),
        }
    }

    /// A delivery for which there is no room on the way is left in the journal. Its home learns its number, and asks when
    /// it has room.
    fn without_what_is_too_much(&mut self, effect: QueueEffect, home: Option<MemberId>) -> QueueEffect {
        let QueueEffect::Deliver { delivery: Delivery { queue, consumer, number, size, .. } } = effect else {
            return effect;
        };
        let room = match home {
            Some(member) => self.flow.may_push(member, size as usize),
            None => self.wants_deliveries(place_of(&consumer).0),
        };
        if room { effect } else { QueueEffect::ConsumerAt { consumer, queue, last: number } }
    }

    /// Reads the message of an effect that brings one. None for a delivery that cannot be read. A reply leaves in any
    /// case, since somebody waits for it.
    fn with_content(&mut self, group: GroupId, effect: QueueEffect) -> Option<HomeEffect> {
        match effect {
            QueueEffect::Deliver { delivery } => {
                let content = self.content(group, delivery.message)?;
                Some(HomeEffect { effect, content: Some(content), copies: 0 })
            }
            QueueEffect::Reply { boot, seq, reply: QueueReply::Got { delivery, remaining } } => {
                let left = self.reply_without_message(group, delivery);
                let content = if left.is_none() { self.content(group, delivery.message) } else { None };
                let reply = left.unwrap_or(QueueReply::Got { delivery, remaining });
                Some(HomeEffect { effect: QueueEffect::Reply { boot, seq, reply }, content, copies: 0 })
            }
            _ => Some(HomeEffect { effect, content: None, copies: 0 }),
        }
    }

    /// What is left to say to a get whose message has gone since: its queue was deleted, or its channel ended and
    /// another consumer took the message. None while the message is held for it.
    fn reply_without_message(&self, group: GroupId, delivery: Delivery) -> Option<QueueReply> {
        let machine = self.queue_machine(group)?;
        let Some(held) = machine.deliveries_after(delivery.queue, delivery.consumer, 0, 1) else {
            let here = machine.stats(delivery.queue).is_some();
            return Some(if here { QueueReply::Empty } else { QueueReply::NoSuchQueue });
        };
        held.deliveries.is_empty().then_some(QueueReply::Empty)
    }

    fn content(&mut self, group: GroupId, at: MessageRef) -> Option<Message> {
        let cached = self.leaderships.last_payload.as_ref();
        if cached.is_none_or(|(in_group, index, _)| *in_group != group || *index != at.index) {
            let payload = if group == self.transient_group() {
                self.transient_payload(at.index).ok_or_else(|| "it is gone".to_owned())
            } else {
                let host = self.host.as_mut()?;
                let payload = host.payload(group, at.index);
                if let Err(PayloadError::Read(error)) = &payload {
                    host.payload_lost(group, at.index, &error.to_string());
                }
                payload.map_err(|error| error.to_string())
            };
            match payload {
                Ok(payload) => self.leaderships.last_payload = Some((group, at.index, payload)),
                Err(error) => {
                    self.event(
                        Severity::Error,
                        format!("message {} of group {group} cannot be read: {error}", at.index),
                    );
                    return None;
                }
            }
        }
        let (_, _, payload) = self.leaderships.last_payload.as_ref()?;
        match message_at(payload, at.sub) {
            Ok(message) => Some(message),
            Err(error) => {
                self.event(Severity::Error, format!("message {} of group {group} is damaged: {error}", at.index));
                None
            }
        }
    }

    /// Another member leads the group, or this one does.
    pub(crate) fn leader_changed(&mut self, group: GroupId, term: u64, me_leading: bool) {
        self.copies.stop_leading(group);
        self.backup.gate.forget(group);
        if !me_leading {
            self.stop_moving(group);
            return self.leaderships.no_longer(group);
        }
        self.leaderships.led.insert(group, Leading::new(term));
        self.record_failover(group);
        if group == GroupId::META {
            self.began_to_lead_metadata(term);
            return self.serve_group(group);
        }
        self.leaderships.unadopted.insert(group);
        self.leaderships.unswept.insert(group, self.now);
        self.watch_copies(group);
        self.adopt_groups();
    }

    /// From now on this leader takes in what homes send, and says so.
    fn serve_group(&mut self, group: GroupId) {
        let me = self.me();
        let Some(leading) = self.leaderships.led.get_mut(&group) else { return };
        leading.adopted = true;
        let term = leading.term;
        self.leaderships.news.push(group);
        self.group_led_by(group, me, term);
        self.record_if_news(group);
    }

    /// Compares groups that this member has come to lead with metadata that is known to be fresh. By metadata of some
    /// time ago a queue could be missing here into which a home publishes already, and a run that has just been
    /// registered would count as one that has ended: its living sessions would lose all that they hold.
    pub(crate) fn adopt_groups(&mut self) {
        if (self.leaderships.unadopted.is_empty() && self.leaderships.unswept.is_empty()) || !self.lease_fresh() {
            return;
        }
        for group in std::mem::take(&mut self.leaderships.unadopted) {
            self.adopt_queues(group);
            self.serve_group(group);
        }
        let (now, applied) = (self.now, self.meta_applied);
        let unswept = std::mem::take(&mut self.leaderships.unswept);
        let (ready, waiting): (BTreeMap<_, _>, BTreeMap<_, _>) =
            unswept.into_iter().partition(|(_, since)| self.lease.fresh_since(*since, now, applied));
        self.leaderships.unswept = waiting;
        for group in ready.into_keys() {
            self.end_unknown_runs(group);
        }
    }

    /// The metadata may have passed over changes: every group led here is compared with it again.
    pub(crate) fn adopt_again(&mut self) {
        let led = self.leaderships.led.keys().copied().filter(|group| *group != GroupId::META);
        let led: Vec<GroupId> = led.collect();
        for group in led {
            self.adopt_queues(group);
            self.leaderships.unswept.insert(group, self.now);
        }
    }

    /// What a new leader owes before it takes anything in: the queues that the metadata places in the group exist, and
    /// those that are gone leave the metadata.
    fn adopt_queues(&mut self, group: GroupId) {
        let commands = self.queues_to_create(group);
        let Some(machine) = self.queue_machine(group) else { return };
        let deleted = machine.state_enter().into_iter().filter_map(|effect| match effect {
            QueueEffect::QueueDeleted { queue } => Some(queue),
            _ => None,
        });
        let deleted: Vec<QueueId> = deleted.collect();
        self.propose_own(group, commands);
        for queue in deleted {
            self.forget_deleted_queue(queue);
        }
    }

    /// Runs that the metadata does not show leave nothing behind. Each had been shown before it said anything to a
    /// group, so this is asked only of metadata that shows all which was committed when the group's state was.
    fn end_unknown_runs(&mut self, group: GroupId) {
        let Some(machine) = self.queue_machine(group) else { return };
        let ended = machine.boots().into_iter().filter(|boot| self.boot_has_ended(*boot));
        let commands = ended.map(|boot| QueueCommand::BootEnded { boot }).collect();
        self.propose_own(group, commands);
    }

    /// A run has ended: every group led here that knows it is told.
    pub(crate) fn propose_boot_ended(&mut self, boot: BootId) {
        let groups: Vec<GroupId> = self.leaderships.led.keys().copied().collect();
        for group in groups {
            if self.queue_machine(group).is_some_and(|machine| machine.boots().contains(&boot)) {
                self.propose_own(group, vec![QueueCommand::BootEnded { boot }]);
            }
        }
        self.transient_boot_ended(boot);
    }

    /// A home asks for all that it is owed by a group.
    pub(crate) fn attach(&mut self, group: GroupId, boot: BootId, from: MemberId) {
        if group == self.transient_group() {
            self.owe(group, boot);
            return self.send_or_take(from, PeerMessage::Attached { group, term: 0 });
        }
        let Some((term, adopted)) = self.leaderships.led.get(&group).map(|leading| (leading.term, leading.adopted))
        else {
            let leader = self.leaderships.announced.get(&group).map(|(leader, _)| *leader);
            return self.send_or_take(from, PeerMessage::NotLeading { group, leader });
        };
        if !adopted || self.gate_is_closed() {
            return; // The home hears of this leadership once it begins to serve, and asks again.
        }
        let now = self.now;
        if !self.host.as_ref().is_some_and(|host| host.may_emit(group, now)) {
            return; // The home asks again, and by then the majority has answered or there is another leader.
        }
        if group == GroupId::META {
            self.owe_metadata(boot);
        } else {
            self.owe(group, boot);
        }
        self.send_or_take(from, PeerMessage::Attached { group, term });
    }

    fn owe(&mut self, group: GroupId, boot: BootId) {
        let owed = self.queue_machine(group).map(|machine| machine.state_enter()).unwrap_or_default();
        // State says up to where a home's commands are in, not where in the log: all of it is at or below this.
        let index = self.host.as_ref().map_or(0, |host| host.applied(group));
        for effect in owed.into_iter().filter(|effect| effect.home() == Some(boot)) {
            self.route_effect(group, index, effect);
        }
    }

    /// A home asks for deliveries that it may have missed.
    pub(crate) fn send_outstanding(
        &mut self,
        group: GroupId,
        queue: QueueId,
        consumer: ConsumerId,
        after: u64,
        from: MemberId,
    ) {
        let no_room = from != self.me() && !self.flow.may_push(from, 0);
        if no_room || self.backup.gate.holds_back(group, self.now) {
            return; // It asks again.
        }
        let serves = group == self.transient_group() || self.leaderships.led.contains_key(&group);
        let Some(machine) = self.queue_machine(group).filter(|_| serves) else { return };
        let Some(outstanding) = machine.deliveries_after(queue, consumer, after, OUTSTANDING_LIMIT) else { return };
        let mut through = outstanding.through;
        let mut deliveries: Vec<HomeEffect> = Vec::new();
        let mut bytes = 0;
        for delivery in outstanding.deliveries {
            bytes += delivery.size as usize;
            if bytes > OUTSTANDING_BYTES && !deliveries.is_empty() {
                // The home asks for the rest from here.
                through = delivery.number - 1;
                break;
            }
            let Some(effect) = self.with_content(group, QueueEffect::Deliver { delivery }) else { return };
            deliveries.push(effect);
        }
        self.flow.may_push(from, bytes);
        self.send_or_take(from, PeerMessage::Outstanding { group, queue, consumer, through, deliveries });
    }

    /// Tells everybody which groups this member has come to lead.
    pub(crate) fn announce(&mut self) {
        let me = self.me();
        let led = |group: GroupId| Some((group, (me, self.leaderships.led.get(&group)?.term)));
        let groups: Vec<_> = self.leaderships.news.iter().filter_map(|group| led(*group)).collect();
        self.leaderships.news.clear();
        if groups.is_empty() {
            return;
        }
        let members: Vec<MemberId> = self.peers.iter().map(|(member, _)| member).collect();
        for member in members {
            self.send(member, PeerMessage::Leaders { groups: groups.clone() });
        }
    }

    /// Tells one member, which has just been linked, who leads what.
    pub(crate) fn announce_all_to(&mut self, member: MemberId) {
        let known = self.leaderships.announced.iter();
        let groups: Vec<_> = known.map(|(group, leader)| (*group, *leader)).collect();
        if !groups.is_empty() {
            self.send(member, PeerMessage::Leaders { groups });
        }
        self.tell_all_in_sync_to(member);
    }

    /// The machine of a queue group that has a replica here, or of the transient queues.
    pub(crate) fn queue_machine(&self, group: GroupId) -> Option<&holdfast_queue::queue::QueueMachine> {
        if group == self.transient_group() {
            return Some(self.transient.machine());
        }
        self.host.as_ref()?.machine(group).and_then(AnyMachine::queue)
    }
}
