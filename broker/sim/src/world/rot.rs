//! Records that rot on the disk of a member while it runs, and what finds them: a scrub, a delivery, a read of the log, or
//! at last a look at everything.

use std::collections::VecDeque;

use holdfast_engine::{Input, Metrics};
use holdfast_journal::{Damage, EntryReader, Location, Upkeep, Written};
use holdfast_queue::Machine;
use holdfast_queue::ids::GroupId;
use holdfast_replica::PayloadError;

use super::{Event, World};
use crate::process::Running;

/// Places of records that are remembered of each member: enough to reach back over several segments.
const REMEMBERED: usize = 20_000;
/// A scrub comes again after this, so many times: what rotted in the open segment is in a sealed one by then.
const SCRUB_AGAIN_US: u64 = 1_500_000;
const SCRUBS: u8 = 4;
/// Of a hundred records so many are of queues, whatever their share on the disk is: a replica of the metadata is not mended.
const OF_QUEUES_PERCENT: u64 = 90;
/// A checkpoint is read at a start only, so there is one this long after its rot.
const CHECKPOINT_SHOWS_US: u64 = 200_000;

/// Where something rots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RotIn {
    /// Records in segments that are written to no more: a scrub finds it.
    Sealed,
    /// Records in the segment that is written to: a read finds it, or a scrub once the segment is full.
    Open,
    /// A checkpoint. It is read at a start, so the process is killed soon after.
    Checkpoint,
}

/// How replicas with damage fared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Healed {
    /// Replicas that were found to be damaged while they ran.
    pub found: u64,
    /// Replicas that got back what they had lost, at a start too.
    pub mended: u64,
    /// Replicas that were given up, and copied anew.
    pub copied_anew: u64,
}

impl Healed {
    /// Adds what a process has counted.
    pub fn add(&mut self, metrics: &Metrics) {
        self.found += metrics.journal_damages;
        self.mended += metrics.replicas_mended;
        self.copied_anew += metrics.replicas_quarantined;
    }
}

/// What rots, and what is known for it.
#[derive(Default)]
pub(super) struct Rot {
    /// The run has such a strike: places are remembered.
    is_planned: bool,
    /// The member whose disk rots. No other disk is touched.
    pub member: Option<usize>,
    /// Where each member's journal put its last records.
    places: Vec<VecDeque<(GroupId, u64, Location)>>,
    /// What processes that have ended had counted.
    pub healed: Healed,
}

impl Rot {
    pub fn new(is_planned: bool) -> Self {
        Self { is_planned, ..Self::default() }
    }

    pub fn remember(&mut self, member: usize, written: &[Written]) {
        if !self.is_planned {
            return;
        }
        if self.places.len() <= member {
            self.places.resize_with(member + 1, VecDeque::new);
        }
        let places = &mut self.places[member];
        for record in written.iter().flat_map(|one| &one.records) {
            places.push_back((GroupId(record.key.group), record.index, record.location));
        }
        places.drain(..places.len().saturating_sub(REMEMBERED));
    }

    pub fn forget(&mut self, member: usize) {
        if let Some(places) = self.places.get_mut(member) {
            places.clear();
        }
    }
}

/// A record of an index that the replica here needs, now or after a restart.
fn is_needed(running: &Running, group: GroupId, index: u64) -> bool {
    let Some(host) = running.member.host() else { return false };
    let Some(status) = host.status(group).filter(|status| status.quarantined.is_none()) else { return false };
    let is_live = || host.machine(group).is_some_and(|machine| machine.live_indexes().binary_search(&index).is_ok());
    (index > status.checkpoint && index <= status.last) || is_live()
}

impl World {
    /// True unless the disk of another member was touched before.
    #[must_use]
    pub fn may_damage(&self, member: usize) -> bool {
        self.damaged.or(self.rot.member).is_none_or(|damaged| damaged == member)
    }

    /// The member whose disk rots while it runs.
    #[must_use]
    pub fn rotten(&self) -> Option<usize> {
        self.rot.member
    }

    /// So many records on the disk of a member that runs are not what was written any more; a scrub begins after
    /// `scrub_us`.
    pub fn rot(&mut self, member: usize, place: RotIn, records: u64, scrub_us: u64) {
        if self.processes[member].running.is_none() || !self.may_damage(member) {
            return;
        }
        let hit = match place {
            RotIn::Checkpoint => {
                let what = self.processes[member].disk.damage(crate::disk::Damage::CheckpointBit, &mut self.disk_rng);
                what.inspect(|_| {
                    let at = self.now_us + CHECKPOINT_SHOWS_US;
                    self.schedule(at, Event::PowerLoss { member, down_us: CHECKPOINT_SHOWS_US });
                })
            }
            RotIn::Sealed | RotIn::Open => self.rot_records(member, place == RotIn::Open, records),
        };
        let Some(what) = hit else { return };
        self.note(format!("m{member}'s disk rots: {what}"));
        self.rot.member = Some(member);
        self.invariants.forget(member);
        let life = self.processes[member].life;
        self.schedule(self.now_us + scrub_us, Event::Scrub { member, life, again: SCRUBS });
    }

    /// Rots records that are needed; which, in words.
    fn rot_records(&mut self, member: usize, in_open: bool, count: u64) -> Option<String> {
        let process = &self.processes[member];
        let running = process.running.as_ref()?;
        let (reader, rng) = (running.journal.reader(), &mut self.disk_rng);
        let places = self.rot.places.get(member)?;
        let open = places.back()?.2.segment;
        let of_queues = rng.chance(OF_QUEUES_PERCENT);
        let is_victim = |(group, index, location): &&(GroupId, u64, Location)| {
            (*group == GroupId::META) != of_queues
                && (location.segment >= open) == in_open
                && location.len > 0
                && is_needed(running, *group, *index)
                && reader.read(*location).is_ok()
        };
        let mut victims: Vec<_> = places.iter().filter(is_victim).copied().collect();
        let mut words = Vec::new();
        for _ in 0..count {
            if victims.is_empty() {
                break;
            }
            let (group, index, location) = victims.swap_remove(rng.index(victims.len()));
            if process.disk.rot(location.segment, location.offset, location.len, rng) {
                words.push(format!("{index} of group {group} in segment {}", location.segment));
            }
        }
        (!words.is_empty()).then(|| words.join(", "))
    }

    pub(super) fn scrub(&mut self, member: usize, life: u64, again: u8) {
        let process = &mut self.processes[member];
        if process.life != life {
            return;
        }
        if let Some(running) = &mut process.running {
            running.journal.begin_scrub();
        }
        if again > 0 {
            self.schedule(self.now_us + SCRUB_AGAIN_US, Event::Scrub { member, life, again: again - 1 });
        }
    }

    /// What replicas need of the disk that rots and cannot read: what no scrub and no delivery came across.
    fn unread(&self) -> Option<(usize, Vec<Damage>)> {
        let member = self.rot.member?;
        let host = self.processes[member].running.as_ref()?.member.host()?;
        let mut damaged = Vec::new();
        for group in host.groups() {
            let (Some(key), Some(status)) = (host.key(group), host.status(group)) else { continue };
            let live = host.machine(group).map(Machine::live_indexes).unwrap_or_default();
            for index in live.into_iter().chain(status.checkpoint + 1..=status.last) {
                if let Err(PayloadError::Read(error)) = host.payload(group, index) {
                    damaged.push(Damage { key, index, why: error.to_string() });
                }
            }
        }
        Some((member, damaged)).filter(|(_, damaged)| !damaged.is_empty())
    }

    /// Tells the member whose disk rots of everything that it cannot read, as a scrub of the open segment would.
    ///
    /// # Errors
    /// When carrying out what the member wants fails.
    pub fn look_at_everything(&mut self) -> Result<(), String> {
        let Some((member, damaged)) = self.unread() else { return Ok(()) };
        self.note(format!("m{member} finds {} records that cannot be read", damaged.len()));
        self.give(member, Input::Upkeep(Upkeep { damaged, ..Upkeep::default() }))
    }

    /// True once the disk that rots holds again all that it should: mended, or copied anew.
    #[must_use]
    pub fn is_whole_again(&self) -> bool {
        let Some(member) = self.rot.member else { return true };
        let host = self.processes[member].running.as_ref().and_then(|running| running.member.host());
        let takes_part =
            |group: GroupId| host.and_then(|host| host.status(group)).is_some_and(|one| one.quarantined.is_none());
        host.is_some_and(|host| host.groups().all(takes_part)) && self.unread().is_none()
    }

    /// How replicas with damage fared so far.
    ///
    /// # Errors
    /// When a replica was found to be damaged although no disk was touched.
    pub fn healed(&self) -> Result<Healed, String> {
        let mut healed = self.rot.healed;
        for running in self.processes.iter().filter_map(|process| process.running.as_ref()) {
            healed.add(&running.member.metrics());
        }
        match self.damaged.or(self.rot.member).is_none() && healed.found > 0 {
            true => Err(format!("replicas were found to be damaged on sound disks: {healed:?}")),
            false => Ok(healed),
        }
    }
}
