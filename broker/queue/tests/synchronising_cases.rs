//! `ha-sync-mode: manual`: which new replicas wait to be synchronised, and until when.

mod support;

use holdfast_queue::arguments::{Arguments, Value};
use holdfast_queue::ids::{BootId, GroupId, Incarnation, MemberId, ReplicaId, SessionId};
use holdfast_queue::machine::Machine;
use holdfast_queue::meta::{GroupInfo, MetaCommand, MetaMachine, NewMember, NewPolicy, PolicyKind, Reborn, Recovery};
use support::*;

/// The first queue's group.
const QUEUE: GroupId = GroupId(1);

fn member(n: u64) -> NewMember {
    let boot = Some(BootId(n * 100));
    NewMember { uuid: format!("uuid-{n}"), name: format!("m{n}"), boot, ..NewMember::default() }
}

/// So many members, and a queue under a policy of so many replicas that are synchronised by hand.
fn queue_of(replicas: i64, members: u64) -> Group<MetaMachine> {
    let mut group = founded(members, 3, member);
    set_policy(&mut group, replicas, "manual");
    group.lead(MetaCommand::DeclareQueue {
        vhost: "/".into(),
        name: "q".into(),
        durable: true,
        exclusive: false,
        auto_delete: false,
        arguments: Arguments::default(),
        session: SessionId { boot: BootId(100), conn: 1 },
    });
    group
}

fn set_policy(group: &mut Group<MetaMachine>, replicas: i64, sync: &str) {
    let definition = Arguments::from([
        ("ha-mode", Value::string("exactly")),
        ("ha-params", Value::I64(replicas)),
        ("ha-sync-mode", Value::string(sync)),
    ]);
    let policy = NewPolicy { pattern: "q".into(), definition, ..NewPolicy::default() };
    group.lead(MetaCommand::PutPolicy { kind: PolicyKind::User, vhost: "/".into(), name: "p".into(), policy });
}

fn info(group: &Group<MetaMachine>) -> &GroupInfo {
    group.machine.group(QUEUE).expect("declared")
}

/// Members that should vote, and members that wait.
fn target(group: &Group<MetaMachine>) -> (Vec<u64>, Vec<u64>) {
    let target = &info(group).target;
    let waiting = target.unsynchronised.iter().map(|it| it.member.0).collect();
    (target.voters.iter().map(|replica| replica.member.0).collect(), waiting)
}

/// The group comes to have what it should.
fn arrive(group: &mut Group<MetaMachine>) {
    let (voters, learners) = (info(group).target.voters.clone(), info(group).target.learners.clone());
    let changed_at = info(group).changed_at + 1;
    group.lead(MetaCommand::SetReplicas { group: QUEUE, voters, learners, changed_at });
}

fn sync(member: Option<u64>) -> MetaCommand {
    MetaCommand::Synchronise { group: QUEUE, member: member.map(MemberId) }
}

#[test]
fn a_queue_that_is_to_have_more_replicas_has_them_wait_and_is_settled_without_them() {
    let mut group = queue_of(1, 4);
    assert_eq!(target(&group), (vec![1], vec![]), "founders never wait");
    set_policy(&mut group, 3, "manual");
    assert_eq!(target(&group), (vec![1], vec![2, 3]));
    assert!(info(&group).is_settled() && !info(&group).concerns(MemberId(2)), "there is nothing of them yet");
    assert_eq!(group.machine.unsynchronised().collect::<Vec<_>>(), [QUEUE]);
    assert_eq!((group.machine.voters_expected(QUEUE), group.machine.unsettled().any(|id| id == QUEUE)), (1, false));
    set_policy(&mut group, 4, "manual");
    set_policy(&mut group, 2, "manual");
    assert_eq!(target(&group), (vec![1], vec![2]), "fewer are wanted, fewer wait");
    group.reload();
    assert_eq!(group.machine.unsynchronised().collect::<Vec<_>>(), [QUEUE], "it is derived anew from a snapshot");
    set_policy(&mut group, 3, "automatic");
    assert_eq!(target(&group), (vec![1, 2, 3], vec![]), "nobody waits under an automatic policy");
    assert_eq!(group.machine.unsynchronised().count(), 0);
}

#[test]
fn the_marker_is_set_once_and_a_replica_comes_to_be_when_it_is_asked_for() {
    let mut group = queue_of(1, 3);
    set_policy(&mut group, 3, "manual");
    let mark = |marker| MetaCommand::MarkUnsynchronised { group: QUEUE, member: MemberId(3), marker };
    group.lead(mark(40));
    group.lead(mark(50));
    let markers: Vec<_> = info(&group).target.unsynchronised.iter().map(|it| it.marker).collect();
    assert_eq!(markers, [None, Some(40)], "a later leader does not make it wait longer");
    group.lead(sync(Some(3)));
    assert_eq!(target(&group), (vec![1, 3], vec![2]));
    assert!(!info(&group).is_settled(), "the mover has something to do");
    group.lead(sync(Some(3)));
    group.lead(mark(60));
    assert_eq!(target(&group), (vec![1, 3], vec![2]), "the same again changes nothing");
    arrive(&mut group);
    assert_eq!(info(&group).copies, 2);
    group.lead(sync(None));
    assert_eq!(target(&group), (vec![1, 2, 3], vec![]));
}

#[test]
fn cancelling_lets_go_what_catches_up_but_not_what_replaces_a_lost_replica() {
    let mut group = queue_of(2, 4);
    set_policy(&mut group, 4, "manual");
    group.lead(sync(None));
    assert_eq!(target(&group), (vec![1, 2, 3, 4], vec![]));
    // Member 3 is a learner already.
    let (voters, learner) = (info(&group).voters.clone(), info(&group).target.voters[2]);
    group.lead(MetaCommand::SetReplicas { group: QUEUE, voters, learners: vec![learner], changed_at: 5 });
    group.lead(MetaCommand::CancelSynchronise { group: QUEUE });
    assert_eq!(target(&group), (vec![1, 2], vec![3, 4]));
    assert!(!info(&group).is_settled(), "the learner is to go");
    let voters = info(&group).voters.clone();
    group.lead(MetaCommand::SetReplicas { group: QUEUE, voters, learners: vec![], changed_at: 6 });
    group.lead(sync(Some(3)));
    let again = info(&group).target.replica_on(MemberId(3)).expect("wanted");
    assert!(again.generation > learner.generation, "what was let go never comes back");
    group.lead(MetaCommand::CancelSynchronise { group: QUEUE });
    // A damaged replica is replaced: it was there before.
    group.lead(MetaCommand::RenewReplica { group: QUEUE, replica: ReplicaId::founder(MemberId(2)) });
    assert_eq!(target(&group), (vec![1, 2], vec![3, 4]));
    group.lead(MetaCommand::CancelSynchronise { group: QUEUE });
    assert_eq!(target(&group), (vec![1, 2], vec![3, 4]));
    set_policy(&mut group, 4, "automatic");
    group.lead(MetaCommand::CancelSynchronise { group: QUEUE });
    assert_eq!(target(&group), (vec![1, 2, 3, 4], vec![]), "it is refused where nothing is synchronised by hand");
}

#[test]
fn what_is_lost_or_moved_is_replaced_at_once_and_only_growth_waits() {
    // A blank disk under an old name, of a voter and of one that waits.
    let mut group = queue_of(2, 3);
    set_policy(&mut group, 3, "manual");
    group.lead(MetaCommand::AddMember { member: NewMember { uuid: "blank".into(), ..member(2) } });
    assert_eq!(target(&group), (vec![1, 4], vec![3]));
    arrive(&mut group);
    group.lead(MetaCommand::AddMember { member: NewMember { uuid: "blank, too".into(), ..member(3) } });
    assert_eq!(target(&group), (vec![1, 4], vec![5]), "the new disk waits in the place of the old one");
    assert!(group.machine.groups().filter(|(id, _)| *id != GroupId::META).all(|(_, it)| !it.concerns(MemberId(3))));
    // A member that leaves: another takes the place of the voter, and nobody that of the one that waited.
    let mut group = queue_of(2, 5);
    set_policy(&mut group, 3, "manual");
    assert_eq!(target(&group), (vec![1, 2], vec![3]));
    group.lead(MetaCommand::RetireMember { member: MemberId(3) });
    assert_eq!(target(&group), (vec![1, 2], vec![4]), "another member waits in its place");
    group.lead(MetaCommand::RetireMember { member: MemberId(2) });
    let (voters, waiting) = target(&group);
    assert_eq!((voters.len(), waiting.len()), (2, 1), "a copy that goes is replaced: {voters:?} {waiting:?}");
    // Other nodes, as many as before.
    let mut group = queue_of(2, 4);
    let names = ["m1", "m4"].map(Value::string).to_vec();
    let definition = Arguments::from([
        ("ha-mode", Value::string("nodes")),
        ("ha-params", Value::Array(names)),
        ("ha-sync-mode", Value::string("manual")),
    ]);
    let policy = NewPolicy { pattern: "q".into(), definition, ..NewPolicy::default() };
    group.lead(MetaCommand::PutPolicy { kind: PolicyKind::User, vhost: "/".into(), name: "p".into(), policy });
    assert_eq!(target(&group), (vec![1, 4], vec![]));
}

#[test]
fn after_a_forced_recovery_as_many_replicas_are_seeded_as_there_were_and_the_rest_waits_again() {
    let mut group = queue_of(2, 3);
    set_policy(&mut group, 3, "manual");
    let reborn = |index| Reborn {
        incarnation: Incarnation { counter: 1, nonce: 9 },
        member: MemberId(1),
        index,
        ..Reborn::default()
    };
    let recovery = Recovery {
        epoch: 2,
        members: [MemberId(1)].into(),
        groups: [(GroupId::META, reborn(50)), (QUEUE, reborn(20))].into(),
        last_group: GroupId(1),
        last_queue: holdfast_queue::ids::QueueId(1),
        last_member: MemberId(3),
    };
    group.machine.recover(&recovery);
    assert_eq!(target(&group), (vec![1], vec![]), "nobody else is there");
    group.lead(MetaCommand::AddMember {
        member: NewMember { uuid: "new 2".into(), boot: Some(BootId(7)), ..member(2) },
    });
    assert_eq!(target(&group), (vec![1, 4], vec![]), "it was lost: it is restored");
    group.lead(MetaCommand::AddMember {
        member: NewMember { uuid: "new 3".into(), boot: Some(BootId(8)), ..member(3) },
    });
    assert_eq!(target(&group), (vec![1, 4], vec![5]), "it had not been there");
    let restored = MetaMachine::restore(&group.machine.snapshot()).expect("a snapshot");
    assert_eq!(restored.digest(), group.machine.digest());
}
