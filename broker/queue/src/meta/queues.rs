//! Queues: declaration, equivalence, exclusive access, removal.

use super::command::Destination;
use super::effect::{Change, MetaReply, Refusal};
use super::machine::{MetaMachine, Outcome};
use super::placement;
use super::state::{GroupInfo, Owner, Placement, QueueInfo};
use crate::arguments::{Arguments, Value};
use crate::ids::{GroupId, Incarnation, QueueId, SessionId};
use crate::machine::ApplyMeta;
use crate::queue::QueueSettings;
use crate::snapshot;

/// Arguments that must be the same when a queue is declared again; RabbitMQ overlooks others too.
const COMPARED: [&str; 18] = [
    "x-expires",
    "x-message-ttl",
    "x-dead-letter-exchange",
    "x-dead-letter-routing-key",
    "x-dead-letter-strategy",
    "x-max-length",
    "x-max-length-bytes",
    "x-max-in-memory-length",
    "x-max-in-memory-bytes",
    "x-max-priority",
    "x-overflow",
    "x-queue-mode",
    "x-queue-version",
    "x-queue-type",
    "x-single-active-consumer",
    "x-delivery-limit",
    "x-quorum-initial-group-size",
    "x-queue-master-locator",
];

/// What a queue's machine must know of a declaration.
pub fn queue_settings(queue: &QueueInfo) -> QueueSettings {
    QueueSettings { auto_delete: queue.auto_delete }
}

impl MetaMachine {
    /// A queue.
    pub fn queue(&self, id: QueueId) -> Option<&QueueInfo> {
        self.queues.get(&id)
    }

    /// True for a queue that was declared, be it deleted since.
    pub fn was_declared(&self, id: QueueId) -> bool {
        id.0 <= self.last_queue
    }

    /// All queues by id.
    pub fn queues(&self) -> impl Iterator<Item = (QueueId, &QueueInfo)> {
        self.queues.iter().map(|(id, queue)| (*id, queue))
    }

    /// How many queues there are.
    pub fn queue_count(&self) -> usize {
        self.queues.len()
    }

    /// A queue by name, for a session that wants to use it: passive declare, consume, get, bind, purge, delete.
    ///
    /// # Errors
    /// 404 when there is none, 405 when it is exclusive to another connection, in RabbitMQ's words, or being restored.
    pub fn queue_named(&self, vhost: &str, name: &str, session: SessionId) -> Result<(QueueId, &QueueInfo), Refusal> {
        let id = self.vhost(vhost).and_then(|vhost| vhost.queues.get(name));
        let Some((id, queue)) = id.and_then(|id| Some((*id, self.queues.get(id)?))) else {
            return Err(Refusal { code: 404, text: format!("no queue '{name}' in vhost '{vhost}'") });
        };
        if self.is_being_restored(vhost, name) {
            let text = format!("queue '{name}' in vhost '{vhost}' is being restored from a backup, and not complete");
            return Err(Refusal { code: 405, text });
        }
        if queue.exclusive.is_some_and(|owner| owner != session) {
            let text = format!(
                "cannot obtain exclusive access to locked queue '{name}' in vhost '{vhost}'. It could be originally declared on another connection \
                 or the exclusive property value does not match that of the original declaration."
            );
            return Err(Refusal { code: 405, text });
        }
        Ok((id, queue))
    }

    /// `asked.placement` is only a proposal: what the queue gets is decided here.
    pub(super) fn declare_queue(
        &mut self,
        meta: &ApplyMeta,
        asked: QueueInfo,
        session: SessionId,
        changes: &mut Vec<Change>,
    ) -> Outcome {
        match self.queue_named(&asked.vhost, &asked.name, session) {
            Ok((queue, present)) => {
                check_equivalent(present, &asked)?;
                return Ok(MetaReply::QueueDeclared { queue, created: false });
            }
            Err(refusal) if refusal.code != 404 => return Err(refusal),
            Err(_) => {}
        }
        if asked.name.starts_with("amq.") && !is_server_named(&asked.name) {
            let text = format!("queue name '{}' contains reserved prefix 'amq.*'", asked.name);
            return Err(Refusal { code: 403, text });
        }
        check_arguments(&asked)?;
        self.vhost_mut(&asked.vhost)?;
        let queue = QueueId(self.last_queue + 1);
        let placement = self.place_queue(meta, queue, &asked, session, changes)?;
        self.last_queue = queue.0;
        self.router.add_queue(&asked.vhost, &asked.name, queue);
        self.vhost_mut(&asked.vhost)?.queues.insert(asked.name.clone(), queue);
        if let Some(policy) = self.match_policies(&asked) {
            self.effective.insert(queue, policy);
        }
        self.queues.insert(queue, QueueInfo { placement, ..asked });
        changes.push(Change::QueueCreated { queue });
        Ok(MetaReply::QueueDeclared { queue, created: true })
    }

    fn place_queue(
        &mut self,
        meta: &ApplyMeta,
        queue: QueueId,
        asked: &QueueInfo,
        session: SessionId,
        changes: &mut Vec<Change>,
    ) -> Result<Placement, Refusal> {
        let near = self.member_of_boot(session.boot);
        if asked.exclusive.is_some() || !asked.durable {
            // A run that is over, or was never heard of, holds nothing.
            let Some(member) = near else {
                return Err(Refusal { code: 541, text: "the declaring member does not run".to_owned() });
            };
            return Ok(Placement::Transient { owner: Owner { member, boot: session.boot } });
        }
        let Some(chosen) = self.place(&self.wish_for_new(asked, near)) else {
            return Err(Refusal { code: 541, text: "the cluster has no members".to_owned() });
        };
        self.last_group += 1;
        let group = GroupId(self.last_group);
        let incarnation = Incarnation { counter: 1, nonce: self.nonce(meta, group) };
        let founded = GroupInfo::founded(incarnation, &chosen.voters, chosen.leader);
        let info = GroupInfo { queues: [queue].into(), ..founded };
        placement::count(&mut self.loads, &info);
        self.groups.insert(group, info);
        changes.push(Change::GroupCreated { group });
        Ok(Placement::Replicated { group })
    }

    /// Replicas of a queue without a policy (issue: 1, 3, 3 for 1, 3, 5 members).
    pub(super) fn factor(&self) -> u32 {
        match &self.cluster {
            Some(cluster) if cluster.replication_factor > 0 => cluster.replication_factor,
            Some(cluster) if cluster.expected.len() >= 3 => 3,
            _ => 1,
        }
    }

    /// As good as random to anyone who does not share this log: two clusters, or two recoveries of one, do not agree on
    /// it.
    fn nonce(&self, meta: &ApplyMeta, group: GroupId) -> u64 {
        let cluster = self.cluster.as_ref().map_or("", |cluster| cluster.cluster_id.as_str());
        let epoch = self.cluster.as_ref().map_or(0, |cluster| cluster.epoch);
        let seed = format!("{cluster}/{epoch}/{group}/{}/{}", meta.term, meta.index);
        snapshot::digest(seed.as_bytes())
    }

    /// Takes a queue, its bindings and, with the last queue in it, its group out.
    pub(super) fn drop_queue(&mut self, id: QueueId, changes: &mut Vec<Change>) {
        let Some(queue) = self.queues.remove(&id) else { return };
        self.effective.remove(&id);
        if let Some(vhost) = self.vhosts.get_mut(&queue.vhost) {
            vhost.queues.remove(&queue.name);
        }
        self.drop_bindings_to(&queue.vhost, &Destination::Queue { name: queue.name.clone() });
        self.router.remove_queue(&queue.vhost, &queue.name);
        self.forget_restore(&queue.vhost, &queue.name);
        let owner = match queue.placement {
            Placement::Transient { owner } => Some(owner.boot),
            Placement::Replicated { group } => {
                self.leave_group(id, group, changes);
                None
            }
        };
        changes.push(Change::QueueDeleted { queue: id, owner });
    }

    fn leave_group(&mut self, queue: QueueId, id: GroupId, changes: &mut Vec<Change>) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        group.queues.remove(&queue);
        if group.queues.is_empty() {
            let incarnation = group.incarnation;
            placement::discount(&mut self.loads, group);
            self.groups.remove(&id);
            self.unsettled.remove(&id);
            self.unsynchronised.remove(&id);
            changes.push(Change::GroupDestroyed { group: id, incarnation });
        }
    }
}

fn is_server_named(name: &str) -> bool {
    name.starts_with("amq.gen-")
}

fn describe(queue: &QueueInfo) -> String {
    format!("queue '{}' in vhost '{}'", queue.name, queue.vhost)
}

fn check_equivalent(present: &QueueInfo, asked: &QueueInfo) -> Result<(), Refusal> {
    let what = describe(asked);
    let flags = [
        ("durable", asked.durable, present.durable),
        ("auto_delete", asked.auto_delete, present.auto_delete),
        ("exclusive", asked.exclusive.is_some(), present.exclusive.is_some()),
    ];
    for (flag, asked, present) in flags {
        if asked != present {
            return Err(inequivalent(flag, &what, &boolean(asked), &boolean(present)));
        }
    }
    inequivalent_arguments(&what, &COMPARED, &asked.arguments, &present.arguments)
}

/// RabbitMQ's text for a field that differs from what is there.
pub(super) fn inequivalent(field: &str, what: &str, asked: &str, present: &str) -> Refusal {
    let text = format!("inequivalent arg '{field}' for {what}: received {asked} but current is {present}");
    Refusal { code: 406, text }
}

pub(super) fn boolean(value: bool) -> String {
    format!("'{value}'")
}

/// Refuses the first of `names` that differs between two tables.
pub(super) fn inequivalent_arguments(
    what: &str,
    names: &[&str],
    asked: &Arguments,
    present: &Arguments,
) -> Result<(), Refusal> {
    let text = |value: Option<&Value>| match value {
        None => "none".to_owned(),
        Some(value) => format!("the value '{value}' of type '{}'", value.type_name()),
    };
    for name in names {
        let (asked, present) = (asked.get(name), present.get(name));
        let same = match (asked, present) {
            (None, None) => true,
            (Some(asked), Some(present)) => asked.equivalent(present),
            _ => false,
        };
        if !same {
            return Err(inequivalent(name, what, &text(asked), &text(present)));
        }
    }
    Ok(())
}

/// What RabbitMQ wants of an argument's value.
enum Rule {
    NotNegative,
    /// A number, or -1 for no limit.
    LimitOrNone,
    Positive,
    AtMost(i64),
    Text,
    OneOf(&'static [&'static str]),
    Boolean,
}

const RULES: [(&str, Rule); 15] = [
    ("x-expires", Rule::Positive),
    ("x-message-ttl", Rule::NotNegative),
    ("x-max-length", Rule::NotNegative),
    ("x-max-length-bytes", Rule::NotNegative),
    ("x-max-priority", Rule::AtMost(255)),
    ("x-delivery-limit", Rule::LimitOrNone),
    ("x-quorum-initial-group-size", Rule::Positive),
    ("x-dead-letter-exchange", Rule::Text),
    ("x-dead-letter-routing-key", Rule::Text),
    ("x-dead-letter-strategy", Rule::OneOf(&["at-most-once", "at-least-once"])),
    ("x-overflow", Rule::OneOf(&["drop-head", "reject-publish", "reject-publish-dlx"])),
    ("x-queue-leader-locator", Rule::OneOf(&["client-local", "balanced"])),
    ("x-queue-master-locator", Rule::OneOf(&["client-local", "min-masters", "random"])),
    ("x-queue-mode", Rule::OneOf(&["default", "lazy"])),
    ("x-single-active-consumer", Rule::Boolean),
];

impl Rule {
    /// Why a value breaks the rule, in RabbitMQ's words.
    fn broken_by(&self, value: &Value) -> Option<String> {
        let wrong_type = || Some(format!("{{unacceptable_type,{}}}", value.type_name()));
        match self {
            Rule::NotNegative | Rule::LimitOrNone | Rule::Positive | Rule::AtMost(_) => {
                match (self, value.as_integer()) {
                    (_, None) => wrong_type(),
                    (Rule::LimitOrNone, Some(-1)) => None,
                    (_, Some(number)) if number < 0 => Some(format!("{{value_negative,{number}}}")),
                    (Rule::Positive, Some(0)) => Some("{value_zero,0}".to_owned()),
                    (Rule::AtMost(most), Some(number)) if number > *most => {
                        Some(format!("{{max_value_exceeded,{number}}}"))
                    }
                    _ => None,
                }
            }
            Rule::Text => {
                if value.as_text().is_some() {
                    None
                } else {
                    wrong_type()
                }
            }
            Rule::OneOf(choices) => match value.as_text() {
                None => wrong_type(),
                Some(text) if choices.contains(&text) => None,
                Some(text) => Some(format!("{{unsupported_value,<<\"{text}\">>}}")),
            },
            Rule::Boolean => {
                if matches!(value, Value::Bool(_)) {
                    None
                } else {
                    wrong_type()
                }
            }
        }
    }
}

/// A value that asks for what a queue does anyhow.
enum Plain {
    Text(&'static str),
    Number(i64),
    False,
}

impl Plain {
    fn is(&self, value: &Value) -> bool {
        match self {
            Plain::Text(text) => value.as_text() == Some(text),
            Plain::Number(number) => value.as_integer() == Some(*number),
            Plain::False => *value == Value::Bool(false),
        }
    }
}

/// Arguments that would change what happens to messages and are not built yet, with the values that change nothing. To
/// take one and do nothing would lose what the client relies on (rejected messages, say, without their dead-letter
/// exchange). Those that are mere hints in RabbitMQ too are not listed: x-queue-mode, x-queue-version,
/// x-max-in-memory-length and -bytes, x-queue-leader-locator, x-queue-master-locator, x-quorum-initial-group-size.
const UNSUPPORTED: [(&str, &[Plain]); 15] = [
    ("x-message-ttl", &[]),
    ("x-expires", &[]),
    ("x-max-length", &[]),
    ("x-max-length-bytes", &[]),
    ("x-overflow", &[Plain::Text("drop-head")]),
    ("x-dead-letter-exchange", &[]),
    ("x-dead-letter-routing-key", &[]),
    ("x-dead-letter-strategy", &[Plain::Text("at-most-once")]),
    ("x-max-priority", &[]),
    ("x-single-active-consumer", &[Plain::False]),
    ("x-delivery-limit", &[Plain::Number(-1)]),
    ("x-delayed-retry-type", &[]),
    ("x-delayed-retry-min", &[]),
    ("x-delayed-retry-max", &[]),
    ("x-deduplication-header", &[]),
];

fn check_arguments(queue: &QueueInfo) -> Result<(), Refusal> {
    let what = describe(queue);
    let precondition = |text: String| Err(Refusal { code: 406, text });
    match queue.arguments.get("x-queue-type").map(|value| (value, value.as_text())) {
        None | Some((_, Some("classic"))) => {}
        Some((_, Some("quorum"))) if !queue.durable => {
            return precondition(format!("invalid property 'non-durable' for {what}"));
        }
        Some((_, Some("quorum"))) if queue.exclusive.is_some() => {
            return precondition(format!("invalid property 'exclusive-owner' for {what}"));
        }
        Some((_, Some("quorum"))) => {}
        Some((_, Some("stream"))) => {
            return Err(Refusal { code: 540, text: format!("{what}: queue type 'stream' is not implemented") });
        }
        Some((value, _)) => {
            return precondition(format!("invalid arg 'x-queue-type' for {what}: unsupported queue type '{value}'"));
        }
    }
    for (name, rule) in &RULES {
        if let Some(reason) = queue.arguments.get(name).and_then(|value| rule.broken_by(value)) {
            return precondition(format!("invalid arg '{name}' for {what}: {reason}"));
        }
    }
    for (name, without_effect) in &UNSUPPORTED {
        let asked = queue.arguments.get(name).filter(|value| !without_effect.iter().any(|plain| plain.is(value)));
        if let Some(value) = asked {
            return precondition(format!(
                "arg '{name}' for {what}: this version does not support it yet (received '{value}'); declare the queue without it"
            ));
        }
    }
    Ok(())
}
