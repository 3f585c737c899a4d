//! The production journal over the simulated disk: conformance, and random work with crashes in the middle of it,
//! against a naive model in memory.

use std::cell::Cell;

use crate::model::{Model, Workload, recovered_equals};
use holdfast_journal::conformance::{check_all, check_full_disk, check_holds, check_power_loss, small_config};
use holdfast_journal::{Batch, BatchId, CheckpointStored, Chore, Journal, JournalError, Op};
use holdfast_sim::disk::SimDisk;
use holdfast_sim::rng::Rng;

#[test]
fn the_simulated_disk_keeps_the_promises_of_a_file_system() {
    check_all(SimDisk::default);
    check_holds(SimDisk::default);
    for seed in 0..50 {
        let seeds = Cell::new(seed * 1_000);
        check_power_loss(SimDisk::default, |disk| {
            seeds.set(seeds.get() + 1);
            disk.power_loss(&mut Rng::new(seeds.get()));
        });
    }
}

#[test]
fn a_full_simulated_disk_is_announced_spends_the_reserve_and_loses_nothing() {
    let disk = SimDisk::default();
    disk.set_capacity(Some(3 << 20));
    check_full_disk(&disk);
}

/// One life after the other, each ended by a crash or a failed sync, within a write or within a recovery. After a failed
/// sync the page cache shows what the disk does not hold; what a recovery reports must survive a power loss all the same.
#[test]
fn what_was_reported_survives_any_crash_and_a_torn_write_is_all_or_nothing() {
    for seed in 0..100 {
        run(seed);
    }
}

fn run(seed: u64) {
    let mut rng = Rng::new(seed);
    let disk = SimDisk::default();
    let mut possible = vec![Model::default()];
    for life in 0..12u64 {
        if rng.chance(25) {
            // The process dies while it recovers; a later start must find the same.
            disk.die_after(rng.range(0, 12));
            drop(Journal::open(disk.clone(), small_config(seed * 1_000 + life * 5 + 1)));
            crash(&disk, &mut rng);
        }
        let opened = Journal::open(disk.clone(), small_config(seed * 1_000 + life * 5));
        let (mut journal, recovered) = opened.unwrap_or_else(|error| panic!("seed {seed}, life {life}: {error}"));
        let reader = journal.reader();
        let compared: Vec<_> = possible.iter().map(|model| recovered_equals(&recovered, model, &reader)).collect();
        let found = compared.iter().position(Result::is_ok);
        let found =
            found.unwrap_or_else(|| panic!("seed {seed}, life {life}: no possible state is there: {compared:?}"));
        let mut settled = possible.swap_remove(found);
        possible = vec![settled.clone()];
        let mut workload = Workload::new(rng.split(life));
        let mut chore = None;
        for _ in 0..rng.range(0, 60) {
            let count = rng.range(1, 4);
            let mut after = settled.clone();
            let batches: Vec<Batch> = (0..count).map(|_| workload.batch(&mut after)).collect();
            let dies = rng.chance(3);
            if dies {
                disk.die_after(rng.range(0, 8));
            } else if rng.chance(2) {
                disk.fail_next_sync();
            }
            match journal.write_many(&batches) {
                Ok(written) => {
                    assert_eq!(written.len(), batches.len());
                    settled = after;
                    let kept_up = keep_up(&mut journal, &mut settled, &mut chore, &mut rng);
                    possible = vec![settled.clone()];
                    if kept_up.is_err() {
                        break;
                    }
                }
                Err(_) => {
                    assert!(matches!(journal.write_many(&batches), Err(JournalError::Poisoned)), "it is poisoned");
                    // All of it or nothing; the identity is a file of its own, and follows the records.
                    let identity = settled.identity.clone();
                    possible = vec![settled.clone(), Model { identity, ..after.clone() }, after];
                    break;
                }
            }
        }
        drop(journal);
        crash(&disk, &mut rng);
        // A mark may have gone along with what the crash kept, or alone, without being told of.
        possible = possible.iter().flat_map(Model::with_asides).collect();
    }
}

/// Background work: begun at some time, ended some writes later, or never. It changes nothing of what is recorded, but
/// lets checkpoints count that were asked for before.
fn keep_up(
    journal: &mut Journal<SimDisk>,
    model: &mut Model,
    chore: &mut Option<Chore<SimDisk>>,
    rng: &mut Rng,
) -> Result<(), JournalError> {
    if chore.is_some() && rng.chance(50) {
        let done = chore.take().map(Chore::run);
        done.map_or(Ok(()), |done| journal.chore_done(done))?;
    }
    if chore.is_none() {
        journal.grant(rng.range(0, 4_000));
        *chore = journal.next_chore();
    }
    let upkeep = journal.upkeep()?.unwrap_or_default();
    for CheckpointStored { key, id, stored } in upkeep.checkpoints {
        assert!(stored, "the disk has room");
        model.stored(key, id);
    }
    match upkeep.moves {
        Some(moves) if rng.chance(70) => {
            let ops = vec![Op::MovesTaken { id: moves.id }];
            journal.write(&Batch { id: BatchId(0), ops }).map(drop)
        }
        _ => Ok(()),
    }
}

fn crash(disk: &SimDisk, rng: &mut Rng) {
    if rng.chance(60) {
        disk.power_loss(rng);
    } else {
        disk.process_crash();
    }
}
