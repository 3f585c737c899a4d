//! What befalls disks, and transfers of Raft snapshots.

use holdfast_engine::{Input, Memory};
use holdfast_journal::Op;
use holdfast_replica::PeerStatus;

use super::{Event, World};
use crate::disk::{Damage, SimDisk};
use crate::mutants::Mutation;
use crate::nemesis::TransferHit;
use crate::process::Process;

/// A disk that is about to be full has less than this left.
const MOST_LEFT_BYTES: u64 = 1 << 20;

/// How often a journal without writes does what it does beside them, as the real one's thread.
pub(super) const IDLE_US: u64 = 1_000_000;

/// A cut that waits for a Raft snapshot to get so far.
#[derive(Clone, Copy, Debug)]
pub(super) struct TransferCut {
    percent: u8,
    hits: TransferHit,
    for_us: u64,
}

impl World {
    /// The next sync of a member's disk fails; the process must end, and starts again.
    pub fn fail_disk(&mut self, member: usize) {
        if self.processes[member].running.is_some() {
            self.note(format!("m{member}'s disk fails a sync"));
            self.processes[member].disk.fail_next_sync();
            self.troubled.insert(member);
        }
    }

    /// The next reads of a member's disk fail.
    pub fn fail_reads(&mut self, member: usize, count: u64) {
        if self.processes[member].running.is_some() {
            self.note(format!("m{member}'s disk fails {count} reads"));
            self.processes[member].disk.fail_reads(count);
            self.troubled.insert(member);
            self.rot.member = Some(member);
        }
    }

    /// A member's disk is full for a while.
    pub fn fill_disk(&mut self, member: usize, for_us: u64) {
        let disk = &self.processes[member].disk;
        let left = self.disk_rng.range(0, MOST_LEFT_BYTES);
        disk.set_capacity(Some(disk.used_bytes() + left));
        self.note(format!("m{member}'s disk has {left} bytes left"));
        self.troubled.insert(member);
        self.schedule(self.now_us + for_us, Event::DiskFreed { member });
    }

    /// A member's process takes more memory than it may, for a while.
    pub fn press_memory(&mut self, member: usize, for_us: u64) -> Result<(), String> {
        self.note(format!("m{member} takes too much memory"));
        self.schedule(self.now_us + for_us, Event::MemoryFreed { member });
        self.see_memory(member, 2)
    }

    /// The process looks at the memory that it takes, in parts of what it may.
    pub(super) fn see_memory(&mut self, member: usize, used_bytes: u64) -> Result<(), String> {
        self.give(member, Input::Memory(Memory { used_bytes, high_watermark_bytes: 1 }))
    }

    /// There is space again.
    pub fn free_disk(&mut self, member: usize) {
        if self.processes[member].disk.is_limited() {
            self.note(format!("m{member}'s disk has space"));
            self.processes[member].disk.set_capacity(None);
        }
    }

    /// Damages the disk of a member that is off.
    pub fn damage_disk(&mut self, member: usize, damage: Damage) {
        if let Some(what) = self.processes[member].disk.damage(damage, &mut self.disk_rng) {
            self.note(format!("m{member}'s disk: {what}"));
            self.damaged = Some(member);
            self.invariants.forget(member);
        }
    }

    /// Gives a member that is off an empty disk.
    pub fn wipe_disk(&mut self, member: usize) {
        self.note(format!("m{member}'s disk is a new one"));
        self.processes[member].disk = SimDisk::default();
        self.rot.forget(member);
        self.damaged = Some(member);
        self.invariants.forget(member);
    }

    /// The next transfer of a Raft snapshot that got so far is hit.
    pub fn cut_next_transfer(&mut self, percent: u8, hits: TransferHit, for_us: u64) {
        let percent = if hits == TransferHit::Receiver { 100 } else { percent };
        self.transfer_cut = Some(TransferCut { percent, hits, for_us });
    }

    /// A transfer from this member that got so far: to whom, and how far.
    fn transfer(&self, member: usize, least_percent: u8) -> Option<(usize, u8)> {
        let host = self.processes[member].running.as_ref()?.member.host()?;
        let statuses = host.groups().filter(|group| host.is_leading(*group)).filter_map(|group| host.status(group));
        let far_enough = |peer: PeerStatus| {
            Some((peer.replica.member, peer.snapshot_percent.filter(|sent| *sent >= least_percent)?))
        };
        let (to, percent) = statuses.flat_map(|status| status.peers).find_map(far_enough)?;
        let is_it = |process: &Process| {
            process.running.as_ref().and_then(|running| running.member.host()).is_some_and(|host| host.me() == to)
        };
        Some((self.processes.iter().position(is_it)?, percent))
    }

    pub(super) fn cut_transfer(&mut self, member: usize) {
        let Some(cut) = self.transfer_cut else { return };
        let Some((to, percent)) = self.transfer(member, cut.percent) else { return };
        self.transfer_cut = None;
        self.note(format!("a raft snapshot from m{member} to m{to} is cut at {percent} %"));
        let now = self.now_us;
        match cut.hits {
            TransferHit::Link => {}
            TransferHit::Sender => {
                self.crash(member, false);
                return self.schedule(now + cut.for_us, Event::Restart { member });
            }
            TransferHit::Receiver => {
                let at = now + self.network_rng.range(300, 12_000);
                return self.schedule(at, Event::PowerLoss { member: to, down_us: cut.for_us });
            }
        }
        for (from, to) in [(member, to), (to, member)] {
            self.conditions.cut(from, to, now, now + cut.for_us);
        }
    }

    /// The write that a process dies in is done in part.
    pub(super) fn half_done_write(&mut self, member: usize, mut running: crate::process::Running) {
        if running.writing.is_empty() {
            return;
        }
        let calls = self.disk_rng.range(0, 4);
        self.processes[member].disk.die_after(calls);
        let _ = running.finish_write();
    }

    pub(super) fn start_write(&mut self, member: usize) {
        let now = self.now_us;
        let process = &mut self.processes[member];
        let life = process.life;
        let extra = if now < process.stall.1 { process.stall.0 } else { 0 };
        let Some(running) = &mut process.running else { return };
        if running.queued.is_empty() || !running.writing.is_empty() {
            return;
        }
        running.writing = running.queued.drain(..).collect();
        let takes = self.disk_rng.range(150, 3_000) + extra;
        self.schedule(now + takes, Event::DiskDone { member, life });
    }

    pub(super) fn disk_done(&mut self, member: usize, life: u64) -> Result<(), String> {
        if self.processes[member].life != life {
            return Ok(());
        }
        self.finish_write(member, self.skips_sync(member))?;
        self.carry_out_holds(member)?;
        self.start_write(member);
        Ok(())
    }

    pub(super) fn finish_write(&mut self, member: usize, skip_sync: bool) -> Result<(), String> {
        let process = &mut self.processes[member];
        let Some(running) = &mut process.running else { return Ok(()) };
        let told = running.writing.iter().filter(|_| self.min_in_sync > 1);
        let ops: Vec<Op> = told.flat_map(|batch| batch.ops.iter().cloned()).collect();
        process.disk.skip_syncs(skip_sync);
        let outcome = running.finish_write().and_then(|written| Ok((written, running.keep_up()?)));
        process.disk.skip_syncs(false);
        let (written, upkeep) = match outcome {
            Ok(written) => written,
            Err(error) => return self.disk_failed(member, error),
        };
        self.invariants.copies.written(member, &ops);
        self.rot.remember(member, &written);
        for one in written {
            self.give(member, Input::Written(one))?;
        }
        upkeep.map_or(Ok(()), |upkeep| self.give(member, Input::Upkeep(upkeep)))
    }

    /// A disk may fail only where a fault was planted; its process must end then.
    fn disk_failed(&mut self, member: usize, error: String) -> Result<(), String> {
        if self.troubled.contains(&member) {
            return self.give(member, Input::WriteFailed { error });
        }
        Err(format!("m{member}: {error}"))
    }

    /// The journal's thread wakes without a write: a disk that has space again, or a chore that is done, is seen then.
    pub(super) fn idle_journal(&mut self, member: usize, life: u64) -> Result<(), String> {
        let now = self.now_us;
        let process = &mut self.processes[member];
        if process.life != life {
            return Ok(());
        }
        if process.is_paused(now) {
            let at = process.paused_until_us;
            self.schedule(at, Event::IdleJournal { member, life });
            return Ok(());
        }
        if process.running.is_some() {
            self.look_at_holds(member, false);
        }
        let Some(running) = &mut self.processes[member].running else { return Ok(()) };
        let kept_up = if running.writing.is_empty() { running.keep_up() } else { Ok(None) };
        self.schedule(now + IDLE_US, Event::IdleJournal { member, life });
        match kept_up {
            Ok(upkeep) => upkeep.map_or(Ok(()), |upkeep| self.give(member, Input::Upkeep(upkeep))),
            Err(error) => self.disk_failed(member, error),
        }
    }

    /// Planted bugs that call a write durable which is not.
    pub(super) fn skips_sync(&self, member: usize) -> bool {
        let Some(running) = &self.processes[member].running else { return false };
        let leads = |group: u64| running.views().any(|view| view.leading && view.group.0 == group);
        let is_led = |op: &Op| matches!(op, Op::Entry { key, .. } if leads(key.group));
        let writes_what_it_leads = || running.writing.iter().flat_map(|batch| &batch.ops).any(is_led);
        match self.mutation {
            Some(Mutation::SyncSkipped) => true,
            Some(Mutation::LeaderCountsItselfEarly) => writes_what_it_leads(),
            Some(Mutation::SnapshotCountedEarly) => {
                // The reset of a birth is at index 1.
                let installs = |op: &Op| matches!(op, Op::Reset { index: 2.., .. });
                running.writing.iter().flat_map(|batch| &batch.ops).any(installs)
            }
            Some(Mutation::FollowerRepliesEarly) => !writes_what_it_leads(),
            _ => false,
        }
    }
}
