//! Policies: which of them counts for a queue, what they may say, and where they put its replicas.

mod support;

use holdfast_queue::arguments::{Arguments, Value};
use holdfast_queue::ids::{BootId, GroupId, MemberId, QueueId, SessionId};
use holdfast_queue::meta::{
    ApplyTo, Change, MetaCommand, MetaEffect, MetaMachine, MetaReply, NewMember, NewPolicy, Placement, PolicyKind,
};
use support::*;

fn boot(member: u64) -> BootId {
    BootId(member * 100)
}

fn session(member: u64) -> SessionId {
    SessionId { boot: boot(member), conn: 1 }
}

/// Member n is `m{n}` in one of the zones a, b, c, and runs.
fn member(n: u64) -> NewMember {
    let zone = ["a", "b", "c"][(n as usize - 1) % 3].to_owned();
    NewMember { uuid: format!("uuid-{n}"), name: format!("m{n}"), zone, address: String::new(), boot: Some(boot(n)) }
}

fn cluster(members: u64) -> Group<MetaMachine> {
    founded(members, 3, member)
}

/// Asks as a home would; the reply.
fn ask(group: &mut Group<MetaMachine>, command: MetaCommand) -> MetaReply {
    let effects = group.send(HOME, vec![command]);
    let reply = effects.into_iter().find_map(|effect| match effect {
        MetaEffect::Reply { reply, .. } => Some(reply),
        _ => None,
    });
    reply.expect("an answer")
}

fn refusal(group: &mut Group<MetaMachine>, command: MetaCommand) -> (u16, String) {
    match ask(group, command) {
        MetaReply::Refused { refusal } => (refusal.code, refusal.text),
        other => panic!("{other:?} instead of a refusal"),
    }
}

fn declare(group: &mut Group<MetaMachine>, name: &str, arguments: Arguments) -> QueueId {
    let command = MetaCommand::DeclareQueue {
        vhost: "/".into(),
        name: name.into(),
        durable: true,
        exclusive: false,
        auto_delete: false,
        arguments,
        session: session(1),
    };
    match ask(group, command) {
        MetaReply::QueueDeclared { queue, .. } => queue,
        other => panic!("{other:?}"),
    }
}

fn policy(pattern: &str, priority: i64, definition: Arguments) -> NewPolicy {
    NewPolicy { pattern: pattern.into(), apply_to: ApplyTo::All, priority, definition }
}

fn put(kind: PolicyKind, name: &str, policy: NewPolicy) -> MetaCommand {
    MetaCommand::PutPolicy { kind, vhost: "/".into(), name: name.into(), policy }
}

fn number(value: i64) -> Value {
    Value::I64(value)
}

fn names(names: &[&str]) -> Value {
    Value::Array(names.iter().map(|name| Value::string(*name)).collect())
}

fn exactly(count: i64) -> Arguments {
    Arguments::from([("ha-mode", Value::string("exactly")), ("ha-params", number(count))])
}

fn all() -> Arguments {
    Arguments::from([("ha-mode", Value::string("all"))])
}

fn group_of(group: &Group<MetaMachine>, queue: QueueId) -> GroupId {
    match group.machine.queue(queue).expect("declared").placement {
        Placement::Replicated { group } => group,
        Placement::Transient { .. } => panic!("not replicated"),
    }
}

/// Where the queue's voters should be, by member, and who should lead.
fn target(group: &Group<MetaMachine>, queue: QueueId) -> (Vec<u64>, u64) {
    let info = group.machine.group(group_of(group, queue)).expect("there");
    let voters = info.target.voters.iter().map(|replica| replica.member.0).collect();
    (voters, info.target.preferred_leader.0)
}

fn names_of(group: &Group<MetaMachine>, queue: QueueId) -> (Option<&str>, Option<&str>) {
    let policy = group.machine.policy_of(queue);
    (policy.and_then(|policy| policy.user.as_deref()), policy.and_then(|policy| policy.operator.as_deref()))
}

#[test]
fn the_matching_policy_with_the_highest_priority_counts_and_of_equal_ones_the_first_by_name() {
    let mut group = cluster(3);
    let orders = declare(&mut group, "orders.eu", Arguments::default());
    let quorum = declare(&mut group, "orders.q", Arguments::from([("x-queue-type", Value::string("quorum"))]));
    let limit = |length| Arguments::from([("max-length", number(length))]);
    assert_eq!(names_of(&group, orders), (None, None));
    for (name, pattern, priority) in [("b", "^orders", 1), ("a", "orders", 1), ("low", "", 0), ("other", "^eu", 9)] {
        assert_eq!(ask(&mut group, put(PolicyKind::User, name, policy(pattern, priority, limit(5)))), MetaReply::Done);
    }
    assert_eq!(names_of(&group, orders), (Some("a"), None));
    let only_quorum = NewPolicy { apply_to: ApplyTo::QuorumQueues, ..policy(".*", 7, limit(1)) };
    let exchanges = NewPolicy { apply_to: ApplyTo::Exchanges, ..policy(".*", 8, Arguments::default()) };
    ask(&mut group, put(PolicyKind::User, "quorum", only_quorum));
    ask(&mut group, put(PolicyKind::User, "exchanges", exchanges));
    assert_eq!((names_of(&group, orders).0, names_of(&group, quorum).0), (Some("a"), Some("quorum")));
    let exchange = group.machine.policy_of_exchange("/", "amq.topic").expect("it matches");
    assert_eq!(exchange.user.as_deref(), Some("exchanges"));
    let delete =
        |name: &str| MetaCommand::DeletePolicy { kind: PolicyKind::User, vhost: "/".into(), name: name.into() };
    ask(&mut group, delete("a"));
    assert_eq!(names_of(&group, orders).0, Some("b"));
    group.reload();
    assert_eq!(names_of(&group, orders).0, Some("b"), "it is derived anew from a snapshot");
    assert_eq!(refusal(&mut group, delete("a")).0, 404);
}

#[test]
fn of_a_users_and_an_operators_limits_the_smaller_counts_and_of_promises_the_larger() {
    let mut group = cluster(3);
    let queue = declare(&mut group, "q", Arguments::default());
    let user = Arguments::from([
        ("max-length", number(100)),
        ("message-ttl", number(5)),
        ("ha-mode", Value::string("nodes")),
        ("ha-params", names(&["m1"])),
        ("dead-letter-exchange", Value::string("dlx")),
    ]);
    let operator = Arguments::from([
        ("max-length", number(10)),
        ("message-ttl", number(50)),
        ("min-in-sync-replicas", number(2)),
        ("ha-mode", Value::string("all")),
    ]);
    ask(&mut group, put(PolicyKind::User, "u", policy("", 0, user)));
    ask(&mut group, put(PolicyKind::Operator, "o", policy("", 0, operator)));
    let effective = group.machine.policy_of(queue).expect("both match");
    let expected = Arguments::from([
        ("dead-letter-exchange", Value::string("dlx")),
        ("ha-mode", Value::string("all")),
        ("max-length", number(10)),
        ("message-ttl", number(5)),
        ("min-in-sync-replicas", number(2)),
    ]);
    assert_eq!(effective.definition, expected, "the operator's ha-mode leaves the user's ha-params behind");
    assert_eq!(names_of(&group, queue), (Some("u"), Some("o")));
    ask(&mut group, put(PolicyKind::User, "u", policy("", 0, Arguments::from([("min-in-sync-replicas", number(3))]))));
    assert_eq!(group.machine.min_in_sync_replicas(queue), 3);
}

#[test]
fn what_a_policy_may_not_say_is_refused_with_what_it_may() {
    let text = |value: &str| Value::string(value);
    #[rustfmt::skip]
    let cases: Vec<(Arguments, &str)> = vec![
        (Arguments::from([("max-lenght", number(1))]), "'max-lenght' is not a key of a policy; there are: alternate-exchange"),
        (Arguments::from([("max-length", number(-1))]), "max-length must be a number of at least 0, not '-1'"),
        (Arguments::from([("max-length", text("1"))]), "max-length must be a number"),
        (Arguments::from([("expires", number(0))]), "at least 1"),
        (Arguments::from([("overflow", text("drop"))]), "must be one of: drop-head, reject-publish, reject-publish-dlx"),
        (Arguments::from([("min-in-sync-replicas", number(8))]), "a number from 1 to 7"),
        (Arguments::from([("ha-mode", text("some"))]), "must be one of: all, exactly, nodes"),
        (Arguments::from([("ha-mode", text("exactly"))]), "ha-mode exactly needs ha-params: a number from 1 to 7"),
        (exactly(0), "a number from 1 to 7"),
        (exactly(8), "a number from 1 to 7"),
        (Arguments::from([("ha-mode", text("nodes")), ("ha-params", number(2))]), "a list of 1 to 7 member names"),
        (Arguments::from([("ha-mode", text("nodes")), ("ha-params", names(&[]))]), "a list of 1 to 7 member names"),
        (Arguments::from([("ha-mode", text("all")), ("ha-params", number(2))]), "takes no ha-params"),
        (Arguments::from([("ha-params", number(2))]), "ha-params needs ha-mode"),
        (Arguments::from([("ha-sync-mode", text("never"))]), "must be one of: automatic, manual"),
        (Arguments::from([("ha-promote-on-failure", text("never"))]), "must be one of: when-synced, always"),
        (Arguments::from([("expires", number(5)), ("expires", number(6))]), "given twice"),
        (Arguments([exactly(2).0, vec![("min-in-sync-replicas".into(), number(3))]].concat()), "no publish could be taken"),
    ];
    let mut group = cluster(3);
    for (definition, says) in cases {
        let (code, text) = refusal(&mut group, put(PolicyKind::User, "p", policy("", 0, definition)));
        assert_eq!(code, 406);
        assert!(text.starts_with("policy 'p': ") && text.contains(says), "{text}");
    }
    let dlx = Arguments::from([("dead-letter-exchange", text("x"))]);
    let (_, text) = refusal(&mut group, put(PolicyKind::Operator, "p", policy("", 0, dlx)));
    assert!(text.contains("is not a key of an operator policy"), "{text}");
    let (_, text) = refusal(&mut group, put(PolicyKind::User, "p", policy("(", 0, all())));
    assert!(text.contains("'(' is not a regular expression"), "{text}");
    assert_eq!(refusal(&mut group, put(PolicyKind::User, "", policy("", 0, all()))).0, 406);
    let long = "x".repeat(256);
    assert_eq!(refusal(&mut group, put(PolicyKind::User, "p", policy(&long, 0, all()))).0, 406);
    let (kind, vhost, name) = (PolicyKind::User, "none".to_owned(), "p".to_owned());
    assert_eq!(refusal(&mut group, MetaCommand::PutPolicy { kind, vhost, name, policy: policy("", 0, all()) }).0, 404);
    assert_eq!(group.machine.policies(PolicyKind::User).count(), 0);
}

#[test]
fn a_policy_decides_where_the_replicas_of_its_queues_should_be_and_a_changed_one_moves_them() {
    struct Case {
        what: &'static str,
        members: u64,
        definition: Arguments,
        voters: &'static [u64],
        leader: u64,
    }
    let nodes = |list: &[&str]| Arguments::from([("ha-mode", Value::string("nodes")), ("ha-params", names(list))]);
    #[rustfmt::skip]
    let cases = [
        Case { what: "without a word on replicas the factor", members: 5, definition: Arguments::default(), voters: &[1, 2, 3], leader: 1 },
        Case { what: "all", members: 5, definition: all(), voters: &[1, 2, 3, 4, 5], leader: 1 },
        Case { what: "all, but no more than seven", members: 9, definition: all(), voters: &[1, 2, 3, 4, 5, 6, 7], leader: 1 },
        Case { what: "exactly one", members: 5, definition: exactly(1), voters: &[1], leader: 1 },
        Case { what: "exactly two", members: 5, definition: exactly(2), voters: &[1, 2], leader: 1 },
        Case { what: "exactly five", members: 5, definition: exactly(5), voters: &[1, 2, 3, 4, 5], leader: 1 },
        Case { what: "exactly more than there are", members: 3, definition: exactly(5), voters: &[1, 2, 3], leader: 1 },
        Case { what: "those named, elsewhere", members: 5, definition: nodes(&["m4", "m5"]), voters: &[4, 5], leader: 4 },
        Case { what: "those named that there are", members: 5, definition: nodes(&["m5", "m1", "m77"]), voters: &[1, 5], leader: 1 },
        Case { what: "nobody is named that is there", members: 5, definition: nodes(&["x"]), voters: &[1, 2, 3], leader: 1 },
    ];
    for case in cases {
        let mut group = cluster(case.members);
        let old = declare(&mut group, "old", Arguments::default());
        assert_eq!(target(&group, old), (vec![1, 2, 3], 1));
        assert_eq!(ask(&mut group, put(PolicyKind::User, "p", policy("", 0, case.definition))), MetaReply::Done);
        assert_eq!(target(&group, old), (case.voters.to_vec(), case.leader), "{}: one that was there", case.what);
        let actual: Vec<u64> =
            group.machine.group(group_of(&group, old)).expect("there").voters.iter().map(|it| it.member.0).collect();
        assert_eq!(actual, [1, 2, 3], "{}: where it is changes only as it moves", case.what);
        let new = declare(&mut group, "new", Arguments::default());
        assert_eq!(target(&group, new).0.len(), case.voters.len(), "{}: a new one", case.what);
        let (kind, vhost, name) = (PolicyKind::User, "/".to_owned(), "p".to_owned());
        assert_eq!(ask(&mut group, MetaCommand::DeletePolicy { kind, vhost, name }), MetaReply::Done);
        assert_eq!(target(&group, old).0.len(), 3, "{}: without the policy again", case.what);
    }
}

#[test]
fn queues_spread_to_members_that_come_later_where_their_policy_says_so() {
    let mut group = cluster(2);
    let plain = declare(&mut group, "plain", Arguments::default());
    let everywhere = declare(&mut group, "everywhere", Arguments::default());
    let named = declare(&mut group, "named", Arguments::default());
    let nodes = Arguments::from([("ha-mode", Value::string("nodes")), ("ha-params", names(&["m4"]))]);
    ask(&mut group, put(PolicyKind::User, "all", policy("every", 0, all())));
    ask(&mut group, put(PolicyKind::User, "nodes", policy("named", 0, nodes)));
    assert_eq!(target(&group, plain).0, [1, 2]);
    group.lead(MetaCommand::AddMember { member: member(3) });
    assert_eq!(target(&group, plain).0, [1, 2, 3], "it has its factor once there are enough");
    group.lead(MetaCommand::AddMember { member: member(4) });
    assert_eq!(target(&group, plain).0, [1, 2, 3]);
    assert_eq!(target(&group, everywhere).0, [1, 2, 3, 4]);
    assert_eq!(target(&group, named), (vec![4], 4));
    let retire = MetaCommand::RetireMember { member: MemberId(2) };
    assert_eq!(ask(&mut group, retire), MetaReply::Done, "all is fewer then");
    assert_eq!((target(&group, everywhere).0, target(&group, plain).0), (vec![1, 3, 4], vec![1, 3, 4]));
}

#[test]
fn declarations_choose_size_and_first_leader_and_a_policy_outweighs_the_size() {
    let mut group = cluster(5);
    let size = |count| Arguments::from([("x-quorum-initial-group-size", number(count))]);
    let five = declare(&mut group, "five", size(5));
    assert_eq!(target(&group, five).0.len(), 5);
    let capped = declare(&mut group, "capped", size(100));
    assert_eq!(group.machine.replicas_wanted(capped), 7);
    ask(&mut group, put(PolicyKind::User, "p", policy("five", 0, exactly(2))));
    assert_eq!(target(&group, five).0.len(), 2);
    let locator = |value| Arguments::from([("x-queue-leader-locator", Value::string(value))]);
    let local = declare(&mut group, "local", locator("client-local"));
    assert_eq!(target(&group, local).1, 1, "the declaring member");
    let balanced = declare(&mut group, "balanced", locator("balanced"));
    let leads_nothing = target(&group, balanced).1;
    assert_ne!(leads_nothing, 1, "a member that leads nothing yet");
    let by_policy = Arguments::from([("queue-leader-locator", Value::string("balanced"))]);
    ask(&mut group, put(PolicyKind::User, "spread", policy("spread", 0, by_policy)));
    let spread = declare(&mut group, "spread", Arguments::default());
    assert!(![1, leads_nothing].contains(&target(&group, spread).1), "the next one");
    let argued = declare(&mut group, "spread.but", locator("client-local"));
    assert_eq!(target(&group, argued).1, 1, "an argument outweighs a policy");
    let wrong = MetaCommand::DeclareQueue {
        vhost: "/".into(),
        name: "wrong".into(),
        durable: true,
        exclusive: false,
        auto_delete: false,
        arguments: locator("nearby"),
        session: session(1),
    };
    assert_eq!(refusal(&mut group, wrong).0, 406);
}

#[test]
fn the_least_number_of_copies_is_the_policys_or_the_default_for_as_many_replicas_as_are_meant_to_be() {
    let mut group = cluster(3);
    let plain = declare(&mut group, "plain", Arguments::default());
    let single = declare(&mut group, "single", Arguments::default());
    let strict = declare(&mut group, "strict", Arguments::default());
    ask(&mut group, put(PolicyKind::User, "single", policy("single", 0, exactly(1))));
    let three = Arguments::from([("min-in-sync-replicas", number(3))]);
    ask(&mut group, put(PolicyKind::User, "strict", policy("strict", 0, three)));
    let wanted =
        |group: &Group<MetaMachine>| [plain, single, strict].map(|queue| group.machine.min_in_sync_replicas(queue));
    assert_eq!(wanted(&group), [0, 0, 3]);
    ask(&mut group, MetaCommand::SetDefaultMinInSync { min_in_sync_replicas: 2 });
    assert_eq!(wanted(&group), [2, 1, 3]);
    assert_eq!(refusal(&mut group, MetaCommand::SetDefaultMinInSync { min_in_sync_replicas: 8 }).0, 406);
    let effects = group.lead(MetaCommand::SetDefaultMinInSync { min_in_sync_replicas: 0 });
    assert!(effects.contains(&MetaEffect::Changed { change: Change::Replication }), "leaders look at their groups");
    assert_eq!(wanted(&group), [0, 0, 3]);
}
