//! What every [`FileSystem`] must do, and what a journal over it must do. Each check panics with the promise that was
//! broken. The real and the simulated file system run the same ones.

use crate::filesystem::{FileSystem, StoredFile};
use crate::hold::{HeldView, HoldingFileSystem};
use crate::inspection::{Scrutiny, inspect_with_reader};
use crate::reader::{EntryReader, ReadError};
use crate::types::{Batch, BatchId, GroupKey, Incarnation, JournalConfig, JournalError, Location, Op, Space};
use crate::writer::Journal;
use bytes::Bytes;
use std::io;

/// Runs all checks that need no crash. `blank` gives a new empty file system each time.
pub fn check_all<F: FileSystem>(blank: impl Fn() -> F) {
    a_new_file_is_zero_and_its_name_is_taken(&blank());
    bytes_read_back_where_they_were_written(&blank());
    a_cut_or_extended_file_has_that_length(&blank());
    names_follow_create_rename_and_remove(&blank());
    a_removed_file_stays_readable_where_it_is_open(&blank());
    zeros_reach_to_the_size_asked_for(&blank());
    room_is_reported(&blank());
    a_journal_recovers_what_it_wrote(&blank());
    a_reader_follows_the_writer_over_segments(&blank());
    a_spare_segment_is_used_or_is_nothing(&blank());
    a_reserve_is_kept_and_counted(&blank());
}

/// Checks what holds promise. `blank` gives a new empty file system each time.
pub fn check_holds<F: HoldingFileSystem>(blank: impl Fn() -> F) {
    a_held_file_outlives_its_first_name_and_is_the_same_file(&blank());
    a_hold_shows_the_journal_as_it_was_whatever_the_journal_does_later(&blank());
}

fn a_held_file_outlives_its_first_name_and_is_the_same_file<F: HoldingFileSystem>(fs: &F) {
    let file = fs.create("a", 4).expect("create");
    let hold = fs.make_hold("h").expect("make a hold");
    assert!(fs.make_hold("h").is_err(), "its name is taken");
    fs.link("a", &hold).expect("link");
    file.write_at(0, b"late").expect("write");
    fs.remove("a").expect("remove");
    let mut held = [0; 4];
    assert_eq!(hold.open("a").and_then(|file| file.read_at(0, &mut held)).expect("read"), 4);
    assert_eq!((&held, hold.list().expect("list"), fs.list().expect("list")), (b"late", vec!["a".into()], vec![]));
    assert_eq!(fs.holds().expect("list holds"), ["h"]);
    fs.remove_hold("h").expect("remove the hold");
    fs.remove_hold("h").expect("once more");
    assert!(fs.holds().expect("list holds").is_empty() && fs.open_hold("h").is_err());
}

fn a_hold_shows_the_journal_as_it_was_whatever_the_journal_does_later<F: HoldingFileSystem>(fs: &F) {
    let (mut journal, _) = Journal::open(fs.clone(), small_config(1)).expect("open");
    let write = |journal: &mut Journal<F>, index: u64| {
        let payload = Bytes::from(vec![index as u8; 3_000]);
        let op = Op::Entry { key: test_key(1), index, term: 1, payload };
        journal.write(&Batch { id: BatchId(index), ops: vec![op] }).expect("write");
        run_chore(journal);
    };
    (1..=20).for_each(|index| write(&mut journal, index));
    let (hold, files) = journal.hold("h").expect("hold");
    assert!(matches!(journal.hold("h"), Err(JournalError::Io { .. })), "its name is taken");
    (21..=60).for_each(|index| write(&mut journal, index));
    journal.write(&Batch { id: BatchId(0), ops: vec![Op::Destroy { key: test_key(1) }] }).expect("destroy");
    for _ in 0..60 {
        let op = Op::HardState { key: test_key(2), term: 1, vote: 1, commit: 0 };
        journal.write(&Batch { id: BatchId(0), ops: vec![op] }).expect("write");
        run_chore(&mut journal);
    }
    let view = HeldView::new(hold, files);
    let (found, reader) = inspect_with_reader(&view, Scrutiny::EveryByte).expect("look");
    let [group] = found.groups.as_slice() else { panic!("{found:?}") };
    assert!(!found.is_damaged, "{found:?}");
    assert_eq!(group.entries.last().map(|entry| entry.index), Some(20));
    for entry in &group.entries {
        assert_eq!(reader.read(entry.location).expect("read")[..], vec![entry.index as u8; 3_000]);
    }
}

/// Checks what a loss of power may take. `lose_power` drops everything unsynced that the file system is allowed to drop.
pub fn check_power_loss<F: FileSystem>(blank: impl Fn() -> F, lose_power: impl Fn(&F)) {
    synced_bytes_and_names_outlive_a_power_loss(&blank(), &lose_power);
    a_rename_is_whole_or_did_not_happen(&blank(), &lose_power);
    a_journal_keeps_what_it_reported_as_written(&blank(), &lose_power);
}

/// Checks what happens when there is no more room. The file system holds a few MiB and nothing yet.
pub fn check_full_disk<F: FileSystem>(fs: &F) {
    let segment_bytes = 64 << 10;
    let config = JournalConfig {
        segment_bytes,
        low_space_bytes: 4 * segment_bytes,
        reserve_bytes: 2 * segment_bytes,
        ..small_config(1)
    };
    fs.create("ballast", 4 * segment_bytes).expect("room for something else");
    let (mut journal, _) = Journal::open(fs.clone(), config).expect("open");
    let mut index = 0;
    let mut write = |journal: &mut Journal<F>| {
        index += 1;
        let payload = Bytes::from(vec![index as u8; 20_000]);
        let op = Op::Entry { key: test_key(1), index, term: 1, payload };
        journal.write(&Batch { id: BatchId(index), ops: vec![op] }).map(|_| index)
    };
    let mut spaces: Vec<Space> = Vec::new();
    let mut last = 0;
    let failed = loop {
        run_chore(&mut journal);
        spaces.extend(journal.upkeep().expect("upkeep").and_then(|upkeep| upkeep.space));
        match write(&mut journal) {
            Ok(index) => last = index,
            Err(error) => break error,
        }
        assert!(last < 1 << 16, "the file system is too large for this check");
    };
    assert!(matches!(failed, JournalError::NoSpace { .. }), "{failed}");
    let low = spaces.iter().position(|space| space.low).expect("low space is reported before there is none");
    assert!(!spaces[0].low && spaces[low].free_bytes > 0 && spaces[low].reserve_bytes == config.reserve_bytes);
    assert!(spaces.iter().any(|space| space.reserve_bytes == 0), "the reserve is spent before a write fails");
    drop(journal);
    // Nothing that was reported is lost, and what gives room back is possible: a start needs a segment of its own.
    fs.remove("ballast").expect("the ballast is there");
    fs.sync_dir().expect("sync the directory");
    let (mut journal, recovered) = Journal::open(fs.clone(), JournalConfig { nonce: 2, ..config }).expect("open again");
    assert_eq!(recovered.groups[0].entries.last().map(|entry| entry.index), Some(last));
    assert_eq!(recovered.groups[0].corruption, None);
    let destroy = Op::Destroy { key: test_key(1) };
    journal.write(&Batch { id: BatchId(0), ops: vec![destroy] }).expect("a group is deleted");
    let hard_state = |term| Op::HardState { key: test_key(2), term, vote: 1, commit: 0 };
    for term in 1..200 {
        journal.write(&Batch { id: BatchId(0), ops: vec![hard_state(term)] }).expect("elections go on");
        run_chore(&mut journal);
        spaces.extend(journal.upkeep().expect("upkeep").and_then(|upkeep| upkeep.space));
    }
    let end = spaces.last().expect("a report");
    assert!(!end.low && end.reserve_bytes == config.reserve_bytes, "there is room again, and a reserve: {end:?}");
}

fn a_new_file_is_zero_and_its_name_is_taken<F: FileSystem>(fs: &F) {
    let file = fs.create("a", 100).expect("a new name");
    let mut buffer = [1; 100];
    assert_eq!(file.read_at(0, &mut buffer).expect("read"), 100);
    assert_eq!(buffer, [0; 100], "reserved space reads as zero");
    let again = fs.create("a", 0).err().expect("a taken name is refused");
    assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
    let missing = fs.open("b").err().expect("an unknown name is refused");
    assert_eq!(missing.kind(), io::ErrorKind::NotFound);
}

fn bytes_read_back_where_they_were_written<F: FileSystem>(fs: &F) {
    let file = fs.create("a", 0).expect("create");
    file.write_at(10, b"later").expect("write behind the end");
    file.write_at(0, b"first").expect("write");
    file.write_at(12, b"T").expect("overwrite");
    file.sync_data().expect("sync");
    let mut buffer = [9; 20];
    let count = fs.open("a").expect("open").read_at(0, &mut buffer).expect("read");
    assert_eq!(&buffer[..count], b"first\0\0\0\0\0laTer");
    assert_eq!(file.read_at(100, &mut buffer).expect("read behind the end"), 0);
}

fn a_cut_or_extended_file_has_that_length<F: FileSystem>(fs: &F) {
    let file = fs.create("a", 0).expect("create");
    file.write_at(0, b"0123456789").expect("write");
    file.set_len(4).expect("cut");
    file.set_len(6).expect("extend");
    let mut buffer = [9; 10];
    let count = file.read_at(0, &mut buffer).expect("read");
    assert_eq!(&buffer[..count], b"0123\0\0", "what was cut does not come back");
    assert_eq!(file.len().expect("len"), 6);
}

fn names_follow_create_rename_and_remove<F: FileSystem>(fs: &F) {
    for name in ["b", "a", "c"] {
        fs.create(name, 0).expect("create").write_at(0, name.as_bytes()).expect("write");
    }
    fs.rename("c", "a").expect("rename over a name");
    fs.remove("b").expect("remove");
    assert_eq!(fs.list().expect("list"), ["a"]);
    let mut buffer = [0; 1];
    fs.open("a").expect("open").read_at(0, &mut buffer).expect("read");
    assert_eq!(&buffer, b"c");
    assert!(fs.remove("b").is_err(), "a name is removed once");
    assert!(fs.rename("b", "d").is_err(), "an unknown name is not renamed");
    fs.sync_dir().expect("sync the directory");
}

fn a_removed_file_stays_readable_where_it_is_open<F: FileSystem>(fs: &F) {
    let file = fs.create("a", 0).expect("create");
    file.write_at(0, b"kept").expect("write");
    fs.remove("a").expect("remove");
    let mut buffer = [0; 4];
    assert_eq!(file.read_at(0, &mut buffer).expect("read"), 4);
    assert_eq!(&buffer, b"kept");
}

fn zeros_reach_to_the_size_asked_for<F: FileSystem>(fs: &F) {
    let file = fs.create("a", 0).expect("create");
    file.write_zeros((1 << 20) + 100).expect("zeros");
    assert!(file.len().expect("len") <= (1 << 20) + 100);
    let mut buffer = [1; 10];
    let count = file.read_at(1 << 20, &mut buffer).expect("read");
    assert!(buffer[..count].iter().all(|byte| *byte == 0));
}

fn room_is_reported<F: FileSystem>(fs: &F) {
    let space = fs.space().expect("room");
    assert!(space.free_bytes > 0 && space.free_bytes <= space.total_bytes);
}

/// A key for checks and tests.
pub fn test_key(group: u64) -> GroupKey {
    GroupKey { group, incarnation: Incarnation { counter: 1, nonce: group * 7 + 1 } }
}

/// Small segments, so that a test sees many, and checkpoints in files under an odd nonce, in the log under an even one.
pub fn small_config(nonce: u64) -> JournalConfig {
    let small_checkpoint_bytes = if nonce.is_multiple_of(2) { 1024 } else { 0 };
    let segment_bytes = 16 << 10;
    JournalConfig { segment_bytes, block_bytes: 512, nonce, small_checkpoint_bytes, ..JournalConfig::default() }
}

fn entry(group: u64, index: u64) -> Op {
    let payload = Bytes::from(format!("group {group} entry {index} {}", "x".repeat((index % 50) as usize)));
    Op::Entry { key: test_key(group), index, term: 1, payload }
}

fn payload_of(op: &Op) -> Bytes {
    match op {
        Op::Entry { payload, .. } | Op::Body { payload, .. } => payload.clone(),
        _ => Bytes::new(),
    }
}

fn a_journal_recovers_what_it_wrote<F: FileSystem>(fs: &F) {
    let (mut journal, recovered) = Journal::open(fs.clone(), small_config(1)).expect("open a blank directory");
    assert!(recovered.groups.is_empty() && recovered.identity.is_none() && recovered.findings.is_empty());
    let (conf, machine) = (Bytes::from_static(b"conf"), Bytes::from_static(b"machine"));
    let key = test_key(3);
    journal
        .write(&Batch { id: BatchId(1), ops: vec![Op::Identity(Bytes::from_static(b"me"))] })
        .expect("write the identity");
    for index in 1..=300 {
        let hard_state = Op::HardState { key, term: 1, vote: 2, commit: index - 1 };
        let ops = vec![entry(3, index), hard_state, entry(4, index)];
        let written = journal.write(&Batch { id: BatchId(index), ops }).expect("write");
        assert_eq!(written.records.len(), 2);
    }
    let checkpoint = Op::Checkpoint { key, index: 200, term: 1, conf: conf.clone(), machine: machine.clone() };
    let compact = Op::Compact { key, up_to: 200, live: vec![7, 150] };
    journal.write(&Batch { id: BatchId(0), ops: vec![checkpoint, compact] }).expect("write");
    drop(journal);
    let (journal, recovered) = Journal::open(fs.clone(), small_config(2)).expect("open again");
    assert_eq!(recovered.findings, [], "an orderly stop leaves nothing to find");
    assert_eq!(recovered.identity.as_deref(), Some(&b"me"[..]));
    assert_eq!(recovered.groups.len(), 2);
    let group = &recovered.groups[0];
    assert_eq!((group.key, group.compacted, &group.corruption), (key, 200, &None));
    let checkpoint = group.checkpoint.as_ref().expect("the checkpoint");
    assert_eq!((checkpoint.index, &checkpoint.conf, &checkpoint.machine), (200, &conf, &machine));
    assert_eq!(group.hard_state.map(|state| (state.vote, state.commit)), Some((2, 299)));
    assert_eq!(group.entries.iter().map(|entry| entry.index).collect::<Vec<_>>(), (201..=300).collect::<Vec<_>>());
    assert_eq!(group.bodies.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [7, 150]);
    let reader = journal.reader();
    for (index, location) in
        group.entries.iter().map(|entry| (entry.index, entry.location)).chain(group.bodies.iter().copied())
    {
        assert_eq!(reader.read(location).expect("a live payload"), payload_of(&entry(3, index)));
    }
}

fn a_reader_follows_the_writer_over_segments<F: FileSystem>(fs: &F) {
    let (mut journal, _) = Journal::open(fs.clone(), small_config(1)).expect("open");
    let reader = journal.reader();
    let mut locations: Vec<(u64, Location)> = Vec::new();
    for index in 1..=400 {
        let written = journal.write(&Batch { id: BatchId(index), ops: vec![entry(1, index)] }).expect("write");
        locations.push((index, written.records[0].location));
    }
    assert!(journal.segment_count() > 4, "small segments roll over");
    for (index, location) in &locations {
        assert_eq!(reader.read(*location).expect("read"), payload_of(&entry(1, *index)));
    }
    let before = journal.segment_count();
    let key = test_key(1);
    let checkpoint = Op::Checkpoint { key, index: 400, term: 1, conf: Bytes::new(), machine: Bytes::new() };
    let compact = Op::Compact { key, up_to: 400, live: vec![400] };
    journal.write(&Batch { id: BatchId(0), ops: vec![checkpoint, compact] }).expect("write");
    for step in 0..before as u64 {
        let hard_state = Op::HardState { key, term: 2, vote: 1, commit: 400 + step };
        journal.write(&Batch { id: BatchId(0), ops: vec![hard_state] }).expect("write");
    }
    assert!(journal.segment_count() <= 3, "segments with nothing live are removed");
    let (last_index, last) = locations[399];
    assert_eq!(reader.read(last).expect("live"), payload_of(&entry(1, last_index)));
    assert_eq!(reader.read(locations[0].1), Err(ReadError::Gone { location: locations[0].1 }));
}

/// Runs the chore that is due, if any, here and now.
pub fn run_chore<F: FileSystem>(journal: &mut Journal<F>) -> bool {
    let Some(chore) = journal.next_chore() else { return false };
    journal.chore_done(chore.run()).expect("the chore is done");
    true
}

fn a_spare_segment_is_used_or_is_nothing<F: FileSystem>(fs: &F) {
    let names = || fs.list().expect("list").iter().filter(|name| name.starts_with("segment")).count();
    let (mut journal, _) = Journal::open(fs.clone(), small_config(1)).expect("open");
    let mut index = 0;
    let mut write_one = |journal: &mut Journal<F>| {
        index += 1;
        journal.write(&Batch { id: BatchId(index), ops: vec![entry(1, index)] }).expect("write");
        index
    };
    while !run_chore(&mut journal) {
        write_one(&mut journal);
    }
    assert_eq!((names(), journal.segment_count()), (2, 1), "a spare segment is made ahead of time");
    while journal.segment_count() == 1 {
        write_one(&mut journal);
    }
    assert_eq!(names(), 2, "the spare segment is the one that is written to");
    while names() == 2 {
        write_one(&mut journal);
        run_chore(&mut journal);
    }
    assert_eq!(journal.segment_count(), 2);
    // A chore that is still under way when its file is needed comes too late, and its file goes.
    let (mut journal, recovered) = Journal::open(fs.clone(), small_config(2)).expect("open again");
    assert_eq!(recovered.findings, [], "a spare segment is nothing");
    let late = loop {
        write_one(&mut journal);
        if let Some(chore) = journal.next_chore() {
            break chore.run();
        }
    };
    let before = journal.segment_count();
    while journal.segment_count() == before {
        write_one(&mut journal);
    }
    journal.chore_done(late).expect("the late chore is done");
    assert_eq!(names(), journal.segment_count());
    let last = write_one(&mut journal);
    let (_, recovered) = Journal::open(fs.clone(), small_config(3)).expect("open again");
    assert_eq!((recovered.groups[0].entries.len() as u64, recovered.findings), (last, Vec::new()));
}

fn a_reserve_is_kept_and_counted<F: FileSystem>(fs: &F) {
    let config = JournalConfig { reserve_bytes: 64 << 10, low_space_bytes: 1, ..small_config(1) };
    let (mut journal, _) = Journal::open(fs.clone(), config).expect("open");
    let space = journal.upkeep().expect("upkeep").and_then(|upkeep| upkeep.space).expect("a first look");
    assert_eq!((space.reserve_bytes, space.low), (64 << 10, false));
    assert!(space.free_bytes > 0 && space.free_bytes <= space.total_bytes);
    assert_eq!(fs.open("reserve").expect("the reserve").len().expect("len"), 64 << 10);
    drop(journal);
    // A reserve that was not finished is made anew.
    fs.open("reserve").expect("open").set_len(5).expect("cut");
    let (mut journal, recovered) = Journal::open(fs.clone(), config).expect("open again");
    assert_eq!(recovered.findings, []);
    let space = journal.upkeep().expect("upkeep").and_then(|upkeep| upkeep.space).expect("a first look");
    assert_eq!((space.reserve_bytes, space.low), (64 << 10, false));
}

fn synced_bytes_and_names_outlive_a_power_loss<F: FileSystem>(fs: &F, lose_power: &impl Fn(&F)) {
    let file = fs.create("kept", 0).expect("create");
    file.write_at(0, b"synced").expect("write");
    file.sync_data().expect("sync");
    fs.sync_dir().expect("sync the directory");
    file.write_at(6, b" not synced").expect("write");
    fs.create("maybe", 0).expect("create");
    lose_power(fs);
    let mut buffer = [0; 6];
    fs.open("kept").expect("a synced name").read_at(0, &mut buffer).expect("read");
    assert_eq!(&buffer, b"synced");
}

fn a_rename_is_whole_or_did_not_happen<F: FileSystem>(fs: &F, lose_power: &impl Fn(&F)) {
    for (name, content) in [("a", b"old"), ("a.tmp", b"new")] {
        let file = fs.create(name, 0).expect("create");
        file.write_at(0, content).expect("write");
        file.sync_data().expect("sync");
    }
    fs.sync_dir().expect("sync the directory");
    fs.rename("a.tmp", "a").expect("rename");
    lose_power(fs);
    let mut buffer = [0; 3];
    fs.open("a").expect("one of them is there").read_at(0, &mut buffer).expect("read");
    assert!(&buffer == b"old" || &buffer == b"new", "{buffer:?}");
}

fn a_journal_keeps_what_it_reported_as_written<F: FileSystem>(fs: &F, lose_power: &impl Fn(&F)) {
    let mut reported = 0;
    for start in 0..20 {
        let (mut journal, recovered) = Journal::open(fs.clone(), small_config(start)).expect("open");
        let last = recovered.groups.first().and_then(|group| group.entries.last()).map_or(0, |entry| entry.index);
        assert_eq!(last, reported, "exactly what was reported is there");
        assert!(recovered.groups.iter().all(|group| group.corruption.is_none()));
        for _ in 0..7 {
            reported += 1;
            journal.write(&Batch { id: BatchId(reported), ops: vec![entry(1, reported)] }).expect("write");
            run_chore(&mut journal);
        }
        drop(journal);
        lose_power(fs);
    }
}
