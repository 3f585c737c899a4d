//! What this member asks of groups on behalf of its sessions and itself, and who waits for the answers.

use holdfast_journal::EntryReader;
use holdfast_queue::ids::{BootId, GroupId, MemberId, QueueId};
use holdfast_queue::meta::{MetaCommand, MetaEffect, MetaReply};
use holdfast_queue::queue::{QueueCommand, QueueEffect, QueueReply};
use holdfast_session::ChannelId;

use crate::in_place;
use crate::member::Member;
use crate::peer_message::{HomeEffect, PeerMessage};
use crate::seam::{AdminRequestId, ConnId, LinkId, Severity};
use crate::stream::{Attachment, HomeStream};

/// A command of a session that is to be durable: where to report it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tracked {
    /// A publish: the session's number of it, its size, and whether its client reads confirms.
    Publish { conn: ConnId, channel: ChannelId, seq: u64, size: u32, confirm: bool },
    /// A settlement: its number in [`crate::clients::Channel::settles`].
    Settle { conn: ConnId, channel: ChannelId, number: u64 },
}

/// Who waits for the answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Waiter {
    /// Nobody any more, or nobody ever.
    Nobody,
    /// A channel's call; `then` says how to go on.
    Call {
        conn: ConnId,
        channel: ChannelId,
        then: Then,
    },
    Admin(AdminRequestId),
    /// A step of a restore in place.
    InPlace {
        request: AdminRequestId,
        then: in_place::Then,
    },
    /// The bootstrap of this member's cluster.
    Bootstrap,
    /// This member's run is being registered.
    BootStarted(BootId),
    /// A blank member on this link is being admitted.
    Admit(LinkId),
}

/// A declare that may have to be repeated, since it met a queue on its way out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Declaration {
    pub(crate) name: String,
    pub(crate) exclusive: bool,
    pub(crate) command: MetaCommand,
    /// How often it may still be repeated.
    pub(crate) repeats: u8,
}

/// What an answer means to the call that waits for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    /// Nothing more to do: declare and delete of exchanges, bindings.
    Done,
    /// A queue was declared.
    Declare(Box<Declaration>),
    /// The queue was there when it was declared: its counts.
    Present {
        declaration: Box<Declaration>,
        queue: QueueId,
    },
    /// The metadata has let go of what its group had deleted: declare again.
    Again(Box<Declaration>),
    /// Counts for `declare-ok` of this name.
    Counts {
        name: String,
    },
    Purge {
        name: String,
    },
    /// The queue's own machine has deleted it (or refused).
    Delete {
        name: String,
        queue: QueueId,
    },
    /// The metadata has let the queue go, with so many messages.
    Deleted {
        messages: u64,
    },
    Consume {
        name: String,
        consumer: u32,
    },
    Cancel {
        consumer: u32,
    },
    Get {
        name: String,
    },
}

impl Then {
    /// The queue that the call names, for the texts of refusals.
    pub(crate) fn queue_name(&self) -> &str {
        match self {
            Self::Declare(declaration) | Self::Present { declaration, .. } | Self::Again(declaration) => {
                &declaration.name
            }
            Self::Counts { name }
            | Self::Purge { name }
            | Self::Delete { name, .. }
            | Self::Consume { name, .. }
            | Self::Get { name } => name,
            Self::Done | Self::Deleted { .. } | Self::Cancel { .. } => "",
        }
    }
}

/// Commands to a queue group.
pub(crate) type QueueStream = HomeStream<QueueCommand, Tracked, Waiter>;
/// Commands to group 0.
pub(crate) type MetaStream = HomeStream<MetaCommand, Tracked, Waiter>;

impl<R: EntryReader> Member<R> {
    fn stream(&mut self, group: GroupId) -> &mut QueueStream {
        self.dirty_streams.insert(group);
        let announced = self.leaderships.announced.get(&group).copied();
        let leader = match self.streams.contains(group) {
            true => None,
            false => self.transient_owner(group).map(|owner| (owner, 0)).or(announced),
        };
        self.streams.entry(group, || {
            let mut stream = QueueStream::default();
            if let Some((leader, term)) = leader {
                stream.led_by(leader, term);
            }
            stream
        })
    }

    /// Sends a command that nobody waits for.
    pub(crate) fn tell(&mut self, group: GroupId, command: QueueCommand) {
        self.stream(group).push(command, 64, None);
    }

    /// The same, for a command that carries a message.
    pub(crate) fn tell_sized(&mut self, group: GroupId, command: QueueCommand, size: usize) {
        self.stream(group).push(command, size, None);
    }

    /// Sends a command whose end is reported to its channel, once it is on so many disks (0 and 1: on a majority).
    pub(crate) fn track(&mut self, group: GroupId, command: QueueCommand, size: usize, tracked: Tracked, copies: u8) {
        self.stream(group).push_tracked(command, size, tracked, copies);
    }

    /// Sends a request.
    pub(crate) fn ask(&mut self, group: GroupId, command: QueueCommand, waiter: Waiter) {
        self.stream(group).push(command, 128, Some(waiter));
    }

    /// Sends a request to the metadata.
    pub(crate) fn ask_metadata(&mut self, command: MetaCommand, waiter: Waiter) {
        self.meta_stream.push(command, 256, Some(waiter));
        self.meta_dirty = true;
    }

    /// Sends what the streams hold; true if anything went out.
    pub(crate) fn send_streams(&mut self) -> bool {
        let dirty = std::mem::take(&mut self.dirty_streams);
        let any = !dirty.is_empty() || self.meta_dirty;
        for group in dirty {
            self.send_stream(group);
        }
        if std::mem::take(&mut self.meta_dirty) {
            self.send_meta_stream();
        }
        any
    }

    fn send_stream(&mut self, group: GroupId) {
        let (boot, now, me) = (self.boot, self.now, self.me());
        let has_consumers = self.consumes_from(group);
        let Some(stream) = self.streams.get_mut(group) else { return };
        let Some((leader, _)) = stream.leader() else { return };
        if leader != me && !self.peers.is_reachable(leader) {
            return;
        }
        if stream.begin_attach(has_consumers, now) {
            return self.send_or_take(leader, PeerMessage::Attach { group, boot });
        }
        while let Some(batch) = self.streams.get_mut(group).and_then(|stream| stream.next_batch(boot, now)) {
            self.metrics.commands += batch.commands.len() as u64;
            if leader == me {
                self.take_own_commands(group, &batch);
            } else {
                self.send(leader, PeerMessage::Commands { group, batch: batch.to_bytes() });
            }
        }
    }

    fn send_meta_stream(&mut self) {
        let (boot, now, me, group) = (self.boot, self.now, self.me(), GroupId::META);
        let Some((leader, _)) = self.meta_stream.leader() else { return };
        if leader != me && !self.peers.is_reachable(leader) {
            return;
        }
        if self.meta_stream.begin_attach(false, now) {
            return self.send_or_take(leader, PeerMessage::Attach { group, boot });
        }
        while let Some(batch) = self.meta_stream.next_batch(boot, now) {
            if leader == me {
                self.take_own_meta_commands(&batch);
            } else {
                self.send(leader, PeerMessage::Commands { group, batch: batch.to_bytes() });
            }
        }
    }

    /// A group has a leader that serves.
    pub(crate) fn group_led_by(&mut self, group: GroupId, leader: MemberId, term: u64) {
        let known = self.leaderships.announced.get(&group);
        if known.is_some_and(|(_, known)| *known > term) {
            return;
        }
        if self.leaderships.announced.insert(group, (leader, term)) != Some((leader, term)) {
            self.leader_announced();
        }
        if group == GroupId::META {
            if self.meta_stream.led_by(leader, term) {
                self.meta_dirty = true;
            }
            self.lease.hurry();
        } else if self.streams.get_mut(group).is_some_and(|stream| stream.led_by(leader, term)) {
            self.dirty_streams.insert(group);
        }
    }

    /// The member that was asked does not lead: the leader will say so itself, but it may be known already.
    pub(crate) fn not_leading(&mut self, group: GroupId, from: MemberId, _leader: Option<MemberId>) {
        if group == GroupId::META {
            if self.meta_stream.leader().is_some_and(|(leader, _)| leader == from) {
                self.meta_stream.detach();
            }
        } else if let Some(stream) = self.streams.get_mut(group)
            && stream.leader().is_some_and(|(leader, _)| leader == from)
        {
            stream.detach();
        }
    }

    /// Messages of this member may be lost: everything that it leads is asked anew.
    pub(crate) fn detach_from(&mut self, member: MemberId) {
        let dirty = &mut self.dirty_streams;
        self.streams.wake(|group, stream| {
            let concerned = stream.leader().is_some_and(|(leader, _)| leader == member);
            if concerned {
                stream.detach();
                dirty.insert(group);
            }
            concerned
        });
        if self.meta_stream.leader().is_some_and(|(leader, _)| leader == member) {
            self.meta_stream.detach();
            self.meta_dirty = true;
            self.lease.hurry();
        }
    }

    /// The leader has sent all that it owed.
    pub(crate) fn attached(&mut self, group: GroupId, from: MemberId, term: u64) {
        let now = self.now;
        if group == GroupId::META {
            if self.meta_stream.leader() == Some((from, term)) {
                self.meta_stream.attached(term, now);
                self.meta_dirty = true;
            }
        } else if let Some(stream) = self.streams.get_mut(group)
            && stream.leader() == Some((from, term))
        {
            stream.attached(term, now);
            self.dirty_streams.insert(group);
        }
    }

    /// Asks again where an answer is overdue.
    pub(crate) fn tick_streams(&mut self) {
        let (now, may_take) = (self.now, self.lease_fresh());
        let (metrics, dirty) = (&mut self.metrics, &mut self.dirty_streams);
        self.streams.visit_busy(|group, stream| {
            if stream.check_overdue(now) || (may_take && stream.ask_for_missed()) {
                metrics.resent += 1;
            }
            if stream.attachment() == Attachment::Detached || stream.offer_again(now) {
                dirty.insert(group);
            }
        });
        if self.meta_stream.check_overdue(now) || self.meta_stream.attachment() == Attachment::Detached {
            self.meta_dirty = true;
        }
    }

    /// Takes in what a group says to this home.
    pub(crate) fn home_effect(&mut self, group: GroupId, effect: HomeEffect) {
        let now = self.now;
        if effect.effect.home() != Some(self.boot) {
            return; // For an earlier run of this member.
        }
        match effect.effect {
            QueueEffect::Confirm { seq, .. } => {
                let Some(stream) = self.streams.get_mut(group) else { return };
                for tracked in stream.confirmed(seq, effect.copies, now) {
                    self.tracked_ended(tracked);
                }
            }
            QueueEffect::SequenceGap { expected, .. } => {
                let Some(stream) = self.streams.get_mut(group) else { return };
                self.metrics.resent += 1;
                if !stream.gap(expected, now) {
                    self.lost_stream(group, expected);
                }
                self.dirty_streams.insert(group);
            }
            QueueEffect::Ended { .. } => self.declared_dead(),
            // As with deliveries; it is asked for again once the lease is fresh.
            QueueEffect::Reply { reply: QueueReply::Got { .. }, .. } if !self.lease_fresh() => {
                if let Some(stream) = self.streams.get_mut(group) {
                    stream.missed();
                }
            }
            QueueEffect::Reply { seq, reply, .. } => {
                let waiter = self.streams.get_mut(group).and_then(|stream| stream.replied(seq, now));
                if let Some(waiter) = waiter {
                    self.answered(waiter, reply, effect.content);
                }
            }
            QueueEffect::Deliver { delivery } => {
                if let Some(content) = effect.content {
                    self.deliver(group, delivery, content);
                }
            }
            QueueEffect::ConsumerCancelled { consumer, .. } => self.consumer_cancelled(consumer),
            QueueEffect::ConsumerAt { consumer, queue, last } => self.consumer_at(group, consumer, queue, last),
            QueueEffect::QueueDeleted { .. } | QueueEffect::QueueUnknown { .. } => {}
        }
    }

    /// The group expects a command that was confirmed before and is not kept: its state is not the one that confirmed.
    /// Nothing more can be said to it in this run, so the run ends with all its sessions, and the member goes on in
    /// another.
    fn lost_stream(&mut self, group: GroupId, expected: u64) {
        self.event(Severity::Error, format!("group {group} lost commands from {expected} on that it had confirmed"));
        self.declared_dead();
    }

    /// A publish or settlement is durable.
    pub(crate) fn tracked_ended(&mut self, tracked: Tracked) {
        match tracked {
            Tracked::Publish { conn, channel, seq, size, .. } => self.publish_ended(conn, channel, seq, size),
            Tracked::Settle { conn, channel, number } => {
                let Some(client) = self.clients.get_mut(&conn) else { return };
                let open = client.channels.get_mut(&channel).map(|open| &mut open.settles);
                let settles = open.or(client.failed.get_mut(&channel).map(|failed| &mut failed.settles));
                if let Some(settles) = settles {
                    settles.end_part(number);
                    self.barriers.insert(conn);
                }
            }
        }
    }

    /// Lets barriers go that this round's confirms have met.
    pub(crate) fn check_all_barriers(&mut self) -> bool {
        let conns = std::mem::take(&mut self.barriers);
        let any = !conns.is_empty();
        for conn in conns {
            self.check_barriers(conn);
        }
        any
    }

    /// The group is gone with all its queues: publishes to it are as good as dropped, requests find nothing.
    pub(crate) fn end_stream(&mut self, group: GroupId) {
        self.leaderships.announced.remove(&group);
        let Some(stream) = self.streams.remove(group) else { return };
        let (tracked, waiters) = stream.into_unfinished();
        for tracked in tracked {
            self.tracked_ended(tracked);
        }
        for waiter in waiters {
            self.answered(waiter, QueueReply::NoSuchQueue, None);
        }
    }

    /// Takes in what group 0 says to this member, once the member itself has applied as much.
    pub(crate) fn metadata_effect(&mut self, effect: MetaEffect, index: u64) {
        if index > self.meta_applied {
            self.early_meta_effects.push((index, effect));
            return;
        }
        let now = self.now;
        match effect {
            MetaEffect::Confirm { boot, seq } if boot == self.boot => {
                self.meta_stream.confirmed(seq, 0, now);
            }
            MetaEffect::SequenceGap { boot, expected } if boot == self.boot => {
                if !self.meta_stream.gap(expected, now) {
                    self.lost_stream(GroupId::META, expected);
                }
                self.meta_dirty = true;
            }
            MetaEffect::Ended { boot } if boot == self.boot => self.declared_dead(),
            MetaEffect::Reply { boot, seq, reply } if boot == self.boot => {
                if let Some(waiter) = self.meta_stream.replied(seq, now) {
                    self.metadata_answered(waiter, reply);
                }
            }
            _ => {}
        }
    }

    /// Goes on with answers that came before the change they speak of.
    pub(crate) fn release_early_meta_effects(&mut self) {
        let applied = self.meta_applied;
        let early = std::mem::take(&mut self.early_meta_effects);
        let (ready, early): (Vec<_>, Vec<_>) = early.into_iter().partition(|(index, _)| *index <= applied);
        self.early_meta_effects = early;
        for (index, effect) in ready {
            self.metadata_effect(effect, index);
        }
    }

    fn metadata_answered(&mut self, waiter: Waiter, reply: MetaReply) {
        match waiter {
            // What the metadata answers to a step of a restore is the answer to its request.
            Waiter::Nobody | Waiter::InPlace { .. } => {}
            Waiter::Call { conn, channel, then } => self.metadata_call_answered(conn, channel, then, reply),
            Waiter::Admin(request) => self.admin_answered(request, reply),
            Waiter::Bootstrap => self.bootstrap_answered(reply),
            Waiter::BootStarted(boot) => self.boot_registered(boot, reply),
            Waiter::Admit(link) => self.admitted(link, reply),
        }
    }

    fn answered(&mut self, waiter: Waiter, reply: QueueReply, content: Option<holdfast_queue::codec::Message>) {
        match waiter {
            Waiter::Call { conn, channel, then } => self.call_answered(conn, channel, then, reply, content),
            Waiter::InPlace { request, then } => self.restore_answered(request, then, reply),
            _ => {}
        }
    }

    /// Bytes of commands that groups have not taken in yet.
    pub(crate) fn retained_bytes(&self) -> usize {
        self.streams.busy().map(|(_, stream)| stream.retained_bytes()).sum()
    }
}
