//! The whole member without its I/O.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use holdfast_journal::{Batch, BatchId, EntryReader, Recovered, Space, Upkeep};
use holdfast_queue::ids::{BootId, GroupId, MemberId};
use holdfast_queue::meta::MetaEffect;
use holdfast_queue::time::{Duration, Instant};
use holdfast_replica::HostConfig;

use crate::admin_requests::AdminState;
use crate::alarms::AlarmState;
use crate::backup::Backup;
use crate::clients::Client;
use crate::consuming::ConsumerIndex;
use crate::copies::{Copies, Target};
use crate::flow::{Budgets, Flow};
use crate::groups::Leaderships;
use crate::hosts::Hosts;
use crate::identity::{Identity, IdentityError, MemberUuid};
use crate::join::AfterIdentity;
use crate::leases::{Granter, Holder};
use crate::metrics::Metrics;
use crate::mover::Mover;
use crate::peers::Peers;
use crate::rebalance::Rebalance;
use crate::replicas::Repairs;
use crate::requests::MetaStream;
use crate::rng::Rng;
use crate::seam::{ConnId, Event, Input, Output, PasswordToken, Severity};
use crate::streams::Streams;
use crate::synchronising::Synchronising;
use crate::transient::TransientHost;
use crate::workers::{Crew, InTurn};

/// How often time is looked at.
const TICK: Duration = Duration::from_millis(50);
/// A tick that comes so late means that the process stood still.
const PAUSED: Duration = Duration::from_millis(300);
/// How long a stopping member tries to hand its leaderships over.
const DRAIN_FOR: Duration = Duration::from_secs(5);
/// How long clients have to answer the close.
const CLOSE_FOR: Duration = Duration::from_secs(1);

/// What the driver knows about this member from its configuration.
#[derive(Clone, Debug)]
pub struct MemberConfig {
    /// Name in the cluster, e.g. `demo-0-0`.
    pub name: String,
    pub zone: String,
    /// `host:port` at which other members reach this one's peer listener.
    pub advertise_peer: String,
    /// Shown to clients as the server's version.
    pub version: String,
    /// Largest message body that is taken in, bytes.
    pub max_message_bytes: u64,
    /// Largest frame that is offered to clients, bytes.
    pub frame_max: u32,
    /// Channels per connection that are offered to clients.
    pub channel_max: u16,
    /// Heartbeat that is offered to clients, seconds.
    pub heartbeat_s: u16,
    /// What all connections may hold together.
    pub budgets: Budgets,
    /// Workers that share the groups, see [`Crew`]; at least 1 and at most [`crate::MOST_WORKERS`].
    pub workers: usize,
    /// Limits and times of replication. `cluster` is filled in here.
    pub replication: HostConfig,
}

impl Default for MemberConfig {
    fn default() -> Self {
        Self {
            name: String::new(),
            zone: String::new(),
            advertise_peer: String::new(),
            version: env!("CARGO_PKG_VERSION").into(),
            max_message_bytes: 128 << 20,
            frame_max: 131_072,
            channel_max: 2047,
            heartbeat_s: 60,
            budgets: Budgets::default(),
            workers: 1,
            replication: HostConfig::default(),
        }
    }
}

/// What a start needs besides the configuration.
#[derive(Debug)]
pub struct Start<R> {
    /// New at each start, at random.
    pub boot: BootId,
    /// Used only when the disk has no identity yet.
    pub new_uuid: MemberUuid,
    /// Everything random in the member derives from it.
    pub seed: u64,
    /// What the journal recovered.
    pub recovered: Recovered,
    pub reader: R,
    pub now: Instant,
    /// Wall clock, ms since 1970.
    pub wall_ms: u64,
}

/// How an orderly stop goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stopping {
    /// Leaderships are handed over, until then at the latest.
    Draining {
        until: Instant,
    },
    /// Clients are told, and given until then to close.
    Closing {
        until: Instant,
    },
    Done,
}

/// One member of a cluster: all its sessions, replicas and links, as one deterministic object.
/// See [`crate::seam`] for how it is driven.
pub struct Member<R: EntryReader> {
    pub(crate) config: MemberConfig,
    pub(crate) identity: Identity,
    pub(crate) boot: BootId,
    pub(crate) rng: Rng,
    pub(crate) now: Instant,
    pub(crate) wall_ms: u64,
    pub(crate) reader: R,
    pub(crate) outputs: VecDeque<Output>,
    pub(crate) metrics: Metrics,
    next_tick: Instant,
    stopping: Option<Stopping>,
    was_ready: bool,
    /// Commit indexes of the replicas that were found at start.
    pub(crate) ready_at: BTreeMap<GroupId, u64>,

    /// Replicas; none while the member belongs to no cluster.
    pub(crate) host: Option<Hosts<R>>,
    pub(crate) crew: Box<dyn Crew<R> + Send>,
    pub(crate) peers: Peers,
    pub(crate) leaderships: Leaderships,
    pub(crate) copies: Copies,
    pub(crate) transient: TransientHost,

    /// What this member, as a home, tells the groups.
    pub(crate) streams: Streams,
    pub(crate) dirty_streams: BTreeSet<GroupId>,
    pub(crate) meta_stream: MetaStream,
    pub(crate) meta_dirty: bool,
    pub(crate) early_meta_effects: Vec<(u64, MetaEffect)>,

    pub(crate) clients: BTreeMap<ConnId, Client>,
    pub(crate) touched: BTreeSet<ConnId>,
    pub(crate) barriers: BTreeSet<ConnId>,
    pub(crate) consumers: ConsumerIndex,
    pub(crate) logins: BTreeMap<PasswordToken, ConnId>,
    pub(crate) next_password: u64,
    /// Scratch of the publish path.
    pub(crate) routed: Vec<Target>,

    pub(crate) lease: Holder,
    pub(crate) granter: Granter,
    pub(crate) meta_applied: u64,
    pub(crate) meta_applied_news: bool,
    /// Until this index of group 0 is applied, its log is being replayed after a start.
    pub(crate) meta_replay_until: Option<u64>,
    /// Group 0's effects for homes, with the index that must be visible before.
    pub(crate) owed_meta_effects: VecDeque<(u64, MetaEffect)>,
    pub(crate) unknown_groups_checked: bool,
    /// Groups of the metadata wait for it to be fresh before they are born here.
    pub(crate) births_deferred: bool,

    pub(crate) own_batches: u64,
    pub(crate) identity_writes: Vec<(BatchId, AfterIdentity)>,
    pub(crate) boot_asked: Option<BootId>,
    pub(crate) admitting: BTreeSet<u128>,
    pub(crate) ending: BTreeSet<BootId>,
    /// On group 0's leader: each member's run of the metadata, and when that run was last heard.
    pub(crate) runs_heard: BTreeMap<MemberId, (BootId, Instant)>,
    pub(crate) next_care: Instant,
    pub(crate) admin: AdminState,
    /// The room on the disk, as the journal last said; none before it did.
    pub(crate) space: Option<Space>,
    pub(crate) alarms: AlarmState,
    pub(crate) flow: Flow,
    pub(crate) mover: Mover,
    pub(crate) synchronising: Synchronising,
    pub(crate) rebalance: Rebalance,
    pub(crate) repairs: Repairs,
    pub(crate) backup: Backup,
}

impl<R: EntryReader> Member<R> {
    /// Starts a member on what its disk holds. The first outputs (dial peers, write the new identity) are ready to be
    /// polled. Fails when the identity record cannot be read, or belongs to a member whose log is gone.
    pub fn new(config: MemberConfig, start: Start<R>) -> Result<Self, IdentityError> {
        let Start { boot, new_uuid, seed, recovered, reader, now, wall_ms } = start;
        let (identity, blank) = match &recovered.identity {
            Some(bytes) => (Identity::decode(bytes)?, false),
            None => (Identity::blank(new_uuid), true),
        };
        identity.check_log(&recovered)?;
        let mut member = Self {
            config,
            identity,
            boot,
            rng: Rng::new(seed),
            now,
            wall_ms,
            reader,
            outputs: VecDeque::new(),
            metrics: Metrics::default(),
            next_tick: now,
            stopping: None,
            was_ready: false,
            ready_at: BTreeMap::new(),
            host: None,
            crew: Box::new(InTurn),
            peers: Peers::default(),
            leaderships: Leaderships::default(),
            copies: Copies::default(),
            transient: TransientHost::default(),
            streams: Streams::default(),
            dirty_streams: BTreeSet::new(),
            meta_stream: MetaStream::default(),
            meta_dirty: false,
            early_meta_effects: Vec::new(),
            clients: BTreeMap::new(),
            touched: BTreeSet::new(),
            barriers: BTreeSet::new(),
            consumers: ConsumerIndex::default(),
            logins: BTreeMap::new(),
            next_password: 0,
            routed: Vec::new(),
            lease: Holder::default(),
            granter: Granter::default(),
            meta_applied: 0,
            meta_applied_news: false,
            meta_replay_until: None,
            owed_meta_effects: VecDeque::new(),
            unknown_groups_checked: false,
            births_deferred: false,
            own_batches: 0,
            identity_writes: Vec::new(),
            boot_asked: None,
            admitting: BTreeSet::new(),
            ending: BTreeSet::new(),
            runs_heard: BTreeMap::new(),
            next_care: now,
            admin: AdminState::default(),
            space: None,
            alarms: AlarmState::default(),
            flow: Flow::default(),
            mover: Mover::default(),
            synchronising: Synchronising::default(),
            rebalance: Rebalance::default(),
            repairs: Repairs::default(),
            backup: Backup::default(),
        };
        member.identity.forgetful |= recovered.forgetful;
        if blank || recovered.forgetful {
            member.write_identity(AfterIdentity::Nothing);
        }
        member.restore(recovered);
        Ok(member)
    }

    /// Brings the replicas back that were on disk.
    fn restore(&mut self, recovered: Recovered) {
        for finding in recovered.findings {
            self.event(Severity::Warning, finding.to_string());
        }
        if self.identity.membership.is_none() {
            return;
        }
        self.start_host();
        let now = self.now;
        for group in recovered.groups {
            let key = group.key;
            let Some(host) = self.host.as_mut() else { return };
            if let Err(error) = host.restore_group(group, now) {
                self.event(Severity::Error, format!("{key} was not restored: {error}"));
            }
        }
        self.note_metadata_generation();
        let Some(host) = self.host.as_ref() else { return };
        let commits: Vec<_> = host.groups().filter_map(|group| Some((group, host.status(group)?.commit))).collect();
        self.ready_at.extend(commits);
        self.meta_replay_until = self.ready_at.get(&GroupId::META).copied();
        self.dial_members();
    }

    /// Lets `crew` do the work of the replicas from now on; without one it is done in turn, on the calling thread.
    #[must_use]
    pub fn with_crew(mut self, crew: Box<dyn Crew<R> + Send>) -> Self {
        self.crew = crew;
        self
    }

    /// Takes one input in. `now` never goes back; `wall_ms` may jump and only stamps group time.
    pub fn handle(&mut self, now: Instant, wall_ms: u64, input: Input) {
        self.now = self.now.max(now);
        self.wall_ms = wall_ms;
        match input {
            Input::ClientConnected { conn, peer, tls_subject, plain_port } => {
                self.client_connected(conn, peer, tls_subject, plain_port);
            }
            Input::ClientBytes { conn, bytes } => self.client_bytes(conn, bytes),
            Input::ClientWritten { conn, total } => self.client_written(conn, total),
            Input::ClientClosed { conn } => self.client_closed(conn),
            Input::LinkUp { link, origin } => self.link_up(link, origin),
            Input::LinkFrame { link, bytes } => self.link_frame(link, bytes),
            Input::LinkDown { link, .. } => self.link_down(link),
            Input::Written(written) => {
                let batch = written.batch;
                if let Some(host) = self.host.as_mut() {
                    host.written(written, self.now);
                }
                self.identity_written(batch);
            }
            Input::Upkeep(upkeep) => self.journal_upkeep(upkeep),
            Input::Memory(memory) => self.memory_seen(memory),
            Input::WriteFailed { error } => {
                self.outputs.push_back(Output::Exit { clean: false, reason: format!("the journal failed: {error}") });
                self.stopping = Some(Stopping::Done);
            }
            Input::Hold(news) => self.hold_news(news),
            Input::PasswordChecked { token, ok } => self.password_checked(token, ok),
            Input::Admin { request, body } => self.admin(request, body),
            Input::Shutdown => self.begin_shutdown(),
        }
    }

    /// This disk is not part of the cluster any more: nothing that it holds may be confirmed or served.
    pub(crate) fn stop_left_behind(&mut self, reason: String) {
        self.outputs.push_back(Output::LeftBehind { reason });
        self.stopping = Some(Stopping::Done);
    }

    fn journal_upkeep(&mut self, upkeep: Upkeep) {
        for finding in &upkeep.findings {
            self.event(Severity::Error, format!("the journal is damaged: {finding}"));
        }
        if let Some(host) = self.host.as_mut() {
            host.handle_upkeep(&upkeep, self.now);
        }
        if let Some(space) = upkeep.space {
            let low_before = self.space.is_some_and(|before| before.low);
            if space.low != low_before {
                let text = match space.low {
                    true => format!("the disk is nearly full: {} MiB are free", space.free_bytes >> 20),
                    false => format!("the disk has room again: {} MiB are free", space.free_bytes >> 20),
                };
                self.event(if space.low { Severity::Error } else { Severity::Info }, text);
            }
            self.space = Some(space);
            self.look_at_alarms();
        }
    }

    /// Ends a round of inputs: what they caused leaves as one entry for each group and one frame for each peer.
    pub fn flush(&mut self, now: Instant) {
        self.now = self.now.max(now);
        loop {
            let mut any = self.drain_host();
            self.after_replay();
            self.adopt_groups();
            any |= self.release_visible();
            any |= self.release_held_back();
            any |= self.release_copied();
            self.report_applied();
            any |= self.pump_clients();
            any |= self.check_all_barriers();
            any |= self.send_streams();
            any |= self.run_transient();
            any |= self.propose_entries();
            if !any {
                break;
            }
        }
        self.announce();
        self.peers.flush(&mut self.outputs);
        self.flow.end_round();
    }

    /// Does what time asks for. Call it when [`Member::next_deadline`] has come; earlier or later does no harm.
    pub fn tick(&mut self, now: Instant, wall_ms: u64) {
        self.now = self.now.max(now);
        self.wall_ms = wall_ms;
        if let Some(host) = self.host.as_mut() {
            host.tick(self.now);
        }
        if self.now >= self.next_tick {
            if self.now.since(self.next_tick) >= PAUSED {
                // The process stood still. What the others said meanwhile is still to be read.
                self.peers.forgive_silence(self.now);
            }
            self.next_tick = self.now + TICK;
            self.tick_peers();
            self.tick_leases();
            self.tick_streams();
            self.tick_copies();
            self.fail_overdue_publishes();
            self.tick_consumers();
            self.tick_clients();
            self.look_at_alarms();
            self.tick_flow();
            self.leaderships.forget_payload();
            self.retry_proposals();
            self.care_for_members();
            self.tick_admin();
            self.release_held();
            self.destroy_unknown_groups();
            self.tend_deferred_replicas();
            self.tend_damaged();
            self.tick_mover();
            self.tick_synchronising();
            self.drive_barrier();
            self.drive_sealing();
            self.check_ready();
            self.tick_shutdown();
        }
        self.flush(now);
    }

    /// When [`Member::tick`] wants to be called next.
    pub fn next_deadline(&self) -> Instant {
        let host = self.host.as_ref().and_then(Hosts::next_deadline);
        host.map_or(self.next_tick, |due| due.min(self.next_tick))
    }

    /// The next thing to carry out, if any.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Who this member is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// This run of the member. It changes when the cluster has declared the run over.
    pub fn boot(&self) -> BootId {
        self.boot
    }

    /// True once the member has been ready (design §4.2); never false again while it runs.
    pub fn ready(&self) -> bool {
        self.was_ready
    }

    /// The replicas, for invariants of the simulator and for tests.
    pub fn host(&self) -> Option<&Hosts<R>> {
        self.host.as_ref()
    }

    /// Counters for `/metrics`.
    pub fn metrics(&self) -> Metrics {
        let channels: usize = self.clients.values().map(|client| client.channels.len()).sum();
        Metrics {
            connections: self.clients.len() as u64,
            channels: channels as u64,
            queues: self.metadata().map_or(0, |meta| meta.queue_count() as u64),
            groups: self.host.as_ref().map_or(0, |host| host.group_count() as u64),
            groups_leading: self.leaderships.led.len() as u64,
            unconfirmed_bytes: self.retained_bytes() as u64,
            blocked_connections: self.clients.values().filter(|client| client.blocked).count() as u64,
            memory_high_watermark_bytes: self.alarms.memory.high_watermark_bytes,
            memory_alarm: self.alarms.own.memory,
            disk_alarm: self.alarms.own.disk,
            cluster_alarm: self.alarms.cluster.any(),
            assembling_bytes: self.flow.assembling_bytes as u64,
            backlog_bytes: self.flow.backlog_bytes,
            transient_bytes: self.transient.held_bytes() as u64,
            ..self.metrics
        }
    }

    pub(crate) fn event(&mut self, severity: Severity, text: String) {
        self.outputs.push_back(Output::Event(Event { severity, text }));
    }

    pub(crate) fn write(&mut self, batch: Batch) {
        self.outputs.push_back(Output::Journal(batch));
    }

    pub(crate) fn oldest_write_age_ms(&self) -> u64 {
        self.host.as_ref().map_or(0, |host| host.oldest_write_age(self.now).as_millis() as u64)
    }

    /// The replay of group 0's log after a start is over.
    fn after_replay(&mut self) {
        let applied = self.host.as_ref().map_or(0, |host| host.applied(GroupId::META));
        if applied > self.meta_applied {
            self.meta_applied = applied;
            self.meta_applied_news = true;
        }
        if self.meta_replay_until.is_some_and(|until| applied >= until) {
            self.meta_replay_until = None;
            self.compare_with_metadata();
        }
    }

    /// Ready once every replica has reached the commit index that was seen at start, and the member is registered.
    fn check_ready(&mut self) {
        if self.was_ready || !self.lease_fresh() {
            return;
        }
        let Some(host) = self.host.as_ref() else { return };
        self.ready_at.retain(|group, commit| host.is_present(*group) && host.applied(*group) < *commit);
        if self.registered() && self.ready_at.is_empty() {
            self.was_ready = true;
            self.event(Severity::Info, "ready".into());
        }
    }

    /// True once this member is on its way out.
    pub(crate) fn stopping(&self) -> bool {
        self.stopping.is_some()
    }

    fn begin_shutdown(&mut self) {
        if self.stopping.is_some() {
            return;
        }
        let (now, until) = (self.now, self.now + DRAIN_FOR);
        let alone = self.peers.iter().all(|(_, peer)| peer.suspected);
        match self.host.as_mut() {
            Some(host) if !alone => {
                host.drain(until, now);
                self.stopping = Some(Stopping::Draining { until });
            }
            _ => self.stopping = Some(Stopping::Draining { until: now }),
        }
        self.tick_shutdown();
    }

    fn tick_shutdown(&mut self) {
        match self.stopping {
            Some(Stopping::Draining { until }) => {
                let leaderships = self.host.as_ref().map_or(0, Hosts::leaderships);
                if leaderships == 0 || self.now >= until {
                    self.close_clients("broker shutting down");
                    self.stopping = Some(Stopping::Closing { until: self.now + CLOSE_FOR });
                }
            }
            Some(Stopping::Closing { until }) if self.clients.is_empty() || self.now >= until => {
                self.stopping = Some(Stopping::Done);
                self.outputs.push_back(Output::Exit { clean: true, reason: "shut down as asked".into() });
            }
            _ => {}
        }
    }
}
