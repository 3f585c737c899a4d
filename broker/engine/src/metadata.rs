//! This member's view of group 0: what its changes mean here, and the leases that keep it fresh.

use std::collections::BTreeSet;

use holdfast_journal::EntryReader;
use holdfast_queue::AnyEffect;
use holdfast_queue::ids::{BootId, GroupId, MemberId, QueueId};
use holdfast_queue::meta::{Change, MemberInfo, MetaCommand, MetaEffect, MetaMachine, Placement, queue_settings};
use holdfast_queue::queue::QueueCommand;
use holdfast_replica::GroupStatus;

use crate::member::Member;
use crate::peer_message::PeerMessage;
use crate::requests::Waiter;
use crate::seam::{Output, Severity};
use crate::transient::transient_group_of;

impl<R: EntryReader> Member<R> {
    /// The metadata as applied here, once there is a cluster.
    pub(crate) fn metadata(&self) -> Option<&MetaMachine> {
        let machine = self.host.as_ref()?.machine(GroupId::META)?.meta()?;
        machine.cluster().map(|_| machine)
    }

    /// True while this member's view of the metadata is known to be fresh.
    pub(crate) fn lease_fresh(&self) -> bool {
        self.lease.fresh(self.now, self.meta_applied)
    }

    pub(crate) fn cluster_name(&self) -> String {
        self.identity.membership.as_ref().map_or_else(|| "holdfast".into(), |own| own.cluster_id.clone())
    }

    /// An entry of group 0 was applied.
    pub(crate) fn metadata_applied(&mut self, index: u64, leading: bool, effects: Vec<AnyEffect>) {
        self.meta_applied = self.meta_applied.max(index);
        for effect in effects {
            match effect {
                AnyEffect::Meta(MetaEffect::Changed { change }) => self.metadata_changed(change),
                AnyEffect::Meta(effect) if leading => self.owed_meta_effects.push_back((index, effect)),
                _ => {}
            }
        }
        if self.meta_replay_until.is_some_and(|until| index >= until) {
            self.meta_replay_until = None;
            self.compare_with_metadata();
        }
        self.meta_applied_news = true;
    }

    /// What a change of the metadata means for this member. While the log is replayed after a start, changes are not
    /// acted upon one by one: what they made may be gone again.
    fn metadata_changed(&mut self, change: Change) {
        if self.meta_replay_until.is_some() {
            return;
        }
        match change {
            Change::Cluster => self.dial_members(),
            Change::Member { member } => {
                self.dial_members();
                self.fence_replaced(member);
            }
            Change::MemberRemoved { member } => {
                self.fence(member, "it was removed from the cluster");
                self.peers.remove(member);
                self.dial_members();
            }
            Change::BootEnded { boot, .. } => {
                if boot == self.boot {
                    return self.declared_dead();
                }
                self.propose_boot_ended(boot);
                self.end_stream(transient_group_of(boot));
            }
            Change::GroupCreated { group } => self.tend_replica(group),
            Change::GroupChanged { group } => {
                self.tend_replica(group);
                self.watch_copies(group);
            }
            Change::Replication => self.watch_all_copies(),
            Change::Access => self.close_clients_of_deleted_users(),
            Change::GroupDestroyed { group, incarnation } => {
                self.destroy_replica(group, incarnation);
                self.copies.forget(group);
                self.end_stream(group);
            }
            Change::QueueCreated { queue } => self.queue_created(queue),
            Change::QueueDeleted { queue, owner } => {
                self.cancel_consumers_of(queue);
                if owner == Some(self.boot) {
                    self.transient_command(QueueCommand::DeleteQueue { queue, if_unused: false, if_empty: false });
                }
            }
        }
    }

    fn queue_created(&mut self, queue: QueueId) {
        let Some(info) = self.metadata().and_then(|meta| meta.queue(queue)) else { return };
        match info.placement {
            Placement::Replicated { group } => {
                self.create_missing_queues(group);
                self.watch_copies(group);
            }
            Placement::Transient { owner } if owner.boot == self.boot => {
                let (vhost, name, settings) = (info.vhost.clone(), info.name.clone(), queue_settings(info));
                self.transient_command(QueueCommand::CreateQueue { queue, vhost, name, settings });
            }
            Placement::Transient { .. } => {}
        }
    }

    /// Commands that make the queues which the metadata places in a group and the group lacks.
    pub(crate) fn queues_to_create(&self, group: GroupId) -> Vec<QueueCommand> {
        let (Some(meta), Some(machine)) = (self.metadata(), self.queue_machine(group)) else { return Vec::new() };
        let Some(info) = meta.group(group) else { return Vec::new() };
        let missing = info.queues.iter().filter(|queue| machine.stats(**queue).is_none());
        missing
            .filter_map(|queue| {
                let info = meta.queue(*queue)?;
                let (vhost, name) = (info.vhost.clone(), info.name.clone());
                Some(QueueCommand::CreateQueue { queue: *queue, vhost, name, settings: queue_settings(info) })
            })
            .collect()
    }

    /// Queues were added to a group that is led here.
    fn create_missing_queues(&mut self, group: GroupId) {
        let commands = self.queues_to_create(group);
        self.propose_own(group, commands);
    }

    /// A home spoke to a queue that a group which is led here does not have. Either it knows more of the metadata than was
    /// applied here: then it asks until that is. Or the metadata has passed over the queue, which then never comes.
    pub(crate) fn queue_unknown(&mut self, group: GroupId, queue: QueueId) {
        let Some(meta) = self.metadata() else { return };
        let (is_there, was_declared) = (meta.queue(queue).is_some(), meta.was_declared(queue));
        let is_transient = group == self.transient_group();
        let never_comes = || QueueCommand::DeleteQueue { queue, if_unused: false, if_empty: false };
        match (is_there, is_transient) {
            (true, true) => self.adopt_transient_queues(),
            (true, false) => self.create_missing_queues(group),
            (false, true) if was_declared => self.transient_command(never_comes()),
            (false, false) if was_declared => self.propose_own(group, vec![never_comes()]),
            (false, _) => {}
        }
    }

    /// A queue's own machine has let it go (auto-delete, or a delete whose caller is gone).
    pub(crate) fn forget_deleted_queue(&mut self, queue: QueueId) {
        if self.metadata().is_some_and(|meta| meta.queue(queue).is_some()) {
            self.ask_metadata(MetaCommand::DeleteQueue { queue }, Waiter::Nobody);
        }
    }

    /// The member that runs as this boot, as it said itself or as the metadata shows.
    pub(crate) fn member_of_boot(&self, boot: BootId) -> Option<MemberId> {
        self.peers.member_of(boot).or_else(|| self.metadata()?.member_of_boot(boot))
    }

    /// True once the metadata shows this run of this member: before that it cannot hold sessions.
    pub(crate) fn registered(&self) -> bool {
        self.metadata().and_then(|meta| meta.member(self.me())).is_some_and(|own| own.boot == Some(self.boot))
    }

    /// True for a run that the metadata does not show as running.
    pub(crate) fn boot_has_ended(&self, boot: BootId) -> bool {
        self.metadata().is_some_and(|meta| meta.has_ended(boot) || meta.member_of_boot(boot).is_none())
    }

    /// Compares this member with the whole metadata: after a start, and after a Raft snapshot of group 0.
    pub(crate) fn compare_with_metadata(&mut self) {
        if self.metadata().is_some_and(|meta| meta.has_ended(self.boot)) {
            // Said by an entry that came as part of a snapshot.
            self.declared_dead();
        }
        let Some(meta) = self.metadata() else { return };
        let groups: Vec<GroupId> = meta.groups().map(|(group, _)| group).collect();
        let deleted: Vec<QueueId> =
            self.consumed_queues().into_iter().filter(|queue| meta.queue(*queue).is_none()).collect();
        // A run's transient queues come and go; what it was told is over only when the run is.
        let runs = meta.members().filter_map(|(_, member)| member.boot).map(transient_group_of);
        let kept: BTreeSet<GroupId> = groups.iter().copied().chain(runs).collect();
        let ended: Vec<GroupId> = self.streams.groups().filter(|group| !kept.contains(group)).collect();
        for queue in deleted {
            self.cancel_consumers_of(queue);
        }
        for group in ended {
            self.end_stream(group);
        }
        for group in groups {
            self.tend_replica(group);
        }
        self.adopt_again();
        self.adopt_transient_queues();
        self.unknown_groups_checked = false;
        self.dial_members();
    }

    /// Deletes replicas that the metadata does not know, once the metadata is known to be fresh (design §3.1).
    pub(crate) fn destroy_unknown_groups(&mut self) {
        if self.unknown_groups_checked || self.meta_replay_until.is_some() || !self.lease_fresh() {
            return;
        }
        let (Some(meta), Some(host)) = (self.metadata(), self.host.as_ref()) else { return };
        let unknown: Vec<_> = host
            .groups()
            .filter(|group| *group != GroupId::META && meta.group(*group).is_none())
            .filter_map(|group| host.key(group))
            .collect();
        self.unknown_groups_checked = true;
        for key in unknown {
            self.event(Severity::Info, format!("{key} is not in the metadata any more: its replica goes"));
            if let Some(host) = self.host.as_mut() {
                host.destroy_group(key);
            }
        }
    }

    /// This member has come to lead group 0.
    pub(crate) fn began_to_lead_metadata(&mut self, term: u64) {
        self.granter.lead(term, self.now);
        self.owed_meta_effects.clear();
        self.admitting.clear();
        self.ending.clear();
        self.runs_heard.clear();
        self.begin_to_coordinate();
    }

    /// Sends a home what group 0 owes it.
    pub(crate) fn owe_metadata(&mut self, boot: BootId) {
        let index = self.meta_applied;
        let Some(meta) = self.host.as_ref().and_then(|host| host.machine(GroupId::META)?.meta()) else { return };
        for effect in meta.state_enter() {
            match effect {
                MetaEffect::Confirm { boot: of, .. } if of == boot => self.route_meta_effect(effect, index),
                MetaEffect::Reply { boot: of, .. } if of == boot => self.owed_meta_effects.push_back((index, effect)),
                _ => {}
            }
        }
    }

    /// Lets answers out whose changes every member with a live lease has applied; true if there were any.
    pub(crate) fn release_visible(&mut self) -> bool {
        if !self.leaderships.led.contains_key(&GroupId::META) {
            self.owed_meta_effects.clear();
            return false;
        }
        if self.gate_is_closed() {
            return false; // A barrier is about to take its places.
        }
        let (now, me, applied) = (self.now, self.me(), self.meta_applied);
        self.granter.report_applied(me, applied);
        // A member without a run holds no lease.
        let runs = |(id, info): (MemberId, &MemberInfo)| info.boot.is_some().then_some(id);
        let members: Vec<MemberId> =
            self.metadata().map(|meta| meta.members().filter_map(runs).collect()).unwrap_or_default();
        let mut any = false;
        while let Some((index, effect)) = self.owed_meta_effects.front() {
            let holds_back = matches!(effect, MetaEffect::Reply { .. })
                && !self.granter.visible_everywhere(*index, members.iter().copied(), now);
            if holds_back {
                break;
            }
            let Some((index, effect)) = self.owed_meta_effects.pop_front() else { break };
            self.route_meta_effect(effect, index);
            any = true;
        }
        any
    }

    fn route_meta_effect(&mut self, effect: MetaEffect, index: u64) {
        let boot = match &effect {
            MetaEffect::Confirm { boot, .. }
            | MetaEffect::SequenceGap { boot, .. }
            | MetaEffect::Ended { boot }
            | MetaEffect::Reply { boot, .. } => *boot,
            MetaEffect::Changed { .. } => return,
        };
        if boot == self.boot {
            self.metadata_effect(effect, index);
        } else if let Some(member) = self.member_of_boot(boot) {
            self.send(member, PeerMessage::MetaEffect { effect, index });
        }
    }

    /// Tells group 0's leader what was applied here.
    pub(crate) fn report_applied(&mut self) {
        if !std::mem::take(&mut self.meta_applied_news) {
            return;
        }
        self.release_early_meta_effects();
        let index = self.meta_applied;
        if let Some((leader, _)) = self.leaderships.announced.get(&GroupId::META).copied()
            && leader != self.me()
        {
            self.send(leader, PeerMessage::MetaApplied { index });
        }
    }

    /// Asks for leases and, on the leader, runs the rounds that prove them.
    pub(crate) fn tick_leases(&mut self) {
        let (now, applied, boot) = (self.now, self.meta_applied, self.boot);
        if self.metadata().is_none() {
            return; // None yet, or its replica is quarantined: a lease would be of no use.
        }
        if let Some((leader, _)) = self.leaderships.announced.get(&GroupId::META).copied()
            && let Some(round) = self.lease.due(now)
        {
            self.send_or_take(leader, PeerMessage::LeaseRequest { round, applied, boot });
        }
        if self.leaderships.led.contains_key(&GroupId::META)
            && let Some(round) = self.granter.begin_round(now)
        {
            for voter in self.metadata_voters() {
                self.send_or_take(voter, PeerMessage::LeaseProbe { round });
            }
        }
    }

    /// A member asks for a lease. Only the run that the metadata shows gets one: nothing need wait for any other.
    pub(crate) fn lease_request(&mut self, from: MemberId, round: u64, applied: u64, boot: BootId) {
        if self.metadata().and_then(|meta| meta.member(from)).is_some_and(|member| member.boot == Some(boot)) {
            self.granter.request(from, round, applied);
        }
    }

    fn metadata_voters(&self) -> Vec<MemberId> {
        let status = self.host.as_ref().and_then(|host| host.status(GroupId::META));
        let members = |status: GroupStatus| status.voters.iter().map(|voter| voter.member).collect();
        status.map(members).unwrap_or_default()
    }

    pub(crate) fn lease_probe(&mut self, from: MemberId, round: u64) {
        let term = self.host.as_ref().and_then(|host| host.status(GroupId::META)).map(|status| status.term);
        if let Some(term) = term {
            self.send_or_take(from, PeerMessage::LeaseProbeAck { round, term });
        }
    }

    pub(crate) fn lease_probe_ack(&mut self, from: MemberId, round: u64, term: u64) {
        let Some(status) = self.host.as_ref().and_then(|host| host.status(GroupId::META)) else { return };
        if !status.me_leading || status.term != self.granter.term() {
            return;
        }
        // While the membership is joint these are the voters of both halves. They differ in one voter at most, so that any
        // majority of them meets every quorum of either half.
        let voters: Vec<MemberId> = status.voters.iter().map(|voter| voter.member).collect();
        for (member, round) in self.granter.acknowledged(from, round, term, &voters, status.commit, self.now) {
            self.send_or_take(member, PeerMessage::LeaseGrant { round, commit: status.commit });
        }
    }

    /// Dials exactly the members that there are or should be.
    pub(crate) fn dial_members(&mut self) {
        let mut addresses: BTreeSet<String> = match self.metadata() {
            Some(meta) => {
                let members = meta.members().map(|(_, member)| member.address.clone());
                let expected = meta.cluster().into_iter().flat_map(|cluster| &cluster.expected);
                members.chain(expected.map(|member| member.address.clone())).collect()
            }
            None => {
                let own = self.identity.membership.as_ref();
                own.map(|own| own.peers.iter().cloned().collect()).unwrap_or_default()
            }
        };
        addresses.remove(&self.config.advertise_peer);
        addresses.remove("");
        let outputs: Vec<Output> = self.peers.dial_exactly(addresses.clone());
        self.outputs.extend(outputs);
        let known: Vec<String> = addresses.into_iter().collect();
        if self.metadata().is_some()
            && let Some(membership) = self.identity.membership.as_mut()
            && membership.peers != known
        {
            membership.peers = known;
            self.write_identity(crate::join::AfterIdentity::Nothing);
        }
    }
}
