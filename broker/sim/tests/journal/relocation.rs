//! What stays on the disk is bounded by what is live, whatever a few old messages do, and nobody loses sight of a body
//! that was moved.

use std::collections::BTreeMap;

use bytes::Bytes;
use holdfast_journal::conformance::{small_config, test_key};
use holdfast_journal::{
    Batch, BatchId, EntryReader, FileSystem, GroupKey, Journal, JournalConfig, Location, Op, Recovered, StoredFile,
    Upkeep,
};
use holdfast_sim::disk::SimDisk;
use holdfast_sim::rng::Rng;

/// 50 GB are so many segments of the production size, 64 MiB.
const SEGMENTS_OF_50_GB: u64 = 50_000_000_000 / (64 << 20) + 1;
/// What may be on the disk beyond twice the live bytes, in segments: the open one, the spare one, one before relocation
/// begins, one that is being emptied, one that was emptied and is held until the new places are known, and one that the
/// logs above the prefixes reach over.
const SLACK_SEGMENTS: u64 = 6;
const RECORD_BYTES: u64 = 56;

/// A replica as the journal sees one: a log, live bodies below its prefix, and where each of them is.
#[derive(Default)]
struct Replica {
    last: u64,
    compacted: u64,
    /// Above the prefix.
    log: BTreeMap<u64, (Location, Bytes)>,
    bodies: BTreeMap<u64, (Location, Bytes)>,
}

impl Replica {
    fn live_bytes(&self) -> u64 {
        self.log.values().chain(self.bodies.values()).map(|(_, payload)| RECORD_BYTES + payload.len() as u64).sum()
    }
}

struct Scene {
    disk: SimDisk,
    config: JournalConfig,
    rng: Rng,
    replicas: BTreeMap<GroupKey, Replica>,
    /// To go with the next batch.
    answers: Vec<Op>,
    starts: u64,
    written_bytes: u64,
    moved: u64,
}

impl Scene {
    fn new(seed: u64) -> Self {
        let replicas = (1..4).map(|group| (test_key(group), Replica::default())).collect();
        Self {
            disk: SimDisk::default(),
            config: small_config(seed * 1_000),
            rng: Rng::new(seed),
            replicas,
            answers: Vec::new(),
            starts: 0,
            written_bytes: 0,
            moved: 0,
        }
    }

    fn open(&mut self) -> Journal<SimDisk> {
        self.starts += 1;
        let config = JournalConfig { nonce: self.config.nonce + self.starts, ..self.config };
        let (journal, recovered) = Journal::open(self.disk.clone(), config).expect("open");
        self.answers.clear();
        self.take_in(&recovered, &journal);
        journal
    }

    /// Everything live is there, and its places are those that count from now on.
    fn take_in(&mut self, recovered: &Recovered, journal: &Journal<SimDisk>) {
        let reader = journal.reader();
        for (key, replica) in &mut self.replicas {
            let Some(found) = recovered.groups.iter().find(|group| group.key == *key) else {
                assert_eq!(replica.last, 0);
                continue;
            };
            assert_eq!(found.corruption, None);
            assert_eq!(found.compacted, replica.compacted);
            let bodies: BTreeMap<u64, Location> = found.bodies.iter().copied().collect();
            let entries: BTreeMap<u64, Location> =
                found.entries.iter().map(|entry| (entry.index, entry.location)).collect();
            assert!(entries.keys().eq(replica.log.keys()), "a moved body was read back as an entry");
            for (index, (location, payload)) in replica.bodies.iter_mut() {
                *location = *bodies.get(index).unwrap_or_else(|| panic!("{key}: body {index} is lost"));
                assert_eq!(reader.read(*location).expect("a live body"), *payload);
            }
            for (index, (location, _)) in replica.log.iter_mut() {
                *location = entries[index];
            }
        }
    }

    fn payload(&mut self) -> Bytes {
        let len = if self.rng.chance(3) { self.rng.range(1_000, 5_000) } else { self.rng.range(20, 400) };
        let fill = self.rng.draw();
        (0..len).map(|position| (fill >> (position % 8 * 8)) as u8).collect()
    }

    /// Appends, acknowledges, and now and then compacts. `keep` says which messages are not acknowledged.
    fn step(&mut self, journal: &mut Journal<SimDisk>, keep: impl Fn(GroupKey, u64) -> bool) {
        let keys: Vec<GroupKey> = self.replicas.keys().copied().collect();
        let key = keys[self.rng.index(keys.len())];
        let mut ops = std::mem::take(&mut self.answers);
        let mut payloads = Vec::new();
        let first = self.replicas[&key].last + 1;
        for index in first..first + self.rng.range(1, 8) {
            let payload = self.payload();
            self.written_bytes += RECORD_BYTES + payload.len() as u64;
            ops.push(Op::Entry { key, index, term: 1, payload: payload.clone() });
            payloads.push((index, payload));
        }
        let batch = Batch { id: BatchId(first), ops };
        let written = journal.write(&batch).expect("write");
        let replica = self.replicas.get_mut(&key).expect("the replica");
        for (record, (index, payload)) in written.records.iter().zip(payloads) {
            replica.log.insert(index, (record.location, payload));
            replica.last = index;
        }
        if replica.log.len() > 12 {
            let up_to = replica.last - self.rng.range(0, 5);
            self.compact(journal, key, up_to, keep);
        } else {
            self.acknowledge(journal, key);
        }
    }

    fn compact(
        &mut self,
        journal: &mut Journal<SimDisk>,
        key: GroupKey,
        up_to: u64,
        keep: impl Fn(GroupKey, u64) -> bool,
    ) {
        let replica = self.replicas.get_mut(&key).expect("the replica");
        let above = replica.log.split_off(&(up_to + 1));
        let below = std::mem::replace(&mut replica.log, above);
        // Of the ordinary messages one in ten is not acknowledged yet.
        let kept = below.into_iter().filter(|(index, _)| keep(key, *index) || index % 10 == 3);
        replica.bodies.extend(kept);
        replica.compacted = up_to;
        let live = replica.bodies.keys().copied().collect();
        let ops = vec![
            Op::HardState { key, term: 1, vote: 1, commit: up_to },
            Op::Checkpoint { key, index: up_to, term: 1, conf: Bytes::new(), machine: Bytes::new() },
            Op::Compact { key, up_to, live },
        ];
        journal.write(&Batch { id: BatchId(0), ops }).expect("write");
    }

    fn acknowledge(&mut self, journal: &mut Journal<SimDisk>, key: GroupKey) {
        let replica = self.replicas.get_mut(&key).expect("the replica");
        let ordinary = replica.bodies.keys().copied().filter(|index| index % 10 == 3 && *index + 200 < replica.last);
        let indexes: Vec<u64> = ordinary.collect();
        if !indexes.is_empty() {
            replica.bodies.retain(|index, _| !indexes.contains(index));
            journal.write(&Batch { id: BatchId(0), ops: vec![Op::Dead { key, indexes }] }).expect("write");
        }
    }

    fn keep_up(&mut self, journal: &mut Journal<SimDisk>) {
        for _ in 0..3 {
            if let Some(chore) = journal.next_chore() {
                journal.chore_done(chore.run()).expect("a chore");
            }
        }
        if let Some(upkeep) = journal.upkeep().expect("upkeep") {
            self.take_upkeep(&upkeep);
        }
    }

    fn take_upkeep(&mut self, upkeep: &Upkeep) {
        assert!(upkeep.damaged.is_empty() && upkeep.findings.is_empty(), "{upkeep:?}");
        let Some(moves) = &upkeep.moves else { return };
        for body in &moves.bodies {
            let Some(replica) = self.replicas.get_mut(&body.key) else { continue };
            assert!(body.index <= replica.compacted, "only what is below the prefix is moved");
            if let Some((location, _)) = replica.bodies.get_mut(&body.index)
                && *location == body.from
            {
                *location = body.to;
                self.moved += 1;
            }
        }
        self.answers.push(Op::MovesTaken { id: moves.id });
    }

    fn check_bodies(&mut self, journal: &Journal<SimDisk>) {
        let reader = journal.reader();
        for (index, (location, payload)) in self.replicas.values().flat_map(|replica| &replica.bodies) {
            assert_eq!(reader.read(*location).as_ref(), Ok(payload), "body {index} at its known place");
        }
    }

    fn check_size(&self) {
        let segments = self.disk.list().expect("list").into_iter().filter(|name| name.starts_with("segment"));
        let used: u64 = segments.map(|name| self.disk.open(&name).and_then(|file| file.len()).expect("len")).sum();
        let live: u64 = self.replicas.values().map(Replica::live_bytes).sum();
        let bound = 2 * live + SLACK_SEGMENTS * self.config.segment_bytes;
        assert!(used <= bound, "{used} bytes in segments for {live} live ones, the bound is {bound}");
    }
}

fn run(seed: u64, segments: u64, crashes: bool, keep: impl Fn(GroupKey, u64) -> bool) -> Scene {
    let mut scene = Scene::new(seed);
    let mut journal = scene.open();
    while scene.written_bytes < segments * scene.config.segment_bytes {
        scene.step(&mut journal, &keep);
        scene.keep_up(&mut journal);
        scene.check_size();
        if scene.rng.chance(2) {
            scene.check_bodies(&journal);
        }
        if crashes && scene.rng.range(0, 300) == 0 {
            drop(journal);
            if scene.rng.chance(50) {
                let mut rng = scene.rng.split(7);
                scene.disk.power_loss(&mut rng);
            } else {
                scene.disk.process_crash();
            }
            journal = scene.open();
        }
    }
    scene.check_bodies(&journal);
    scene
}

#[test]
fn one_old_unacked_message_does_not_pin_the_log_through_50_gb_of_traffic_and_crashes() {
    let old = |key: GroupKey, index: u64| key == test_key(1) && index == 5;
    let scene = run(1, SEGMENTS_OF_50_GB, true, old);
    assert!(scene.replicas[&test_key(1)].bodies.contains_key(&5));
    assert!(scene.moved > 0 && scene.starts > 5);
}

#[test]
fn the_disk_holds_at_most_twice_what_is_live_whichever_messages_stay() {
    for seed in 2..8 {
        let scene = run(seed, 60, seed % 2 == 0, |_, index| index % (3 + seed * 5) == 0);
        assert!(scene.moved > 0);
    }
}

#[test]
fn a_segment_that_was_emptied_stays_until_the_new_places_are_known() {
    let mut scene = Scene::new(9);
    let mut journal = scene.open();
    let old = |key: GroupKey, index: u64| key == test_key(1) && index == 5;
    // Moves are reported, and never answered.
    while scene.moved == 0 {
        scene.step(&mut journal, old);
        scene.keep_up(&mut journal);
        scene.answers.clear();
    }
    let segments = |disk: &SimDisk| disk.list().expect("list").into_iter().find(|name| name.starts_with("segment"));
    let oldest = segments(&scene.disk);
    for _ in 0..500 {
        scene.step(&mut journal, old);
        scene.keep_up(&mut journal);
        scene.answers.clear();
        assert_eq!(segments(&scene.disk), oldest);
    }
    scene.answers.push(Op::MovesTaken { id: u64::MAX });
    scene.step(&mut journal, old);
    scene.keep_up(&mut journal);
    assert_ne!(segments(&scene.disk), oldest);
}

#[test]
fn a_group_whose_log_keeps_old_segments_is_named_until_it_compacts() {
    let mut scene = Scene::new(10);
    let mut journal = scene.open();
    let idle = test_key(9);
    let entry = Op::Entry { key: idle, index: 1, term: 1, payload: Bytes::from_static(b"idle") };
    journal.write(&Batch { id: BatchId(0), ops: vec![entry] }).expect("write");
    let mut named = 0;
    for _ in 0..600 {
        scene.step(&mut journal, |_, _| false);
        while let Some(chore) = journal.next_chore() {
            journal.chore_done(chore.run()).expect("a chore");
        }
        let upkeep = journal.upkeep().expect("upkeep").unwrap_or_default();
        named += upkeep.pinning.iter().filter(|key| **key == idle).count();
        scene.take_upkeep(&upkeep);
    }
    assert!(named > 1, "it is named, and again when it had no effect");
    let ops = vec![
        Op::HardState { key: idle, term: 1, vote: 1, commit: 1 },
        Op::Checkpoint { key: idle, index: 1, term: 1, conf: Bytes::new(), machine: Bytes::new() },
        Op::Compact { key: idle, up_to: 1, live: vec![1] },
    ];
    journal.write(&Batch { id: BatchId(0), ops }).expect("write");
    for _ in 0..300 {
        scene.step(&mut journal, |_, _| false);
        scene.keep_up(&mut journal);
    }
    scene.check_size();
}
