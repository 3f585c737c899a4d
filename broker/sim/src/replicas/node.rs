//! One host with its journal and disk.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use holdfast_journal::{Batch, Chore, GroupKey, Journal, JournalConfig, JournalReader};
use holdfast_queue::ids::{BootId, GroupId, MemberId};
use holdfast_queue::time::Instant;
use holdfast_replica::{Envelope, GroupBirth, Host, HostConfig, HostOutput, ProposalId};

use super::machine::History;
use crate::disk::SimDisk;
use crate::process::small_limits;
use crate::rng::Rng;

type SimHost = Host<History, JournalReader<SimDisk>>;

struct Running {
    host: SimHost,
    journal: Journal<SimDisk>,
    chore: Option<Chore<SimDisk>>,
    queued: VecDeque<Batch>,
    writing: Vec<Batch>,
    tick_at: Option<Instant>,
    /// When each member was last heard, and whether it is suspected.
    heard: BTreeMap<MemberId, (Instant, bool, BootId)>,
}

/// A machine with its disk; the process comes and goes.
pub struct Node {
    index: usize,
    disk: SimDisk,
    running: Option<Running>,
    /// Grows at each start and crash.
    pub life: u64,
    /// Processes started.
    pub starts: u64,
    /// This run.
    pub boot: BootId,
    /// Extra time of a write.
    pub stall_us: u64,
}

fn host_config() -> HostConfig {
    HostConfig { cluster: 9, ..small_limits() }
}

impl Node {
    pub fn new(index: usize) -> Self {
        let disk = SimDisk::default();
        Self { index, disk, running: None, life: 0, starts: 0, boot: BootId(0), stall_us: 0 }
    }

    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    pub fn host(&self) -> Option<&SimHost> {
        self.running.as_ref().map(|running| &running.host)
    }

    /// Starts on what the disk holds. Groups that the disk does not know yet are born, as metadata would have it.
    pub fn start(&mut self, now: Instant, groups: &[GroupKey], rng: &mut Rng) -> Result<(), String> {
        let nonce = rng.draw();
        let small_checkpoint_bytes = if nonce.is_multiple_of(2) { 1024 } else { 0 };
        let segment_bytes = 64 << 10;
        let config = JournalConfig {
            segment_bytes,
            block_bytes: 512,
            nonce,
            small_checkpoint_bytes,
            ..JournalConfig::default()
        };
        let opened = Journal::open(self.disk.clone(), config);
        let (journal, recovered) = opened.map_err(|error| format!("m{}: {error}", self.index))?;
        let me = MemberId(self.index as u64 + 1);
        let mut host = SimHost::new(host_config(), me, rng.draw(), journal.reader(), now);
        for group in recovered.groups {
            host.restore_group(group, now).map_err(|error| error.to_string())?;
        }
        for key in groups {
            let voters: Vec<MemberId> = (1..=3).map(MemberId).collect();
            let leader = Some(voters[key.group as usize % voters.len()]);
            let birth = GroupBirth { key: *key, voters, learners: Vec::new(), leader, machine: History::default() };
            if host.key(GroupId(key.group)).is_none() {
                host.create_group(birth, now).map_err(|error| error.to_string())?;
            }
        }
        self.life += 1;
        self.starts += 1;
        self.boot = BootId(rng.draw());
        self.running = Some(Running {
            host,
            journal,
            chore: None,
            queued: VecDeque::new(),
            writing: Vec::new(),
            tick_at: None,
            heard: BTreeMap::new(),
        });
        Ok(())
    }

    /// Ends the process, in the middle of the write under way if there is one.
    pub fn crash(&mut self, power_loss: bool, rng: &mut Rng) {
        let Some(mut running) = self.running.take() else { return };
        self.life += 1;
        if !running.writing.is_empty() {
            self.disk.die_after(rng.range(0, 6));
            drop(running.journal.write_many(&running.writing));
        }
        if power_loss { self.disk.power_loss(rng) } else { self.disk.process_crash() }
    }

    pub fn poll(&mut self) -> Option<HostOutput<u64>> {
        self.running.as_mut()?.host.poll()
    }

    pub fn tick(&mut self, now: Instant) -> Result<(), String> {
        let Some(running) = &mut self.running else { return Ok(()) };
        running.tick_at = None;
        running.host.tick(now);
        Ok(())
    }

    /// The time of a tick that is not scheduled yet.
    pub fn next_tick(&mut self) -> Option<Instant> {
        let running = self.running.as_mut()?;
        let due = running.host.next_deadline()?;
        if running.tick_at.is_some_and(|at| at <= due) {
            return None;
        }
        running.tick_at = Some(due);
        Some(due)
    }

    pub fn envelope(&mut self, from: MemberId, envelope: Envelope, now: Instant) -> Result<(), String> {
        if let Some(running) = &mut self.running {
            running.host.handle_envelope(from, envelope, now);
        }
        Ok(())
    }

    pub fn queue_write(&mut self, batch: Batch) {
        if let Some(running) = &mut self.running {
            running.queued.push_back(batch);
        }
    }

    /// Starts a write of what is queued; returns how long it takes.
    pub fn begin_write(&mut self, rng: &mut Rng, faults: bool) -> Option<u64> {
        let running = self.running.as_mut()?;
        if !running.writing.is_empty() || running.queued.is_empty() {
            return None;
        }
        running.writing = running.queued.drain(..).collect();
        let slow = if faults && rng.chance(3) { rng.range(0, 100_000) } else { 0 };
        Some(rng.range(100, 4_000) + slow + self.stall_us)
    }

    pub fn finish_write(&mut self, now: Instant) -> Result<(), String> {
        let Some(running) = &mut self.running else { return Ok(()) };
        let batches = std::mem::take(&mut running.writing);
        let written = running.journal.write_many(&batches).map_err(|error| format!("m{}: {error}", self.index))?;
        for one in &written {
            running.host.handle_written(one, now);
        }
        // A chore that was begun after one write ends after the next.
        if let Some(chore) = running.chore.take() {
            running.journal.chore_done(chore.run()).map_err(|error| format!("m{}: {error}", self.index))?;
        }
        running.chore = running.journal.next_chore();
        let upkeep = running.journal.upkeep().map_err(|error| format!("m{}: {error}", self.index))?;
        if let Some(upkeep) = upkeep {
            running.host.handle_upkeep(&upkeep, now);
        }
        Ok(())
    }

    /// What member heartbeats tell: a member is alive in this run of it, or silent.
    pub fn heard(
        &mut self,
        from: MemberId,
        boot: Option<BootId>,
        now: Instant,
        suspect_after_us: u64,
    ) -> Result<(), String> {
        let Some(running) = &mut self.running else { return Ok(()) };
        let known = running.heard.entry(from).or_insert((now, false, BootId(0)));
        match boot {
            Some(boot) => {
                if known.1 || known.2 != boot {
                    running.host.member_returned(from, boot, now);
                }
                *known = (now, false, boot);
            }
            None if !known.1 && now.0 > known.0.0 + suspect_after_us => {
                known.1 = true;
                running.host.member_suspected(from, now);
            }
            None => {}
        }
        Ok(())
    }

    pub fn propose(&mut self, group: GroupId, payload: Bytes) -> Option<ProposalId> {
        self.running.as_mut()?.host.propose(group, payload).ok()
    }

    pub fn transfer(&mut self, group: GroupId, to: MemberId) {
        if let Some(running) = &mut self.running {
            let _ = running.host.transfer_leader(group, to);
        }
    }

    pub fn describe(&self, group: GroupId) -> String {
        let Some(status) = self.host().and_then(|host| host.status(group)) else {
            return format!("m{} is down", self.index);
        };
        format!(
            "m{} {:?} term {} leader {:?} commit {} applied {} last {} compacted {} quiesced {}",
            self.index,
            status.role,
            status.term,
            status.leader,
            status.commit,
            status.applied,
            status.last,
            status.compacted,
            status.quiesced
        )
    }
}
