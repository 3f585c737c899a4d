//! What a policy may say: its keys, their values, and what the replication keys mean together.

use super::replication::MAX_REPLICAS;
use crate::arguments::{Arguments, Value};

/// Which of a user's and an operator's value counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Merge {
    /// Of a limit the smaller one, as in RabbitMQ.
    Smaller,
    /// Of a promise the larger one.
    Larger,
    /// The operator's.
    Operator,
    /// Operator policies do not have this key.
    UserOnly,
}

/// What a key's value must be.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Number {
        least: i64,
        most: i64,
    },
    Text,
    OneOf(&'static [&'static str]),
    /// A number or a list of names, as `ha-mode` says.
    HaParams,
}

/// What the broker makes of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// What it says.
    Now,
    /// Nothing yet: members refuse it, as they refuse the arguments of queues that they do not honour.
    None,
}

/// A key of policies.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) name: &'static str,
    kind: Kind,
    pub(super) merge: Merge,
    pub(super) effect: Effect,
}

const fn key(name: &'static str, kind: Kind, merge: Merge, effect: Effect) -> Key {
    Key { name, kind, merge, effect }
}

const NOT_NEGATIVE: Kind = Kind::Number { least: 0, most: i64::MAX };
const POSITIVE: Kind = Kind::Number { least: 1, most: i64::MAX };
const PROMOTE: Kind = Kind::OneOf(&["when-synced", "always"]);

/// All keys: RabbitMQ's, and `min-in-sync-replicas`.
static KEYS: [Key; 20] = [
    key("alternate-exchange", Kind::Text, Merge::UserOnly, Effect::None),
    key("dead-letter-exchange", Kind::Text, Merge::UserOnly, Effect::None),
    key("dead-letter-routing-key", Kind::Text, Merge::UserOnly, Effect::None),
    key("dead-letter-strategy", Kind::OneOf(&["at-most-once", "at-least-once"]), Merge::UserOnly, Effect::None),
    key("delivery-limit", NOT_NEGATIVE, Merge::Smaller, Effect::None),
    key("expires", POSITIVE, Merge::Smaller, Effect::None),
    key("ha-mode", Kind::OneOf(&["all", "exactly", "nodes"]), Merge::Operator, Effect::Now),
    key("ha-params", Kind::HaParams, Merge::Operator, Effect::Now),
    key("ha-promote-on-failure", PROMOTE, Merge::Operator, Effect::Now),
    key("ha-promote-on-shutdown", PROMOTE, Merge::Operator, Effect::Now),
    key("ha-sync-mode", Kind::OneOf(&["automatic", "manual"]), Merge::Operator, Effect::Now),
    key("max-length", NOT_NEGATIVE, Merge::Smaller, Effect::None),
    key("max-length-bytes", NOT_NEGATIVE, Merge::Smaller, Effect::None),
    key("message-ttl", NOT_NEGATIVE, Merge::Smaller, Effect::None),
    key("min-in-sync-replicas", Kind::Number { least: 1, most: MAX_REPLICAS as i64 }, Merge::Larger, Effect::Now),
    key("overflow", Kind::OneOf(&["drop-head", "reject-publish", "reject-publish-dlx"]), Merge::Operator, Effect::None),
    key("queue-leader-locator", Kind::OneOf(&["client-local", "balanced"]), Merge::Operator, Effect::Now),
    key("queue-master-locator", Kind::OneOf(&["client-local", "min-masters", "random"]), Merge::Operator, Effect::Now),
    key("queue-mode", Kind::OneOf(&["default", "lazy"]), Merge::UserOnly, Effect::Now),
    key("queue-version", Kind::Number { least: 1, most: 2 }, Merge::UserOnly, Effect::Now),
];

pub(super) fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

impl Kind {
    /// What is wrong with a value, as the end of a sentence.
    fn broken_by(self, value: &Value) -> Option<String> {
        match self {
            Kind::Number { least, most } => match value.as_integer() {
                Some(number) if (least..=most).contains(&number) => None,
                _ if most == i64::MAX => Some(format!("must be a number of at least {least}")),
                _ => Some(format!("must be a number from {least} to {most}")),
            },
            Kind::Text => value.as_text().is_none().then(|| "must be a text".to_owned()),
            Kind::OneOf(choices) => {
                let known = value.as_text().is_some_and(|text| choices.contains(&text));
                (!known).then(|| format!("must be one of: {}", choices.join(", ")))
            }
            Kind::HaParams => match value {
                Value::Array(names) if names.iter().all(|name| name.as_text().is_some()) => None,
                _ if value.as_integer().is_some() => None,
                _ => Some("must be a number (ha-mode exactly) or a list of member names (ha-mode nodes)".to_owned()),
            },
        }
    }
}

/// Checks a policy's definition.
///
/// # Errors
/// What is wrong, and what to write instead.
pub(super) fn check(definition: &Arguments, is_operator: bool) -> Result<(), String> {
    for (at, (name, value)) in definition.iter().enumerate() {
        let known = |key: &&Key| !is_operator || key.merge != Merge::UserOnly;
        let Some(key) = find(name).filter(known) else {
            let kind = if is_operator { "an operator policy" } else { "a policy" };
            let names: Vec<&str> = KEYS.iter().filter(known).map(|key| key.name).collect();
            return Err(format!("'{name}' is not a key of {kind}; there are: {}", names.join(", ")));
        };
        if definition.0[..at].iter().any(|(earlier, _)| earlier == name) {
            return Err(format!("'{name}' is given twice"));
        }
        if let Some(why) = key.kind.broken_by(value) {
            return Err(format!("{name} {why}, not '{value}'"));
        }
    }
    check_replicas(definition)
}

fn check_replicas(definition: &Arguments) -> Result<(), String> {
    let mode = definition.get("ha-mode").and_then(Value::as_text);
    let params = definition.get("ha-params");
    let in_range = |count: i64| (1..=i64::from(MAX_REPLICAS)).contains(&count);
    let replicas = match (mode, params) {
        (None, Some(_)) => return Err("ha-params needs ha-mode (exactly or nodes)".to_owned()),
        (Some("all"), Some(_)) => return Err("ha-mode all takes no ha-params".to_owned()),
        (None | Some("all"), None) => None,
        (Some("exactly"), _) => match params.and_then(Value::as_integer).filter(|count| in_range(*count)) {
            Some(count) => Some(count),
            None => return Err(format!("ha-mode exactly needs ha-params: a number from 1 to {MAX_REPLICAS}")),
        },
        _ => match params {
            Some(Value::Array(names)) if in_range(names.len() as i64) => Some(names.len() as i64),
            _ => return Err(format!("ha-mode nodes needs ha-params: a list of 1 to {MAX_REPLICAS} member names")),
        },
    };
    let min_in_sync = definition.get("min-in-sync-replicas").and_then(Value::as_integer);
    if let (Some(replicas), Some(min_in_sync)) = (replicas, min_in_sync)
        && min_in_sync > replicas
    {
        return Err(format!(
            "min-in-sync-replicas is {min_in_sync}, but the queue is to have {replicas} replicas: no publish could be taken"
        ));
    }
    Ok(())
}

/// Which members should hold a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum HaMode {
    All,
    Exactly(usize),
    Nodes(Vec<String>),
}

/// Where a new queue's leader should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LeaderLocator {
    /// On the member that declares it.
    ClientLocal,
    /// On the member that leads least.
    Balanced,
}

impl LeaderLocator {
    /// Of a policy's or an argument's value; the classic names are kept.
    pub(super) fn of(value: &Value) -> Option<LeaderLocator> {
        match value.as_text()? {
            "client-local" => Some(LeaderLocator::ClientLocal),
            "balanced" | "min-masters" | "random" => Some(LeaderLocator::Balanced),
            _ => None,
        }
    }
}

/// What a checked definition says of replication.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Replication {
    pub(super) mode: Option<HaMode>,
    pub(super) min_in_sync: Option<u32>,
    pub(super) leader_locator: Option<LeaderLocator>,
    /// `ha-sync-mode: manual`.
    pub(super) manual_sync: bool,
    pub(super) promote: Promote,
}

/// Whether the operator may recover a queue by force without a person, once its quorum is lost for a stated time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Promote {
    /// `ha-promote-on-failure: always`: when the members that are missing have failed.
    pub on_failure: bool,
    /// `ha-promote-on-shutdown: always`: when they were stopped on purpose.
    pub on_shutdown: bool,
}

impl Replication {
    pub(super) fn of(definition: &Arguments) -> Replication {
        let params = definition.get("ha-params");
        let mode = definition.get("ha-mode").and_then(Value::as_text).and_then(|mode| match (mode, params) {
            ("all", _) => Some(HaMode::All),
            ("exactly", Some(count)) => Some(HaMode::Exactly(usize::try_from(count.as_integer()?).ok()?)),
            ("nodes", Some(Value::Array(names))) => {
                Some(HaMode::Nodes(names.iter().filter_map(Value::as_text).map(str::to_owned).collect()))
            }
            _ => None,
        });
        let min_in_sync = definition.get("min-in-sync-replicas").and_then(Value::as_integer);
        let always = |key: &str| definition.get(key).and_then(Value::as_text) == Some("always");
        let locator = definition.get("queue-leader-locator").or_else(|| definition.get("queue-master-locator"));
        Replication {
            mode,
            min_in_sync: min_in_sync.and_then(|count| u32::try_from(count).ok()),
            leader_locator: locator.and_then(LeaderLocator::of),
            promote: Promote {
                on_failure: always("ha-promote-on-failure"),
                on_shutdown: always("ha-promote-on-shutdown"),
            },
            manual_sync: definition.get("ha-sync-mode").and_then(Value::as_text) == Some("manual"),
        }
    }
}

/// Merges a user's and an operator's definition into the one that counts, in the order of the keys' names. An operator's
/// `ha-mode` brings its own `ha-params`.
pub(super) fn merge(user: &Arguments, operator: &Arguments) -> Arguments {
    let operator_places = operator.get("ha-mode").is_some();
    let merged = KEYS.iter().filter_map(|key| {
        let is_place = key.name == "ha-mode" || key.name == "ha-params";
        let of_user = user.get(key.name).filter(|_| !(is_place && operator_places));
        let value = match (of_user, operator.get(key.name)) {
            (Some(user), Some(operator)) => match key.merge {
                Merge::Smaller if user.as_integer() <= operator.as_integer() => user,
                Merge::Larger if user.as_integer() >= operator.as_integer() => user,
                _ => operator,
            },
            (one, other) => one.or(other)?,
        };
        Some((key.name.to_owned(), value.clone()))
    });
    Arguments(merged.collect())
}
