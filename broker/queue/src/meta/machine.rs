//! The metadata machine.

use super::command::MetaCommand;
use super::effect::{Change, MetaEffect, MetaReply, Refusal};
use super::in_place::Restoring;
use super::placement::{self, Chosen, Load};
use super::policies::EffectivePolicy;
use super::replication::check_min_in_sync;
use super::state::{ClusterInfo, ExchangeInfo, GroupInfo, MemberInfo, Owner, Placement, QueueInfo, UserInfo, Vhost};
use crate::codec::{Batch, Codec, DecodeError, Entry, Positioned, Reader, Writer};
use crate::ids::{BootId, GroupId, MemberId, QueueId};
use crate::machine::{ApplyMeta, Machine};
use crate::router::Router;
use crate::snapshot;
use crate::streams::{Admission, Streams};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};

const SNAPSHOT_VERSION: u8 = 2;

/// What a command comes to.
pub(super) type Outcome = Result<MetaReply, Refusal>;

/// The state of group 0. Reading methods stand with what they read, in the other files of this module.
#[derive(Clone, Debug, Default)]
pub struct MetaMachine {
    pub(super) cluster: Option<ClusterInfo>,
    pub(super) members: BTreeMap<MemberId, MemberInfo>,
    pub(super) users: BTreeMap<String, UserInfo>,
    pub(super) vhosts: BTreeMap<String, Vhost>,
    pub(super) queues: BTreeMap<QueueId, QueueInfo>,
    pub(super) groups: BTreeMap<GroupId, GroupInfo>,
    pub(super) last_member: u64,
    pub(super) last_queue: u64,
    pub(super) last_group: u64,
    pub(super) streams: Streams<MetaReply>,
    /// Restores in place, by virtual host and queue; an empty name is the virtual host itself.
    pub(super) restores: BTreeMap<String, BTreeMap<String, Restoring>>,
    time_ms: u64,
    /// Derived from exchanges, bindings and queues.
    pub(super) router: Router,
    /// Derived from queues and policies: what counts for the queues that any policy matches.
    pub(super) effective: BTreeMap<QueueId, EffectivePolicy>,
    /// Derived from groups.
    pub(super) loads: BTreeMap<MemberId, Load>,
    /// Derived from groups: those whose replicas are not where they should be.
    pub(super) unsettled: BTreeSet<GroupId>,
    /// Derived from groups: those with replicas that wait to be synchronised.
    pub(super) unsynchronised: BTreeSet<GroupId>,
}

impl MetaMachine {
    /// Metadata without a cluster.
    pub fn new() -> MetaMachine {
        MetaMachine::default()
    }

    /// Where messages go.
    pub fn router(&self) -> &Router {
        &self.router
    }

    /// Group time of the last entry, in milliseconds since the Unix epoch.
    pub fn time_ms(&self) -> u64 {
        self.time_ms
    }

    /// The highest command number applied from a home; 0 if none.
    pub fn last_seq(&self, boot: BootId) -> u64 {
        self.streams.last(boot)
    }

    /// Whether a run is known to be over.
    pub fn has_ended(&self, boot: BootId) -> bool {
        self.streams.has_ended(boot)
    }

    /// The effects that a new leader owes, derived from state, once its own no-op is applied (design §3.3).
    pub fn state_enter(&self) -> Vec<MetaEffect> {
        let confirms = self.streams.boots().map(|(boot, seq)| MetaEffect::Confirm { boot, seq });
        let replies = self.streams.unanswered();
        confirms
            .chain(replies.map(|(boot, seq, reply)| MetaEffect::Reply { boot, seq, reply: reply.clone() }))
            .collect()
    }

    fn apply_batch(&mut self, meta: &ApplyMeta, batch: Batch<Positioned<MetaCommand>>, effects: &mut Vec<MetaEffect>) {
        let Some(origin) = batch.origin else {
            for one in batch.commands {
                self.apply_command(meta, one.command, effects);
            }
            return;
        };
        let boot = origin.boot;
        let skip = match self.streams.admit(&origin, batch.commands.len()) {
            Admission::Apply { skip } => skip as u64,
            Admission::Gap { expected } => return effects.push(MetaEffect::SequenceGap { boot, expected }),
            Admission::Ended => return effects.push(MetaEffect::Ended { boot }),
        };
        for (seq, one) in (origin.first..).zip(batch.commands) {
            let reply = if seq - origin.first < skip {
                self.streams.remembered(boot, seq).cloned()
            } else {
                let reply = self.apply_command(meta, one.command, effects);
                self.streams.remember(boot, seq, reply.clone());
                Some(reply)
            };
            effects.extend(reply.map(|reply| MetaEffect::Reply { boot, seq, reply }));
        }
    }

    fn apply_command(&mut self, meta: &ApplyMeta, command: MetaCommand, effects: &mut Vec<MetaEffect>) -> MetaReply {
        let mut changes = Vec::new();
        let outcome = self.run(meta, command, &mut changes);
        effects.extend(changes.into_iter().map(|change| MetaEffect::Changed { change }));
        outcome.unwrap_or_else(|refusal| MetaReply::Refused { refusal })
    }

    fn run(&mut self, meta: &ApplyMeta, command: MetaCommand, changes: &mut Vec<Change>) -> Outcome {
        match command {
            MetaCommand::Init {
                cluster_id,
                epoch,
                expected,
                replication_factor,
                default_min_in_sync_replicas,
                user,
                first,
            } => {
                check_min_in_sync(default_min_in_sync_replicas)?;
                let cluster =
                    ClusterInfo { cluster_id, epoch, replication_factor, default_min_in_sync_replicas, expected };
                self.init(cluster, user, first, changes)
            }
            MetaCommand::SetExpected { expected } => self.set_expected(expected, changes),
            MetaCommand::AddMember { member } => self.add_member(member, changes),
            MetaCommand::RemoveMember { member } => self.remove_member(member, changes),
            MetaCommand::BootStarted { member, boot } => self.boot_started(member, boot, changes),
            MetaCommand::BootEnded { boot } => self.boot_ended(boot, changes),
            MetaCommand::SessionEnded { session } => self.session_ended(session, changes),
            MetaCommand::SetReplicas { group, voters, learners, changed_at } => {
                self.set_replicas(group, voters, learners, changed_at, changes)
            }
            MetaCommand::SetTarget { group, voters, learners, preferred_leader: leader } => {
                self.set_target(group, Chosen { voters, learners, leader }, changes)?;
                Ok(MetaReply::Done)
            }
            MetaCommand::RenewReplica { group, replica } => self.renew_replica(group, replica, changes),
            MetaCommand::RetireMember { member } => self.retire_member(member, changes),
            MetaCommand::MarkUnsynchronised { group, member, marker } => {
                self.mark_unsynchronised(group, member, marker, changes)
            }
            MetaCommand::Synchronise { group, member } => self.synchronise(group, member, changes),
            MetaCommand::CancelSynchronise { group } => self.cancel_synchronise(group, changes),
            MetaCommand::PutVhost { name } => self.put_vhost(&name, changes),
            MetaCommand::DeleteVhost { name } => self.delete_vhost(&name, changes),
            MetaCommand::PutUser { user } => self.put_user(user, changes),
            MetaCommand::DeleteUser { name } => self.delete_user(&name, changes),
            MetaCommand::SetPermissions { vhost, user, configure, write, read } => {
                self.set_permissions(&vhost, &user, [&configure, &write, &read], changes)
            }
            MetaCommand::ClearPermissions { vhost, user } => self.clear_permissions(&vhost, &user, changes),
            MetaCommand::DeclareExchange { vhost, name, kind, durable, auto_delete, internal, arguments } => {
                let info = ExchangeInfo { durable, auto_delete, internal, arguments, ..ExchangeInfo::default() };
                self.declare_exchange(&vhost, &name, &kind, info)
            }
            MetaCommand::DeleteExchange { vhost, name, if_unused } => self.delete_exchange(&vhost, &name, if_unused),
            MetaCommand::Bind { vhost, binding, session } => self.bind(&vhost, binding, session),
            MetaCommand::Unbind { vhost, binding, session } => self.unbind(&vhost, binding, session),
            MetaCommand::DeclareQueue { vhost, name, durable, exclusive, auto_delete, arguments, session } => {
                let owner = Owner { member: MemberId(0), boot: session.boot };
                let placement = Placement::Transient { owner };
                let exclusive = exclusive.then_some(session);
                let asked = QueueInfo { vhost, name, durable, exclusive, auto_delete, arguments, placement };
                self.declare_queue(meta, asked, session, changes)
            }
            MetaCommand::DeleteQueue { queue } => {
                self.drop_queue(queue, changes);
                Ok(MetaReply::Done)
            }
            MetaCommand::SetDefaultMinInSync { min_in_sync_replicas } => {
                self.set_default_min_in_sync(min_in_sync_replicas, changes)
            }
            MetaCommand::PutPolicy { kind, vhost, name, policy } => {
                self.put_policy(kind, &vhost, name, policy, changes)
            }
            MetaCommand::DeletePolicy { kind, vhost, name } => self.delete_policy(kind, &vhost, &name, changes),
            restore => self.run_restore(meta, restore, changes),
        }
    }

    fn run_restore(&mut self, meta: &ApplyMeta, command: MetaCommand, changes: &mut Vec<Change>) -> Outcome {
        match command {
            MetaCommand::BeginVhostRestore { vhost, id, content } => {
                self.begin_vhost_restore(vhost, id, content, changes)
            }
            MetaCommand::BeginQueueRestore { vhost, name, id, auto_delete, arguments } => {
                self.begin_queue_restore(meta, (vhost, name, id), auto_delete, arguments, changes)
            }
            MetaCommand::CompleteQueueRestore { vhost, name, id } => self.complete_queue_restore(&vhost, &name, &id),
            MetaCommand::CompleteVhostRestore { vhost, id, content } => {
                self.complete_vhost_restore(&vhost, &id, content, changes)
            }
            MetaCommand::AbandonRestore { vhost, name, id } => self.abandon_restore(&vhost, &name, &id, changes),
            // `run` has taken the others.
            _ => Ok(MetaReply::Done),
        }
    }

    /// Builds what is derived from the rest.
    pub(super) fn derive(&mut self) {
        self.loads = placement::loads(&self.groups);
        self.unsettled = self.groups.iter().filter(|(_, group)| !group.is_settled()).map(|(id, _)| *id).collect();
        let waits = |group: &GroupInfo| !group.target.unsynchronised.is_empty();
        self.unsynchronised = self.groups.iter().filter(|(_, group)| waits(group)).map(|(id, _)| *id).collect();
        self.derive_routes();
        self.derive_policies();
    }
}

impl Machine for MetaMachine {
    type Effect = MetaEffect;

    fn apply(&mut self, meta: &ApplyMeta, payload: &Bytes, effects: &mut Vec<MetaEffect>) -> Result<(), DecodeError> {
        if payload.is_empty() {
            return Ok(());
        }
        let entry = Entry::<MetaCommand>::from_bytes(payload)?;
        self.time_ms = self.time_ms.max(entry.time_ms);
        let homes: BTreeSet<BootId> = entry.batches.iter().filter_map(|batch| Some(batch.origin?.boot)).collect();
        for batch in entry.batches {
            self.apply_batch(meta, batch, effects);
        }
        for (boot, seq) in homes.into_iter().map(|boot| (boot, self.streams.last(boot))).filter(|(_, seq)| *seq > 0) {
            effects.push(MetaEffect::Confirm { boot, seq });
        }
        Ok(())
    }

    fn snapshot(&self) -> Bytes {
        snapshot::seal(SNAPSHOT_VERSION, |out| self.encode(out))
    }

    fn restore(bytes: &Bytes) -> Result<MetaMachine, DecodeError> {
        snapshot::open("metadata snapshot", SNAPSHOT_VERSION, bytes, MetaMachine::decode)
    }

    /// The metadata lives in memory and in checkpoints: no entry is needed once it is applied.
    fn live_indexes(&self) -> Vec<u64> {
        Vec::new()
    }

    fn take_dead(&mut self) -> Vec<u64> {
        Vec::new()
    }

    fn digest(&self) -> u64 {
        snapshot::digest(&self.snapshot())
    }
}

impl Codec for MetaMachine {
    fn encode(&self, out: &mut Writer) {
        self.time_ms.encode(out);
        self.cluster.encode(out);
        self.members.encode(out);
        self.users.encode(out);
        self.vhosts.encode(out);
        self.queues.encode(out);
        self.groups.encode(out);
        self.last_member.encode(out);
        self.last_queue.encode(out);
        self.last_group.encode(out);
        self.streams.encode(out);
        self.restores.encode(out);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        let mut machine = MetaMachine {
            time_ms: Codec::decode(input)?,
            cluster: Codec::decode(input)?,
            members: Codec::decode(input)?,
            users: Codec::decode(input)?,
            vhosts: Codec::decode(input)?,
            queues: Codec::decode(input)?,
            groups: Codec::decode(input)?,
            last_member: Codec::decode(input)?,
            last_queue: Codec::decode(input)?,
            last_group: Codec::decode(input)?,
            streams: Codec::decode(input)?,
            restores: Codec::decode(input)?,
            ..MetaMachine::default()
        };
        machine.derive();
        Ok(machine)
    }
}
