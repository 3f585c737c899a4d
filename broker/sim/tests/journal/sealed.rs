//! Sealed segments: their footers speak for them at a start, and scrubbing finds what changed in them since.

use bytes::Bytes;
use holdfast_journal::conformance::{run_chore, small_config, test_key};
use holdfast_journal::{Batch, BatchId, EntryReader, FileSystem, Journal, Op, Recovered, StoredFile, Upkeep};
use holdfast_sim::disk::SimDisk;

use crate::damage::{batch, edited};

/// Some sealed segments, all with footers, and the open one.
fn sealed_disk() -> (SimDisk, Journal<SimDisk>) {
    let disk = SimDisk::default();
    let (mut journal, _) = Journal::open(disk.clone(), small_config(1)).expect("open");
    let mut number = 0;
    while journal.segment_count() < 5 {
        number += 1;
        journal.write(&batch(number)).expect("write");
        while run_chore(&mut journal) {}
    }
    (disk, journal)
}

fn segments(disk: &SimDisk) -> Vec<String> {
    disk.list().expect("list").into_iter().filter(|name| name.starts_with("segment")).collect()
}

fn open(disk: &SimDisk) -> (Journal<SimDisk>, Recovered) {
    Journal::open(disk.clone(), small_config(2)).expect("open")
}

/// Without the places, which differ from start to start.
fn content(recovered: &Recovered, journal: &Journal<SimDisk>) -> Vec<(u64, u64, u64, Bytes)> {
    let reader = journal.reader();
    let entries = recovered.groups.iter().flat_map(|group| group.entries.iter().map(|entry| (group.key.group, *entry)));
    entries.map(|(group, e)| (group, e.index, e.term, reader.read(e.location).expect("an entry"))).collect()
}

fn where_is(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    bytes.windows(needle.len()).position(|window| window == needle)
}

#[test]
fn a_start_finds_the_same_with_the_footers_as_without_them() {
    let (disk, journal) = sealed_disk();
    drop(journal);
    let (journal, with) = open(&edited(&disk, "", |_| {}));
    assert_eq!(with.findings, []);
    let expected = content(&with, &journal);
    let copy = disk.clone();
    for name in segments(&disk) {
        let without = edited(&copy, &name, |bytes| {
            if let Some(at) = where_is(bytes, b"HFFOOTER") {
                bytes[at + 70] ^= 1;
            }
        });
        let (journal, recovered) = open(&without);
        assert_eq!((recovered.findings.clone(), content(&recovered, &journal)), (vec![], expected.clone()), "{name}");
    }
}

#[test]
fn a_start_does_not_read_the_bodies_of_sealed_segments() {
    let (disk, journal) = sealed_disk();
    drop(journal);
    let names = segments(&disk);
    let oldest = &names[0];
    let damaged = edited(&disk, oldest, |bytes| {
        let at = where_is(bytes, b"group 1, entry 3").expect("a payload");
        bytes[at] ^= 1;
    });
    let (mut journal, recovered) = open(&damaged);
    assert!(recovered.groups.iter().all(|group| group.corruption.is_none()));
    let group = recovered.groups.iter().find(|group| group.key == test_key(1)).expect("the group");
    let entry = group.entries.iter().find(|entry| entry.index == 3).expect("the entry");
    assert!(journal.reader().read(entry.location).is_err(), "whoever reads it is told");
    // A scrub finds it, and says whose it is.
    let upkeep = scrubbed(&mut journal);
    assert_eq!(upkeep.damaged.iter().map(|damage| (damage.key, damage.index)).collect::<Vec<_>>(), [(test_key(1), 3)]);
    assert!(upkeep.findings.iter().any(|finding| finding.file == *oldest));
}

/// All that a scrub of everything has to tell.
fn scrubbed(journal: &mut Journal<SimDisk>) -> Upkeep {
    while run_chore(journal) {}
    journal.begin_scrub();
    let mut all = Upkeep::default();
    while journal.is_scrubbing() {
        journal.grant(1 << 20);
        run_chore(journal);
        if let Some(upkeep) = journal.upkeep().expect("upkeep") {
            all.damaged.extend(upkeep.damaged);
            all.findings.extend(upkeep.findings);
        }
    }
    all
}

#[test]
fn a_scrub_finds_a_flip_at_any_byte_of_a_sealed_segment_and_nothing_in_a_sound_one() {
    let (disk, mut journal) = sealed_disk();
    assert_eq!(scrubbed(&mut journal), Upkeep::default());
    let name = segments(&disk)[1].clone();
    let file = disk.open(&name).expect("open");
    let len = file.len().expect("len");
    for at in (0..len).step_by(37) {
        let mut byte = [0];
        file.read_at(at, &mut byte).expect("read");
        file.write_at(at, &[byte[0] ^ 8]).expect("write");
        let upkeep = scrubbed(&mut journal);
        assert_eq!(upkeep.findings.len(), 1, "byte {at} of {len}");
        assert_eq!(upkeep.findings[0].file, name);
        file.write_at(at, &byte).expect("write");
    }
}

#[test]
fn damage_to_what_nobody_needs_is_told_and_accuses_no_group() {
    let (disk, mut journal) = sealed_disk();
    let key = test_key(1);
    let ops = vec![
        Op::HardState { key, term: 9, vote: 1, commit: 3 },
        Op::Checkpoint { key, index: 3, term: 1, conf: Bytes::new(), machine: Bytes::new() },
        Op::Compact { key, up_to: 3, live: vec![] },
    ];
    journal.write(&Batch { id: BatchId(0), ops }).expect("write");
    let file = disk.open(&segments(&disk)[0]).expect("open");
    let mut bytes = vec![0; file.len().expect("len") as usize];
    file.read_at(0, &mut bytes).expect("read");
    let at = where_is(&bytes, b"group 1, entry 3").expect("a payload");
    file.write_at(at as u64, b"G").expect("write");
    let upkeep = scrubbed(&mut journal);
    assert_eq!((upkeep.damaged.len(), upkeep.findings.len()), (0, 1));
}

#[test]
fn the_loss_of_the_newest_segment_is_noticed_because_the_one_before_is_closed() {
    let (disk, journal) = sealed_disk();
    drop(journal);
    let copy = edited(&disk, "", |_| {});
    copy.remove(segments(&disk).last().expect("a segment")).expect("remove");
    copy.sync_dir().expect("sync");
    let (_, recovered) = open(&copy);
    assert!(recovered.groups.iter().all(|group| group.corruption.is_some()));
    assert!(recovered.findings.iter().any(|finding| finding.what.contains("missing")), "{:?}", recovered.findings);
}
