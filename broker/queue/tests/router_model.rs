//! Routes against a matcher that tries everything.

mod support;

use bytes::Bytes;
use holdfast_queue::arguments::{Arguments, Value};
use holdfast_queue::ids::{BootId, QueueId, SessionId};
use holdfast_queue::meta::{Binding, Destination, MetaCommand, MetaMachine, NewMember};
use holdfast_queue::{Publication, RouteError};
use proptest::prelude::*;
use std::collections::BTreeSet;
use support::*;

const SESSION: SessionId = SessionId { boot: BootId(1), conn: 1 };

fn cluster() -> Group<MetaMachine> {
    let mut group = Group::new(MetaMachine::new());
    let first = NewMember { uuid: "one".into(), boot: Some(SESSION.boot), ..NewMember::default() };
    group.lead(MetaCommand::Init {
        cluster_id: "c".into(),
        epoch: 1,
        expected: vec![],
        replication_factor: 0,
        default_min_in_sync_replicas: 0,
        user: None,
        first,
    });
    group
}

fn declare_queue(name: &str) -> MetaCommand {
    MetaCommand::DeclareQueue {
        vhost: "/".into(),
        name: name.into(),
        durable: true,
        exclusive: false,
        auto_delete: false,
        arguments: Arguments::default(),
        session: SESSION,
    }
}

fn declare_exchange(name: &str, kind: &str, arguments: Arguments) -> MetaCommand {
    let (vhost, name, kind) = ("/".into(), name.into(), kind.into());
    MetaCommand::DeclareExchange { vhost, name, kind, durable: true, auto_delete: false, internal: false, arguments }
}

fn binding(source: &str, destination: Destination, key: &str, arguments: Arguments) -> Binding {
    Binding { source: source.into(), destination, routing_key: Bytes::copy_from_slice(key.as_bytes()), arguments }
}

fn to_queue(name: &str) -> Destination {
    Destination::Queue { name: name.into() }
}

fn bind(binding: Binding) -> MetaCommand {
    MetaCommand::Bind { vhost: "/".into(), binding, session: SESSION }
}

fn route(
    group: &Group<MetaMachine>,
    exchange: &str,
    keys: &[&str],
    headers: &Arguments,
) -> Result<Vec<String>, RouteError> {
    let keys: Vec<&[u8]> = keys.iter().map(|key| key.as_bytes()).collect();
    let publication = Publication { vhost: "/", exchange, routing_keys: &keys, headers: &|| headers.clone() };
    let mut queues: Vec<QueueId> = Vec::new();
    group.machine.router().route(&publication, &mut queues)?;
    let name = |id: &QueueId| group.machine.queue(*id).expect("a queue that is there").name.clone();
    Ok(queues.iter().map(name).collect())
}

/// Every way of matching, one after the other (AMQP 0-9-1 §3.1.3.3).
fn matches(pattern: &[&str], key: &[&str]) -> bool {
    match (pattern, key) {
        ([], []) => true,
        (["#", rest @ ..], _) => (0..=key.len()).any(|skipped| matches(rest, &key[skipped..])),
        (["*", pattern @ ..], [_, key @ ..]) => matches(pattern, key),
        ([word, pattern @ ..], [other, key @ ..]) => word == other && matches(pattern, key),
        _ => false,
    }
}

fn split(text: &str) -> Vec<&str> {
    if text.is_empty() { Vec::new() } else { text.split('.').collect() }
}

const QUEUES: [&str; 4] = ["q0", "q1", "q2", "q3"];

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn topics_route_as_the_matcher_says(
        steps in prop::collection::vec((any::<bool>(), 0..4usize, "([ab*#](\\.[ab*#]){0,4})?"), 1..40),
        keys in prop::collection::vec("([abc]?(\\.[abc]?){0,4})?", 1..20),
    ) {
        let mut group = cluster();
        QUEUES.iter().for_each(|name| drop(group.lead(declare_queue(name))));
        let mut bound = BTreeSet::new();
        for (add, queue, pattern) in &steps {
            let binding = binding("amq.topic", to_queue(QUEUES[*queue]), pattern, Arguments::default());
            if *add || !bound.contains(&(*queue, pattern)) {
                bound.insert((*queue, pattern));
                group.lead(bind(binding));
            } else {
                bound.remove(&(*queue, pattern));
                group.lead(MetaCommand::Unbind { vhost: "/".into(), binding, session: SESSION });
            }
        }
        for reloaded in [false, true] {
            for key in &keys {
                let expected: BTreeSet<&str> = bound.iter()
                    .filter(|(_, pattern)| matches(&split(pattern), &split(key)))
                    .map(|(queue, _)| QUEUES[*queue])
                    .collect();
                let routed = route(&group, "amq.topic", &[key], &Arguments::default()).expect("an exchange");
                prop_assert_eq!(&routed, &Vec::from_iter(expected), "key {} reloaded {}", key, reloaded);
            }
            group.reload();
        }
    }
}

#[test]
fn many_hashes_in_a_pattern_do_not_make_a_match_slow() {
    let mut group = cluster();
    group.lead(declare_queue("q"));
    let pattern = ["#.a"; 60].join(".") + ".z";
    group.lead(bind(binding("amq.topic", to_queue("q"), &pattern, Arguments::default())));
    let key = ["a"; 120].join(".");
    assert_eq!(route(&group, "amq.topic", &[&key], &Arguments::default()), Ok(vec![]));
}

#[test]
fn the_default_exchange_routes_by_queue_name() {
    let mut group = cluster();
    group.lead(declare_queue("q"));
    let none = Arguments::default();
    assert_eq!(route(&group, "", &["q"], &none), Ok(vec!["q".to_owned()]));
    assert_eq!(route(&group, "", &["other"], &none), Ok(vec![]));
    assert_eq!(route(&group, "missing", &["q"], &none), Err(RouteError::NoSuchExchange));
}

#[test]
fn exchanges_bound_in_a_circle_route_to_each_queue_once() {
    let mut group = cluster();
    let none = Arguments::default;
    for name in ["a", "b"] {
        group.lead(declare_exchange(name, "fanout", none()));
        group.lead(declare_queue(&format!("q{name}")));
        group.lead(bind(binding(name, to_queue(&format!("q{name}")), "x", none())));
        group.lead(bind(binding(name, to_queue("qa"), "y", none())));
    }
    for (source, name) in [("a", "b"), ("b", "a")] {
        group.lead(bind(binding(source, Destination::Exchange { name: name.into() }, "", none())));
    }
    assert_eq!(route(&group, "a", &["k", "l"], &none()), Ok(vec!["qa".to_owned(), "qb".to_owned()]));
    group.lead(MetaCommand::DeleteExchange { vhost: "/".into(), name: "b".into(), if_unused: false });
    assert_eq!(route(&group, "a", &["k"], &none()), Ok(vec!["qa".to_owned()]));
}

#[test]
fn what_an_exchange_cannot_route_goes_to_its_alternate() {
    let mut group = cluster();
    group.lead(declare_queue("lost"));
    group.lead(declare_queue("found"));
    group.lead(declare_exchange("dead-end", "fanout", Arguments::default()));
    group.lead(bind(binding("dead-end", to_queue("lost"), "", Arguments::default())));
    let alternate = Arguments::from([("alternate-exchange", Value::string("dead-end"))]);
    group.lead(declare_exchange("main", "direct", alternate));
    group.lead(bind(binding("main", to_queue("found"), "k", Arguments::default())));
    assert_eq!(route(&group, "main", &["k"], &Arguments::default()), Ok(vec!["found".to_owned()]));
    assert_eq!(route(&group, "main", &["other"], &Arguments::default()), Ok(vec!["lost".to_owned()]));
}

#[test]
fn headers_match_all_or_any_and_leave_their_own_x_names_out() {
    let mut group = cluster();
    let wanted = |mode: &str| {
        Arguments::from([
            ("x-match", Value::string(mode)),
            ("x-kind", Value::string("odd")),
            ("size", Value::I32(3)),
            ("colour", Value::Void),
        ])
    };
    for mode in ["all", "any", "all-with-x", "any-with-x"] {
        group.lead(declare_queue(mode));
        group.lead(bind(binding("amq.headers", to_queue(mode), "", wanted(mode))));
    }
    let route = |headers: Arguments| route(&group, "amq.headers", &[""], &headers);
    let both = Arguments::from([("size", Value::I64(3)), ("colour", Value::string("red"))]);
    assert_eq!(route(both), Ok(vec!["all".into(), "any".into(), "any-with-x".into()]));
    let only_x = Arguments::from([("x-kind", Value::string("odd"))]);
    assert_eq!(route(only_x), Ok(vec!["any-with-x".into()]));
    let wrong = Arguments::from([("size", Value::I64(4))]);
    assert_eq!(route(wrong), Ok(vec![]));
}

#[test]
fn an_internal_exchange_takes_messages_from_exchanges_only() {
    let mut group = cluster();
    group.lead(declare_queue("q"));
    let (vhost, name, kind) = ("/".into(), "inner".into(), "fanout".into());
    let arguments = Arguments::default();
    group.lead(MetaCommand::DeclareExchange {
        vhost,
        name,
        kind,
        durable: true,
        auto_delete: false,
        internal: true,
        arguments,
    });
    group.lead(bind(binding("inner", to_queue("q"), "", Arguments::default())));
    let inner = Destination::Exchange { name: "inner".into() };
    group.lead(bind(binding("amq.direct", inner, "k", Arguments::default())));
    assert_eq!(route(&group, "inner", &["k"], &Arguments::default()), Err(RouteError::Internal));
    assert_eq!(route(&group, "amq.direct", &["k"], &Arguments::default()), Ok(vec!["q".to_owned()]));
}
