//! This member's replicas: which ones the metadata wants here, which ones are to go, and which ones are damaged.
//!
//! A replica is named by its member and its generation there. Once the metadata neither shows it in the group nor wants
//! it, it is out for good: it is destroyed, and if the member is to have a replica of the group again, that is another
//! one, which knows nothing and has promised nothing. A damaged replica is left as it is until the group has let it go,
//! so that its disk can still be looked at as long as it may be needed.

use std::collections::BTreeMap;

use holdfast_journal::EntryReader;
use holdfast_queue::AnyMachine;
use holdfast_queue::ids::{GroupId, Incarnation, MemberId, ReplicaId};
use holdfast_queue::meta::{GroupInfo, MetaCommand, MetaMachine};
use holdfast_queue::queue::QueueMachine;
use holdfast_queue::time::{Duration, Instant};
use holdfast_replica::{GroupBirth, group_key};

use crate::join::AfterIdentity;
use crate::member::Member;
use crate::peer_message::PeerMessage;
use crate::requests::Waiter;
use crate::seam::Severity;

/// A damaged replica asks for a successor this often at most. A replica that is damaged again and again by its own state
/// would otherwise be copied without end.
const RENEW_EVERY: Duration = Duration::from_secs(10);
/// Looked at this often.
const REPAIR_EVERY: Duration = Duration::from_millis(500);

/// Damaged replicas of this member.
#[derive(Default)]
pub(crate) struct Repairs {
    next: Instant,
    asked: BTreeMap<GroupId, Instant>,
    /// For replicas that cannot say which one they are, or are not there although they may have been: their successor has
    /// a generation above this.
    floors: BTreeMap<GroupId, u32>,
    /// What a forgetful disk may have lost is known.
    recalled: bool,
}

impl<R: EntryReader> Member<R> {
    /// Makes and destroys this member's replica of a group as the metadata wants it, but only by metadata that is known to
    /// be fresh: after a restart it may show a group whose replica here was destroyed already, and whose chosen leader
    /// would lead its first term again with another log; or not yet show a replica that was made.
    pub(crate) fn tend_replica(&mut self, group: GroupId) {
        let me = self.me();
        let Some(info) = self.metadata().and_then(|meta| meta.group(group)) else { return };
        let Some(host) = self.host.as_ref() else { return };
        let here = host.generation(group);
        let known = here.flatten().map(|generation| ReplicaId { member: me, generation });
        if group == GroupId::META
            || (here.is_none() && !info.concerns(me))
            || known.is_some_and(|replica| info.knows(replica))
        {
            return;
        }
        if !self.lease_fresh() {
            self.births_deferred = true;
            return;
        }
        let info = info.clone();
        self.recall();
        match (here, known) {
            (None, _) if self.repairs.floors.contains_key(&group) => {
                if !self.is_replaceable(group, &info) {
                    return;
                }
                self.repairs.floors.remove(&group);
            }
            (None, _) => {}
            (Some(_), Some(replica)) => {
                self.event(Severity::Info, format!("group {group} has let replica {replica} go: it is destroyed"));
                self.destroy_replica(group, info.incarnation);
            }
            (Some(_), None) if self.is_replaceable(group, &info) => self.destroy_replica(group, info.incarnation),
            (Some(_), None) => return,
        }
        self.make_replica(group, info);
    }

    /// On a disk that has lost what nobody can name: every replica that is not here, and by fresh metadata is this
    /// member's, may have been here, may have voted and acknowledged, and may have led. None is made again as what it
    /// was; a successor is asked for. What the metadata comes to want later was never here.
    fn recall(&mut self) {
        if !self.identity.forgetful || self.repairs.recalled {
            return;
        }
        let (Some(meta), Some(host)) = (self.metadata(), self.host.as_ref()) else { return };
        let me = self.me();
        let missing = |(group, info): &(GroupId, &GroupInfo)| {
            *group != GroupId::META && info.concerns(me) && host.key(*group).is_none()
        };
        let floors: Vec<(GroupId, u32)> =
            meta.groups().filter(missing).map(|(group, info)| (group, info.last_generation)).collect();
        self.repairs.recalled = true;
        self.repairs.floors.extend(floors);
    }

    /// A damaged replica that cannot say which one it is can go when the group has none of this member's any more, and
    /// wants one that was thought of later.
    fn is_replaceable(&self, group: GroupId, info: &GroupInfo) -> bool {
        let me = self.me();
        let Some(floor) = self.repairs.floors.get(&group) else { return false };
        let wanted = info.target.replica_on(me);
        // Its successor may be in the group already, as a learner that nobody has heard of yet.
        let listed = info.replicas().any(|replica| replica.member == me && Some(replica) != wanted);
        !listed && wanted.is_none_or(|replica| replica.generation > *floor)
    }

    fn make_replica(&mut self, group: GroupId, info: GroupInfo) {
        let me = self.me();
        let listed = info.replicas().find(|replica| replica.member == me);
        let wanted = info.target.replica_on(me);
        let Some(replica) = wanted.or(listed) else { return };
        if listed.is_some_and(|listed| listed != replica) {
            return; // The group still counts on the one before.
        }
        let Some(host) = self.host.as_mut() else { return };
        let key = group_key(group, info.incarnation);
        let machine = AnyMachine::Queue(QueueMachine::new());
        let members = |replicas: &[ReplicaId]| replicas.iter().map(|replica| replica.member).collect();
        let made = if info.changed_at == 0 && listed.is_some() {
            let (voters, learners) = (members(&info.voters), members(&info.learners));
            host.create_group(GroupBirth { key, voters, learners, leader: Some(info.first_leader), machine }, self.now)
        } else {
            // What the founders were is in the group's log, which the leader sends.
            host.join_group(key, replica.generation, machine, self.now)
        };
        if let Err(error) = made {
            self.event(Severity::Error, format!("group {group} cannot be made: {error}"));
        }
    }

    /// Makes up for births and ends that waited for fresh metadata.
    pub(crate) fn tend_deferred_replicas(&mut self) {
        if !self.births_deferred || self.meta_replay_until.is_some() || !self.lease_fresh() {
            return;
        }
        self.births_deferred = false;
        let groups: Vec<GroupId> =
            self.metadata().map(|meta| meta.groups().map(|(group, _)| group).collect()).unwrap_or_default();
        for group in groups {
            self.tend_replica(group);
        }
    }

    pub(crate) fn destroy_replica(&mut self, group: GroupId, incarnation: Incarnation) {
        if let Some(host) = self.host.as_mut() {
            host.destroy_group(group_key(group, incarnation));
        }
        self.leaderships.no_longer(group);
        self.copies.stop_leading(group);
        self.ready_at.remove(&group);
        self.repairs.asked.remove(&group);
        self.repairs.floors.remove(&group);
    }

    /// Asks for successors of damaged replicas.
    pub(crate) fn tend_damaged(&mut self) {
        if self.now < self.repairs.next || self.host.is_none() {
            return;
        }
        self.repairs.next = self.now + REPAIR_EVERY;
        if self.identity.forgetful && self.lease_fresh() {
            self.recall();
            self.forget_nothing_more();
        }
        let Some(host) = self.host.as_ref() else { return };
        let mut damaged: Vec<GroupId> = host.quarantined_groups().collect();
        damaged.extend(self.repairs.floors.keys().filter(|group| host.key(**group).is_none()));
        if self.is_metadata_lost() && host.key(GroupId::META).is_none() {
            damaged.push(GroupId::META);
        }
        for group in damaged {
            if group == GroupId::META {
                self.report_damaged_metadata();
            } else {
                self.renew_replica(group);
            }
        }
    }

    /// Once all that may have been lost has a successor, or is not wanted any more, the disk is like any other.
    fn forget_nothing_more(&mut self) {
        let me = self.me();
        let (Some(meta), Some(host)) = (self.metadata(), self.host.as_ref()) else { return };
        let open =
            |group: &GroupId| host.key(*group).is_none() && meta.group(*group).is_some_and(|info| info.concerns(me));
        if self.repairs.recalled && !self.repairs.floors.keys().any(open) {
            self.identity.forgetful = false;
            self.write_identity(AfterIdentity::Nothing);
        }
    }

    /// True if this member's replica of group 0 is damaged, or may be among what the disk has lost.
    pub(crate) fn is_metadata_lost(&self) -> bool {
        let Some(host) = self.host.as_ref() else { return false };
        host.is_quarantined(GroupId::META) || (self.identity.forgetful && host.key(GroupId::META).is_none())
    }

    fn renew_replica(&mut self, group: GroupId) {
        let (now, me) = (self.now, self.me());
        if !self.lease_fresh() {
            return;
        }
        let Some(info) = self.metadata().and_then(|meta| meta.group(group)).cloned() else { return };
        let known = self.host.as_ref().and_then(|host| host.generation(group)).flatten();
        let damaged = match known {
            Some(generation) => ReplicaId { member: me, generation },
            None => {
                let floor = *self.repairs.floors.entry(group).or_insert(info.last_generation);
                match info.target.replica_on(me).filter(|replica| replica.generation <= floor) {
                    Some(replica) => replica,
                    None => return self.tend_replica(group),
                }
            }
        };
        let asked = self.repairs.asked.get(&group).is_some_and(|at| now.since(*at) < RENEW_EVERY);
        if info.target.replica_on(me) == Some(damaged) && !asked {
            self.repairs.asked.insert(group, now);
            self.event(
                Severity::Warning,
                format!("replica {damaged} of group {group} is damaged: it asks to be replaced"),
            );
            self.ask_metadata(MetaCommand::RenewReplica { group, replica: damaged }, Waiter::Nobody);
        } else {
            self.tend_replica(group);
        }
    }

    /// Without a replica of group 0 this member has no metadata to look at; group 0's leader looks for it.
    fn report_damaged_metadata(&mut self) {
        // The replica itself may not know any more which one it is; the identity does, and is kept apart.
        let generation = self.identity.membership.as_ref().map_or(0, |own| own.meta_generation);
        let members: Vec<MemberId> = self.peers.linked_and_heard(self.now).collect();
        for member in members {
            self.send(member, PeerMessage::MetadataDamaged { generation });
        }
    }

    /// On group 0's leader: a member's replica of group 0 is damaged.
    pub(crate) fn metadata_damaged(&mut self, from: MemberId, generation: u32) {
        if !self.leaderships.led.contains_key(&GroupId::META) || !self.lease_fresh() {
            return;
        }
        let Some(info) = self.metadata().and_then(|meta| meta.group(GroupId::META)) else { return };
        let Some(wanted) = info.target.replica_on(from) else { return };
        let listed = info.replicas().any(|replica| replica.member == from && replica != wanted);
        if wanted.generation <= generation {
            let now = self.now;
            let asked = self.repairs.asked.get(&GroupId::META).is_some_and(|at| now.since(*at) < RENEW_EVERY);
            if !asked {
                self.repairs.asked.insert(GroupId::META, now);
                let renew = MetaCommand::RenewReplica { group: GroupId::META, replica: wanted };
                self.ask_metadata(renew, Waiter::Nobody);
            }
        } else if !listed {
            self.send(from, PeerMessage::RejoinMetadata { generation: wanted.generation });
        }
    }

    /// The records of a new replica of group 0 are durable before the identity that names it, and a crash may have come
    /// between them. Should this one be damaged later, a replica under its name must not begin again with nothing.
    pub(crate) fn note_metadata_generation(&mut self) {
        let here = self.host.as_ref().and_then(|host| host.generation(GroupId::META)).flatten();
        let Some(own) = self.identity.membership.as_mut() else { return };
        if let Some(generation) = here.filter(|generation| *generation > own.meta_generation) {
            own.meta_generation = generation;
            self.write_identity(AfterIdentity::Nothing);
        }
    }

    /// Group 0's leader has let the damaged replica go: another one begins with nothing.
    pub(crate) fn rejoin_metadata(&mut self, generation: u32) {
        let damaged = self.is_metadata_lost();
        let own = self.identity.membership.as_ref().map_or(0, |own| own.meta_generation);
        if !damaged || own >= generation {
            return;
        }
        self.event(Severity::Warning, format!("this member's metadata was damaged: it is fetched anew ({generation})"));
        self.destroy_replica(GroupId::META, self.metadata_incarnation());
        if let Some(membership) = self.identity.membership.as_mut() {
            membership.meta_generation = generation;
        }
        self.write_identity(AfterIdentity::Nothing);
        self.join_metadata(self.metadata_incarnation());
    }

    /// Makes a replica of group 0 that waits for what its leader sends.
    pub(crate) fn join_metadata(&mut self, incarnation: Incarnation) {
        let now = self.now;
        let generation = self.identity.membership.as_ref().map_or(0, |own| own.meta_generation);
        // What was applied before says nothing about the new replica.
        self.meta_applied = 0;
        self.meta_replay_until = None;
        let machine = AnyMachine::Meta(MetaMachine::new());
        if let Some(host) = self.host.as_mut()
            && let Err(error) = host.join_group(group_key(GroupId::META, incarnation), generation, machine, now)
        {
            self.event(Severity::Error, format!("group 0 cannot be joined: {error}"));
        }
    }
}
