//! A new cluster is made out of copies of a backup by production code, on a disk of its own, and two blank machines join it.
//! The ledger's consumers must receive exactly what the copies hold, and its groups must come to have all their replicas.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_engine::admin::AdminAction;
use holdfast_engine::backup::files::{MANIFEST, contents, read_file};
use holdfast_engine::backup::{BarrierRequest, Manifest};
use holdfast_engine::identity::MemberUuid;
use holdfast_engine::restore::{HoldCopy, NewCluster, Restored, build, check};
use holdfast_journal::{FileSystem, HoldingFileSystem, Journal, JournalConfig, StoredFile};
use holdfast_queue::ids::GroupId;
use holdfast_queue::meta::ExpectedMember;

use crate::client::Role;
use crate::disk::SimDisk;
use crate::ledger::{Ledger, MessageId, decode_body};
use crate::plan::Profile;
use crate::process::Process;
use crate::rng::Rng;
use crate::world::{MEMBERS, World};

const SECOND_US: u64 = 1_000_000;
/// The blank machines have joined, and all is consumed and spread, within this.
const SETTLES_WITHIN_US: u64 = 120 * SECOND_US;

/// The cluster that is to be: its founder is the first machine.
pub fn new_cluster(rng: &mut Rng) -> NewCluster {
    let expected = |number: usize| {
        let Process { name, address, zone, .. } = Process::new(number);
        ExpectedMember { name, address, zone }
    };
    let own = expected(0);
    NewCluster {
        cluster_id: "restored".into(),
        name: own.name,
        zone: own.zone,
        address: own.address,
        uuid: MemberUuid(u128::from(rng.draw()) << 64 | u128::from(rng.draw())),
        admin_token: 0,
        expected: (0..MEMBERS).map(expected).collect(),
        defaults: None,
        user: None,
        nonce: rng.draw(),
    }
}

/// Makes the founder's disk, and has it checked.
///
/// # Errors
/// What the restore says.
pub fn founder(
    manifest: &Manifest,
    copies: &[HoldCopy<SimDisk>],
    new: &NewCluster,
    segment_bytes: u64,
) -> Result<(SimDisk, Restored), String> {
    let disk = SimDisk::default();
    let config = JournalConfig { segment_bytes, nonce: new.nonce, ..JournalConfig::default() };
    let (mut journal, _) = Journal::open(disk.clone(), config).map_err(|error| error.to_string())?;
    let restored = build(&mut journal, manifest, copies, new).map_err(|error| error.to_string())?;
    drop(journal);
    check(&disk, manifest, new).map_err(|error| error.to_string())?;
    Ok((disk, restored))
}

/// Makes a backup, and copies the holds of all members.
///
/// # Errors
/// When it fails.
pub fn back_up(world: &mut World, id: &str) -> Result<(Manifest, Vec<HoldCopy<SimDisk>>), String> {
    let barrier = BarrierRequest { id: id.into(), hold_seconds: 600, allow_partial: false };
    let request = world.ask(0, AdminAction::Barrier(barrier))?;
    let end = world.now_us + SETTLES_WITHIN_US;
    until(world, end, "the barrier is not answered", |world| world.answer(request).is_some())?;
    world.answer(request).cloned().unwrap_or(Err(String::new()))?;
    let trouble = |error: std::io::Error| error.to_string();
    let mut copies = Vec::new();
    let mut manifest = None;
    for process in &world.processes {
        let hold = process.disk.open_hold(id).map_err(trouble)?;
        manifest = Some(Manifest::from_file(&read_file(&hold, MANIFEST).map_err(trouble)?)?);
        copies.push(HoldCopy { member: process.name.clone(), files: copy_of(&hold).map_err(trouble)? });
    }
    Ok((manifest.ok_or("there is no member")?, copies))
}

/// A copy of a directory, on a disk of its own.
///
/// # Errors
/// The disk's.
pub fn copy_of(directory: &SimDisk) -> std::io::Result<SimDisk> {
    let copy = SimDisk::default();
    for name in directory.list()? {
        copy.create(&name, 0)?.write_at(0, &read_file(directory, &name)?)?;
    }
    Ok(copy)
}

/// What the copies hold of each queue, in order.
///
/// # Errors
/// What cannot be read.
pub fn held(manifest: &Manifest, copies: &[HoldCopy<SimDisk>]) -> Result<BTreeMap<String, Vec<MessageId>>, String> {
    let mut all = BTreeMap::new();
    for copy in copies {
        let member = manifest.members.iter().find(|member| member.name == copy.member).ok_or("an unknown member")?;
        let mut found: BTreeMap<String, Vec<MessageId>> = BTreeMap::new();
        contents(manifest, member, &copy.files, &mut |queue, message| {
            found.entry(queue.name.clone()).or_default().extend(decode_body(&message.body));
        })?;
        all.extend(found);
    }
    Ok(all)
}

/// Restores one backup and consumes it.
///
/// # Errors
/// What broke, in words.
pub fn play(manifest: &Manifest, mut copies: Vec<HoldCopy<SimDisk>>, rng: &mut Rng) -> Result<(), String> {
    let fail = |why: String| format!("the restore of backup {}: {why}", manifest.id);
    let expected = held(manifest, &copies)?;
    let covered = |member: &str| manifest.groups.iter().all(|group| group.holders.iter().any(|name| name == member));
    // One copy is enough if it has everything, or both are needed.
    if let Some(one) = copies.iter().position(|copy| covered(&copy.member)).filter(|_| rng.chance(50)) {
        copies = vec![copies.swap_remove(one)];
    }
    let mut plan = Profile::Mixed.plan(rng.draw());
    plan.min_in_sync = 0;
    let new = new_cluster(rng);
    let (disk, restored) = founder(manifest, &copies, &new, plan.segment_bytes).map_err(fail)?;
    let counted: u64 = expected.values().map(|ids| ids.len() as u64).sum();
    if (restored.messages, manifest.totals.messages) != (counted, counted) {
        return Err(fail(format!("{restored:?} were made of {counted} messages")));
    }
    let mut world = World::on(rng, &plan, None, vec![disk]).map_err(fail)?;
    consume(&mut world, &expected).map_err(|why| {
        let trace: Vec<&str> = world.trace.lines().collect();
        fail(format!("{why}\n{}", trace.join("\n")))
    })
}

/// Waits for the members, consumes all queues, and compares.
///
/// # Errors
/// What broke, in words.
pub fn consume(world: &mut World, expected: &BTreeMap<String, Vec<MessageId>>) -> Result<(), String> {
    let end = world.now_us + SETTLES_WITHIN_US;
    until(world, end, "its members are not ready", |world| (0..MEMBERS).all(|member| is_ready(world, member)))?;
    for (queue, ids) in expected {
        let client = world.add_client(queue, Role::Consumer { prefetch: 20 });
        world.clients[client].drain();
        let ledger = world.ledgers.entry(queue.clone()).or_default();
        if queue == "outbox" {
            // A reader that moves messages may move them in any order, and one of them twice.
            ledger.order_does_not_matter();
        }
        for id in ids {
            ledger.sent(*id);
            ledger.confirmed(*id);
        }
    }
    let consumed = |world: &World| {
        let none_left = world.ledgers.values().all(Ledger::all_confirmed_were_delivered);
        none_left && world.clients.iter().all(crate::client::Client::is_done)
    };
    until(world, end, "not all of it was delivered", consumed)?;
    until(world, end, "its groups have not spread", has_spread)?;
    // What comes after the last delivery must not be a delivery.
    let quiet = world.now_us + SECOND_US;
    while world.step(quiet)? {}
    for (queue, ledger) in &world.ledgers {
        let verdict = ledger.verdict();
        if !verdict.is_clean() {
            return Err(format!("queue {queue}: {verdict:?}"));
        }
        let there: BTreeSet<MessageId> = ledger.delivered_ids();
        if there != expected.get(queue).into_iter().flatten().copied().collect() {
            return Err(format!("queue {queue} gave others than it held"));
        }
    }
    Ok(())
}

fn until(world: &mut World, end: u64, what: &str, done: impl Fn(&World) -> bool) -> Result<(), String> {
    while !done(world) {
        if world.now_us >= end {
            return Err(format!("{what} within {} s", SETTLES_WITHIN_US / SECOND_US));
        }
        // Not after each step: looking costs more than a step does.
        let next = (world.now_us + SECOND_US / 50).min(end);
        while world.step(next)? {}
    }
    Ok(())
}

fn is_ready(world: &World, member: usize) -> bool {
    world.processes[member].running.as_ref().is_some_and(|running| running.member.ready())
}

/// Every group has as many voters as it is meant to have.
fn has_spread(world: &World) -> bool {
    let Some(running) = &world.processes[0].running else { return false };
    let Some(meta) = running.member.host().and_then(|host| host.machine(GroupId::META)?.meta()) else { return false };
    meta.groups().all(|(id, info)| info.is_settled() && info.voters.len() == meta.voters_expected(id))
}
