//! What the metadata does, case by case.

mod support;

use bytes::Bytes;
use holdfast_queue::Machine;
use holdfast_queue::arguments::{Arguments, Value};
use holdfast_queue::ids::{BootId, GroupId, MemberId, QueueId, ReplicaId, SessionId};
use holdfast_queue::meta::{
    Binding, Change, Destination, ExpectedMember, MetaCommand, MetaEffect, MetaMachine, MetaReply, NewMember, NewUser,
    Permission, Placement,
};
use proptest::prelude::*;
use std::collections::BTreeSet;
use support::*;

/// Members 1 to 5 in zones a, b, c, a, b; the run of member n is n * 100.
fn cluster(members: u64) -> Group<MetaMachine> {
    let mut group = Group::new(MetaMachine::new());
    let expected =
        (1..=members).map(|n| ExpectedMember { name: format!("m{n}"), ..ExpectedMember::default() }).collect();
    group.lead(init("c", expected));
    for n in 2..=members {
        group.lead(MetaCommand::AddMember { member: member(n) });
    }
    group
}

fn init(id: &str, expected: Vec<ExpectedMember>) -> MetaCommand {
    let user = Some(NewUser { name: "guest".into(), hash: "#".into(), tags: vec!["administrator".into()] });
    MetaCommand::Init {
        cluster_id: id.into(),
        epoch: 1,
        expected,
        replication_factor: 0,
        default_min_in_sync_replicas: 0,
        user,
        first: member(1),
    }
}

fn member(n: u64) -> NewMember {
    let zone = ["a", "b", "c"][(n as usize - 1) % 3].to_owned();
    NewMember {
        uuid: format!("uuid-{n}"),
        name: format!("m{n}"),
        zone,
        address: format!("m{n}:5680"),
        boot: Some(boot(n)),
    }
}

fn boot(member: u64) -> BootId {
    BootId(member * 100)
}

fn session(member: u64) -> SessionId {
    SessionId { boot: boot(member), conn: 1 }
}

struct Declare {
    name: &'static str,
    durable: bool,
    exclusive: bool,
    auto_delete: bool,
    arguments: Arguments,
    session: SessionId,
}

fn durable(name: &'static str) -> Declare {
    let arguments = Arguments::default();
    Declare { name, durable: true, exclusive: false, auto_delete: false, arguments, session: session(1) }
}

impl From<Declare> for MetaCommand {
    fn from(it: Declare) -> MetaCommand {
        let Declare { name, durable, exclusive, auto_delete, arguments, session } = it;
        let (vhost, name) = ("/".to_owned(), name.to_owned());
        MetaCommand::DeclareQueue { vhost, name, durable, exclusive, auto_delete, arguments, session }
    }
}

/// Sends a command from member 1 and gives its reply.
fn ask(group: &mut Group<MetaMachine>, command: impl Into<MetaCommand>) -> MetaReply {
    let effects = group.send(boot(1), vec![command.into()]);
    let reply = effects.into_iter().find_map(|effect| match effect {
        MetaEffect::Reply { reply, .. } => Some(reply),
        _ => None,
    });
    reply.expect("a reply")
}

fn refusal(group: &mut Group<MetaMachine>, command: impl Into<MetaCommand>) -> String {
    match ask(group, command) {
        MetaReply::Refused { refusal } => format!("{} {refusal}", refusal.code),
        other => panic!("not refused: {other:?}"),
    }
}

fn declared(group: &mut Group<MetaMachine>, declare: Declare) -> QueueId {
    match ask(group, declare) {
        MetaReply::QueueDeclared { queue, .. } => queue,
        other => panic!("not declared: {other:?}"),
    }
}

fn group_of(group: &Group<MetaMachine>, queue: QueueId) -> GroupId {
    match group.machine.queue(queue).expect("a queue").placement {
        Placement::Replicated { group } => group,
        Placement::Transient { .. } => panic!("transient"),
    }
}

fn founders(members: &[u64]) -> Vec<ReplicaId> {
    members.iter().map(|member| ReplicaId::founder(MemberId(*member))).collect()
}

fn changes(effects: &[MetaEffect]) -> Vec<Change> {
    let change = |effect: &MetaEffect| match effect {
        MetaEffect::Changed { change } => Some(change.clone()),
        _ => None,
    };
    effects.iter().filter_map(change).collect()
}

fn exchange(name: &str, kind: &str, durable: bool, auto_delete: bool) -> MetaCommand {
    let (vhost, name, kind) = ("/".into(), name.into(), kind.into());
    let arguments = Arguments::default();
    MetaCommand::DeclareExchange { vhost, name, kind, durable, auto_delete, internal: false, arguments }
}

fn to_queue(source: &str, queue: &str) -> Binding {
    let destination = Destination::Queue { name: queue.into() };
    Binding {
        source: source.into(),
        destination,
        routing_key: Bytes::from_static(b"k"),
        arguments: Arguments::default(),
    }
}

fn bind(binding: Binding) -> MetaCommand {
    MetaCommand::Bind { vhost: "/".into(), binding, session: session(1) }
}

#[test]
fn a_cluster_is_made_once_and_a_repeat_is_answered_alike() {
    let mut group = cluster(1);
    let before = group.machine.digest();
    group.lead(init("c", vec![]));
    assert_eq!(group.machine.digest(), before);
    assert_eq!(ask(&mut group, init("c", vec![])), MetaReply::MemberAdded { member: MemberId(1) });
    let text = "406 PRECONDITION_FAILED - this is cluster 'c' already, not 'd'";
    assert_eq!(refusal(&mut group, init("d", vec![])), text);
    assert!(group.machine.may_enter("guest", "/"));
}

#[test]
fn a_member_keeps_its_id_and_a_new_disk_gets_a_new_one() {
    let mut group = cluster(3);
    assert_eq!(
        ask(&mut group, MetaCommand::AddMember { member: member(2) }),
        MetaReply::MemberAdded { member: MemberId(2) }
    );
    let reborn = NewMember { uuid: "other".into(), boot: None, ..member(2) };
    assert_eq!(
        ask(&mut group, MetaCommand::AddMember { member: reborn }),
        MetaReply::MemberAdded { member: MemberId(4) }
    );
}

#[test]
fn a_member_that_has_joined_learns_its_zone_and_address_when_they_change() {
    let mut group = cluster(3);
    let moved = ExpectedMember { name: "m2".into(), address: "elsewhere:5680".into(), zone: "z".into() };
    let unchanged = |n: u64| {
        let NewMember { name, address, zone, .. } = member(n);
        ExpectedMember { name, address, zone }
    };
    let expected = vec![unchanged(1), moved.clone(), unchanged(3)];
    let effects = group.lead(MetaCommand::SetExpected { expected: expected.clone() });
    assert_eq!(changes(&effects), [Change::Member { member: MemberId(2) }, Change::Cluster]);
    let known = group.machine.member(MemberId(2)).expect("a member");
    assert_eq!((known.zone.as_str(), known.address.as_str()), ("z", "elsewhere:5680"));
    assert_eq!((known.uuid.as_str(), known.boot), ("uuid-2", Some(boot(2))), "who it is has not changed");
    // The same list again says nothing new of any member.
    let effects = group.lead(MetaCommand::SetExpected { expected });
    assert_eq!(changes(&effects), [Change::Cluster]);
}

#[test]
fn a_queue_is_led_where_it_is_declared_and_spread_over_zones() {
    let mut group = cluster(5);
    let declare = Declare { session: session(4), ..durable("q") };
    let queue = declared(&mut group, declare);
    let info = group.machine.group(group_of(&group, queue)).expect("a group");
    assert_eq!((info.target.preferred_leader, info.first_leader), (MemberId(4), MemberId(4)));
    assert_eq!(info.voters, founders(&[2, 3, 4]));
}

#[test]
fn replicas_are_balanced_by_count() {
    let mut group = cluster(5);
    for name in ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"] {
        let declare = Declare { session: SessionId::default(), ..durable(name) };
        declared(&mut group, declare);
    }
    let groups = || group.machine.groups().filter(|(id, _)| *id != GroupId::META).map(|(_, info)| info);
    for n in (1..=5).map(MemberId) {
        assert_eq!(groups().filter(|info| info.target.preferred_leader == n).count(), 2, "leaders on {n}");
        let zones: BTreeSet<_> = groups().map(|info| info.voters.len()).collect();
        assert_eq!(zones, BTreeSet::from([3]));
    }
}

#[test]
fn members_that_do_not_run_are_the_last_choice_but_count_towards_the_factor() {
    let mut group = cluster(3);
    group.lead(MetaCommand::BootEnded { boot: boot(2) });
    let queue = declared(&mut group, durable("q"));
    assert_eq!(group.machine.group(group_of(&group, queue)).expect("a group").voters, founders(&[1, 2, 3]));
    let mut group = cluster(5);
    group.lead(MetaCommand::BootEnded { boot: boot(2) });
    group.lead(MetaCommand::BootEnded { boot: boot(3) });
    let queue = declared(&mut group, durable("q"));
    assert_eq!(group.machine.group(group_of(&group, queue)).expect("a group").voters, founders(&[1, 4, 5]));
}

#[test]
fn declaring_again_changes_nothing_and_differing_is_refused_by_name() {
    let mut group = cluster(1);
    let arguments = || Arguments::from([("x-quorum-initial-group-size", Value::I32(3)), ("custom", Value::Bool(true))]);
    let queue = declared(&mut group, Declare { arguments: arguments(), ..durable("q") });
    let same = Arguments::from([("x-quorum-initial-group-size", Value::I64(3))]);
    let again = MetaReply::QueueDeclared { queue, created: false };
    assert_eq!(ask(&mut group, Declare { arguments: same, ..durable("q") }), again);

    let text = "406 PRECONDITION_FAILED - inequivalent arg 'durable' for queue 'q' in vhost '/': received 'false' but current is 'true'";
    assert_eq!(refusal(&mut group, Declare { durable: false, arguments: arguments(), ..durable("q") }), text);
    let text = "406 PRECONDITION_FAILED - inequivalent arg 'x-quorum-initial-group-size' for queue 'q' in vhost '/': \
                received none but current is the value '3' of type 'signedint'";
    assert_eq!(refusal(&mut group, durable("q")), text);
    let text = "406 PRECONDITION_FAILED - inequivalent arg 'x-queue-mode' for queue 'q' in vhost '/': \
                received the value 'lazy' of type 'longstr' but current is none";
    let more =
        Arguments::from([("x-quorum-initial-group-size", Value::I32(3)), ("x-queue-mode", Value::string("lazy"))]);
    assert_eq!(refusal(&mut group, Declare { arguments: more, ..durable("q") }), text);
}

#[test]
fn arguments_that_make_no_sense_are_refused() {
    let mut group = cluster(1);
    for (name, value, wanted) in [
        (
            "x-message-ttl",
            Value::I32(-1),
            "406 PRECONDITION_FAILED - invalid arg 'x-message-ttl' for queue 'q' in vhost '/': {value_negative,-1}",
        ),
        (
            "x-expires",
            Value::I32(0),
            "406 PRECONDITION_FAILED - invalid arg 'x-expires' for queue 'q' in vhost '/': {value_zero,0}",
        ),
        (
            "x-max-length",
            Value::string("many"),
            "406 PRECONDITION_FAILED - invalid arg 'x-max-length' for queue 'q' in vhost '/': {unacceptable_type,longstr}",
        ),
        (
            "x-queue-type",
            Value::string("stream"),
            "540 NOT_IMPLEMENTED - queue 'q' in vhost '/': queue type 'stream' is not implemented",
        ),
    ] {
        let arguments = Arguments::from([(name, value)]);
        assert_eq!(refusal(&mut group, Declare { arguments, ..durable("q") }), wanted);
    }
    let arguments = Arguments::from([("x-queue-type", Value::string("quorum"))]);
    let text = "406 PRECONDITION_FAILED - invalid property 'non-durable' for queue 'q' in vhost '/'";
    assert_eq!(refusal(&mut group, Declare { arguments, durable: false, ..durable("q") }), text);
}

#[test]
fn arguments_that_would_silently_have_no_effect_are_refused_by_name() {
    let mut group = cluster(1);
    let cases = [
        ("x-message-ttl", Value::I32(100)),
        ("x-expires", Value::I32(200)),
        ("x-max-length", Value::I32(2)),
        ("x-max-length-bytes", Value::I32(2)),
        ("x-overflow", Value::string("reject-publish")),
        ("x-dead-letter-exchange", Value::string("dead")),
        ("x-dead-letter-routing-key", Value::string("dead")),
        ("x-dead-letter-strategy", Value::string("at-least-once")),
        ("x-max-priority", Value::I32(10)),
        ("x-single-active-consumer", Value::Bool(true)),
        ("x-delivery-limit", Value::I32(5)),
        ("x-delayed-retry-type", Value::string("all")),
        ("x-deduplication-header", Value::string("id")),
    ];
    for (name, value) in cases {
        let text = format!(
            "406 PRECONDITION_FAILED - arg '{name}' for queue 'q' in vhost '/': this version does not support it yet \
             (received '{value}'); declare the queue without it"
        );
        let arguments = Arguments::from([(name, value)]);
        assert_eq!(refusal(&mut group, Declare { arguments, ..durable("q") }), text);
    }
    let harmless = Arguments::from([
        ("x-queue-type", Value::string("quorum")),
        ("x-queue-mode", Value::string("lazy")),
        ("x-queue-version", Value::I32(2)),
        ("x-queue-leader-locator", Value::string("client-local")),
        ("x-quorum-initial-group-size", Value::I32(3)),
        ("x-overflow", Value::string("drop-head")),
        ("x-dead-letter-strategy", Value::string("at-most-once")),
        ("x-single-active-consumer", Value::Bool(false)),
        ("x-delivery-limit", Value::I32(-1)),
        ("x-of-its-own", Value::I32(1)),
    ]);
    declared(&mut group, Declare { arguments: harmless, ..durable("q") });
}

#[test]
fn reserved_names_are_refused() {
    let mut group = cluster(1);
    let text = "403 ACCESS_REFUSED - queue name 'amq.mine' contains reserved prefix 'amq.*'";
    assert_eq!(refusal(&mut group, durable("amq.mine")), text);
    let text = "403 ACCESS_REFUSED - exchange name 'amq.mine' contains reserved prefix 'amq.*'";
    assert_eq!(refusal(&mut group, exchange("amq.mine", "direct", true, false)), text);
    assert_eq!(ask(&mut group, exchange("amq.topic", "topic", true, false)), MetaReply::Done);
    let delete = MetaCommand::DeleteExchange { vhost: "/".into(), name: "amq.topic".into(), if_unused: false };
    assert!(refusal(&mut group, delete).starts_with("403 "));
    assert!(refusal(&mut group, bind(to_queue("", "q"))).starts_with("404 "));
}

#[test]
fn an_exclusive_queue_is_locked_to_its_connection_and_goes_with_it() {
    let mut group = cluster(2);
    let exclusive = |session| Declare { exclusive: true, durable: false, session, ..durable("mine") };
    let queue = declared(&mut group, exclusive(session(1)));
    let text = "405 RESOURCE_LOCKED - cannot obtain exclusive access to locked queue 'mine' in vhost '/'. It could be originally declared on \
                another connection or the exclusive property value does not match that of the original declaration.";
    assert_eq!(refusal(&mut group, exclusive(session(2))), text);
    let theirs = MetaCommand::Bind { vhost: "/".into(), binding: to_queue("amq.direct", "mine"), session: session(2) };
    assert!(refusal(&mut group, theirs).starts_with("405 "));
    ask(&mut group, bind(to_queue("amq.direct", "mine")));
    let effects = group.lead(MetaCommand::SessionEnded { session: session(1) });
    assert_eq!(changes(&effects), [Change::QueueDeleted { queue, owner: Some(boot(1)) }]);
    assert!(group.machine.vhost("/").expect("a vhost").bindings.is_empty());
}

#[test]
fn transient_queues_go_with_the_run_of_their_member() {
    let mut group = cluster(2);
    let declare = Declare { durable: false, session: session(2), ..durable("brief") };
    let queue = declared(&mut group, declare);
    let kept = declared(&mut group, durable("kept"));
    let effects = group.lead(MetaCommand::BootStarted { member: MemberId(2), boot: BootId(201) });
    assert_eq!(
        changes(&effects),
        [
            Change::QueueDeleted { queue, owner: Some(boot(2)) },
            Change::BootEnded { member: MemberId(2), boot: boot(2) },
            Change::Member { member: MemberId(2) },
        ]
    );
    assert!(group.machine.queue(kept).is_some());
    assert_eq!(group.machine.member(MemberId(2)).expect("a member").boot, Some(BootId(201)));
    let effects = group.lead(MetaCommand::BootStarted { member: MemberId(2), boot: boot(2) });
    assert_eq!(changes(&effects), [], "a run that is over does not come back");
}

#[test]
fn deleting_a_queue_takes_its_group_its_bindings_and_an_abandoned_auto_delete_exchange_along() {
    let mut group = cluster(3);
    let queue = declared(&mut group, durable("q"));
    ask(&mut group, exchange("e", "fanout", true, true));
    ask(&mut group, bind(to_queue("e", "q")));
    let id = group_of(&group, queue);
    let incarnation = group.machine.group(id).expect("a group").incarnation;
    let effects = group.lead(MetaCommand::DeleteQueue { queue });
    assert_eq!(
        changes(&effects),
        [Change::GroupDestroyed { group: id, incarnation }, Change::QueueDeleted { queue, owner: None }]
    );
    assert!(group.machine.exchange("/", "e").is_err());
    assert_ne!(declared(&mut group, durable("q")), queue, "the same name is another queue");
}

#[test]
fn an_exchange_in_use_is_kept_when_asked() {
    let mut group = cluster(1);
    declared(&mut group, durable("q"));
    ask(&mut group, exchange("e", "direct", true, false));
    ask(&mut group, bind(to_queue("e", "q")));
    let delete = MetaCommand::DeleteExchange { vhost: "/".into(), name: "e".into(), if_unused: true };
    assert_eq!(refusal(&mut group, delete.clone()), "406 PRECONDITION_FAILED - exchange 'e' in vhost '/' in use");
    let unbind = MetaCommand::Unbind { vhost: "/".into(), binding: to_queue("e", "q"), session: session(1) };
    assert_eq!(ask(&mut group, unbind.clone()), MetaReply::Done);
    assert_eq!(ask(&mut group, unbind), MetaReply::Done);
    assert_eq!(ask(&mut group, delete), MetaReply::Done);
    let text = "406 PRECONDITION_FAILED - inequivalent arg 'type' for exchange 'amq.topic' in vhost '/': received 'fanout' but current is 'topic'";
    assert_eq!(refusal(&mut group, exchange("amq.topic", "fanout", true, false)), text);
    assert_eq!(
        refusal(&mut group, exchange("e", "odd", true, false)),
        "503 COMMAND_INVALID - unknown exchange type 'odd'"
    );
}

#[test]
fn a_resend_after_a_leader_change_is_answered_as_at_first() {
    let mut group = cluster(3);
    let batch = group.batch(boot(1), vec![MetaCommand::from(durable("q"))]);
    let created = |effects: &[MetaEffect]| {
        effects
            .iter()
            .any(|it| matches!(it, MetaEffect::Reply { reply: MetaReply::QueueDeclared { created: true, .. }, .. }))
    };
    assert!(created(&group.apply(std::slice::from_ref(&batch))));
    group.reload();
    assert!(created(&group.machine.state_enter()));
    let again = group.apply(&[batch]);
    assert!(created(&again) && changes(&again).is_empty());
}

#[test]
fn permissions_are_regular_expressions_over_names() {
    let mut group = cluster(1);
    let user = NewUser { name: "app".into(), ..NewUser::default() };
    ask(&mut group, MetaCommand::PutUser { user });
    assert!(!group.machine.may_enter("app", "/"));
    let set = |configure: &str| MetaCommand::SetPermissions {
        vhost: "/".into(),
        user: "app".into(),
        configure: configure.into(),
        write: "^(app-.*|amq\\.default)$".into(),
        read: String::new(),
    };
    assert!(refusal(&mut group, set("(")).starts_with("406 PRECONDITION_FAILED - '(' is not a regular expression"));
    ask(&mut group, set(".*"));
    for _ in 0..2 {
        let may = |permission, name| group.machine.may("app", "/", permission, name);
        assert!(may(Permission::Configure, "anything"));
        assert!(may(Permission::Write, "app-1") && may(Permission::Write, "") && !may(Permission::Write, "other"));
        assert!(!may(Permission::Read, "app-1"));
        assert!(
            group.machine.may("guest", "/", Permission::Read, "x")
                && !group.machine.may("guest", "v", Permission::Read, "x")
        );
        group.reload();
    }
    ask(&mut group, MetaCommand::DeleteUser { name: "app".into() });
    assert!(!group.machine.may("app", "/", Permission::Configure, "x"));
}

/// A command over few names, so that they meet.
fn command() -> impl Strategy<Value = MetaCommand> {
    const QUEUES: [&str; 3] = ["q0", "q1", "q2"];
    const EXCHANGES: [&str; 4] = ["e0", "e1", "amq.topic", ""];
    let flags = (any::<bool>(), prop::bool::weighted(0.2), any::<bool>());
    let member = 1..4u64;
    let destination = prop_oneof![
        (0..3usize).prop_map(|n| Destination::Queue { name: QUEUES[n].into() }),
        (0..4usize).prop_map(|n| Destination::Exchange { name: EXCHANGES[n].into() }),
    ];
    let binding = (0..4usize, destination, "[ab]?").prop_map(|(source, destination, key)| Binding {
        source: EXCHANGES[source].into(),
        destination,
        routing_key: Bytes::from(key),
        arguments: Arguments::default(),
    });
    prop_oneof![
        4 => (0..3usize, flags, member.clone()).prop_map(|(n, (durable, exclusive, auto_delete), member)| {
            let arguments = Arguments::default();
            Declare { name: QUEUES[n], durable, exclusive, auto_delete, arguments, session: session(member) }.into()
        }),
        4 => (0..4usize, flags).prop_map(|(n, (durable, topic, auto_delete))| {
            exchange(EXCHANGES[n], if topic { "topic" } else { "fanout" }, durable, auto_delete)
        }),
        6 => (binding.clone(), member.clone()).prop_map(|(binding, member)| {
            MetaCommand::Bind { vhost: "/".into(), binding, session: session(member) }
        }),
        3 => (binding, member.clone()).prop_map(|(binding, member)| {
            MetaCommand::Unbind { vhost: "/".into(), binding, session: session(member) }
        }),
        2 => (0..4usize, any::<bool>()).prop_map(|(n, if_unused)| {
            MetaCommand::DeleteExchange { vhost: "/".into(), name: EXCHANGES[n].into(), if_unused }
        }),
        2 => (1..12u64).prop_map(|id| MetaCommand::DeleteQueue { queue: QueueId(id) }),
        1 => member.clone().prop_map(|member| MetaCommand::SessionEnded { session: session(member) }),
        1 => (2..4u64, 0..3u64).prop_map(|(member, run)| {
            MetaCommand::BootStarted { member: MemberId(member), boot: BootId(member * 100 + run) }
        }),
        1 => Just(MetaCommand::DeleteVhost { name: "/".into() }),
        2 => Just(MetaCommand::PutVhost { name: "/".into() }),
    ]
}

/// Bindings lead from exchanges that are there to what is there, names and ids agree, and every replicated queue has
/// its group.
fn check(machine: &MetaMachine) {
    for (name, vhost) in machine.vhosts() {
        for binding in vhost.bindings.values().flatten() {
            assert!(vhost.exchanges.contains_key(&binding.source), "{binding:?}");
            match &binding.destination {
                Destination::Queue { name } => assert!(vhost.queues.contains_key(name), "{binding:?}"),
                Destination::Exchange { name } => assert!(vhost.exchanges.contains_key(name), "{binding:?}"),
            }
        }
        for (queue, id) in &vhost.queues {
            let info = machine.queue(*id).expect("a queue of that id");
            assert_eq!((info.vhost.as_str(), &info.name), (name, queue));
        }
    }
    let mut replicated = 0;
    for (id, queue) in machine.queues() {
        assert_eq!(machine.vhost(&queue.vhost).expect("its vhost").queues.get(&queue.name), Some(&id));
        if let Placement::Replicated { group } = queue.placement {
            replicated += 1;
            let info = machine.group(group).expect("its group");
            assert!(info.queues.contains(&id));
            let target = &info.target;
            assert!(target.voters.iter().any(|replica| replica.member == target.preferred_leader));
            assert_eq!(machine.unsettled().any(|id| id == group), !info.is_settled());
        }
    }
    assert_eq!(machine.groups().count(), replicated + 1);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn metadata_stays_consistent_and_survives_its_snapshot(commands in prop::collection::vec(command(), 1..60)) {
        let mut group = cluster(3);
        for command in commands {
            let mut twin = Group::new(MetaMachine::restore(&group.machine.snapshot()).expect("a snapshot reads back"));
            twin.index = group.index;
            prop_assert_eq!(group.lead(command.clone()), twin.lead(command));
            prop_assert_eq!(group.machine.digest(), twin.machine.digest());
            check(&group.machine);
        }
    }
}
