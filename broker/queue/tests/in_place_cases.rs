//! A queue or a virtual host out of a backup, under a new name, beside what is there.

mod support;

use bytes::Bytes;
use holdfast_queue::arguments::Arguments;
use holdfast_queue::codec::Message;
use holdfast_queue::ids::{BootId, SessionId};
use holdfast_queue::in_place::{RestoreStep, RestoreTarget, RestoredMessage};
use holdfast_queue::meta::{
    Binding, Destination, MetaCommand, MetaEffect, MetaMachine, MetaReply, NewMember, NewUser, Permission, Vhost,
};
use holdfast_queue::queue::{QueueCommand, QueueEffect, QueueMachine, QueueReply};
use holdfast_queue::{Machine, Publication};
use support::*;

const LATE: BootId = BootId(0x1a7e);

fn member(n: u64) -> NewMember {
    let (uuid, name, address) = (format!("uuid-{n}"), format!("m{n}"), format!("m{n}:5680"));
    NewMember { uuid, name, zone: String::new(), address, boot: Some(BootId(n * 100)) }
}

fn session() -> SessionId {
    SessionId { boot: BootId(100), conn: 1 }
}

fn restore(position: u64, body: &str, returns: u32) -> QueueCommand {
    let message = Message { body: Bytes::copy_from_slice(body.as_bytes()), ..Message::default() };
    QueueCommand::Restore { queue: QUEUE, position, returns, message }
}

fn end(group: &mut Group<QueueMachine>, messages: u64) -> QueueReply {
    let effects = group.send(HOME, vec![QueueCommand::EndRestore { queue: QUEUE, messages }]);
    let reply = effects.into_iter().find_map(|effect| match effect {
        QueueEffect::Reply { reply, .. } => Some(reply),
        _ => None,
    });
    reply.expect("a reply")
}

#[test]
fn a_message_of_a_backup_is_taken_once_and_in_its_place_whoever_repeats_it() {
    let mut group = Group::new(QueueMachine::new());
    group.lead(create());
    group.send(HOME, vec![restore(0, "a", 0), restore(1, "b", 3)]);
    // A loader that was killed is run again, at another member, and begins too early; one message would leave a gap.
    group.send(LATE, vec![restore(0, "a", 0), restore(1, "b", 3), restore(2, "c", 0), restore(9, "z", 0)]);
    group.reload();
    let returns: Vec<u32> = group.machine.waiting(QUEUE).into_iter().map(|(_, returns)| returns).collect();
    assert_eq!(returns, [0, 3, 0]);
    assert_eq!(group.machine.live_indexes().len(), 2, "the entries of the messages that were taken, no others");
    assert!(matches!(end(&mut group, 4), QueueReply::Stats { stats } if stats.ready == 3));
    assert_eq!(end(&mut group, 3), QueueReply::RestoreEnded);
    assert_eq!(end(&mut group, 3), QueueReply::RestoreEnded, "a repeat");
    group.reload();
    // What was under way all the time finds the queue in use: it would be the next one again after a purge.
    group.send(HOME, vec![QueueCommand::Purge { queue: QUEUE }]);
    group.send(LATE, vec![restore(0, "a", 0), restore(1, "b", 3)]);
    assert_eq!(group.machine.stats(QUEUE).map(|stats| stats.ready), Some(0));
    group.send(HOME, vec![publish("new")]);
    assert_eq!(group.machine.stats(QUEUE).map(|stats| stats.ready), Some(1));
}

fn lead(group: &mut Group<MetaMachine>, command: MetaCommand) -> Result<(), (u16, String)> {
    let effects = group.send(BootId(100), vec![command]);
    group.reload();
    let reply = effects.into_iter().find_map(|effect| match effect {
        MetaEffect::Reply { reply, .. } => Some(reply),
        _ => None,
    });
    match reply.expect("a reply") {
        MetaReply::Refused { refusal } => Err((refusal.code, refusal.text)),
        _ => Ok(()),
    }
}

fn begin(vhost: &str, name: &str, id: &str) -> MetaCommand {
    let (vhost, name, id) = (vhost.into(), name.into(), id.into());
    MetaCommand::BeginQueueRestore { vhost, name, id, auto_delete: false, arguments: Arguments::default() }
}

fn complete(vhost: &str, name: &str, id: &str) -> MetaCommand {
    MetaCommand::CompleteQueueRestore { vhost: vhost.into(), name: name.into(), id: id.into() }
}

fn declare(name: &str) -> MetaCommand {
    MetaCommand::DeclareQueue {
        vhost: "/".into(),
        name: name.into(),
        durable: true,
        exclusive: false,
        auto_delete: false,
        arguments: Arguments::default(),
        session: session(),
    }
}

fn bind(queue: &str) -> MetaCommand {
    let binding = Binding {
        source: "amq.direct".into(),
        destination: Destination::Queue { name: queue.into() },
        routing_key: Bytes::from_static(b"key"),
        arguments: Arguments::default(),
    };
    MetaCommand::Bind { vhost: "/".into(), binding, session: session() }
}

fn cluster() -> Group<MetaMachine> {
    let mut group = founded(3, 3, member);
    group.send(BootId(100), vec![MetaCommand::PutVhost { name: "/".into() }]);
    lead(&mut group, declare("orders")).expect("a queue");
    lead(&mut group, bind("orders")).expect("a binding");
    let user = NewUser { name: "app".into(), hash: "h".into(), tags: Vec::new() };
    lead(&mut group, MetaCommand::PutUser { user }).expect("a user");
    let all = || ".*".to_owned();
    let (vhost, user, configure, write, read) = ("/".to_owned(), "app".to_owned(), all(), all(), all());
    lead(&mut group, MetaCommand::SetPermissions { vhost, user, configure, write, read }).expect("permissions");
    group
}

fn routed(group: &Group<MetaMachine>, vhost: &str, exchange: &str, key: &[u8]) -> usize {
    let mut found = Vec::new();
    let publication = Publication { vhost, exchange, routing_keys: &[key], headers: &Arguments::default };
    let _ = group.machine.router().route(&publication, &mut found);
    found.len()
}

fn code(outcome: Result<(), (u16, String)>) -> u16 {
    outcome.err().map_or(0, |(code, _)| code)
}

#[test]
fn nobody_can_use_a_queue_before_it_is_restored_whole_and_its_name_is_taken_from_the_beginning() {
    let mut group = cluster();
    assert_eq!(code(lead(&mut group, begin("/", "orders", "r1"))), 406, "it exists, and not by this restore");
    lead(&mut group, begin("/", "copy", "r1")).expect("begun");
    lead(&mut group, begin("/", "copy", "r1")).expect("a repeat");
    assert_eq!(code(lead(&mut group, begin("/", "copy", "r2"))), 406, "another restore");
    assert_eq!(code(lead(&mut group, declare("copy"))), 405);
    assert_eq!(code(lead(&mut group, bind("copy"))), 405);
    assert!(group.machine.queue_named("/", "copy", session()).is_err_and(|refusal| refusal.code == 405));
    assert_eq!(routed(&group, "/", "", b"copy"), 0, "a publish finds no such queue");
    assert_eq!(code(lead(&mut group, complete("/", "copy", "r2"))), 406);
    lead(&mut group, complete("/", "copy", "r1")).expect("complete");
    lead(&mut group, complete("/", "copy", "r1")).expect("a repeat");
    assert_eq!(routed(&group, "/", "", b"copy"), 1);
    let (queue, _) = group.machine.queue_named("/", "copy", session()).expect("a queue");
    let abandon = MetaCommand::AbandonRestore { vhost: "/".into(), name: "copy".into(), id: "r1".into() };
    assert_eq!(code(lead(&mut group, abandon)), 406, "it is complete");
    lead(&mut group, begin("/", "copy", "r1")).expect("a repeat after the end");
    lead(&mut group, MetaCommand::DeleteQueue { queue }).expect("deleted");
    lead(&mut group, begin("/", "copy", "r2")).expect("its name is free");
    let abandon = MetaCommand::AbandonRestore { vhost: "/".into(), name: "copy".into(), id: "r2".into() };
    lead(&mut group, abandon).expect("given up");
    lead(&mut group, declare("copy")).expect("its name is free again");
}

#[test]
fn a_virtual_host_is_entered_only_once_all_of_its_queues_are_whole() {
    let mut group = cluster();
    let content: Vhost = group.machine.vhost("/").expect("a virtual host").clone();
    let (vhost, id) = (|| "new".to_owned(), || "r1".to_owned());
    let begin_vhost = |vhost: &str, id: &str| MetaCommand::BeginVhostRestore {
        vhost: vhost.into(),
        id: id.into(),
        content: content.clone(),
    };
    assert_eq!(code(lead(&mut group, begin_vhost("/", "r1"))), 406);
    lead(&mut group, begin_vhost("new", "r1")).expect("begun");
    assert_eq!(code(lead(&mut group, begin_vhost("new", "r2"))), 406);
    lead(&mut group, begin("new", "orders", "r1")).expect("begun");
    let end = || MetaCommand::CompleteVhostRestore { vhost: vhost(), id: id(), content: content.clone() };
    assert_eq!(code(lead(&mut group, end())), 406, "a queue lacks messages");
    lead(&mut group, complete("new", "orders", "r1")).expect("complete");
    assert!(group.machine.queue_named("new", "orders", session()).is_err(), "its virtual host is not whole");
    assert!(!group.machine.may("app", "new", Permission::Read, "orders"));
    assert_eq!(routed(&group, "new", "", b"orders"), 0);
    lead(&mut group, end()).expect("complete");
    lead(&mut group, end()).expect("a repeat");
    assert!(group.machine.may("app", "new", Permission::Read, "orders"));
    assert_eq!(routed(&group, "new", "amq.direct", b"key"), 1);
    let (old, _) = group.machine.queue_named("/", "orders", session()).expect("the original");
    let (new, _) = group.machine.queue_named("new", "orders", session()).expect("the copy");
    assert_ne!(old, new);
    assert_eq!(routed(&group, "/", "amq.direct", b"key"), 1, "the original is as it was");
}

#[test]
fn a_step_reads_back_as_it_was_sent_and_anything_else_is_refused() {
    let target = RestoreTarget { vhost: "/".into(), name: "q".into(), id: "r".into() };
    let message = Message { body: Bytes::from_static(b"body"), ..Message::default() };
    let messages = vec![RestoredMessage { returns: 2, message }];
    let step = RestoreStep::Messages { target, first: 7, messages };
    let bytes = step.to_bytes();
    assert_eq!(RestoreStep::from_bytes(&bytes), Ok(step));
    for end in 0..bytes.len() {
        assert!(RestoreStep::from_bytes(&bytes.slice(..end)).is_err(), "{end} bytes of it");
    }
}
