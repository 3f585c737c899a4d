//! One broker process of the simulation: the production member and journal over a simulated disk.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use holdfast_engine::backup::HoldOrder;
use holdfast_engine::identity::MemberUuid;
use holdfast_engine::{Budgets, Crew, Input, LinkId, Member, MemberConfig, Start, Worker};
use holdfast_journal::{
    Batch, Chore, EntryReader, Journal, JournalConfig, JournalReader, Op, Recovered, Upkeep, Written,
};
use holdfast_queue::Machine;
use holdfast_queue::ids::{BootId, GroupId};
use holdfast_queue::time::Instant;
use holdfast_replica::HostConfig;

use crate::disk::SimDisk;
use crate::mutants::Mutation;
use crate::rng::Rng;

/// What a scrub may read between two writes: a segment, since all are smaller.
const SCRUB_STEP_BYTES: u64 = 1 << 20;

/// Every other process has budgets so small that publishers wait and deliveries are left in the journal all the time.
fn budgets_for(seed: u64) -> Budgets {
    if seed.is_multiple_of(2) {
        return Budgets::default();
    }
    Budgets { unconfirmed_bytes: 4_000, client_backlog_bytes: 500, backlog_bytes: 2_000, ..Budgets::default() }
}

/// Processes have one, two or three workers, and another number after a restart.
fn workers_for(seed: u64) -> usize {
    1 + (seed / 2 % 3) as usize
}

/// Lets the workers of a member work in an order that the seed decides, and gives them back in another one. They share
/// nothing, so this is all that threads can do to them.
struct SeededCrew(Rng);

impl<R: EntryReader> Crew<R> for SeededCrew {
    fn work(&mut self, mut workers: Vec<Box<Worker<R>>>) -> Vec<Box<Worker<R>>> {
        self.shuffle(&mut workers);
        for worker in &mut workers {
            worker.work();
        }
        self.shuffle(&mut workers);
        workers
    }
}

impl SeededCrew {
    fn shuffle<T>(&mut self, all: &mut [T]) {
        for last in (1..all.len()).rev() {
            all.swap(last, self.0.index(last + 1));
        }
    }
}

/// Limits so small that checkpoints, compaction and Raft snapshots happen many times within a run.
#[must_use]
pub fn small_limits() -> HostConfig {
    HostConfig {
        checkpoint_entries: 60,
        checkpoint_bytes: 48 << 10,
        max_log_bytes: 128 << 10,
        cache_bytes: 16 << 10,
        max_append_bytes: 8 << 10,
        max_inflight_appends: 8,
        snapshot_chunk_bytes: 4 << 10,
        snapshot_resend: Duration::from_millis(200),
        snapshot_give_up: Duration::from_secs(5),
        ..HostConfig::default()
    }
}

/// The member type that runs in production, over the simulated disk.
pub type SimMember = Member<JournalReader<SimDisk>>;

/// A replica as its member sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupView {
    /// The group.
    pub group: GroupId,
    /// Counter and nonce of its incarnation.
    pub incarnation: (u32, u64),
    /// The term.
    pub term: u64,
    /// The member leads it in this term.
    pub leading: bool,
    /// What its machine has taken in.
    pub applied: u64,
}

/// A running process.
pub struct Running {
    /// The production member.
    pub member: SimMember,
    /// Its journal.
    pub journal: Journal<SimDisk>,
    /// The journal's background work under way.
    pub chore: Option<Chore<SimDisk>>,
    /// Batches that wait for the write under way to end.
    pub queued: VecDeque<Batch>,
    /// Batches that were ever handed over, and those that are durable.
    pub handed: u64,
    /// See `handed`.
    pub written: u64,
    /// Orders about holds, each with the number of batches that come before it.
    pub holds: VecDeque<(u64, HoldOrder)>,
    /// Batches in the write under way.
    pub writing: Vec<Batch>,
    /// When the earliest tick that was scheduled fires.
    pub tick_at_us: u64,
    /// Addresses that it wants connections to, and the present back-off.
    pub dials: BTreeMap<String, u64>,
    /// Its links, by the ids it knows them under, as indexes into the world's links.
    pub links: BTreeMap<LinkId, u64>,
}

/// A member's machine: its disk stays when the process goes.
pub struct Process {
    /// Its name.
    pub name: String,
    /// Its peer address.
    pub address: String,
    /// Its zone.
    pub zone: String,
    /// Its disk.
    pub disk: SimDisk,
    /// Limits of replication.
    pub limits: HostConfig,
    /// Preallocated size of a journal's segment.
    pub segment_bytes: u64,
    /// The process, when it runs.
    pub running: Option<Running>,
    /// Grows at each start: events of an earlier life are dropped.
    pub life: u64,
    /// The process is stopped (SIGSTOP) until then.
    pub paused_until_us: u64,
    /// Inputs that arrived while it was stopped.
    pub backlog: VecDeque<Input>,
    /// Extra time that each disk write takes, until the time given.
    pub stall: (u64, u64),
}

impl Process {
    /// A machine with an empty disk, switched off.
    #[must_use]
    pub fn new(index: usize) -> Self {
        Self {
            name: format!("m{index}"),
            address: format!("m{index}:5680"),
            zone: format!("zone-{index}"),
            disk: SimDisk::default(),
            limits: HostConfig::default(),
            segment_bytes: 256 << 10,
            running: None,
            life: 0,
            paused_until_us: 0,
            backlog: VecDeque::new(),
            stall: (0, 0),
        }
    }

    /// Starts the process on what its disk holds. Gives the log entries that were found there, if `tell` asks for them: all
    /// are durable, those of a write that the last process died in too.
    ///
    /// # Errors
    /// When the journal or the identity cannot be read: after anything but planted rot that is a bug.
    pub fn start(
        &mut self,
        now_us: u64,
        wall_ms: u64,
        rng: &mut Rng,
        mutation: Option<Mutation>,
        tell: bool,
    ) -> Result<Vec<Op>, String> {
        let nonce = rng.draw();
        let config = JournalConfig {
            segment_bytes: self.segment_bytes,
            nonce,
            // The histories are short: with the true limit hardly any checkpoint would be a file.
            small_checkpoint_bytes: if nonce.is_multiple_of(2) { 1024 } else { 0 },
            low_space_bytes: 4 * self.segment_bytes,
            reserve_bytes: 2 * self.segment_bytes,
            ..JournalConfig::default()
        };
        let (journal, mut recovered) =
            Journal::open(self.disk.clone(), config).map_err(|error| format!("{}: {error}", self.name))?;
        crate::mutants::at_disk(mutation, &self.disk);
        let found = if tell { entries_of(&recovered, &journal.reader()) } else { Vec::new() };
        crate::mutants::at_recovery(mutation, &mut recovered);
        let start = Start {
            boot: BootId(rng.draw()),
            new_uuid: MemberUuid(u128::from(rng.draw()) << 64 | u128::from(rng.draw())),
            seed: rng.draw(),
            recovered,
            reader: journal.reader(),
            now: Instant(now_us),
            wall_ms,
        };
        let config = MemberConfig {
            name: self.name.clone(),
            zone: self.zone.clone(),
            advertise_peer: self.address.clone(),
            replication: self.limits.clone(),
            budgets: budgets_for(start.seed),
            workers: workers_for(start.seed),
            ..MemberConfig::default()
        };
        let crew = Box::new(SeededCrew(Rng::new(start.seed)));
        let member = Member::new(config, start).map_err(|error| format!("{}: {error}", self.name))?.with_crew(crew);
        self.life += 1;
        self.backlog.clear();
        self.paused_until_us = 0;
        self.running = Some(Running {
            member,
            journal,
            chore: None,
            queued: VecDeque::new(),
            handed: 0,
            written: 0,
            holds: VecDeque::new(),
            writing: Vec::new(),
            tick_at_us: 0,
            dials: BTreeMap::new(),
            links: BTreeMap::new(),
        });
        Ok(found)
    }

    /// True while it is stopped.
    #[must_use]
    pub fn is_paused(&self, now_us: u64) -> bool {
        now_us < self.paused_until_us
    }
}

fn entries_of(recovered: &Recovered, reader: &JournalReader<SimDisk>) -> Vec<Op> {
    let entries = recovered.groups.iter().flat_map(|group| group.entries.iter().map(|entry| (group.key, *entry)));
    entries
        .filter_map(|(key, entry)| {
            let payload = reader.read(entry.location).ok()?;
            Some(Op::Entry { key, index: entry.index, term: entry.term, payload })
        })
        .collect()
}

impl Running {
    /// Its replicas, as they stand.
    pub fn views(&self) -> impl Iterator<Item = GroupView> + '_ {
        let host = self.member.host();
        host.into_iter().flat_map(|host| {
            host.groups().filter_map(|group| {
                let key = host.key(group)?;
                let leading = host.is_leading(group);
                let incarnation = (key.incarnation.counter, key.incarnation.nonce);
                Some(GroupView { group, incarnation, term: host.term(group), leading, applied: host.applied(group) })
            })
        })
    }

    /// True once the metadata, as this member has them, show a run as ended.
    #[must_use]
    pub fn has_ended(&self, boot: BootId) -> bool {
        let meta = self.member.host().and_then(|host| host.machine(GroupId::META)?.meta());
        meta.is_some_and(|meta| meta.has_ended(boot))
    }

    /// The digest of a group's machine.
    #[must_use]
    pub fn digest(&self, group: GroupId) -> Option<u64> {
        Some(self.member.host()?.machine(group)?.digest())
    }

    /// Ends the write under way: everything in it is durable.
    ///
    /// # Errors
    /// When the disk failed.
    pub fn finish_write(&mut self) -> Result<Vec<Written>, String> {
        let batches = std::mem::take(&mut self.writing);
        let written = self.journal.write_many(&batches).map_err(|error| error.to_string())?;
        self.written += batches.len() as u64;
        Ok(written)
    }

    /// What the journal does beside its writes: a chore that was begun after one write ends after the next.
    ///
    /// # Errors
    /// When the disk failed.
    pub fn keep_up(&mut self) -> Result<Option<Upkeep>, String> {
        if let Some(chore) = self.chore.take() {
            self.journal.chore_done(chore.run()).map_err(|error| error.to_string())?;
        }
        if self.journal.is_scrubbing() {
            self.journal.grant(SCRUB_STEP_BYTES);
        }
        self.chore = self.journal.next_chore();
        self.journal.upkeep().map_err(|error| error.to_string())
    }
}
