//! Where replicas are and where they should be, and members that come and go.

mod support;

use holdfast_queue::Machine;
use holdfast_queue::arguments::Arguments;
use holdfast_queue::ids::{BootId, GroupId, MemberId, ReplicaId, SessionId};
use holdfast_queue::meta::{
    GroupInfo, MetaCommand, MetaEffect, MetaMachine, MetaReply, NewMember, Placement, Standing,
};
use support::*;

/// Members 1 to 5 in zones a, b, c, a, b; the run of member n is n * 100.
fn cluster(members: u64) -> Group<MetaMachine> {
    founded(members, 0, member)
}

fn member(n: u64) -> NewMember {
    let zone = ["a", "b", "c"][(n as usize - 1) % 3].to_owned();
    NewMember {
        uuid: format!("uuid-{n}"),
        name: format!("m{n}"),
        zone,
        address: format!("m{n}:5680"),
        boot: Some(BootId(n * 100)),
    }
}

fn ask(group: &mut Group<MetaMachine>, command: MetaCommand) -> MetaReply {
    let effects = group.send(BootId(100), vec![command]);
    let reply = effects.into_iter().find_map(|effect| match effect {
        MetaEffect::Reply { reply, .. } => Some(reply),
        _ => None,
    });
    reply.expect("a reply")
}

fn refusal(group: &mut Group<MetaMachine>, command: MetaCommand) -> String {
    match ask(group, command) {
        MetaReply::Refused { refusal } => refusal.to_string(),
        other => panic!("not refused: {other:?}"),
    }
}

/// Declares a queue from member `near` and gives its group.
fn declare(group: &mut Group<MetaMachine>, name: &str, near: u64) -> GroupId {
    let session = SessionId { boot: BootId(near * 100), conn: 1 };
    let (vhost, name, arguments) = ("/".to_owned(), name.to_owned(), Arguments::default());
    let (durable, exclusive, auto_delete) = (true, false, false);
    let declare = MetaCommand::DeclareQueue { vhost, name, durable, exclusive, auto_delete, arguments, session };
    let MetaReply::QueueDeclared { queue, .. } = ask(group, declare) else { panic!("not declared") };
    match group.machine.queue(queue).expect("a queue").placement {
        Placement::Replicated { group } => group,
        Placement::Transient { .. } => panic!("transient"),
    }
}

fn info(group: &Group<MetaMachine>, id: GroupId) -> &GroupInfo {
    group.machine.group(id).expect("a group")
}

fn replica(member: u64, generation: u32) -> ReplicaId {
    ReplicaId { member: MemberId(member), generation }
}

fn founders(members: &[u64]) -> Vec<ReplicaId> {
    members.iter().map(|member| replica(*member, 0)).collect()
}

fn target(group: GroupId, voters: &[u64], learners: &[u64]) -> MetaCommand {
    let ids = |list: &[u64]| list.iter().copied().map(MemberId).collect::<Vec<_>>();
    let preferred_leader = MemberId(voters.first().copied().unwrap_or(0));
    MetaCommand::SetTarget { group, voters: ids(voters), learners: ids(learners), preferred_leader }
}

fn record(group: GroupId, voters: &[ReplicaId], learners: &[ReplicaId], changed_at: u64) -> MetaCommand {
    MetaCommand::SetReplicas { group, voters: voters.to_vec(), learners: learners.to_vec(), changed_at }
}

#[test]
fn a_new_member_gets_a_replica_of_a_new_generation_and_those_in_place_keep_theirs() {
    let mut group = cluster(5);
    let id = declare(&mut group, "q", 1);
    assert_eq!(info(&group, id).voters, founders(&[1, 2, 3]));
    assert!(info(&group, id).is_settled());
    assert_eq!(ask(&mut group, target(id, &[1, 2, 5], &[4])), MetaReply::Done);
    let wanted = info(&group, id).target.clone();
    assert_eq!(wanted.voters, [replica(1, 0), replica(2, 0), replica(5, 1)]);
    assert_eq!(wanted.learners, [replica(4, 2)]);
    assert_eq!(info(&group, id).voters, founders(&[1, 2, 3]), "what the group has is another matter");
    assert!(group.machine.unsettled().any(|unsettled| unsettled == id));
    let digest = group.machine.digest();
    group.lead(target(id, &[1, 2, 5], &[4]));
    assert_eq!(group.machine.digest(), digest, "the same target again changes nothing");
    ask(&mut group, record(id, &wanted.voters, &wanted.learners, 9));
    assert!(group.machine.unsettled().all(|unsettled| unsettled != id));
    group.reload();
}

#[test]
fn a_target_that_makes_no_sense_is_refused_in_words() {
    let mut group = cluster(3);
    let id = declare(&mut group, "q", 1);
    let cases = [
        (target(id, &[], &[]), "needs a voter"),
        (target(id, &[1, 1], &[]), "named twice"),
        (target(id, &[1, 2], &[2]), "named twice"),
        (target(id, &[1, 9], &[]), "no member 9"),
        (target(GroupId(77), &[1], &[]), "no group 77"),
    ];
    for (command, words) in cases {
        let text = refusal(&mut group, command);
        assert!(text.contains(words), "{text}");
    }
    let voters = vec![MemberId(1)];
    let foreign = MetaCommand::SetTarget { group: id, voters, learners: vec![], preferred_leader: MemberId(2) };
    assert!(refusal(&mut group, foreign).contains("cannot lead"));
}

#[test]
fn a_late_record_of_an_earlier_membership_changes_nothing() {
    let mut group = cluster(4);
    let id = declare(&mut group, "q", 1);
    ask(&mut group, record(id, &founders(&[1, 2]), &[], 20));
    ask(&mut group, record(id, &founders(&[1, 2, 3]), &[], 10));
    assert_eq!(info(&group, id).voters, founders(&[1, 2]));
}

#[test]
fn a_replica_that_has_left_is_wanted_back_only_under_another_generation() {
    let mut group = cluster(4);
    let id = declare(&mut group, "q", 1);
    ask(&mut group, target(id, &[1, 2, 4], &[]));
    // The change of mind comes while the group is removing member 3, which is not recorded yet.
    ask(&mut group, target(id, &[1, 2, 3], &[]));
    assert_eq!(info(&group, id).target.voters, founders(&[1, 2, 3]));
    ask(&mut group, record(id, &founders(&[1, 2]), &[], 12));
    assert_eq!(info(&group, id).target.voters, [replica(1, 0), replica(2, 0), replica(3, 2)]);
}

#[test]
fn a_damaged_replica_is_renewed_once() {
    let mut group = cluster(3);
    let id = declare(&mut group, "q", 1);
    for _ in 0..2 {
        ask(&mut group, MetaCommand::RenewReplica { group: id, replica: replica(2, 0) });
    }
    assert_eq!(info(&group, id).target.voters, [replica(1, 0), replica(2, 1), replica(3, 0)]);
    assert_eq!(info(&group, id).voters, founders(&[1, 2, 3]));
}

#[test]
fn all_members_follow_group_0_and_up_to_five_vote_in_it() {
    let group = cluster(7);
    let wanted = &info(&group, GroupId::META).target;
    assert_eq!((wanted.voters.len(), wanted.learners.len()), (5, 2));
    assert_eq!(wanted.voters[0], replica(1, 0));
}

#[test]
fn a_member_with_replicas_cannot_be_removed() {
    let mut group = cluster(3);
    let id = declare(&mut group, "q", 1);
    let remove = MetaCommand::RemoveMember { member: MemberId(3) };
    assert!(refusal(&mut group, remove.clone()).contains("still holds a replica"));
    ask(&mut group, target(GroupId::META, &[1, 2], &[]));
    ask(&mut group, target(id, &[1, 2], &[]));
    assert!(refusal(&mut group, remove.clone()).contains("still holds a replica"));
    ask(&mut group, record(id, &founders(&[1, 2]), &[], 7));
    assert_eq!(ask(&mut group, remove), MetaReply::Done);
    assert_eq!(group.machine.members().count(), 2);
}

#[test]
fn a_member_that_is_to_leave_loses_its_place_in_every_target_and_gets_no_new_ones() {
    let mut group = cluster(5);
    let groups: Vec<GroupId> = (1..=5).map(|near| declare(&mut group, &format!("q{near}"), near)).collect();
    assert_eq!(ask(&mut group, MetaCommand::RetireMember { member: MemberId(3) }), MetaReply::Done);
    for id in groups {
        let wanted = &info(&group, id).target;
        assert!(wanted.replica_on(MemberId(3)).is_none(), "group {id}");
        assert!(wanted.preferred_leader != MemberId(3) && wanted.voters.len() >= 3, "group {id}");
    }
    let late = declare(&mut group, "late", 3);
    assert!(!info(&group, late).concerns(MemberId(3)));
    assert!(group.machine.cluster().expect("a cluster").expected.iter().all(|expected| expected.name != "m3"));
}

#[test]
fn a_member_that_leaves_follows_group_0_until_it_holds_nothing_else() {
    let mut group = cluster(4);
    let id = declare(&mut group, "q", 3);
    assert!(info(&group, id).voters.contains(&replica(3, 0)));
    let retire = MetaCommand::RetireMember { member: MemberId(3) };
    ask(&mut group, retire.clone());
    let wanted = info(&group, GroupId::META).target.clone();
    assert!(wanted.learners.iter().any(|learner| learner.member == MemberId(3)), "{wanted:?}");
    let settled = info(&group, id).target.voters.clone();
    ask(&mut group, record(id, &settled, &[], 9));
    ask(&mut group, retire);
    assert!(info(&group, GroupId::META).target.replica_on(MemberId(3)).is_none());
}

#[test]
fn a_member_whose_place_nobody_can_take_is_not_let_go_and_nothing_changes() {
    let mut group = cluster(3);
    let id = declare(&mut group, "q", 1);
    let before = info(&group, id).clone();
    let text = refusal(&mut group, MetaCommand::RetireMember { member: MemberId(2) });
    assert!(text.contains("would have 2 of the 3 voters"), "{text}");
    assert_eq!(*info(&group, id), before);
    assert_eq!(group.machine.member(MemberId(2)).expect("a member").standing, Standing::Present);
    ask(&mut group, target(id, &[1, 2], &[]));
    assert_eq!(ask(&mut group, MetaCommand::RetireMember { member: MemberId(2) }), MetaReply::Done);
    assert_eq!(info(&group, id).target.voters, [replica(1, 0), replica(3, 0)]);
}

#[test]
fn a_member_whose_run_was_declared_over_before_it_was_added_is_not_added() {
    let mut group = cluster(3);
    group.lead(MetaCommand::BootEnded { boot: BootId(777) });
    let late = NewMember { uuid: "blank".into(), boot: Some(BootId(777)), ..member(2) };
    assert!(refusal(&mut group, MetaCommand::AddMember { member: late }).contains("declared over"));
    assert_eq!(group.machine.members().count(), 3, "a refusal changes nothing");
    assert_eq!(group.machine.member(MemberId(2)).expect("a member").standing, Standing::Present);
}

#[test]
fn a_blank_disk_under_an_old_name_takes_the_places_of_the_old_member_and_fences_it() {
    let mut group = cluster(3);
    let id = declare(&mut group, "q", 2);
    let blank = NewMember { uuid: "blank".into(), boot: None, ..member(2) };
    let admit = MetaCommand::AddMember { member: blank };
    assert_eq!(ask(&mut group, admit.clone()), MetaReply::MemberAdded { member: MemberId(4) });
    let digest = group.machine.digest();
    group.lead(admit);
    assert_eq!(group.machine.digest(), digest);
    let old = group.machine.member(MemberId(2)).expect("a member");
    assert_eq!((old.standing, old.boot), (Standing::Replaced { by: MemberId(4) }, None));
    let wanted = &info(&group, id).target;
    assert_eq!(wanted.voters, [replica(1, 0), replica(3, 0), replica(4, 1)]);
    assert_eq!(wanted.preferred_leader, MemberId(4));
    assert!(info(&group, GroupId::META).target.replica_on(MemberId(2)).is_none());
    // The old disk shows up again: it is known, and stays what it is.
    group.lead(MetaCommand::AddMember { member: member(2) });
    assert!(matches!(group.machine.member(MemberId(2)).expect("a member").standing, Standing::Replaced { .. }));
}
