//! Becoming a member: bootstrap, invitation, registration of a run; and the leader's care for who is in the cluster.

use bytes::Bytes;
use holdfast_journal::{Batch, BatchId, EntryReader, Op};
use holdfast_queue::AnyMachine;
use holdfast_queue::ids::{BootId, GroupId, Incarnation, MemberId};
use holdfast_queue::meta::{MetaCommand, MetaMachine, MetaReply, NewMember, Standing};
use holdfast_queue::time::{Duration, Instant};
use holdfast_replica::{GroupBirth, HostConfig, group_key};

use crate::hosts::Hosts;
use crate::identity::{MemberUuid, Membership};
use crate::member::Member;
use crate::peer_message::{Invite, PeerMessage};
use crate::peers::Peer;
use crate::requests::Waiter;
use crate::seam::{LinkId, Output, Severity};

/// A run that was not heard of for this long is declared over.
const ENDED_AFTER: Duration = Duration::from_secs(10);
/// How often the leader of group 0 looks after the members.
const CARE_EVERY: Duration = Duration::from_millis(250);
/// Batches that the engine makes itself have this bit; the replica host never uses it.
const OWN_BATCH: u64 = 1 << 63;
const FIRST_EPOCH: u64 = 1;

/// What follows once an identity is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AfterIdentity {
    Nothing,
    /// Membership is news: every link is told.
    Joined,
    /// It says that the metadata has been here: the run may be registered.
    Settled,
}

/// What envelopes carry of the cluster id.
fn cluster_hash(cluster_id: &str) -> u64 {
    // FNV-1a: stable across builds, and any difference is only a second guard after the hello.
    cluster_id.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

impl<R: EntryReader> Member<R> {
    /// This member's Raft id; 0 while it belongs to no cluster.
    pub(crate) fn me(&self) -> MemberId {
        self.identity.membership.as_ref().map_or(MemberId(0), |own| own.member)
    }

    /// Group 0 has one life for each cluster epoch: the first one, until a forced recovery makes another.
    pub(crate) fn metadata_incarnation(&self) -> Incarnation {
        self.identity.membership.as_ref().map_or(Incarnation::default(), |own| own.meta_incarnation)
    }

    /// Makes the host of replicas, now that the cluster and this member's id are known.
    pub(crate) fn start_host(&mut self) {
        let Some(own) = self.identity.membership.as_ref() else { return };
        let config = HostConfig { cluster: cluster_hash(&own.cluster_id), ..self.config.replication.clone() };
        let seed = self.rng.next_u64();
        let mut host = Hosts::new(self.config.workers, config, own.member, seed, &self.reader, self.now);
        // Who is known already: else the first restart of another member would look like its first start, and nobody would
        // ask whether it still leads what it led.
        for (member, peer) in self.peers.iter() {
            host.member_returned(member, peer.boot, self.now);
            if peer.suspected {
                host.member_suspected(member, self.now);
            }
        }
        self.host = Some(host);
    }

    /// Persists who this member is.
    pub(crate) fn write_identity(&mut self, after: AfterIdentity) {
        let bytes = Bytes::from(self.identity.encode());
        let batch = match self.host.as_mut() {
            Some(host) => host.write_identity(bytes),
            None => {
                self.own_batches += 1;
                let id = BatchId(OWN_BATCH | self.own_batches);
                self.outputs.push_back(Output::Journal(Batch { id, ops: vec![Op::Identity(bytes)] }));
                id
            }
        };
        self.identity_writes.push((batch, after));
    }

    /// A batch is durable: perhaps it held the identity.
    pub(crate) fn identity_written(&mut self, batch: BatchId) {
        let writes = std::mem::take(&mut self.identity_writes);
        let (done, waiting): (Vec<_>, Vec<_>) = writes.into_iter().partition(|(id, _)| *id == batch);
        self.identity_writes = waiting;
        if done.iter().any(|(_, after)| *after == AfterIdentity::Joined) {
            self.greet_again();
            self.dial_members();
        }
        if done.iter().any(|(_, after)| *after == AfterIdentity::Settled) {
            self.next_care = self.now;
        }
    }

    /// The metadata is here for the first time: from now on this disk must never be taken for one that joins. Durable
    /// before the member registers a run, and so before anybody relies on it.
    fn settle_in(&mut self) {
        let has_metadata = self.metadata().is_some();
        if let Some(own) = self.identity.membership.as_mut().filter(|own| own.joining && has_metadata) {
            own.joining = false;
            self.write_identity(AfterIdentity::Settled);
        }
    }

    /// True once the disk says that the metadata has been here.
    fn is_settled(&self) -> bool {
        self.identity.membership.as_ref().is_some_and(|own| !own.joining)
            && !self.identity_writes.iter().any(|(_, after)| *after == AfterIdentity::Settled)
    }

    /// Makes this blank member the first one of a cluster.
    pub(crate) fn found_cluster(&mut self, cluster_id: String, peers: Vec<String>) {
        let member = MemberId(1);
        self.identity.membership = Some(Membership {
            cluster_id,
            cluster_epoch: FIRST_EPOCH,
            meta_incarnation: Incarnation::default(),
            member,
            joining: true,
            meta_generation: 0,
            peers,
        });
        self.start_host();
        self.write_identity(AfterIdentity::Joined);
        self.create_metadata();
    }

    /// Makes group 0 with this member as its only voter. The birth shares a batch with the identity.
    pub(crate) fn create_metadata(&mut self) {
        let me = self.me();
        let birth = GroupBirth {
            key: group_key(GroupId::META, self.metadata_incarnation()),
            voters: vec![me],
            learners: Vec::new(),
            leader: Some(me),
            machine: AnyMachine::Meta(MetaMachine::new()),
        };
        let now = self.now;
        if let Some(host) = self.host.as_mut()
            && let Err(error) = host.create_group(birth, now)
        {
            self.event(Severity::Error, format!("group 0 cannot be made: {error}"));
        }
    }

    /// Another member takes this one into its cluster.
    pub(crate) fn invited(&mut self, link: LinkId, invite: Invite) {
        if let Some(own) = &self.identity.membership {
            if own.cluster_id != invite.cluster_id || own.member != invite.member {
                let reason = format!("this member belongs to cluster {} as member {}", own.cluster_id, own.member);
                self.send_on(link, &PeerMessage::Refused { reason });
            }
            return;
        }
        self.event(Severity::Info, format!("joining cluster {} as member {}", invite.cluster_id, invite.member));
        self.identity.membership = Some(Membership {
            cluster_id: invite.cluster_id,
            cluster_epoch: invite.cluster_epoch,
            meta_incarnation: invite.incarnation,
            member: invite.member,
            joining: true,
            meta_generation: invite.generation,
            peers: invite.peers,
        });
        self.start_host();
        self.write_identity(AfterIdentity::Joined);
        self.join_metadata(invite.incarnation);
    }

    /// The process ended between the identity and the replica of group 0: others of the cluster have the metadata.
    fn join_again(&mut self) {
        if self.is_settled()
            || self.is_metadata_lost()
            || !self.cluster_is_there()
            || self.host.as_ref().is_none_or(|host| host.key(GroupId::META).is_some())
        {
            return;
        }
        self.join_metadata(self.metadata_incarnation());
    }

    /// True when another member of this member's cluster is linked.
    pub(crate) fn cluster_is_there(&self) -> bool {
        let own = self.identity.membership.as_ref().map(|own| &own.cluster_id);
        own.is_some() && self.peers.greeted().any(|(_, hello)| hello.cluster_id.as_ref() == own)
    }

    /// Registers this run in the metadata, once the member is in it.
    pub(crate) fn register_boot(&mut self) {
        let (me, boot) = (self.me(), self.boot);
        let shown = self.metadata().and_then(|meta| meta.member(me)).map(|member| member.boot);
        if self.boot_asked == Some(boot) || shown.is_none() || shown == Some(Some(boot)) {
            return;
        }
        if self.meta_replay_until.is_none() && self.is_settled() {
            self.boot_asked = Some(boot);
            self.ask_metadata(MetaCommand::BootStarted { member: me, boot }, Waiter::BootStarted(boot));
        }
    }

    /// The answer to the registration; a run that was declared over already begins anew.
    pub(crate) fn boot_registered(&mut self, boot: BootId, reply: MetaReply) {
        if boot == self.boot && matches!(reply, MetaReply::Refused { .. }) {
            return self.declared_dead();
        }
        self.lease.hurry();
    }

    /// The others have given this run up: its sessions and transient queues are gone for them, so they end here too, and
    /// the member goes on under a new boot id.
    pub(crate) fn declared_dead(&mut self) {
        self.event(Severity::Warning, "the cluster has given this run up: all sessions end".into());
        self.close_clients("the cluster has lost touch with this member");
        self.clients_of_old_run();
        self.boot = BootId(self.rng.next_u64());
        self.streams.clear();
        self.meta_stream = Default::default();
        self.early_meta_effects.clear();
        // What this run asked of the metadata may not have arrived.
        self.ending.clear();
        self.admitting.clear();
        self.drop_transient();
        self.boot_asked = None;
        if let Some((leader, term)) = self.leaderships.announced.get(&GroupId::META).copied() {
            self.meta_stream.led_by(leader, term);
        }
        self.greet_again();
    }

    /// A link's other side has said who it is: a blank one that is expected is admitted.
    pub(crate) fn greeted(&mut self, link: LinkId) {
        self.next_care = Instant(0);
        let _ = link;
    }

    /// On the leader of group 0: admits expected members, keeps group 0's membership, and declares silent runs over.
    pub(crate) fn care_for_members(&mut self) {
        if self.now < self.next_care {
            return;
        }
        self.next_care = self.now + CARE_EVERY;
        self.join_again();
        self.settle_in();
        self.register_boot();
        if !self.leaderships.led.contains_key(&GroupId::META) || !self.lease_fresh() {
            return;
        }
        self.admit_blank_members();
        self.end_silent_runs();
        self.coordinate();
    }

    fn admit_blank_members(&mut self) {
        let Some(meta) = self.metadata() else { return };
        let expected = meta.cluster().map(|cluster| cluster.expected.clone()).unwrap_or_default();
        let mut admit = Vec::new();
        let mut invite = Vec::new();
        for (link, hello) in self.peers.greeted().filter(|(_, hello)| hello.cluster_id.is_none()) {
            let uuid = MemberUuid(hello.uuid).to_string();
            let Some(wanted) = expected.iter().find(|member| member.name == hello.name) else { continue };
            match meta.member_by_uuid(&uuid) {
                Some(member) => invite.push((link, member)),
                None if self.admitting.contains(&hello.uuid) => {}
                // Two processes under one name: the one that is in the cluster and answers is the right one.
                None if self.is_name_taken(&hello.name) => {}
                None => admit.push((link, hello.uuid, wanted.clone(), uuid)),
            }
        }
        for (link, member) in invite {
            self.invite(link, member);
        }
        for (link, raw, wanted, uuid) in admit {
            self.admitting.insert(raw);
            let member = NewMember { uuid, name: wanted.name, zone: wanted.zone, address: wanted.address, boot: None };
            self.ask_metadata(MetaCommand::AddMember { member }, Waiter::Admit(link));
        }
    }

    /// True if a member of this name is in the cluster and answers.
    fn is_name_taken(&self, name: &str) -> bool {
        let Some(meta) = self.metadata() else { return false };
        let named = meta.members().filter(|(_, info)| info.name == name && info.standing == Standing::Present);
        named.map(|(id, _)| id).any(|id| id == self.me() || self.peers.get(id).is_some_and(|peer| !peer.suspected))
    }

    /// The metadata has given a blank member its id.
    pub(crate) fn admitted(&mut self, link: LinkId, reply: MetaReply) {
        match reply {
            MetaReply::MemberAdded { member } => self.invite(link, member),
            other => self.event(Severity::Error, format!("a member could not be admitted: {other:?}")),
        }
    }

    fn invite(&mut self, link: LinkId, member: MemberId) {
        let Some(meta) = self.metadata() else { return };
        let Some(cluster) = meta.cluster() else { return };
        let wanted = meta.group(GroupId::META).and_then(|group| group.target.replica_on(member));
        let Some(replica) = wanted else { return };
        let invite = Invite {
            cluster_id: cluster.cluster_id.clone(),
            cluster_epoch: cluster.epoch,
            member,
            incarnation: self.metadata_incarnation(),
            generation: replica.generation,
            peers: meta.members().map(|(_, member)| member.address.clone()).collect(),
        };
        self.send_on(link, &PeerMessage::Invite(invite));
    }

    /// Declares runs over that were not heard for long. It is the run that counts, not the member: a member that was
    /// started again and cannot register its new run still heartbeats, while nothing of the last one is there any more.
    fn end_silent_runs(&mut self) {
        let (now, me) = (self.now, self.me());
        let Some(meta) = self.metadata() else { return };
        let runs = meta.members().filter_map(|(member, info)| Some((member, info.boot?)));
        let runs: Vec<(MemberId, BootId)> = runs.filter(|(member, _)| *member != me).collect();
        self.runs_heard.retain(|member, _| runs.iter().any(|(other, _)| other == member));
        for (member, boot) in runs {
            let heard = self.peers.get(member).filter(|peer| peer.boot == boot).map(Peer::last_heard);
            let run = self.runs_heard.entry(member).or_insert((boot, now));
            if run.0 != boot {
                *run = (boot, now);
            }
            run.1 = heard.map_or(run.1, |heard| heard.max(run.1));
            if now.since(run.1) >= ENDED_AFTER && self.ending.insert(boot) {
                self.event(Severity::Warning, format!("run {boot} was not heard of for 10 s: it is declared over"));
                self.ask_metadata(MetaCommand::BootEnded { boot }, Waiter::Nobody);
            }
        }
    }
}
