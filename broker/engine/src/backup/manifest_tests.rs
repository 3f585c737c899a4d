use super::*;

fn place(group: u64) -> Place {
    Place {
        group: GroupId(group),
        incarnation: Incarnation { counter: 1, nonce: u64::MAX },
        term: 3,
        index: 10 + group,
    }
}

fn part(name: &str, groups: &[u64], sum: &str) -> MemberPart {
    let queue =
        QueueEntry { id: 1, name: "q".into(), messages: 2, bytes: 20, sha256: sum.into(), ..QueueEntry::default() };
    let state = StateEntry { machine_sha256: "m".into(), queues: vec![queue] };
    let file = FileEntry { name: "segment-1".into(), length: 100, file_bytes: 400, sha256: "f".into() };
    let incomplete = vec![IncompleteGroup { group: 2, why: "its log ends early".into() }];
    let entry = MemberEntry { name: name.into(), files: vec![file], incomplete, ..MemberEntry::default() };
    MemberPart { entry, whole: groups.iter().map(|group| (PlaceEntry::from(&place(*group)), state.clone())).collect() }
}

fn made(copies: usize, parts: Vec<MemberPart>) -> Result<Manifest, (GroupId, String)> {
    let places = [place(1), place(2)];
    let copies = [(GroupId(1), copies), (GroupId(2), copies)].into();
    let cut = Cut {
        id: "b",
        cluster_id: "c",
        cluster_epoch: 1,
        taken_at_ms: 7,
        pause_ms: 3,
        places: &places,
        missing: Vec::new(),
        copies: &copies,
    };
    Manifest::of(&cut, parts)
}

#[test]
fn the_manifest_names_who_has_each_group_and_counts_each_message_once() {
    let parts = vec![part("m2", &[1, 2], "s"), part("m0", &[1], "s"), part("m1", &[2], "s")];
    let manifest = made(2, parts).expect("two have each");
    let holders: Vec<_> = manifest.groups.iter().map(|group| group.holders.join(" ")).collect();
    assert_eq!(holders, ["m0 m2", "m1 m2"]);
    let Totals { groups, queues, messages, message_bytes, files, file_bytes } = manifest.totals;
    assert_eq!((groups, queues, messages, message_bytes, files, file_bytes), (2, 2, 4, 40, 3, 300));
    let (file, sum) = manifest.to_file();
    assert_eq!((Manifest::from_file(&file), sum.len()), (Ok(manifest), 64));
}

#[test]
fn a_group_that_too_few_members_have_fails_it_with_what_is_wrong_on_each() {
    let (group, why) = made(2, vec![part("m0", &[1, 2], "s"), part("m1", &[1], "s")]).expect_err("one has group 2");
    assert_eq!(group, GroupId(2));
    assert!(why.contains("1 members hold all of it, and 2 should") && why.contains("m1: its log ends early"), "{why}");
    let (_, why) = made(2, vec![part("m0", &[2], "s"), part("m1", &[2], "s")]).expect_err("nobody has group 1");
    assert!(why.contains("m0: nothing of it is in its 1 files; m1: nothing of it"), "{why}");
    assert!(made(1, vec![part("m0", &[1, 2], "s")]).is_ok(), "the only replica is enough");
    assert!(made(1, Vec::new()).is_err(), "none is not");
}

#[test]
fn members_that_differ_in_what_a_queue_holds_fail_it() {
    let (group, why) = made(2, vec![part("m0", &[1, 2], "s"), part("m1", &[1, 2], "t")]).expect_err("they differ");
    assert!(group == GroupId(1) && why.contains("m0 and m1 differ"), "{why}");
}

#[test]
fn a_manifest_of_another_format_or_a_damaged_one_is_refused() {
    let manifest = Manifest { format: "holdfast-backup/2".into(), ..Manifest::default() };
    assert!(Manifest::from_file(&manifest.to_file().0).is_err_and(|why| why.contains("'holdfast-backup/2'")));
    for damaged in [&b""[..], b"{", b"[]", b"{\"format\":1}"] {
        assert!(Manifest::from_file(damaged).is_err());
    }
}
