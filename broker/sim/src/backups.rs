//! Barriers under load while members are killed, stopped and cut off. After each barrier that succeeds the held files of two
//! members are copied slowly, as they are at that later time, and the outside ledger judges what the copies hold at the cut.
//!
//! Three promises are checked. What was confirmed before the barrier was asked for, and had not been delivered to anybody
//! when it was answered, is there. Nothing is there that was not sent, or whose ack was durable before the barrier was asked
//! for. And a message that its reader moves to another queue, with an ack only after the confirm, is in one of the two.
//! Out of some of the copies a new cluster is made, and consumed (`restored`).

use std::collections::{BTreeMap, BTreeSet};

use holdfast_engine::admin::AdminAction;
use holdfast_engine::backup::files::{MANIFEST, contents, read_file, verify};
use holdfast_engine::backup::{BarrierRequest, Manifest, MemberEntry};
use holdfast_engine::restore::HoldCopy;
use holdfast_journal::{FileSystem, HoldingFileSystem, StoredFile};

use crate::client::Role;
use crate::disk::SimDisk;
use crate::ledger::{Ledger, MessageId, decode_body};
use crate::plan::Profile;
use crate::restored;
use crate::rng::Rng;
use crate::run::{Failure, Summary, Watch, found};
use crate::world::{Event, MEMBERS, World};

const SECOND_US: u64 = 1_000_000;
/// Virtual time with faults.
const FAULTS_US: u64 = 60 * SECOND_US;
/// One more barrier must succeed this long after the last fault.
const SUCCEEDS_WITHIN_US: u64 = 60 * SECOND_US;
/// A barrier that was asked of a member that died since is not waited for any longer.
const ANSWERED_WITHIN_US: u64 = 90 * SECOND_US;
/// A copy is made in so many pieces, at different times.
const PIECES: u64 = 12;
/// The longest that it takes.
const COPIED_WITHIN_US: u64 = 6 * SECOND_US;
const HOLD_SECONDS: u64 = 120;
/// Of a hundred backups so many are restored.
const RESTORED_PERCENT: u64 = 25;

/// What the ledgers knew when a barrier was asked for.
struct Before {
    confirmed: BTreeMap<String, BTreeSet<MessageId>>,
    acked: BTreeMap<String, BTreeSet<MessageId>>,
}

/// What they knew when it was answered.
struct After {
    delivered: BTreeMap<String, BTreeSet<MessageId>>,
    sent: BTreeMap<String, BTreeSet<MessageId>>,
}

/// A slow copy of one member's held files.
struct Copy {
    member: MemberEntry,
    hold: SimDisk,
    files: BTreeMap<String, Vec<u8>>,
}

enum Stage {
    Idle { next_us: u64 },
    Asked { request: u64, since_us: u64, before: Before },
    Copying { manifest: Box<Manifest>, copies: Vec<Copy>, piece: u64, next_us: u64, before: Before, after: After },
}

struct Play<'a> {
    world: &'a mut World,
    rng: &'a mut Rng,
    stage: Stage,
    asked: u64,
    succeeded: u64,
}

/// Runs one seed; with `live`, before the eyes of a person.
///
/// # Errors
/// The broken promise with the trace that led to it.
pub fn run_seed(seed: u64, live: Option<Watch>) -> Result<Summary, Box<Failure>> {
    crate::mutants::plant(None);
    let mut rng = Rng::new(seed ^ 0x0062_6163_6b75_7073);
    let fail = |what: String, world: Option<&World>| {
        let trace = world.map(|world| world.trace.lines().map(str::to_owned).collect()).unwrap_or_default();
        Box::new(Failure { seed, what, trace })
    };
    let mut plan = Profile::Mixed.plan(seed);
    plan.min_in_sync = 0;
    let mut world = World::new(&mut rng, &plan, None).map_err(|what| fail(what, None))?;
    world.trace.live = live.is_some();
    world.watched = live.and_then(|watch| watch.group);
    let outcome = play(&mut world, &mut rng);
    outcome.map_err(|what| fail(what, Some(&world)))
}

fn play(world: &mut World, rng: &mut Rng) -> Result<Summary, String> {
    found(world)?;
    for _ in 0..2 {
        world.add_client("orders", Role::Producer { total: rng.range(3_000, 8_000), eagerness: 20, confirms: 90 });
    }
    world.add_client("orders", Role::Consumer { prefetch: rng.range(1, 50) as u16 });
    world.add_client("outbox", Role::Producer { total: 3, eagerness: 50, confirms: 100 });
    let end = world.now_us + 30 * SECOND_US;
    while world.ledgers.get("outbox").is_none_or(|ledger| ledger.confirmed_count() < 3) {
        if !world.step(end)? {
            return Err("the queue to move to was not declared".to_owned());
        }
    }
    for _ in 0..2 {
        world.add_client("inbox", Role::Producer { total: rng.range(3_000, 8_000), eagerness: 20, confirms: 100 });
    }
    world.add_client("inbox", Role::Mover { to: "outbox" });
    let stage = Stage::Idle { next_us: world.now_us + 2 * SECOND_US };
    let mut play = Play { world, rng, stage, asked: 0, succeeded: 0 };
    play.under_faults()?;
    play.afterwards()?;
    play.judge()
}

impl Play<'_> {
    fn under_faults(&mut self) -> Result<(), String> {
        let end = self.world.now_us + FAULTS_US;
        let mut next_fault = self.world.now_us + self.rng.range(4 * SECOND_US, 8 * SECOND_US);
        while self.world.now_us < end {
            if self.world.now_us >= next_fault {
                self.strike();
                next_fault = self.world.now_us + self.rng.range(SECOND_US, 9 * SECOND_US);
            }
            self.step(next_fault.min(end))?;
        }
        Ok(())
    }

    fn afterwards(&mut self) -> Result<(), String> {
        let wanted = self.succeeded + 1;
        let end = self.world.now_us + ANSWERED_WITHIN_US + SUCCEEDS_WITHIN_US;
        while self.succeeded < wanted {
            if self.world.now_us >= end {
                return Err("no barrier succeeded although nothing was wrong any more".to_owned());
            }
            self.step(end)?;
        }
        Ok(())
    }

    fn judge(&self) -> Result<Summary, String> {
        let violations: Vec<&String> =
            self.world.ledgers.values().flat_map(|ledger| ledger.violations()).take(5).collect();
        if !violations.is_empty() {
            return Err(format!("{violations:?}"));
        }
        Ok(Summary {
            confirmed: self.world.ledgers.values().map(Ledger::confirmed_count).sum(),
            consumed: self.succeeded,
            leaderships: self.world.invariants.leaderships(),
            starts: self.world.processes.iter().map(|process| process.life).sum(),
            steps: self.world.steps,
            virtual_us: self.world.now_us,
            ..Summary::default()
        })
    }

    fn strike(&mut self) {
        let (victim, other) = (self.rng.index(MEMBERS), self.rng.index(MEMBERS));
        match self.rng.range(0, 100) {
            0..45 => {
                let power_loss = self.rng.chance(40);
                self.world.crash(victim, power_loss);
                let at = self.world.now_us + self.rng.range(SECOND_US / 5, 5 * SECOND_US);
                self.world.schedule(at, Event::Restart { member: victim });
            }
            45..65 => {
                let for_us = self.rng.range(100_000, 3_000_000);
                self.world.pause(victim, for_us);
            }
            65..85 if victim != other => {
                let now = self.world.now_us;
                self.world.conditions.cut(victim, other, now, now + self.rng.range(SECOND_US / 2, 4 * SECOND_US));
            }
            _ => {
                let client = self.rng.index(self.world.clients.len());
                self.world.cut_client(client);
            }
        }
    }

    /// One step of the world, and what follows for the backup under way.
    fn step(&mut self, until_us: u64) -> Result<(), String> {
        let wakes = match &self.stage {
            Stage::Idle { next_us } | Stage::Copying { next_us, .. } => *next_us,
            Stage::Asked { since_us, .. } => since_us + ANSWERED_WITHIN_US,
        };
        self.world.step(until_us.min(wakes.max(self.world.now_us)))?;
        let stage = std::mem::replace(&mut self.stage, Stage::Idle { next_us: 0 });
        self.stage = self.go_on(stage)?;
        Ok(())
    }

    fn go_on(&mut self, stage: Stage) -> Result<Stage, String> {
        let now = self.world.now_us;
        match stage {
            Stage::Idle { next_us } if now >= next_us => self.ask(),
            Stage::Asked { request, since_us, before } => {
                let idle = |rng: &mut Rng| Stage::Idle { next_us: now + rng.range(SECOND_US / 2, 4 * SECOND_US) };
                match self.world.answer(request).cloned() {
                    None if now >= since_us + ANSWERED_WITHIN_US => Ok(idle(self.rng)),
                    None => Ok(Stage::Asked { request, since_us, before }),
                    Some(Err(why)) => {
                        self.world.trace.note(now, format!("the barrier failed: {why}"));
                        Ok(idle(self.rng))
                    }
                    Some(Ok(())) => self.copy(before),
                }
            }
            Stage::Copying { manifest, mut copies, piece, next_us, before, after } if now >= next_us => {
                for copy in &mut copies {
                    copy.take(piece)?;
                }
                if piece + 1 < PIECES {
                    let next_us = now + self.rng.range(1_000, COPIED_WITHIN_US / PIECES);
                    return Ok(Stage::Copying { manifest, copies, piece: piece + 1, next_us, before, after });
                }
                let copies = into_disks(copies)?;
                check(&manifest, &copies, &before, &after)?;
                // Not each of them: it takes as long as all the rest.
                if self.rng.chance(RESTORED_PERCENT) {
                    restored::play(&manifest, copies, self.rng)?;
                }
                self.succeeded += 1;
                for process in &self.world.processes {
                    // On a dying disk it ends when its time has come.
                    let _ = process.disk.remove_hold(&manifest.id);
                }
                Ok(Stage::Idle { next_us: now + self.rng.range(SECOND_US / 2, 6 * SECOND_US) })
            }
            stage => Ok(stage),
        }
    }

    fn ids(&self, of: impl Fn(&Ledger) -> BTreeSet<MessageId>) -> BTreeMap<String, BTreeSet<MessageId>> {
        self.world.ledgers.iter().map(|(queue, ledger)| (queue.clone(), of(ledger))).collect()
    }

    fn ask(&mut self) -> Result<Stage, String> {
        let now = self.world.now_us;
        let member = self.rng.index(MEMBERS);
        if self.world.processes[member].running.is_none() {
            return Ok(Stage::Idle { next_us: now + SECOND_US / 4 });
        }
        let before = Before { confirmed: self.ids(Ledger::confirmed_ids), acked: self.ids(Ledger::durably_acked_ids) };
        self.asked += 1;
        let id = format!("b{}", self.asked);
        let barrier = BarrierRequest { id, hold_seconds: HOLD_SECONDS, allow_partial: false };
        let request = self.world.ask(member, AdminAction::Barrier(barrier))?;
        Ok(Stage::Asked { request, since_us: now, before })
    }

    /// Begins to copy two members' holds: two of three members have every group.
    fn copy(&mut self, before: Before) -> Result<Stage, String> {
        let now = self.world.now_us;
        let after = After { delivered: self.ids(Ledger::delivered_ids), sent: self.ids(Ledger::sent_ids) };
        let id = format!("b{}", self.asked);
        let holds: BTreeMap<String, SimDisk> = self
            .world
            .processes
            .iter()
            .filter_map(|process| Some((process.name.clone(), process.disk.open_hold(&id).ok()?)))
            .collect();
        let file = holds.values().find_map(|hold| read_file(hold, MANIFEST).ok());
        let file = file.ok_or("a barrier succeeded, and no member has its manifest")?;
        let manifest = Manifest::from_file(&file)?;
        let mut members = manifest.members.clone();
        if members.len() > 2 {
            members.remove(self.rng.index(members.len()));
        }
        let mut copies = Vec::new();
        for member in members {
            let hold = holds.get(&member.name).ok_or_else(|| format!("{} has no hold", member.name))?.clone();
            copies.push(Copy { member, hold, files: BTreeMap::new() });
        }
        let next_us = now + self.rng.range(1_000, SECOND_US);
        Ok(Stage::Copying { manifest: Box::new(manifest), copies, piece: 0, next_us, before, after })
    }
}

impl Copy {
    /// Copies the next piece of every file, as it is now, from where the last one ended: files grow and shrink meanwhile.
    fn take(&mut self, piece: u64) -> Result<(), String> {
        let trouble = |error: std::io::Error| format!("a hold cannot be copied: {error}");
        for name in self.hold.list().map_err(trouble)? {
            let file = self.hold.open(&name).map_err(trouble)?;
            let length = file.len().map_err(trouble)?;
            let copy = self.files.entry(name).or_default();
            let from = copy.len();
            let to = from.max((length * (piece + 1) / PIECES) as usize);
            copy.resize(to, 0);
            file.read_at(from as u64, &mut copy[from..to]).map_err(trouble)?;
        }
        Ok(())
    }

    /// The copy as a disk of its own.
    fn into_disk(self) -> Result<(MemberEntry, SimDisk), String> {
        let disk = SimDisk::default();
        for (name, bytes) in self.files {
            let made = disk.create(&name, 0).and_then(|file| file.write_at(0, &bytes));
            made.map_err(|error| format!("the copy cannot be stored: {error}"))?;
        }
        Ok((self.member, disk))
    }
}

fn into_disks(copies: Vec<Copy>) -> Result<Vec<HoldCopy<SimDisk>>, String> {
    let into_disk = |copy: Copy| {
        let (member, files) = copy.into_disk()?;
        Ok(HoldCopy { member: member.name, files })
    };
    copies.into_iter().map(into_disk).collect()
}

fn check(manifest: &Manifest, copies: &[HoldCopy<SimDisk>], before: &Before, after: &After) -> Result<(), String> {
    let mut found: BTreeMap<String, BTreeSet<MessageId>> = BTreeMap::new();
    for HoldCopy { member, files: disk } in copies {
        let member = manifest.members.iter().find(|known| known.name == *member).ok_or("an unknown member")?;
        let problems = verify(manifest, member, disk);
        if let Some(problem) = problems.first() {
            return Err(format!("backup {} of {}: {problem}", manifest.id, member.name));
        }
        let mut damaged = None;
        contents(manifest, member, disk, &mut |queue, message| match decode_body(&message.body) {
            Some(id) => drop(found.entry(queue.name.clone()).or_default().insert(id)),
            None => damaged = Some(queue.name.clone()),
        })?;
        if let Some(queue) = damaged {
            return Err(format!("backup {}: a message of queue {queue} is damaged", manifest.id));
        }
    }
    let none = BTreeSet::new();
    let of = |ids: &BTreeMap<String, BTreeSet<MessageId>>, queue: &str| ids.get(queue).cloned().unwrap_or_default();
    let is_there = |queue: &str, id: &MessageId| found.get(queue).unwrap_or(&none).contains(id);
    let complain = |what: &str, queue: &str, id: &MessageId| {
        Err(format!("backup {}: {id:?} of queue {queue} {what}", manifest.id))
    };
    let delivered = of(&after.delivered, "orders");
    for id in of(&before.confirmed, "orders").difference(&delivered) {
        if !is_there("orders", id) {
            return complain("was confirmed before and is not there", "orders", id);
        }
    }
    for id in &of(&before.confirmed, "inbox") {
        if !is_there("inbox", id) && !is_there("outbox", id) {
            return complain("was confirmed before, is moved, and is in neither queue", "inbox", id);
        }
    }
    for id in &of(&before.acked, "orders") {
        if is_there("orders", id) {
            return complain("is there although its ack was durable before", "orders", id);
        }
    }
    let (inbox, outbox) = (of(&after.sent, "inbox"), of(&after.sent, "outbox"));
    for (queue, ids) in &found {
        let sent = of(&after.sent, queue);
        let moved = queue == "outbox";
        if let Some(id) =
            ids.iter().find(|id| !(sent.contains(id) || (moved && (inbox.contains(id) || outbox.contains(id)))))
        {
            return complain("is there and was never sent", queue, id);
        }
    }
    Ok(())
}
