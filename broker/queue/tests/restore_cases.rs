//! The metadata of a cluster that is founded from a backup.

mod support;

use std::collections::{BTreeMap, BTreeSet};

use holdfast_queue::arguments::{Arguments, Value};
use holdfast_queue::ids::{BootId, GroupId, Incarnation, MemberId, QueueId, ReplicaId, SessionId};
use holdfast_queue::meta::{
    ApplyTo, Binding, Destination, ExpectedMember, MetaCommand, MetaMachine, NewMember, NewPolicy, NewUser, Placement,
    PolicyKind, Refounded, Restoration, SOURCE_GENERATION,
};
use support::*;

const META: GroupId = GroupId::META;
const NONCE: u64 = 0xfeed;

fn member(n: u64) -> NewMember {
    let (uuid, name, address) = (format!("uuid-{n}"), format!("m{n}"), format!("m{n}:5680"));
    NewMember { uuid, name, zone: format!("z{n}"), address, boot: Some(BootId(n * 100)) }
}

fn session() -> SessionId {
    SessionId { boot: BootId(100), conn: 1 }
}

fn declare(group: &mut Group<MetaMachine>, name: &str, exclusive: bool) -> (QueueId, Placement) {
    group.lead(MetaCommand::DeclareQueue {
        vhost: "/".into(),
        name: name.into(),
        durable: !exclusive,
        exclusive,
        auto_delete: false,
        arguments: Arguments::default(),
        session: session(),
    });
    let (queue, info) = group.machine.queue_named("/", name, session()).expect("a queue");
    (queue, info.placement)
}

fn group_of(placement: Placement) -> GroupId {
    match placement {
        Placement::Replicated { group } => group,
        Placement::Transient { .. } => panic!("transient"),
    }
}

/// Three members, a user with rights, a policy, an exchange, and a queue that is bound to it.
fn cluster() -> (Group<MetaMachine>, GroupId) {
    let mut group = founded(3, 3, member);
    let (_, kept) = declare(&mut group, "kept", false);
    let (vhost, name) = (|| "/".to_owned(), || "app".to_owned());
    group.lead(MetaCommand::PutUser {
        user: NewUser { name: name(), hash: "old".into(), tags: vec!["monitoring".into()] },
    });
    let all = || ".*".to_owned();
    let (configure, write, read) = (all(), all(), "^kept$".to_owned());
    group.lead(MetaCommand::SetPermissions { vhost: vhost(), user: name(), configure, write, read });
    let definition = Arguments::from([("ha-mode", Value::string("exactly")), ("ha-params", Value::I64(2))]);
    let policy = NewPolicy { pattern: "^kept$".into(), apply_to: ApplyTo::Queues, priority: 0, definition };
    group.lead(MetaCommand::PutPolicy { kind: PolicyKind::User, vhost: vhost(), name: "two".into(), policy });
    group.lead(MetaCommand::DeclareExchange {
        vhost: vhost(),
        name: "events".into(),
        kind: "topic".into(),
        durable: true,
        auto_delete: false,
        internal: false,
        arguments: Arguments::default(),
    });
    for queue in ["kept", "mine"] {
        if queue == "mine" {
            declare(&mut group, "mine", true);
        }
        let destination = Destination::Queue { name: queue.into() };
        let binding = Binding {
            source: "events".into(),
            destination,
            routing_key: "a.#".into(),
            arguments: Arguments::default(),
        };
        group.lead(MetaCommand::Bind { vhost: vhost(), binding, session: session() });
    }
    (group, group_of(kept))
}

fn restoration(groups: &[(GroupId, u64)]) -> Restoration {
    let expected = |n: u64| {
        let NewMember { name, address, zone, .. } = member(n);
        ExpectedMember { name, address, zone }
    };
    Restoration {
        cluster_id: "new".into(),
        founder: NewMember { boot: None, uuid: "fresh".into(), ..member(8) },
        expected: vec![expected(8), expected(9)],
        defaults: None,
        user: None,
        nonce: NONCE,
        groups: groups.iter().copied().collect::<BTreeMap<_, _>>(),
    }
}

fn replica(member: u64, generation: u32) -> ReplicaId {
    ReplicaId { member: MemberId(member), generation }
}

#[test]
fn what_has_a_name_is_kept_and_what_belongs_to_members_runs_and_sessions_is_not() {
    let (mut group, kept) = cluster();
    let before = group.machine.group(kept).unwrap().clone();
    let refounded = group.machine.refound(&restoration(&[(META, 40), (kept, 8)])).expect("a new cluster");
    assert_eq!(refounded, Refounded { founder: MemberId(4), dropped: vec![("/".into(), "mine".into())] });
    group.reload();
    let machine = &group.machine;
    let cluster = machine.cluster().unwrap();
    assert_eq!((cluster.cluster_id.as_str(), cluster.epoch, cluster.expected.len()), ("new", 1, 2));
    let members: Vec<_> = machine.members().map(|(id, info)| (id.0, info.uuid.as_str(), info.boot)).collect();
    assert_eq!(members, [(4, "fresh", None)]);
    assert_eq!(machine.user("app").map(|user| user.hash.as_str()), Some("old"));
    assert_eq!(machine.vhosts_of("app").collect::<Vec<_>>(), ["/"]);
    let vhost = machine.vhost("/").unwrap();
    assert!(vhost.exchanges.contains_key("events"));
    assert_eq!(
        vhost.bindings.values().map(BTreeSet::len).sum::<usize>(),
        1,
        "that of the exclusive queue went with it"
    );
    for (id, index) in [(META, 40), (kept, 8)] {
        let info = machine.group(id).expect("it goes on");
        let voters = vec![replica(4, SOURCE_GENERATION)];
        assert_eq!((&info.voters, &info.target.voters, info.changed_at), (&voters, &voters, index), "group {id}");
        assert_eq!((info.incarnation.nonce, info.target.preferred_leader), (NONCE, MemberId(4)));
    }
    let life = machine.group(kept).unwrap().incarnation;
    assert_eq!(life, Incarnation { counter: before.incarnation.counter + 1, nonce: NONCE });
    assert!(!machine.has_ended(BootId(100)) && machine.last_seq(BootId(100)) == 0, "no run is remembered");
}

#[test]
fn members_that_join_take_their_share_and_queues_come_to_have_what_their_policies_want() {
    let (mut group, kept) = cluster();
    let (_, other) = declare(&mut group, "other", false);
    let groups = [(META, 40), (kept, 8), (group_of(other), 5)];
    group.machine.refound(&restoration(&groups)).expect("a new cluster");
    group.lead(MetaCommand::BootStarted { member: MemberId(4), boot: BootId(401) });
    for n in [9, 10] {
        group.lead(MetaCommand::AddMember { member: member(n) });
    }
    let wanted = |id: GroupId| group.machine.group(id).unwrap().target.voters.len();
    assert_eq!((wanted(META), wanted(kept), wanted(group_of(other))), (3, 2, 3));
    let (queue, placement) = declare(&mut group, "new", false);
    assert_eq!((queue, group_of(placement)), (QueueId(4), GroupId(3)), "no number is given twice");
}

#[test]
fn queues_of_groups_that_are_not_named_are_gone_and_those_without_a_copy_begin_anew() {
    let (mut group, kept) = cluster();
    let (gone, _) = declare(&mut group, "gone", false);
    let (empty, placement) = declare(&mut group, "empty", false);
    let empty_group = group_of(placement);
    let groups = [(META, 40), (kept, 8), (empty_group, 0)];
    let refounded = group.machine.refound(&restoration(&groups)).expect("a new cluster");
    let dropped: Vec<_> = refounded.dropped.iter().map(|(_, name)| name.as_str()).collect();
    assert_eq!(dropped, ["mine", "gone"]);
    assert!(group.machine.queue(gone).is_none() && group.machine.queue(empty).is_some());
    let info = group.machine.group(empty_group).unwrap();
    assert_eq!((info.changed_at, info.voters.as_slice()), (0, [replica(4, 0)].as_slice()), "a birth");
}

#[test]
fn the_user_of_the_new_cluster_is_set_anew_and_one_that_is_known_keeps_tags_and_permissions() {
    let user = |name: &str| NewUser { name: name.into(), hash: "new".into(), tags: vec!["administrator".into()] };
    for (name, tags) in [("app", "monitoring"), ("fresh", "administrator")] {
        let (mut group, _) = cluster();
        let wanted = Restoration { user: Some(user(name)), ..restoration(&[(META, 40)]) };
        group.machine.refound(&wanted).expect("a new cluster");
        let known = group.machine.user(name).expect("a user");
        assert_eq!((known.hash.as_str(), known.tags.as_slice()), ("new", [tags.to_owned()].as_slice()));
        assert_eq!(group.machine.vhosts_of(name).collect::<Vec<_>>(), ["/"]);
    }
}

#[test]
fn a_backup_of_no_cluster_or_under_its_old_id_is_refused() {
    let (mut group, _) = cluster();
    let same = Restoration { cluster_id: "c".into(), ..restoration(&[(META, 40)]) };
    assert_eq!(group.machine.refound(&same).map_err(|refusal| refusal.code), Err(406));
    assert!(MetaMachine::new().refound(&restoration(&[(META, 40)])).is_err());
    let many = Restoration { defaults: Some((3, 8)), ..restoration(&[(META, 40)]) };
    assert_eq!(group.machine.refound(&many).map_err(|refusal| refusal.code), Err(406));
}
