//! Torn tails and damaged blocks: the production journal over edited copies of a simulated disk.

use crate::model::{Model, recovered_equals};
use bytes::Bytes;
use holdfast_journal::conformance::{small_config, test_key};
use holdfast_journal::{
    Batch, BatchId, EntryReader, FileSystem, HardState, Journal, JournalError, JournalReader, Location, Op, Recovered,
    Scrutiny, StoredFile, inspect,
};
use holdfast_sim::disk::SimDisk;

const BLOCK: usize = 512;

/// Damages a batch at a byte.
type Tear = fn(&mut [u8], usize);

/// A disk after `batches` batches, and the model before and after the last of them.
struct Scene {
    disk: SimDisk,
    before: Model,
    after: Model,
    /// Where in the newest segment each batch begins, and where the last one ends.
    starts: Vec<usize>,
}

pub fn batch(number: u64) -> Batch {
    let mut ops = Vec::new();
    for group in 0..3 {
        let key = test_key(group);
        let payload = Bytes::from(format!("group {group}, entry {number}: {}", "y".repeat(number as usize * 20 % 170)));
        ops.push(Op::Entry { key, index: number, term: 1 + number / 4, payload });
    }
    let key = test_key(number % 3);
    ops.push(Op::HardState { key, term: 1 + number / 4, vote: 2, commit: number - 1 });
    Batch { id: BatchId(number), ops }
}

fn scene(batches: u64) -> Scene {
    let disk = SimDisk::default();
    let (mut journal, _) = Journal::open(disk.clone(), small_config(1)).expect("open");
    let (mut before, mut after) = (Model::default(), Model::default());
    let mut starts = Vec::new();
    for number in 1..=batches {
        starts.push(journal.used_bytes() as usize);
        before = after.clone();
        let batch = batch(number);
        batch.ops.iter().for_each(|op| after.apply(op));
        journal.write(&batch).expect("write");
    }
    starts.push(journal.used_bytes() as usize);
    Scene { disk, before, after, starts }
}

fn newest(disk: &SimDisk) -> String {
    let names = disk.list().expect("list");
    names.into_iter().rfind(|name| name.starts_with("segment")).expect("a segment")
}

/// A copy of the disk with the bytes of one file changed.
pub fn edited(disk: &SimDisk, file: &str, edit: impl Fn(&mut Vec<u8>)) -> SimDisk {
    let copy = SimDisk::default();
    for name in disk.list().expect("list") {
        let source = disk.open(&name).expect("open");
        let mut bytes = vec![0; source.len().expect("len") as usize];
        source.read_at(0, &mut bytes).expect("read");
        if name == file {
            edit(&mut bytes);
        }
        let target = copy.create(&name, 0).expect("create");
        target.write_at(0, &bytes).expect("write");
        target.sync_data().expect("sync");
    }
    copy.sync_dir().expect("sync the directory");
    copy
}

fn open(disk: &SimDisk, nonce: u64) -> (Recovered, JournalReader<SimDisk>) {
    let (journal, recovered) = Journal::open(disk.clone(), small_config(nonce)).expect("a damaged journal opens");
    (recovered, journal.reader())
}

#[test]
fn a_tail_torn_at_any_byte_costs_the_last_batch_and_nothing_else() {
    let scene = scene(6);
    let file = newest(&scene.disk);
    let (start, end) = (scene.starts[5], scene.starts[6]);
    let kinds: [(&str, Tear); 4] = [
        ("nothing from here on", |batch, at| batch[at..].fill(0)),
        ("this byte is garbage", |batch, at| batch[at] ^= 0x5a),
        ("nothing up to here, the rest is there", |batch, at| batch[..=at].fill(0)),
        ("this sector is missing", |batch, at| batch[at / BLOCK * BLOCK..(at / BLOCK + 1) * BLOCK].fill(0)),
    ];
    for (kind, tear) in kinds {
        for at in 0..end - start {
            let disk = edited(&scene.disk, &file, |bytes| tear(&mut bytes[start..end], at));
            let (recovered, reader) = open(&disk, 2);
            let without = recovered_equals(&recovered, &scene.before, &reader);
            let with = recovered_equals(&recovered, &scene.after, &reader);
            assert!(without.is_ok() || with.is_ok(), "byte {at}, {kind}: {without:?}, {with:?}");
            let (again, reader) = open(&disk, 3);
            assert_eq!(
                recovered_equals(&again, if without.is_ok() { &scene.before } else { &scene.after }, &reader),
                Ok(())
            );
        }
    }
}

#[test]
fn any_sectors_of_the_last_batch_may_be_missing() {
    let scene = scene(6);
    let file = newest(&scene.disk);
    let (start, end) = (scene.starts[5], scene.starts[6]);
    let sectors = (end - start).div_ceil(BLOCK);
    assert!((2..10).contains(&sectors));
    for present in 0..1u32 << sectors {
        let disk = edited(&scene.disk, &file, |bytes| {
            for sector in (0..sectors).filter(|sector| present >> sector & 1 == 0) {
                let from = start + sector * BLOCK;
                bytes[from..(from + BLOCK).min(end)].fill(0);
            }
        });
        let (recovered, reader) = open(&disk, 2);
        let whole = present + 1 == 1 << sectors;
        let expected = if whole { &scene.after } else { &scene.before };
        assert_eq!(recovered_equals(&recovered, expected, &reader), Ok(()), "sectors {present:b}");
    }
}

#[test]
fn damage_before_the_last_batch_is_never_taken_for_a_torn_tail() {
    let scene = scene(6);
    let file = newest(&scene.disk);
    for at in scene.starts[0]..scene.starts[5] {
        let disk = edited(&scene.disk, &file, |bytes| bytes[at] ^= 0x21);
        let (recovered, reader) = open(&disk, 2);
        let mut sound = scene.after.clone();
        for group in &recovered.groups {
            nothing_is_invented(&recovered, &scene.after, &reader);
            if group.corruption.is_some() {
                sound.groups.remove(&group.key);
            }
        }
        let intact = recovered.groups.iter().filter(|group| group.corruption.is_none()).cloned().collect();
        let intact = Recovered { groups: intact, ..recovered.clone() };
        assert_eq!(
            recovered_equals(&intact, &sound, &reader),
            Ok(()),
            "byte {at}: a group that claims to be sound is not"
        );
        let (again, _) = open(&disk, 3);
        let corrupt = |recovered: &Recovered| {
            let groups = recovered.groups.iter().filter(|group| group.corruption.is_some());
            groups.map(|group| group.key).collect::<Vec<_>>()
        };
        assert_eq!(corrupt(&recovered), corrupt(&again), "byte {at}: a restart does not launder corruption");
    }
}

fn nothing_is_invented(recovered: &Recovered, truth: &Model, reader: &impl EntryReader) {
    for group in &recovered.groups {
        let log = &truth.groups[&group.key].log;
        for entry in &group.entries {
            let payload = reader.read(entry.location).expect("a reported entry can be read");
            assert_eq!((entry.term, payload), log[&entry.index]);
        }
    }
}

/// A scene of six batches whose third entry of group 1 is damaged on the disk that is given beside it.
fn with_a_damaged_entry() -> (Scene, SimDisk) {
    let scene = scene(6);
    let needle = b"group 1, entry 3";
    let disk = edited(&scene.disk, &newest(&scene.disk), |bytes| {
        let at = bytes.windows(needle.len()).position(|window| window == needle).expect("the payload");
        bytes[at] = b'G';
    });
    (scene, disk)
}

#[test]
fn damage_to_the_records_of_one_group_leaves_the_others_serving() {
    let (_, disk) = with_a_damaged_entry();
    let (recovered, _) = open(&disk, 2);
    let corrupt: Vec<_> = recovered.groups.iter().filter(|group| group.corruption.is_some()).collect();
    assert_eq!(corrupt.len(), 1);
    assert_eq!(corrupt[0].key, test_key(1));
    let corruption = corrupt[0].corruption.as_ref().expect("corruption");
    assert_eq!((corruption.missing.clone(), corruption.hard_state, corruption.unknown), (vec![3..=3], false, false));
}

/// The damaged batch is still in its segment, and what an earlier start said of it too; neither counts any more.
#[test]
fn a_group_whose_log_was_written_anew_from_the_damage_on_is_whole_at_every_later_start() {
    let (scene, disk) = with_a_damaged_entry();
    assert!(open(&disk, 2).0.groups.iter().any(|group| group.corruption.is_some()));
    let (mut journal, recovered) = Journal::open(disk.clone(), small_config(3)).expect("open");
    let key = test_key(1);
    assert!(recovered.groups.iter().any(|group| group.key == key && group.corruption.is_some()), "it is remembered");
    let of_group = |op: &Op| op.key() == Some(key) && matches!(op, Op::Entry { .. });
    let mut ops: Vec<Op> = (3..=6).flat_map(|number| batch(number).ops).filter(of_group).collect();
    ops.push(Op::Repaired { key });
    journal.write(&Batch { id: BatchId(7), ops }).expect("write");
    drop(journal);
    for nonce in 4..7 {
        let (recovered, reader) = open(&disk, nonce);
        assert!(recovered.groups.iter().all(|group| group.corruption.is_none()));
        assert_eq!(recovered_equals(&recovered, &scene.after, &reader), Ok(()));
    }
}

/// The log says later on that the group was repaired, which was about something else.
#[test]
fn what_is_damaged_after_a_repair_is_known_although_it_was_written_before() {
    let disk = SimDisk::default();
    let (mut journal, _) = Journal::open(disk.clone(), small_config(1)).expect("open");
    let key = test_key(1);
    journal.write(&batch(1)).expect("write");
    let start = journal.used_bytes() as usize;
    let dead = Op::Dead { key, indexes: vec![1] };
    journal.write(&Batch { id: BatchId(2), ops: vec![dead] }).expect("write");
    journal.write(&Batch { id: BatchId(3), ops: vec![Op::Repaired { key }] }).expect("write");
    journal.write(&Batch { id: BatchId(4), ..batch(2) }).expect("write");
    assert!(open(&disk, 2).0.groups.iter().all(|group| group.corruption.is_none()));
    let file = disk.list().expect("list").into_iter().find(|name| name.starts_with("segment")).expect("a segment");
    let disk = edited(&disk, &file, |bytes| bytes[start + 48 + 72 + 56] ^= 1);
    for nonce in 3..6 {
        let (recovered, _) = open(&disk, nonce);
        let group = recovered.groups.iter().find(|group| group.key == key).expect("the group");
        assert!(group.corruption.as_ref().is_some_and(|corruption| corruption.unknown), "{group:?}");
    }
}

#[test]
fn a_vote_whose_record_is_damaged_is_found_in_the_batch_header() {
    let disk = SimDisk::default();
    let (mut journal, _) = Journal::open(disk.clone(), small_config(1)).expect("open");
    let key = test_key(1);
    let start = journal.used_bytes() as usize;
    let state = Op::HardState { key, term: 7, vote: 3, commit: 0 };
    journal.write(&Batch { id: BatchId(1), ops: vec![state] }).expect("write");
    journal.write(&batch(2)).expect("write");
    let file = newest(&disk);
    let disk = edited(&disk, &file, |bytes| bytes[start + 48 + 72 + 56] ^= 1);
    let (recovered, _) = open(&disk, 2);
    let group = recovered.groups.iter().find(|group| group.key == key).expect("the group");
    assert_eq!(group.hard_state, Some(HardState { term: 7, vote: 3, commit: 0 }));
}

#[test]
fn a_missing_segment_or_checkpoint_is_noticed() {
    let disk = SimDisk::default();
    let (mut journal, _) = Journal::open(disk.clone(), small_config(1)).expect("open");
    let key = test_key(0);
    for number in 1..=120 {
        journal.write(&batch(number)).expect("write");
    }
    let checkpoint = Op::Checkpoint { key, index: 5, term: 1, conf: Bytes::new(), machine: Bytes::from_static(b"m") };
    journal.write(&Batch { id: BatchId(0), ops: vec![checkpoint] }).expect("write");
    drop(journal);
    let names = disk.list().expect("list");
    assert!(names.iter().filter(|name| name.starts_with("segment")).count() > 3);
    let without = |gone: &str| {
        let copy = edited(&disk, "", |_| {});
        copy.remove(gone).expect("remove");
        copy.sync_dir().expect("sync");
        open(&copy, 2).0
    };
    let segments: Vec<&String> = names.iter().filter(|name| name.starts_with("segment")).collect();
    for gone in &segments[..segments.len() - 1] {
        let recovered = without(gone);
        assert!(recovered.groups.iter().all(|group| group.corruption.is_some()), "{gone} is missed");
        assert!(recovered.findings.iter().any(|finding| &&finding.file == gone && finding.what.contains("missing")));
    }
    let gone = names.iter().find(|name| name.starts_with("checkpoint")).expect("a checkpoint");
    let recovered = without(gone);
    let corrupt: Vec<_> = recovered.groups.iter().filter(|group| group.corruption.is_some()).collect();
    assert_eq!(corrupt.len(), 1);
    assert!(corrupt[0].key == key && corrupt[0].corruption.as_ref().is_some_and(|corruption| corruption.checkpoint));
}

#[test]
fn an_open_segment_that_was_cut_is_not_taken_for_a_torn_tail() {
    let scene = scene(6);
    let file = newest(&scene.disk);
    for cut in scene.starts.iter().skip(1).chain([&(scene.starts[3] + 1)]) {
        let disk = edited(&scene.disk, &file, |bytes| bytes.truncate(*cut));
        let (recovered, reader) = open(&disk, 2);
        nothing_is_invented(&recovered, &scene.after, &reader);
        assert!(recovered.groups.iter().all(|group| group.corruption.is_some()), "cut at {cut}");
        assert!(recovered.findings.iter().any(|finding| finding.file == file && finding.what.contains("was cut")));
    }
}

#[test]
fn a_member_with_an_identity_and_no_log_is_refused() {
    let disk = SimDisk::default();
    let (mut journal, _) = Journal::open(disk.clone(), small_config(1)).expect("open");
    journal.write(&Batch { id: BatchId(0), ops: vec![Op::Identity(Bytes::from_static(b"me"))] }).expect("write");
    drop(journal);
    let segments: Vec<String> =
        disk.list().expect("list").into_iter().filter(|name| name.starts_with("segment")).collect();
    let removed = edited(&disk, "", |_| {});
    segments.iter().for_each(|name| removed.remove(name).expect("remove"));
    let zeroed = edited(&disk, &segments[0], |bytes| bytes.fill(0));
    for (what, disk) in [("removed", removed), ("zeroed", zeroed)] {
        let error = Journal::open(disk.clone(), small_config(2)).map(drop).expect_err("refused");
        assert!(matches!(error, JournalError::LogMissing), "{what}: {error}");
        let again = Journal::open(disk, small_config(3)).map(drop).expect_err("still refused");
        assert!(matches!(again, JournalError::LogMissing), "{what}: {again}");
    }
}

/// Seed 183 of the membership profile: both copies were damaged one after the other, with two starts between.
#[test]
fn a_damaged_copy_of_the_identity_is_made_anew_at_the_next_start_before_the_other_one_is_damaged() {
    let disk = SimDisk::default();
    let (mut journal, _) = Journal::open(disk.clone(), small_config(1)).expect("open");
    journal.write(&Batch { id: BatchId(0), ops: vec![Op::Identity(Bytes::from_static(b"me"))] }).expect("write");
    drop(journal);
    let mut disk = edited(&disk, "", |_| {});
    for (nonce, copy) in ["identity-2", "identity-1", "identity-2"].into_iter().enumerate() {
        disk = edited(&disk, copy, |bytes| bytes[21] ^= 4);
        let (_, recovered) =
            Journal::open(disk.clone(), small_config(2 + nonce as u64)).expect("the other copy is whole");
        assert_eq!(recovered.identity.as_deref(), Some(&b"me"[..]));
        assert!(recovered.findings.iter().any(|finding| finding.file == copy), "it is told");
    }
    let (_, recovered) = Journal::open(disk, small_config(9)).expect("both copies are whole");
    assert!(recovered.findings.is_empty(), "{:?}", recovered.findings);
}

/// A member's disk of several segments, and the name of one in the middle of them, which is gone.
fn with_a_missing_segment() -> (SimDisk, String) {
    let disk = SimDisk::default();
    let (mut journal, _) = Journal::open(disk.clone(), small_config(1)).expect("open");
    journal.write(&Batch { id: BatchId(0), ops: vec![Op::Identity(Bytes::from_static(b"me"))] }).expect("write");
    (1..=120).for_each(|number| drop(journal.write(&batch(number)).expect("write")));
    drop(journal);
    let names = disk.list().expect("list");
    let segments: Vec<&String> = names.iter().filter(|name| name.starts_with("segment")).collect();
    assert!(segments.len() > 3);
    disk.remove(segments[1]).expect("remove");
    disk.sync_dir().expect("sync");
    (disk, segments[1].clone())
}

fn is_suspect(recovered: &Recovered) -> bool {
    recovered.groups.len() == 3
        && recovered.groups.iter().all(|group| group.corruption.as_ref().is_some_and(|found| found.unknown))
}

/// A process that died, or was refused, between the opening and its member's first write made lost voters again.
#[test]
fn what_a_missing_segment_took_is_told_at_every_opening_until_the_member_has_taken_note_of_it() {
    let (disk, _) = with_a_missing_segment();
    for nonce in 2..5 {
        let (recovered, _) = open(&disk, nonce);
        assert!(recovered.forgetful && is_suspect(&recovered), "opening {nonce}");
        assert_eq!(recovered.identity, Some(Bytes::from_static(b"me")));
        let looked = inspect(&disk, Scrutiny::AsAtStart).expect("it can be looked at");
        assert!(looked.forgetful && looked.is_damaged, "after opening {nonce}");
    }
    let (mut journal, _) = Journal::open(disk.clone(), small_config(5)).expect("open");
    let noted = Bytes::from_static(b"me, forgetful");
    journal.write(&Batch { id: BatchId(0), ops: vec![Op::Identity(noted.clone())] }).expect("write");
    drop(journal);
    let (recovered, _) = open(&disk, 6);
    assert!(!recovered.forgetful, "it is the member's to know");
    assert!(is_suspect(&recovered), "and the groups stay damaged");
    assert_eq!(recovered.identity, Some(noted));
}

/// The list of a new segment's header is durable before the first batch, which says which groups are damaged.
#[test]
fn a_recovery_that_dies_at_any_point_does_not_hide_a_missing_segment() {
    let (scene, gone) = with_a_missing_segment();
    let mut openings = 0;
    for calls in 0.. {
        let disk = edited(&scene, "", |_| {});
        disk.die_after(calls);
        let died = Journal::open(disk.clone(), small_config(2)).map(drop).is_err();
        disk.process_crash();
        let (recovered, _) = open(&disk, 3);
        assert!(recovered.forgetful && is_suspect(&recovered), "{gone} is missed after a death at call {calls}");
        if !died {
            break;
        }
        openings += 1;
    }
    assert!(openings > 5, "{openings} deaths");
}

#[test]
fn a_stale_or_misdirected_block_is_recognised() {
    let scene = scene(6);
    let file = newest(&scene.disk);
    let (second, third, fourth) = (scene.starts[1], scene.starts[2], scene.starts[3]);
    let length = (third - second).min(fourth - third);
    let disk = edited(&scene.disk, &file, |bytes| bytes.copy_within(second..second + length, third));
    let (recovered, reader) = open(&disk, 2);
    nothing_is_invented(&recovered, &scene.after, &reader);
    assert!(recovered.groups.iter().all(|group| group.corruption.is_some()), "a copy of batch 2 is not batch 3");
}

#[test]
fn a_read_of_a_damaged_payload_says_so() {
    let scene = scene(3);
    let (mut journal, recovered) = Journal::open(scene.disk.clone(), small_config(2)).expect("open");
    let location = recovered.groups[0].entries[0].location;
    let wrong = Location { offset: location.offset + 8, ..location };
    assert!(journal.reader().read(location).is_ok());
    assert!(journal.reader().read(wrong).is_err());
    journal.write(&batch(4)).expect("write");
}

/// The drill of the fault list's misdirected block, on real processes, delivered wrong messages.
#[test]
fn a_record_that_belongs_elsewhere_in_its_segment_is_neither_read_nor_recovered_as_the_one_that_stood_there() {
    let disk = SimDisk::default();
    let (mut journal, _) = Journal::open(disk.clone(), small_config(1)).expect("open");
    let key = test_key(1);
    let entry =
        |index: u64| Op::Entry { key, index, term: 1, payload: Bytes::from(format!("the same length {index}")) };
    let mut locations = Vec::new();
    for index in 1..=4 {
        let written = journal.write(&Batch { id: BatchId(index), ops: vec![entry(index)] }).expect("write");
        locations.extend(written.records.iter().map(|record| record.location));
    }
    let (from, to) = (locations[0], locations[1]);
    assert_eq!((from.segment, from.len), (to.segment, to.len));
    let file = disk.open(&newest(&disk)).expect("open");
    let mut bytes = vec![0; 56 + from.len as usize];
    file.read_at(u64::from(from.offset), &mut bytes).expect("read");
    file.write_at(u64::from(to.offset), &bytes).expect("write");

    let reader = journal.reader();
    assert_eq!(reader.read(from).expect("the first"), "the same length 1");
    assert!(reader.read(to).is_err(), "the second's place has a record of the first");
    drop((journal, reader));
    let (_, recovered) = Journal::open(disk, small_config(2)).expect("open again");
    let group = recovered.groups.iter().find(|group| group.key == key).expect("the group");
    assert!(group.corruption.is_some(), "the group is known to be damaged");
}
