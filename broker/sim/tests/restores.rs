//! Restores from copies that are not what they should be, and a restored cluster beside the original one.

use std::collections::BTreeMap;

use holdfast_engine::backup::{Manifest, MissingGroup};
use holdfast_engine::restore::{HoldCopy, check};
use holdfast_journal::{FileSystem, StoredFile};
use holdfast_queue::ids::GroupId;
use holdfast_sim::client::Role;
use holdfast_sim::disk::SimDisk;
use holdfast_sim::ledger::Ledger;
use holdfast_sim::plan::{Plan, Profile};
use holdfast_sim::restored::{back_up, consume, copy_of, founder, held, new_cluster};
use holdfast_sim::rng::Rng;
use holdfast_sim::run::found;
use holdfast_sim::world::World;

const SECOND_US: u64 = 1_000_000;
const SEGMENT_BYTES: u64 = 256 << 10;

type Change = fn(&mut Manifest);

struct BackedUp {
    rng: Rng,
    plan: Plan,
    world: World,
    manifest: Manifest,
    /// Of all three members; each has all of it.
    copies: Vec<HoldCopy<SimDisk>>,
}

/// Two queues with confirmed messages; a consumer of the first one holds many and has settled none.
fn backed_up(seed: u64) -> BackedUp {
    let mut rng = Rng::new(seed);
    let mut plan = Profile::Mixed.plan(seed);
    (plan.min_in_sync, plan.has_small_limits) = (0, true);
    let mut world = World::new(&mut rng, &plan, None).expect("they start");
    found(&mut world).expect("a cluster");
    for queue in ["orders", "events"] {
        world.add_client(queue, Role::Producer { total: 300, eagerness: 60, confirms: 100 });
    }
    world.add_client("orders", Role::Consumer { prefetch: u16::MAX });
    let end = world.now_us + 60 * SECOND_US;
    while world.ledgers.values().map(Ledger::confirmed_count).sum::<u64>() < 600 {
        assert!(world.step(end).expect("no violation"), "not confirmed in time");
    }
    let (manifest, copies) = back_up(&mut world, "b").expect("a backup");
    assert_eq!(manifest.totals.queues, 2);
    assert!(manifest.groups.iter().all(|group| group.holders.len() == 3), "{manifest:?}");
    BackedUp { rng, plan, world, manifest, copies }
}

fn again(copies: &[HoldCopy<SimDisk>]) -> Vec<HoldCopy<SimDisk>> {
    let copy = |one: &HoldCopy<SimDisk>| HoldCopy {
        member: one.member.clone(),
        files: copy_of(&one.files).expect("a disk in memory"),
    };
    copies.iter().map(copy).collect()
}

/// What is done to a file.
#[derive(Clone, Copy, Debug)]
enum Damage {
    Changed,
    Truncated,
    Missing,
}

fn damage(copy: &HoldCopy<SimDisk>, name: &str, length: u64, what: Damage) {
    let file = copy.files.open(name).expect("it is there");
    let done = match what {
        Damage::Changed => {
            let mut byte = [0];
            file.read_at(length / 2, &mut byte).and_then(|_| file.write_at(length / 2, &[byte[0] ^ 4]))
        }
        Damage::Truncated => file.set_len(length - 1),
        Damage::Missing => copy.files.remove(name),
    };
    done.expect("a disk in memory");
}

#[test]
fn whatever_is_wrong_with_a_file_of_one_copy_another_one_is_taken_and_alone_it_is_refused_by_its_name() {
    let BackedUp { mut rng, manifest, copies, .. } = backed_up(3);
    let new = new_cluster(&mut rng);
    let files = manifest.members[0].files.clone();
    for (number, file) in files.iter().filter(|file| file.length > 0).enumerate() {
        let what = [Damage::Changed, Damage::Truncated, Damage::Missing][number % 3];
        let mut some = again(&copies[..2]);
        damage(&some[0], &file.name, file.length, what);
        let (_, restored) = founder(&manifest, &some, &new, SEGMENT_BYTES).expect("the other copy is whole");
        assert_eq!(
            (restored.messages, restored.read.as_slice()),
            (manifest.totals.messages, ["m1".to_owned()].as_slice())
        );
        assert!(restored.damaged.iter().any(|text| text.contains(&file.name)), "{what:?} {}: {restored:?}", file.name);
        some.truncate(1);
        let why = founder(&manifest, &some, &new, SEGMENT_BYTES).expect_err("no whole copy");
        for word in [file.name.as_str(), "'orders'", "'events'"] {
            assert!(why.contains(word), "{what:?} {}: `{word}` in {why}", file.name);
        }
    }
    assert!(files.len() > 3, "{files:?}");
}

#[test]
fn groups_are_put_together_from_members_that_have_them_and_one_that_nobody_has_fails_all() {
    let BackedUp { mut rng, plan, mut manifest, copies, .. } = backed_up(4);
    let new = new_cluster(&mut rng);
    let expected = held(&manifest, &copies).expect("sound copies");
    manifest.groups[0].holders = vec!["m2".into()];
    manifest.groups[1].holders = vec!["m0".into()];
    manifest.groups[2].holders = vec!["m1".into(), "m0".into()];
    let (disk, restored) = founder(&manifest, &copies, &new, plan.segment_bytes).expect("together they have all");
    assert_eq!(restored.read, ["m2", "m0"]);
    let why = founder(&manifest, &copies[1..], &new, plan.segment_bytes).expect_err("that of m0 is not here");
    let queue = &manifest.groups[1].state.queues[0].name;
    assert!(why.contains(&format!("'{queue}'")) && why.contains("takes that of m0"), "{why}");
    let mut world = World::on(&mut rng, &plan, None, vec![disk]).expect("it starts");
    consume(&mut world, &expected).expect("every message");
}

#[test]
fn what_the_backup_was_made_without_is_there_and_empty() {
    let BackedUp { mut rng, plan, mut manifest, copies, .. } = backed_up(5);
    let left_out = manifest.groups.remove(1);
    let queue = &left_out.state.queues[0];
    let name = format!("{}/{}", queue.vhost, queue.name);
    manifest.missing.push(MissingGroup { group: left_out.place.group, queues: vec![name.clone()] });
    let new = new_cluster(&mut rng);
    let (disk, restored) = founder(&manifest, &copies, &new, plan.segment_bytes).expect("the rest");
    assert_eq!((restored.missing, restored.messages), (vec![name], 300));
    let mut expected = held(&manifest, &copies).expect("sound copies");
    expected.insert(queue.name.clone(), Vec::new());
    let mut world = World::on(&mut rng, &plan, None, vec![disk]).expect("it starts");
    consume(&mut world, &expected).expect("every message of the other queue, and a queue that works");
}

#[test]
fn a_journal_that_is_not_what_the_manifest_says_is_found_out() {
    let BackedUp { mut rng, manifest, copies, .. } = backed_up(6);
    let (new, other) = (new_cluster(&mut rng), new_cluster(&mut rng));
    let (disk, _) = founder(&manifest, &copies, &new, SEGMENT_BYTES).expect("a restore");
    check(&disk, &manifest, &new).expect("it is as it should be");
    check(&disk, &manifest, &other).expect_err("another restore of the same backup");
    let with = |change: Change| {
        let mut changed = manifest.clone();
        change(&mut changed);
        changed
    };
    let changes: [(&str, Change); 4] = [
        ("a message fewer", |it| it.groups[1].state.queues[0].messages -= 1),
        ("other contents", |it| it.groups[2].state.queues[0].sha256 = "00".into()),
        ("a place further", |it| it.groups[1].place.index += 1),
        ("without a group", |it| drop(it.groups.pop())),
    ];
    for (what, change) in changes {
        check(&disk, &with(change), &new).expect_err(what);
    }
    let lied = with(changes[0].1);
    let why = founder(&lied, &copies, &new, SEGMENT_BYTES).expect_err("no copy is so");
    assert!(why.contains("is what the manifest says"), "{why}");
}

#[test]
fn a_restored_cluster_and_the_original_refuse_each_other_and_go_on_apart() {
    let BackedUp { mut rng, plan, mut world, manifest, copies } = backed_up(7);
    let new = new_cluster(&mut rng);
    let (disk, _) = founder(&manifest, &copies, &new, plan.segment_bytes).expect("a restore");
    // Under the name and address of m0 the new cluster's founder comes up, beside the original m1 and a blank m2.
    world.crash(1, false);
    let original = world.processes[1].disk.clone();
    let mut mixed = World::on(&mut rng, &plan, None, vec![disk, original]).expect("they start");
    let end = mixed.now_us + 20 * SECOND_US;
    while mixed.step(end).expect("no violation") {}
    let cluster = |member: usize| {
        let host = mixed.processes[member].running.as_ref()?.member.host()?;
        let meta = host.machine(GroupId::META)?.meta()?;
        let names: Vec<String> = meta.members().map(|(_, info)| info.name.clone()).collect();
        Some((meta.cluster()?.cluster_id.clone(), names))
    };
    assert_eq!(cluster(0), Some(("restored".into(), vec!["m0".into(), "m2".into()])));
    assert_eq!(cluster(2), cluster(0), "the blank one has joined the new cluster");
    assert_eq!(cluster(1).map(|(id, names)| (id, names.len())), Some(("simulated".into(), 3)));
    let refusals = mixed.trace.lines().filter(|line| line.contains("belongs to cluster")).count();
    assert!(refusals > 0, "they have met");
    let lives = |member: usize| -> BTreeMap<GroupId, (u32, u64)> {
        let views = mixed.processes[member].running.as_ref().expect("it runs").views();
        views.map(|view| (view.group, view.incarnation)).collect()
    };
    for (group, life) in lives(0) {
        assert!(lives(1).get(&group).is_some_and(|original| *original != life), "group {group}");
    }
}
