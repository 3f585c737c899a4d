//! The metadata after a forced recovery.

mod support;

use std::collections::{BTreeMap, BTreeSet};

use holdfast_queue::Machine;
use holdfast_queue::arguments::Arguments;
use holdfast_queue::ids::{BootId, GroupId, Incarnation, MemberId, QueueId, ReplicaId, SessionId};
use holdfast_queue::meta::{
    MetaCommand, MetaEffect, MetaMachine, MetaReply, NewMember, Placement, Reborn, Recovery, SEEDED_GENERATION,
    SOURCE_GENERATION, Standing,
};
use support::*;

const META: GroupId = GroupId::META;

fn member(n: u64) -> NewMember {
    let (uuid, name, address) = (format!("uuid-{n}"), format!("m{n}"), format!("m{n}:5680"));
    NewMember { uuid, name, zone: String::new(), address, boot: Some(BootId(n * 100)) }
}

/// Three members, each queue with three replicas.
fn cluster() -> Group<MetaMachine> {
    founded(3, 3, member)
}

fn declare(group: &mut Group<MetaMachine>, name: &str) -> (QueueId, GroupId) {
    let (vhost, name, session) = ("/".to_owned(), name.to_owned(), SessionId { boot: BootId(100), conn: 1 });
    let (durable, exclusive, auto_delete, arguments) = (true, false, false, Arguments::default());
    group.lead(MetaCommand::DeclareQueue {
        vhost,
        name: name.clone(),
        durable,
        exclusive,
        auto_delete,
        arguments,
        session,
    });
    let (queue, info) = group.machine.queue_named("/", &name, session).expect("a queue");
    match info.placement {
        Placement::Replicated { group } => (queue, group),
        Placement::Transient { .. } => panic!("transient"),
    }
}

fn reborn(member: u64, index: u64) -> Reborn {
    let incarnation = Incarnation { counter: 2, nonce: 77 };
    Reborn { incarnation, member: MemberId(member), index, adopted: Vec::new() }
}

/// Only member 2 is left; what is named goes on there.
fn recovery(groups: &[(GroupId, Reborn)]) -> Recovery {
    Recovery {
        epoch: 2,
        members: BTreeSet::from([MemberId(2)]),
        groups: groups.iter().cloned().collect::<BTreeMap<_, _>>(),
        last_group: GroupId(9),
        last_queue: QueueId(12),
        last_member: MemberId(5),
    }
}

fn replica(member: u64, generation: u32) -> ReplicaId {
    ReplicaId { member: MemberId(member), generation }
}

#[test]
fn what_is_left_goes_on_with_one_voter_each_under_a_new_life_and_no_number_is_given_twice() {
    let mut group = cluster();
    let (_, kept) = declare(&mut group, "kept");
    let (lost, _) = declare(&mut group, "lost");
    group.machine.recover(&recovery(&[(META, reborn(2, 40)), (kept, reborn(2, 8))]));
    let info = group.machine.group(kept).expect("it goes on");
    assert_eq!((info.incarnation, info.changed_at), (Incarnation { counter: 2, nonce: 77 }, 8));
    assert_eq!((&info.voters, &info.target.voters), (&vec![replica(2, SOURCE_GENERATION)], &info.voters));
    assert_eq!(group.machine.members().map(|(id, _)| id).collect::<Vec<_>>(), [MemberId(2)]);
    assert_eq!(group.machine.member(MemberId(2)).unwrap().boot, None, "every run is over");
    assert!(group.machine.queue(lost).is_none(), "its group is not named");
    assert_eq!(group.machine.cluster().unwrap().epoch, 2);
    let digest = group.machine.digest();
    group.reload();
    assert_eq!(group.machine.digest(), digest);
    group.lead(MetaCommand::BootStarted { member: MemberId(2), boot: BootId(201) });
    assert_eq!(declare(&mut group, "new"), (QueueId(13), GroupId(10)));
}

#[test]
fn lost_members_come_back_with_blank_disks_as_others_and_get_replicas_of_generations_that_nobody_had() {
    let mut group = cluster();
    let (_, id) = declare(&mut group, "kept");
    group.machine.recover(&recovery(&[(META, reborn(2, 40)), (id, reborn(2, 8))]));
    let blank = NewMember { uuid: "uuid-blank".into(), boot: Some(BootId(601)), ..member(1) };
    group.lead(MetaCommand::AddMember { member: blank });
    assert!(group.machine.member(MemberId(6)).is_some_and(|member| member.name == "m1"));
    for id in [META, id] {
        let info = group.machine.group(id).expect("a group");
        assert_eq!(info.voters, [replica(2, SOURCE_GENERATION)]);
        assert_eq!(
            info.target.voters,
            [replica(2, SOURCE_GENERATION), replica(6, SEEDED_GENERATION + 1)],
            "group {id}"
        );
    }
}

#[test]
fn members_that_are_left_and_hold_no_copy_are_seeded_and_a_group_without_a_copy_is_born_anew() {
    let mut group = cluster();
    let (_, id) = declare(&mut group, "kept");
    let (_, empty) = declare(&mut group, "empty");
    let both = BTreeSet::from([MemberId(2), MemberId(3)]);
    let groups = recovery(&[(META, reborn(2, 40)), (id, reborn(3, 8)), (empty, reborn(2, 0))]);
    group.machine.recover(&Recovery { members: both, ..groups });
    let voters =
        |id: GroupId| group.machine.group(id).map(|info| (info.voters.clone(), info.target.voters.clone())).unwrap();
    let (seeded, source) = (SEEDED_GENERATION, SOURCE_GENERATION);
    assert_eq!(voters(META), (vec![replica(2, source)], vec![replica(2, source), replica(3, seeded)]));
    assert_eq!(voters(id), (vec![replica(3, source)], vec![replica(2, seeded), replica(3, source)]));
    assert_eq!(voters(empty), (vec![replica(2, 0)], vec![replica(2, 0), replica(3, 1)]));
    assert_eq!(group.machine.group(empty).unwrap().changed_at, 0, "a birth");
}

#[test]
fn a_queue_that_is_newer_than_the_metadata_is_taken_in_and_takes_its_name_from_one_that_was_deleted() {
    let mut group = cluster();
    let (old, old_group) = declare(&mut group, "orders");
    let newer = Reborn { adopted: vec![(QueueId(12), "/".into(), "orders".into())], ..reborn(2, 8) };
    let groups = [(META, reborn(2, 40)), (old_group, reborn(2, 8)), (GroupId(9), newer)];
    group.machine.recover(&recovery(&groups));
    let session = SessionId { boot: BootId(201), conn: 1 };
    let (found, info) = group.machine.queue_named("/", "orders", session).expect("the newer one");
    assert_eq!((found, info.placement), (QueueId(12), Placement::Replicated { group: GroupId(9) }));
    assert!(group.machine.queue(old).is_none() && group.machine.group(old_group).is_none());
    assert_eq!(group.machine.group(GroupId(9)).unwrap().voters, [replica(2, SOURCE_GENERATION)]);
}

fn answer(group: &mut Group<MetaMachine>, command: MetaCommand) -> MetaReply {
    let effects = group.send(BootId(201), vec![command]);
    let reply = effects.into_iter().find_map(|effect| match effect {
        MetaEffect::Reply { reply, .. } => Some(reply),
        _ => None,
    });
    reply.expect("a reply")
}

/// Members 2 and 3 are left of four, and member 2, which was to leave, has the copies of group 0 and of a queue's group.
fn left_with_a_leaving_source() -> (Group<MetaMachine>, GroupId) {
    let mut group = cluster();
    let (_, id) = declare(&mut group, "kept");
    group.lead(MetaCommand::AddMember { member: member(4) });
    assert_eq!(answer(&mut group, MetaCommand::RetireMember { member: MemberId(2) }), MetaReply::Done);
    let members = BTreeSet::from([MemberId(2), MemberId(3)]);
    group.machine.recover(&Recovery { members, ..recovery(&[(META, reborn(2, 40)), (id, reborn(2, 8))]) });
    assert_eq!(group.machine.member(MemberId(2)).unwrap().standing, Standing::Leaving);
    group.lead(MetaCommand::BootStarted { member: MemberId(2), boot: BootId(201) });
    (group, id)
}

#[test]
fn a_member_that_was_to_leave_and_has_the_only_copy_hands_it_over_and_goes() {
    let (mut group, id) = left_with_a_leaving_source();
    let seeded = replica(3, SEEDED_GENERATION);
    for id in [META, id] {
        let info = group.machine.group(id).expect("a group");
        assert_eq!(info.voters, [replica(2, SOURCE_GENERATION)], "group {id}");
        assert_eq!((&info.target.voters, info.target.preferred_leader), (&vec![seeded], MemberId(3)), "group {id}");
    }
    let follows = &group.machine.group(META).unwrap().target.learners;
    assert_eq!(*follows, [replica(2, SOURCE_GENERATION)], "it follows group 0 to the end");
    let settled = |group, learners| MetaCommand::SetReplicas { group, voters: vec![seeded], learners, changed_at: 100 };
    group.lead(settled(id, vec![]));
    group.lead(settled(META, vec![replica(2, SOURCE_GENERATION)]));
    assert_eq!(answer(&mut group, MetaCommand::RetireMember { member: MemberId(2) }), MetaReply::Done);
    assert!(group.machine.group(META).unwrap().target.replica_on(MemberId(2)).is_none());
}

#[test]
fn a_blank_disk_joins_in_the_place_of_a_lost_one_while_a_leaving_member_has_the_only_copy() {
    let (mut group, id) = left_with_a_leaving_source();
    let blank = NewMember { uuid: "uuid-blank".into(), boot: Some(BootId(601)), ..member(3) };
    let reply = answer(&mut group, MetaCommand::AddMember { member: blank });
    assert_eq!(reply, MetaReply::MemberAdded { member: MemberId(6) });
    assert_eq!(group.machine.member(MemberId(3)).unwrap().standing, Standing::Replaced { by: MemberId(6) });
    for id in [META, id] {
        let voters = &group.machine.group(id).expect("a group").target.voters;
        assert_eq!(voters.iter().map(|replica| replica.member).collect::<Vec<_>>(), [MemberId(6)], "group {id}");
    }
}

#[test]
fn where_every_member_that_is_left_was_to_leave_the_copy_waits_for_one_that_comes() {
    let (mut group, id) = left_with_a_leaving_source();
    group.machine.recover(&recovery(&[(META, reborn(2, 40)), (id, reborn(2, 8))]));
    let voters = |group: &Group<MetaMachine>| {
        let target = &group.machine.group(id).expect("a group").target.voters;
        target.iter().map(|replica| replica.member).collect::<Vec<_>>()
    };
    assert_eq!(voters(&group), [MemberId(2)]);
    let blank = NewMember { uuid: "uuid-blank".into(), boot: Some(BootId(601)), ..member(1) };
    group.lead(MetaCommand::AddMember { member: blank });
    assert_eq!(voters(&group), [MemberId(6)]);
}
