//! Checkpoints that are stored beside the commits.

use bytes::Bytes;
use holdfast_journal::conformance::{small_config, test_key};
use holdfast_journal::{Batch, BatchId, CheckpointStored, FileSystem, Journal, JournalConfig, Op, Recovered};
use holdfast_sim::disk::SimDisk;

/// A machine that is too large for the log, and one that is not.
const LARGE: usize = 2_000;
const SMALL: usize = 20;

fn open(disk: &SimDisk, nonce: u64) -> (Journal<SimDisk>, Recovered) {
    let config = JournalConfig { nonce, small_checkpoint_bytes: 1024, ..small_config(nonce) };
    Journal::open(disk.clone(), config).expect("open")
}

fn write(journal: &mut Journal<SimDisk>, ops: Vec<Op>) {
    journal.write(&Batch { id: BatchId(0), ops }).expect("write");
}

/// Some entries, a checkpoint at the last of them, and a checkpoint aside of a later one.
fn begun(disk: &SimDisk, bytes: usize) -> Journal<SimDisk> {
    let (mut journal, _) = open(disk, 1);
    let key = test_key(1);
    let entry = |index| Op::Entry { key, index, term: 1, payload: Bytes::from_static(b"entry") };
    let mut ops: Vec<Op> = (1..=9).map(entry).collect();
    ops.push(Op::HardState { key, term: 1, vote: 1, commit: 9 });
    ops.push(Op::Checkpoint { key, index: 5, term: 1, conf: Bytes::new(), machine: vec![5; bytes].into() });
    write(&mut journal, ops);
    let machine = vec![9; bytes].into();
    write(&mut journal, vec![Op::CheckpointAside { key, id: 77, index: 9, term: 1, conf: Bytes::new(), machine }]);
    journal
}

fn told(journal: &mut Journal<SimDisk>) -> Vec<CheckpointStored> {
    journal.upkeep().expect("upkeep").unwrap_or_default().checkpoints
}

fn checkpoint_after_power_loss(disk: &SimDisk) -> Option<u64> {
    let copy = disk.clone();
    copy.power_loss(&mut holdfast_sim::rng::Rng::new(3));
    let (_, recovered) = open(&copy, 2);
    let group = recovered.groups.iter().find(|group| group.key == test_key(1))?;
    assert_eq!(group.corruption, None);
    group.checkpoint.as_ref().map(|checkpoint| checkpoint.index)
}

#[test]
fn a_checkpoint_aside_counts_when_it_is_told_of_and_not_before() {
    for (bytes, chores) in [(LARGE, true), (SMALL, false)] {
        for told_of in [false, true] {
            let disk = SimDisk::default();
            let mut journal = begun(&disk, bytes);
            if chores {
                assert_eq!(told(&mut journal), [], "it is not even stored");
                let chore = std::iter::from_fn(|| journal.next_chore()).next().expect("it is stored by a chore");
                let done = chore.run();
                journal.chore_done(done).expect("done");
            }
            if told_of {
                // Without another batch its mark is written by itself, the second time that upkeep is asked for.
                let told: Vec<_> = (0..2).flat_map(|_| told(&mut journal)).collect();
                assert_eq!(told, [CheckpointStored { key: test_key(1), id: 77, stored: true }]);
            }
            drop(journal);
            let found = checkpoint_after_power_loss(&disk);
            if told_of {
                assert_eq!(found, Some(9), "{bytes} bytes");
            } else if chores {
                assert_eq!(found, Some(5), "a file without a mark is nothing");
            }
        }
    }
}

#[test]
fn what_is_said_of_the_group_meanwhile_drops_a_checkpoint_aside() {
    let key = test_key(1);
    let checkpoint = Op::Checkpoint { key, index: 20, term: 1, conf: Bytes::new(), machine: vec![20; LARGE].into() };
    let cases = [
        (vec![checkpoint.clone(), Op::Reset { key, index: 20, term: 1 }], Some(20)),
        (vec![checkpoint], Some(20)),
        (vec![Op::Destroy { key }], None),
    ];
    for (ops, left) in cases {
        for (stored_before, bytes) in [(false, LARGE), (true, LARGE), (false, SMALL)] {
            let disk = SimDisk::default();
            let mut journal = begun(&disk, bytes);
            let chore = (bytes == LARGE).then(|| journal.next_chore().expect("a chore"));
            let done = chore.map(|chore| chore.run());
            if stored_before {
                done.into_iter().for_each(|done| journal.chore_done(done).expect("done"));
                write(&mut journal, ops.clone());
            } else {
                write(&mut journal, ops.clone());
                done.into_iter().for_each(|done| journal.chore_done(done).expect("done"));
            }
            let told: Vec<_> = (0..3).flat_map(|_| told(&mut journal)).collect();
            if bytes == LARGE {
                assert_eq!(told, [], "{ops:?}");
            }
            while let Some(chore) = journal.next_chore() {
                journal.chore_done(chore.run()).expect("done");
            }
            let files = disk.list().expect("list");
            let checkpoints = files.iter().filter(|name| name.starts_with("checkpoint")).count();
            assert_eq!(checkpoints, usize::from(left.is_some()), "{files:?}");
            drop(journal);
            assert_eq!(checkpoint_after_power_loss(&disk), left);
        }
    }
}

#[test]
fn no_room_for_a_checkpoint_aside_leaves_the_one_before() {
    let disk = SimDisk::default();
    let mut journal = begun(&disk, LARGE);
    disk.set_capacity(Some(0));
    let done = journal.next_chore().expect("a chore").run();
    journal.chore_done(done).expect("a full disk is no failure here");
    let told = told(&mut journal);
    assert_eq!(told, [CheckpointStored { key: test_key(1), id: 77, stored: false }]);
    disk.set_capacity(None);
    drop(journal);
    assert_eq!(checkpoint_after_power_loss(&disk), Some(5));
}
